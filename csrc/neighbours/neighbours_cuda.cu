// knn_query and ball_query on the GPU: one warp for each query walks through boxes.cuh.
//
// A step costs one coalesced read of 32 boxes or 32 points and a handful of warp functions; queries that are the points
// themselves are taken in the order of the leaves, so that warps of a block read the same lines. Balls are walked
// twice, to count and to fill; then every member finds its own rank among the members, which needs no sort and says
// whether it is in the sample. The host waits for the offsets, and for the number of points in all balls.
#include <optional>
#include <tuple>

#include "neighbours/walk.cuh"

namespace pointcept3m {
namespace {

// Queries: `order` says which row comes when, or is null for the order of rows.
template <class T>
struct Queries {
  const T* coord;
  const int32_t* order;
  const int32_t* first_row;  // of each item, and the end
  int64_t begin, end;        // which of them are asked now
};

template <class T>
struct Query {
  int64_t row;
  T point[3];
  int32_t from, to;  // leaves of its item
  bool finite;
};

// The query of this warp; false where there is none.
template <class T>
__device__ bool find_query(const Queries<T>& queries, const Items& items, Query<T>* query) {
  const int64_t place = queries.begin + global_thread() / kWarp;
  if (place >= queries.end) return false;
  query->row = queries.order ? queries.order[place] : place;
  const int item = Items::find(queries.first_row, items.count, static_cast<int32_t>(query->row));
  for (int d = 0; d < 3; ++d) query->point[d] = queries.coord[3 * query->row + d];
  query->from = items.first_leaf[item];
  query->to = items.first_leaf[item + 1];
  query->finite = is_finite(query->point);
  return true;
}

template <class T>
__device__ T* shared_bounds(int num_levels) {
  P3M_DYNAMIC_SHARED(T, bounds);
  return bounds + threadIdx.x / kWarp * num_levels * kWarp;
}

template <class T, class Keep>
__global__ void __launch_bounds__(kThreads)
    find_nearest(Boxes<T> boxes, Queries<T> queries, int k, T* dist, int32_t* idx) {
  Query<T> query;
  if (!find_query(queries, boxes.items, &query)) return;
  Keep keep(k, dist + query.row * k, idx + query.row * k);
  if (query.finite) walk(boxes, query.from, query.to, query.point, keep, shared_bounds<T>(boxes.num_levels));
  keep.write(dist + query.row * k, idx + query.row * k);
}

// count[i] points in the ball of query i; or their distances and rows from start[i] - start[begin] on.
template <class T>
__global__ void __launch_bounds__(kThreads)
    find_within(Boxes<T> boxes, Queries<T> queries, T low, T high, int32_t* count, const int64_t* start, T* square,
                int32_t* id) {
  Query<T> query;
  if (!find_query(queries, boxes.items, &query)) return;
  const int64_t at = square ? start[query.row] - start[queries.begin] : 0;
  Within<T> keep(low, high, square ? square + at : nullptr, square ? id + at : nullptr);
  if (query.finite) walk(boxes, query.from, query.to, query.point, keep, shared_bounds<T>(boxes.num_levels));
  if (!square && threadIdx.x % kWarp == 0) count[query.row] = keep.count;
}

__global__ void widen_counts(const int32_t* count, int64_t num_rows, int64_t* start) {
  const int64_t i = global_thread();
  if (i <= num_rows) start[i] = i < num_rows ? count[i] : 0;
}

// A warp for each query: every member of its ball counts the members before it; those that belong to the sample are
// written. A ball of more than `width` gives the ranks j * count / width; with `rank` the first by it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    choose(int64_t begin, int64_t end, const int64_t* start, const T* square, const int32_t* id, const int64_t* rank,
           int64_t width, T* dist, int32_t* idx) {
  const int64_t row = begin + global_thread() / kWarp;
  if (row >= end) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t at = start[row] - start[begin], count = start[row + 1] - start[row];
  for (int64_t j = count + lane; j < width; j += kWarp) {
    dist[row * width + j] = kFar<T>;
    idx[row * width + j] = -1;
  }
  for (int64_t member = lane; member < count; member += kWarp) {
    const T mine = square[at + member];
    const int32_t my_id = id[at + member];
    int64_t before = 0;
    for (int64_t other = 0; other < count; ++other) {
      const int32_t other_id = id[at + other];
      before += rank ? rank[other_id] < rank[my_id] || (rank[other_id] == rank[my_id] && other_id < my_id)
                     : comes_before(square[at + other], other_id, mine, my_id);
    }
    int64_t place = before;
    if (!rank && count > width) {
      place = (before * width + count - 1) / count;
      if (place * count / width != before) continue;
    }
    if (place >= width) continue;
    dist[row * width + place] = sqrt(mine);
    idx[row * width + place] = my_id;
  }
}

__global__ void check_rank(const int64_t* rank, int64_t count, int32_t* outside) {
  const int64_t i = global_thread();
  if (i < count && (rank[i] < 0 || rank[i] >= count)) *outside = 1;
}

void check_pair(const Tensor& coord, const Tensor& offset, const Tensor& like, const char* name,
                const char* offset_name) {
  check_contiguous_cuda(coord, name);
  check_contiguous_cuda(offset, offset_name);
  check_coord(coord, name);
  check_offset_type(offset, offset_name);
  STD_TORCH_CHECK(coord.scalar_type() == like.scalar_type() && coord.get_device_index() == like.get_device_index() &&
                      offset.get_device_index() == like.get_device_index(),
                  name, " and ", offset_name, " must have the dtype and the device of coord");
}

// Boxes of the points, and the queries; without new_coord the points are the queries.
template <class T>
struct Batch {
  Boxes<T> boxes;
  Queries<T> queries;

  Batch(CudaWork& work, const Tensor& coord, const Tensor& offset, const std::optional<Tensor>& new_coord,
        const std::optional<Tensor>& new_offset) {
    STD_TORCH_CHECK(new_coord.has_value() == new_offset.has_value(), "new_coord and new_offset go together");
    check_pair(coord, offset, coord, "coord", "offset");
    const std::vector<int32_t> first = read_ends(work, offset, coord.size(0), "offset");
    if (!new_coord) {
      boxes = build_boxes(work, coord.const_data_ptr<T>(), first);
      queries = {coord.const_data_ptr<T>(), boxes.order, boxes.items.first_point, 0, coord.size(0)};
      return;
    }
    check_pair(*new_coord, *new_offset, coord, "new_coord", "new_offset");
    STD_TORCH_CHECK(offset.size(0) == new_offset->size(0), "new_offset must have offset's length");
    const std::vector<int32_t> first_query = read_ends(work, *new_offset, new_coord->size(0), "new_offset");
    boxes = build_boxes(work, coord.const_data_ptr<T>(), first);
    queries = {new_coord->const_data_ptr<T>(), nullptr, on_device(work, first_query), 0, new_coord->size(0)};
  }

  size_t shared_bytes() const { return sizeof(T) * kThreads * boxes.num_levels; }
  dim3 blocks() const { return blocks_for((queries.end - queries.begin) * kWarp, kThreads); }
};

template <class T>
void knn_typed(int64_t nsample, CudaWork& work, const Batch<T>& batch, const Tensor& idx, const Tensor& dist) {
  launch(work, nsample <= kWarp ? find_nearest<T, NearestFew<T>> : find_nearest<T, NearestMany<T>>, batch.blocks(),
         kThreads, batch.shared_bytes(), batch.boxes, batch.queries, static_cast<int>(nsample),
         dist.mutable_data_ptr<T>(), idx.mutable_data_ptr<int32_t>());
}

using Pair = std::tuple<Tensor, Tensor>;

Pair empty_pair(const Tensor& coord, const std::optional<Tensor>& new_coord, int64_t nsample) {
  const int64_t num_queries = (new_coord ? *new_coord : coord).size(0);
  return {torch::stable::new_empty(coord, {num_queries, nsample}, ScalarType::Int),
          torch::stable::new_empty(coord, {num_queries, nsample})};
}

Pair knn_query(int64_t nsample, const Tensor coord, const Tensor offset, const std::optional<Tensor> new_coord,
               const std::optional<Tensor> new_offset) {
  STD_TORCH_CHECK(nsample > 0 && nsample < kNoPoint, "nsample must be positive");
  check_pair(coord, offset, coord, "coord", "offset");
  CudaWork work(coord);
  const auto run = [&](auto type) {
    using T = decltype(type);
    const Batch<T> batch(work, coord, offset, new_coord, new_offset);
    Pair result = empty_pair(coord, new_coord, nsample);
    knn_typed<T>(nsample, work, batch, std::get<0>(result), std::get<1>(result));
    return result;
  };
  return coord.scalar_type() == ScalarType::Float ? run(float{}) : run(double{});
}

// Members of balls that are listed at a time: those of one slab of queries, at least one.
constexpr int64_t kMostMembers = int64_t{1} << 26;

template <class T>
void ball_typed(int64_t nsample, double max_radius, double min_radius, const int64_t* rank, CudaWork& work,
                Batch<T> batch, const Pair& result) {
  const T low = static_cast<T>(min_radius), high = static_cast<T>(max_radius);
  const T low_square = low * low, high_square = high * high;
  const int64_t num_queries = batch.queries.end;
  auto* count = work.scratch<int32_t>(num_queries);
  auto* start = work.scratch<int64_t>(num_queries + 1);
  T* const nowhere = nullptr;
  launch(work, find_within<T>, batch.blocks(), kThreads, batch.shared_bytes(), batch.boxes, batch.queries, low_square,
         high_square, count, start, nowhere, static_cast<int32_t*>(nullptr));
  launch(work, widen_counts, blocks_for(num_queries + 1, kThreads), kThreads, 0, count, num_queries, start);
  exclusive_sum(work, start, start, num_queries + 1);
  const int64_t total = work.read_back(start + num_queries);
  // Slabs are ranges of rows, so from here on queries are asked in their own order.
  batch.queries.order = nullptr;
  std::vector<int64_t> starts = {0, total};
  std::vector<int64_t> edges = {0, num_queries};
  if (total > kMostMembers) {
    starts = work.read_back(start, num_queries + 1);
    edges = {0};
    for (int64_t row = 1; row <= num_queries; ++row)
      if (starts[row] - starts[edges.back()] > kMostMembers && row - 1 > edges.back()) edges.push_back(row - 1);
    edges.push_back(num_queries);
  }
  int64_t most = 0;
  for (size_t slab = 0; slab + 1 < edges.size(); ++slab)
    most = std::max(most, edges.size() == 2 ? total : starts[edges[slab + 1]] - starts[edges[slab]]);
  auto* square = work.scratch<T>(most);
  auto* id = work.scratch<int32_t>(most);
  for (size_t slab = 0; slab + 1 < edges.size(); ++slab) {
    batch.queries.begin = edges[slab];
    batch.queries.end = edges[slab + 1];
    launch(work, find_within<T>, batch.blocks(), kThreads, batch.shared_bytes(), batch.boxes, batch.queries, low_square,
           high_square, count, start, square, id);
    launch(work, choose<T>, batch.blocks(), kThreads, 0, edges[slab], edges[slab + 1], start, square, id, rank, nsample,
           std::get<1>(result).template mutable_data_ptr<T>(),
           std::get<0>(result).template mutable_data_ptr<int32_t>());
  }
}

Pair ball_query(int64_t nsample, double max_radius, double min_radius, const Tensor coord, const Tensor offset,
                const std::optional<Tensor> new_coord, const std::optional<Tensor> new_offset,
                const std::optional<Tensor> rank) {
  STD_TORCH_CHECK(nsample > 0 && nsample < kNoPoint, "nsample must be positive");
  STD_TORCH_CHECK(min_radius >= 0 && max_radius > min_radius, "radii must satisfy 0 <= min_radius < max_radius");
  check_pair(coord, offset, coord, "coord", "offset");
  CudaWork work(coord);
  const int64_t* ranks = nullptr;
  if (rank) {
    check_contiguous_cuda(*rank, "rank");
    STD_TORCH_CHECK(rank->scalar_type() == ScalarType::Long && rank->dim() == 1 && rank->size(0) == coord.size(0) &&
                        rank->get_device_index() == coord.get_device_index(),
                    "rank must be int64 of shape [N] on coord's device");
    ranks = rank->const_data_ptr<int64_t>();
    auto* outside = work.zeroed_scratch<int32_t>(1);
    launch(work, check_rank, blocks_for(coord.size(0), kThreads), kThreads, 0, ranks, coord.size(0), outside);
    STD_TORCH_CHECK(!work.read_back(outside), "rank must lie in [0, N)");
  }
  const auto run = [&](auto type) {
    using T = decltype(type);
    const Batch<T> batch(work, coord, offset, new_coord, new_offset);
    const Pair result = empty_pair(coord, new_coord, nsample);
    ball_typed<T>(nsample, max_radius, min_radius, ranks, work, batch, result);
    return result;
  };
  return coord.scalar_type() == ScalarType::Float ? run(float{}) : run(double{});
}

}  // namespace

P3M_REGISTER_CUDA(m) {
  m.impl("knn_query", TORCH_BOX(&knn_query));
  m.impl("ball_query", TORCH_BOX(&ball_query));
}

}  // namespace pointcept3m
