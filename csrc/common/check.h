// Argument checks shared by every op: wrong type is a TypeError, wrong value a ValueError in Python.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace pointcept3m {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The public Python functions check shapes, dtypes and ranges and speak to the user. What reaches a
// kernel was checked there; these guards only keep a direct `torch.ops.pointcept3m.*` call from
// reading memory it does not own.
inline void check_contiguous_cpu(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be a CPU tensor");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

}  // namespace pointcept3m
