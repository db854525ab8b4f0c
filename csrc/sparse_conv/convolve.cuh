// Convolution by output-stationary implicit matrix products on tensor cores.
//
// A block owns 128 outputs x BN channels, its sums stay in registers, and it is done with them when it ends: no
// atomics, one order of sums. The reduction runs over (offsets that any of the block's outputs meets a row at) x (input
// channels), cut into chunks of 64 bytes a row. A chunk is made of 16-byte segments, and each segment may come from
// another offset, so that few input channels (the 6 of a stem) fill a chunk as well as many. Segments travel by
// cp.async through a ring of four stages; the index of a row is read one chunk before its row, to keep two latencies
// apart. Rows that are not there are zeros that cost no traffic. Shared rows are swizzled: neither copies nor ldmatrix
// conflict.
//
// 4 warps of 32 x 64 sums (8 for 128 channels) use 48 KB (64 KB) of shared memory: four (three) blocks on an SM of
// sm_90, which hide each other's barriers. Where outputs are too few to fill a GPU, several blocks share a tile's
// reduction and a second kernel adds their sums in order.
#pragma once

#include "sparse_conv/fragments.cuh"
#include "sparse_conv/neighbours.cuh"

namespace pointcept3m {
namespace {

constexpr int kTileRows = 128;
constexpr int kStages = 4;
constexpr int kChunk = 4;               // segments of a row in a chunk
constexpr int64_t kWantedBlocks = 512;  // about what an H200 runs at once
constexpr int64_t kMostSplits = 16;

struct Convolution {
  Neighbours neighbours;
  const unsigned char* features;
  const unsigned char* weight;
  int feature_stride;     // bytes from row to row, and of the weights from offset to offset
  int64_t weight_stride;  // bytes from output channel to output channel
  int segments;           // of one row of features
  int columns;            // output channels
  void* out;              // [rows, columns]
  float* parts;           // [splits, rows, columns] if there are several splits
};

// Byte of a segment in a tile of 64-byte rows. Both eight rows in line and the eight that a warp's `weight_at` names
// are spread over all banks. 16 rows on it is 1024 bytes more; two segments on, the bit of 32 is turned.
constexpr int kRowBytes = kChunk * kSegment;

__device__ __forceinline__ int swizzled(int row, int segment) {
  return row * kRowBytes + (segment ^ (((row >> 1) ^ (row >> 3 & 1)) & 3)) * kSegment;
}

template <int BN>
constexpr int kConvThreads = BN > 64 ? 256 : 128;

template <int BN>
constexpr int kStageBytes = (kTileRows + BN) * kRowBytes;

// Writes the offsets at which any output of the tile meets a row to `active`, ascending; their number to `count`.
// `masks` are those of the tile's outputs, with all bits set where the outputs' own are not known.
template <int THREADS>
__device__ __forceinline__ void find_active(const Neighbours& near, const int32_t* places, const uint32_t* masks,
                                            int32_t* active, int32_t* count) {
  const int lane = threadIdx.x % kWarp;
  if (near.masks) {
    if (threadIdx.x < kWarp) {
      uint32_t all = masks[lane];
#pragma unroll
      for (int i = kWarp; i < kTileRows; i += kWarp) all |= masks[lane + i];
      all = __reduce_or_sync(kAllLanes, all);
      if (all >> lane & 1) active[__popc(all & ((1u << lane) - 1))] = lane;
      if (lane == 0) *count = __popc(all);
    }
    __syncthreads();
    return;
  }
  // A warp reads one output's row of the table after the other.
  for (int k = threadIdx.x; k < near.volume; k += THREADS) {
    bool met = false;
#pragma unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const int32_t place = places[i], row = near.table[static_cast<int64_t>(max(place, 0)) * near.volume + k];
      met |= (place >= 0) & (row >= 0);
    }
    active[k] = met;
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {
    int32_t found = 0;
    for (int first = 0; first < near.volume; first += kWarp) {
      const int k = first + lane;
      const bool met = k < near.volume && active[k];
      const unsigned votes = __ballot_sync(kAllLanes, met);
      if (met) active[found + __popc(votes & ((1u << lane) - 1))] = k;
      found += __popc(votes);
      __syncwarp();
    }
    if (lane == 0) *count = found;
  }
  __syncthreads();
}

// What one thread copies: segment `thread % 4` of every kStep-th row of both tiles, chunk after chunk.
template <int BN>
struct TileCopies {
  static constexpr int kStep = kConvThreads<BN> / kChunk, kRows = kTileRows / kStep, kWeights = BN / kStep;
  static_assert(BN % kStep == 0);

  const Convolution& job;
  const int32_t* active;
  unsigned char* shared;        // where this thread's first segment goes in the first stage
  const unsigned char* weight;  // of its first output channel
  int channel, num_active;
  int step, rest;   // by which (at, segment) move from chunk to chunk
  int at, segment;  // place of the next chunk's offset among the active ones, and segment of its rows
  int table_row[kRows];
  uint32_t mask[kRows];
  int32_t source[kRows];  // rows that were read last, -1 for none,
  int offset, byte;       // with their offset, or -1, and the byte of the segment

  __device__ __forceinline__ TileCopies(const Convolution& job, const int32_t* places, const uint32_t* masks,
                                        const int32_t* active, int num_active, unsigned char* stages, int first)
      : job(job), active(active), num_active(num_active) {
    const int row = threadIdx.x / kChunk, first_segment = first * kChunk + threadIdx.x % kChunk;
    shared = stages + swizzled(row, threadIdx.x % kChunk);
    channel = static_cast<int>(blockIdx.y) * BN + row;
    weight = job.weight + channel * job.weight_stride;
    step = kChunk / job.segments, rest = kChunk % job.segments;
    at = first_segment / job.segments, segment = first_segment % job.segments;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      table_row[i] = places[row + i * kStep] * job.neighbours.volume;
      mask[i] = masks[row + i * kStep];
    }
  }

  // Reads which rows the next chunk is made of; none if it is not `wanted`.
  __device__ __forceinline__ void read_sources(bool wanted) {
    const bool inside = wanted && at < num_active;
    offset = inside ? active[at] : -1;
    byte = segment * kSegment;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      source[i] = inside && (mask[i] >> (offset & 31) & 1) ? job.neighbours.table[table_row[i] + offset] : -1;
    at += step, segment += rest;
    if (segment >= job.segments) segment -= job.segments, ++at;
  }

  // Starts to copy what was read.
  __device__ __forceinline__ void start(int stage) const {
    unsigned char* to = shared + stage * kStageBytes<BN>;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool wanted = source[i] >= 0;
      const int64_t row = wanted ? source[i] : 0;
      start_copy_16(to + i * kStep * kRowBytes, job.features + row * job.feature_stride + byte, wanted);
    }
    const unsigned char* slice = weight + static_cast<int64_t>(offset) * job.feature_stride + byte;
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      const bool wanted = offset >= 0 && channel + i * kStep < job.columns;
      const unsigned char* from = wanted ? slice + i * (kStep * job.weight_stride) : job.weight;
      start_copy_16(to + (kTileRows + i * kStep) * kRowBytes, from, wanted);
    }
  }
};

// Columns of a tile that one warp sums, for 32 rows.
template <int BN>
constexpr int kWarpColumns = BN < 64 ? BN : 64;

// sums += one chunk's product. sums[i][j] are 16 rows x 8 columns.
template <class T, int BLOCKS>
__device__ __forceinline__ void multiply_chunk(const unsigned char* tile, int row_at, int weight_at,
                                               float (&sums)[2][BLOCKS][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const unsigned char* rows = tile + (row_at ^ half * 2 * kSegment);
    const unsigned char* weights = tile + (weight_at ^ half * 2 * kSegment);
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) load_matrices(a[i], rows + 16 * i * kRowBytes);
#pragma unroll
    for (int j = 0; j < BLOCKS; j += 2) {
      uint32_t both[4];
      load_matrices(both, weights + 8 * j * kRowBytes);
      const uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        multiply<T>(sums[i][j], a[i], b[0]);
        multiply<T>(sums[i][j + 1], a[i], b[1]);
      }
    }
  }
}

// sums[i][j][2 r + c] belongs to row lane / 4 + 8 r of block i, column 4 (lane % 4) + 2 (j % 2) + c of pair j / 2.
template <class Out, int BLOCKS>
__device__ __forceinline__ void store_sums(const Convolution& job, const int32_t* places, int column,
                                           const float (&sums)[2][BLOCKS][4], Out* out) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t place = places[16 * i + 8 * r + lane / 4];
      const int32_t row = place < 0 ? -1 : job.neighbours.rows_at[place] - 1;
      if (row < 0) continue;
#pragma unroll
      for (int j = 0; j < BLOCKS; j += 2) {
        const int c = column + 8 * j + 4 * (lane % 4);
        const float (&left)[4] = sums[i][j], (&right)[4] = sums[i][j + 1];
        const float values[4] = {left[2 * r], left[2 * r + 1], right[2 * r], right[2 * r + 1]};
        store_four(out + static_cast<int64_t>(row) * job.columns + c, values, job.columns - c, job.columns % 4 == 0);
      }
    }
}

template <class T, int BN>
__global__ void __launch_bounds__(kConvThreads<BN>) convolve(const __grid_constant__ Convolution job) {
  P3M_DYNAMIC_SHARED(unsigned char, stages);
  auto* active = reinterpret_cast<int32_t*>(stages + kStages * kStageBytes<BN>);  // [volume]
  __shared__ int32_t places[kTileRows];
  __shared__ uint32_t masks[kTileRows];
  __shared__ int32_t num_active;

  const Neighbours& near = job.neighbours;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (threadIdx.x < kTileRows) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kTileRows + threadIdx.x;
    const int32_t place = at < near.rows ? near.order[at] : -1;
    places[threadIdx.x] = place;
    masks[threadIdx.x] = place < 0 ? 0 : near.masks ? near.masks[place] : ~0u;
  }
  __syncthreads();
  find_active<kConvThreads<BN>>(near, places, masks, active, &num_active);
  const int chunks = divide_up(num_active * job.segments, kChunk);
  const int first = static_cast<int>(static_cast<int64_t>(chunks) * blockIdx.z / gridDim.z);
  const int last = static_cast<int>(static_cast<int64_t>(chunks) * (blockIdx.z + 1) / gridDim.z);

  TileCopies<BN> copies(job, places, masks, active, num_active, stages, first);
  copies.read_sources(first < last);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (first + stage < last) copies.start(stage);
    commit_copies();
    copies.read_sources(first + stage + 1 < last);
  }

  float sums[2][kWarpColumns<BN> / 8][4] = {};
  const int warp_row = warp % 4 * 32, warp_column = warp / 4 * kWarpColumns<BN>;
  // Where a lane's row of ldmatrix begins. Columns are dealt so that a thread's sums of two blocks of 8 are four
  // neighbours: block j of a pair holds columns 4 m + 2 j and 4 m + 2 j + 1.
  const int row_at = swizzled(warp_row + lane % 16, lane / 16);
  const int weight_at =
      kTileRows * kRowBytes + swizzled(warp_column + lane % 8 / 2 * 4 + lane / 16 * 2 + lane % 2, lane / 8 % 2);
  for (int chunk = first; chunk < last; ++chunk) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    const int ahead = chunk + kStages - 1;
    if (ahead < last) copies.start((ahead - first) % kStages);
    commit_copies();
    copies.read_sources(ahead + 1 < last);
    multiply_chunk<T>(stages + (chunk - first) % kStages * kStageBytes<BN>, row_at, weight_at, sums);
  }
  wait_for_copies<0>();

  const int column = static_cast<int>(blockIdx.y) * BN + warp_column;
  if (gridDim.z == 1) store_sums(job, places + warp_row, column, sums, static_cast<T*>(job.out));
  else store_sums(job, places + warp_row, column, sums, job.parts + blockIdx.z * near.rows * job.columns);
}

// out[i] = the sum over splits of parts[split][i].
template <class T>
__global__ void add_parts(const float* parts, int64_t size, int splits, T* out) {
  const int64_t i = global_thread();
  if (i >= size) return;
  float sum = 0;
  for (int split = 0; split < splits; ++split) sum += parts[split * size + i];
  out[i] = T(sum);
}

// One thread per output value, its weights at any strides (in values). For float64.
template <class T>
__global__ void convolve_plainly(const Neighbours near, const T* features, const T* weight, int64_t channel_stride,
                                 int64_t offset_stride, int64_t depth_stride, int depth, int columns, T* out) {
  const int64_t thread = global_thread();
  if (thread >= near.rows * columns) return;
  const int64_t place = thread / columns, column = thread % columns;
  const int64_t out_row = near.rows_at[place] - 1;
  T sum = 0;
  near.visit(place, [&](int k, int64_t source) {
    const T* row = features + source * depth;
    const T* slice = weight + column * channel_stride + k * offset_stride;
    for (int d = 0; d < depth; ++d) sum += row[d] * slice[d * depth_stride];
  });
  if (out_row >= 0) out[out_row * columns + column] = sum;
}

// Into how many parts a tile's reduction of `chunks` chunks is cut.
int64_t count_splits(int64_t tiles, int64_t chunks) {
  if (tiles >= kWantedBlocks / 2) return 1;
  return std::clamp<int64_t>(std::min(kWantedBlocks / tiles, chunks / 16), 1, kMostSplits);
}

// features [*, depth] and weight [columns, volume, depth], rows padded to segments; out [rows, columns].
template <class T, int BN>
void run_convolution(CudaWork& work, Convolution job) {
  const int64_t rows = job.neighbours.rows, tiles = divide_up<int64_t>(rows, kTileRows),
                panels = divide_up(job.columns, BN);
  const int64_t splits =
      count_splits(tiles * panels, divide_up<int64_t>(int64_t{job.neighbours.volume} * job.segments, kChunk));
  const int64_t size = rows * job.columns;
  job.parts = splits > 1 ? work.scratch<float>(splits * size) : nullptr;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(panels), static_cast<unsigned>(splits));
  const size_t shared = kStages * kStageBytes<BN> + job.neighbours.volume * sizeof(int32_t);
  launch(work, convolve<T, BN>, grid, kConvThreads<BN>, shared, job);
  if (splits > 1)
    launch(work, add_parts<T>, blocks_for(size, 256), 256, 0, job.parts, size, static_cast<int>(splits),
           static_cast<T*>(job.out));
}

template <class T>
void run_convolution(CudaWork& work, const Convolution& job) {
  if (job.columns <= 32) return run_convolution<T, 32>(work, job);
  if (job.columns <= 64) return run_convolution<T, 64>(work, job);
  run_convolution<T, 128>(work, job);
}

}  // namespace
}  // namespace pointcept3m
