// A cloud's points on the GPU in buckets, so that whatever lies within the radius of a point is found in nine runs.
//
// A cell of the grid, as wide as the radius, belongs to the bucket ((x mod X) * Y + y mod Y) * Z + (z + turn) mod Z,
// where X, Y and Z are powers of two with about twice as many buckets as points, and `turn` mixes the batch item and
// what x / X and y / Y leave. So the 27 cells around a point lie in 27 different buckets, three of which are side by
// side for each of nine (x, y): nine pairs of loads say where the candidates stand, without any search and whatever the
// extent of the cloud. What else fell into these buckets fails the test of distance or of the batch item.
#pragma once

#include <bit>
#include <cmath>

#include "common/algorithms.cuh"

namespace pointcept3m {

constexpr int kThreads = 128;

// The sum of squares as plain torch rounds it: no fused multiply-add.
__device__ __forceinline__ float squared_distance(float dx, float dy, float dz) {
  return __fadd_rn(__fadd_rn(__fmul_rn(dx, dx), __fmul_rn(dy, dy)), __fmul_rn(dz, dz));
}
__device__ __forceinline__ double squared_distance(double dx, double dy, double dz) {
  return __dadd_rn(__dadd_rn(__dmul_rn(dx, dx), __dmul_rn(dy, dy)), __dmul_rn(dz, dz));
}

struct BucketPlan {
  double inverse;  // of the width of a cell
  int bits_x, bits_y, bits_z;

  int64_t num_buckets() const { return int64_t{1} << (bits_x + bits_y + bits_z); }
};

// Cells of float64 are a power of two wide, with which floor(coord / width) is exact however far from the origin.
// float32 needs no such care: where its cell numbers are inexact, points nearer than the radius are equal.
inline BucketPlan plan_buckets(int64_t num_points, double radius, bool is_double) {
  const double width = radius * (1 + 0x1p-14);
  const int bits = std::max(6, static_cast<int>(std::bit_width(static_cast<uint64_t>(num_points))) + 1);
  BucketPlan plan{is_double ? std::exp2(-std::ceil(std::log2(width))) : 1 / width, bits / 3, (bits + 1) / 3,
                  (bits + 2) / 3};
  return plan;
}

__device__ __forceinline__ long long cell_number(double coord, double inverse) {
  const double cell = floor(coord * inverse);
  return fabs(cell) < 0x1p62 ? static_cast<long long>(cell)
                             : 0;  // also where it is not finite; there only equals are near
}

__device__ __forceinline__ long long bucket_column(const BucketPlan& plan, long long x, long long y) {
  const long long low_x = x & ((1ll << plan.bits_x) - 1), low_y = y & ((1ll << plan.bits_y) - 1);
  return (low_x << plan.bits_y | low_y) << plan.bits_z;
}

__device__ __forceinline__ long long bucket_turn(const BucketPlan& plan, long long x, long long y, int item) {
  const auto high_x = static_cast<unsigned long long>(x >> plan.bits_x),
             high_y = static_cast<unsigned long long>(y >> plan.bits_y);
  unsigned long long mixed = high_x * 0x9e3779b97f4a7c15ull + high_y * 0xc2b2ae3d27d4eb4full +
                             static_cast<unsigned long long>(item) * 0x165667b19e3779f9ull;
  mixed ^= mixed >> 29;
  return static_cast<long long>(mixed * 0xbf58476d1ce4e5b9ull >> 40);
}

// The batch item of a point, and the points of it.
struct Item {
  int index;
  int begin, end;
};

__device__ __forceinline__ Item item_of(const int64_t* ends, int num_items, int64_t point) {
  int low = 0, high = num_items - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (ends[middle] > point) high = middle;
    else low = middle + 1;
  }
  return {low, low ? static_cast<int>(ends[low - 1]) : 0, static_cast<int>(ends[low])};
}

template <class T>
__global__ void assign_buckets(const T* coord, int64_t num_points, const int64_t* ends, int num_items, BucketPlan plan,
                               uint32_t* bucket, int32_t* point, int32_t* count) {
  const int64_t i = global_thread();
  if (i >= num_points) return;
  const long long x = cell_number(coord[3 * i], plan.inverse), y = cell_number(coord[3 * i + 1], plan.inverse);
  const long long z =
      cell_number(coord[3 * i + 2], plan.inverse) + bucket_turn(plan, x, y, item_of(ends, num_items, i).index);
  bucket[i] = static_cast<uint32_t>(bucket_column(plan, x, y) | (z & ((1ll << plan.bits_z) - 1)));
  point[i] = static_cast<int32_t>(i);
  atomicAdd(count + bucket[i], 1);
}

template <class T>
__global__ void sort_coord(const T* coord, int64_t num_points, const int32_t* point, T* x, T* y, T* z) {
  const int64_t place = global_thread();
  if (place >= num_points) return;
  const int64_t i = point[place];
  x[place] = coord[3 * i], y[place] = coord[3 * i + 1], z[place] = coord[3 * i + 2];
}

// Points in the order of their buckets, and of their numbers within one.
template <class T>
struct Buckets {
  BucketPlan plan;
  int64_t num_points;
  const int64_t* ends;
  int num_items;
  const int32_t* start;  // of each bucket, and the end
  const int32_t* point;  // at each place
  const T *x, *y, *z;
  T square;  // of the radius
};

template <class T>
Buckets<T> fill_buckets(CudaWork& work, const Tensor& coord, const Tensor& offset, double wide_radius) {
  const int64_t num_points = coord.size(0);
  const T radius = static_cast<T>(wide_radius);
  const BucketPlan plan = plan_buckets(num_points, radius, sizeof(T) == 8);
  const T* from = coord.const_data_ptr<T>();
  const int64_t* ends = offset.const_data_ptr<int64_t>();
  const int num_items = static_cast<int>(offset.size(0));
  const int64_t num_buckets = plan.num_buckets();

  uint32_t* bucket = work.scratch<uint32_t>(num_points);
  uint32_t* sorted_bucket = work.scratch<uint32_t>(num_points);
  int32_t* point = work.scratch<int32_t>(num_points);
  int32_t* sorted_point = work.scratch<int32_t>(num_points);
  int32_t* start = work.zeroed_scratch<int32_t>(num_buckets + 1);
  const dim3 grid = blocks_for(num_points, kThreads);
  launch(work, assign_buckets<T>, grid, kThreads, 0, from, num_points, ends, num_items, plan, bucket, point, start);
  exclusive_sum(work, start, start, num_buckets + 1);
  sort_pairs(work, bucket, sorted_bucket, point, sorted_point, num_points, plan.bits_x + plan.bits_y + plan.bits_z);
  T *x = work.scratch<T>(num_points), *y = work.scratch<T>(num_points), *z = work.scratch<T>(num_points);
  launch(work, sort_coord<T>, grid, kThreads, 0, from, num_points, sorted_point, x, y, z);
  return {plan, num_points, ends, num_items, start, sorted_point, x, y, z, radius * radius};
}

// Calls found(other) for all points nearer than the radius to the one at `place`, itself among them.
template <class T, class Found>
__device__ __forceinline__ void for_near(const Buckets<T>& b, int64_t place, const Found& found) {
  const T x = b.x[place], y = b.y[place], z = b.z[place];
  const Item item = item_of(b.ends, b.num_items, b.point[place]);
  const long long cell_x = cell_number(x, b.plan.inverse), cell_y = cell_number(y, b.plan.inverse),
                  cell_z = cell_number(z, b.plan.inverse);
  const long long last_z = (1ll << b.plan.bits_z) - 1;
  for (int column = 0; column < 9; ++column) {
    const long long near_x = cell_x + column / 3 - 1, near_y = cell_y + column % 3 - 1;
    const int32_t* start = b.start + bucket_column(b.plan, near_x, near_y);
    const long long first = (cell_z - 1 + bucket_turn(b.plan, near_x, near_y, item.index)) & last_z;
    // Three buckets from `first` on; past the last one they go on at 0.
    const long long here = first + 3 <= last_z + 1 ? 3 : last_z + 1 - first;
    for (int part = 0; part < 2; ++part) {
      const int begin = part ? start[0] : start[first], end = part ? start[3 - here] : start[first + here];
      for (int at = begin; at < end; ++at) {
        if (!(squared_distance(b.x[at] - x, b.y[at] - y, b.z[at] - z) < b.square)) continue;
        const int other = b.point[at];
        if (other >= item.begin && other < item.end) found(other);
      }
      if (here == 3) break;
    }
  }
}

}  // namespace pointcept3m
