// What the ops on clusters ask of their arguments, on any device.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "common/check.h"

namespace pointcept3m {

constexpr int64_t kMaxPoints = int64_t{1} << 30;

// Squares of radii in this range are normal float32 numbers, and so are their sums.
constexpr double kMinRadius = 1e-15, kMaxRadius = 1e15;

inline void check_coord_and_radius(const Tensor& coord, double radius) {
  STD_TORCH_CHECK(coord.dim() == 2 && coord.size(1) == 3, "coord must have shape [N, 3]");
  const auto dtype = coord.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "coord must be float32 or float64");
  STD_TORCH_CHECK(coord.size(0) < kMaxPoints, "coord must have fewer than 2^30 rows, got ", coord.size(0));
  STD_TORCH_CHECK(radius >= kMinRadius && radius <= kMaxRadius, "radius must lie in [1e-15, 1e15], got ", radius);
}

// offset on the host: cumulative ends of the batch items.
inline void check_ends(const int64_t* ends, int64_t num_items, int64_t num_points) {
  int64_t last = 0;
  bool ascending = true;
  for (int64_t b = 0; b < num_items; ++b) {
    ascending = ascending && ends[b] >= last;
    last = ends[b];
  }
  STD_TORCH_CHECK(ascending && last == num_points, "offset must ascend from 0 or more to the number of points, ",
                  num_points);
}

inline void check_vector(const Tensor& tensor, ScalarType dtype, const char* text) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.scalar_type() == dtype, text);
}

inline void check_cloud(const Tensor& coord, const Tensor& offset, double radius) {
  check_contiguous_cpu(coord, "coord");
  check_contiguous_cpu(offset, "offset");
  check_coord_and_radius(coord, radius);
  check_vector(offset, ScalarType::Long, "offset must be int64 of shape [B]");
  check_ends(offset.const_data_ptr<int64_t>(), offset.size(0), coord.size(0));
}

inline void check_lists(const Tensor& label, const Tensor& idx, const Tensor& start_len) {
  check_vector(label, ScalarType::Long, "label must be int64 of shape [N]");
  check_vector(idx, ScalarType::Int, "idx must be int32 of shape [nActive]");
  STD_TORCH_CHECK(start_len.dim() == 2 && start_len.size(0) == label.size(0) && start_len.size(1) == 2 &&
                      start_len.scalar_type() == ScalarType::Int,
                  "start_len must be int32 of shape [N, 2]");
  STD_TORCH_CHECK(label.size(0) < kMaxPoints, "label must have fewer than 2^30 rows, got ", label.size(0));
}

constexpr const char* kBadLists =
    "bfs_cluster: start_len names entries outside ball_query_idxs, or those name points outside [0, N)";

inline std::vector<int32_t> item_of_points(const Tensor& offset, int64_t num_points) {
  const int64_t* ends = offset.const_data_ptr<int64_t>();
  std::vector<int32_t> item(num_points);
  for (int64_t b = 0, i = 0; b < offset.size(0); ++b)
    for (; i < ends[b]; ++i) item[i] = static_cast<int32_t>(b);
  return item;
}

inline void check_total(int64_t total) {
  STD_TORCH_CHECK(total <= std::numeric_limits<int32_t>::max(), "ballquery_batch_p: ", total,
                  " neighbours do not fit the int32 indices of the result; take a smaller radius, or cluster_points, "
                  "which needs no lists");
}

}  // namespace pointcept3m
