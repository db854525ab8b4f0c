// knn_query and ball_query on the CPU. Queries are taken in the order of a tree of their own, so that one finds in the
// cache what the one before it has read.
#include "common/exact_math.h"

#include <optional>
#include <tuple>

#include "common/check.h"
#include "neighbours/arguments.h"
#include "neighbours/search.h"

namespace pointcept3m {
namespace {

// What is written for each query: `width` neighbours, -1 and infinity where there are fewer.
template <class T>
struct Found {
  int64_t width;
  int32_t* idx;
  T* dist;

  P3M_INLINE void write(int64_t row, int64_t place, T square, int32_t id) const {
    idx[row * width + place] = id == kNoPoint ? -1 : id;
    dist[row * width + place] = std::sqrt(square);
  }
};

template <class T>
struct Ball {
  T low, high;  // squared
  const int64_t* rank;
  const T* coord;
};

template <class T, class Keep>
P3M_INLINE void find_nearest(const Forest<T>& forest, const Tree& tree, const Placed<T>* queries, int64_t count,
                             const Found<T>& found, Keep& keep) {
  for (int64_t i = 0; i < count; ++i) {
    keep.clear();
    search(forest, tree, queries[i].coord, keep);
    const auto* keys = keep.result();
    for (int64_t j = 0; j < found.width; ++j)
      found.write(queries[i].id, j, Key<T>::square(keys[j]), Key<T>::id(keys[j]));
  }
}

template <class T>
P3M_INLINE void find_few(const Forest<T>& forest, const Tree& tree, const Placed<T>* queries, int64_t count,
                         const Found<T>& found) {
  NearestFew<T> keep(found.width);
  find_nearest(forest, tree, queries, count, found, keep);
}

template <class T>
P3M_INLINE void find_many(const Forest<T>& forest, const Tree& tree, const Placed<T>* queries, int64_t count,
                          const Found<T>& found) {
  NearestMany<T> keep(found.width);
  find_nearest(forest, tree, queries, count, found, keep);
}

// Puts the keys that stand at `rank(first) .. rank(last - 1)` in sorted order there, without sorting the others.
template <class K, class Rank>
void select(K* keys, int64_t begin, int64_t end, int64_t first, int64_t last, const Rank& rank) {
  while (first < last) {
    const int64_t middle = first + (last - first) / 2, place = rank(middle);
    std::nth_element(keys + begin, keys + place, keys + end);
    select(keys, begin, place, first, middle, rank);
    begin = place + 1;
    first = middle + 1;
  }
}

// Of `count` neighbours in the ball, `width` spread evenly over their distances; or the first by rank.
template <class T>
void choose(const T* query, const Ball<T>& ball, int64_t row, std::vector<typename Key<T>::type>& keys,
            std::vector<int64_t>& ranked, const Found<T>& found) {
  const auto count = static_cast<int64_t>(keys.size()), width = found.width, kept = std::min(count, width);
  if (ball.rank) {
    ranked.clear();
    for (const auto& key : keys) ranked.push_back(ball.rank[Key<T>::id(key)] << 32 | Key<T>::id(key));
    std::partial_sort(ranked.begin(), ranked.begin() + kept, ranked.end());
    for (int64_t j = 0; j < kept; ++j) {
      const auto id = static_cast<int32_t>(ranked[j]);
      const T* p = ball.coord + 3 * int64_t{id};
      found.write(row, j, square_sum(p[0] - query[0], p[1] - query[1], p[2] - query[2]), id);
    }
  } else if (count <= width) {
    std::sort(keys.begin(), keys.end());
    for (int64_t j = 0; j < kept; ++j) found.write(row, j, Key<T>::square(keys[j]), Key<T>::id(keys[j]));
  } else {
    const auto rank = [=](int64_t j) { return j * count / width; };
    select(keys.data(), 0, count, 0, width, rank);
    for (int64_t j = 0; j < width; ++j) found.write(row, j, Key<T>::square(keys[rank(j)]), Key<T>::id(keys[rank(j)]));
  }
  for (int64_t j = kept; j < width; ++j) found.write(row, j, std::numeric_limits<T>::infinity(), kNoPoint);
}

template <class T>
P3M_INLINE void find_within(const Forest<T>& forest, const Tree& tree, const Placed<T>* queries, int64_t count,
                            const Ball<T>& ball, const Found<T>& found) {
  Within<T> keep(ball.low, ball.high);
  std::vector<int64_t> ranked;
  for (int64_t i = 0; i < count; ++i) {
    keep.clear();
    search(forest, tree, queries[i].coord, keep);
    choose(queries[i].coord, ball, queries[i].id, keep.keys, ranked, found);
  }
}

#define P3M_SEARCH_KERNELS(T)                                                                                         \
  P3M_KERNEL void nearest_few(const Forest<T>& forest, const Tree& tree, const Placed<T>* queries, int64_t count,     \
                              const Found<T>& found) {                                                                \
    find_few(forest, tree, queries, count, found);                                                                    \
  }                                                                                                                   \
  P3M_KERNEL void nearest_many(const Forest<T>& forest, const Tree& tree, const Placed<T>* queries, int64_t count,    \
                               const Found<T>& found) {                                                               \
    find_many(forest, tree, queries, count, found);                                                                   \
  }                                                                                                                   \
  P3M_KERNEL void within(const Forest<T>& forest, const Tree& tree, const Placed<T>* queries, int64_t count,          \
                         const Ball<T>& ball, const Found<T>& found) {                                                \
    find_within(forest, tree, queries, count, ball, found);                                                           \
  }
P3M_SEARCH_KERNELS(float)
P3M_SEARCH_KERNELS(double)
#undef P3M_SEARCH_KERNELS

// Points and queries of a batch; without new_coord the points are the queries.
struct Batch {
  const Tensor &coord, &offset, &new_coord, &new_offset;
  bool own;

  Batch(const Tensor& coord, const Tensor& offset, const std::optional<Tensor>& new_coord,
        const std::optional<Tensor>& new_offset)
      : coord(coord),
        offset(offset),
        new_coord(new_coord ? *new_coord : coord),
        new_offset(new_offset ? *new_offset : offset),
        own(!new_coord) {
    STD_TORCH_CHECK(new_coord.has_value() == new_offset.has_value(), "new_coord and new_offset go together");
    check(this->coord, this->offset, "coord", "offset");
    check(this->new_coord, this->new_offset, "new_coord", "new_offset");
    STD_TORCH_CHECK(this->coord.scalar_type() == this->new_coord.scalar_type(), "new_coord must have coord's dtype");
    STD_TORCH_CHECK(this->offset.size(0) == this->new_offset.size(0), "new_offset must have offset's length");
  }

  static void check(const Tensor& coord, const Tensor& offset, const char* name, const char* offset_name) {
    check_contiguous_cpu(coord, name);
    check_contiguous_cpu(offset, offset_name);
    check_coord(coord, name);
    check_offset_type(offset, offset_name);
    check_ends(offset.const_data_ptr<int64_t>(), offset.size(0), coord.size(0), offset_name);
  }
};

template <class T>
Forest<T> forest_of(const Tensor& coord, const Tensor& offset) {
  return build_forest(coord.const_data_ptr<T>(), offset.const_data_ptr<int64_t>(), offset.size(0));
}

// Calls find(forest, tree, queries, count) for blocks of queries of one item each.
template <class T, class Find>
void for_queries(const Batch& batch, const Find& find) {
  constexpr int64_t block = 256;
  const Forest<T> forest = forest_of<T>(batch.coord, batch.offset);
  const Forest<T> other = batch.own ? Forest<T>{} : forest_of<T>(batch.new_coord, batch.new_offset);
  const Forest<T>& queries = batch.own ? forest : other;
  std::vector<std::pair<int64_t, int64_t>> blocks;
  for (size_t item = 0; item < queries.trees.size(); ++item)
    for (int64_t begin = 0; begin < queries.trees[item].num_points; begin += block) blocks.emplace_back(item, begin);
  share_units(static_cast<int64_t>(blocks.size()), [&](int64_t unit) {
    const auto [item, begin] = blocks[unit];
    const Tree& tree = queries.trees[item];
    find(forest, forest.trees[item], queries.points.get() + tree.first_point + begin,
         std::min(block, tree.num_points - begin));
  });
}

// Results in which nothing was found yet, as it stays for queries that are not finite.
template <class T>
Found<T> start(int64_t width, const Tensor& idx, const Tensor& dist) {
  const Found<T> found = {width, idx.mutable_data_ptr<int32_t>(), dist.mutable_data_ptr<T>()};
  std::fill(found.idx, found.idx + idx.numel(), -1);
  std::fill(found.dist, found.dist + dist.numel(), std::numeric_limits<T>::infinity());
  return found;
}

template <class T>
void knn_typed(int64_t nsample, const Batch& batch, const Tensor& idx, const Tensor& dist) {
  const Found<T> found = start<T>(nsample, idx, dist);
  for_queries<T>(batch, [&](const Forest<T>& forest, const Tree& tree, const Placed<T>* queries, int64_t count) {
    if (nsample <= kSorted) nearest_few(forest, tree, queries, count, found);
    else nearest_many(forest, tree, queries, count, found);
  });
}

using Pair = std::tuple<Tensor, Tensor>;

Pair knn_query(int64_t nsample, const Tensor& coord, const Tensor& offset, const std::optional<Tensor>& new_coord,
               const std::optional<Tensor>& new_offset) {
  STD_TORCH_CHECK(nsample > 0 && nsample < kNoPoint, "nsample must be positive");
  const Batch batch(coord, offset, new_coord, new_offset);
  const Tensor idx = torch::stable::new_empty(coord, {batch.new_coord.size(0), nsample}, ScalarType::Int);
  const Tensor dist = torch::stable::new_empty(coord, {batch.new_coord.size(0), nsample});
  if (coord.scalar_type() == ScalarType::Float) knn_typed<float>(nsample, batch, idx, dist);
  else knn_typed<double>(nsample, batch, idx, dist);
  return {idx, dist};
}

template <class T>
void ball_typed(int64_t nsample, double max_radius, double min_radius, const int64_t* rank, const Batch& batch,
                const Tensor& idx, const Tensor& dist) {
  const Found<T> found = start<T>(nsample, idx, dist);
  const T low = static_cast<T>(min_radius), high = static_cast<T>(max_radius);
  const Ball<T> ball = {low * low, high * high, rank, batch.coord.const_data_ptr<T>()};
  for_queries<T>(batch, [&](const Forest<T>& forest, const Tree& tree, const Placed<T>* queries, int64_t count) {
    within(forest, tree, queries, count, ball, found);
  });
}

Pair ball_query(int64_t nsample, double max_radius, double min_radius, const Tensor& coord, const Tensor& offset,
                const std::optional<Tensor>& new_coord, const std::optional<Tensor>& new_offset,
                const std::optional<Tensor>& rank) {
  STD_TORCH_CHECK(nsample > 0 && nsample < kNoPoint, "nsample must be positive");
  STD_TORCH_CHECK(min_radius >= 0 && max_radius > min_radius, "radii must satisfy 0 <= min_radius < max_radius");
  const Batch batch(coord, offset, new_coord, new_offset);
  const int64_t* ranks = nullptr;
  if (rank) {
    check_contiguous_cpu(*rank, "rank");
    STD_TORCH_CHECK(rank->scalar_type() == ScalarType::Long && rank->dim() == 1 && rank->size(0) == coord.size(0),
                    "rank must be int64 of shape [N]");
    ranks = rank->const_data_ptr<int64_t>();
    for (int64_t i = 0; i < coord.size(0); ++i)
      STD_TORCH_CHECK(ranks[i] >= 0 && ranks[i] < coord.size(0), "rank must lie in [0, N)");
  }
  const Tensor idx = torch::stable::new_empty(coord, {batch.new_coord.size(0), nsample}, ScalarType::Int);
  const Tensor dist = torch::stable::new_empty(coord, {batch.new_coord.size(0), nsample});
  if (coord.scalar_type() == ScalarType::Float)
    ball_typed<float>(nsample, max_radius, min_radius, ranks, batch, idx, dist);
  else
    ball_typed<double>(nsample, max_radius, min_radius, ranks, batch, idx, dist);
  return {idx, dist};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("knn_query", TORCH_BOX(&knn_query));
  m.impl("ball_query", TORCH_BOX(&ball_query));
}

}  // namespace pointcept3m
