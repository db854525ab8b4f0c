// From projected Gaussians to the lists that tiles walk: depth order, extents on the image, bands, rows of tiles.
#pragma once

#include "rasterize/depth_order.h"
#include "rasterize/strips.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace pointcept3m {
namespace {

// gsplat's constants: the strongest alpha there is, and the transmittance at which a pixel stops (the Gaussian
// that would reach it is left out).
constexpr double kAlphaMax = 0.99;
constexpr double kTransmittanceMin = 1e-4;

constexpr int kBands = 16;  // horizontal bands a picture is cut into: the unit of parallel work

// A projected Gaussian: alpha(d) = exp(log_ratio - (a dx^2 + 2 b dx dy + c dy^2) / 2) / 255, d = pixel - centre.
template <typename T>
struct Splat {
  T x, y, a, b, c;
  T log_ratio;     // ln(255 opacity)
  int32_t y0, y1;  // first and last row of pixels it can touch; y0 > y1: none
};

// What finds the tiles of a splat: the ellipse alpha >= 1/255, that is a dx^2 + 2 b dx dy + c dy^2 <= level.
template <typename T>
struct Extent {
  T x, y;
  T half, slope;      // in row y + dy it reaches slope dy -+ half sqrt(1 - (dy / height)^2) from x
  T inverse_height;
  T tilt, reach;      // row and column of its rightmost point, seen from the centre; the leftmost is opposite
};

// Calls work(task, scratch) for every task, one scratch a thread. Which thread takes which task varies from
// run to run, so a task may write nothing that another one touches.
template <typename Scratch, typename Work>
void run_tasks(int64_t num_tasks, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t num_workers = std::min<int64_t>(num_tasks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, num_workers, 1, [&](int64_t, int64_t) {
    Scratch scratch;
    for (int64_t task = next++; task < num_tasks; task = next++) work(task, scratch);
  });
}

// First and last pixel whose centre lies within [low, high], cut to [0, size). The extent is widened, in pixels and
// relative to `reach`, so that rounding never loses a pixel at its rim.
template <typename T>
P3M_INLINE void pixel_range(T low, T high, T reach, int32_t size, int32_t* first, int32_t* last) {
  const T margin = T(0.02) + T(1e-3) * reach, low_edge = low - margin - T(0.5), high_edge = high + margin + T(0.5);
  const T begin = low_edge > T(0) ? std::min(low_edge, T(size)) : T(0);  // what is no number ends here, as 0
  const T end = high_edge > T(0) ? std::min(high_edge, T(size)) : T(0);
  *first = static_cast<int32_t>(begin);
  *first += T(*first) < begin;
  *last = static_cast<int32_t>(end) - 1;
}

template <typename T>
void make_splat(const T* mean, const T* conic, T opacity, int32_t width, int32_t height, Splat<T>& splat,
                Extent<T>& extent) {
  const T log_ratio = std::log(opacity / T(kAlphaMin));
  splat = {mean[0], mean[1], conic[0], conic[1], conic[2], log_ratio, 1, 0};
  // In double: the determinant of a needle's conic is a small difference of large products.
  const double a = splat.a, b = splat.b, c = splat.c, det = a * c - b * b, level = 2 * double(log_ratio);
  const double reach_x = std::sqrt(level * c / det), reach_y = std::sqrt(level * a / det);
  constexpr double kFar = 1e9, kMostLevel = 100;  // any opacity below e^44; in the thousands, exp would overflow
  if (!(det > 0 && a > 0 && c > 0 && reach_x < kFar && reach_y < kFar && level <= kMostLevel)) return;
  if (!(std::abs(splat.x) < kFar && std::abs(splat.y) < kFar)) return;
  extent = {splat.x, splat.y, T(std::sqrt(level / a)), T(-b / a), T(1 / reach_y), T(-b / c * reach_x), T(reach_x)};
  int32_t x0, x1;
  pixel_range<T>(splat.x - reach_x, splat.x + reach_x, reach_x, width, &x0, &x1);
  if (x0 <= x1) pixel_range<T>(splat.y - reach_y, splat.y + reach_y, reach_y, height, &splat.y0, &splat.y1);
}

// Columns of pixels that the ellipse reaches within the rows [first_row, last_row]: exact, as the part of an ellipse
// between two lines is convex and widest as near to its extreme points as the lines allow.
template <typename T>
P3M_INLINE void column_range(const Extent<T>& e, int32_t first_row, int32_t last_row, int32_t width, int32_t* first,
                             int32_t* last) {
  const T top = first_row + T(0.5) - e.y, bottom = last_row + T(0.5) - e.y;
  const T right = std::clamp(e.tilt, top, bottom), left = std::clamp(-e.tilt, top, bottom);  // rows of those points
  const auto half_width = [&](T dy) {
    const T part = dy * e.inverse_height;
    return e.half * std::sqrt(std::max(T(0), T(1) - part * part));
  };
  pixel_range<T>(e.x + e.slope * left - half_width(left), e.x + e.slope * right + half_width(right), e.reach, width,
                 first, last);
}

// The Gaussians of one camera, front to back, and which of them each band of tile rows can see.
template <typename T>
struct View {
  std::vector<Splat<T>> splats;    // by rank in depth
  std::vector<Extent<T>> extents;  // by rank; not set where the splat touches no row
  std::vector<int32_t> band_ranks;   // ranks of band 0, of band 1, ...; each front to back
  std::vector<int64_t> band_offset;  // [num_bands + 1]
  int32_t num_bands, rows_per_band;  // rows of tiles
  int32_t width, height;

  View(const T* means2d, const T* conics, const T* opacities, const int32_t* order, int64_t num_gaussians,
       int32_t width, int32_t height)
      : width(width), height(height) {
    const int32_t tile_rows = (height + kTile - 1) / kTile;
    rows_per_band = (tile_rows + kBands - 1) / kBands;
    num_bands = (tile_rows + rows_per_band - 1) / rows_per_band;
    const int64_t num_visible = std::find(order, order + num_gaussians, -1) - order;
    splats.resize(num_visible);
    extents.resize(num_visible);
    torch::stable::parallel_for(0, num_visible, kBlock, [&](int64_t begin, int64_t end) {
      for (int64_t rank = begin; rank < end; ++rank) {
        if (rank + kAhead < end) {  // depth order is random order in memory
          const int64_t next = order[rank + kAhead];
          __builtin_prefetch(means2d + 2 * next);
          __builtin_prefetch(conics + 3 * next);
          __builtin_prefetch(opacities + next);
        }
        const int64_t i = order[rank];
        make_splat(means2d + 2 * i, conics + 3 * i, opacities[i], width, height, splats[rank], extents[rank]);
      }
    });
    fill_bands();
  }

  int32_t band_of(int32_t row) const { return row / (kTile * rows_per_band); }
  int64_t num_in_band(int32_t band) const { return band_offset[band + 1] - band_offset[band]; }

 private:
  static constexpr int64_t kBlock = 4096, kAhead = 16;

  // Blocks of ranks count what they have for each band, then write it there: the order stays front to back.
  void fill_bands() {
    const int64_t num_visible = splats.size(), num_blocks = (num_visible + kBlock - 1) / kBlock;
    std::vector<int64_t> cursor(num_blocks * num_bands);
    const auto for_each_band = [&](int64_t block, const auto& visit) {
      for (int64_t rank = block * kBlock; rank < std::min(num_visible, (block + 1) * kBlock); ++rank)
        if (splats[rank].y0 <= splats[rank].y1)
          for (int32_t band = band_of(splats[rank].y0); band <= band_of(splats[rank].y1); ++band)
            visit(cursor[block * num_bands + band], static_cast<int32_t>(rank));
    };
    torch::stable::parallel_for(0, num_blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) for_each_band(block, [](int64_t& at, int32_t) { ++at; });
    });
    band_offset.assign(num_bands + 1, 0);
    int64_t total = 0;
    for (int32_t band = 0; band < num_bands; ++band) {
      for (int64_t block = 0; block < num_blocks; ++block) {
        const int64_t count = cursor[block * num_bands + band];
        cursor[block * num_bands + band] = total;
        total += count;
      }
      band_offset[band + 1] = total;
    }
    band_ranks.resize(total);
    torch::stable::parallel_for(0, num_blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        for_each_band(block, [&](int64_t& at, int32_t rank) { band_ranks[at++] = rank; });
    });
  }
};

// Per tile of one row of tiles, the ranks of the Gaussians that reach it, front to back.
struct TileLists {
  std::vector<int32_t> ranks;
  std::vector<int64_t> offset;  // [tiles + 1], and one to spare

  template <typename T>
  void build(const View<T>& view, int32_t band, int32_t tile_row) {
    const int32_t num_columns = (view.width + kTile - 1) / kTile;
    spans_.resize(view.num_in_band(band));
    offset.assign(num_columns + 2, 0);
    int64_t* counts = offset.data() + 1;  // as differences between neighbours, then as sums
    const int32_t top = tile_row * kTile, bottom = top + kTile - 1;
    int64_t num_spans = 0;
    for (int64_t i = view.band_offset[band]; i < view.band_offset[band + 1]; ++i) {
      const int32_t rank = view.band_ranks[i];
      const Splat<T>& s = view.splats[rank];
      if (s.y0 > bottom || s.y1 < top) continue;
      int32_t first, last;
      column_range(view.extents[rank], std::max(s.y0, top), std::min(s.y1, bottom), view.width, &first, &last);
      if (first > last) continue;
      spans_[num_spans++] = {first / kTile, last / kTile, rank};
      ++counts[first / kTile];
      --counts[last / kTile + 1];
    }
    for (int32_t column = 1; column < num_columns; ++column) counts[column] += counts[column - 1];
    for (int32_t column = 1; column < num_columns; ++column) counts[column] += counts[column - 1];
    cursor_.assign(offset.begin(), offset.end() - 2);
    ranks.resize(offset[num_columns]);
    for (int64_t i = 0; i < num_spans; ++i)
      for (int32_t column = spans_[i].first; column <= spans_[i].last; ++column)
        ranks[cursor_[column]++] = spans_[i].rank;
  }

 private:
  struct Span {
    int32_t first, last, rank;  // columns of tiles
  };
  std::vector<Span> spans_;
  std::vector<int64_t> cursor_;
};

}  // namespace
}  // namespace pointcept3m
