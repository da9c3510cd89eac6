// Replaces the global allocator of a test binary by one that counts.
#ifndef TESTS_EVENTS_COUNTING_ALLOCATOR_H_
#define TESTS_EVENTS_COUNTING_ALLOCATOR_H_

#include <cstddef>

namespace llmd::events {

// Calls of operator new so far.
std::size_t AllocationCount();

}  // namespace llmd::events

#endif  // TESTS_EVENTS_COUNTING_ALLOCATOR_H_
