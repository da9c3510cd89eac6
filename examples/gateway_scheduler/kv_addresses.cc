#include "examples/gateway_scheduler/kv_addresses.h"

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

struct PortRange {
  std::int64_t first = 0;  // 0: no port
  std::int64_t count = 1;
};

absl::StatusOr<PortRange> ParseRange(std::string_view label, std::string_view text) {
  const std::size_t dash = text.find('-');
  std::int64_t first = -1;
  std::int64_t last = -1;
  const bool numbers = absl::SimpleAtoi(ToAbsl(text.substr(0, dash)), &first) &&
                       absl::SimpleAtoi(ToAbsl(text.substr(dash == text.npos ? 0 : dash + 1)), &last);
  if (numbers && first == 0 && last == 0) return PortRange{};
  if (!numbers || first < 1 || last < first || last > 65535 || last - first >= kMaxKvPublishersPerEndpoint) {
    return absl::InvalidArgumentError(absl::StrCat(
        "label ", ToAbsl(label), " is \"", ToAbsl(text.substr(0, 40)),
        "\", expected 0, a port of 1..65535 or a range of at most ", kMaxKvPublishersPerEndpoint));
  }
  return PortRange{first, last - first + 1};
}

absl::StatusOr<PortRange> PortsOf(const sched::EndpointMetadata& endpoint, std::string_view label,
                                  std::string_view option, std::int64_t configured) {
  if (const auto it = endpoint.labels.find(label); it != endpoint.labels.end()) {
    return ParseRange(label, it->second);
  }
  if (configured <= 0) return PortRange{};
  const std::int64_t port = configured + endpoint.rank;
  if (port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(option), " ", configured, " plus rank ",
                                                   endpoint.rank, " is ", port, ", expected at most 65535"));
  }
  return PortRange{port, 1};
}

std::string TcpAddress(std::string_view address, std::int64_t port) {
  if (port == 0) return {};
  const bool ipv6 = address.find(':') != address.npos;
  return absl::StrCat("tcp://", ipv6 ? "[" : "", ToAbsl(address), ipv6 ? "]:" : ":", port);
}

}  // namespace

absl::StatusOr<std::vector<KvAddress>> KvAddressesOf(const sched::EndpointMetadata& endpoint,
                                                     const sched::PreciseOptions::KvEvents& options) {
  const auto events = PortsOf(endpoint, kKvEventsPortLabel, "socketPort", options.socket_port);
  if (!events.ok()) return events.status();
  const auto replay = PortsOf(endpoint, kKvReplayPortLabel, "replaySocketPort", options.replay_socket_port);
  if (!replay.ok()) return replay.status();
  if (events->first != 0 && replay->first != 0 && events->count != replay->count) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(kKvReplayPortLabel), " has ", replay->count,
                                                   " ports, ", ToAbsl(kKvEventsPortLabel), " has ",
                                                   events->count, ", expected as many"));
  }
  std::vector<KvAddress> addresses(std::max(events->count, replay->count));
  for (std::int64_t i = 0; i < addresses.size(); ++i) {
    addresses[i].events = TcpAddress(endpoint.address, events->first == 0 ? 0 : events->first + i);
    addresses[i].replay = TcpAddress(endpoint.address, replay->first == 0 ? 0 : replay->first + i);
  }
  return addresses;
}

absl::StatusOr<index::RemovalPolicy> KvRemovalOf(const sched::EndpointMetadata& endpoint) {
  const auto label = endpoint.labels.find(kKvRemovalLabel);
  if (label == endpoint.labels.end() || label->second == "set") return index::RemovalPolicy::kSet;
  if (label->second == "refcount") return index::RemovalPolicy::kRefcount;
  return absl::InvalidArgumentError(absl::StrCat("label ", ToAbsl(kKvRemovalLabel), " is \"",
                                                 label->second.substr(0, 40),
                                                 "\", expected \"set\" or \"refcount\""));
}

}  // namespace llmd::host
