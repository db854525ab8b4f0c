// What the CPU and the CUDA kernels of voxelize check alike.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "common/check.h"

namespace pointcept3m {
namespace {

constexpr double kMaxCell = 4611686018427387904.0;  // 2^62: cells, their differences and keys fit an int64
constexpr int64_t kMaxClouds = 1 << 24;             // a larger number in `batch` is not the index of a cloud

// `check` says whether a tensor is on the right device and contiguous.
inline void check_arguments(void (*check)(const Tensor&, const char*), const Tensor& coord,
                            const std::vector<double>& grid_size, const std::optional<Tensor>& batch,
                            const std::vector<double>& origin) {
  check(coord, "coord");
  const auto dtype = coord.scalar_type();
  constexpr double largest = std::numeric_limits<double>::max();
  STD_TORCH_CHECK(coord.dim() == 2 && coord.size(1) == 3, "coord must have shape [points, 3]");
  STD_TORCH_CHECK(coord.size(0) < (int64_t{1} << 31), "voxelize takes fewer than 2^31 points");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "coord must be float32 or float64");
  STD_TORCH_CHECK(grid_size.size() == 3, "grid_size must have three entries");
  for (double size : grid_size) STD_TORCH_CHECK(size > 0 && size <= largest, "grid_size must be positive and finite");
  STD_TORCH_CHECK(origin.empty() || origin.size() == 3, "origin must have three entries or none");
  for (double value : origin) STD_TORCH_CHECK(std::abs(value) <= largest, "origin must be finite");
  if (!batch) return;
  check(*batch, "batch");
  STD_TORCH_CHECK(batch->dim() == 1 && batch->size(0) == coord.size(0) && batch->scalar_type() == ScalarType::Long,
                  "batch must be int64 of shape [points]");
}

inline void check_keys(void (*check)(const Tensor&, const char*), const Tensor& keys) {
  check(keys, "keys");
  STD_TORCH_CHECK(keys.dim() == 1 && keys.scalar_type() == ScalarType::Long, "keys must be int64 of shape [rows]");
  STD_TORCH_CHECK(keys.size(0) < (int64_t{1} << 31), "group_keys takes fewer than 2^31 rows");
}

// The number of clouds where `batch` lies in [least, most]; a negative `num_clouds` leaves it to the largest index.
inline int64_t check_clouds(int64_t least, int64_t most, int64_t num_clouds) {
  STD_TORCH_CHECK(num_clouds <= kMaxClouds, "voxelize takes at most 2^24 clouds");
  STD_TORCH_CHECK(least >= 0 && most < (num_clouds < 0 ? kMaxClouds : num_clouds),
                  "batch has values outside [0, num_clouds)");
  return num_clouds < 0 ? most + 1 : num_clouds;
}

// The largest key of a box of cells in each of `num_clouds` clouds; an error where keys would not fit 62 bits.
inline uint64_t largest_key(int64_t num_clouds, const int64_t* size) {
  double product = static_cast<double>(num_clouds);
  for (int d = 0; d < 3; ++d) product *= static_cast<double>(size[d]);
  STD_TORCH_CHECK(product < kMaxCell, "coord spans more than 2^62 cells");
  return num_clouds ? static_cast<uint64_t>(num_clouds) * size[0] * size[1] * size[2] - 1 : 0;
}

}  // namespace
}  // namespace pointcept3m
