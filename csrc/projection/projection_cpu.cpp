// Projection of Gaussians into pinhole cameras on the CPU, forward and backward, cameras' gradients included.
//
// Blocks of Gaussians are the unit of parallel work. Each adds up its part of the cameras' gradients, and the parts
// are added in the order of the blocks, so that the number of threads changes no bit.
#include "common/check.h"
#include "common/parallel.h"
#include "projection/project_backward.h"

#include <tuple>
#include <vector>

namespace pointcept3m {
namespace {

constexpr int64_t kBlock = 2048;

#define P3M_PROJECTION_KERNELS(T)                                                                                     \
  P3M_KERNEL void project_##T(const Gaussians<T>& gaussians, const Camera<T>* cameras, int64_t num_cameras,           \
                              const Settings& settings, int64_t begin, int64_t end, const Projected<T>& out) {        \
    project_range(gaussians, cameras, num_cameras, settings, begin, end, out);                                        \
  }                                                                                                                   \
  P3M_KERNEL void project_back_##T(const Gaussians<T>& gaussians, const Camera<T>* cameras, int64_t num_cameras,      \
                                   const Settings& settings, int64_t begin, int64_t end,                              \
                                   const ProjectedGrads<T>& above, const GaussianGrads<T>& out, T* sums,              \
                                   T* camera_grads) {                                                                 \
    project_range_back(gaussians, cameras, num_cameras, settings, begin, end, above, out, sums, camera_grads);        \
  }
P3M_PROJECTION_KERNELS(float)
P3M_PROJECTION_KERNELS(double)
#undef P3M_PROJECTION_KERNELS

void check(const Tensor& tensor, const char* name, ScalarType type, std::initializer_list<int64_t> shape) {
  check_contiguous_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == type, "project_gaussians: ", name, " has a wrong dtype");
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (const int64_t size : shape) same = same && tensor.size(axis++) == size;
  STD_TORCH_CHECK(same, "project_gaussians: ", name, " has a wrong shape");
}

struct Inputs {
  const Tensor &means, &quats, &scales, &opacities, &viewmats, &Ks;
  const Settings& settings;

  int64_t num_gaussians() const { return means.size(0); }
  int64_t num_cameras() const { return viewmats.size(0); }
  bool wide() const { return means.scalar_type() == ScalarType::Double; }

  void check_all() const {
    const ScalarType type = means.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "project_gaussians takes float32 or float64");
    STD_TORCH_CHECK(means.dim() == 2 && viewmats.dim() == 3, "means must be [G, 3] and viewmats [C, 4, 4]");
    const int64_t num = num_gaussians();
    check(means, "means", type, {num, 3});
    check(quats, "quats", type, {num, 4});
    check(scales, "scales", type, {num, 3});
    check(opacities, "opacities", type, {num});
    check(viewmats, "viewmats", type, {num_cameras(), 4, 4});
    check(Ks, "Ks", type, {num_cameras(), 3, 3});
  }

  template <typename T>
  Gaussians<T> gaussians() const {
    return {means.const_data_ptr<T>(), quats.const_data_ptr<T>(), scales.const_data_ptr<T>(),
            opacities.const_data_ptr<T>(), num_gaussians()};
  }

  template <typename T>
  std::vector<Camera<T>> cameras() const {
    std::vector<Camera<T>> result;
    for (int64_t c = 0; c < num_cameras(); ++c)
      result.emplace_back(viewmats.const_data_ptr<T>() + 16 * c, Ks.const_data_ptr<T>() + 9 * c, settings);
    return result;
  }
};

template <typename T>
void forward(const Inputs& inputs, const Tensor (&out)[5]) {
  const Gaussians<T> gaussians = inputs.gaussians<T>();
  const std::vector<Camera<T>> cameras = inputs.cameras<T>();
  const Projected<T> to{out[0].mutable_data_ptr<T>(), out[1].mutable_data_ptr<T>(), out[2].mutable_data_ptr<T>(),
                        out[3].mutable_data_ptr<T>(), out[4].mutable_data_ptr<int32_t>()};
  share_units((gaussians.count + kBlock - 1) / kBlock, [&](int64_t block) {
    const int64_t begin = block * kBlock, end = std::min(gaussians.count, begin + kBlock);
    if constexpr (sizeof(T) == 4)
      project_float(gaussians, cameras.data(), cameras.size(), inputs.settings, begin, end, to);
    else project_double(gaussians, cameras.data(), cameras.size(), inputs.settings, begin, end, to);
  });
}

template <typename T>
void backward(const Inputs& inputs, const ProjectedGrads<T>& above, const Tensor (&grads)[6]) {
  const Gaussians<T> gaussians = inputs.gaussians<T>();
  const std::vector<Camera<T>> cameras = inputs.cameras<T>();
  const GaussianGrads<T> to{grads[0].mutable_data_ptr<T>(), grads[1].mutable_data_ptr<T>(),
                            grads[2].mutable_data_ptr<T>(), grads[3].mutable_data_ptr<T>()};
  const int64_t num_cameras = cameras.size(), num_blocks = (gaussians.count + kBlock - 1) / kBlock;
  std::vector<T> parts(num_blocks * num_cameras * kCameraGrads);
  share_units(num_blocks, [&](int64_t block) {
    const int64_t begin = block * kBlock, end = std::min(gaussians.count, begin + kBlock);
    std::vector<T> sums(num_cameras * kCameraSums<T>);
    T* own = parts.data() + block * num_cameras * kCameraGrads;
    if constexpr (sizeof(T) == 4)
      project_back_float(gaussians, cameras.data(), num_cameras, inputs.settings, begin, end, above, to, sums.data(),
                        own);
    else
      project_back_double(gaussians, cameras.data(), num_cameras, inputs.settings, begin, end, above, to, sums.data(),
                         own);
  });
  T* viewmats = grads[4].mutable_data_ptr<T>();
  T* Ks = grads[5].mutable_data_ptr<T>();
  for (int64_t c = 0; c < num_cameras; ++c) {
    double sums[kCameraGrads] = {};
    for (int64_t block = 0; block < num_blocks; ++block)
      for (int i = 0; i < kCameraGrads; ++i) sums[i] += parts[(block * num_cameras + c) * kCameraGrads + i];
    for (int i = 0; i < 12; ++i) viewmats[16 * c + i] = static_cast<T>(sums[i]);
    constexpr int kPlaces[4] = {0, 4, 2, 5};  // fx, fy, cx, cy
    for (int i = 0; i < 4; ++i) Ks[9 * c + kPlaces[i]] = static_cast<T>(sums[12 + i]);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> project_gaussians(
    const Tensor means, const Tensor quats, const Tensor scales, const Tensor opacities, const Tensor viewmats,
    const Tensor Ks, int64_t width, int64_t height, double near_plane, double far_plane, double radius_clip,
    double eps2d, bool antialiased) {
  const Settings settings{width, height, near_plane, far_plane, radius_clip, eps2d, antialiased};
  const Inputs inputs{means, quats, scales, opacities, viewmats, Ks, settings};
  inputs.check_all();
  const int64_t cameras = inputs.num_cameras(), num = inputs.num_gaussians();
  const auto empty = [&](auto... axes) { return torch::stable::new_empty(means, {cameras, num, axes...}); };
  const Tensor radii = torch::stable::new_empty(means, {cameras, num, 2}, ScalarType::Int);
  const Tensor out[5] = {empty(int64_t{2}), empty(int64_t{3}), empty(), empty(), radii};
  if (inputs.wide()) forward<double>(inputs, out);
  else forward<float>(inputs, out);
  return {out[0], out[1], out[2], out[3], out[4]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> project_gaussians_backward(
    const Tensor grad_means2d, const Tensor grad_conics, const Tensor grad_depths, const Tensor grad_opacities,
    const Tensor means, const Tensor quats, const Tensor scales, const Tensor opacities, const Tensor viewmats,
    const Tensor Ks, const Tensor radii, int64_t width, int64_t height, double near_plane, double far_plane,
    double eps2d, bool antialiased) {
  const Settings settings{width, height, near_plane, far_plane, 0, eps2d, antialiased};
  const Inputs inputs{means, quats, scales, opacities, viewmats, Ks, settings};
  inputs.check_all();
  const int64_t cameras = inputs.num_cameras(), num = inputs.num_gaussians();
  const ScalarType type = means.scalar_type();
  check(grad_means2d, "grad_means2d", type, {cameras, num, 2});
  check(grad_conics, "grad_conics", type, {cameras, num, 3});
  check(grad_depths, "grad_depths", type, {cameras, num});
  check(grad_opacities, "grad_opacities", type, {cameras, num});
  check(radii, "radii", ScalarType::Int, {cameras, num, 2});
  const auto empty = [](const Tensor& like) { return torch::stable::new_empty(like, like.sizes()); };
  const auto zeros = [](const Tensor& like) { return torch::stable::new_zeros(like, like.sizes()); };
  const Tensor grads[6] = {empty(means), empty(quats), empty(scales), empty(opacities), zeros(viewmats), zeros(Ks)};
  const auto run = [&]<typename T>(T) {
    const ProjectedGrads<T> above{grad_means2d.const_data_ptr<T>(), grad_conics.const_data_ptr<T>(),
                                  grad_depths.const_data_ptr<T>(), grad_opacities.const_data_ptr<T>(),
                                  radii.const_data_ptr<int32_t>()};
    backward<T>(inputs, above, grads);
  };
  if (inputs.wide()) run(double{});
  else run(float{});
  return {grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]};
}

}  // namespace
}  // namespace pointcept3m

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("project_gaussians", TORCH_BOX(&pointcept3m::project_gaussians));
  m.impl("project_gaussians_backward", TORCH_BOX(&pointcept3m::project_gaussians_backward));
}
