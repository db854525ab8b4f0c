// Points of a block projected into one view after the other. Include common/exact_math.h first: which points a view
// sees must not depend on what serves the op.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/simd.h"
#include "view_fusion/arguments.h"

namespace pointcept3m {
namespace {

constexpr int64_t kBlock = 256;  // points that are taken together

// Coordinates of up to kBlock points, and where the view at hand sees them.
struct Block {
  int64_t count;
  alignas(64) double coord[3][kBlock];
  alignas(64) float u[kBlock], v[kBlock];  // NaN where z is not positive and finite
  alignas(64) double z[kBlock];
  // Centre and half size of the box around what is finite; a negative size where nothing is.
  double centre[3], half[3];
};

// The points with these numbers, or, without numbers, those from `begin` on.
inline void fill_block(Block& block, const float* coord, const int32_t* numbers, int64_t begin, int64_t count) {
  block.count = count;
  for (int64_t i = 0; i < count; ++i) {
    const float* point = coord + 3 * (numbers ? numbers[begin + i] : begin + i);
    for (int d = 0; d < 3; ++d) block.coord[d][i] = point[d];
  }
}

inline void measure_block(Block& block) {
  constexpr double far = std::numeric_limits<double>::infinity();
  double least[3] = {far, far, far}, most[3] = {-far, -far, -far};
  for (int64_t i = 0; i < block.count; ++i) {
    const double x = block.coord[0][i], y = block.coord[1][i], z = block.coord[2][i];
    if (!(std::isfinite(x) && std::isfinite(y) && std::isfinite(z))) continue;
    const double at[3] = {x, y, z};
    for (int d = 0; d < 3; ++d) {
      least[d] = std::min(least[d], at[d]);
      most[d] = std::max(most[d], at[d]);
    }
  }
  for (int d = 0; d < 3; ++d) {
    const bool any = least[d] <= most[d];
    block.centre[d] = any ? (least[d] + most[d]) / 2 : 0;
    block.half[d] = any ? (most[d] - least[d]) / 2 : -1;
  }
}

// Whether some point of the box can lie where `plane . (x, 1)` is positive, rounding allowed for.
inline bool reaches(const Block& block, const double* plane) {
  double value = plane[3], size = std::abs(plane[3]), reach = 0;
  for (int d = 0; d < 3; ++d) {
    value += plane[d] * block.centre[d];
    reach += std::abs(plane[d]) * block.half[d];
    size += std::abs(plane[d] * block.centre[d]);
  }
  return value + reach + 1e-9 * (size + reach) > 0;
}

// Whether a view may see some of a block. The planes are those of the image's edges, moved out by a hundredth of a
// pixel, which is more than the rounding of pixels.
inline bool may_see(const Views& views, int64_t view, const Block& block) {
  if (block.half[0] < 0) return false;
  const double* m = views.matrix + 12 * view;
  if (!reaches(block, m + 8)) return false;
  const double edges[4][2] = {{1, views.low - 0.01}, {-1, views.right + 0.01}, {1, views.low - 0.01},
                              {-1, views.bottom + 0.01}};
  for (int side = 0; side < 4; ++side) {
    const double* row = m + 4 * (side / 2);
    double plane[4];
    for (int k = 0; k < 4; ++k) plane[k] = edges[side][0] * (row[k] - edges[side][1] * m[8 + k]);
    if (!reaches(block, plane)) return false;
  }
  return true;
}

P3M_KERNEL void project_block(const double* m, Block& block) {
  const double *x = block.coord[0], *y = block.coord[1], *z = block.coord[2];
  constexpr double none = std::numeric_limits<double>::quiet_NaN(), far = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < block.count; ++i) {
    const double across = ((x[i] * m[0] + y[i] * m[1]) + z[i] * m[2]) + m[3];
    const double down = ((x[i] * m[4] + y[i] * m[5]) + z[i] * m[6]) + m[7];
    const double away = ((x[i] * m[8] + y[i] * m[9]) + z[i] * m[10]) + m[11];
    const double by = (away > 0) & (away < far) ? away : none;
    block.u[i] = static_cast<float>(across / by);
    block.v[i] = static_cast<float>(down / by);
    block.z[i] = away;
  }
}

// The test of a point whose pixel is known.
P3M_INLINE bool is_visible(const Views& views, int64_t view, float u, float v, double z) {
  if (!((u >= views.low) & (u < views.right) & (v >= views.low) & (v < views.bottom))) return false;
  if (!views.depth) return true;
  const int64_t pixel = (view * views.height + static_cast<int64_t>(v)) * views.width + static_cast<int64_t>(u);
  const double depth = views.depth[pixel];
  return (depth > 0) & (depth < std::numeric_limits<double>::infinity()) &
         (std::abs(depth - z) <= views.tolerance * depth);
}

}  // namespace
}  // namespace pointcept3m
