// A status page with a made-up host behind it, for the browser test and for looking at the page:
//
//   status_page_host [port]
//
// Prints "ready status=PORT", decides some requests a second with a real scheduler on invented metrics, and
// ends with its standard input, or after ten minutes.
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include <boost/asio/io_context.hpp>

#include "absl/strings/str_cat.h"
#include "examples/gateway_scheduler/activity.h"
#include "examples/gateway_scheduler/decision_history.h"
#include "examples/gateway_scheduler/host_state.h"
#include "examples/gateway_scheduler/status_page.h"
#include "llmd/base/random.h"
#include "tests/hosts/scripted_host.h"

namespace llmd::host {
namespace {

constexpr char kConfig[] = R"(
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: disagg-profile-handler
  parameters: {deciders: {prefill: always-disagg-pd-decider}}
- type: always-disagg-pd-decider
- type: decode-filter
- type: prefill-filter
- type: queue-scorer
- type: kv-cache-utilization-scorer
schedulingProfiles:
- name: decode
  plugins: [{pluginRef: decode-filter}, {pluginRef: queue-scorer, weight: 2}, {pluginRef: kv-cache-utilization-scorer}]
- name: prefill
  plugins: [{pluginRef: prefill-filter}, {pluginRef: queue-scorer}]
)";

constexpr char kHostileModel[] =
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">";

class InventedHost {
 public:
  InventedHost() : host_(0, kConfig), workspace_(*host_.scheduler) {
    std::vector<sched::EndpointMetadata> endpoints;
    for (int i = 0; i < 6; ++i) {
      endpoints.push_back({.name = absl::StrCat(i < 4 ? "decode-" : "prefill-", i % 4),
                           .address = absl::StrCat("10.24.0.", 11 + i),
                           .port = 8000,
                           .labels = {{"llm-d.ai/role", i < 4 ? "decode" : "prefill"}}});
    }
    (void)host_.pool.SetEndpoints(endpoints);
  }

  void Step() {
    const absl::Time now = absl::Now();
    ++steps_;
    host_.pool.Update([&](sched::EndpointPool& pool) {
      for (sched::Position i = 0; i < pool.size(); ++i) {
        if (i == 3) continue;                // was never read
        if (i == 2 && steps_ > 3) continue;  // has stopped answering
        sched::Metrics* metrics = pool.mutable_metrics(pool[i].handle);
        metrics->waiting_requests = {static_cast<std::int64_t>(random_.Below(6)), now};
        metrics->running_requests = {static_cast<std::int64_t>(4 + random_.Below(20)), now};
        metrics->kv_cache_usage = {i == 1 ? 0.94 : 0.3 + 0.01 * static_cast<double>(random_.Below(30)), now};
      }
    });
    const int requests = 1 + static_cast<int>(random_.Below(4));
    for (int i = 0; i < requests; ++i) Request(now);
  }

  void Request(absl::Time now) {
    const std::uint64_t id = ++requests_;
    RequestInfo info{.request_id = absl::StrCat("5f0c1e2a-", id), .path = "/v1/chat/completions"};
    info.model = info.target_model = id % 7 == 3 ? kHostileModel : "Qwen/Qwen3-32B";
    info.received = now;
    const PoolStore::Snapshot pool = host_.pool.snapshot();
    const sched::Request request{.id = info.request_id, .model = info.target_model};
    const bool explain = history.wants_explanations();
    const absl::Status status =
        host_.scheduler->Schedule({.request = request, .pool = *pool, .now = now, .seed = random_.Next()},
                                  workspace_, decision_, explain ? &explanation_ : nullptr);
    DecisionReport report{.request = info, .status = status, .pool = *pool, .scheduler = *host_.scheduler};
    const bool refused = id % 11 == 5;
    if (refused) {
      report.status = sched::WithDroppedReason(absl::ResourceExhaustedError("the request waited for 60s"),
                                               sched::DroppedReason::kTtlExpired);
    } else if (status.ok()) {
      report.decision = &decision_;
      report.explanation = explain ? &explanation_ : nullptr;
      report.endpoint = (*pool)[decision_.target()].host_port();
      report.prefill_endpoint = (*pool)[decision_.profiles[1].targets.front()].host_port();
      report.total_blocks = 120;
      report.cached_blocks = static_cast<std::uint32_t>(random_.Below(121));
    }
    report.prompt_tokens = 1920;
    report.tokenizing = absl::Microseconds(310);
    report.queued = refused ? absl::Seconds(60) : absl::Microseconds(80);
    report.deciding = absl::Microseconds(140 + random_.Below(80));
    report.now = now;
    for (Observer* observer : {static_cast<Observer*>(&history), static_cast<Observer*>(&activity_)}) {
      observer->OnDecision(report);
    }
    gateway::ResponseFacts response;
    response.status = 200;
    response.ended = response.streaming = true;
    response.first_byte = now + absl::Milliseconds(120 + random_.Below(100));
    activity_.OnFinished({.request = info,
                          .response = response,
                          .completion = {.routed = true},
                          .decided = report.status.ok(),
                          .now = now + absl::Milliseconds(900 + random_.Below(2000))});
  }

  HostState Collect() {
    const absl::Time now = absl::Now();
    HostState state{
        .now = now, .started = started_, .version = "llmd 0.1.0", .pool = "llm-d", .condition = "ready"};
    state.listeners = {{"ext_proc", 9002}, {"health", 9003}, {"metrics", 9090}};
    state.traffic = activity_.Traffic(now);
    const PoolStore::Snapshot pool = host_.pool.snapshot();
    FillEndpoints(*pool, now, absl::Seconds(2), state);
    activity_.FillEndpoints(*pool, state);
    MemoryUsage memory{
        .causes = {{"run bodies", 900 << 20, 50 << 20, 10 << 20}, {"identity map", 300 << 20, 0, 0}},
        .budget_bytes = std::size_t{4} << 30};
    state.indexes.push_back(DescribeIndex("exact", {.holders = 6, .holder_blocks = 1843200}, memory));
    sched::FlowControlStats flow{
        .queued_requests = 12, .queued_bytes = 240000, .running = 61, .saturation = 0.72};
    flow.outcomes[0] = requests_;
    flow.outcomes[4] = requests_ / 11;
    state.flow_control = DescribeFlowControl(flow);
    FillConfiguration(*host_.scheduler, state);
    state.warnings.push_back(
        "line 12: plugin type \"pd-profile-handler\" is deprecated: use \"disagg-profile-handler\"");
    return state;
  }

  DecisionHistory history;

 private:
  ScriptedHost host_;
  sched::Workspace workspace_;
  sched::Decision decision_;
  sched::Explanation explanation_;
  Activity activity_;
  Random random_{7};
  std::uint64_t requests_ = 0;
  std::uint64_t steps_ = 0;
  const absl::Time started_ = absl::Now();
};

}  // namespace

int Main(int argc, char** argv) {
  InventedHost host;
  boost::asio::io_context io(1);
  const auto port = static_cast<std::uint16_t>(argc > 1 ? std::atoi(argv[1]) : 0);
  auto page = StatusPage::Create(
      io, {.port = port}, [&] { return host.Collect(); }, &host.history);
  if (!page.ok()) {
    std::cerr << page.status() << "\n";
    return 1;
  }
  std::thread thread([&] { io.run(); });
  std::cout << "ready status=" << (*page)->port() << std::endl;
  for (int i = 0; i < 2400; ++i) {
    host.Step();
    pollfd input{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    char bytes[256];
    if (::poll(&input, 1, 250) > 0 && ::read(STDIN_FILENO, bytes, sizeof bytes) <= 0) break;
  }
  (*page)->Stop();
  io.stop();
  thread.join();
  return 0;
}

}  // namespace llmd::host

int main(int argc, char** argv) { return llmd::host::Main(argc, argv); }
