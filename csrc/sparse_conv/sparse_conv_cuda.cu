// Sparse convolution on the GPU: checks, padding, and which kernel runs. convolve.cuh and weight_gradient.cuh hold the
// kernels, neighbours.cuh what is made of the pairs first.
//
// Everything is queued on the stream and nothing waits: the offsets' edges are on the CPU and go along as kernel
// parameters. Tensor-core kernels want rows of whole 16-byte segments; features and weights of other widths are copied
// into padded ones first (that is the stem of a network, whose rows are short).
#include "sparse_conv/arguments.cuh"
#include "sparse_conv/convolve.cuh"
#include "sparse_conv/weight_gradient.cuh"

namespace pointcept3m {
namespace {

// padded [rows, width] = values [rows, columns] and zeros.
template <class T>
__global__ void pad_rows(const T* values, int64_t size, int columns, int width, T* padded) {
  const int64_t i = global_thread();
  if (i >= size) return;
  const int column = static_cast<int>(i % width);
  padded[i] = column < columns ? values[i / width * columns + column] : T(0);
}

// turned [n, volume, width] = weight [depth, volume, n], depth padded with zeros to `width`: 32 x 32 of one offset a
// block.
template <class T>
__global__ void __launch_bounds__(256)
    turn_weight(const T* weight, int depth, int volume, int n, int width, T* turned) {
  __shared__ T tile[32][33];
  const int64_t k = blockIdx.x;
  const int across = threadIdx.x % 32, first_n = static_cast<int>(blockIdx.y) * 32,
            first_d = static_cast<int>(blockIdx.z) * 32;
  for (int down = threadIdx.x / 32; down < 32; down += 8) {
    const int64_t d = first_d + down, c = first_n + across;
    tile[down][across] = d < depth && c < n ? weight[(d * volume + k) * n + c] : T(0);
  }
  __syncthreads();
  for (int down = threadIdx.x / 32; down < 32; down += 8) {
    const int64_t c = first_n + down, d = first_d + across;
    if (c < n && d < width) turned[(c * volume + k) * width + d] = tile[across][down];
  }
}

constexpr int64_t kMostVolume = 8192;  // a tile's list of offsets stands in shared memory

// Rows of whole segments, 16-byte aligned: the tensor itself where it has them.
template <class T>
struct PaddedRows {
  const unsigned char* data;
  int stride;  // bytes
  int segments;
};

template <class T>
PaddedRows<T> pad(CudaWork& work, const T* values, int64_t rows, int64_t columns) {
  const int64_t segments = divide_up<int64_t>(columns, kPerSegment<T>), width = segments * kPerSegment<T>;
  if (width != columns || reinterpret_cast<uintptr_t>(values) % kSegment != 0) {
    T* padded = work.scratch<T>(rows * width);
    launch(work, pad_rows<T>, blocks_for(rows * width, 256), 256, 0, values, rows * width, static_cast<int>(columns),
           static_cast<int>(width), padded);
    values = padded;
  }
  return {reinterpret_cast<const unsigned char*>(values), static_cast<int>(segments) * kSegment,
          static_cast<int>(segments)};
}

template <class T>
void convolve_tensors(CudaWork& work, const Neighbours& neighbours, const Tensor& features, const Tensor& weight,
                      bool transpose, const Tensor& out) {
  const int64_t depth = features.size(1), columns = out.size(1), volume = weight.size(1);
  const T* kernel = static_cast<const T*>(weight.data_ptr());
  const T* values = static_cast<const T*>(features.data_ptr());
  if constexpr (sizeof(T) == 8) {
    const int64_t channel_stride = transpose ? 1 : volume * depth, offset_stride = transpose ? columns : depth;
    launch(work, convolve_plainly<T>, blocks_for(out.numel(), 256), 256, 0, neighbours, values, kernel, channel_stride,
           offset_stride, transpose ? volume * columns : int64_t{1}, static_cast<int>(depth), static_cast<int>(columns),
           static_cast<T*>(out.data_ptr()));
  } else {
    const PaddedRows<T> rows = pad(work, values, features.size(0), depth);
    Convolution job{neighbours, rows.data, nullptr, rows.stride, volume * rows.stride, rows.segments,
                    static_cast<int>(columns), out.data_ptr(), nullptr};
    if (transpose) {
      const int width = rows.segments * kPerSegment<T>;
      T* turned = work.scratch<T>(columns * volume * width);
      const dim3 grid(static_cast<unsigned>(volume), static_cast<unsigned>(divide_up<int64_t>(columns, 32)),
                      static_cast<unsigned>(divide_up(width, 32)));
      launch(work, turn_weight<T>, grid, 256, 0, kernel, static_cast<int>(depth), static_cast<int>(volume),
             static_cast<int>(columns), width, turned);
      job.weight = reinterpret_cast<const unsigned char*>(turned);
    } else {
      job.weight = pad(work, kernel, columns * volume, depth).data;
    }
    run_convolution<T>(work, job);
  }
}

template <class T>
void differentiate_tensors(CudaWork& work, const Tensor& features, const Tensor& grad, const int32_t* from,
                           const int32_t* to, const std::vector<int64_t>& start, const Tensor& out) {
  const int cin = static_cast<int>(features.size(1)), cout = static_cast<int>(grad.size(1));
  const T* values = static_cast<const T*>(features.data_ptr());
  const T* grads = static_cast<const T*>(grad.data_ptr());
  T* sums = static_cast<T*>(out.data_ptr());
  if constexpr (sizeof(T) == 8) {
    const RowGuard guard(work);
    const auto volume = static_cast<int64_t>(start.size()) - 1;
    for (int64_t first = 0; first < volume; first += kGroup) {
      const Edges edges = edges_of(start, first);
      const dim3 grid(static_cast<unsigned>(edges.count), static_cast<unsigned>(divide_up(cout, 16)),
                      static_cast<unsigned>(divide_up(cin, 16)));
      launch(work, multiply_pairs_plainly<T>, grid, 256, 0, values, grads, from, to, features.size(0), grad.size(0),
             edges, cout, static_cast<int>(volume), cin, sums, guard.missing);
    }
    guard.report();
  } else {
    const PaddedRows<T> x = pad(work, values, features.size(0), cin), g = pad(work, grads, grad.size(0), cout);
    const WeightGradient job{x.data,
                             g.data,
                             x.stride,
                             g.stride,
                             x.segments,
                             g.segments,
                             from,
                             to,
                             static_cast<uint32_t>(features.size(0)),
                             static_cast<uint32_t>(grad.size(0)),
                             cin,
                             cout,
                             0,
                             nullptr,
                             nullptr};
    run_weight_gradient<T>(work, job, start, sums);
  }
}

Tensor sparse_conv(const Tensor features, const Tensor weight, const Tensor pairs, const Tensor start,
                   const Tensor rank_in, const Tensor rank_out, bool reverse, bool transpose) {
  const std::vector<int64_t> edges = check_pairs(pairs, start);
  check_values(features, pairs, 2, "features");
  check_values(weight, pairs, 3, "weight");
  const Tensor& rank = reverse ? rank_in : rank_out;
  check_rank(rank, pairs);
  STD_TORCH_CHECK(features.scalar_type() == weight.scalar_type(), "features and weight must have one dtype");
  STD_TORCH_CHECK(start.size(0) <= kMostVolume, "a convolution on a GPU takes fewer than ", kMostVolume,
                  " kernel offsets");
  STD_TORCH_CHECK(weight.size(1) == start.size(0) - 1, "weight must have one slice per kernel offset");
  STD_TORCH_CHECK(features.size(1) == weight.size(transpose ? 0 : 2),
                  "features and weight must have equal input channels");
  const int64_t rows = rank.size(0), columns = weight.size(transpose ? 2 : 0);
  if (rows == 0 || columns == 0 || features.numel() == 0 || pairs.size(1) == 0) {
    STD_TORCH_CHECK(pairs.size(1) == 0 || (rows > 0 && features.size(0) > 0), "pairs name rows that do not exist");
    return torch::stable::new_zeros(features, {rows, columns});
  }
  CudaWork work(features);
  const Tensor out = torch::stable::new_empty(features, {rows, columns});
  const int32_t* in_rows = pairs.const_data_ptr<int32_t>();
  const int32_t* out_rows = in_rows + pairs.size(1);
  const Neighbours neighbours =
      find_neighbours(work, reverse ? out_rows : in_rows, reverse ? in_rows : out_rows, edges,
                      rank.const_data_ptr<int32_t>(), features.size(0), rows, features.size(1) * columns);
  with_type(features,
            [&](auto zero) { convolve_tensors<decltype(zero)>(work, neighbours, features, weight, transpose, out); });
  return out;
}

Tensor sparse_conv_grad_weight(const Tensor features, const Tensor grad, const Tensor pairs, const Tensor start,
                               const Tensor rank_in, const Tensor rank_out, bool reverse) {
  const std::vector<int64_t> edges = check_pairs(pairs, start);
  check_values(features, pairs, 2, "features");
  check_values(grad, pairs, 2, "grad");
  const Tensor& rank = reverse ? rank_in : rank_out;
  check_rank(rank, pairs);
  STD_TORCH_CHECK(features.scalar_type() == grad.scalar_type(), "features and grad must have one dtype");
  STD_TORCH_CHECK(grad.size(0) == rank.size(0), "grad must have one row per output");
  const int64_t volume = start.size(0) - 1;
  if (features.numel() == 0 || grad.numel() == 0 || pairs.size(1) == 0) {
    STD_TORCH_CHECK(pairs.size(1) == 0 || (features.size(0) > 0 && grad.size(0) > 0),
                    "pairs name rows that do not exist");
    return torch::stable::new_zeros(features, {grad.size(1), volume, features.size(1)});
  }
  CudaWork work(features);
  const Tensor out = torch::stable::new_empty(features, {grad.size(1), volume, features.size(1)});
  const int32_t* in_rows = pairs.const_data_ptr<int32_t>();
  const int32_t* out_rows = in_rows + pairs.size(1);
  with_type(features, [&](auto zero) {
    differentiate_tensors<decltype(zero)>(work, features, grad, reverse ? out_rows : in_rows,
                                          reverse ? in_rows : out_rows, edges, out);
  });
  return out;
}

}  // namespace

P3M_REGISTER_CUDA(m) {
  m.impl("sparse_conv", TORCH_BOX(&sparse_conv));
  m.impl("sparse_conv_grad_weight", TORCH_BOX(&sparse_conv_grad_weight));
}

}  // namespace pointcept3m
