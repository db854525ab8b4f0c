// Scratch memory that the rasterizer's threads keep between tiles.
#pragma once

#include <cstdint>
#include <new>

namespace pointcept3m {
namespace {

// Memory on a cache line that only grows; what it held is lost when it does.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }
  void resize(int64_t size) {
    if (size <= size_) return;
    release();
    data_ = static_cast<T*>(::operator new(size * sizeof(T), kAlignment));
    size_ = size;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void release() {
    if (data_) ::operator delete(data_, kAlignment);
    data_ = nullptr;
    size_ = 0;
  }
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace
}  // namespace pointcept3m
