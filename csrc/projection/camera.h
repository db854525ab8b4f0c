// Gaussians in front of a pinhole camera: the local affine approximation of their projection (EWA splatting).
#pragma once

#include "projection/lane_math.h"

namespace pointcept3m {
namespace {

constexpr double kAlphaMin = 1.0 / 255.0;  // an alpha below this does not count, as in gsplat
constexpr double kMaxExtent = 3.33;        // standard deviations at which a Gaussian of opacity 1 falls below it
constexpr double kCompensationMin = 0.005;
constexpr double kMaxRadius = 1e9;

struct Settings {
  int64_t width, height;
  double near_plane, far_plane, radius_clip, eps2d;
  bool antialiased;
};

// World to camera, and intrinsics without skew.
template <typename T>
struct Camera {
  T linear[3][3], shift[3];
  T fx, fy, cx, cy;
  T low_x, high_x, low_y, high_y;  // directions are kept within 1.3 times the field of view

  Camera(const T* viewmat, const T* K, const Settings& settings) : fx(K[0]), fy(K[4]), cx(K[2]), cy(K[5]) {
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) linear[i][j] = viewmat[4 * i + j];
      shift[i] = viewmat[4 * i + 3];
    }
    const T width = settings.width, height = settings.height;
    const T margin_x = T(0.15) * width / fx, margin_y = T(0.15) * height / fy;
    low_x = -cx / fx - margin_x, high_x = (width - cx) / fx + margin_x;
    low_y = -cy / fy - margin_y, high_y = (height - cy) / fy + margin_y;
  }
};

// Gaussians that every camera sees alike: where they are, and the root of their covariance, rotation times scales.
template <typename T>
struct Shape {
  Lanes<T> mean[3], scale[3], quat[4], inverse_norm, rotation[3][3], opacity;

  P3M_INLINE Shape(const T* means, const T* quats, const T* scales, const T* opacities, int count) {
    for (int i = 0; i < 3; ++i) mean[i] = gather(means + i, 3, count);
    for (int i = 0; i < 3; ++i) scale[i] = gather(scales + i, 3, count);
    Lanes<T> square{};
    for (int i = 0; i < 4; ++i) quat[i] = gather(quats + i, 4, count);
    for (int i = 0; i < 4; ++i) square += quat[i] * quat[i];
    inverse_norm = T(1) / higher<T>(square_root<T>(square), all_lanes(T(1e-12)));
    for (int i = 0; i < 4; ++i) quat[i] *= inverse_norm;
    opacity = gather(opacities, 1, count);
    const Lanes<T> w = quat[0], x = quat[1], y = quat[2], z = quat[3];
    rotation[0][0] = T(1) - T(2) * (y * y + z * z);
    rotation[0][1] = T(2) * (x * y - w * z);
    rotation[0][2] = T(2) * (x * z + w * y);
    rotation[1][0] = T(2) * (x * y + w * z);
    rotation[1][1] = T(1) - T(2) * (x * x + z * z);
    rotation[1][2] = T(2) * (y * z - w * x);
    rotation[2][0] = T(2) * (x * z - w * y);
    rotation[2][1] = T(2) * (y * z + w * x);
    rotation[2][2] = T(1) - T(2) * (x * x + y * y);
  }

  P3M_INLINE Lanes<T> root(int i, int k) const { return rotation[i][k] * scale[k]; }
};

// What forward and backward both need of Gaussians before one camera.
template <typename T>
struct Seen {
  Lanes<T> position[3], inverse_z, x, y;    // in the camera; x and y over z
  Lanes<T> in_range;                        // 1 or 0: between the planes
  Lanes<T> x_kept, y_kept;                  // within the field of view
  Lanes<T> root[3][3], row_x[3], row_y[3];  // of the covariance, in the camera and on the image
  Lanes<T> xx, xy, yy, blurred_xx, blurred_yy, determinant, inverse_determinant;
  Lanes<T> ratio, compensation;             // of areas before and after `eps2d`, and what that does to the opacity

  P3M_INLINE Seen(const Shape<T>& shape, const Camera<T>& camera, const Settings& settings) {
    for (int i = 0; i < 3; ++i) {
      position[i] = all_lanes(camera.shift[i]);
      for (int j = 0; j < 3; ++j) position[i] += camera.linear[i][j] * shape.mean[j];
      for (int k = 0; k < 3; ++k)
        root[i][k] = camera.linear[i][0] * shape.root(0, k) + camera.linear[i][1] * shape.root(1, k) +
                     camera.linear[i][2] * shape.root(2, k);
    }
    const Lanes<T> z = position[2], one = all_lanes(T(1)), zero{};
    in_range = z >= T(settings.near_plane) ? one : zero;
    in_range = z <= T(settings.far_plane) ? in_range : zero;
    inverse_z = T(1) / (in_range > T(0) ? z : one);
    x = position[0] * inverse_z, y = position[1] * inverse_z;
    x_kept = lower<T>(higher<T>(x, all_lanes(camera.low_x)), all_lanes(camera.high_x));
    y_kept = lower<T>(higher<T>(y, all_lanes(camera.low_y)), all_lanes(camera.high_y));
    xx = xy = yy = zero;
    for (int k = 0; k < 3; ++k) {
      row_x[k] = camera.fx * inverse_z * (root[0][k] - x_kept * root[2][k]);
      row_y[k] = camera.fy * inverse_z * (root[1][k] - y_kept * root[2][k]);
      xx += row_x[k] * row_x[k];
      xy += row_x[k] * row_y[k];
      yy += row_y[k] * row_y[k];
    }
    blurred_xx = xx + T(settings.eps2d), blurred_yy = yy + T(settings.eps2d);
    determinant = blurred_xx * blurred_yy - xy * xy;
    in_range = determinant > T(0) ? in_range : zero;
    inverse_determinant = T(1) / (in_range > T(0) ? determinant : one);
    ratio = compensation = one;
    if (settings.antialiased) {
      ratio = (xx * yy - xy * xy) * inverse_determinant;
      compensation = square_root<T>(higher<T>(ratio, all_lanes(T(kCompensationMin * kCompensationMin))));
    }
  }
};

}  // namespace
}  // namespace pointcept3m
