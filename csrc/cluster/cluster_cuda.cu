// Ball query and clusters on the GPU, with the results of the CPU kernels to the last bit.
//
// Ball query: one thread per point, in the order of buckets (neighbours in a warp read the same lines), counts; after a
// scan it writes pairs (neighbour, point), points ascending. Being near is symmetric, so a stable sort of the pairs by
// neighbour leaves the lists of all points, each ascending: one radix sort of the bits of a point's number takes the
// place of sorting every list. Memory: four int32 per pair while it runs.
//
// Clusters: disjoint sets in which the larger root is linked under the smaller by compare-and-swap, so that the root of
// a set is its smallest point whatever the order of the threads. The host waits for sizes: once for the batch ends,
// once for the number of pairs or clusters.
#include "cluster/buckets.cuh"

#include <tuple>

#include "cluster/checks.h"

namespace pointcept3m {
namespace {

// ---- disjoint sets

// Reads past the first-level caches, which do not see what other multiprocessors write.
__device__ __forceinline__ int find_root(int32_t* parent, int member) {
  for (;;) {
    const int up = __ldcg(parent + member);
    if (up == member) return member;
    const int over = __ldcg(parent + up);
    if (over == up) return up;
    parent[member] = over;  // an ancestor, if not the nearest to the root that is known by now
    member = over;
  }
}

__device__ __forceinline__ void unite(int32_t* parent, int a, int b) {
  for (;;) {
    a = find_root(parent, a), b = find_root(parent, b);
    if (a == b) return;
    const int low = a < b ? a : b, high = a < b ? b : a;
    if (atomicCAS(parent + high, high, low) == high) return;
  }
}

__global__ void start_sets(int32_t* parent, int64_t count) {
  const int64_t i = global_thread();
  if (i < count) parent[i] = static_cast<int32_t>(i);
}

__global__ void measure_sets(int32_t* parent, int64_t count, int32_t* first, int32_t* size) {
  const int64_t i = global_thread();
  if (i >= count) return;
  first[i] = find_root(parent, static_cast<int>(i));
  atomicAdd(size + first[i], 1);
}

// At the first point of a set that is kept: 1, and the size. One value more than there are points, and 0.
__global__ void mark_kept(const int32_t* first, const int32_t* size, int64_t count, int64_t threshold, int32_t* kept,
                          int32_t* kept_size) {
  const int64_t i = global_thread();
  if (i > count) return;
  const bool keep = i < count && first[i] == i && size[i] >= threshold;
  kept[i] = keep;
  kept_size[i] = keep ? size[i] : 0;
}

// The number of each point's cluster, or one past all where it has none.
__global__ void number_points(const int32_t* first, const int32_t* number, int64_t count, uint32_t* cluster,
                              int32_t* point) {
  const int64_t i = global_thread();
  if (i >= count) return;
  const int root = first[i];
  cluster[i] = number[root + 1] > number[root] ? number[root] : number[count];
  point[i] = static_cast<int32_t>(i);
}

__global__ void write_clusters(const uint32_t* cluster, const int32_t* point, int64_t num_rows, int32_t* idxs) {
  const int64_t i = global_thread();
  if (i >= num_rows) return;
  idxs[2 * i] = static_cast<int32_t>(cluster[i]);
  idxs[2 * i + 1] = point[i];
}

__global__ void write_offsets(const int32_t* number, const int32_t* start, int64_t count, int32_t* offsets) {
  const int64_t i = global_thread();
  if (i > count) return;
  if (i == count || number[i + 1] > number[i]) offsets[number[i]] = start[i];
}

// Clusters of `threshold` points and more, by their first points.
std::tuple<Tensor, Tensor> compact(CudaWork& work, int32_t* parent, int64_t count, int64_t threshold,
                                   const Tensor& like) {
  int32_t* first = work.scratch<int32_t>(count);
  int32_t* size = work.zeroed_scratch<int32_t>(count);
  int32_t* number = work.scratch<int32_t>(count + 1);
  int32_t* start = work.scratch<int32_t>(count + 1);
  const dim3 grid = blocks_for(count, kThreads), grid_and_end = blocks_for(count + 1, kThreads);
  launch(work, measure_sets, grid, kThreads, 0, parent, count, first, size);
  launch(work, mark_kept, grid_and_end, kThreads, 0, first, size, count, threshold, number, start);
  exclusive_sum(work, number, number, count + 1);
  exclusive_sum(work, start, start, count + 1);
  uint32_t *cluster = work.scratch<uint32_t>(count), *sorted_cluster = work.scratch<uint32_t>(count);
  int32_t *point = work.scratch<int32_t>(count), *sorted_point = work.scratch<int32_t>(count);
  launch(work, number_points, grid, kThreads, 0, first, number, count, cluster, point);
  sort_pairs(work, cluster, sorted_cluster, point, sorted_point, count, std::bit_width(static_cast<uint64_t>(count)));
  const int64_t num_clusters = work.read_back(number + count), num_rows = work.read_back(start + count);
  const Tensor idxs = torch::stable::new_empty(like, {num_rows, 2}, ScalarType::Int);
  const Tensor offsets = torch::stable::new_empty(like, {num_clusters + 1}, ScalarType::Int);
  launch(work, write_clusters, blocks_for(num_rows, kThreads), kThreads, 0, sorted_cluster, sorted_point, num_rows,
         idxs.mutable_data_ptr<int32_t>());
  launch(work, write_offsets, grid_and_end, kThreads, 0, number, start, count, offsets.mutable_data_ptr<int32_t>());
  return {idxs, offsets};
}

int32_t* new_sets(CudaWork& work, int64_t count) {
  int32_t* parent = work.scratch<int32_t>(count);
  launch(work, start_sets, blocks_for(count, kThreads), kThreads, 0, parent, count);
  return parent;
}

// ---- ball query

template <class T>
__global__ void count_balls(Buckets<T> buckets, int64_t* count) {
  const int64_t place = global_thread();
  if (place >= buckets.num_points) return;
  int near = 0;
  for_near(buckets, place, [&](int) { ++near; });
  count[buckets.point[place]] = near;
}

__global__ void write_lists(const int64_t* start, int64_t num_points, int32_t* start_len) {
  const int64_t i = global_thread();
  if (i >= num_points) return;
  start_len[2 * i] = static_cast<int32_t>(start[i]);
  start_len[2 * i + 1] = static_cast<int32_t>(start[i + 1] - start[i]);
}

template <class T>
__global__ void write_pairs(Buckets<T> buckets, const int64_t* start, uint32_t* neighbour, int32_t* point) {
  const int64_t place = global_thread();
  if (place >= buckets.num_points) return;
  const int self = buckets.point[place];
  int64_t to = start[self];
  for_near(buckets, place, [&](int other) {
    neighbour[to] = static_cast<uint32_t>(other);
    point[to++] = self;
  });
}

template <class T>
std::tuple<Tensor, Tensor> list_balls(CudaWork& work, const Tensor& coord, const Tensor& offset, double radius) {
  const int64_t num_points = coord.size(0);
  const Tensor start_len = torch::stable::new_empty(offset, {num_points, 2}, ScalarType::Int);
  const Buckets<T> buckets = fill_buckets<T>(work, coord, offset, radius);
  const dim3 grid = blocks_for(num_points, kThreads);
  int64_t* start = work.zeroed_scratch<int64_t>(num_points + 1);
  launch(work, count_balls<T>, grid, kThreads, 0, buckets, start);
  exclusive_sum(work, start, start, num_points + 1);
  const int64_t total = work.read_back(start + num_points);
  check_total(total);
  launch(work, write_lists, grid, kThreads, 0, start, num_points, start_len.mutable_data_ptr<int32_t>());
  const Tensor idx = torch::stable::new_empty(start_len, {total});
  uint32_t *neighbour = work.scratch<uint32_t>(total), *sorted_neighbour = work.scratch<uint32_t>(total);
  int32_t* point = work.scratch<int32_t>(total);
  launch(work, write_pairs<T>, grid, kThreads, 0, buckets, start, neighbour, point);
  sort_pairs(work, neighbour, sorted_neighbour, point, idx.mutable_data_ptr<int32_t>(), total,
             std::bit_width(static_cast<uint64_t>(num_points)));
  return {idx, start_len};
}

void check_cloud_cuda(const CudaWork& work, const Tensor& coord, const Tensor& offset, double radius) {
  check_contiguous_cuda(coord, "coord");
  check_contiguous_cuda(offset, "offset");
  check_coord_and_radius(coord, radius);
  check_vector(offset, ScalarType::Long, "offset must be int64 of shape [B]");
  STD_TORCH_CHECK(offset.size(0) < kMaxPoints, "offset must have fewer than 2^30 entries");
  std::vector<int64_t> ends;
  if (offset.size(0)) ends = work.read_back(offset.const_data_ptr<int64_t>(), offset.size(0));
  check_ends(ends.data(), offset.size(0), coord.size(0));
}

std::tuple<Tensor, Tensor> ballquery_batch_p(const Tensor& coord, const Tensor& offset, double radius) {
  CudaWork work(coord);
  check_cloud_cuda(work, coord, offset, radius);
  return coord.scalar_type() == ScalarType::Float ? list_balls<float>(work, coord, offset, radius)
                                                  : list_balls<double>(work, coord, offset, radius);
}

// ---- clusters

constexpr int kLanesPerList = 8;  // together they read one sector of 32 bytes

__global__ void join_lists(const int64_t* label, const int32_t* idx, int64_t num_entries, const int32_t* start_len,
                           int64_t num_points, int32_t* parent, int32_t* invalid) {
  const int64_t i = global_thread() / kLanesPerList;
  if (i >= num_points) return;
  const int64_t start = start_len[2 * i], length = start_len[2 * i + 1];
  if (start < 0 || length < 0 || start + length > num_entries) {
    *invalid = 1;
    return;
  }
  const int64_t own = label[i];
  for (int64_t at = start + threadIdx.x % kLanesPerList; at < start + length; at += kLanesPerList) {
    const int other = idx[at];
    if (other < 0 || other >= num_points) {
      *invalid = 1;
      return;
    }
    if (label[other] == own) unite(parent, static_cast<int>(i), other);
  }
}

std::tuple<Tensor, Tensor> bfs_cluster(const Tensor& label, const Tensor& idx, const Tensor& start_len,
                                       int64_t threshold) {
  check_contiguous_cuda(label, "label");
  check_contiguous_cuda(idx, "idx");
  check_contiguous_cuda(start_len, "start_len");
  check_lists(label, idx, start_len);
  CudaWork work(label);
  const int64_t num_points = label.size(0);
  int32_t* parent = new_sets(work, num_points);
  int32_t* invalid = work.zeroed_scratch<int32_t>(1);
  launch(work, join_lists, blocks_for(num_points * kLanesPerList, kThreads), kThreads, 0,
         label.const_data_ptr<int64_t>(), idx.const_data_ptr<int32_t>(), idx.size(0),
         start_len.const_data_ptr<int32_t>(), num_points, parent, invalid);
  STD_TORCH_CHECK(work.read_back(invalid) == 0, kBadLists);
  return compact(work, parent, num_points, threshold, label);
}

template <class T>
__global__ void join_near(Buckets<T> buckets, const int64_t* label, int32_t* parent) {
  const int64_t place = global_thread();
  if (place >= buckets.num_points) return;
  const int self = buckets.point[place];
  const int64_t own = label[self];
  for_near(buckets, place, [&](int other) {
    if (other < self && label[other] == own) unite(parent, self, other);
  });
}

std::tuple<Tensor, Tensor> cluster_points(const Tensor& coord, const Tensor& offset, const Tensor& label, double radius,
                                          int64_t min_points) {
  CudaWork work(coord);
  check_cloud_cuda(work, coord, offset, radius);
  check_contiguous_cuda(label, "label");
  check_vector(label, ScalarType::Long, "label must be int64 of shape [N]");
  STD_TORCH_CHECK(label.size(0) == coord.size(0), "label must have one entry per row of coord");
  const int64_t num_points = coord.size(0);
  int32_t* parent = new_sets(work, num_points);
  const auto join = [&]<class T>(T) {
    launch(work, join_near<T>, blocks_for(num_points, kThreads), kThreads, 0,
           fill_buckets<T>(work, coord, offset, radius), label.const_data_ptr<int64_t>(), parent);
  };
  if (coord.scalar_type() == ScalarType::Float) join(float{});
  else join(double{});
  return compact(work, parent, num_points, min_points, label);
}

}  // namespace

P3M_REGISTER_CUDA(m) {
  m.impl("ballquery_batch_p", TORCH_BOX(&ballquery_batch_p));
  m.impl("bfs_cluster", TORCH_BOX(&bfs_cluster));
  m.impl("cluster_points", TORCH_BOX(&cluster_points));
}

}  // namespace pointcept3m
