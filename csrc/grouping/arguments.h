// What the ops of this folder share about their arguments, on every device.
#pragma once

#include <limits>

#include "common/check.h"

namespace pointcept3m {
namespace {

// rows [N or M, C], idx [M, k] and weight [M, k] of the rows' dtype.
inline void check_weighted_rows(const Tensor& rows, const Tensor& idx, const Tensor& weight) {
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Float || rows.scalar_type() == ScalarType::Double,
                  "rows must be float32 or float64");
  STD_TORCH_CHECK(rows.dim() == 2 && idx.dim() == 2 && weight.dim() == 2,
                  "rows, idx and weight must have two dimensions");
  STD_TORCH_CHECK(idx.scalar_type() == ScalarType::Int, "idx must be int32");
  STD_TORCH_CHECK(weight.scalar_type() == rows.scalar_type(), "weight must have the dtype of the rows");
  STD_TORCH_CHECK(weight.size(0) == idx.size(0) && weight.size(1) == idx.size(1), "weight must have idx's shape");
  STD_TORCH_CHECK(idx.numel() < std::numeric_limits<int32_t>::max(), "idx must have fewer than 2^31 - 1 entries");
}

}  // namespace
}  // namespace pointcept3m
