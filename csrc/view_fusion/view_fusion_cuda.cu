// visible_points and fuse_views on the GPU. A warp for each point: its lanes test 32 views at once, and then stand side
// by side over the channels and read what was found, so that a point's row is loaded and stored once for 32 views and
// reads of maps are whole lines. Nothing is shared between points: no atomics, and the same bits in every run.
#include <limits>
#include <optional>
#include <tuple>

#include "common/cuda.cuh"
#include "view_fusion/arguments.h"

namespace pointcept3m {
namespace {

constexpr int kThreads = 256;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

struct Projection {
  float u, v;  // NaN where z is not positive and finite
  double z;
};

// A place in the maps that a point reads: its upper left cell, and the weights of it and the three beside and below it.
struct Tap {
  int64_t offset;
  float weight[4];
};

// Every step rounded by itself, as on the CPU.
__device__ __forceinline__ double dot(const double* row, const float* point) {
  double sum = __dmul_rn(point[0], row[0]);
  sum = __dadd_rn(sum, __dmul_rn(point[1], row[1]));
  sum = __dadd_rn(sum, __dmul_rn(point[2], row[2]));
  return __dadd_rn(sum, row[3]);
}

__device__ __forceinline__ Projection project(const double* matrix, const float* point) {
  const double z = dot(matrix + 8, point);
  const bool front = z > 0 && isfinite(z);
  const double by = front ? z : kNone;
  return {static_cast<float>(dot(matrix, point) / by), static_cast<float>(dot(matrix + 4, point) / by), z};
}

__device__ __forceinline__ bool is_visible(const Views& views, int64_t view, const Projection& at) {
  if (!(at.u >= views.low && at.u < views.right && at.v >= views.low && at.v < views.bottom)) return false;
  if (views.depth == nullptr) return true;
  const int64_t row = view * views.height + static_cast<int64_t>(at.v);
  const double depth = views.depth[row * views.width + static_cast<int64_t>(at.u)];
  return depth > 0 && isfinite(depth) && fabs(__dadd_rn(depth, -at.z)) <= __dmul_rn(views.tolerance, depth);
}

// Along an axis: the lower of the two cells around a position, and the upper one's share.
__device__ __forceinline__ int64_t place_between(float position, int64_t cells, int64_t length, float* share) {
  const double scale = static_cast<double>(cells) / static_cast<double>(length);
  double place = __dadd_rn(__dmul_rn(position, scale), -0.5);
  place = fmin(fmax(place, 0.0), static_cast<double>(cells - 1));
  const int64_t cell = min(static_cast<int64_t>(place), max(cells - 2, int64_t{0}));
  *share = static_cast<float>(place - static_cast<double>(cell));
  return cell;
}

__device__ __forceinline__ int64_t cell_under(float position, int64_t cells, int64_t length) {
  return (2 * static_cast<int64_t>(position) + 1) * cells / (2 * length);
}

__device__ __forceinline__ Tap tap_at(const Views& views, const Maps& maps, int64_t view, const Projection& at) {
  float right = 0, low = 0;
  int64_t column, row;
  if (maps.bilinear) {
    column = place_between(at.u, maps.columns, views.width, &right);
    row = place_between(at.v, maps.rows, views.height, &low);
  } else {
    column = cell_under(at.u, maps.columns, views.width);
    row = cell_under(at.v, maps.rows, views.height);
  }
  const int64_t cell = (view * maps.rows + row) * maps.columns + column;
  return {cell * maps.channels, {(1 - low) * (1 - right), (1 - low) * right, low * (1 - right), low * right}};
}

__global__ void find_visible(Views views, const float* coord, int64_t num_points, float* pixel, bool* visible) {
  const int64_t i = global_thread();
  if (i >= views.count * num_points) return;
  const int64_t view = i / num_points;
  const Projection at = project(views.matrix + 12 * view, coord + 3 * (i % num_points));
  pixel[2 * i] = at.u;
  pixel[2 * i + 1] = at.v;
  visible[i] = is_visible(views, view, at);
}

__global__ void add_views(Views views, Maps maps, const float* coord, int64_t num_points, float* total,
                          int32_t* count) {
  P3M_DYNAMIC_SHARED(Tap, all_taps);
  Tap* taps = all_taps + threadIdx.x / kWarp * kWarp;
  const int64_t point = global_thread() / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (point >= num_points) return;
  const int64_t right = maps.columns > 1 ? maps.channels : 0, low = maps.rows > 1 ? maps.columns * maps.channels : 0;
  int32_t seen = 0;
  for (int64_t first = 0; first < views.count; first += kWarp) {
    const int64_t view = first + lane;
    Projection at{};
    bool visible = false;
    if (view < views.count) {
      at = project(views.matrix + 12 * view, coord + 3 * point);
      visible = is_visible(views, view, at);
    }
    const unsigned mask = __ballot_sync(kAllLanes, visible);
    if (visible) taps[__popc(mask & ((1u << lane) - 1))] = tap_at(views, maps, view, at);
    __syncwarp();
    const int found = __popc(mask);
    seen += found;
    for (int64_t c = lane; found > 0 && c < maps.channels; c += kWarp) {
      float sum = total[point * maps.channels + c];
      for (int k = 0; k < found; ++k) {
        const float* cell = maps.cells + taps[k].offset + c;
        if (maps.bilinear) {
          sum += cell[0] * taps[k].weight[0];
          sum += cell[right] * taps[k].weight[1];
          sum += cell[low] * taps[k].weight[2];
          sum += cell[low + right] * taps[k].weight[3];
        } else {
          sum += cell[0];
        }
      }
      total[point * maps.channels + c] = sum;
    }
    __syncwarp();
  }
  if (lane == 0) count[point] += seen;
}

void check_views(const Tensor& coord, const Tensor& matrix, const std::optional<Tensor>& depth) {
  check_contiguous_cuda(coord, "coord");
  check_contiguous_cuda(matrix, "matrix");
  if (depth) check_contiguous_cuda(*depth, "depth");
  const auto device = coord.get_device_index();
  STD_TORCH_CHECK(matrix.get_device_index() == device && (!depth || depth->get_device_index() == device),
                  "matrix and depth must be on the device of coord");
}

std::tuple<Tensor, Tensor> visible_points(const Tensor coord, const Tensor matrix, int64_t height, int64_t width,
                                          const std::optional<Tensor> depth, double tolerance, int64_t border) {
  check_views(coord, matrix, depth);
  const Views views = views_of(coord, matrix, height, width, depth, tolerance, border);
  const int64_t num_points = coord.size(0);
  CudaWork work(coord);
  const Tensor pixel = torch::stable::new_empty(coord, {views.count, num_points, 2});
  const Tensor visible = torch::stable::new_empty(coord, {views.count, num_points}, ScalarType::Bool);
  launch(work, find_visible, blocks_for(views.count * num_points, kThreads), kThreads, 0, views,
         coord.const_data_ptr<float>(), num_points, pixel.mutable_data_ptr<float>(), visible.mutable_data_ptr<bool>());
  return {pixel, visible};
}

void fuse_views(const Tensor total, const Tensor count, const Tensor coord, const Tensor maps, const Tensor matrix,
                int64_t height, int64_t width, const std::optional<Tensor> depth, double tolerance, int64_t border,
                bool bilinear) {
  check_views(coord, matrix, depth);
  const Tensor last = maps.is_contiguous() ? maps : torch::stable::contiguous(maps);
  for (const auto& [tensor, name] : {std::pair{&total, "total"}, {&count, "count"}, {&last, "maps"}}) {
    check_contiguous_cuda(*tensor, name);
    STD_TORCH_CHECK(tensor->get_device_index() == coord.get_device_index(), name, " must be on the device of coord");
  }
  const Views views = views_of(coord, matrix, height, width, depth, tolerance, border);
  const Maps features = maps_of(total, count, coord, last, matrix, bilinear);
  CudaWork work(coord);
  launch(work, add_views, blocks_for(coord.size(0) * kWarp, kThreads), kThreads, kThreads * sizeof(Tap), views,
         features, coord.const_data_ptr<float>(), coord.size(0), total.mutable_data_ptr<float>(),
         count.mutable_data_ptr<int32_t>());
}

}  // namespace

P3M_REGISTER_CUDA(m) {
  m.impl("visible_points", TORCH_BOX(&visible_points));
  m.impl("fuse_views", TORCH_BOX(&fuse_views));
}

}  // namespace pointcept3m
