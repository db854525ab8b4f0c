// Backward with many channels: the gradient rows of a tile's Gaussians, from the back to the front.
//
// For each batch of 32 Gaussians weights are recomputed once, then channels pass by in chunks of at most 136, each
// giving its part of q = channels . gradient (pixels x Gaussians) and its columns of the gradient rows,
// weights . gradient (Gaussians x channels), both products of matrices; at the end q gives the moments. With up to 136
// channels the incoming gradient of the tile stays in shared memory throughout.
#pragma once

#include "rasterize/tensor_common.cuh"

namespace pointcept3m {
namespace {

constexpr int kGradWarps = 4, kGradThreads = kGradWarps * kWarp;  // two warps for each block of pixels
constexpr int kMostGradGroups = 17;
constexpr int kPixelStride = kTilePixels + 8;  // of weights: fragments are read without bank conflicts

// Floats between rows of channels in shared memory: an odd multiple of 4, for the same reason.
__host__ __device__ constexpr int grad_stride(int groups) { return groups * kGroup + 4; }
constexpr int grad_shared_bytes(int groups) { return (kTilePixels + kBatch) * grad_stride(groups) * 4; }

// q [16 pixels, 32 Gaussians] += gradient [16, channels] channels^T; Gaussians without a bit in `hits` may be left out.
__device__ __forceinline__ void add_q(const float* gradient, const float* table, int stride, int num_groups,
                                      unsigned hits, int lane, float (&q)[4][4]) {
  const int row = lane / 4, member = lane % 4;
  for (int group = 0; group < num_groups; ++group) {
    SplitA a;
    const float* g = gradient + row * stride + group * kGroup + member;
#pragma unroll
    for (int i = 0; i < 4; ++i) a.set(i, g[i % 2 * 8 * stride + i / 2 * 4]);
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      if (!(hits >> 8 * part & 0xff)) continue;
      const float* f = table + (8 * part + row) * stride + group * kGroup + member;
      multiply_3xtf32(q[part], a, SplitB(f[0], f[4]));
    }
  }
}

// d[i] [32 Gaussians, 8 channels] = weights [32, 64 pixels] gradient [64, 8], for the groups at columns[i].
// The pixels of a step stand in the order 0 2 4 6 1 3 5 7, so that weights are read in pairs.
__device__ __forceinline__ void channel_gradients(const float* weights, const float* gradient, int stride,
                                                  const unsigned (&hits)[kBlocks], const int (&columns)[2], int lane,
                                                  float (&d)[2][2][4]) {
  const int row = lane / 4, member = lane % 4;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    if (!hits[block]) continue;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int pixel = block * kWarp + step * 8 + 2 * member;
      SplitA a[2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto w = *reinterpret_cast<const float2*>(weights + (row + 8 * i) * kPixelStride + pixel);
        a[i / 2].set(i % 2, w.x);
        a[i / 2].set(i % 2 + 2, w.y);
      }
      const float* g = gradient + pixel * stride + row;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const SplitB b(g[columns[i]], g[stride + columns[i]]);
        if (hits[block] & 0xffffu) multiply_3xtf32(d[i][0], a[0], b);
        if (hits[block] >> 16) multiply_3xtf32(d[i][1], a[1], b);
      }
    }
  }
}

// Columns of a chunk's channels in the rows of the batch's Gaussians that have a bit in `hits`.
__device__ __forceinline__ void write_channels(const Groups& groups, int32_t first_group, int num_groups,
                                               const float* weights, const float* gradient, int stride,
                                               const unsigned (&hits)[kBlocks], const Rows<float>& rows,
                                               int64_t first_row, int warp, int lane) {
  const bool pairs = groups.shared % 2 == 0;
  for (int group = warp; group < num_groups; group += 2 * kGradWarps) {
    const int pair[2] = {group, min(group + kGradWarps, num_groups - 1)};
    const int columns[2] = {pair[0] * kGroup, pair[1] * kGroup};
    float d[2][2][4] = {};
    channel_gradients(weights, gradient, stride, hits, columns, lane, d);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i == 1 && group + kGradWarps >= num_groups) continue;
      const int32_t at = first_group + pair[i];
      const bool own = at < groups.of_view();
      const int32_t channel = (own ? at : at - groups.of_view()) * kGroup + lane % 4 * 2;
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int slot = lane / 4 + 8 * part;
        if (!((hits[0] | hits[1]) >> slot & 1)) continue;
        float* row = rows.at(first_row + slot) + (own ? groups.shared : 0);
        const float(&values)[4] = d[i][part / 2];
        put_pair(row, channel, own ? groups.view : groups.shared, pairs && !own, values[part % 2 * 2],
                 values[part % 2 * 2 + 1]);
      }
    }
  }
}

// Which slots of the batch count at any pixel of the calling warp's block; each of its two warps writes the weights of
// every other slot.
__device__ __forceinline__ unsigned weigh_back(const float* alphas, float* weights, int count, unsigned near, int turn,
                                               int pixel, float light) {
  unsigned hits = 0;
  for (int slot = count - 1; slot >= 0; --slot) {
    float weight = 0.0f;
    if (near >> slot & 1) {
      const float alpha = alphas[slot * kPixelStride + pixel];
      if (__any_sync(kAllLanes, alpha > 0.0f)) hits |= 1u << slot;
      if (alpha > 0.0f) {
        light *= reciprocal(1.0f - alpha);
        weight = alpha * light;
      }
    }
    if (slot % 2 == turn) weights[slot * kPixelStride + pixel] = weight;
  }
  return hits;
}

// q [16 pixels from `pixel` on, 32 Gaussians] from fragments to shared memory.
__device__ __forceinline__ void write_q(const float (&q)[4][4], float* to, int pixel, int lane) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int slot = i / 4 * 8 + lane % 4 * 2 + i % 2;
    to[slot * kPixelStride + pixel + lane / 4 + i % 4 / 2 * 8] = q[i / 4][i % 4];
  }
}

// The batch's moments, of each block of pixels, where it has a bit in `hits`.
struct BatchMoments {
  float values[kBlocks][kBatch][kMoments];
  unsigned hits[kBlocks];

  __device__ __forceinline__ void write(const Rows<float>& rows, int64_t first_row, int count) const {
    for (int i = threadIdx.x; i < count * kMoments; i += kGradThreads) {
      const int slot = i / kMoments, column = i % kMoments;
      const bool in_first = hits[0] >> slot & 1, in_second = hits[1] >> slot & 1;
      if (!in_first && !in_second) continue;
      rows.at(first_row + slot)[rows.moments() + column] =
          (in_first ? values[0][slot][column] : 0.0f) + (in_second ? values[1][slot][column] : 0.0f);
      if (column == 0) rows.used[first_row + slot] = 1;
    }
  }
};

// Whether `shared` rows of channels and of gradients can be copied 16 bytes at a time.
struct Alignment {
  bool channels, gradient;
};

// Grid: tiles from `first_tile` on. Channels pass in chunks of `chunk_groups` groups.
__global__ void __launch_bounds__(kGradThreads) grad_tensor(Scene<float> scene, Above<float> above, int64_t first_tile,
                                                            Rows<float> rows, int32_t chunk_groups, Alignment aligned) {
  P3M_DYNAMIC_SHARED(float, gradient);  // [64 pixels, stride], then channels [32 Gaussians, stride]
  __shared__ Batches batches;
  __shared__ float alphas[kBatch * kPixelStride];
  alignas(8) __shared__ float weights[kBatch * kPixelStride];  // later q
  __shared__ BatchMoments moments;
  __shared__ int32_t limit;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, block = warp / 2, turn = warp % 2;
  const int in_tile = block * kWarp + lane;  // the pixel
  const int stride = grad_stride(chunk_groups);
  float* const table = gradient + kTilePixels * stride;
  const int64_t tile = first_tile + blockIdx.x;
  const TileView view = view_of(scene.grid, tile);
  const int32_t y0 = view.y0 + block * kBlockHeight;
  const Pixel pixel = pixel_of(scene.grid, view.camera, view.x0, y0, lane);
  const float x = pixel.x + 0.5f, y = pixel.y + 0.5f, block_x = view.x0 + 0.5f, block_y = y0 + 0.5f;
  const Groups groups = groups_of(scene);
  const int32_t num_chunks = divide_up(groups.count(), chunk_groups);
  Walk<float> walk = begin_walk(above, pixel);
  const int32_t block_limit = greatest_last(walk.last, &limit);

  const auto read_gradient = [&](int32_t first_group, int32_t count) {
    start_reading_rows<kGradThreads>(groups, first_group, count, aligned.gradient, kTilePixels, [&](int i) {
      const Pixel of = pixel_of(scene.grid, view.camera, view.x0, view.y0 + i / kWarp * kBlockHeight, i % kWarp);
      return of.inside ? gradient_row(scene, above, of.index) : ChannelRow<float>{nullptr, nullptr, 0};
    }, gradient, stride);
  };
  const int32_t begin = scene.lists.starts[tile];
  const int32_t end = end_of_ranks(scene.lists.ranks, begin, scene.lists.starts[tile + 1], limit);
  // Batch i ends 32 i entries before `end`, and begins there or at the head of the list.
  const auto start_of = [&](int i) { return max(end - (i + 1) * kBatch, begin); };
  const auto count_of = [&](int i) { return end - i * kBatch - start_of(i); };
  const int num_batches = divide_up(end - begin, kBatch);
  ReadAhead ahead{};
  ahead.look(scene, start_of(0), count_of(0));
  ahead.start(scene, view.camera, count_of(0), &batches, 0);
  ahead.look(scene, start_of(1), count_of(1));
  commit_copies();
  wait_for_copies<0>();
  for (int i = 0; i < num_batches; ++i) {
    const int32_t start = start_of(i);
    const int count = count_of(i);
    const int64_t first_row = start - rows.first;
    const Splat<float>* splats = batches.splats[i % 2];
    const int32_t* ranks = batches.ranks[i % 2];
    __syncthreads();
    const auto read_chunk = [&](int32_t chunk) {
      const int32_t first_group = chunk * chunk_groups, in_chunk = min(groups.count() - first_group, chunk_groups);
      if (i == 0 || num_chunks > 1) read_gradient(first_group, in_chunk);
      start_reading_rows<kGradThreads>(groups, first_group, in_chunk, aligned.channels, count, [&](int slot) {
        return channel_row(scene, view.camera, splats[slot].gaussian);
      }, table, stride);
    };
    read_chunk(0);
    ahead.start(scene, view.camera, count_of(i + 1), &batches, (i + 1) % 2);
    ahead.look(scene, start_of(i + 2), count_of(i + 2));
    commit_copies();
    const unsigned near = __ballot_sync(kAllLanes, lane < count && ranks[lane] <= block_limit &&
                                                       touches(splats[lane], block_x, block_y));
    for (unsigned rest = near & (turn ? 0xaaaaaaaau : 0x55555555u); rest; rest &= rest - 1) {
      const int slot = __ffs(rest) - 1;
      const Sample<float> at = sample(splats[slot], x, y);
      alphas[slot * kPixelStride + in_tile] = at.counts && ranks[slot] <= walk.last ? at.alpha : 0.0f;
    }
    __syncthreads();
    const unsigned own_hits = weigh_back(alphas, weights, count, near, turn, in_tile, walk.light);
    if (turn == 0 && lane == 0) moments.hits[block] = own_hits;

    float q[4][4] = {};
    for (int32_t chunk = 0; chunk < num_chunks; ++chunk) {
      if (chunk > 0) {
        __syncthreads();
        read_chunk(chunk);
      }
      wait_for_copies<0>();
      __syncthreads();
      const int32_t first_group = chunk * chunk_groups, in_chunk = min(groups.count() - first_group, chunk_groups);
      add_q(gradient + (block * kWarp + turn * 16) * stride, table, stride, in_chunk, own_hits, lane, q);
      const unsigned hits[kBlocks] = {moments.hits[0], moments.hits[1]};
      write_channels(groups, first_group, in_chunk, weights, gradient, stride, hits, rows, first_row, warp, lane);
    }
    __syncthreads();
    write_q(q, weights, block * kWarp + turn * 16, lane);
    __syncthreads();
    for (unsigned rest = own_hits; rest;) {
      const int slot = 31 - __clz(rest);
      rest &= ~(1u << slot);
      const float alpha = alphas[slot * kPixelStride + in_tile];
      float own[kMoments] = {};
      if (alpha > 0.0f) {
        const Sample<float> at{x - splats[slot].x, y - splats[slot].y, alpha, true};
        step_back(at, weights[slot * kPixelStride + in_tile], &walk, own);
      }
      if (slot % 2 != turn) continue;
      int which;
      const float sum = sum_warp(own, lane, &which);
      if (which >= 0) moments.values[block][slot][which] = sum;
    }
    __syncthreads();
    moments.write(rows, first_row, count);
  }
}

}  // namespace
}  // namespace pointcept3m
