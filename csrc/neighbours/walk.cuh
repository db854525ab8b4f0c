// One warp's walk through the boxes of one item, from near to far, and what it keeps of the points that it meets.
#pragma once

#include "neighbours/boxes.cuh"

namespace pointcept3m {
namespace {

template <class T>
__device__ __forceinline__ bool comes_before(T square, int32_t id, T other, int32_t other_id) {
  return square < other || (square == other && id < other_id);
}

// The lane with the smallest value among those that want; the lowest of equals. At least one must want.
__device__ __forceinline__ int nearest_lane(bool wants, float value) {
  const unsigned bits = wants ? __float_as_uint(value) : 0xffffffffu;  // of a float >= 0 they ascend with it
  return __ffs(__ballot_sync(kAllLanes, bits == __reduce_min_sync(kAllLanes, bits))) - 1;
}
__device__ __forceinline__ int nearest_lane(bool wants, double value) {
  const long long bits = wants ? __double_as_longlong(value) : static_cast<long long>(INT64_MAX);
  return __ffs(__ballot_sync(kAllLanes, bits == lowest_lane(bits))) - 1;
}

// Squared distance from a point to a box, or -1 where the box holds none of the leaves [from, to).
template <class T>
__device__ T distance_to_box(const Level<T>& level, int height, int64_t box, int32_t from, int32_t to, const T* point) {
  if (box >= level.count || (box + 1) << 5 * height <= from || box << 5 * height >= to) return -1;
  T apart[3];
  for (int d = 0; d < 3; ++d)
    apart[d] = max(max(level.face[d][box] - point[d], point[d] - level.face[3 + d][box]), T{0});
  return square_sum(apart[0], apart[1], apart[2]);
}

// Calls keep.take(square, id) by all lanes with one leaf's points, for every leaf that keep.wants(bound, smallest id).
// `bounds` is shared memory of this warp, [num_levels, 32]: distances of the boxes under way, -1 where one is done.
template <class T, class Keep>
__device__ void walk(const Boxes<T>& boxes, int32_t from, int32_t to, const T* point, Keep& keep, T* bounds) {
  const int lane = threadIdx.x % kWarp;
  int height = boxes.num_levels - 1;
  int64_t base = 0;
  bounds[height * kWarp + lane] = distance_to_box(boxes.level[height], height, lane, from, to, point);
  for (;;) {
    const T bound = bounds[height * kWarp + lane];
    const bool wants = bound >= 0 && keep.wants(bound, boxes.level[height].first[base + lane]);
    if (!__any_sync(kAllLanes, wants)) {
      if (++height == boxes.num_levels) return;
      base = base >> 5 & ~int64_t{31};
      continue;
    }
    const int nearest = nearest_lane(wants, bound);
    if (lane == nearest) bounds[height * kWarp + lane] = -1;
    const int64_t box = base + nearest;
    if (height > 0) {
      base = box * kWarp;
      --height;
      bounds[height * kWarp + lane] = distance_to_box(boxes.level[height], height, base + lane, from, to, point);
    } else {
      const T* leaf = boxes.coord + box * 3 * kWarp + lane;
      keep.take(square_sum(leaf[0] - point[0], leaf[kWarp] - point[1], leaf[2 * kWarp] - point[2]),
                boxes.id[box * kWarp + lane]);
    }
  }
}

// The k <= 32 nearest in registers: lane j holds the one at place j.
template <class T>
struct NearestFew {
  int k;
  T square, worst;
  int32_t id, worst_id;

  __device__ NearestFew(int k, T*, int32_t*)
      : k(k), square(kFar<T>), worst(square), id(kNoPoint), worst_id(kNoPoint) {}
  __device__ bool wants(T bound, int32_t first) const { return comes_before(bound, first, worst, worst_id); }
  __device__ void take(T new_square, int32_t new_id) {
    const int lane = threadIdx.x % kWarp;
    for (unsigned left = __ballot_sync(kAllLanes, wants(new_square, new_id)); left; left &= left - 1) {
      const int from = __ffs(left) - 1;
      const T candidate = __shfl_sync(kAllLanes, new_square, from);
      const int32_t candidate_id = __shfl_sync(kAllLanes, new_id, from);
      if (!wants(candidate, candidate_id)) continue;  // the same for all lanes
      const int place = __popc(__ballot_sync(kAllLanes, comes_before(square, id, candidate, candidate_id)));
      const T before = __shfl_up_sync(kAllLanes, square, 1);
      const int32_t id_before = __shfl_up_sync(kAllLanes, id, 1);
      if (lane >= place) {
        square = lane == place ? candidate : before;
        id = lane == place ? candidate_id : id_before;
      }
      worst = __shfl_sync(kAllLanes, square, k - 1);
      worst_id = __shfl_sync(kAllLanes, id, k - 1);
    }
  }
  __device__ void write(T* dist, int32_t* idx) const {
    const int lane = threadIdx.x % kWarp;
    if (lane >= k) return;
    dist[lane] = sqrt(square);
    idx[lane] = id == kNoPoint ? -1 : id;
  }
};

// Any number of nearest, as a sorted list in the query's own row of the result.
template <class T>
struct NearestMany {
  int k, count = 0;
  T* square;
  int32_t* id;
  T worst = kFar<T>;
  int32_t worst_id = kNoPoint;

  __device__ NearestMany(int k, T* dist, int32_t* idx) : k(k), square(dist), id(idx) {}
  __device__ bool wants(T bound, int32_t first) const { return comes_before(bound, first, worst, worst_id); }
  __device__ void take(T new_square, int32_t new_id) {
    for (unsigned left = __ballot_sync(kAllLanes, wants(new_square, new_id)); left; left &= left - 1) {
      const int from = __ffs(left) - 1;
      const T candidate = __shfl_sync(kAllLanes, new_square, from);
      const int32_t candidate_id = __shfl_sync(kAllLanes, new_id, from);
      if (wants(candidate, candidate_id)) insert(candidate, candidate_id);
    }
  }
  __device__ void insert(T candidate, int32_t candidate_id) {
    const int lane = threadIdx.x % kWarp;
    int low = 0, high = count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (comes_before(square[middle], id[middle], candidate, candidate_id)) low = middle + 1;
      else high = middle;
    }
    count = min(count + 1, k);
    for (int top = count - 1; top > low; top -= kWarp) {  // what stands at `low` and after moves up by one
      const int to = top - lane;
      const bool moves = to > low;
      const T moved = moves ? square[to - 1] : T{0};
      const int32_t moved_id = moves ? id[to - 1] : 0;
      __syncwarp();
      if (moves) square[to] = moved;
      if (moves) id[to] = moved_id;
      __syncwarp();
    }
    if (lane == 0) square[low] = candidate;
    if (lane == 0) id[low] = candidate_id;
    __syncwarp();
    if (count == k) {
      worst = square[k - 1];
      worst_id = id[k - 1];
    }
  }
  __device__ void write(T*, int32_t*) const {
    for (int j = threadIdx.x % kWarp; j < k; j += kWarp) {
      square[j] = j < count ? sqrt(square[j]) : kFar<T>;
      if (j >= count) id[j] = -1;
    }
  }
};

// The points of a ball: counted, and written where there is memory for them.
template <class T>
struct Within {
  T low, high;
  T* square;
  int32_t* id;
  int32_t count = 0;

  __device__ Within(T low, T high, T* square, int32_t* id) : low(low), high(high), square(square), id(id) {}
  __device__ bool wants(T bound, int32_t) const { return bound < high || bound == 0; }
  __device__ void take(T new_square, int32_t new_id) {
    const bool inside = (new_square < high && new_square >= low) || new_square == 0;
    const unsigned all = __ballot_sync(kAllLanes, inside);
    if (inside && square) {
      const int32_t place = count + __popc(all & ((1u << threadIdx.x % kWarp) - 1));
      square[place] = new_square;
      id[place] = new_id;
    }
    count += __popc(all);
  }
};

}  // namespace
}  // namespace pointcept3m
