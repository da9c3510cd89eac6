// Linked into a test or benchmark, allocation_count.cc replaces the global allocator by one that counts.
#ifndef TESTS_SUPPORT_ALLOCATION_COUNT_H_
#define TESTS_SUPPORT_ALLOCATION_COUNT_H_

#include <cstddef>

namespace llmd {

// Calls of any operator new of the process so far.
std::size_t AllocationCount();

}  // namespace llmd

#endif  // TESTS_SUPPORT_ALLOCATION_COUNT_H_
