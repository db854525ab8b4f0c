// Clusters on the CPU, from lists of neighbours or straight from coordinates, by joining disjoint sets in parallel.
//
// From coordinates: points of one label and batch item are sorted into cells as wide as the radius, and points of
// neighbouring cells are compared. Where cells hold many points, they are cut so small instead that any two points of
// one are near. Then a cell is one cluster from the start, and of two cells one near pair has to be found, if they are
// not in one cluster already: the time hardly depends on how many neighbours a point has, and the memory not at all.
#include "common/exact_math.h"

#include <tuple>

#include "cluster/checks.h"
#include "cluster/grid.h"
#include "cluster/union_find.h"
#include "common/vector.h"

namespace pointcept3m {
namespace {

// first: for each point the first point of its cluster. Clusters of `threshold` points and more, by their first point.
std::tuple<Tensor, Tensor> compact(const std::vector<int32_t>& first, int64_t threshold, const Tensor& like) {
  const auto num_points = static_cast<int64_t>(first.size());
  std::vector<int32_t> size(num_points), number(num_points, -1);
  for (int32_t root : first) ++size[root];
  std::vector<int32_t> ends{0};
  for (int64_t i = 0; i < num_points; ++i)
    if (first[i] == i && size[i] >= threshold) {
      number[i] = static_cast<int32_t>(ends.size()) - 1;
      ends.push_back(ends.back() + size[i]);
    }
  const Tensor idxs = torch::stable::new_empty(like, {ends.back(), 2}, ScalarType::Int);
  const Tensor offsets = torch::stable::new_empty(like, {static_cast<int64_t>(ends.size())}, ScalarType::Int);
  std::copy(ends.begin(), ends.end(), offsets.mutable_data_ptr<int32_t>());
  int32_t* rows = idxs.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < num_points; ++i) {
    const int32_t cluster = number[first[i]];
    if (cluster < 0) continue;
    int32_t* row = rows + 2 * int64_t{ends[cluster]++};
    row[0] = cluster, row[1] = static_cast<int32_t>(i);
  }
  return {idxs, offsets};
}

constexpr int64_t kPoints = 2048;  // points of one unit of work

// Joins along the lists; false where a list or an entry lies outside.
bool join_lists(const int64_t* label, const int32_t* idx, int64_t num_entries, const int32_t* start_len,
                int64_t num_points, UnionFind& sets) {
  std::atomic<bool> valid{true};
  share_units((num_points + kPoints - 1) / kPoints, [&](int64_t unit) {
    for (int64_t i = unit * kPoints; i < std::min(num_points, (unit + 1) * kPoints); ++i) {
      const int64_t start = start_len[2 * i], length = start_len[2 * i + 1];
      if (start < 0 || length < 0 || start + length > num_entries) return valid.store(false, std::memory_order_relaxed);
      for (int64_t at = start; at < start + length; ++at) {
        const int32_t other = idx[at];
        if (static_cast<uint64_t>(other) >= static_cast<uint64_t>(num_points))
          return valid.store(false, std::memory_order_relaxed);
        if (label[other] == label[i]) sets.unite(static_cast<int32_t>(i), other);
      }
    }
  });
  return valid;
}

std::tuple<Tensor, Tensor> bfs_cluster(const Tensor& label, const Tensor& idx, const Tensor& start_len,
                                       int64_t threshold) {
  check_contiguous_cpu(label, "label");
  check_contiguous_cpu(idx, "idx");
  check_contiguous_cpu(start_len, "start_len");
  check_lists(label, idx, start_len);
  const int64_t num_points = label.size(0);
  UnionFind sets(num_points);
  const bool valid = join_lists(label.const_data_ptr<int64_t>(), idx.const_data_ptr<int32_t>(), idx.size(0),
                                start_len.const_data_ptr<int32_t>(), num_points, sets);
  STD_TORCH_CHECK(valid, kBadLists);
  std::vector<int32_t> first(num_points);
  for (int64_t i = 0; i < num_points; ++i) first[i] = sets.find(static_cast<int32_t>(i));
  return compact(first, threshold, label);
}

// A number for each label of each batch item; returns how many there are.
int64_t group_points(const int64_t* label, const Tensor& offset, int64_t num_points, std::vector<int32_t>& group) {
  if (num_points == 0) return 1;
  group = item_of_points(offset, num_points);
  const auto [low, high] = std::minmax_element(label, label + num_points);
  const uint64_t range = static_cast<uint64_t>(*high) - static_cast<uint64_t>(*low);
  if (range < 4096 && static_cast<int64_t>(range + 1) * offset.size(0) < kMaxPoints) {
    const auto width = static_cast<int32_t>(range + 1);
    for (int64_t i = 0; i < num_points; ++i) group[i] = group[i] * width + static_cast<int32_t>(label[i] - *low);
    return int64_t{width} * offset.size(0);
  }
  std::vector<std::pair<int32_t, int64_t>> pairs(num_points);
  for (int64_t i = 0; i < num_points; ++i) pairs[i] = {group[i], label[i]};
  std::vector<std::pair<int32_t, int64_t>> distinct(pairs);
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (int64_t i = 0; i < num_points; ++i)
    group[i] = static_cast<int32_t>(std::lower_bound(distinct.begin(), distinct.end(), pairs[i]) - distinct.begin());
  return static_cast<int64_t>(distinct.size());
}

// The points of two cells.
template <class T>
struct TwoCells {
  const T *x, *y, *z;
  int64_t a, a_end, b, b_end;  // places
  T square;                    // of the radius
};

template <class T>
P3M_INLINE bool find_near(const TwoCells<T>& c) {
  constexpr int64_t lanes = VectorOf<T>::lanes;
  for (int64_t a = c.a; a < c.a_end; ++a) {
    const T x = c.x[a], y = c.y[a], z = c.z[a];
    int64_t b = c.b;
    for (; b + lanes <= c.b_end; b += lanes) {
      const Vector<T> dx = load(c.x + b) - x, dy = load(c.y + b) - y, dz = load(c.z + b) - z;
      const auto near = (dx * dx + dy * dy) + dz * dz < c.square;
      bool any = false;
      for (int64_t lane = 0; lane < lanes; ++lane) any |= near[lane] != 0;
      if (any) return true;
    }
    for (; b < c.b_end; ++b) {
      const T dx = c.x[b] - x, dy = c.y[b] - y, dz = c.z[b] - z;
      if ((dx * dx + dy * dy) + dz * dz < c.square) return true;
    }
  }
  return false;
}

P3M_KERNEL bool any_near(const TwoCells<float>& cells) { return find_near(cells); }
P3M_KERNEL bool any_near(const TwoCells<double>& cells) { return find_near(cells); }

struct Column {
  int64_t dx, dy, low, high;  // cells (dx, dy, low) to (dx, dy, high) away
};

// Half of the cells within reach, each pair of cells being met from one side; the nearest first, which join most.
std::vector<Column> half_of_columns(int64_t reach) {
  std::vector<Column> columns{{0, 0, 1, reach}};
  for (int64_t dx = 0; dx <= reach; ++dx)
    for (int64_t dy = -reach; dy <= reach; ++dy)
      if (dx > 0 || dy > 0) columns.push_back({dx, dy, -reach, reach});
  const auto distance = [](const Column& c) { return c.dx * c.dx + c.dy * c.dy; };
  std::stable_sort(columns.begin(), columns.end(),
                   [&](const Column& a, const Column& b) { return distance(a) < distance(b); });
  return columns;
}

constexpr int64_t kCells = 1024;  // cells of one unit of work

template <class T, class Key>
void join_cells(const Grid<T, Key>& grid, int64_t reach, T square, UnionFind& sets) {
  const std::vector<Column> columns = half_of_columns(reach);
  std::vector<Key> shift;
  for (const Column& column : columns) shift.push_back(grid.shift(column.dx, column.dy, column.low));
  share_units((grid.num_cells() + kCells - 1) / kCells, [&](int64_t unit) {
    const int64_t end = std::min(grid.num_cells(), (unit + 1) * kCells);
    std::vector<int64_t> at;
    for (const Key step : shift) at.push_back(grid.first_seek(grid.key[unit * kCells] + step));
    for (int64_t cell = unit * kCells; cell < end; ++cell)
      for (size_t i = 0; i < columns.size(); ++i) {
        const Key low = grid.key[cell] + shift[i];
        at[i] = grid.seek(at[i], low);
        const int64_t last = at[i] + grid.count(at[i], low, columns[i].high - columns[i].low);
        for (int64_t other = at[i]; other < last; ++other) {
          const auto a = static_cast<int32_t>(cell), b = static_cast<int32_t>(other);
          if (sets.find(a) == sets.find(b)) continue;
          if (any_near(TwoCells<T>{grid.x.get(), grid.y.get(), grid.z.get(), grid.start[cell], grid.start[cell + 1],
                                   grid.start[other], grid.start[other + 1], square}))
            sets.unite(a, b);
        }
      }
  });
}

// Joins the points of cells as wide as the radius, pair by pair.
template <class T, class Key>
void join_points(const Grid<T, Key>& grid, T square, UnionFind& sets) {
  const std::vector<Column> columns = half_of_columns(1);
  std::vector<Key> shift;
  for (const Column& column : columns) shift.push_back(grid.shift(column.dx, column.dy, column.low));
  const T *x = grid.x.get(), *y = grid.y.get(), *z = grid.z.get();
  const auto join = [&](int64_t a, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const T dx = x[b] - x[a], dy = y[b] - y[a], dz = z[b] - z[a];
      if ((dx * dx + dy * dy) + dz * dz < square) sets.unite(grid.row[a], grid.row[b]);
    }
  };
  share_units((grid.num_cells() + kCells - 1) / kCells, [&](int64_t unit) {
    const int64_t end = std::min(grid.num_cells(), (unit + 1) * kCells);
    std::vector<int64_t> at;
    for (const Key step : shift) at.push_back(grid.first_seek(grid.key[unit * kCells] + step));
    for (int64_t cell = unit * kCells; cell < end; ++cell) {
      const int64_t from = grid.start[cell], to = grid.start[cell + 1];
      for (int64_t a = from; a < to; ++a) join(a, a + 1, to);
      for (size_t i = 0; i < columns.size(); ++i) {
        const Key low = grid.key[cell] + shift[i];
        at[i] = grid.seek(at[i], low);
        const int64_t begin = grid.start[at[i]],
                      last = grid.start[at[i] + grid.count(at[i], low, columns[i].high - columns[i].low)];
        for (int64_t a = from; a < to; ++a) join(a, begin, last);
      }
    }
  });
}

template <class T>
struct Cloud {
  const T* coord;
  int64_t num_points, num_groups;
  const int32_t* group;
  T radius;
};

// work(grid, reach), with keys of as many bits as the cloud needs.
template <class T, class Work>
void with_grid(const Cloud<T>& cloud, CellSize size, const Work& work) {
  const GridPlan plan = plan_grid(cloud.coord, cloud.num_points, cloud.radius, size, cloud.num_groups);
  if (plan.fits_64()) work(fill_grid<uint64_t>(cloud.coord, cloud.num_points, cloud.group, plan), plan.reach);
  else work(fill_grid<unsigned __int128>(cloud.coord, cloud.num_points, cloud.group, plan), plan.reach);
}

// The first point of every point's cluster, where cells are as wide as the radius; false where they hold so many points
// on average that smaller cells take less time.
template <class T>
bool first_by_points(const Cloud<T>& cloud, std::vector<int32_t>& first) {
  constexpr int64_t dense = 3;
  bool done = false;
  with_grid(cloud, CellSize::radius, [&](const auto& grid, int64_t) {
    if (grid.num_places() > dense * grid.num_cells()) return;
    UnionFind sets(cloud.num_points);
    join_points(grid, cloud.radius * cloud.radius, sets);
    for (int64_t i = 0; i < cloud.num_points; ++i) first[i] = sets.find(static_cast<int32_t>(i));
    done = true;
  });
  return done;
}

// The same with cells whose points are all near each other.
template <class T>
void first_by_cells(const Cloud<T>& cloud, std::vector<int32_t>& first) {
  with_grid(cloud, CellSize::within_radius, [&](const auto& grid, int64_t reach) {
    UnionFind sets(grid.num_cells());
    join_cells(grid, reach, cloud.radius * cloud.radius, sets);
    std::vector<int32_t> first_of_set(grid.num_cells(), std::numeric_limits<int32_t>::max());
    for (int64_t i = 0; i < cloud.num_points; ++i)
      first[i] = static_cast<int32_t>(i);  // what is not finite stays alone
    for (int64_t cell = 0; cell < grid.num_cells(); ++cell) {
      int32_t& point = first_of_set[sets.find(static_cast<int32_t>(cell))];
      point = std::min(point, grid.row[grid.start[cell]]);
    }
    for (int64_t cell = 0; cell < grid.num_cells(); ++cell) {
      const int32_t point = first_of_set[sets.find(static_cast<int32_t>(cell))];
      for (int64_t place = grid.start[cell]; place < grid.start[cell + 1]; ++place) first[grid.row[place]] = point;
    }
  });
}

template <class T>
std::vector<int32_t> first_points(const Tensor& coord, const Tensor& offset, const Tensor& label, double radius) {
  const int64_t num_points = coord.size(0);
  std::vector<int32_t> group, first(num_points);
  const int64_t num_groups = group_points(label.const_data_ptr<int64_t>(), offset, num_points, group);
  const Cloud<T> cloud{coord.const_data_ptr<T>(), num_points, num_groups, group.data(), static_cast<T>(radius)};
  if (!first_by_points(cloud, first)) first_by_cells(cloud, first);
  return first;
}

std::tuple<Tensor, Tensor> cluster_points(const Tensor& coord, const Tensor& offset, const Tensor& label, double radius,
                                          int64_t min_points) {
  check_cloud(coord, offset, radius);
  check_contiguous_cpu(label, "label");
  check_vector(label, ScalarType::Long, "label must be int64 of shape [N]");
  STD_TORCH_CHECK(label.size(0) == coord.size(0), "label must have one entry per row of coord");
  const bool single = coord.scalar_type() == ScalarType::Float;
  const auto first =
      single ? first_points<float>(coord, offset, label, radius) : first_points<double>(coord, offset, label, radius);
  return compact(first, min_points, label);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("bfs_cluster", TORCH_BOX(&bfs_cluster));
  m.impl("cluster_points", TORCH_BOX(&cluster_points));
}

}  // namespace pointcept3m
