// The groups of equal keys among sorted items, counted and written by parts as they were sorted.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "common/radix_sort.h"

namespace pointcept3m {
namespace {

template <class Item>
P3M_INLINE int64_t changes_in(const Item* items, Range range, int row_bits) {
  int64_t changes = 0;
  for (int64_t i = std::max<int64_t>(range.begin, 1); i < range.end; ++i)
    changes += (items[i].word >> row_bits) != (items[i - 1].word >> row_bits);
  return changes;
}

// Groups as arrays: rows by group, ascending within one [N]; group of each row [N]; where groups begin in `order`.
struct Groups {
  int64_t *order, *inverse, *start;
};

template <class Item>
P3M_INLINE void write_some(const Item* items, Range range, int row_bits, int64_t group, const Groups& out) {
  int64_t* P3M_RESTRICT order = out.order;
  int64_t* P3M_RESTRICT inverse = out.inverse;
  int64_t* P3M_RESTRICT start = out.start;
  // Items of a group that opened in an earlier part.
  const int64_t end = range.end;
  int64_t i = range.begin;
  for (; i > 0 && i < end && (items[i].word >> row_bits) == (items[i - 1].word >> row_bits); ++i) {
    order[i] = items[i].row(row_bits);
    inverse[order[i]] = group;
  }
  // Writing the start of the group again for each of its items costs less than a branch.
  int64_t opened = i;
  for (uint64_t key = i < end ? ~(items[i].word >> row_bits) : 0; i < end; ++i) {
    const uint64_t before = std::exchange(key, items[i].word >> row_bits);
    group += key != before;
    opened = key != before ? i : opened;
    start[group] = opened;
    const int64_t row = items[i].row(row_bits);
    order[i] = row;
    inverse[row] = group;
  }
}

P3M_KERNEL int64_t count_changes(const Packed* items, Range range, int row_bits) {
  return changes_in(items, range, row_bits);
}
P3M_KERNEL int64_t count_changes(const Wide* items, Range range, int row_bits) {
  return changes_in(items, range, row_bits);
}
P3M_KERNEL void write_groups(const Packed* items, Range range, int row_bits, int64_t group, const Groups& out) {
  write_some(items, range, row_bits, group, out);
}
P3M_KERNEL void write_groups(const Wide* items, Range range, int row_bits, int64_t group, const Groups& out) {
  write_some(items, range, row_bits, group, out);
}

// `before[p]` groups begin before part p of the sorted items; the last entry is the number of groups.
template <class Item>
std::vector<int64_t> count_groups(const Items<Item>& items) {
  const Parts parts(items.count);
  std::vector<int64_t> before(parts.parts + 1, 0);
  share_units(parts.parts, [&](int64_t part) {
    before[part + 1] = count_changes(items.now.get(), parts.range(part), items.row_bits);
  });
  if (items.count) ++before[1];  // the first item begins one
  for (int64_t part = 0; part < parts.parts; ++part) before[part + 1] += before[part];
  return before;
}

template <class Item>
void fill_groups(const Items<Item>& items, const std::vector<int64_t>& before, const Groups& out) {
  const Parts parts(items.count, static_cast<int64_t>(before.size()) - 1);
  share_units(items.count ? parts.parts : 0, [&](int64_t part) {
    write_groups(items.now.get(), parts.range(part), items.row_bits, before[part] - 1, out);
  });
  out.start[before.back()] = items.count;
}

}  // namespace
}  // namespace pointcept3m
