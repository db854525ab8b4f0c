// Voxels of a cloud on the GPU: the same cells, keys and order as on the CPU, bit for bit.
//
// Bytes decide, so a cell is computed twice (once for the bounds, once for its key) rather than stored and read back,
// keys are 32-bit wherever the box of cells allows, and only the bits in use are sorted. A point costs about 12 + 44
// bytes before the sort, 16 for each eight bits of key in it, and 60 after it, most of them the scattered `inverse`.
// The host waits twice: for the bounds, which decide the bits, and for the number of voxels, which decides the shapes.
// Minima and maxima go through integer atomics, whose result does not depend on their order.
#include <bit>
#include <tuple>

#include "common/algorithms.cuh"
#include "voxelize/arguments.h"

namespace pointcept3m {
namespace {

using Long = long long;  // the 64-bit type that CUDA's atomics take

constexpr int kThreads = 256;
constexpr int kPerThread = 8;  // values of one thread in a reduction

struct Grid {
  double size[3], origin[3];
};

// The box that cells of any cloud fit into.
struct Box {
  int64_t size[3];
};

// Lowest and highest cell of each cloud, and whether some point has none.
struct Bounds {
  Long *low, *high;
  int* wrong;
};

template <class T>
__device__ __forceinline__ bool find_cell(const T* coord, const Grid& grid, Long* cell) {
  bool inside = true;
  for (int d = 0; d < 3; ++d) {
    const double value = (static_cast<double>(coord[d]) - grid.origin[d]) / grid.size[d];
    const bool counted = value < kMaxCell && value > -kMaxCell;  // false for NaN
    cell[d] = counted ? static_cast<Long>(floor(value)) : 0;
    inside = inside && counted;
  }
  return inside;
}

__device__ __forceinline__ void widen(const Bounds& bounds, int64_t cloud, const Long* low, const Long* high) {
  for (int d = 0; d < 3; ++d) {
    atomicMin(bounds.low + 3 * cloud + d, low[d]);
    atomicMax(bounds.high + 3 * cloud + d, high[d]);
  }
}

// A thread gathers its points while they stay in one cloud, a warp its threads if they ended in the same one.
template <class T>
__global__ void __launch_bounds__(kThreads)
    find_bounds(const T* coord, int64_t count, Grid grid, const int64_t* batch, int64_t num_clouds, Bounds bounds) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kPerThread + threadIdx.x;
  Long cloud = -1, low[3] = {}, high[3] = {}, cell[3];
  bool good = true;
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = first + k * kThreads;
    if (i >= count) break;
    const Long b = batch ? batch[i] : 0;
    if (!find_cell(coord + 3 * i, grid, cell) || b < 0 || b >= num_clouds) {
      good = false;
      continue;
    }
    if (b != cloud && cloud >= 0) widen(bounds, cloud, low, high);
    for (int d = 0; d < 3; ++d) {
      low[d] = b != cloud || cell[d] < low[d] ? cell[d] : low[d];
      high[d] = b != cloud || cell[d] > high[d] ? cell[d] : high[d];
    }
    cloud = b;
  }
  if (!good) atomicOr(bounds.wrong, 1);
  const bool together = __all_sync(kAllLanes, cloud == __shfl_sync(kAllLanes, cloud, 0));
  for (int by = kWarp / 2; together && by; by /= 2)
    for (int d = 0; d < 3; ++d) {
      const Long other_low = __shfl_xor_sync(kAllLanes, low[d], by);
      const Long other_high = __shfl_xor_sync(kAllLanes, high[d], by);
      low[d] = other_low < low[d] ? other_low : low[d];
      high[d] = other_high > high[d] ? other_high : high[d];
    }
  if (cloud >= 0 && (!together || threadIdx.x % kWarp == 0)) widen(bounds, cloud, low, high);
}

// The size of the box, and the lowest cell of clouds that have no point.
__global__ void find_box(Bounds bounds, int64_t num_clouds, Long* size) {
  const int64_t axis = global_thread();
  if (axis >= 3 * num_clouds) return;
  const Long low = bounds.low[axis], high = bounds.high[axis];
  if (high < low) bounds.low[axis] = 0;
  else atomicMax(size + axis % 3, high - low + 1);
}

template <class T, class Key>
__global__ void make_keys(const T* coord, int64_t count, Grid grid, const int64_t* batch, const Long* lowest, Box box,
                          bool shift, int64_t* grid_coord, Key* keys, int32_t* rows) {
  const int64_t i = global_thread();
  if (i >= count) return;
  const int64_t b = batch ? batch[i] : 0;
  Long cell[3];
  find_cell(coord + 3 * i, grid, cell);
  uint64_t key = static_cast<uint64_t>(b);
  for (int d = 0; d < 3; ++d) {
    const int64_t place = cell[d] - lowest[3 * b + d];
    grid_coord[3 * i + d] = shift ? place : cell[d];
    key = key * static_cast<uint64_t>(box.size[d]) + static_cast<uint64_t>(place);
  }
  keys[i] = static_cast<Key>(key);
  rows[i] = static_cast<int32_t>(i);
}

__global__ void copy_lowest(const Long* lowest, int64_t numbers, int64_t* out) {
  const int64_t i = global_thread();
  if (i < numbers) out[i] = lowest[i];
}

template <class Key>
__global__ void subtract_low(const int64_t* values, int64_t count, int64_t low, Key* keys, int32_t* rows) {
  const int64_t i = global_thread();
  if (i >= count) return;
  keys[i] = static_cast<Key>(static_cast<uint64_t>(values[i]) - static_cast<uint64_t>(low));
  rows[i] = static_cast<int32_t>(i);
}

__global__ void __launch_bounds__(kThreads) find_range(const int64_t* values, int64_t count, Long* range) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kPerThread + threadIdx.x;
  Long low = values[0], high = low;
  for (int64_t i = first; i < count && i < first + kThreads * kPerThread; i += kThreads) {
    const Long value = values[i];
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  for (int by = kWarp / 2; by; by /= 2) {
    const Long other_low = __shfl_xor_sync(kAllLanes, low, by), other_high = __shfl_xor_sync(kAllLanes, high, by);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  if (threadIdx.x % kWarp) return;
  atomicMin(range, low);
  atomicMax(range + 1, high);
}

template <class Key>
__global__ void mark_heads(const Key* keys, int64_t count, int32_t* head) {
  const int64_t i = global_thread();
  if (i < count) head[i] = i == 0 || keys[i] != keys[i - 1];
}

// `ordinal[i]` groups have begun up to the sorted item i.
__global__ void write_groups(const int32_t* rows, const int32_t* ordinal, int64_t count, int64_t* order,
                             int64_t* inverse, int64_t* start) {
  const int64_t i = global_thread();
  if (i >= count) return;
  const int32_t row = rows[i], group = ordinal[i] - 1;
  order[i] = row;
  inverse[row] = group;
  if (i == 0 || ordinal[i - 1] == group) start[group] = i;
  if (i == count - 1) start[group + 1] = count;
}

__global__ void subtract_starts(const int64_t* start, int64_t groups, int64_t* counts) {
  const int64_t g = global_thread();
  if (g < groups) counts[g] = start[g + 1] - start[g];
}

// Bounds of one value or more: the least and the largest, or what the range starts from, where all lie beyond that.
std::pair<int64_t, int64_t> value_range(CudaWork& work, const int64_t* values, int64_t count) {
  Long* range = work.scratch<Long>(2);
  work.fill_bytes(range, 1, 0x7f);      // 0.996 of 2^63
  work.fill_bytes(range + 1, 1, 0x80);  // and of -2^63
  launch(work, find_range, blocks_for(count, kThreads * kPerThread), kThreads, 0, values, count, range);
  const auto both = work.read_back(range, 2);
  return {both[0], both[1]};
}

using Groups = std::tuple<Tensor, Tensor, Tensor>;

// Groups of equal keys as (order [N], start [groups + 1], inverse [N]). `make(keys, rows)` launches what fills them.
template <class Key, class Make>
Groups group_as(CudaWork& work, const Tensor& like, int64_t count, int key_bits, const Make& make) {
  const auto empty = [&](int64_t size) { return torch::stable::new_empty(like, {size}, ScalarType::Long); };
  const Tensor order = empty(count), inverse = empty(count);
  if (count == 0) return {order, torch::stable::new_zeros(inverse, {1}), inverse};
  Key *keys = work.scratch<Key>(count), *sorted = work.scratch<Key>(count);
  int32_t *rows = work.scratch<int32_t>(count), *sorted_rows = work.scratch<int32_t>(count);
  make(keys, rows);
  sort_pairs<Key, int32_t>(work, keys, sorted, rows, sorted_rows, count, std::max(key_bits, 1));
  int32_t* ordinal = rows;  // no longer needed
  const dim3 blocks = blocks_for(count, kThreads);
  launch(work, mark_heads<Key>, blocks, kThreads, 0, sorted, count, ordinal);
  inclusive_sum<int32_t>(work, ordinal, ordinal, count);
  const Tensor start = empty(int64_t{work.read_back(ordinal + count - 1)} + 1);
  launch(work, write_groups, blocks, kThreads, 0, sorted_rows, ordinal, count, order.mutable_data_ptr<int64_t>(),
         inverse.mutable_data_ptr<int64_t>(), start.mutable_data_ptr<int64_t>());
  return {order, start, inverse};
}

template <class Make>
Groups group(CudaWork& work, const Tensor& like, int64_t count, uint64_t largest, const Make& make) {
  const int key_bits = std::bit_width(largest);
  if (key_bits <= 32) return group_as<uint32_t>(work, like, count, key_bits, make);
  return group_as<uint64_t>(work, like, count, key_bits, make);
}

Tensor count_rows(CudaWork& work, const Tensor& start) {
  const int64_t groups = start.size(0) - 1;
  const Tensor counts = torch::stable::new_empty(start, {groups});
  launch(work, subtract_starts, blocks_for(groups, kThreads), kThreads, 0, start.const_data_ptr<int64_t>(), groups,
         counts.mutable_data_ptr<int64_t>());
  return counts;
}

using Voxels = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Voxels voxelize_as(CudaWork& work, const Tensor& coord, const Grid& grid, const int64_t* batch, int64_t num_clouds,
                   bool shift) {
  const int64_t count = coord.size(0), numbers = 3 * num_clouds;
  const T* from = coord.const_data_ptr<T>();
  const Bounds bounds{work.scratch<Long>(numbers), work.scratch<Long>(numbers), work.zeroed_scratch<int>(1)};
  Long* size = work.zeroed_scratch<Long>(3);
  work.fill_bytes(bounds.low, numbers, 0x7f);  // beyond 2^62, as are the highest cells to begin with
  work.fill_bytes(bounds.high, numbers, 0x80);
  launch(work, find_bounds<T>, blocks_for(count, kThreads * kPerThread), kThreads, 0, from, count, grid, batch,
         num_clouds, bounds);
  launch(work, find_box, blocks_for(numbers, kThreads), kThreads, 0, bounds, num_clouds, size);
  STD_TORCH_CHECK(!work.read_back(bounds.wrong), "coord has values that are not finite, or cells beyond 2^62, or batch "
                  "has values outside [0, num_clouds)");
  const auto sizes = work.read_back(size, 3);
  Box box;
  for (int d = 0; d < 3; ++d) box.size[d] = std::max<int64_t>(sizes[d], 1);

  const Tensor grid_coord = torch::stable::new_empty(coord, {count, 3}, ScalarType::Long);
  int64_t* cells = grid_coord.mutable_data_ptr<int64_t>();
  const Groups groups = group(work, coord, count, largest_key(num_clouds, box.size), [&](auto* keys, int32_t* rows) {
    launch(work, make_keys<T, std::remove_pointer_t<decltype(keys)>>, blocks_for(count, kThreads), kThreads, 0, from,
           count, grid, batch, bounds.low, box, shift, cells, keys, rows);
  });
  const Tensor lowest = torch::stable::new_zeros(grid_coord, {num_clouds, 3});
  if (shift) {
    launch(work, copy_lowest, blocks_for(numbers, kThreads), kThreads, 0, bounds.low, numbers,
           lowest.mutable_data_ptr<int64_t>());
  }
  const auto& [order, start, inverse] = groups;
  return {grid_coord, lowest, inverse, count_rows(work, start), order, start};
}

// Without an origin, cells are counted from the lowest one of each cloud.
Voxels voxelize(const Tensor& coord, const std::vector<double>& grid_size, const std::optional<Tensor>& batch,
                int64_t num_clouds, const std::vector<double>& origin) {
  check_arguments(check_contiguous_cuda, coord, grid_size, batch, origin);
  CudaWork work(coord);
  const int64_t* cloud = batch ? batch->const_data_ptr<int64_t>() : nullptr;
  // Where the number of clouds is known, `find_bounds` looks at the indices.
  std::pair<int64_t, int64_t> range(0, -1);
  if (batch && num_clouds < 0 && coord.size(0)) range = value_range(work, cloud, coord.size(0));
  num_clouds = batch ? check_clouds(range.first, range.second, num_clouds) : 1;
  Grid grid{};
  for (int d = 0; d < 3; ++d) {
    grid.size[d] = grid_size[d];
    if (!origin.empty()) grid.origin[d] = origin[d];
  }
  const bool shift = origin.empty();
  if (coord.scalar_type() == ScalarType::Float) return voxelize_as<float>(work, coord, grid, cloud, num_clouds, shift);
  return voxelize_as<double>(work, coord, grid, cloud, num_clouds, shift);
}

Groups group_keys(const Tensor& keys) {
  check_keys(check_contiguous_cuda, keys);
  CudaWork work(keys);
  const int64_t count = keys.size(0);
  const int64_t* values = keys.const_data_ptr<int64_t>();
  const auto [low, high] = count ? value_range(work, values, count) : std::pair<int64_t, int64_t>(0, 0);
  // Unsigned, as the distance of two int64 need not fit an int64.
  const uint64_t largest = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
  return group(work, keys, count, largest, [&, low = low](auto* out, int32_t* rows) {
    launch(work, subtract_low<std::remove_pointer_t<decltype(out)>>, blocks_for(count, kThreads), kThreads, 0, values,
           count, low, out, rows);
  });
}

}  // namespace

P3M_REGISTER_CUDA(m) {
  m.impl("voxelize", TORCH_BOX(&voxelize));
  m.impl("group_keys", TORCH_BOX(&group_keys));
}

}  // namespace pointcept3m
