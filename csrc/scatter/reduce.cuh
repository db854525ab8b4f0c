// Sum, mean, max and min over the rows of each bin on the GPU. As many threads as a row has 16-byte parts, at most a
// warp, take one bin: reads of a row coalesce, nothing is exchanged, and a register holds a channel, wide, from the
// first row to the last. Four rows are in flight per thread, as the loads of a short bin are all latency.
//
// A bin of more than kPiece rows is left to a second launch, which spreads its pieces over the whole machine, and a
// third, which puts them together in their order; both find nothing to do where no bin is long. Which pieces come first
// in memory depends on timing, what is in them and how they are added does not: same bits every time, without a float
// atomic.
#pragma once

#include "scatter/groups.cuh"

namespace pointcept3m {
namespace {

enum class Reduce { sum, mean, max, min };

constexpr int kPiece = 256;
constexpr int kSlices = kThreads / kWarp;

template <class S>
struct Reduction {
  Reduce reduce;
  Groups groups;
  int64_t channels;
  int lanes;
  const S* src;
  S* out;
  int32_t* arg;  // of max and min: the row that won; groups.num_rows where a bin is empty
};

// The bins that are cut, and their pieces.
template <class W>
struct Pieces {
  int32_t* counts;     // how many pieces, how many bins
  int32_t* bin_of;     // of a piece
  int32_t* number_of;  // of a piece within its bin
  int32_t* bins;
  int32_t* first_of;   // a bin's first piece
  W* values;           // [pieces, channels]
  int32_t* rows;       // [pieces, channels], of max and min
};

template <class S, int VEC>
struct alignas(sizeof(S) * VEC) Pack {
  S values[VEC];
};

// Whether `value` replaces `best`: the first of equals stays, and NaN beats everything, as in torch.
template <class W>
__device__ __forceinline__ bool wins(W value, W best, bool largest) {
  return !(largest ? value <= best : value >= best) && best == best;
}

// Channels c .. c + VEC - 1 of the places first .. last - 1. `winner` becomes the row, or num_rows without any.
template <bool EXTREME, int VEC, class S>
__device__ __forceinline__ void reduce_places(const Reduction<S>& job, int64_t first, int64_t last, int64_t c,
    Wide<S> (&value)[VEC],
                                              int32_t (&winner)[VEC]) {
  constexpr int kRows = 4;
  const bool largest = job.reduce == Reduce::max;
#pragma unroll
  for (int v = 0; v < VEC; ++v) {
    value[v] = 0;
    winner[v] = static_cast<int32_t>(job.groups.num_rows);
  }
  for (int64_t place = first; place < last; place += kRows) {
    Pack<S, VEC> packs[kRows];
    int32_t rows[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = place + r < last ? place + r : last - 1;
      rows[r] = job.groups.perm ? job.groups.perm[at] : static_cast<int32_t>(at);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) packs[r] = *reinterpret_cast<const Pack<S,
        VEC>*>(job.src + rows[r] * job.channels + c);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (place + r >= last) break;
#pragma unroll
      for (int v = 0; v < VEC; ++v) {
        const Wide<S> next = static_cast<Wide<S>>(packs[r].values[v]);
        if (!EXTREME) {
          value[v] += next;
        } else if (place + r == first || wins(next, value[v], largest)) {
          value[v] = next;
          winner[v] = rows[r];
        }
      }
    }
  }
}

template <bool EXTREME, int VEC, class S>
__global__ void reduce_bins(Reduction<S> job, Pieces<Wide<S>> pieces) {
  const int64_t bin = global_thread() / job.lanes;
  const int lane = threadIdx.x % job.lanes;
  if (bin >= job.groups.count) return;
  const int64_t first = job.groups.first[bin], last = job.groups.last[bin];
  if (last - first > kPiece) {
    if (lane != 0) return;
    const int number = static_cast<int>(divide_up<int64_t>(last - first, kPiece));
    const int base = atomicAdd(pieces.counts, number), slot = atomicAdd(pieces.counts + 1, 1);
    pieces.bins[slot] = static_cast<int32_t>(bin);
    pieces.first_of[slot] = base;
    for (int i = 0; i < number; ++i) {
      pieces.bin_of[base + i] = static_cast<int32_t>(bin);
      pieces.number_of[base + i] = i;
    }
    return;
  }
  for (int64_t c = lane * VEC; c < job.channels; c += job.lanes * VEC) {
    Wide<S> value[VEC];
    int32_t winner[VEC];
    reduce_places<EXTREME, VEC>(job, first, last, c, value, winner);
    const Wide<S> divisor = job.reduce == Reduce::mean && last > first ? static_cast<Wide<S>>(last - first) : 1;
    Pack<S, VEC> pack;
    Pack<int32_t, VEC <= 4 ? VEC : 4> rows[VEC <= 4 ? 1 : VEC / 4];
#pragma unroll
    for (int v = 0; v < VEC; ++v) {
      pack.values[v] = static_cast<S>(value[v] / divisor);
      rows[v / 4].values[v % 4] = winner[v];
    }
    *reinterpret_cast<Pack<S, VEC>*>(job.out + bin * job.channels + c) = pack;
    if (EXTREME) {
      using Four = std::remove_reference_t<decltype(rows[0])>;
#pragma unroll
      for (int v = 0; v < VEC; v += 4) *reinterpret_cast<Four*>(job.arg + bin * job.channels + c + v) = rows[v / 4];
    }
  }
}

template <bool EXTREME, int VEC, class S>
__global__ void reduce_pieces(Reduction<S> job, Pieces<Wide<S>> pieces) {
  const int64_t piece = global_thread() / job.lanes;
  const int lane = threadIdx.x % job.lanes;
  if (piece >= pieces.counts[0]) return;
  const int32_t bin = pieces.bin_of[piece];
  const int64_t first = job.groups.first[bin] + int64_t{pieces.number_of[piece]} * kPiece;
  const int64_t end = job.groups.last[bin], last = first + kPiece < end ? first + kPiece : end;
  for (int64_t c = lane * VEC; c < job.channels; c += job.lanes * VEC) {
    Wide<S> value[VEC];
    int32_t winner[VEC];
    reduce_places<EXTREME, VEC>(job, first, last, c, value, winner);
#pragma unroll
    for (int v = 0; v < VEC; ++v) {
      pieces.values[piece * job.channels + c + v] = value[v];
      if (EXTREME) pieces.rows[piece * job.channels + c + v] = winner[v];
    }
  }
}

// A block takes one bin: a warp reads 32 channels of a slice of its pieces, then the slices are put together in order.
template <bool EXTREME, class S>
__global__ void join_pieces(Reduction<S> job, Pieces<Wide<S>> pieces) {
  __shared__ Wide<S> values[kThreads];
  __shared__ int32_t rows[kThreads];
  const int slot = blockIdx.x, lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  if (slot >= pieces.counts[1]) return;
  const bool largest = job.reduce == Reduce::max;
  const int32_t bin = pieces.bins[slot];
  const int64_t base = pieces.first_of[slot], count = job.groups.last[bin] - job.groups.first[bin];
  const int64_t number = divide_up<int64_t>(count, kPiece);
  for (int64_t start = 0; start < job.channels; start += kWarp) {
    const int64_t c = start + lane;
    Wide<S> value = 0;
    int32_t row = -1;
    for (int64_t i = number * slice / kSlices; c < job.channels && i < number * (slice + 1) / kSlices; ++i) {
      const int64_t at = (base + i) * job.channels + c;
      if (!EXTREME) {
        value += pieces.values[at];
      } else if (row < 0 || wins(pieces.values[at], value, largest)) {
        value = pieces.values[at];
        row = pieces.rows[at];
      }
    }
    values[threadIdx.x] = value;
    rows[threadIdx.x] = row;
    __syncthreads();
    if (slice == 0 && c < job.channels) {
      for (int other = 1; other < kSlices; ++other) {
        const Wide<S> next = values[other * kWarp + lane];
        const int32_t next_row = rows[other * kWarp + lane];
        if (!EXTREME) {
          value += next;
        } else if (next_row >= 0 && (row < 0 || wins(next, value, largest))) {
          value = next;
          row = next_row;
        }
      }
      job.out[bin * job.channels + c] = static_cast<S>(job.reduce == Reduce::mean ?
          value / static_cast<Wide<S>>(count) : value);
      if (EXTREME) job.arg[bin * job.channels + c] = row;
    }
    __syncthreads();
  }
}

template <bool EXTREME, int VEC, class S>
void launch_reduction(CudaWork& work, Reduction<S> job) {
  using W = Wide<S>;
  const int64_t channels = job.channels, most_bins = job.groups.num_rows / kPiece, most_pieces = 2 * most_bins;
  job.lanes = lanes_for(divide_up<int64_t>(channels, VEC));
  const Pieces<W> pieces{work.zeroed_scratch<int32_t>(2), work.scratch<int32_t>(most_pieces),
      work.scratch<int32_t>(most_pieces),
                         work.scratch<int32_t>(most_bins), work.scratch<int32_t>(most_bins),
                             work.scratch<W>(most_pieces * channels),
                         work.scratch<int32_t>(EXTREME ? most_pieces * channels : 0)};
  launch(work, reduce_bins<EXTREME, VEC, S>, blocks_for(job.groups.count * job.lanes, kThreads), kThreads, 0, job,
      pieces);
  launch(work, reduce_pieces<EXTREME, VEC, S>, blocks_for(most_pieces * job.lanes, kThreads), kThreads, 0, job, pieces);
  launch(work, join_pieces<EXTREME, S>, blocks_for(most_bins, 1), kThreads, 0, job, pieces);
}

// src [rows, channels] by `groups` into out and, for max and min, arg.
inline void reduce_groups(CudaWork& work, Reduce reduce, const Groups& groups, const Tensor& src, int64_t channels,
    const Tensor& out,
                          const Tensor* arg) {
  if (groups.count == 0 || channels == 0) return;
  with_value_type(src, [&](auto value) {
    using S = decltype(value);
    constexpr int kFull = 16 / sizeof(S);
    const Reduction<S> job{reduce, groups, channels, 1, static_cast<const S*>(src.data_ptr()),
        static_cast<S*>(out.data_ptr()),
                           arg ? arg->mutable_data_ptr<int32_t>() : nullptr};
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(job.src) | reinterpret_cast<uintptr_t>(job.out);
    const bool whole = channels % kFull == 0 && addresses % 16 == 0;
    if (arg) whole ? launch_reduction<true, kFull>(work, job) : launch_reduction<true, 1>(work, job);
    else whole ? launch_reduction<false, kFull>(work, job) : launch_reduction<false, 1>(work, job);
  });
}

}  // namespace
}  // namespace pointcept3m
