// Cost of the block pool per block, in the steady state of a full pool.
//
//   prefill_evict         prompts never seen before: look up (miss), allocate, evict, commit, free
//   prefill_evict_events  the same with events, taken and converted every request (not encoded)
//   prefill_evict_wire    the same, encoded to MessagePack
//   prefill_evict_sha256  prefill_evict with the vLLM block hashes (sha256, 16 tokens) computed inside the
//   clock hit                   prompts that are cached entirely: look up, touch, allocate the last block,
//   free decode                one token for each of 64 running requests (ns per token)
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "bench/bench_util.h"
#include "llmd/base/random.h"
#include "llmd/hash/vllm.h"
#include "llmd/worker/event_writer.h"
#include "llmd/worker/kv_cache_manager.h"

namespace llmd::worker {
namespace {

constexpr std::uint32_t kPoolBlocks = 32768;
constexpr std::uint32_t kBlockSize = 16;
constexpr std::uint32_t kPromptBlocks = 750;
constexpr int kPrompts = 160;  // 120 k blocks: all evicted before they come again
constexpr int kRepetitions = 7;

struct Prompt {
  std::vector<TokenId> tokens;
  std::vector<hash::Digest> hashes;
};

std::vector<Prompt> MakePrompts(int count, std::uint32_t blocks) {
  Random random(1);
  std::vector<Prompt> prompts(count);
  for (Prompt& prompt : prompts) {
    prompt.tokens.resize(std::size_t{blocks} * kBlockSize + 1);
    for (TokenId& token : prompt.tokens) token = random.Below(150000);
    prompt.hashes.resize(blocks);
    for (hash::Digest& digest : prompt.hashes) {
      for (int i = 0; i < 4; ++i) {
        const std::uint64_t word = random.Next();
        std::memcpy(digest.bytes.data() + 8 * i, &word, 8);
      }
      digest.size = 32;
    }
  }
  return prompts;
}

KvCacheManager MakeManager(bool events) {
  return *KvCacheManager::Create(
      {.pool = {.num_blocks = kPoolBlocks, .block_size = kBlockSize, .enable_events = events}});
}

// Runs the request from admission to its end; false on any surprise.
bool RunRequest(KvCacheManager& kv, Request& request) {
  const PrefixHit hit = kv.GetComputedBlocks(request);
  const auto slots =
      kv.AllocateSlots(request, {.num_new_tokens = request.num_tokens() - hit.num_tokens, .hit = hit});
  return slots.ok() && slots->fits && kv.Free(request.id).ok();
}

enum class Extra { kNone, kEvents, kWire, kSha256 };

int Prefill(const bench::Reporter& reporter, const std::string& name, const std::vector<Prompt>& prompts,
            Extra extra) {
  KvCacheManager kv = MakeManager(extra == Extra::kEvents || extra == Extra::kWire);
  EventWriter writer;
  BlockEvents events;
  std::vector<std::byte> payload;
  const auto hasher = hash::VllmHasher::Create({.block_size = kBlockSize});
  std::vector<hash::Digest> hashes;
  std::vector<double> ns;
  RequestId id = 0;
  for (int repetition = -1; repetition < kRepetitions; ++repetition) {
    const std::int64_t start = bench::NowNs();
    for (const Prompt& prompt : prompts) {
      Request request;
      request.id = id++;
      request.tokens = prompt.tokens;
      request.block_hashes = prompt.hashes;
      if (extra == Extra::kSha256) {
        hashes.clear();
        hasher->HashBlocks(prompt.tokens, nullptr, {}, hashes);
        request.block_hashes = hashes;
      }
      if (!RunRequest(kv, request)) return 1;
      if (extra == Extra::kEvents || extra == Extra::kWire) {
        kv.TakeEvents(events);
        if (extra == Extra::kEvents) bench::KeepAlive(writer.Convert(events).data());
        if (extra == Extra::kWire) writer.Encode(events, 0.0, payload);
      }
    }
    const double elapsed = static_cast<double>(bench::NowNs() - start);
    // The first pass fills the pool.
    if (repetition >= 0) ns.push_back(elapsed / (static_cast<double>(prompts.size()) * kPromptBlocks));
  }
  if (kv.pool().stats().blocks_evicted == 0) return 1;
  const double median = bench::Median(ns);
  reporter.Report(name, "ns_per_block", median, "ns", true);
  reporter.Report(name, "blocks_per_s", 1e9 / median, "blocks/s", false);
  return 0;
}

int Hit(const bench::Reporter& reporter) {
  KvCacheManager kv = MakeManager(false);
  const std::vector<Prompt> prompts = MakePrompts(40, kPromptBlocks);  // 30 k blocks: all fit
  std::vector<double> ns;
  RequestId id = 0;
  for (int repetition = -1; repetition < kRepetitions; ++repetition) {
    kv.TakePrefixCacheStats();
    const std::int64_t start = bench::NowNs();
    for (int round = 0; round < (repetition < 0 ? 1 : 4); ++round) {
      for (const Prompt& prompt : prompts) {
        Request request;
        request.id = id++;
        request.tokens = prompt.tokens;
        request.block_hashes = prompt.hashes;
        if (!RunRequest(kv, request)) return 1;
      }
    }
    const double elapsed = static_cast<double>(bench::NowNs() - start);
    if (repetition < 0) continue;
    const std::uint64_t hits = kv.TakePrefixCacheStats().hits / kBlockSize;
    if (hits != 4 * prompts.size() * kPromptBlocks) return 1;
    ns.push_back(elapsed / static_cast<double>(hits));
  }
  const double median = bench::Median(ns);
  reporter.Report("hit", "ns_per_block", median, "ns", true);
  reporter.Report("hit", "blocks_per_s", 1e9 / median, "blocks/s", false);
  return 0;
}

int Decode(const bench::Reporter& reporter) {
  constexpr int kRunning = 64;
  constexpr std::uint32_t kSteps = 4096;
  const std::vector<Prompt> prompts = MakePrompts(kRunning, kSteps / kBlockSize);
  std::vector<double> ns;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    KvCacheManager kv = MakeManager(false);
    const std::int64_t start = bench::NowNs();
    for (std::uint32_t step = 0; step < kSteps; ++step) {
      for (int i = 0; i < kRunning; ++i) {
        Request request;
        request.id = i;
        request.status = RequestStatus::kRunning;
        request.tokens = TokenSpan(prompts[i].tokens).first(step + 1);
        request.block_hashes = prompts[i].hashes;
        request.num_computed_tokens = step;
        const auto slots = kv.AllocateSlots(request, {.num_new_tokens = 1});
        if (!slots.ok() || !slots->fits) return 1;
      }
    }
    ns.push_back(static_cast<double>(bench::NowNs() - start) / (kSteps * kRunning));
  }
  reporter.Report("decode", "ns_per_token", bench::Median(ns), "ns", true);
  return 0;
}

int Main(bool json) {
  const bench::Reporter reporter("pool", json);
  const std::vector<Prompt> prompts = MakePrompts(kPrompts, kPromptBlocks);
  return Prefill(reporter, "prefill_evict", prompts, Extra::kNone) |
         Prefill(reporter, "prefill_evict_events", prompts, Extra::kEvents) |
         Prefill(reporter, "prefill_evict_wire", prompts, Extra::kWire) |
         Prefill(reporter, "prefill_evict_sha256", prompts, Extra::kSha256) | Hit(reporter) |
         Decode(reporter);
}

}  // namespace
}  // namespace llmd::worker

int main(int argc, char** argv) {
  bool json = false;
  for (int i = 1; i < argc; ++i) json |= std::string_view(argv[i]) == "--json";
  return llmd::worker::Main(json);
}
