// The engine without a model: vLLM's continuous batching over llmd::worker's block pool, in simulated steps.
//
//   Engine engine = ...;
//   engine.Add(id, request, now);
//   Engine::Tick tick = engine.Begin(now);      // schedules one step, says how long it takes
//   ... wait tick.seconds ...
//   engine.End(now);                            // its tokens go to the requests' sinks
//
// Schedules as vLLM V1 does (spec: decode-worker.md 2): running requests first, then the queue in order of
// arrival while blocks last; when blocks run out the request admitted last is preempted and computed again.
// Blocks that a step fills are cached when it is scheduled; the KV events of a step are given out at its end.
// A request with remote KV (prefilled by another worker) holds its blocks while they arrive; a request that
// prefilled for another worker keeps its blocks until that worker has had time to fetch them.
//
// Tokens are made up: a function of the prompt, the seeds and the position alone, so they do not depend on
// batching, preemption or the worker. The text ends by itself after about mean_output_tokens.
//
// No clock, no I/O, no threads: time (in seconds) is an argument, so equal calls give equal results.
#ifndef EXAMPLES_SIM_WORKER_ENGINE_H_
#define EXAMPLES_SIM_WORKER_ENGINE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "examples/sim_worker/latency_model.h"
#include "examples/sim_worker/metrics.h"
#include "llmd/base/random.h"
#include "llmd/base/types.h"
#include "llmd/hash/vllm.h"
#include "llmd/worker/block_events.h"
#include "llmd/worker/kv_cache_manager.h"
#include "llmd/worker/request.h"

namespace llmd::sim {

using worker::RequestId;

struct EngineOptions {
  std::uint32_t num_gpu_blocks = 4096;  // null block included, as vLLM counts
  std::uint32_t block_size = 16;
  std::uint32_t max_model_len = 32'768;
  std::uint32_t max_num_seqs = 256;
  std::uint32_t max_num_batched_tokens = 8192;
  std::uint32_t long_prefill_token_threshold = 0;  // 0: none
  bool chunked_prefill = true;
  bool prefix_caching = true;
  bool kv_events = true;
  double watermark = 0;
  hash::VllmAlgorithm hash_algorithm = hash::VllmAlgorithm::kSha256;
  std::optional<std::string> python_hash_seed = {};  // absent: vLLM's fixed root
  std::uint32_t mean_output_tokens = 256;            // 0: only limits end a request
  std::uint64_t seed = 0;
  LatencyModel latency = {};
};

// One token, or the end of a request. The end comes once.
struct Output {
  std::uint32_t choice = 0;
  bool has_token = false;
  TokenId token = 0;
  FinishReason finish = FinishReason::kNone;
  std::optional<TokenId> stop_token = {};  // the stop_token_ids member that ended it
  std::uint32_t cached_tokens = 0;         // of the prompt, not computed here; known from the first token on
  std::vector<worker::BlockId> held_blocks =
      {};  // with the end of a request that prefilled for another worker
};

class OutputSink {
 public:
  virtual ~OutputSink() = default;
  virtual void OnOutput(Output output) = 0;
};

struct EngineRequest {
  std::vector<TokenId> prompt = {};  // at least one
  std::uint32_t max_tokens = 16;     // at least 1; prompt and output fit max_model_len
  std::uint32_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<TokenId> stop_token_ids = {};
  std::uint64_t seed = 0;
  std::string cache_salt = {};
  std::string lora_name = {};
  bool remote_decode = false;   // prefill for another worker: keep the blocks for it
  bool remote_prefill = false;  // another worker has the prompt's KV
  std::uint32_t n = 1;          // for the metrics
  double arrival = 0;
  std::uint32_t choice = 0;  // given back in outputs
  std::shared_ptr<OutputSink> sink = {};
};

class Engine {
 public:
  using EventSink = std::function<void(const worker::BlockEvents&)>;

  // InvalidArgument names the option. `metrics` outlives the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options, Metrics& metrics,
                                                        EventSink on_events);
  ~Engine();

  // `id` is new; `request` keeps the limits told there (the API has checked them).
  void Add(RequestId id, EngineRequest request, double now);
  // Ends the request without a further token. Unknown and ended ids are ignored.
  void Abort(RequestId id, double now);
  // False when blocks are held.
  bool ResetPrefixCache();

  struct Tick {
    enum class Kind : std::uint8_t {
      kIdle,  // nothing to do before the next Add()
      kWait,  // nothing to do for `seconds`, or until the next Add()
      kStep,  // a step runs for `seconds`; then call End()
    };
    Kind kind = Kind::kIdle;
    double seconds = 0;
  };
  Tick Begin(double now);
  void End(double now);
  bool in_step() const { return in_step_; }

  const EngineOptions& options() const { return options_; }
  const worker::BlockPool& pool() const { return kv_.pool(); }
  std::size_t num_requests() const { return entries_.size(); }  // that have not ended

 private:
  struct Entry;
  struct Scheduled {
    Entry* entry;  // null: aborted meanwhile
    std::uint32_t tokens;
  };
  struct Sending {
    RequestId id;
    double until;
  };

  Engine(const EngineOptions& options, hash::VllmHasher hasher, worker::KvCacheManager kv, Metrics& metrics,
         EventSink on_events);

  void ScheduleRunning(std::uint32_t& budget, bool& preempted, double now);
  void ScheduleQueues(std::uint32_t& budget, double now);
  // What became of the request at the head of a queue.
  enum class Admission : std::uint8_t { kRunning, kLoading, kMustWait };
  Admission Admit(Entry& entry, std::uint32_t& budget, double now);
  bool StartLoad(Entry& entry, const worker::PrefixHit& hit, double now);
  void PromoteLoads(double now);
  void ReleaseSent(double now);
  std::uint32_t ReservedBlocks() const;
  void Preempt(Entry& entry);
  TokenId NextToken(Entry& entry);
  void EmitToken(Entry& entry, double now);
  void Finish(Entry& entry, FinishReason reason, Output output, double now);
  void Remove(Entry& entry);
  void FlushEvents();
  void UpdateGauges();

  EngineOptions options_;
  hash::VllmHasher hasher_;
  worker::KvCacheManager kv_;
  Metrics& metrics_;
  EventSink on_events_;
  Random random_;

  absl::flat_hash_map<RequestId, std::unique_ptr<Entry>> entries_;
  std::deque<Entry*> waiting_;   // hold no blocks
  std::deque<Entry*> loaded_;    // hold blocks whose remote KV has arrived; go before waiting_
  std::vector<Entry*> loading_;  // hold blocks whose remote KV is on its way
  std::vector<Entry*> running_;
  std::vector<Sending> sending_;  // ended, but another worker still fetches the blocks
  std::vector<Scheduled> scheduled_;
  bool in_step_ = false;
  bool loras_changed_ = false;
  worker::BlockEvents events_;
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_ENGINE_H_
