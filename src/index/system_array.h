// A zeroed array at a fixed address whose pages the system provides as they are first touched.
#ifndef SRC_INDEX_SYSTEM_ARRAY_H_
#define SRC_INDEX_SYSTEM_ARRAY_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

namespace llmd::index {

// T must be valid when all its bytes are zero.
template <typename T>
class SystemArray {
 public:
  explicit SystemArray(std::size_t size) : bytes_(size * sizeof(T)) {
    void* memory =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::fprintf(stderr, "llmd: cannot reserve %zu bytes of address space\n", bytes_);
      std::abort();
    }
    items_ = static_cast<T*>(memory);
  }
  ~SystemArray() { munmap(items_, bytes_); }
  SystemArray(const SystemArray&) = delete;
  SystemArray& operator=(const SystemArray&) = delete;

  T& operator[](std::size_t i) const { return items_[i]; }

 private:
  std::size_t bytes_;
  T* items_;
};

}  // namespace llmd::index

#endif  // SRC_INDEX_SYSTEM_ARRAY_H_
