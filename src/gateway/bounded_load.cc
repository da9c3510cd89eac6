#include "llmd/gateway/bounded_load.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace llmd::gateway {
namespace {

// Uniform in [0, n), n at least 1, by the exact numbers that Envoy draws.
std::uint32_t UniformBelow(std::mt19937& random, std::uint32_t n) {
  const std::uint64_t width = (std::uint64_t{1} << 32) / n;
  for (;;) {
    const std::uint64_t drawn = random() / width;
    if (drawn < n) return static_cast<std::uint32_t>(drawn);
  }
}

}  // namespace

absl::StatusOr<BoundedLoad> BoundedLoad::Create(std::uint32_t balance_factor,
                                                const NormalizedHosts& normalized) {
  if (balance_factor != 0 && balance_factor < 100) {
    return absl::InvalidArgumentError(
        absl::StrCat("balance_factor is ", balance_factor, ", expected 0 or at least 100"));
  }
  BoundedLoad bounded;
  bounded.balance_factor_ = balance_factor;
  bounded.participants_ = normalized.participants;
  for (const NormalizedHosts::Participant& participant : normalized.participants) {
    if (participant.host >= bounded.weight_of_host_.size())
      bounded.weight_of_host_.resize(participant.host + 1);
    bounded.weight_of_host_[participant.host] = participant.weight;
  }
  return bounded;
}

std::uint32_t BoundedLoad::Pick(std::uint32_t host, std::uint64_t hash, std::span<const std::uint32_t> active,
                                std::uint64_t total_active, std::vector<std::uint32_t>& scratch) const {
  if (balance_factor_ == 0 || host >= weight_of_host_.size()) return host;
  constexpr std::uint64_t kMax = std::numeric_limits<std::uint32_t>::max();
  const std::uint64_t total = std::min(total_active, kMax - 1);
  // At most 2^64: both factors are below 2^32.
  const double slots_in_all = static_cast<double>(std::min(((total + 1) * balance_factor_ + 99) / 100, kMax));
  const auto overload = [&](std::uint32_t candidate, double weight) {
    const double slots = std::max(std::ceil(slots_in_all * weight), 1.0);
    return (candidate < active.size() ? active[candidate] : 0) / slots;
  };
  std::uint32_t least = host;
  double least_overload = overload(host, weight_of_host_[host]);
  if (least_overload <= 1) return host;

  const auto count = static_cast<std::uint32_t>(participants_.size());
  scratch.resize(count);
  for (std::uint32_t i = 0; i < count; ++i) scratch[i] = i;
  std::mt19937 random(static_cast<std::uint32_t>(hash));
  for (std::uint32_t i = 0; i < count; ++i) {
    std::swap(scratch[i], scratch[i + UniformBelow(random, count - i)]);
    const NormalizedHosts::Participant& candidate = participants_[scratch[i]];
    if (candidate.host == host) continue;
    const double load = overload(candidate.host, candidate.weight);
    if (load <= 1) return candidate.host;
    if (load < least_overload) {
      least = candidate.host;
      least_overload = load;
    }
  }
  return least;
}

}  // namespace llmd::gateway
