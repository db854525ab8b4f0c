// What the ops of this folder share about their arguments.
#pragma once

#include "common/check.h"
#include "common/values.h"
#include "scatter/bins.h"

namespace pointcept3m {
namespace {

inline bool is_value_type(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
      dtype == ScalarType::BFloat16;
}

inline void check_values(const Tensor& tensor, int64_t dims, const char* name) {
  check_contiguous_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.dim() == dims, name, " must have ", dims, " dimensions");
  STD_TORCH_CHECK(is_value_type(tensor.scalar_type()), name, " must be float32, float64, float16 or bfloat16");
}

inline void check_index(const Tensor& index, int64_t num_rows, const char* name) {
  check_contiguous_cpu(index, name);
  STD_TORCH_CHECK(index.dim() == 1 && index.scalar_type() == ScalarType::Long, name, " must be int64 of shape [rows]");
  STD_TORCH_CHECK(index.size(0) == num_rows, name, " must have one entry per row");
}

// Calls run(S{}) with the type S of a value of `tensor`.
template <class Run>
void with_value_type(const Tensor& tensor, const Run& run) {
  const auto dtype = tensor.scalar_type();
  if (dtype == ScalarType::Float) run(float{});
  else if (dtype == ScalarType::Double) run(double{});
  else if (dtype == ScalarType::Half) run(Half{});
  else run(BFloat16{});
}

template <class S>
S* values(const Tensor& tensor) {
  return static_cast<S*>(tensor.data_ptr());
}

// The rows of `src` [N, C] by bin; an error where the index does not fit.
inline Bins bins_of(const Tensor& src, const Tensor& index, int64_t num_bins) {
  check_values(src, 2, "src");
  check_index(index, src.size(0), "index");
  STD_TORCH_CHECK(src.size(0) < kMostRows && num_bins >= 0 && num_bins < kMostRows,
      "scatter takes fewer than 2^31 rows and bins");
  Bins bins = build_bins(index.const_data_ptr<int64_t>(), src.size(0), num_bins);
  STD_TORCH_CHECK(bins.valid, "index has values outside [0, dim_size)");
  return bins;
}

}  // namespace
}  // namespace pointcept3m
