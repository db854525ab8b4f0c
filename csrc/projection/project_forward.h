// Gaussians onto the images of cameras.
#pragma once

#include "projection/camera.h"

namespace pointcept3m {
namespace {

template <typename T>
struct Gaussians {
  const T *means, *quats, *scales, *opacities;  // [G, 3], [G, 4], [G, 3], [G]
  int64_t count;

  P3M_INLINE Shape<T> at(int64_t i, int count_here) const {
    return Shape<T>(means + 3 * i, quats + 4 * i, scales + 3 * i, opacities + i, count_here);
  }
};

template <typename T>
struct Projected {
  T *means2d, *conics, *depths, *opacities;  // [C, G, 2], [C, G, 3], [C, G], [C, G]
  int32_t* radii;                            // [C, G, 2]
};

// Projects Gaussians [begin, end) into every camera.
template <typename T>
P3M_INLINE void project_range(const Gaussians<T>& gaussians, const Camera<T>* cameras, int64_t num_cameras,
                              const Settings& settings, int64_t begin, int64_t end, const Projected<T>& out) {
  const T clip = settings.radius_clip, width = settings.width, height = settings.height;
  for (int64_t i = begin; i < end; i += kLanes<T>) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes<T>, end - i));
    const Shape<T> shape = gaussians.at(i, count);
    for (int64_t c = 0; c < num_cameras; ++c) {
      const Camera<T>& camera = cameras[c];
      const Seen<T> seen(shape, camera, settings);
      const Lanes<T> u = camera.fx * seen.x + camera.cx, v = camera.fy * seen.y + camera.cy;
      const Lanes<T> opacity = shape.opacity * seen.compensation, zero{};
      // Half the box, in whole pixels, within which alpha can reach 1/255.
      const Lanes<T> strength = higher<T>(opacity / T(kAlphaMin), all_lanes(T(1)));
      const Lanes<T> extent = lower<T>(square_root<T>(T(2) * logarithm<T>(strength)), all_lanes(T(kMaxExtent)));
      const Lanes<T> most = all_lanes(T(kMaxRadius));
      const Lanes<T> radius_x = round_up<T>(lower<T>(extent * square_root<T>(seen.blurred_xx), most));
      const Lanes<T> radius_y = round_up<T>(lower<T>(extent * square_root<T>(seen.blurred_yy), most));

      Lanes<T> visible = opacity >= T(kAlphaMin) ? seen.in_range : zero;
      visible = higher<T>(radius_x, radius_y) > clip ? visible : zero;
      visible = u + radius_x > T(0) ? visible : zero;
      visible = u - radius_x < width ? visible : zero;
      visible = v + radius_y > T(0) ? visible : zero;
      visible = v - radius_y < height ? visible : zero;

      const int64_t at = c * gaussians.count + i;
      scatter(out.means2d + 2 * at, 2, count, u);
      scatter(out.means2d + 2 * at + 1, 2, count, v);
      scatter(out.conics + 3 * at, 3, count, seen.blurred_yy * seen.inverse_determinant);
      scatter(out.conics + 3 * at + 1, 3, count, -seen.xy * seen.inverse_determinant);
      scatter(out.conics + 3 * at + 2, 3, count, seen.blurred_xx * seen.inverse_determinant);
      scatter(out.depths + at, 1, count, seen.position[2]);
      scatter(out.opacities + at, 1, count, visible > T(0) ? opacity : zero);
      scatter(out.radii + 2 * at, 2, count, visible > T(0) ? radius_x : zero);
      scatter(out.radii + 2 * at + 1, 2, count, visible > T(0) ? radius_y : zero);
    }
  }
}

}  // namespace
}  // namespace pointcept3m
