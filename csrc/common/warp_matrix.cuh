// Matrix products of one warp on tensor cores (PTX mma.sync, sm_80 and later), asynchronous copies, ldmatrix.
//
// Fragments, with group = lane / 4 and member = lane % 4 (PTX ISA, "Matrix fragments for mma"):
//   D, C  16x8 float   d[0], d[1]: row group, columns 2 member, +1;   d[2], d[3]: row group + 8
//   A     16x16 halves a[0]: row group, columns 2 member, +1;  a[1]: row group + 8;  a[2], a[3]: columns + 8
//   B     16x8 halves  b[0]: rows 2 member, +1, column group;  b[1]: rows + 8
//   A     16x8 tf32    a[0]: row group, column member;  a[1]: row group + 8;  a[2], a[3]: column + 4
//   B     8x8 tf32     b[0]: row member, column group;  b[1]: row + 4
// Every lane of the warp must call them.
#pragma once

#include "common/cuda.cuh"

namespace pointcept3m {

// Nearest tf32 (10 bits of mantissa) as bits.
__device__ __forceinline__ uint32_t to_tf32(float value) {
#ifdef P3M_EMULATE_CUDA
  return emulator::to_tf32(value);
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#endif
}

// d += a b, 16x8x8.
__device__ __forceinline__ void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef P3M_EMULATE_CUDA
  emulator::multiply<1>(d, a, b, emulator::tf32_value);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// d += a b, 16x8x16, two bfloat16 in a register, the lower column or row in the lower half.
__device__ __forceinline__ void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef P3M_EMULATE_CUDA
  emulator::multiply<2>(d, a, b, emulator::bf16_value);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The same with float16.
__device__ __forceinline__ void multiply_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef P3M_EMULATE_CUDA
  emulator::multiply<2>(d, a, b, emulator::f16_value);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8x8 matrices of halves from shared memory: lane 8 i + r names row r (16 bytes, aligned) of matrix i; fragment[i]
// receives row lane / 4, columns 2 (lane % 4) and the next, of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&fragment)[4], const void* row) {
#ifdef P3M_EMULATE_CUDA
  emulator::load_matrices(fragment, row, false);
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
#endif
}

// The same with every matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&fragment)[4], const void* row) {
#ifdef P3M_EMULATE_CUDA
  emulator::load_matrices(fragment, row, true);
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
#endif
}

// Starts a copy of 16 bytes, both sides aligned to 16, from global to shared memory; zeros where not `wanted`.
__device__ __forceinline__ void start_copy_16(void* shared, const void* global, bool wanted = true) {
#ifdef P3M_EMULATE_CUDA
  emulator::start_copy_16(shared, global, wanted);
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = wanted ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#endif
}

// Closes the group of copies started since the last call.
__device__ __forceinline__ void commit_copies() {
#ifdef P3M_EMULATE_CUDA
  emulator::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING groups of this thread are under way; __syncthreads() then shows them to the block.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
#ifdef P3M_EMULATE_CUDA
  emulator::wait_for_copies(PENDING);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

}  // namespace pointcept3m
