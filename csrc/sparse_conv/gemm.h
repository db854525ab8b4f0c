// The two register-blocked products behind sparse convolution: rows named by pointers times a packed panel of
// weights, and the sum of outer products of rows named by pointers.
#pragma once

#include "common/vector.h"
#include "sparse_conv/storage.h"

namespace pointcept3m {
namespace {

// Columns of a packed panel: two registers of AVX-512. Weights are packed as [offset][panel][depth][kPanel].
template <class T>
inline constexpr int64_t kPanel = 2 * VectorOf<T>::lanes;

// Rows of a register block: with AVX-512 of two 64-byte vectors each, else of one.
constexpr int kWideRows = 8, kNarrowRows = 6;

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Whether the loader picks the AVX-512 copies of kernels, whose 32 registers take blocks of twice the width.
inline bool wide_registers() {
#if defined(__x86_64__) && !defined(P3M_PLAIN)
  static const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512cd");
  return wide;
#else
  return false;
#endif
}

// c[r][column:] += sum_d a[r][d] * b[d][:] for MR rows and NV vectors of columns; `b` has a row stride of kPanel.
template <class T, int MR, int NV>
P3M_INLINE void multiply_rows(const T* const* a, T* const* c, int64_t column, const T* b, int64_t depth) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  Vector<T> sum[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[r][v] = load(c[r] + column + v * lanes);
  for (int64_t d = 0; d < depth; ++d) {
    Vector<T> row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = load(b + d * kPanel<T> + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] += a[r][d] * row[v];
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c[r] + column + v * lanes, sum[r][v]);
}

// The same for any number of rows; what is left after blocks of MR goes in smaller ones.
template <class T, int MR, int NV>
P3M_INLINE void multiply_all_rows(const T* const* a, T* const* c, int64_t count, int64_t column, const T* b,
                                  int64_t depth) {
  int64_t i = 0;
  for (; i + MR <= count; i += MR) multiply_rows<T, MR, NV>(a + i, c + i, column, b, depth);
  if (i + 4 <= count) multiply_rows<T, 4, NV>(a + i, c + i, column, b, depth), i += 4;
  if (i + 2 <= count) multiply_rows<T, 2, NV>(a + i, c + i, column, b, depth), i += 2;
  if (i < count) multiply_rows<T, 1, NV>(a + i, c + i, column, b, depth);
}

// Keeps the compiler from adding a pointer's parts anew at each use, for which it would run out of registers.
template <class T>
P3M_INLINE void hide(T*& pointer) {
  asm("" : "+r"(pointer));
}

// c[r][:] += sum_p a[p][r] * b[p][:] over `count` rows p, for MR rows and NV vectors of columns from (row, column) on.
template <class T, int MR, int NV>
P3M_INLINE void multiply_outer(const T* const* a, const T* const* b, int64_t count, int64_t row, int64_t column, T* c,
                               int64_t ldc) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  Vector<T> sum[MR][NV];
  c += row * ldc + column;
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[r][v] = load(c + r * ldc + v * lanes);
  for (int64_t p = 0; p < count; ++p) {
    const T *left = a[p] + row, *from = b[p] + column;
    hide(left), hide(from);
    Vector<T> right[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) right[v] = load(from + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] += left[r] * right[v];
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c + r * ldc + v * lanes, sum[r][v]);
}

}  // namespace
}  // namespace pointcept3m
