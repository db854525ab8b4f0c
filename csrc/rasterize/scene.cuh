// What the tile kernels read and write, and what forward and backward, plain and on tensor cores, share.
#pragma once

#include "rasterize/lists.cuh"
#include "common/warp_sums.cuh"

namespace pointcept3m {
namespace {

constexpr int kMoments = 6;  // of dL/d(alpha) alpha: 1, dx, dy, dx^2, dx dy, dy^2

template <class T>
struct Scene {
  TileGrid grid;
  TileLists<T> lists;
  const T* view;         // [C, G, A]
  const T* shared;       // [G, D]
  int32_t num_view, num_shared;

  __host__ __device__ int32_t channels() const { return num_view + num_shared; }
};

template <class T>
struct Images {
  T *view, *shared, *transmittance;  // [C, H, W, A], [C, H, W, D], [C, H, W]
  int32_t* last;                     // [C, H, W]
};

// What the forward left and what comes from above.
template <class T>
struct Above {
  const T *view, *shared, *grad_transmittance, *transmittance;
  const int32_t* last;
};

// Gradients of the entries from `first` on, one row each: D shared channels, A channels of the camera's own, moments;
// filled up to whole sectors of memory, so that the shared channels begin at one. `used`: 1 where a row was written.
template <class T>
struct Rows {
  T* values;
  unsigned char* used;
  int32_t first, stride, num_view, num_shared;

  __device__ __forceinline__ T* at(int64_t row) const { return values + row * stride; }
  __device__ __forceinline__ int32_t moments() const { return num_shared + num_view; }
  // Where channel i of A + D stands.
  __device__ __forceinline__ int32_t column(int32_t i) const { return i < num_view ? num_shared + i : i - num_view; }
};

// Values in a row.
constexpr int32_t row_stride(int32_t channels) { return (channels + kMoments + 7) / 8 * 8; }

struct TileView {
  int32_t camera, x0, y0;
};

__device__ __forceinline__ TileView view_of(const TileGrid& grid, int64_t tile) {
  const int64_t per_camera = grid.per_camera(), within = tile % per_camera;
  return {static_cast<int32_t>(tile / per_camera), static_cast<int32_t>(within % grid.columns()) * grid.tile,
          static_cast<int32_t>(within / grid.columns()) * grid.tile};
}

// One lane's pixel: the warp's 8x4 block begins at (x0, y0).
struct Pixel {
  int32_t x, y;
  int64_t index;  // among the pixels of all cameras
  bool inside;
};

__device__ __forceinline__ Pixel pixel_of(const TileGrid& grid, int32_t camera, int32_t x0, int32_t y0, int lane) {
  const int32_t x = x0 + lane % kBlockWidth, y = y0 + lane / kBlockWidth;
  return {x, y, (int64_t(camera) * grid.height + y) * grid.width + x, x < grid.width && y < grid.height};
}

// A channel row of a Gaussian: column i of A + D.
template <class T>
struct ChannelRow {
  const T *view, *shared;
  int32_t num_view;
  __device__ __forceinline__ T operator[](int32_t i) const { return i < num_view ? view[i] : shared[i - num_view]; }
};

template <class T>
__device__ __forceinline__ ChannelRow<T> channel_row(const Scene<T>& scene, int32_t camera, int32_t gaussian) {
  return {scene.view + (camera * scene.grid.gaussians + gaussian) * scene.num_view,
          scene.shared + int64_t(gaussian) * scene.num_shared, scene.num_view};
}

template <class T>
__device__ __forceinline__ ChannelRow<T> gradient_row(const Scene<T>& scene, const Above<T>& above, int64_t pixel) {
  return {above.view + pixel * scene.num_view, above.shared + pixel * scene.num_shared, scene.num_view};
}

// The greatest value of the warp; *of_block, in shared memory, becomes that of the block, and at least -1.
__device__ __forceinline__ int32_t greatest_last(int32_t last, int32_t* of_block) {
  const int32_t of_warp = __reduce_max_sync(kAllLanes, last);
  if (threadIdx.x == 0) *of_block = -1;
  __syncthreads();
  if (threadIdx.x % kWarp == 0) atomicMax(of_block, of_warp);
  __syncthreads();
  return of_warp;
}

// End of the part of a tile's list that ranks up to `limit` take.
__device__ __forceinline__ int32_t end_of_ranks(const int32_t* ranks, int32_t begin, int32_t end, int32_t limit) {
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (ranks[middle] <= limit) begin = middle + 1;
    else end = middle;
  }
  return begin;
}

// One pixel on its way from the back to the front.
template <class T>
struct Walk {
  T light, behind;  // transmittance behind the Gaussian at hand; sum of w q behind it, and dL/dT of what is left
  int32_t last;
};

// Moments of dL/d(alpha) alpha of a Gaussian at a pixel; moves the pixel in front of it.
template <class T>
__device__ __forceinline__ void step_back(const Sample<T>& at, T q, Walk<T>* walk, T* moments) {
  const T inverse = reciprocal(T(1) - at.alpha);
  walk->light *= inverse;
  const T weighted = at.alpha * walk->light * q;
  // An alpha that was cut to 0.99 does not move.
  const T slope = at.alpha < T(kAlphaMax) ? weighted - at.alpha * inverse * walk->behind : T(0);
  walk->behind += weighted;
  moments[0] = slope;
  moments[1] = slope * at.dx;
  moments[2] = slope * at.dy;
  moments[3] = moments[1] * at.dx;
  moments[4] = moments[1] * at.dy;
  moments[5] = moments[2] * at.dy;
}

// The pixel's state at the back of its list; a pixel outside the image takes no part.
template <class T>
__device__ __forceinline__ Walk<T> begin_walk(const Above<T>& above, const Pixel& pixel) {
  if (!pixel.inside) return {T(1), T(0), -1};
  const T light = above.transmittance[pixel.index];
  return {light, light * above.grad_transmittance[pixel.index], above.last[pixel.index]};
}

}  // namespace
}  // namespace pointcept3m
