#include "examples/gateway_scheduler/pool_store.h"

#include <utility>

#include "llmd/gateway/endpoints_file.h"

namespace llmd::host {

PoolStore::PoolStore() { Publish(); }

void PoolStore::Publish() { published_.store(std::make_shared<const sched::EndpointPool>(pool_)); }

void PoolStore::Update(absl::FunctionRef<void(sched::EndpointPool&)> change) {
  const std::lock_guard lock(mutex_);
  change(pool_);
  Publish();
}

absl::Status PoolStore::SetEndpoints(std::span<const sched::EndpointMetadata> endpoints) {
  const std::lock_guard lock(mutex_);
  const sched::EndpointPool before = pool_;
  const absl::Status status =
      gateway::ApplyEndpoints(endpoints, gateway::DiffEndpoints(endpoints, pool_), pool_);
  PoolChange change;
  for (const sched::Endpoint& endpoint : before.endpoints()) {
    if (!pool_.Find(endpoint.handle)) change.removed.push_back(endpoint);
  }
  for (const sched::Endpoint& endpoint : pool_.endpoints()) {
    if (!before.Find(endpoint.handle)) change.added.push_back(endpoint);
  }
  if (!change.removed.empty() || !change.added.empty()) {
    for (const Listener& listener : listeners_) listener(change, pool_);
  }
  Publish();
  synced_.store(true, std::memory_order_release);
  return status;
}

void PoolStore::AddListener(Listener listener) {
  const std::lock_guard lock(mutex_);
  PoolChange change;
  change.added.assign(pool_.endpoints().begin(), pool_.endpoints().end());
  if (!change.added.empty()) {
    listener(change, pool_);
    Publish();
  }
  listeners_.push_back(std::move(listener));
}

}  // namespace llmd::host
