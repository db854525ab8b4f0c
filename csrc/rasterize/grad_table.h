// Where the backward adds up gradients, so that no two threads ever write one row and every sum has one order.
#pragma once

#include "rasterize/channels.h"
#include "rasterize/tile_backward.h"

namespace pointcept3m {
namespace {

// Bands at work at the same time are never neighbours (even bands first, then odd ones). A Gaussian that two
// neighbouring bands see is therefore written by one thread at a time and may be added up in place, in the result;
// the few that reach further have a row of scratch in each of their bands, added up in the order of the bands.
template <typename T>
class GradTable {
 public:
  // `view_grad` [G, num_view] and `shared_grad` [G, num_shared]: the results, which are added to.
  GradTable(const View<T>& view, const int32_t* order, const ChannelRows<T>& channels, T* view_grad, T* shared_grad)
      : view_(view), order_(order), channels_(channels), view_grad_(view_grad), shared_grad_(shared_grad) {
    const int64_t num_visible = view.splats.size();
    first_extra_.assign(num_visible, -1);
    for (int64_t rank = 0; rank < num_visible; ++rank) {
      const Splat<T>& s = view.splats[rank];
      if (s.y0 > s.y1) continue;
      const int32_t num_bands = view.band_of(s.y1) - view.band_of(s.y0) + 1;
      if (num_bands <= 2) continue;
      first_extra_[rank] = num_extra_;
      num_extra_ += num_bands;
    }
    geometry_.assign((num_visible + num_extra_) * kGeometry, T(0));
    extra_view_.assign(num_extra_ * channels.num_view, T(0));
    extra_shared_.assign(num_extra_ * channels.num_shared, T(0));
  }

  GradRows<T> rows(int32_t rank, int32_t band) {
    if (first_extra_[rank] < 0) {
      const int64_t index = order_[rank];
      return {geometry_.data() + rank * kGeometry, view_grad_ + index * channels_.num_view,
              shared_grad_ + index * channels_.num_shared};
    }
    const int64_t extra = first_extra_[rank] + band - view_.band_of(view_.splats[rank].y0);
    const int64_t num_visible = view_.splats.size();
    return {geometry_.data() + (num_visible + extra) * kGeometry, extra_view_.data() + extra * channels_.num_view,
            extra_shared_.data() + extra * channels_.num_shared};
  }

  // Adds up the rows of scratch and writes the gradients of means [G, 2], conics [G, 3] and `opacities` [G].
  void finish(const T* opacities, T* means, T* conics, T* opacity_grad) {
    const int64_t num_visible = view_.splats.size();
    torch::stable::parallel_for(0, num_visible, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t rank = begin; rank < end; ++rank) {
        if (first_extra_[rank] >= 0) add_extra(rank);
        const T* row = geometry_.data() + rank * kGeometry;
        const int64_t index = order_[rank];
        for (int i = 0; i < 2; ++i) means[2 * index + i] = row[i];
        for (int i = 0; i < 3; ++i) conics[3 * index + i] = row[2 + i];
        opacity_grad[index] = row[5] / opacities[index];
      }
    });
  }

 private:
  void add_extra(int64_t rank) {
    const Splat<T>& s = view_.splats[rank];
    const int64_t index = order_[rank];
    T* view = view_grad_ + index * channels_.num_view;
    T* shared = shared_grad_ + index * channels_.num_shared;
    for (int32_t band = view_.band_of(s.y0); band <= view_.band_of(s.y1); ++band) {
      const GradRows<T> from = rows(static_cast<int32_t>(rank), band);
      for (int i = 0; i < kGeometry; ++i) geometry_[rank * kGeometry + i] += from.geometry[i];
      for (int64_t i = 0; i < channels_.num_view; ++i) view[i] += from.view[i];
      for (int64_t i = 0; i < channels_.num_shared; ++i) shared[i] += from.shared[i];
    }
  }

  const View<T>& view_;
  const int32_t* order_;
  const ChannelRows<T>& channels_;
  T *view_grad_, *shared_grad_;
  int64_t num_extra_ = 0;
  std::vector<int64_t> first_extra_;  // by rank; -1: summed up in place
  std::vector<T> geometry_;           // [num_visible + num_extra][kGeometry]
  std::vector<T> extra_view_, extra_shared_;
};

// The rows that one band adds to.
template <typename T>
struct BandRows {
  GradTable<T>* table;
  int32_t band;
  P3M_INLINE GradRows<T> operator()(int32_t rank) const { return table->rows(rank, band); }
};

}  // namespace
}  // namespace pointcept3m
