// Scatter and segments on the GPU: groups.cuh finds each bin's rows, reduce.cuh reduces them, gather.cuh goes back.
#include <tuple>

#include "scatter/gather.cuh"
#include "scatter/reduce.cuh"

namespace pointcept3m {
namespace {

__global__ void count_members(Groups groups, int64_t* counts) {
  const int64_t bin = global_thread();
  if (bin < groups.count) counts[bin] = groups.last[bin] - groups.first[bin];
}

// Rows were counted over all batches, and an empty segment says how many there are in all.
__global__ void count_within_batches(int32_t* rows, int64_t count, int64_t per_batch, int64_t batch_rows,
    int64_t all_rows) {
  const int64_t i = global_thread();
  if (i < count) rows[i] = static_cast<int32_t>(rows[i] == all_rows ?
      batch_rows : rows[i] - i / per_batch * batch_rows);
}

Tensor scatter_sum(const Tensor src, const Tensor index, int64_t dim_size) {
  check_values(src, 2, "src");
  check_index(index, src, "index");
  CudaWork work(src);
  const Groups groups = group_rows(work, index, src.size(0), dim_size);
  const Tensor out = torch::stable::new_empty(src, {dim_size, src.size(1)});
  reduce_groups(work, Reduce::sum, groups, src, src.size(1), out, nullptr);
  return out;
}

std::tuple<Tensor, Tensor> scatter_mean(const Tensor src, const Tensor index, int64_t dim_size) {
  check_values(src, 2, "src");
  check_index(index, src, "index");
  CudaWork work(src);
  const Groups groups = group_rows(work, index, src.size(0), dim_size);
  const Tensor out = torch::stable::new_empty(src, {dim_size, src.size(1)});
  const Tensor count = torch::stable::new_empty(index, {dim_size});
  launch(work, count_members, blocks_for(dim_size, kThreads), kThreads, 0, groups, count.mutable_data_ptr<int64_t>());
  reduce_groups(work, Reduce::mean, groups, src, src.size(1), out, nullptr);
  return {out, count};
}

std::tuple<Tensor, Tensor> scatter_extreme(const Tensor src, const Tensor index, int64_t dim_size, bool largest) {
  check_values(src, 2, "src");
  check_index(index, src, "index");
  CudaWork work(src);
  const Groups groups = group_rows(work, index, src.size(0), dim_size);
  const Tensor out = torch::stable::new_empty(src, {dim_size, src.size(1)});
  const Tensor arg = torch::stable::new_empty(src, {dim_size, src.size(1)}, ScalarType::Int);
  reduce_groups(work, largest ? Reduce::max : Reduce::min, groups, src, src.size(1), out, &arg);
  return {out, arg};
}

Rows indexed_rows(CudaWork& work, const Tensor& index, int64_t limit) {
  return {index.const_data_ptr<int64_t>(), index.size(0), limit, std::max<int64_t>(index.size(0), 1), 0, 1,
      work.zeroed_scratch<int32_t>(1)};
}

Tensor gather_rows(const Tensor src, const Tensor index) {
  check_contiguous_cuda(src, "src");
  STD_TORCH_CHECK(src.dim() == 2, "src must have shape [rows, channels]");
  check_index(index, src, "index");
  CudaWork work(src);
  const Tensor out = torch::stable::new_empty(src, {index.size(0), src.size(1)});
  const Rows rows = indexed_rows(work, index, src.size(0));
  gather_into(work, rows, src.size(1) * src.element_size(), src, out);
  STD_TORCH_CHECK(!work.read_back(rows.outside), "index has values outside the rows of src");
  return out;
}

void check_arg(const Tensor& arg, const Tensor& grad) {
  check_contiguous_cuda(arg, "arg");
  bool fits = arg.scalar_type() == ScalarType::Int && arg.dim() == grad.dim();
  for (int64_t d = 0; fits && d < grad.dim(); ++d) fits = arg.size(d) == grad.size(d);
  STD_TORCH_CHECK(fits, "arg must be int32 of grad's shape");
}

Tensor gather_won(const Tensor grad, const Tensor arg, const Tensor index) {
  check_values(grad, 2, "grad");
  check_index(index, grad, "index");
  check_arg(arg, grad);
  CudaWork work(grad);
  const Tensor out = torch::stable::new_empty(grad, {index.size(0), grad.size(1)});
  const Rows rows = indexed_rows(work, index, grad.size(0));
  gather_won_into(work, rows, grad, arg, out);
  STD_TORCH_CHECK(!work.read_back(rows.outside), "index has values outside the rows of grad");
  return out;
}

Tensor segment_sum(const Tensor src, const Tensor indptr, bool mean) {
  check_values(src, 3, "src");
  CudaWork work(src);
  const Groups groups = group_segments(work, indptr, src.size(0), src.size(1));
  const Tensor out = torch::stable::new_empty(src, {src.size(0), indptr.size(1) - 1, src.size(2)});
  reduce_groups(work, mean ? Reduce::mean : Reduce::sum, groups, src, src.size(2), out, nullptr);
  return out;
}

std::tuple<Tensor, Tensor> segment_extreme(const Tensor src, const Tensor indptr, bool largest) {
  check_values(src, 3, "src");
  CudaWork work(src);
  const int64_t batches = src.size(0), num_rows = src.size(1), segments = indptr.size(1) - 1, channels = src.size(2);
  const Groups groups = group_segments(work, indptr, batches, num_rows);
  const Tensor out = torch::stable::new_empty(src, {batches, segments, channels});
  const Tensor arg = torch::stable::new_empty(src, {batches, segments, channels}, ScalarType::Int);
  reduce_groups(work, largest ? Reduce::max : Reduce::min, groups, src, channels, out, &arg);
  if (batches > 1)
    launch(work, count_within_batches, blocks_for(arg.numel(), kThreads), kThreads, 0,
        arg.mutable_data_ptr<int32_t>(), arg.numel(),
           segments * channels, num_rows, batches * num_rows);
  return {out, arg};
}

Rows segmented_rows(CudaWork& work, const Groups& groups, int64_t batch_rows) {
  return {segment_of_rows(work, groups), groups.num_rows, groups.count, std::max<int64_t>(batch_rows, 1), 0, 1,
      nullptr};
}

Tensor segment_spread(const Tensor src, const Tensor indptr, int64_t num_rows) {
  check_contiguous_cuda(src, "src");
  STD_TORCH_CHECK(src.dim() == 3, "src must have shape [batches, segments, channels]");
  CudaWork work(src);
  const Groups groups = group_segments(work, indptr, src.size(0), num_rows);
  STD_TORCH_CHECK(src.size(1) == indptr.size(1) - 1, "src must have one row per segment");
  const Tensor out = torch::stable::new_empty(src, {src.size(0), num_rows, src.size(2)});
  gather_into(work, segmented_rows(work, groups, num_rows), src.size(2) * src.element_size(), src, out);
  return out;
}

Tensor segment_spread_won(const Tensor grad, const Tensor arg, const Tensor indptr, int64_t num_rows) {
  check_values(grad, 3, "grad");
  check_arg(arg, grad);
  CudaWork work(grad);
  const Groups groups = group_segments(work, indptr, grad.size(0), num_rows);
  STD_TORCH_CHECK(grad.size(1) == indptr.size(1) - 1, "grad must have one row per segment");
  const Tensor out = torch::stable::new_empty(grad, {grad.size(0), num_rows, grad.size(2)});
  gather_won_into(work, segmented_rows(work, groups, num_rows), grad, arg, out);
  return out;
}

}  // namespace

P3M_REGISTER_CUDA(m) {
  m.impl("scatter_sum", TORCH_BOX(&scatter_sum));
  m.impl("scatter_mean", TORCH_BOX(&scatter_mean));
  m.impl("scatter_extreme", TORCH_BOX(&scatter_extreme));
  m.impl("gather_rows", TORCH_BOX(&gather_rows));
  m.impl("gather_won", TORCH_BOX(&gather_won));
  m.impl("segment_sum", TORCH_BOX(&segment_sum));
  m.impl("segment_extreme", TORCH_BOX(&segment_extreme));
  m.impl("segment_spread", TORCH_BOX(&segment_spread));
  m.impl("segment_spread_won", TORCH_BOX(&segment_spread_won));
}

}  // namespace pointcept3m
