// Farthest point sampling on the CPU, exact, on the boxes of neighbours/box_tree.h. Every box knows the largest
// distance from its points to the points sampled so far. A new sample changes nothing in a box that is farther from it
// than that distance, so that late samples look at a few boxes around them and not at the whole cloud.
#include "common/exact_math.h"

#include <atomic>

#include "common/check.h"
#include "neighbours/arguments.h"
#include "neighbours/box_tree.h"
#include "neighbours/keys.h"

namespace pointcept3m {
namespace {

// A point's distance to the samples and its id as one integer: the largest is the farthest point, of equally far ones
// that with the smallest id. Points that were sampled have distance -1, whose keys are negative.
template <class T>
P3M_INLINE typename Key<T>::type far_key(T square, int32_t id) {
  return Key<T>::make(square, kNoPoint - id);
}

template <class T>
struct alignas(64) Distances {
  T square[kWide];
};

// The farthest point of each box of a group.
template <class T>
struct alignas(64) Farthest {
  typename Key<T>::type key[kWide];
  T square[kWide];
};

struct Visit {
  int32_t level, group;
};

template <class T>
struct Sampler {
  const Forest<T>& forest;
  const Tree& tree;
  Distances<T>* leaves;  // of the tree
  Farthest<T>* groups;   // of the forest
  const int32_t* place;  // in the tree's leaves, of each id
  const T* coord;        // by id
  std::vector<Visit>& visits;
};

template <class K>
P3M_INLINE K largest(const K* keys) {
  K best = keys[0];
  for (int64_t lane = 1; lane < kWide; ++lane) best = keys[lane] > best ? keys[lane] : best;
  return best;
}

template <class T>
P3M_INLINE typename Key<T>::type farthest_in_leaf(const Distances<T>& leaf, const int32_t* id) {
  typename Key<T>::type keys[kWide];
  for (int64_t lane = 0; lane < kWide; ++lane) keys[lane] = far_key(leaf.square[lane], id[lane]);
  return largest(keys);
}

template <class T>
P3M_INLINE void set_lane(Farthest<T>& group, int64_t lane, typename Key<T>::type key) {
  group.key[lane] = key;
  group.square[lane] = Key<T>::square(key);
}

// Takes the sample `id` into account. Groups are visited from the top; then their maxima are renewed from the bottom.
template <class T>
P3M_INLINE void renew(const Sampler<T>& s, int32_t id) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  const T* point = s.coord + 3 * int64_t{id};
  const int32_t own = s.place[id];
  s.leaves[own / kWide].square[own % kWide] = -1;
  s.visits.clear();
  s.visits.push_back({s.tree.num_levels, 0});
  for (size_t next = 0; next < s.visits.size(); ++next) {
    const Visit now = s.visits[next];
    const Boxes<T>& boxes = s.forest.groups[s.tree.first_group[now.level] + now.group];
    Farthest<T>& group = s.groups[s.tree.first_group[now.level] + now.group];
    const int64_t own_child = own >> 4 * now.level;  // in which the sample lies
    for (int64_t at = 0; at < kWide; at += lanes) {
      unsigned left = lanes_of(box_distance(boxes, at, point) < load(group.square + at));
      if (own_child / lanes == (now.group * kWide + at) / lanes) left |= 1u << own_child % lanes;
      for (; left; left &= left - 1) {
        const auto child = static_cast<int32_t>(now.group * kWide + at + std::countr_zero(left));
        if (now.level > 1) {
          s.visits.push_back({now.level - 1, child});
          continue;
        }
        const Leaf<T>& leaf = s.forest.leaves[s.tree.first_leaf + child];
        Distances<T>& distances = s.leaves[child];
        for (int64_t i = 0; i < kWide; i += lanes) {
          const Vector<T> square = point_distance(leaf, i, point), old = load(distances.square + i);
          store<T>(distances.square + i, square < old ? square : old);
        }
        set_lane(group, child % kWide, farthest_in_leaf(distances, leaf.id));
      }
    }
  }
  for (size_t next = s.visits.size(); next-- > 1;) {
    const Visit now = s.visits[next];
    Farthest<T>& parent = s.groups[s.tree.first_group[now.level + 1] + now.group / kWide];
    set_lane(parent, now.group % kWide, largest(s.groups[s.tree.first_group[now.level] + now.group].key));
  }
}

// `count` samples. False where the tree has fewer points.
template <class T>
P3M_INLINE bool sample_all(const Sampler<T>& s, int64_t count, int32_t* idx) {
  const typename Key<T>::type* top = s.groups[s.tree.first_group[s.tree.num_levels]].key;
  for (int64_t i = 0; i < count; ++i) {
    const auto key = largest(top);
    if (key < 0) return false;
    idx[i] = kNoPoint - Key<T>::id(key);
    renew(s, idx[i]);
  }
  return true;
}

P3M_KERNEL bool sample_tree(const Sampler<float>& s, int64_t count, int32_t* idx) { return sample_all(s, count, idx); }
P3M_KERNEL bool sample_tree(const Sampler<double>& s, int64_t count, int32_t* idx) { return sample_all(s, count, idx); }

// Distances before the first sample: infinite, so that the first sample is the point with the smallest id.
template <class T>
void reset(const Sampler<T>& s) {
  const T far = std::numeric_limits<T>::infinity();
  for (int64_t leaf = 0; leaf < s.tree.num_leaves; ++leaf) {
    const int32_t* id = s.forest.leaves[s.tree.first_leaf + leaf].id;
    for (int64_t lane = 0; lane < kWide; ++lane) s.leaves[leaf].square[lane] = id[lane] == kNoPoint ? T{-1} : far;
  }
  for (int level = 1; level <= s.tree.num_levels; ++level)
    for (int64_t group = 0; group < s.tree.num_groups(level); ++group) {
      const Boxes<T>& boxes = s.forest.groups[s.tree.first_group[level] + group];
      for (int64_t lane = 0; lane < kWide; ++lane) {
        const int32_t first = boxes.first[lane];
        set_lane(s.groups[s.tree.first_group[level] + group], lane, far_key(first == kNoPoint ? T{-1} : far, first));
      }
    }
}

template <class T>
bool sample_batch(const Tensor& coord, const Tensor& offset, const int64_t* ends, const Tensor& idx) {
  const Forest<T> forest = build_forest(coord.const_data_ptr<T>(), offset.const_data_ptr<int64_t>(), offset.size(0));
  const std::unique_ptr<Farthest<T>[]> groups(new Farthest<T>[forest.num_groups]);
  const std::unique_ptr<Distances<T>[]> leaves(new Distances<T>[forest.num_leaves]);
  const std::unique_ptr<int32_t[]> place(new int32_t[coord.size(0)]);
  std::atomic<bool> enough{true};
  share_units(offset.size(0), [&](int64_t item) {
    const Tree& tree = forest.trees[item];
    const int64_t begin = item ? ends[item - 1] : 0, count = ends[item] - begin;
    for (int64_t i = 0; i < tree.num_points; ++i)
      place[forest.points[tree.first_point + i].id] = static_cast<int32_t>(i);
    if (count > tree.num_points) enough.store(false);
    if (count == 0 || count > tree.num_points) return;
    std::vector<Visit> visits;
    const Sampler<T> sampler = {forest,       tree,        leaves.get() + tree.first_leaf,
                                groups.get(), place.get(), coord.const_data_ptr<T>(),
                                visits};
    reset(sampler);
    if (!sample_tree(sampler, count, idx.mutable_data_ptr<int32_t>() + begin)) enough.store(false);
  });
  return enough;
}

Tensor farthest_point_sampling(const Tensor& coord, const Tensor& offset, const Tensor& new_offset,
                               int64_t num_samples) {
  for (const auto& [tensor, name] : {std::pair{&coord, "coord"}, {&offset, "offset"}, {&new_offset, "new_offset"}})
    check_contiguous_cpu(*tensor, name);
  check_coord(coord, "coord");
  check_offset_type(offset, "offset");
  check_offset_type(new_offset, "new_offset");
  STD_TORCH_CHECK(offset.size(0) == new_offset.size(0), "new_offset must have offset's length");
  check_ends(offset.const_data_ptr<int64_t>(), offset.size(0), coord.size(0), "offset");
  const int64_t* ends = new_offset.const_data_ptr<int64_t>();
  check_ends(ends, new_offset.size(0), num_samples, "new_offset");
  STD_TORCH_CHECK(num_samples <= coord.size(0), "new_offset asks for more samples than there are points");
  const Tensor idx = torch::stable::new_empty(coord, {num_samples}, ScalarType::Int);
  const bool enough = coord.scalar_type() == ScalarType::Float ? sample_batch<float>(coord, offset, ends, idx)
                                                               : sample_batch<double>(coord, offset, ends, idx);
  STD_TORCH_CHECK(enough, "an item has fewer finite points than samples");
  return idx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("farthest_point_sampling", TORCH_BOX(&farthest_point_sampling));
}

}  // namespace pointcept3m
