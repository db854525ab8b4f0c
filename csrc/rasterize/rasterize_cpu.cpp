// Rasterization of projected Gaussians on the CPU, forward and backward.
//
// One depth sort a camera; the picture is cut into horizontal bands, the unit of parallel work; a band bins its
// Gaussians to tiles of 8x8 pixels with the exact ellipse test and renders them one by one. The backward gives each
// band its own gradient rows for the Gaussians it sees and adds them up in band order afterwards: no atomics, the
// same bits in every run whatever the number of threads, and memory of O(pixels + Gaussians) times channels.
#include "common/check.h"
#include "rasterize/tile_backward.h"

#include <optional>
#include <tuple>

namespace pointcept3m {
namespace {

// The leaves, once for each instruction set (common/simd.h); N channels at a time.
#define P3M_TILE_KERNELS(T, N)                                                                                   \
  P3M_KERNEL void forward_tile_##T##_##N(const Tile<T>& tile, const ChannelRows<T>& channels,                    \
                                         ForwardScratch<T>& scratch, PixelRows<T> image, T* transmittance,       \
                                         int32_t* last) {                                                        \
    forward_tile<N>(tile, channels, scratch, image, transmittance, last);                                        \
  }                                                                                                              \
  P3M_KERNEL void backward_tile_##T##_##N(const Tile<T>& tile, const ChannelRows<T>& channels,                   \
                                          const BackwardInput<T>& input, BackwardScratch<T>& scratch, T* rows) { \
    backward_tile<N>(tile, channels, input, scratch, rows);                                                      \
  }
P3M_TILE_KERNELS(float, 8)
P3M_TILE_KERNELS(float, 16)
P3M_TILE_KERNELS(double, 8)
P3M_TILE_KERNELS(double, 16)
#undef P3M_TILE_KERNELS

template <typename T>
auto forward_kernel(const ChannelRows<T>& channels) {
  if constexpr (sizeof(T) == 4) return channels.block() == 8 ? forward_tile_float_8 : forward_tile_float_16;
  else return channels.block() == 8 ? forward_tile_double_8 : forward_tile_double_16;
}

template <typename T>
auto backward_kernel(const ChannelRows<T>& channels) {
  if constexpr (sizeof(T) == 4) return channels.block() == 8 ? backward_tile_float_8 : backward_tile_float_16;
  else return channels.block() == 8 ? backward_tile_double_8 : backward_tile_double_16;
}

struct Sizes {
  int64_t cameras, gaussians, view_channels, shared_channels, pixels;
  int32_t width, height;
};

// The tensors that forward and backward share; every pointer below is read only through these shapes.
struct Inputs {
  const Tensor &means2d, &conics, &opacities, &view_channels, &channels;

  Sizes check(int64_t width, int64_t height) const {
    for (const auto& [tensor, name, dims] : {std::tuple<const Tensor*, const char*, int>{&means2d, "means2d", 3},
                                             {&conics, "conics", 3},
                                             {&opacities, "opacities", 2},
                                             {&view_channels, "view_channels", 3},
                                             {&channels, "channels", 2}}) {
      check_contiguous_cpu(*tensor, name);
      STD_TORCH_CHECK(tensor->dim() == dims, name, " must have ", dims, " dimensions");
      STD_TORCH_CHECK(tensor->scalar_type() == means2d.scalar_type(), name, " must have the dtype of means2d");
    }
    const Sizes sizes{opacities.size(0), opacities.size(1), view_channels.size(2), channels.size(1), width * height,
                      static_cast<int32_t>(width), static_cast<int32_t>(height)};
    constexpr int64_t kLimit = std::numeric_limits<int32_t>::max() / 2;
    STD_TORCH_CHECK(width > 0 && height > 0 && width < (1 << 20) && height < (1 << 20),
                    "width and height must be in 1..2^20");
    STD_TORCH_CHECK(sizes.gaussians < kLimit, "more than 2^30 Gaussians");
    const auto leads = [&](const Tensor& t) { return t.size(0) == sizes.cameras && t.size(1) == sizes.gaussians; };
    STD_TORCH_CHECK(leads(means2d) && means2d.size(2) == 2, "means2d must be [C, G, 2]");
    STD_TORCH_CHECK(leads(conics) && conics.size(2) == 3, "conics must be [C, G, 3]");
    STD_TORCH_CHECK(leads(view_channels), "view_channels must be [C, G, A]");
    STD_TORCH_CHECK(channels.size(0) == sizes.gaussians, "channels must be [G, D]");
    return sizes;
  }

  template <typename T>
  ChannelRows<T> rows(const Sizes& n, int64_t camera) const {
    return {view_channels.const_data_ptr<T>() + camera * n.gaussians * n.view_channels, channels.const_data_ptr<T>(),
            n.view_channels, n.shared_channels};
  }

  template <typename T>
  View<T> view(const Sizes& n, int64_t camera, const int32_t* order) const {
    const int64_t start = camera * n.gaussians;
    return View<T>(means2d.const_data_ptr<T>() + start * 2, conics.const_data_ptr<T>() + start * 3,
                   opacities.const_data_ptr<T>() + start, order, n.gaussians, n.width, n.height);
  }
};

// Calls render(tile, tile's index) for the tiles of one band.
template <typename T, typename Render>
void for_each_tile(const View<T>& view, const int32_t* order, int32_t band, TileLists& lists, const Render& render) {
  lists.build(view, band);
  const int32_t* ranks = view.band_ranks.data() + view.band_offset[band];
  for (int32_t row = 0; row < lists.num_rows; ++row)
    for (int32_t column = 0; column < lists.num_columns; ++column) {
      const int64_t i = row * lists.num_columns + column;
      render(Tile<T>{&view, order, ranks, lists.places.data() + lists.offset[i], lists.offset[i + 1] - lists.offset[i],
                     column * kTile, (lists.first_row + row) * kTile});
    }
}

struct NoScratch {};

template <typename T>
void forward(const Inputs& inputs, const Sizes& n, const T* depths, const Tensor& view_pixels, const Tensor& pixels,
             const Tensor& transmittance, const Tensor& last, const Tensor& order) {
  std::vector<std::optional<View<T>>> views(n.cameras);
  int32_t* orders = order.mutable_data_ptr<int32_t>();
  run_tasks<NoScratch>(n.cameras, [&](int64_t camera, NoScratch&) {
    const int64_t start = camera * n.gaussians;
    int32_t* own_order = orders + start;
    sort_by_depth(depths + start, inputs.opacities.const_data_ptr<T>() + start, n.gaussians, own_order);
    views[camera].emplace(inputs.view<T>(n, camera, own_order));
  });
  const int64_t num_bands = n.cameras ? views[0]->num_bands : 0;
  run_tasks<ForwardScratch<T>>(n.cameras * num_bands, [&](int64_t task, ForwardScratch<T>& scratch) {
    const int64_t camera = task / num_bands;
    const ChannelRows<T> channels = inputs.rows<T>(n, camera);
    const PixelRows<T> image{view_pixels.mutable_data_ptr<T>() + camera * n.pixels * n.view_channels,
                             pixels.mutable_data_ptr<T>() + camera * n.pixels * n.shared_channels};
    scratch.resize(channels);
    const int32_t* own_order = orders + camera * n.gaussians;
    for_each_tile(*views[camera], own_order, task % num_bands, scratch.lists, [&](const Tile<T>& tile) {
      forward_kernel(channels)(tile, channels, scratch, image, transmittance.mutable_data_ptr<T>() + camera * n.pixels,
                               last.mutable_data_ptr<int32_t>() + camera * n.pixels);
    });
  });
}

// Adds the bands' gradient rows of one camera, in band order, to the gradients of its Gaussians.
template <typename T>
void reduce_bands(const View<T>& view, const int32_t* order, const Sizes& n, int64_t camera, const T* rows,
                  int64_t stride, const Tensor (&grads)[5]) {
  const int64_t num_visible = view.splats.size();
  // A Gaussian's place in the lists of its bands, Gaussian after Gaussian.
  std::vector<int64_t> offset(num_visible + 1), places(view.band_ranks.size());
  for (const int32_t rank : view.band_ranks) ++offset[rank + 1];
  for (int64_t rank = 0; rank < num_visible; ++rank) offset[rank + 1] += offset[rank];
  std::vector<int64_t> cursor(offset.begin(), offset.end() - 1);
  for (size_t place = 0; place < view.band_ranks.size(); ++place) places[cursor[view.band_ranks[place]]++] = place;
  T* targets[5];
  const int64_t widths[5] = {2, 3, 1, n.view_channels, n.shared_channels};
  const int64_t columns[5] = {0, 2, 5, kGeometry, kGeometry + n.view_channels};
  for (int i = 0; i < 5; ++i) {
    const int64_t start = i < 4 ? camera * n.gaussians * widths[i] : 0;  // the last is shared by all cameras
    targets[i] = grads[i].mutable_data_ptr<T>() + start;
  }
  torch::stable::parallel_for(0, num_visible, 512, [&](int64_t begin, int64_t end) {
    for (int64_t rank = begin; rank < end; ++rank)
      for (int64_t k = offset[rank]; k < offset[rank + 1]; ++k)
        for (int i = 0; i < 5; ++i) {
          const T* source = rows + places[k] * stride + columns[i];
          T* target = targets[i] + order[rank] * widths[i];
          for (int64_t j = 0; j < widths[i]; ++j) target[j] += source[j];
        }
  });
}

template <typename T>
void backward(const Inputs& inputs, const Sizes& n, const Tensor& grad_view_pixels, const Tensor& grad_pixels,
              const Tensor& grad_transmittance, const Tensor& transmittance, const Tensor& last, const Tensor& order,
              const Tensor (&grads)[5]) {
  // One camera after the other, so that the bands' rows take the memory of one.
  for (int64_t camera = 0; camera < n.cameras; ++camera) {
    const int32_t* own_order = order.const_data_ptr<int32_t>() + camera * n.gaussians;
    for (int64_t i = 0; i < n.gaussians; ++i)
      STD_TORCH_CHECK(own_order[i] >= -1 && own_order[i] < n.gaussians, "order holds an index outside [-1, G)");
    const View<T> view = inputs.view<T>(n, camera, own_order);
    const ChannelRows<T> channels = inputs.rows<T>(n, camera);
    const int64_t stride = kGeometry + channels.padded();
    const BackwardInput<T> input{{grad_view_pixels.const_data_ptr<T>() + camera * n.pixels * n.view_channels,
                                  grad_pixels.const_data_ptr<T>() + camera * n.pixels * n.shared_channels},
                                 grad_transmittance.const_data_ptr<T>() + camera * n.pixels,
                                 transmittance.const_data_ptr<T>() + camera * n.pixels,
                                 last.const_data_ptr<int32_t>() + camera * n.pixels};
    Buffer<T> rows;
    rows.resize(view.band_ranks.size() * stride);
    run_tasks<BackwardScratch<T>>(view.num_bands, [&](int64_t band, BackwardScratch<T>& scratch) {
      T* own_rows = rows.data() + view.band_offset[band] * stride;
      std::fill(own_rows, rows.data() + view.band_offset[band + 1] * stride, T(0));
      scratch.resize(channels);
      for_each_tile(view, own_order, band, scratch.lists, [&](const Tile<T>& tile) {
        if (tile.count) backward_kernel(channels)(tile, channels, input, scratch, own_rows);
      });
    });
    reduce_bands(view, own_order, n, camera, rows.data(), stride, grads);
  }
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
  const Sizes n = inputs.check(width, height);
  check_contiguous_cpu(depths, "depths");
  STD_TORCH_CHECK(depths.numel() == n.cameras * n.gaussians && depths.scalar_type() == means2d.scalar_type(),
                  "depths must be [C, G] of the dtype of means2d");
  Tensor view_pixels = torch::stable::new_empty(means2d, {n.cameras, height, width, n.view_channels});
  Tensor pixels = torch::stable::new_empty(means2d, {n.cameras, height, width, n.shared_channels});
  Tensor transmittance = torch::stable::new_empty(means2d, {n.cameras, height, width});
  Tensor last = torch::stable::new_empty(means2d, {n.cameras, height, width}, ScalarType::Int);
  Tensor order = torch::stable::new_empty(means2d, {n.cameras, n.gaussians}, ScalarType::Int);
  if (wide) forward(inputs, n, depths.const_data_ptr<double>(), view_pixels, pixels, transmittance, last, order);
  else forward(inputs, n, depths.const_data_ptr<float>(), view_pixels, pixels, transmittance, last, order);
  return {view_pixels, pixels, transmittance, last, order};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rasterize_to_pixels_backward(
    const Tensor grad_view_pixels, const Tensor grad_pixels, const Tensor grad_transmittance, const Tensor means2d,
    const Tensor conics, const Tensor opacities, const Tensor view_channels, const Tensor channels,
    const Tensor transmittance, const Tensor last, const Tensor order) {
  const Inputs inputs{means2d, conics, opacities, view_channels, channels};
  const bool wide = is_double(means2d);
  STD_TORCH_CHECK(transmittance.dim() == 3, "transmittance must be [C, H, W]");
  const Sizes n = inputs.check(transmittance.size(2), transmittance.size(1));
  const int64_t pixels = n.cameras * n.pixels;
  for (const auto& [tensor, name, numel] : {std::tuple<const Tensor*, const char*, int64_t>{
                                                &grad_view_pixels, "grad_view_pixels", pixels * n.view_channels},
                                            {&grad_pixels, "grad_pixels", pixels * n.shared_channels},
                                            {&grad_transmittance, "grad_transmittance", pixels},
                                            {&transmittance, "transmittance", pixels}}) {
    check_contiguous_cpu(*tensor, name);
    STD_TORCH_CHECK(tensor->numel() == numel && tensor->scalar_type() == means2d.scalar_type(), name,
                    " has a wrong shape or dtype");
  }
  check_contiguous_cpu(last, "last");
  check_contiguous_cpu(order, "order");
  STD_TORCH_CHECK(last.numel() == pixels && last.scalar_type() == ScalarType::Int, "last must be int32 [C, H, W]");
  STD_TORCH_CHECK(order.numel() == n.cameras * n.gaussians && order.scalar_type() == ScalarType::Int,
                  "order must be int32 [C, G]");
  const auto zeros = [](const Tensor& like) { return torch::stable::new_zeros(like, like.sizes()); };
  const Tensor grads[5] = {zeros(means2d), zeros(conics), zeros(opacities), zeros(view_channels), zeros(channels)};
  const auto run = wide ? backward<double> : backward<float>;
  run(inputs, n, grad_view_pixels, grad_pixels, grad_transmittance, transmittance, last, order, grads);
  return {grads[0], grads[1], grads[2], grads[3], grads[4]};
}

}  // namespace
}  // namespace pointcept3m

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("rasterize_to_pixels", TORCH_BOX(&pointcept3m::rasterize_to_pixels));
  m.impl("rasterize_to_pixels_backward", TORCH_BOX(&pointcept3m::rasterize_to_pixels_backward));
}
