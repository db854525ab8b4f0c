// visible_points and fuse_views on the CPU. fuse_views takes blocks of points that are neighbours in space: a view's
// frustum misses most blocks as a whole, and the points of one block read the same few cells of each map.
#include "common/exact_math.h"

#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "common/radix_sort.h"
#include "view_fusion/add_rows.h"
#include "view_fusion/arguments.h"
#include "view_fusion/channels_last.h"
#include "view_fusion/project.h"

namespace pointcept3m {
namespace {

constexpr int kAxisBits = 10;  // of a point's place in the order in space

std::tuple<Tensor, Tensor> visible_points(const Tensor& coord, const Tensor& matrix, int64_t height, int64_t width,
                                          const std::optional<Tensor>& depth, double tolerance, int64_t border) {
  check_contiguous_cpu(coord, "coord");
  check_contiguous_cpu(matrix, "matrix");
  if (depth) check_contiguous_cpu(*depth, "depth");
  const Views views = views_of(coord, matrix, height, width, depth, tolerance, border);
  const int64_t num_points = coord.size(0);
  const Tensor pixel = torch::stable::new_empty(coord, {views.count, num_points, 2});
  const Tensor visible = torch::stable::new_empty(coord, {views.count, num_points}, ScalarType::Bool);
  const float* points = coord.const_data_ptr<float>();
  float* pixels = pixel.mutable_data_ptr<float>();
  bool* seen = visible.mutable_data_ptr<bool>();
  share_units((num_points + kBlock - 1) / kBlock, [&](int64_t unit) {
    Block block;
    const int64_t begin = unit * kBlock;
    fill_block(block, points, nullptr, begin, std::min(kBlock, num_points - begin));
    for (int64_t view = 0; view < views.count; ++view) {
      project_block(views.matrix + 12 * view, block);
      const int64_t first = view * num_points + begin;
      for (int64_t i = 0; i < block.count; ++i) {
        pixels[2 * (first + i)] = block.u[i];
        pixels[2 * (first + i) + 1] = block.v[i];
        seen[first + i] = is_visible(views, view, block.u[i], block.v[i], block.z[i]);
      }
    }
  });
  return {pixel, visible};
}

// Every third bit from the lowest on.
inline uint64_t spread(uint64_t value) {
  value = (value | value << 16) & 0x030000ff;
  value = (value | value << 8) & 0x0300f00f;
  value = (value | value << 4) & 0x030c30c3;
  return (value | value << 2) & 0x09249249;
}

// Numbers of the points along a Z-curve, those that are not finite last.
std::unique_ptr<int32_t[]> order_in_space(const float* coord, int64_t count) {
  float least[3], most[3];
  std::fill(least, least + 3, std::numeric_limits<float>::infinity());
  std::fill(most, most + 3, -std::numeric_limits<float>::infinity());
  const auto finite = [&](int64_t i) {
    return std::isfinite(coord[3 * i]) && std::isfinite(coord[3 * i + 1]) && std::isfinite(coord[3 * i + 2]);
  };
  for (int64_t i = 0; i < count; ++i) {
    if (!finite(i)) continue;
    for (int d = 0; d < 3; ++d) {
      least[d] = std::min(least[d], coord[3 * i + d]);
      most[d] = std::max(most[d], coord[3 * i + d]);
    }
  }
  double extent = 0;
  for (int d = 0; d < 3; ++d) extent = std::max(extent, static_cast<double>(most[d]) - least[d]);
  const double scale = extent > 0 ? ((1 << kAxisBits) - 1) / extent : 0;
  int row_bits = 1;
  while (count >> row_bits > 0) ++row_bits;
  Items<Packed> items(count, 3 * kAxisBits + 1, row_bits);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t key = uint64_t{1} << 3 * kAxisBits;
    if (finite(i)) {
      key = 0;
      for (int d = 0; d < 3; ++d)
        key |= spread(static_cast<uint64_t>((static_cast<double>(coord[3 * i + d]) - least[d]) * scale)) << d;
    }
    items.now[i] = Packed::make(key, i, row_bits);
  }
  sort_items(items);
  std::unique_ptr<int32_t[]> order(new int32_t[count]);
  for (int64_t i = 0; i < count; ++i) order[i] = static_cast<int32_t>(items.now[i].row(row_bits));
  return order;
}

// Along an axis: the lower of the two cells around a position, and the upper one's share.
struct Place {
  int64_t cell;
  float share;
};

P3M_INLINE Place place_between(float position, int64_t cells, int64_t length) {
  const double scale = static_cast<double>(cells) / static_cast<double>(length);
  const double place = std::min(std::max(position * scale - 0.5, 0.0), static_cast<double>(cells - 1));
  const int64_t cell = std::min(static_cast<int64_t>(place), std::max<int64_t>(cells - 2, 0));
  return {cell, static_cast<float>(place - static_cast<double>(cell))};
}

P3M_INLINE int64_t cell_under(float position, int64_t cells, int64_t length) {
  return (2 * static_cast<int64_t>(position) + 1) * cells / (2 * length);
}

inline Tap tap_at(const Views& views, const Maps& maps, int64_t view, float u, float v) {
  Place column, row;
  if (maps.bilinear) {
    column = place_between(u, maps.columns, views.width);
    row = place_between(v, maps.rows, views.height);
  } else {
    column = {cell_under(u, maps.columns, views.width), 0};
    row = {cell_under(v, maps.rows, views.height), 0};
  }
  const int64_t cell = (view * maps.rows + row.cell) * maps.columns + column.cell;
  return {cell * maps.channels, column.share, row.share};
}

// The taps of a block's points, gathered view after view and handed out point after point.
class Taps {
 public:
  void find(const Views& views, const Maps& maps, Block& block) {
    found_.clear();
    owner_.clear();
    for (int64_t view = 0; view < views.count; ++view) {
      if (!may_see(views, view, block)) continue;
      project_block(views.matrix + 12 * view, block);
      for (int64_t i = 0; i < block.count; ++i) {
        if (!is_visible(views, view, block.u[i], block.v[i], block.z[i])) continue;
        found_.push_back(tap_at(views, maps, view, block.u[i], block.v[i]));
        owner_.push_back(static_cast<int32_t>(i));
      }
    }
  }

  // Sorts by point, views in their order, and gives where each point's taps begin, [points + 1].
  const int64_t* sort(int64_t points) {
    std::fill(begin_, begin_ + points + 1, 0);
    for (const int32_t i : owner_) ++begin_[i + 1];
    for (int64_t i = 0; i < points; ++i) begin_[i + 1] += begin_[i];
    std::copy(begin_, begin_ + points, next_);
    sorted_.resize(found_.size());
    for (size_t k = 0; k < found_.size(); ++k) sorted_[next_[owner_[k]]++] = found_[k];
    return begin_;
  }

  const Tap* sorted() const { return sorted_.data(); }

 private:
  std::vector<Tap> found_, sorted_;
  std::vector<int32_t> owner_;
  int64_t begin_[kBlock + 1], next_[kBlock];
};

void fuse_views(const Tensor& total, const Tensor& count, const Tensor& coord, const Tensor& maps,
                const Tensor& matrix, int64_t height, int64_t width, const std::optional<Tensor>& depth,
                double tolerance, int64_t border, bool bilinear) {
  check_contiguous_cpu(total, "total");
  check_contiguous_cpu(count, "count");
  check_contiguous_cpu(coord, "coord");
  STD_TORCH_CHECK(maps.is_cpu(), "maps must be a CPU tensor");
  check_contiguous_cpu(matrix, "matrix");
  if (depth) check_contiguous_cpu(*depth, "depth");
  const Views views = views_of(coord, matrix, height, width, depth, tolerance, border);
  Maps features = maps_of(total, count, coord, maps, matrix, bilinear);
  const int64_t num_points = coord.size(0), channels = features.channels;
  std::unique_ptr<float[]> copy;
  if (!maps.is_contiguous()) {
    STD_TORCH_CHECK(is_channels_first(maps), "maps must be contiguous, or have channels first in memory");
    copy = with_channels_last(features, views.count);
    features.cells = copy.get();
  }
  const Grid grid{features.cells, channels, features.columns > 1 ? channels : 0,
                  features.rows > 1 ? features.columns * channels : 0, bilinear};
  const float* points = coord.const_data_ptr<float>();
  float* sums = total.mutable_data_ptr<float>();
  int32_t* counts = count.mutable_data_ptr<int32_t>();
  const auto order = order_in_space(points, num_points);
  share_units((num_points + kBlock - 1) / kBlock, [&](int64_t unit) {
    Block block;
    Taps taps;
    const int32_t* numbers = order.get() + unit * kBlock;
    fill_block(block, points, numbers, 0, std::min(kBlock, num_points - unit * kBlock));
    measure_block(block);
    taps.find(views, features, block);
    const int64_t* begin = taps.sort(block.count);
    Sum work[kBlock];
    int64_t used = 0;
    for (int64_t i = 0; i < block.count; ++i) {
      if (begin[i] == begin[i + 1]) continue;
      counts[numbers[i]] += static_cast<int32_t>(begin[i + 1] - begin[i]);
      work[used++] = {sums + numbers[i] * channels, taps.sorted() + begin[i], taps.sorted() + begin[i + 1]};
    }
    add_rows(grid, work, used);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("visible_points", TORCH_BOX(&visible_points));
  m.impl("fuse_views", TORCH_BOX(&fuse_views));
}

}  // namespace pointcept3m
