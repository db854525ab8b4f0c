// Kernels whose results are known, to test the emulator (and, on a GPU, the wrappers of csrc/common) by.
#include "common/algorithms.cuh"
#include "common/warp_matrix.cuh"

namespace pointcept3m {
namespace {

// One warp: d [16, 8] = a [16, 8] b [8, 8] in tf32.
__global__ void product_tf32(const float* a, const float* b, float* d) {
  const int group = threadIdx.x / 4, member = threadIdx.x % 4;
  const uint32_t fa[4] = {to_tf32(a[group * 8 + member]), to_tf32(a[(group + 8) * 8 + member]),
                          to_tf32(a[group * 8 + member + 4]), to_tf32(a[(group + 8) * 8 + member + 4])};
  const uint32_t fb[2] = {to_tf32(b[member * 8 + group]), to_tf32(b[(member + 4) * 8 + group])};
  float fd[4] = {};
  multiply_tf32(fd, fa, fb);
  for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * member + i % 2] = fd[i];
}

// One warp: d [16, 8] = a [16, 16] b [16, 8] in bfloat16, through shared memory and ldmatrix.
__global__ void product_bf16(const uint16_t* a, const uint16_t* b, float* d) {
  P3M_DYNAMIC_SHARED(uint16_t, shared_a);
  uint16_t* shared_b = shared_a + 256;  // [16, 8]
  const int lane = threadIdx.x, group = lane / 4, member = lane % 4;
  start_copy_16(shared_a + 8 * lane, a + 8 * lane);
  commit_copies();
  start_copy_16(shared_b + 8 * (lane % 16), b + 8 * (lane % 16));
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  uint32_t fa[4], both[4];
  load_matrices(fa, shared_a + 16 * (lane % 16) + 8 * (lane / 16));
  load_matrices_transposed(both, shared_b + 8 * (lane % 16));
  const uint32_t fb[2] = {both[0], both[1]};
  float fd[4] = {};
  multiply_bf16(fd, fa, fb);
  for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + 2 * member + i % 2] = fd[i];
}

// Reverses each block's values through shared memory; `wait` tells whether it waits for the other threads.
__global__ void reverse_blocks(const float* values, float* reversed, bool wait) {
  __shared__ float held[64];
  held[threadIdx.x] = values[global_thread()];
  if (wait) __syncthreads();
  reversed[global_thread()] = held[63 - threadIdx.x];
}

// Wrong on purpose: thread 0 waits for its warp, whose other lanes wait for the block.
__global__ void half_a_barrier_kernel(float* out) {
  if (threadIdx.x == 0) __syncwarp();
  __syncthreads();
  out[threadIdx.x] = 0;
}

// Sums each row of 32 over a warp.
__global__ void sum_rows(const float* values, float* sums) {
  float sum = values[global_thread()];
  for (int by = 16; by; by /= 2) sum += __shfl_xor_sync(kAllLanes, sum, by);
  if (threadIdx.x % 32 == 0) sums[global_thread() / 32] = sum;
}

Tensor multiply_tiles(const Tensor a, const Tensor b) {
  CudaWork work(a);
  const Tensor d = torch::stable::new_empty(a, {16, 8}, ScalarType::Float);
  if (a.scalar_type() == ScalarType::Float)
    launch(work, product_tf32, 1, 32, 0, a.const_data_ptr<float>(), b.const_data_ptr<float>(),
           d.mutable_data_ptr<float>());
  else
    launch(work, product_bf16, 1, 32, 768, static_cast<const uint16_t*>(a.data_ptr()),
           static_cast<const uint16_t*>(b.data_ptr()), d.mutable_data_ptr<float>());
  return d;
}

Tensor reverse_64(const Tensor values, bool wait) {
  CudaWork work(values);
  const Tensor out = torch::stable::new_empty(values, {values.size(0)});
  launch(work, reverse_blocks, static_cast<unsigned>(values.size(0) / 64), 64, 0, values.const_data_ptr<float>(),
         out.mutable_data_ptr<float>(), wait);
  return out;
}

Tensor half_a_barrier(const Tensor values) {
  CudaWork work(values);
  const Tensor out = torch::stable::new_empty(values, {64});
  launch(work, half_a_barrier_kernel, 1, 64, 0, out.mutable_data_ptr<float>());
  return out;
}

Tensor sum_32(const Tensor values) {
  CudaWork work(values);
  const Tensor out = torch::stable::new_empty(values, {values.size(0) / 32});
  launch(work, sum_rows, static_cast<unsigned>(values.size(0) / 64), 64, 0, values.const_data_ptr<float>(),
         out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(pointcept3m_selftest, m) {
  m.def("multiply_tiles(Tensor a, Tensor b) -> Tensor");
  m.def("reverse_64(Tensor values, bool wait) -> Tensor");
  m.def("half_a_barrier(Tensor values) -> Tensor");
  m.def("sum_32(Tensor values) -> Tensor");
}

#ifdef P3M_EMULATE_CUDA
STABLE_TORCH_LIBRARY_IMPL(pointcept3m_selftest, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(pointcept3m_selftest, CUDA, m) {
#endif
  m.impl("multiply_tiles", TORCH_BOX(&multiply_tiles));
  m.impl("reverse_64", TORCH_BOX(&reverse_64));
  m.impl("half_a_barrier", TORCH_BOX(&half_a_barrier));
  m.impl("sum_32", TORCH_BOX(&sum_32));
}

}  // namespace pointcept3m
