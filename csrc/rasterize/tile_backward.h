// One tile, backward: from the back to the front, weights recomputed, one scalar q = channels . grad a pair.
//
// With w_i = alpha_i T_i and q_i = f_i . dL/dC, the gradient of a pixel's alpha needs no sum over channels:
//   dL/dalpha_i = T_i q_i - (sum_{j behind i} w_j q_j + T_end dL/dT_end) / (1 - alpha_i).
#pragma once

#include "rasterize/tile_forward.h"

namespace pointcept3m {
namespace {

constexpr int kBackwardBlock = 64;
// Columns of a gradient row that hold geometry: mean x, y; conic a, b, c; opacity. The channels follow.
constexpr int kGeometry = 8;

// What the forward left and what comes from above, for one camera.
template <typename T>
struct BackwardInput {
  PixelRows<const T> grad;     // of the image
  const T* grad_transmittance;  // [H, W]
  const T* transmittance;       // [H, W]
  const int32_t* last;          // [H, W]
};

template <typename T>
struct BackwardScratch {
  TileLists lists;
  Buffer<T> grad;         // [8 rows][num_blocks][8 pixels][N]: dL/dC of the tile
  Buffer<T> grad_planes;  // [num_blocks][N][8 rows][8 pixels]: the same, pixels side by side
  Buffer<T> table;        // [num_blocks][kBackwardBlock][N]: channels of the block's Gaussians
  Buffer<T> line;         // [padded]
  Buffer<T> weight, alpha, transmittance, q;  // [kBackwardBlock * 8 records][8 pixels]
  Buffer<int32_t> rows;                       // [kBackwardBlock * 8]: pixel row of a record

  void resize(const ChannelRows<T>& channels) {
    grad.resize(kPixels * channels.padded());
    grad_planes.resize(kPixels * channels.padded());
    table.resize(kBackwardBlock * channels.padded());
    line.resize(channels.padded());
    for (Buffer<T>* buffer : {&weight, &alpha, &transmittance, &q}) buffer->resize(kBackwardBlock * kPixels);
    rows.resize(kBackwardBlock * kTile);
  }
};

// Light behind, and weighted q behind, of each pixel, while walking to the front.
template <typename T>
struct BackwardState {
  Row<T> transmittance[kTile], behind[kTile];
  RowMask<T> last[kTile];
};

// A Gaussian of the block with the records (its rows of pixels that count) it owns.
struct Slot {
  int32_t rank, place, begin, end;
};

// Reads the tile's share of the incoming gradients; returns the greatest rank that took part in it.
template <int N, typename T>
P3M_INLINE int32_t read_pixels(const Tile<T>& tile, const ChannelRows<T>& channels, const BackwardInput<T>& input,
                               BackwardScratch<T>& scratch, BackwardState<T>& state) {
  const int64_t num_blocks = channels.num_blocks();
  const int32_t width = tile.view->width, height = tile.view->height;
  T* line = scratch.line.data();
  int32_t limit = -1;
  for (int row = 0; row < kTile; ++row)
    for (int p = 0; p < kTile; ++p) {
      const bool valid = tile.y0 + row < height && tile.x0 + p < width;
      const int64_t pixel = valid ? int64_t(tile.y0 + row) * width + tile.x0 + p : 0;
      const int32_t last = valid ? input.last[pixel] : -1;
      limit = std::max(limit, last);
      state.last[row][p] = last;
      state.transmittance[row][p] = valid ? input.transmittance[pixel] : T(1);
      state.behind[row][p] = valid ? input.transmittance[pixel] * input.grad_transmittance[pixel] : T(0);
      const T* view = input.grad.view + pixel * channels.num_view;
      const T* shared = input.grad.shared + pixel * channels.num_shared;
      for (int64_t i = 0; i < channels.num_view; ++i) line[i] = valid ? view[i] : T(0);
      for (int64_t i = 0; i < channels.num_shared; ++i) line[channels.num_view + i] = valid ? shared[i] : T(0);
      for (int64_t block = 0; block < num_blocks; ++block)
        std::memcpy(scratch.grad.data() + ((row * num_blocks + block) * kTile + p) * N, line + block * N, N * sizeof(T));
    }
  for (int64_t block = 0; block < num_blocks; ++block)
    for (int row = 0; row < kTile; ++row) {
      const T* P3M_RESTRICT from = scratch.grad.data() + (row * num_blocks + block) * kTile * N;
      T* P3M_RESTRICT to = scratch.grad_planes.data() + block * N * kPixels + row * kTile;
      for (int i = 0; i < N; ++i)
        for (int p = 0; p < kTile; ++p) to[i * kPixels + p] = from[p * N + i];
    }
  return limit;
}

// Recomputes alpha and the light in front of each Gaussian of a block, back to front; returns the slots in use.
template <int N, typename T>
P3M_INLINE int weigh_block_back(const Tile<T>& tile, const ChannelRows<T>& channels, int64_t begin, int64_t end,
                                Row<T> columns, BackwardState<T>& state, BackwardScratch<T>& scratch, const T* grad_rows,
                                Slot* slots) {
  int num_slots = 0, num_records = 0;
  for (int64_t k = end; k-- > begin;) {
    prefetch_gaussian(tile, channels, k - kLookahead);
    const int32_t rank = tile.ranks[tile.places[k]];
    const Splat<T>& s = tile.view->splats[rank];
    const RowGeometry<T> geometry(s, columns);
    const int first = std::max(s.y0 - tile.y0, 0), last = std::min(s.y1 - tile.y0, kTile - 1);
    const int first_record = num_records;
    for (int row = first; row <= last; ++row) {
      const Row<T> exponent = geometry.exponent(T(tile.y0 + row) + T(0.5) - s.y);
      Row<T> alpha = s.opacity * exp_row(-exponent);
      alpha = alpha > T(kAlphaMax) ? splat_row(T(kAlphaMax)) : alpha;
      const RowMask<T> hit = (state.last[row] >= rank) & (alpha >= T(kAlphaMin)) & (exponent >= T(0));
      if (!any(hit)) continue;
      alpha = hit ? alpha : Row<T>{};
      state.transmittance[row] /= T(1) - alpha;
      store(scratch.alpha.data() + num_records * kTile, alpha);
      store(scratch.transmittance.data() + num_records * kTile, state.transmittance[row]);
      store(scratch.weight.data() + num_records * kTile, alpha * state.transmittance[row]);
      store(scratch.q.data() + num_records * kTile, Row<T>{});
      scratch.rows.data()[num_records++] = row;
    }
    if (num_records == first_record) continue;
    prefetch_row(grad_rows + tile.places[k] * (kGeometry + channels.padded()), kGeometry + channels.padded());
    gather_channels<N>(channels, tile.order[rank], scratch.line.data(), scratch.table.data(), kBackwardBlock, num_slots);
    slots[num_slots++] = {rank, tile.places[k], first_record, num_records};
  }
  return num_slots;
}

// Adds one channel block's part of q to every record of a slot.
template <int N, typename T>
P3M_INLINE void add_q(const Slot& slot, const T* P3M_RESTRICT values, const T* P3M_RESTRICT planes,
                      const int32_t* P3M_RESTRICT rows, T* P3M_RESTRICT q) {
  for (int record = slot.begin; record < slot.end; ++record) {
    const T* plane = planes + rows[record] * kTile;
    Row<T> even = load<Row<T>>(q + record * kTile), odd{};
#pragma GCC unroll 8
    for (int i = 0; i < N; i += 2) {
      even += values[i] * load<Row<T>>(plane + i * kPixels);
      odd += values[i + 1] * load<Row<T>>(plane + (i + 1) * kPixels);
    }
    store(q + record * kTile, even + odd);
  }
}

// Adds one channel block of the gradient of a slot's channels: target[N] += sum over pixels of weight * grad.
template <int N, typename T>
P3M_INLINE void add_channel_grad(const Slot& slot, const T* P3M_RESTRICT weight, const T* P3M_RESTRICT grad,
                                 int64_t row_stride, const int32_t* P3M_RESTRICT rows, T* P3M_RESTRICT target) {
  using V = typename Vector<T, N>::type;
  V acc[4] = {};
  for (int record = slot.begin; record < slot.end; ++record) {
    const T* line = grad + rows[record] * row_stride;
#pragma GCC unroll 8
    for (int p = 0; p < kTile; ++p) acc[p % 4] += weight[record * kTile + p] * load<V>(line + p * N);
  }
  store(target, load<V>(target) + ((acc[0] + acc[1]) + (acc[2] + acc[3])));
}

// Gradients of a slot's mean, conic and opacity from q, and the running sums of its pixels.
template <typename T>
P3M_INLINE void add_geometry_grad(const Tile<T>& tile, const Slot& slot, Row<T> columns, BackwardScratch<T>& scratch,
                                  BackwardState<T>& state, T* target) {
  const Splat<T>& s = tile.view->splats[slot.rank];
  const Row<T> dx = columns - s.x;
  Row<T> grad_opacity{}, h0{}, hy{}, hyy{};  // h = dL/d(exponent), and its moments in dy
  for (int record = slot.begin; record < slot.end; ++record) {
    const int row = scratch.rows.data()[record];
    const T dy = T(tile.y0 + row) + T(0.5) - s.y;
    const Row<T> alpha = load<Row<T>>(scratch.alpha.data() + record * kTile);
    const Row<T> q = load<Row<T>>(scratch.q.data() + record * kTile);
    const Row<T> weight = load<Row<T>>(scratch.weight.data() + record * kTile);
    const Row<T> front = load<Row<T>>(scratch.transmittance.data() + record * kTile);
    Row<T> slope = alpha * (front * q - state.behind[row] / (T(1) - alpha));
    slope = alpha < T(kAlphaMax) ? slope : Row<T>{};  // a clamped alpha does not move
    state.behind[row] += weight * q;
    grad_opacity += slope;
    h0 -= slope;
    hy -= slope * dy;
    hyy -= slope * (dy * dy);
  }
  const T sx = sum<T>(h0 * dx), sy = sum<T>(hy);
  target[0] -= s.a * sx + s.b * sy;
  target[1] -= s.b * sx + s.c * sy;
  target[2] += T(0.5) * sum<T>(h0 * dx * dx);
  target[3] += sum<T>(hy * dx);
  target[4] += T(0.5) * sum<T>(hyy);
  target[5] += sum<T>(grad_opacity) / s.opacity;
}

// Adds the tile's gradients to `rows` [places of the band][kGeometry + padded channels].
template <int N, typename T>
P3M_INLINE void backward_tile(const Tile<T>& tile, const ChannelRows<T>& channels, const BackwardInput<T>& input,
                              BackwardScratch<T>& scratch, T* rows) {
  const int64_t num_blocks = channels.num_blocks(), stride = kGeometry + channels.padded();
  const Row<T> columns = tile_columns<T>(tile.x0);
  BackwardState<T> state;
  std::fill_n(scratch.line.data(), channels.padded(), T(0));
  const int32_t limit = read_pixels<N>(tile, channels, input, scratch, state);
  int64_t end = tile.count;
  while (end > 0 && tile.ranks[tile.places[end - 1]] > limit) --end;
  Slot slots[kBackwardBlock];
  for (; end > 0; end = std::max<int64_t>(end - kBackwardBlock, 0)) {
    const int64_t begin = std::max<int64_t>(end - kBackwardBlock, 0);
    const int num_slots = weigh_block_back<N>(tile, channels, begin, end, columns, state, scratch, rows, slots);
    for (int64_t block = 0; block < num_blocks; ++block) {
      const T* table = scratch.table.data() + block * kBackwardBlock * N;
      for (int slot = 0; slot < num_slots; ++slot) {
        add_q<N>(slots[slot], table + slot * N, scratch.grad_planes.data() + block * N * kPixels, scratch.rows.data(),
                 scratch.q.data());
        T* target = rows + slots[slot].place * stride + kGeometry + block * N;
        add_channel_grad<N>(slots[slot], scratch.weight.data(), scratch.grad.data() + block * kTile * N,
                            num_blocks * kTile * N, scratch.rows.data(), target);
      }
    }
    for (int slot = 0; slot < num_slots; ++slot)
      add_geometry_grad(tile, slots[slot], columns, scratch, state, rows + slots[slot].place * stride);
  }
}

}  // namespace
}  // namespace pointcept3m
