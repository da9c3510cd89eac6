// Keeps the holders of the approximate index in step with the pool: one per endpoint, as large as the
// engine's cache.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_APPROX_HOLDERS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_APPROX_HOLDERS_H_

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "examples/gateway_scheduler/pool_store.h"
#include "llmd/index/approx_index.h"
#include "llmd/sched/prefix.h"

namespace llmd::host {

// Any thread. `writer` guards the index.
class ApproxHolders {
 public:
  ApproxHolders(index::ApproxIndex& index, std::shared_ptr<std::mutex> writer, PoolStore& pool);

  // Of the configuration in force.
  void SetOptions(const std::optional<sched::ApproxPrefixOptions>& options);
  // Gives holders the size that their engine reports by now. Call it every second or so.
  void FollowReportedSizes();

 private:
  // What is kept for an endpoint's holder; the key is its handle's slot.
  struct Holder {
    sched::EndpointHandle endpoint;
    index::HolderId id;
    std::size_t capacity = 0;
  };
  std::size_t Capacity(const sched::Endpoint& endpoint) const;
  void Add(const sched::Endpoint& endpoint, sched::EndpointPool& pool);
  void Drop(sched::EndpointHandle endpoint, sched::EndpointPool& pool);

  index::ApproxIndex& index_;
  const std::shared_ptr<std::mutex> writer_;
  PoolStore& pool_;
  std::mutex mutex_;  // guards options_ and holders_; taken after the pool's turn, before the writer
  std::optional<sched::ApproxPrefixOptions> options_;
  std::vector<Holder> holders_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_APPROX_HOLDERS_H_
