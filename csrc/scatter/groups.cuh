// Rows by bin on the GPU: what the reductions run over. A stable radix sort of the index, skipped where the index
// ascends already, then one binary search per bin; or the pointers of segments as they are. One read-back tells both
// whether a value lies outside and whether to sort.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "common/algorithms.cuh"
#include "common/cuda.cuh"

namespace pointcept3m {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class S>
using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;

constexpr int kThreads = 256;

inline void check_values(const Tensor& tensor, int64_t dims, const char* name) {
  check_contiguous_cuda(tensor, name);
  const auto dtype = tensor.scalar_type();
  STD_TORCH_CHECK(tensor.dim() == dims, name, " must have ", dims, " dimensions");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
      dtype == ScalarType::BFloat16,
                  name, " must be float32, float64, float16 or bfloat16");
}

inline void check_index(const Tensor& index, const Tensor& like, const char* name) {
  check_contiguous_cuda(index, name);
  STD_TORCH_CHECK(index.dim() == 1 && index.scalar_type() == ScalarType::Long, name, " must be int64 of shape [rows]");
  STD_TORCH_CHECK(index.get_device_index() == like.get_device_index(), name, " must be on the device of the values");
}

// Calls run(S{}) with the type S of a value of `tensor`.
template <class Run>
void with_value_type(const Tensor& tensor, const Run& run) {
  const auto dtype = tensor.scalar_type();
  if (dtype == ScalarType::Float) run(float{});
  else if (dtype == ScalarType::Double) run(double{});
  else if (dtype == ScalarType::Half) run(Half{});
  else run(BFloat16{});
}

// Bin v holds places first[v] .. last[v] - 1; the row at a place is perm[place], or the place itself without perm.
struct Groups {
  const int32_t* first;
  const int32_t* last;
  const int32_t* perm;
  int64_t count, num_rows;
};

// flags[0]: a value lies outside [0, num_bins). flags[1]: the index descends somewhere.
__global__ void inspect_index(const int64_t* index, int64_t num_rows, int64_t num_bins, uint32_t* keys, int32_t* rows,
    int32_t* flags) {
  const int64_t i = global_thread();
  if (i >= num_rows) return;
  const int64_t bin = index[i];
  if (bin < 0 || bin >= num_bins) flags[0] = 1;
  if (i > 0 && bin < index[i - 1]) flags[1] = 1;
  keys[i] = static_cast<uint32_t>(bin);
  rows[i] = static_cast<int32_t>(i);
}

// How many of `count` ascending values are below `bound`.
template <class T>
__device__ int64_t count_below(const T* values, int64_t count, int64_t bound) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (static_cast<int64_t>(values[middle]) < bound) low = middle + 1;
    else high = middle;
  }
  return low;
}

__global__ void find_starts(const uint32_t* sorted, int64_t num_rows, int64_t num_bins, int32_t* start) {
  const int64_t bin = global_thread();
  if (bin <= num_bins) start[bin] = static_cast<int32_t>(count_below(sorted, num_rows, bin));
}

inline Groups group_rows(CudaWork& work, const Tensor& index, int64_t num_rows, int64_t num_bins) {
  STD_TORCH_CHECK(index.size(0) == num_rows, "index must have one entry per row");
  STD_TORCH_CHECK(num_rows < INT32_MAX && num_bins >= 0 && num_bins < INT32_MAX,
      "scatter takes fewer than 2^31 rows and bins");
  auto* keys = work.scratch<uint32_t>(num_rows);
  auto* rows = work.scratch<int32_t>(num_rows);
  auto* flags = work.zeroed_scratch<int32_t>(2);
  launch(work, inspect_index, blocks_for(num_rows, kThreads), kThreads, 0, index.const_data_ptr<int64_t>(), num_rows,
      num_bins, keys, rows, flags);
  const std::vector<int32_t> found = work.read_back(flags, 2);
  STD_TORCH_CHECK(!found[0], "index has values outside [0, dim_size)");
  int32_t* perm = nullptr;
  if (found[1]) {
    int bits = 1;
    while ((int64_t{1} << bits) < num_bins) ++bits;
    auto* sorted = work.scratch<uint32_t>(num_rows);
    perm = work.scratch<int32_t>(num_rows);
    sort_pairs(work, keys, sorted, rows, perm, num_rows, bits);
    keys = sorted;
  }
  auto* start = work.scratch<int32_t>(num_bins + 1);
  launch(work, find_starts, blocks_for(num_bins + 1, kThreads), kThreads, 0, keys, num_rows, num_bins, start);
  return {start, start + 1, perm, num_bins, num_rows};
}

__global__ void read_pointers(const int64_t* indptr, int64_t batches, int64_t segments, int64_t num_rows,
    int32_t* first, int32_t* last, int32_t* flags) {
  const int64_t i = global_thread();
  if (i >= batches * (segments + 1)) return;
  const int64_t batch = i / (segments + 1), segment = i % (segments + 1), pointer = indptr[i];
  if (pointer < 0 || pointer > num_rows) flags[0] = 1;
  if (segment == segments) return;
  if (indptr[i + 1] < pointer) flags[0] = 1;
  first[i - batch] = static_cast<int32_t>(pointer + batch * num_rows);
  last[i - batch] = static_cast<int32_t>(indptr[i + 1] + batch * num_rows);
}

// The segments of every batch one after the other, as places in all the rows.
inline Groups group_segments(CudaWork& work, const Tensor& indptr, int64_t batches, int64_t num_rows) {
  check_contiguous_cuda(indptr, "indptr");
  STD_TORCH_CHECK(indptr.dim() == 2 && indptr.scalar_type() == ScalarType::Long && indptr.size(0) == batches &&
      indptr.size(1) > 0,
                  "indptr must be int64 of shape [batches, segments + 1]");
  STD_TORCH_CHECK(num_rows >= 0 && (num_rows == 0 || batches < INT32_MAX / num_rows),
      "segments take fewer than 2^31 rows");
  const int64_t segments = indptr.size(1) - 1, count = batches * segments;
  STD_TORCH_CHECK(count < INT32_MAX, "there must be fewer than 2^31 segments");
  auto* first = work.scratch<int32_t>(count);
  auto* last = work.scratch<int32_t>(count);
  auto* flags = work.zeroed_scratch<int32_t>(1);
  launch(work, read_pointers, blocks_for(batches * (segments + 1), kThreads), kThreads, 0,
      indptr.const_data_ptr<int64_t>(), batches, segments,
         num_rows, first, last, flags);
  STD_TORCH_CHECK(!work.read_back(flags), "indptr must not descend and must stay within [0, rows]");
  return {first, last, nullptr, count, batches * num_rows};
}

// The power of two of threads that share a row of `parts` parts, at most a warp.
inline int lanes_for(int64_t parts) {
  int lanes = 1;
  while (lanes < kWarp && lanes < parts) lanes *= 2;
  return lanes;
}

}  // namespace
}  // namespace pointcept3m
