// The approximate prefix index: where prompts were sent, as a guess of what each endpoint holds.
//
// For engines that publish no KV events. After each decision the host records the prompt's chain at the
// chosen endpoint; a match reports, as the exact index does, how many leading blocks each endpoint was last
// known to have. Each holder forgets by itself: at most `capacity_blocks`, least recently predicted first,
// and nothing older than `ttl`. Recency changes on Predict() only, never on Match(). Threads as in
// PrefixIndex: one writer, any number of Readers.
#ifndef LLMD_INDEX_APPROX_INDEX_H_
#define LLMD_INDEX_APPROX_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "llmd/base/memory_usage.h"
#include "llmd/base/types.h"
#include "llmd/index/prefix_index.h"
#include "llmd/index/types.h"

namespace llmd::index {

struct ApproxIndexOptions {
  std::size_t capacity_blocks = 31250;            // per holder, unless AddHolder() says otherwise; at least 1
  absl::Duration ttl = absl::InfiniteDuration();  // > 0
  std::size_t max_bytes = std::size_t{1} << 30;
  std::size_t max_holders = 4096;  // 1 .. 65535
};

class ApproxIndex {
 public:
  static absl::StatusOr<std::unique_ptr<ApproxIndex>> Create(const ApproxIndexOptions& options);
  ~ApproxIndex();
  ApproxIndex(const ApproxIndex&) = delete;
  ApproxIndex& operator=(const ApproxIndex&) = delete;

  // `capacity_blocks` 0 takes the option's value (an engine that reports its cache size gives its own).
  absl::StatusOr<HolderId> AddHolder(std::string_view endpoint, std::size_t capacity_blocks = 0);

  // From now on the holder has this capacity (0: the option's); it forgets at once what is more. False for a
  // retired holder.
  bool Resize(HolderId holder, std::size_t capacity_blocks);

  // The chain was sent to the holder at `now` (not before earlier calls). Blocks beyond the holder's capacity
  // are not recorded. False for a retired holder.
  bool Predict(HolderId holder, const NamespaceId& ns, BlockKeySpan chain, absl::Time now);
  // Forgets what is older than the TTL at `now`; Predict() does it for its own holder.
  void Expire(absl::Time now);
  bool Clear(HolderId holder);
  bool Retire(HolderId holder);

  // Blocks recorded for the holder.
  std::size_t size(HolderId holder) const;
  MemoryUsage memory_usage() const;
  IndexStats stats() const;

  // As PrefixIndex::Reader.
  class Reader {
   public:
    explicit Reader(const ApproxIndex& index);
    void Match(const NamespaceId& ns, BlockKeySpan chain, MatchResult& result) {
      reader_.Match(ns, chain, result);
    }

   private:
    PrefixIndex::Reader reader_;
  };

 private:
  struct Impl;
  explicit ApproxIndex(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::index

#endif  // LLMD_INDEX_APPROX_INDEX_H_
