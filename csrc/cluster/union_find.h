// Disjoint sets that many threads may join at once. The root of a set is its smallest member whatever the order of
// the joins, so results do not depend on threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "common/parallel.h"

namespace pointcept3m {

class UnionFind {
 public:
  explicit UnionFind(int64_t count) : parent_(new std::atomic<int32_t>[count]) {
    for (int64_t i = 0; i < count; ++i) parent_[i].store(static_cast<int32_t>(i), std::memory_order_relaxed);
  }

  // Halves the path on the way. A stored grandparent may be out of date, but it is an ancestor still.
  int32_t find(int32_t member) {
    for (;;) {
      const int32_t parent = load(member);
      if (parent == member) return member;
      const int32_t grandparent = load(parent);
      if (parent == grandparent) return parent;
      parent_[member].store(grandparent, std::memory_order_relaxed);
      member = grandparent;
    }
  }

  // Links the larger root under the smaller; tries again where another thread has linked it meanwhile.
  void unite(int32_t a, int32_t b) {
    for (;;) {
      a = find(a), b = find(b);
      if (a == b) return;
      if (a < b) std::swap(a, b);
      int32_t expected = a;
      if (parent_[a].compare_exchange_strong(expected, b, std::memory_order_relaxed)) return;
    }
  }

 private:
  int32_t load(int32_t member) const { return parent_[member].load(std::memory_order_relaxed); }

  std::unique_ptr<std::atomic<int32_t>[]> parent_;
};

}  // namespace pointcept3m
