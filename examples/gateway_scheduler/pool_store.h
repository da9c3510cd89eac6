// The pool of endpoints of the running host: one writer's copy, and snapshots for decisions.
//
//   PoolStore pool;
//   pool.SetEndpoints(metadata);                                  // discovery
//   pool.Update([&](sched::EndpointPool& p) { ... metrics ... }); // scraper, in batches: each call publishes
//   a copy PoolStore::Snapshot now = pool.snapshot();                    // a decision
//
// Any thread may call anything. Update() and SetEndpoints() take turns; listeners run within that turn, so
// they must not call back into Update() or SetEndpoints().
#ifndef EXAMPLES_GATEWAY_SCHEDULER_POOL_STORE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_POOL_STORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "examples/gateway_scheduler/published.h"
#include "llmd/sched/endpoint_pool.h"

namespace llmd::host {

// Endpoints that came and went. One whose labels or address changed is in both: it has a new handle.
struct PoolChange {
  std::vector<sched::Endpoint> removed = {};
  std::vector<sched::Endpoint> added = {};
};

class PoolStore {
 public:
  using Snapshot = std::shared_ptr<const sched::EndpointPool>;
  // May bind holders in the pool, which is not published yet.
  using Listener = std::function<void(const PoolChange&, sched::EndpointPool&)>;

  PoolStore();

  Snapshot snapshot() const { return published_.load(); }
  // Whether SetEndpoints() was ever called: an empty pool may be a fact or ignorance.
  bool synced() const { return synced_.load(std::memory_order_acquire); }

  // Publishes what `change` made of the pool. Not for adding and removing endpoints.
  void Update(absl::FunctionRef<void(sched::EndpointPool&)> change);
  // Makes the pool have exactly these endpoints. Those that stay as they are keep handle and metrics. The
  // error of an endpoint that is refused, after the others were applied.
  absl::Status SetEndpoints(std::span<const sched::EndpointMetadata> endpoints);
  // Hears of every later change, and at once of the endpoints that are there.
  void AddListener(Listener listener);

 private:
  void Publish();

  std::mutex mutex_;
  sched::EndpointPool pool_;
  std::vector<Listener> listeners_;
  Published<sched::EndpointPool> published_;
  std::atomic<bool> synced_ = false;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_POOL_STORE_H_
