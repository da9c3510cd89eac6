// One policy serving one workload on N simulated endpoints: the whole loop.
//
//   keys of a prompt -> Scheduler -> endpoint -> block pool -> KV events -> MessagePack bytes -> EventDecoder
//        ^                                                                                          |
//        +------------------- PrefixIndex <- KvEventIngestor <--------------------------------------+
//
// Virtual time advances from arrival to arrival: before a decision every engine step that ended by then has
// been played, and its events are in the index; load metrics are as of the last scrape. Single-threaded, and
// a function of its options and requests, except for the clock readings in WallFigures.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_SIMULATION_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_SIMULATION_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/trace_replay/engine.h"
#include "examples/trace_replay/policy.h"
#include "examples/trace_replay/prompt.h"
#include "examples/trace_replay/workload.h"
#include "llmd/ingest/kv_event_ingestor.h"

namespace llmd::replay {

struct SimulationOptions {
  std::uint32_t endpoints = 8;  // 1 .. 4096
  EngineOptions engine;         // publish_events is set by the simulation
  Nanos scrape_interval = 50'000'000;
  std::uint64_t seed = 1;
  std::size_t explain = 0;  // first decisions to explain
  std::size_t approx_capacity_blocks =
      0;  // of the approximate index, per endpoint; 0: as llm-d's producer chooses
  // Off: the exact index is not fed by KV events; what it would say is looked up in the pools. Three times as
  // fast; blocks are known from the beginning of the step that computes them, not from its end.
  bool event_path = true;
  // Is given a log of the decisions (llmd/sched/decision_record.h), piece by piece; empty: none is made.
  std::function<absl::Status(std::span<const std::byte>)> record = {};
};

// Tokens per block of the approximate index for these engines.
std::uint32_t ApproxBlockTokens();

// One request, from arrival to its last token.
struct RequestResult {
  std::uint32_t endpoint = 0;
  Nanos arrival = 0;
  Nanos first_token = 0;
  Nanos finished = 0;
  std::uint32_t prompt_tokens = 0;
  std::uint32_t hit_tokens = 0;
  std::uint32_t expected_tokens = 0;  // what the index promised, at most what the pool may reuse
  std::uint32_t preemptions = 0;
};

struct EndpointResult {
  EngineTotals totals;
  std::uint64_t routed_requests = 0;
};

// KV events on their way from the pools to the index.
struct EventFigures {
  std::uint64_t batches = 0;
  std::uint64_t bytes = 0;
  ingest::IngestCounters ingest;
};

// What the machine needed. Differs from run to run.
struct WallFigures {
  std::vector<std::uint32_t> decision_ns;  // one a decision: Schedule() and RunPreRequest(), keys given
};

struct PolicyResult {
  std::string policy;
  std::string description;
  bool has_expectation = false;
  std::vector<RequestResult> requests;  // in the order of the workload
  std::vector<EndpointResult> endpoints;
  EventFigures events;
  std::string explanations;
  WallFigures wall;
};

class Simulation {
 public:
  static absl::StatusOr<std::unique_ptr<Simulation>> Create(const SimulationOptions& options, Policy policy,
                                                            std::size_t num_requests);
  ~Simulation();

  // Decides for the request and hands it to the chosen engine. Requests come in the workload's order, at
  // ascending times; `at` replaces the request's own arrival.
  absl::Status Arrive(std::shared_ptr<const PreparedRequest> request, std::optional<Nanos> at = std::nullopt);
  // Plays what is left; afterwards the result is complete.
  absl::Status Finish();

  const PolicyResult& result() const;
  const Engine& engine(std::size_t endpoint) const;

 private:
  struct Impl;
  explicit Simulation(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_SIMULATION_H_
