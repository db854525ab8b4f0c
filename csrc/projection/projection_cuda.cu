// Projection of Gaussians into pinhole cameras on the GPU, forward and backward, cameras' gradients included.
//
// Both are bound by the bytes of Gaussians and what is made of them, each read and written once: a thread has one
// Gaussian and one camera forward, one Gaussian and all cameras backward, as its gradients add up over them. The
// cameras' gradients are added up by warp, block, and then over blocks in one fixed order: no atomics.
#include "projection/project_back.cuh"
#include "common/warp_sums.cuh"

#include <tuple>

namespace pointcept3m {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;

template <class T>
struct Cameras {
  const T *viewmats, *Ks;  // [C, 4, 4], [C, 3, 3]
  int64_t count;
  __device__ __forceinline__ Camera<T> at(int64_t i, const Settings& settings) const {
    return Camera<T>(viewmats + 16 * i, Ks + 9 * i, settings);
  }
};

template <class T>
struct Projected {
  T *means2d, *conics, *depths, *opacities;  // [C, G, 2], [C, G, 3], [C, G], [C, G]
  int32_t* radii;                            // [C, G, 2]
};

// A thread for each camera and Gaussian.
template <class T>
__global__ void __launch_bounds__(kThreads)
project(Gaussians<T> gaussians, Cameras<T> cameras, Settings settings, Projected<T> to) {
  const int64_t at = global_thread();
  if (at >= cameras.count * gaussians.count) return;
  const int64_t camera_index = at / gaussians.count;
  const Shape<T> shape(gaussians, at - camera_index * gaussians.count);
  const Camera<T> camera = cameras.at(camera_index, settings);
  const Seen<T> seen(shape, camera, settings);
  const T u = camera.fx * seen.x + camera.cx, v = camera.fy * seen.y + camera.cy;
  const T opacity = shape.opacity * seen.compensation;
  // Half the box, in whole pixels, within which alpha can reach 1/255.
  const T extent = lower(std::sqrt(T(2) * std::log(higher(opacity / T(kAlphaMin), T(1)))), T(kMaxExtent));
  const T radius_x = std::ceil(lower(extent * std::sqrt(seen.blurred_xx), T(kMaxRadius)));
  const T radius_y = std::ceil(lower(extent * std::sqrt(seen.blurred_yy), T(kMaxRadius)));
  const bool on_image = u + radius_x > T(0) && u - radius_x < T(settings.width) && v + radius_y > T(0) &&
                        v - radius_y < T(settings.height);
  const bool visible = seen.in_range && on_image && opacity >= T(kAlphaMin) &&
                       higher(radius_x, radius_y) > T(settings.radius_clip);
  to.means2d[2 * at] = u;
  to.means2d[2 * at + 1] = v;
  to.conics[3 * at] = seen.blurred_yy * seen.inverse_determinant;
  to.conics[3 * at + 1] = -seen.xy * seen.inverse_determinant;
  to.conics[3 * at + 2] = seen.blurred_xx * seen.inverse_determinant;
  to.depths[at] = seen.position[2];
  to.opacities[at] = visible ? opacity : T(0);
  to.radii[2 * at] = visible ? static_cast<int32_t>(radius_x) : 0;
  to.radii[2 * at + 1] = visible ? static_cast<int32_t>(radius_y) : 0;
}

template <class T>
struct ProjectedGrads {
  const T *means2d, *conics, *depths, *opacities;
  const int32_t* radii;  // of the forward: 0 where not seen

  __device__ __forceinline__ Above<T> at(int64_t i) const {
    return {means2d[2 * i],   means2d[2 * i + 1], conics[3 * i], conics[3 * i + 1],
            conics[3 * i + 2], depths[i],         radii[2 * i] > 0 ? opacities[i] : T(0)};
  }
};

// A thread for each Gaussian. parts [blocks, C, kCameraGrads]: each block's sum of the cameras' gradients.
template <class T>
__global__ void __launch_bounds__(kThreads)
project_gradients(Gaussians<T> gaussians, Cameras<T> cameras, Settings settings, ProjectedGrads<T> above,
                  GaussianGrads<T> to, T* parts) {
  __shared__ T sums[2][kWarps][kCameraGrads];  // of two cameras, so that one barrier a camera is enough
  const int64_t at = global_thread();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const bool exists = at < gaussians.count;
  const Shape<T> shape(gaussians, exists ? at : 0);  // there is a first one, as there is a block
  ShapeGrads<T> grads;
  for (int64_t c = 0; c < cameras.count; ++c) {
    T own[kCameraGrads] = {};
    if (exists) project_back(shape, cameras.at(c, settings), settings, above.at(c * gaussians.count + at), &grads, own);
    int which;
    const T sum = sum_warp(own, lane, &which);
    if (which >= 0) sums[c % 2][warp][which] = sum;
    __syncthreads();
    if (threadIdx.x >= kCameraGrads) continue;
    T total = T(0);
    for (int i = 0; i < kWarps; ++i) total += sums[c % 2][i][threadIdx.x];
    parts[(blockIdx.x * cameras.count + c) * kCameraGrads + threadIdx.x] = total;
  }
  if (exists) write_shape_grads(shape, grads, at, to);
}

// A block of 256 for each camera: the sum of parts over blocks, in float64.
constexpr int kSumThreads = 256, kLines = kSumThreads / kCameraGrads;

template <class T>
__global__ void sum_camera_gradients(const T* parts, int64_t num_parts, T* viewmats, T* Ks) {
  __shared__ double sums[kLines][kCameraGrads];
  const int column = threadIdx.x % kCameraGrads, line = threadIdx.x / kCameraGrads;
  double sum = 0;
  for (int64_t part = line; part < num_parts; part += kLines)
    sum += parts[(part * gridDim.x + blockIdx.x) * kCameraGrads + column];
  sums[line][column] = sum;
  __syncthreads();
  if (line > 0) return;
  for (int i = 1; i < kLines; ++i) sum += sums[i][column];
  if (column < kShift) viewmats[16 * blockIdx.x + column / 3 * 4 + column % 3] = T(sum);
  else if (column < kFx) viewmats[16 * blockIdx.x + (column - kShift) * 4 + 3] = T(sum);
  else Ks[9 * blockIdx.x + (column == kFx ? 0 : column == kFy ? 4 : column == kCx ? 2 : 5)] = T(sum);
}

void check(const Tensor& tensor, const char* name, ScalarType type, std::initializer_list<int64_t> shape) {
  check_contiguous_cuda(tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == type, "project_gaussians: ", name, " has a wrong dtype");
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (const int64_t size : shape) same = same && tensor.size(axis++) == size;
  STD_TORCH_CHECK(same, "project_gaussians: ", name, " has a wrong shape");
}

struct Inputs {
  const Tensor &means, &quats, &scales, &opacities, &viewmats, &Ks;

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

  template <class T>
  Gaussians<T> gaussians() const {
    return {means.const_data_ptr<T>(), quats.const_data_ptr<T>(), scales.const_data_ptr<T>(),
            opacities.const_data_ptr<T>(), num_gaussians()};
  }

  template <class T>
  Cameras<T> cameras() const {
    return {viewmats.const_data_ptr<T>(), Ks.const_data_ptr<T>(), num_cameras()};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> project_gaussians(
    const Tensor means, const Tensor quats, const Tensor scales, const Tensor opacities, const Tensor viewmats,
    const Tensor Ks, int64_t width, int64_t height, double near_plane, double far_plane, double radius_clip,
    double eps2d, bool antialiased) {
  const Settings settings{width, height, near_plane, far_plane, radius_clip, eps2d, antialiased};
  const Inputs inputs{means, quats, scales, opacities, viewmats, Ks};
  inputs.check_all();
  CudaWork work(means);
  const int64_t cameras = inputs.num_cameras(), num = inputs.num_gaussians();
  const auto empty = [&](std::initializer_list<int64_t> sizes, ScalarType type) {
    return torch::stable::new_empty(means, std::vector<int64_t>(sizes), type);
  };
  const ScalarType type = means.scalar_type();
  const Tensor out[5] = {empty({cameras, num, 2}, type), empty({cameras, num, 3}, type), empty({cameras, num}, type),
                         empty({cameras, num}, type), empty({cameras, num, 2}, ScalarType::Int)};
  const auto run = [&]<class T>(T) {
    const Projected<T> to{out[0].mutable_data_ptr<T>(), out[1].mutable_data_ptr<T>(), out[2].mutable_data_ptr<T>(),
                          out[3].mutable_data_ptr<T>(), out[4].mutable_data_ptr<int32_t>()};
    launch(work, project<T>, blocks_for(cameras * num, kThreads), kThreads, 0, inputs.gaussians<T>(),
           inputs.cameras<T>(), settings, to);
  };
  if (inputs.wide()) run(double{});
  else run(float{});
  return {out[0], out[1], out[2], out[3], out[4]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> project_gaussians_backward(
    const Tensor grad_means2d, const Tensor grad_conics, const Tensor grad_depths, const Tensor grad_opacities,
    const Tensor means, const Tensor quats, const Tensor scales, const Tensor opacities, const Tensor viewmats,
    const Tensor Ks, const Tensor radii, int64_t width, int64_t height, double near_plane, double far_plane,
    double eps2d, bool antialiased) {
  const Settings settings{width, height, near_plane, far_plane, 0, eps2d, antialiased};
  const Inputs inputs{means, quats, scales, opacities, viewmats, Ks};
  inputs.check_all();
  const int64_t cameras = inputs.num_cameras(), num = inputs.num_gaussians();
  const ScalarType type = means.scalar_type();
  check(grad_means2d, "grad_means2d", type, {cameras, num, 2});
  check(grad_conics, "grad_conics", type, {cameras, num, 3});
  check(grad_depths, "grad_depths", type, {cameras, num});
  check(grad_opacities, "grad_opacities", type, {cameras, num});
  check(radii, "radii", ScalarType::Int, {cameras, num, 2});
  CudaWork work(means);
  const auto empty = [](const Tensor& like) { return torch::stable::new_empty(like, like.sizes()); };
  const auto zeros = [](const Tensor& like) { return torch::stable::new_zeros(like, like.sizes()); };
  const Tensor grads[6] = {empty(means), empty(quats), empty(scales), empty(opacities), zeros(viewmats), zeros(Ks)};
  const auto run = [&]<class T>(T) {
    const ProjectedGrads<T> above{grad_means2d.const_data_ptr<T>(), grad_conics.const_data_ptr<T>(),
                                  grad_depths.const_data_ptr<T>(), grad_opacities.const_data_ptr<T>(),
                                  radii.const_data_ptr<int32_t>()};
    const GaussianGrads<T> to{grads[0].mutable_data_ptr<T>(), grads[1].mutable_data_ptr<T>(),
                              grads[2].mutable_data_ptr<T>(), grads[3].mutable_data_ptr<T>()};
    const dim3 blocks = blocks_for(num, kThreads);
    T* parts = work.scratch<T>(blocks.x * cameras * kCameraGrads);
    launch(work, project_gradients<T>, blocks, kThreads, 0, inputs.gaussians<T>(), inputs.cameras<T>(), settings,
           above, to, parts);
    launch(work, sum_camera_gradients<T>, blocks_for(cameras, 1), kSumThreads, 0, parts, int64_t{blocks.x},
           grads[4].mutable_data_ptr<T>(), grads[5].mutable_data_ptr<T>());
  };
  if (inputs.wide()) run(double{});
  else run(float{});
  return {grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]};
}

}  // namespace
}  // namespace pointcept3m

P3M_REGISTER_CUDA(m) {
  m.impl("project_gaussians", TORCH_BOX(&pointcept3m::project_gaussians));
  m.impl("project_gaussians_backward", TORCH_BOX(&pointcept3m::project_gaussians_backward));
}
