// Softmax, its logarithm, logsumexp and their gradients over the rows of each bin, on the CPU: one sort, then the rows
// of a bin are read while they are still in the caches.
#include <cmath>
#include <limits>

#include "common/pages.h"
#include "scatter/arguments.h"

namespace pointcept3m {
namespace {

enum class Mode { softmax, log_softmax, logsumexp, softmax_backward, log_softmax_backward };

template <class S>
struct Normalization {
  const int32_t* start;  // bin v holds places start[v] .. start[v + 1] - 1
  const int32_t* perm;   // the row at a place; null: the place itself
  int64_t channels;
  const S* src;   // the scores; in backward what forward gave
  const S* grad;  // backward only
  S* out;         // rows; bins for logsumexp

  P3M_INLINE int64_t at(int64_t place, int64_t c) const { return (perm ? perm[place] : place) * channels + c; }
};

// exp(x) for x <= 0: 2^n times a polynomial on [-ln2/2, ln2/2], relative error below 3e-7 where it matters; 0 below
// -87, where the result would have no exponent; NaN stays.
template <int N>
P3M_INLINE Lanes<float, N> exp_lanes(const Lanes<float, N>& x) {
  using V = Lanes<float, N>;
  using I = Lanes<int32_t, N>;
  const V bounded = x < V{} - 87.0f ? V{} - 87.0f : x;
  const I n = __builtin_convertvector(bounded * 1.44269504f - 0.5f, I);
  const V r = bounded - __builtin_convertvector(n, V) * 0.693147181f;
  V p = 1.3981999e-3f * r + 8.3334519e-3f;
  p = p * r + 4.1665795e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  p *= (V)((n + 127) << 23);
  return x < V{} - 87.0f ? V{} : p;
}

template <int N>
P3M_INLINE Lanes<double, N> exp_lanes(const Lanes<double, N>& x) {
  Lanes<double, N> result;
  for (int i = 0; i < N; ++i) result[i] = std::exp(x[i]);
  return result;
}

// log(x) for x >= 1, as a sum of exponentials less the largest is: the exponent's share, and for the mantissa m in
// [0.7, 1.4] the series of 2 atanh((m - 1) / (m + 1)), relative error below 2e-7. NaN stays.
template <int N>
P3M_INLINE Lanes<float, N> log_lanes(const Lanes<float, N>& x) {
  using V = Lanes<float, N>;
  using I = Lanes<int32_t, N>;
  const I bits = (I)x;
  const I exponent = (bits - 0x3f3504f3) >> 23;  // counted from sqrt(1/2)
  const V m = (V)(bits - (exponent << 23));
  const V s = (m - 1.0f) / (m + 1.0f), square = s * s;
  V series = square * (1.0f / 9) + 1.0f / 7;
  series = series * square + 1.0f / 5;
  series = series * square + 1.0f / 3;
  series = series * square + 1.0f;
  const V result = __builtin_convertvector(exponent, V) * 0.693147181f + 2.0f * s * series;
  return x != x ? x : result;
}

template <int N>
P3M_INLINE Lanes<double, N> log_lanes(const Lanes<double, N>& x) {
  Lanes<double, N> result;
  for (int i = 0; i < N; ++i) result[i] = std::log(x[i]);
  return result;
}

template <Mode MODE, int N, class S>
P3M_INLINE void forward_block(const Normalization<S>& job, int64_t bin, int64_t c) {
  using V = Lanes<Wide<S>, N>;
  const int64_t first = job.start[bin], last = job.start[bin + 1];
  if (first == last) {
    if constexpr (MODE == Mode::logsumexp) store_lanes<N>(job.out + bin * job.channels + c, V{});
    return;
  }
  V largest = load_lanes<N>(job.src + job.at(first, c)), total = {};
  for (int64_t place = first + 1; place < last; ++place) {
    const V value = load_lanes<N>(job.src + job.at(place, c));
    largest = value > largest ? value : largest;
  }
  for (int64_t place = first; place < last; ++place) total += exp_lanes<N>(V(load_lanes<N>(job.src + job.at(place,
      c)) - largest));
  if constexpr (MODE == Mode::logsumexp) {
    // Nothing but -inf: their sum is 0 and its logarithm -inf. +inf less itself would be NaN.
    constexpr Wide<S> most = std::numeric_limits<Wide<S>>::max();
    const auto infinite = (largest > V{} + most) | (largest < V{} - most);
    const V sum = log_lanes<N>(total) + largest;
    store_lanes<N>(job.out + bin * job.channels + c, V(infinite ? largest : sum));
  } else if constexpr (MODE == Mode::softmax) {
    const V factor = Wide<S>(1) / total;
    for (int64_t place = first; place < last; ++place) {
      const V power = exp_lanes<N>(V(load_lanes<N>(job.src + job.at(place, c)) - largest));
      store_lanes<N>(job.out + job.at(place, c), V(power * factor));
    }
  } else {
    const V shift = log_lanes<N>(total) + largest;
    for (int64_t place = first; place < last; ++place)
      store_lanes<N>(job.out + job.at(place, c), V(load_lanes<N>(job.src + job.at(place, c)) - shift));
  }
}

template <Mode MODE, int N, class S>
P3M_INLINE void backward_block(const Normalization<S>& job, int64_t bin, int64_t c) {
  using V = Lanes<Wide<S>, N>;
  const int64_t first = job.start[bin], last = job.start[bin + 1];
  V total = {};
  for (int64_t place = first; place < last; ++place) {
    const V grad = load_lanes<N>(job.grad + job.at(place, c));
    if constexpr (MODE == Mode::softmax_backward) total += grad * load_lanes<N>(job.src + job.at(place, c));
    else total += grad;
  }
  for (int64_t place = first; place < last; ++place) {
    const V grad = load_lanes<N>(job.grad + job.at(place, c)), given = load_lanes<N>(job.src + job.at(place, c));
    if constexpr (MODE == Mode::softmax_backward) store_lanes<N>(job.out + job.at(place, c), V(given * (grad - total)));
    else store_lanes<N>(job.out + job.at(place, c), V(grad - exp_lanes<N>(given) * total));
  }
}

template <Mode MODE, class S>
P3M_INLINE void normalize_bins(const Normalization<S>& job, int64_t begin, int64_t end, int64_t num_places) {
  constexpr bool backward = MODE == Mode::softmax_backward || MODE == Mode::log_softmax_backward;
  for (int64_t bin = begin; bin < end; ++bin) {
    for (int64_t place = job.start[bin]; job.perm && place < job.start[bin + 1] &&
        place + kAhead < num_places; ++place) {
      const int64_t ahead = job.at(place + kAhead, 0), bytes = job.channels * sizeof(S);
      prefetch_row(job.src + ahead, bytes);
      if (backward) prefetch_row(job.grad + ahead, bytes);
    }
    for_channel_blocks<S, 1>(job.channels, [&](int64_t c, auto lanes, auto) __attribute__((always_inline)) {
      if constexpr (backward) backward_block<MODE, lanes>(job, bin, c);
      else forward_block<MODE, lanes>(job, bin, c);
    });
  }
}

template <class S>
P3M_INLINE void normalize(Mode mode, const Normalization<S>& job, int64_t begin, int64_t end, int64_t num_places) {
  switch (mode) {
    case Mode::softmax: return normalize_bins<Mode::softmax>(job, begin, end, num_places);
    case Mode::log_softmax: return normalize_bins<Mode::log_softmax>(job, begin, end, num_places);
    case Mode::logsumexp: return normalize_bins<Mode::logsumexp>(job, begin, end, num_places);
    case Mode::softmax_backward: return normalize_bins<Mode::softmax_backward>(job, begin, end, num_places);
    case Mode::log_softmax_backward: return normalize_bins<Mode::log_softmax_backward>(job, begin, end, num_places);
  }
}

#define P3M_NORMALIZE_KERNEL(S)                                                                         \
  P3M_KERNEL void normalize_range(Mode mode, const Normalization<S>& job, int64_t begin, int64_t end,   \
                                  int64_t num_places) {                                                 \
    normalize(mode, job, begin, end, num_places);                                                       \
  }
P3M_NORMALIZE_KERNEL(float)
P3M_NORMALIZE_KERNEL(double)
P3M_NORMALIZE_KERNEL(Half)
P3M_NORMALIZE_KERNEL(BFloat16)
#undef P3M_NORMALIZE_KERNEL

void run(Mode mode, const Tensor& src, const Tensor* grad, const Tensor& index, int64_t dim_size, const Tensor& out) {
  const Bins bins = bins_of(src, index, dim_size);
  with_value_type(src, [&](auto value) {
    using S = decltype(value);
    ask_for_huge_pages(out.data_ptr(), out.numel() * sizeof(S));
    const Normalization<S> job{bins.start.get(), bins.perm.get(), src.size(1), values<S>(src), grad ?
        values<S>(*grad) : nullptr, values<S>(out)};
    share_bins(job.start, dim_size, [&](int64_t begin, int64_t end) { normalize_range(mode, job, begin, end,
        src.size(0)); });
  });
}

Tensor scatter_softmax(const Tensor& src, const Tensor& index, int64_t dim_size, bool log) {
  check_values(src, 2, "src");
  const Tensor out = torch::stable::new_empty(src, {src.size(0), src.size(1)});
  run(log ? Mode::log_softmax : Mode::softmax, src, nullptr, index, dim_size, out);
  return out;
}

Tensor scatter_softmax_backward(const Tensor& grad, const Tensor& out, const Tensor& index, int64_t dim_size,
    bool log) {
  check_values(out, 2, "out");
  check_values(grad, 2, "grad");
  STD_TORCH_CHECK(grad.size(0) == out.size(0) && grad.size(1) == out.size(1) && grad.scalar_type() == out.scalar_type(),
                  "grad must have out's shape and type");
  const Tensor result = torch::stable::new_empty(grad, {out.size(0), out.size(1)});
  run(log ? Mode::log_softmax_backward : Mode::softmax_backward, out, &grad, index, dim_size, result);
  return result;
}

Tensor scatter_logsumexp(const Tensor& src, const Tensor& index, int64_t dim_size) {
  check_values(src, 2, "src");
  STD_TORCH_CHECK(dim_size >= 0, "dim_size must not be negative");
  const Tensor out = torch::stable::new_empty(src, {dim_size, src.size(1)});
  run(Mode::logsumexp, src, nullptr, index, dim_size, out);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("scatter_softmax", TORCH_BOX(&scatter_softmax));
  m.impl("scatter_softmax_backward", TORCH_BOX(&scatter_softmax_backward));
  m.impl("scatter_logsumexp", TORCH_BOX(&scatter_logsumexp));
}

}  // namespace pointcept3m
