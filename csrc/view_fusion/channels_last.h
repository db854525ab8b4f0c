// Feature maps copied so that the channels of a cell lie side by side.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "common/pages.h"
#include "common/parallel.h"
#include "common/vector.h"
#include "view_fusion/arguments.h"

namespace pointcept3m {
namespace {

constexpr int kTile = 16;       // cells and channels that are turned over in registers
constexpr int64_t kStrip = 64;  // cells that a thread takes at a time, all channels of them

// Swaps what lies off the diagonal of each square of 2 STEP rows and columns.
template <int STEP>
P3M_INLINE void swap_corners(Vector<float>* rows) {
  Vector<int32_t> upper, lower;
  for (int lane = 0; lane < kTile; ++lane) {
    upper[lane] = lane & STEP ? lane - STEP + kTile : lane;
    lower[lane] = lane & STEP ? lane + kTile : lane + STEP;
  }
  for (int i = 0; i < kTile; ++i) {
    if (i & STEP) continue;
    const Vector<float> a = rows[i], b = rows[i + STEP];
    rows[i] = __builtin_shuffle(a, b, upper);
    rows[i + STEP] = __builtin_shuffle(a, b, lower);
  }
}

P3M_INLINE void turn_tile(const float* from, int64_t from_step, float* to, int64_t to_step) {
  Vector<float> rows[kTile];
  for (int i = 0; i < kTile; ++i) rows[i] = load(from + i * from_step);
  swap_corners<8>(rows);
  swap_corners<4>(rows);
  swap_corners<2>(rows);
  swap_corners<1>(rows);
  for (int i = 0; i < kTile; ++i) store<float>(to + i * to_step, rows[i]);
}

// Cells from `begin` to before `end` of one map: from [channels, cells] to [cells, channels].
P3M_KERNEL void turn_strip(const float* from, int64_t cells, int64_t channels, int64_t begin, int64_t end, float* to) {
  int64_t c = 0;
  for (; c + kTile <= channels; c += kTile) {
    int64_t s = begin;
    for (; s + kTile <= end; s += kTile) turn_tile(from + c * cells + s, cells, to + s * channels + c, channels);
    for (; s < end; ++s)
      for (int64_t k = c; k < c + kTile; ++k) to[s * channels + k] = from[k * cells + s];
  }
  for (; c < channels; ++c)
    for (int64_t s = begin; s < end; ++s) to[s * channels + c] = from[c * cells + s];
}

// The maps, which lie with channels first, in memory of their own.
inline std::unique_ptr<float[]> with_channels_last(const Maps& maps, int64_t views) {
  const int64_t cells = maps.rows * maps.columns, size = cells * maps.channels;
  const int64_t strips = (cells + kStrip - 1) / kStrip;
  std::unique_ptr<float[]> copy(new float[views * size]);
  ask_for_huge_pages(copy.get(), views * size * sizeof(float));
  share_units(views * strips, [&](int64_t unit) {
    const int64_t first = unit / strips * size, begin = unit % strips * kStrip;
    turn_strip(maps.cells + first, cells, maps.channels, begin, std::min(cells, begin + kStrip), copy.get() + first);
  });
  return copy;
}

}  // namespace
}  // namespace pointcept3m
