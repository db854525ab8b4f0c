// Rows grouped by the bin they go to: a stable sort of the index by one pass over buckets and one within each.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>

#include "common/parallel.h"

namespace pointcept3m {
namespace {

// Bin v holds the rows perm[start[v]] .. perm[start[v + 1] - 1], in ascending order, so that sums do not
// depend on threads. Where rows stand in bin order already, perm is absent and row i stands at place i.
struct Bins {
  std::unique_ptr<int32_t[]> start;
  std::unique_ptr<int32_t[]> perm;
  bool valid = true;  // false: the index has a value outside [0, num_bins)
};

constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();

// True where the index never descends. An index in random order answers after its first block.
inline bool is_sorted(const int64_t* index, int64_t num_rows) {
  constexpr int64_t block = 1 << 14;
  std::atomic<bool> sorted{true};
  share_units((num_rows + block - 1) / block, [&](int64_t unit) {
    if (!sorted.load(std::memory_order_relaxed)) return;
    const int64_t end = std::min(num_rows, (unit + 1) * block);
    int64_t descents = 0;
    for (int64_t i = std::max<int64_t>(unit * block, 1); i < end; ++i) descents += index[i] < index[i - 1];
    if (descents) sorted.store(false, std::memory_order_relaxed);
  });
  return sorted;
}

// start[v + 1] of every bin is one past its last row: written by whoever holds the last row of a run, and carried
// over the bins that are empty.
inline void start_of_sorted(const int64_t* index, int64_t num_rows, int64_t num_bins, int32_t* start) {
  constexpr int64_t block = 1 << 16;
  std::fill(start, start + num_bins + 1, 0);
  share_units((num_rows + block - 1) / block, [&](int64_t unit) {
    int64_t begin = unit * block, end = std::min(num_rows, begin + block);
    while (end < num_rows && end > begin && index[end] == index[end - 1]) --end;  // the next unit has this run's end
    for (int64_t i = begin; i < end; ++i) start[index[i] + 1] = static_cast<int32_t>(i + 1);
  });
  for (int64_t bin = 0; bin < num_bins; ++bin) start[bin + 1] = std::max(start[bin + 1], start[bin]);
}

// One sort by bucket, a range of 2^shift bins: `hist` says where the rows of a chunk go.
struct Buckets {
  int64_t num_rows, num_bins, shift, count, chunks;
  std::unique_ptr<int32_t[]> hist;  // [chunks, count]: rows of a bucket in a chunk, then the place of the first
  std::unique_ptr<int32_t[]> edge;  // [count + 1]: first place of a bucket

  Buckets(int64_t rows, int64_t bins) : num_rows(rows), num_bins(bins) {
    int64_t bits = 0;
    while ((int64_t{1} << bits) < num_bins) ++bits;
    // A bucket's counters should stay in a core's cache, and the buckets' write positions in its nearest.
    shift = std::max<int64_t>(0, bits - std::clamp<int64_t>(bits - 10, 8, 11));
    count = (num_bins + (int64_t{1} << shift) - 1) >> shift;
    const int64_t threads = torch::stable::get_num_threads();
    chunks = std::clamp<int64_t>(num_rows >> 14, 1, 4 * threads);
    hist.reset(new int32_t[chunks * count]());
    edge.reset(new int32_t[count + 1]);
  }
  int64_t first_row(int64_t chunk) const { return num_rows * chunk / chunks; }

  // False where a value lies outside [0, num_bins).
  bool measure(const int64_t* index) {
    std::atomic<bool> inside{true};
    share_units(chunks, [&](int64_t chunk) {
      int32_t* mine = hist.get() + chunk * count;
      const int64_t end = first_row(chunk + 1);
      for (int64_t i = first_row(chunk); i < end; ++i) {
        if (static_cast<uint64_t>(index[i]) >= static_cast<uint64_t>(num_bins)) {
          inside.store(false, std::memory_order_relaxed);
          return;
        }
        ++mine[index[i] >> shift];
      }
    });
    int32_t place = 0;
    for (int64_t bucket = 0; bucket < count; ++bucket) {
      edge[bucket] = place;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        int32_t& rows = hist[chunk * count + bucket];
        const int32_t first = place;
        place += rows;
        rows = first;
      }
    }
    edge[count] = place;
    return inside;
  }

  // Calls put(place, row) for every row, in the order of rows within a bucket.
  template <class Put>
  void distribute(const int64_t* index, const Put& put) {
    share_units(chunks, [&](int64_t chunk) {
      int32_t* cursor = hist.get() + chunk * count;
      const int64_t end = first_row(chunk + 1);
      for (int64_t i = first_row(chunk); i < end; ++i) put(cursor[index[i] >> shift]++, i);
    });
  }
};

// `num_rows` must be below kMostRows. O(rows + bins); any number of threads gives the same bins.
inline Bins build_bins(const int64_t* index, int64_t num_rows, int64_t num_bins) {
  Bins bins;
  const auto within = [&](int64_t row) { return index[row] >= 0 && index[row] < num_bins; };
  if (is_sorted(index, num_rows)) {
    bins.valid = num_rows == 0 || (within(0) && within(num_rows - 1));
    if (!bins.valid) return bins;
    bins.start.reset(new int32_t[num_bins + 1]);
    start_of_sorted(index, num_rows, num_bins, bins.start.get());
    return bins;
  }
  Buckets buckets(num_rows, num_bins);
  bins.valid = buckets.measure(index);
  if (!bins.valid) return bins;
  bins.perm.reset(new int32_t[num_rows]);
  bins.start.reset(new int32_t[num_bins + 1]);
  int32_t* start = bins.start.get();
  int32_t* perm = bins.perm.get();
  if (buckets.shift == 0) {  // a bucket is a bin
    buckets.distribute(index, [=](int64_t place, int64_t row) { perm[place] = static_cast<int32_t>(row); });
    std::copy(buckets.edge.get(), buckets.edge.get() + num_bins + 1, start);
    return bins;
  }
  // Row and bin travel together, so that the sort within a bucket reads one after the other.
  std::unique_ptr<uint64_t[]> pairs(new uint64_t[num_rows]);
  uint64_t* pair = pairs.get();
  const uint64_t local = (uint64_t{1} << buckets.shift) - 1;
  buckets.distribute(index, [=](int64_t place, int64_t row) { pair[place] =
      static_cast<uint64_t>(row) << 32 | (index[row] & local); });
  start[num_bins] = static_cast<int32_t>(num_rows);
  share_units(buckets.count, [&](int64_t bucket) {
    const int64_t first_bin = bucket << buckets.shift, width = std::min<int64_t>(local + 1, num_bins - first_bin);
    const int64_t begin = buckets.edge[bucket], end = buckets.edge[bucket + 1];
    std::unique_ptr<int32_t[]> cursor(new int32_t[width]());
    for (int64_t i = begin; i < end; ++i) ++cursor[static_cast<uint32_t>(pair[i])];
    int32_t place = static_cast<int32_t>(begin);
    for (int64_t bin = 0; bin < width; ++bin) {
      start[first_bin + bin] = place;
      place += cursor[bin];
      cursor[bin] = start[first_bin + bin];
    }
    for (int64_t i = begin; i < end; ++i) perm[cursor[static_cast<uint32_t>(pair[i])]++] =
        static_cast<int32_t>(pair[i] >> 32);
  });
  return bins;
}

// Calls range(begin, end) on bins, side by side; the ranges hold about equally many rows and bins.
template <class Range>
void share_bins(const int32_t* first, int64_t num_bins, const Range& range) {
  const int64_t units = std::min<int64_t>(8 * torch::stable::get_num_threads(), num_bins);
  const auto edge = [=](int64_t unit) {
    if (unit == units) return num_bins;
    const int64_t target = (first[num_bins - 1] - first[0] + num_bins) * unit / units;
    int64_t low = 0, high = num_bins;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (first[middle] - first[0] + middle < target) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  share_units(units, [&](int64_t unit) { range(edge(unit), edge(unit + 1)); });
}

}  // namespace
}  // namespace pointcept3m
