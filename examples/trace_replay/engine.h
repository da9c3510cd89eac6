// One simulated endpoint: vLLM's continuous batching over the project's own KV cache manager, in virtual
// time.
//
//   engine.AdvanceTo(t);          // every step that ends by t
//   engine.Submit(request, t);    // joins the queue; computed from the next step on
//   engine.AdvanceTo(kForever);   // until all is done
//
// A step gives each running request its next tokens (decode: one; prefill: what the token budget allows),
// then admits waiting ones in order; a request that finds no block takes those of the youngest running one,
// which is computed again later (spec: decode-worker.md 2.3, 2.4). Its blocks become findable when it is
// scheduled; its tokens exist, and its KV events are handed out, when it ends. Not thread safe.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_ENGINE_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "examples/trace_replay/latency_model.h"
#include "examples/trace_replay/prompt.h"
#include "examples/trace_replay/workload.h"
#include "llmd/worker/block_events.h"
#include "llmd/worker/kv_cache_manager.h"

namespace llmd::replay {

struct EngineOptions {
  std::uint32_t capacity_blocks = kDefaultCapacityBlocks;  // usable ones, of 16 tokens
  std::uint32_t max_running = 256;                         // vLLM: max_num_seqs
  std::uint32_t max_batched_tokens = 8192;                 // of one step; at least max_running
  LatencyModel latency = {};
  bool publish_events = false;
};

// What became of a request.
struct ServedRequest {
  std::size_t index = 0;  // in the workload
  Nanos first_token = 0;
  Nanos finished = 0;
  std::uint32_t hit_tokens = 0;  // of the prompt, found in the pool on admission
  std::uint32_t preemptions = 0;
};

struct EngineTotals {
  Nanos busy = 0;  // time in steps
  std::uint64_t steps = 0;
  std::uint64_t requests = 0;       // finished
  std::uint64_t prompt_tokens = 0;  // of finished requests
  std::uint64_t hit_tokens = 0;
  std::uint64_t output_tokens = 0;
  std::uint64_t computed_tokens = 0;  // prefill and decode, repetitions after preemption included
  std::uint64_t preemptions = 0;
};

class Engine {
 public:
  using ServedSink = std::function<void(const ServedRequest&)>;
  // A request has its first token.
  using FirstTokenSink = std::function<void(std::size_t index, Nanos at)>;
  // Events of one step, at its end.
  using EventSink = std::function<absl::Status(Nanos at, const worker::BlockEvents&)>;

  static absl::StatusOr<Engine> Create(const EngineOptions& options, ServedSink served, EventSink events,
                                       FirstTokenSink first_token = {});

  // `now` is not before the last AdvanceTo(). InvalidArgument when the pool could never hold the request.
  absl::Status Submit(std::shared_ptr<const PreparedRequest> request, Nanos now);
  absl::Status AdvanceTo(Nanos now);

  std::size_t waiting() const { return waiting_.size(); }
  std::size_t running() const { return running_.size(); }
  double cache_usage() const { return kv_.usage(); }
  const EngineTotals& totals() const { return totals_; }
  const worker::KvCacheManager& kv() const { return kv_; }

 private:
  struct Active {
    std::shared_ptr<const PreparedRequest> source;
    worker::Request view;
    std::uint32_t generated = 0;
    std::uint32_t scheduled = 0;  // tokens of the step under way
    std::uint32_t hit_tokens = 0;
    bool admitted_before = false;
    Nanos first_token = 0;
  };

  Engine(const EngineOptions& options, worker::KvCacheManager kv, ServedSink served, EventSink events,
         FirstTokenSink first_token);

  absl::Status StartStep(Nanos now);
  absl::Status ScheduleRunning(std::uint32_t& budget, bool& preempted);
  absl::Status ScheduleWaiting(std::uint32_t& budget);
  absl::Status PreemptLast();
  absl::Status FinishStep();
  absl::Status FinishRequest(Active& active);

  EngineOptions options_;
  worker::KvCacheManager kv_;
  ServedSink served_;
  EventSink events_;
  FirstTokenSink first_token_;
  std::deque<std::unique_ptr<Active>> waiting_;
  std::vector<std::unique_ptr<Active>> running_;  // by admission
  bool stepping_ = false;
  Nanos step_end_ = 0;
  worker::BlockEvents step_events_;
  EngineTotals totals_;
};

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_ENGINE_H_
