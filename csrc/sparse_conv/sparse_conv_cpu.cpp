// Sparse convolution over a rulebook. Output-stationary: the sums of a block of outputs stay in the nearest caches
// while all kernel offsets pass over them, each as a small product of the rows that meet there with that offset's
// weights; then they are written once. One thread owns a block, offsets come in order, so there are no atomics and
// the result never varies.
#include "common/pages.h"
#include "sparse_conv/gemm.h"
#include "sparse_conv/pairs.h"

namespace pointcept3m {
namespace {

// Outputs per block. Every block reads all weights: where they do not fit the caches it must be worth it.
constexpr int64_t kSmallBlock = 256, kBlockRows = 1024;
constexpr int64_t kManyWeights = 1 << 22;  // bytes
constexpr int64_t kUnitRows = 2048;        // outputs per unit of work
constexpr int64_t kWidenedRows = 64;  // rows of sixteen-bit features widened at a time

template <class S>
struct Convolution {
  using T = Wide<S>;
  Pairs pairs;
  const S* features;      // [num_in, depth]
  const T* weight;        // packed
  S* out;                 // [num_out, columns]
  const int32_t* row_of;  // per rank: row of out
  int64_t depth, columns;
  bool wide;

  int64_t ld() const { return round_up(columns, VectorOf<T>::lanes); }
  int64_t packed() const { return round_up(columns, kPanel<T>) * depth; }  // per offset
};

// What one block needs: its sums, and the pairs of two offsets, as rows are asked for one offset ahead of their use.
template <class S>
struct BlockMemory {
  using T = Wide<S>;
  std::unique_ptr<T[]> sum, widened;
  int32_t place[2][kBlockRows];
  const S* source[2][kBlockRows];

  BlockMemory(const Convolution<S>& job, int64_t block_rows) : sum(new T[block_rows * job.ld()]) {
    if (!std::is_same_v<S, T>) widened.reset(new T[kWidenedRows * job.depth]);
  }
};

// Adds the products of `count` rows with one offset's weights to the rows c.
template <class T, int MR>
P3M_INLINE void multiply_panel(const T* const* a, T* const* c, int64_t count, const T* panel, int64_t depth,
                               int64_t column, int64_t columns, bool wide) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  const bool second = column + lanes < columns;
  if (second && wide) return multiply_all_rows<T, MR, 2>(a, c, count, column, panel, depth);
  multiply_all_rows<T, MR, 1>(a, c, count, column, panel, depth);
  if (second) multiply_all_rows<T, MR, 1>(a, c, count, column + lanes, panel + lanes, depth);
}

template <class S>
P3M_INLINE void multiply_pairs(const Convolution<S>& job, BlockMemory<S>& memory, int64_t k, int64_t count) {
  using T = Wide<S>;
  const int64_t ld = job.ld();
  const T* weight = job.weight + k * job.packed();
  const T* a[kBlockRows];
  T* c[kBlockRows];
  constexpr int64_t step = std::is_same_v<S, T> ? kBlockRows : kWidenedRows;
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t some = begin + step < count ? step : count - begin;
    for (int64_t i = 0; i < some; ++i) {
      c[i] = memory.sum.get() + memory.place[k % 2][begin + i] * ld;
      if constexpr (std::is_same_v<S, T>) {
        a[i] = memory.source[k % 2][begin + i];
      } else {
        T* row = memory.widened.get() + i * job.depth;
        widen_row(memory.source[k % 2][begin + i], row, job.depth);
        a[i] = row;
      }
    }
    for (int64_t column = 0; column < job.columns; column += kPanel<T>) {
      const T* panel = weight + column * job.depth;
      if (job.wide) multiply_panel<T, kWideRows>(a, c, some, panel, job.depth, column, job.columns, true);
      else multiply_panel<T, kNarrowRows>(a, c, some, panel, job.depth, column, job.columns, false);
    }
  }
}

template <class S>
P3M_INLINE int64_t find_pairs(const Convolution<S>& job, BlockMemory<S>& memory, int64_t k, int64_t* cursor,
                              int64_t begin, int64_t count) {
  if (k == job.pairs.volume) return 0;
  const int64_t first = cursor[k], taken = take_pairs(job.pairs, k, cursor, begin, count, memory.place[k % 2]);
  for (int64_t i = 0; i < taken; ++i) {
    const S* row = job.features + job.pairs.from[first + i] * job.depth;
    memory.source[k % 2][i] = row;
    prefetch_row(row, job.depth * sizeof(S));
  }
  return taken;
}

template <class S>
P3M_INLINE void convolve_block(const Convolution<S>& job, BlockMemory<S>& memory, int64_t* cursor, int64_t begin,
                               int64_t count) {
  const int64_t ld = job.ld();
  std::memset(memory.sum.get(), 0, count * ld * sizeof(Wide<S>));
  int64_t taken = find_pairs(job, memory, 0, cursor, begin, count);
  for (int64_t k = 0; k < job.pairs.volume; ++k) {
    const int64_t next = find_pairs(job, memory, k + 1, cursor, begin, count);
    if (taken) multiply_pairs(job, memory, k, taken);
    taken = next;
  }
  for (int64_t i = 0; i < count; ++i)
    narrow_row(memory.sum.get() + i * ld, job.out + job.row_of[begin + i] * job.columns, job.columns);
}

#define P3M_CONVOLVE(S)                                                                                       \
  P3M_KERNEL void convolve(const Convolution<S>& job, BlockMemory<S>& memory, int64_t* cursor, int64_t begin, \
                           int64_t count) {                                                                   \
    convolve_block(job, memory, cursor, begin, count);                                                        \
  }
P3M_CONVOLVE(float)
P3M_CONVOLVE(double)
P3M_CONVOLVE(Half)
P3M_CONVOLVE(BFloat16)
#undef P3M_CONVOLVE

// weight [cout, volume, cin] -> [volume][panel][depth][kPanel], zero beyond the last column; depth is cin and
// the columns are cout, or the other way round with `transpose`.
template <class S>
struct Packing {
  using T = Wide<S>;
  const S* weight;
  int64_t cout, volume, cin;
  bool transpose;

  int64_t depth() const { return transpose ? cout : cin; }
  int64_t columns() const { return transpose ? cin : cout; }
  int64_t panels() const { return (columns() + kPanel<T> - 1) / kPanel<T>; }
  int64_t units() const { return volume * panels(); }
  int64_t size() const { return units() * depth() * kPanel<T>; }

  void pack(int64_t unit, T* packed) const {
    const int64_t k = unit / panels(), first = unit % panels() * kPanel<T>;
    const int64_t width = std::min(kPanel<T>, columns() - first);
    const int64_t depth_stride = transpose ? volume * cin : 1, column_stride = transpose ? 1 : volume * cin;
    const S* from = weight + k * cin + first * column_stride;
    T* to = packed + unit * depth() * kPanel<T>;
    if (width < kPanel<T>) std::fill(to, to + depth() * kPanel<T>, T(0));
    constexpr int64_t tile = 16;  // keeps the columns being transposed in the cache
    for (int64_t d0 = 0; d0 < depth(); d0 += tile)
      for (int64_t n = 0; n < width; ++n)
        for (int64_t d = d0; d < std::min(depth(), d0 + tile); ++d)
          to[d * kPanel<T> + n] = load_lanes<1>(from + d * depth_stride + n * column_stride)[0];
  }
};

template <class S>
Tensor run_convolution(const Tensor& features, const Tensor& weight, const Pairs& pairs, bool transpose) {
  using T = Wide<S>;
  const int64_t columns = transpose ? weight.size(2) : weight.size(0);
  const Tensor out = torch::stable::new_empty(features, {pairs.num_out, columns});
  if (out.numel() == 0) return out;
  ask_for_huge_pages(out.mutable_data_ptr(), pairs.num_out * columns * sizeof(S));
  const Packing<S> packing{static_cast<const S*>(weight.const_data_ptr()), weight.size(0), weight.size(1),
                           weight.size(2), transpose};
  const std::unique_ptr<T[]> packed(new T[packing.size()]);
  share_units(packing.units(), [&](int64_t unit) { packing.pack(unit, packed.get()); });
  const auto row_of = rows_by_rank(pairs);
  const Convolution<S> job{pairs,        static_cast<const S*>(features.const_data_ptr()),
                           packed.get(), static_cast<S*>(out.mutable_data_ptr()),
                           row_of.get(), features.size(1),
                           columns,      wide_registers()};
  TakenPairs taken;
  const int64_t bytes = packing.size() * static_cast<int64_t>(sizeof(T));
  const int64_t block_rows = bytes > kManyWeights ? kBlockRows : kSmallBlock;
  share_units((pairs.num_out + kUnitRows - 1) / kUnitRows, [&](int64_t unit) {
    BlockMemory<S> memory(job, block_rows);
    std::vector<int64_t> cursor = first_pairs(pairs, unit * kUnitRows);
    const int64_t before = std::accumulate(cursor.begin(), cursor.end(), int64_t{0});
    const int64_t end = std::min(pairs.num_out, (unit + 1) * kUnitRows);
    for (int64_t block = unit * kUnitRows; block < end; block += block_rows)
      convolve(job, memory, cursor.data(), block, std::min(block_rows, end - block));
    taken.add(std::accumulate(cursor.begin(), cursor.end(), int64_t{0}) - before);
  });
  taken.check(pairs);
  return out;
}

Tensor sparse_conv(const Tensor& features, const Tensor& weight, const Tensor& pairs, const Tensor& start,
                   const Tensor& rank_in, const Tensor& rank_out, bool reverse, bool transpose) {
  check_values(features, 2, "features");
  check_values(weight, 3, "weight");
  STD_TORCH_CHECK(features.scalar_type() == weight.scalar_type(), "features and weight must have one dtype");
  const Pairs walk = checked_pairs(pairs, start, reverse ? rank_in : rank_out, features.size(0), reverse);
  STD_TORCH_CHECK(weight.size(1) == walk.volume, "weight must have one slice per kernel offset");
  STD_TORCH_CHECK(features.size(1) == weight.size(transpose ? 0 : 2),
                  "features and weight must have equal input channels");
  return with_storage(
      features, [&](auto storage) { return run_convolution<decltype(storage)>(features, weight, walk, transpose); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) { m.impl("sparse_conv", TORCH_BOX(&sparse_conv)); }

}  // namespace pointcept3m
