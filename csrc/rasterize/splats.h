// From projected Gaussians to the lists that tiles walk: depth order, extents on the image, bands, tiles.
#pragma once

#include "rasterize/lanes.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <type_traits>
#include <vector>

namespace pointcept3m {
namespace {

// gsplat's constants: the weakest alpha that counts, the strongest there is, and the transmittance at which
// a pixel stops (the Gaussian that would reach it is left out).
constexpr double kAlphaMin = 1.0 / 255.0;
constexpr double kAlphaMax = 0.99;
constexpr double kTransmittanceMin = 1e-4;

constexpr int kBands = 16;  // horizontal bands a picture is cut into: the unit of parallel work
// Pixels by which a Gaussian's extent is widened, so that rounding never loses a pixel at its rim.
constexpr double kExtentMargin = 0.02;

// A projected Gaussian: alpha(d) = opacity exp(-(a dx^2 + 2 b dx dy + c dy^2) / 2), d = pixel - centre.
template <typename T>
struct Splat {
  T x, y, a, b, c, opacity;
  T level;       // 2 ln(255 opacity): alpha reaches 1/255 where the quadratic form reaches it
  int32_t y0, y1;  // first and last row of pixels it can touch; y0 > y1: none
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

// Writes the indices of Gaussians with opacity >= 1/255 by depth, equal depths by index; returns their number.
template <typename T>
int64_t sort_by_depth(const T* depths, const T* opacities, int64_t num_gaussians, int32_t* order) {
  using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  struct Pair {
    Key key;
    int32_t index;
  };
  constexpr int kBits = 11, kBins = 1 << kBits, kPasses = (8 * sizeof(T) + kBits - 1) / kBits;
  constexpr Key kSign = Key(1) << (8 * sizeof(T) - 1);
  std::vector<Pair> pairs, spare;
  std::vector<int64_t> counts(kPasses * kBins);
  pairs.reserve(num_gaussians);
  for (int64_t i = 0; i < num_gaussians; ++i) {
    if (!(opacities[i] >= T(kAlphaMin))) continue;
    Key key;
    std::memcpy(&key, &depths[i], sizeof(T));
    key = key & kSign ? ~key : key | kSign;  // makes the bits of floats order as the floats do
    for (int pass = 0; pass < kPasses; ++pass) ++counts[pass * kBins + (key >> (pass * kBits)) % kBins];
    pairs.push_back({key, static_cast<int32_t>(i)});
  }
  const int64_t num_visible = pairs.size();
  spare.resize(num_visible);
  for (int pass = 0; pass < kPasses; ++pass) {
    int64_t* start = &counts[pass * kBins];
    if (std::find(start, start + kBins, num_visible) != start + kBins) continue;  // one digit for all
    int64_t total = 0;
    for (int bin = 0; bin < kBins; ++bin) {
      const int64_t count = start[bin];
      start[bin] = total;
      total += count;
    }
    for (const Pair& pair : pairs) spare[start[(pair.key >> (pass * kBits)) % kBins]++] = pair;
    pairs.swap(spare);
  }
  for (int64_t rank = 0; rank < num_visible; ++rank) order[rank] = pairs[rank].index;
  std::fill(order + num_visible, order + num_gaussians, -1);
  return num_visible;
}

// First and last pixel whose centre lies within [low, high], cut to [0, size).
P3M_INLINE void pixel_range(double low, double high, int32_t size, int32_t* first, int32_t* last) {
  *first = static_cast<int32_t>(std::ceil(std::clamp(low - kExtentMargin - 0.5, 0.0, double(size))));
  *last = static_cast<int32_t>(std::floor(std::clamp(high + kExtentMargin - 0.5, -1.0, double(size - 1))));
}

template <typename T>
Splat<T> make_splat(const T* mean, const T* conic, T opacity, int32_t width, int32_t height) {
  Splat<T> splat{mean[0], mean[1], conic[0], conic[1], conic[2], opacity, T(2 * std::log(255.0 * opacity)), 1, 0};
  // In double: the determinant of a needle's conic is a small difference of large products.
  const double a = splat.a, b = splat.b, c = splat.c, det = a * c - b * b;
  const double reach_x = std::sqrt(splat.level * c / det), reach_y = std::sqrt(splat.level * a / det);
  if (!(det > 0 && reach_x < 1e9 && reach_y < 1e9 && std::isfinite(splat.x) && std::isfinite(splat.y))) return splat;
  int32_t x0, x1;
  pixel_range(splat.x - reach_x, splat.x + reach_x, width, &x0, &x1);
  if (x0 <= x1) pixel_range(splat.y - reach_y, splat.y + reach_y, height, &splat.y0, &splat.y1);
  return splat;
}

// Columns of pixels that the ellipse alpha >= 1/255 reaches within the rows [first_row, last_row]: exact, as the
// part of an ellipse between two lines is convex and its extreme points are known in closed form.
template <typename T>
P3M_INLINE void column_range(const Splat<T>& s, int32_t first_row, int32_t last_row, int32_t width, int32_t* first,
                             int32_t* last) {
  const double a = s.a, b = s.b, c = s.c, level = s.level, det = a * c - b * b;
  const double top = first_row + 0.5 - s.y, bottom = last_row + 0.5 - s.y;
  const double reach = std::sqrt(level * c / det), tilt = -b / c * reach;  // rightmost point: (reach, tilt)
  double right = reach, left = -reach;
  if (tilt < top || tilt > bottom) {
    const double dy = std::clamp(tilt, top, bottom);
    right = (-b * dy + std::sqrt(std::max(a * level - det * dy * dy, 0.0))) / a;
  }
  if (-tilt < top || -tilt > bottom) {
    const double dy = std::clamp(-tilt, top, bottom);
    left = (-b * dy - std::sqrt(std::max(a * level - det * dy * dy, 0.0))) / a;
  }
  pixel_range(s.x + left, s.x + right, width, first, last);
}

// The Gaussians of one camera, front to back, and which of them each band of tile rows can see.
template <typename T>
struct View {
  std::vector<Splat<T>> splats;         // by rank in depth
  std::vector<int32_t> band_ranks;      // ranks of band 0, of band 1, ...; each front to back
  std::vector<int64_t> band_offset;     // [num_bands + 1]
  int32_t num_bands, rows_per_band;     // rows of tiles
  int32_t width, height;

  View(const T* means2d, const T* conics, const T* opacities, const int32_t* order, int64_t num_gaussians,
       int32_t width, int32_t height)
      : width(width), height(height) {
    const int32_t tile_rows = (height + kTile - 1) / kTile;
    rows_per_band = (tile_rows + kBands - 1) / kBands;
    num_bands = (tile_rows + rows_per_band - 1) / rows_per_band;
    const int64_t num_visible = std::find(order, order + num_gaussians, -1) - order;
    splats.resize(num_visible);
    for (int64_t rank = 0; rank < num_visible; ++rank) {
      const int64_t i = order[rank];
      splats[rank] = make_splat(means2d + 2 * i, conics + 3 * i, opacities[i], width, height);
    }
    band_offset.assign(num_bands + 1, 0);
    for (const Splat<T>& s : splats)
      if (s.y0 <= s.y1)
        for (int32_t band = band_of(s.y0); band <= band_of(s.y1); ++band) ++band_offset[band + 1];
    for (int32_t band = 0; band < num_bands; ++band) band_offset[band + 1] += band_offset[band];
    band_ranks.resize(band_offset[num_bands]);
    std::vector<int64_t> cursor(band_offset.begin(), band_offset.end() - 1);
    for (int64_t rank = 0; rank < num_visible; ++rank)
      if (splats[rank].y0 <= splats[rank].y1)
        for (int32_t band = band_of(splats[rank].y0); band <= band_of(splats[rank].y1); ++band)
          band_ranks[cursor[band]++] = static_cast<int32_t>(rank);
  }

  int32_t band_of(int32_t row) const { return row / (kTile * rows_per_band); }
};

// Per tile of one band, the places in the band's list of the Gaussians that reach it, front to back.
struct TileLists {
  std::vector<int32_t> places;
  std::vector<int64_t> offset;  // [tiles + 1]
  int32_t first_row, num_rows, num_columns;

  template <typename T>
  void build(const View<T>& view, int32_t band) {
    first_row = band * view.rows_per_band;
    num_rows = std::min(view.rows_per_band, (view.height + kTile - 1) / kTile - first_row);
    num_columns = (view.width + kTile - 1) / kTile;
    entries_.clear();
    offset.assign(num_rows * num_columns + 1, 0);
    const int32_t* ranks = view.band_ranks.data() + view.band_offset[band];
    const int64_t num_ranks = view.band_offset[band + 1] - view.band_offset[band];
    for (int64_t place = 0; place < num_ranks; ++place) {
      const Splat<T>& s = view.splats[ranks[place]];
      const int32_t begin = std::max(s.y0 / kTile, first_row), end = std::min(s.y1 / kTile, first_row + num_rows - 1);
      for (int32_t row = begin; row <= end; ++row) {
        int32_t first, last;
        column_range(s, std::max(s.y0, row * kTile), std::min(s.y1, row * kTile + kTile - 1), view.width, &first, &last);
        if (first > last) continue;
        for (int32_t column = first / kTile; column <= last / kTile; ++column) {
          const int32_t tile = (row - first_row) * num_columns + column;
          ++offset[tile + 1];
          entries_.push_back({tile, static_cast<int32_t>(place)});
        }
      }
    }
    for (size_t tile = 0; tile + 1 < offset.size(); ++tile) offset[tile + 1] += offset[tile];
    cursor_.assign(offset.begin(), offset.end() - 1);
    places.resize(entries_.size());
    for (const Entry& entry : entries_) places[cursor_[entry.tile]++] = entry.place;
  }

 private:
  struct Entry {
    int32_t tile, place;
  };
  std::vector<Entry> entries_;
  std::vector<int64_t> cursor_;
};

}  // namespace
}  // namespace pointcept3m
