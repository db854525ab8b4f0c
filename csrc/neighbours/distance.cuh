// Squared distances on the GPU, to the last bit those of the CPU.
#pragma once

#include <limits>

#include "common/cuda.cuh"

namespace pointcept3m {
namespace {

constexpr int32_t kNoPoint = INT32_MAX;
template <class T>
constexpr T kFar = std::numeric_limits<T>::infinity();

// Every step rounded by itself: the same bits as on the CPU, and a point is never nearer than its box.
__device__ __forceinline__ float square_sum(float x, float y, float z) {
  return __fadd_rn(__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)), __fmul_rn(z, z));
}
__device__ __forceinline__ double square_sum(double x, double y, double z) {
  return __dadd_rn(__dadd_rn(__dmul_rn(x, x), __dmul_rn(y, y)), __dmul_rn(z, z));
}

template <class T>
__device__ __forceinline__ bool is_finite(const T* p) {
  return isfinite(p[0]) && isfinite(p[1]) && isfinite(p[2]);
}

}  // namespace
}  // namespace pointcept3m
