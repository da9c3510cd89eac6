#include "examples/gateway_scheduler/approx_holders.h"

#include <algorithm>
#include <utility>

namespace llmd::host {

ApproxHolders::ApproxHolders(index::ApproxIndex& index, std::shared_ptr<std::mutex> writer, PoolStore& pool)
    : index_(index), writer_(std::move(writer)), pool_(pool) {
  pool_.AddListener([this](const PoolChange& change, sched::EndpointPool& pool) {
    const std::lock_guard lock(mutex_);
    for (const sched::Endpoint& endpoint : change.removed) Drop(endpoint.handle, pool);
    for (const sched::Endpoint& endpoint : change.added) Add(endpoint, pool);
  });
}

std::size_t ApproxHolders::Capacity(const sched::Endpoint& endpoint) const {
  const sched::ApproxPrefixOptions options = options_.value_or(sched::ApproxPrefixOptions{});
  return options.LruCapacity(endpoint.metrics.cache_num_blocks);
}

void ApproxHolders::Add(const sched::Endpoint& endpoint, sched::EndpointPool& pool) {
  const std::size_t capacity = Capacity(endpoint);
  const std::lock_guard lock(*writer_);
  absl::StatusOr<index::HolderId> holder = index_.AddHolder(endpoint.host_port(), capacity);
  if (!holder.ok()) return;  // more endpoints than holders: it goes without prefix matching
  if (pool.BindHolder(sched::kApproximateSource, *holder, endpoint.handle).ok()) {
    holders_.push_back({endpoint.handle, *holder, capacity});
  }
}

void ApproxHolders::Drop(sched::EndpointHandle endpoint, sched::EndpointPool& pool) {
  const auto at = std::find_if(holders_.begin(), holders_.end(),
                               [&](const Holder& holder) { return holder.endpoint == endpoint; });
  if (at == holders_.end()) return;
  pool.UnbindHolder(sched::kApproximateSource, at->id);
  const std::lock_guard lock(*writer_);
  index_.Retire(at->id);
  holders_.erase(at);
}

void ApproxHolders::SetOptions(const std::optional<sched::ApproxPrefixOptions>& options) {
  const std::lock_guard lock(mutex_);
  options_ = options;
}

void ApproxHolders::FollowReportedSizes() {
  const PoolStore::Snapshot now = pool_.snapshot();
  const std::lock_guard lock(mutex_);
  for (const sched::Endpoint& endpoint : now->endpoints()) {
    const auto at = std::find_if(holders_.begin(), holders_.end(),
                                 [&](const Holder& h) { return h.endpoint == endpoint.handle; });
    if (at == holders_.end() || at->capacity == Capacity(endpoint)) continue;
    at->capacity = Capacity(endpoint);
    const std::lock_guard writing(*writer_);
    index_.Resize(at->id, at->capacity);
  }
}

}  // namespace llmd::host
