// Sums of rows of feature maps, the part of fuse_views that all its time goes to.
#pragma once

#include <cstdint>

namespace pointcept3m {

// A place in the maps that a point reads: its upper left cell, and how much of the right and of the lower one.
struct Tap {
  int64_t offset;  // of the cell's first channel
  float right_share, low_share;
};

// Taps that one point reads, and the row that they are added to.
struct Sum {
  float* row;
  const Tap *begin, *end;
};

// What all taps of a call share.
struct Grid {
  const float* cells;
  int64_t channels;
  int64_t right, low;  // from a cell to those beside and below it, in values
  bool bilinear;
};

// Adds to each row what its taps read, tap after tap.
void add_rows(const Grid& grid, const Sum* sums, int64_t count);

}  // namespace pointcept3m
