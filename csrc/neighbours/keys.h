// Distances from a point to sixteen boxes or points, and keys that order points by distance.
#pragma once

#include "neighbours/box_tree.h"

namespace pointcept3m {
namespace {

// (squared distance, id) as one integer that is ordered as the pair is: the bits of floats >= 0 ascend with them.
template <class T>
struct Key;
template <>
struct Key<float> {
  using type = int64_t;
  P3M_INLINE static type make(float square, int32_t id) {
    return static_cast<type>(std::bit_cast<int32_t>(square)) << 32 | id;
  }
  P3M_INLINE static float square(type key) { return std::bit_cast<float>(static_cast<int32_t>(key >> 32)); }
  P3M_INLINE static int32_t id(type key) { return static_cast<int32_t>(key); }
};
template <>
struct Key<double> {
  using type = __int128;
  P3M_INLINE static type make(double square, int32_t id) {
    return static_cast<type>(std::bit_cast<int64_t>(square)) << 32 | id;
  }
  P3M_INLINE static double square(type key) { return std::bit_cast<double>(static_cast<int64_t>(key >> 32)); }
  P3M_INLINE static int32_t id(type key) { return static_cast<int32_t>(key); }
};

// The lanes of a comparison as bits.
template <class Mask>
P3M_INLINE unsigned lanes_of(const Mask& mask) {
  if constexpr (sizeof(mask[0]) == 4) {
    constexpr int32_t bit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    alignas(64) int64_t pairs[8];
    std::memcpy(pairs, &mask, 64);
    Vector<int32_t> flags = mask & load(bit);
    std::memcpy(pairs, &flags, 64);
    const int64_t all =
        ((pairs[0] | pairs[1]) | (pairs[2] | pairs[3])) | ((pairs[4] | pairs[5]) | (pairs[6] | pairs[7]));
    return static_cast<unsigned>(all | all >> 32);
  } else {
    unsigned all = 0;
    for (int lane = 0; lane < 8; ++lane) all |= static_cast<unsigned>(mask[lane] & 1) << lane;
    return all;
  }
}

// Squared distance from a point to the boxes in the lanes from `at` on.
template <class T>
P3M_INLINE Vector<T> box_distance(const Boxes<T>& boxes, int64_t at, const T* point) {
  Vector<T> apart[3];
  for (int d = 0; d < 3; ++d) {
    const Vector<T> below = load(boxes.low[d] + at) - point[d], above = point[d] - load(boxes.high[d] + at), zero = {};
    const Vector<T> outside = below > above ? below : above;
    apart[d] = outside > zero ? outside : zero;
  }
  return square_sum(apart[0], apart[1], apart[2]);
}

template <class T>
P3M_INLINE Vector<T> point_distance(const Leaf<T>& leaf, int64_t at, const T* point) {
  const Vector<T> x = load(leaf.coord[0] + at) - point[0], y = load(leaf.coord[1] + at) - point[1],
                  z = load(leaf.coord[2] + at) - point[2];
  return square_sum(x, y, z);
}

}  // namespace
}  // namespace pointcept3m
