// Ball query on the CPU: points are sorted into cells as wide as the radius, and each cell's points are compared with
// those of the 27 cells around, once to count and once to fill. The candidates of a cell are put in ascending order
// once for all its points, so that every list comes out ascending.
#include "common/exact_math.h"

#include <bit>
#include <limits>
#include <tuple>
#include <type_traits>

#include "cluster/checks.h"
#include "cluster/grid.h"
#include "common/vector.h"

namespace pointcept3m {
namespace {

// Comparing vectors of T gives vectors of these, -1 where true.
template <class T>
using Truth = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

constexpr int64_t kLanes = 16;  // arrays are padded to a multiple of every vector's lanes

// One cell's points, and the points of the 27 cells around it, padded with points that are near nothing.
template <class T>
struct Neighbourhood {
  const T *x, *y, *z;     // candidates
  const int32_t* id;
  int64_t count, padded;
  const T *cell_x, *cell_y, *cell_z;
  const int32_t* cell_id;
  int64_t cell_count;
  T square;               // of the radius
};

template <class T>
P3M_INLINE Vector<Truth<T>> near_lanes(const Neighbourhood<T>& n, int64_t at, int64_t point) {
  const Vector<T> dx = load(n.x + at) - n.cell_x[point], dy = load(n.y + at) - n.cell_y[point],
                  dz = load(n.z + at) - n.cell_z[point];
  const Vector<T> distance = (dx * dx + dy * dy) + dz * dz;
  return reinterpret_cast<Vector<Truth<T>>>(distance < n.square);
}

template <class T>
P3M_INLINE void count_near(const Neighbourhood<T>& n, int32_t* count) {
  for (int64_t point = 0; point < n.cell_count; ++point) {
    Vector<Truth<T>> total = {};
    for (int64_t at = 0; at < n.padded; at += VectorOf<T>::lanes) total -= near_lanes(n, at, point);
    Truth<T> sum = 0;
    for (int64_t lane = 0; lane < VectorOf<T>::lanes; ++lane) sum += total[lane];
    count[n.cell_id[point]] = static_cast<int32_t>(sum);
  }
}

// Candidates must ascend. `near` and `found` have room for all of them and one more.
template <class T>
P3M_INLINE void list_near(const Neighbourhood<T>& n, Truth<T>* near, int32_t* found, const int32_t* start_len,
                          int32_t* idx) {
  for (int64_t point = 0; point < n.cell_count; ++point) {
    for (int64_t at = 0; at < n.padded; at += VectorOf<T>::lanes) store<Truth<T>>(near + at, near_lanes(n, at, point));
    int64_t kept = 0;
    for (int64_t at = 0; at < n.count; ++at) {
      found[kept] = n.id[at];  // written over unless it is near: no branch to guess
      kept -= near[at];
    }
    std::memcpy(idx + start_len[2 * int64_t{n.cell_id[point]}], found, kept * sizeof(int32_t));
  }
}

P3M_KERNEL void count_cell(const Neighbourhood<float>& n, int32_t* count) { count_near(n, count); }
P3M_KERNEL void count_cell(const Neighbourhood<double>& n, int32_t* count) { count_near(n, count); }
P3M_KERNEL void list_cell(const Neighbourhood<float>& n, int32_t* near, int32_t* found, const int32_t* start_len,
                          int32_t* idx) {
  list_near(n, near, found, start_len, idx);
}
P3M_KERNEL void list_cell(const Neighbourhood<double>& n, int64_t* near, int32_t* found, const int32_t* start_len,
                          int32_t* idx) {
  list_near(n, near, found, start_len, idx);
}

// rank[i] = how many of the `padded` values are less than value i. Values differ but for the padding, which is largest.
P3M_KERNEL void rank_values(const int32_t* value, int64_t count, int64_t padded, int32_t* rank) {
  for (int64_t i = 0; i < count; ++i) {
    Vector<int32_t> less = {};
    for (int64_t at = 0; at < padded; at += VectorOf<int32_t>::lanes) less -= load(value + at) < value[i];
    int32_t sum = 0;
    for (int64_t lane = 0; lane < VectorOf<int32_t>::lanes; ++lane) sum += less[lane];
    rank[i] = sum;
  }
}

// Up to here comparing all with all, which vectors do fast, beats sorting.
constexpr int64_t kRankLimit = 128;

// Where the candidates of some cells stand in the grid: runs of places, at most nine for each cell.
struct Runs {
  std::vector<std::pair<int32_t, int32_t>> run;  // begin and end
  std::vector<int32_t> end_of_cell;              // in `run`
};

constexpr int64_t kCells = 512;  // cells of one unit of work

template <class T, class Key>
Runs find_runs(const Grid<T, Key>& grid, int64_t begin, int64_t end) {
  std::array<Key, 9> shift;
  std::array<int64_t, 9> at;
  for (int64_t column = 0; column < 9; ++column) {
    shift[column] = grid.shift(column / 3 - 1, column % 3 - 1, -1);
    at[column] = grid.first_seek(grid.key[begin] + shift[column]);
  }
  Runs runs;
  runs.run.reserve(4 * (end - begin));
  runs.end_of_cell.reserve(end - begin);
  for (int64_t cell = begin; cell < end; ++cell) {
    std::pair<int32_t, int32_t> last{0, 0};
    for (int64_t column = 0; column < 9; ++column) {
      const Key low = grid.key[cell] + shift[column];
      at[column] = grid.seek(at[column], low);
      const int32_t from = grid.start[at[column]], to = grid.start[at[column] + grid.count(at[column], low, 2)];
      if (from == to) continue;
      if (from != last.second && last.first != last.second) runs.run.push_back(std::exchange(last, {from, to}));
      else last = {last.first == last.second ? from : last.first, to};
    }
    runs.run.push_back(last);
    runs.end_of_cell.push_back(static_cast<int32_t>(runs.run.size()));
  }
  return runs;
}

// The candidates of one cell after another; one per thread and unit.
template <class T, class Key>
class Gatherer {
 public:
  Gatherer(const Grid<T, Key>& grid, T square, int id_bits) : grid_(grid), square_(square), id_bits_(id_bits) {}

  // Candidates in the order of the grid, or by id.
  Neighbourhood<T> around(int64_t cell, const std::pair<int32_t, int32_t>* runs, int64_t num_runs, bool by_id) {
    count_ = 0;
    for (int64_t i = 0; i < num_runs; ++i) count_ += runs[i].second - runs[i].first;
    padded_ = (count_ + kLanes - 1) / kLanes * kLanes;
    if (static_cast<int64_t>(x_.size()) < padded_) make_room(2 * padded_);
    int64_t to = 0;
    if (by_id) {
      for (int64_t i = 0; i < num_runs; ++i)
        for (int32_t place = runs[i].first; place < runs[i].second; ++place) other_[to++] = place;
      if (count_ <= kRankLimit) sort_by_rank();
      else sort_by_digits();
      for (int64_t i = 0; i < count_; ++i) {
        const int32_t place = order_[i];
        x_[i] = grid_.x[place], y_[i] = grid_.y[place], z_[i] = grid_.z[place], id_[i] = grid_.row[place];
      }
    } else {
      for (int64_t i = 0; i < num_runs; ++i)
        for (int32_t place = runs[i].first; place < runs[i].second; ++place, ++to)
          x_[to] = grid_.x[place], y_[to] = grid_.y[place], z_[to] = grid_.z[place];
    }
    for (int64_t i = count_; i < padded_; ++i) x_[i] = y_[i] = z_[i] = std::numeric_limits<T>::quiet_NaN();
    const int64_t begin = grid_.start[cell];
    return {x_.data(),
            y_.data(),
            z_.data(),
            id_.data(),
            count_,
            padded_,
            grid_.x.get() + begin,
            grid_.y.get() + begin,
            grid_.z.get() + begin,
            grid_.row.data() + begin,
            grid_.start[cell + 1] - begin,
            square_};
  }

  Truth<T>* near() { return near_.data(); }
  int32_t* found() { return order_.data(); }

 private:
  void make_room(int64_t room) {
    for (auto* values : {&x_, &y_, &z_}) values->resize(room);
    for (auto* values : {&id_, &order_, &other_}) values->resize(room + 1);
    near_.resize(room);
  }

  // Both leave the places of `other_` in `order_`, by ascending id.
  void sort_by_rank() {
    int32_t rank[kRankLimit];
    for (int64_t i = 0; i < padded_; ++i)
      id_[i] = i < count_ ? grid_.row[other_[i]] : std::numeric_limits<int32_t>::max();
    rank_values(id_.data(), count_, padded_, rank);
    for (int64_t i = 0; i < count_; ++i) order_[rank[i]] = other_[i];
  }

  void sort_by_digits() {
    const int passes = (id_bits_ + 7) / 8, width = (id_bits_ + passes - 1) / passes;
    for (int shift = 0; shift < id_bits_; shift += width) {
      std::array<int32_t, 256> place{};
      const auto digit = [&](int32_t from) { return (grid_.row[from] >> shift) & ((1 << width) - 1); };
      for (int64_t i = 0; i < count_; ++i) ++place[digit(other_[i])];
      int32_t total = 0;
      for (int32_t& p : place) total += std::exchange(p, total);
      for (int64_t i = 0; i < count_; ++i) order_[place[digit(other_[i])]++] = other_[i];
      order_.swap(other_);
    }
    order_.swap(other_);
  }

  const Grid<T, Key>& grid_;
  T square_;
  int id_bits_;
  int64_t count_ = 0, padded_ = 0;
  std::vector<T> x_, y_, z_;
  std::vector<int32_t> id_, order_, other_;
  std::vector<Truth<T>> near_;
};

template <class Key, class T>
Tensor list_balls(const Tensor& coord, const Tensor& start_len, const int32_t* group, const GridPlan& plan, T square) {
  const int64_t num_points = coord.size(0);
  const Grid<T, Key> grid = fill_grid<Key>(coord.const_data_ptr<T>(), num_points, group, plan);
  const int64_t units = (grid.num_cells() + kCells - 1) / kCells;
  const int id_bits = std::bit_width(static_cast<uint64_t>(num_points));
  std::vector<Runs> runs(units);
  const auto for_cells = [&](int64_t unit, bool by_id, const auto& work) {
    Gatherer<T, Key> gatherer(grid, square, id_bits);
    int64_t first = 0;
    for (size_t i = 0; i < runs[unit].end_of_cell.size(); ++i) {
      const int64_t end = runs[unit].end_of_cell[i];
      work(gatherer,
           gatherer.around(unit * kCells + static_cast<int64_t>(i), runs[unit].run.data() + first, end - first, by_id));
      first = end;
    }
  };

  std::vector<int32_t> count(num_points);
  share_units(units, [&](int64_t unit) {
    runs[unit] = find_runs(grid, unit * kCells, std::min(grid.num_cells(), (unit + 1) * kCells));
    for_cells(unit, false, [&](auto&, const Neighbourhood<T>& n) { count_cell(n, count.data()); });
  });
  int64_t total = 0;
  int32_t* lists = start_len.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < num_points; ++i) {
    lists[2 * i] = static_cast<int32_t>(total), lists[2 * i + 1] = count[i];
    total += count[i];
  }
  check_total(total);
  const Tensor idx = torch::stable::new_empty(start_len, {total});
  int32_t* to = idx.mutable_data_ptr<int32_t>();
  share_units(units, [&](int64_t unit) {
    for_cells(unit, true, [&](auto& gatherer, const Neighbourhood<T>& n) {
      list_cell(n, gatherer.near(), gatherer.found(), lists, to);
    });
  });
  return idx;
}

template <class T>
Tensor list_balls(const Tensor& coord, const Tensor& offset, const Tensor& start_len, double wide_radius) {
  const T radius = static_cast<T>(wide_radius);
  const std::vector<int32_t> item = item_of_points(offset, coord.size(0));
  const GridPlan plan = plan_grid(coord.const_data_ptr<T>(), coord.size(0), radius, CellSize::radius, offset.size(0));
  if (plan.fits_64()) return list_balls<uint64_t, T>(coord, start_len, item.data(), plan, radius * radius);
  return list_balls<unsigned __int128, T>(coord, start_len, item.data(), plan, radius * radius);
}

std::tuple<Tensor, Tensor> ballquery_batch_p(const Tensor& coord, const Tensor& offset, double radius) {
  check_cloud(coord, offset, radius);
  const Tensor start_len = torch::stable::new_empty(offset, {coord.size(0), 2}, ScalarType::Int);
  const bool single = coord.scalar_type() == ScalarType::Float;
  const Tensor idx = single ? list_balls<float>(coord, offset, start_len, radius)
                            : list_balls<double>(coord, offset, start_len, radius);
  return {idx, start_len};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) { m.impl("ballquery_batch_p", TORCH_BOX(&ballquery_batch_p)); }

}  // namespace pointcept3m
