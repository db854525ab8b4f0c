// Scatter on the CPU: rows are grouped by a stable sort of the index, then each bin is reduced (reduce.h); gradients
// go back in the order of the rows (gather.h). Segments are the same for rows that stand in order already, with
// pointers to where each segment begins: without the sort.
#include <tuple>

#include "common/check.h"
#include "scatter/arguments.h"
#include "scatter/gather.h"
#include "scatter/reduce.h"

namespace pointcept3m {
namespace {

void reduce_into(Reduce reduce, const Tensor& src, const Bins& bins, const Tensor& out, const Tensor* arg) {
  with_value_type(src, [&](auto value) {
    using S = decltype(value);
    reduce_all(Reduction<S>{reduce, values<S>(src), bins.start.get(), bins.start.get() + 1, bins.perm.get(),
        out.size(0), src.size(0), src.size(0),
                            src.size(1), values<S>(out), arg ? arg->mutable_data_ptr<int32_t>() : nullptr});
  });
}

Tensor scatter_sum(const Tensor& src, const Tensor& index, int64_t dim_size) {
  const Bins bins = bins_of(src, index, dim_size);
  const Tensor out = torch::stable::new_empty(src, {dim_size, src.size(1)});
  reduce_into(Reduce::sum, src, bins, out, nullptr);
  return out;
}

std::tuple<Tensor, Tensor> scatter_mean(const Tensor& src, const Tensor& index, int64_t dim_size) {
  const Bins bins = bins_of(src, index, dim_size);
  const Tensor out = torch::stable::new_empty(src, {dim_size, src.size(1)});
  const Tensor count = torch::stable::new_empty(index, {dim_size});
  int64_t* counts = count.mutable_data_ptr<int64_t>();
  for (int64_t bin = 0; bin < dim_size; ++bin) counts[bin] = bins.start[bin + 1] - bins.start[bin];
  reduce_into(Reduce::mean, src, bins, out, nullptr);
  return {out, count};
}

std::tuple<Tensor, Tensor> scatter_extreme(const Tensor& src, const Tensor& index, int64_t dim_size, bool largest) {
  const Bins bins = bins_of(src, index, dim_size);
  const Tensor out = torch::stable::new_empty(src, {dim_size, src.size(1)});
  const Tensor arg = torch::stable::new_empty(src, {dim_size, src.size(1)}, ScalarType::Int);
  reduce_into(largest ? Reduce::max : Reduce::min, src, bins, out, &arg);
  return {out, arg};
}

Tensor gather_rows(const Tensor& src, const Tensor& index) {
  check_contiguous_cpu(src, "src");
  STD_TORCH_CHECK(src.dim() == 2, "src must have shape [rows, channels]");
  check_index(index, index.numel(), "index");
  const Tensor out = torch::stable::new_empty(src, {index.size(0), src.size(1)});
  const IndexedRows rows{index.const_data_ptr<int64_t>(), src.size(0)};
  const bool inside = copy_rows(static_cast<const char*>(src.data_ptr()), rows, index.size(0),
      src.size(1) * src.element_size(),
                                static_cast<char*>(out.data_ptr()));
  STD_TORCH_CHECK(inside, "index has values outside the rows of src");
  return out;
}

Tensor gather_won(const Tensor& grad, const Tensor& arg, const Tensor& index) {
  check_values(grad, 2, "grad");
  check_index(index, index.numel(), "index");
  check_contiguous_cpu(arg, "arg");
  STD_TORCH_CHECK(arg.scalar_type() == ScalarType::Int && arg.dim() == 2 && arg.size(0) == grad.size(0) &&
      arg.size(1) == grad.size(1),
                  "arg must be int32 of grad's shape");
  const Tensor out = torch::stable::new_empty(grad, {index.size(0), grad.size(1)});
  const IndexedRows rows{index.const_data_ptr<int64_t>(), grad.size(0)};
  const bool inside = return_to_winners(grad, arg, rows, index.size(0), index.size(0), out);
  STD_TORCH_CHECK(inside, "index has values outside the rows of grad");
  return out;
}

// The segments of every batch one after the other, as places in all the rows.
struct Segments {
  int64_t count;
  std::unique_ptr<int32_t[]> first, last;
};

Segments segments_of(const Tensor& indptr, int64_t batches, int64_t num_rows) {
  check_contiguous_cpu(indptr, "indptr");
  STD_TORCH_CHECK(indptr.dim() == 2 && indptr.scalar_type() == ScalarType::Long && indptr.size(0) == batches &&
      indptr.size(1) > 0,
                  "indptr must be int64 of shape [batches, segments + 1]");
  STD_TORCH_CHECK(num_rows >= 0 && (num_rows == 0 || batches < kMostRows / num_rows),
      "segments take fewer than 2^31 rows");
  const int64_t per_batch = indptr.size(1) - 1;
  Segments segments{batches * per_batch, nullptr, nullptr};
  STD_TORCH_CHECK(segments.count < kMostRows, "there must be fewer than 2^31 segments");
  segments.first.reset(new int32_t[segments.count]);
  segments.last.reset(new int32_t[segments.count]);
  bool valid = true;
  for (int64_t batch = 0; batch < batches; ++batch) {
    const int64_t* pointer = indptr.const_data_ptr<int64_t>() + batch * (per_batch + 1);
    int32_t* first = segments.first.get() + batch * per_batch;
    int32_t* last = segments.last.get() + batch * per_batch;
    valid &= pointer[0] >= 0 && pointer[per_batch] <= num_rows;
    for (int64_t i = 0; i < per_batch; ++i) {
      valid &= pointer[i] <= pointer[i + 1];
      first[i] = static_cast<int32_t>(pointer[i] + batch * num_rows);
      last[i] = static_cast<int32_t>(pointer[i + 1] + batch * num_rows);
    }
  }
  STD_TORCH_CHECK(valid, "indptr must not descend and must stay within [0, rows]");
  return segments;
}

void reduce_into(Reduce reduce, const Tensor& src, const Segments& segments, const Tensor& out, const Tensor* arg) {
  const int64_t num_rows = src.size(0) * src.size(1);
  with_value_type(src, [&](auto value) {
    using S = decltype(value);
    reduce_all(Reduction<S>{reduce, values<S>(src), segments.first.get(), segments.last.get(), nullptr,
        segments.count, num_rows,
                            num_rows, src.size(2), values<S>(out), arg ? arg->mutable_data_ptr<int32_t>() : nullptr});
  });
}

Tensor segment_sum(const Tensor& src, const Tensor& indptr, bool mean) {
  check_values(src, 3, "src");
  const Segments segments = segments_of(indptr, src.size(0), src.size(1));
  const Tensor out = torch::stable::new_empty(src, {src.size(0), indptr.size(1) - 1, src.size(2)});
  reduce_into(mean ? Reduce::mean : Reduce::sum, src, segments, out, nullptr);
  return out;
}

std::tuple<Tensor, Tensor> segment_extreme(const Tensor& src, const Tensor& indptr, bool largest) {
  check_values(src, 3, "src");
  const Segments segments = segments_of(indptr, src.size(0), src.size(1));
  const int64_t batches = src.size(0), num_rows = src.size(1), per_batch = (indptr.size(1) - 1) * src.size(2);
  const Tensor out = torch::stable::new_empty(src, {batches, indptr.size(1) - 1, src.size(2)});
  const Tensor arg = torch::stable::new_empty(src, {batches, indptr.size(1) - 1, src.size(2)}, ScalarType::Int);
  reduce_into(largest ? Reduce::max : Reduce::min, src, segments, out, &arg);
  // Rows were counted over all batches, and an empty segment says how many there are in all.
  int32_t* rows = arg.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; batches > 1 && i < batches * per_batch; ++i)
    rows[i] = static_cast<int32_t>(rows[i] == batches * num_rows ? num_rows : rows[i] - i / per_batch * num_rows);
  return {out, arg};
}

// One value row for every segment, copied to each of its rows.
Tensor segment_spread(const Tensor& src, const Tensor& indptr, int64_t num_rows) {
  check_contiguous_cpu(src, "src");
  STD_TORCH_CHECK(src.dim() == 3, "src must have shape [batches, segments, channels]");
  const Segments segments = segments_of(indptr, src.size(0), num_rows);
  STD_TORCH_CHECK(src.size(1) == indptr.size(1) - 1, "src must have one row per segment");
  const Tensor out = torch::stable::new_empty(src, {src.size(0), num_rows, src.size(2)});
  const SegmentedRows rows{segments.first.get(), segments.last.get(), segments.count};
  copy_rows(static_cast<const char*>(src.data_ptr()), rows, src.size(0) * num_rows, src.size(2) * src.element_size(),
            static_cast<char*>(out.data_ptr()));
  return out;
}

Tensor segment_spread_won(const Tensor& grad, const Tensor& arg, const Tensor& indptr, int64_t num_rows) {
  check_values(grad, 3, "grad");
  check_contiguous_cpu(arg, "arg");
  const Segments segments = segments_of(indptr, grad.size(0), num_rows);
  STD_TORCH_CHECK(grad.size(1) == indptr.size(1) - 1, "grad must have one row per segment");
  STD_TORCH_CHECK(arg.scalar_type() == ScalarType::Int && arg.dim() == 3 && arg.size(0) == grad.size(0) &&
      arg.size(1) == grad.size(1) &&
                      arg.size(2) == grad.size(2), "arg must be int32 of grad's shape");
  const Tensor out = torch::stable::new_empty(grad, {grad.size(0), num_rows, grad.size(2)});
  const SegmentedRows rows{segments.first.get(), segments.last.get(), segments.count};
  return_to_winners(grad, arg, rows, num_rows, grad.size(0) * num_rows, out);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("scatter_sum", TORCH_BOX(&scatter_sum));
  m.impl("scatter_mean", TORCH_BOX(&scatter_mean));
  m.impl("scatter_extreme", TORCH_BOX(&scatter_extreme));
  m.impl("gather_won", TORCH_BOX(&gather_won));
  m.impl("segment_sum", TORCH_BOX(&segment_sum));
  m.impl("segment_extreme", TORCH_BOX(&segment_extreme));
  m.impl("segment_spread", TORCH_BOX(&segment_spread));
  m.impl("segment_spread_won", TORCH_BOX(&segment_spread_won));
  m.impl("gather_rows", TORCH_BOX(&gather_rows));
}

}  // namespace pointcept3m
