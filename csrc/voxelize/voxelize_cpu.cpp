// Voxels of a cloud on the CPU: cells in float64, exact keys in the order (cloud, x, y, z), a stable radix sort.
// Nothing is hashed, so nothing collides, and the order of voxels and points depends on nothing but the input.
#include "common/exact_math.h"

#include <array>
#include <tuple>

#include "common/pages.h"
#include "voxelize/arguments.h"
#include "voxelize/groups.h"
#include "voxelize/quantise.h"

namespace pointcept3m {
namespace {

constexpr int64_t kBlock = 1 << 14;  // points of one unit of work; a smaller cloud wakes no other thread

P3M_KERNEL Bounds quantise(const Grid& grid, const float* coord, int64_t begin, int64_t end, int64_t* cells) {
  return quantise_points(grid, coord, begin, end, cells);
}
P3M_KERNEL Bounds quantise(const Grid& grid, const double* coord, int64_t begin, int64_t end, int64_t* cells) {
  return quantise_points(grid, coord, begin, end, cells);
}

// Writes the cells of all points; the bounds of every unit of kBlock of them.
template <class T>
std::vector<Bounds> quantise_all(const Grid& grid, const Tensor& coord, int64_t* cells) {
  const T* from = coord.const_data_ptr<T>();
  const int64_t count = coord.size(0);
  std::vector<Bounds> bounds((count + kBlock - 1) / kBlock);
  share_units(static_cast<int64_t>(bounds.size()), [&](int64_t unit) {
    bounds[unit] = quantise(grid, from, unit * kBlock, std::min(count, (unit + 1) * kBlock), cells);
  });
  for (const Bounds& part : bounds)
    STD_TORCH_CHECK(part.valid, "coord has values that are not finite, or cells beyond 2^62");
  return bounds;
}

using Cell = std::array<int64_t, 3>;

Cell to_cell(const double* values) {
  return {static_cast<int64_t>(values[0]), static_cast<int64_t>(values[1]), static_cast<int64_t>(values[2])};
}

std::pair<int64_t, int64_t> value_range(const int64_t* values, int64_t count) {
  int64_t least = values[0], most = values[0];
  for (int64_t i = 1; i < count; ++i) least = std::min(least, values[i]), most = std::max(most, values[i]);
  return {least, most};
}

// The lowest cell of every cloud, and the size of a box that holds any of them. Clouds without points lie at 0.
struct Clouds {
  std::vector<Cell> low;
  Cell size{1, 1, 1};
};

// `batch` is null for a single cloud. Its values lie in [0, num_clouds).
Clouds find_clouds(const std::vector<Bounds>& bounds, const int64_t* cells, const int64_t* batch, int64_t count,
                   int64_t num_clouds) {
  Clouds clouds{std::vector<Cell>(num_clouds)};
  std::vector<Cell> top(num_clouds);
  std::vector<char> seen(num_clouds, 0);
  const auto widen = [&](int64_t cloud, const Cell& least, const Cell& most) {
    Cell &low = clouds.low[cloud], &high = top[cloud];
    if (!std::exchange(seen[cloud], 1)) low = least, high = most;
    for (int d = 0; d < 3; ++d) low[d] = std::min(low[d], least[d]), high[d] = std::max(high[d], most[d]);
  };
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock), first = batch ? batch[begin] : 0;
    const Bounds& all = bounds[begin / kBlock];
    if (!batch || std::all_of(batch + begin, batch + end, [first](int64_t cloud) { return cloud == first; })) {
      widen(first, to_cell(all.low), to_cell(all.high));
      continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      const Cell cell{cells[3 * i], cells[3 * i + 1], cells[3 * i + 2]};
      widen(batch[i], cell, cell);
    }
  }
  for (int64_t b = 0; b < num_clouds; ++b)
    for (int d = 0; d < 3; ++d) clouds.size[d] = std::max(clouds.size[d], top[b][d] - clouds.low[b][d] + 1);
  return clouds;
}

Tensor new_integers(const Tensor& like, const std::vector<int64_t>& shape) {
  const Tensor result = torch::stable::new_empty(like, shape, ScalarType::Long);
  ask_for_huge_pages(result.data_ptr(), result.numel() * sizeof(int64_t));
  return result;
}

using GroupTensors = std::tuple<Tensor, Tensor, Tensor>;

// Groups of equal keys: order [N], start [V + 1], inverse [N]. `make_keys(begin, end, store)` calls
// `store(row, key)` for the rows in [begin, end); keys lie below 2^key_bits.
template <class Item, class MakeKeys>
GroupTensors group_as(const Tensor& like, int64_t count, int key_bits, int row_bits, const MakeKeys& make_keys) {
  Items<Item> items(count, key_bits, row_bits);
  ask_for_huge_pages(items.now.get(), count * sizeof(Item));
  ask_for_huge_pages(items.spare.get(), count * sizeof(Item));
  std::atomic<bool> sorted{true};
  share_units((count + kBlock - 1) / kBlock, [&](int64_t unit) {
    const int64_t begin = unit * kBlock, end = std::min(count, begin + kBlock);
    Item* to = items.now.get();
    make_keys(begin, end, [to, row_bits](int64_t row, uint64_t key) { to[row] = Item::make(key, row, row_bits); });
    int64_t descents = 0;
    for (int64_t i = begin + 1; i < end; ++i) descents += (to[i - 1].word >> row_bits) > (to[i].word >> row_bits);
    if (descents) sorted.store(false, std::memory_order_relaxed);
  });
  for (int64_t i = kBlock; sorted && i < count; i += kBlock)
    if (items.key(i - 1) > items.key(i)) sorted = false;
  if (!sorted) sort_items(items);
  const std::vector<int64_t> before = count_groups(items);
  const auto empty = [&](int64_t size) { return new_integers(like, {size}); };
  const Tensor order = empty(count), start = empty(before.back() + 1), inverse = empty(count);
  const auto data = [](const Tensor& tensor) { return tensor.mutable_data_ptr<int64_t>(); };
  fill_groups(items, before, {data(order), data(inverse), data(start)});
  return {order, start, inverse};
}

template <class MakeKeys>
GroupTensors group(const Tensor& like, int64_t count, uint64_t largest, const MakeKeys& make_keys) {
  const int key_bits = std::bit_width(largest), row_bits = std::bit_width(static_cast<uint64_t>(count));
  if (key_bits + row_bits <= 64) return group_as<Packed>(like, count, key_bits, row_bits, make_keys);
  return group_as<Wide>(like, count, key_bits, 0, make_keys);
}

Tensor count_rows(const Tensor& start) {
  const int64_t groups = start.size(0) - 1;
  const Tensor counts = torch::stable::new_empty(start, {groups});
  const int64_t* from = start.const_data_ptr<int64_t>();
  int64_t* to = counts.mutable_data_ptr<int64_t>();
  for (int64_t g = 0; g < groups; ++g) to[g] = from[g + 1] - from[g];
  return counts;
}

using Voxels = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Without an origin, cells are counted from the lowest one of each cloud.
Voxels voxelize(const Tensor& coord, const std::vector<double>& grid_size, const std::optional<Tensor>& batch,
                int64_t num_clouds, const std::vector<double>& origin) {
  check_arguments(check_contiguous_cpu, coord, grid_size, batch, origin);
  const int64_t count = coord.size(0);
  const int64_t* cloud = batch ? batch->const_data_ptr<int64_t>() : nullptr;
  const auto [first, last] = batch && count ? value_range(cloud, count) : std::pair<int64_t, int64_t>(0, -1);
  num_clouds = batch ? check_clouds(first, last, num_clouds) : 1;
  const Tensor grid_coord = new_integers(coord, {count, 3});
  int64_t* cells = grid_coord.mutable_data_ptr<int64_t>();
  const double zero[3] = {};
  const Grid grid(grid_size.data(), origin.empty() ? zero : origin.data());
  const bool single = coord.scalar_type() == ScalarType::Float;
  const auto bounds = single ? quantise_all<float>(grid, coord, cells) : quantise_all<double>(grid, coord, cells);
  const Clouds clouds = find_clouds(bounds, cells, cloud, count, num_clouds);
  const bool shift = origin.empty();
  const uint64_t largest = largest_key(num_clouds, clouds.size.data());
  const auto [order, start, inverse] = group(coord, count, largest, [&](int64_t begin, int64_t end, const auto& store) {
    const Cell size = clouds.size, *low = clouds.low.data();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = cloud ? cloud[i] : 0;
      int64_t* cell = cells + 3 * i;
      const int64_t place[3] = {cell[0] - low[b][0], cell[1] - low[b][1], cell[2] - low[b][2]};
      for (int d = 0; d < 3; ++d) cell[d] = shift ? place[d] : cell[d];
      store(i, static_cast<uint64_t>(((b * size[0] + place[0]) * size[1] + place[1]) * size[2] + place[2]));
    }
  });
  const Tensor lowest = torch::stable::new_zeros(grid_coord, {num_clouds, 3});
  int64_t* low = lowest.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; shift && i < 3 * num_clouds; ++i) low[i] = clouds.low[i / 3][i % 3];
  return {grid_coord, lowest, inverse, count_rows(start), order, start};
}

GroupTensors group_keys(const Tensor& keys) {
  check_keys(check_contiguous_cpu, keys);
  const int64_t count = keys.size(0);
  const int64_t* key = keys.const_data_ptr<int64_t>();
  const auto [low, high] = count ? value_range(key, count) : std::pair<int64_t, int64_t>(0, 0);
  // Unsigned, as the distance of two int64 need not fit an int64.
  const auto above = [low = low](int64_t value) { return static_cast<uint64_t>(value) - static_cast<uint64_t>(low); };
  return group(keys, count, above(high), [&](int64_t begin, int64_t end, const auto& store) {
    for (int64_t i = begin; i < end; ++i) store(i, above(key[i]));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("voxelize", TORCH_BOX(&voxelize));
  m.impl("group_keys", TORCH_BOX(&group_keys));
}

}  // namespace pointcept3m
