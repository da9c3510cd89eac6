// What the host tells of its requests to whoever counts, logs or shows them.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_OBSERVER_H_
#define EXAMPLES_GATEWAY_SCHEDULER_OBSERVER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "llmd/gateway/ext_proc_stream.h"
#include "llmd/sched/flow_control.h"
#include "llmd/sched/scheduler.h"

namespace llmd::host {

struct RequestInfo {
  std::string request_id = {};
  std::string path = {};
  std::string model = {};         // the client's
  std::string target_model = {};  // for the model server
  std::string fairness_id = "default-flow";
  std::int32_t priority = 0;
  std::uint64_t request_bytes = 0;
  bool streaming = false;
  bool headers_only = false;  // decided without the body
  absl::Time received = absl::InfinitePast();
};

// A decision, good or bad. References are valid during the call.
struct DecisionReport {
  const RequestInfo& request;
  absl::Status status = absl::OkStatus();  // why there is no endpoint
  const sched::EndpointPool& pool;
  const sched::Scheduler& scheduler;
  const sched::Decision* decision = nullptr;        // null without an endpoint
  const sched::Explanation* explanation = nullptr;  // null unless Observer::wants_explanations()
  std::string endpoint = {};                        // ip:port of the target, empty: none
  std::string prefill_endpoint = {};                // empty: no prefill stage
  std::size_t prompt_tokens = 0;                    // 0: not known
  std::uint32_t cached_blocks = 0;                  // of the prompt at the target
  std::uint32_t total_blocks = 0;
  std::optional<sched::FlowOutcome::Kind> flow = {};  // what flow control made of it; absent: not asked
  absl::Duration tokenizing = absl::ZeroDuration();
  absl::Duration queued = absl::ZeroDuration();  // in flow control
  absl::Duration deciding = absl::ZeroDuration();
  absl::Time now = absl::InfinitePast();
};

// The end of a request that reached a decision or was refused.
struct FinishReport {
  const RequestInfo& request;
  const gateway::ResponseFacts& response;
  const gateway::Completion& completion;
  std::string endpoint = {};                                  // that served; empty: none
  bool decided = false;                                       // OnDecision() was told of an endpoint
  absl::Duration response_processing = absl::ZeroDuration();  // our own time, over all pieces
  absl::Time now = absl::InfinitePast();
};

// Calls come from all threads of the host at once and must be quick.
class Observer {
 public:
  virtual ~Observer() = default;
  // Asked before each decision.
  virtual bool wants_explanations() const { return false; }
  virtual void OnReceived(const RequestInfo&) {}  // the request is complete, before its decision
  virtual void OnDecision(const DecisionReport&) {}
  virtual void OnResponseChunk(const RequestInfo&, absl::Duration /*since the last one*/) {}
  virtual void OnFinished(const FinishReport&) {}
  // Of the gRPC server; `code` is the status' word, "OK" or "Cancelled".
  virtual void OnStreamStarted() {}
  virtual void OnStreamEnded(std::string_view /*code*/, absl::Duration /*open*/) {}
  virtual void OnDispatchCycle(absl::Duration) {}  // of flow control
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_OBSERVER_H_
