// What an endpoint has of a prompt already, and where that knowledge comes from.
//
// A prefix producer matches the request's key chain in an index and publishes, for each endpoint, a
// PrefixMatch; the prefix scorer and deciders read it. An index is known here by what it can do: make a
// matcher for a thread and, for the approximate one, record a decision. ExactIndex() and ApproximateIndex()
// wrap the project's own; tests and hosts may wrap anything else. The wrapped index must outlive the
// scheduler; each thread's matcher uses one of its readers.
#ifndef LLMD_SCHED_PREFIX_H_
#define LLMD_SCHED_PREFIX_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "llmd/base/types.h"
#include "llmd/index/approx_index.h"
#include "llmd/index/prefix_index.h"
#include "llmd/index/types.h"
#include "llmd/sched/parameters.h"

namespace llmd::sched {

// Of all prompts of the request together. (spec: scheduling.md 2.2)
struct PrefixMatch {
  static constexpr std::string_view kDataType = "PrefixCacheMatchInfo";

  std::uint32_t match_blocks = 0;   // weighted by tier, truncated
  std::uint32_t total_blocks = 0;   // 0: nothing is known
  std::uint32_t block_size = 0;     // tokens
  std::uint32_t cached_blocks = 0;  // not weighted
  bool tiers_known = false;         // the producer tells tiers apart
  std::uint32_t cpu_blocks = 0;     // in the tier "cpu", when tiers are known; not weighted
};

// How the chain of the approximate source is made: parameters of approx-prefix-cache-producer. The host that
// computes the chain takes block size and capacity from here; the producer itself cuts the chain to
// MaxBlocks().
struct ApproxPrefixOptions {
  bool auto_tune = true;                    // prefer what engines report
  std::int64_t block_size = 16;             // tokens
  std::int64_t max_prefix_tokens = 131072;  // 0 or less: see max_prefix_blocks
  std::int64_t max_prefix_blocks = 2048;    // used when max_prefix_tokens is not; 0 or less: no limit
  std::int64_t lru_capacity = 31250;        // blocks per endpoint

  // Tokens per block, at least 64. `reported` is the engine's block size, 0 when unknown.
  std::uint32_t BlockSize(std::uint32_t reported) const;
  // Leading blocks of a prompt that take part.
  std::size_t MaxBlocks(std::uint32_t block_size_tokens) const;
  // For ApproxIndex::AddHolder(). `reported` is the engine's number of blocks, 0 when unknown.
  std::size_t LruCapacity(std::uint64_t reported) const;
};

absl::StatusOr<ApproxPrefixOptions> ParseApproxPrefixOptions(std::string_view owner, const Value& parameters);

// Parameters of precise-prefix-cache-producer. The producer itself uses tiers and speculation; the rest is
// for the host, which hashes prompts into the chain of the exact source, feeds the index from the engines'
// events and bounds it. (spec: scheduling.md 2.2, 5)
struct PreciseOptions {
  struct Tier {
    std::string name;
    double weight = 1.0;
  };
  struct KvEvents {
    std::string zmq_endpoint;  // to bind, in addition to what pods publish; empty: none
    std::string topic_filter = "kv@";
    std::int64_t concurrency = 4;
    bool discover_pods = true;
    std::string pod_label_selector;
    std::string pod_namespace;
    std::int64_t socket_port = 5557;      // plus the endpoint's rank
    std::int64_t replay_socket_port = 0;  // 0 or less: no replay
    std::string engine_type = "vllm";
  };
  // The reference's choice of store; the host has one index (prefix_index.h) and may take its bound from
  // here.
  enum class Store : std::uint8_t { kMemory, kCostAware, kRedis };
  struct Blocks {
    Store store = Store::kMemory;
    std::int64_t max_keys = 100'000'000;  // of kMemory
    std::int64_t pods_per_key = 10;
    std::string max_size = "2GiB";  // of kCostAware
    std::string redis_address = "redis://127.0.0.1:6379";
    bool enable_metrics = false;
    absl::Duration metrics_logging_interval = absl::ZeroDuration();
  };

  std::int64_t block_size = 16;  // tokens
  std::string hash_seed = {};
  std::string hash_algorithm = "cbor-fnv";  // or "xxh64"
  std::vector<Tier> tiers = {{"gpu", 1.0}, {"cpu", 0.8}};
  KvEvents kv_events = {};
  Blocks blocks = {};
  // A prompt counts as held where it was just sent, for this long or until the engine confirms it.
  bool speculative_indexing = false;
  absl::Duration speculative_ttl = absl::Seconds(2);
};

absl::StatusOr<PreciseOptions> ParsePreciseOptions(std::string_view owner, const Value& parameters);

// One thread's way to match chains.
class PrefixMatcher {
 public:
  virtual ~PrefixMatcher() = default;
  virtual void Match(const index::NamespaceId& ns, BlockKeySpan chain, index::MatchResult& result) = 0;
};

struct PrefixSourceIndex {
  std::function<std::unique_ptr<PrefixMatcher>()> new_matcher;
  // Notes that the chain was sent to the holder. Empty for an index that learns from events.
  std::function<void(index::HolderId, const index::NamespaceId&, BlockKeySpan, absl::Time)> record;
};

namespace internal {
template <typename Reader>
class ReaderMatcher final : public PrefixMatcher {
 public:
  template <typename Index>
  explicit ReaderMatcher(const Index& index) : reader_(index) {}
  void Match(const index::NamespaceId& ns, BlockKeySpan chain, index::MatchResult& result) override {
    reader_.Match(ns, chain, result);
  }

 private:
  Reader reader_;
};
}  // namespace internal

inline PrefixSourceIndex ExactIndex(const index::PrefixIndex& index) {
  return {[&index] { return std::make_unique<internal::ReaderMatcher<index::PrefixIndex::Reader>>(index); },
          nullptr};
}

// Decisions are recorded by any number of threads, one after the other: make it once for an index and copy
// it. The host's own calls of the index (AddHolder() and so on) take `writer`, if it passes one.
inline PrefixSourceIndex ApproximateIndex(
    index::ApproxIndex& index, std::shared_ptr<std::mutex> writer = std::make_shared<std::mutex>()) {
  return {[&index] { return std::make_unique<internal::ReaderMatcher<index::ApproxIndex::Reader>>(index); },
          [&index, writer = std::move(writer), latest = std::make_shared<absl::Time>(absl::InfinitePast())](
              index::HolderId holder, const index::NamespaceId& ns, BlockKeySpan chain, absl::Time now) {
            const std::lock_guard<std::mutex> lock(*writer);
            *latest = std::max(*latest, now);  // threads' clocks may be a little apart
            index.Predict(holder, ns, chain, *latest);
          }};
}

}  // namespace llmd::sched

#endif  // LLMD_SCHED_PREFIX_H_
