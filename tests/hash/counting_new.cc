// Counts allocations. A file of its own, so that compilers do not inline one half of a new and delete pair.
#include <cstdlib>
#include <new>

namespace llmd::hash {
std::size_t allocations = 0;
}

void* operator new(std::size_t size) {
  ++llmd::hash::allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++llmd::hash::allocations;
  return std::malloc(size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
