// One line of log for each decision: which request went where, and why.
//
//   DecisionLog log({.json = true, .verbosity = 2}, nullptr);
//   observers.push_back(&log);
//
// As text:
//   2026-01-31T12:00:00.000123Z I decision request_id="r-1" model="m" target_model="m"
//   endpoint="10.0.0.1:8000" prefill_endpoint="" tokens=64 cached_blocks=3 total_blocks=4 reason="ok"
//   tokenizing_us=10 queued_us=0 deciding_us=150
// (one line), or with `json` the same fields as a JSON object. Texts from clients are quoted and escaped, so
// none can start a line, a field or a terminal command.
//
// Verbosity (-v): 0 only refused requests; 1 and more every decision; 4 and more also the end of each
// request; 5 and more also the scores and drops of each decision.
//
// Lines are formatted by the deciding thread and written by a thread of the log's own, through a bounded
// queue: when it is full, the oldest lines are dropped and counted. Any thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_DECISION_LOG_H_
#define EXAMPLES_GATEWAY_SCHEDULER_DECISION_LOG_H_

#include <cstddef>
#include <memory>
#include <string>

#include "examples/gateway_scheduler/observer.h"

namespace spdlog::sinks {
class sink;  // spdlog/sinks/sink.h
}  // namespace spdlog::sinks

namespace llmd::host {

struct DecisionLogOptions {
  bool json = false;
  int verbosity = 1;
  std::size_t queue_lines = 8192;
};

class DecisionLog final : public Observer {
 public:
  // `sink`: null for stderr. Its format becomes the bare line.
  DecisionLog(const DecisionLogOptions& options, std::shared_ptr<spdlog::sinks::sink> sink);
  ~DecisionLog() override;  // writes what is queued

  bool wants_explanations() const override;
  void OnDecision(const DecisionReport& report) override;
  void OnFinished(const FinishReport& report) override;

  std::size_t dropped_lines() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_DECISION_LOG_H_
