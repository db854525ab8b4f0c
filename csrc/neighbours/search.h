// Walks through a tree of boxes from near to far, and what is kept on the way: the nearest k, or all within a radius.
#pragma once

#include "neighbours/keys.h"

namespace pointcept3m {
namespace {

// A leaf (level 0) or a group that is still to be looked at.
template <class T>
struct Pending {
  T bound;
  int32_t first, node, level;
};

// Shows `keep` every point that it may want. `keep.wants_box(vector of bounds)` and `keep.wants_point(vector of squared
// distances)` preselect; `keep.wants(bound, smallest id)` decides; `keep.take(square, id)` receives.
template <class T, class Keep>
P3M_INLINE void search(const Forest<T>& forest, const Tree& tree, const T* point, Keep& keep) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  Pending<T> pending[kMostLevels * kWide];
  int64_t count = 0;
  if (tree.num_leaves) pending[count++] = {T{0}, 0, 0, tree.num_levels};
  while (count) {
    const Pending<T> now = pending[--count];
    if (!keep.wants(now.bound, now.first)) continue;
    if (now.level == 0) {
      const Leaf<T>& leaf = forest.leaves[tree.first_leaf + now.node];
      for (int64_t at = 0; at < kWide; at += lanes) {
        alignas(64) T square[lanes];
        const Vector<T> distance = point_distance(leaf, at, point);
        store<T>(square, distance);
        for (unsigned left = lanes_of(keep.wants_point(distance)); left; left &= left - 1) {
          const int lane = std::countr_zero(left);
          keep.take(square[lane], leaf.id[at + lane]);
        }
      }
      continue;
    }
    const Boxes<T>& boxes = forest.groups[tree.first_group[now.level] + now.node];
    const int64_t bottom = count;
    for (int64_t at = 0; at < kWide; at += lanes) {
      alignas(64) T bound[lanes];
      const Vector<T> distance = box_distance(boxes, at, point);
      store<T>(bound, distance);
      for (unsigned left = lanes_of(keep.wants_box(distance)); left; left &= left - 1) {
        const int lane = std::countr_zero(left);
        const Pending<T> next = {bound[lane], boxes.first[at + lane],
                                 static_cast<int32_t>(now.node * kWide + at + lane), now.level - 1};
        if (!keep.wants(next.bound, next.first)) continue;
        // The nearest comes to lie on top; of equally near ones that with the smallest id.
        int64_t place = count++;
        for (; place > bottom; --place) {
          const Pending<T>& other = pending[place - 1];
          if (other.bound > next.bound || (other.bound == next.bound && other.first > next.first)) break;
          pending[place] = other;
        }
        pending[place] = next;
      }
    }
  }
}

// The k nearest, at most kSorted: a sorted list into which a vector of keys at a time is inserted.
constexpr int64_t kSorted = 128;

template <class T>
class NearestFew {
 public:
  using K = typename Key<T>::type;

  P3M_INLINE explicit NearestFew(int64_t k) : k_(k), room_((k + 7) / 8 * 8) {}

  P3M_INLINE void clear() {
    const K none = Key<T>::make(std::numeric_limits<T>::infinity(), kNoPoint);
    keys_[7] = 0;  // below every key that may be inserted, or equal to it
    for (int64_t i = 0; i < room_; ++i) keys_[8 + i] = none;
    set_worst();
  }
  P3M_INLINE auto wants_box(const Vector<T>& bound) const { return bound <= worst_square_; }
  P3M_INLINE auto wants_point(const Vector<T>& square) const { return square <= worst_square_; }
  P3M_INLINE bool wants(T bound, int32_t first) const { return Key<T>::make(bound, first) < worst_; }

  P3M_INLINE void take(T square, int32_t id) {
    const K key = Key<T>::make(square, id);
    if (!(key < worst_)) return;
    K* keys = keys_ + 8;
    if constexpr (sizeof(K) == 8) {
      for (int64_t at = room_ - 8; at >= 0; at -= 8) {
        const Vector<K> here = load(keys + at), before = load(keys + at - 1), all = Vector<K>{} + key;
        const Vector<K> lower = here < all ? here : all;
        store<K>(keys + at, before > lower ? before : lower);
      }
    } else {
      int64_t place = k_ - 1;
      for (; place > 0 && key < keys[place - 1]; --place) keys[place] = keys[place - 1];
      keys[place] = key;
    }
    set_worst();
  }
  // The k keys, ascending; those without a point hold kNoPoint.
  P3M_INLINE const K* result() { return keys_ + 8; }

 private:
  P3M_INLINE void set_worst() {
    worst_ = keys_[8 + k_ - 1];
    worst_square_ = Key<T>::square(worst_);
  }

  int64_t k_, room_;
  K worst_;
  T worst_square_;
  alignas(64) K keys_[8 + kSorted];
};

// Any number of nearest: candidates gather until there are twice as many, then the farther half is dropped.
template <class T>
class NearestMany {
 public:
  using K = typename Key<T>::type;

  explicit NearestMany(int64_t k) : k_(k), keys_(2 * k) {}

  void clear() {
    count_ = 0;
    worst_ = Key<T>::make(std::numeric_limits<T>::infinity(), kNoPoint);
    worst_square_ = std::numeric_limits<T>::infinity();
  }
  P3M_INLINE auto wants_box(const Vector<T>& bound) const { return bound <= worst_square_; }
  P3M_INLINE auto wants_point(const Vector<T>& square) const { return square <= worst_square_; }
  P3M_INLINE bool wants(T bound, int32_t first) const { return Key<T>::make(bound, first) < worst_; }

  P3M_INLINE void take(T square, int32_t id) {
    const K key = Key<T>::make(square, id);
    if (!(key < worst_)) return;
    keys_[count_++] = key;
    if (count_ == 2 * k_) drop();
  }
  const K* result() {
    if (count_ > k_) drop();
    std::sort(keys_.begin(), keys_.begin() + count_);
    std::fill(keys_.begin() + count_, keys_.begin() + std::max(count_, k_),
              Key<T>::make(std::numeric_limits<T>::infinity(), kNoPoint));
    return keys_.data();
  }

 private:
  void drop() {
    std::nth_element(keys_.begin(), keys_.begin() + k_ - 1, keys_.begin() + count_);
    count_ = k_;
    worst_ = keys_[k_ - 1];
    worst_square_ = Key<T>::square(worst_);
  }

  int64_t k_, count_ = 0;
  K worst_;
  T worst_square_;
  std::vector<K> keys_;
};

// All points with low <= squared distance < high, and those at distance 0.
template <class T>
class Within {
 public:
  using K = typename Key<T>::type;

  Within(T low, T high) : low_(low), high_(high) {}

  void clear() { keys.clear(); }
  P3M_INLINE auto wants_box(const Vector<T>& bound) const { return (bound < high_) | (bound == 0); }
  P3M_INLINE auto wants_point(const Vector<T>& square) const {
    return ((square < high_) & (square >= low_)) | (square == 0);
  }
  P3M_INLINE bool wants(T, int32_t) const { return true; }
  P3M_INLINE void take(T square, int32_t id) { keys.push_back(Key<T>::make(square, id)); }

  std::vector<K> keys;

 private:
  T low_, high_;
};

}  // namespace
}  // namespace pointcept3m
