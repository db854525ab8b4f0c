// Rulebooks on the GPU: the pairs of rulebook_cpu.cpp, bit for bit.
//
// Rows become 64-bit keys that are radix sorted, so a neighbour's key is the own key plus a constant, and its place a
// binary search in an array that the L2 holds (1 MB for 125,000 cells): one search for a column of offsets (dx, dy, *),
// as its cells are neighbours in the array. A hash table would need 13 random probes where 5 searches share their first
// steps among the lanes of a warp, and sorting is needed anyway, as pairs ascend in cell order. Half of the offsets is
// searched; the other half is its mirror image.
//
// Pairs are counted by warps (32 cells, one offset), the counts summed, and the search is repeated to fill, which costs
// less than to keep what was found. The host waits for the bounds of the coordinates and for the number of pairs of
// each offset; with a stride for the number of outputs too.
#include "sparse_conv/voxel_cells.cuh"

#include <tuple>

namespace pointcept3m {
namespace {

constexpr int64_t kMostPairs = (int64_t{1} << 31) - (1 << 16);  // convolutions number them in int32

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
  const double volume =
      static_cast<double>(kernel[0]) * static_cast<double>(kernel[1]) * static_cast<double>(kernel[2]);
  STD_TORCH_CHECK(volume <= kMostOffsets, "kernel_size must not have more than 2^20 offsets");
  return kernel;
}

int64_t volume_of(const Size3& kernel) { return kernel[0] * kernel[1] * kernel[2]; }

int64_t check_coord(const Tensor& coord) {
  check_contiguous_cuda(coord, "coord");
  STD_TORCH_CHECK(coord.dim() == 2 && coord.size(1) == 4 && coord.scalar_type() == ScalarType::Int,
                  "coord must be int32 [rows, 4]");
  STD_TORCH_CHECK(coord.size(0) < (int64_t{1} << 30), "a rulebook takes fewer than 2^30 rows");
  return coord.size(0);
}

// int64 on the CPU.
Tensor to_host_tensor(const std::vector<int64_t>& values) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  const Tensor out = torch::stable::empty({static_cast<int64_t>(values.size())}, ScalarType::Long, std::nullopt, cpu);
  std::copy(values.begin(), values.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

__global__ void write_bounds(const uint32_t* bounds, int64_t* out) {
  out[threadIdx.x] = threadIdx.x < 4 ? reads_low(bounds[threadIdx.x]) : reads_high(bounds[threadIdx.x]);
}

// int64 [2, 4]: smallest and largest value of each column; zeros where there are no rows.
Tensor coord_bounds(const Tensor coord) {
  const int64_t rows = check_coord(coord);
  if (rows == 0) return torch::stable::new_zeros(coord, {2, 4}, ScalarType::Long);
  CudaWork work(coord);
  const Tensor out = torch::stable::new_empty(coord, {2, 4}, ScalarType::Long);
  launch(work, write_bounds, 1, 8, 0, start_bounds(work, coord.const_data_ptr<int32_t>(), rows),
         out.mutable_data_ptr<int64_t>());
  return out;
}

__global__ void write_ranks(const __grid_constant__ Cells cells, int32_t* rank, int64_t* cell_of_row) {
  const int64_t i = global_thread();
  if (i >= cells.rows) return;
  if (cell_of_row) cell_of_row[i] = cells.cell_of_row[i];
  if (i < *cells.count) rank[i] = cell_of_row ? static_cast<int32_t>(i) : cells.cell_of_row[i];
}

// (int32, the place in cell order of whatever carries a name; int64, the cell of each row or nothing where every cell
// is one row).
std::tuple<Tensor, Tensor> ranks_of(CudaWork& work, const Cells& cells, int64_t count, const Tensor& like) {
  const bool shared = count < cells.rows;
  const Tensor rank = torch::stable::new_empty(like, {count});
  const Tensor cell = torch::stable::new_empty(like, {shared ? cells.rows : 0}, ScalarType::Long);
  launch(work, write_ranks, blocks_for(cells.rows, 256), 256, 0, cells, rank.mutable_data_ptr<int32_t>(),
         shared ? cell.mutable_data_ptr<int64_t>() : nullptr);
  return {rank, cell};
}

__device__ __forceinline__ unsigned lanes_below() { return (1u << (threadIdx.x % kWarp)) - 1; }

// What every offset's share of a warp is, and after exclusive_sum the place of its first pair: [offset * warps + warp].
struct Shares {
  int64_t* at;
  int64_t warps;
};

// edges[k] = the first pair of offset k, k <= offsets; edges[offsets + 1] = the number of cells.
__global__ void collect_edges(Shares shares, int offsets, const int32_t* count, int64_t* edges) {
  const int64_t k = global_thread();
  if (k <= offsets) edges[k] = shares.at[k * shares.warps];
  if (k == offsets) edges[k + 1] = *count;
}

// Sums the shares and waits for the edges.
std::vector<int64_t> add_shares(CudaWork& work, const Shares& shares, int64_t offsets, const Cells& cells) {
  exclusive_sum(work, shares.at, shares.at, offsets * shares.warps + 1);
  int64_t* edges = work.scratch<int64_t>(offsets + 2);
  launch(work, collect_edges, blocks_for(offsets + 1, 256), 256, 0, shares, static_cast<int>(offsets), cells.count,
         edges);
  return work.read_back(edges, offsets + 2);
}

struct Submanifold {
  Cells cells;
  KeyBox box;
  int64_t kernel[3], dilation[3];
  Shares shares;   // of the offsets before the centre
  int32_t* pairs;  // [2, total]
  int64_t total;
};

// Finds the neighbours of a warp's 32 cells at the offsets before the centre; counts them, or writes their pairs.
template <bool FILL>
__global__ void __launch_bounds__(256) walk_neighbours(const __grid_constant__ Submanifold job) {
  const Cells& cells = job.cells;
  const int64_t cell = global_thread(), warp = cell / kWarp;
  if (warp >= job.shares.warps) return;
  const int32_t count = *cells.count;
  const bool inside = cell < count;
  const uint64_t key = inside ? cells.key[cell] : ~uint64_t{0};
  const int32_t own = FILL && inside ? cells.name(static_cast<int32_t>(cell)) : 0;
  const int64_t half = job.kernel[0] * job.kernel[1] * job.kernel[2] / 2, columns = job.kernel[0] * job.kernel[1];
  const int64_t reach = job.kernel[2] / 2 * job.dilation[2];
  int64_t near = 0;  // columns ascend, and so do the places of their cells
  for (int64_t column = 0; column <= columns / 2; ++column) {
    const int64_t steps =
        column == columns / 2 ? job.kernel[2] / 2 : job.kernel[2];  // in the own column what lies below
    const int64_t dx = (column / job.kernel[1] - job.kernel[0] / 2) * job.dilation[0],
                  dy = (column % job.kernel[1] - job.kernel[1] / 2) * job.dilation[1];
    const uint64_t low = key + static_cast<uint64_t>((dx * job.box.size[2] + dy) * job.box.size[3] - reach);
    if (inside) {
      int64_t high = cell;  // nothing before the centre lies behind it
      while (near < high) {
        const int64_t middle = (near + high) / 2;
        if (cells.key[middle] < low) near = middle + 1;
        else high = middle;
      }
    }
    int64_t candidate = near;
    for (int64_t step = 0; step < steps; ++step) {
      const uint64_t target = low + static_cast<uint64_t>(step * job.dilation[2]);
      bool hit = false;
      if (inside) {
        while (cells.key[candidate] < target) ++candidate;
        hit = cells.key[candidate] == target;
      }
      const unsigned votes = __ballot_sync(kAllLanes, hit);
      const int64_t k = column * job.kernel[2] + step;
      int64_t* share = job.shares.at + k * job.shares.warps;
      if constexpr (!FILL) {
        if (threadIdx.x % kWarp == 0) share[warp] = __popc(votes);
      } else if (hit) {
        const int32_t other = cells.name(static_cast<int32_t>(candidate));
        const int64_t at = share[warp] + __popc(votes & lanes_below());
        // Seen from the neighbour the pair lies at the mirrored offset, behind the centre and the mirrors of the
        // offsets after k.
        const int64_t before = job.shares.at[half * job.shares.warps];
        const int64_t mirrored = before + count + (before - share[job.shares.warps]) + at - share[0];
        job.pairs[at] = other, job.pairs[job.total + at] = own;
        job.pairs[mirrored] = own, job.pairs[job.total + mirrored] = other;
      }
    }
  }
  if (FILL && inside) {
    const int64_t at = job.shares.at[half * job.shares.warps] + cell;
    job.pairs[at] = job.pairs[job.total + at] = own;
  }
}

// (pairs [2, P] int32, input and output; start [K + 1] int64 on the CPU; rank [cells] int32; cell [rows] int64 or
// empty).
std::tuple<Tensor, Tensor, Tensor, Tensor> submanifold_pairs(const Tensor coord, std::vector<int64_t> kernel_size,
                                                             std::vector<int64_t> dilation_) {
  const int64_t rows = check_coord(coord);
  const Size3 kernel = kernel3(kernel_size), dilation = size3(dilation_, "dilation", 1);
  Submanifold job;
  Size3 margin;
  for (int d = 0; d < 3; ++d) {
    STD_TORCH_CHECK(kernel[d] % 2 == 1, "a submanifold kernel must be odd");
    margin[d] = kernel[d] / 2 * dilation[d];
    job.kernel[d] = kernel[d], job.dilation[d] = dilation[d];
  }
  const int64_t volume = volume_of(kernel), half = volume / 2;
  if (rows == 0)
    return {torch::stable::new_empty(coord, {2, 0}), to_host_tensor(std::vector<int64_t>(volume + 1)),
            torch::stable::new_empty(coord, {0}), torch::stable::new_empty(coord, {0}, ScalarType::Long)};
  CudaWork work(coord);
  const int32_t* values = coord.const_data_ptr<int32_t>();
  job.box = bounding_box(work, values, rows, margin);
  STD_TORCH_CHECK(job.box.fits(), "coord spans too large a volume for 64-bit keys");
  job.cells = find_cells(work, values, rows, job.box);
  job.shares.warps = divide_up<int64_t>(rows, kWarp);
  job.shares.at = work.zeroed_scratch<int64_t>(half * job.shares.warps + 1);
  launch(work, walk_neighbours<false>, blocks_for(rows, 256), 256, 0, job);
  const std::vector<int64_t> edges = add_shares(work, job.shares, half, job.cells);

  const int64_t count = edges[half + 1];
  std::vector<int64_t> start(volume + 1);
  for (int64_t k = 0; k <= half; ++k) start[k] = edges[k];
  for (int64_t k = half; k < volume; ++k)
    start[k + 1] = start[k] + (k == half ? count : edges[volume - k] - edges[volume - 1 - k]);
  job.total = start[volume];
  STD_TORCH_CHECK(job.total <= kMostPairs, "a rulebook takes at most 2^31 - 2^16 pairs, got ", job.total);
  const Tensor pairs = torch::stable::new_empty(coord, {2, job.total});
  job.pairs = pairs.mutable_data_ptr<int32_t>();
  launch(work, walk_neighbours<true>, blocks_for(rows, 256), 256, 0, job);
  const auto [rank, cell] = ranks_of(work, job.cells, count, coord);
  return {pairs, to_host_tensor(start), rank, cell};
}

struct Strided {
  Cells cells;
  KeyBox out_box;
  const int32_t* coord;
  int64_t kernel[3], stride[3], padding[3], dilation[3], shape[3];
  Shares shares;
  uint64_t* sites;  // [pairs]: key of the output
  int32_t* pairs;   // [2, pairs]: the input; the number of the pair for now
};

// Finds which of a warp's 32 cells reach an output under each offset; counts them, or writes inputs and outputs' keys.
template <bool FILL>
__global__ void __launch_bounds__(256) reach_outputs(const __grid_constant__ Strided job) {
  const int64_t cell = global_thread(), warp = cell / kWarp;
  if (warp >= job.shares.warps) return;
  const bool inside = cell < *job.cells.count;
  const int32_t* c = job.coord + 4 * static_cast<int64_t>(inside ? job.cells.row[cell] : 0);
  const int32_t own = FILL && inside ? job.cells.name(static_cast<int32_t>(cell)) : 0;
  // The output's place along an axis, or -1.
  const auto reach = [&](int d, int64_t position) -> int64_t {
    const int64_t target = c[d + 1] + job.padding[d] - position * job.dilation[d];
    if (target < 0 || target % job.stride[d]) return -1;
    const int64_t output = target / job.stride[d];
    return output < job.shape[d] ? output : -1;
  };
  int64_t k = 0;
  for (int64_t x = 0; x < job.kernel[0]; ++x) {
    const int64_t out_x = inside ? reach(0, x) : -1;
    for (int64_t y = 0; y < job.kernel[1]; ++y) {
      const int64_t out_y = out_x < 0 ? -1 : reach(1, y);
      for (int64_t z = 0; z < job.kernel[2]; ++z, ++k) {
        const int64_t out_z = out_y < 0 ? -1 : reach(2, z);
        const unsigned votes = __ballot_sync(kAllLanes, out_z >= 0);
        int64_t* share = job.shares.at + k * job.shares.warps + warp;
        if constexpr (!FILL) {
          if (threadIdx.x % kWarp == 0) *share = __popc(votes);
        } else if (out_z >= 0) {
          const int64_t at = *share + __popc(votes & lanes_below());
          const int64_t total = job.shares.at[job.kernel[0] * job.kernel[1] * job.kernel[2] * job.shares.warps];
          job.sites[at] = job.out_box.key(c[0], out_x, out_y, out_z);
          job.pairs[at] = own, job.pairs[total + at] = static_cast<int32_t>(at);
        }
      }
    }
  }
}

// The coordinates of the outputs from their keys.
__global__ void write_outputs(const uint64_t* sites, int64_t count, const __grid_constant__ KeyBox box,
                              int32_t* coord) {
  const int64_t i = global_thread();
  if (i >= count) return;
  uint64_t key = sites[i];
#pragma unroll
  for (int d = 3; d > 0; --d) {
    coord[4 * i + d] = static_cast<int32_t>(key % box.size[d]);
    key /= box.size[d];
  }
  coord[4 * i] = static_cast<int32_t>(static_cast<int64_t>(key) + box.low[0]);
}

// The same four for the inputs, and coord_out [M, 4] int32; outputs stand in cell order.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> strided_pairs(const Tensor coord, std::vector<int64_t> kernel_size,
                                                                 std::vector<int64_t> stride_,
                                                                 std::vector<int64_t> padding_,
                                                                 std::vector<int64_t> dilation_,
                                                                 std::vector<int64_t> out_shape) {
  const int64_t rows = check_coord(coord);
  const Size3 kernel = kernel3(kernel_size), stride = size3(stride_, "stride", 1),
              padding = size3(padding_, "padding", 0);
  const Size3 dilation = size3(dilation_, "dilation", 1), shape = size3(out_shape, "out_shape", 1);
  Strided job;
  for (int d = 0; d < 3; ++d) {
    job.kernel[d] = kernel[d], job.stride[d] = stride[d], job.padding[d] = padding[d];
    job.dilation[d] = dilation[d], job.shape[d] = shape[d];
  }
  const int64_t volume = volume_of(kernel);
  if (rows == 0)
    return {torch::stable::new_empty(coord, {2, 0}), to_host_tensor(std::vector<int64_t>(volume + 1)),
            torch::stable::new_empty(coord, {0}), torch::stable::new_empty(coord, {0}, ScalarType::Long),
            torch::stable::new_empty(coord, {0, 4})};
  CudaWork work(coord);
  job.coord = coord.const_data_ptr<int32_t>();
  const KeyBox box = bounding_box(work, job.coord, rows, {0, 0, 0});
  job.out_box = {{box.low[0], 0, 0, 0}, {box.size[0], shape[0], shape[1], shape[2]}};
  STD_TORCH_CHECK(box.fits() && job.out_box.fits(), "coord spans too large a volume for 64-bit keys");
  job.cells = find_cells(work, job.coord, rows, box);
  job.shares.warps = divide_up<int64_t>(rows, kWarp);
  job.shares.at = work.zeroed_scratch<int64_t>(volume * job.shares.warps + 1);
  launch(work, reach_outputs<false>, blocks_for(rows, 256), 256, 0, job);
  std::vector<int64_t> start = add_shares(work, job.shares, volume, job.cells);
  const int64_t count = start.back();
  start.pop_back();

  const int64_t total = start[volume];
  STD_TORCH_CHECK(total <= kMostPairs, "a rulebook takes at most 2^31 - 2^16 pairs, got ", total);
  const Tensor pairs = torch::stable::new_empty(coord, {2, total});
  job.pairs = pairs.mutable_data_ptr<int32_t>();
  job.sites = work.scratch<uint64_t>(total);
  uint64_t* outputs = work.scratch<uint64_t>(total);
  int64_t num_out = 0;
  if (total > 0) {
    launch(work, reach_outputs<true>, blocks_for(rows, 256), 256, 0, job);
    // The numbers of the pairs are sorted away from the place where the numbers of their outputs then come to stand.
    num_out = work.read_back(make_unique(work, job.sites, job.pairs + total, total, job.out_box.bits(), outputs,
                                         nullptr, job.pairs + total));
  }
  const Tensor coord_out = torch::stable::new_empty(coord, {num_out, 4});
  launch(work, write_outputs, blocks_for(num_out, 256), 256, 0, outputs, num_out, job.out_box,
         coord_out.mutable_data_ptr<int32_t>());
  const auto [rank, cell] = ranks_of(work, job.cells, count, coord);
  return {pairs, to_host_tensor(start), rank, cell, coord_out};
}

}  // namespace

P3M_REGISTER_CUDA(m) {
  m.impl("coord_bounds", TORCH_BOX(&coord_bounds));
  m.impl("submanifold_pairs", TORCH_BOX(&submanifold_pairs));
  m.impl("strided_pairs", TORCH_BOX(&strided_pairs));
}

}  // namespace pointcept3m
