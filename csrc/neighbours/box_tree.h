// A cloud cut into leaves of sixteen points, and boxes around leaves in groups of sixteen, sixteen such groups in a
// group of the next level, and so on. One vector holds one coordinate of sixteen points or one face of sixteen boxes.
//
// The order of the leaves is that of a k-d tree: a range is cut across its widest side, at a power of two of leaves, so
// that aligned groups are subtrees. As ranks decide, clusters, far outliers and equal points cost no more than others:
// building takes O(N log N), memory is about 20 bytes a point, and depth is log16(N / 16) + 1.
//
// Include common/exact_math.h first. The distance to a box is rounded in the same steps as the distance to a point, and
// rounding is monotone: a point in a box is never nearer, to the last bit, than its box.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "common/vector.h"

namespace pointcept3m {
namespace {

constexpr int64_t kWide = 16;  // points of a leaf, boxes of a group
constexpr int kMostLevels = 8;
constexpr int32_t kNoPoint = std::numeric_limits<int32_t>::max();

// Unused places lie infinitely far away and have the id kNoPoint.
template <class T>
struct alignas(64) Leaf {
  T coord[3][kWide];
  int32_t id[kWide];
};

template <class T>
struct alignas(64) Boxes {
  T low[3][kWide], high[3][kWide];
  int32_t first[kWide];  // smallest id in each box
};

// One item of the batch. Level 1 holds the boxes of leaves, level h + 1 those of the groups of level h.
struct Tree {
  int64_t first_point = 0, num_points = 0;  // finite points, in `Forest::points`
  int64_t first_leaf = 0, num_leaves = 0;
  int num_levels = 0;
  int64_t first_group[kMostLevels + 1] = {};  // of each level, in `Forest::groups`; the last level has one group

  int64_t num_groups(int level) const { return (num_leaves + (int64_t{1} << 4 * level) - 1) >> 4 * level; }
};

template <class T>
struct Placed {
  T coord[3];
  int32_t id;
};

template <class T>
struct Forest {
  std::vector<Tree> trees;
  std::unique_ptr<Placed<T>[]> points;  // by leaf
  std::unique_ptr<Leaf<T>[]> leaves;
  std::unique_ptr<Boxes<T>[]> groups;
  int64_t num_leaves = 0, num_groups = 0;
};

// Squared distances, every step rounded by itself, here and in the kernels.
template <class V>
P3M_INLINE auto square_sum(const V& x, const V& y, const V& z) {
  return (x * x + y * y) + z * z;
}

namespace tree_detail {

struct Range {
  int64_t tree, leaf, count;  // leaves of a tree
};

template <class T>
bool is_finite(const T* p) {
  return std::isfinite(p[0]) && std::isfinite(p[1]) && std::isfinite(p[2]);
}

template <class T>
int widest_side(const Placed<T>* begin, const Placed<T>* end) {
  T low[3], high[3];
  for (int d = 0; d < 3; ++d) low[d] = high[d] = begin->coord[d];
  for (const Placed<T>* p = begin; p < end; ++p)
    for (int d = 0; d < 3; ++d) {
      low[d] = std::min(low[d], p->coord[d]);
      high[d] = std::max(high[d], p->coord[d]);
    }
  int widest = 0;
  for (int d = 1; d < 3; ++d)
    if (high[d] - low[d] > high[widest] - low[widest]) widest = d;
  return widest;
}

// Cuts a range in two; equal coordinates are told apart by id, so that cutting equal points keeps ids together.
template <class T>
std::pair<Range, Range> cut(Forest<T>& forest, const Range& range) {
  const Tree& tree = forest.trees[range.tree];
  const int64_t left = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(range.count)) / 2);
  Placed<T>* begin = forest.points.get() + tree.first_point + range.leaf * kWide;
  Placed<T>* end =
      forest.points.get() + tree.first_point + std::min(tree.num_points, (range.leaf + range.count) * kWide);
  const int side = widest_side(begin, end);
  std::nth_element(begin, begin + left * kWide, end, [side](const Placed<T>& a, const Placed<T>& b) {
    return a.coord[side] != b.coord[side] ? a.coord[side] < b.coord[side] : a.id < b.id;
  });
  return {{range.tree, range.leaf, left}, {range.tree, range.leaf + left, range.count - left}};
}

template <class T>
void clear_boxes(Boxes<T>& boxes) {
  const T far = std::numeric_limits<T>::infinity();
  for (int d = 0; d < 3; ++d) {
    std::fill(boxes.low[d], boxes.low[d] + kWide, far);
    std::fill(boxes.high[d], boxes.high[d] + kWide, -far);
  }
  std::fill(boxes.first, boxes.first + kWide, kNoPoint);
}

template <class T>
void fill_leaf(Forest<T>& forest, const Tree& tree, int64_t number) {
  Leaf<T>& leaf = forest.leaves[tree.first_leaf + number];
  Boxes<T>& boxes = forest.groups[tree.first_group[1] + number / kWide];
  const int64_t lane = number % kWide, count = std::min(kWide, tree.num_points - number * kWide);
  const Placed<T>* points = forest.points.get() + tree.first_point + number * kWide;
  const T far = std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < kWide; ++i) {
    for (int d = 0; d < 3; ++d) leaf.coord[d][i] = i < count ? points[i].coord[d] : far;
    leaf.id[i] = i < count ? points[i].id : kNoPoint;
  }
  for (int d = 0; d < 3; ++d) {
    boxes.low[d][lane] = *std::min_element(leaf.coord[d], leaf.coord[d] + count);
    boxes.high[d][lane] = *std::max_element(leaf.coord[d], leaf.coord[d] + count);
  }
  boxes.first[lane] = *std::min_element(leaf.id, leaf.id + count);
}

template <class T>
void cut_to_leaves(Forest<T>& forest, const Range& range) {
  if (range.count == 1) return fill_leaf(forest, forest.trees[range.tree], range.leaf);
  const auto [left, right] = cut(forest, range);
  cut_to_leaves(forest, left);
  cut_to_leaves(forest, right);
}

template <class T>
void fill_upper_levels(Forest<T>& forest, const Tree& tree) {
  for (int level = 2; level <= tree.num_levels; ++level)
    for (int64_t child = 0; child < tree.num_groups(level - 1); ++child) {
      const Boxes<T>& from = forest.groups[tree.first_group[level - 1] + child];
      Boxes<T>& to = forest.groups[tree.first_group[level] + child / kWide];
      const int64_t lane = child % kWide;
      for (int d = 0; d < 3; ++d) {
        to.low[d][lane] = *std::min_element(from.low[d], from.low[d] + kWide);
        to.high[d][lane] = *std::max_element(from.high[d], from.high[d] + kWide);
      }
      to.first[lane] = *std::min_element(from.first, from.first + kWide);
    }
}

// Lays out trees, leaves and groups, and copies the points that are finite.
template <class T>
Forest<T> plan(const T* coord, const int64_t* offset, int64_t num_items) {
  Forest<T> forest;
  const int64_t num_points = num_items ? offset[num_items - 1] : 0;
  forest.points.reset(new Placed<T>[num_points]);
  int64_t place = 0;
  for (int64_t item = 0; item < num_items; ++item) {
    Tree tree;
    tree.first_point = place;
    for (int64_t i = item ? offset[item - 1] : 0; i < offset[item]; ++i) {
      const T* p = coord + 3 * i;
      if (is_finite(p)) forest.points[place++] = {{p[0], p[1], p[2]}, static_cast<int32_t>(i)};
    }
    tree.num_points = place - tree.first_point;
    tree.first_leaf = forest.num_leaves;
    tree.num_leaves = (tree.num_points + kWide - 1) / kWide;
    forest.num_leaves += tree.num_leaves;
    for (int64_t count = tree.num_leaves; count > 0 && (count > 1 || tree.num_levels == 0);) {
      count = (count + kWide - 1) / kWide;
      tree.first_group[++tree.num_levels] = forest.num_groups;
      forest.num_groups += count;
    }
    forest.trees.push_back(tree);
  }
  forest.leaves.reset(new Leaf<T>[forest.num_leaves]);
  forest.groups.reset(new Boxes<T>[forest.num_groups]);
  return forest;
}

}  // namespace tree_detail

// One tree for each item. `offset` holds cumulative ends and was checked. Points that are not finite are left out.
template <class T>
Forest<T> build_forest(const T* coord, const int64_t* offset, int64_t num_items) {
  using namespace tree_detail;
  Forest<T> forest = plan(coord, offset, num_items);
  for (int64_t group = 0; group < forest.num_groups; ++group) clear_boxes(forest.groups[group]);
  std::vector<Range> ranges;
  for (int64_t tree = 0; tree < num_items; ++tree)
    if (forest.trees[tree].num_leaves) ranges.push_back({tree, 0, forest.trees[tree].num_leaves});
  // Large ranges are cut by all threads until each thread has several. Lanes of a group of boxes that two threads fill
  // are different memory.
  constexpr int64_t enough = 64;
  for (int round = 0; round < 6; ++round) {
    std::vector<Range> large, small;
    for (const Range& range : ranges) (range.count >= enough ? large : small).push_back(range);
    const auto enough = 8 * static_cast<int64_t>(torch::stable::get_num_threads());
    if (large.empty() || static_cast<int64_t>(large.size()) >= enough) break;
    std::vector<std::pair<Range, Range>> halves(large.size());
    share_units(static_cast<int64_t>(large.size()), [&](int64_t i) { halves[i] = cut(forest, large[i]); });
    ranges = std::move(small);
    for (const auto& [left, right] : halves) ranges.insert(ranges.end(), {left, right});
  }
  share_units(static_cast<int64_t>(ranges.size()), [&](int64_t i) { cut_to_leaves(forest, ranges[i]); });
  share_units(num_items, [&](int64_t item) { fill_upper_levels(forest, forest.trees[item]); });
  return forest;
}

}  // namespace
}  // namespace pointcept3m
