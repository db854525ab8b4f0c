// What the tensor-core kernels of sparse convolution need to know about a dtype: how its products are made, and how
// rows of 16-byte segments lie in shared memory.
//
// float32 is multiplied as three tf32 products (value = high + low, 10 bits each; the product of both lows is dropped):
// its error is that of float32 sums, while a single tf32 product keeps three digits. torch's matmul keeps float32
// accurate by default too. An infinity among float32 values comes out as NaN.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common/warp_matrix.cuh"

namespace pointcept3m {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kSegment = 16;  // bytes that one asynchronous copy moves

template <class T>
constexpr int kPerSegment = kSegment / static_cast<int>(sizeof(T));

// Four registers of A and two of B cover 16x16 and 16x8 halves, or 16x8 and 8x8 floats: 32 bytes of depth each.
template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void multiply<BFloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_bf16(d, a, b);
}

template <>
__device__ __forceinline__ void multiply<Half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_f16(d, a, b);
}

// value = high + low, both of 10 bits of mantissa, high the nearest. (cvt.rna.tf32 takes four times the instructions. A
// NaN that the sum turns into something else is still in `low`.)
__device__ __forceinline__ void split_float(uint32_t bits, uint32_t& high, uint32_t& low) {
  high = (bits + 0x1000u) & ~0x1fffu;
  low = __float_as_uint(__uint_as_float(bits) - __uint_as_float(high)) & ~0x1fffu;
}

template <>
__device__ __forceinline__ void multiply<float>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t high_a[4], low_a[4], high_b[2], low_b[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) split_float(a[i], high_a[i], low_a[i]);
#pragma unroll
  for (int i = 0; i < 2; ++i) split_float(b[i], high_b[i], low_b[i]);
  multiply_tf32(d, low_a, high_b);
  multiply_tf32(d, high_a, low_b);
  multiply_tf32(d, high_a, high_b);
}

// Stores as many of four neighbouring values as `room` lets; in one piece if `together`, where `to` must be aligned.
template <class T>
__device__ __forceinline__ void store_four(T* to, const float (&values)[4], int room, bool together) {
  struct alignas(4 * sizeof(T)) Four {
    T values[4];
  };
  if (together) {
    if (room > 0) *reinterpret_cast<Four*>(to) = {T(values[0]), T(values[1]), T(values[2]), T(values[3])};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < room) to[i] = T(values[i]);
}

}  // namespace
}  // namespace pointcept3m
