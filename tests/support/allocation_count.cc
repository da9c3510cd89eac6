#include "tests/support/allocation_count.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::size_t> allocations = 0;

void* Counted(std::size_t bytes, std::size_t alignment = alignof(std::max_align_t)) {
  ++allocations;
  void* memory = nullptr;
  if (alignment <= alignof(std::max_align_t)) {
    memory = std::malloc(bytes == 0 ? 1 : bytes);
  } else if (posix_memalign(&memory, alignment, bytes) != 0) {
    memory = nullptr;
  }
  if (memory == nullptr) std::abort();
  return memory;
}

std::size_t ToSize(std::align_val_t alignment) { return static_cast<std::size_t>(alignment); }

}  // namespace

// Every form, since a form left out would pair the library's own with free().
using Align = std::align_val_t;
using NoThrow = std::nothrow_t;
void* operator new(std::size_t n) { return Counted(n); }
void* operator new[](std::size_t n) { return Counted(n); }
void* operator new(std::size_t n, Align a) { return Counted(n, ToSize(a)); }
void* operator new[](std::size_t n, Align a) { return Counted(n, ToSize(a)); }
void* operator new(std::size_t n, const NoThrow&) noexcept { return Counted(n); }
void* operator new[](std::size_t n, const NoThrow&) noexcept { return Counted(n); }
void* operator new(std::size_t n, Align a, const NoThrow&) noexcept { return Counted(n, ToSize(a)); }
void* operator new[](std::size_t n, Align a, const NoThrow&) noexcept { return Counted(n, ToSize(a)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, Align) noexcept { std::free(p); }
void operator delete[](void* p, Align) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, Align) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, Align) noexcept { std::free(p); }
void operator delete(void* p, const NoThrow&) noexcept { std::free(p); }
void operator delete[](void* p, const NoThrow&) noexcept { std::free(p); }
void operator delete(void* p, Align, const NoThrow&) noexcept { std::free(p); }
void operator delete[](void* p, Align, const NoThrow&) noexcept { std::free(p); }

namespace llmd {

std::size_t AllocationCount() { return allocations; }

}  // namespace llmd
