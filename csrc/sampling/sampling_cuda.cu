// Farthest point sampling on the GPU: one block for each item of the batch, as samples follow from each other. A sample
// costs one pass over the item, in which every thread renews the distances of its points and remembers the farthest,
// and one reduction; distances and coordinates of some ten thousand points stay in the nearest cache.
#include "neighbours/arguments.h"
#include "neighbours/distance.cuh"

namespace pointcept3m {
namespace {

constexpr int kBlock = 1024;
constexpr int kWarps = kBlock / kWarp;

// A point and its squared distance to the samples: infinite before the first, -1 once it is one or where it is not
// finite.
template <class T>
struct Farthest {
  T square;
  int32_t row;

  __device__ void take(T other, int32_t other_row) {
    if (other > square || (other == square && other_row < row)) {
      square = other;
      row = other_row;
    }
  }
  __device__ void reduce_warp() {
    for (int by = kWarp / 2; by > 0; by /= 2) {
      const T other = __shfl_xor_sync(kAllLanes, square, by);
      take(other, __shfl_xor_sync(kAllLanes, row, by));
    }
  }
};

// The farthest of the block's candidates, known to every thread.
template <class T>
__device__ Farthest<T> farthest_of_block(Farthest<T> mine, T* squares, int32_t* rows) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  mine.reduce_warp();
  __syncthreads();  // everyone has read what the previous sample left there
  if (lane == 0) squares[warp] = mine.square;
  if (lane == 0) rows[warp] = mine.row;
  __syncthreads();
  mine = {squares[lane], rows[lane]};  // as many warps as lanes
  mine.reduce_warp();
  return mine;
}

// ends, new_ends: cumulative ends of points and samples. far: scratch, one value for each point.
template <class T>
__global__ void __launch_bounds__(kBlock)
    sample_items(const T* coord, const int64_t* ends, const int64_t* new_ends, T* far, int32_t* idx, int32_t* too_few) {
  static_assert(kWarps == kWarp);
  __shared__ T squares[kWarps];
  __shared__ int32_t rows[kWarps];
  const int item = blockIdx.x;
  const auto begin = static_cast<int32_t>(item ? ends[item - 1] : 0), end = static_cast<int32_t>(ends[item]);
  const int64_t first = item ? new_ends[item - 1] : 0, last = new_ends[item];
  if (first == last) return;
  Farthest<T> best = {-1, kNoPoint};
  for (int32_t row = begin + threadIdx.x; row < end; row += kBlock) {
    far[row] = is_finite(coord + 3 * static_cast<int64_t>(row)) ? kFar<T> : T{-1};
    best.take(far[row], row);
  }
  for (int64_t place = first; place < last; ++place) {
    const Farthest<T> sample = farthest_of_block(best, squares, rows);
    if (sample.square < 0) {  // the same for every thread
      if (threadIdx.x == 0) *too_few = 1;
      return;
    }
    if (threadIdx.x == 0) idx[place] = sample.row;
    const T* s = coord + 3 * static_cast<int64_t>(sample.row);
    const T x = s[0], y = s[1], z = s[2];
    best = {-1, kNoPoint};
    for (int32_t row = begin + threadIdx.x; row < end; row += kBlock) {
      T square = far[row];
      if (square < 0) continue;
      const T* p = coord + 3 * static_cast<int64_t>(row);
      square = row == sample.row ? T{-1} : min(square, square_sum(p[0] - x, p[1] - y, p[2] - z));
      far[row] = square;
      best.take(square, row);
    }
  }
}

Tensor farthest_point_sampling(const Tensor coord, const Tensor offset, const Tensor new_offset, int64_t num_samples) {
  check_contiguous_cuda(coord, "coord");
  check_contiguous_cuda(offset, "offset");
  check_contiguous_cuda(new_offset, "new_offset");
  check_coord(coord, "coord");
  check_offset_type(offset, "offset");
  check_offset_type(new_offset, "new_offset");
  const int64_t items = offset.size(0);
  STD_TORCH_CHECK(new_offset.size(0) == items, "new_offset must have offset's length");
  const auto device = coord.get_device_index();
  STD_TORCH_CHECK(offset.get_device_index() == device && new_offset.get_device_index() == device,
                  "offset and new_offset must be on coord's device");
  CudaWork work(coord);
  const auto *ends = offset.const_data_ptr<int64_t>(), *new_ends = new_offset.const_data_ptr<int64_t>();
  check_ends(work.read_back(ends, items).data(), items, coord.size(0), "offset");
  check_ends(work.read_back(new_ends, items).data(), items, num_samples, "new_offset");
  STD_TORCH_CHECK(num_samples <= coord.size(0), "new_offset asks for more samples than there are points");
  const Tensor idx = torch::stable::new_empty(coord, {num_samples}, ScalarType::Int);
  auto* too_few = work.zeroed_scratch<int32_t>(1);
  const dim3 grid(static_cast<unsigned>(items));
  if (coord.scalar_type() == ScalarType::Float)
    launch(work, sample_items<float>, grid, kBlock, 0, coord.const_data_ptr<float>(), ends, new_ends,
           work.scratch<float>(coord.size(0)), idx.mutable_data_ptr<int32_t>(), too_few);
  else
    launch(work, sample_items<double>, grid, kBlock, 0, coord.const_data_ptr<double>(), ends, new_ends,
           work.scratch<double>(coord.size(0)), idx.mutable_data_ptr<int32_t>(), too_few);
  STD_TORCH_CHECK(!work.read_back(too_few), "an item has fewer finite points than samples");
  return idx;
}

}  // namespace

P3M_REGISTER_CUDA(m) { m.impl("farthest_point_sampling", TORCH_BOX(&farthest_point_sampling)); }

}  // namespace pointcept3m
