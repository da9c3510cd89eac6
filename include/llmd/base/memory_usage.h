// What a bounded container holds, in bytes, by cause.
#ifndef LLMD_BASE_MEMORY_USAGE_H_
#define LLMD_BASE_MEMORY_USAGE_H_

#include <cstddef>
#include <string>
#include <vector>

namespace llmd {

// A snapshot of a container's memory. live + dead + free is what the container has taken from the system;
// `dead` waits for compaction or for readers to move on, `free` is kept for reuse.
struct MemoryUsage {
  struct Cause {
    std::string name;  // e.g. "run bodies", "identity map"
    std::size_t live_bytes = 0;
    std::size_t dead_bytes = 0;
    std::size_t free_bytes = 0;
  };

  std::vector<Cause> causes;
  std::size_t budget_bytes = 0;  // 0 when unlimited

  std::size_t live_bytes() const { return Sum(&Cause::live_bytes); }
  std::size_t dead_bytes() const { return Sum(&Cause::dead_bytes); }
  std::size_t free_bytes() const { return Sum(&Cause::free_bytes); }
  std::size_t total_bytes() const { return live_bytes() + dead_bytes() + free_bytes(); }

 private:
  std::size_t Sum(std::size_t Cause::*member) const {
    std::size_t sum = 0;
    for (const Cause& cause : causes) sum += cause.*member;
    return sum;
  }
};

}  // namespace llmd

#endif  // LLMD_BASE_MEMORY_USAGE_H_
