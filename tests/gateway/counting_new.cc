// Counts allocations of the whole binary. A file of its own, so that the compiler does not pair calls with
// the body.
#include <cstddef>
#include <cstdlib>
#include <new>

namespace llmd::gateway {
std::size_t allocations = 0;
}  // namespace llmd::gateway

void* operator new(std::size_t size) {
  ++llmd::gateway::allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
