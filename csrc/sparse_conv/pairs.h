// The pairs of a rulebook as kernels walk them: checked, and cut into blocks of outputs.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "common/simd.h"

namespace pointcept3m {
namespace {

// Offset k has the pairs [start[k], start[k + 1]); they ascend along the ranks of the rows they lead to.
struct Pairs {
  const int32_t* from;  // per pair: the row that is read
  const int32_t* to;    // per pair: the row that is written
  const int32_t* rank;  // per row that is written: its place in cell order
  const int64_t* start;
  int64_t volume, num_out;
};

inline void check_pairs(const Tensor& pairs, const Tensor& start) {
  check_contiguous_cpu(pairs, "pairs");
  check_contiguous_cpu(start, "start");
  STD_TORCH_CHECK(pairs.dim() == 2 && pairs.size(0) == 2 && pairs.scalar_type() == ScalarType::Int,
                  "pairs must be int32 [2, P]");
  STD_TORCH_CHECK(start.dim() == 1 && start.size(0) > 0 && start.scalar_type() == ScalarType::Long,
                  "start must be int64 [K + 1]");
  const int64_t *edges = start.const_data_ptr<int64_t>(), volume = start.size(0) - 1;
  bool ascending = edges[0] == 0 && edges[volume] == pairs.size(1);
  for (int64_t k = 1; k <= volume; ++k) ascending &= edges[k - 1] <= edges[k];
  STD_TORCH_CHECK(ascending, "start must ascend from 0 to the number of pairs");
}

// Rows named by pairs must exist.
inline void check_rows(const Tensor& pairs, int64_t side, int64_t num_rows, const char* what) {
  const int64_t count = pairs.size(1);
  const int32_t* rows = pairs.const_data_ptr<int32_t>() + side * count;
  const auto limit = static_cast<int32_t>(std::min<int64_t>(num_rows, std::numeric_limits<int32_t>::max()));
  constexpr int64_t block = 1 << 16;
  std::atomic<bool> inside{true};
  share_units((count + block - 1) / block, [&](int64_t unit) {
    int32_t outside = 0;
    for (int64_t p = unit * block; p < std::min(count, (unit + 1) * block); ++p)
      outside |= (rows[p] < 0) | (rows[p] >= limit);
    if (outside) inside.store(false, std::memory_order_relaxed);
  });
  STD_TORCH_CHECK(inside, "pairs name rows beyond ", what);
}

// Checks `rank` and the pairs, whose first rows are read from `num_in` rows (whose second ones with `reverse`).
inline Pairs checked_pairs(const Tensor& pairs, const Tensor& start, const Tensor& rank, int64_t num_in, bool reverse) {
  check_pairs(pairs, start);
  check_contiguous_cpu(rank, "rank");
  STD_TORCH_CHECK(rank.dim() == 1 && rank.scalar_type() == ScalarType::Int, "rank must be int32 [rows]");
  check_rows(pairs, reverse ? 1 : 0, num_in, "the input");
  check_rows(pairs, reverse ? 0 : 1, rank.size(0), "the output");
  const int32_t *first = pairs.const_data_ptr<int32_t>(), *second = first + pairs.size(1);
  return {reverse ? second : first,        reverse ? first : second, rank.const_data_ptr<int32_t>(),
          start.const_data_ptr<int64_t>(), start.size(0) - 1,        rank.size(0)};
}

// The row at each rank. Throws where ranks are not a permutation.
inline std::unique_ptr<int32_t[]> rows_by_rank(const Pairs& pairs) {
  std::unique_ptr<int32_t[]> row(new int32_t[pairs.num_out]);
  std::fill(row.get(), row.get() + pairs.num_out, -1);
  for (int64_t i = 0; i < pairs.num_out; ++i)
    if (static_cast<uint64_t>(pairs.rank[i]) < static_cast<uint64_t>(pairs.num_out))
      row[pairs.rank[i]] = static_cast<int32_t>(i);
  const bool complete = std::find(row.get(), row.get() + pairs.num_out, -1) == row.get() + pairs.num_out;
  STD_TORCH_CHECK(complete, "rank must hold every place from 0 to the number of rows once");
  return row;
}

// For each offset the first pair that leads to rank `begin` or beyond.
inline std::vector<int64_t> first_pairs(const Pairs& pairs, int64_t begin) {
  std::vector<int64_t> cursor(pairs.volume);
  for (int64_t k = 0; k < pairs.volume; ++k) {
    const int32_t* first = std::lower_bound(pairs.to + pairs.start[k], pairs.to + pairs.start[k + 1], begin,
                                            [&](int32_t row, int64_t place) { return pairs.rank[row] < place; });
    cursor[k] = first - pairs.to;
  }
  return cursor;
}

// Moves the cursor of offset k over the pairs that lead to the ranks [begin, begin + count), notes for each the place
// in the block, and returns how many there are: at most `count`, however wrong the pairs.
P3M_INLINE int64_t take_pairs(const Pairs& pairs, int64_t k, int64_t* cursor, int64_t begin, int64_t count,
                              int32_t* place) {
  const int64_t first = cursor[k], left = pairs.start[k + 1] - first, most = left < count ? left : count;
  int64_t taken = 0;
  for (; taken < most; ++taken) {
    const int64_t here = pairs.rank[pairs.to[first + taken]] - begin;
    if (static_cast<uint64_t>(here) >= static_cast<uint64_t>(count)) break;
    place[taken] = static_cast<int32_t>(here);
  }
  cursor[k] = first + taken;
  return taken;
}

// Counts the pairs that units of work have taken: all of them, unless they do not ascend.
class TakenPairs {
 public:
  void add(int64_t count) { taken_.fetch_add(count, std::memory_order_relaxed); }
  void check(const Pairs& pairs) const {
    STD_TORCH_CHECK(taken_ == pairs.start[pairs.volume],
                    "within an offset pairs must ascend along the ranks of the rows they lead to");
  }

 private:
  std::atomic<int64_t> taken_{0};
};

}  // namespace
}  // namespace pointcept3m
