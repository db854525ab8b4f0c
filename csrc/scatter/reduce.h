// Sum, mean, max and min of the rows of each bin. Every output row is reduced by one thread in ascending row order,
// a few registers of channels at a time; only a very long bin is cut, always at the same rows, and put together in
// their order. No atomics, same bits every time.
#pragma once

#include <vector>

#include "common/pages.h"
#include "common/values.h"
#include "scatter/bins.h"

namespace pointcept3m {
namespace {

enum class Reduce { sum, mean, max, min };

template <class S>
struct Reduction {
  Reduce reduce;
  const S* src;
  const int32_t* first;  // bin v holds places first[v] .. last[v] - 1, and first never descends
  const int32_t* last;
  const int32_t* perm;   // the row at a place; null: the place itself
  int64_t num_bins, num_places, num_rows, channels;
  S* out;
  int32_t* arg;  // of max and min: the row that won; num_rows where a bin is empty

  P3M_INLINE int64_t row(int64_t place) const { return perm ? perm[place] : place; }
};

// Rows that one thread takes of a bin before another may take the next ones.
constexpr int64_t kPiece = 1 << 14;

template <class S>
P3M_INLINE void ask_ahead(const Reduction<S>& job, int64_t place, int64_t channel) {
  if (!job.perm || channel != 0 || place + kAhead >= job.num_places) return;
  prefetch_row(job.src + job.perm[place + kAhead] * job.channels, job.channels * sizeof(S));
}

// out[channel] = factor * the sum over places first .. last - 1. `Out` is S, or wide for a piece of a bin.
template <class S, class Out>
P3M_INLINE void sum_places(const Reduction<S>& job, int64_t first, int64_t last, Wide<S> factor, Out* out) {
  for_channel_blocks<S, 4>(job.channels, [&](int64_t c, auto lanes, auto vectors) __attribute__((always_inline)) {
    constexpr int N = lanes, NV = vectors;
    Lanes<Wide<S>, N> total[NV] = {};
    for (int64_t place = first; place < last; ++place) {
      ask_ahead(job, place, c);
      const S* row = job.src + job.row(place) * job.channels + c;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) total[v] += load_lanes<N>(row + v * N);
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store_lanes<N>(out + c + v * N, Lanes<Wide<S>, N>(total[v] * factor));
  });
}

// The extreme over places first .. last - 1 and its row. The first of equals wins; NaN wins over everything, as in
// torch. Nothing there: 0, and num_rows.
template <bool LARGEST, class S, class Out>
P3M_INLINE void extreme_places(const Reduction<S>& job, int64_t first, int64_t last, Out* out, int32_t* arg) {
  for_channel_blocks<S, 4>(job.channels, [&](int64_t c, auto lanes, auto vectors) __attribute__((always_inline)) {
    constexpr int N = lanes, NV = vectors;
    using Values = Lanes<Wide<S>, N>;
    using Rows = Lanes<WideInt<S>, N>;
    const int64_t opening = first < last ? job.row(first) : job.num_rows;
    ask_ahead(job, first, c);
    const Rows opened = Rows{} + static_cast<WideInt<S>>(opening);
    Values best[NV] = {};
    Rows winner[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      winner[v] = opened;
      if (first < last) best[v] = load_lanes<N>(job.src + opening * job.channels + c + v * N);
    }
    for (int64_t place = first + 1; place < last; ++place) {
      ask_ahead(job, place, c);
      const int64_t i = job.row(place);
      const S* row = job.src + i * job.channels + c;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const Values value = load_lanes<N>(row + v * N);
        // A NaN that is held compares with nothing and is kept; a NaN that comes is not "no better" and is taken.
        const Rows keep = (Rows)(LARGEST ? value <= best[v] : value >= best[v]) | (Rows)(best[v] != best[v]);
        best[v] = keep ? best[v] : value;
        winner[v] = keep ? winner[v] : Rows{} + static_cast<WideInt<S>>(i);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      store_lanes<N>(out + c + v * N, best[v]);
      const Lanes<int32_t, N> rows = __builtin_convertvector(winner[v], Lanes<int32_t, N>);
      std::memcpy(arg + c + v * N, &rows, sizeof(rows));
    }
  });
}

template <class S, class Out>
P3M_INLINE void reduce_places(const Reduction<S>& job, int64_t first, int64_t last, Out* out, int32_t* arg) {
  if (job.reduce == Reduce::max) extreme_places<true>(job, first, last, out, arg);
  else if (job.reduce == Reduce::min) extreme_places<false>(job, first, last, out, arg);
  else sum_places(job, first, last, Wide<S>(1), out);
}

template <class S>
P3M_INLINE void reduce_bins(const Reduction<S>& job, int64_t begin, int64_t end) {
  for (int64_t bin = begin; bin < end; ++bin) {
    const int64_t first = job.first[bin], last = job.last[bin], count = last - first, at = bin * job.channels;
    if (count > kPiece) continue;
    if (job.arg) reduce_places(job, first, last, job.out + at, job.arg + at);
    else sum_places(job, first, last, job.reduce == Reduce::mean && count ? 1 / static_cast<Wide<S>>(count) : 1,
        job.out + at);
  }
}

// One instance per type of value, as clones for instruction sets cannot be made of a template.
#define P3M_REDUCE_KERNELS(S)                                                                                   \
  P3M_KERNEL void reduce_range(const Reduction<S>& job, int64_t begin, int64_t end) { reduce_bins(job, begin, end); } \
  P3M_KERNEL void reduce_piece(const Reduction<S>& job, int64_t first, int64_t last, Wide<S>* out, int32_t* arg) {    \
    reduce_places(job, first, last, out, arg);                                                                  \
  }
P3M_REDUCE_KERNELS(float)
P3M_REDUCE_KERNELS(double)
P3M_REDUCE_KERNELS(Half)
P3M_REDUCE_KERNELS(BFloat16)
#undef P3M_REDUCE_KERNELS

template <class S>
S narrow_one(Wide<S> value) {
  S result;
  store_lanes<1>(&result, Lanes<Wide<S>, 1>{value});
  return result;
}

// A bin of more than kPiece rows: its pieces side by side, then put together in the order of their rows.
template <class S>
void reduce_long_bin(const Reduction<S>& job, int64_t bin) {
  using W = Wide<S>;
  const int64_t first = job.first[bin], last = job.last[bin], channels = job.channels;
  const int64_t pieces = (last - first + kPiece - 1) / kPiece;
  std::vector<W> values(pieces * channels);
  std::vector<int32_t> rows(job.arg ? pieces * channels : 0);
  share_units(pieces, [&](int64_t piece) {
    const int64_t begin = first + piece * kPiece;
    reduce_piece(job, begin, std::min(last, begin + kPiece), values.data() + piece * channels,
                 job.arg ? rows.data() + piece * channels : nullptr);
  });
  const W factor = job.reduce == Reduce::mean ? 1 / static_cast<W>(last - first) : 1;
  for (int64_t c = 0; c < channels; ++c) {
    W total = values[c];
    int64_t winner = 0;
    for (int64_t piece = 1; piece < pieces; ++piece) {
      const W value = values[piece * channels + c];
      if (!job.arg) total += value;
      else if (!((job.reduce == Reduce::max ? value <= total : value >= total) || total != total)) {
        total = value;
        winner = piece;
      }
    }
    job.out[bin * channels + c] = narrow_one<S>(job.arg ? total : total * factor);
    if (job.arg) job.arg[bin * channels + c] = rows[winner * channels + c];
  }
}

template <class S>
void reduce_all(const Reduction<S>& job) {
  ask_for_huge_pages(job.out, job.num_bins * job.channels * sizeof(S));
  if (job.arg) ask_for_huge_pages(job.arg, job.num_bins * job.channels * sizeof(int32_t));
  std::atomic<bool> any_long{false};
  share_bins(job.first, job.num_bins, [&](int64_t begin, int64_t end) {
    reduce_range(job, begin, end);
    int32_t longest = 0;
    for (int64_t bin = begin; bin < end; ++bin) longest = std::max(longest, job.last[bin] - job.first[bin]);
    if (longest > kPiece) any_long.store(true, std::memory_order_relaxed);
  });
  if (!any_long) return;
  for (int64_t bin = 0; bin < job.num_bins; ++bin)
    if (job.last[bin] - job.first[bin] > kPiece) reduce_long_bin(job, bin);
}

}  // namespace
}  // namespace pointcept3m
