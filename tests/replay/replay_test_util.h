// Small workloads and prepared requests for the tests of trace_replay.
#ifndef LLMD_TESTS_REPLAY_REPLAY_TEST_UTIL_H_
#define LLMD_TESTS_REPLAY_REPLAY_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "examples/trace_replay/generator.h"
#include "examples/trace_replay/prompt.h"
#include "examples/trace_replay/simulation.h"
#include "examples/trace_replay/trace_reader.h"
#include "examples/trace_replay/workload.h"

namespace llmd::replay {

inline std::string SampleTracePath() {
  return std::string(LLMD_SOURCE_DIR) + "/tests/replay/data/sample_trace.jsonl";
}

inline Workload SampleTrace() {
  absl::StatusOr<Trace> trace = ReadTraceFile(SampleTracePath(), {});
  EXPECT_TRUE(trace.ok()) << trace.status();
  return trace.ok() ? std::move(trace->requests) : Workload();
}

inline PromptMaker MakePromptMaker() {
  return *PromptMaker::Create({.approx_block_tokens = ApproxBlockTokens(), .exact_keys = true});
}

inline std::shared_ptr<const PreparedRequest> Prepare(std::size_t index, StreamId stream,
                                                      std::uint32_t prompt, std::uint32_t output,
                                                      Nanos arrival = 0) {
  WorkloadRequest request;
  request.arrival = arrival;
  request.prompt = {{stream, prompt}};
  request.output = {kAnswerStreams + index, output};
  return MakePromptMaker().Make(index, request);
}

// Runs `policy` over `workload` to the end.
inline std::unique_ptr<Simulation> RunSimulation(const Workload& workload, Policy policy,
                                                 const SimulationOptions& options) {
  auto simulation = Simulation::Create(options, std::move(policy), workload.size());
  EXPECT_TRUE(simulation.ok()) << simulation.status();
  const PromptMaker maker = MakePromptMaker();
  for (std::size_t i = 0; i < workload.size(); ++i) {
    const absl::Status status = (*simulation)->Arrive(maker.Make(i, workload[i]));
    EXPECT_TRUE(status.ok()) << status;
  }
  const absl::Status status = (*simulation)->Finish();
  EXPECT_TRUE(status.ok()) << status;
  return *std::move(simulation);
}

}  // namespace llmd::replay

#endif  // LLMD_TESTS_REPLAY_REPLAY_TEST_UTIL_H_
