// The projection's gradients, by the chain rule from the image back to the world and to the camera.
#pragma once

#include "projection/camera.cuh"

namespace pointcept3m {
namespace {

// Gradients of one camera: the linear part of viewmat row by row, shift, fx, fy, cx, cy.
constexpr int kCameraGrads = 16;
constexpr int kShift = 9, kFx = 12, kFy = 13, kCx = 14, kCy = 15;

// Gradients that gather over cameras.
template <class T>
struct ShapeGrads {
  T mean[3] = {}, root[3][3] = {}, opacity = T(0);
};

// What comes from above for one Gaussian in one camera.
template <class T>
struct Above {
  T u, v, a, b, c, depth, opacity;
};

// The gradient of x/z where it was kept within the field of view: to itself, or through the bound to the intrinsics.
template <class T>
__device__ __forceinline__ void kept_grad(T grad, T value, T kept, T focal, T* to_value, T* to_focal, T* to_centre) {
  const bool inside = value == kept;
  const T outside = inside ? T(0) : grad / focal;
  if (inside) *to_value += grad;
  *to_focal -= outside * kept;
  *to_centre -= outside;
}

template <class T>
__device__ __forceinline__ void project_back(const Shape<T>& shape, const Camera<T>& camera, const Settings& settings,
                                             const Above<T>& above, ShapeGrads<T>* to,
                                             T (&camera_grads)[kCameraGrads]) {
  const Seen<T> seen(shape, camera, settings);
  const T inverse = seen.inverse_determinant;
  // conic = (yy', -xy, xx') / determinant, opacity = opacity sqrt(ratio)
  T g_xx = above.c * inverse, g_xy = -above.b * inverse, g_yy = above.a * inverse;
  T g_inverse = above.a * seen.blurred_yy - above.b * seen.xy + above.c * seen.blurred_xx;
  to->opacity += above.opacity * seen.compensation;
  if (settings.antialiased && seen.ratio >= T(kCompensationMin * kCompensationMin)) {
    const T g_ratio = T(0.5) * above.opacity * shape.opacity / seen.compensation, g_area = g_ratio * inverse;
    g_inverse += g_ratio * (seen.xx * seen.yy - seen.xy * seen.xy);
    g_xx += g_area * seen.yy, g_yy += g_area * seen.xx, g_xy -= T(2) * g_area * seen.xy;
  }
  const T g_det = seen.in_range ? -inverse * inverse * g_inverse : T(0);
  g_xx += g_det * seen.blurred_yy, g_yy += g_det * seen.blurred_xx, g_xy -= T(2) * g_det * seen.xy;

  // row_x = fx / z (root_x - x root_z), and so for y
  const T fx = camera.fx * seen.inverse_z, fy = camera.fy * seen.inverse_z;
  T g_root[3][3], g_fx = T(0), g_fy = T(0), g_x_kept = T(0), g_y_kept = T(0);
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const T g_row_x = T(2) * g_xx * seen.row_x[k] + g_xy * seen.row_y[k];
    const T g_row_y = T(2) * g_yy * seen.row_y[k] + g_xy * seen.row_x[k];
    g_root[0][k] = fx * g_row_x, g_root[1][k] = fy * g_row_y;
    g_root[2][k] = -(seen.x_kept * g_root[0][k] + seen.y_kept * g_root[1][k]);
    g_fx += g_row_x * (seen.root[0][k] - seen.x_kept * seen.root[2][k]);
    g_fy += g_row_y * (seen.root[1][k] - seen.y_kept * seen.root[2][k]);
    g_x_kept -= g_root[0][k] * seen.root[2][k], g_y_kept -= g_root[1][k] * seen.root[2][k];
  }
  T g_inverse_z = g_fx * camera.fx + g_fy * camera.fy;
  T g_x = above.u * camera.fx, g_y = above.v * camera.fy, g_cx = above.u, g_cy = above.v;
  g_fx = g_fx * seen.inverse_z + above.u * seen.x;
  g_fy = g_fy * seen.inverse_z + above.v * seen.y;
  kept_grad(g_x_kept, seen.x, seen.x_kept, camera.fx, &g_x, &g_fx, &g_cx);
  kept_grad(g_y_kept, seen.y, seen.y_kept, camera.fy, &g_y, &g_fy, &g_cy);

  // x = X / z; z counts only between the planes, elsewhere 1 stands for it
  g_inverse_z += g_x * seen.position[0] + g_y * seen.position[1];
  const T g_z = seen.between_planes ? seen.inverse_z * seen.inverse_z * g_inverse_z : T(0);
  const T g_position[3] = {g_x * seen.inverse_z, g_y * seen.inverse_z, above.depth - g_z};
  camera_grads[kFx] = g_fx, camera_grads[kFy] = g_fy, camera_grads[kCx] = g_cx, camera_grads[kCy] = g_cy;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    camera_grads[kShift + i] = g_position[i];
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      T linear = g_position[i] * shape.mean[j];
      to->mean[j] += camera.linear[i][j] * g_position[i];
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        linear += g_root[i][k] * shape.root(j, k);
        to->root[j][k] += camera.linear[i][j] * g_root[i][k];
      }
      camera_grads[3 * i + j] = linear;
    }
  }
}

template <class T>
struct GaussianGrads {
  T *means, *quats, *scales, *opacities;
};

// root = rotation(quat / |quat|) scales
template <class T>
__device__ __forceinline__ void write_shape_grads(const Shape<T>& shape, const ShapeGrads<T>& grads, int64_t at,
                                                  const GaussianGrads<T>& to) {
  T g[3][3];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    T g_scale = T(0);
#pragma unroll
    for (int row = 0; row < 3; ++row) {
      g_scale += grads.root[row][k] * shape.rotation[row][k];
      g[row][k] = T(2) * grads.root[row][k] * shape.scale[k];
    }
    to.scales[3 * at + k] = g_scale;
    to.means[3 * at + k] = grads.mean[k];
  }
  to.opacities[at] = grads.opacity;
  const T w = shape.quat[0], x = shape.quat[1], y = shape.quat[2], z = shape.quat[3];
  const T g_quat[4] = {
      x * (g[2][1] - g[1][2]) + y * (g[0][2] - g[2][0]) + z * (g[1][0] - g[0][1]),
      w * (g[2][1] - g[1][2]) + y * (g[0][1] + g[1][0]) + z * (g[0][2] + g[2][0]) - T(2) * x * (g[1][1] + g[2][2]),
      w * (g[0][2] - g[2][0]) + x * (g[0][1] + g[1][0]) + z * (g[1][2] + g[2][1]) - T(2) * y * (g[0][0] + g[2][2]),
      w * (g[1][0] - g[0][1]) + x * (g[0][2] + g[2][0]) + y * (g[1][2] + g[2][1]) - T(2) * z * (g[0][0] + g[1][1])};
  T along = T(0);
#pragma unroll
  for (int k = 0; k < 4; ++k) along += g_quat[k] * shape.quat[k];
#pragma unroll
  for (int k = 0; k < 4; ++k) to.quats[4 * at + k] = (g_quat[k] - along * shape.quat[k]) * shape.inverse_norm;
}

}  // namespace
}  // namespace pointcept3m
