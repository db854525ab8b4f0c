// The way back on the GPU: each row copies its bin's row. Threads share a row in parts of up to 16 bytes, so that both
// sides coalesce; every byte of the result is written once.
#pragma once

#include "scatter/groups.cuh"

namespace pointcept3m {
namespace {

// For each row of all batches its segment, or -1.
__global__ void find_segments(Groups groups, int64_t* index) {
  const int64_t row = global_thread();
  if (row >= groups.num_rows) return;
  const int64_t bin = count_below(groups.first, groups.count, row + 1) - 1;
  index[row] = bin >= 0 && row < groups.last[bin] ? bin : -1;
}

inline const int64_t* segment_of_rows(CudaWork& work, const Groups& groups) {
  auto* index = work.scratch<int64_t>(groups.num_rows);
  launch(work, find_segments, blocks_for(groups.num_rows, kThreads), kThreads, 0, groups, index);
  return index;
}

struct Rows {
  const int64_t* index;  // of each row; -1: none
  int64_t count, limit, batch_rows;
  int64_t parts;   // of a row
  int lanes;
  int32_t* outside;  // becomes 1 where an index is neither a row below `limit` nor, for segments, -1
};

// The row of this group of threads and its source; -1 where it has none.
__device__ __forceinline__ bool find_source(const Rows& rows, int64_t* row, int64_t* source) {
  *row = global_thread() / rows.lanes;
  if (*row >= rows.count) return false;
  *source = rows.index[*row];
  if (*source < -1 || *source >= rows.limit || (*source == -1 && rows.outside)) {
    if (rows.outside) *rows.outside = 1;
    *source = -1;
  }
  return true;
}

template <class Part>
__global__ void copy_rows(Rows rows, const Part* src, Part* out) {
  int64_t row, source;
  if (!find_source(rows, &row, &source)) return;
  for (int64_t i = threadIdx.x % rows.lanes; i < rows.parts; i += rows.lanes)
    out[row * rows.parts + i] = source < 0 ? Part{} : src[source * rows.parts + i];
}

// `Word` is as wide as a value, which is only moved; a part is a value here.
template <class Word>
__global__ void copy_to_winners(Rows rows, const Word* grad, const int32_t* arg, Word* out) {
  int64_t row, source;
  if (!find_source(rows, &row, &source)) return;
  const auto mine = static_cast<int32_t>(row % rows.batch_rows);
  for (int64_t i = threadIdx.x % rows.lanes; i < rows.parts; i += rows.lanes)
    out[row * rows.parts + i] = source >= 0 && arg[source * rows.parts + i] == mine ?
        grad[source * rows.parts + i] : Word{};
}

template <class Part>
void launch_copy(CudaWork& work, Rows rows, int64_t width, const Tensor& src, const Tensor& out) {
  rows.parts = width / static_cast<int64_t>(sizeof(Part));
  rows.lanes = lanes_for(rows.parts);
  launch(work, copy_rows<Part>, blocks_for(rows.count * rows.lanes, kThreads), kThreads, 0, rows,
      static_cast<const Part*>(src.data_ptr()),
         static_cast<Part*>(out.data_ptr()));
}

// out[i] = src[index[i]] for rows of `width` bytes, of whatever type.
inline void gather_into(CudaWork& work, const Rows& rows, int64_t width, const Tensor& src, const Tensor& out) {
  if (width == 0) return;
  const auto from = reinterpret_cast<uintptr_t>(src.data_ptr()), to = reinterpret_cast<uintptr_t>(out.data_ptr());
  const uintptr_t all = from | to | width;
  if (all % 16 == 0) launch_copy<uint4>(work, rows, width, src, out);
  else if (all % 8 == 0) launch_copy<uint2>(work, rows, width, src, out);
  else if (all % 4 == 0) launch_copy<uint32_t>(work, rows, width, src, out);
  else if (all % 2 == 0) launch_copy<uint16_t>(work, rows, width, src, out);
  else launch_copy<uint8_t>(work, rows, width, src, out);
}

template <class Word>
void launch_winners(CudaWork& work, const Rows& rows, const Tensor& grad, const Tensor& arg, const Tensor& out) {
  launch(work, copy_to_winners<Word>, blocks_for(rows.count * rows.lanes, kThreads), kThreads, 0, rows,
      static_cast<const Word*>(grad.data_ptr()),
         arg.const_data_ptr<int32_t>(), static_cast<Word*>(out.data_ptr()));
}

inline void gather_won_into(CudaWork& work, Rows rows, const Tensor& grad, const Tensor& arg, const Tensor& out) {
  rows.parts = grad.size(grad.dim() - 1);
  if (rows.parts == 0) return;
  rows.lanes = lanes_for(rows.parts);
  if (grad.element_size() == 4) launch_winners<uint32_t>(work, rows, grad, arg, out);
  else if (grad.element_size() == 8) launch_winners<uint64_t>(work, rows, grad, arg, out);
  else launch_winners<uint16_t>(work, rows, grad, arg, out);
}

}  // namespace
}  // namespace pointcept3m
