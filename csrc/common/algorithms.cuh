// Sorting and scanning on the GPU. CUB does the work, compiled once in algorithms_cuda.cu, as it takes nvcc long.
#pragma once

#include "common/cuda.cuh"

namespace pointcept3m {

// Stable ascending sort of `count` (key, value) pairs by the bits [0, end_bit) of the key. Inputs are left alone and
// must not overlap outputs. K is uint32_t, uint64_t or int32_t; V is int32_t.
template <class K, class V>
void sort_pairs(CudaWork& work, const K* keys, K* sorted_keys, const V* values, V* sorted_values, int64_t count,
                int end_bit = 8 * sizeof(K));

// sums[i] = values[0] + ... + values[i - 1]. T is int32_t or int64_t; `sums` may be `values`.
template <class T>
void exclusive_sum(CudaWork& work, const T* values, T* sums, int64_t count);

// sums[i] = values[0] + ... + values[i].
template <class T>
void inclusive_sum(CudaWork& work, const T* values, T* sums, int64_t count);

}  // namespace pointcept3m
