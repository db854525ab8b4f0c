// The one file that compiles CUB, for sort_pairs and the sums of algorithms.cuh; the emulator sorts with the standard
// library instead.
#include "common/algorithms.cuh"

#ifdef P3M_EMULATE_CUDA
#include <numeric>
#else
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#endif

namespace pointcept3m {

#ifdef P3M_EMULATE_CUDA

template <class K, class V>
void sort_pairs(CudaWork&, const K* keys, K* sorted_keys, const V* values, V* sorted_values, int64_t count,
                int end_bit) {
  const auto masked = [&](K key) {
    using U = std::make_unsigned_t<K>;
    const U flipped = std::is_signed_v<K> ? static_cast<U>(key) ^ (U{1} << (8 * sizeof(K) - 1)) : static_cast<U>(key);
    return end_bit < static_cast<int>(8 * sizeof(K)) ? flipped & ((U{1} << end_bit) - 1) : flipped;
  };
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return masked(keys[a]) < masked(keys[b]); });
  for (int64_t i = 0; i < count; ++i) {
    sorted_keys[i] = keys[order[i]];
    sorted_values[i] = values[order[i]];
  }
}

template <class T>
void exclusive_sum(CudaWork&, const T* values, T* sums, int64_t count) {
  T sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T value = values[i];
    sums[i] = sum;
    sum += value;
  }
}

template <class T>
void inclusive_sum(CudaWork&, const T* values, T* sums, int64_t count) {
  std::partial_sum(values, values + count, sums);
}

#else

// CUB is called twice: the first call says how much scratch memory the second one needs.
template <class Call>
void with_scratch(CudaWork& work, const Call& call) {
  size_t bytes = 0;
  P3M_CHECK_CUDA(call(nullptr, bytes));
  void* memory = work.scratch<unsigned char>(static_cast<int64_t>(bytes));
  P3M_CHECK_CUDA(call(memory, bytes));
}

template <class K, class V>
void sort_pairs(CudaWork& work, const K* keys, K* sorted_keys, const V* values, V* sorted_values, int64_t count,
                int end_bit) {
  if (count == 0) return;
  with_scratch(work, [&](void* memory, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(memory, bytes, keys, sorted_keys, values, sorted_values, count, 0, end_bit,
                                           work.stream());
  });
}

template <class T>
void exclusive_sum(CudaWork& work, const T* values, T* sums, int64_t count) {
  if (count == 0) return;
  with_scratch(work, [&](void* memory, size_t& bytes) {
    return cub::DeviceScan::ExclusiveSum(memory, bytes, values, sums, count, work.stream());
  });
}

template <class T>
void inclusive_sum(CudaWork& work, const T* values, T* sums, int64_t count) {
  if (count == 0) return;
  with_scratch(work, [&](void* memory, size_t& bytes) {
    return cub::DeviceScan::InclusiveSum(memory, bytes, values, sums, count, work.stream());
  });
}

#endif

#define P3M_SORT(K, V) \
  template void sort_pairs<K, V>(CudaWork&, const K*, K*, const V*, V*, int64_t, int);
P3M_SORT(uint32_t, int32_t)
P3M_SORT(int32_t, int32_t)
P3M_SORT(uint64_t, int32_t)
#undef P3M_SORT

#define P3M_SCAN(T)                                                        \
  template void exclusive_sum<T>(CudaWork&, const T*, T*, int64_t);        \
  template void inclusive_sum<T>(CudaWork&, const T*, T*, int64_t);
P3M_SCAN(int32_t)
P3M_SCAN(int64_t)
#undef P3M_SCAN

}  // namespace pointcept3m

#ifndef P3M_ARCHITECTURES
#define P3M_ARCHITECTURES ""
#endif

// Read by ops/_library.py: the GPU architectures that the library was compiled for.
extern "C" __attribute__((visibility("default"))) const char* pointcept3m_cuda_architectures() {
  return P3M_ARCHITECTURES;
}
