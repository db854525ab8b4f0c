// A stable radix sort of (key, row), for ops that group or order rows on the CPU: voxels, cells of points, edges.
// Parts of the items are counted and moved by different threads; as every pass is stable, the result does not depend on
// how many parts there are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "common/simd.h"

namespace pointcept3m {
namespace {

// A key and a row that share one word: the row in the lower `row_bits`.
struct Packed {
  uint64_t word;

  P3M_INLINE static Packed make(uint64_t key, int64_t row, int row_bits) {
    return {key << row_bits | static_cast<uint64_t>(row)};
  }
  P3M_INLINE int64_t row(int row_bits) const { return static_cast<int64_t>(word & ((uint64_t{1} << row_bits) - 1)); }
};

// The same in a word each, for keys of up to 64 bits beside any row; their `row_bits` are 0.
struct Wide {
  uint64_t word;
  int64_t place;

  P3M_INLINE static Wide make(uint64_t key, int64_t row, int = 0) { return {key, row}; }
  P3M_INLINE int64_t row(int = 0) const { return place; }
};

// Items to be sorted, with room for a second copy. Users fill `now`.
template <class Item>
struct Items {
  int64_t count;
  int key_bits, row_bits;  // keys lie below 2^key_bits
  std::unique_ptr<Item[]> now, spare;

  Items(int64_t count, int key_bits, int row_bits)
      : count(count), key_bits(key_bits), row_bits(row_bits), now(new Item[count]), spare(new Item[count]) {}

  auto key(int64_t i) const { return now[i].word >> row_bits; }
};

// Items from `begin` to before `end`.
struct Range {
  int64_t begin, end;
};

// The bits of a key that one pass sorts by.
struct Digit {
  int shift;
  uint64_t mask;
};

// The parts that threads share: enough items in each that counting digits is cheap beside moving them.
struct Parts {
  int64_t count, parts;

  Parts(int64_t count, int64_t parts) : count(count), parts(parts) {}
  explicit Parts(int64_t count)
      : Parts(count, std::clamp<int64_t>(count / (1 << 14), 1, torch::stable::get_num_threads())) {}
  Range range(int64_t part) const { return {count * part / parts, count * (part + 1) / parts}; }
};

// The leaves below take what they need by value, so that it stays in registers, and get a copy for each instruction
// set.
template <class Item>
P3M_INLINE void count_some(const Item* from, Range range, Digit digit, uint32_t* P3M_RESTRICT counts) {
  for (int64_t i = range.begin; i < range.end; ++i) ++counts[from[i].word >> digit.shift & digit.mask];
}

template <class Item>
P3M_INLINE void move_some(const Item* from, Range range, Digit digit, uint32_t* P3M_RESTRICT next,
                          Item* P3M_RESTRICT to) {
  for (int64_t i = range.begin; i < range.end; ++i) {
    const Item item = from[i];
    to[next[item.word >> digit.shift & digit.mask]++] = item;
  }
}

[[maybe_unused]] P3M_KERNEL void count_digits(const Packed* from, Range range, Digit digit, uint32_t* counts) {
  count_some(from, range, digit, counts);
}
[[maybe_unused]] P3M_KERNEL void count_digits(const Wide* from, Range range, Digit digit, uint32_t* counts) {
  count_some(from, range, digit, counts);
}
[[maybe_unused]] P3M_KERNEL void move_items(const Packed* from, Range range, Digit digit, uint32_t* next, Packed* to) {
  move_some(from, range, digit, next, to);
}
[[maybe_unused]] P3M_KERNEL void move_items(const Wide* from, Range range, Digit digit, uint32_t* next, Wide* to) {
  move_some(from, range, digit, next, to);
}

// Fewer than 2^32 items. Time and memory are linear in their number.
template <class Item>
void sort_items(Items<Item>& items) {
  if (items.key_bits == 0) return;
  // One pass less is worth tables of 32 KB and 2^13 places that are written to, but not where items are few or wide.
  const int widest = items.count < (1 << 15) || sizeof(Item) > 8 ? 11 : 13;
  const int passes = (items.key_bits + widest - 1) / widest, bits = (items.key_bits + passes - 1) / passes;
  const uint64_t buckets = uint64_t{1} << bits;
  const Parts parts(items.count);
  std::vector<uint32_t> place(parts.parts * buckets);
  for (int pass = 0; pass < passes; ++pass) {
    const Digit digit{items.row_bits + pass * bits, buckets - 1};
    const Item* from = items.now.get();
    Item* to = items.spare.get();
    std::fill(place.begin(), place.end(), 0);
    share_units(parts.parts, [&](int64_t part) {
      count_digits(from, parts.range(part), digit, place.data() + part * buckets);
    });
    uint32_t total = 0;
    for (uint64_t bucket = 0; bucket < buckets; ++bucket)
      for (int64_t part = 0; part < parts.parts; ++part) total += std::exchange(place[part * buckets + bucket], total);
    share_units(parts.parts, [&](int64_t part) {
      move_items(from, parts.range(part), digit, place.data() + part * buckets, to);
    });
    std::swap(items.now, items.spare);
  }
}

}  // namespace
}  // namespace pointcept3m
