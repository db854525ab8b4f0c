// Sums over a warp of several values at once.
#pragma once

#include "common/cuda.cuh"

namespace pointcept3m {
namespace {

// One step of sum_warp: a lane keeps half of its M values, of which `*held` are real, and gives away the other half.
template <int M, int LANES, class T>
__device__ __forceinline__ T sum_lanes(T* values, int lane, int* which, int* held) {
  if constexpr (LANES == 1) {
    return values[0];
  } else {
    constexpr int kHalf = LANES / 2, kKept = (M + 1) / 2;
    const bool upper = lane & kHalf;
    if constexpr (M == 1) {
      values[0] += __shfl_xor_sync(kAllLanes, values[0], kHalf);
      if (upper) *held = 0;  // one lane answers
    } else {
      *which += upper ? kKept : 0;
      *held = upper ? *held - kKept : min(*held, kKept);
#pragma unroll
      for (int i = 0; i < kKept; ++i) {
        const T other = i + kKept < M ? values[i + kKept < M ? i + kKept : i] : T(0);
        const T received = __shfl_xor_sync(kAllLanes, upper ? values[i] : other, kHalf);
        values[i] = (upper ? other : values[i]) + received;
      }
    }
    return sum_lanes<kKept, kHalf>(values, lane, which, held);
  }
}

// Sums each of M values over the warp, in about M exchanges instead of 5 M. Returns one of the sums; *which says which
// (-1: none, another lane has it).
template <int M, class T>
__device__ __forceinline__ T sum_warp(T (&values)[M], int lane, int* which) {
  int held = M;
  *which = 0;
  const T sum = sum_lanes<M, kWarp>(values, lane, which, &held);
  if (held <= 0) *which = -1;
  return sum;
}

}  // namespace
}  // namespace pointcept3m
