// The geometry of one tile: which Gaussians take light on which groups of pixels, and how much.
#pragma once

#include "rasterize/memory.h"
#include "rasterize/splats.h"

namespace pointcept3m {
namespace {

// A tile and the Gaussians that reach it.
template <typename T>
struct Tile {
  const View<T>* view;
  const int32_t* order;  // rank -> Gaussian
  const int32_t* ranks;  // [count], front to back
  int64_t count;
  int32_t x0, y0;  // its first pixel

  int num_rows() const { return std::min(kTile, view->height - y0); }
  int num_columns() const { return std::min(kTile, view->width - x0); }
  bool holds(int row, int column) const { return row < num_rows() && column < num_columns(); }
};

// Most Gaussians that can count on one pixel: each takes at least 1/255 of the light and half of the least
// transmittance is where even the backward stops, ln(5e-5) / ln(254/255) = 2522.
constexpr int64_t kMostPerPixel = 2600;

// Gaussians that count somewhere in the tile, "slots", front to back; and for each group of pixels its records:
// a slot with its weights alpha T on the 8 pixels, 0 where it does not count, and its alphas on those that it takes
// light of.
template <typename T>
struct TileWeights {
  Buffer<int32_t> slot_ranks;      // [num_slots]
  Buffer<int32_t> slots;           // [kGroups][capacity]
  Buffer<T> weights, alphas;       // [kGroups][capacity][kGroup]; alphas in the backward only
  int64_t num_slots, capacity, counts[kGroups];

  void reset(int64_t count, bool with_alphas) {
    num_slots = 0;
    capacity = std::min<int64_t>(count, kMostPerPixel * kGroup) + 1;  // a record is written before it is known to stay
    std::fill_n(counts, kGroups, 0);
    slot_ranks.resize(std::min<int64_t>(count, kMostPerPixel * kPixels) + 1);
    slots.resize(kGroups * capacity);
    weights.resize(kGroups * capacity * kGroup);
    if (with_alphas) alphas.resize(kGroups * capacity * kGroup);
  }
  const int32_t* group_slots(int group) const { return slots.data() + group * capacity; }
  const T* group_weights(int group) const { return weights.data() + group * capacity * kGroup; }
  const T* group_alphas(int group) const { return alphas.data() + group * capacity * kGroup; }
};

// Of each pixel: the light that is left, 0 once it has stopped or where it lies outside the image; what was left
// when it stopped; and the rank of the last Gaussian that took some.
template <typename T>
struct TileLight {
  Strip<T> light[kStrips], end[kStrips];
  StripMask<T> last[kStrips];
};

template <typename T>
P3M_INLINE void start_light(const Tile<T>& tile, TileLight<T>& state) {
  for (int strip = 0; strip < kStrips; ++strip) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int group = 2 * strip + lane / kGroup, i = lane % kGroup;
      state.light[strip][lane] = tile.holds(group_row(group, i), group_column(group, i)) ? T(1) : T(0);
    }
    state.end[strip] = Strip<T>{};
    state.last[strip] = StripMask<T>{} - 1;
  }
}

// Depth order is random order in memory: a splat is asked for this many Gaussians ahead of use.
constexpr int kLookahead = 8;

// Walks a tile front to back and fills `out`. The forward (kBackward = false) stops pixels and notes where; the
// backward takes exactly the Gaussians the forward took, those up to `state.last`.
template <bool kBackward, typename T>
P3M_INLINE void weigh_tile(const Tile<T>& tile, TileLight<T>& state, TileWeights<T>& out) {
  constexpr T kStop = T(kTransmittanceMin) * (kBackward ? T(0.5) : T(1));
  out.reset(tile.count, kBackward);
  int32_t* P3M_RESTRICT slots = out.slots.data();
  T* P3M_RESTRICT weights = out.weights.data();
  T* P3M_RESTRICT alphas = out.alphas.data();
  int64_t ends[kGroups], num_slots = 0;  // where each group's next record goes
  for (int group = 0; group < kGroups; ++group) ends[group] = group * out.capacity;
  // Branch-free: a record is written before it is known to stay.
  const auto append = [&](int group, typename Vector<T, kGroup>::type weight, typename Vector<T, kGroup>::type alpha) {
    const int64_t at = ends[group];
    slots[at] = static_cast<int32_t>(num_slots);
    store(weights + at * kGroup, weight);
    if constexpr (kBackward) store(alphas + at * kGroup, alpha);
    ends[group] = at + any_lane(weight);
  };
  Strip<T> columns, first_rows;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / kGroup, i = lane % kGroup;
    columns[lane] = T(tile.x0 + group_column(group, i)) + T(0.5);
    first_rows[lane] = T(tile.y0 + group_row(group, i)) + T(0.5);
  }
  unsigned live_strips = (1u << kStrips) - 1;
  for (int64_t k = 0; k < tile.count && live_strips; ++k) {
    if (k + kLookahead < tile.count) __builtin_prefetch(&tile.view->splats[tile.ranks[k + kLookahead]]);
    const int32_t rank = tile.ranks[k];
    const Splat<T>& s = tile.view->splats[rank];
    const Strip<T> dx = columns - s.x, half_axx = T(0.5) * s.a * dx * dx, bdx = s.b * dx;
    const T half_c = T(0.5) * s.c;
    const int first = std::max(s.y0 - tile.y0, 0) / 2, last = std::min(s.y1 - tile.y0, kTile - 1) / 2;
    bool used = false;
    for (int strip = first; strip <= last; ++strip) {
      if (!(live_strips >> strip & 1)) continue;
      const Strip<T> dy = first_rows + (T(2 * strip) - s.y), light = state.light[strip];
      const Strip<T> exponent = half_axx + dy * (bdx + half_c * dy), power = s.log_ratio - exponent;
      // The light where alpha is 1/255 or more, 0 elsewhere. One comparison, as GCC takes two that are joined apart.
      const Strip<T> lowest = power < exponent ? power : exponent;
      Strip<T> reached = lowest >= T(0) ? light : Strip<T>{};
      if constexpr (kBackward) reached = keep_if_not_negative<T>(reached, state.last[strip] - rank);
      if (!any_lane(reached)) continue;
      Strip<T> alpha = T(kAlphaMin) * exp_strip<T>(power >= T(0) ? power : Strip<T>{});
      alpha = alpha > T(kAlphaMax) ? splat_strip(T(kAlphaMax)) : alpha;
      Strip<T> weight = alpha * reached, next = light - weight;
      const Strip<T> stopped = next <= kStop ? light : Strip<T>{};  // 0 where a pixel goes on, or had stopped before
      if (any_lane(stopped)) [[unlikely]] {
        weight = stopped > T(0) ? Strip<T>{} : weight;
        state.end[strip] = stopped > T(0) ? stopped : state.end[strip];
        next = stopped > T(0) ? Strip<T>{} : next;
        if (!any_lane(next)) live_strips &= ~(1u << strip);
        used |= any_lane(weight);
      } else {
        used = true;
      }
      state.light[strip] = next;
      if constexpr (!kBackward) state.last[strip] = weight > T(0) ? StripMask<T>{} + rank : state.last[strip];
      append(2 * strip, left_group(weight), left_group(alpha));
      append(2 * strip + 1, right_group(weight), right_group(alpha));
    }
    out.slot_ranks.data()[num_slots] = rank;
    num_slots += used;
  }
  out.num_slots = num_slots;
  for (int group = 0; group < kGroups; ++group) out.counts[group] = ends[group] - group * out.capacity;
}

}  // namespace
}  // namespace pointcept3m
