// Follows all objects of one kind in the cluster: lists them, then watches for changes, for as long as it
// lives (spec: gateway.md 7.2; the protocol is that of the Kubernetes API, "efficient detection of changes").
//
//   Reflector reflector(config, {.path = "/api/v1/namespaces/llm-d/pods"}, handler);
//
// A watch goes on where the last one ended, through its timeouts and dropped connections. It begins again
// with a list when the server no longer has the changes since then (410, as a status or as an event), and
// when it sends what cannot be understood or is out of order, so that the handler is always told a state that
// the cluster had. Repeated changes are told once. Failures are retried after a delay that grows and varies,
// or that the server names; meanwhile what was told stays valid. A 404 or 403 (not installed, not allowed)
// is told, and asked for again.
//
// Memory: one page of a list and one event as JSON, plus name and version of each object.
// Threads: one of its own, which calls the handler. The destructor ends a request that is under way.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_REFLECTOR_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_REFLECTOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/kubernetes_client.h"

namespace llmd::host {

// Hears of the objects of one kind, from the reflector's thread. `key` is "namespace/name", or "name".
class ObjectHandler {
 public:
  virtual ~ObjectHandler() = default;
  // A list: Begin, Listed for each object, End. What was not listed is gone at End. A list that fails on the
  // way has no End, but another Begin.
  virtual void BeginList() = 0;
  virtual void Listed(const std::string& key, const nlohmann::json& object) = 0;
  virtual void EndList() = 0;
  virtual void AddedOrModified(const std::string& key, const nlohmann::json& object) = 0;
  virtual void Deleted(const std::string& key) = 0;
  // There is no such kind (NotFound), or it may not be read (PermissionDenied): nothing is known.
  virtual void NotServed(const absl::Status& /*why*/) {}
};

struct ReflectorOptions {
  std::string path = {};            // of the collection
  std::string label_selector = {};  // evaluated by the server
  std::string field_selector = {};
  int page_size = 500;
  std::size_t max_page_bytes = std::size_t{128} << 20;
  std::size_t max_objects = 200'000;
  std::size_t max_event_bytes = std::size_t{8} << 20;  // the API's objects have less than 2 MiB
  absl::Duration list_timeout = absl::Seconds(60);     // of a page
  absl::Duration watch_timeout = absl::Minutes(5);     // up to twice that, at random
  absl::Duration watch_grace = absl::Seconds(15);      // after which a watch is taken for dead
  absl::Duration first_byte = absl::Seconds(30);       // until an answer begins
  absl::Duration min_backoff = absl::Milliseconds(500);
  absl::Duration max_backoff = absl::Seconds(30);
  std::uint64_t seed = 1;  // of the delays
};

class Reflector {
 public:
  struct Counts {
    std::uint64_t lists = 0;     // complete ones
    std::uint64_t watches = 0;   // begun
    std::uint64_t events = 0;    // told to the handler
    std::uint64_t repeated = 0;  // changes that were known
    std::uint64_t bookmarks = 0;
    std::uint64_t expired = 0;   // 410
    std::uint64_t failures = 0;  // of any kind
  };

  // `handler` must live longer.
  Reflector(const KubernetesConfig& config, const ReflectorOptions& options, ObjectHandler& handler);
  ~Reflector();

  Counts counts() const;
  absl::Status status() const;  // the last failure, OK since the last success

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_REFLECTOR_H_
