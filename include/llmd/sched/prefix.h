// What an endpoint has of a prompt already, and where that knowledge comes from.
//
// A prefix producer matches the request's key chain in an index and publishes, for each endpoint, a
// PrefixMatch; the prefix scorer and deciders read it. An index is known here by what it can do: make a
// matcher for a thread and, for the approximate one, record a decision. ExactIndex() and ApproximateIndex()
// wrap the project's own; tests and hosts may wrap anything else. The wrapped index must outlive the
// scheduler; each thread's matcher uses one of its readers.
#ifndef LLMD_SCHED_PREFIX_H_
#define LLMD_SCHED_PREFIX_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

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

inline PrefixSourceIndex ApproximateIndex(index::ApproxIndex& index) {
  return {[&index] { return std::make_unique<internal::ReaderMatcher<index::ApproxIndex::Reader>>(index); },
          [&index](index::HolderId holder, const index::NamespaceId& ns, BlockKeySpan chain, absl::Time now) {
            index.Predict(holder, ns, chain, now);
          }};
}

}  // namespace llmd::sched

#endif  // LLMD_SCHED_PREFIX_H_
