// Sparse convolution over a rulebook. Output-stationary: a block of output rows stays in the cache while all
// kernel offsets pass over it, each as a small product of the rows that meet there with that offset's weights.
// One thread owns a block, offsets come in order, so there are no atomics and the result never varies.
#include <memory>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "sparse_conv/gemm.h"

namespace pointcept3m {
namespace {

constexpr int64_t kBlockRows = 256;    // output rows per block
constexpr int64_t kUnitBlocks = 8;     // blocks per unit of work
constexpr int64_t kChunkPairs = 128;   // pairs gathered at a time for the weight gradient
constexpr int64_t kSegmentPairs = 8192;
constexpr int kRows = 8;               // rows of a register block

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

bool wide_registers() {
#if defined(__x86_64__) && !defined(P3M_PLAIN)
  static const bool wide = __builtin_cpu_supports("avx512f");
  return wide;
#else
  return false;
#endif
}

template <class T>
struct Convolution {
  const T* features;
  const T* weight;       // packed
  T* out;
  const int32_t* from;   // per pair: row of features
  const int32_t* to;     // per pair: row of out
  const int32_t* rank;   // per row of out: its place in cell order, along which pairs ascend
  const int64_t* start;  // pairs of offset k: [start[k], start[k + 1])
  int64_t volume, depth, columns, ld_out, num_out;
};

template <class T, int MR>
P3M_INLINE void multiply_group(const Convolution<T>& job, int64_t pair, const T* panel, int64_t column, bool wide) {
  const T* a[MR];
  T* c[MR];
  for (int r = 0; r < MR; ++r) {
    a[r] = job.features + job.from[pair + r] * job.depth;
    c[r] = job.out + job.to[pair + r] * job.ld_out + column;
  }
  constexpr int64_t lanes = VectorOf<T>::lanes;
  const bool second = column + lanes < job.columns;
  if (second && wide) return multiply_rows<T, MR, 2>(a, c, panel, job.depth);
  multiply_rows<T, MR, 1>(a, c, panel, job.depth);
  if (!second) return;
  for (int r = 0; r < MR; ++r) c[r] += lanes;
  multiply_rows<T, MR, 1>(a, c, panel + lanes, job.depth);
}

// All pairs [begin, end) of one offset with its packed weights.
template <class T>
P3M_INLINE void multiply_offset(const Convolution<T>& job, int64_t begin, int64_t end, const T* weight, bool wide) {
  for (int64_t column = 0; column < job.columns; column += kPanel<T>) {
    const T* panel = weight + column * job.depth;
    int64_t pair = begin;
    for (; pair + kRows <= end; pair += kRows) multiply_group<T, kRows>(job, pair, panel, column, wide);
    for (; pair + 4 <= end; pair += 4) multiply_group<T, 4>(job, pair, panel, column, wide);
    for (; pair + 2 <= end; pair += 2) multiply_group<T, 2>(job, pair, panel, column, wide);
    if (pair < end) multiply_group<T, 1>(job, pair, panel, column, wide);
  }
}

template <class T>
P3M_INLINE void convolve_blocks(const Convolution<T>& job, int64_t* cursor, int64_t begin, int64_t end, bool wide) {
  for (int64_t block = begin; block < end; block += kBlockRows) {
    const int64_t limit = block + kBlockRows < end ? block + kBlockRows : end;
    const int64_t packed = round_up(job.columns, kPanel<T>) * job.depth;
    for (int64_t k = 0; k < job.volume; ++k) {
      const int64_t first = cursor[k];
      int64_t last = first;
      while (last < job.start[k + 1] && job.rank[job.to[last]] < limit) ++last;
      cursor[k] = last;
      if (first < last) multiply_offset(job, first, last, job.weight + k * packed, wide);
    }
  }
}

P3M_KERNEL void convolve(const Convolution<float>& job, int64_t* cursor, int64_t begin, int64_t end, bool wide) {
  convolve_blocks(job, cursor, begin, end, wide);
}
P3M_KERNEL void convolve(const Convolution<double>& job, int64_t* cursor, int64_t begin, int64_t end, bool wide) {
  convolve_blocks(job, cursor, begin, end, wide);
}

// weight [cout, volume, cin] -> [volume][panel][depth][kPanel], zero beyond the last column; depth is cin and
// the columns are cout, or the other way round with `transpose`.
template <class T>
struct Packing {
  const T* weight;
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
    const T* from = weight + k * cin + first * column_stride;
    T* to = packed + unit * depth() * kPanel<T>;
    if (width < kPanel<T>) std::fill(to, to + depth() * kPanel<T>, T(0));
    constexpr int64_t tile = 16;  // keeps the columns being transposed in the cache
    for (int64_t d0 = 0; d0 < depth(); d0 += tile)
      for (int64_t n = 0; n < width; ++n)
        for (int64_t d = d0; d < std::min(depth(), d0 + tile); ++d) to[d * kPanel<T> + n] = from[d * depth_stride + n * column_stride];
  }
};

constexpr int64_t kClearSize = 1 << 18;  // bytes set to zero by one unit

template <class T>
Tensor run_convolution(const Tensor& features, const Tensor& weight, const Tensor& pairs, const Tensor& start, const Tensor& rank,
                       bool reverse, bool transpose) {
  const int64_t num_out = rank.size(0), columns = transpose ? weight.size(2) : weight.size(0);
  const int64_t ld_out = round_up(columns, VectorOf<T>::lanes);
  const Tensor out = torch::stable::new_empty(features, {num_out, ld_out});
  const Packing<T> packing{weight.const_data_ptr<T>(), weight.size(0), weight.size(1), weight.size(2), transpose};
  const std::unique_ptr<T[]> packed(new T[packing.size()]);
  auto* bytes = reinterpret_cast<char*>(out.mutable_data_ptr<T>());
  const int64_t num_bytes = num_out * ld_out * static_cast<int64_t>(sizeof(T));
  share_units(packing.units() + (num_bytes + kClearSize - 1) / kClearSize, [&](int64_t unit) {
    if (unit < packing.units()) return packing.pack(unit, packed.get());
    const int64_t begin = (unit - packing.units()) * kClearSize;
    std::memset(bytes + begin, 0, std::min(kClearSize, num_bytes - begin));
  });
  const int32_t* in_rows = pairs.const_data_ptr<int32_t>();
  const int32_t* out_rows = in_rows + pairs.size(1);
  Convolution<T> job{features.const_data_ptr<T>(), packed.get(), out.mutable_data_ptr<T>(),
                     reverse ? out_rows : in_rows, reverse ? in_rows : out_rows, rank.const_data_ptr<int32_t>(),
                     start.const_data_ptr<int64_t>(), weight.size(1), features.size(1), columns, ld_out, num_out};
  const int64_t unit_rows = kBlockRows * kUnitBlocks;
  const bool wide = wide_registers();
  share_units((num_out + unit_rows - 1) / unit_rows, [&](int64_t unit) {
    const int64_t begin = unit * unit_rows, end = std::min(num_out, begin + unit_rows);
    std::vector<int64_t> cursor(job.volume);
    for (int64_t k = 0; k < job.volume; ++k) {
      const int32_t* first = std::lower_bound(job.to + job.start[k], job.to + job.start[k + 1], begin,
                                              [&](int32_t row, int64_t place) { return job.rank[row] < place; });
      cursor[k] = first - job.to;
    }
    convolve(job, cursor.data(), begin, end, wide);
  });
  if (ld_out == columns) return out;
  Tensor padded = out;
  return torch::stable::contiguous(torch::stable::narrow(padded, 1, 0, columns));
}

template <class T>
struct WeightGradient {
  const T* features;
  const T* grad;
  const int32_t* from;
  const int32_t* to;
  int64_t cin, cout, ld_features, ld_grad;  // ld: widths of the gathered rows, padded
};

// Adds the outer products of the pairs [begin, end) to sum [ld_grad, ld_features].
template <class T>
P3M_INLINE void sum_outer(const WeightGradient<T>& job, int64_t begin, int64_t end, T* x, T* g, T* sum, bool wide) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  for (int64_t chunk = begin; chunk < end; chunk += kChunkPairs) {
    const int64_t count = chunk + kChunkPairs < end ? kChunkPairs : end - chunk;
    for (int64_t p = 0; p < count; ++p) {
      std::memcpy(x + p * job.ld_features, job.features + job.from[chunk + p] * job.cin, job.cin * sizeof(T));
      std::memcpy(g + p * job.ld_grad, job.grad + job.to[chunk + p] * job.cout, job.cout * sizeof(T));
    }
    for (int64_t o = 0; o < job.ld_grad; o += kRows) {
      int64_t c = 0;
      T* row = sum + o * job.ld_features;
      for (; wide && c + 2 * lanes <= job.ld_features; c += 2 * lanes)
        multiply_outer<T, kRows, 2>(g + o, job.ld_grad, x + c, job.ld_features, row + c, job.ld_features, count);
      for (; c < job.ld_features; c += lanes)
        multiply_outer<T, kRows, 1>(g + o, job.ld_grad, x + c, job.ld_features, row + c, job.ld_features, count);
    }
  }
}

P3M_KERNEL void outer(const WeightGradient<float>& job, int64_t begin, int64_t end, float* x, float* g, float* sum, bool wide) {
  sum_outer(job, begin, end, x, g, sum, wide);
}
P3M_KERNEL void outer(const WeightGradient<double>& job, int64_t begin, int64_t end, double* x, double* g, double* sum, bool wide) {
  sum_outer(job, begin, end, x, g, sum, wide);
}

// Offsets have very unequal numbers of pairs, so pairs are cut into segments, each summed apart by one thread;
// the sums of one offset are then added in order.
template <class T>
Tensor run_weight_gradient(const Tensor& features, const Tensor& grad, const Tensor& pairs, const Tensor& start, bool reverse) {
  const int64_t volume = start.size(0) - 1, cin = features.size(1), cout = grad.size(1);
  const int64_t ld_features = round_up(cin, VectorOf<T>::lanes), ld_grad = round_up(cout, kRows), size = ld_features * ld_grad;
  const int64_t* edges = start.const_data_ptr<int64_t>();
  std::vector<int64_t> first_segment(volume + 1), offset_of;
  for (int64_t k = 0; k < volume; ++k) {
    const int64_t segments = (edges[k + 1] - edges[k] + kSegmentPairs - 1) / kSegmentPairs;
    first_segment[k + 1] = first_segment[k] + segments;
    offset_of.insert(offset_of.end(), segments, k);
  }
  const int32_t* in_rows = pairs.const_data_ptr<int32_t>();
  const int32_t* out_rows = in_rows + pairs.size(1);
  const WeightGradient<T> job{features.const_data_ptr<T>(), grad.const_data_ptr<T>(), reverse ? out_rows : in_rows,
                              reverse ? in_rows : out_rows, cin, cout, ld_features, ld_grad};
  const auto segments = static_cast<int64_t>(offset_of.size());
  const bool wide = wide_registers();
  std::unique_ptr<T[]> sums(new T[segments * size]);
  share_units(segments, [&](int64_t segment) {
    const int64_t k = offset_of[segment], begin = edges[k] + (segment - first_segment[k]) * kSegmentPairs;
    std::vector<T> rows(kChunkPairs * (ld_features + ld_grad));  // zero beyond the channels, and stays so
    T* sum = sums.get() + segment * size;
    std::fill(sum, sum + size, T(0));
    outer(job, begin, std::min(edges[k + 1], begin + kSegmentPairs), rows.data(), rows.data() + kChunkPairs * ld_features, sum, wide);
  });
  const Tensor out = torch::stable::new_empty(features, {cout, volume, cin});
  T* to = out.mutable_data_ptr<T>();
  share_units(volume, [&](int64_t k) {
    for (int64_t o = 0; o < cout; ++o) {
      T* row = to + (o * volume + k) * cin;
      std::fill(row, row + cin, T(0));
      for (int64_t segment = first_segment[k]; segment < first_segment[k + 1]; ++segment) {
        const T* part = sums.get() + segment * size + o * ld_features;
        for (int64_t c = 0; c < cin; ++c) row[c] += part[c];
      }
    }
  });
  return out;
}

void check_values(const Tensor& tensor, int64_t dim, const char* name) {
  check_contiguous_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.dim() == dim, name, " has the wrong number of dimensions");
  const auto dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, " must be float32 or float64");
}

void check_pairs(const Tensor& pairs, const Tensor& start) {
  check_contiguous_cpu(pairs, "pairs");
  check_contiguous_cpu(start, "start");
  STD_TORCH_CHECK(pairs.dim() == 2 && pairs.size(0) == 2 && pairs.scalar_type() == ScalarType::Int, "pairs must be int32 [2, P]");
  STD_TORCH_CHECK(start.dim() == 1 && start.size(0) > 0 && start.scalar_type() == ScalarType::Long, "start must be int64 [K + 1]");
  const int64_t* edges = start.const_data_ptr<int64_t>();
  bool ascending = edges[0] == 0 && edges[start.size(0) - 1] == pairs.size(1);
  for (int64_t k = 1; k < start.size(0); ++k) ascending &= edges[k - 1] <= edges[k];
  STD_TORCH_CHECK(ascending, "start must ascend from 0 to the number of pairs");
}

// Rows named by pairs must exist. (That pairs ascend along the ranks is the rulebook's word: where it is broken
// the sums are wrong, but no memory is touched that is not ours.)
void check_rows(const Tensor& pairs, int64_t side, int64_t num_rows, const char* what) {
  const int32_t* rows = pairs.const_data_ptr<int32_t>() + side * pairs.size(1);
  uint32_t largest = 0;
  for (int64_t p = 0; p < pairs.size(1); ++p) largest = std::max(largest, static_cast<uint32_t>(rows[p]));
  STD_TORCH_CHECK(pairs.size(1) == 0 || largest < num_rows, "pairs name rows beyond ", what);
}

Tensor sparse_conv(const Tensor& features, const Tensor& weight, const Tensor& pairs, const Tensor& start, const Tensor& rank_in,
                   const Tensor& rank_out, bool reverse, bool transpose) {
  check_values(features, 2, "features");
  check_values(weight, 3, "weight");
  check_pairs(pairs, start);
  const Tensor& rank = reverse ? rank_in : rank_out;
  check_contiguous_cpu(rank, "rank");
  STD_TORCH_CHECK(rank.dim() == 1 && rank.scalar_type() == ScalarType::Int, "rank must be int32 [rows]");
  STD_TORCH_CHECK(features.scalar_type() == weight.scalar_type(), "features and weight must have one dtype");
  STD_TORCH_CHECK(weight.size(1) == start.size(0) - 1, "weight must have one slice per kernel offset");
  STD_TORCH_CHECK(features.size(1) == weight.size(transpose ? 0 : 2), "features and weight must have equal input channels");
  check_rows(pairs, reverse ? 1 : 0, features.size(0), "features");
  check_rows(pairs, reverse ? 0 : 1, rank.size(0), "the output");
  if (features.scalar_type() == ScalarType::Float) return run_convolution<float>(features, weight, pairs, start, rank, reverse, transpose);
  return run_convolution<double>(features, weight, pairs, start, rank, reverse, transpose);
}

// The ranks are there for the backward of this backward.
Tensor sparse_conv_grad_weight(const Tensor& features, const Tensor& grad, const Tensor& pairs, const Tensor& start, const Tensor&,
                               const Tensor&, bool reverse) {
  check_values(features, 2, "features");
  check_values(grad, 2, "grad");
  check_pairs(pairs, start);
  STD_TORCH_CHECK(features.scalar_type() == grad.scalar_type(), "features and grad must have one dtype");
  check_rows(pairs, reverse ? 1 : 0, features.size(0), "features");
  check_rows(pairs, reverse ? 0 : 1, grad.size(0), "grad");
  if (features.scalar_type() == ScalarType::Float) return run_weight_gradient<float>(features, grad, pairs, start, reverse);
  return run_weight_gradient<double>(features, grad, pairs, start, reverse);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("sparse_conv", TORCH_BOX(&sparse_conv));
  m.impl("sparse_conv_grad_weight", TORCH_BOX(&sparse_conv_grad_weight));
}

}  // namespace pointcept3m
