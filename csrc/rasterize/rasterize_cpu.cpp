// Rasterization of projected Gaussians on the CPU, forward and backward.
//
// One depth sort a camera; the picture is cut into horizontal bands, the unit of parallel work; a band bins its
// Gaussians to tiles of 8x8 pixels with the exact ellipse test and renders them one by one. The backward takes first
// every other band, then the rest, so that two bands at work are never neighbours (rasterize/grad_table.h): no atomics,
// the same bits in every run whatever the number of threads, and memory of O(pixels + Gaussians) times channels.
#include "common/check.h"
#include "common/pages.h"
#include "rasterize/grad_table.h"
#include "rasterize/tile_backward.h"
#include "rasterize/tile_forward.h"

#include <optional>
#include <tuple>

namespace pointcept3m {
namespace {

// The leaves, once for each instruction set (common/simd.h). Wide ones hold vectors of 16 floats, and serve where
// registers do too.
#define P3M_TILE_KERNELS(T, NAME, WIDE)                                                                          \
  P3M_KERNEL void forward_tile_##NAME(const Tile<T>& tile, const ChannelRows<T>& channels,                       \
                                      ForwardScratch<T>& scratch, PixelRows<T> image, T* transmittance,          \
                                      int32_t* last) {                                                           \
    forward_tile<WIDE>(tile, channels, scratch, image, transmittance, last);                                     \
  }                                                                                                              \
  P3M_KERNEL void backward_tile_##NAME(const Tile<T>& tile, const ChannelRows<T>& channels,                      \
                                       const BackwardInput<T>& input, BackwardScratch<T>& scratch,               \
                                       const BandRows<T>& rows) {                                                \
    backward_tile<WIDE>(tile, channels, input, scratch, rows);                                                   \
  }
P3M_TILE_KERNELS(float, float, false)
P3M_TILE_KERNELS(float, wide_float, true)
P3M_TILE_KERNELS(double, double, false)
#undef P3M_TILE_KERNELS

bool wide_registers() {
#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__) && !defined(P3M_PLAIN)
  static const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
  return wide;
#else
  return false;
#endif
}

template <typename T>
auto forward_kernel() {
  if constexpr (sizeof(T) == 4) return wide_registers() ? forward_tile_wide_float : forward_tile_float;
  else return forward_tile_double;
}

template <typename T>
auto backward_kernel() {
  if constexpr (sizeof(T) == 4) return wide_registers() ? backward_tile_wide_float : backward_tile_float;
  else return backward_tile_double;
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

// Calls render(tile) for the tiles of one band, row by row.
template <typename T, typename Render>
void for_each_tile(const View<T>& view, const int32_t* order, int32_t band, TileLists& lists, const Render& render) {
  const int32_t num_columns = (view.width + kTile - 1) / kTile, num_rows = (view.height + kTile - 1) / kTile;
  for (int32_t row = band * view.rows_per_band; row < std::min(num_rows, (band + 1) * view.rows_per_band); ++row) {
    lists.build(view, band, row);
    for (int32_t column = 0; column < num_columns; ++column)
      render(Tile<T>{&view, order, lists.ranks.data() + lists.offset[column],
                     lists.offset[column + 1] - lists.offset[column], column * kTile, row * kTile});
  }
}

template <typename T>
void forward(const Inputs& inputs, const Sizes& n, const T* depths, const Tensor& view_pixels, const Tensor& pixels,
             const Tensor& transmittance, const Tensor& last, const Tensor& order) {
  std::vector<std::optional<View<T>>> views(n.cameras);
  int32_t* orders = order.mutable_data_ptr<int32_t>();
  // Several cameras share the threads; the work on a single one is shared inside.
  torch::stable::parallel_for(0, n.cameras, 1, [&](int64_t begin, int64_t end) {
    DepthSort<T> sort;
    for (int64_t camera = begin; camera < end; ++camera) {
      const int64_t start = camera * n.gaussians;
      sort.run(depths + start, inputs.opacities.const_data_ptr<T>() + start, n.gaussians, orders + start);
      views[camera].emplace(inputs.view<T>(n, camera, orders + start));
    }
  });
  ask_for_huge_pages(view_pixels.mutable_data_ptr(), view_pixels.numel() * sizeof(T));
  ask_for_huge_pages(pixels.mutable_data_ptr(), pixels.numel() * sizeof(T));
  const int64_t num_bands = n.cameras ? views[0]->num_bands : 0;
  const auto kernel = forward_kernel<T>();
  run_tasks<ForwardScratch<T>>(n.cameras * num_bands, [&](int64_t task, ForwardScratch<T>& scratch) {
    const int64_t camera = task / num_bands;
    const ChannelRows<T> channels = inputs.rows<T>(n, camera);
    const PixelRows<T> image{view_pixels.mutable_data_ptr<T>() + camera * n.pixels * n.view_channels,
                             pixels.mutable_data_ptr<T>() + camera * n.pixels * n.shared_channels};
    const int32_t* own_order = orders + camera * n.gaussians;
    for_each_tile(*views[camera], own_order, task % num_bands, scratch.lists, [&](const Tile<T>& tile) {
      kernel(tile, channels, scratch, image, transmittance.mutable_data_ptr<T>() + camera * n.pixels,
             last.mutable_data_ptr<int32_t>() + camera * n.pixels);
    });
  });
}

// `order` comes from outside where the op is called directly: an index twice would be two threads in one row.
void check_order(const int32_t* order, int64_t num_gaussians) {
  std::vector<bool> seen(num_gaussians);
  for (int64_t i = 0; i < num_gaussians && order[i] != -1; ++i) {
    STD_TORCH_CHECK(order[i] >= 0 && order[i] < num_gaussians, "order holds an index outside [-1, G)");
    STD_TORCH_CHECK(!seen[order[i]], "order holds an index twice");
    seen[order[i]] = true;
  }
}

template <typename T>
void backward(const Inputs& inputs, const Sizes& n, const Tensor& grad_view_pixels, const Tensor& grad_pixels,
              const Tensor& grad_transmittance, const Tensor& transmittance, const Tensor& last, const Tensor& order,
              const Tensor (&grads)[5]) {
  const auto kernel = backward_kernel<T>();
  // One camera after the other, as they add to the same rows of the shared channels.
  for (int64_t camera = 0; camera < n.cameras; ++camera) {
    const int32_t* own_order = order.const_data_ptr<int32_t>() + camera * n.gaussians;
    check_order(own_order, n.gaussians);
    const View<T> view = inputs.view<T>(n, camera, own_order);
    const ChannelRows<T> channels = inputs.rows<T>(n, camera);
    const BackwardInput<T> input{{grad_view_pixels.const_data_ptr<T>() + camera * n.pixels * n.view_channels,
                                  grad_pixels.const_data_ptr<T>() + camera * n.pixels * n.shared_channels},
                                 grad_transmittance.const_data_ptr<T>() + camera * n.pixels,
                                 transmittance.const_data_ptr<T>() + camera * n.pixels,
                                 last.const_data_ptr<int32_t>() + camera * n.pixels};
    GradTable<T> table(view, own_order, channels,
                       grads[3].mutable_data_ptr<T>() + camera * n.gaussians * n.view_channels,
                       grads[4].mutable_data_ptr<T>());
    for (int parity = 0; parity < 2; ++parity)
      run_tasks<BackwardScratch<T>>((view.num_bands + 1 - parity) / 2, [&](int64_t task, BackwardScratch<T>& scratch) {
        const int32_t band = static_cast<int32_t>(2 * task + parity);
        const BandRows<T> rows{&table, band};
        for_each_tile(view, own_order, band, scratch.lists, [&](const Tile<T>& tile) {
          if (tile.count) kernel(tile, channels, input, scratch, rows);
        });
      });
    const int64_t start = camera * n.gaussians;
    table.finish(inputs.opacities.const_data_ptr<T>() + start, grads[0].mutable_data_ptr<T>() + start * 2,
                 grads[1].mutable_data_ptr<T>() + start * 3, grads[2].mutable_data_ptr<T>() + start);
  }
}

template <typename T>
Tensor zeros_like(const Tensor& like) {
  Tensor result = torch::stable::new_empty(like, like.sizes());
  T* data = result.mutable_data_ptr<T>();
  ask_for_huge_pages(data, result.numel() * sizeof(T));
  torch::stable::parallel_for(0, result.numel(), 1 << 18,
                              [&](int64_t begin, int64_t end) { std::fill(data + begin, data + end, T(0)); });
  return result;
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
  const auto zeros = [&](const Tensor& like) { return wide ? zeros_like<double>(like) : zeros_like<float>(like); };
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
