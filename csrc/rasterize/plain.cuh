// Tiles of 16x16 pixels, a pixel a thread: for few channels, and for float64.
//
// A warp has a block of 8x4 pixels. Its 32 lanes first test 32 Gaussians of the tile's list against the block, exactly,
// so that it evaluates only those that reach it (on small Gaussians a few of the 32, where a warp that takes every
// Gaussian of the tile evaluates them all). Channels and Gaussians of a batch are read from shared memory. More than N
// channels take N at a time, which computes the weights anew: float32 has tensor.cuh for that.
#pragma once

#include "rasterize/scene.cuh"

namespace pointcept3m {
namespace {

constexpr int kPlainTile = 16, kPlainThreads = 256, kPlainWarps = kPlainThreads / kWarp;

// The first pixel of the calling warp's block.
__device__ __forceinline__ void block_start(const TileView& view, int warp, int32_t* x0, int32_t* y0) {
  *x0 = view.x0 + warp % 2 * kBlockWidth;
  *y0 = view.y0 + warp / 2 * kBlockHeight;
}

// Grid: (tiles, chunks of N channels). The first chunk also writes transmittance and last.
template <class T, int N>
__global__ void __launch_bounds__(kPlainThreads) render_plain(Scene<T> scene, Images<T> images) {
  __shared__ Splat<T> splats[kPlainThreads];
  alignas(16) __shared__ T values[kPlainThreads][N];
  __shared__ int32_t ranks[kPlainThreads];
  const int lane = threadIdx.x % kWarp;
  const TileView view = view_of(scene.grid, blockIdx.x);
  int32_t x0, y0;
  block_start(view, threadIdx.x / kWarp, &x0, &y0);
  const Pixel pixel = pixel_of(scene.grid, view.camera, x0, y0, lane);
  const T x = T(pixel.x) + T(0.5), y = T(pixel.y) + T(0.5), block_x = T(x0) + T(0.5), block_y = T(y0) + T(0.5);
  const int64_t camera_start = view.camera * scene.grid.gaussians;
  const int32_t first_channel = static_cast<int32_t>(blockIdx.y) * N;
  const int32_t num_channels = min(scene.channels() - first_channel, N);

  T light = T(1), sums[N] = {};
  int32_t last = -1;
  bool done = !pixel.inside;
  const int32_t end = scene.lists.starts[blockIdx.x + 1];
  for (int32_t begin = scene.lists.starts[blockIdx.x]; begin < end; begin += kPlainThreads) {
    if (__syncthreads_and(done)) break;
    const int count = min(end - begin, kPlainThreads);
    if (static_cast<int>(threadIdx.x) < count) {
      const int32_t rank = scene.lists.ranks[begin + threadIdx.x];
      const Splat<T> splat = scene.lists.splats[camera_start + rank];
      splats[threadIdx.x] = splat;
      ranks[threadIdx.x] = rank;
      const auto row = channel_row(scene, view.camera, splat.gaussian);
#pragma unroll
      for (int i = 0; i < N; ++i) values[threadIdx.x][i] = i < num_channels ? row[first_channel + i] : T(0);
    }
    __syncthreads();
    for (int start = 0; start < count; start += kWarp) {
      if (__all_sync(kAllLanes, done)) break;
      unsigned near = __ballot_sync(kAllLanes, start + lane < count && touches(splats[start + lane], block_x, block_y));
      for (; near; near &= near - 1) {
        const int slot = start + __ffs(near) - 1;
        const Sample<T> at = sample(splats[slot], x, y);
        const T next = light * (T(1) - at.alpha);
        if (done || !at.counts) continue;
        if (next <= T(kTransmittanceMin)) {
          done = true;
          continue;
        }
        const T weight = at.alpha * light;
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] += weight * values[slot][i];
        light = next;
        last = ranks[slot];
      }
    }
  }
  if (!pixel.inside) return;
  T* const view_out = images.view + pixel.index * scene.num_view;
  T* const shared_out = images.shared + pixel.index * scene.num_shared;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int32_t channel = first_channel + i;
    if (channel < scene.num_view) view_out[channel] = sums[i];
    else if (channel < scene.channels()) shared_out[channel - scene.num_view] = sums[i];
  }
  if (blockIdx.y == 0) {
    images.transmittance[pixel.index] = light;
    images.last[pixel.index] = last;
  }
}

// A batch's sums, kept apart for each warp and added up in the order of warps: the same bits in every run.
template <class T, int N, int BATCH>
struct WarpSums {
  T values[kPlainWarps][BATCH][kMoments + N];
  unsigned hits[kPlainWarps][BATCH / kWarp];  // which of them there are

  // Rows of entries [start, start + count): moments if wanted, and channels from `first_channel` on.
  __device__ __forceinline__ void write(const Rows<T>& rows, int32_t start, int count, bool moments,
                                        int32_t first_channel, int32_t num_channels) const {
    for (int i = threadIdx.x; i < count * (kMoments + N); i += kPlainThreads) {
      const int slot = i / (kMoments + N), column = i % (kMoments + N);
      if (column < kMoments ? !moments : column - kMoments >= num_channels) continue;
      T sum = T(0);
      bool any = false;
      for (int warp = 0; warp < kPlainWarps; ++warp) {
        if (!(hits[warp][slot / kWarp] >> slot % kWarp & 1)) continue;
        sum += values[warp][slot][column];
        any = true;
      }
      if (!any) continue;
      const int64_t row = start - rows.first + slot;
      const int32_t to = column < kMoments ? rows.moments() + column : rows.column(first_channel + column - kMoments);
      rows.at(row)[to] = sum;
      if (column == 0) rows.used[row] = 1;
    }
  }
};

// Grid: (tiles from `first_tile` on, chunks of N channels). The first chunk has the moments, and for them alone sums
// over all channels; the others need only weights.
template <class T, int N, int BATCH>
__global__ void __launch_bounds__(kPlainThreads, sizeof(T) == 4 && N == 4 ? 4 : 2)
grad_plain(Scene<T> scene, Above<T> above, int64_t first_tile, Rows<T> rows) {
  __shared__ Splat<T> splats[BATCH];
  alignas(16) __shared__ T values[BATCH][N];
  __shared__ int32_t ranks[BATCH], limit;
  __shared__ WarpSums<T, N, BATCH> sums;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t tile = first_tile + blockIdx.x;
  const TileView view = view_of(scene.grid, tile);
  int32_t x0, y0;
  block_start(view, warp, &x0, &y0);
  const Pixel pixel = pixel_of(scene.grid, view.camera, x0, y0, lane);
  const T x = T(pixel.x) + T(0.5), y = T(pixel.y) + T(0.5), block_x = T(x0) + T(0.5), block_y = T(y0) + T(0.5);
  const int64_t camera_start = view.camera * scene.grid.gaussians;
  const int32_t first_channel = static_cast<int32_t>(blockIdx.y) * N;
  const int32_t num_channels = min(scene.channels() - first_channel, N);
  const bool wants_moments = blockIdx.y == 0;
  const auto gradient = gradient_row(scene, above, pixel.inside ? pixel.index : 0);
  T grad[N];
#pragma unroll
  for (int i = 0; i < N; ++i) grad[i] = pixel.inside && i < num_channels ? gradient[first_channel + i] : T(0);
  Walk<T> walk = begin_walk(above, pixel);
  const int32_t warp_limit = greatest_last(walk.last, &limit);

  const int32_t begin = scene.lists.starts[tile];
  int32_t end = end_of_ranks(scene.lists.ranks, begin, scene.lists.starts[tile + 1], limit);
  for (; end > begin; end = max(end - BATCH, begin)) {
    const int32_t start = max(end - BATCH, begin);
    const int count = end - start;
    if (static_cast<int>(threadIdx.x) < count) {
      const int32_t rank = scene.lists.ranks[start + threadIdx.x];
      const Splat<T> splat = scene.lists.splats[camera_start + rank];
      splats[threadIdx.x] = splat;
      ranks[threadIdx.x] = rank;
      const auto row = channel_row(scene, view.camera, splat.gaussian);
#pragma unroll
      for (int i = 0; i < N; ++i) values[threadIdx.x][i] = i < num_channels ? row[first_channel + i] : T(0);
    }
    __syncthreads();
    for (int word = BATCH / kWarp - 1; word >= 0; --word) {
      const int mine = word * kWarp + lane;
      unsigned near = __ballot_sync(
          kAllLanes, mine < count && ranks[mine] <= warp_limit && touches(splats[mine], block_x, block_y));
      unsigned hit = 0;
      while (near) {
        const int bit = 31 - __clz(near), slot = word * kWarp + bit;
        near &= ~(1u << bit);
        const Sample<T> at = sample(splats[slot], x, y);
        const bool counts = at.counts && ranks[slot] <= walk.last;
        if (!__any_sync(kAllLanes, counts)) continue;
        hit |= 1u << bit;
        T own[kMoments + N] = {};
        if (counts) {
          T q = T(0);
#pragma unroll
          for (int i = 0; i < N; ++i) q += grad[i] * values[slot][i];
          if (wants_moments && scene.channels() > N) {
            const auto row = channel_row(scene, view.camera, splats[slot].gaussian);
            for (int32_t i = N; i < scene.channels(); ++i) q += gradient[i] * row[i];
          }
          step_back(at, q, &walk, own);
          const T weight = at.alpha * walk.light;
#pragma unroll
          for (int i = 0; i < N; ++i) own[kMoments + i] = weight * grad[i];
        }
        int which;
        const T sum = sum_warp(own, lane, &which);
        if (which >= 0) sums.values[warp][slot][which] = sum;
      }
      if (lane == 0) sums.hits[warp][word] = hit;
    }
    __syncthreads();
    sums.write(rows, start, count, wants_moments, first_channel, num_channels);
  }
}

}  // namespace
}  // namespace pointcept3m
