// The gradient of the weights: for each kernel offset the product grad^T features over its pairs, on tensor cores.
//
// A block takes one segment of an offset's pairs and 64 x 64 of its (output, input) channels; both rows of a pair are
// gathered by cp.async into a ring of stages, and ldmatrix turns them over on the way to registers. How long a segment
// is follows from the numbers of pairs and channels alone: enough blocks for any GPU, and partial sums that stay small.
// A second kernel adds the segments of an offset in order, so there are no atomics and the sums never vary.
#pragma once

#include "sparse_conv/fragments.cuh"
#include "sparse_conv/neighbours.cuh"

namespace pointcept3m {
namespace {

constexpr int kChannelTile = 64;
constexpr int kGradStages = 4;
constexpr int64_t kGradBlocks = 1024;
constexpr int64_t kLeastSegment = 512, kMostSegment = 16384;  // pairs

struct WeightGradient {
  const unsigned char* features;
  const unsigned char* grad;
  int feature_stride, grad_stride;      // bytes from row to row
  int feature_segments, grad_segments;  // of one row
  const int32_t* from;                  // rows of features and of grad that meet in a pair
  const int32_t* to;
  uint32_t num_features, num_grads;
  int cin, cout;
  int segment;       // pairs in a segment
  float* parts;      // [segments, cout, cin]
  int32_t* missing;  // see RowGuard
};

// A chunk has 32 pairs in halves, 16 in floats: 4 KB a side either way.
template <class T>
constexpr int kChunkPairs = 64 / static_cast<int>(sizeof(T));
constexpr int kSideBytes = 4096;

// Byte of a value in a side of the stage: rows of 64 channels, whose segments are turned by their row so that ldmatrix
// (halves: eight rows, one segment) and single reads (floats: four rows, eight channels) meet every bank once.
template <class T>
__device__ __forceinline__ int turned(int pair, int segment) {
  const int by = sizeof(T) == 2 ? pair & 7 : 2 * (pair & 3);
  return pair * kChannelTile * static_cast<int>(sizeof(T)) + (segment ^ by) * kSegment;
}

// Where this lane begins to read the fragments of channels `channel` and up, a multiple of 32.
template <class T>
__device__ __forceinline__ int lane_start(int channel) {
  const int lane = threadIdx.x % kWarp;
  if (sizeof(T) == 2) return turned<T>(lane / 16 * 8 + lane % 8, channel / 8 + lane / 8 % 2);
  return turned<T>(lane % 4, (channel + lane / 4) / 4) + lane / 4 % 4 * 4;
}

// The fragment of 16 channels x 32 bytes of pairs as A of a product, from rows [pair][channel]: the block-th 16
// channels after those of `start`, pairs from `pair` on. Channels are turned by exclusive or, so steps of 2^n channels
// are too.
template <class T>
__device__ __forceinline__ void load_turned(uint32_t (&fragment)[4], const unsigned char* side, int start, int block,
                                            int pair) {
  constexpr int size = static_cast<int>(sizeof(T));
  const unsigned char* from = side + (start ^ block * 16 * size) + pair * kChannelTile * size;
  if constexpr (size == 2) {
    load_matrices_transposed(fragment, from);
  } else {
    const unsigned char* eight_on = side + (start ^ block * 16 * size ^ 8 * size) + pair * kChannelTile * size;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      fragment[i] = *reinterpret_cast<const uint32_t*>((i % 2 ? eight_on : from) + i / 2 * 4 * kChannelTile * size);
  }
}

// What one thread copies: one segment of two rows of each side, chunk after chunk of the pairs [begin, end).
template <class T>
struct PairCopies {
  static constexpr int kSegments = kChannelTile / kPerSegment<T>, kStep = 128 / kSegments;
  static_assert(kChunkPairs<T> == 2 * kStep);

  const WeightGradient& job;
  unsigned char* shared;  // where this thread's first segment goes in the first stage
  const unsigned char *features, *grads;
  bool has_features, has_grads;  // whether rows reach that far
  int pair, end;
  int32_t source[2], target[2];  // rows that were read last, -1 for none

  __device__ __forceinline__ PairCopies(const WeightGradient& job, int begin, int end, unsigned char* stages)
      : job(job), end(end) {
    const int column = threadIdx.x % kSegments, row = threadIdx.x / kSegments;
    const int x = static_cast<int>(blockIdx.z) * kSegments + column,
              g = static_cast<int>(blockIdx.y) * kSegments + column;
    shared = stages + turned<T>(row, column);
    has_features = x < job.feature_segments, has_grads = g < job.grad_segments;
    features = job.features + (has_features ? x * kSegment : 0);
    grads = job.grad + (has_grads ? g * kSegment : 0);
    pair = begin + row;
  }

  // Reads which rows the next chunk is made of.
  __device__ __forceinline__ void read_sources() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = pair + i * kStep < end;
      const int32_t x = inside ? job.from[pair + i * kStep] : -1, g = inside ? job.to[pair + i * kStep] : -1;
      const bool exists = static_cast<uint32_t>(x) < job.num_features && static_cast<uint32_t>(g) < job.num_grads;
      if (inside && !exists) refuse_row(job.missing);
      source[i] = exists ? x : -1, target[i] = exists ? g : -1;
    }
    pair += kChunkPairs<T>;
  }

  // Starts to copy what was read.
  __device__ __forceinline__ void start(int stage) const {
    constexpr int kDown = kStep * kChannelTile * static_cast<int>(sizeof(T));
    unsigned char* to = shared + stage * 2 * kSideBytes;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool wanted = source[i] >= 0;
      const int64_t x = wanted ? source[i] : 0, g = wanted ? target[i] : 0;
      start_copy_16(to + i * kDown, features + x * job.feature_stride, wanted && has_features);
      start_copy_16(to + kSideBytes + i * kDown, grads + g * job.grad_stride, wanted && has_grads);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(128)
    multiply_pairs(const __grid_constant__ WeightGradient job, const __grid_constant__ Edges pairs,
                   const __grid_constant__ Edges segments) {
  constexpr int kPairs = kChunkPairs<T>;
  P3M_DYNAMIC_SHARED(unsigned char, stages);  // [stage][features, grad][pair][channel]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int segment = segments.start[0] + static_cast<int>(blockIdx.x), k = offset_of(segments, segment);
  const int begin = pairs.start[k] + (segment - segments.start[k]) * job.segment;
  const int end = min(pairs.start[k + 1], begin + job.segment), chunks = divide_up(end - begin, kPairs);

  PairCopies<T> copies(job, begin, end, stages);
  copies.read_sources();
#pragma unroll
  for (int stage = 0; stage < kGradStages - 1; ++stage) {
    if (stage < chunks) copies.start(stage);
    commit_copies();
    copies.read_sources();
  }

  float sums[2][4][4] = {};
  const int warp_out = warp % 2 * 32, warp_in = warp / 2 * 32;  // channels of grad and of features
  const int start_out = kSideBytes + lane_start<T>(warp_out), start_in = lane_start<T>(warp_in);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait_for_copies<kGradStages - 2>();
    __syncthreads();
    const int ahead = chunk + kGradStages - 1;
    if (ahead < chunks) copies.start(ahead % kGradStages);
    commit_copies();
    copies.read_sources();
    const unsigned char* side = stages + chunk % kGradStages * 2 * kSideBytes;
#pragma unroll
    for (int pair = 0; pair < kPairs; pair += kPairs / 2) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) load_turned<T>(a[i], side, start_out, i, pair);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        uint32_t both[4];  // as an A of 16 channels it holds two B of 8
        load_turned<T>(both, side, start_in, j / 2, pair);
        const uint32_t b[2][2] = {{both[0], both[2]}, {both[1], both[3]}};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply<T>(sums[i][j], a[i], b[0]);
          multiply<T>(sums[i][j + 1], a[i], b[1]);
        }
      }
    }
  }
  wait_for_copies<0>();

  float* part = job.parts + segment * static_cast<int64_t>(job.cout) * job.cin;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int value = 0; value < 4; ++value) {
        const int o = static_cast<int>(blockIdx.y) * kChannelTile + warp_out + 16 * i + 8 * (value / 2) + lane / 4;
        const int c = static_cast<int>(blockIdx.z) * kChannelTile + warp_in + 8 * j + 2 * (lane % 4) + value % 2;
        if (o < job.cout && c < job.cin) part[static_cast<int64_t>(o) * job.cin + c] = sums[i][j][value];
      }
}

// out[o, first + k, c] = the sum of the offset's segments.
template <class T>
__global__ void add_segments(const float* parts, const __grid_constant__ Edges segments, int cout, int volume, int cin,
                             T* out) {
  const int64_t i = global_thread(), size = static_cast<int64_t>(cout) * cin;
  const int k = static_cast<int>(blockIdx.y);
  if (i >= size) return;
  float sum = 0;
  for (int segment = segments.start[k]; segment < segments.start[k + 1]; ++segment) sum += parts[segment * size + i];
  out[(i / cin * volume + segments.first + k) * cin + i % cin] = T(sum);
}

// One block per offset and 16 x 16 channels. For float64.
template <class T>
__global__ void __launch_bounds__(256)
    multiply_pairs_plainly(const T* features, const T* grad, const int32_t* from, const int32_t* to,
                           int64_t num_features, int64_t num_grads, const __grid_constant__ Edges pairs, int cout,
                           int volume, int cin, T* out, int32_t* missing) {
  __shared__ T x[16][17], g[16][17];
  const int k = static_cast<int>(blockIdx.x), across = threadIdx.x % 16, down = threadIdx.x / 16;
  const int first_out = static_cast<int>(blockIdx.y) * 16, first_in = static_cast<int>(blockIdx.z) * 16;
  T sum = 0;
  for (int64_t begin = pairs.start[k]; begin < pairs.start[k + 1]; begin += 16) {
    const int64_t pair = begin + down;
    const bool inside = pair < pairs.start[k + 1];
    const int64_t source = inside ? from[pair] : 0, target = inside ? to[pair] : 0;
    const bool there = source >= 0 && source < num_features && target >= 0 && target < num_grads;
    if (inside && !there) refuse_row(missing);
    x[down][across] = inside && there && first_in + across < cin ? features[source * cin + first_in + across] : T(0);
    g[down][across] = inside && there && first_out + across < cout ? grad[target * cout + first_out + across] : T(0);
    __syncthreads();
#pragma unroll
    for (int p = 0; p < 16; ++p) sum += g[p][down] * x[p][across];
    __syncthreads();
  }
  const int o = first_out + down, c = first_in + across;
  if (o < cout && c < cin) out[(static_cast<int64_t>(o) * volume + pairs.first + k) * cin + c] = sum;
}

// Runs the job whose rows are padded to segments; `start` holds the edges of the offsets' pairs.
template <class T>
void run_weight_gradient(CudaWork& work, WeightGradient job, const std::vector<int64_t>& start, T* out) {
  const RowGuard guard(work);
  job.missing = guard.missing;
  const auto volume = static_cast<int64_t>(start.size()) - 1;
  const unsigned tiles_out = divide_up(job.cout, kChannelTile), tiles_in = divide_up(job.cin, kChannelTile);
  const int64_t fair = divide_up(start[volume] * tiles_out * tiles_in, kGradBlocks);
  job.segment = static_cast<int>(std::clamp(divide_up<int64_t>(fair, 64) * 64, kLeastSegment, kMostSegment));
  std::vector<int64_t> first_segment(volume + 1, 0);
  for (int64_t k = 0; k < volume; ++k)
    first_segment[k + 1] = first_segment[k] + divide_up<int64_t>(start[k + 1] - start[k], job.segment);
  const int64_t size = int64_t{job.cout} * job.cin;
  job.parts = work.scratch<float>(first_segment[volume] * size);
  for (int64_t first = 0; first < volume; first += kGroup) {
    const Edges segments = edges_of(first_segment, first);
    const dim3 grid(static_cast<unsigned>(segments.start[segments.count] - segments.start[0]), tiles_out, tiles_in);
    launch(work, multiply_pairs<T>, grid, 128, kGradStages * 2 * kSideBytes, job, edges_of(start, first), segments);
    const dim3 sum_grid(static_cast<unsigned>(divide_up<int64_t>(size, 256)), static_cast<unsigned>(segments.count));
    launch(work, add_segments<T>, sum_grid, 256, 0, job.parts, segments, job.cout, static_cast<int>(volume), job.cin,
           out);
  }
  guard.report();
}

}  // namespace
}  // namespace pointcept3m
