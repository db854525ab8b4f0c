// Clouds on the GPU as leaves of 32 points and boxes of 32 boxes: one warp looks at all points of a leaf, or at all
// boxes of a box, in one step.
//
// Points are ordered as in a k-d tree, from the top: in each round every aligned range of 2^h leaves of an item is
// sorted along its widest side, all ranges by one radix sort of (range, coordinate). That is log2(N / 32) sorts of
// 64-bit keys, some 2 ms for a million points, and unlike a grid or a space-filling curve it does not mind outliers and
// clusters. Boxes do not know of items: a walk keeps to the leaves of its item.
#pragma once

#include "common/algorithms.cuh"
#include "neighbours/arguments.h"
#include "neighbours/distance.cuh"

namespace pointcept3m {
namespace {

constexpr int kThreads = 256;
constexpr int kLevels = 7;

// Where each item's points and leaves begin; one more entry says where they end.
struct Items {
  const int32_t *first_point, *first_leaf;
  int32_t count, num_leaves;

  // Which item a leaf or row is of: the last one that begins at or before it.
  static __device__ int find(const int32_t* first, int count, int32_t value) {
    int low = 0, high = count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (first[middle + 1] <= value) low = middle + 1;
      else high = middle;
    }
    return low;
  }
};

// Boxes of one level: of leaves at level 0, of 32 boxes of the level below above that.
template <class T>
struct Level {
  T* face[6];      // low x, y, z, high x, y, z
  int32_t* first;  // smallest row of a point in each box
  int32_t count;
};

template <class T>
struct Boxes {
  Items items;
  const int32_t* order;  // rows of the points by leaf
  T* coord;              // [leaf, 3, 32]
  int32_t* id;           // [leaf, 32], kNoPoint where there is no finite point
  Level<T> level[kLevels];
  int num_levels;
};

// Integers in the order of floats.
__device__ __forceinline__ int32_t ordered(float value) {
  const int32_t bits = __float_as_int(value);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
__device__ __forceinline__ float unordered(int32_t value) { return __int_as_float(value ^ (value >> 31 & 0x7fffffff)); }

struct Place {
  int item;
  int32_t point;  // in `order`, or -1 past the end of the item
};

__device__ __forceinline__ Place place_of(const Items& items, int32_t leaf, int lane) {
  const int item = Items::find(items.first_leaf, items.count, leaf);
  const int32_t point = items.first_point[item] + (leaf - items.first_leaf[item]) * kWarp + lane;
  return {item, point < items.first_point[item + 1] ? point : -1};
}

// The first leaf of the range of 2^height leaves that a leaf of the item is in; it names the range.
__device__ __forceinline__ int32_t range_of(const Items& items, int item, int32_t leaf, int height) {
  const int32_t first = items.first_leaf[item];
  return first + ((leaf - first) >> height << height);
}

__global__ void number_points(int32_t* order, int64_t count) {
  const int64_t i = global_thread();
  if (i < count) order[i] = static_cast<int32_t>(i);
}

// Bounds of every range as ordered floats: low [num_leaves, 3], then high. They only choose the side to sort along, so
// rounding does not matter.
template <class T>
__global__ void measure_ranges(Items items, const T* coord, const int32_t* order, int height, int32_t* bounds) {
  const auto leaf = static_cast<int32_t>(global_thread() / kWarp);
  const int lane = threadIdx.x % kWarp;
  if (leaf >= items.num_leaves) return;
  const Place place = place_of(items, leaf, lane);
  const T* p = place.point < 0 ? coord : coord + 3 * static_cast<int64_t>(order[place.point]);
  const bool counts = place.point >= 0 && is_finite(p);
  int32_t* lows = bounds + 3 * static_cast<int64_t>(range_of(items, place.item, leaf, height));
  int32_t* highs = lows + 3 * static_cast<int64_t>(items.num_leaves);
  for (int d = 0; d < 3; ++d) {
    const int32_t value = counts ? ordered(static_cast<float>(p[d])) : 0;
    const int32_t low = __reduce_min_sync(kAllLanes, counts ? value : INT32_MAX);
    const int32_t high = __reduce_max_sync(kAllLanes, counts ? value : INT32_MIN);
    if (lane == 0) atomicMin(lows + d, low);
    if (lane == 1) atomicMax(highs + d, high);
  }
}

// Points that are not finite go to the end of their range.
template <class T>
__global__ void make_keys(Items items, const T* coord, const int32_t* order, int height, const int32_t* bounds,
                          uint64_t* keys) {
  const auto leaf = static_cast<int32_t>(global_thread() / kWarp);
  if (leaf >= items.num_leaves) return;
  const Place place = place_of(items, leaf, threadIdx.x % kWarp);
  if (place.point < 0) return;
  const int32_t range = range_of(items, place.item, leaf, height);
  const int32_t* lows = bounds + 3 * static_cast<int64_t>(range);
  const int32_t* highs = lows + 3 * static_cast<int64_t>(items.num_leaves);
  float widest = -1;
  int side = 0;
  for (int d = 0; d < 3; ++d) {
    const float width = unordered(highs[d]) - unordered(lows[d]);
    if (width > widest) {
      widest = width;
      side = d;
    }
  }
  const T* p = coord + 3 * static_cast<int64_t>(order[place.point]);
  const uint32_t low =
      is_finite(p) ? static_cast<uint32_t>(ordered(static_cast<float>(p[side]))) ^ 0x80000000u : 0xffffffffu;
  keys[place.point] = static_cast<uint64_t>(range) << 32 | low;
}

template <class T>
__device__ T lowest_lane(T value) {
  for (int by = kWarp / 2; by > 0; by /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, by);
    value = other < value ? other : value;
  }
  return value;
}

// Box `index` of a level, from what each lane of the warp holds; lanes without anything hold infinity and kNoPoint.
template <class T>
__device__ void write_box(const Level<T>& level, int32_t index, const T* low, const T* high, int32_t first) {
  const int lane = threadIdx.x % kWarp;
  for (int d = 0; d < 3; ++d) {
    const T least = lowest_lane(low[d]), most = -lowest_lane(-high[d]);
    if (lane == 0) level.face[d][index] = least;
    if (lane == 0) level.face[3 + d][index] = most;
  }
  first = lowest_lane(first);
  if (lane == 0) level.first[index] = first;
}

template <class T>
__global__ void fill_leaves(Boxes<T> boxes, const T* coord) {
  const auto leaf = static_cast<int32_t>(global_thread() / kWarp);
  const int lane = threadIdx.x % kWarp;
  if (leaf >= boxes.items.num_leaves) return;
  const Place place = place_of(boxes.items, leaf, lane);
  const int32_t row = place.point < 0 ? kNoPoint : boxes.order[place.point];
  const bool counts = row != kNoPoint && is_finite(coord + 3 * static_cast<int64_t>(row));
  T low[3], high[3];
  for (int d = 0; d < 3; ++d) {
    const T value = counts ? coord[3 * static_cast<int64_t>(row) + d] : kFar<T>;
    boxes.coord[(static_cast<int64_t>(leaf) * 3 + d) * kWarp + lane] = value;
    low[d] = value;
    high[d] = counts ? value : -kFar<T>;
  }
  boxes.id[static_cast<int64_t>(leaf) * kWarp + lane] = counts ? row : kNoPoint;
  write_box(boxes.level[0], leaf, low, high, counts ? row : kNoPoint);
}

template <class T>
__global__ void fill_level(Level<T> below, Level<T> level) {
  const auto index = static_cast<int32_t>(global_thread() / kWarp);
  if (index >= level.count) return;
  const int64_t child = static_cast<int64_t>(index) * kWarp + threadIdx.x % kWarp;
  const bool counts = child < below.count;
  T low[3], high[3];
  for (int d = 0; d < 3; ++d) {
    low[d] = counts ? below.face[d][child] : kFar<T>;
    high[d] = counts ? below.face[3 + d][child] : -kFar<T>;
  }
  write_box(level, index, low, high, counts ? below.first[child] : kNoPoint);
}

template <class T>
T* on_device(CudaWork& work, const std::vector<T>& values) {
  T* memory = work.scratch<T>(static_cast<int64_t>(values.size()));
  if (!values.empty()) work.write(memory, values.data(), static_cast<int64_t>(values.size()));
  return memory;
}

// Reads the ends of the items, and refuses those that do not ascend to num_rows. Begins, and the end.
inline std::vector<int32_t> read_ends(const CudaWork& work, const Tensor& offset, int64_t num_rows, const char* name) {
  const std::vector<int64_t> ends = work.read_back(offset.const_data_ptr<int64_t>(), offset.size(0));
  check_ends(ends.data(), offset.size(0), num_rows, name);
  std::vector<int32_t> first = {0};
  for (const int64_t end : ends) first.push_back(static_cast<int32_t>(end));
  return first;
}

template <class T>
Boxes<T> build_boxes(CudaWork& work, const T* coord, const std::vector<int32_t>& first_point) {
  std::vector<int32_t> first_leaf = {0};
  int32_t most = 1;
  for (size_t item = 0; item + 1 < first_point.size(); ++item) {
    const int32_t leaves = divide_up(first_point[item + 1] - first_point[item], kWarp);
    most = std::max(most, leaves);
    // Items that fill a box of boxes begin with one; the leaves in between stay empty.
    if (leaves >= kWarp) first_leaf.back() = divide_up(first_leaf.back(), kWarp) * kWarp;
    first_leaf.push_back(first_leaf.back() + leaves);
  }
  const int32_t num_leaves = first_leaf.back();
  const int64_t num_points = first_point.back();
  Boxes<T> boxes = {};
  boxes.items = {on_device(work, first_point), on_device(work, first_leaf),
                 static_cast<int32_t>(first_point.size()) - 1, num_leaves};

  auto *order = work.scratch<int32_t>(num_points), *sorted = work.scratch<int32_t>(num_points);
  auto *keys = work.scratch<uint64_t>(num_points), *sorted_keys = work.scratch<uint64_t>(num_points);
  auto* bounds = work.scratch<int32_t>(6 * static_cast<int64_t>(num_leaves));
  const dim3 leaf_blocks = blocks_for(static_cast<int64_t>(num_leaves) * kWarp, kThreads);
  launch(work, number_points, blocks_for(num_points, kThreads), kThreads, 0, order, num_points);
  int top = 0, bits = 0;
  while (1 << top < most) ++top;
  while (num_leaves >> bits > 0) ++bits;
  for (int height = top; height > 0; --height) {
    // As ordered floats 3.4e38 and -3.4e38: only sides of that size would be measured wrong.
    work.fill_bytes(bounds, 3 * static_cast<int64_t>(num_leaves), 0x7f);
    work.fill_bytes(bounds + 3 * static_cast<int64_t>(num_leaves), 3 * static_cast<int64_t>(num_leaves), 0x80);
    launch(work, measure_ranges<T>, leaf_blocks, kThreads, 0, boxes.items, coord, order, height, bounds);
    launch(work, make_keys<T>, leaf_blocks, kThreads, 0, boxes.items, coord, order, height, bounds, keys);
    sort_pairs(work, keys, sorted_keys, order, sorted, num_points, 32 + bits);
    std::swap(order, sorted);
  }
  boxes.order = order;
  boxes.coord = work.scratch<T>(3 * static_cast<int64_t>(num_leaves) * kWarp);
  boxes.id = work.scratch<int32_t>(static_cast<int64_t>(num_leaves) * kWarp);
  for (int32_t count = num_leaves;; count = divide_up(count, kWarp)) {
    Level<T>& level = boxes.level[boxes.num_levels++];
    for (T*& face : level.face) face = work.scratch<T>(count);
    level.first = work.scratch<int32_t>(count);
    level.count = count;
    if (count <= kWarp) break;
  }
  launch(work, fill_leaves<T>, leaf_blocks, kThreads, 0, boxes, coord);
  for (int i = 1; i < boxes.num_levels; ++i)
    launch(work, fill_level<T>, blocks_for(static_cast<int64_t>(boxes.level[i].count) * kWarp, kThreads), kThreads, 0,
           boxes.level[i - 1], boxes.level[i]);
  return boxes;
}

}  // namespace
}  // namespace pointcept3m
