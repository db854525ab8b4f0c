// The two register-blocked products behind sparse convolution: rows named by pointers times a packed panel of
// weights, and the outer-product sum of gathered rows.
#pragma once

#include "common/vector.h"

namespace pointcept3m {

// Columns of a packed panel: two registers. Weights are packed as [offset][panel][depth][kPanel].
template <class T>
inline constexpr int64_t kPanel = 2 * VectorOf<T>::lanes;

// c[r][:] += sum_d a[r][d] * b[d][:] for MR rows and NV registers of columns; `b` has a row stride of kPanel.
template <class T, int MR, int NV>
P3M_INLINE void multiply_rows(const T* const* a, T* const* c, const T* b, int64_t depth) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  Vector<T> sum[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[r][v] = load(c[r] + v * lanes);
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
    for (int v = 0; v < NV; ++v) store(c[r] + v * lanes, sum[r][v]);
}

// c[r][:] += sum_p a[p][r] * b[p][:] over `count` rows p, for MR rows and NV registers of columns.
template <class T, int MR, int NV>
P3M_INLINE void multiply_outer(const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t count) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  Vector<T> sum[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[r][v] = load(c + r * ldc + v * lanes);
  for (int64_t p = 0; p < count; ++p) {
    Vector<T> row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = load(b + p * ldb + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] += a[p * lda + r] * row[v];
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c + r * ldc + v * lanes, sum[r][v]);
}

}  // namespace pointcept3m
