#include "llmd/sched/in_flight.h"

#include <algorithm>
#include <atomic>
#include <mutex>

#include "src/sched/per_endpoint.h"

namespace llmd::sched {

struct InFlightTable::Impl {
  struct Entry {
    std::atomic<std::uint32_t> generation{0};
    std::atomic<std::int64_t> requests{0};
    std::atomic<std::int64_t> tokens{0};
  };

  std::mutex mutex;  // writers
  PerEndpoint<Entry> entries;
};

InFlightTable::InFlightTable() : impl_(std::make_unique<Impl>()) {}
InFlightTable::~InFlightTable() = default;

InFlightLoad InFlightTable::Get(EndpointHandle endpoint) const {
  const Impl::Entry* entry = impl_->entries.Find(endpoint.slot);
  if (entry == nullptr || entry->generation.load(std::memory_order_acquire) != endpoint.generation) return {};
  return {entry->requests.load(std::memory_order_relaxed), entry->tokens.load(std::memory_order_relaxed)};
}

void InFlightTable::Add(EndpointHandle endpoint, InFlightLoad load) {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  Impl::Entry* entry = impl_->entries.Grow(endpoint.slot);
  if (entry == nullptr) return;
  const std::uint32_t known = entry->generation.load(std::memory_order_relaxed);
  if (known != endpoint.generation) {
    // Generations of a slot grow: a decision on an old copy of the pool must not displace a successor.
    if (known != 0 && static_cast<std::int32_t>(endpoint.generation - known) < 0) return;
    entry->generation.store(0, std::memory_order_release);
    entry->requests.store(0, std::memory_order_relaxed);
    entry->tokens.store(0, std::memory_order_relaxed);
    entry->generation.store(endpoint.generation, std::memory_order_release);
  }
  entry->requests.fetch_add(load.requests, std::memory_order_relaxed);
  entry->tokens.fetch_add(load.tokens, std::memory_order_relaxed);
}

void InFlightTable::Subtract(EndpointHandle endpoint, InFlightLoad load) {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  Impl::Entry* entry = impl_->entries.Find(endpoint.slot);
  if (entry == nullptr || entry->generation.load(std::memory_order_relaxed) != endpoint.generation) return;
  const auto lower = [](std::atomic<std::int64_t>& value, std::int64_t by) {
    value.store(std::max<std::int64_t>(0, value.load(std::memory_order_relaxed) - by),
                std::memory_order_relaxed);
  };
  lower(entry->requests, load.requests);
  lower(entry->tokens, load.tokens);
}

}  // namespace llmd::sched
