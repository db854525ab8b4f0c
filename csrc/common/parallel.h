// Work sharing over torch's threads. Every unit is computed by one thread from start to end and writes only
// what belongs to it, so results depend neither on the number of threads nor on which thread came first.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace pointcept3m {

// Calls `work(unit)` once for each unit in [0, count); threads take the next unit when they are free.
// `work` must not throw: the call crosses a C interface.
template <class Work>
void share_units(int64_t count, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t unit = next.fetch_add(1); unit < count; unit = next.fetch_add(1)) work(unit);
  });
}

}  // namespace pointcept3m
