#include "src/sched/flow_queues.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_format.h"
#include "llmd/base/strings.h"
#include "llmd/sched/flow_control.h"

namespace llmd::sched {
namespace {

// Whether `more` fits below `limit` beside `used`, without overflow.
bool Fits(std::uint64_t used, std::uint64_t more, std::uint64_t limit) {
  return used <= limit && more <= limit - used;
}

std::uint64_t Fnv1a64(std::string_view text) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash;
}

}  // namespace

bool FlowQueues::FlowAccess::less(std::uint32_t a, std::uint32_t b) const {
  const QueuedItem& x = queues.items_[a];
  const QueuedItem& y = queues.items_[b];
  return std::tie(x.key, x.sequence) < std::tie(y.key, y.sequence);
}

bool FlowQueues::ExpiryAccess::less(std::uint32_t a, std::uint32_t b) const {
  const QueuedItem& x = queues.items_[a];
  const QueuedItem& y = queues.items_[b];
  return std::tie(x.expires, x.sequence) < std::tie(y.expires, y.sequence);
}

FlowQueues::FlowQueues(const QueueRules& rules) : rules_(rules) {
  for (const auto& [priority, band] : rules_.bands) AddBand(priority, band, false);
  if (FindBand(0) == nullptr) AddBand(0, rules_.default_band, false);
}

Band* FlowQueues::FindBand(std::int32_t priority) {
  const auto it = std::lower_bound(priorities_.begin(), priorities_.end(), priority, std::greater<>());
  if (it == priorities_.end() || *it != priority) return nullptr;
  return bands_[it - priorities_.begin()].get();
}

const BandRules& FlowQueues::RulesFor(std::int32_t priority) const {
  return priority < 0 ? rules_.default_negative_band : rules_.default_band;
}

Band* FlowQueues::AddBand(std::int32_t priority, const BandRules& rules, bool dynamic) {
  const auto place = std::lower_bound(priorities_.begin(), priorities_.end(), priority, std::greater<>()) -
                     priorities_.begin();
  auto band = std::make_unique<Band>();
  band->priority = priority;
  band->dynamic = dynamic;
  band->rules = rules;
  band->selector = rules.fairness->NewBand();
  priorities_.insert(priorities_.begin() + place, priority);
  if (dynamic) ++dynamic_bands_;
  return bands_.insert(bands_.begin() + place, std::move(band))->get();
}

std::uint32_t FlowQueues::FindOrAddFlow(Band& band, std::string_view id) {
  if (id.size() > kMaxFlowIdBytes) {
    // The beginning, for people, and a hash, to tell it from others.
    abbreviated_ = id.substr(0, kMaxFlowIdBytes - 17);
    absl::StrAppendFormat(&abbreviated_, "#%016x", Fnv1a64(id));
    id = abbreviated_;
  }
  if (const auto it = band.by_id.find(ToAbsl(id)); it != band.by_id.end()) {
    return it->second;
  }
  std::uint32_t index = 0;
  if (band.free_flows.empty()) {
    index = static_cast<std::uint32_t>(band.flows.size());
    band.flows.emplace_back();
  } else {
    index = band.free_flows.back();
    band.free_flows.pop_back();
  }
  QueuedFlow& flow = band.flows[index];
  flow.id = id;
  band.by_id.emplace(ToAbsl(flow.id), index);
  ++flow_count_;
  return index;
}

void FlowQueues::RemoveFlow(Band& band, std::uint32_t flow) {
  UnlinkIdle(band, flow);
  band.by_id.erase(ToAbsl(band.flows[flow].id));
  band.free_flows.push_back(flow);
  --flow_count_;
}

void FlowQueues::LinkIdle(Band& band, std::uint32_t index, absl::Time now) {
  QueuedFlow& flow = band.flows[index];
  flow.idle = true;
  flow.idle_since = now;
  flow.idle_prev = band.idle_newest;
  flow.idle_next = kNoNode;
  (band.idle_newest == kNoNode ? band.idle_oldest : band.flows[band.idle_newest].idle_next) = index;
  band.idle_newest = index;
  if (++idle_flows_ > rules_.max_idle_flows) CollectOldestIdleFlow();
}

void FlowQueues::UnlinkIdle(Band& band, std::uint32_t index) {
  QueuedFlow& flow = band.flows[index];
  flow.idle = false;
  (flow.idle_prev == kNoNode ? band.idle_oldest : band.flows[flow.idle_prev].idle_next) = flow.idle_next;
  (flow.idle_next == kNoNode ? band.idle_newest : band.flows[flow.idle_next].idle_prev) = flow.idle_prev;
  --idle_flows_;
}

void FlowQueues::CollectOldestIdleFlow() {
  Band* oldest = nullptr;
  for (const std::unique_ptr<Band>& band : bands_) {
    if (band->idle_oldest == kNoNode) continue;
    if (oldest == nullptr ||
        band->flows[band->idle_oldest].idle_since < oldest->flows[oldest->idle_oldest].idle_since) {
      oldest = band.get();
    }
  }
  if (oldest != nullptr) RemoveFlow(*oldest, oldest->idle_oldest);
}

void FlowQueues::Announce(Band& band, std::uint32_t index, absl::Time now) {
  const QueuedFlow& flow = band.flows[index];
  if (flow.first == kNoNode) {
    band.selector->Clear(index, now);
    return;
  }
  const QueuedItem& item = items_[flow.first];
  band.selector->Set({index, flow.id, item.key, item.sequence, item.enqueued}, now);
}

absl::Time FlowQueues::Expiry(const QueuedItem& item) const {
  return std::max(item.enqueued, pool_changed_) + (pool_is_empty_ ? rules_.no_endpoint_ttl : item.ttl);
}

std::optional<std::uint32_t> FlowQueues::Add(const FlowItem& item, absl::Time now) {
  Band* band = FindBand(item.priority);
  const BandRules& rules = band != nullptr ? band->rules : RulesFor(item.priority);
  constexpr std::uint64_t kMaxItems = kNoNode;  // their numbers
  const std::uint64_t total_requests =
      rules_.max_requests != 0 ? std::min(rules_.max_requests, kMaxItems) : kMaxItems;
  const std::uint64_t total_bytes = rules_.max_bytes != 0 ? rules_.max_bytes : ~std::uint64_t{0};
  if (!Fits(requests_, 1, total_requests) || !Fits(bytes_, item.bytes, total_bytes) ||
      !Fits(band != nullptr ? band->requests : 0, 1, rules.max_requests) ||
      !Fits(band != nullptr ? band->bytes : 0, item.bytes, rules.max_bytes)) {
    return std::nullopt;
  }
  if (band == nullptr) {
    if (dynamic_bands_ >= rules_.max_dynamic_bands) return std::nullopt;
    band = AddBand(item.priority, RulesFor(item.priority), true);
  }

  std::uint32_t index = 0;
  if (free_items_.empty()) {
    index = static_cast<std::uint32_t>(items_.size());
    items_.emplace_back();
  } else {
    index = free_items_.back();
    free_items_.pop_back();
  }
  const bool own_ttl = item.ttl.has_value() && *item.ttl > absl::ZeroDuration();
  QueuedItem& queued = items_[index];
  queued.id = item.id;
  queued.sequence = next_sequence_++;
  queued.bytes = item.bytes;
  queued.band = band;
  queued.flow = FindOrAddFlow(*band, item.flow);
  queued.enqueued = now;
  queued.ttl = own_ttl ? *item.ttl : rules_.ttl;
  queued.key = band->rules.ordering->Key(item, now, queued.ttl);
  queued.expires = Expiry(queued);

  QueuedFlow& flow = band->flows[queued.flow];
  if (flow.idle) UnlinkIdle(*band, queued.flow);
  const std::uint32_t first = flow.first;
  PairingHeap<FlowAccess>(flow_access_, flow.first).Push(index);
  if (flow.first != first) Announce(*band, queued.flow, now);
  PairingHeap<ExpiryAccess>(expiry_access_, first_expiry_).Push(index);
  ++requests_;
  ++band->requests;
  bytes_ += item.bytes;
  band->bytes += item.bytes;
  return index;
}

void FlowQueues::Remove(std::uint32_t index, absl::Time now) {
  QueuedItem& item = items_[index];
  Band& band = *item.band;
  QueuedFlow& flow = band.flows[item.flow];
  const std::uint32_t first = flow.first;
  PairingHeap<FlowAccess>(flow_access_, flow.first).Remove(index);
  PairingHeap<ExpiryAccess>(expiry_access_, first_expiry_).Remove(index);
  if (flow.first != first) Announce(band, item.flow, now);
  --requests_;
  bytes_ -= item.bytes;
  band.bytes -= item.bytes;
  if (--band.requests == 0) band.empty_since = now;
  item.band = nullptr;
  free_items_.push_back(index);
  if (flow.first == kNoNode) LinkIdle(band, item.flow, now);
}

std::optional<std::uint32_t> FlowQueues::Pick(const Band& band, absl::Time now) {
  if (band.requests == 0) return std::nullopt;
  const std::optional<std::uint32_t> flow = band.selector->Pick(now);
  // A policy of the host's may choose nonsense.
  if (!flow || *flow >= band.flows.size() || band.flows[*flow].first == kNoNode) return std::nullopt;
  return band.flows[*flow].first;
}

std::vector<std::uint32_t> FlowQueues::All() const {
  std::vector<std::uint32_t> all;
  for (std::uint32_t index = 0; index < items_.size(); ++index) {
    if (items_[index].band != nullptr) all.push_back(index);
  }
  std::sort(all.begin(), all.end(),
            [this](std::uint32_t a, std::uint32_t b) { return items_[a].sequence < items_[b].sequence; });
  return all;
}

void FlowQueues::SetPoolIsEmpty(bool empty, absl::Time now) {
  if (pool_changed_ != absl::InfinitePast() && empty == pool_is_empty_) return;
  pool_is_empty_ = empty;
  pool_changed_ = now;
  first_expiry_ = kNoNode;
  for (std::uint32_t index = 0; index < items_.size(); ++index) {
    if (items_[index].band == nullptr) continue;
    items_[index].expires = Expiry(items_[index]);
    PairingHeap<ExpiryAccess>(expiry_access_, first_expiry_).Push(index);
  }
}

absl::Time FlowQueues::FirstExpiry() const {
  return first_expiry_ == kNoNode ? absl::InfiniteFuture() : items_[first_expiry_].expires;
}

std::optional<std::uint32_t> FlowQueues::NextExpired(absl::Time now) const {
  if (FirstExpiry() > now || FirstExpiry() == absl::InfiniteFuture()) return std::nullopt;
  return first_expiry_;
}

void FlowQueues::Collect(absl::Time now) {
  for (std::size_t i = bands_.size(); i-- > 0;) {
    Band& band = *bands_[i];
    while (band.idle_oldest != kNoNode &&
           band.flows[band.idle_oldest].idle_since + rules_.flow_idle_timeout <= now) {
      RemoveFlow(band, band.idle_oldest);
    }
    if (!band.dynamic || band.requests > 0 || band.empty_since + rules_.band_idle_timeout > now) continue;
    while (band.idle_oldest != kNoNode) RemoveFlow(band, band.idle_oldest);
    bands_.erase(bands_.begin() + static_cast<std::ptrdiff_t>(i));
    priorities_.erase(priorities_.begin() + static_cast<std::ptrdiff_t>(i));
    --dynamic_bands_;
  }
}

absl::Time FlowQueues::NextCollection() const {
  absl::Time next = absl::InfiniteFuture();
  for (const std::unique_ptr<Band>& band : bands_) {
    if (band->idle_oldest != kNoNode) {
      next = std::min(next, band->flows[band->idle_oldest].idle_since + rules_.flow_idle_timeout);
    }
    if (band->dynamic && band->requests == 0) {
      next = std::min(next, band->empty_since + rules_.band_idle_timeout);
    }
  }
  return next;
}

std::size_t FlowQueues::MemoryBytes() const {
  std::size_t bytes = sizeof(*this) + items_.capacity() * sizeof(QueuedItem) +
                      free_items_.capacity() * sizeof(std::uint32_t) +
                      bands_.capacity() * (sizeof(bands_[0]) + sizeof(std::int32_t));
  for (const std::unique_ptr<Band>& band : bands_) {
    bytes += sizeof(Band) + band->flows.size() * sizeof(QueuedFlow) +
             band->free_flows.capacity() * sizeof(std::uint32_t) +
             band->by_id.capacity() * (sizeof(absl::string_view) + sizeof(std::uint32_t) + 1) +
             band->selector->MemoryBytes();
    for (const QueuedFlow& flow : band->flows) bytes += flow.id.capacity();
  }
  return bytes;
}

}  // namespace llmd::sched
