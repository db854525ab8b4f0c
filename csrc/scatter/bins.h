// Rows grouped by the output they go to: a counting sort of the index.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "common/parallel.h"

namespace pointcept3m {

// Bin v holds the rows perm[start[v]] .. perm[start[v + 1] - 1], in ascending order, so that sums do not
// depend on threads. Where the index is sorted already, perm is absent and row i stands at place i.
struct Bins {
  std::unique_ptr<int32_t[]> start;
  std::unique_ptr<int32_t[]> perm;
  bool valid = true;  // false: the index has a value outside [0, num_bins)

  int64_t row(int64_t place) const { return perm ? perm[place] : place; }
};

namespace bins_detail {

// True where the index never descends; sets `valid` to whether all of it lies in [0, num_bins).
inline bool inspect(const int64_t* index, int64_t num_rows, int64_t num_bins, bool* valid) {
  constexpr int64_t block = 1 << 16;
  std::atomic<bool> sorted{true}, inside{true};
  share_units((num_rows + block - 1) / block, [&](int64_t unit) {
    const int64_t begin = unit * block, end = std::min(num_rows, begin + block);
    int64_t descents = 0, outside = 0;
    for (int64_t i = begin; i < end; ++i)
      outside += static_cast<uint64_t>(index[i]) >= static_cast<uint64_t>(num_bins);
    for (int64_t i = std::max<int64_t>(begin, 1); i < end; ++i) descents += index[i] < index[i - 1];
    if (descents) sorted.store(false, std::memory_order_relaxed);
    if (outside) inside.store(false, std::memory_order_relaxed);
  });
  *valid = inside;
  return sorted;
}

}  // namespace bins_detail

// `num_rows` must fit an int32. Each thread owns a range of bins and reads the whole index: reading is
// sequential and cheap, and the random writes that cost are divided among the threads without atomics.
inline Bins build_bins(const int64_t* index, int64_t num_rows, int64_t num_bins) {
  Bins bins;
  const bool sorted = bins_detail::inspect(index, num_rows, num_bins, &bins.valid);
  if (!bins.valid) return bins;
  bins.start.reset(new int32_t[num_bins + 1]);
  if (!sorted) bins.perm.reset(new int32_t[num_rows]);
  int32_t* start = bins.start.get();
  int32_t* perm = bins.perm.get();

  const int64_t ranges = std::min<int64_t>(torch::stable::get_num_threads(), std::max<int64_t>(num_bins, 1));
  const auto edge = [&](int64_t range) { return num_bins * range / ranges; };
  start[0] = 0;
  share_units(ranges, [&](int64_t range) {
    const int64_t low = edge(range), width = edge(range + 1) - low;
    std::fill(start + low + 1, start + low + width + 1, 0);
    for (int64_t i = 0; i < num_rows; ++i) {
      const uint64_t bin = static_cast<uint64_t>(index[i] - low);
      if (bin < static_cast<uint64_t>(width)) ++start[low + 1 + bin];
    }
  });
  for (int64_t bin = 0; bin < num_bins; ++bin) start[bin + 1] += start[bin];
  if (sorted) return bins;
  share_units(ranges, [&](int64_t range) {
    const int64_t low = edge(range), width = edge(range + 1) - low;
    std::unique_ptr<int32_t[]> cursor(new int32_t[width]);
    std::copy(start + low, start + low + width, cursor.get());
    for (int64_t i = 0; i < num_rows; ++i) {
      const uint64_t bin = static_cast<uint64_t>(index[i] - low);
      if (bin < static_cast<uint64_t>(width)) perm[cursor[bin]++] = static_cast<int32_t>(i);
    }
  });
  return bins;
}

}  // namespace pointcept3m
