// Voxel scatter on the CPU: rows are grouped by a counting sort, then every output row is reduced by one
// thread in ascending row order, a few registers of channels at a time. No atomics, same result every time.
#include <limits>
#include <tuple>
#include <type_traits>

#include "common/check.h"
#include "common/vector.h"
#include "scatter/bins.h"

namespace pointcept3m {
namespace {

enum class Reduce { sum, mean, max, min };

template <class T>
struct Rows {
  const T* src;
  const int32_t* perm;   // null: rows stand in bin order
  const int32_t* start;
  int64_t channels, num_rows;
  T* out;
  int64_t* arg;          // max and min only
};

// Sums NV registers of channels, from channel c, of the rows of one bin.
template <int NV, class T>
P3M_INLINE void sum_channels(const Rows<T>& job, int64_t bin, int64_t c, T factor) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  Vector<T> total[NV] = {};
  for (int64_t place = job.start[bin]; place < job.start[bin + 1]; ++place) {
    const T* row = job.src + (job.perm ? job.perm[place] : place) * job.channels + c;
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) total[v] += load(row + v * lanes);
  }
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) store(job.out + bin * job.channels + c + v * lanes, total[v] * factor);
}

template <class T>
P3M_INLINE void sum_bins(const Rows<T>& job, int64_t begin, int64_t end, bool mean) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  for (int64_t bin = begin; bin < end; ++bin) {
    const int64_t count = job.start[bin + 1] - job.start[bin];
    const T factor = mean && count ? T(1) / static_cast<T>(count) : T(1);
    int64_t c = 0;
    for (; c + 4 * lanes <= job.channels; c += 4 * lanes) sum_channels<4>(job, bin, c, factor);
    for (; c + 2 * lanes <= job.channels; c += 2 * lanes) sum_channels<2>(job, bin, c, factor);
    for (; c + lanes <= job.channels; c += lanes) sum_channels<1>(job, bin, c, factor);
    T* out = job.out + bin * job.channels;
    for (int64_t t = c; t < job.channels; ++t) out[t] = 0;
    for (int64_t place = job.start[bin]; c < job.channels && place < job.start[bin + 1]; ++place) {
      const T* row = job.src + (job.perm ? job.perm[place] : place) * job.channels;
      for (int64_t t = c; t < job.channels; ++t) out[t] += row[t];
    }
    for (int64_t t = c; t < job.channels; ++t) out[t] *= factor;
  }
}

// Channels of one bin that stay in the nearest cache while its rows pass. The winner is as wide as the value, so
// that the compiler makes vectors of both.
constexpr int64_t kBlock = 64;

// The first extreme wins a tie; NaN wins over everything, as in torch. Empty bins give 0 and arg = num_rows.
template <bool LARGEST, class T>
P3M_INLINE void extreme_bins(const Rows<T>& job, int64_t begin, int64_t end) {
  using Row = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  for (int64_t bin = begin; bin < end; ++bin) {
    const int64_t first = job.start[bin], last = job.start[bin + 1];
    for (int64_t channel = 0; channel < job.channels; channel += kBlock) {
      const int64_t width = job.channels - channel < kBlock ? job.channels - channel : kBlock;
      T best[kBlock] = {};
      Row winner[kBlock], keep[kBlock];
      const auto opening = static_cast<Row>(first == last ? job.num_rows : job.perm ? job.perm[first] : first);
      for (int64_t c = 0; c < width; ++c) winner[c] = opening;
      if (first < last) std::memcpy(best, job.src + int64_t{opening} * job.channels + channel, width * sizeof(T));
      for (int64_t place = first + 1; place < last; ++place) {
        const auto i = static_cast<Row>(job.perm ? job.perm[place] : place);
        const T* P3M_RESTRICT row = job.src + int64_t{i} * job.channels + channel;
        // Two loops, as the compiler makes branches of one. A NaN held compares with nothing and is kept; a NaN
        // value is not "no better" and is taken.
        for (int64_t c = 0; c < width; ++c)
          keep[c] = (LARGEST ? row[c] <= best[c] : row[c] >= best[c]) | (best[c] != best[c]);
        for (int64_t c = 0; c < width; ++c) {
          best[c] = keep[c] ? best[c] : row[c];
          winner[c] = keep[c] ? winner[c] : i;
        }
      }
      const int64_t at = bin * job.channels + channel;
      for (int64_t c = 0; c < width; ++c) job.out[at + c] = best[c];
      for (int64_t c = 0; c < width; ++c) job.arg[at + c] = winner[c];
    }
  }
}

P3M_KERNEL void sum_range(const Rows<float>& job, int64_t begin, int64_t end, bool mean) { sum_bins(job, begin, end, mean); }
P3M_KERNEL void sum_range(const Rows<double>& job, int64_t begin, int64_t end, bool mean) { sum_bins(job, begin, end, mean); }
P3M_KERNEL void extreme_range(const Rows<float>& job, int64_t begin, int64_t end, bool largest) {
  if (largest) extreme_bins<true>(job, begin, end);
  else extreme_bins<false>(job, begin, end);
}
P3M_KERNEL void extreme_range(const Rows<double>& job, int64_t begin, int64_t end, bool largest) {
  if (largest) extreme_bins<true>(job, begin, end);
  else extreme_bins<false>(job, begin, end);
}

// First bin of a unit, so that units hold about equally many rows and bins.
int64_t balanced_edge(const int32_t* start, int64_t num_bins, int64_t unit, int64_t units) {
  const int64_t target = (start[num_bins] + num_bins) * unit / units;
  int64_t low = 0, high = num_bins;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (start[middle] + middle < target) low = middle + 1;
    else high = middle;
  }
  return low;
}

template <class T>
void reduce_rows(const Tensor& src, const Bins& bins, const Tensor& out, const Tensor* arg, Reduce reduce) {
  const int64_t num_bins = out.size(0);
  const Rows<T> job{src.const_data_ptr<T>(), bins.perm.get(), bins.start.get(), src.size(1), src.size(0),
                    out.mutable_data_ptr<T>(), arg ? arg->mutable_data_ptr<int64_t>() : nullptr};
  const int64_t units = std::min<int64_t>(8 * torch::stable::get_num_threads(), num_bins);
  share_units(units, [&](int64_t unit) {
    const int64_t begin = balanced_edge(job.start, num_bins, unit, units);
    const int64_t end = unit + 1 == units ? num_bins : balanced_edge(job.start, num_bins, unit + 1, units);
    if (arg) extreme_range(job, begin, end, reduce == Reduce::max);
    else sum_range(job, begin, end, reduce == Reduce::mean);
  });
}

void check_rows(const Tensor& src, const char* name) {
  check_contiguous_cpu(src, name);
  STD_TORCH_CHECK(src.dim() == 2, name, " must have shape [rows, channels]");
  const auto dtype = src.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, " must be float32 or float64");
}

void check_index(const Tensor& index) {
  check_contiguous_cpu(index, "index");
  STD_TORCH_CHECK(index.dim() == 1 && index.scalar_type() == ScalarType::Long, "index must be int64 of shape [rows]");
}

std::tuple<Tensor, Bins> prepare(const Tensor& src, const Tensor& index, int64_t dim_size) {
  check_rows(src, "src");
  check_index(index);
  STD_TORCH_CHECK(index.size(0) == src.size(0), "index must have one entry per row of src");
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(src.size(0) < limit && dim_size >= 0, "scatter takes fewer than 2^31 rows");
  Bins bins = build_bins(index.const_data_ptr<int64_t>(), src.size(0), dim_size);
  STD_TORCH_CHECK(bins.valid, "index has values outside [0, dim_size)");
  return {torch::stable::new_empty(src, {dim_size, src.size(1)}), std::move(bins)};
}

Tensor sum_or_mean(const Tensor& src, const Bins& bins, const Tensor& out, Reduce reduce) {
  if (src.scalar_type() == ScalarType::Float) reduce_rows<float>(src, bins, out, nullptr, reduce);
  else reduce_rows<double>(src, bins, out, nullptr, reduce);
  return out;
}

Tensor scatter_sum(const Tensor& src, const Tensor& index, int64_t dim_size) {
  const auto [out, bins] = prepare(src, index, dim_size);
  return sum_or_mean(src, bins, out, Reduce::sum);
}

std::tuple<Tensor, Tensor> scatter_mean(const Tensor& src, const Tensor& index, int64_t dim_size) {
  const auto [out, bins] = prepare(src, index, dim_size);
  const Tensor count = torch::stable::new_empty(index, {dim_size});
  int64_t* counts = count.mutable_data_ptr<int64_t>();
  for (int64_t bin = 0; bin < dim_size; ++bin) counts[bin] = bins.start[bin + 1] - bins.start[bin];
  return {sum_or_mean(src, bins, out, Reduce::mean), count};
}

std::tuple<Tensor, Tensor> scatter_extreme(const Tensor& src, const Tensor& index, int64_t dim_size, bool largest) {
  const auto [out, bins] = prepare(src, index, dim_size);
  const Tensor arg = torch::stable::new_empty(index, {dim_size, src.size(1)});
  const Reduce reduce = largest ? Reduce::max : Reduce::min;
  if (src.scalar_type() == ScalarType::Float) reduce_rows<float>(src, bins, out, &arg, reduce);
  else reduce_rows<double>(src, bins, out, &arg, reduce);
  return {out, arg};
}

constexpr int64_t kRowBlock = 4096;

Tensor gather_rows(const Tensor& src, const Tensor& index) {
  check_rows(src, "src");
  check_index(index);
  const int64_t num_rows = index.size(0), width = src.size(1) * src.element_size(), limit = src.size(0);
  const Tensor out = torch::stable::new_empty(src, {num_rows, src.size(1)});
  const auto* from = static_cast<const char*>(src.data_ptr());
  auto* to = static_cast<char*>(out.data_ptr());
  const int64_t* rows = index.const_data_ptr<int64_t>();
  std::atomic<bool> inside{true};
  share_units((num_rows + kRowBlock - 1) / kRowBlock, [&](int64_t unit) {
    const int64_t end = std::min(num_rows, (unit + 1) * kRowBlock);
    for (int64_t i = unit * kRowBlock; i < end; ++i) {
      if (static_cast<uint64_t>(rows[i]) >= static_cast<uint64_t>(limit)) {
        inside.store(false, std::memory_order_relaxed);
        return;
      }
      std::memcpy(to + i * width, from + rows[i] * width, width);
    }
  });
  STD_TORCH_CHECK(inside, "index has values outside the rows of src");
  return out;
}

template <class T>
void place_at_arg(const Tensor& grad, const Tensor& arg, const Tensor& out) {
  const T* from = grad.const_data_ptr<T>();
  const int64_t* rows = arg.const_data_ptr<int64_t>();
  T* to = out.mutable_data_ptr<T>();
  const int64_t channels = grad.size(1), num_bins = grad.size(0), num_rows = out.size(0);
  share_units((num_bins + kRowBlock - 1) / kRowBlock, [&](int64_t unit) {
    const int64_t end = std::min(num_bins, (unit + 1) * kRowBlock) * channels;
    for (int64_t i = unit * kRowBlock * channels; i < end; i += channels)
      for (int64_t c = 0; c < channels; ++c)
        if (static_cast<uint64_t>(rows[i + c]) < static_cast<uint64_t>(num_rows)) to[rows[i + c] * channels + c] = from[i + c];
  });
}

// Bins share no rows, so each (row, channel) is written at most once.
Tensor scatter_extreme_backward(const Tensor& grad, const Tensor& arg, int64_t num_rows) {
  check_rows(grad, "grad");
  check_contiguous_cpu(arg, "arg");
  STD_TORCH_CHECK(arg.numel() == grad.numel() && arg.scalar_type() == ScalarType::Long, "arg must be int64, as large as grad");
  const Tensor out = torch::stable::new_zeros(grad, {num_rows, grad.size(1)});
  if (grad.scalar_type() == ScalarType::Float) place_at_arg<float>(grad, arg, out);
  else place_at_arg<double>(grad, arg, out);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("scatter_sum", TORCH_BOX(&scatter_sum));
  m.impl("scatter_mean", TORCH_BOX(&scatter_mean));
  m.impl("scatter_extreme", TORCH_BOX(&scatter_extreme));
  m.impl("scatter_extreme_backward", TORCH_BOX(&scatter_extreme_backward));
  m.impl("gather_rows", TORCH_BOX(&gather_rows));
}

}  // namespace pointcept3m
