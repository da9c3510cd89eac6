// One writer, several readers: whatever a reader sees was true, block by block, at some moment of its match.
//
// The scripted test replays a random stream whose whole history is known beforehand: the writer announces the
// operation that it starts and the one that it has finished, and a reader checks its answer against every
// state in between. The other tests pin hazards that need a special shape: long runs whose tails are
// replaced, runs that are freed and made anew, holders that change places in a run.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/index/prefix_index.h"
#include "tests/index/operations.h"
#include "tests/index/oracle.h"
#include "tests/index/sanitized.h"
#include "tests/index/streams.h"

namespace llmd::index {
namespace {

constexpr NamespaceId kNs{3, 4};

constexpr int kRoundsDivisor = kSanitized ? 10 : 1;
constexpr std::size_t kScript = kSanitized ? 1500 : 4000;  // operations

// The first complaint of any thread.
class Complaints {
 public:
  void Add(const std::string& what) {
    const std::lock_guard lock(mutex_);
    if (first_.empty()) first_ = what;
    any_.store(true);
  }
  bool any() const { return any_.load(std::memory_order_relaxed); }
  std::string first() const {
    const std::lock_guard lock(mutex_);
    return first_;
  }

 private:
  mutable std::mutex mutex_;
  std::string first_;
  std::atomic<bool> any_ = false;
};

// Runs `write` on this thread while each reader repeats `read(reader number)` until the writer is done, and
// once more.
void WriteWhileReading(int readers, const std::function<void()>& write,
                       const std::function<void(int)>& read) {
  std::atomic<int> ready = 0;
  std::atomic<bool> done = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < readers; ++i) {
    threads.emplace_back([&, i] {
      ++ready;
      while (!done.load()) read(i);
      read(i);
    });
  }
  while (ready.load() < readers) std::this_thread::yield();
  write();
  done.store(true);
  for (std::thread& thread : threads) thread.join();
}

std::vector<BlockKey> Range(std::uint64_t begin, std::uint64_t end) {
  std::vector<BlockKey> range(end - begin);
  std::iota(range.begin(), range.end(), begin);
  return range;
}

std::vector<BlockKey> Join(std::vector<BlockKey> head, const std::vector<BlockKey>& tail) {
  head.insert(head.end(), tail.begin(), tail.end());
  return head;
}

// Blocks [begin, end) of a chain; the engine key of a block is its content key plus `base`, which a test
// keeps unique.
std::vector<StoredBlock> Blocks(const std::vector<BlockKey>& chain, std::size_t begin, std::size_t end,
                                std::uint64_t base = 0) {
  std::vector<StoredBlock> blocks;
  for (std::size_t i = begin; i < end; ++i) blocks.push_back({chain[i] + base, chain[i]});
  return blocks;
}

std::vector<EngineKey> KeysBackwards(const std::vector<BlockKey>& chain, std::size_t begin, std::size_t end) {
  std::vector<EngineKey> keys;
  for (std::size_t i = end; i > begin; --i) keys.push_back(chain[i - 1]);
  return keys;
}

// Depths by slot; complains about a slot that comes twice.
class Depths {
 public:
  Depths(PrefixIndex& index, Complaints& complaints) : reader_(index), complaints_(complaints) {}

  const OracleMatch& Match(const NamespaceId& ns, const std::vector<BlockKey>& chain) {
    reader_.Match(ns, chain, result_);
    std::optional<OracleMatch> rows = BySlot(result_);
    if (!rows) complaints_.Add("a slot comes twice or a depth is 0");
    rows_ = rows.value_or(OracleMatch());
    return rows_;
  }
  std::uint32_t Of(HolderId id) const {
    auto row = rows_.find(id.slot);
    return row == rows_.end() ? 0 : row->second;
  }

 private:
  PrefixIndex::Reader reader_;
  Complaints& complaints_;
  MatchResult result_;
  OracleMatch rows_;
};

// --- The scripted test

struct Query {
  NamespaceId ns;
  std::vector<BlockKey> chain;
};

// Which blocks of which query each slot has after each operation. The writer records a state before it starts
// the operation that leads there; readers look at states that were announced.
class History {
 public:
  History(std::vector<Query> queries, std::size_t slots, std::size_t states)
      : queries_(std::move(queries)), slots_(slots), held_(states * queries_.size() * slots) {}

  void Record(std::size_t state, const OraclePrefixIndex& oracle) {
    for (std::size_t query = 0; query < queries_.size(); ++query) {
      for (const auto& [slot, mask] : oracle.HeldMasks(queries_[query].ns, queries_[query].chain)) {
        held_[At(state, query, slot)] = mask;
      }
    }
  }

  // The answer must lie between the blocks held in every state of [first, last] and those held in any of
  // them.
  std::string Check(std::size_t query, const OracleMatch& rows, std::size_t first, std::size_t last) const {
    for (Slot slot = 0; slot < slots_; ++slot) {
      std::uint64_t always = ~std::uint64_t{0}, ever = 0;
      for (std::size_t state = first; state <= last; ++state) {
        always &= held_[At(state, query, slot)];
        ever |= held_[At(state, query, slot)];
      }
      const auto row = rows.find(slot);
      const std::uint32_t depth = row == rows.end() ? 0 : row->second;
      const auto least = static_cast<std::uint32_t>(std::countr_one(always));
      const auto most = static_cast<std::uint32_t>(std::countr_one(ever));
      if (depth < least || depth > most) {
        std::ostringstream out;
        out << "query " << query << ", slot " << slot << ": depth " << depth << " outside " << least << ".."
            << most << " in states " << first << ".." << last;
        return out.str();
      }
    }
    for (const auto& [slot, depth] : rows) {
      if (slot >= slots_) return "slot " + std::to_string(slot) + " was never given";
    }
    return "";
  }

  const std::vector<Query>& queries() const { return queries_; }

 private:
  std::size_t At(std::size_t state, std::size_t query, Slot slot) const {
    return (state * queries_.size() + query) * slots_ + slot;
  }

  std::vector<Query> queries_;
  std::size_t slots_;
  std::vector<std::uint64_t> held_;
};

void PlayScript(const StreamProfile& profile, std::uint64_t seed, int readers) {
  Stream stream(profile, seed);
  Operations operations;
  for (std::size_t i = 0; i < profile.operations; ++i) {
    Operation operation = stream.Next();
    if (operation.kind != Operation::Kind::kMatch) operations.push_back(std::move(operation));
  }
  std::vector<Query> queries;
  for (const Operation& operation : stream.MatchAll()) queries.push_back({operation.ns, operation.chain});
  for (int i = 0; i < 4; ++i) {
    const Operation operation = stream.NextMatch();
    queries.push_back({operation.ns, operation.chain});
  }
  History history(std::move(queries), profile.holders * 3 + 2, operations.size() + 1);

  const auto index = *PrefixIndex::Create({});
  std::atomic<std::size_t> started = 0, finished = 0;
  Complaints complaints;
  std::vector<std::unique_ptr<Depths>> depths;
  std::vector<Random> random;
  for (int i = 0; i < readers; ++i) {
    depths.push_back(std::make_unique<Depths>(*index, complaints));
    random.emplace_back(seed * 100 + i);
  }
  auto write = [&] {
    OraclePrefixIndex oracle;
    std::map<std::size_t, HolderId> handles;
    for (std::size_t i = 0; i < operations.size(); ++i) {
      const Operation& operation = operations[i];
      auto apply = [&](auto& target) {
        const HolderId id = handles[operation.holder];
        switch (operation.kind) {
          case Operation::Kind::kStore:
            target.Store(id, operation.ns, operation.parent, operation.blocks);
            break;
          case Operation::Kind::kStoreKnown:
            target.StoreKnown(id, operation.keys);
            break;
          case Operation::Kind::kRemove:
            target.Remove(id, operation.keys);
            break;
          case Operation::Kind::kClear:
            target.Clear(id);
            break;
          case Operation::Kind::kRetire:
            target.Retire(id);
            break;
          default:
            break;
        }
      };
      if (operation.kind == Operation::Kind::kAddHolder) {
        if (const auto id = index->AddHolder(operation.options); id.ok()) {
          oracle.AddHolder(*id, operation.options);
          handles[operation.holder] = *id;
        }
      }
      apply(oracle);
      history.Record(i + 1, oracle);
      started.store(i + 1);
      apply(*index);
      if (operation.kind == Operation::Kind::kCompact) index->Compact();
      finished.store(i + 1);
    }
  };
  WriteWhileReading(readers, write, [&](int reader) {
    const std::size_t query = random[reader].Below(history.queries().size());
    const std::size_t first = finished.load();
    const OracleMatch& rows =
        depths[reader]->Match(history.queries()[query].ns, history.queries()[query].chain);
    const std::size_t last = started.load();
    if (const std::string what = history.Check(query, rows, first, last); !what.empty()) complaints.Add(what);
  });
  EXPECT_FALSE(complaints.any()) << profile.name << " seed " << seed << ": " << complaints.first();
}

// Engine keys name one block each here, so that every operation adds blocks or takes blocks away, never both.
TEST(Concurrency, AnswersLieBetweenTheStatesOfTheMatch) {
  for (std::uint64_t seed = 1; seed <= (kSanitized ? 1 : 3); ++seed) {
    PlayScript(
        {.name = "Typical", .operations = kScript, .lifecycle = 0.01, .mistakes = 0, .new_chains = 0.002},
        seed, 3);
    PlayScript({.name = "FewBlocks",
                .operations = kScript,
                .namespaces = 1,
                .contents = 2,
                .chains = 6,
                .max_chain = 10,
                .lifecycle = 0.01,
                .removes = 0.45,
                .mistakes = 0,
                .new_chains = 0},
               seed, 3);
    PlayScript({.name = "ForeignSeeds",
                .operations = kScript,
                .holders = 12,
                .key_spaces = 2,
                .refcount = 0.3,
                .keys = StreamProfile::Keys::kPerHolder,
                .chains = 4,
                .max_chain = 60,
                .max_batch = 20,
                .lifecycle = 0.01,
                .mistakes = 0,
                .new_chains = 0},
               seed, 2);
  }
}

// --- Tails

// A trunk that one holder always has and behind which another's tail is replaced by a different one, over and
// over: no answer mixes the two tails, and the permanent holder is never missed.
TEST(Concurrency, ReplacedTailsDoNotMix) {
  const std::vector<BlockKey> trunk = Range(0, 150);
  const std::vector<BlockKey> tails[] = {Range(1000, 1400), Range(2000, 2400), Range(3000, 3400)};
  const std::vector<BlockKey> never = Join(Range(1000, 1010), Range(5000, 5100));  // leaves the first tail
  const auto index = *PrefixIndex::Create({});
  const HolderId fixed = *index->AddHolder({.endpoint = "fixed", .dp_rank = {}});
  const HolderId moving = *index->AddHolder({.endpoint = "moving", .dp_rank = {}});
  const HolderId elsewhere = *index->AddHolder({.endpoint = "elsewhere", .dp_rank = {}});
  index->Store(fixed, kNs, std::nullopt, Blocks(trunk, 0, trunk.size()));
  index->Store(moving, kNs, std::nullopt, Blocks(trunk, 0, trunk.size()));
  index->Store(elsewhere, kNs, std::nullopt, Blocks(Range(9000, 9100), 0, 100));

  Complaints complaints;
  std::vector<std::unique_ptr<Depths>> depths;
  for (int i = 0; i < 3; ++i) depths.push_back(std::make_unique<Depths>(*index, complaints));
  Random random(5);
  auto write = [&] {
    for (int round = 0; round < 3000 / kRoundsDivisor; ++round) {
      const std::vector<BlockKey>& tail = tails[random.Below(3)];
      const std::size_t length = random.Between(1, tail.size());
      EngineKey parent = trunk.back();
      for (std::size_t begin = 0; begin < length; begin += 64) {
        const std::size_t end = std::min(begin + 64, length);
        index->Store(moving, kNs, parent, Blocks(tail, begin, end));
        parent = tail[end - 1];
      }
      if (random.Chance(0.3)) index->Remove(moving, KeysBackwards(trunk, 100, 101));  // a hole, and its end
      if (random.Chance(0.9)) index->Store(moving, kNs, trunk[99], Blocks(trunk, 100, 101));
      index->Remove(moving, KeysBackwards(tail, 0, length));
      if (round % 64 == 0) index->Compact();
    }
  };
  WriteWhileReading(3, write, [&](int reader) {
    Depths& seen = *depths[reader];
    auto check = [&](const char* what, bool good) {
      if (!good) complaints.Add(what);
    };
    for (const auto& tail : tails) {
      seen.Match(kNs, Join(trunk, tail));
      check("the permanent holder has the trunk and no more", seen.Of(fixed) == trunk.size());
      check("the trunk's first blocks are never removed", seen.Of(moving) >= 100);
      check("a holder of another chain does not appear", seen.Of(elsewhere) == 0);
    }
    seen.Match(kNs, Join(trunk, never));
    check("blocks that nobody stored", seen.Of(moving) <= trunk.size() + 10);
    seen.Match(kNs, Join(trunk, Join(tails[0], tails[1])));
    check("two tails in a row", seen.Of(moving) <= trunk.size() + tails[0].size());
    for (std::uint64_t at : {1, 7, 64, 200}) {
      seen.Match(kNs, Join(trunk, Join(Range(1000, 1000 + at), Range(2000 + at, 2400))));
      check("two tails mixed", seen.Of(moving) <= trunk.size() + at);
    }
    seen.Match(kNs, tails[0]);
    check("a tail is no chain of its own", seen.Of(moving) == 0);
  });
  EXPECT_FALSE(complaints.any()) << complaints.first();
}

// --- Growth

// A chain that only grows, past the limit of one run: a match that begins after a store has returned sees it,
// and no match sees a block before its store began.
TEST(Concurrency, StoresAreSeenOnceTheyReturn) {
  constexpr std::size_t kLength = 80000;
  const std::vector<BlockKey> chain = Range(1, kLength + 1);
  const auto index = *PrefixIndex::Create({});
  const HolderId pod = *index->AddHolder({.endpoint = "pod", .dp_rank = {}});
  std::atomic<std::size_t> announced = 0, stored = 0;
  Complaints complaints;
  Depths depths[] = {Depths(*index, complaints), Depths(*index, complaints)};
  auto write = [&] {
    Random random(1);
    std::optional<EngineKey> parent;
    for (std::size_t begin = 0; begin < kLength;) {
      const std::size_t end = std::min<std::size_t>(begin + random.Between(1, 60), kLength);
      announced.store(end);
      index->Store(pod, kNs, parent, Blocks(chain, begin, end));
      stored.store(end);
      parent = chain[end - 1];
      begin = end;
    }
  };
  WriteWhileReading(2, write, [&](int reader) {
    const std::size_t least = stored.load();
    depths[reader].Match(kNs, chain);
    const std::size_t most = announced.load();
    const std::uint32_t depth = depths[reader].Of(pod);
    if (depth < least || depth > most) {
      complaints.Add("depth " + std::to_string(depth) + " outside " + std::to_string(least) + ".." +
                     std::to_string(most));
    }
  });
  EXPECT_FALSE(complaints.any()) << complaints.first();
  depths[0].Match(kNs, chain);
  EXPECT_EQ(depths[0].Of(pod), kLength);
}

// --- Reuse

// Chains of short lives: their runs are freed and made anew with other contents below other parents. The
// contents of every life are the same but for the first block, so a reader who strays into another run would
// find them.
TEST(Concurrency, FreedRunsAreNotMistakenForTheirSuccessors) {
  constexpr std::uint64_t kLives = 12;
  auto chain_of = [](std::uint64_t life) { return Join({1000000 + life}, Range(1, 40)); };
  auto blocks_of = [&](std::uint64_t life, std::size_t length) {
    const std::vector<BlockKey> chain = chain_of(life);
    std::vector<StoredBlock> blocks;
    for (std::size_t i = 0; i < length; ++i) blocks.push_back({(life + 1) * 1000 + i, chain[i]});
    return blocks;
  };
  const auto index = *PrefixIndex::Create({});
  const HolderId pod = *index->AddHolder({.endpoint = "pod", .dp_rank = {}});
  Complaints complaints;
  std::vector<std::unique_ptr<Depths>> depths;
  for (int i = 0; i < 3; ++i) depths.push_back(std::make_unique<Depths>(*index, complaints));
  // The length that a life may ever have: all lives differ.
  auto length_of = [](std::uint64_t life) { return 2 + 3 * life; };
  auto write = [&] {
    Random random(9);
    for (int round = 0; round < 20000 / kRoundsDivisor; ++round) {
      const std::uint64_t life = random.Below(kLives);
      const std::vector<StoredBlock> blocks = blocks_of(life, length_of(life));
      if (random.Chance(0.7)) {
        index->Store(pod, kNs, std::nullopt, blocks);
      } else {
        std::vector<EngineKey> keys;
        for (const StoredBlock& block : blocks) keys.push_back(block.engine);
        index->Remove(pod, keys);
      }
      if (random.Chance(0.02)) index->Clear(pod);
      if (random.Chance(0.02)) index->Compact();
    }
  };
  std::vector<Random> random = {Random(1), Random(2), Random(3)};
  WriteWhileReading(3, write, [&](int reader) {
    const std::uint64_t life = random[reader].Below(kLives);
    depths[reader]->Match(kNs, chain_of(life));
    const std::uint32_t depth = depths[reader]->Of(pod);
    if (depth > length_of(life)) {
      complaints.Add("life " + std::to_string(life) + " seen with depth " + std::to_string(depth));
    }
  });
  EXPECT_FALSE(complaints.any()) << complaints.first();
}

// Many holders of one run come and go, so that their places in it are exchanged during a match: a holder
// still comes once at most, those who stay are never missed, and retired ones do not come back under their
// successor's name.
TEST(Concurrency, HoldersChangePlacesInARun) {
  constexpr std::size_t kStaying = 100, kMoving = 100;
  const std::vector<BlockKey> chain = Range(0, 20);
  const auto index = *PrefixIndex::Create({});
  std::vector<HolderId> staying, moving;
  for (std::size_t i = 0; i < kStaying + kMoving; ++i) {
    const HolderId id = *index->AddHolder({.endpoint = "pod" + std::to_string(i), .dp_rank = {}});
    (i % 2 == 0 ? staying : moving).push_back(id);
    index->Store(id, kNs, std::nullopt, Blocks(chain, 0, i % 2 == 0 ? 20 : 10));
  }
  Complaints complaints;
  Depths depths[] = {Depths(*index, complaints), Depths(*index, complaints)};
  auto write = [&] {
    Random random(2);
    for (int round = 0; round < 20000 / kRoundsDivisor; ++round) {
      index->Clear(moving[random.Below(moving.size())]);
      index->Store(moving[random.Below(moving.size())], kNs, std::nullopt, Blocks(chain, 0, 10));
      if (round % 64 == 0) {  // a successor in the slot, which never has this chain
        HolderId& id = moving[random.Below(moving.size())];
        const std::string name = index->GetHolder(id)->endpoint;
        index->Retire(id);
        id = *index->AddHolder({.endpoint = name, .dp_rank = {}});
      }
    }
  };
  WriteWhileReading(2, write, [&](int reader) {
    const OracleMatch rows = depths[reader].Match(kNs, chain);
    for (HolderId id : staying) {
      if (depths[reader].Of(id) != 20) complaints.Add("a holder that stays is not seen in full");
    }
    if (rows.size() > kStaying + kMoving) complaints.Add("too many rows");
    std::size_t deep = 0;
    for (const auto& [slot, depth] : rows) deep += depth > 10;
    if (deep != kStaying) complaints.Add("a holder is seen deeper than it ever was");
  });
  EXPECT_FALSE(complaints.any()) << complaints.first();
}

// Two holders exchange their places in a run while readers walk from one place to the other: each comes once
// at most.
TEST(Concurrency, AHolderComesOnceWhateverItsPlace) {
  const std::vector<BlockKey> chain = Range(0, 4);
  const auto index = *PrefixIndex::Create({});
  std::vector<HolderId> pods;
  for (int i = 0; i < 1500; ++i) {
    pods.push_back(*index->AddHolder({.endpoint = "pod" + std::to_string(i), .dp_rank = {}}));
    index->Store(pods.back(), kNs, std::nullopt, Blocks(chain, 0, 4));
  }
  auto write = [&] {
    HolderId low = pods.front(), high = pods.back();
    for (int round = 0; round < 20000 / kRoundsDivisor; ++round) {
      index->Clear(low);
      index->Clear(high);
      index->Store(high, kNs, std::nullopt, Blocks(chain, 0, 4));
      index->Store(low, kNs, std::nullopt, Blocks(chain, 0, 4));
      std::swap(low, high);
    }
  };
  PrefixIndex::Reader readers[] = {PrefixIndex::Reader(*index), PrefixIndex::Reader(*index)};
  MatchResult results[2];
  std::atomic<int> twice = 0;
  WriteWhileReading(2, write, [&](int reader) {
    MatchResult& result = results[reader];
    readers[reader].Match(kNs, chain, result);
    for (HolderId pod : {pods.front(), pods.back()}) {
      twice +=
          std::count_if(result.begin(), result.end(), [&](auto row) { return row.slot == pod.slot; }) > 1;
    }
  });
  EXPECT_EQ(twice.load(), 0);
}

// The same writes give the same handles and the same rows in the same order, whether or not readers run
// beside them.
TEST(Concurrency, ReadersDoNotChangeWhatWritesMean) {
  const StreamProfile profile = {.name = "Typical",
                                 .operations = 6000,
                                 .holders = 40,
                                 .chains = 5,
                                 .lifecycle = 0.05,
                                 .match_every = 20};
  const Operations operations = MakeOperations(profile, 17);
  auto play = [&](int readers) {
    const auto index = *PrefixIndex::Create({});
    Comparison comparison(*index, 4096);
    Complaints complaints;
    std::vector<std::unique_ptr<Depths>> depths;
    for (int i = 0; i < readers; ++i) depths.push_back(std::make_unique<Depths>(*index, complaints));
    auto write = [&] {
      for (const Operation& operation : operations) {
        if (const auto what = comparison.Apply(operation)) complaints.Add(*what);
      }
    };
    WriteWhileReading(readers, write, [&](int reader) {
      const Operation& last = operations.back();
      depths[reader]->Match(last.ns, last.chain);
    });
    EXPECT_FALSE(complaints.any()) << complaints.first();
    PrefixIndex::Reader reader(*index);
    std::vector<MatchResult> results;
    for (const Operation& operation : operations) {
      if (operation.kind != Operation::Kind::kMatch) continue;
      reader.Match(operation.ns, operation.chain, results.emplace_back());
    }
    return results;
  };
  const std::vector<MatchResult> alone = play(0);
  for (int round = 0; round < 3; ++round) ASSERT_TRUE(play(3) == alone) << "with readers the rows differ";
}

}  // namespace
}  // namespace llmd::index
