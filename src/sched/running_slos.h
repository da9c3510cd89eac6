// Which objectives the requests on each endpoint have: their number and the tightest time per output token.
// Private to the component.
//
// Kept by flights. Any thread may call anything; reads take no lock. Memory: an entry for each slot and a
// node for each request on its way.
#ifndef SRC_SCHED_RUNNING_SLOS_H_
#define SRC_SCHED_RUNNING_SLOS_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <set>

#include "llmd/sched/endpoint.h"
#include "src/sched/per_endpoint.h"

namespace llmd::sched {

class RunningSlos {
 public:
  struct View {
    std::int64_t requests = 0;
    double min_tpot_ms = 0;  // of those with an objective; 0: none has
  };
  View Get(EndpointHandle endpoint) const {
    const Entry* entry = entries_.Find(endpoint.slot);
    if (entry == nullptr || entry->generation.load(std::memory_order_acquire) != endpoint.generation)
      return {};
    return {entry->requests.load(std::memory_order_relaxed),
            entry->min_tpot_ms.load(std::memory_order_relaxed)};
  }

  // `tpot_ms` 0: without objective. True if Remove() is to be called with the same arguments.
  bool Add(EndpointHandle endpoint, double tpot_ms) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Entry* entry = entries_.Grow(endpoint.slot);
    if (entry == nullptr || endpoint.generation == 0) return false;
    const std::uint32_t known = entry->generation.load(std::memory_order_relaxed);
    if (known != endpoint.generation) {
      // Generations of a slot grow: a late decision must not displace a successor.
      if (known != 0 && static_cast<std::int32_t>(endpoint.generation - known) < 0) return false;
      entry->generation.store(0, std::memory_order_release);
      entry->objectives.clear();
      entry->requests.store(0, std::memory_order_relaxed);
      Publish(*entry);
      entry->generation.store(endpoint.generation, std::memory_order_release);
    }
    entry->requests.fetch_add(1, std::memory_order_relaxed);
    if (tpot_ms > 0) entry->objectives.insert(tpot_ms);
    Publish(*entry);
    return true;
  }
  void Remove(EndpointHandle endpoint, double tpot_ms) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Entry* entry = entries_.Find(endpoint.slot);
    if (entry == nullptr || entry->generation.load(std::memory_order_relaxed) != endpoint.generation) return;
    entry->requests.fetch_sub(1, std::memory_order_relaxed);
    const auto it = entry->objectives.find(tpot_ms);
    if (it != entry->objectives.end()) entry->objectives.erase(it);
    Publish(*entry);
  }

 private:
  struct Entry {
    std::atomic<std::uint32_t> generation{0};
    std::atomic<std::int64_t> requests{0};
    std::atomic<double> min_tpot_ms{0};
    std::multiset<double> objectives;  // writers only
  };

  static void Publish(Entry& entry) {
    entry.min_tpot_ms.store(entry.objectives.empty() ? 0 : *entry.objectives.begin(),
                            std::memory_order_relaxed);
  }

  PerEndpoint<Entry> entries_;
  std::mutex mutex_;  // writers
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_RUNNING_SLOS_H_
