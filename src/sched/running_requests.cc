#include "src/sched/running_requests.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace llmd::sched {

bool RunningRequests::Access::less(std::uint32_t a, std::uint32_t b) const {
  const Entry& x = entries[a];
  const Entry& y = entries[b];
  return std::tie(x.key, y.sequence) < std::tie(y.key, x.sequence);  // among equals, the newest
}

std::uint32_t RunningRequests::Add(const RunningRequest& request, std::string_view flow,
                                   FairnessState* fairness) {
  std::uint32_t index = 0;
  if (free_.empty()) {
    index = static_cast<std::uint32_t>(entries_.size());
    entries_.emplace_back();
  } else {
    index = free_.back();
    free_.pop_back();
  }
  Entry& entry = entries_[index];
  entry.request = request;
  entry.sequence = next_sequence_++;
  entry.fairness = fairness;
  if (fairness != nullptr) entry.flow = flow;
  entry.unconfirmed = false;
  entry.evictable = rules_.enabled && rules_.filter->MayEvict(request);
  if (entry.evictable) {
    entry.key = rules_.order->Key(request);
    Victims().Push(index);
  }
  return index;
}

void RunningRequests::Remove(std::uint32_t index, absl::Time now) {
  Entry& entry = entries_[index];
  if (entry.evictable) Victims().Remove(index);
  entry.evictable = false;
  if (entry.unconfirmed) Confirm(index, now);
  free_.push_back(index);
}

void RunningRequests::Order(std::uint32_t victim, absl::Time now) {
  Victims().Remove(victim);
  entries_[victim].evictable = false;
  entries_[victim].unconfirmed = true;
  unconfirmed_.push_back({victim, now});
}

void RunningRequests::Confirm(std::uint32_t index, absl::Time now) {
  entries_[index].unconfirmed = false;
  std::erase_if(unconfirmed_, [index](const Unconfirmed& u) { return u.index == index; });
  closed_until_ = std::max(closed_until_, now + rules_.grace);
}

void RunningRequests::Expire(absl::Time now) {
  while (!unconfirmed_.empty() && unconfirmed_.front().ordered + rules_.timeout <= now) {
    Confirm(unconfirmed_.front().index, now);
    ++given_up_;
  }
}

bool RunningRequests::CanEvict(absl::Time now) const {
  return first_victim_ != kNoNode && unconfirmed_.empty() && closed_until_ <= now;
}

// As many as make up for the excess, if each running request has an equal part in the saturation.
std::size_t RunningRequests::VictimsNeeded(double saturation, double ceiling) const {
  const double part = saturation / static_cast<double>(size());
  if (!(part > 0) || !std::isfinite(part)) return 0;
  const double needed = std::ceil((saturation - ceiling) / part);
  return needed > 1 ? kMaxVictims : 1;
}

absl::Time RunningRequests::NextChange() const {
  if (!unconfirmed_.empty()) return unconfirmed_.front().ordered + rules_.timeout;
  return first_victim_ != kNoNode && closed_until_ != absl::InfinitePast() ? closed_until_
                                                                           : absl::InfiniteFuture();
}

std::size_t RunningRequests::MemoryBytes() const {
  std::size_t bytes = entries_.capacity() * sizeof(Entry) + free_.capacity() * sizeof(std::uint32_t);
  for (const Entry& entry : entries_) bytes += entry.flow.capacity();
  return bytes;
}

}  // namespace llmd::sched
