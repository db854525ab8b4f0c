// Several Gaussians side by side: vectors of 32 bytes, the widest whose comparisons GCC keeps as vectors
// (those of common/vector.h have 64).
#pragma once

#include "common/simd.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// Vectors wider than the base instruction set are only passed between functions that are always inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace pointcept3m {
namespace {

template <typename T>
constexpr int kLanes = 32 / sizeof(T);

template <typename T>
struct LanesOf {
  typedef T type __attribute__((vector_size(32)));
};
template <typename T>
using Lanes = typename LanesOf<T>::type;
template <typename T>
using IntLanes = Lanes<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>>;

template <typename T>
P3M_INLINE Lanes<T> all_lanes(T value) {
  return value - Lanes<T>{};
}

template <typename T>
P3M_INLINE Lanes<T> lower(Lanes<T> a, Lanes<T> b) {
  return a < b ? a : b;
}
template <typename T>
P3M_INLINE Lanes<T> higher(Lanes<T> a, Lanes<T> b) {
  return a > b ? a : b;
}

// Lane i is source[i * stride] for the first `count` lanes; the others repeat the first.
template <typename T>
P3M_INLINE Lanes<T> gather(const T* source, int64_t stride, int count) {
  Lanes<T> value;
  if (count == kLanes<T>) {
    for (int i = 0; i < kLanes<T>; ++i) value[i] = source[i * stride];
  } else {
    for (int i = 0; i < kLanes<T>; ++i) value[i] = source[i < count ? i * stride : 0];
  }
  return value;
}

template <typename T, typename V>
P3M_INLINE void scatter(T* target, int64_t stride, int count, V value) {
  for (int i = 0; i < count; ++i) target[i * stride] = static_cast<T>(value[i]);
}

// By way of memory, as a loop over an array is what the compiler makes one instruction of.
template <typename T>
P3M_INLINE Lanes<T> square_root(Lanes<T> value) {
  alignas(32) T lanes[kLanes<T>];
  std::memcpy(lanes, &value, sizeof(lanes));
  for (int i = 0; i < kLanes<T>; ++i) lanes[i] = std::sqrt(lanes[i]);
  std::memcpy(&value, lanes, sizeof(lanes));
  return value;
}

// The least whole number that is not below, for values in [0, 1e9].
template <typename T>
P3M_INLINE Lanes<T> round_up(Lanes<T> value) {
  const IntLanes<T> whole = __builtin_convertvector(value, IntLanes<T>);
  const Lanes<T> rounded = __builtin_convertvector(whole, Lanes<T>);
  return rounded < value ? rounded + T(1) : rounded;
}

// ln(x) for x >= 1.
template <typename T>
P3M_INLINE Lanes<T> logarithm(Lanes<T> x) {
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < kLanes<T>; ++i) x[i] = std::log(x[i]);
    return x;
  } else {
    // x = 2^n m with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
    const IntLanes<T> n = ((IntLanes<T>)x - 0x3f3504f3) >> 23;
    const Lanes<T> m = (Lanes<T>)((IntLanes<T>)x - (n << 23)), s = (m - 1.0f) / (m + 1.0f), square = s * s;
    const Lanes<T> tail = 0.2f + square * (0.14285714f + square * 0.11111111f);
    const Lanes<T> series = 1.0f + square * (0.33333333f + square * tail);
    return 0.69314718f * __builtin_convertvector(n, Lanes<T>) + 2.0f * s * series;
  }
}

template <typename T>
P3M_INLINE T sum_lanes(Lanes<T> value) {
  T sum = value[0];
  for (int i = 1; i < kLanes<T>; ++i) sum += value[i];
  return sum;
}

}  // namespace
}  // namespace pointcept3m
