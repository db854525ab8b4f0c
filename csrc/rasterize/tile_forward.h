// One tile, forward: weights of a block of Gaussians first, then the block's channels as a small matrix product.
#pragma once

#include "rasterize/splats.h"

#include <new>

namespace pointcept3m {
namespace {

// Memory on a cache line, kept between tiles.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }
  void resize(int64_t size) {
    if (size <= size_) return;
    release();
    data_ = static_cast<T*>(::operator new(size * sizeof(T), kAlignment));
    size_ = size;
  }
  T* data() { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void release() {
    if (data_) ::operator delete(data_, kAlignment);
    data_ = nullptr;
    size_ = 0;
  }
  T* data_ = nullptr;
  int64_t size_ = 0;
};

// Channels of one camera's Gaussians: `num_view` that belong to the camera (colour, depth), then `num_shared` that
// all cameras share (features). They are taken `block` at a time, the last block filled up with zeros.
template <typename T>
struct ChannelRows {
  const T* view;    // [G, num_view]
  const T* shared;  // [G, num_shared]
  int64_t num_view, num_shared;
  int64_t size() const { return num_view + num_shared; }
  int block() const { return size() <= 8 ? 8 : 16; }
  int64_t num_blocks() const { return (size() + block() - 1) / block(); }
  int64_t padded() const { return num_blocks() * block(); }
};

// Pixels of one camera in the same split.
template <typename T>
struct PixelRows {
  T* view;    // [H, W, num_view]
  T* shared;  // [H, W, num_shared]
};

// A tile and the Gaussians that reach it.
template <typename T>
struct Tile {
  const View<T>* view;
  const int32_t* order;   // rank -> Gaussian
  const int32_t* ranks;   // place in the band's list -> rank
  const int32_t* places;  // [count], front to back
  int64_t count;
  int32_t x0, y0;  // its first pixel
};

// Copies the channels of Gaussian `index` into `slot` of a block-major table [num_blocks][capacity][N].
template <int N, typename T>
P3M_INLINE void gather_channels(const ChannelRows<T>& channels, int64_t index, T* line, T* table, int64_t capacity,
                                int64_t slot) {
  std::copy_n(channels.view + index * channels.num_view, channels.num_view, line);
  std::copy_n(channels.shared + index * channels.num_shared, channels.num_shared, line + channels.num_view);
  for (int64_t block = 0; block < channels.num_blocks(); ++block)
    for (int i = 0; i < N; ++i) table[(block * capacity + slot) * N + i] = line[block * N + i];
}

// Depth order is random order in memory: the rows of a Gaussian are asked for this many Gaussians ahead of use.
constexpr int kLookahead = 8;

template <typename T>
P3M_INLINE void prefetch_row(const T* row, int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(T), kMost = 8 * kLine;  // the processor finds the rest of a long row
  for (int64_t i = 0; i < std::min(size, kMost); i += kLine) __builtin_prefetch(row + i);
}

template <typename T>
P3M_INLINE void prefetch_gaussian(const Tile<T>& tile, const ChannelRows<T>& channels, int64_t k) {
  if (k < 0 || k >= tile.count) return;
  const int32_t rank = tile.ranks[tile.places[k]];
  const int64_t index = tile.order[rank];
  __builtin_prefetch(&tile.view->splats[rank]);
  prefetch_row(channels.view + index * channels.num_view, channels.num_view);
  prefetch_row(channels.shared + index * channels.num_shared, channels.num_shared);
}

// A pixel row's Gaussian: squares of distances are shared by all rows of the tile.
template <typename T>
struct RowGeometry {
  Row<T> dx, half_axx, bdx;
  T half_c;

  P3M_INLINE RowGeometry(const Splat<T>& s, Row<T> columns)
      : dx(columns - s.x), half_axx(T(0.5) * s.a * dx * dx), bdx(s.b * dx), half_c(T(0.5) * s.c) {}

  P3M_INLINE Row<T> exponent(T dy) const { return half_axx + dy * (bdx + half_c * dy); }
};

template <typename T>
P3M_INLINE Row<T> tile_columns(int32_t x0) {
  Row<T> columns;
  for (int i = 0; i < kTile; ++i) columns[i] = T(x0 + i) + T(0.5);
  return columns;
}

// Lanes of pixel row `y` that lie on the image.
template <typename T>
P3M_INLINE RowMask<T> inside(int32_t x0, int32_t y, int32_t width, int32_t height) {
  RowMask<T> mask;
  for (int i = 0; i < kTile; ++i) mask[i] = (y < height && x0 + i < width) ? -1 : 0;
  return mask;
}

constexpr int kForwardBlock = 128;

template <typename T>
struct ForwardScratch {
  TileLists lists;
  Buffer<T> weights;       // [8 rows][kForwardBlock][8 pixels]
  Buffer<int32_t> slots;   // [8 rows][kForwardBlock]: row of `table`
  Buffer<T> table;         // [num_blocks][kForwardBlock][N]
  Buffer<T> line;          // [padded]
  Buffer<T> pixels;        // [8 rows][num_blocks][8 pixels][N]

  void resize(const ChannelRows<T>& channels) {
    weights.resize(kPixels * kForwardBlock);
    slots.resize(kTile * kForwardBlock);
    table.resize(kForwardBlock * channels.padded());
    line.resize(channels.padded());
    pixels.resize(kPixels * channels.padded());
  }
};

// pixels[8][N] += weights[count][8]^T table[slots[count]][N]
template <int N, typename T>
P3M_INLINE void add_row_product(const T* P3M_RESTRICT weights, const int32_t* P3M_RESTRICT slots, int count,
                                const T* P3M_RESTRICT table, T* P3M_RESTRICT pixels) {
  using V = typename Vector<T, N>::type;
  V acc[kTile];
#pragma GCC unroll 8
  for (int p = 0; p < kTile; ++p) acc[p] = load<V>(pixels + p * N);
  for (int k = 0; k < count; ++k) {
    const V value = load<V>(table + int64_t(slots[k]) * N);
#pragma GCC unroll 8
    for (int p = 0; p < kTile; ++p) acc[p] += weights[k * kTile + p] * value;
  }
#pragma GCC unroll 8
  for (int p = 0; p < kTile; ++p) store(pixels + p * N, acc[p]);
}

// What is left of the light on each pixel of a tile, and the rank of the last Gaussian that took some.
template <typename T>
struct TileState {
  Row<T> transmittance[kTile];
  RowMask<T> live[kTile], last[kTile];
};

// Weights of up to kForwardBlock Gaussians, listed per row of pixels; returns a bit for each row still live.
template <int N, typename T>
P3M_INLINE unsigned weigh_block(const Tile<T>& tile, const ChannelRows<T>& channels, int64_t begin, int64_t end,
                                unsigned live_rows, Row<T> columns, TileState<T>& state, ForwardScratch<T>& scratch,
                                int* counts) {
  int num_slots = 0;
  for (int64_t k = begin; k < end; ++k) {
    prefetch_gaussian(tile, channels, k + kLookahead);
    const int32_t rank = tile.ranks[tile.places[k]];
    const Splat<T>& s = tile.view->splats[rank];
    const RowGeometry<T> geometry(s, columns);
    const int first = std::max(s.y0 - tile.y0, 0), last = std::min(s.y1 - tile.y0, kTile - 1);
    bool used = false;
    for (int row = first; row <= last; ++row) {
      if (!(live_rows >> row & 1)) continue;
      const Row<T> exponent = geometry.exponent(T(tile.y0 + row) + T(0.5) - s.y);
      Row<T> alpha = s.opacity * exp_row(-exponent);
      alpha = alpha > T(kAlphaMax) ? splat_row(T(kAlphaMax)) : alpha;
      RowMask<T> hit = state.live[row] & (alpha >= T(kAlphaMin)) & (exponent >= T(0));
      if (!any(hit)) continue;
      const Row<T> next = state.transmittance[row] * (T(1) - alpha);
      const RowMask<T> stop = hit & (next <= T(kTransmittanceMin));
      if (any(stop)) {
        hit &= ~stop;
        state.live[row] &= ~stop;
        if (!any(state.live[row])) live_rows &= ~(1u << row);
      }
      const int slot = row * kForwardBlock + counts[row]++;
      store(scratch.weights.data() + slot * kTile, hit ? alpha * state.transmittance[row] : Row<T>{});
      scratch.slots.data()[slot] = num_slots;
      state.transmittance[row] = hit ? next : state.transmittance[row];
      state.last[row] = hit ? RowMask<T>{} + rank : state.last[row];
      used = true;
    }
    T* table = scratch.table.data();
    if (used) gather_channels<N>(channels, tile.order[rank], scratch.line.data(), table, kForwardBlock, num_slots++);
    if (!live_rows) break;
  }
  return live_rows;
}

// Takes apart the block-major pixels of a tile into the rows of the two images.
template <int N, typename T>
P3M_INLINE void write_pixels(const Tile<T>& tile, const ChannelRows<T>& channels, const T* pixels,
                             const TileState<T>& state, PixelRows<T> image, T* line, T* transmittance, int32_t* last) {
  const int64_t num_blocks = channels.num_blocks();
  const int32_t width = tile.view->width;
  const int rows = std::min(kTile, tile.view->height - tile.y0), columns = std::min(kTile, width - tile.x0);
  for (int row = 0; row < rows; ++row)
    for (int p = 0; p < columns; ++p) {
      const int64_t pixel = int64_t(tile.y0 + row) * width + tile.x0 + p;
      transmittance[pixel] = state.transmittance[row][p];
      last[pixel] = static_cast<int32_t>(state.last[row][p]);
      for (int64_t block = 0; block < num_blocks; ++block)
        for (int i = 0; i < N; ++i) line[block * N + i] = pixels[((row * num_blocks + block) * kTile + p) * N + i];
      T* view = image.view + pixel * channels.num_view;
      T* shared = image.shared + pixel * channels.num_shared;
      for (int64_t i = 0; i < channels.num_view; ++i) view[i] = line[i];
      for (int64_t i = 0; i < channels.num_shared; ++i) shared[i] = line[channels.num_view + i];
    }
}

template <int N, typename T>
P3M_INLINE void forward_tile(const Tile<T>& tile, const ChannelRows<T>& channels, ForwardScratch<T>& scratch,
                             PixelRows<T> image, T* transmittance, int32_t* last) {
  const int64_t num_blocks = channels.num_blocks();
  const Row<T> columns = tile_columns<T>(tile.x0);
  TileState<T> state;
  unsigned live_rows = 0;
  for (int row = 0; row < kTile; ++row) {
    state.transmittance[row] = splat_row(T(1));
    state.live[row] = inside<T>(tile.x0, tile.y0 + row, tile.view->width, tile.view->height);
    state.last[row] = RowMask<T>{} - 1;
    if (any(state.live[row])) live_rows |= 1u << row;
  }
  std::fill_n(scratch.pixels.data(), kPixels * channels.padded(), T(0));
  std::fill_n(scratch.line.data(), channels.padded(), T(0));
  for (int64_t begin = 0; begin < tile.count && live_rows; begin += kForwardBlock) {
    int counts[kTile] = {};
    const int64_t end = std::min(begin + kForwardBlock, tile.count);
    live_rows = weigh_block<N>(tile, channels, begin, end, live_rows, columns, state, scratch, counts);
    for (int64_t block = 0; block < num_blocks; ++block)
      for (int row = 0; row < kTile; ++row)
        add_row_product<N>(scratch.weights.data() + row * kForwardBlock * kTile,
                           scratch.slots.data() + row * kForwardBlock, counts[row], scratch.table.data() + block * kForwardBlock * N,
                           scratch.pixels.data() + (row * num_blocks + block) * kTile * N);
  }
  write_pixels<N>(tile, channels, scratch.pixels.data(), state, image, scratch.line.data(), transmittance, last);
}

}  // namespace
}  // namespace pointcept3m
