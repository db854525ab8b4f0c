// The occupied cells of a cloud on the GPU: 64-bit keys in lexicographic order of (batch, x, y, z), sorted and made
// unique. The meaning is that of voxel_keys.h.
#pragma once

#include <array>
#include <bit>
#include <limits>

#include "common/algorithms.cuh"

namespace pointcept3m {
namespace {

using Size3 = std::array<int64_t, 3>;

// A box of voxels. key = ((batch * X + x) * Y + y) * Z + z, counted from `low`.
struct KeyBox {
  int64_t low[4], size[4];

  __host__ __device__ uint64_t key(int64_t b, int64_t x, int64_t y, int64_t z) const {
    return static_cast<uint64_t>((((b - low[0]) * size[1] + (x - low[1])) * size[2] + (y - low[2])) * size[3] +
                                 (z - low[3]));
  }
  // False where keys would not fit 62 bits.
  bool fits() const {
    double product = 1;
    for (int64_t s : size) product *= static_cast<double>(s);
    return product < 4e18;
  }
  // Bits of the largest key.
  int bits() const {
    return std::max(1, 64 - std::countl_zero(static_cast<uint64_t>(size[0] * size[1] * size[2] * size[3] - 1)));
  }
};

// bounds[d] and bounds[4 + d]: what reads_low and reads_high make the least and the largest value of column d. Both are
// minima of unsigned numbers, so that 0xff in all bytes starts them and atomicMin ends them.
__global__ void __launch_bounds__(256) find_bounds(const int32_t* coord, int64_t rows, uint32_t* bounds) {
  uint32_t least[8];
#pragma unroll
  for (int d = 0; d < 8; ++d) least[d] = ~0u;
  for (int64_t i = global_thread(); i < rows; i += static_cast<int64_t>(gridDim.x) * blockDim.x)
#pragma unroll
    for (int d = 0; d < 4; ++d) {
      const uint32_t value = static_cast<uint32_t>(coord[4 * i + d]) ^ 0x80000000u;
      least[d] = min(least[d], value);
      least[4 + d] = min(least[4 + d], ~value);
    }
#pragma unroll
  for (int d = 0; d < 8; ++d) {
    const uint32_t of_warp = __reduce_min_sync(kAllLanes, least[d]);
    if (threadIdx.x % kWarp == 0) atomicMin(bounds + d, of_warp);
  }
}

__host__ __device__ inline int64_t reads_low(uint32_t bound) { return static_cast<int32_t>(bound ^ 0x80000000u); }
__host__ __device__ inline int64_t reads_high(uint32_t bound) { return static_cast<int32_t>(~bound ^ 0x80000000u); }

// Eight values on the device, as find_bounds leaves them. There must be rows.
uint32_t* start_bounds(CudaWork& work, const int32_t* coord, int64_t rows) {
  uint32_t* bounds = work.scratch<uint32_t>(8);
  work.fill_bytes(bounds, 8, 0xff);
  launch(work, find_bounds, std::min<unsigned>(blocks_for(rows, 1024).x, 264), 256, 0, coord, rows, bounds);
  return bounds;
}

// The smallest box around the rows, with `margin` voxels more on both sides of x, y and z. Waits for the device: the
// box says whether keys fit, and how few bits are to be sorted.
KeyBox bounding_box(CudaWork& work, const int32_t* coord, int64_t rows, const Size3& margin) {
  const std::vector<uint32_t> bounds = work.read_back(start_bounds(work, coord, rows), 8);
  KeyBox box;
  for (int d = 0; d < 4; ++d) {
    const int64_t m = d ? margin[d - 1] : 0;
    box.low[d] = reads_low(bounds[d]) - m;
    box.size[d] = reads_high(bounds[4 + d]) - reads_low(bounds[d]) + 1 + 2 * m;
  }
  return box;
}

// The cells of `rows` rows, on the device. Cells without duplicates are named by their row, else by their place.
struct Cells {
  const uint64_t* key;         // [rows + 1] ascending, one per cell; all bits set from `count` on
  const int32_t* row;          // [rows] first row in each cell
  const int32_t* cell_of_row;  // [rows]
  const int32_t* count;        // [1]
  int64_t rows;

  __device__ __forceinline__ int32_t name(int32_t cell) const { return *count == rows ? row[cell] : cell; }
};

__global__ void make_keys(const int32_t* coord, int64_t rows, const __grid_constant__ KeyBox box, uint64_t* keys,
                          int32_t* places) {
  const int64_t i = global_thread();
  if (i >= rows) return;
  keys[i] = box.key(coord[4 * i], coord[4 * i + 1], coord[4 * i + 2], coord[4 * i + 3]);
  places[i] = static_cast<int32_t>(i);
}

__global__ void mark_heads(const uint64_t* sorted, int64_t count, int32_t* heads) {
  const int64_t i = global_thread();
  if (i < count) heads[i] = i == 0 || sorted[i] != sorted[i - 1];
}

// number[i] - 1 is the place of sorted[i] among the different keys.
__global__ void keep_heads(const uint64_t* sorted, const int32_t* number, const int32_t* item, int64_t count,
                           uint64_t* keys, int32_t* first_item, int32_t* place_of_item) {
  const int64_t i = global_thread();
  if (i >= count) return;
  const int32_t place = number[i] - 1;
  place_of_item[item[i]] = place;
  if (i && number[i - 1] == number[i]) return;
  keys[place] = sorted[i];
  if (first_item) first_item[place] = item[i];
}

// Sorts `keys` and makes them unique: the different ones go to `unique`, the place of every item among them to
// `place_of_item`, the first item of each to `first_item` unless null. Returns where their number stands on the device.
const int32_t* make_unique(CudaWork& work, const uint64_t* keys, const int32_t* items, int64_t count, int bits,
                           uint64_t* unique, int32_t* first_item, int32_t* place_of_item) {
  uint64_t* sorted = work.scratch<uint64_t>(count);
  int32_t* item = work.scratch<int32_t>(count);
  int32_t* number = work.scratch<int32_t>(count);
  sort_pairs(work, keys, sorted, items, item, count, bits);
  launch(work, mark_heads, blocks_for(count, 256), 256, 0, sorted, count, number);
  inclusive_sum(work, number, number, count);
  launch(work, keep_heads, blocks_for(count, 256), 256, 0, sorted, number, item, count, unique, first_item,
         place_of_item);
  return number + count - 1;
}

// The cells of coord [rows, 4], rows > 0.
Cells find_cells(CudaWork& work, const int32_t* coord, int64_t rows, const KeyBox& box) {
  uint64_t* keys = work.scratch<uint64_t>(rows);
  int32_t* items = work.scratch<int32_t>(rows);
  uint64_t* unique = work.scratch<uint64_t>(rows + 1);
  int32_t* row = work.scratch<int32_t>(rows);
  int32_t* cell_of_row = work.scratch<int32_t>(rows);
  work.fill_bytes(unique, rows + 1, 0xff);
  launch(work, make_keys, blocks_for(rows, 256), 256, 0, coord, rows, box, keys, items);
  const int32_t* count = make_unique(work, keys, items, rows, box.bits(), unique, row, cell_of_row);
  return {unique, row, cell_of_row, count, rows};
}

}  // namespace
}  // namespace pointcept3m
