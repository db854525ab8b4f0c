// Checks of what the CUDA ops over a rulebook are given, and the choice of a kernel by dtype.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common/cuda.cuh"

namespace pointcept3m {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// The edges of the offsets.
std::vector<int64_t> check_pairs(const Tensor& pairs, const Tensor& start) {
  check_contiguous_cuda(pairs, "pairs");
  STD_TORCH_CHECK(pairs.dim() == 2 && pairs.size(0) == 2 && pairs.scalar_type() == ScalarType::Int,
                  "pairs must be int32 [2, P]");
  STD_TORCH_CHECK(start.is_cpu() && start.is_contiguous(), "start must be a contiguous CPU tensor");
  STD_TORCH_CHECK(start.dim() == 1 && start.size(0) > 0 && start.scalar_type() == ScalarType::Long,
                  "start must be int64 [K + 1]");
  const int64_t* edges = start.const_data_ptr<int64_t>();
  std::vector<int64_t> copy(edges, edges + start.size(0));
  STD_TORCH_CHECK(copy.front() == 0 && copy.back() == pairs.size(1) && std::is_sorted(copy.begin(), copy.end()),
                  "start must ascend from 0 to the number of pairs");
  STD_TORCH_CHECK(pairs.size(1) <= (int64_t{1} << 31) - (1 << 16), "a rulebook takes at most 2^31 - 2^16 pairs");
  return copy;
}

void check_tensor(const Tensor& tensor, const Tensor& pairs, int64_t dim, const char* name) {
  check_contiguous_cuda(tensor, name);
  STD_TORCH_CHECK(tensor.get_device_index() == pairs.get_device_index(), name, " and pairs must be on one device");
  STD_TORCH_CHECK(tensor.dim() == dim, name, " has the wrong number of dimensions");
  for (int64_t d = 0; d < dim; ++d) STD_TORCH_CHECK(tensor.size(d) < (int64_t{1} << 30), name, " is too large");
}

// What holds the place of each row that is written.
void check_rank(const Tensor& rank, const Tensor& pairs) {
  check_tensor(rank, pairs, 1, "rank");
  STD_TORCH_CHECK(rank.scalar_type() == ScalarType::Int, "rank must be int32 [rows]");
}

void check_values(const Tensor& tensor, const Tensor& pairs, int64_t dim, const char* name) {
  check_tensor(tensor, pairs, dim, name);
  const auto dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16,
                  name, " must be float32, float64, float16 or bfloat16");
}

// Calls run(T{}) with the type that a checked tensor is stored as.
template <class Run>
void with_type(const Tensor& tensor, const Run& run) {
  const auto dtype = tensor.scalar_type();
  if (dtype == ScalarType::Float) return run(float{});
  if (dtype == ScalarType::Double) return run(double{});
  if (dtype == ScalarType::Half) return run(Half{});
  run(BFloat16{});
}

}  // namespace
}  // namespace pointcept3m
