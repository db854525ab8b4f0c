// Weighted sums of neighbours' rows on the GPU, and the way back. A warp for each row of the result, its lanes side by
// side over the channels, so that reads and writes are whole lines and nothing of size [M, k, C] exists. Backward sorts
// the neighbours (stable), which makes each row of the gradient a sum in fixed order, without atomics.
#include "common/algorithms.cuh"
#include "grouping/arguments.h"

namespace pointcept3m {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Weighted {
  const T* rows;
  const int32_t* idx;  // [M, k]
  const T* weight;     // [M, k]
  int64_t k, channels;
  T* out;
};

// An absent neighbour adds nothing, unless its weight is NaN: then the query was not finite, and its result is not.
template <class T>
__global__ void average_rows(Weighted<T> job, int64_t num_queries) {
  const int64_t m = global_thread() / kWarp;
  if (m >= num_queries) return;
  for (int64_t c = threadIdx.x % kWarp; c < job.channels; c += kWarp) {
    T sum = 0;
    for (int64_t j = 0; j < job.k; ++j) {
      const int64_t row = job.idx[m * job.k + j];
      const T weight = job.weight[m * job.k + j];
      sum += row < 0 ? (weight != weight ? weight : T{0}) : weight * job.rows[row * job.channels + c];
    }
    job.out[m * job.channels + c] = sum;
  }
}

// Absent neighbours sort behind all rows.
__global__ void make_keys(const int32_t* idx, int64_t count, int64_t num_rows, uint32_t* keys, int32_t* entries,
                          int32_t* outside) {
  const int64_t i = global_thread();
  if (i >= count) return;
  if (idx[i] < -1 || idx[i] >= num_rows) *outside = 1;
  keys[i] = idx[i] < 0 ? static_cast<uint32_t>(num_rows) : static_cast<uint32_t>(idx[i]);
  entries[i] = static_cast<int32_t>(i);
}

__global__ void check_idx(const int32_t* idx, int64_t count, int64_t num_rows, int32_t* outside) {
  const int64_t i = global_thread();
  if (i < count && (idx[i] < -1 || idx[i] >= num_rows)) *outside = 1;
}

__global__ void find_starts(const uint32_t* sorted, int64_t count, int64_t num_rows, int32_t* start) {
  const int64_t row = global_thread();
  if (row > num_rows) return;
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (static_cast<int64_t>(sorted[middle]) < row) low = middle + 1;
    else high = middle;
  }
  start[row] = static_cast<int32_t>(low);
}

template <class T>
__global__ void return_rows(Weighted<T> job, const int32_t* start, const int32_t* entries, int64_t num_rows) {
  const int64_t row = global_thread() / kWarp;
  if (row >= num_rows) return;
  for (int64_t c = threadIdx.x % kWarp; c < job.channels; c += kWarp) {
    T sum = 0;
    for (int32_t place = start[row]; place < start[row + 1]; ++place) {
      const int64_t entry = entries[place];
      sum += job.weight[entry] * job.rows[entry / job.k * job.channels + c];
    }
    job.out[row * job.channels + c] = sum;
  }
}

void check_arguments(const Tensor& rows, const Tensor& idx, const Tensor& weight) {
  check_contiguous_cuda(rows, "rows");
  check_contiguous_cuda(idx, "idx");
  check_contiguous_cuda(weight, "weight");
  check_weighted_rows(rows, idx, weight);
  const auto device = rows.get_device_index();
  STD_TORCH_CHECK(idx.get_device_index() == device && weight.get_device_index() == device,
                  "idx and weight must be on the device of the rows");
}

template <class T>
Weighted<T> job_of(const Tensor& rows, const Tensor& idx, const Tensor& weight, const Tensor& out) {
  return {rows.const_data_ptr<T>(), idx.const_data_ptr<int32_t>(), weight.const_data_ptr<T>(),
          idx.size(1),              rows.size(1),                  out.mutable_data_ptr<T>()};
}

Tensor interpolate_rows(const Tensor feat, const Tensor idx, const Tensor weight) {
  check_arguments(feat, idx, weight);
  CudaWork work(feat);
  auto* outside = work.zeroed_scratch<int32_t>(1);
  launch(work, check_idx, blocks_for(idx.numel(), kThreads), kThreads, 0, idx.const_data_ptr<int32_t>(), idx.numel(),
         feat.size(0), outside);
  STD_TORCH_CHECK(!work.read_back(outside), "idx must lie in [-1, ", feat.size(0), ")");
  const Tensor out = torch::stable::new_empty(feat, {idx.size(0), feat.size(1)});
  const dim3 blocks = blocks_for(idx.size(0) * kWarp, kThreads);
  if (feat.scalar_type() == ScalarType::Float)
    launch(work, average_rows<float>, blocks, kThreads, 0, job_of<float>(feat, idx, weight, out), idx.size(0));
  else
    launch(work, average_rows<double>, blocks, kThreads, 0, job_of<double>(feat, idx, weight, out), idx.size(0));
  return out;
}

Tensor interpolate_rows_backward(const Tensor grad, const Tensor idx, const Tensor weight, int64_t num_rows) {
  check_arguments(grad, idx, weight);
  STD_TORCH_CHECK(num_rows >= 0 && num_rows < INT32_MAX - 1, "num_rows must lie in [0, 2^31 - 2)");
  STD_TORCH_CHECK(grad.size(0) == idx.size(0), "grad must have one row for each of idx");
  CudaWork work(grad);
  const int64_t count = idx.numel();
  auto *keys = work.scratch<uint32_t>(count), *sorted = work.scratch<uint32_t>(count);
  auto *numbers = work.scratch<int32_t>(count), *entries = work.scratch<int32_t>(count);
  auto* start = work.scratch<int32_t>(num_rows + 1);
  auto* outside = work.zeroed_scratch<int32_t>(1);
  launch(work, make_keys, blocks_for(count, kThreads), kThreads, 0, idx.const_data_ptr<int32_t>(), count, num_rows,
         keys, numbers, outside);
  STD_TORCH_CHECK(!work.read_back(outside), "idx must lie in [-1, ", num_rows, ")");
  int bits = 1;
  while (num_rows >> bits > 0) ++bits;
  sort_pairs(work, keys, sorted, numbers, entries, count, bits);
  launch(work, find_starts, blocks_for(num_rows + 1, kThreads), kThreads, 0, sorted, count, num_rows, start);
  const Tensor out = torch::stable::new_empty(grad, {num_rows, grad.size(1)});
  const dim3 blocks = blocks_for(num_rows * kWarp, kThreads);
  if (grad.scalar_type() == ScalarType::Float)
    launch(work, return_rows<float>, blocks, kThreads, 0, job_of<float>(grad, idx, weight, out), start, entries,
           num_rows);
  else
    launch(work, return_rows<double>, blocks, kThreads, 0, job_of<double>(grad, idx, weight, out), start, entries,
           num_rows);
  return out;
}

}  // namespace

P3M_REGISTER_CUDA(m) {
  m.impl("interpolate_rows", TORCH_BOX(&interpolate_rows));
  m.impl("interpolate_rows_backward", TORCH_BOX(&interpolate_rows_backward));
}

}  // namespace pointcept3m
