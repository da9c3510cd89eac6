// A pool in its steady state takes no memory from the system: admission, decode, preemption, eviction,
// events, encoding.
#include <vector>

#include "gtest/gtest.h"
#include "llmd/worker/event_writer.h"
#include "tests/support/allocation_count.h"
#include "tests/worker/test_requests.h"

namespace llmd::worker {
namespace {

TEST(Allocation, NoneInTheSteadyState) {
  KvCacheManager kv =
      *KvCacheManager::Create({.pool = {.num_blocks = 200, .block_size = 4, .enable_events = true}});
  std::vector<TestRequest> requests;
  for (int i = 0; i < 40; ++i) requests.emplace_back(i, Tokens(101, i % 20 * 1000), 4);
  EventWriter writer;
  BlockEvents events;
  std::vector<std::byte> payload;
  bool fine = true;
  const auto step = [&](int i) {
    Request& request = *requests[i];
    const PrefixHit hit = kv.GetComputedBlocks(request);
    auto slots = kv.AllocateSlots(
        request, {.num_new_tokens = 60 - hit.num_tokens % 60, .hit = hit, .full_sequence_must_fit = true});
    fine &= slots.ok() && slots->fits;
    request.num_computed_tokens = hit.num_tokens + 60 - hit.num_tokens % 60;
    while (fine && request.num_computed_tokens < request.num_tokens()) {
      slots = kv.AllocateSlots(request, {.num_new_tokens = 1});
      fine &= slots.ok() && slots->fits;
      ++request.num_computed_tokens;
    }
    request.status = RequestStatus::kRunning;
    kv.TakeEvents(events);
    writer.Encode(events, 0, payload);
    if (i >= 4) fine &= kv.Preempt(*requests[i - 4]).ok();  // four run at a time
  };
  const auto round = [&] {
    for (int i = 0; i < 40; ++i) step(i);
    for (int i = 36; i < 40; ++i) fine &= kv.Preempt(*requests[i]).ok();
  };
  for (int i = 0; i < 5; ++i) round();
  ASSERT_TRUE(fine);
  ASSERT_GT(kv.pool().stats().blocks_evicted, 0);
  const std::size_t before = AllocationCount();
  for (int i = 0; i < 20; ++i) round();
  EXPECT_EQ(AllocationCount(), before);
  EXPECT_TRUE(fine);
}

}  // namespace
}  // namespace llmd::worker
