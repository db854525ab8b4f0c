// What every CUDA kernel file includes: checks, stream and scratch memory of torch, launching, and reading back.
//
// The same sources also compile as plain C++ with -DP3M_EMULATE_CUDA (tests/cuda_emulator/), where a block's threads
// run as fibers on the CPU. That is how the kernels are tested on machines without a GPU, so they keep to what the
// emulator knows: launch() instead of <<<>>>, P3M_DYNAMIC_SHARED, the wrappers of common/warp_matrix.cuh.
#pragma once

#ifdef P3M_EMULATE_CUDA
#include "emulator.h"
#else
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#endif

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/check.h"

#ifdef P3M_EMULATE_CUDA
#define P3M_REGISTER_CUDA(m) STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m)
#define P3M_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emulator::dynamic_shared())
#define P3M_CHECK_CUDA(call) (void)(call)
#else
#define P3M_REGISTER_CUDA(m) STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CUDA, m)
// Shared memory whose size is given at launch: `P3M_DYNAMIC_SHARED(float, tile);` makes `float* tile`, 16-byte aligned.
#define P3M_DYNAMIC_SHARED(T, name)                         \
  extern __shared__ __align__(16) unsigned char p3m_shared[]; \
  T* name = reinterpret_cast<T*>(p3m_shared)
#define P3M_CHECK_CUDA(call)                                                              \
  do {                                                                                    \
    const cudaError_t p3m_error = (call);                                                 \
    STD_TORCH_CHECK(p3m_error == cudaSuccess, #call ": ", cudaGetErrorString(p3m_error)); \
  } while (0)
#endif

namespace pointcept3m {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__host__ __device__ constexpr T divide_up(T value, T by) {
  return (value + by - 1) / by;
}

inline void check_contiguous_cuda(const Tensor& tensor, const char* name) {
#ifndef P3M_EMULATE_CUDA
  STD_TORCH_CHECK(tensor.is_cuda(), name, " must be a CUDA tensor");
#endif
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

// One op's work on one device: torch's current stream there, and scratch memory that lives until the end of the op.
// (torch's allocator orders reuse by stream, so that freeing before the kernels have run is safe.)
class CudaWork {
 public:
  explicit CudaWork(const Tensor& on)
      : like_(on)
#ifndef P3M_EMULATE_CUDA
        , guard_(on.get_device_index())
#endif
  {
#ifndef P3M_EMULATE_CUDA
    void* stream = nullptr;
    const auto error = aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream);
    STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "torch has no CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
#endif
  }

  cudaStream_t stream() const { return stream_; }

  // `count` uninitialised values (at least one, so that the pointer is never null).
  template <class T>
  T* scratch(int64_t count) {
    const int64_t bytes = std::max<int64_t>(count, 1) * static_cast<int64_t>(sizeof(T));
    kept_.push_back(torch::stable::new_empty(like_, {bytes}, ScalarType::Byte));
    return static_cast<T*>(kept_.back().data_ptr());
  }

  template <class T>
  T* zeroed_scratch(int64_t count) {
    T* memory = scratch<T>(count);
    clear(memory, count);
    return memory;
  }

  template <class T>
  void clear(T* memory, int64_t count) const {
    P3M_CHECK_CUDA(cudaMemsetAsync(memory, 0, count * sizeof(T), stream_));
  }

  // Sets every byte: fill_bytes(ids, n, 0xff) makes int32 -1.
  template <class T>
  void fill_bytes(T* memory, int64_t count, int byte) const {
    P3M_CHECK_CUDA(cudaMemsetAsync(memory, byte, count * sizeof(T), stream_));
  }

  template <class T>
  void copy(T* to, const T* from, int64_t count) const {
    P3M_CHECK_CUDA(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToDevice, stream_));
  }

  // Copies values to the host and waits for them: the one way in which a size that depends on data becomes known.
  template <class T>
  std::vector<T> read_back(const T* from, int64_t count) const {
    std::vector<T> values(count);
    P3M_CHECK_CUDA(cudaMemcpyAsync(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost, stream_));
    P3M_CHECK_CUDA(cudaStreamSynchronize(stream_));
    return values;
  }

  template <class T>
  T read_back(const T* from) const {
    return read_back(from, 1)[0];
  }

  // Copies a few values from the host; `from` may go out of scope at once.
  template <class T>
  void write(T* to, const T* from, int64_t count) const {
    P3M_CHECK_CUDA(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyHostToDevice, stream_));
    P3M_CHECK_CUDA(cudaStreamSynchronize(stream_));
  }

 private:
  Tensor like_;
#ifndef P3M_EMULATE_CUDA
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
  std::vector<Tensor> kept_;
};

// Runs `kernel` on the work's stream. A grid with a zero in it launches nothing. More than 48 KB of shared memory is
// asked for where it is needed.
template <class... Parameters, class... Arguments>
void launch(const CudaWork& work, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef P3M_EMULATE_CUDA
  (void)work;
  emulator::run(grid, block, shared_bytes, [=] { kernel(static_cast<Parameters>(arguments)...); });
#else
  if (shared_bytes > 48 * 1024)
    P3M_CHECK_CUDA(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  kernel<<<grid, block, shared_bytes, work.stream()>>>(static_cast<Parameters>(arguments)...);
  P3M_CHECK_CUDA(cudaGetLastError());
#endif
}

// Blocks of `threads` for one thread per item; kernels take `global_thread()` and return where it is past the end.
inline dim3 blocks_for(int64_t items, int threads) {
  const int64_t blocks = divide_up<int64_t>(items, threads);
  STD_TORCH_CHECK(blocks <= 0x7fffffff, "too many items for one launch: ", items);
  return dim3(static_cast<unsigned>(blocks));
}

__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace pointcept3m
