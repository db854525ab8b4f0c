// Rows of feature maps, weighted and added to points' rows. In a file of its own, as here multiplication and addition
// may be one rounding, where the projection next door must not.
//
// A stripe of channels of all points of a block is done before the next one: neighbouring points read the same cells,
// whose channels then wait in the first-level cache, and a point's sums stay in registers over all its views.
#include "view_fusion/add_rows.h"

#include <algorithm>

#include "common/values.h"

namespace pointcept3m {
namespace {

constexpr int64_t kStripe = 128;   // channels
constexpr int64_t kRowsAhead = 4;  // at which a row is asked for before it is needed

template <int LANES, int VECTORS, bool BILINEAR>
P3M_INLINE void add_channels(const Grid& grid, const Sum& sum, int64_t channel) {
  Lanes<float, LANES> value[VECTORS];
  float* row = sum.row + channel;
  for (int k = 0; k < VECTORS; ++k) value[k] = load_lanes<LANES>(row + k * LANES);
  for (const Tap* tap = sum.begin; tap < sum.end; ++tap) {
    const float* cell = grid.cells + tap->offset + channel;
    if constexpr (BILINEAR) {
      const float right = tap->right_share, low = tap->low_share;
      const float w0 = (1 - low) * (1 - right), w1 = (1 - low) * right, w2 = low * (1 - right), w3 = low * right;
      for (int k = 0; k < VECTORS; ++k) {
        const float* at = cell + k * LANES;
        value[k] += load_lanes<LANES>(at) * w0;
        value[k] += load_lanes<LANES>(at + grid.right) * w1;
        value[k] += load_lanes<LANES>(at + grid.low) * w2;
        value[k] += load_lanes<LANES>(at + grid.low + grid.right) * w3;
      }
    } else {
      for (int k = 0; k < VECTORS; ++k) value[k] += load_lanes<LANES>(cell + k * LANES);
    }
  }
  for (int k = 0; k < VECTORS; ++k) store_lanes<LANES, float>(row + k * LANES, value[k]);
}

// Channels from `begin` to before `end` of all rows; 64 at a time fill half of AVX2's registers.
template <bool BILINEAR>
P3M_INLINE void add_stripe(const Grid& grid, const Sum* sums, int64_t count, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < count; ++i) {
    if (i + kRowsAhead < count)
      for (int64_t c = begin; c < end; c += 16) __builtin_prefetch(sums[i + kRowsAhead].row + c, 1);
    int64_t c = begin;
    for (; c + 64 <= end; c += 64) add_channels<8, 8, BILINEAR>(grid, sums[i], c);
    for (; c + 8 <= end; c += 8) add_channels<8, 1, BILINEAR>(grid, sums[i], c);
    for (; c < end; ++c) add_channels<1, 1, BILINEAR>(grid, sums[i], c);
  }
}

template <bool BILINEAR>
P3M_INLINE void add_all(const Grid& grid, const Sum* sums, int64_t count) {
  for (int64_t c = 0; c < grid.channels; c += kStripe)
    add_stripe<BILINEAR>(grid, sums, count, c, std::min(grid.channels, c + kStripe));
}

P3M_KERNEL void add_bilinear(const Grid& grid, const Sum* sums, int64_t count) { add_all<true>(grid, sums, count); }
P3M_KERNEL void add_nearest(const Grid& grid, const Sum* sums, int64_t count) { add_all<false>(grid, sums, count); }

}  // namespace

void add_rows(const Grid& grid, const Sum* sums, int64_t count) {
  if (grid.bilinear) add_bilinear(grid, sums, count);
  else add_nearest(grid, sums, count);
}

}  // namespace pointcept3m
