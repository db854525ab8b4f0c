// Stable radix sort of keys that carry a row, over torch's threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/parallel.h"

namespace pointcept3m {

template <class Key>
struct SortItem {
  Key key;
  int32_t row;
};

// Ascending by the lowest `bits` bits of the key; `items` and a buffer as large change places.
inline void radix_sort(std::vector<SortItem<uint64_t>>& items, int bits) {
  constexpr int64_t least = 8192;  // rows for which another thread is worth its start
  const auto count = static_cast<int64_t>(items.size());
  const int64_t parts = std::clamp<int64_t>(count / least, 1, torch::stable::get_num_threads());
  const int passes = (bits + 10) / 11, width = passes ? (bits + passes - 1) / passes : 0;
  const int64_t buckets = int64_t{1} << width;
  std::vector<SortItem<uint64_t>> other(count);
  std::vector<int64_t> place(parts * buckets);
  for (int shift = 0; shift < passes * width; shift += width) {
    const auto digit = [&](const SortItem<uint64_t>& item) {
      return static_cast<int64_t>((item.key >> shift) & (buckets - 1));
    };
    const auto edge = [&](int64_t part) { return count * part / parts; };
    share_units(parts, [&](int64_t part) {
      int64_t* mine = place.data() + part * buckets;
      std::fill(mine, mine + buckets, 0);
      for (int64_t i = edge(part); i < edge(part + 1); ++i) ++mine[digit(items[i])];
    });
    int64_t total = 0;
    for (int64_t bucket = 0; bucket < buckets; ++bucket)
      for (int64_t part = 0; part < parts; ++part) total += std::exchange(place[part * buckets + bucket], total);
    share_units(parts, [&](int64_t part) {
      int64_t* mine = place.data() + part * buckets;
      for (int64_t i = edge(part); i < edge(part + 1); ++i) other[mine[digit(items[i])]++] = items[i];
    });
    items.swap(other);
  }
}

}  // namespace pointcept3m
