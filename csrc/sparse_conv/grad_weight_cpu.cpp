// The gradient of sparse convolution towards its weight: for each offset the sum, over its pairs, of the outer product
// of the two rows. Outputs are cut into ranges in cell order, and each range has sums of its own: within a block of
// outputs the rows stay in the nearest caches while all offsets pass over them. The ranges are then added in order.
#include "common/pages.h"
#include "sparse_conv/gemm.h"
#include "sparse_conv/pairs.h"

namespace pointcept3m {
namespace {

constexpr int64_t kBlockRows = 256;              // outputs per block
constexpr int64_t kChunkPairs = 64;              // pairs whose rows are used together
constexpr int64_t kMaxRanges = 16;               // more would mean more to add up
constexpr int64_t kMinRange = 4096;              // outputs in a range
constexpr int64_t kMaxBytes = int64_t{1} << 26;  // of all the sums
constexpr int kRows = 8;                         // of the gradient, in a register block

template <class S>
struct WeightGradient {
  using T = Wide<S>;
  Pairs pairs;
  const S* features;  // [num_in, cin]
  const S* grad;      // [num_out, cout]
  int64_t cin, cout;
  bool wide;

  int64_t ld_features() const { return round_up(cin, VectorOf<T>::lanes); }
  int64_t ld_grad() const { return round_up(cout, kRows); }
  int64_t size() const { return ld_features() * ld_grad(); }  // of one offset's sums
};

// The pairs of two offsets, as rows are asked for one offset ahead of their use, and room for padded rows.
template <class S>
struct PairMemory {
  using T = Wide<S>;
  int32_t place[kBlockRows];
  const S* source[2][kBlockRows];
  const S* target[2][kBlockRows];
  std::unique_ptr<T[]> padded_source,
      padded_target;  // absent where rows are used as they stand; zero beyond the channels

  explicit PairMemory(const WeightGradient<S>& job) {
    constexpr bool same = std::is_same_v<S, T>;
    if (!same || job.ld_features() != job.cin) padded_source.reset(new T[kChunkPairs * job.ld_features()]());
    if (!same || job.ld_grad() != job.cout) padded_target.reset(new T[kChunkPairs * job.ld_grad()]());
  }
};

template <class S>
P3M_INLINE int64_t find_pairs(const WeightGradient<S>& job, PairMemory<S>& memory, int64_t k, int64_t* cursor,
                              int64_t begin, int64_t count) {
  const int64_t first = cursor[k], taken = take_pairs(job.pairs, k, cursor, begin, count, memory.place);
  for (int64_t i = 0; i < taken; ++i) {
    const S* source = job.features + job.pairs.from[first + i] * job.cin;
    const S* target = job.grad + job.pairs.to[first + i] * job.cout;
    prefetch_row(source, job.cin * sizeof(S));
    prefetch_row(target, job.cout * sizeof(S));
    memory.source[k % 2][i] = source;
    memory.target[k % 2][i] = target;
  }
  return taken;
}

// The rows themselves, or padded copies of them.
template <class S>
P3M_INLINE void line_up(const S* const* rows, int64_t count, int64_t width, int64_t ld, Wide<S>* padded,
                        const Wide<S>** lined) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<S, Wide<S>>) {
      lined[i] = rows[i];
      if (!padded) continue;
    }
    widen_row(rows[i], padded + i * ld, width);
    lined[i] = padded + i * ld;
  }
}

template <class S>
P3M_INLINE void add_pairs(const WeightGradient<S>& job, PairMemory<S>& memory, int64_t slot, int64_t count,
                          Wide<S>* sum) {
  using T = Wide<S>;
  constexpr int64_t lanes = VectorOf<T>::lanes;
  const int64_t ld = job.ld_features(), ld_grad = job.ld_grad();
  const T* x[kChunkPairs];
  const T* g[kChunkPairs];
  for (int64_t begin = 0; begin < count; begin += kChunkPairs) {
    const int64_t some = begin + kChunkPairs < count ? kChunkPairs : count - begin;
    line_up(memory.source[slot] + begin, some, job.cin, ld, memory.padded_source.get(), x);
    line_up(memory.target[slot] + begin, some, job.cout, ld_grad, memory.padded_target.get(), g);
    for (int64_t o = 0; o < ld_grad; o += kRows) {
      int64_t c = 0;
      for (; job.wide && c + 2 * lanes <= ld; c += 2 * lanes) multiply_outer<T, kRows, 2>(g, x, some, o, c, sum, ld);
      for (; job.wide && c < ld; c += lanes) multiply_outer<T, kRows, 1>(g, x, some, o, c, sum, ld);
      for (; c < ld; c += lanes) {
        multiply_outer<T, kRows / 2, 1>(g, x, some, o, c, sum, ld);
        multiply_outer<T, kRows / 2, 1>(g, x, some, o + kRows / 2, c, sum, ld);
      }
    }
  }
}

// Adds what the outputs of ranks [begin, end) contribute to the offsets [first, last). sum: [volume, ld_grad,
// ld_features].
template <class S>
P3M_INLINE void add_range(const WeightGradient<S>& job, PairMemory<S>& memory, int64_t* cursor, int64_t begin,
                          int64_t end, int64_t first, int64_t last, Wide<S>* sum) {
  for (int64_t block = begin; block < end; block += kBlockRows) {
    const int64_t count = block + kBlockRows < end ? kBlockRows : end - block;
    int64_t taken = find_pairs(job, memory, first, cursor, block, count);
    for (int64_t k = first; k < last; ++k) {
      const int64_t next = k + 1 < last ? find_pairs(job, memory, k + 1, cursor, block, count) : 0;
      if (taken) add_pairs(job, memory, k % 2, taken, sum + k * job.size());
      taken = next;
    }
  }
}

#define P3M_ADD_RANGE(S)                                                                                   \
  P3M_KERNEL void add(const WeightGradient<S>& job, PairMemory<S>& memory, int64_t* cursor, int64_t begin, \
                      int64_t end, int64_t first, int64_t last, Wide<S>* sum) {                            \
    add_range(job, memory, cursor, begin, end, first, last, sum);                                          \
  }
P3M_ADD_RANGE(float)
P3M_ADD_RANGE(double)
P3M_ADD_RANGE(Half)
P3M_ADD_RANGE(BFloat16)
#undef P3M_ADD_RANGE

template <class S>
Tensor run_weight_gradient(const Tensor& features, const Tensor& grad, const Pairs& pairs) {
  using T = Wide<S>;
  const int64_t cin = features.size(1), cout = grad.size(1), volume = pairs.volume;
  const Tensor out = torch::stable::new_empty(features, {cout, volume, cin});
  if (out.numel() == 0) return out;
  const WeightGradient<S> job{pairs,
                              static_cast<const S*>(features.const_data_ptr()),
                              static_cast<const S*>(grad.const_data_ptr()),
                              cin,
                              cout,
                              wide_registers()};
  const int64_t size = job.size(), bytes = volume * size * static_cast<int64_t>(sizeof(T));
  // The number of ranges shows in the result's last bits and must not depend on threads; that of groups does not show.
  const int64_t ranges = std::clamp<int64_t>(std::min(kMaxBytes / bytes, pairs.num_out / kMinRange), 1, kMaxRanges);
  const int64_t groups = std::clamp<int64_t>(4 * torch::stable::get_num_threads() / ranges, 1, volume);
  const auto range_begin = [&](int64_t range) { return pairs.num_out * range / ranges; };
  const auto group_begin = [&](int64_t group) { return volume * group / groups; };
  std::unique_ptr<T[]> sums(new T[ranges * volume * size]);
  ask_for_huge_pages(sums.get(), ranges * bytes);
  TakenPairs taken;
  share_units(ranges * groups, [&](int64_t unit) {
    const int64_t range = unit / groups, first = group_begin(unit % groups), last = group_begin(unit % groups + 1);
    T* sum = sums.get() + range * volume * size;
    std::fill(sum + first * size, sum + last * size, T(0));
    PairMemory<S> memory(job);
    std::vector<int64_t> cursor = first_pairs(pairs, range_begin(range));
    const int64_t before = std::accumulate(cursor.begin(), cursor.end(), int64_t{0});
    add(job, memory, cursor.data(), range_begin(range), range_begin(range + 1), first, last, sum);
    taken.add(std::accumulate(cursor.begin(), cursor.end(), int64_t{0}) - before);
  });
  taken.check(pairs);
  S* to = static_cast<S*>(out.mutable_data_ptr());
  share_units(volume, [&](int64_t k) {
    std::vector<T> row(cin);
    for (int64_t o = 0; o < cout; ++o) {
      std::fill(row.begin(), row.end(), T(0));
      for (int64_t range = 0; range < ranges; ++range) {
        const T* part = sums.get() + (range * volume + k) * size + o * job.ld_features();
        for (int64_t c = 0; c < cin; ++c) row[c] += part[c];
      }
      narrow_row(row.data(), to + (o * volume + k) * cin, cin);
    }
  });
  return out;
}

Tensor sparse_conv_grad_weight(const Tensor& features, const Tensor& grad, const Tensor& pairs, const Tensor& start,
                               const Tensor& rank_in, const Tensor& rank_out, bool reverse) {
  check_values(features, 2, "features");
  check_values(grad, 2, "grad");
  STD_TORCH_CHECK(features.scalar_type() == grad.scalar_type(), "features and grad must have one dtype");
  const Pairs walk = checked_pairs(pairs, start, reverse ? rank_in : rank_out, features.size(0), reverse);
  STD_TORCH_CHECK(grad.size(0) == walk.num_out, "grad must have one row per output");
  return with_storage(features,
                      [&](auto storage) { return run_weight_gradient<decltype(storage)>(features, grad, walk); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("sparse_conv_grad_weight", TORCH_BOX(&sparse_conv_grad_weight));
}

}  // namespace pointcept3m
