// A projected Gaussian as the CUDA rasterizer reads it, its alpha at a pixel, and what it can reach.
//
// Conventions are those of the CPU kernels (splats.h) and of gsplat: a pixel's centre is its index + 0.5.
#pragma once

#include "common/cuda.cuh"

#include <cmath>
#include <type_traits>

namespace pointcept3m {

// alpha(d) = opacity 2^-(a dx^2 + b dx dy + c dy^2), d = pixel - centre; it is 1/255 where the exponent is `level`.
template <class T>
struct __align__(16) Splat {
  T x, y, a, b, c, opacity, level;
  int32_t gaussian;  // its row of channels
};

namespace {

constexpr double kAlphaMin = 1.0 / 255.0;         // an alpha below this does not count
constexpr double kAlphaMax = 0.99;                // the strongest alpha there is
constexpr double kTransmittanceMin = 1e-4;        // a pixel stops before the Gaussian that would bring it here
constexpr double kLog2e = 1.4426950408889634;
constexpr int kBlockWidth = 8, kBlockHeight = 4;  // the pixels of one warp, one a lane

__device__ __forceinline__ float exp2_of(float x) { return exp2f(x); }
__device__ __forceinline__ double exp2_of(double x) { return exp2(x); }
__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.0f, x); }
__device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }

// A Gaussian at a pixel.
template <class T>
struct Sample {
  T dx, dy, alpha;  // alpha already cut to 0.99
  bool counts;      // alpha >= 1/255
};

template <class T>
__device__ __forceinline__ Sample<T> sample(const Splat<T>& s, T x, T y) {
  const T dx = x - s.x, dy = y - s.y;
  const T exponent = s.a * dx * dx + s.c * dy * dy + s.b * dx * dy;
  const T alpha = s.opacity * exp2_of(-exponent);
  return {dx, dy, alpha < T(kAlphaMax) ? alpha : T(kAlphaMax), exponent >= T(0) && alpha >= T(kAlphaMin)};
}

// Whether the ellipse alpha >= 1/255 can hold the centre of one of the 8x4 pixels whose first has its centre at (x, y).
// The least exponent over a rectangle that does not hold the centre lies on an edge that faces the centre.
template <class T>
__device__ __forceinline__ bool touches(const Splat<T>& s, T x, T y) {
  const T left = x - s.x, right = left + T(kBlockWidth - 1), top = y - s.y, bottom = top + T(kBlockHeight - 1);
  const T edge_x = left > T(0) ? left : right, edge_y = top > T(0) ? top : bottom;  // where they face the centre
  const bool beside = left > T(0) || right < T(0), above = top > T(0) || bottom < T(0);
  if (!beside && !above) return true;
  const T at_y = min(max(-s.b * edge_x / (T(2) * s.c), top), bottom);
  const T at_x = min(max(-s.b * edge_y / (T(2) * s.a), left), right);
  const T on_side = (s.a * edge_x + s.b * at_y) * edge_x + s.c * at_y * at_y;
  const T on_top = (s.c * edge_y + s.b * at_x) * edge_y + s.a * at_x * at_x;
  const T least = !above || (beside && on_side < on_top) ? on_side : on_top;
  // The squares of a needle nearly cancel: what rounding may leave of them is allowed for.
  return least <= s.level + T(0.02) + T(1e-6) * (s.a * edge_x * edge_x + s.c * edge_y * edge_y);
}

// What a Gaussian can reach on the image, in float64: the determinant of a needle's conic is a small difference of
// large products.
struct Footprint {
  double x, y, a, b, c, level, det;
  int32_t y0, y1;  // first and last row of pixels; y0 > y1: none
};

// First and last pixel whose centre lies within [low, high], widened by 0.02 pixels for rounding, cut to [0, size).
__device__ __forceinline__ void pixel_range(double low, double high, int32_t size, int32_t* first, int32_t* last) {
  *first = static_cast<int32_t>(ceil(min(max(low - 0.52, 0.0), double(size))));
  *last = static_cast<int32_t>(floor(min(max(high - 0.48, -1.0), double(size - 1))));
}

template <class T>
__device__ __forceinline__ Footprint footprint(const T* mean, const T* conic, T opacity, int32_t width,
                                               int32_t height) {
  Footprint f{mean[0], mean[1], conic[0], conic[1], conic[2], 2 * log(255.0 * opacity), 0, 1, 0};
  f.det = f.a * f.c - f.b * f.b;
  const double reach_x = sqrt(f.level * f.c / f.det), reach_y = sqrt(f.level * f.a / f.det);
  // Written so that a NaN anywhere means "reaches nothing".
  if (!(opacity >= T(kAlphaMin) && f.det > 0 && reach_x < 1e9 && reach_y < 1e9 && fabs(f.x) < 1e9 && fabs(f.y) < 1e9))
    return f;
  int32_t x0, x1;
  pixel_range(f.x - reach_x, f.x + reach_x, width, &x0, &x1);
  if (x0 <= x1) pixel_range(f.y - reach_y, f.y + reach_y, height, &f.y0, &f.y1);
  return f;
}

// Columns of pixels that the ellipse reaches within the rows [first_row, last_row]: exact, as the part of an ellipse
// between two lines is convex and its extreme points are known in closed form.
__device__ __forceinline__ void column_range(const Footprint& f, int32_t first_row, int32_t last_row, int32_t width,
                                             int32_t* first, int32_t* last) {
  const double top = first_row + 0.5 - f.y, bottom = last_row + 0.5 - f.y;
  const double reach = sqrt(f.level * f.c / f.det), tilt = -f.b / f.c * reach;  // rightmost point: (reach, tilt)
  const auto half_chord = [&](double dy) { return sqrt(max(f.a * f.level - f.det * dy * dy, 0.0)); };
  double right = reach, left = -reach;
  if (tilt < top || tilt > bottom) {
    const double dy = min(max(tilt, top), bottom);
    right = (-f.b * dy + half_chord(dy)) / f.a;
  }
  if (-tilt < top || -tilt > bottom) {
    const double dy = min(max(-tilt, top), bottom);
    left = (-f.b * dy - half_chord(dy)) / f.a;
  }
  pixel_range(f.x + left, f.x + right, width, first, last);
}

template <class T>
__device__ __forceinline__ Splat<T> make_splat(const Footprint& f, T x, T y, T opacity, int32_t gaussian) {
  const T half = T(0.5 * kLog2e);
  return {x, y, T(f.a) * half, T(f.b) * T(kLog2e), T(f.c) * half, opacity, T(f.level * (0.5 * kLog2e)), gaussian};
}

}  // namespace
}  // namespace pointcept3m
