#include "src/sched/endpoint_index.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace llmd::sched {

EndpointIndex::EndpointIndex(absl::Duration ttl)
    : ttl_(ttl),
      index_(index::ApproxIndex::Create({.ttl = ttl, .max_bytes = kMaxBytes, .max_holders = kMaxEndpoints})
                 .value()) {}

std::size_t EndpointIndex::size() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return endpoints_.size();
}

void EndpointIndex::Retire(EndpointHandle endpoint) {
  Mark* mark = marks_.Find(endpoint.slot);
  owners_.Find(mark->holder.slot)->endpoint.store(0, std::memory_order_release);
  index_->Retire(mark->holder);
  mark->holder = {};
}

void EndpointIndex::RetireAbsent(const EndpointPool& pool) {
  std::erase_if(endpoints_, [&](EndpointHandle endpoint) {
    if (pool.Find(endpoint)) return false;
    Retire(endpoint);
    return true;
  });
}

EndpointIndex::Mark* EndpointIndex::FindOrAdd(EndpointHandle endpoint, const EndpointPool& pool,
                                              std::size_t capacity) {
  Mark* mark = marks_.Grow(endpoint.slot);
  if (mark == nullptr || endpoint.generation == 0) return nullptr;
  if (mark->generation == endpoint.generation && mark->holder.generation != 0) return mark;
  // Generations of a slot grow: a late record for a former endpoint must not displace its successor.
  if (mark->generation != 0 && static_cast<std::int32_t>(endpoint.generation - mark->generation) < 0) {
    return nullptr;
  }
  if (mark->holder.generation != 0) {
    const EndpointHandle former{endpoint.slot, mark->generation};
    Retire(former);
    std::erase(endpoints_, former);
  }
  constexpr std::size_t kSpare = 16;
  if (endpoints_.size() > 2 * pool.size() + kSpare || endpoints_.size() + 1 >= kMaxEndpoints) {
    RetireAbsent(pool);
  }
  const absl::StatusOr<index::HolderId> holder = index_->AddHolder(
      absl::StrCat(endpoint.slot, "/", endpoint.generation), std::max<std::size_t>(capacity, 1));
  if (!holder.ok()) return nullptr;
  Owner* owner = owners_.Grow(holder->slot);
  owner->endpoint.store(std::uint64_t{endpoint.generation} << 32 | endpoint.slot, std::memory_order_release);
  mark->generation = endpoint.generation;
  mark->holder = *holder;
  endpoints_.push_back(endpoint);
  return mark;
}

EndpointIndex::Writer::Writer(EndpointIndex& index, const EndpointPool& pool, absl::Time now,
                              std::size_t capacity)
    : index_(index), pool_(pool), capacity_(capacity) {
  index_.mutex_.lock();
  now_ = index_.latest_ = std::max(index_.latest_, now);
  // All holders are looked at, so not at every record.
  if (index_.ttl_ == absl::InfiniteDuration() || now_ - index_.last_expiry_ < index_.ttl_ / 16) return;
  index_.last_expiry_ = now_;
  index_.index_->Expire(now_);
}

EndpointIndex::Writer::~Writer() { index_.mutex_.unlock(); }

void EndpointIndex::Writer::Record(EndpointHandle endpoint, const index::NamespaceId& ns,
                                   BlockKeySpan chain) {
  Mark* mark = index_.FindOrAdd(endpoint, pool_, capacity_);
  if (mark == nullptr || chain.empty()) return;
  index_.index_->Predict(mark->holder, ns, chain, now_);
  index_.owners_.Find(mark->holder.slot)->newest.store(absl::ToUnixNanos(now_), std::memory_order_relaxed);
}

}  // namespace llmd::sched
