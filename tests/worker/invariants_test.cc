// Random operation sequences of a toy scheduler, with the real manager and the literal one side by side.
// After every operation both must agree in every block table, in the order of the free list and in every
// event, and the invariants of the specification (decode worker, 1.11; numbered in the checks) must hold.
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "tests/worker/reference_pool.h"
#include "tests/worker/test_requests.h"

namespace llmd::worker {
namespace {

using ::testing::ElementsAreArray;

// Everything that determines a block's KV: what else goes into the hash, and all tokens up to the block's
// end.
using Content = std::pair<std::uint64_t, std::vector<TokenId>>;

class Simulation {
 public:
  Simulation(const KvCacheManagerOptions& options, std::uint64_t seed)
      : options_(options), random_(seed), kv_(*KvCacheManager::Create(options)), model_(options) {}

  void Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      SCOPED_TRACE(testing::Message() << "step " << i);
      RandomOperation();
      Check();
      if (testing::Test::HasFatalFailure()) return;
    }
    Drain();
  }

  std::uint64_t admissions = 0, hits = 0, preemptions = 0, refusals = 0, loads = 0, duplicates = 0;

 private:
  struct Live {
    TestRequest request;
    std::uint32_t loading = 0;  // external tokens on their way
    bool aborted = false;       // frees its blocks when the load has ended
  };

  std::uint32_t bs() const { return options_.pool.block_size; }

  void RandomOperation() {
    const std::uint64_t dice = random_.Below(100);
    if (dice < 20) return Add();
    if (dice < 60) return Step();
    if (dice < 68) return EndLoad();
    if (dice < 76) return Finish();
    if (dice < 80) return Abort();
    if (dice < 84) return PreemptOne();
    if (dice < 87) return Reset();
    if (dice < 90) return EvictSome();
    if (dice < 95) return Pin();
    return WrongCalls();
  }

  void Add() {
    if (live_.size() > 8) return;
    static constexpr int kBlocks[] = {0, 1, 1, 2, 2, 3, 5};
    // Around multiples of the block size, sometimes a single token; few distinct tokens, so that prefixes
    // coincide.
    std::size_t length = kBlocks[random_.Below(7)] * bs() + random_.Below(3);
    if (length == 0 || random_.Chance(0.1)) length = 1;
    std::vector<TokenId> prompt(length);
    const bool plain = random_.Chance(0.5);
    for (TokenId& token : prompt) token = plain ? 1 : random_.Below(2);
    const RequestId id = next_id_++;
    auto live = std::make_unique<Live>(Live{TestRequest(id, prompt, bs(), random_.Below(5) == 0)});
    live->request->skip_reading_prefix_cache = random_.Chance(0.05);
    live_[id] = std::move(live);
    waiting_.push_back(id);
  }

  void Step() {
    bool preempted = false;
    for (std::size_t i = 0; i < running_.size(); ++i) {
      Live& live = *live_[running_[i]];
      std::uint32_t n = live.request->num_tokens() - live.request->num_computed_tokens;
      if (n == 0) continue;
      n = 1 + random_.Below(n);
      const std::uint32_t lookahead = random_.Chance(0.2) ? random_.Below(4) : 0;
      const SlotRequest slots{.num_new_tokens = n, .num_lookahead_tokens = lookahead};
      bool fits;
      while (!(fits = Allocate(live, slots))) {
        const RequestId victim = running_.back();
        Preempt(victim);
        preempted = true;
        if (victim == live.request->id) break;
      }
      if (!fits) break;
      live.request->num_computed_tokens += n;
    }
    if (!preempted) Admit();
    // The model ran: those that caught up get a token.
    for (const RequestId id : running_) {
      TestRequest& request = live_[id]->request;
      if (request->num_computed_tokens == request->num_tokens()) request.Append(random_.Below(2));
    }
  }

  void Admit() {
    while (!waiting_.empty() && running_.size() < 6) {
      const RequestId id = waiting_.front();
      Live& live = *live_[id];
      Request& request = *live.request;
      SlotRequest slots;
      std::vector<BlockId> expected;
      if (request.num_computed_tokens == 0 && kv_.BlockTable(id).empty()) {
        slots.hit = kv_.GetComputedBlocks(request);
        expected = model_.Hits(request);
        ASSERT_THAT(slots.hit.blocks, ElementsAreArray(expected));
        ASSERT_LE(slots.hit.num_tokens, request.num_tokens() - 1);        // 9
        ASSERT_EQ(slots.hit.num_tokens, slots.hit.blocks.size() * bs());  // 9
        for (std::size_t i = 0; i < slots.hit.blocks.size(); ++i) {
          ASSERT_EQ(contents_[slots.hit.blocks[i]], ContentOf(live.request, i));  // 8
        }
        hits += slots.hit.blocks.size();
        const std::uint32_t rest = request.num_tokens() - slots.hit.num_tokens;
        if (random_.Chance(0.3)) {
          slots.num_external_computed_tokens = random_.Chance(0.5) ? rest : 1 + random_.Below(rest);
          slots.delay_cache_blocks = true;
        }
      }
      const std::uint32_t computed = request.num_computed_tokens + slots.hit.num_tokens;
      if (!slots.delay_cache_blocks)
        slots.num_new_tokens = 1 + random_.Below(request.num_tokens() - computed);
      slots.full_sequence_must_fit = random_.Chance(0.5);
      slots.has_scheduled_requests = !running_.empty();
      slots.reserved_blocks = random_.Chance(0.1) ? random_.Below(3) : 0;
      const PrefixCacheStats before = stats_;
      const bool first = kv_.BlockTable(id).empty();
      if (!Allocate(live, slots)) {
        ++refusals;
        ASSERT_EQ(Stats(), before.requests + before.preempted_requests);
        return;
      }
      const bool counted = first && options_.pool.enable_caching && !request.skip_reading_prefix_cache;
      ASSERT_EQ(Stats(), before.requests + before.preempted_requests + counted);
      ++admissions;
      waiting_.erase(waiting_.begin());
      if (slots.delay_cache_blocks) {
        live.loading = computed + slots.num_external_computed_tokens;
        request.status = RequestStatus::kWaitingForRemoteKv;
        loading_.push_back(id);
      } else {
        request.num_computed_tokens = computed + slots.num_new_tokens;
        request.status = RequestStatus::kRunning;
        running_.push_back(id);
      }
    }
  }

  // Calls both managers and compares.
  bool Allocate(Live& live, const SlotRequest& slots) {
    Request& request = *live.request;
    const std::vector<BlockId> table = ToVector(kv_.BlockTable(request.id));
    const std::vector<BlockId> hit = ToVector(slots.hit.blocks);
    const std::uint32_t num_free = kv_.pool().num_free();
    const auto expected = model_.Allocate(request, slots, hit);
    const auto result = kv_.AllocateSlots(request, slots);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return false;
    EXPECT_EQ(result->fits, expected.has_value());
    const std::vector<BlockId> after = ToVector(kv_.BlockTable(request.id));
    if (!result->fits) {
      EXPECT_EQ(after, table);  // 7
      return false;
    }
    EXPECT_LE(result->new_blocks.size(), num_free);  // 12
    EXPECT_THAT(result->new_blocks, ElementsAreArray(*expected));
    const std::uint64_t need = std::min<std::uint64_t>(
        std::uint64_t{request.num_computed_tokens} + slots.hit.num_tokens +
            slots.num_external_computed_tokens + slots.num_new_tokens + slots.num_lookahead_tokens,
        options_.max_model_len);
    EXPECT_EQ(after.size(), std::max<std::size_t>((need + bs() - 1) / bs(), table.size()));  // 7
    const std::vector<BlockId>& kept = table.empty() ? hit : table;
    EXPECT_TRUE(std::equal(kept.begin(), kept.end(), after.begin()));  // 6
    NoteContents(live);
    return true;
  }

  void EndLoad() {
    if (loading_.empty()) return;
    const std::size_t at = random_.Below(loading_.size());
    const RequestId id = loading_[at];
    loading_.erase(loading_.begin() + at);
    Live& live = *live_[id];
    Request& request = *live.request;
    ++loads;
    if (live.aborted) {
      Free(id);
      live_.erase(id);
      return;
    }
    // Blocks before the bad one are valid; local hits always are.
    std::uint32_t valid = live.loading;
    if (random_.Chance(0.4)) valid = std::min<std::uint32_t>(valid, random_.Below(4) * bs());
    const auto computed = kv_.CommitRemoteLoad(request, valid);
    ASSERT_TRUE(computed.ok()) << computed.status();
    std::uint32_t expected = std::min<std::uint64_t>(valid, model_.tables[id].size() * bs());
    if (expected == request.num_tokens()) --expected;
    ASSERT_EQ(*computed, expected);
    model_.Commit(request, expected);
    NoteContents(live);
    request.num_computed_tokens = *computed;
    request.status = request.num_preemptions > 0 ? RequestStatus::kPreempted : RequestStatus::kWaiting;
    if (*computed == 0) Free(id);
    waiting_.insert(waiting_.begin(), id);
  }

  void Finish() {
    if (running_.empty()) return;
    const std::size_t at = random_.Below(running_.size());
    const RequestId id = running_[at];
    running_.erase(running_.begin() + at);
    Free(id);
    live_.erase(id);
  }

  void Abort() {
    if (live_.empty()) return;
    const RequestId id = std::next(live_.begin(), random_.Below(live_.size()))->first;
    Live& live = *live_[id];
    if (live.request->status == RequestStatus::kWaitingForRemoteKv) {
      live.aborted = true;
      return;
    }
    std::erase(running_, id);
    std::erase(waiting_, id);
    if (model_.tables.contains(id)) {
      Free(id);
    } else {
      ASSERT_EQ(kv_.Free(id).code(), absl::StatusCode::kNotFound);
    }
    live_.erase(id);
  }

  void PreemptOne() {
    if (!running_.empty()) Preempt(running_[random_.Below(running_.size())]);
  }

  void Preempt(RequestId id) {
    Live& live = *live_[id];
    const std::vector<TokenId> tokens(live.request->tokens.begin(), live.request->tokens.end());
    const std::size_t committed = model_.num_cached[id];
    std::size_t still_cached = 0;
    while (still_cached < committed && model_.pool.hash.contains(model_.tables[id][still_cached]))
      ++still_cached;
    NoteTail(id);
    ASSERT_TRUE(kv_.Preempt(*live.request).ok());
    model_.Free(id);
    CheckTail();
    ++preemptions;
    std::erase(running_, id);
    waiting_.insert(waiting_.begin(), id);
    // 14: same tokens, and the request's own blocks are found again as long as nothing else was allocated.
    ASSERT_THAT(live.request->tokens, ElementsAreArray(tokens));
    if (options_.pool.enable_caching && !live.request->skip_reading_prefix_cache) {
      ASSERT_GE(kv_.GetComputedBlocks(*live.request).blocks.size(),
                std::min<std::size_t>(still_cached, (tokens.size() - 1) / bs()));
    }
  }

  void Free(RequestId id) {
    NoteTail(id);
    ASSERT_TRUE(kv_.Free(id).ok());
    model_.Free(id);
    CheckTail();
  }

  // 11: blocks that a request frees with a hash come last in the free list, in descending position.
  void NoteTail(RequestId id) {
    tail_.clear();
    const auto table = kv_.BlockTable(id);
    for (auto it = table.rbegin(); it != table.rend(); ++it) {
      const Block& block = kv_.pool().block(*it);
      if (block.ref_cnt == 1 && block.cached()) tail_.push_back(*it);
    }
  }
  void CheckTail() {
    const std::vector<BlockId> list = FreeList(kv_.pool());
    ASSERT_GE(list.size(), tail_.size());
    ASSERT_TRUE(std::equal(tail_.rbegin(), tail_.rend(), list.rbegin()));
  }

  void Reset() {
    if (random_.Chance(0.5)) {  // forced: preempt everything first, in reverse order
      while (!running_.empty()) Preempt(running_.back());
    }
    const bool done = kv_.ResetPrefixCache();
    ASSERT_EQ(done, model_.pool.Reset());
    ASSERT_EQ(done, kv_.pool().num_held() == 0);
  }

  void EvictSome() {
    std::vector<BlockId> ids;
    for (int i = 0; i < 3; ++i) ids.push_back(random_.Below(options_.pool.num_blocks));
    ASSERT_TRUE(kv_.pool().EvictBlocks(ids).ok());
    for (const BlockId id : ids) model_.pool.Evict(id);
  }

  // A holder that is no request, e.g. a producer whose blocks are still being read.
  void Pin() {
    if (!pins_.empty() && random_.Chance(0.6)) {
      ASSERT_TRUE(kv_.pool().FreeBlocks(pins_).ok());
      model_.pool.Free(pins_);
      pins_.clear();
      return;
    }
    for (const auto& [id, blocks] : model_.tables) {
      if (blocks.empty() || random_.Chance(0.5)) continue;
      const BlockId block = blocks[random_.Below(blocks.size())];
      ASSERT_TRUE(kv_.pool().Touch({&block, 1}).ok());
      model_.pool.Touch({block});
      pins_.push_back(block);
      return;
    }
  }

  void WrongCalls() {
    const BlockId beyond = options_.pool.num_blocks + random_.Below(3);
    std::vector<BlockId> out;
    ASSERT_FALSE(kv_.pool().GetNewBlocks(kv_.pool().num_free() + 1, out).ok());  // 12
    ASSERT_TRUE(out.empty());
    ASSERT_FALSE(kv_.pool().Touch({&beyond, 1}).ok());
    ASSERT_FALSE(kv_.pool().FreeBlocks({&beyond, 1}).ok());
    if (const BlockId free = kv_.pool().free_queue().front(); free != kNoBlock) {
      ASSERT_FALSE(kv_.pool().FreeBlocks({&free, 1}).ok());
    }
    ASSERT_FALSE(kv_.Free(next_id_ + 1).ok());
    if (live_.empty()) return;
    Request request = *live_.begin()->second->request;
    ASSERT_FALSE(kv_.AllocateSlots(request, {}).ok());
    request.num_computed_tokens = 1000000;
    ASSERT_FALSE(kv_.AllocateSlots(request, {.num_new_tokens = 1}).ok());
    request.num_computed_tokens = 0;
    const std::vector<BlockId> made_up(request.block_hashes.size() + 1, 1);
    ASSERT_FALSE(
        kv_.AllocateSlots(request, {.num_new_tokens = 1,
                                    .hit = {.blocks = made_up,
                                            .num_tokens = static_cast<std::uint32_t>(made_up.size()) * bs()}})
            .ok());
  }

  Content ContentOf(TestRequest& request, std::size_t block) {
    const TokenSpan tokens = request->tokens.first((block + 1) * bs());
    return {request.salt(), {tokens.begin(), tokens.end()}};
  }

  // The model has computed (or loaded) what the request's committed blocks say.
  void NoteContents(Live& live) {
    const RequestId id = live.request->id;
    for (std::size_t i = 0; i < model_.num_cached[id]; ++i) {
      contents_[model_.tables[id][i]] = ContentOf(live.request, i);
    }
  }

  std::uint64_t Stats() {
    const PrefixCacheStats taken = kv_.TakePrefixCacheStats();
    stats_.requests += taken.requests;
    stats_.preempted_requests += taken.preempted_requests;
    return stats_.requests + stats_.preempted_requests;
  }

  void Check() {
    if (testing::Test::HasFatalFailure()) return;
    const BlockPool& pool = kv_.pool();
    // 1
    const std::vector<BlockId> forward = FreeList(pool);
    std::vector<BlockId> backward;
    for (BlockId id = pool.free_queue().back(); id != kNoBlock; id = pool.free_queue().prev(id))
      backward.push_back(id);
    std::reverse(backward.begin(), backward.end());
    ASSERT_EQ(forward, backward);
    ASSERT_EQ(forward.size(), pool.num_free());
    ASSERT_THAT(forward, ElementsAreArray(model_.pool.free));
    // 2, 3, 4, 5, 8
    std::map<BlockId, std::uint32_t> holders;
    for (const auto& [id, table] : model_.tables) {
      ASSERT_THAT(kv_.BlockTable(id), ElementsAreArray(table));
      for (const BlockId block : table) ++holders[block];
    }
    ASSERT_EQ(kv_.num_requests(), model_.tables.size());
    for (const BlockId block : pins_) ++holders[block];
    const std::set<BlockId> in_list(forward.begin(), forward.end());
    ASSERT_EQ(in_list.size(), forward.size());
    std::size_t num_cached = 0;
    std::map<HashBytes, Content> shadow;
    for (BlockId id = 1; id < pool.num_blocks(); ++id) {
      const Block& block = pool.block(id);
      ASSERT_EQ(block.ref_cnt, holders.contains(id) ? holders[id] : 0);
      ASSERT_EQ(block.ref_cnt == 0, in_list.contains(id));
      const auto expected = model_.pool.hash.find(id);
      ASSERT_EQ(block.cached(), expected != model_.pool.hash.end());
      if (!block.cached()) continue;
      ++num_cached;
      ASSERT_EQ(BytesOf(block.hash), expected->second);
      ASSERT_EQ(pool.Find(block.hash), model_.pool.cached[expected->second].front());
      const auto [it, fresh] = shadow.emplace(BytesOf(block.hash), contents_[id]);
      ASSERT_EQ(it->second, contents_[id]);
      duplicates += !fresh;
    }
    ASSERT_EQ(pool.num_cached_blocks(), num_cached);
    ASSERT_EQ(pool.num_cached_keys(), shadow.size());
    ASSERT_EQ(holders.size() + pool.num_free() + 1, pool.num_blocks());
    ASSERT_FALSE(in_list.contains(kNullBlock));
    ASSERT_FALSE(pool.block(kNullBlock).cached());
    ASSERT_DOUBLE_EQ(pool.usage(), static_cast<double>(holders.size()) / (pool.num_blocks() - 1));
    if (random_.Chance(0.5)) CheckEvents(shadow);
  }

  // 10, and event for event what the literal pool says.
  void CheckEvents(const std::map<HashBytes, Content>& shadow) {
    kv_.TakeEvents(events_);
    ASSERT_EQ(events_.size(), model_.pool.events.size());
    for (std::size_t i = 0; i < events_.size(); ++i) {
      const BlockEvent event = events_[i];
      ReferenceEvent got{event.kind, {}, {}, {event.tokens.begin(), event.tokens.end()}};
      for (const hash::Digest& digest : event.hashes) got.hashes.push_back(BytesOf(digest));
      if (event.parent != nullptr) got.parent = BytesOf(*event.parent);
      ASSERT_EQ(got, model_.pool.events[i]);
      if (event.kind == BlockEvent::Kind::kCleared) published_.clear();
      for (const HashBytes& key : got.hashes) {
        if (event.kind == BlockEvent::Kind::kStored) {
          published_.insert(key);
        } else {
          ASSERT_EQ(published_.erase(key), 1) << "removed what was never stored";
        }
      }
    }
    model_.pool.events.clear();
    std::set<HashBytes> keys;
    for (const auto& [key, content] : shadow) keys.insert(key);
    ASSERT_EQ(published_, keys);
  }

  // 13
  void Drain() {
    if (testing::Test::HasFatalFailure()) return;
    ASSERT_TRUE(kv_.pool().FreeBlocks(pins_).ok());
    while (!model_.tables.empty()) Free(model_.tables.begin()->first);
    ASSERT_EQ(kv_.usage(), 0);
    ASSERT_EQ(kv_.num_requests(), 0);
    ASSERT_TRUE(kv_.ResetPrefixCache());
    ASSERT_EQ(kv_.pool().num_cached_blocks(), 0);
  }

  KvCacheManagerOptions options_;
  Random random_;
  KvCacheManager kv_;
  ReferenceManager model_;
  std::map<RequestId, std::unique_ptr<Live>> live_;
  std::vector<RequestId> waiting_, running_, loading_;
  std::vector<BlockId> pins_, tail_;
  std::map<BlockId, Content> contents_;
  std::set<HashBytes> published_;
  BlockEvents events_;
  PrefixCacheStats stats_;
  RequestId next_id_ = 1;
};

struct Shape {
  std::uint32_t num_blocks, block_size, max_model_len;
  double watermark;
  bool caching;
};

class Invariants : public testing::TestWithParam<Shape> {};

TEST_P(Invariants, HoldAfterEveryOperation) {
  const Shape shape = GetParam();
  std::uint64_t admissions = 0, hits = 0, preemptions = 0, refusals = 0, loads = 0, duplicates = 0;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation({.pool = {.num_blocks = shape.num_blocks,
                                    .block_size = shape.block_size,
                                    .enable_caching = shape.caching,
                                    .enable_events = true},
                           .max_model_len = shape.max_model_len,
                           .watermark = shape.watermark},
                          seed);
    simulation.Run(600);
    if (HasFailure()) return;
    admissions += simulation.admissions;
    hits += simulation.hits;
    preemptions += simulation.preemptions;
    refusals += simulation.refusals;
    loads += simulation.loads;
    duplicates += simulation.duplicates;
  }
  // The sequences went where they were meant to go.
  EXPECT_GT(admissions, 0);
  EXPECT_GT(preemptions, 0);
  EXPECT_GT(refusals, 0);
  EXPECT_GT(loads, 0);
  if (shape.caching && shape.num_blocks > 4) {
    EXPECT_GT(hits, 0);
    EXPECT_GT(duplicates, 0);
  }
}

constexpr std::uint32_t kNoLimit = std::numeric_limits<std::uint32_t>::max();

INSTANTIATE_TEST_SUITE_P(Shapes, Invariants,
                         testing::Values(Shape{2, 1, kNoLimit, 0, true}, Shape{2, 4, kNoLimit, 0, true},
                                         Shape{3, 1, kNoLimit, 0, true}, Shape{5, 2, kNoLimit, 0, true},
                                         Shape{8, 1, kNoLimit, 0, true}, Shape{8, 4, kNoLimit, 0.25, true},
                                         Shape{20, 4, kNoLimit, 0.1, true}, Shape{40, 2, kNoLimit, 0, true},
                                         Shape{12, 3, 100, 0, true}, Shape{9, 4, kNoLimit, 0, false},
                                         Shape{24, 16, kNoLimit, 0.05, true}));

}  // namespace
}  // namespace llmd::worker
