// Engines with small caches stream events, and some batches are lost: what the index says must be what was
// announced.
//
// Each engine is a literal LRU cache of blocks, tail first, with an offload tier behind it. A literal ledger
// notes for each engine key whether the delivered events say that a holder has it. Without losses the index
// must agree with the ledger; with losses it may know less (parents that never came), never more.
#include <algorithm>
#include <list>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "tests/ingest/ingest_test_util.h"

namespace llmd::ingest {
namespace {

using events::Event;
using events::EventKind;
using events::ExtraKey;

struct Prompt {
  Tokens tokens;
  std::string lora;
  std::string salt;
  std::string image;  // covers block 1 and half of block 2 when the prompt is long enough
  std::size_t blocks() const { return tokens.size() / kBlock; }

  std::vector<MultimodalItem> Items() const {
    if (image.empty()) return {};
    return {{.identifier = image, .offset = kBlock, .length = kBlock + kBlock / 2}};
  }
  bool HasImage(std::size_t block) const { return !image.empty() && (block == 1 || block == 2); }
};

// Prompts with many common prefixes.
Prompt RandomPrompt(Random& random) {
  Prompt prompt;
  const std::size_t blocks = random.Between(1, 9);
  for (std::size_t i = 0; i < blocks; ++i) {
    const auto word = static_cast<TokenId>(random.Chance(0.8) ? 0 : random.Between(1, 2));
    prompt.tokens.insert(prompt.tokens.end(), kBlock, static_cast<TokenId>(100 * word + i % 3));
  }
  if (random.Chance(0.2)) prompt.lora = random.Chance(0.5) ? "sql" : "chat";
  if (random.Chance(0.2)) prompt.salt = random.Chance(0.5) ? "tenant-a" : "sql";
  if (random.Chance(0.2)) prompt.image = random.Chance(0.5) ? std::string(64, 'b') : "uuid";
  return prompt;
}

// The engine's hash of each block: of everything that makes its prefix different, and the engine's seed.
Keys EngineKeys(const Prompt& prompt, std::uint64_t seed) {
  Keys keys;
  std::uint64_t state = seed;
  const auto mix = [&](std::uint64_t value) {
    state ^= value;
    state = SplitMix64(state);
  };
  const auto mix_text = [&](std::string_view text) {
    mix(text.size());
    for (const char c : text) mix(static_cast<unsigned char>(c));
  };
  for (std::size_t i = 0; i < prompt.blocks(); ++i) {
    for (std::size_t t = 0; t < kBlock; ++t) mix(prompt.tokens[i * kBlock + t]);
    mix_text(prompt.lora);
    if (prompt.HasImage(i)) mix_text(prompt.image);
    if (i == 0) mix_text(prompt.salt);
    keys.push_back(state);
  }
  return keys;
}

// Events of one batch with what they point to.
class BatchBuilder {
 public:
  void Stored(const Prompt& prompt, const Keys& keys, std::size_t first) {
    Event event;
    event.kind = EventKind::kBlockStored;
    event.hashes = Keep(Keys(keys.begin() + first, keys.end()));
    if (first > 0) event.parent = keys[first - 1];
    event.tokens = TokenSpan(prompt.tokens).subspan(first * kBlock);
    event.block_size = kBlock;
    event.lora_name = prompt.lora;
    event.medium = "GPU";
    auto& extras = extras_.emplace_back();
    auto& lists = lists_.emplace_back();
    for (std::size_t i = first; i < prompt.blocks(); ++i) {
      auto& keys_of_block = extras.emplace_back();
      if (!prompt.lora.empty()) keys_of_block.push_back(Text(prompt.lora));
      if (prompt.HasImage(i)) keys_of_block.push_back(TextAt(prompt.image, i == 1 ? 0 : -4));
      if (i == 0 && !prompt.salt.empty()) keys_of_block.push_back(Text(prompt.salt));
    }
    for (const auto& keys_of_block : extras) lists.emplace_back(keys_of_block);
    event.extra_keys = lists;
    events_.push_back(event);
  }
  void Offloaded(std::uint64_t key) { Named(EventKind::kBlockStored, key, "CPU"); }
  void Removed(std::uint64_t key, std::string_view medium) { Named(EventKind::kBlockRemoved, key, medium); }
  void Cleared() { events_.emplace_back(); }
  const std::vector<Event>& events() const { return events_; }

 private:
  std::span<const std::uint64_t> Keep(Keys keys) { return keys_.emplace_back(std::move(keys)); }
  void Named(EventKind kind, std::uint64_t key, std::string_view medium) {
    Event event;
    event.kind = kind;
    event.hashes = Keep({key});
    event.medium = medium;
    events_.push_back(event);
  }

  std::list<Keys> keys_;
  std::list<std::vector<std::vector<ExtraKey>>> extras_;
  std::list<std::vector<std::span<const ExtraKey>>> lists_;
  std::vector<Event> events_;
};

struct Engine {
  std::string endpoint;
  PublisherId publisher = 0;
  std::uint64_t seed = 0;
  std::size_t capacity = 24;
  std::list<std::uint64_t> gpu;  // least recently used first
  std::list<std::uint64_t> cpu;  // oldest first
  // By the delivered events: how often the holder has the block.
  std::map<std::uint64_t, int> gpu_ledger;
  std::map<std::uint64_t, int> cpu_ledger;

  static bool Contains(const std::list<std::uint64_t>& list, std::uint64_t key) {
    return std::find(list.begin(), list.end(), key) != list.end();
  }

  void Serve(const Prompt& prompt, bool offload, BatchBuilder& batch) {
    const Keys keys = EngineKeys(prompt, seed);
    std::size_t hit = 0;
    while (hit < keys.size() && Contains(gpu, keys[hit])) ++hit;
    for (std::size_t i = 0; i < hit; ++i) gpu.remove(keys[i]);
    // What lies behind the hit is computed anew; a block that is cached already is announced once more.
    for (std::size_t i = hit; i < keys.size(); ++i) gpu.remove(keys[i]);
    while (gpu.size() + keys.size() > capacity) {
      const std::uint64_t victim = gpu.front();
      gpu.pop_front();
      if (offload && !Contains(cpu, victim)) {
        batch.Offloaded(victim);
        cpu.push_back(victim);
        if (cpu.size() > capacity / 2) {
          batch.Removed(cpu.front(), "CPU");
          cpu.pop_front();
        }
      }
      batch.Removed(victim, "GPU");
    }
    if (hit < keys.size()) batch.Stored(prompt, keys, hit);
    gpu.insert(gpu.end(), keys.rbegin(), keys.rend());  // the tail is evicted first
  }

  void Note(const std::vector<Event>& events) {
    for (const Event& event : events) {
      const bool on_gpu = event.medium != "CPU";
      auto& ledger = on_gpu ? gpu_ledger : cpu_ledger;
      for (const std::uint64_t key : event.hashes) {
        if (event.kind == EventKind::kBlockStored) {
          ledger[key] = on_gpu ? 1 : ledger[key] + 1;
        } else {
          ledger[key] = std::max(ledger[key] - 1, 0);
        }
      }
      if (event.kind == EventKind::kAllBlocksCleared) ForgetLedgers();
    }
  }
  void ForgetLedgers() {
    gpu_ledger.clear();
    cpu_ledger.clear();
  }
  static std::uint32_t Depth(const std::map<std::uint64_t, int>& ledger, const Keys& keys) {
    std::uint32_t depth = 0;
    for (; depth < keys.size(); ++depth) {
      const auto it = ledger.find(keys[depth]);
      if (it == ledger.end() || it->second == 0) break;
    }
    return depth;
  }
};

struct Conditions {
  double loss = 0;
  std::size_t max_orphan_blocks = 4096;
};

class RandomTest : public IngestTest {
 protected:
  void Run(std::uint64_t seed, const Conditions& conditions) {
    Restart({.max_orphan_blocks = conditions.max_orphan_blocks});
    Random random(seed);
    std::vector<Engine> engines(5);
    for (std::size_t i = 0; i < engines.size(); ++i) {
      engines[i].endpoint = "pod" + std::to_string(i);
      engines[i].publisher = Add(engines[i].endpoint);
      engines[i].seed = i < 2 ? 1 : random.Next();  // two hash alike, the others do not
      engines[i].capacity = random.Between(9, 40);
    }
    for (int step = 0; step < 600; ++step) {
      Engine& engine = engines[random.Below(engines.size())];
      BatchBuilder batch;
      if (random.Chance(0.01)) {
        batch.Cleared();
        engine.gpu.clear();
        engine.cpu.clear();
      }
      for (std::uint64_t n = random.Between(1, 3); n > 0; --n) prompts_.push_back(RandomPrompt(random));
      for (const Prompt& prompt : prompts_) engine.Serve(prompt, random.Chance(0.5), batch);
      if (random.Chance(conditions.loss)) {
        prompts_.clear();
        continue;
      }
      Send(engine.publisher, batch.events());
      engine.Note(batch.events());
      prompts_.clear();
      if (random.Chance(0.01)) RestartEngine(engine, random);
      for (int i = 0; i < 3; ++i) Check(engines, RandomPrompt(random), conditions.loss == 0);
      if (HasFailure()) {
        ADD_FAILURE() << "seed " << seed << " step " << step;
        return;
      }
    }
  }

  void RestartEngine(Engine& engine, Random& random) {
    engine.gpu.clear();
    engine.cpu.clear();
    engine.ForgetLedgers();
    engine.seed = random.Next();
    if (random.Chance(0.5)) {
      ingestor_->Clear(engine.publisher);
    } else {
      ingestor_->RemovePublisher(engine.publisher);
      engine.publisher = Add(engine.endpoint);
    }
  }

  void Check(const std::vector<Engine>& engines, const Prompt& prompt, bool exact) {
    const std::vector<MultimodalItem> items = prompt.Items();
    Depths depths =
        Match({.tokens = prompt.tokens, .block_size = kBlock, .cache_salt = prompt.salt, .items = items},
              kModel, prompt.lora);
    for (const Engine& engine : engines) {
      const Keys keys = EngineKeys(prompt, engine.seed);
      for (const bool on_gpu : {true, false}) {
        const std::uint32_t told = Engine::Depth(on_gpu ? engine.gpu_ledger : engine.cpu_ledger, keys);
        const std::uint32_t found = depths[engine.endpoint + (on_gpu ? "/-/gpu" : "/-/cpu")];
        if (exact) {
          EXPECT_EQ(found, told) << engine.endpoint << (on_gpu ? " gpu" : " cpu");
        } else {
          EXPECT_LE(found, told) << engine.endpoint << (on_gpu ? " gpu" : " cpu");
        }
        told_ += told;
        found_ += found;
        if (exact && on_gpu) {
          std::uint32_t cached = 0;
          while (cached < keys.size() && Engine::Contains(engine.gpu, keys[cached])) ++cached;
          EXPECT_EQ(found, cached) << engine.endpoint;
        }
      }
    }
  }

  std::vector<Prompt> prompts_;
  std::uint64_t told_ = 0;
  std::uint64_t found_ = 0;
};

TEST_F(RandomTest, WithoutLossesTheIndexIsWhatTheEnginesHold) {
  for (std::uint64_t seed = 1; seed <= 12 && !HasFailure(); ++seed) Run(seed, {});
  EXPECT_GT(found_, 10000);
  EXPECT_EQ(counters().orphans_parked, 0);
  EXPECT_EQ(counters().skipped_malformed, 0);
  EXPECT_EQ(counters().tier_updates_unknown, 0);
}

TEST_F(RandomTest, WithLossesItNeverSaysMoreThanWasAnnounced) {
  for (std::uint64_t seed = 1; seed <= 12 && !HasFailure(); ++seed) Run(seed, {.loss = 0.2});
  EXPECT_GT(counters().orphans_parked, 0);
  EXPECT_GT(counters().orphans_attached, 0);
  EXPECT_GT(static_cast<double>(found_), 0.9 * static_cast<double>(told_));
}

TEST_F(RandomTest, NorWithATinyOrphanTable) {
  for (std::uint64_t seed = 1; seed <= 12 && !HasFailure(); ++seed) {
    Run(seed, {.loss = 0.3, .max_orphan_blocks = 6});
  }
  EXPECT_GT(counters().orphans_dropped, 0);
  EXPECT_GT(static_cast<double>(found_), 0.8 * static_cast<double>(told_));
}

}  // namespace
}  // namespace llmd::ingest
