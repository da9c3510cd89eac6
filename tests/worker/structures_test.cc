// FreeQueue and CachedMap against std::list and std::map.
#include <list>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/worker/cached_map.h"
#include "llmd/worker/free_queue.h"
#include "tests/worker/test_requests.h"

namespace llmd::worker {
namespace {

TEST(FreeQueue, EqualsAListUnderRandomOperations) {
  Random random(1);
  for (int round = 0; round < 20; ++round) {
    const BlockId n = 1 + random.Below(12);
    std::vector<Block> blocks(n + 1);
    FreeQueue queue(blocks);
    std::list<BlockId> model;
    for (int step = 0; step < 2000; ++step) {
      const BlockId id = random.Below(n);
      const auto at = std::find(model.begin(), model.end(), id);
      ASSERT_EQ(queue.contains(id), at != model.end());
      if (at != model.end()) {
        if (random.Chance(0.5)) {
          queue.Remove(id);
          model.erase(at);
        } else {
          ASSERT_EQ(queue.PopFront(), model.front());
          model.pop_front();
        }
      } else if (random.Chance(0.5)) {
        queue.PushBack(id);
        model.push_back(id);
      } else if (model.empty() || random.Chance(0.5)) {
        queue.PushAfter(kNoBlock, id);
        model.push_front(id);
      } else {
        const auto position = std::next(model.begin(), random.Below(model.size()));
        queue.PushAfter(*position, id);
        model.insert(std::next(position), id);
      }
      std::vector<BlockId> forward;
      for (BlockId i = queue.front(); i != kNoBlock; i = queue.next(i)) forward.push_back(i);
      std::vector<BlockId> backward;
      for (BlockId i = queue.back(); i != kNoBlock; i = queue.prev(i)) backward.insert(backward.begin(), i);
      ASSERT_THAT(forward, testing::ElementsAreArray(model));
      ASSERT_EQ(forward, backward);
      ASSERT_EQ(queue.size(), model.size());
      ASSERT_EQ(queue.empty(), model.empty());
    }
  }
}

using Key = std::pair<std::vector<std::uint8_t>, std::uint32_t>;

Key KeyOf(const hash::Digest& digest, std::uint32_t group) {
  return {{digest.bytes.begin(), digest.bytes.begin() + digest.size}, group};
}

TEST(CachedMap, EqualsAMapOfListsUnderRandomOperations) {
  Random random(2);
  for (int round = 0; round < 30; ++round) {
    const BlockId n = 2 + random.Below(60);
    std::vector<Block> blocks(n);
    CachedMap map(blocks);
    std::map<Key, std::vector<BlockId>> model;
    // Few digests, so that duplicates abound; of several sizes, one being a prefix of another.
    std::vector<hash::Digest> digests;
    for (int i = 0; i < 1 + static_cast<int>(random.Below(n)); ++i) {
      hash::Digest digest = ToyDigest(random.Below(20));
      if (random.Chance(0.3)) {
        digest.size = random.Chance(0.5) ? 8 : 16;
        std::fill(digest.bytes.begin() + digest.size, digest.bytes.end(), 0);
      }
      digests.push_back(digest);
    }
    for (int step = 0; step < 3000; ++step) {
      const BlockId id = random.Below(n);
      if (blocks[id].cached()) {
        const Key key = KeyOf(blocks[id].hash, blocks[id].group_id);
        std::erase(model[key], id);
        const bool last = model[key].empty();
        if (last) model.erase(key);
        ASSERT_EQ(map.Remove(id), last);
        ASSERT_FALSE(blocks[id].cached());
      } else {
        const hash::Digest& digest = digests[random.Below(digests.size())];
        const std::uint32_t group = random.Below(3);
        auto& list = model[KeyOf(digest, group)];
        ASSERT_EQ(map.Insert(id, digest, group), list.empty());
        list.push_back(id);
      }
      if (random.Chance(0.001)) {
        map.Clear();
        model.clear();
        for (const Block& block : blocks) ASSERT_FALSE(block.cached());
      }
      std::size_t total = 0;
      for (const auto& [key, ids] : model) total += ids.size();
      ASSERT_EQ(map.num_keys(), model.size());
      ASSERT_EQ(map.num_blocks(), total);
      for (const hash::Digest& digest : digests) {
        for (std::uint32_t group = 0; group < 3; ++group) {
          const auto it = model.find(KeyOf(digest, group));
          ASSERT_EQ(map.Find(digest, group), it == model.end() ? kNoBlock : it->second.front());
        }
      }
    }
  }
}

TEST(CachedMap, HoldsEveryBlockOfThePool) {
  std::vector<Block> blocks(1000);
  CachedMap map(blocks);
  for (BlockId id = 0; id < 1000; ++id) EXPECT_TRUE(map.Insert(id, ToyDigest(id), 0));
  for (BlockId id = 0; id < 1000; ++id) EXPECT_EQ(map.Find(ToyDigest(id), 0), id);
  EXPECT_EQ(map.Find(ToyDigest(1000), 0), kNoBlock);
  EXPECT_EQ(map.Find(ToyDigest(1), 1), kNoBlock);
  for (BlockId id = 0; id < 1000; ++id) EXPECT_TRUE(map.Remove(id));
  EXPECT_EQ(map.num_keys(), 0);
}

// Long duplicate lists must not make removal slow or lose the order.
TEST(CachedMap, ManyDuplicates) {
  std::vector<Block> blocks(500);
  CachedMap map(blocks);
  for (BlockId id = 0; id < 500; ++id) EXPECT_EQ(map.Insert(id, ToyDigest(7), 0), id == 0);
  for (BlockId id = 0; id < 500; ++id) {
    EXPECT_EQ(map.Find(ToyDigest(7), 0), id);
    EXPECT_EQ(map.Remove(id), id == 499);
  }
  EXPECT_EQ(map.Find(ToyDigest(7), 0), kNoBlock);
}

}  // namespace
}  // namespace llmd::worker
