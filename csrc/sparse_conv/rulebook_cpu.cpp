// Rulebooks: which input row meets which output row under which kernel offset.
//
// Cells stand in lexicographic order, so for one offset the partner's key is the own key plus a constant (or,
// with a stride, a linear map): walking the cells upwards, the partner only moves upwards too. One list of
// pairs per offset is therefore in ascending order on both sides, and serves forward, backward and inverse.
#include <limits>
#include <tuple>

#include "common/check.h"
#include "sparse_conv/voxel_keys.h"

namespace pointcept3m {
namespace {

using Size3 = std::array<int64_t, 3>;

// Numbers beyond these make no sense, and would overflow on the way.
constexpr int64_t kLargest = std::numeric_limits<int32_t>::max(), kMostOffsets = 1 << 20;

Size3 size3(const std::vector<int64_t>& values, const char* name, int64_t least) {
  STD_TORCH_CHECK(values.size() == 3, name, " must have three entries");
  for (int64_t value : values)
    STD_TORCH_CHECK(value >= least && value <= kLargest, name, " must lie in [", least, ", 2^31), got ", value);
  return {values[0], values[1], values[2]};
}

Size3 kernel3(const std::vector<int64_t>& values) {
  const Size3 kernel = size3(values, "kernel_size", 1);
  STD_TORCH_CHECK(
      kernel[0] <= kMostOffsets && kernel[1] <= kMostOffsets && kernel[0] * kernel[1] <= kMostOffsets / kernel[2],
      "kernel_size must not have more than 2^20 offsets");
  return kernel;
}

int64_t check_coord(const Tensor& coord) {
  check_contiguous_cpu(coord, "coord");
  STD_TORCH_CHECK(coord.dim() == 2 && coord.size(1) == 4 && coord.scalar_type() == ScalarType::Int,
                  "coord must be int32 [rows, 4]");
  STD_TORCH_CHECK(coord.size(0) < (int64_t{1} << 30), "a rulebook takes fewer than 2^30 rows");
  return coord.size(0);
}

Tensor to_tensor(const std::vector<int64_t>& values, const Tensor& like) {
  const Tensor out = torch::stable::new_empty(like, {static_cast<int64_t>(values.size())}, ScalarType::Long);
  std::copy(values.begin(), values.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

// int64 [2, 4]: smallest and largest value of each column; zeros where there are no rows.
Tensor coord_bounds(const Tensor& coord) {
  const KeyBox box = bounding_box(coord.const_data_ptr<int32_t>(), check_coord(coord), {0, 0, 0});
  const Tensor out = torch::stable::new_zeros(coord, {2, 4}, ScalarType::Long);
  int64_t* to = out.mutable_data_ptr<int64_t>();
  for (int d = 0; d < 4; ++d) to[d] = box.low[d], to[4 + d] = box.low[d] + box.size[d] - 1;
  return out;
}

// Cells without duplicates are named by their row, else by their place among the cells.
struct Names {
  const Cells& cells;
  bool rows;
  explicit Names(const Cells& c) : cells(c), rows(c.count == static_cast<int64_t>(c.cell.size())) {}
  int32_t operator()(int64_t cell) const { return rows ? cells.row[cell] : static_cast<int32_t>(cell); }

  // int32: the place in cell order of whatever carries a name.
  Tensor rank(const Tensor& like) const {
    const Tensor out = torch::stable::new_empty(like, {cells.count});
    int32_t* place = out.mutable_data_ptr<int32_t>();
    for (int64_t cell = 0; cell < cells.count; ++cell) place[(*this)(cell)] = static_cast<int32_t>(cell);
    return out;
  }
  // int64: the cell of each row, or nothing where every cell is one row.
  Tensor cell(const Tensor& like) const { return to_tensor(rows ? std::vector<int64_t>() : cells.cell, like); }
};

// Calls found(k, neighbour, cell) for each neighbour of the cells [begin, end) at an offset k before the centre.
template <class Found>
void walk_neighbours(const Cells& cells, int64_t begin, int64_t end, const Size3& kernel, const Size3& dilation,
                     const Found& found) {
  const Size3 radius{kernel[0] / 2, kernel[1] / 2, kernel[2] / 2};
  const int64_t columns = kernel[0] * kernel[1];
  for (int64_t column = 0; column <= columns / 2; ++column) {
    const int64_t dx = (column / kernel[1] - radius[0]) * dilation[0],
                  dy = (column % kernel[1] - radius[1]) * dilation[1];
    const int64_t shift = (dx * cells.box.size[2] + dy) * cells.box.size[3];
    // In the centre's own column only what lies below the centre.
    const int64_t above = column == columns / 2 ? -1 : radius[2] * dilation[2];
    const uint64_t below = radius[2] * dilation[2];
    const uint64_t span = static_cast<uint64_t>(above + static_cast<int64_t>(below));
    if (column == columns / 2 && below == 0) continue;
    const uint64_t* keys = cells.key.data();
    const uint64_t* near = std::lower_bound(keys, keys + cells.count, begin < end ? keys[begin] + shift - below : 0);
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t low = keys[i] + shift - below;
      while (*near < low) ++near;
      for (const uint64_t* k = near; *k - low <= span; ++k) {
        const int64_t step = static_cast<int64_t>(*k - low);
        if (dilation[2] != 1 && step % dilation[2]) continue;
        found(column * kernel[2] + step / dilation[2], k - keys, i);
      }
    }
  }
}

constexpr int64_t kChunk = 8192;  // cells of one unit of work

// Two cells that meet at offset k, which lies before the centre.
struct Neighbours {
  int32_t k, neighbour, cell;
};

// (pairs [2, P] int32, input and output; start [K + 1] int64; rank [cells] int32; cell [rows] int64 or empty).
std::tuple<Tensor, Tensor, Tensor, Tensor> submanifold_pairs(const Tensor& coord, std::vector<int64_t> kernel_size,
                                                             std::vector<int64_t> dilation_) {
  const int64_t num_rows = check_coord(coord);
  const Size3 kernel = kernel3(kernel_size), dilation = size3(dilation_, "dilation", 1);
  Size3 margin;
  for (int d = 0; d < 3; ++d) {
    STD_TORCH_CHECK(kernel[d] % 2 == 1, "a submanifold kernel must be odd");
    margin[d] = kernel[d] / 2 * dilation[d];
  }
  const int32_t* rows = coord.const_data_ptr<int32_t>();
  const KeyBox box = bounding_box(rows, num_rows, margin);
  STD_TORCH_CHECK(box.fits(), "coord spans too large a volume for 64-bit keys");
  const Cells cells = find_cells(rows, num_rows, box);
  const Names name(cells);

  // Looking for neighbours is mostly mispredicted branches, so it is done once: what is found is noted, and written
  // to its place when the number of pairs of each offset is known.
  const int64_t volume = kernel[0] * kernel[1] * kernel[2], center = volume / 2;
  const int64_t chunks = (cells.count + kChunk - 1) / kChunk;
  std::vector<int64_t> cursor(chunks * center), start(volume + 1);
  std::vector<std::vector<Neighbours>> found(chunks);
  share_units(chunks, [&](int64_t chunk) {
    int64_t* count = cursor.data() + chunk * center;
    std::vector<Neighbours>& here = found[chunk];
    here.reserve(4 * kChunk);
    walk_neighbours(cells, chunk * kChunk, std::min(cells.count, (chunk + 1) * kChunk), kernel, dilation,
                    [&](int64_t k, int64_t neighbour, int64_t cell) {
                      ++count[k];
                      here.push_back({static_cast<int32_t>(k), name(neighbour), name(cell)});
                    });
  });
  std::vector<int64_t> length(volume, cells.count);
  for (int64_t k = 0; k < center; ++k) {
    int64_t total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += std::exchange(cursor[chunk * center + k], total);
    length[k] = length[volume - 1 - k] = total;
  }
  for (int64_t k = 0; k < volume; ++k) start[k + 1] = start[k] + length[k];

  const int64_t total = start[volume];
  const Tensor pairs = torch::stable::new_empty(coord, {2, total});
  int32_t* in = pairs.mutable_data_ptr<int32_t>();
  int32_t* out = in + total;
  share_units(chunks, [&](int64_t chunk) {
    int64_t* place = cursor.data() + chunk * center;
    for (const auto [k, a, b] : found[chunk]) {
      const int64_t here = place[k]++, first = start[k] + here, second = start[volume - 1 - k] + here;
      in[first] = a, out[first] = b;
      in[second] = b, out[second] = a;  // seen from the neighbour, the same pair lies at the mirrored offset
    }
    for (int64_t cell = chunk * kChunk; cell < std::min(cells.count, (chunk + 1) * kChunk); ++cell)
      in[start[center] + cell] = out[start[center] + cell] = name(cell);
  });
  return {pairs, to_tensor(start, coord), name.rank(coord), name.cell(coord)};
}

// Along one axis: the kernel positions under which an input coordinate reaches an output, and which output. Cells in
// order change x and y rarely, so that what the last coordinate reached is kept.
class Axis {
 public:
  struct Reach {
    int64_t position, output;
  };

  Axis(int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, int64_t out_size)
      : kernel_(kernel), stride_(stride), padding_(padding), dilation_(dilation), out_size_(out_size) {}

  const std::vector<Reach>& reached_from(int64_t input) {
    if (input == last_) return reached_;
    last_ = input;
    reached_.clear();
    for (int64_t position = 0; position < kernel_; ++position) {
      const int64_t target = input + padding_ - position * dilation_, output = target / stride_;
      if (target >= 0 && output * stride_ == target && output < out_size_) reached_.push_back({position, output});
    }
    return reached_;
  }

 private:
  int64_t kernel_, stride_, padding_, dilation_, out_size_;
  int64_t last_ = std::numeric_limits<int64_t>::min();
  std::vector<Reach> reached_;
};

struct Candidate {
  uint64_t key;
  int32_t cell;
};

// The same four for the inputs, and coord_out [M, 4] int32; outputs stand in cell order.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> strided_pairs(const Tensor& coord, std::vector<int64_t> kernel_size,
                                                                 std::vector<int64_t> stride_,
                                                                 std::vector<int64_t> padding_,
                                                                 std::vector<int64_t> dilation_,
                                                                 std::vector<int64_t> out_shape) {
  const int64_t num_rows = check_coord(coord);
  const Size3 kernel = kernel3(kernel_size), stride = size3(stride_, "stride", 1),
              padding = size3(padding_, "padding", 0);
  const Size3 dilation = size3(dilation_, "dilation", 1), shape = size3(out_shape, "out_shape", 1);
  const int32_t* rows = coord.const_data_ptr<int32_t>();
  const KeyBox box = bounding_box(rows, num_rows, {0, 0, 0});
  KeyBox out_box;
  out_box.low[0] = box.low[0], out_box.size = {box.size[0], shape[0], shape[1], shape[2]};
  STD_TORCH_CHECK(box.fits() && out_box.fits(), "coord spans too large a volume for 64-bit keys");
  const Cells cells = find_cells(rows, num_rows, box);

  const int64_t volume = kernel[0] * kernel[1] * kernel[2];
  std::vector<std::vector<Candidate>> reached(volume);
  const auto axis = [&](int d) { return Axis(kernel[d], stride[d], padding[d], dilation[d], shape[d]); };
  Axis along_x = axis(0), along_y = axis(1), along_z = axis(2);
  for (int64_t cell = 0; cell < cells.count; ++cell) {
    const int32_t* c = rows + 4 * int64_t{cells.row[cell]};
    for (const Axis::Reach& x : along_x.reached_from(c[1]))
      for (const Axis::Reach& y : along_y.reached_from(c[2]))
        for (const Axis::Reach& z : along_z.reached_from(c[3]))
          reached[(x.position * kernel[1] + y.position) * kernel[2] + z.position].push_back(
              {out_box.key(c[0], x.output, y.output, z.output), static_cast<int32_t>(cell)});
  }
  std::vector<int64_t> start(volume + 1);
  for (int64_t k = 0; k < volume; ++k) start[k + 1] = start[k] + static_cast<int64_t>(reached[k].size());
  const int64_t total = start[volume];

  STD_TORCH_CHECK(total <= std::numeric_limits<uint32_t>::max(), "a rulebook takes fewer than 2^32 pairs");
  Items<Wide> sorted(total, out_box.key_bits(), 0);
  share_units(volume, [&](int64_t k) {
    for (size_t p = 0; p < reached[k].size(); ++p) sorted.now[start[k] + p] = Wide::make(reached[k][p].key, 0);
  });
  sort_unless_sorted(sorted);
  std::vector<uint64_t> sites;
  for (int64_t i = 0; i < total; ++i)
    if (sites.empty() || sites.back() != sorted.key(i)) sites.push_back(sorted.key(i));
  const auto num_out = static_cast<int64_t>(sites.size());
  const Tensor coord_out = torch::stable::new_empty(coord, {num_out, 4});
  int32_t* out_rows = coord_out.mutable_data_ptr<int32_t>();
  uint64_t column = 0;  // key of the first site with the same batch, x and y
  for (int64_t i = 0; i < num_out; ++i) {
    int32_t* row = out_rows + 4 * i;
    uint64_t key = sites[i];
    if (i > 0 && key - column < static_cast<uint64_t>(shape[2])) {
      std::copy(row - 4, row - 1, row);
      row[3] = static_cast<int32_t>(key - column);
      continue;
    }
    column = key - key % shape[2];
    for (int d = 3; d > 0; --d) {
      row[d] = static_cast<int32_t>(key % shape[d - 1]);
      key /= shape[d - 1];
    }
    row[0] = static_cast<int32_t>(static_cast<int64_t>(key) + out_box.low[0]);
  }

  const Tensor pairs = torch::stable::new_empty(coord, {2, total});
  int32_t* in = pairs.mutable_data_ptr<int32_t>();
  int32_t* out = in + total;
  const Names name(cells);
  share_units(volume, [&](int64_t k) {
    size_t site = 0;
    for (size_t p = 0; p < reached[k].size(); ++p) {
      while (sites[site] < reached[k][p].key) ++site;
      in[start[k] + p] = name(reached[k][p].cell);
      out[start[k] + p] = static_cast<int32_t>(site);
    }
  });
  return {pairs, to_tensor(start, coord), name.rank(coord), name.cell(coord), coord_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("coord_bounds", TORCH_BOX(&coord_bounds));
  m.impl("submanifold_pairs", TORCH_BOX(&submanifold_pairs));
  m.impl("strided_pairs", TORCH_BOX(&strided_pairs));
}

}  // namespace pointcept3m
