#include "llmd/sched/result_headers.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::sched {
namespace {

// A DNS name has at most 253 characters; brackets, a colon and a port may be around it.
constexpr std::size_t kMaxSubsetEntry = 253 + 2 + 6;

std::string_view WithoutBrackets(std::string_view address) {
  if (address.size() < 2 || address.front() != '[' || address.back() != ']') return address;
  return address.substr(1, address.size() - 2);
}

// Appends the addresses that an entry may mean. Without brackets "2001:db8::1:80" is either an address or an
// address and a port.
void AppendAddresses(std::string_view entry, std::vector<std::string_view>& addresses) {
  if (entry.empty() || entry.size() > kMaxSubsetEntry) return;
  const std::size_t colon = entry.rfind(':');
  if (colon == std::string_view::npos || entry.back() == ']') {
    addresses.push_back(WithoutBrackets(entry));
    return;
  }
  addresses.push_back(WithoutBrackets(entry.substr(0, colon)));
  if (entry.find(':') != colon && entry.front() != '[') addresses.push_back(entry);
}

}  // namespace

std::optional<std::string_view> FindHeader(const Request& request, std::span<const std::string_view> names) {
  for (const std::string_view name : names) {
    if (const std::optional<std::string_view> value = request.FindHeader(name)) return value;
  }
  return std::nullopt;
}

double SloMilliseconds(const Request& request, std::span<const std::string_view> names) {
  const std::optional<std::string_view> text = FindHeader(request, names);
  double value = 0;
  if (!text || !absl::SimpleAtod(ToAbsl(*text), &value)) return 0;
  return value > 0 && std::isfinite(value) ? value : 0;
}

int HttpStatus(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kFailedPrecondition:
      return 412;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnavailable:
      return 503;
    default:
      return 500;
  }
}

std::string TargetHostPort(const ProfileResult& result, Position target, const EndpointPool& pool) {
  const std::string& own = pool[target].host_port();
  if (result.port == 0) return own;
  // The identity has the address in the form that goes before a port.
  return absl::StrCat(absl::string_view(own).substr(0, own.rfind(':') + 1), result.port);
}

std::string TargetHostPorts(const ProfileResult& result, const EndpointPool& pool) {
  std::string list;
  for (const Position target : result.targets) {
    absl::StrAppend(&list, list.empty() ? "" : ",", TargetHostPort(result, target, pool));
  }
  return list;
}

std::string DestinationEndpoint(const Decision& decision, const EndpointPool& pool) {
  if (decision.primary >= decision.profiles.size()) return "";
  return TargetHostPorts(decision.primary_result(), pool);
}

std::vector<EndpointScore> EndpointScores(const Decision& decision, const EndpointPool& pool) {
  std::vector<EndpointScore> scores;
  if (decision.primary >= decision.profiles.size()) return scores;
  const ProfileResult& result = decision.primary_result();
  for (const ScoredEndpoint& scored : result.scored) {
    scores.push_back({TargetHostPort(result, scored.position, pool), scored.score});
  }
  std::sort(scores.begin(), scores.end(), [](const EndpointScore& a, const EndpointScore& b) {
    return a.host_port != b.host_port ? a.host_port < b.host_port : a.score > b.score;
  });
  const auto same = [](const EndpointScore& a, const EndpointScore& b) { return a.host_port == b.host_port; };
  scores.erase(std::unique(scores.begin(), scores.end(), same), scores.end());
  return scores;
}

void SetHeader(HeaderEdits& edits, std::string_view name, std::optional<std::string> value) {
  for (HeaderEdit& edit : edits) {
    if (edit.name != name) continue;
    edit.value = std::move(value);
    return;
  }
  edits.push_back({std::string(name), std::move(value)});
}

void SetStageHeaders(const ProfileResult* prefill, const ProfileResult* encode, const EndpointPool& pool,
                     HeaderEdits& edits) {
  std::optional<std::string> prefiller;
  std::optional<std::string> encoders;
  if (prefill != nullptr && prefill->state == ProfileState::kDone && !prefill->targets.empty()) {
    prefiller = TargetHostPort(*prefill, prefill->targets.front(), pool);
  }
  if (encode != nullptr && encode->state == ProfileState::kDone && !encode->targets.empty()) {
    encoders = TargetHostPorts(*encode, pool);
  }
  SetHeader(edits, kPrefillerHeader, std::move(prefiller));
  SetHeader(edits, kEncodersHeader, std::move(encoders));
}

std::vector<Position> SelectSubset(const EndpointPool& pool,
                                   std::optional<std::span<const std::string_view>> hint) {
  std::vector<Position> positions;
  if (!hint) {
    positions.resize(pool.size());
    std::iota(positions.begin(), positions.end(), Position{0});
    return positions;
  }
  // Sorted, not hashed: whoever writes the hint cannot make look-ups slow.
  std::vector<std::string_view> addresses;
  for (const std::string_view entry : hint->first(std::min(hint->size(), kMaxSubsetEntries))) {
    AppendAddresses(entry, addresses);
  }
  std::sort(addresses.begin(), addresses.end());
  for (Position p = 0; p < pool.size(); ++p) {
    const std::string_view address = WithoutBrackets(pool[p].metadata().address);
    if (std::binary_search(addresses.begin(), addresses.end(), address)) positions.push_back(p);
  }
  return positions;
}

}  // namespace llmd::sched
