// What a row may hold: float32, float64, float16, bfloat16. Sixteen-bit values are widened to float32 as they are
// loaded and rounded once, to nearest even, as they are stored. All of it in GCC's vector extension.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/simd.h"

// Vectors wider than the base instruction set are only passed between functions that are always inlined.
#pragma GCC diagnostic ignored "-Wpsabi"
// GCC 12 warns of vectors in arrays that are set lane by lane before they are read.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace pointcept3m {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T, int N>
struct LanesOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Lanes = typename LanesOf<T, N>::type;

// The type that values stored as S are computed in, and its integer of the same width.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;
template <class S>
using WideInt = std::conditional_t<std::is_same_v<S, double>, int64_t, int32_t>;

// Lanes of a full vector: 32 bytes, which AVX2 has in one register and SSE in two. Wider would not help: what is
// done here waits for memory.
template <class S>
constexpr int kFull = 32 / sizeof(Wide<S>);

template <int N, class To, class From>
P3M_INLINE Lanes<To, N> same_bits(const Lanes<From, N>& from) {
  static_assert(sizeof(To) == sizeof(From));
  return (Lanes<To, N>)from;
}

template <int N>
P3M_INLINE Lanes<float, N> widen(const Lanes<uint16_t, N>& raw, BFloat16) {
  return same_bits<N, float, uint32_t>(__builtin_convertvector(raw, Lanes<uint32_t, N>) << 16);
}

// Moves exponent and mantissa into place; adds what the exponents differ by; infinities and NaN need it twice, and
// what has no exponent (zero and subnormals) is put right by a subtraction of the smallest normal value.
template <int N>
P3M_INLINE Lanes<float, N> widen(const Lanes<uint16_t, N>& raw, Half) {
  using Bits = Lanes<uint32_t, N>;
  const Bits word = __builtin_convertvector(raw, Bits);
  const Bits moved = (word & 0x7fff) << 13, exponent = moved & 0x0f800000;
  const Bits rebased = moved + (uint32_t{127 - 15} << 23);
  const Bits special = rebased + (uint32_t{128 - 16} << 23);
  const Lanes<float, N> smallest = same_bits<N, float, uint32_t>(Bits{} + (uint32_t{113} << 23));
  const Bits tiny = same_bits<N, uint32_t, float>(
      same_bits<N, float, uint32_t>(rebased + (uint32_t{1} << 23)) - smallest);
  const Bits is_special = (Bits)(exponent == Bits{} + 0x0f800000), is_tiny = (Bits)(exponent == Bits{});
  const Bits value = (special & is_special) | (tiny & is_tiny) | (rebased & ~(is_special | is_tiny));
  return same_bits<N, float, uint32_t>(value | ((word & 0x8000) << 16));
}

template <int N>
P3M_INLINE Lanes<uint16_t, N> narrow(const Lanes<float, N>& value, BFloat16) {
  using Bits = Lanes<uint32_t, N>;
  const Bits word = same_bits<N, uint32_t, float>(value);
  const Bits rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  const Bits is_nan = (Bits)((word & 0x7fffffff) > Bits{} + 0x7f800000);
  return __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), Lanes<uint16_t, N>);
}

// Below 2^-14 a half has no exponent: adding 0.5 leaves its digits at the end of the float, rounded by the addition.
template <int N>
P3M_INLINE Lanes<uint16_t, N> narrow(const Lanes<float, N>& value, Half) {
  using Bits = Lanes<uint32_t, N>;
  const Bits word = same_bits<N, uint32_t, float>(value);
  const Bits sign = (word >> 16) & 0x8000, size = word & 0x7fffffff;
  const Bits normal = (size - (uint32_t{127 - 15} << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
  const Lanes<float, N> half = Lanes<float, N>{} + 0.5f;
  const Bits tiny = same_bits<N, uint32_t, float>(same_bits<N, float, uint32_t>(size) + half) - (uint32_t{126} << 23);
  const Bits is_nan = (Bits)(size > Bits{} + 0x7f800000);
  const Bits is_large = (Bits)(size >= Bits{} + 0x477ff000) & ~is_nan;  // 65520 and more round to infinity
  const Bits is_tiny = (Bits)(size < Bits{} + (uint32_t{113} << 23));
  const Bits rest = ~(is_nan | is_large | is_tiny);
  const Bits result = (0x7e00 & is_nan) | (0x7c00 & is_large) | (tiny & is_tiny) | (normal & rest);
  return __builtin_convertvector(result | sign, Lanes<uint16_t, N>);
}

template <int N, class S>
P3M_INLINE Lanes<Wide<S>, N> load_lanes(const S* from) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    Lanes<S, N> value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  } else {
    Lanes<uint16_t, N> raw;
    std::memcpy(&raw, from, sizeof(raw));
    return widen<N>(raw, S{});
  }
}

template <int N, class S>
P3M_INLINE void store_lanes(S* to, const Lanes<Wide<S>, N>& value) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    std::memcpy(to, &value, sizeof(value));
  } else {
    const Lanes<uint16_t, N> raw = narrow<N>(value, S{});
    std::memcpy(to, &raw, sizeof(raw));
  }
}

// Calls block(channel, lanes, vectors) until all channels are done: as many full vectors at a time as stay in
// registers (`MOST`). Where a row holds a full vector, what is left at the end overlaps what was done: it comes out the
// same.
template <class S, int MOST, class Block>
P3M_INLINE void for_channel_blocks(int64_t channels, const Block& block) {
  constexpr int full = kFull<S>;
  using std::integral_constant;
  int64_t c = 0;
  for (; c + MOST * full <= channels; c += MOST * full)
    block(c, integral_constant<int, full>{}, integral_constant<int, MOST>{});
  for (; c + full <= channels; c += full) block(c, integral_constant<int, full>{}, integral_constant<int, 1>{});
  if (c < channels && channels >= full) {
    block(channels - full, integral_constant<int, full>{}, integral_constant<int, 1>{});
    return;
  }
  for (; c + 4 <= channels; c += 4) block(c, integral_constant<int, 4>{}, integral_constant<int, 1>{});
  for (; c + 2 <= channels; c += 2) block(c, integral_constant<int, 2>{}, integral_constant<int, 1>{});
  for (; c < channels; ++c) block(c, integral_constant<int, 1>{}, integral_constant<int, 1>{});
}

}  // namespace
}  // namespace pointcept3m
