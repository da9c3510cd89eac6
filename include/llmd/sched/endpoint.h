// An endpoint as the scheduler sees it: who it is, and what was last measured there.
//
// Identity (name, address, labels) never changes while an endpoint is in a pool; it is shared between copies
// of a pool. Measurements are plain values, each with the time at which it was read, so that a value that was
// never read is not mistaken for zero. Values are set by the host (a scraper, a simulator); the scheduler
// only reads them. An endpoint is one server port: a pod with several data-parallel ranks behind ports of
// their own is several endpoints.
#ifndef LLMD_SCHED_ENDPOINT_H_
#define LLMD_SCHED_ENDPOINT_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"

namespace llmd::sched {

// Index of an endpoint in one pool value, 0 .. size-1. Valid for that value only.
using Position = std::uint32_t;

// Names an endpoint for as long as it lives, across copies of a pool. A slot is reused with another
// generation.
struct EndpointHandle {
  std::uint32_t slot = 0;
  std::uint32_t generation = 0;  // 0 is never valid
  friend bool operator==(const EndpointHandle&, const EndpointHandle&) = default;
};

using Labels = std::map<std::string, std::string, std::less<>>;

struct EndpointMetadata {
  std::string name = {};  // unique with pod_namespace; not empty
  std::string pod_namespace = "default";
  std::string address = {};  // host name or IP, without port
  std::uint16_t port = 0;
  std::string node_address = {};
  Labels labels = {};
  std::uint32_t rank = 0;  // index among the pool's target ports
};

// Stages of serving that an endpoint takes part in, from its label `llm-d.ai/role`.
inline constexpr std::string_view kRoleLabel = "llm-d.ai/role";
enum Role : std::uint8_t { kRoleEncode = 1, kRolePrefill = 2, kRoleDecode = 4 };

// Metadata plus what is derived from it once.
struct EndpointIdentity {
  explicit EndpointIdentity(EndpointMetadata m);

  EndpointMetadata metadata;
  std::string id;         // "namespace/name"
  std::string host_port;  // "address:port", IPv6 in brackets
  std::uint8_t roles;     // set of Role; no label means decode, an unknown role means none
};

// A measured value and when it was read.
template <typename T>
struct Sample {
  T value{};
  absl::Time at = absl::InfinitePast();

  bool known() const { return at != absl::InfinitePast(); }
};

// LoRA adapters of an engine.
struct AdapterState {
  std::int64_t max_active = 0;
  std::vector<std::string> active;
  std::vector<std::string> waiting;
};

// What a scrape of the engine tells.
struct Metrics {
  Sample<std::int64_t> waiting_requests;
  Sample<std::int64_t> running_requests;
  Sample<double> kv_cache_usage;                         // fraction, 0..1
  Sample<std::shared_ptr<const AdapterState>> adapters;  // null when the engine reports none
  std::uint32_t cache_block_size = 0;                    // tokens; 0 when not reported
  std::uint64_t cache_num_blocks = 0;                    // of the engine's size; 0 when not reported

  // True once any load value was read.
  bool scraped() const {
    return waiting_requests.known() || running_requests.known() || kv_cache_usage.known();
  }
  // When the newest of them was read.
  absl::Time updated() const {
    return std::max({waiting_requests.at, running_requests.at, kv_cache_usage.at});
  }
};

// A number that an engine-specific extractor attached under a name.
struct Attribute {
  std::string name;
  Sample<double> sample;
};

struct Endpoint {
  EndpointHandle handle;
  std::shared_ptr<const EndpointIdentity> identity;  // never null in a pool
  Metrics metrics;
  std::vector<Attribute> attributes;

  const EndpointMetadata& metadata() const { return identity->metadata; }
  const std::string& id() const { return identity->id; }
  const std::string& host_port() const { return identity->host_port; }
  // Null when absent.
  const std::string* FindLabel(std::string_view label) const;
  const Attribute* FindAttribute(std::string_view name) const;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_ENDPOINT_H_
