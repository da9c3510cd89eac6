// An approximate index whose holders are endpoints: what was sent where, for plugins that keep their own.
// Private to the component.
//
// Holders come and go by themselves: an endpoint gets one when something is recorded for it, and loses it
// when its slot has a successor, or when holders outnumber the pool and it is no longer there. Records are
// serialized by a lock; a Reader, one for each thread, takes none.
//
// With a TTL, nothing is reported of an endpoint that got no record for that long. Of one that did, a record
// may be reported for up to twice the TTL, should nothing be recorded for anybody in between.
#ifndef SRC_SCHED_ENDPOINT_INDEX_H_
#define SRC_SCHED_ENDPOINT_INDEX_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "llmd/index/approx_index.h"
#include "llmd/sched/endpoint_pool.h"
#include "src/sched/per_endpoint.h"

namespace llmd::sched {

class EndpointIndex {
 public:
  static constexpr std::size_t kMaxBytes = std::size_t{256} << 20;
  static constexpr std::size_t kMaxEndpoints = 16'384;

  explicit EndpointIndex(absl::Duration ttl = absl::InfiniteDuration());

  // Held while a decision is recorded.
  class Writer {
   public:
    // `capacity`: blocks of an endpoint that is new here.
    Writer(EndpointIndex& index, const EndpointPool& pool, absl::Time now, std::size_t capacity);
    ~Writer();
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;

    void Record(EndpointHandle endpoint, const index::NamespaceId& ns, BlockKeySpan chain);

   private:
    EndpointIndex& index_;
    const EndpointPool& pool_;
    absl::Time now_;
    std::size_t capacity_;
  };

  class Reader {
   public:
    explicit Reader(std::shared_ptr<const EndpointIndex> index)
        : index_(std::move(index)), reader_(*index_->index_) {}

    // Calls `visit` with each endpoint that has leading blocks of the chain, and how many.
    template <typename Visit>
    void Match(const index::NamespaceId& ns, BlockKeySpan chain, absl::Time now, const Visit& visit) {
      reader_.Match(ns, chain, rows_);
      for (const index::HolderDepth& row : rows_) {
        const Owner* owner = index_->owners_.Find(row.slot);
        if (owner == nullptr) continue;
        const std::uint64_t packed = owner->endpoint.load(std::memory_order_acquire);
        if (packed == 0) continue;
        if (now - absl::FromUnixNanos(owner->newest.load(std::memory_order_relaxed)) >= index_->ttl_)
          continue;
        visit(EndpointHandle{static_cast<std::uint32_t>(packed), static_cast<std::uint32_t>(packed >> 32)},
              row.depth);
      }
    }

   private:
    std::shared_ptr<const EndpointIndex> index_;
    index::ApproxIndex::Reader reader_;
    index::MatchResult rows_;
  };

  // Endpoints remembered.
  std::size_t size() const;

 private:
  // Of a holder slot.
  struct Owner {
    std::atomic<std::uint64_t> endpoint{0};  // generation and slot; 0: none
    std::atomic<std::int64_t> newest{0};     // record, nanoseconds since 1970
  };
  // Of an endpoint slot. Writers only.
  struct Mark {
    std::uint32_t generation = 0;
    index::HolderId holder;
  };

  Mark* FindOrAdd(EndpointHandle endpoint, const EndpointPool& pool, std::size_t capacity);
  void Retire(EndpointHandle endpoint);
  void RetireAbsent(const EndpointPool& pool);

  const absl::Duration ttl_;
  std::unique_ptr<index::ApproxIndex> index_;  // changed under mutex_
  PerEndpoint<Owner> owners_;                  // by holder slot
  mutable std::mutex mutex_;                   // writers
  PerEndpoint<Mark> marks_;                    // by endpoint slot
  std::vector<EndpointHandle> endpoints_;
  absl::Time last_expiry_ = absl::InfinitePast();
  absl::Time latest_ = absl::InfinitePast();  // threads' clocks may be a little apart
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_ENDPOINT_INDEX_H_
