// For ops that write large results: fewer page faults, and stores that do not read what they overwrite.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/simd.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pointcept3m {
namespace {

constexpr int64_t kHugePage = 1 << 21;

// Fresh memory of this size comes from the system page by page, and faulting in 4 KiB pages costs several times what
// writing them does. Asks for 2 MiB pages; where the system does not give them nothing changes.
inline void ask_for_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < 2 * kHugePage) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Results beyond this many bytes are streamed past the caches: their first rows would be evicted by their last.
constexpr int64_t kStreamFrom = 1 << 23;

// Copies `bytes`, past the caches where `to` and `bytes` are multiples of 16 bytes. `finish_stream` must follow before
// another thread reads what was written.
P3M_INLINE void stream(char* to, const char* from, int64_t bytes) {
#if defined(__SSE2__)
  if (((reinterpret_cast<uintptr_t>(to) | bytes) & 15) == 0) {
    for (int64_t i = 0; i < bytes; i += 16) {
      const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), value);
    }
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

inline void finish_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// How many rows ahead memory is asked for, where rows are not read one after the other.
constexpr int64_t kAhead = 24;

// Asks for the first cache lines of a row; the machine itself follows a longer one.
P3M_INLINE void prefetch_row(const void* row, int64_t bytes) {
  const char* line = static_cast<const char*>(row);
  for (int64_t i = 0; i < bytes && i < 512; i += 64) __builtin_prefetch(line + i);
}

}  // namespace
}  // namespace pointcept3m
