// Weighted sums of neighbours' rows on the CPU, and the way back, in which a stable sort by neighbour makes every row
// of the result a sum in fixed order.
#include <vector>

#include "common/check.h"
#include "common/vector.h"
#include "grouping/arguments.h"
#include "scatter/bins.h"

namespace pointcept3m {
namespace {

constexpr int64_t kRows = 256;  // of the result, for one thread at a time

template <class T>
struct Weighted {
  const T* rows;
  const int32_t* idx;  // [M, k]
  const T* weight;     // [M, k]
  int64_t k, channels;
  T* out;
};

// What goes into a sum: a row of the source and its weight.
template <class T>
struct Term {
  const T* row;
  T weight;
};

// out[c] = sum of weight * row[c], terms in their order; a vector of channels at a time stays in registers.
template <class T>
P3M_INLINE void sum_terms(const Term<T>* terms, int64_t count, int64_t channels, T* P3M_RESTRICT out) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) {
    Vector<T> sum = {};
    for (int64_t t = 0; t < count; ++t) sum += load(terms[t].row + c) * terms[t].weight;
    store<T>(out + c, sum);
  }
  for (; c < channels; ++c) {
    T sum = 0;
    for (int64_t t = 0; t < count; ++t) sum += terms[t].row[c] * terms[t].weight;
    out[c] = sum;
  }
}

// An absent neighbour adds nothing, unless its weight is NaN: then the query was not finite, and its result is not.
template <class T>
P3M_INLINE void average_rows(const Weighted<T>& job, int64_t begin, int64_t end, Term<T>* terms) {
  for (int64_t m = begin; m < end; ++m) {
    int64_t count = 0;
    bool undefined = false;
    for (int64_t j = 0; j < job.k; ++j) {
      const int64_t row = job.idx[m * job.k + j];
      const T weight = job.weight[m * job.k + j];
      undefined |= weight != weight;
      if (row >= 0) terms[count++] = {job.rows + row * job.channels, weight};
    }
    T* out = job.out + m * job.channels;
    if (undefined) std::fill(out, out + job.channels, std::numeric_limits<T>::quiet_NaN());
    else sum_terms(terms, count, job.channels, out);
  }
}

template <class T>
P3M_INLINE void return_rows(const Weighted<T>& job, const Bins& bins, int64_t begin, int64_t end,
                            std::vector<Term<T>>& terms) {
  for (int64_t row = begin; row < end; ++row) {
    terms.clear();
    for (int64_t place = bins.start[row]; place < bins.start[row + 1]; ++place) {
      const int64_t entry = bins.perm ? bins.perm[place] : place;
      terms.push_back({job.rows + entry / job.k * job.channels, job.weight[entry]});
    }
    sum_terms(terms.data(), static_cast<int64_t>(terms.size()), job.channels, job.out + row * job.channels);
  }
}

#define P3M_GROUPING_KERNELS(T)                                                                                       \
  P3M_KERNEL void average_some(const Weighted<T>& job, int64_t begin, int64_t end, Term<T>* terms) {                  \
    average_rows(job, begin, end, terms);                                                                             \
  }                                                                                                                   \
  P3M_KERNEL void return_some(const Weighted<T>& job, const Bins& bins, int64_t begin, int64_t end,                   \
                              std::vector<Term<T>>& terms) {                                                          \
    return_rows(job, bins, begin, end, terms);                                                                        \
  }
P3M_GROUPING_KERNELS(float)
P3M_GROUPING_KERNELS(double)
#undef P3M_GROUPING_KERNELS

void check_arguments(const Tensor& rows, const Tensor& idx, const Tensor& weight, int64_t num_rows) {
  check_contiguous_cpu(rows, "rows");
  check_contiguous_cpu(idx, "idx");
  check_contiguous_cpu(weight, "weight");
  check_weighted_rows(rows, idx, weight);
  const int32_t* values = idx.const_data_ptr<int32_t>();
  int64_t outside = 0;
  for (int64_t i = 0; i < idx.numel(); ++i) outside += values[i] < -1 || values[i] >= num_rows;
  STD_TORCH_CHECK(outside == 0, "idx must lie in [-1, ", num_rows, ")");
}

template <class T>
Weighted<T> job_of(const Tensor& rows, const Tensor& idx, const Tensor& weight, const Tensor& out) {
  return {rows.const_data_ptr<T>(), idx.const_data_ptr<int32_t>(), weight.const_data_ptr<T>(),
          idx.size(1),              rows.size(1),                  out.mutable_data_ptr<T>()};
}

template <class T>
void average_all(const Weighted<T>& job, int64_t num_queries) {
  share_units((num_queries + kRows - 1) / kRows, [&](int64_t unit) {
    std::vector<Term<T>> terms(job.k);
    average_some(job, unit * kRows, std::min(num_queries, (unit + 1) * kRows), terms.data());
  });
}

template <class T>
void return_all(const Weighted<T>& job, int64_t num_queries, int64_t num_rows) {
  const int64_t count = num_queries * job.k;
  const std::unique_ptr<int64_t[]> bin(new int64_t[count]);
  for (int64_t i = 0; i < count; ++i) bin[i] = job.idx[i] < 0 ? num_rows : job.idx[i];
  const Bins bins = build_bins(bin.get(), count, num_rows + 1);
  share_units((num_rows + kRows - 1) / kRows, [&](int64_t unit) {
    std::vector<Term<T>> terms;
    return_some(job, bins, unit * kRows, std::min(num_rows, (unit + 1) * kRows), terms);
  });
}

Tensor interpolate_rows(const Tensor& feat, const Tensor& idx, const Tensor& weight) {
  check_arguments(feat, idx, weight, feat.size(0));
  const Tensor out = torch::stable::new_empty(feat, {idx.size(0), feat.size(1)});
  if (feat.scalar_type() == ScalarType::Float) average_all(job_of<float>(feat, idx, weight, out), idx.size(0));
  else average_all(job_of<double>(feat, idx, weight, out), idx.size(0));
  return out;
}

Tensor interpolate_rows_backward(const Tensor& grad, const Tensor& idx, const Tensor& weight, int64_t num_rows) {
  STD_TORCH_CHECK(num_rows >= 0 && num_rows < std::numeric_limits<int32_t>::max() - 1,
                  "num_rows must lie in [0, 2^31 - 2)");
  check_arguments(grad, idx, weight, num_rows);
  STD_TORCH_CHECK(grad.size(0) == idx.size(0), "grad must have one row for each of idx");
  const Tensor out = torch::stable::new_empty(grad, {num_rows, grad.size(1)});
  if (grad.scalar_type() == ScalarType::Float) return_all(job_of<float>(grad, idx, weight, out), idx.size(0), num_rows);
  else return_all(job_of<double>(grad, idx, weight, out), idx.size(0), num_rows);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("interpolate_rows", TORCH_BOX(&interpolate_rows));
  m.impl("interpolate_rows_backward", TORCH_BOX(&interpolate_rows_backward));
}

}  // namespace pointcept3m
