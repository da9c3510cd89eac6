// What all threads of the host share: scheduler, endpoints, indexes, flow control and those who watch.
//
//   PoolStore pool;
//   auto gateway = *Gateway::Create({.config_text = yaml}, pool);
//   gateway->AddObserver(&telemetry);                 // before the first request
//   Worker worker(*gateway);                          // one per thread
//   Session::Create(*gateway, worker, post, ready);   // one per request
//
// Thread safe, but for what is said to come before the first request.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_GATEWAY_H_
#define EXAMPLES_GATEWAY_SCHEDULER_GATEWAY_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/decision_recorder.h"
#include "examples/gateway_scheduler/observer.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "examples/gateway_scheduler/token_source.h"
#include "llmd/gateway/ext_proc_stream.h"
#include "llmd/index/approx_index.h"
#include "llmd/index/prefix_index.h"
#include "llmd/sched/config_file.h"

namespace llmd::host {

class FlowGate;       // flow_gate.h
class ApproxHolders;  // approx_holders.h

struct GatewayOptions {
  std::string config_text = {};  // EndpointPickerConfig; empty: the default one
  sched::ConfigTextOptions config = {};
  gateway::ExtProcOptions ext_proc = {};
  bool emit_scores = false;        // under x-gateway-destination-endpoint-scores
  bool ignore_subset = false;      // --disable-endpoint-subset-filter
  bool subset_by_address = false;  // as the reference: ports of a subset hint do not count
  std::size_t index_max_bytes = std::size_t{4} << 30;
  std::size_t approx_index_max_bytes = std::size_t{1} << 30;
};

class Gateway {
 public:
  // The error of a bad configuration.
  static absl::StatusOr<std::unique_ptr<Gateway>> Create(GatewayOptions options, PoolStore& pool);
  ~Gateway();

  // Before the first request.
  void AddObserver(Observer* observer);
  // Without one, prompts given as text are decided without their tokens.
  void SetTokenSource(std::unique_ptr<TokenSource> source);
  void SetRecorder(std::unique_ptr<DecisionRecorder> recorder);
  // The priority of an objective by name, and the model that a client's model is rewritten to.
  void SetObjectives(std::function<std::int32_t(std::string_view objective)> priority);
  void SetRewrites(std::function<std::optional<std::string>(std::string_view model, Random& random)> rewrite);

  // Replaces the configuration; an error leaves the old one in force. The precise producer's event settings
  // count at the start only.
  absl::Status Reload(std::string_view text, std::vector<std::string>* warnings);
  // Requests that wait are refused from now on (rejected-shutting-down).
  void ShutDown();

  const GatewayOptions& options() const { return options_; }
  PoolStore& pool() { return pool_; }
  sched::ReloadableScheduler& schedulers() { return *schedulers_; }
  index::PrefixIndex& exact_index() { return *exact_; }  // its writer is the event feed
  std::unique_ptr<sched::PrefixMatcher> NewMatcher(sched::PrefixSource source) const {
    return resources_.prefix_sources[source].new_matcher();
  }
  TokenSource* tokens() { return tokens_.get(); }
  FlowGate& flow() { return *flow_; }
  const std::shared_ptr<sched::PluginStates>& plugin_states() const { return resources_.states; }
  DecisionRecorder* recorder() { return recorder_.get(); }
  const std::vector<Observer*>& observers() const { return observers_; }
  bool wants_explanations() const;  // of this decision
  std::int32_t Priority(std::string_view objective) const { return priority_ ? priority_(objective) : 0; }
  std::optional<std::string> Rewrite(std::string_view model, Random& random) const {
    return rewrite_ ? rewrite_(model, random) : std::nullopt;
  }
  std::vector<std::string> warnings() const;
  // Streams being served.
  std::atomic<std::int64_t> active_sessions = 0;
  std::uint64_t NextId() { return next_id_.fetch_add(1, std::memory_order_relaxed); }
  // Size and memory of the approximate index.
  struct ApproxStats {
    index::IndexStats index;
    MemoryUsage memory = {};
  };
  ApproxStats approx_stats() const;

 private:
  Gateway(GatewayOptions options, PoolStore& pool);
  void Maintain();

  GatewayOptions options_;
  PoolStore& pool_;
  std::unique_ptr<index::PrefixIndex> exact_;
  std::unique_ptr<index::ApproxIndex> approx_;
  std::shared_ptr<std::mutex> approx_writer_ = std::make_shared<std::mutex>();
  std::unique_ptr<ApproxHolders> approx_holders_;
  sched::Resources resources_;
  std::unique_ptr<sched::ReloadableScheduler> schedulers_;
  std::unique_ptr<TokenSource> tokens_;
  std::unique_ptr<FlowGate> flow_;
  std::unique_ptr<DecisionRecorder> recorder_;
  std::vector<Observer*> observers_;
  std::function<std::int32_t(std::string_view)> priority_;
  std::function<std::optional<std::string>(std::string_view, Random&)> rewrite_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::vector<std::string> warnings_;
  std::thread maintenance_;
  std::atomic<std::uint64_t> next_id_ = 1;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_GATEWAY_H_
