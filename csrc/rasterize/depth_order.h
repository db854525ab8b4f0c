// Gaussians of one camera in the order of their depths: a radix sort on the bits, stable, in parallel. It stays apart
// from common/radix_sort.h as it leaves faint Gaussians out while it collects the keys, skips digits that all depths
// share, and keeps its memory from camera to camera.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace pointcept3m {
namespace {

constexpr double kAlphaMin = 1.0 / 255.0;  // the weakest alpha that counts, as in gsplat

template <typename T>
class DepthSort {
 public:
  // Writes the indices of Gaussians with opacity >= 1/255 by depth, equal depths by index, then -1.
  void run(const T* depths, const T* opacities, int64_t num_gaussians, int32_t* order) {
    collect(depths, opacities, num_gaussians);
    for (int pass = 0; pass < kPasses; ++pass) sort_by_digit(pass);
    const int64_t num_visible = pairs_.size();
    for (int64_t rank = 0; rank < num_visible; ++rank) order[rank] = pairs_[rank].index;
    std::fill(order + num_visible, order + num_gaussians, -1);
  }

 private:
  using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  struct Pair {
    Key key;
    int32_t index;
  };
  static constexpr int kBits = 11, kBins = 1 << kBits, kPasses = (8 * sizeof(T) + kBits - 1) / kBits;
  static constexpr int64_t kBlock = 32768;  // Gaussians a block counts and moves: enough to outweigh its kBins counters

  static int64_t digit(Key key, int pass) { return (key >> (pass * kBits)) % kBins; }

  template <typename Work>
  static void for_blocks(int64_t count, const Work& work) {
    torch::stable::parallel_for(0, (count + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        work(block, block * kBlock, std::min(count, (block + 1) * kBlock));
    });
  }

  void collect(const T* depths, const T* opacities, int64_t num_gaussians) {
    std::vector<int64_t> start((num_gaussians + kBlock - 1) / kBlock + 1);
    for_blocks(num_gaussians, [&](int64_t block, int64_t begin, int64_t end) {
      int64_t count = 0;
      for (int64_t i = begin; i < end; ++i) count += opacities[i] >= T(kAlphaMin);
      start[block + 1] = count;
    });
    for (size_t block = 1; block < start.size(); ++block) start[block] += start[block - 1];
    pairs_.resize(start.back());
    spare_.resize(start.back());
    for_blocks(num_gaussians, [&](int64_t block, int64_t begin, int64_t end) {
      constexpr Key kSign = Key(1) << (8 * sizeof(T) - 1);
      Pair* to = pairs_.data() + start[block];
      for (int64_t i = begin; i < end; ++i) {
        if (!(opacities[i] >= T(kAlphaMin))) continue;
        Key key;
        std::memcpy(&key, &depths[i], sizeof(T));
        if (key == kSign) key = 0;  // -0 is as far as 0
        *to++ = {key & kSign ? ~key : key | kSign, static_cast<int32_t>(i)};  // bits that order as the floats do
      }
    });
  }

  void sort_by_digit(int pass) {
    const int64_t count = pairs_.size(), num_blocks = (count + kBlock - 1) / kBlock;
    cursors_.assign(num_blocks * kBins, 0);
    for_blocks(count, [&](int64_t block, int64_t begin, int64_t end) {
      int64_t* own = cursors_.data() + block * kBins;
      for (int64_t i = begin; i < end; ++i) ++own[digit(pairs_[i].key, pass)];
    });
    int64_t total = 0;
    for (int64_t bin = 0; bin < kBins; ++bin) {
      const int64_t before = total;
      for (int64_t block = 0; block < num_blocks; ++block) {
        const int64_t own = cursors_[block * kBins + bin];
        cursors_[block * kBins + bin] = total;
        total += own;
      }
      if (total - before == count) return;  // one digit for all
    }
    for_blocks(count, [&](int64_t block, int64_t begin, int64_t end) {
      int64_t* own = cursors_.data() + block * kBins;
      for (int64_t i = begin; i < end; ++i) spare_[own[digit(pairs_[i].key, pass)]++] = pairs_[i];
    });
    pairs_.swap(spare_);
  }

  std::vector<Pair> pairs_, spare_;
  std::vector<int64_t> cursors_;
};

}  // namespace
}  // namespace pointcept3m
