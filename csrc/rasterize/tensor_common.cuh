// Many channels in float32, on tensor cores: what forward and backward share.
//
// Tiles are 8x8 pixels (smaller ones leave fewer zeros among the weights), two blocks of 8x4 pixels; a tile takes its
// Gaussians 32 at a time. Products are "3xTF32": each factor is split into a tf32 and the tf32 of what is left,
// a b = ah bh + ah bl + al bh, which keeps float32's accuracy (the term left out is 2^-22 of the product); one tf32
// alone would be off by 5e-4. Channels come in groups of 8, the width of one matrix instruction: first those of the
// camera's own, filled up with zeros, then the shared ones.
#pragma once

#include "common/warp_matrix.cuh"
#include "rasterize/scene.cuh"

namespace pointcept3m {
namespace {

constexpr int kTensorTile = 8, kBlocks = 2;  // blocks of pixels in a tile
constexpr int kTilePixels = kTensorTile * kTensorTile;
constexpr int kBatch = kWarp;  // Gaussians at a time: a lane each, when they are tested
constexpr int kGroup = 8;      // channels

struct Split {
  uint32_t high, low;
};

__device__ __forceinline__ Split split(float value) {
  const uint32_t high = to_tf32(value);
  return {high, to_tf32(value - __uint_as_float(high))};
}

struct SplitA {
  uint32_t high[4], low[4];
  __device__ __forceinline__ void set(int i, float value) {
    const Split s = split(value);
    high[i] = s.high;
    low[i] = s.low;
  }
};

struct SplitB {
  uint32_t high[2], low[2];
  __device__ __forceinline__ SplitB(float first, float second) {
    const Split a = split(first), b = split(second);
    high[0] = a.high;
    high[1] = b.high;
    low[0] = a.low;
    low[1] = b.low;
  }
};

// d += a b; the small terms first.
__device__ __forceinline__ void multiply_3xtf32(float (&d)[4], const SplitA& a, const SplitB& b) {
  multiply_tf32(d, a.low, b.high);
  multiply_tf32(d, a.high, b.low);
  multiply_tf32(d, a.high, b.high);
}

// How the A + D channels of a row lie in groups.
struct Groups {
  int32_t view, shared;  // channels
  __host__ __device__ int32_t of_view() const { return (view + kGroup - 1) / kGroup; }
  __host__ __device__ int32_t count() const { return of_view() + (shared + kGroup - 1) / kGroup; }
};

template <class T>
__host__ __device__ Groups groups_of(const Scene<T>& scene) {
  return {scene.num_view, scene.num_shared};
}

// Starts copying groups [first, first + count) of `num_rows` rows into table[row * stride]; zeros where a row has no
// more channels. row(i) is the ChannelRow (null: zeros); `aligned`: shared rows are of whole 16 bytes, and aligned.
template <int THREADS, class Row>
__device__ __forceinline__ void start_reading_rows(const Groups& groups, int32_t first, int32_t count, bool aligned,
                                                   int num_rows, const Row& row, float* table, int stride) {
  constexpr int kPiece = 4;  // channels
  const int pieces = count * (kGroup / kPiece);
  const int rows_on = THREADS / pieces, pieces_on = THREADS - rows_on * pieces;
  int r = threadIdx.x / pieces, piece = threadIdx.x - r * pieces;
  for (; r < num_rows; r += rows_on, piece += pieces_on) {
    if (piece >= pieces) {
      piece -= pieces;
      if (++r >= num_rows) break;
    }
    const int32_t group = first + piece / (kGroup / kPiece);
    const bool own = group < groups.of_view();
    const int32_t channel = (own ? group : group - groups.of_view()) * kGroup + piece % (kGroup / kPiece) * kPiece;
    float* to = table + r * stride + piece * kPiece;
    const auto from = row(r);
    const float* source = own ? from.view : from.shared;
    const int32_t left = source ? (own ? groups.view : groups.shared) - channel : 0;
    if (aligned && !own && left > 0) {
      start_copy_16(to, source + channel);
    } else {
#pragma unroll
      for (int k = 0; k < kPiece; ++k) to[k] = k < left ? source[channel + k] : 0.0f;
    }
  }
  commit_copies();
}

// Writes channels `channel`, + 1 of a row of `size`; `pairs`: rows and sizes are even.
__device__ __forceinline__ void put_pair(float* row, int32_t channel, int32_t size, bool pairs, float first,
                                         float second) {
  if (pairs) {
    if (channel < size) *reinterpret_cast<float2*>(row + channel) = make_float2(first, second);
  } else {
    if (channel < size) row[channel] = first;
    if (channel + 1 < size) row[channel + 1] = second;
  }
}

// A tile's Gaussians, the batch at hand and the next one.
struct Batches {
  Splat<float> splats[2][kBatch];
  int32_t ranks[2][kBatch];
};

// Reads batches ahead, one thread a Gaussian: the list is read two batches, Gaussians one batch before they are needed.
struct ReadAhead {
  int32_t rank;

  // Reads the list for the batch that begins at `start`; a count below 1 is none.
  __device__ __forceinline__ void look(const Scene<float>& scene, int32_t start, int count) {
    if (static_cast<int>(threadIdx.x) < count) rank = scene.lists.ranks[start + static_cast<int>(threadIdx.x)];
  }

  // Starts copying that batch's Gaussians to `batches`, place `to`; the caller commits, waits and synchronises.
  __device__ __forceinline__ void start(const Scene<float>& scene, int32_t camera, int count, Batches* batches,
                                        int to) const {
    const int i = threadIdx.x;
    if (i >= count) return;
    batches->ranks[to][i] = rank;
    const Splat<float>* from = scene.lists.splats + camera * scene.grid.gaussians + rank;
    const auto* source = reinterpret_cast<const float4*>(from);
    auto* target = reinterpret_cast<float4*>(&batches->splats[to][i]);
    start_copy_16(target, source);
    start_copy_16(target + 1, source + 1);
    static_assert(sizeof(Splat<float>) == 2 * sizeof(float4));
  }
};

}  // namespace
}  // namespace pointcept3m
