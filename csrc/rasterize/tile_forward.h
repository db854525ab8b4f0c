// One tile, forward: weights first, then channels as small matrix products, group of pixels by group of pixels.
#pragma once

#include "rasterize/channels.h"

namespace pointcept3m {
namespace {

template <typename T>
struct ForwardScratch {
  TileLists lists;
  TileWeights<T> weights;
  SlotRows<T> rows;
  Buffer<T> tail;  // [kPixels][tail]
};

// pixels[8][K * N] = weights[count][8]^T rows[slots[count]][column .. column + K * N]
template <int N, int K, typename T>
P3M_INLINE void multiply_group(const int32_t* P3M_RESTRICT slots, const T* P3M_RESTRICT weights, int64_t count,
                               const T* const* P3M_RESTRICT rows, int64_t column, T* const* pixels) {
  using V = typename Vector<T, N>::type;
  V acc[kGroup][K] = {};
  for (int64_t record = 0; record < count; ++record) {
    const T* row = rows[slots[record]] + column;
    V values[K];
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) values[k] = load<V>(row + k * N);
#pragma GCC unroll 8
    for (int p = 0; p < kGroup; ++p)
#pragma GCC unroll 2
      for (int k = 0; k < K; ++k) acc[p][k] += weights[record * kGroup + p] * values[k];
  }
#pragma GCC unroll 8
  for (int p = 0; p < kGroup; ++p)
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k)
      if (pixels[p]) store(pixels[p] + column + k * N, acc[p][k]);
}

// Blends `width` channels of every slot into the tile's pixels, which need not hold anything before.
template <bool kWide, typename T>
P3M_INLINE void blend_segment(const Tile<T>& tile, const TileWeights<T>& weights, const T* const* rows, int64_t width,
                              const TilePixels<T>& target) {
  constexpr int64_t kChunk = kWide ? 2 * kLanes : kStep;
  for (int64_t column = 0; column < width;) {
    const int64_t left = width - column;
    for (int group = 0; group < kGroups; ++group) {
      T* pixels[kGroup];
      for (int i = 0; i < kGroup; ++i) {
        const int row = group_row(group, i), at = group_column(group, i);
        pixels[i] = tile.holds(row, at) ? target.at(row, at) : nullptr;
      }
      const int32_t* slots = weights.group_slots(group);
      const T* factors = weights.group_weights(group);
      const int64_t count = weights.counts[group];
      if (kWide && left >= 2 * kLanes) multiply_group<kLanes, 2>(slots, factors, count, rows, column, pixels);
      else if (kWide && left >= kLanes) multiply_group<kLanes, 1>(slots, factors, count, rows, column, pixels);
      else multiply_group<kStep, 1>(slots, factors, count, rows, column, pixels);
    }
    column += left >= kChunk ? kChunk : kWide && left >= kLanes ? kLanes : kStep;
  }
}

// Takes the tail's pixels apart into the rows of the two images.
template <typename T>
P3M_INLINE void write_tail(const Tile<T>& tile, const ChannelRows<T>& channels, const TilePixels<T>& tail,
                           const TilePixels<T>& view, const TilePixels<T>& shared) {
  const int64_t num_view = channels.tail_view(), num_shared = channels.tail_shared();
  const int64_t whole_view = channels.whole(channels.num_view), whole_shared = channels.whole(channels.num_shared);
  for (int row = 0; row < tile.num_rows(); ++row)
    for (int column = 0; column < tile.num_columns(); ++column) {
      const T* from = tail.at(row, column);
      T* to_view = view.at(row, column) + whole_view;
      T* to_shared = shared.at(row, column) + whole_shared;
      for (int64_t i = 0; i < num_view; ++i) to_view[i] = from[i];
      for (int64_t i = 0; i < num_shared; ++i) to_shared[i] = from[num_view + i];
    }
}

// Renders a tile: `transmittance` and `last` are images [H, W]. kWide takes vectors of 16 channels, which is right
// where a register holds one; otherwise vectors of 8, so that the accumulators stay in the registers there are.
template <bool kWide, typename T>
P3M_INLINE void forward_tile(const Tile<T>& tile, const ChannelRows<T>& channels, ForwardScratch<T>& scratch,
                             PixelRows<T> image, T* transmittance, int32_t* last) {
  TileLight<T> state;
  start_light(tile, state);
  weigh_tile<false>(tile, state, scratch.weights);
  scratch.rows.gather(tile, channels, scratch.weights);
  const TilePixels<T> view = pixels_of(tile, image.view, channels.num_view);
  const TilePixels<T> shared = pixels_of(tile, image.shared, channels.num_shared);
  const SlotRows<T>& rows = scratch.rows;
  blend_segment<kWide>(tile, scratch.weights, rows.view.data(), channels.whole(channels.num_view), view);
  blend_segment<kWide>(tile, scratch.weights, rows.shared.data(), channels.whole(channels.num_shared), shared);
  if (const int64_t width = channels.tail()) {
    scratch.tail.resize(kPixels * width);
    const TilePixels<T> tail = pixels_of_tail(scratch.tail.data(), width);
    blend_segment<kWide>(tile, scratch.weights, rows.tail.data(), width, tail);
    write_tail(tile, channels, tail, view, shared);
  }
  for (int pixel = 0; pixel < kPixels; ++pixel) {
    const int group = pixel / kGroup, i = pixel % kGroup, row = group_row(group, i), column = group_column(group, i);
    if (!tile.holds(row, column)) continue;
    const int strip = pixel / kLanes, lane = pixel % kLanes;
    const int64_t at = int64_t(tile.y0 + row) * tile.view->width + tile.x0 + column;
    const T light = state.light[strip][lane];
    transmittance[at] = light > T(0) ? light : state.end[strip][lane];
    last[at] = static_cast<int32_t>(state.last[strip][lane]);
  }
}

}  // namespace
}  // namespace pointcept3m
