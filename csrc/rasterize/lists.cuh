// The lists that the CUDA rasterizer's tiles walk. Forward and backward each make them: the op returns only the order.
//
// Gaussians are sorted by depth once a camera; each then writes the tiles it reaches, in that order, and a stable sort
// by tile alone, over only the bits that tile numbers have, leaves every tile's list front to back. The sort is over
// 32-bit keys of typically 11 to 14 bits, instead of 64-bit keys of (tile, depth).
#pragma once

#include "rasterize/splats.cuh"

namespace pointcept3m {

// Cameras' images cut into square tiles, numbered camera by camera and row by row.
struct TileGrid {
  int64_t cameras, gaussians;
  int32_t width, height, tile;
  __host__ __device__ int32_t columns() const { return (width + tile - 1) / tile; }
  __host__ __device__ int32_t rows() const { return (height + tile - 1) / tile; }
  __host__ __device__ int64_t per_camera() const { return int64_t(columns()) * rows(); }
  __host__ __device__ int64_t tiles() const { return cameras * per_camera(); }
};

// An entry is a (tile, Gaussian) that meet. "By rank" is: camera by camera, in the camera's depth order.
template <class T>
struct TileLists {
  const Splat<T>* splats;     // [C G] by rank
  const int32_t* ranks;       // [entries] by tile: the rank within the camera, front to back
  const int32_t* starts;      // [tiles + 1]: a tile's entries
  const int64_t* by_rank;     // [C G + 1]: a rank's entries, counted by rank
  int64_t entries;
  // Only for the backward:
  const int32_t* place;       // [entries] by rank: where the entry stands by tile
  const int32_t* rank_of;     // [C G]: rank of a camera's Gaussian; -1: none
};

// Writes `order` [C, G]: Gaussians with opacity >= 1/255 by depth, equal depths by index; then -1.
template <class T>
void order_by_depth(CudaWork& work, const T* depths, const T* opacities, int64_t cameras, int64_t gaussians,
                    int32_t* order);

// `order` may hold anything: an index outside [-1, G), or one twice, is an error (twice is only seen in the backward).
// Waits for the device once, for the number of entries.
template <class T>
TileLists<T> make_tile_lists(CudaWork& work, const TileGrid& grid, const T* means2d, const T* conics,
                             const T* opacities, const int32_t* order, bool backward);

}  // namespace pointcept3m
