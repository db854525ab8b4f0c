// Rasterization of projected Gaussians on the GPU, forward and backward; all cameras in one launch.
//
// Lists of tiles: lists.cuh. Up to 16 channels, and float64: plain.cuh. More channels in float32: tensor_forward.cuh
// and tensor_backward.cuh, the weights of a tile times the rows of its Gaussians on tensor cores.
// The backward keeps no list of pairs: a tile writes one row of gradients for each of its entries, rows are added up a
// Gaussian at a time in a fixed order, and neither uses atomics. Where an image has more entries than
// R = max(G, C H W / 2, 2^24 / (A + D + 6)), tiles take turns in runs of at most R rows. Memory beyond inputs and
// outputs: 4 R (A + D + 6) bytes of rows (8 in float64), about 32 bytes an entry and 70 a camera's Gaussian.
#include "rasterize/gather_gradients.cuh"
#include "rasterize/plain.cuh"
#include "rasterize/tensor_backward.cuh"
#include "rasterize/tensor_forward.cuh"

#include <limits>
#include <tuple>

namespace pointcept3m {
namespace {

constexpr int kMostPlainChannels = 16;             // in float32
constexpr int64_t kRowValues = int64_t{1} << 24;  // rows of gradients that may be held at a time in any case

// The tensors that forward and backward share; every pointer is read only through these shapes.
struct Inputs {
  const Tensor &means2d, &conics, &opacities, &view_channels, &channels;

  TileGrid check(int64_t width, int64_t height) const {
    for (const auto& [tensor, name, dims] : {std::tuple<const Tensor*, const char*, int>{&means2d, "means2d", 3},
                                             {&conics, "conics", 3},
                                             {&opacities, "opacities", 2},
                                             {&view_channels, "view_channels", 3},
                                             {&channels, "channels", 2}}) {
      check_contiguous_cuda(*tensor, name);
      STD_TORCH_CHECK(tensor->dim() == dims, name, " must have ", dims, " dimensions");
      STD_TORCH_CHECK(tensor->scalar_type() == means2d.scalar_type(), name, " must have the dtype of means2d");
    }
    const int64_t cameras = opacities.size(0), gaussians = opacities.size(1);
    STD_TORCH_CHECK(width > 0 && height > 0 && width < (1 << 20) && height < (1 << 20),
                    "width and height must be in 1..2^20");
    STD_TORCH_CHECK(cameras <= std::numeric_limits<int32_t>::max() / 2 / std::max<int64_t>(gaussians, 1),
                    "more than 2^30 Gaussians times cameras");
    const auto leads = [&](const Tensor& t) { return t.size(0) == cameras && t.size(1) == gaussians; };
    STD_TORCH_CHECK(leads(means2d) && means2d.size(2) == 2, "means2d must be [C, G, 2]");
    STD_TORCH_CHECK(leads(conics) && conics.size(2) == 3, "conics must be [C, G, 3]");
    STD_TORCH_CHECK(leads(view_channels), "view_channels must be [C, G, A]");
    STD_TORCH_CHECK(channels.size(0) == gaussians, "channels must be [G, D]");
    STD_TORCH_CHECK(view_channels.size(2) + channels.size(1) < (1 << 18), "more than 2^18 channels");
    return {cameras, gaussians, static_cast<int32_t>(width), static_cast<int32_t>(height),
            on_tensor_cores() ? kTensorTile : kPlainTile};
  }

  bool on_tensor_cores() const {
    return means2d.scalar_type() == ScalarType::Float && view_channels.size(2) + channels.size(1) > kMostPlainChannels;
  }

  template <class T>
  Scene<T> scene(CudaWork& work, const TileGrid& grid, const int32_t* order, bool backward) const {
    return {grid,
            make_tile_lists(work, grid, means2d.const_data_ptr<T>(), conics.const_data_ptr<T>(),
                            opacities.const_data_ptr<T>(), order, backward),
            view_channels.const_data_ptr<T>(),
            channels.const_data_ptr<T>(),
            static_cast<int32_t>(view_channels.size(2)),
            static_cast<int32_t>(channels.size(1))};
  }
};

unsigned chunks_of(int32_t channels, int32_t chunk) {
  return static_cast<unsigned>(std::max(divide_up(channels, chunk), 1));
}

// Whether rows are of whole 16 bytes and begin at them.
bool aligned_rows(const float* rows, int32_t size) {
  return size % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % 16 == 0;
}

template <int Q>
void render_on_tensor_cores(CudaWork& work, const Scene<float>& scene, const Images<float>& images) {
  using Shape = ForwardShape<Q>;
  const dim3 grid(static_cast<unsigned>(scene.grid.tiles()), chunks_of(groups_of(scene).count(), Shape::kGroups));
  launch(work, render_tensor<Q>, grid, Shape::kThreads, Shape::kSharedBytes, scene, images,
         aligned_rows(scene.shared, scene.num_shared));
}

template <class T>
void render(CudaWork& work, const Scene<T>& scene, const Images<T>& images) {
  if constexpr (sizeof(T) == 4) {
    if (scene.channels() > kMostPlainChannels) {
      const int32_t groups = groups_of(scene).count();
      if (groups <= ForwardShape<1>::kGroups) render_on_tensor_cores<1>(work, scene, images);
      else if (groups <= ForwardShape<2>::kGroups) render_on_tensor_cores<2>(work, scene, images);
      else if (groups <= ForwardShape<4>::kGroups) render_on_tensor_cores<4>(work, scene, images);
      else render_on_tensor_cores<8>(work, scene, images);
      return;
    }
  }
  const auto plain = [&]<int N>(std::integral_constant<int, N>) {
    const dim3 grid(static_cast<unsigned>(scene.grid.tiles()), chunks_of(scene.channels(), N));
    launch(work, render_plain<T, N>, grid, kPlainThreads, 0, scene, images);
  };
  if (scene.channels() <= 4) plain(std::integral_constant<int, 4>{});
  else plain(std::integral_constant<int, sizeof(T) == 4 ? kMostPlainChannels : 8>{});
}

template <class T>
void write_rows(CudaWork& work, const Scene<T>& scene, const Above<T>& above, int64_t first_tile, int64_t num_tiles,
                const Rows<T>& rows) {
  if constexpr (sizeof(T) == 4) {
    if (scene.channels() > kMostPlainChannels) {
      const int32_t groups = groups_of(scene).count(), chunk = divide_up(groups, divide_up(groups, kMostGradGroups));
      const Alignment aligned{aligned_rows(scene.shared, scene.num_shared),
                              aligned_rows(above.shared, scene.num_shared)};
      launch(work, grad_tensor, static_cast<unsigned>(num_tiles), kGradThreads, grad_shared_bytes(chunk), scene, above,
             first_tile, rows, chunk, aligned);
      return;
    }
  }
  const auto plain = [&]<int N, int BATCH>(std::integral_constant<int, N>, std::integral_constant<int, BATCH>) {
    const dim3 grid(static_cast<unsigned>(num_tiles), chunks_of(scene.channels(), N));
    launch(work, grad_plain<T, N, BATCH>, grid, kPlainThreads, 0, scene, above, first_tile, rows);
  };
  if (scene.channels() <= 4) plain(std::integral_constant<int, 4>{}, std::integral_constant<int, 256 / sizeof(T)>{});
  else plain(std::integral_constant<int, sizeof(T) == 4 ? kMostPlainChannels : 8>{}, std::integral_constant<int, 32>{});
}

// Calls run(first tile, number of tiles, first entry, number of entries) for runs of tiles with at most `most` entries.
template <class Run>
void for_each_run(const CudaWork& work, const int32_t* starts, int64_t tiles, int64_t entries, int64_t most,
                  const Run& run) {
  if (entries <= most) return run(int64_t{0}, tiles, int64_t{0}, entries);
  const std::vector<int32_t> start = work.read_back(starts, tiles + 1);
  for (int64_t first = 0, next; first < tiles; first = next) {
    for (next = first + 1; next < tiles && start[next + 1] - start[first] <= most; ++next) {}
    run(first, next - first, int64_t{start[first]}, int64_t{start[next]} - start[first]);
  }
}

template <class T>
void backward(CudaWork& work, const Inputs& inputs, const TileGrid& grid, const Above<T>& above, const int32_t* order,
              const Gradients<T>& grads) {
  const Scene<T> scene = inputs.scene<T>(work, grid, order, true);
  const int64_t pixels = grid.cameras * grid.height * grid.width;
  const int32_t stride = row_stride(scene.channels());
  // A tile has at most G entries, so that a run holds at least one tile.
  const int64_t most = std::max({grid.gaussians, pixels / 2, kRowValues / stride});
  const int64_t capacity = std::min(most, scene.lists.entries);
  T* values = work.scratch<T>(capacity * stride);
  auto* used = work.scratch<unsigned char>(capacity);
  const int width = stride <= 16 ? 16 : kWarp;
  for_each_run(work, scene.lists.starts, grid.tiles(), scene.lists.entries, most,
               [&](int64_t first_tile, int64_t num_tiles, int64_t first, int64_t num_rows) {
                 const Rows<T> rows{values, used, static_cast<int32_t>(first), stride, scene.num_view,
                                    scene.num_shared};
                 work.clear(used, num_rows);
                 write_rows(work, scene, above, first_tile, num_tiles, rows);
                 launch(work, gather_gradients<T>, blocks_for(grid.gaussians * width, kPlainThreads), kPlainThreads, 0,
                        scene, inputs.conics.const_data_ptr<T>(), inputs.opacities.const_data_ptr<T>(), rows,
                        static_cast<int32_t>(num_rows), width, first_tile == 0, grads);
               });
}

bool is_double(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "the rasterizer takes float32 or float64");
  return type == ScalarType::Double;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rasterize_to_pixels(
    const Tensor means2d, const Tensor conics, const Tensor opacities, const Tensor depths, const Tensor view_channels,
    const Tensor channels, int64_t width, int64_t height) {
  const Inputs inputs{means2d, conics, opacities, view_channels, channels};
  const bool wide = is_double(means2d);
  const TileGrid grid = inputs.check(width, height);
  check_contiguous_cuda(depths, "depths");
  STD_TORCH_CHECK(depths.numel() == grid.cameras * grid.gaussians && depths.scalar_type() == means2d.scalar_type(),
                  "depths must be [C, G] of the dtype of means2d");
  CudaWork work(means2d);
  const Tensor view_pixels = torch::stable::new_empty(means2d, {grid.cameras, height, width, view_channels.size(2)});
  const Tensor pixels = torch::stable::new_empty(means2d, {grid.cameras, height, width, channels.size(1)});
  const Tensor transmittance = torch::stable::new_empty(means2d, {grid.cameras, height, width});
  const Tensor last = torch::stable::new_empty(means2d, {grid.cameras, height, width}, ScalarType::Int);
  const Tensor order = torch::stable::new_empty(means2d, {grid.cameras, grid.gaussians}, ScalarType::Int);
  const auto run = [&]<class T>(T) {
    int32_t* ranks = order.mutable_data_ptr<int32_t>();
    order_by_depth(work, depths.const_data_ptr<T>(), opacities.const_data_ptr<T>(), grid.cameras, grid.gaussians,
                   ranks);
    const Images<T> images{view_pixels.mutable_data_ptr<T>(), pixels.mutable_data_ptr<T>(),
                           transmittance.mutable_data_ptr<T>(), last.mutable_data_ptr<int32_t>()};
    render(work, inputs.scene<T>(work, grid, ranks, false), images);
  };
  if (wide) run(double{});
  else run(float{});
  return {view_pixels, pixels, transmittance, last, order};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rasterize_to_pixels_backward(
    const Tensor grad_view_pixels, const Tensor grad_pixels, const Tensor grad_transmittance, const Tensor means2d,
    const Tensor conics, const Tensor opacities, const Tensor view_channels, const Tensor channels,
    const Tensor transmittance, const Tensor last, const Tensor order) {
  const Inputs inputs{means2d, conics, opacities, view_channels, channels};
  const bool wide = is_double(means2d);
  STD_TORCH_CHECK(transmittance.dim() == 3, "transmittance must be [C, H, W]");
  const TileGrid grid = inputs.check(transmittance.size(2), transmittance.size(1));
  const int64_t pixels = grid.cameras * grid.width * grid.height;
  for (const auto& [tensor, name, numel] : {std::tuple<const Tensor*, const char*, int64_t>{
                                                &grad_view_pixels, "grad_view_pixels", pixels * view_channels.size(2)},
                                            {&grad_pixels, "grad_pixels", pixels * channels.size(1)},
                                            {&grad_transmittance, "grad_transmittance", pixels},
                                            {&transmittance, "transmittance", pixels}}) {
    check_contiguous_cuda(*tensor, name);
    STD_TORCH_CHECK(tensor->numel() == numel && tensor->scalar_type() == means2d.scalar_type(), name,
                    " has a wrong shape or dtype");
  }
  check_contiguous_cuda(last, "last");
  check_contiguous_cuda(order, "order");
  STD_TORCH_CHECK(last.numel() == pixels && last.scalar_type() == ScalarType::Int, "last must be int32 [C, H, W]");
  STD_TORCH_CHECK(order.numel() == grid.cameras * grid.gaussians && order.scalar_type() == ScalarType::Int,
                  "order must be int32 [C, G]");
  CudaWork work(means2d);
  const auto like = [](const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); };
  const Tensor grads[5] = {like(means2d), like(conics), like(opacities), like(view_channels), like(channels)};
  const auto run = [&]<class T>(T) {
    const Above<T> above{grad_view_pixels.const_data_ptr<T>(), grad_pixels.const_data_ptr<T>(),
                         grad_transmittance.const_data_ptr<T>(), transmittance.const_data_ptr<T>(),
                         last.const_data_ptr<int32_t>()};
    backward(work, inputs, grid, above, order.const_data_ptr<int32_t>(),
             Gradients<T>{grads[0].mutable_data_ptr<T>(), grads[1].mutable_data_ptr<T>(),
                          grads[2].mutable_data_ptr<T>(), grads[3].mutable_data_ptr<T>(),
                          grads[4].mutable_data_ptr<T>()});
  };
  if (wide) run(double{});
  else run(float{});
  return {grads[0], grads[1], grads[2], grads[3], grads[4]};
}

}  // namespace
}  // namespace pointcept3m

P3M_REGISTER_CUDA(m) {
  m.impl("rasterize_to_pixels", TORCH_BOX(&pointcept3m::rasterize_to_pixels));
  m.impl("rasterize_to_pixels_backward", TORCH_BOX(&pointcept3m::rasterize_to_pixels_backward));
}
