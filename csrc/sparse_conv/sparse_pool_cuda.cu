// Pooling over a rulebook on the GPU.
//
// A thread owns 16 bytes of channels of one output (one channel where rows are no multiple of that) and reads its rows
// offset by offset through the table of neighbours.cuh: no atomics, sums and first maxima in the order of offsets,
// every row read in whole sectors. The gradient of a maximum is the same walk from the other side.
#include <tuple>

#include "sparse_conv/arguments.cuh"
#include "sparse_conv/neighbours.cuh"

namespace pointcept3m {
namespace {

template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

// The channels of one thread.
template <class T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Channels {
  T values[WIDTH];
};

enum class Pool { kSum, kMean };

template <class T, int WIDTH>
__global__ void __launch_bounds__(256) add_rows(const __grid_constant__ Neighbours near, const T* features,
                                                int64_t channels, Pool pool, T* out, int32_t* counts) {
  const int64_t thread = global_thread(), groups = max(channels / WIDTH, int64_t{1});  // without channels it counts
  if (thread >= near.rows * groups) return;
  const int64_t place = thread / groups, channel = thread % groups * WIDTH, row = near.rows_at[place] - 1;
  Wide<T> sums[WIDTH] = {};
  int32_t count = 0;
  near.visit(place, [&](int, int64_t source) {
    ++count;
    if (channels == 0) return;
    const auto met = *reinterpret_cast<const Channels<T, WIDTH>*>(features + source * channels + channel);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sums[i] += static_cast<Wide<T>>(met.values[i]);
  });
  if (row < 0) return;  // ranks that are no permutation
  if (counts && channel == 0) counts[row] = count;
  if (channels == 0) return;
  Channels<T, WIDTH> result;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i)
    result.values[i] = T(pool == Pool::kMean ? sums[i] / static_cast<Wide<T>>(count ? count : 1) : sums[i]);
  *reinterpret_cast<Channels<T, WIDTH>*>(out + row * channels + channel) = result;
}

// `none` is what arg holds where no row is met.
template <class T, int WIDTH>
__global__ void __launch_bounds__(256) find_largest(const __grid_constant__ Neighbours near, const T* features,
                                                    int64_t channels, int32_t none, T* out, int32_t* arg) {
  const int64_t thread = global_thread(), groups = channels / WIDTH;
  if (thread >= near.rows * groups) return;
  const int64_t place = thread / groups, channel = thread % groups * WIDTH, row = near.rows_at[place] - 1;
  Channels<T, WIDTH> largest;
  int32_t rows[WIDTH];
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) largest.values[i] = T(0), rows[i] = none;
  near.visit(place, [&](int, int32_t source) {
    const auto met = *reinterpret_cast<const Channels<T, WIDTH>*>(features + source * channels + channel);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      const auto value = static_cast<Wide<T>>(met.values[i]), old = static_cast<Wide<T>>(largest.values[i]);
      if (rows[i] == none || value > old || (value != value && old == old))
        largest.values[i] = met.values[i], rows[i] = source;
    }
  });
  if (row < 0) return;
  *reinterpret_cast<Channels<T, WIDTH>*>(out + row * channels + channel) = largest;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) arg[row * channels + channel + i] = rows[i];
}

// `near` leads from the rows that were pooled to the outputs that they met.
template <class T, int WIDTH>
__global__ void __launch_bounds__(256)
    add_won(const __grid_constant__ Neighbours near, const T* grad, const int32_t* arg, int64_t channels, T* out) {
  const int64_t thread = global_thread(), groups = channels / WIDTH;
  if (thread >= near.rows * groups) return;
  const int64_t place = thread / groups, channel = thread % groups * WIDTH, row = near.rows_at[place] - 1;
  Wide<T> sums[WIDTH] = {};
  near.visit(place, [&](int, int64_t target) {
    const auto met = *reinterpret_cast<const Channels<T, WIDTH>*>(grad + target * channels + channel);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (arg[target * channels + channel + i] == row) sums[i] += static_cast<Wide<T>>(met.values[i]);
  });
  if (row < 0) return;
  Channels<T, WIDTH> result;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) result.values[i] = T(sums[i]);
  *reinterpret_cast<Channels<T, WIDTH>*>(out + row * channels + channel) = result;
}

// Calls run(width) with the channels of a thread as a constant: 16 bytes of them, or 1.
template <class T, class Run>
void with_width(const Tensor& values, const Run& run) {
  constexpr int most = 16 / sizeof(T);
  if (values.size(1) % most == 0 && reinterpret_cast<uintptr_t>(values.data_ptr()) % 16 == 0)
    run(std::integral_constant<int, most>{});
  else run(std::integral_constant<int, 1>{});
}

// The arguments that every op here takes, checked.
struct Book {
  std::vector<int64_t> edges;
  const int32_t* from;
  const int32_t* to;
  const int32_t* rank;  // of the rows that are written
  int64_t rows;
  bool empty;  // nothing is met, or there are no channels

  Book(const Tensor& values, const Tensor& pairs, const Tensor& start, const Tensor& rank_in, const Tensor& rank_out,
       bool reverse)
      : edges(check_pairs(pairs, start)) {
    check_values(values, pairs, 2, "features");
    const Tensor& written = reverse ? rank_in : rank_out;
    check_rank(written, pairs);
    const int32_t* rows_in = pairs.const_data_ptr<int32_t>();
    const int32_t* rows_out = rows_in + pairs.size(1);
    from = reverse ? rows_out : rows_in, to = reverse ? rows_in : rows_out;
    rank = written.const_data_ptr<int32_t>();
    rows = written.size(0);
    STD_TORCH_CHECK(pairs.size(1) == 0 || (rows > 0 && values.size(0) > 0), "pairs name rows that do not exist");
    empty = rows == 0 || pairs.size(1) == 0 || values.size(1) == 0;
  }

  Neighbours neighbours(CudaWork& work, const Tensor& values) const {
    return find_neighbours(work, from, to, edges, rank, values.size(0), rows, 0);
  }
};

std::tuple<Tensor, Tensor> add(const Tensor& features, const Book& book, const Tensor& pairs, Pool pool) {
  const Tensor out = torch::stable::new_zeros(features, {book.rows, features.size(1)});
  const Tensor counts = torch::stable::new_zeros(pairs, {pool == Pool::kMean ? book.rows : 0});
  if (book.rows == 0 || pairs.size(1) == 0) return {out, counts};
  CudaWork work(features);
  const Neighbours near = book.neighbours(work, features);
  int32_t* count = pool == Pool::kMean ? counts.mutable_data_ptr<int32_t>() : nullptr;
  with_type(features, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(features, [&](auto width) {
      launch(work, add_rows<T, width>, blocks_for(book.rows * std::max<int64_t>(features.size(1) / width, 1), 256), 256,
             0, near, static_cast<const T*>(features.data_ptr()), features.size(1), pool,
             static_cast<T*>(out.data_ptr()), count);
    });
  });
  return {out, counts};
}

Tensor sparse_pool_sum(const Tensor features, const Tensor pairs, const Tensor start, const Tensor rank_in,
                       const Tensor rank_out, bool reverse) {
  return std::get<0>(add(features, Book(features, pairs, start, rank_in, rank_out, reverse), pairs, Pool::kSum));
}

// (means, int32 number of rows that each output meets)
std::tuple<Tensor, Tensor> sparse_pool_mean(const Tensor features, const Tensor pairs, const Tensor start,
                                            const Tensor rank_in, const Tensor rank_out, bool reverse) {
  return add(features, Book(features, pairs, start, rank_in, rank_out, reverse), pairs, Pool::kMean);
}

// (maxima, int32 row that each is of, or the number of rows)
std::tuple<Tensor, Tensor> sparse_pool_max(const Tensor features, const Tensor pairs, const Tensor start,
                                           const Tensor rank_in, const Tensor rank_out, bool reverse) {
  const Book book(features, pairs, start, rank_in, rank_out, reverse);
  const Tensor out = torch::stable::new_zeros(features, {book.rows, features.size(1)});
  const Tensor arg = torch::stable::new_empty(pairs, {book.rows, features.size(1)});
  const auto none = static_cast<int32_t>(features.size(0));
  if (book.empty) {
    torch::stable::fill_(arg, none);
    return {out, arg};
  }
  CudaWork work(features);
  const Neighbours near = book.neighbours(work, features);
  with_type(features, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(features, [&](auto width) {
      launch(work, find_largest<T, width>, blocks_for(book.rows * (features.size(1) / width), 256), 256, 0, near,
             static_cast<const T*>(features.data_ptr()), features.size(1), none, static_cast<T*>(out.data_ptr()),
             arg.mutable_data_ptr<int32_t>());
    });
  });
  return {out, arg};
}

// `reverse` is that of the forward: what it read is written here.
Tensor sparse_pool_max_backward(const Tensor grad, const Tensor arg, const Tensor pairs, const Tensor start,
                                const Tensor rank_in, const Tensor rank_out, bool reverse) {
  const Book book(grad, pairs, start, rank_in, rank_out, !reverse);
  check_tensor(arg, pairs, 2, "arg");
  STD_TORCH_CHECK(arg.scalar_type() == ScalarType::Int && arg.size(0) == grad.size(0) && arg.size(1) == grad.size(1),
                  "arg must be int32 and as large as grad");
  const Tensor out = torch::stable::new_zeros(grad, {book.rows, grad.size(1)});
  if (book.empty) return out;
  CudaWork work(grad);
  const Neighbours near = book.neighbours(work, grad);
  with_type(grad, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(grad, [&](auto width) {
      launch(work, add_won<T, width>, blocks_for(book.rows * (grad.size(1) / width), 256), 256, 0, near,
             static_cast<const T*>(grad.data_ptr()), arg.const_data_ptr<int32_t>(), grad.size(1),
             static_cast<T*>(out.data_ptr()));
    });
  });
  return out;
}

}  // namespace

P3M_REGISTER_CUDA(m) {
  m.impl("sparse_pool_sum", TORCH_BOX(&sparse_pool_sum));
  m.impl("sparse_pool_mean", TORCH_BOX(&sparse_pool_mean));
  m.impl("sparse_pool_max", TORCH_BOX(&sparse_pool_max));
  m.impl("sparse_pool_max_backward", TORCH_BOX(&sparse_pool_max_backward));
}

}  // namespace pointcept3m
