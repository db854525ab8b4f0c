// Voxels as 64-bit keys in lexicographic order of (batch, x, y, z): sorting, and finding neighbours by adding.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "common/radix_sort.h"

namespace pointcept3m {
namespace {

// A box of voxels. key = ((batch * X + x) * Y + y) * Z + z, counted from `low`.
struct KeyBox {
  std::array<int64_t, 4> low{}, size{1, 1, 1, 1};

  uint64_t key(int64_t b, int64_t x, int64_t y, int64_t z) const {
    return static_cast<uint64_t>((((b - low[0]) * size[1] + (x - low[1])) * size[2] + (y - low[2])) * size[3] +
                                 (z - low[3]));
  }
  // False where keys would not fit 62 bits.
  bool fits() const {
    double product = 1;
    for (int64_t s : size) product *= static_cast<double>(s);
    return product < 4e18;
  }
  // How many bits the keys of a box that fits have.
  int key_bits() const { return std::bit_width(static_cast<uint64_t>(size[0] * size[1] * size[2] * size[3] - 1)); }
};

// The smallest box around `coord` [num_rows, 4], with `margin` voxels more on both sides of x, y and z.
inline KeyBox bounding_box(const int32_t* coord, int64_t num_rows, const std::array<int64_t, 3>& margin) {
  KeyBox box;
  if (num_rows == 0) return box;
  std::array<int32_t, 4> low, high;
  for (int d = 0; d < 4; ++d) low[d] = high[d] = coord[d];
  for (int64_t i = 1; i < num_rows; ++i)
    for (int d = 0; d < 4; ++d) {
      low[d] = std::min(low[d], coord[4 * i + d]);
      high[d] = std::max(high[d], coord[4 * i + d]);
    }
  for (int d = 0; d < 4; ++d) {
    const int64_t m = d ? margin[d - 1] : 0;
    box.low[d] = int64_t{low[d]} - m;
    box.size[d] = int64_t{high[d]} - low[d] + 1 + 2 * m;
  }
  return box;
}

inline void sort_unless_sorted(Items<Wide>& items) {
  const Wide* first = items.now.get();
  if (!std::is_sorted(first, first + items.count, [](const Wide& a, const Wide& b) { return a.word < b.word; }))
    sort_items(items);
}

// The occupied cells of a cloud in ascending order of key.
struct Cells {
  KeyBox box;
  std::vector<uint64_t> key;  // one per cell, and a sentinel above all keys
  std::vector<int32_t> row;   // first row in each cell
  std::vector<int64_t> cell;  // cell of each row
  int64_t count = 0;
};

inline Cells find_cells(const int32_t* coord, int64_t num_rows, const KeyBox& box) {
  Cells cells;
  cells.box = box;
  Items<Wide> items(num_rows, box.key_bits(), 0);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int32_t* c = coord + 4 * i;
    items.now[i] = Wide::make(box.key(c[0], c[1], c[2], c[3]), i);
  }
  sort_unless_sorted(items);
  cells.key.reserve(num_rows + 1);
  cells.row.reserve(num_rows);
  cells.cell.resize(num_rows);
  for (int64_t i = 0; i < num_rows; ++i) {
    const uint64_t key = items.key(i);
    const int64_t row = items.now[i].row();
    if (cells.key.empty() || cells.key.back() != key) {
      cells.key.push_back(key);
      cells.row.push_back(static_cast<int32_t>(row));
    }
    cells.cell[row] = static_cast<int64_t>(cells.row.size()) - 1;
  }
  cells.count = static_cast<int64_t>(cells.row.size());
  cells.key.push_back(~uint64_t{0});
  return cells;
}

}  // namespace
}  // namespace pointcept3m
