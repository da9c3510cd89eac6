#include "llmd/gateway/maglev.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "llmd/gateway/request_hash.h"

namespace llmd::gateway {
namespace {

bool IsPrime(std::uint64_t n) {
  if (n < 2) return false;
  for (std::uint64_t divisor = 2; divisor * divisor <= n; ++divisor) {
    if (n % divisor == 0) return false;
  }
  return true;
}

// A host's way through the slots: every slot once, then again.
struct Walk {
  std::uint32_t host;
  std::uint64_t slot;
  std::uint64_t skip;
  double weight;
  double target = 0;
};

}  // namespace

absl::StatusOr<Maglev> Maglev::Create(std::span<const HashHost> hosts, const MaglevOptions& options) {
  const std::uint64_t size = options.table_size;
  if (size > kMaxMaglevTableSize || !IsPrime(size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("table_size is ", size, ", expected a prime of at most ", kMaxMaglevTableSize));
  }
  absl::StatusOr<NormalizedHosts> normalized = Normalize(hosts, options.locality_weights);
  if (!normalized.ok()) return normalized.status();
  Maglev maglev;
  maglev.normalized_ = *std::move(normalized);
  const NormalizedHosts& shares = maglev.normalized_;
  if (shares.participants.empty()) return maglev;

  std::vector<NormalizedHosts::Participant> sorted = shares.participants;
  std::sort(sorted.begin(), sorted.end(),
            [&](const auto& a, const auto& b) { return hosts[a.host].key < hosts[b.host].key; });
  std::vector<Walk> walks;
  walks.reserve(sorted.size());
  for (const NormalizedHosts::Participant& participant : sorted) {
    const std::string_view key = hosts[participant.host].key;
    walks.push_back(
        {participant.host, XxHash64(key) % size, XxHash64(key, 1) % (size - 1) + 1, participant.weight});
  }

  std::vector<std::uint32_t> table(size, kNoHost);
  std::uint64_t filled = 0;
  // A host's turn comes when its weight, summed over the rounds, has reached its next multiple of the
  // greatest weight; the host of greatest weight takes a slot in every round.
  for (std::uint32_t round = 1; filled < size; ++round) {
    for (Walk& walk : walks) {
      if (filled == size) break;
      if (round * walk.weight < walk.target) continue;
      walk.target += shares.max_weight;
      const auto advance = [&] {
        walk.slot += walk.skip;
        if (walk.slot >= size) walk.slot -= size;
      };
      while (table[walk.slot] != kNoHost) advance();
      table[walk.slot] = walk.host;
      ++filled;
      advance();
    }
  }
  if (hosts.size() <= 0xffff) {
    maglev.narrow_.assign(table.begin(), table.end());
  } else {
    maglev.wide_ = std::move(table);
  }
  return maglev;
}

}  // namespace llmd::gateway
