// Vectors of pixels and of channels, in GCC's vector extension: the compiler lowers them to whatever the
// instruction set of the surrounding P3M_KERNEL clone offers.
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

constexpr int kTile = 8;                     // a tile is 8x8 pixels: one row of it is one vector
constexpr int kPixels = kTile * kTile;

template <typename T, int N>
struct Vector {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

// One row of a tile: values, and lane masks or integers of the same width.
template <typename T>
using Row = typename Vector<T, kTile>::type;
template <typename T>
using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <typename T>
using RowMask = typename Vector<Integer<T>, kTile>::type;

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
P3M_INLINE Row<T> splat_row(T value) {
  return value - Row<T>{};
}

template <typename M>
P3M_INLINE bool any(M mask) {
  constexpr int kWords = sizeof(M) / sizeof(int64_t);
  const auto words = (typename Vector<int64_t, kWords>::type)mask;
  int64_t bits = 0;
  for (int i = 0; i < kWords; ++i) bits |= words[i];
  return bits != 0;
}

template <typename T>
P3M_INLINE T sum(Row<T> row) {
  return ((row[0] + row[4]) + (row[1] + row[5])) + ((row[2] + row[6]) + (row[3] + row[7]));
}

// exp(x) for x in [-80, 0]: 2^n times a polynomial on [-ln2/2, ln2/2], relative error below 2e-7.
P3M_INLINE Row<float> exp_row(Row<float> x) {
  x = x < -80.0f ? splat_row(-80.0f) : x;
  const RowMask<float> n = __builtin_convertvector(x * 1.44269504f - 0.5f, RowMask<float>);
  const Row<float> r = x - __builtin_convertvector(n, Row<float>) * 0.693147181f;
  Row<float> p = 1.3981999e-3f * r + 8.3334519e-3f;
  p = p * r + 4.1665795e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * (Row<float>)((n + 127) << 23);
}

P3M_INLINE Row<double> exp_row(Row<double> x) {
  for (int i = 0; i < kTile; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace
}  // namespace pointcept3m
