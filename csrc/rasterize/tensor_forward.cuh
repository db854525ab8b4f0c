// Forward with many channels: a tile's weights [64 pixels, 32 Gaussians] times its channel rows, batch after batch.
//
// A block of threads has Q warps for each of the tile's two blocks of pixels; a warp keeps the sums of its 32 pixels
// and up to 72 channels in registers (Q = 8: 576 channels, so that geometry is evaluated once up to there). While the
// channel rows of a batch are copied to shared memory, the Q warps share the work of finding the Gaussians that reach
// their block, and their alphas; one of them turns alphas into weights; then all multiply. Only Gaussians that reach
// the block enter its product.
#pragma once

#include "rasterize/tensor_common.cuh"

namespace pointcept3m {
namespace {

constexpr int kGroupsPerWarp = 9;    // 64 features, color and depth make one warp's worth
constexpr int kWeightStride = 40;    // 8 more than a multiple of 32: fragments are read without bank conflicts

template <int Q>
struct ForwardShape {
  static constexpr int kThreads = kBlocks * Q * kWarp, kGroups = Q * kGroupsPerWarp;
  static constexpr int kColumns = kGroups * kGroup;
  static constexpr int kStride = kColumns + (40 - kColumns % 32) % 32;  // as kWeightStride
  static constexpr int kSharedBytes = kBatch * kStride * 4;
};

// A pixel on its way to the back.
struct Front {
  float light;
  int32_t last;
  bool done;
};

// Turns alphas[place][pixel] of `count` places into weights, and fills up with zeros to a multiple of 8 places.
__device__ __forceinline__ void weigh(float* alphas, int count, const unsigned char* slots, const int32_t* ranks,
                                      int lane, Front* front) {
  int taken = -1;
  for (int first = 0; first < count; first += 8) {
    float alpha[8];  // read ahead of the chain of products
#pragma unroll
    for (int i = 0; i < 8; ++i) alpha[i] = first + i < count ? alphas[(first + i) * kWeightStride + lane] : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float next = front->light * (1.0f - alpha[i]);
      if (alpha[i] > 0.0f && next <= float(kTransmittanceMin)) front->done = true;
      const bool takes = alpha[i] > 0.0f && !front->done;
      alphas[(first + i) * kWeightStride + lane] = takes ? alpha[i] * front->light : 0.0f;
      front->light = takes ? next : front->light;
      taken = takes ? first + i : taken;
    }
  }
  if (taken >= 0) front->last = ranks[slots[taken]];
}

// A warp's sums: groups of channels, halves of its pixels, a fragment.
using Sums = float[kGroupsPerWarp][2][4];

// sums += weights^T rows, for the warp's groups of channels.
__device__ __forceinline__ void add_product(const float* weights, int count, const unsigned char* slots,
                                            const float* table, int stride, int num_groups, int lane, Sums& sums) {
  const int row = lane / 4, member = lane % 4;
  for (int place = 0; place < count; place += 8) {
    SplitA a[2];
    const float* w = weights + (place + member) * kWeightStride + row;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[half].set(i, w[i / 2 * 4 * kWeightStride + 16 * half + i % 2 * 8]);
    const float* first = table + slots[place + member] * stride + row;
    const float* second = table + slots[place + member + 4] * stride + row;
#pragma unroll
    for (int group = 0; group < kGroupsPerWarp; ++group) {
      if (group >= num_groups) break;
      const SplitB b(first[group * kGroup], second[group * kGroup]);
      multiply_3xtf32(sums[group][0], a[0], b);
      multiply_3xtf32(sums[group][1], a[1], b);
    }
  }
}

// Writes the warp's groups of channels of the 8x4 pixels from (x0, y0) on.
__device__ __forceinline__ void write_pixels(const Scene<float>& scene, const Images<float>& images, int32_t camera,
                                             int32_t x0, int32_t y0, int32_t first_group, int num_groups, int lane,
                                             const Sums& sums) {
  const Groups groups = groups_of(scene);
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const Pixel to = pixel_of(scene.grid, camera, x0, y0, lane / 4 + 8 * part);
    if (!to.inside) continue;
#pragma unroll
    for (int i = 0; i < kGroupsPerWarp; ++i) {
      if (i >= num_groups) break;
      const int32_t group = first_group + i;
      const bool own = group < groups.of_view();
      float* row = own ? images.view + to.index * groups.view : images.shared + to.index * groups.shared;
      const float(&d)[4] = sums[i][part / 2];
      const int32_t size = own ? groups.view : groups.shared;
      put_pair(row, (own ? group : group - groups.of_view()) * kGroup + lane % 4 * 2, size, size % 2 == 0,
               d[part % 2 * 2], d[part % 2 * 2 + 1]);
    }
  }
}

// Grid: (tiles, chunks of ForwardShape<Q>::kGroups groups). The first chunk also writes transmittance and last.
template <int Q>
__global__ void __launch_bounds__(ForwardShape<Q>::kThreads)
render_tensor(Scene<float> scene, Images<float> images, bool aligned) {
  using Shape = ForwardShape<Q>;
  P3M_DYNAMIC_SHARED(float, table);  // [kBatch, kStride]
  __shared__ Batches batches;
  __shared__ float weights[kBlocks][kBatch * kWeightStride];  // first alphas
  __shared__ unsigned char slots[kBlocks][kBatch];            // of a place among the Gaussians that reach the block
  __shared__ bool alive[kBlocks];
  const int lane = threadIdx.x % kWarp, block = threadIdx.x / kWarp / Q, turn = threadIdx.x / kWarp % Q;
  const TileView view = view_of(scene.grid, blockIdx.x);
  const int32_t y0 = view.y0 + block * kBlockHeight;
  const Pixel pixel = pixel_of(scene.grid, view.camera, view.x0, y0, lane);
  const float x = pixel.x + 0.5f, y = pixel.y + 0.5f, block_x = view.x0 + 0.5f, block_y = y0 + 0.5f;
  const Groups groups = groups_of(scene);
  const int32_t first_group = blockIdx.y * Shape::kGroups;
  const int32_t in_chunk = min(groups.count() - first_group, Shape::kGroups);
  const int per_warp = divide_up(in_chunk, Q);  // <= kGroupsPerWarp
  const int own_first = turn * per_warp, own_groups = max(min(in_chunk - own_first, per_warp), 0);

  Sums sums = {};
  Front front{1.0f, -1, !pixel.inside};
  bool block_alive = true;
  const int32_t end = scene.lists.starts[blockIdx.x + 1];
  int32_t start = scene.lists.starts[blockIdx.x];
  ReadAhead ahead{};
  ahead.look(scene, start, end - start);
  ahead.start(scene, view.camera, min(end - start, kBatch), &batches, 0);
  ahead.look(scene, start + kBatch, end - start - kBatch);
  commit_copies();
  wait_for_copies<0>();
  for (int now = 0; start < end; start += kBatch, now ^= 1) {
    const int count = min(end - start, kBatch);
    const Splat<float>* splats = batches.splats[now];
    __syncthreads();
    start_reading_rows<Shape::kThreads>(groups, first_group, in_chunk, aligned, count, [&](int i) {
      return channel_row(scene, view.camera, splats[i].gaussian);
    }, table, Shape::kStride);
    ahead.start(scene, view.camera, min(end - start - kBatch, kBatch), &batches, now ^ 1);
    ahead.look(scene, start + 2 * kBatch, end - start - 2 * kBatch);
    commit_copies();
    const unsigned near = __ballot_sync(
        kAllLanes, block_alive && lane < count && touches(splats[lane], block_x, block_y));
    const int num_near = __popc(near);
    if (turn == 0) {
      // Places past the end take weight 0 of any Gaussian that is there.
      slots[block][lane] = near ? __ffs(near) - 1 : 0;
      __syncwarp();
      if (near >> lane & 1) slots[block][__popc(near & ((1u << lane) - 1))] = lane;
    }
    int place = 0;
    for (unsigned rest = near; rest; rest &= rest - 1, ++place) {
      if (place % Q != turn) continue;
      const Sample<float> at = sample(splats[__ffs(rest) - 1], x, y);
      weights[block][place * kWeightStride + lane] = at.counts ? at.alpha : 0.0f;
    }
    wait_for_copies<0>();
    __syncthreads();
    if (turn == 0) {
      weigh(weights[block], num_near, slots[block], batches.ranks[now], lane, &front);
      const bool any = __any_sync(kAllLanes, !front.done);
      if (lane == 0) alive[block] = any;
    }
    __syncthreads();
    add_product(weights[block], num_near, slots[block], table + own_first * kGroup, Shape::kStride, own_groups, lane,
                sums);
    block_alive = alive[block];
    if (!alive[0] && !alive[1]) break;
  }

  if (turn == 0 && blockIdx.y == 0 && pixel.inside) {
    images.transmittance[pixel.index] = front.light;
    images.last[pixel.index] = front.last;
  }
  write_pixels(scene, images, view.camera, view.x0, y0, first_group + own_first, own_groups, lane, sums);
}

}  // namespace
}  // namespace pointcept3m
