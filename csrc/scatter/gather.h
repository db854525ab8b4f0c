// The way back: bins' rows copied to the rows that belong to them. One pass over the rows, in their order, so that
// what is written, which is most of the bytes, is written once and streamed.
#pragma once

#include "common/check.h"
#include "common/pages.h"
#include "common/values.h"
#include "scatter/bins.h"

namespace pointcept3m {
namespace {

constexpr int64_t kRowBlock = 2048;
constexpr int64_t kNoBin = -1;

// The bin of each row of a block, from an index.
struct IndexedRows {
  const int64_t* index;
  int64_t num_bins;

  // `index + begin`, or null where one of the block lies outside [0, num_bins).
  const int64_t* block(int64_t begin, int64_t end, int64_t*) const {
    for (int64_t i = begin; i < end; ++i)
      if (static_cast<uint64_t>(index[i]) >= static_cast<uint64_t>(num_bins)) return nullptr;
    return index + begin;
  }
};

// The bin of each row of a block, from the bins' first and last places; kNoBin where a row is in none.
struct SegmentedRows {
  const int32_t* first;
  const int32_t* last;
  int64_t num_bins;

  const int64_t* block(int64_t begin, int64_t end, int64_t* buffer) const {
    int64_t bin = std::upper_bound(first, first + num_bins, static_cast<int32_t>(begin)) - first - 1;
    for (int64_t row = begin; row < end; ++row) {
      while (bin + 1 < num_bins && first[bin + 1] <= row) ++bin;
      buffer[row - begin] = bin >= 0 && row < last[bin] ? bin : kNoBin;
    }
    return buffer;
  }
};

// Calls move(begin, end, bins of these rows) for every block of rows. False where a bin does not exist.
template <class Rows, class Move>
bool share_rows(const Rows& rows, int64_t num_rows, const Move& move) {
  std::atomic<bool> inside{true};
  share_units((num_rows + kRowBlock - 1) / kRowBlock, [&](int64_t unit) {
    const int64_t begin = unit * kRowBlock, end = std::min(num_rows, begin + kRowBlock);
    int64_t buffer[kRowBlock];
    if (const int64_t* bins = rows.block(begin, end, buffer)) move(begin, end, bins);
    else inside.store(false, std::memory_order_relaxed);
  });
  return inside;
}

// out[i] = src[bin of i], rows of `width` bytes; zeros for a row in no bin. False where a bin does not exist.
template <class Rows>
bool copy_rows(const char* src, const Rows& rows, int64_t num_rows, int64_t width, char* out) {
  ask_for_huge_pages(out, num_rows * width);
  const bool streamed = num_rows * width >= kStreamFrom;
  return share_rows(rows, num_rows, [&](int64_t begin, int64_t end, const int64_t* bins) {
    for (int64_t i = 0; width > 0 && i < end - begin; ++i) {
      if (i + kAhead < end - begin && bins[i + kAhead] != kNoBin) prefetch_row(src + bins[i + kAhead] * width, width);
      char* to = out + (begin + i) * width;
      if (bins[i] == kNoBin) std::memset(to, 0, width);
      else if (streamed) stream(to, src + bins[i] * width, width);
      else std::memcpy(to, src + bins[i] * width, width);
    }
    if (streamed) finish_stream();
  });
}

// A row gets the gradient of its bin in the channels that it won. `Word` is as wide as a value, which is only moved.
template <class Word>
struct Winners {
  const Word* grad;    // [bins, channels]
  const int32_t* arg;  // [bins, channels], counted within a batch
  int64_t channels, batch_rows;
  Word* out;  // [rows, channels]
};

// `line` holds one row; it is filled in the nearest cache and streamed from there. Null: not streamed.
template <class Word>
P3M_INLINE void return_rows(const Winners<Word>& job, int64_t begin, int64_t end, const int64_t* bins, Word* line) {
  const int64_t channels = job.channels, width = channels * static_cast<int64_t>(sizeof(Word));
  int64_t row = begin % job.batch_rows;
  for (int64_t i = 0; width > 0 && i < end - begin; ++i, row = row + 1 == job.batch_rows ? 0 : row + 1) {
    if (i + kAhead < end - begin && bins[i + kAhead] != kNoBin) {
      prefetch_row(job.grad + bins[i + kAhead] * channels, width);
      prefetch_row(job.arg + bins[i + kAhead] * channels, channels * sizeof(int32_t));
    }
    Word* to = job.out + (begin + i) * channels;
    if (bins[i] == kNoBin) {
      std::memset(to, 0, width);
      continue;
    }
    const Word* P3M_RESTRICT grad = job.grad + bins[i] * channels;
    const int32_t* P3M_RESTRICT arg = job.arg + bins[i] * channels;
    Word* P3M_RESTRICT filled = line ? line : to;
    const auto mine = static_cast<int32_t>(row);
    for (int64_t c = 0; c < channels; ++c) filled[c] = arg[c] == mine ? grad[c] : Word{0};
    if (line) stream(reinterpret_cast<char*>(to), reinterpret_cast<char*>(line), width);
  }
}

#define P3M_RETURN_KERNEL(Word)                                                                       \
  P3M_KERNEL void return_range(const Winners<Word>& job, int64_t begin, int64_t end, const int64_t* bins, \
                               Word* line) {                                                          \
    return_rows(job, begin, end, bins, line);                                                         \
  }
P3M_RETURN_KERNEL(uint16_t)
P3M_RETURN_KERNEL(uint32_t)
P3M_RETURN_KERNEL(uint64_t)
#undef P3M_RETURN_KERNEL

// False where a bin does not exist.
template <class Word, class Rows>
bool return_to_winners(const Winners<Word>& job, const Rows& rows, int64_t num_rows) {
  const int64_t bytes = num_rows * job.channels * static_cast<int64_t>(sizeof(Word));
  ask_for_huge_pages(job.out, bytes);
  return share_rows(rows, num_rows, [&](int64_t begin, int64_t end, const int64_t* bins) {
    std::unique_ptr<Word[]> line(bytes >= kStreamFrom ? new Word[job.channels] : nullptr);
    return_range(job, begin, end, bins, line.get());
    if (line) finish_stream();
  });
}

// The same for tensors: grad and out of any type of 2, 4 or 8 bytes.
template <class Rows>
bool return_to_winners(const Tensor& grad, const Tensor& arg, const Rows& rows, int64_t batch_rows, int64_t num_rows,
    const Tensor& out) {
  const auto run = [&](auto word) {
    using Word = decltype(word);
    const Winners<Word> job{static_cast<const Word*>(grad.data_ptr()), arg.const_data_ptr<int32_t>(),
        grad.size(grad.dim() - 1),
                            std::max<int64_t>(batch_rows, 1), static_cast<Word*>(out.data_ptr())};
    return return_to_winners(job, rows, num_rows);
  };
  return grad.element_size() == 4 ? run(uint32_t{}) : grad.element_size() == 8 ? run(uint64_t{}) : run(uint16_t{});
}

}  // namespace
}  // namespace pointcept3m
