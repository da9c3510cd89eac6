// Counts for each endpoint, forgotten when the endpoint has left the pool.
//
// Any thread; a known endpoint is found under a shared lock.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_ENDPOINT_TABLE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_ENDPOINT_TABLE_H_

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "llmd/sched/endpoint_pool.h"

namespace llmd::host {

template <typename T>  // of atomics
class EndpointTable {
 public:
  // `action(T&)` on the counts of the endpoint; `pool` says who is still there when the table has grown.
  template <typename Action>
  void With(const sched::Endpoint& endpoint, const sched::EndpointPool& pool, const Action& action) {
    {
      const std::shared_lock<std::shared_mutex> lock(mutex_);
      if (const auto it = counts_.find(endpoint.id()); it != counts_.end()) return action(*it->second);
    }
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    if (counts_.size() >= std::max<std::size_t>(256, 4 * pool.size())) Forget(pool);
    std::unique_ptr<T>& counts = counts_[endpoint.id()];
    if (counts == nullptr) counts = std::make_unique<T>();
    action(*counts);
  }

  // `visit(const Endpoint&, T&)` for each endpoint of the pool that has counts, after forgetting the others.
  template <typename Visitor>
  void Visit(const sched::EndpointPool& pool, const Visitor& visit) {
    {
      const std::unique_lock<std::shared_mutex> lock(mutex_);
      Forget(pool);
    }
    const std::shared_lock<std::shared_mutex> lock(mutex_);
    for (const sched::Endpoint& endpoint : pool.endpoints()) {
      if (const auto it = counts_.find(endpoint.id()); it != counts_.end()) visit(endpoint, *it->second);
    }
  }

 private:
  void Forget(const sched::EndpointPool& pool) {
    absl::erase_if(counts_, [&](const auto& entry) { return !pool.FindId(entry.first); });
  }

  std::shared_mutex mutex_;
  absl::flat_hash_map<std::string, std::unique_ptr<T>> counts_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_ENDPOINT_TABLE_H_
