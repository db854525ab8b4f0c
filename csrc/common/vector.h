// What inner loops on the CPU compute with: vectors of 64 bytes, one AVX-512 register, two of AVX2
// or four of SSE; the compiler splits them as needed.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/simd.h"

namespace pointcept3m {

template <class T>
struct VectorOf {
  static constexpr int64_t lanes = 64 / sizeof(T);
  typedef T type __attribute__((vector_size(64)));
  typedef T unaligned __attribute__((vector_size(64), aligned(alignof(T)), may_alias));
};

template <class T>
using Vector = typename VectorOf<T>::type;

// References, as vectors passed by value would depend on the instruction set of the caller.
template <class T>
P3M_INLINE const typename VectorOf<T>::unaligned& load(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}

template <class T>
P3M_INLINE void store(T* to, const Vector<T>& value) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = value;
}

}  // namespace pointcept3m
