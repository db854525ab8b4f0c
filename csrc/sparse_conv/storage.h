// What features may be stored as, and rows of them in the type they are computed in.
#pragma once

#include <numeric>

#include "common/check.h"
#include "common/values.h"
#include "common/vector.h"

namespace pointcept3m {
namespace {

inline void check_values(const Tensor& tensor, int64_t dim, const char* name) {
  check_contiguous_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.dim() == dim, name, " has the wrong number of dimensions");
  const auto dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16,
                  name, " must be float32, float64, float16 or bfloat16");
}

// Calls `run` with a value of the type that a checked tensor is stored as.
template <class Run>
auto with_storage(const Tensor& tensor, const Run& run) {
  const auto dtype = tensor.scalar_type();
  if (dtype == ScalarType::Float) return run(float{});
  if (dtype == ScalarType::Double) return run(double{});
  if (dtype == ScalarType::Half) return run(Half{});
  return run(BFloat16{});
}

template <class S>
P3M_INLINE void widen_row(const S* from, Wide<S>* to, int64_t count) {
  constexpr int N = VectorOf<Wide<S>>::lanes;
  int64_t i = 0;
  for (; i + N <= count; i += N) store_lanes<N>(to + i, load_lanes<N>(from + i));
  for (; i < count; ++i) store_lanes<1>(to + i, load_lanes<1>(from + i));
}

template <class S>
P3M_INLINE void narrow_row(const Wide<S>* from, S* to, int64_t count) {
  constexpr int N = VectorOf<Wide<S>>::lanes;
  int64_t i = 0;
  for (; i + N <= count; i += N) store_lanes<N>(to + i, load_lanes<N>(from + i));
  for (; i < count; ++i) store_lanes<1>(to + i, load_lanes<1>(from + i));
}

}  // namespace
}  // namespace pointcept3m
