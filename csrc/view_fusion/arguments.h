// What the kernels of visible_points and fuse_views, on the CPU and on CUDA, are given.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "common/check.h"

namespace pointcept3m {

// Views and the test of what they see. A matrix, 3 x 4 in float64, gives u z, v z and z of a point.
struct Views {
  const double* matrix;
  const float* depth;  // [count, height, width] or null
  int64_t count, height, width;
  double tolerance;
  float low, right, bottom;  // low <= u < right and low <= v < bottom
};

// Feature maps with channels last, stretched over the images.
struct Maps {
  const float* cells;  // [views, rows, columns, channels]
  int64_t rows, columns, channels;
  bool bilinear;
};

inline Views views_of(const Tensor& coord, const Tensor& matrix, int64_t height, int64_t width,
                      const std::optional<Tensor>& depth, double tolerance, int64_t border) {
  STD_TORCH_CHECK(coord.scalar_type() == ScalarType::Float && coord.dim() == 2 && coord.size(1) == 3,
                  "coord must be float32 [N, 3]");
  STD_TORCH_CHECK(coord.size(0) < std::numeric_limits<int32_t>::max(), "coord must have fewer than 2^31 - 1 rows");
  STD_TORCH_CHECK(matrix.scalar_type() == ScalarType::Double && matrix.dim() == 3 && matrix.size(1) == 3 &&
                      matrix.size(2) == 4,
                  "matrix must be float64 [V, 3, 4]");
  STD_TORCH_CHECK(height > 0 && width > 0 && height < 1 << 24 && width < 1 << 24, "no images of this size");
  STD_TORCH_CHECK(border >= 0, "border must be 0 or more");
  if (depth) {
    STD_TORCH_CHECK(depth->scalar_type() == ScalarType::Float && depth->dim() == 3 &&
                        depth->size(0) == matrix.size(0) && depth->size(1) == height && depth->size(2) == width,
                    "depth must be float32 [V, height, width]");
  }
  return {matrix.const_data_ptr<double>(),
          depth ? depth->const_data_ptr<float>() : nullptr,
          matrix.size(0),
          height,
          width,
          tolerance,
          static_cast<float>(border),
          static_cast<float>(width - border),
          static_cast<float>(height - border)};
}

inline Maps maps_of(const Tensor& total, const Tensor& count, const Tensor& coord, const Tensor& maps,
                    const Tensor& matrix, bool bilinear) {
  STD_TORCH_CHECK(maps.scalar_type() == ScalarType::Float && maps.dim() == 4 && maps.size(0) == matrix.size(0) &&
                      maps.size(1) > 0 && maps.size(2) > 0,
                  "maps must be float32 [V, h, w, C] with cells");
  STD_TORCH_CHECK(maps.size(1) < 1 << 24 && maps.size(2) < 1 << 24, "no maps of this size");
  STD_TORCH_CHECK(total.scalar_type() == ScalarType::Float && total.dim() == 2 && total.size(0) == coord.size(0) &&
                      total.size(1) == maps.size(3),
                  "total must be float32 [N, C]");
  STD_TORCH_CHECK(count.scalar_type() == ScalarType::Int && count.dim() == 1 && count.size(0) == coord.size(0),
                  "count must be int32 [N]");
  return {maps.const_data_ptr<float>(), maps.size(1), maps.size(2), maps.size(3), bilinear};
}

// Whether maps [V, h, w, C] lie in memory as [V, C, h, w].
inline bool is_channels_first(const Tensor& maps) {
  const int64_t cells = maps.size(1) * maps.size(2);
  const int64_t step[4] = {cells * maps.size(3), maps.size(2), 1, cells};
  for (int d = 0; d < 4; ++d)
    if (maps.size(d) > 1 && maps.stride(d) != step[d]) return false;
  return true;
}

}  // namespace pointcept3m
