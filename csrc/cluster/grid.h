// Points in the cells of a regular grid: sorted by cell, each cell's points ascending, and empty cells not stored.
//
// A cell's key is ((group * X + x) * Y + y) * Z + z with a margin of empty cells around, so that a neighbour's key is
// the key plus a constant, and neighbours along z stand side by side. Groups never meet. Whatever the extent of the
// coordinates: where keys would not fit 62 bits, each axis' cell numbers are replaced by their ranks, wide gaps made
// narrow; where even ranks do not fit (more than half a million points, each far from all others), keys get 128 bits.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "common/radix_sort.h"
#include "common/simd.h"

namespace pointcept3m {
namespace {
namespace grid_detail {

constexpr int64_t kBlock = 8192;

inline int64_t num_blocks(int64_t count) { return (count + kBlock - 1) / kBlock; }

// Calls work(block, begin, end) for blocks of [0, count).
template <class Work>
void share_blocks(int64_t count, const Work& work) {
  share_units(num_blocks(count),
              [&](int64_t block) { work(block, block * kBlock, std::min(count, (block + 1) * kBlock)); });
}

// A row with a key of 128 bits: too rare for a radix sort of its own.
struct Widest {
  unsigned __int128 word;
  int64_t place;

  static Widest make(unsigned __int128 key, int64_t row) { return {key, row}; }
  int64_t row() const { return place; }
};

inline void sort_items(Items<Widest>& items) {
  std::sort(items.now.get(), items.now.get() + items.count, [](const Widest& a, const Widest& b) {
    return a.word != b.word ? a.word < b.word : a.place < b.place;
  });
}

// A coordinate so huge that the product overflows has no neighbours but its equals, and cell 0 serves them as well.
P3M_INLINE double cell_number(double coord, double inverse) {
  const double cell = std::floor(coord * inverse);
  return std::abs(cell) < 0x1p1000 ? cell : 0;
}

template <class T>
P3M_INLINE bool is_finite(const T* point) {
  return std::isfinite(point[0]) && std::isfinite(point[1]) && std::isfinite(point[2]);
}

struct Bounds {
  std::array<double, 3> low{}, high{};
  bool any = false;

  void add(const Bounds& other) {
    if (!other.any) return;
    for (int d = 0; d < 3; ++d) {
      low[d] = any ? std::min(low[d], other.low[d]) : other.low[d];
      high[d] = any ? std::max(high[d], other.high[d]) : other.high[d];
    }
    any = true;
  }
};

template <class T>
Bounds bounds_of(const T* coord, int64_t num_points) {
  std::vector<Bounds> parts(num_blocks(num_points));
  share_blocks(num_points, [&](int64_t block, int64_t begin, int64_t end) {
    Bounds bounds;
    for (int64_t i = begin; i < end; ++i) {
      const T* p = coord + 3 * i;
      if (!is_finite(p)) continue;
      for (int d = 0; d < 3; ++d) {
        const auto value = static_cast<double>(p[d]);
        bounds.low[d] = bounds.any ? std::min(bounds.low[d], value) : value;
        bounds.high[d] = bounds.any ? std::max(bounds.high[d], value) : value;
      }
      bounds.any = true;
    }
    parts[block] = bounds;
  });
  Bounds bounds;
  for (const Bounds& part : parts) bounds.add(part);
  return bounds;
}

// Cell numbers along one axis as small integers: counted from the lowest one, or by rank.
struct Axis {
  double low = 0;
  double size = 1;                // how many numbers there may be
  std::vector<double> distinct;   // by rank only
  std::vector<int64_t> rank;

  int64_t operator()(double cell) const {
    if (distinct.empty()) return static_cast<int64_t>(cell - low);
    return rank[std::lower_bound(distinct.begin(), distinct.end(), cell) - distinct.begin()];
  }

  void use_ranks(std::vector<double> cells, int64_t reach) {
    std::sort(cells.begin(), cells.end());
    cells.erase(std::unique(cells.begin(), cells.end()), cells.end());
    distinct = std::move(cells);
    rank.assign(distinct.size(), 0);
    for (size_t i = 1; i < distinct.size(); ++i)
      rank[i] = rank[i - 1] + static_cast<int64_t>(std::min<double>(distinct[i] - distinct[i - 1], reach + 1));
    size = static_cast<double>(rank.back() + 1);
  }
};

}  // namespace grid_detail

// How a cloud is cut into cells. Points nearer than the radius lie at most `reach` cells apart along each axis.
struct GridPlan {
  double inverse = 1;  // of the width of a cell
  int64_t reach = 1;
  int64_t num_groups = 1;
  std::array<grid_detail::Axis, 3> axis;

  double num_keys() const {
    double product = static_cast<double>(num_groups);
    for (const auto& a : axis) product *= a.size + 2 * reach;
    return product;
  }
  bool fits_64() const { return num_keys() < 0x1p62; }
};

// Room for the rounding of coordinates, of cell numbers and of squared distances.
constexpr double kSlack = 0x1p-14;

enum class CellSize { radius, within_radius };  // within_radius: any two points of a cell are nearer than the radius

// Beyond 2^35 cells from the origin rounding could move a point into another cell: there the width is a power of two,
// with which floor(coord / width) is exact.
template <class T>
GridPlan plan_grid(const T* coord, int64_t num_points, double radius, CellSize size, int64_t num_groups) {
  GridPlan plan;
  plan.num_groups = num_groups;
  const grid_detail::Bounds bounds = grid_detail::bounds_of(coord, num_points);
  if (!bounds.any) return plan;
  double furthest = 0;
  for (int d = 0; d < 3; ++d) furthest = std::max({furthest, std::abs(bounds.low[d]), std::abs(bounds.high[d])});
  const double width = size == CellSize::radius ? radius * (1 + kSlack) : radius / std::sqrt(3.0) * (1 - kSlack);
  const bool far = !(furthest / width < 0x1p35);
  const double exponent = size == CellSize::radius ? std::ceil(std::log2(width)) : std::floor(std::log2(width));
  plan.inverse = far ? std::exp2(-exponent) : 1 / width;
  plan.reach = static_cast<int64_t>(std::ceil(radius * (1 + kSlack / 2) * plan.inverse));
  for (int d = 0; d < 3; ++d) {
    plan.axis[d].low = grid_detail::cell_number(bounds.low[d], plan.inverse);
    plan.axis[d].size = grid_detail::cell_number(bounds.high[d], plan.inverse) - plan.axis[d].low + 1;
  }
  if (!far && plan.fits_64()) return plan;
  for (int d = 0; d < 3; ++d) {
    std::vector<double> cells;
    for (int64_t i = 0; i < num_points; ++i)
      if (grid_detail::is_finite(coord + 3 * i))
        cells.push_back(grid_detail::cell_number(coord[3 * i + d], plan.inverse));
    plan.axis[d].use_ranks(std::move(cells), plan.reach);
  }
  return plan;
}

template <class T, class Key>
struct Grid {
  std::array<int64_t, 3> size;      // with margins
  std::vector<Key> key;             // one per cell, and sentinels above all
  std::vector<int32_t> start;       // first place of each cell, and the end
  std::vector<int32_t> row;         // point at each place; points that are not finite are left out
  std::unique_ptr<T[]> x, y, z;     // coordinates at each place

  int64_t num_cells() const { return static_cast<int64_t>(start.size()) - 1; }
  int64_t num_places() const { return static_cast<int64_t>(row.size()); }
  // What lies (dx, dy, dz) cells away has this much more key.
  Key shift(int64_t dx, int64_t dy, int64_t dz) const {
    return (static_cast<Key>(dx) * static_cast<Key>(size[1]) + static_cast<Key>(dy)) * static_cast<Key>(size[2]) +
           static_cast<Key>(dz);
  }
  // First cell at or after `from` whose key is not below `target`. Comparing four keys at a time and counting leaves
  // the processor almost no branch to guess.
  int64_t seek(int64_t from, Key target) const {
    const Key* keys = key.data();
    for (int step = 0; step < 3; ++step) {
      const Key* k = keys + from;
      const int below = (k[0] < target) + (k[1] < target) + (k[2] < target) + (k[3] < target);
      from += below;
      if (below < 4) return from;
    }
    return std::lower_bound(keys + from, keys + num_cells(), target) - keys;
  }
  // How many cells from `from` on have keys of low to low + span; the one at `from` must not be below `low`.
  int64_t count(int64_t from, Key low, int64_t span) const {
    int64_t inside = 0;
    for (int64_t i = 0; i <= span; ++i) inside += key[from + i] - low <= static_cast<Key>(span);
    return inside;
  }
  // The cell from which seeking `target` starts, wherever it is.
  int64_t first_seek(Key target) const {
    return std::lower_bound(key.data(), key.data() + num_cells(), target) - key.data();
  }
};

// group: int32 per point, or null where all are of one group.
template <class Key, class T>
Grid<T, Key> fill_grid(const T* coord, int64_t num_points, const int32_t* group, const GridPlan& plan) {
  using namespace grid_detail;
  Grid<T, Key> grid;
  for (int d = 0; d < 3; ++d) grid.size[d] = static_cast<int64_t>(plan.axis[d].size) + 2 * plan.reach;

  using Item = std::conditional_t<sizeof(Key) == sizeof(uint64_t), Wide, Widest>;
  const double keys = plan.num_keys();
  Items<Item> items(num_points, keys < 2 ? 0 : static_cast<int>(std::ceil(std::log2(keys))) + 1, 0);
  std::vector<int64_t> finite(num_blocks(num_points) + 1);
  share_blocks(num_points, [&](int64_t block, int64_t begin, int64_t end) {
    int64_t place = begin;
    for (int64_t i = begin; i < end; ++i) {
      const T* p = coord + 3 * i;
      if (!is_finite(p)) continue;
      Key key = group ? static_cast<Key>(group[i]) : 0;
      for (int d = 0; d < 3; ++d)
        key = key * static_cast<Key>(grid.size[d]) +
              static_cast<Key>(plan.axis[d](cell_number(p[d], plan.inverse)) + plan.reach);
      items.now[place++] = Item::make(key, i);
    }
    finite[block] = place - begin;
  });
  int64_t count = 0;
  for (int64_t block = 0; block < num_blocks(num_points); ++block) {
    Item* from = items.now.get() + block * kBlock;
    if (count != block * kBlock) std::copy_n(from, finite[block], items.now.get() + count);
    count += finite[block];
  }
  items.count = count;
  sort_items(items);

  grid.row.resize(count);
  for (auto* values : {&grid.x, &grid.y, &grid.z}) values->reset(new T[count + 1]);
  share_blocks(count, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t place = begin; place < end; ++place) {
      const int64_t row = items.now[place].row();
      grid.row[place] = static_cast<int32_t>(row);
      grid.x[place] = coord[3 * row], grid.y[place] = coord[3 * row + 1], grid.z[place] = coord[3 * row + 2];
    }
  });
  for (int64_t place = 0; place < count; ++place)
    if (place == 0 || items.key(place) != items.key(place - 1)) {
      grid.key.push_back(items.key(place));
      grid.start.push_back(static_cast<int32_t>(place));
    }
  grid.key.insert(grid.key.end(), 2 * plan.reach + 4, ~Key{0});  // as many as are looked at past the end
  grid.start.push_back(static_cast<int32_t>(count));
  return grid;
}

}  // namespace
}  // namespace pointcept3m
