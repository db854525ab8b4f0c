// The projection's gradients, by the chain rule from the image back to the world and to the cameras.
#pragma once

#include "projection/project_forward.h"

namespace pointcept3m {
namespace {

template <typename T>
struct ProjectedGrads {
  const T *means2d, *conics, *depths, *opacities;
  const int32_t* radii;  // of the forward: 0 where not seen
};

template <typename T>
struct GaussianGrads {
  T *means, *quats, *scales, *opacities;
};

// Sums over Gaussians of the gradients of a camera: viewmat rows 0 to 2 and fx, fy, cx, cy.
constexpr int kCameraGrads = 16;

template <typename T>
struct CameraSums {
  Lanes<T> linear[3][3], shift[3], fx, fy, cx, cy;
};
template <typename T>
constexpr int64_t kCameraSums = kCameraGrads * kLanes<T>;

// Gradients that gather over cameras.
template <typename T>
struct ShapeGrads {
  Lanes<T> mean[3] = {}, root[3][3] = {}, opacity = {};
};

// What comes from above for one vector of Gaussians in one camera. `valid`: 1, or 0 in the lanes that are filled up.
template <typename T>
struct Above {
  Lanes<T> u, v, a, b, c, depth, opacity;

  P3M_INLINE Above(const ProjectedGrads<T>& grads, int64_t at, int count) {
    const auto take = [&](const T* source, int64_t stride) {
      Lanes<T> value{};
      for (int i = 0; i < count; ++i) value[i] = source[i * stride];
      return value;
    };
    u = take(grads.means2d + 2 * at, 2), v = take(grads.means2d + 2 * at + 1, 2);
    a = take(grads.conics + 3 * at, 3), b = take(grads.conics + 3 * at + 1, 3), c = take(grads.conics + 3 * at + 2, 3);
    depth = take(grads.depths + at, 1), opacity = take(grads.opacities + at, 1);
    for (int i = 0; i < count; ++i) opacity[i] = grads.radii[2 * (at + i)] > 0 ? opacity[i] : T(0);
  }
};

// The gradients of x/z where it was kept within the field of view: to itself, or through the bound to the intrinsics.
template <typename T>
P3M_INLINE void kept_grad(Lanes<T> grad, Lanes<T> value, Lanes<T> kept, T focal, Lanes<T>& to_value, Lanes<T>& to_focal,
                          Lanes<T>& to_centre) {
  const Lanes<T> zero{}, outside = value == kept ? zero : grad / focal;
  to_value += value == kept ? grad : zero;
  to_focal -= outside * kept;
  to_centre -= outside;
}

template <typename T>
P3M_INLINE void project_back(const Shape<T>& shape, const Camera<T>& camera, const Settings& settings,
                             const Above<T>& above, ShapeGrads<T>& to, CameraSums<T>& sums) {
  const Seen<T> seen(shape, camera, settings);
  const Lanes<T> zero{}, inverse = seen.inverse_determinant;
  // conic = (yy', -xy, xx') / determinant, opacity = opacity sqrt(ratio)
  Lanes<T> g_xx = above.c * inverse, g_xy = -above.b * inverse, g_yy = above.a * inverse;
  Lanes<T> g_inverse = above.a * seen.blurred_yy - above.b * seen.xy + above.c * seen.blurred_xx;
  to.opacity += above.opacity * seen.compensation;
  if (settings.antialiased) {
    Lanes<T> g_ratio = T(0.5) * above.opacity * shape.opacity / seen.compensation;
    g_ratio = seen.ratio >= T(kCompensationMin * kCompensationMin) ? g_ratio : zero;
    g_inverse += g_ratio * (seen.xx * seen.yy - seen.xy * seen.xy);
    const Lanes<T> g_area = g_ratio * inverse;
    g_xx += g_area * seen.yy, g_yy += g_area * seen.xx, g_xy -= T(2) * g_area * seen.xy;
  }
  const Lanes<T> g_det = seen.in_range > T(0) ? -inverse * inverse * g_inverse : zero;
  g_xx += g_det * seen.blurred_yy, g_yy += g_det * seen.blurred_xx, g_xy -= T(2) * g_det * seen.xy;

  // row_x = fx / z (root_x - x root_z), and so for y
  const Lanes<T> fx = camera.fx * seen.inverse_z, fy = camera.fy * seen.inverse_z;
  Lanes<T> g_root[3][3], g_fx{}, g_fy{}, g_x_kept{}, g_y_kept{};
  for (int k = 0; k < 3; ++k) {
    const Lanes<T> g_row_x = T(2) * g_xx * seen.row_x[k] + g_xy * seen.row_y[k];
    const Lanes<T> g_row_y = T(2) * g_yy * seen.row_y[k] + g_xy * seen.row_x[k];
    g_root[0][k] = fx * g_row_x, g_root[1][k] = fy * g_row_y;
    g_root[2][k] = -(seen.x_kept * g_root[0][k] + seen.y_kept * g_root[1][k]);
    g_fx += g_row_x * (seen.root[0][k] - seen.x_kept * seen.root[2][k]);
    g_fy += g_row_y * (seen.root[1][k] - seen.y_kept * seen.root[2][k]);
    g_x_kept -= g_root[0][k] * seen.root[2][k], g_y_kept -= g_root[1][k] * seen.root[2][k];
  }
  Lanes<T> g_inverse_z = g_fx * camera.fx + g_fy * camera.fy;
  g_fx *= seen.inverse_z, g_fy *= seen.inverse_z;
  Lanes<T> g_x = above.u * camera.fx, g_y = above.v * camera.fy, g_cx = above.u, g_cy = above.v;
  g_fx += above.u * seen.x, g_fy += above.v * seen.y;
  kept_grad<T>(g_x_kept, seen.x, seen.x_kept, camera.fx, g_x, g_fx, g_cx);
  kept_grad<T>(g_y_kept, seen.y, seen.y_kept, camera.fy, g_y, g_fy, g_cy);
  sums.fx += g_fx, sums.fy += g_fy, sums.cx += g_cx, sums.cy += g_cy;

  // x = X / z; z counts only between the planes, elsewhere 1 stands for it
  g_inverse_z += g_x * seen.position[0] + g_y * seen.position[1];
  const Lanes<T> z = seen.position[2];
  Lanes<T> g_z = z >= T(settings.near_plane) ? seen.inverse_z * seen.inverse_z * g_inverse_z : zero;
  g_z = z <= T(settings.far_plane) ? g_z : zero;
  const Lanes<T> g_position[3] = {g_x * seen.inverse_z, g_y * seen.inverse_z, above.depth - g_z};
  for (int i = 0; i < 3; ++i) {
    sums.shift[i] += g_position[i];
    for (int j = 0; j < 3; ++j) {
      sums.linear[i][j] += g_position[i] * shape.mean[j];
      to.mean[j] += camera.linear[i][j] * g_position[i];
      for (int k = 0; k < 3; ++k) {
        sums.linear[i][j] += g_root[i][k] * shape.root(j, k);
        to.root[j][k] += camera.linear[i][j] * g_root[i][k];
      }
    }
  }
}

// root = rotation(quat / |quat|) scales
template <typename T>
P3M_INLINE void write_shape_grads(const Shape<T>& shape, const ShapeGrads<T>& grads, int64_t i, int count,
                                  const GaussianGrads<T>& out) {
  Lanes<T> g[3][3];
  for (int k = 0; k < 3; ++k) {
    Lanes<T> g_scale{};
    for (int row = 0; row < 3; ++row) {
      g_scale += grads.root[row][k] * shape.rotation[row][k];
      g[row][k] = T(2) * grads.root[row][k] * shape.scale[k];
    }
    scatter(out.scales + 3 * i + k, 3, count, g_scale);
    scatter(out.means + 3 * i + k, 3, count, grads.mean[k]);
  }
  scatter(out.opacities + i, 1, count, grads.opacity);
  const Lanes<T> w = shape.quat[0], x = shape.quat[1], y = shape.quat[2], z = shape.quat[3];
  const Lanes<T> g_quat[4] = {
      x * (g[2][1] - g[1][2]) + y * (g[0][2] - g[2][0]) + z * (g[1][0] - g[0][1]),
      w * (g[2][1] - g[1][2]) + y * (g[0][1] + g[1][0]) + z * (g[0][2] + g[2][0]) - T(2) * x * (g[1][1] + g[2][2]),
      w * (g[0][2] - g[2][0]) + x * (g[0][1] + g[1][0]) + z * (g[1][2] + g[2][1]) - T(2) * y * (g[0][0] + g[2][2]),
      w * (g[1][0] - g[0][1]) + x * (g[0][2] + g[2][0]) + y * (g[1][2] + g[2][1]) - T(2) * z * (g[0][0] + g[1][1])};
  Lanes<T> along{};
  for (int k = 0; k < 4; ++k) along += g_quat[k] * shape.quat[k];
  for (int k = 0; k < 4; ++k)
    scatter(out.quats + 4 * i + k, 4, count, (g_quat[k] - along * shape.quat[k]) * shape.inverse_norm);
}

// Gradients of Gaussians [begin, end), and their part of the cameras': `camera_grads` [C][kCameraGrads], written.
// `sums` [C][kCameraSums] is scratch.
template <typename T>
P3M_INLINE void project_range_back(const Gaussians<T>& gaussians, const Camera<T>* cameras, int64_t num_cameras,
                                   const Settings& settings, int64_t begin, int64_t end,
                                   const ProjectedGrads<T>& above, const GaussianGrads<T>& out, T* sums,
                                   T* camera_grads) {
  static_assert(sizeof(CameraSums<T>) == kCameraSums<T> * sizeof(T));
  std::fill_n(sums, num_cameras * kCameraSums<T>, T(0));
  for (int64_t i = begin; i < end; i += kLanes<T>) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes<T>, end - i));
    const Shape<T> shape = gaussians.at(i, count);
    ShapeGrads<T> grads;
    for (int64_t c = 0; c < num_cameras; ++c) {
      CameraSums<T> own;
      std::memcpy(&own, sums + c * kCameraSums<T>, sizeof(own));
      project_back(shape, cameras[c], settings, Above<T>(above, c * gaussians.count + i, count), grads, own);
      std::memcpy(sums + c * kCameraSums<T>, &own, sizeof(own));
    }
    write_shape_grads(shape, grads, i, count, out);
  }
  for (int64_t c = 0; c < num_cameras; ++c) {
    T* to = camera_grads + c * kCameraGrads;
    CameraSums<T> own;
    std::memcpy(&own, sums + c * kCameraSums<T>, sizeof(own));
    for (int row = 0; row < 3; ++row) {
      for (int column = 0; column < 3; ++column) to[4 * row + column] = sum_lanes<T>(own.linear[row][column]);
      to[4 * row + 3] = sum_lanes<T>(own.shift[row]);
    }
    to[12] = sum_lanes<T>(own.fx), to[13] = sum_lanes<T>(own.fy);
    to[14] = sum_lanes<T>(own.cx), to[15] = sum_lanes<T>(own.cy);
  }
}

}  // namespace
}  // namespace pointcept3m
