#include "llmd/gateway/ring_hash.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "llmd/gateway/request_hash.h"

namespace llmd::gateway {

absl::StatusOr<RingHash> RingHash::Create(std::span<const HashHost> hosts, const RingHashOptions& options) {
  if (options.max_ring_size < 1 || options.max_ring_size > kMaxRingSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_ring_size is ", options.max_ring_size, ", expected 1 to ", kMaxRingSize));
  }
  if (options.min_ring_size < 1 || options.min_ring_size > options.max_ring_size) {
    return absl::InvalidArgumentError(absl::StrCat("min_ring_size is ", options.min_ring_size,
                                                   ", expected 1 to max_ring_size, ", options.max_ring_size));
  }
  absl::StatusOr<NormalizedHosts> normalized = Normalize(hosts, options.locality_weights);
  if (!normalized.ok()) return normalized.status();
  RingHash ring;
  ring.normalized_ = *std::move(normalized);
  const NormalizedHosts& shares = ring.normalized_;
  if (shares.participants.empty()) return ring;

  // The host of least weight has a whole number of points, unless that makes too many.
  const double min_weight = shares.min_weight;
  const double scale = std::min(std::ceil(min_weight * options.min_ring_size) / min_weight,
                                static_cast<double>(options.max_ring_size));

  struct Point {
    std::uint64_t hash;
    std::uint32_t host;
  };
  std::vector<Point> points;
  points.reserve(static_cast<std::size_t>(std::ceil(scale)));
  std::string key;
  double current = 0;
  double target = 0;
  for (const NormalizedHosts::Participant& participant : shares.participants) {
    key.assign(hosts[participant.host].key).push_back('_');
    const std::size_t prefix = key.size();
    target += scale * participant.weight;
    for (std::uint64_t i = 0; current < target; ++i, ++current) {
      char digits[20];
      const auto end = std::to_chars(digits, digits + sizeof digits, i).ptr;
      key.resize(prefix);
      key.append(digits, end);
      points.push_back({options.function == RingHashFunction::kXxHash ? XxHash64(key) : MurmurHash2(key),
                        participant.host});
    }
  }
  // Envoy leaves open which of two points with one hash comes first; here it is the host's order.
  std::stable_sort(points.begin(), points.end(),
                   [](const Point& a, const Point& b) { return a.hash < b.hash; });

  ring.hashes_.reserve(points.size());
  ring.hosts_.reserve(points.size());
  for (const Point& point : points) {
    ring.hashes_.push_back(point.hash);
    ring.hosts_.push_back(point.host);
  }
  const int bits = std::max(1, static_cast<int>(std::bit_width(points.size())) - 1);
  ring.shift_ = 64 - bits;
  ring.starts_.resize((std::size_t{1} << bits) + 1);
  std::size_t at = 0;
  for (std::size_t bucket = 0; bucket + 1 < ring.starts_.size(); ++bucket) {
    while (at < points.size() && ring.hashes_[at] >> ring.shift_ < bucket) ++at;
    ring.starts_[bucket] = static_cast<std::uint32_t>(at);
  }
  ring.starts_.back() = static_cast<std::uint32_t>(points.size());
  return ring;
}

std::uint32_t RingHash::Pick(std::uint64_t hash, std::uint32_t attempt) const {
  if (hashes_.empty()) return kNoHost;
  const std::size_t bucket = hash >> shift_;
  const auto begin = hashes_.begin() + starts_[bucket];
  const auto end = hashes_.begin() + starts_[bucket + 1];
  // When no point of the bucket is at or after the hash, the next bucket's first is.
  std::size_t point = std::lower_bound(begin, end, hash) - hashes_.begin();
  if (point == hashes_.size()) point = 0;
  if (attempt > 0) point = (point + attempt) % hashes_.size();
  return hosts_[point];
}

}  // namespace llmd::gateway
