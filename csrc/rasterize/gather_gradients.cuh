// From the gradient rows of (tile, Gaussian) entries to the gradients of Gaussians: no atomics, one order of summation.
#pragma once

#include "rasterize/scene.cuh"

namespace pointcept3m {
namespace {

template <class T>
struct Gradients {
  T *means2d, *conics, *opacities, *view, *shared;
};

// sums[i] += column + i * step, where below `num_columns`, over the entries of a rank (-1: none) that have a row here.
template <int N, class T>
__device__ __forceinline__ void add_rows(const TileLists<T>& lists, const Rows<T>& rows, int32_t num_rows,
                                         int64_t camera_start, int32_t rank, int32_t column, int step,
                                         int32_t num_columns, T (&sums)[N]) {
  if (rank < 0) return;
  const int64_t end = lists.by_rank[camera_start + rank + 1];
  for (int64_t entry = lists.by_rank[camera_start + rank]; entry < end; ++entry) {
    const int64_t row = int64_t(lists.place[entry]) - rows.first;
    if (row < 0 || row >= num_rows || !rows.used[row]) continue;
    const T* values = rows.at(row);
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (column + i * step < num_columns) sums[i] += values[column + i * step];
  }
}

// `width` lanes (16 or 32) a Gaussian, side by side in columns. Writes where `first`, else adds.
template <class T>
__global__ void gather_gradients(Scene<T> scene, const T* conics, const T* opacities, Rows<T> rows, int32_t num_rows,
                                 int width, bool first, Gradients<T> to) {
  const int64_t gaussian = global_thread() / width, gaussians = scene.grid.gaussians;
  const int32_t* const rank_of = scene.lists.rank_of;
  const int lane = threadIdx.x % width;
  const bool exists = gaussian < gaussians;
  const auto put = [&](T* at, T value) { *at = first ? value : *at + value; };
  for (int32_t camera = 0; camera < scene.grid.cameras; ++camera) {
    const int64_t start = camera * gaussians, at = start + (exists ? gaussian : 0);
    const int32_t rank = exists ? rank_of[at] : -1;
    T moment[1] = {}, m[kMoments];
    if (lane < kMoments)
      add_rows(scene.lists, rows, num_rows, start, rank, rows.moments() + lane, 1, rows.stride, moment);
#pragma unroll
    for (int i = 0; i < kMoments; ++i) m[i] = __shfl_sync(kAllLanes, moment[0], i, width);
    if (exists && (rank >= 0 || first)) {
      // The fields of a Gaussian that reaches no tile may hold anything.
      const bool any = rank >= 0 && scene.lists.by_rank[start + rank] < scene.lists.by_rank[start + rank + 1];
      const T a = any ? conics[3 * at] : T(0), b = any ? conics[3 * at + 1] : T(0), c = any ? conics[3 * at + 2] : T(0);
      if (lane == 0) put(to.means2d + 2 * at, a * m[1] + b * m[2]);
      if (lane == 1) put(to.means2d + 2 * at + 1, b * m[1] + c * m[2]);
      if (lane == 2) put(to.conics + 3 * at, T(-0.5) * m[3]);
      if (lane == 3) put(to.conics + 3 * at + 1, -m[4]);
      if (lane == 4) put(to.conics + 3 * at + 2, T(-0.5) * m[5]);
      if (lane == 5) put(to.opacities + at, any ? m[0] / opacities[at] : T(0));
      for (int32_t i = lane; i < scene.num_view; i += width) {
        T sum[1] = {};
        add_rows(scene.lists, rows, num_rows, start, rank, rows.num_shared + i, 1, rows.stride, sum);
        put(to.view + at * scene.num_view + i, sum[0]);
      }
    }
  }
  if (!exists) return;
  constexpr int kAtOnce = 4;  // columns of a lane, so that entries are looked up once for 4 of them
  for (int32_t i = lane; i < scene.num_shared; i += kAtOnce * width) {
    T sums[kAtOnce] = {};
    for (int32_t camera = 0; camera < scene.grid.cameras; ++camera) {
      const int64_t start = camera * gaussians;
      add_rows(scene.lists, rows, num_rows, start, rank_of[start + gaussian], i, width, scene.num_shared, sums);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (i + k * width < scene.num_shared) put(to.shared + gaussian * scene.num_shared + i + k * width, sums[k]);
  }
}

}  // namespace
}  // namespace pointcept3m
