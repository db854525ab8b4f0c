// A Gaussian in front of a pinhole camera, one a thread: the local affine approximation of its projection (EWA
// splatting), with the conventions of camera.h.
#pragma once

#include "common/cuda.cuh"

#include <cmath>

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

template <class T>
__device__ __forceinline__ T higher(T a, T b) {
  return a > b ? a : b;
}
template <class T>
__device__ __forceinline__ T lower(T a, T b) {
  return a < b ? a : b;
}

// World to camera, and intrinsics without skew.
template <class T>
struct Camera {
  T linear[3][3], shift[3];
  T fx, fy, cx, cy;
  T low_x, high_x, low_y, high_y;  // directions are kept within 1.3 times the field of view

  __device__ __forceinline__ Camera(const T* viewmat, const T* K, const Settings& settings)
      : fx(K[0]), fy(K[4]), cx(K[2]), cy(K[5]) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
#pragma unroll
      for (int j = 0; j < 3; ++j) linear[i][j] = viewmat[4 * i + j];
      shift[i] = viewmat[4 * i + 3];
    }
    const T width = T(settings.width), height = T(settings.height);
    const T margin_x = T(0.15) * width / fx, margin_y = T(0.15) * height / fy;
    low_x = -cx / fx - margin_x, high_x = (width - cx) / fx + margin_x;
    low_y = -cy / fy - margin_y, high_y = (height - cy) / fy + margin_y;
  }
};

template <class T>
struct Gaussians {
  const T *means, *quats, *scales, *opacities;  // [G, 3], [G, 4], [G, 3], [G]
  int64_t count;
};

// What all cameras see alike: where it is, and the root of its covariance, rotation times scales.
template <class T>
struct Shape {
  T mean[3], scale[3], quat[4], inverse_norm, rotation[3][3], opacity;

  __device__ __forceinline__ Shape(const Gaussians<T>& from, int64_t at) : opacity(from.opacities[at]) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      mean[i] = from.means[3 * at + i];
      scale[i] = from.scales[3 * at + i];
    }
    T square = T(0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      quat[i] = from.quats[4 * at + i];
      square += quat[i] * quat[i];
    }
    inverse_norm = T(1) / higher(std::sqrt(square), T(1e-12));
#pragma unroll
    for (int i = 0; i < 4; ++i) quat[i] *= inverse_norm;
    const T w = quat[0], x = quat[1], y = quat[2], z = quat[3];
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

  __device__ __forceinline__ T root(int i, int k) const { return rotation[i][k] * scale[k]; }
};

// What forward and backward both need of a Gaussian before one camera.
template <class T>
struct Seen {
  T position[3], inverse_z, x, y;  // in the camera; x and y over z
  bool between_planes, in_range;   // in_range: and with a covariance that has an inverse
  T x_kept, y_kept;                // within the field of view
  T root[3][3], row_x[3], row_y[3];  // of the covariance, in the camera and on the image
  T xx, xy, yy, blurred_xx, blurred_yy, determinant, inverse_determinant;
  T ratio, compensation;           // of areas before and after `eps2d`, and what that does to the opacity

  __device__ __forceinline__ Seen(const Shape<T>& shape, const Camera<T>& camera, const Settings& settings) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      position[i] = camera.shift[i];
#pragma unroll
      for (int j = 0; j < 3; ++j) position[i] += camera.linear[i][j] * shape.mean[j];
#pragma unroll
      for (int k = 0; k < 3; ++k)
        root[i][k] = camera.linear[i][0] * shape.root(0, k) + camera.linear[i][1] * shape.root(1, k) +
                     camera.linear[i][2] * shape.root(2, k);
    }
    const T z = position[2];
    between_planes = z >= T(settings.near_plane) && z <= T(settings.far_plane);
    inverse_z = T(1) / (between_planes ? z : T(1));
    x = position[0] * inverse_z, y = position[1] * inverse_z;
    x_kept = lower(higher(x, camera.low_x), camera.high_x);
    y_kept = lower(higher(y, camera.low_y), camera.high_y);
    xx = xy = yy = T(0);
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      row_x[k] = camera.fx * inverse_z * (root[0][k] - x_kept * root[2][k]);
      row_y[k] = camera.fy * inverse_z * (root[1][k] - y_kept * root[2][k]);
      xx += row_x[k] * row_x[k];
      xy += row_x[k] * row_y[k];
      yy += row_y[k] * row_y[k];
    }
    blurred_xx = xx + T(settings.eps2d), blurred_yy = yy + T(settings.eps2d);
    determinant = blurred_xx * blurred_yy - xy * xy;
    in_range = between_planes && determinant > T(0);
    inverse_determinant = T(1) / (in_range ? determinant : T(1));
    ratio = compensation = T(1);
    if (settings.antialiased) {
      ratio = (xx * yy - xy * xy) * inverse_determinant;
      compensation = std::sqrt(higher(ratio, T(kCompensationMin * kCompensationMin)));
    }
  }
};

}  // namespace
}  // namespace pointcept3m
