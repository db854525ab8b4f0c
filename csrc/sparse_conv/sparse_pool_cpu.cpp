// Pooling over a rulebook: sum, mean and maximum of the rows that meet an output, whatever their weights would be.
// As in the convolution a block of outputs stays in the nearest caches while all kernel offsets pass over it, in order.
#include <numeric>
#include <tuple>

#include "common/pages.h"
#include "sparse_conv/pairs.h"
#include "sparse_conv/storage.h"

namespace pointcept3m {
namespace {

constexpr int64_t kBlockRows = 256;  // outputs per block
constexpr int64_t kUnitBlocks = 8;   // blocks per unit of work

template <class S>
struct Pooling {
  Pairs pairs;
  const S* from;          // [num_in, channels]
  const int32_t* arg;     // [num_in, channels], only for the gradient of the maximum
  S* out;                 // [num_out, channels]
  int32_t* out_arg;       // [num_out, channels], only for the maximum
  int32_t* out_count;     // [num_out], only for the mean
  const int32_t* row_of;  // per rank: row of out
  int64_t num_in, channels;
};

// One block on its way.
template <class S>
struct PoolMemory {
  using T = Wide<S>;
  std::unique_ptr<T[]> value, widened;
  std::unique_ptr<int32_t[]> arg;
  int32_t place[kBlockRows], count[kBlockRows];

  explicit PoolMemory(const Pooling<S>& job) : value(new T[kBlockRows * job.channels]) {
    if (job.out_arg) arg.reset(new int32_t[kBlockRows * job.channels]);
    if (!std::is_same_v<S, T>) widened.reset(new T[job.channels]);
  }
};

// A row in the type that is computed in.
template <class S>
P3M_INLINE const Wide<S>* widened(const S* row, PoolMemory<S>& memory, int64_t channels) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    return row;
  } else {
    widen_row(row, memory.widened.get(), channels);
    return memory.widened.get();
  }
}

template <class T>
P3M_INLINE void add_row(const T* P3M_RESTRICT row, T* P3M_RESTRICT sum, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) sum[c] += row[c];
}

// The first of equal values wins, and the first NaN over everything.
template <class T>
P3M_INLINE void take_larger(const T* P3M_RESTRICT row, int32_t name, T* P3M_RESTRICT best, int32_t* P3M_RESTRICT arg,
                            int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    const bool take = (row[c] > best[c]) | ((row[c] != row[c]) & (best[c] == best[c]));
    best[c] = take ? row[c] : best[c];
    arg[c] = take ? name : arg[c];
  }
}

template <class T>
P3M_INLINE void add_where_won(const T* P3M_RESTRICT row, const int32_t* P3M_RESTRICT won, int32_t name,
                              T* P3M_RESTRICT sum, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) sum[c] += won[c] == name ? row[c] : T(0);
}

template <class S>
P3M_INLINE void pool_pair(const Pooling<S>& job, PoolMemory<S>& memory, int64_t from, int32_t to, int32_t place) {
  using T = Wide<S>;
  const int64_t channels = job.channels;
  const T* row = widened(job.from + from * channels, memory, channels);
  T* value = memory.value.get() + place * channels;
  if (job.arg) return add_where_won(row, job.arg + from * channels, to, value, channels);
  const bool first = memory.count[place]++ == 0;
  if (!job.out_arg) return add_row(row, value, channels);
  int32_t* arg = memory.arg.get() + place * channels;
  if (!first) return take_larger(row, static_cast<int32_t>(from), value, arg, channels);
  for (int64_t c = 0; c < channels; ++c) value[c] = row[c], arg[c] = static_cast<int32_t>(from);
}

template <class S>
P3M_INLINE void pool_block(const Pooling<S>& job, PoolMemory<S>& memory, int64_t* cursor, int64_t begin,
                           int64_t count) {
  using T = Wide<S>;
  const int64_t channels = job.channels;
  std::memset(memory.value.get(), 0, count * channels * sizeof(T));
  for (int64_t i = 0; i < count; ++i) memory.count[i] = 0;
  if (job.out_arg)
    for (int64_t i = 0; i < count * channels; ++i) memory.arg[i] = static_cast<int32_t>(job.num_in);
  for (int64_t k = 0; k < job.pairs.volume; ++k) {
    const int64_t first = cursor[k], taken = take_pairs(job.pairs, k, cursor, begin, count, memory.place);
    for (int64_t i = 0; i < taken; ++i)
      prefetch_row(job.from + job.pairs.from[first + i] * channels, channels * sizeof(S));
    for (int64_t i = 0; i < taken; ++i)
      pool_pair(job, memory, job.pairs.from[first + i], job.pairs.to[first + i], memory.place[i]);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = job.row_of[begin + i];
    T* value = memory.value.get() + i * channels;
    if (job.out_count) {
      job.out_count[row] = memory.count[i];
      const T share = T(1) / static_cast<T>(memory.count[i] > 0 ? memory.count[i] : 1);
      for (int64_t c = 0; c < channels; ++c) value[c] *= share;
    }
    narrow_row(value, job.out + row * channels, channels);
    if (job.out_arg)
      std::memcpy(job.out_arg + row * channels, memory.arg.get() + i * channels, channels * sizeof(int32_t));
  }
}

#define P3M_POOL(S)                                                                                                   \
  P3M_KERNEL void pool(const Pooling<S>& job, PoolMemory<S>& memory, int64_t* cursor, int64_t begin, int64_t count) { \
    pool_block(job, memory, cursor, begin, count);                                                                    \
  }
P3M_POOL(float)
P3M_POOL(double)
P3M_POOL(Half)
P3M_POOL(BFloat16)
#undef P3M_POOL

template <class S>
void run_pooling(const Tensor& from, const Tensor* arg, const Pairs& pairs, const Tensor& out, const Tensor* out_arg,
                 const Tensor* out_count) {
  const auto row_of = rows_by_rank(pairs);
  ask_for_huge_pages(out.mutable_data_ptr(), out.numel() * sizeof(S));
  const Pooling<S> job{pairs,
                       static_cast<const S*>(from.const_data_ptr()),
                       arg ? arg->const_data_ptr<int32_t>() : nullptr,
                       static_cast<S*>(out.mutable_data_ptr()),
                       out_arg ? out_arg->mutable_data_ptr<int32_t>() : nullptr,
                       out_count ? out_count->mutable_data_ptr<int32_t>() : nullptr,
                       row_of.get(),
                       from.size(0),
                       from.size(1)};
  TakenPairs taken;
  constexpr int64_t unit_rows = kBlockRows * kUnitBlocks;
  share_units((pairs.num_out + unit_rows - 1) / unit_rows, [&](int64_t unit) {
    PoolMemory<S> memory(job);
    std::vector<int64_t> cursor = first_pairs(pairs, unit * unit_rows);
    const int64_t before = std::accumulate(cursor.begin(), cursor.end(), int64_t{0});
    const int64_t end = std::min(pairs.num_out, (unit + 1) * unit_rows);
    for (int64_t block = unit * unit_rows; block < end; block += kBlockRows)
      pool(job, memory, cursor.data(), block, std::min(kBlockRows, end - block));
    taken.add(std::accumulate(cursor.begin(), cursor.end(), int64_t{0}) - before);
  });
  taken.check(pairs);
}

Tensor pool_features(const Tensor& features, const Tensor& pairs, const Tensor& start, const Tensor& rank_in,
                     const Tensor& rank_out, bool reverse, const Tensor* arg, Tensor* out_arg, Tensor* out_count) {
  check_values(features, 2, "features");
  const Pairs walk = checked_pairs(pairs, start, reverse ? rank_in : rank_out, features.size(0), reverse);
  const Tensor out = torch::stable::new_empty(features, {walk.num_out, features.size(1)});
  if (out_arg) *out_arg = torch::stable::new_empty(features, {walk.num_out, features.size(1)}, ScalarType::Int);
  if (out_count) *out_count = torch::stable::new_empty(features, {walk.num_out}, ScalarType::Int);
  with_storage(features,
               [&](auto storage) { run_pooling<decltype(storage)>(features, arg, walk, out, out_arg, out_count); });
  return out;
}

Tensor sparse_pool_sum(const Tensor& features, const Tensor& pairs, const Tensor& start, const Tensor& rank_in,
                       const Tensor& rank_out, bool reverse) {
  return pool_features(features, pairs, start, rank_in, rank_out, reverse, nullptr, nullptr, nullptr);
}

// The mean, and of how many rows; both zero where an output has none.
std::tuple<Tensor, Tensor> sparse_pool_mean(const Tensor& features, const Tensor& pairs, const Tensor& start,
                                            const Tensor& rank_in, const Tensor& rank_out, bool reverse) {
  Tensor count;
  const Tensor out = pool_features(features, pairs, start, rank_in, rank_out, reverse, nullptr, nullptr, &count);
  return {out, count};
}

// The maximum and the row it stands in; zero and the number of rows where an output has none.
std::tuple<Tensor, Tensor> sparse_pool_max(const Tensor& features, const Tensor& pairs, const Tensor& start,
                                           const Tensor& rank_in, const Tensor& rank_out, bool reverse) {
  Tensor arg;
  const Tensor out = pool_features(features, pairs, start, rank_in, rank_out, reverse, nullptr, &arg, nullptr);
  return {out, arg};
}

// `reverse` is the forward's. An input row adds up the gradients of the outputs in which it won.
Tensor sparse_pool_max_backward(const Tensor& grad, const Tensor& arg, const Tensor& pairs, const Tensor& start,
                                const Tensor& rank_in, const Tensor& rank_out, bool reverse) {
  check_contiguous_cpu(arg, "arg");
  STD_TORCH_CHECK(arg.dim() == 2 && grad.dim() == 2 && arg.size(0) == grad.size(0) && arg.size(1) == grad.size(1) &&
                      arg.scalar_type() == ScalarType::Int,
                  "arg must be int32 and as large as grad");
  return pool_features(grad, pairs, start, rank_in, rank_out, !reverse, &arg, nullptr, nullptr);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("sparse_pool_sum", TORCH_BOX(&sparse_pool_sum));
  m.impl("sparse_pool_mean", TORCH_BOX(&sparse_pool_mean));
  m.impl("sparse_pool_max", TORCH_BOX(&sparse_pool_max));
  m.impl("sparse_pool_max_backward", TORCH_BOX(&sparse_pool_max_backward));
}

}  // namespace pointcept3m
