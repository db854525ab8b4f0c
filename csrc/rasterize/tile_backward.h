// One tile, backward: weights recomputed, one scalar q = channels . grad a pair, then the geometry from back to front.
//
// With w_i = alpha_i T_i and q_i = f_i . dL/dC, the gradient of a pixel's alpha needs no sum over channels:
//   dL/dalpha_i = T_i q_i - (sum_{j behind i} w_j q_j + T_end dL/dT_end) / (1 - alpha_i).
#pragma once

#include "rasterize/channels.h"

namespace pointcept3m {
namespace {

// Gradients of a splat's geometry: mean x, y; conic a, b, c; log opacity; and two to fill the row.
constexpr int kGeometry = 8;

// What the forward left and what comes from above, for one camera.
template <typename T>
struct BackwardInput {
  PixelRows<const T> grad;      // of the image
  const T* grad_transmittance;  // [H, W]
  const T* transmittance;       // [H, W]
  const int32_t* last;          // [H, W]
};

// Where the gradients of a band's Gaussians are summed up, by rank: rows of the result for most of them, rows of
// scratch for those that several bands would write at the same time.
template <typename T>
struct GradRows {
  T *geometry, *view, *shared;
};

template <typename T>
struct BackwardScratch {
  TileLists lists;
  TileWeights<T> weights;
  SlotRows<T> rows;
  Buffer<T*> view, shared, tail;  // by slot: where the gradients of channels go
  Buffer<T*> geometry;
  Buffer<T> tail_table;           // [num_slots][tail]
  Buffer<T> tail_pixels;          // [kPixels][tail]: dL/dC of the tail
  Buffer<T> q;                    // [kGroups][capacity][kGroup]
  Buffer<T> slopes;               // [num_slots][kPixels]: alpha dL/dalpha
};

// Sums of neighbours: (a0 + a1, a2 + a3, b0 + b1, b2 + b3) in each half. One shuffle an operand on every x86.
template <typename V>
P3M_INLINE V add_neighbours(V a, V b) {
  return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}

// Sums of the lanes of 8 vectors, as one vector.
template <typename V>
P3M_INLINE auto sum_each(const V (&v)[kGroup]) {
  using T = std::remove_cvref_t<decltype(v[0][0])>;
  using Eight = typename Vector<T, kGroup>::type;
  Eight a[kGroup];
#pragma GCC unroll 8
  for (int i = 0; i < kGroup; ++i) {
    if constexpr (sizeof(V) == sizeof(Eight)) a[i] = v[i];
    else a[i] = left_group(v[i]) + right_group(v[i]);
  }
  const Eight low = add_neighbours(add_neighbours(a[0], a[1]), add_neighbours(a[2], a[3]));
  const Eight high = add_neighbours(add_neighbours(a[4], a[5]), add_neighbours(a[6], a[7]));
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
}

// A run of channels: rows by slot, where their gradients go, and dL/dC of the tile's pixels.
template <typename T>
struct Segment {
  const T* const* rows;
  T* const* grads;
  int64_t width;
  TilePixels<const T> pixels;
};
constexpr int kSegments = 3;  // of the camera, shared, and the tail

// For every record of a group, over all channels: q[8] = pixels . row, and grads[slot] += weights . pixels.
template <int N, typename T>
P3M_INLINE void multiply_group_back(const int32_t* P3M_RESTRICT slots, const T* P3M_RESTRICT weights, int64_t count,
                                    const Segment<T>* segments, int num_segments,
                                    const T* const (*P3M_RESTRICT pixels)[kGroup], T* P3M_RESTRICT q) {
  using V = typename Vector<T, N>::type;
  for (int64_t record = 0; record < count; ++record) {
    const T* P3M_RESTRICT factors = weights + record * kGroup;
    V sums[kGroup] = {};
    for (int s = 0; s < num_segments; ++s) {
      const T* P3M_RESTRICT row = segments[s].rows[slots[record]];
      T* P3M_RESTRICT grad = segments[s].grads[slots[record]];
      const T* const* at = pixels[s];
      const int64_t width = segments[s].width;
      for (int64_t i = 0; i < width; i += N) {
        const V value = load<V>(row + i);
        V even = load<V>(grad + i), odd{};
#pragma GCC unroll 8
        for (int p = 0; p < kGroup; p += 2) {
          const V first = load<V>(at[p] + i), second = load<V>(at[p + 1] + i);
          sums[p] += value * first;
          even += factors[p] * first;
          sums[p + 1] += value * second;
          odd += factors[p + 1] * second;
        }
        store(grad + i, even + odd);
      }
    }
    store(q + record * kGroup, sum_each(sums));
  }
}

template <bool kWide, typename T>
P3M_INLINE void blend_back(const Tile<T>& tile, BackwardScratch<T>& scratch, const Segment<T>* segments,
                           int num_segments, bool whole_vectors) {
  const TileWeights<T>& weights = scratch.weights;
  for (int group = 0; group < kGroups; ++group) {
    const T* pixels[kSegments][kGroup];  // those outside the image have weight 0, and any pixel may stand for them
    for (int s = 0; s < num_segments; ++s)
      for (int i = 0; i < kGroup; ++i)
        pixels[s][i] = segments[s].pixels.at(std::min(group_row(group, i), tile.num_rows() - 1),
                                             std::min(group_column(group, i), tile.num_columns() - 1));
    const int32_t* slots = weights.group_slots(group);
    const T* factors = weights.group_weights(group);
    T* q = scratch.q.data() + group * weights.capacity * kGroup;
    if (kWide && whole_vectors)
      multiply_group_back<kLanes>(slots, factors, weights.counts[group], segments, num_segments, pixels, q);
    else multiply_group_back<kStep>(slots, factors, weights.counts[group], segments, num_segments, pixels, q);
  }
}

// Reads what the forward left of the tile's pixels; `behind` starts as T_end dL/dT_end.
template <typename T>
P3M_INLINE void read_light(const Tile<T>& tile, const BackwardInput<T>& input, TileLight<T>& state, T* behind) {
  for (int pixel = 0; pixel < kPixels; ++pixel) {
    const int group = pixel / kGroup, i = pixel % kGroup, row = group_row(group, i), column = group_column(group, i);
    const bool valid = tile.holds(row, column);
    const int64_t at = valid ? int64_t(tile.y0 + row) * tile.view->width + tile.x0 + column : 0;
    state.last[pixel / kLanes][pixel % kLanes] = valid ? std::max(input.last[at], -1) : -1;
    behind[pixel] = valid ? input.transmittance[at] * input.grad_transmittance[at] : T(0);
  }
}

// alpha dL/dalpha of every record, from back to front.
template <typename T>
P3M_INLINE void fill_slopes(BackwardScratch<T>& scratch, const T* behind_end) {
  using Eight = typename Vector<T, kGroup>::type;
  TileWeights<T>& weights = scratch.weights;
  std::fill_n(scratch.slopes.data(), weights.num_slots * kPixels, T(0));
  for (int group = 0; group < kGroups; ++group) {
    const int32_t* slots = weights.group_slots(group);
    const T* factors = weights.group_weights(group);
    const T* alphas = weights.group_alphas(group);
    const T* q = scratch.q.data() + group * weights.capacity * kGroup;
    Eight behind = load<Eight>(behind_end + group * kGroup);
    for (int64_t record = weights.counts[group]; record-- > 0;) {
      const Eight alpha = load<Eight>(alphas + record * kGroup);
      const Eight taken = load<Eight>(factors + record * kGroup) * load<Eight>(q + record * kGroup);
      Eight slope = taken - behind * alpha / (T(1) - alpha);
      slope = alpha < T(kAlphaMax) ? slope : Eight{};  // a clamped alpha does not move
      // A pixel that has stopped has its alpha here but no weight.
      slope = load<Eight>(factors + record * kGroup) > T(0) ? slope : Eight{};
      behind += taken;
      store(scratch.slopes.data() + slots[record] * kPixels + group * kGroup, slope);
    }
  }
}

// Gradients of each slot's mean, conic and opacity: moments of its slopes about the tile's centre, moved to its own.
template <typename T>
P3M_INLINE void add_geometry(const Tile<T>& tile, BackwardScratch<T>& scratch) {
  Strip<T> u, v;
  for (int lane = 0; lane < kLanes; ++lane) {
    u[lane] = T(group_column(lane / kGroup, lane % kGroup)) - T(3.5);
    v[lane] = T(group_row(lane / kGroup, lane % kGroup)) - T(3.5);
  }
  for (int64_t slot = 0; slot < scratch.weights.num_slots; ++slot) {
    const Splat<T>& s = tile.view->splats[scratch.weights.slot_ranks.data()[slot]];
    Strip<T> total{}, vertical{}, vertical_square{};
    for (int strip = 0; strip < kStrips; ++strip) {
      const Strip<T> slope = load<Strip<T>>(scratch.slopes.data() + slot * kPixels + strip * kLanes);
      const Strip<T> row = v + T(2 * strip), first = slope * row;
      total += slope;
      vertical += first;
      vertical_square += first * row;
    }
    const Strip<T> across = total * u;
    const T m = sum_lanes(total), mx = sum_lanes(across), my = sum_lanes(vertical);
    const T mxx = sum_lanes(across * u), mxy = sum_lanes(vertical * u), myy = sum_lanes(vertical_square);
    const T ex = T(tile.x0) + T(4) - s.x, ey = T(tile.y0) + T(4) - s.y;
    const T sx = mx + ex * m, sy = my + ey * m;
    T* target = scratch.geometry.data()[slot];
    target[0] += s.a * sx + s.b * sy;
    target[1] += s.b * sx + s.c * sy;
    target[2] -= T(0.5) * (mxx + ex * (2 * mx + ex * m));
    target[3] -= mxy + ex * my + ey * sx;
    target[4] -= T(0.5) * (myy + ey * (2 * my + ey * m));
    target[5] += m;
  }
}

// Finds where each slot's gradients go; the tails' go to a table first.
template <typename T, typename Place>
P3M_INLINE void place_grads(const ChannelRows<T>& channels, BackwardScratch<T>& scratch, const Place& place) {
  const int64_t count = scratch.weights.num_slots, width = channels.tail();
  for (auto* rows : {&scratch.view, &scratch.shared, &scratch.tail, &scratch.geometry}) rows->resize(count);
  scratch.tail_table.resize(count * width);
  std::fill_n(scratch.tail_table.data(), count * width, T(0));
  for (int64_t slot = 0; slot < count; ++slot) {
    const GradRows<T> rows = place(scratch.weights.slot_ranks.data()[slot]);
    scratch.geometry.data()[slot] = rows.geometry;
    scratch.view.data()[slot] = rows.view;
    scratch.shared.data()[slot] = rows.shared;
    scratch.tail.data()[slot] = scratch.tail_table.data() + slot * width;
    __builtin_prefetch(rows.geometry, 1);
    for (int64_t i = 0; i < std::min<int64_t>(channels.num_shared, 64); i += 64 / sizeof(T))
      __builtin_prefetch(rows.shared + i, 1);
  }
}

template <typename T>
P3M_INLINE void read_tail(const Tile<T>& tile, const ChannelRows<T>& channels, const TilePixels<const T>& view,
                          const TilePixels<const T>& shared, const TilePixels<T>& tail) {
  const int64_t num_view = channels.tail_view(), num_shared = channels.tail_shared();
  const int64_t whole_view = channels.whole(channels.num_view), whole_shared = channels.whole(channels.num_shared);
  for (int row = 0; row < tile.num_rows(); ++row)
    for (int column = 0; column < tile.num_columns(); ++column) {
      const T* from_view = view.at(row, column) + whole_view;
      const T* from_shared = shared.at(row, column) + whole_shared;
      T* to = tail.at(row, column);
      for (int64_t i = 0; i < num_view; ++i) to[i] = from_view[i];
      for (int64_t i = 0; i < num_shared; ++i) to[num_view + i] = from_shared[i];
      for (int64_t i = num_view + num_shared; i < channels.tail(); ++i) to[i] = T(0);
    }
}

// Adds the tile's gradients to the rows that `place` (rank -> GradRows) names.
template <bool kWide, typename T, typename Place>
P3M_INLINE void backward_tile(const Tile<T>& tile, const ChannelRows<T>& channels, const BackwardInput<T>& input,
                              BackwardScratch<T>& scratch, const Place& place) {
  alignas(64) T behind[kPixels];
  TileLight<T> state;
  start_light(tile, state);
  read_light(tile, input, state, behind);
  TileWeights<T>& weights = scratch.weights;
  weigh_tile<true>(tile, state, weights);
  const int64_t count = weights.num_slots;
  if (!count) return;
  scratch.rows.gather(tile, channels, weights);
  place_grads(channels, scratch, place);
  scratch.q.resize(kGroups * weights.capacity * kGroup);
  scratch.slopes.resize(count * kPixels);

  const TilePixels<const T> view = pixels_of(tile, input.grad.view, channels.num_view);
  const TilePixels<const T> shared = pixels_of(tile, input.grad.shared, channels.num_shared);
  const int64_t whole_view = channels.whole(channels.num_view), whole_shared = channels.whole(channels.num_shared);
  Segment<T> segments[kSegments];
  int num_segments = 0;
  if (whole_view) segments[num_segments++] = {scratch.rows.view.data(), scratch.view.data(), whole_view, view};
  if (whole_shared)
    segments[num_segments++] = {scratch.rows.shared.data(), scratch.shared.data(), whole_shared, shared};
  const int64_t width = channels.tail();
  if (width) {
    scratch.tail_pixels.resize(kPixels * width);
    const TilePixels<T> tail = pixels_of_tail(scratch.tail_pixels.data(), width);
    read_tail(tile, channels, view, shared, tail);
    segments[num_segments++] = {scratch.rows.tail.data(), scratch.tail.data(), width,
                                {tail.first, tail.row_stride, tail.stride}};
  }
  blend_back<kWide>(tile, scratch, segments, num_segments, width % kLanes == 0);
  if (width)
    for (int64_t slot = 0; slot < count; ++slot) {
      const T* from = scratch.tail.data()[slot];
      T* to_view = scratch.view.data()[slot] + whole_view;
      T* to_shared = scratch.shared.data()[slot] + whole_shared;
      for (int64_t i = 0; i < channels.tail_view(); ++i) to_view[i] += from[i];
      for (int64_t i = 0; i < channels.tail_shared(); ++i) to_shared[i] += from[channels.tail_view() + i];
    }
  fill_slopes(scratch, behind);
  add_geometry(tile, scratch);
}

}  // namespace
}  // namespace pointcept3m
