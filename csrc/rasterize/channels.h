// Channels of Gaussians and of pixels as the products take them: whole vectors where they lie, the rest gathered.
#pragma once

#include "rasterize/tile_weights.h"

namespace pointcept3m {
namespace {

constexpr int64_t kStep = 8;  // widths of segments are multiples of this many channels

// Channels of one camera's Gaussians: `num_view` that belong to the camera (colour, depth), then `num_shared` that
// all cameras share (features). Each is read in place up to its last whole vector; what is left of both, the tail,
// is gathered per tile and filled up with zeros.
template <typename T>
struct ChannelRows {
  const T* view;    // [G, num_view]
  const T* shared;  // [G, num_shared]
  int64_t num_view, num_shared;

  static int64_t whole(int64_t count) { return count / kLanes * kLanes; }
  int64_t tail_view() const { return num_view - whole(num_view); }
  int64_t tail_shared() const { return num_shared - whole(num_shared); }
  // Rounded up to what the rest is taken in: whole vectors, where there are any.
  int64_t tail() const {
    const int64_t step = whole(num_view) + whole(num_shared) > 0 ? kLanes : kStep;
    return (tail_view() + tail_shared() + step - 1) / step * step;
  }
};

// Pixels of one camera in the same split.
template <typename T>
struct PixelRows {
  T* view;    // [H, W, num_view]
  T* shared;  // [H, W, num_shared]
};

// Pixels of one tile, wherever they lie.
template <typename T>
struct TilePixels {
  T* first;
  int64_t row_stride, stride;
  P3M_INLINE T* at(int row, int column) const { return first + row * row_stride + column * stride; }
};

// The pixels of a tile in an image [H, W, channels].
template <typename T, typename U>
P3M_INLINE TilePixels<U> pixels_of(const Tile<T>& tile, U* image, int64_t channels) {
  const int64_t width = tile.view->width;
  return {image + (tile.y0 * width + tile.x0) * channels, width * channels, channels};
}

template <typename T>
P3M_INLINE TilePixels<T> pixels_of_tail(T* tail, int64_t channels) {
  return {tail, kTile * channels, channels};
}

// Rows of channels by slot: of the camera, shared, and the tails in a table.
template <typename T>
struct SlotRows {
  Buffer<const T*> view, shared, tail;
  Buffer<T> table;  // [num_slots][tail]

  // The rows are asked for at the same time: they are about to be read.
  P3M_INLINE void gather(const Tile<T>& tile, const ChannelRows<T>& channels, const TileWeights<T>& weights) {
    const int64_t count = weights.num_slots, width = channels.tail();
    for (auto* rows : {&view, &shared, &tail}) rows->resize(count);
    table.resize(count * width);
    const int64_t whole_view = channels.whole(channels.num_view), whole_shared = channels.whole(channels.num_shared);
    for (int64_t slot = 0; slot < count; ++slot) {
      const int64_t index = tile.order[weights.slot_ranks.data()[slot]];
      view.data()[slot] = channels.view + index * channels.num_view;
      shared.data()[slot] = channels.shared + index * channels.num_shared;
      tail.data()[slot] = table.data() + slot * width;
      prefetch(shared.data()[slot], channels.num_shared);
      prefetch(view.data()[slot], channels.num_view);
    }
    if (!width) return;
    for (int64_t slot = 0; slot < count; ++slot) {
      T* row = table.data() + slot * width;
      int64_t column = 0;
      for (int64_t i = whole_view; i < channels.num_view; ++i) row[column++] = view.data()[slot][i];
      for (int64_t i = whole_shared; i < channels.num_shared; ++i) row[column++] = shared.data()[slot][i];
      while (column < width) row[column++] = T(0);
    }
  }

 private:
  static P3M_INLINE void prefetch(const T* row, int64_t size) {
    constexpr int64_t kLine = 64 / sizeof(T), kMost = 4 * kLine;  // the processor finds the rest of a long row
    for (int64_t i = 0; i < std::min(size, kMost); i += kLine) __builtin_prefetch(row + i);
  }
};

}  // namespace
}  // namespace pointcept3m
