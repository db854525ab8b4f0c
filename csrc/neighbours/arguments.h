// What the ops on batches of points share about their arguments, on every device.
#pragma once

#include <limits>

#include "common/check.h"

namespace pointcept3m {
namespace {

inline void check_coord(const Tensor& coord, const char* name) {
  STD_TORCH_CHECK(coord.scalar_type() == ScalarType::Float || coord.scalar_type() == ScalarType::Double, name,
                  " must be float32 or float64");
  STD_TORCH_CHECK(coord.dim() == 2 && coord.size(1) == 3, name, " must have shape [N, 3]");
  STD_TORCH_CHECK(coord.size(0) < std::numeric_limits<int32_t>::max(), name, " must have fewer than 2^31 - 1 rows");
}

inline void check_offset_type(const Tensor& offset, const char* name) {
  STD_TORCH_CHECK(offset.scalar_type() == ScalarType::Long && offset.dim() == 1, name, " must be int64 of shape [B]");
}

// `offset`, in the host's memory: cumulative ends that reach num_rows.
inline void check_ends(const int64_t* offset, int64_t num_items, int64_t num_rows, const char* name) {
  int64_t before = 0;
  for (int64_t item = 0; item < num_items; ++item) {
    STD_TORCH_CHECK(offset[item] >= before, name, " must ascend");
    before = offset[item];
  }
  STD_TORCH_CHECK(before == num_rows, name, " must end at the number of rows, ", num_rows, ", got ", before);
}

}  // namespace
}  // namespace pointcept3m
