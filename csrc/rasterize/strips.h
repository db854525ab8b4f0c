// Vectors of pixels and of channels, in GCC's vector extension: the compiler lowers them to whatever the instruction
// set of the surrounding P3M_KERNEL clone offers. Unlike those of common/vector.h they have a number of lanes, whatever
// their type, as a strip of a tile does.
#pragma once

#include "common/simd.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// Vectors wider than the base instruction set are only passed between functions that are always inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace pointcept3m {
namespace {

// A tile is 8x8 pixels, taken as 4 strips of two rows. A strip is one vector of 16 lanes and holds two groups
// of 4x2 pixels, left and right: a group is what channels are multiplied for, as few of its pixels go to waste.
constexpr int kTile = 8, kPixels = kTile * kTile;
constexpr int kLanes = 16, kStrips = kPixels / kLanes;
constexpr int kGroup = 8, kGroups = kPixels / kGroup;

// Column and row, in the tile, of pixel `i` of group `group`.
constexpr int group_column(int group, int i) { return 4 * (group % 2) + i % 4; }
constexpr int group_row(int group, int i) { return 2 * (group / 2) + i / 4; }

template <typename T, int N>
struct Vector {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

template <typename T>
using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
// One strip: values, and lane masks or integers of the same width.
template <typename T>
using Strip = typename Vector<T, kLanes>::type;
template <typename T>
using StripMask = typename Vector<Integer<T>, kLanes>::type;

template <typename V, typename T>
P3M_INLINE V load(const T* source) {
  V value;
  std::memcpy(&value, source, sizeof(V));
  return value;
}

template <typename V, typename T>
P3M_INLINE void store(T* target, V value) {
  std::memcpy(target, &value, sizeof(V));
}

template <typename T>
P3M_INLINE Strip<T> splat_strip(T value) {
  return value - Strip<T>{};
}

// Whether any lane is not 0 (lanes are never -0). In this form as GCC takes a mask of 16 lanes apart, lane by lane.
template <typename V>
P3M_INLINE bool any_lane(V value) {
  constexpr int kWords = sizeof(V) / sizeof(uint64_t);
  const auto words = (typename Vector<uint64_t, kWords>::type)value;
  if constexpr (kWords == 2) {
    return (words[0] | words[1]) != 0;
  } else {
    typename Vector<uint64_t, kWords / 2>::type low, high;
    std::memcpy(&low, &words, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&words) + sizeof(low), sizeof(high));
    return any_lane(low | high);
  }
}

// The lanes of a strip that make up its left and its right group.
template <typename V>
P3M_INLINE auto left_group(V strip) {
  return __builtin_shufflevector(strip, strip, 0, 1, 2, 3, 4, 5, 6, 7);
}
template <typename V>
P3M_INLINE auto right_group(V strip) {
  return __builtin_shufflevector(strip, strip, 8, 9, 10, 11, 12, 13, 14, 15);
}

// `value` where `sign` is 0 or more, else 0. By bits, as GCC takes this comparison apart, too.
template <typename T>
P3M_INLINE Strip<T> keep_if_not_negative(Strip<T> value, StripMask<T> sign) {
  return (Strip<T>)((StripMask<T>)value & ~(sign >> (8 * sizeof(T) - 1)));
}

// Sum of the lanes, in a fixed order.
template <typename V>
P3M_INLINE auto sum_lanes(V value) {
  constexpr int kHalf = sizeof(V) / sizeof(value[0]) / 2;
  using T = std::remove_cvref_t<decltype(value[0])>;
  if constexpr (kHalf == 1) {
    return value[0] + value[1];
  } else {
    typename Vector<T, kHalf>::type low, high;
    std::memcpy(&low, &value, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof(low), sizeof(high));
    return sum_lanes(low + high);
  }
}

// exp(x) for x in [0, 80]: 2^n times a polynomial on [-ln2/2, ln2/2], relative error below 2e-7.
template <typename T>
P3M_INLINE Strip<T> exp_strip(Strip<T> x) {
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < kLanes; ++i) x[i] = std::exp(x[i]);
    return x;
  } else {
    const StripMask<float> n = __builtin_convertvector(x * 1.44269504f + 0.5f, StripMask<float>);
    const Strip<float> r = x - __builtin_convertvector(n, Strip<float>) * 0.693147181f;
    Strip<float> p = 1.3981999e-3f * r + 8.3334519e-3f;
    p = p * r + 4.1665795e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (Strip<float>)((n + 127) << 23);
  }
}

}  // namespace
}  // namespace pointcept3m
