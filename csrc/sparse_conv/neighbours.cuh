// From pairs to what a kernel that owns its outputs reads: for every output the row that it meets at each offset, and a
// mask of the offsets at which it meets one. With masks (32 offsets and fewer) the table needs no clearing, and what is
// not met costs no reading.
//
// Tiles of 128 outputs skip the offsets at which none of them meets a row, so outputs that meet rows at the same
// offsets should stand together. They are sorted by 12 bits: which of the 9 columns (x, y) and which of the 3 layers z
// of the kernel hold a row. On spconv's benchmark cloud (6.3 neighbours a voxel) a tile then needs 11.4 of the 27
// offsets; in cell order it is 26.7, sorted by the whole mask of 27 bits 13.8 - and 12 bits are two passes of a radix
// sort. The sort is stable and starts from cell order, so neighbours in a tile stay neighbours in memory.
#pragma once

#include <cstdlib>

#include "common/algorithms.cuh"

namespace pointcept3m {
namespace {

constexpr int kGroup = 256;  // kernel offsets in one launch, as their edges are kernel parameters (at most 4 KB)
constexpr int kKeyBits = 12;
// Sorting is worth its launches for this many outputs and products a pair, by estimate: with 32 x 32 channels it takes
// as long as the offsets that it saves.
constexpr int64_t kSortedRows = 2048, kSortedProducts = 2048;

// Pairs and ranks that name rows which do not exist are never followed, and pairs that do not ascend are told. They end
// the program as torch's own indexing does on a GPU; an exception would need the host to wait in every convolution.
// With CUDA_LAUNCH_BLOCKING=1, where it waits anyway, they are an exception.
class RowGuard {
 public:
  explicit RowGuard(CudaWork& work) : missing(waits() ? work.zeroed_scratch<int32_t>(1) : nullptr), work_(work) {}

  void report() const {
    STD_TORCH_CHECK(!missing || work_.read_back(missing) == 0,
                    "pairs must name rows that exist and ascend along ranks, which must be a permutation");
  }

  int32_t* const missing;  // for kernels

 private:
  static bool waits() {
#ifdef P3M_EMULATE_CUDA
    return true;
#else
    static const char* blocking = std::getenv("CUDA_LAUNCH_BLOCKING");
    return blocking && blocking[0] == '1';
#endif
  }
  CudaWork& work_;
};

__device__ __forceinline__ void refuse_row(int32_t* missing) {
  if (missing) *missing = 1;
  else __trap();
}

// The edges of up to kGroup offsets: whatever belongs to offset first + k is [start[k], start[k + 1]).
struct Edges {
  int32_t first, count;
  int32_t start[kGroup + 1];
};

Edges edges_of(const std::vector<int64_t>& start, int64_t first) {
  Edges edges;
  edges.first = static_cast<int32_t>(first);
  edges.count = static_cast<int32_t>(std::min<int64_t>(kGroup, static_cast<int64_t>(start.size()) - 1 - first));
  for (int k = 0; k <= edges.count; ++k) edges.start[k] = static_cast<int32_t>(start[first + k]);
  return edges;
}

// The place k in [0, count) with start[k] <= item < start[k + 1].
__device__ __forceinline__ int offset_of(const Edges& edges, int32_t item) {
  int low = 0, high = edges.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (edges.start[middle] <= item) low = middle;
    else high = middle;
  }
  return low;
}

// Which bits of its key an output has if it meets a row at offset k of `volume`; `side` is the edge of an odd cubic
// kernel, or 0.
__device__ __forceinline__ uint32_t key_bits(int k, int volume, int side) {
  if (volume <= kKeyBits) return 1u << k;
  if (side == 0) return 1u << (static_cast<int64_t>(k) * kKeyBits / volume);
  const auto third = [side](int i) { return i < side / 2 ? 0 : i == side / 2 ? 1 : 2; };
  const int column = 3 * third(k / (side * side)) + third(k / side % side);
  return 1u << (3 + column) | 1u << third(k % side);
}

struct Neighbours {
  const int32_t*
      table;  // [rows, volume]: the row met by the output at a place in cell order; -1 for none, unless masks tell
  const uint32_t* masks;   // [rows]: bit k is set where a row is met at offset k; null for more than 32 offsets
  const int32_t* order;    // [rows]: places, as tiles take them
  const int32_t* rows_at;  // [rows]: the output row at a place, + 1
  int64_t rows;
  int volume;

  // Calls visit(offset, row) for every row that the output at `place` meets, offsets ascending.
  template <class Visit>
  __device__ __forceinline__ void visit(int64_t place, const Visit& visit) const {
    const int32_t* met = table + place * volume;
    if (masks) {
      for (uint32_t left = masks[place]; left; left &= left - 1) {
        const int k = __ffs(static_cast<int>(left)) - 1;
        visit(k, met[k]);
      }
      return;
    }
    for (int k = 0; k < volume; ++k)
      if (met[k] >= 0) visit(k, met[k]);
  }
};

// `masks` or `keys` may be null.
__global__ void __launch_bounds__(256)
    fill_table(const __grid_constant__ Edges edges, const int32_t* from, const int32_t* to, const int32_t* rank,
               int64_t num_in, int64_t rows, int volume, int side, int32_t* table, uint32_t* masks, uint32_t* keys,
               int32_t* missing) {
  const int64_t pair = edges.start[0] + global_thread();
  if (pair >= edges.start[edges.count]) return;
  const int k = edges.first + offset_of(edges, static_cast<int32_t>(pair));
  const int32_t source = from[pair], target = to[pair];
  if (static_cast<uint32_t>(source) >= num_in || static_cast<uint32_t>(target) >= rows) return refuse_row(missing);
  const int32_t place = rank[target];
  if (static_cast<uint32_t>(place) >= rows) return refuse_row(missing);
  if (pair > edges.start[k - edges.first]) {
    const int32_t before = to[pair - 1];
    if (static_cast<uint32_t>(before) >= rows || rank[before] >= place) return refuse_row(missing);
  }
  table[static_cast<int64_t>(place) * volume + k] = source;
  if (masks) atomicOr(masks + place, 1u << k);
  else if (keys) atomicOr(keys + place, key_bits(k, volume, side));
}

// Turns ranks over, lists the places, and makes keys of masks. `rows_at` starts as zeros.
__global__ void __launch_bounds__(256)
    place_rows(const int32_t* rank, int64_t rows, int volume, int side, const uint32_t* masks, int32_t* rows_at,
               int32_t* places, uint32_t* keys, int32_t* missing) {
  const int64_t i = global_thread();
  if (i >= rows) return;
  const int32_t place = rank[i];
  places[i] = static_cast<int32_t>(i);
  // Ranks must be a permutation, else an output would be left unwritten.
  if (static_cast<uint32_t>(place) >= rows || atomicExch(rows_at + place, static_cast<int32_t>(i) + 1) != 0)
    refuse_row(missing);
  if (!keys || !masks) return;
  uint32_t key = 0;
  for (uint32_t left = masks[i]; left; left &= left - 1)
    key |= key_bits(__ffs(static_cast<int>(left)) - 1, volume, side);
  keys[i] = key;
}

// `from` and `to` name the rows of each pair, `start` the first pair of each offset.
// `products` is the number of products that each pair asks of tiles.
Neighbours find_neighbours(CudaWork& work, const int32_t* from, const int32_t* to, const std::vector<int64_t>& start,
                           const int32_t* rank, int64_t num_in, int64_t rows, int64_t products) {
  const auto volume = static_cast<int64_t>(start.size()) - 1;
  int side = 1;
  while (side * side * side < volume) side += 2;
  if (side * side * side != volume) side = 0;
  STD_TORCH_CHECK(volume * rows < int64_t{1} << 31, "outputs times kernel offsets must be fewer than 2^31, got ", rows,
                  " x ", volume);
  const RowGuard guard(work);
  const bool masked = volume <= 32, sorts = volume > 1 && rows > kSortedRows && products >= kSortedProducts;
  int32_t* rows_at = work.scratch<int32_t>((6 + volume) * rows);  // one piece, as each costs the host time
  uint32_t* masks = masked ? reinterpret_cast<uint32_t*>(rows_at + rows) : nullptr;
  uint32_t* keys = sorts ? reinterpret_cast<uint32_t*>(rows_at + 2 * rows) : nullptr;
  int32_t *places = rows_at + 3 * rows, *table = rows_at + 6 * rows;
  work.clear(rows_at, 3 * rows);
  if (!masked) work.fill_bytes(table, volume * rows, 0xff);
  for (int64_t first = 0; first < volume; first += kGroup) {
    const Edges edges = edges_of(start, first);
    launch(work, fill_table, blocks_for(edges.start[edges.count] - edges.start[0], 256), 256, 0, edges, from, to, rank,
           num_in, rows, static_cast<int>(volume), side, table, masks, keys, guard.missing);
  }
  launch(work, place_rows, blocks_for(rows, 256), 256, 0, rank, rows, static_cast<int>(volume), side, masks, rows_at,
         places, keys, guard.missing);
  guard.report();
  Neighbours neighbours{table, masks, places, rows_at, rows, static_cast<int>(volume)};
  if (sorts) {
    auto* sorted_keys = reinterpret_cast<uint32_t*>(rows_at + 4 * rows);
    int32_t* sorted = rows_at + 5 * rows;
    sort_pairs(work, keys, sorted_keys, places, sorted, rows, static_cast<int>(std::min<int64_t>(volume, kKeyBits)));
    neighbours.order = sorted;
  }
  return neighbours;
}

}  // namespace
}  // namespace pointcept3m
