// See lists.cuh.
#include "rasterize/lists.cuh"

#include "common/algorithms.cuh"

#include <bit>
#include <limits>

namespace pointcept3m {
namespace {

constexpr int kThreads = 256;

// Bits that sort as the depths do, and behind all of them where hidden; -0 is 0.
__device__ __forceinline__ uint32_t depth_bits(float depth, bool visible) {
  if (!visible) return 0xffffffffu;
  const uint32_t bits = __float_as_uint(depth == 0.0f ? 0.0f : depth);
  return min(bits & 0x80000000u ? ~bits : bits | 0x80000000u, 0xfffffffeu);
}

__device__ __forceinline__ uint64_t depth_bits(double depth, bool visible) {
  if (!visible) return ~uint64_t{0};
  const auto bits = static_cast<uint64_t>(__double_as_longlong(depth == 0.0 ? 0.0 : depth));
  const uint64_t key = bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
  return key == ~uint64_t{0} ? key - 1 : key;
}

// keys[i] = depth bits, with the camera above them where they leave room for it.
template <class K, class T>
__global__ void write_depth_keys(const T* depths, const T* opacities, int64_t count, int64_t gaussians, K* keys,
                                 int32_t* index) {
  const int64_t i = global_thread();
  if (i >= count) return;
  K key = depth_bits(depths[i], opacities[i] >= T(kAlphaMin));
  if constexpr (sizeof(K) > sizeof(T)) key |= static_cast<K>(i / gaussians) << 32;
  keys[i] = key;
  index[i] = static_cast<int32_t>(i);
}

__global__ void write_camera_keys(const int32_t* index, int64_t count, int64_t gaussians, uint32_t* keys) {
  const int64_t i = global_thread();
  if (i < count) keys[i] = static_cast<uint32_t>(index[i] / gaussians);
}

template <class T>
__global__ void write_order(const int32_t* index, const T* opacities, int64_t count, int64_t gaussians,
                            int32_t* order) {
  const int64_t i = global_thread();
  if (i >= count) return;
  const int32_t from = index[i];
  order[i] = opacities[from] >= T(kAlphaMin) ? static_cast<int32_t>(from - i / gaussians * gaussians) : -1;
}

// First column of tiles that the ellipse reaches in a row of tiles; returns how many it reaches.
__device__ __forceinline__ int32_t tile_columns(const Footprint& f, const TileGrid& grid, int32_t row, int32_t* first) {
  const int32_t size = grid.tile;
  int32_t left, right;
  column_range(f, max(f.y0, row * size), min(f.y1, row * size + size - 1), grid.width, &left, &right);
  *first = left / size;
  return left > right ? 0 : right / size - left / size + 1;
}

template <class T>
struct Projected {
  const T *means2d, *conics, *opacities;
  const int32_t* order;
};

template <class T>
__device__ __forceinline__ Footprint footprint_of(const Projected<T>& in, int64_t from, const TileGrid& grid) {
  return footprint(in.means2d + 2 * from, in.conics + 3 * from, in.opacities[from], grid.width, grid.height);
}

// What may be wrong with an order: places after counts[C G], the number of entries.
constexpr int kOutside = 1, kTwice = 2, kKnown = 3;

// counts[i] = tiles that rank i reaches. `rank_of`, if wanted, is -1 before.
template <class T>
__global__ void count_entries(Projected<T> in, TileGrid grid, Splat<T>* splats, int32_t* rank_of, int64_t* counts) {
  const int64_t i = global_thread(), count = grid.cameras * grid.gaussians;
  if (i >= count) return;
  const int32_t gaussian = in.order[i];
  int64_t tiles = 0;
  if (gaussian < -1 || gaussian >= grid.gaussians) {
    counts[count + kOutside] = 1;
  } else if (gaussian >= 0) {
    const int64_t start = i / grid.gaussians * grid.gaussians, from = start + gaussian;
    if (rank_of && atomicExch(rank_of + from, static_cast<int32_t>(i - start)) != -1) counts[count + kTwice] = 1;
    const Footprint f = footprint_of(in, from, grid);
    if (f.y0 <= f.y1)
      for (int32_t row = f.y0 / grid.tile; row <= f.y1 / grid.tile; ++row) {
        int32_t first;
        tiles += tile_columns(f, grid, row, &first);
      }
    splats[i] = make_splat(f, in.means2d[2 * from], in.means2d[2 * from + 1], in.opacities[from], gaussian);
  }
  counts[i] = tiles;
}

// keys: the tile of each entry, by rank. values: its rank, or, if `rank_of` is wanted, its own number.
struct Entries {
  uint32_t* keys;
  int32_t *values, *rank_of;

  __device__ __forceinline__ void write(int64_t entry, int64_t first_tile, int32_t num_tiles, int32_t rank) const {
    for (int32_t i = 0; i < num_tiles; ++i, ++entry) {
      keys[entry] = static_cast<uint32_t>(first_tile + i);
      values[entry] = rank_of ? static_cast<int32_t>(entry) : rank;
      if (rank_of) rank_of[entry] = rank;
    }
  }
};

// A thread writes the entries of its rank; the warp together, a lane a row of tiles, those of ranks with many.
template <class T>
__global__ void write_entries(Projected<T> in, TileGrid grid, const int64_t* by_rank, Entries entries) {
  constexpr int64_t kMany = 64;
  const int64_t i = global_thread(), count = grid.cameras * grid.gaussians;
  const int lane = threadIdx.x % kWarp;
  const int64_t num_entries = i < count ? by_rank[i + 1] - by_rank[i] : 0;
  if (num_entries > 0 && num_entries <= kMany) {
    const int64_t camera = i / grid.gaussians;
    const Footprint f = footprint_of(in, camera * grid.gaussians + in.order[i], grid);
    int64_t entry = by_rank[i];
    for (int32_t row = f.y0 / grid.tile; row <= f.y1 / grid.tile; ++row) {
      int32_t first;
      const int32_t num = tile_columns(f, grid, row, &first);
      entries.write(entry, camera * grid.per_camera() + row * grid.columns() + first, num,
                    static_cast<int32_t>(i - camera * grid.gaussians));
      entry += num;
    }
  }
  for (unsigned many = __ballot_sync(kAllLanes, num_entries > kMany); many; many &= many - 1) {
    const int64_t at = i - lane + __ffs(many) - 1, camera = at / grid.gaussians;
    const Footprint f = footprint_of(in, camera * grid.gaussians + in.order[at], grid);
    int64_t entry = by_rank[at];
    for (int32_t start = f.y0 / grid.tile; start <= f.y1 / grid.tile; start += kWarp) {
      const int32_t row = start + lane;
      int32_t first = 0;
      const int32_t num = row <= f.y1 / grid.tile ? tile_columns(f, grid, row, &first) : 0;
      int32_t sum = num;  // of this row and those above
      for (int by = 1; by < kWarp; by *= 2) {
        const int32_t above = __shfl_up_sync(kAllLanes, sum, by);
        if (lane >= by) sum += above;
      }
      entries.write(entry + sum - num, camera * grid.per_camera() + row * grid.columns() + first, num,
                    static_cast<int32_t>(at - camera * grid.gaussians));
      entry += __shfl_sync(kAllLanes, sum, kWarp - 1);
    }
  }
}

// starts[t] = first entry of tile t or of a later one, from the sorted tiles of the entries.
__global__ void find_starts(const uint32_t* keys, int64_t entries, int64_t tiles, int32_t* starts) {
  const int64_t i = global_thread();
  if (i > entries) return;
  const int64_t from = i == 0 ? 0 : int64_t(keys[i - 1]) + 1, to = i == entries ? tiles : keys[i];
  for (int64_t tile = from; tile <= to; ++tile) starts[tile] = static_cast<int32_t>(i);
}

// Both ways between the numbers of an entry: by rank and by tile.
__global__ void link_entries(const int32_t* sorted, const int32_t* rank_of, int64_t entries, int32_t* ranks,
                             int32_t* place) {
  const int64_t i = global_thread();
  if (i >= entries) return;
  ranks[i] = rank_of[sorted[i]];
  place[sorted[i]] = static_cast<int32_t>(i);
}

// Bits of the numbers below `count`, at least one.
int bits_below(int64_t count) {
  return std::max<int>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(count - 1, 0))), 1);
}

}  // namespace

template <class T>
void order_by_depth(CudaWork& work, const T* depths, const T* opacities, int64_t cameras, int64_t gaussians,
                    int32_t* order) {
  const int64_t count = cameras * gaussians;
  if (count == 0) return;
  int32_t *index = work.scratch<int32_t>(count), *sorted = work.scratch<int32_t>(count);
  const dim3 grid = blocks_for(count, kThreads);
  const auto sort_by = [&]<class K>(K, int bits) {
    K *keys = work.scratch<K>(count), *sorted_keys = work.scratch<K>(count);
    launch(work, write_depth_keys<K, T>, grid, kThreads, 0, depths, opacities, count, gaussians, keys, index);
    sort_pairs(work, keys, sorted_keys, index, sorted, count, bits);
  };
  if constexpr (sizeof(T) == 4) {
    if (cameras == 1) sort_by(uint32_t{}, 32);
    else sort_by(uint64_t{}, 32 + bits_below(cameras));
  } else {
    sort_by(uint64_t{}, 64);
    uint32_t *keys = work.scratch<uint32_t>(count), *sorted_keys = work.scratch<uint32_t>(count);
    launch(work, write_camera_keys, grid, kThreads, 0, sorted, count, gaussians, keys);
    sort_pairs(work, keys, sorted_keys, sorted, index, count, bits_below(cameras));
    std::swap(index, sorted);
  }
  launch(work, write_order<T>, grid, kThreads, 0, sorted, opacities, count, gaussians, order);
}

template <class T>
TileLists<T> make_tile_lists(CudaWork& work, const TileGrid& grid, const T* means2d, const T* conics,
                             const T* opacities, const int32_t* order, bool backward) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t count = grid.cameras * grid.gaussians, tiles = grid.tiles();
  STD_TORCH_CHECK(tiles < kMost, "rasterize_to_pixels: too many tiles in one call: ", tiles);
  const Projected<T> in{means2d, conics, opacities, order};
  const dim3 by_gaussian = blocks_for(count, kThreads);
  Splat<T>* splats = work.scratch<Splat<T>>(count);
  int32_t* rank_of = backward ? work.scratch<int32_t>(count) : nullptr;
  if (backward) work.fill_bytes(rank_of, count, 0xff);
  int64_t* by_rank = work.scratch<int64_t>(count + kKnown);
  work.clear(by_rank + count, kKnown);
  launch(work, count_entries<T>, by_gaussian, kThreads, 0, in, grid, splats, rank_of, by_rank);
  exclusive_sum(work, by_rank, by_rank, count + 1);
  const auto known = work.read_back(by_rank + count, kKnown);
  STD_TORCH_CHECK(known[kOutside] == 0, "order holds an index outside [-1, G)");
  STD_TORCH_CHECK(known[kTwice] == 0, "order holds an index twice");
  const int64_t entries = known[0];
  STD_TORCH_CHECK(entries < kMost, "rasterize_to_pixels: Gaussians meet tiles ", entries,
                  " times, more than 2^31; render fewer cameras at a time");
  uint32_t *keys = work.scratch<uint32_t>(entries), *sorted_keys = work.scratch<uint32_t>(entries);
  int32_t *values = work.scratch<int32_t>(entries), *sorted = work.scratch<int32_t>(entries);
  int32_t* rank_of_entry = backward ? work.scratch<int32_t>(entries) : nullptr;
  launch(work, write_entries<T>, by_gaussian, kThreads, 0, in, grid, by_rank, Entries{keys, values, rank_of_entry});
  sort_pairs(work, keys, sorted_keys, values, sorted, entries, bits_below(tiles));
  int32_t* starts = work.scratch<int32_t>(tiles + 1);
  launch(work, find_starts, blocks_for(entries + 1, kThreads), kThreads, 0, sorted_keys, entries, tiles, starts);
  int32_t *ranks = sorted, *place = nullptr;
  if (backward) {
    ranks = values;  // read for the last time by the sort
    place = work.scratch<int32_t>(entries);
    launch(work, link_entries, blocks_for(entries, kThreads), kThreads, 0, sorted, rank_of_entry, entries, ranks,
           place);
  }
  return {splats, ranks, starts, by_rank, entries, place, rank_of};
}

#define P3M_LISTS(T)                                                                                            \
  template void order_by_depth<T>(CudaWork&, const T*, const T*, int64_t, int64_t, int32_t*);                   \
  template TileLists<T> make_tile_lists<T>(CudaWork&, const TileGrid&, const T*, const T*, const T*,            \
                                           const int32_t*, bool);
P3M_LISTS(float)
P3M_LISTS(double)
#undef P3M_LISTS

}  // namespace pointcept3m
