// From coordinates to cells of a grid: floor((coord - origin) / size) in float64, eight points at a time.
// The file that includes this has to include common/exact_math.h first: multiplying by 1 / size rounds to other cells.
#pragma once

#include <algorithm>

#include "common/simd.h"
#include "voxelize/arguments.h"

namespace pointcept3m {
namespace {

// The grid, its three axes repeated over eight points: 24 numbers fill whole vectors.
struct Grid {
  static constexpr int64_t points = 8, numbers = 3 * points;
  double size[numbers], origin[numbers];

  Grid(const double* size3, const double* origin3) {
    for (int64_t i = 0; i < numbers; ++i) size[i] = size3[i % 3], origin[i] = origin3[i % 3];
  }
};

// The lowest and highest cell of some points, and whether all of them are finite and within kMaxCell.
struct Bounds {
  double low[3], high[3];
  bool valid = true;

  Bounds() {
    std::fill(low, low + 3, std::numeric_limits<double>::max());
    std::fill(high, high + 3, std::numeric_limits<double>::lowest());
  }
};

// What the points seen so far have in common, in the layout of a grid.
struct Reach {
  double low[Grid::numbers], high[Grid::numbers];
  int64_t outside[Grid::numbers];
};

// Cells of eight points. Plain loops of a known length, which the compiler makes vectors of.
template <class T>
P3M_INLINE void quantise_eight(const T* P3M_RESTRICT coord, const Grid& grid, int64_t* P3M_RESTRICT cells,
                               Reach& reach) {
  double scaled[Grid::numbers];
  for (int i = 0; i < Grid::numbers; ++i) {
    const double value = (static_cast<double>(coord[i]) - grid.origin[i]) / grid.size[i];
    const bool inside = (value < kMaxCell) & (value > -kMaxCell);  // false for NaN
    reach.outside[i] |= !inside;
    scaled[i] = inside ? value : 0;
  }
  for (int i = 0; i < Grid::numbers; ++i) {
    reach.low[i] = scaled[i] < reach.low[i] ? scaled[i] : reach.low[i];
    reach.high[i] = scaled[i] > reach.high[i] ? scaled[i] : reach.high[i];
  }
  for (int i = 0; i < Grid::numbers; ++i) {
    const int64_t cell = static_cast<int64_t>(scaled[i]);
    cells[i] = cell - (static_cast<double>(cell) > scaled[i]);
  }
}

// Cells of the points [begin, end), and their bounds.
template <class T>
P3M_INLINE Bounds quantise_points(const Grid& grid, const T* coord, int64_t begin, int64_t end, int64_t* cells) {
  Bounds bounds;
  Reach reach;
  std::fill(reach.low, reach.low + Grid::numbers, bounds.low[0]);
  std::fill(reach.high, reach.high + Grid::numbers, bounds.high[0]);
  std::fill(reach.outside, reach.outside + Grid::numbers, 0);
  for (; begin + Grid::points <= end; begin += Grid::points)
    quantise_eight(coord + 3 * begin, grid, cells + 3 * begin, reach);
  if (begin < end) {
    T padded[Grid::numbers];
    int64_t cell[Grid::numbers];
    const int64_t left = 3 * (end - begin);
    for (int64_t i = 0; i < Grid::numbers; ++i) padded[i] = coord[3 * begin + (i < left ? i : left - 3 + i % 3)];
    quantise_eight(padded, grid, cell, reach);
    std::copy(cell, cell + left, cells + 3 * begin);
  }
  for (int i = 0; i < Grid::numbers; ++i) {
    bounds.low[i % 3] = std::min(bounds.low[i % 3], std::floor(reach.low[i]));
    bounds.high[i % 3] = std::max(bounds.high[i % 3], std::floor(reach.high[i]));
    bounds.valid &= reach.outside[i] == 0;
  }
  return bounds;
}

}  // namespace
}  // namespace pointcept3m
