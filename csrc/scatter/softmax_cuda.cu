// Softmax, its logarithm, logsumexp and their gradients over the rows of each bin, on the GPU. As many threads as a row
// has channels, at most a warp, take one bin and read its rows two or three times; after the first they come from the
// caches where the bin is short. A very long bin is one group's work: correct, not fast.
#include "scatter/groups.cuh"

namespace pointcept3m {
namespace {

enum class Mode { softmax, log_softmax, logsumexp, softmax_backward, log_softmax_backward };

template <class S>
struct Normalization {
  Mode mode;
  Groups groups;
  int64_t channels;
  int lanes;
  const S* src;   // the scores; in backward what forward gave
  const S* grad;  // backward only
  S* out;         // rows; bins for logsumexp

  __device__ __forceinline__ int64_t at(int64_t place, int64_t c) const {
    return (groups.perm ? groups.perm[place] : place) * channels + c;
  }
};

template <class S>
__device__ void forward(const Normalization<S>& job, int64_t bin, int64_t c) {
  using W = Wide<S>;
  const int64_t first = job.groups.first[bin], last = job.groups.last[bin];
  if (first == last) {
    if (job.mode == Mode::logsumexp) job.out[bin * job.channels + c] = static_cast<S>(W(0));
    return;
  }
  W largest = static_cast<W>(job.src[job.at(first, c)]), total = 0;
  for (int64_t place = first + 1; place < last; ++place) {
    const W value = static_cast<W>(job.src[job.at(place, c)]);
    largest = value > largest ? value : largest;
  }
  for (int64_t place = first; place < last; ++place) total += exp(static_cast<W>(job.src[job.at(place, c)]) - largest);
  const W shift = log(total) + largest;
  if (job.mode == Mode::logsumexp) {
    // Nothing but -inf, or +inf: less itself that is NaN.
    job.out[bin * job.channels + c] = static_cast<S>(largest - largest == 0 ? shift : largest);
    return;
  }
  for (int64_t place = first; place < last; ++place) {
    const W value = static_cast<W>(job.src[job.at(place, c)]);
    job.out[job.at(place, c)] = static_cast<S>(job.mode == Mode::softmax ?
        exp(value - largest) / total : value - shift);
  }
}

template <class S>
__device__ void backward(const Normalization<S>& job, int64_t bin, int64_t c) {
  using W = Wide<S>;
  const int64_t first = job.groups.first[bin], last = job.groups.last[bin];
  const bool log = job.mode == Mode::log_softmax_backward;
  W total = 0;
  for (int64_t place = first; place < last; ++place) {
    const W grad = static_cast<W>(job.grad[job.at(place, c)]);
    total += log ? grad : grad * static_cast<W>(job.src[job.at(place, c)]);
  }
  for (int64_t place = first; place < last; ++place) {
    const W grad = static_cast<W>(job.grad[job.at(place, c)]), given = static_cast<W>(job.src[job.at(place, c)]);
    job.out[job.at(place, c)] = static_cast<S>(log ? grad - exp(given) * total : given * (grad - total));
  }
}

template <class S>
__global__ void normalize(Normalization<S> job) {
  const int64_t bin = global_thread() / job.lanes;
  if (bin >= job.groups.count) return;
  for (int64_t c = threadIdx.x % job.lanes; c < job.channels; c += job.lanes) {
    if (job.grad) backward(job, bin, c);
    else forward(job, bin, c);
  }
}

void run(Mode mode, const Tensor& src, const Tensor* grad, const Tensor& index, int64_t dim_size, const Tensor& out) {
  check_index(index, src, "index");
  CudaWork work(src);
  const Groups groups = group_rows(work, index, src.size(0), dim_size);
  const int64_t channels = src.size(1);
  if (channels == 0) return;
  with_value_type(src, [&](auto value) {
    using S = decltype(value);
    const int lanes = lanes_for(channels);
    const Normalization<S> job{mode, groups, channels, lanes, static_cast<const S*>(src.data_ptr()),
                               grad ? static_cast<const S*>(grad->data_ptr()) : nullptr,
                                   static_cast<S*>(out.data_ptr())};
    launch(work, normalize<S>, blocks_for(groups.count * lanes, kThreads), kThreads, 0, job);
  });
}

Tensor scatter_softmax(const Tensor src, const Tensor index, int64_t dim_size, bool log) {
  check_values(src, 2, "src");
  const Tensor out = torch::stable::new_empty(src, {src.size(0), src.size(1)});
  run(log ? Mode::log_softmax : Mode::softmax, src, nullptr, index, dim_size, out);
  return out;
}

Tensor scatter_softmax_backward(const Tensor grad, const Tensor out, const Tensor index, int64_t dim_size, bool log) {
  check_values(out, 2, "out");
  check_values(grad, 2, "grad");
  STD_TORCH_CHECK(grad.size(0) == out.size(0) && grad.size(1) == out.size(1) && grad.scalar_type() == out.scalar_type(),
                  "grad must have out's shape and type");
  const Tensor result = torch::stable::new_empty(grad, {out.size(0), out.size(1)});
  run(log ? Mode::log_softmax_backward : Mode::softmax_backward, out, &grad, index, dim_size, result);
  return result;
}

Tensor scatter_logsumexp(const Tensor src, const Tensor index, int64_t dim_size) {
  check_values(src, 2, "src");
  STD_TORCH_CHECK(dim_size >= 0, "dim_size must not be negative");
  const Tensor out = torch::stable::new_empty(src, {dim_size, src.size(1)});
  run(Mode::logsumexp, src, nullptr, index, dim_size, out);
  return out;
}

}  // namespace

P3M_REGISTER_CUDA(m) {
  m.impl("scatter_softmax", TORCH_BOX(&scatter_softmax));
  m.impl("scatter_softmax_backward", TORCH_BOX(&scatter_softmax_backward));
  m.impl("scatter_logsumexp", TORCH_BOX(&scatter_logsumexp));
}

}  // namespace pointcept3m
