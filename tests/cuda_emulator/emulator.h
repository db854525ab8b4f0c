// CUDA's language, as far as csrc/ uses it, on a CPU: a block's threads are fibers that take turns.
//
// Blocks run one after the other. A thread runs until it waits at a barrier or a warp function; then the next one
// runs. Which order they take is set by P3M_EMULATOR_ORDER (forward, reverse or random): a kernel that lacks a
// barrier gives other results in another order. What would hang or be undefined on a GPU (a barrier that some threads
// never reach, a shuffle with a lane that has left, a read of a copy not waited for) ends the program with a sentence.
//
// Not covered: the speed of anything, races that no order of whole threads shows, limits on registers.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __constant__ static
#define __shared__ static  // one block at a time

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define P3M_VECTOR_TYPES(T, name)                                                \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                             \
  struct name##3 { T x, y, z; };                                                 \
  struct alignas(std::min<size_t>(16, 4 * sizeof(T))) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                     \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }             \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
P3M_VECTOR_TYPES(float, float)
P3M_VECTOR_TYPES(double, double)
P3M_VECTOR_TYPES(int, int)
P3M_VECTOR_TYPES(unsigned, uint)
P3M_VECTOR_TYPES(unsigned short, ushort)
P3M_VECTOR_TYPES(long long, longlong)
#undef P3M_VECTOR_TYPES

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice, cudaMemcpyDeviceToHost, cudaMemcpyHostToDevice };
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  if (bytes) std::memset(to, byte, bytes);  // an empty tensor's pointer is null
  return 0;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (bytes) std::memcpy(to, from, bytes);
  return 0;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return 0; }
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 4 : 99 * 1024;
  return 0;
}

namespace emulator {

struct Copy {
  void* to;
  const void* from;
  bool wanted;
};

struct Thread {
  dim3 index;
  unsigned lane, warp;
  std::vector<std::vector<Copy>> copies;  // groups under way; the last one is still open
};

extern Thread* self;        // the thread that runs now
extern dim3 block_index, block_size, grid_size;

// Runs `body` for every thread of every block.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

void* dynamic_shared();

// Waits until every thread of the block that has not returned is here; the sum of all their `vote`s.
int block_barrier(int vote);

// Waits until every lane of `mask` is here; then `values[lane]` holds the `value` of each.
const uint64_t* exchange(unsigned mask, uint64_t value);

[[noreturn]] void fail(const char* message);

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T read_lane(unsigned mask, T value, unsigned lane) {
  const uint64_t* values = exchange(mask, to_bits(value));
  if (!(mask >> lane & 1)) fail("a shuffle reads a lane that its mask does not name");
  return from_bits<T>(values[lane]);
}

inline unsigned segment_end(int width) { return (self->lane / width + 1) * width; }

inline uint32_t to_tf32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return std::isfinite(value) ? (bits + 0x1000u) & ~0x1fffu : bits;
}
inline float tf32_value(uint32_t bits, int) { return std::bit_cast<float>(bits & ~0x1fffu); }
inline float bf16_value(uint32_t bits, int half) { return std::bit_cast<float>((bits >> 16 * half) << 16); }
inline float f16_value(uint32_t bits, int half) {
  return static_cast<float>(c10::Half(static_cast<uint16_t>(bits >> 16 * half), c10::Half::from_bits()));
}

// d += a b of one warp; a register of A and B holds PACKED values.
template <int PACKED, class Value>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Value& value) {
  uint32_t all_a[4][32], all_b[2][32];
  for (int i = 0; i < 4; ++i) {
    const uint64_t* values = exchange(~0u, a[i]);
    for (int lane = 0; lane < 32; ++lane) all_a[i][lane] = static_cast<uint32_t>(values[lane]);
  }
  for (int i = 0; i < 2; ++i) {
    const uint64_t* values = exchange(~0u, b[i]);
    for (int lane = 0; lane < 32; ++lane) all_b[i][lane] = static_cast<uint32_t>(values[lane]);
  }
  const unsigned group = self->lane / 4, member = self->lane % 4;
  for (int i = 0; i < 4; ++i) {
    const unsigned column = 2 * member + i % 2;
    for (unsigned k = 0; k < 8 * PACKED; ++k) {
      const unsigned part = k / (4 * PACKED), lane = k / PACKED % 4, half = k % PACKED;
      d[i] += value(all_a[i / 2 + 2 * part][4 * group + lane], half) * value(all_b[part][4 * column + lane], half);
    }
  }
}

inline void load_matrices(uint32_t (&fragment)[4], const void* row, bool transposed) {
  const uint64_t* values = exchange(~0u, to_bits(row));
  const void* rows[32];
  for (int lane = 0; lane < 32; ++lane) rows[lane] = from_bits<const void*>(values[lane]);
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (unsigned j = 0; j < 2; ++j) {
      const unsigned r = self->lane / 4, c = 2 * (self->lane % 4) + j;
      pair[j] = static_cast<const uint16_t*>(rows[8 * i + (transposed ? c : r)])[transposed ? r : c];
    }
    fragment[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

// A copy takes place when it is waited for, so that what is read before that is wrong here too.
inline void start_copy_16(void* to, const void* from, bool wanted) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || (wanted && reinterpret_cast<uintptr_t>(from) % 16))
    fail("an asynchronous copy of 16 bytes is not aligned");
  if (self->copies.empty()) self->copies.emplace_back();
  self->copies.back().push_back({to, from, wanted});
}
inline void commit_copies() { self->copies.emplace_back(); }
inline void wait_for_copies(size_t pending) {
  auto& groups = self->copies;
  while (groups.size() > pending + 1) {
    for (const Copy& copy : groups.front()) {
      if (copy.wanted) std::memcpy(copy.to, copy.from, 16);
      else std::memset(copy.to, 0, 16);
    }
    groups.erase(groups.begin());
  }
}

template <class T, class Combine>
T update(T* at, const Combine& combine) {
  const T old = *at;
  *at = combine(old);
  return old;
}

}  // namespace emulator

#define threadIdx (emulator::self->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define warpSize 32

inline void __syncthreads() { emulator::block_barrier(0); }
inline int __syncthreads_count(int vote) { return emulator::block_barrier(vote != 0); }
inline int __syncthreads_or(int vote) { return emulator::block_barrier(vote != 0) != 0; }
inline int __syncthreads_and(int vote) { return emulator::block_barrier(vote == 0) == 0; }
inline void __syncwarp(unsigned mask = ~0u) { emulator::exchange(mask, 0); }
inline void __threadfence() {}
[[noreturn]] inline void __trap() { emulator::fail("a kernel stops at what it cannot go on with"); }
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return emulator::read_lane(mask, value, emulator::segment_end(width) - width + (lane & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
  const unsigned lane = emulator::self->lane ^ by;
  return emulator::read_lane(mask, value, lane < emulator::segment_end(width) ? lane : emulator::self->lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned lane = emulator::self->lane + by;
  return emulator::read_lane(mask, value, lane < emulator::segment_end(width) ? lane : emulator::self->lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned lane = emulator::self->lane, first = emulator::segment_end(width) - width;
  return emulator::read_lane(mask, value, lane >= first + by ? lane - by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  const uint64_t* votes = emulator::exchange(mask, vote != 0);
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) result |= static_cast<unsigned>(votes[lane]) << lane;
  return result;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) == mask; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t* values = emulator::exchange(mask, emulator::to_bits(value));
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((mask >> lane & 1) && values[lane] == emulator::to_bits(value)) result |= 1u << lane;
  return result;
}
template <class T, class Combine>
T emulator_reduce(unsigned mask, T value, const Combine& combine) {
  const uint64_t* values = emulator::exchange(mask, emulator::to_bits(value));
  T result{};
  bool first = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const T other = emulator::from_bits<T>(values[lane]);
    result = first ? other : combine(result, other);
    first = false;
  }
  return result;
}
template <class T> T __reduce_add_sync(unsigned mask, T v) {
  return emulator_reduce(mask, v, [](T a, T b) { return T(a + b); });
}
template <class T> T __reduce_min_sync(unsigned mask, T v) {
  return emulator_reduce(mask, v, [](T a, T b) { return std::min(a, b); });
}
template <class T> T __reduce_max_sync(unsigned mask, T v) {
  return emulator_reduce(mask, v, [](T a, T b) { return std::max(a, b); });
}
template <class T> T __reduce_or_sync(unsigned mask, T v) {
  return emulator_reduce(mask, v, [](T a, T b) { return T(a | b); });
}

template <class T> T atomicAdd(T* at, std::type_identity_t<T> v) {
  return emulator::update(at, [&](T old) { return T(old + v); });
}
template <class T> T atomicMin(T* at, std::type_identity_t<T> v) {
  return emulator::update(at, [&](T old) { return std::min(old, v); });
}
template <class T> T atomicMax(T* at, std::type_identity_t<T> v) {
  return emulator::update(at, [&](T old) { return std::max(old, v); });
}
template <class T> T atomicOr(T* at, std::type_identity_t<T> v) {
  return emulator::update(at, [&](T old) { return T(old | v); });
}
template <class T> T atomicExch(T* at, std::type_identity_t<T> v) {
  return emulator::update(at, [&](T) { return v; });
}
template <class T> T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return emulator::update(at, [&](T old) { return old == expected ? v : old; });
}

template <class T> T __ldg(const T* at) { return *at; }
template <class T> T __ldcs(const T* at) { return *at; }
template <class T> T __ldcg(const T* at) { return *at; }
template <class T> void __stcs(T* at, T value) { *at = value; }

inline int __popc(unsigned v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return std::countl_zero(static_cast<unsigned long long>(v)); }
inline int __ffs(int v) { return v ? std::countr_zero(static_cast<unsigned>(v)) + 1 : 0; }
inline int __ffsll(long long v) { return v ? std::countr_zero(static_cast<unsigned long long>(v)) + 1 : 0; }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1 / v; }
inline float __fmul_rn(float a, float b) { volatile float product = a * b; return product; }
inline float __fadd_rn(float a, float b) { volatile float sum = a + b; return sum; }
inline double __dmul_rn(double a, double b) { volatile double product = a * b; return product; }
inline double __dadd_rn(double a, double b) { volatile double sum = a + b; return sum; }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline double rsqrt(double v) { return 1 / std::sqrt(v); }
using std::isfinite;
using std::isnan;
template <class A, class B> constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B> constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
