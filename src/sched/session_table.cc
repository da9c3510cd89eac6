#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <span>
#include <vector>

#include "llmd/sched/session.h"

namespace llmd::sched {
namespace {

constexpr std::size_t kWays = 8;  // entries of a group

struct Entry {
  // Odd while the entry changes its session. Data is stored with release and loaded with acquire, so that a
  // reader who sees anything of a new session also sees the number that announced it.
  std::atomic<std::uint32_t> version{0};
  std::atomic<std::uint64_t> hi{0};
  std::atomic<std::uint64_t> lo{0};
  std::atomic<std::uint64_t> endpoint{0};  // 0: free
  std::atomic<std::int64_t> seen{0};       // nanoseconds since 1970
};
static_assert(sizeof(Entry) == SessionTable::kEntryBytes);

std::uint64_t Pack(EndpointHandle endpoint) {
  return std::uint64_t{endpoint.generation} << 32 | endpoint.slot;
}
EndpointHandle Unpack(std::uint64_t packed) {
  return {static_cast<std::uint32_t>(packed), static_cast<std::uint32_t>(packed >> 32)};
}

// The upper half of the product: uniform in [0, n).
std::size_t Reduce(std::uint64_t hash, std::size_t n) {
  return static_cast<std::size_t>((static_cast<unsigned __int128>(hash) * n) >> 64);
}

class Expiry {
 public:
  Expiry(absl::Time now, absl::Duration ttl) : ttl_(ttl), now_(now) {}
  bool IsOver(std::int64_t seen) const { return now_ - absl::FromUnixNanos(seen) > ttl_; }

 private:
  absl::Duration ttl_;
  absl::Time now_;
};

}  // namespace

struct SessionTable::Impl {
  explicit Impl(std::size_t max_sessions)
      : ways(std::min(max_sessions, kWays)), groups(max_sessions / ways), entries(ways * groups) {}
  static std::size_t Clamp(std::size_t max_sessions) {
    return std::clamp<std::size_t>(max_sessions, 1, kMaxCapacity);
  }

  std::span<Entry> Group(std::uint64_t hash) { return {&entries[Reduce(hash, groups) * ways], ways}; }

  // Writers only.
  Entry* FindKey(const XXH128_hash_t& key) {
    for (const std::uint64_t half : {key.low64, key.high64}) {
      for (Entry& entry : Group(half)) {
        if (entry.endpoint.load(std::memory_order_relaxed) != 0 &&
            entry.lo.load(std::memory_order_relaxed) == key.low64 &&
            entry.hi.load(std::memory_order_relaxed) == key.high64) {
          return &entry;
        }
      }
    }
    return nullptr;
  }

  // Where a new session goes: into the emptier group, else in place of the one unused for longest.
  Entry& Victim(const XXH128_hash_t& key, const Expiry& expiry) {
    Entry* best = nullptr;
    std::size_t most_free = 0;
    std::int64_t oldest = 0;
    for (const std::uint64_t half : {key.low64, key.high64}) {
      Entry* free = nullptr;
      std::size_t count = 0;
      for (Entry& entry : Group(half)) {
        const std::int64_t seen = entry.seen.load(std::memory_order_relaxed);
        if (entry.endpoint.load(std::memory_order_relaxed) == 0 || expiry.IsOver(seen)) {
          free = &entry;
          ++count;
        } else if (most_free == 0 && count == 0 && (best == nullptr || seen < oldest)) {
          best = &entry;
          oldest = seen;
        }
      }
      if (count > most_free) {
        most_free = count;
        best = free;
      }
    }
    return *best;
  }

  std::size_t ways;
  std::size_t groups;
  std::vector<Entry> entries;
  std::atomic<std::size_t> used{0};
  std::mutex mutex;  // writers
};

SessionTable::SessionTable(std::size_t max_sessions)
    : impl_(std::make_unique<Impl>(Impl::Clamp(max_sessions))) {}
SessionTable::~SessionTable() = default;

std::optional<EndpointHandle> SessionTable::Find(std::string_view session, absl::Time now,
                                                 absl::Duration ttl) const {
  const XXH128_hash_t key = XXH3_128bits(session.data(), session.size());
  for (const std::uint64_t half : {key.low64, key.high64}) {
    for (const Entry& entry : impl_->Group(half)) {
      const std::uint32_t version = entry.version.load(std::memory_order_acquire);
      if (entry.lo.load(std::memory_order_acquire) != key.low64 ||
          entry.hi.load(std::memory_order_acquire) != key.high64) {
        continue;
      }
      const std::uint64_t endpoint = entry.endpoint.load(std::memory_order_acquire);
      const std::int64_t seen = entry.seen.load(std::memory_order_acquire);
      // A session never moves between entries, so one that changes hands now is coming or going.
      if (version % 2 != 0 || entry.version.load(std::memory_order_relaxed) != version || endpoint == 0 ||
          Expiry(now, ttl).IsOver(seen)) {
        continue;
      }
      return Unpack(endpoint);
    }
  }
  return std::nullopt;
}

void SessionTable::Use(std::string_view session, EndpointHandle picked, std::optional<EndpointHandle> absent,
                       absl::Time now, absl::Duration ttl) {
  if (picked.generation == 0) return;
  const XXH128_hash_t key = XXH3_128bits(session.data(), session.size());
  const Expiry expiry(now, ttl);
  const std::int64_t seen = absl::ToUnixNanos(now);
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  if (Entry* entry = impl_->FindKey(key)) {
    const std::uint64_t bound = entry->endpoint.load(std::memory_order_relaxed);
    const bool renew = bound == Pack(picked) || expiry.IsOver(entry->seen.load(std::memory_order_relaxed)) ||
                       (absent && bound == Pack(*absent));
    if (!renew) return;
    entry->endpoint.store(Pack(picked), std::memory_order_release);
    entry->seen.store(seen, std::memory_order_release);
    return;
  }
  Entry& entry = impl_->Victim(key, expiry);
  if (entry.endpoint.load(std::memory_order_relaxed) == 0) {
    impl_->used.fetch_add(1, std::memory_order_relaxed);
  }
  const std::uint32_t version = entry.version.load(std::memory_order_relaxed);
  entry.version.store(version + 1, std::memory_order_release);
  entry.lo.store(key.low64, std::memory_order_release);
  entry.hi.store(key.high64, std::memory_order_release);
  entry.endpoint.store(Pack(picked), std::memory_order_release);
  entry.seen.store(seen, std::memory_order_release);
  entry.version.store(version + 2, std::memory_order_release);
}

std::size_t SessionTable::CapacityFor(std::size_t max_sessions) {
  const std::size_t size = Impl::Clamp(max_sessions);
  return size < kWays ? size : size / kWays * kWays;
}
std::size_t SessionTable::capacity() const { return impl_->entries.size(); }
std::size_t SessionTable::size() const { return impl_->used.load(std::memory_order_relaxed); }

}  // namespace llmd::sched
