#include "examples/trace_replay/simulation.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "llmd/base/random.h"
#include "llmd/events/decoder.h"
#include "llmd/events/event.h"
#include "llmd/index/approx_index.h"
#include "llmd/index/prefix_index.h"
#include "llmd/sched/decision.h"
#include "llmd/sched/decision_record.h"
#include "llmd/sched/endpoint_pool.h"
#include "llmd/sched/explanation.h"
#include "llmd/sched/request.h"
#include "llmd/worker/event_writer.h"

namespace llmd::replay {
namespace {

// llm-d's approx-prefix-cache-producer as configured by default.
const sched::ApproxPrefixOptions kApprox;

absl::Time VirtualTime(Nanos at) { return absl::UnixEpoch() + absl::Nanoseconds(at); }

std::uint32_t ElapsedNs(std::chrono::steady_clock::time_point since) {
  const auto ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - since).count();
  return static_cast<std::uint32_t>(std::min<std::int64_t>(ns, std::numeric_limits<std::uint32_t>::max()));
}

}  // namespace

std::uint32_t ApproxBlockTokens() { return kApprox.BlockSize(kBlockTokens); }

struct Simulation::Impl {
  Impl(const SimulationOptions& o, Policy p) : options(o), policy(std::move(p)) {}

  absl::Status Build(std::size_t num_requests);
  absl::Status AddEndpoint(std::uint32_t position);
  absl::Status AdvanceTo(Nanos now);
  absl::Status Arrive(std::shared_ptr<const PreparedRequest> request, Nanos now);
  absl::Status Publish(std::uint32_t endpoint, Nanos at, const worker::BlockEvents& events);
  void Scrape(Nanos at);
  class PoolMatcher;
  absl::Status FlushRecords(std::size_t keep);
  void Explain(const PreparedRequest& request);

  const SimulationOptions options;
  const Policy policy;

  std::unique_ptr<index::PrefixIndex> exact;
  std::unique_ptr<index::ApproxIndex> approx;
  std::unique_ptr<ingest::KvEventIngestor> ingestor;
  sched::EndpointPool pool;
  std::vector<sched::EndpointHandle> handles;
  std::vector<ingest::PublisherId> publishers;
  std::vector<Engine> engines;
  const PreparedRequest* deciding = nullptr;
  Nanos scraped = -1;

  Expectation expectation;
  std::unique_ptr<sched::Scheduler> scheduler;
  std::optional<sched::Workspace> workspace;
  sched::Decision decision;
  sched::Explanation explanation;
  std::vector<sched::Flight> flights;  // by request, until it is served
  std::optional<sched::DecisionLogWriter> recorder;
  std::vector<std::byte> records;  // not handed out yet
  Random seeds{0};

  worker::EventWriter writer;
  events::EventDecoder decoder;
  events::EventBatch batch;
  std::vector<std::byte> payload;
  absl::Status bind_status;

  PolicyResult result;
};

// Stands in for the exact index: finds the leading blocks of the request at hand in every pool.
class Simulation::Impl::PoolMatcher final : public sched::PrefixMatcher {
 public:
  explicit PoolMatcher(const Impl& simulation) : simulation_(simulation) {}

  void Match(const index::NamespaceId&, BlockKeySpan chain, index::MatchResult& result) override {
    result.clear();
    if (simulation_.deciding == nullptr) return;
    const std::vector<hash::Digest>& digests = simulation_.deciding->digests;
    for (std::size_t i = 0; i < simulation_.engines.size(); ++i) {
      const worker::BlockPool& pool = simulation_.engines[i].kv().pool();
      std::uint32_t depth = 0;
      while (depth < chain.size() && pool.Find(digests[depth]) != worker::kNoBlock) ++depth;
      if (depth > 0) result.push_back({static_cast<std::uint32_t>(i), depth});
    }
  }

 private:
  const Impl& simulation_;
};

absl::Status Simulation::Impl::Build(std::size_t num_requests) {
  if (options.endpoints < 1 || options.endpoints > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat("endpoints: is ", options.endpoints, ", expected 1 to 4096"));
  }
  seeds = Random(options.seed);
  result.policy = policy.name;
  result.description = policy.description;
  result.has_expectation = policy.uses_exact || policy.uses_approx;
  result.requests.resize(num_requests);
  result.endpoints.resize(options.endpoints);
  result.wall.decision_ns.reserve(num_requests);

  sched::Resources resources;
  resources.prefix_sources.resize(2);
  if (policy.uses_exact && !options.event_path) {
    resources.prefix_sources[sched::kExactSource] = {[this] { return std::make_unique<PoolMatcher>(*this); },
                                                     nullptr};
  } else if (policy.uses_exact) {
    auto made = index::PrefixIndex::Create({.max_holders = options.endpoints});
    if (!made.ok()) return made.status();
    exact = *std::move(made);
    ingestor = std::make_unique<ingest::KvEventIngestor>(*exact, ingest::IngestOptions{});
    resources.prefix_sources[sched::kExactSource] = sched::ExactIndex(*exact);
  }
  if (policy.uses_approx) {
    auto made = index::ApproxIndex::Create({.max_holders = options.endpoints});
    if (!made.ok()) return made.status();
    approx = *std::move(made);
    resources.prefix_sources[sched::kApproximateSource] = sched::ApproximateIndex(*approx);
  }
  engines.reserve(options.endpoints);
  for (std::uint32_t i = 0; i < options.endpoints; ++i) {
    if (absl::Status s = AddEndpoint(i); !s.ok()) return s;
  }
  if (ingestor != nullptr) {
    ingestor->SetHolderCallback([this](ingest::PublisherId publisher, index::HolderId holder,
                                       const index::HolderOptions& holder_options) {
      const auto it = std::find(publishers.begin(), publishers.end(), publisher);
      bind_status.Update(pool.BindHolder(sched::kExactSource, holder, handles[it - publishers.begin()],
                                         holder_options.tier));
    });
  }
  absl::StatusOr<std::unique_ptr<sched::Scheduler>> made =
      sched::Scheduler::Create(policy.config, MakeRegistry(&expectation), resources);
  if (!made.ok()) return made.status();
  scheduler = *std::move(made);
  workspace.emplace(*scheduler);
  flights.resize(num_requests);
  if (options.record == nullptr) return absl::OkStatus();
  recorder.emplace(*scheduler, sched::RecordOptions{.text = policy.text, .codecs = MakeCodecs()});
  recorder->Begin(records);
  return absl::OkStatus();
}

absl::Status Simulation::Impl::FlushRecords(std::size_t keep) {
  if (recorder == std::nullopt || records.size() <= keep) return absl::OkStatus();
  absl::Status status = options.record(records);
  records.clear();
  return status;
}

absl::Status Simulation::Impl::AddEndpoint(std::uint32_t position) {
  const std::string address = absl::StrFormat("10.0.%d.%d", position / 250, position % 250 + 1);
  sched::EndpointMetadata metadata;
  metadata.name = absl::StrCat("gpu-", position);
  metadata.address = address;
  metadata.port = 8000;
  auto handle = pool.Add(std::move(metadata));
  if (!handle.ok()) return handle.status();
  handles.push_back(*handle);
  sched::Metrics& metrics = *pool.mutable_metrics(*handle);
  metrics.cache_block_size = kBlockTokens;
  metrics.cache_num_blocks = options.engine.capacity_blocks;
  const std::string host_port = address + ":8000";
  if (ingestor != nullptr) {
    auto publisher = ingestor->AddPublisher({.endpoint = host_port, .model = std::string(kModel)});
    if (!publisher.ok()) return publisher.status();
    publishers.push_back(*publisher);
  }
  if (policy.uses_exact && !options.event_path) {
    const index::HolderId holder{static_cast<std::uint16_t>(position), 1};
    if (absl::Status s = pool.BindHolder(sched::kExactSource, holder, *handle); !s.ok()) return s;
  }
  if (approx != nullptr) {
    const std::size_t capacity = options.approx_capacity_blocks > 0
                                     ? options.approx_capacity_blocks
                                     : kApprox.LruCapacity(options.engine.capacity_blocks);
    auto holder = approx->AddHolder(host_port, capacity);
    if (!holder.ok()) return holder.status();
    if (absl::Status s = pool.BindHolder(sched::kApproximateSource, *holder, *handle); !s.ok()) return s;
  }
  EngineOptions engine_options = options.engine;
  engine_options.publish_events = ingestor != nullptr;
  absl::StatusOr<Engine> engine = Engine::Create(
      engine_options,
      [this](const ServedRequest& served) {
        RequestResult& request = result.requests[served.index];
        request.first_token = served.first_token;
        request.finished = served.finished;
        request.hit_tokens = served.hit_tokens;
        request.preemptions = served.preemptions;
        flights[served.index].OnResponseBody({.now = VirtualTime(served.finished), .last = true});
      },
      [this, position](Nanos at, const worker::BlockEvents& events) { return Publish(position, at, events); },
      [this](std::size_t index, Nanos at) {
        flights[index].OnResponseBody({.now = VirtualTime(at), .first = true});
      });
  if (!engine.ok()) return engine.status();
  engines.push_back(*std::move(engine));
  return absl::OkStatus();
}

absl::Status Simulation::Impl::Publish(std::uint32_t endpoint, Nanos at, const worker::BlockEvents& events) {
  writer.Encode(events, Seconds(at), payload);
  ++result.events.batches;
  result.events.bytes += payload.size();
  if (absl::Status s = decoder.Decode(payload, batch); !s.ok()) return s;
  if (batch.skipped_events() > 0) return batch.first_error();
  absl::StatusOr<bool> orphans = ingestor->Apply(publishers[endpoint], batch);
  return orphans.ok() ? bind_status : orphans.status();
}

absl::Status Simulation::Impl::AdvanceTo(Nanos now) {
  for (Engine& engine : engines) {
    if (absl::Status s = engine.AdvanceTo(now); !s.ok()) return s;
  }
  return absl::OkStatus();
}

void Simulation::Impl::Scrape(Nanos at) {
  scraped = at;
  const absl::Time time = VirtualTime(at);
  for (std::size_t i = 0; i < engines.size(); ++i) {
    sched::Metrics& metrics = *pool.mutable_metrics(handles[i]);
    metrics.waiting_requests = {static_cast<std::int64_t>(engines[i].waiting()), time};
    metrics.running_requests = {static_cast<std::int64_t>(engines[i].running()), time};
    metrics.kv_cache_usage = {engines[i].cache_usage(), time};
  }
}

absl::Status Simulation::Impl::Arrive(std::shared_ptr<const PreparedRequest> prepared, Nanos now) {
  // Only the last scrape before the decision can matter to it.
  const Nanos tick = options.scrape_interval > 0 ? now - now % options.scrape_interval : now;
  if (tick > scraped) {
    if (absl::Status s = AdvanceTo(tick); !s.ok()) return s;
    Scrape(tick);
  }
  if (absl::Status s = AdvanceTo(now); !s.ok()) return s;
  if (options.scrape_interval <= 0) Scrape(now);

  const sched::KeyChain chains[] = {
      {ingest::RequestNamespace(kModel, "", kBlockTokens), kBlockTokens, prepared->exact_keys},
      {ingest::RequestNamespace(kModel, "", ApproxBlockTokens()), ApproxBlockTokens(),
       prepared->approx_keys}};
  const sched::Prompt prompt{.token_count = prepared->prompt_tokens,
                             .tokens = TokenSpan(prepared->tokens).first(prepared->prompt_tokens),
                             .chains = chains};
  const std::string id = absl::StrCat("request-", prepared->index);
  const sched::Request request{.id = id,
                               .model = kModel,
                               .prompts = {&prompt, 1},
                               .headers = {},
                               .max_output_tokens = prepared->output_tokens};
  const sched::ScheduleInput input{
      .request = request, .pool = pool, .now = VirtualTime(now), .seed = seeds.Next()};
  const bool explain = result.wall.decision_ns.size() < options.explain;

  deciding = prepared.get();
  sched::Dispatch dispatch;
  expectation = {};
  auto start = std::chrono::steady_clock::now();
  absl::Status status =
      scheduler->Schedule(input, *workspace, decision, explain || recorder ? &explanation : nullptr);
  std::uint32_t elapsed = ElapsedNs(start);
  if (recorder) {
    if (absl::Status s = recorder->Append(input, *workspace, decision, explanation, status, records);
        !s.ok()) {
      return s;
    }
    if (absl::Status s = FlushRecords(std::size_t{1} << 20); !s.ok()) return s;
  }
  start = std::chrono::steady_clock::now();
  if (status.ok()) status = scheduler->RunPreRequest(input, *workspace, decision, dispatch);
  elapsed += ElapsedNs(start);
  if (!status.ok()) return status;
  flights[prepared->index] = std::move(dispatch.flight);
  result.wall.decision_ns.push_back(elapsed);
  if (explain) Explain(*prepared);

  const std::uint32_t target = decision.target();
  RequestResult& row = result.requests[prepared->index];
  row.endpoint = target;
  row.arrival = now;
  row.prompt_tokens = prepared->prompt_tokens;
  // The engine computes the last token in any case.
  const std::uint64_t usable = (prepared->prompt_tokens - 1) / kBlockTokens * kBlockTokens;
  row.expected_tokens = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(std::uint64_t{expectation.blocks} * expectation.block_tokens, usable));
  ++result.endpoints[target].routed_requests;
  return engines[target].Submit(std::move(prepared), now);
}

void Simulation::Impl::Explain(const PreparedRequest& request) {
  absl::StrAppendFormat(&result.explanations, "%s, request %d at %.3f s, %d tokens: %s", policy.name,
                        request.index, Seconds(request.arrival), request.prompt_tokens,
                        explanation.ToString(pool));
}

Simulation::Simulation(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Simulation::~Simulation() = default;

absl::StatusOr<std::unique_ptr<Simulation>> Simulation::Create(const SimulationOptions& options,
                                                               Policy policy, std::size_t num_requests) {
  auto impl = std::make_unique<Impl>(options, std::move(policy));
  if (absl::Status s = impl->Build(num_requests); !s.ok()) return s;
  return std::unique_ptr<Simulation>(new Simulation(std::move(impl)));
}

absl::Status Simulation::Arrive(std::shared_ptr<const PreparedRequest> request, std::optional<Nanos> at) {
  const Nanos now = at.value_or(request->arrival);
  return impl_->Arrive(std::move(request), now);
}

absl::Status Simulation::Finish() {
  if (absl::Status s = impl_->AdvanceTo(kForever); !s.ok()) return s;
  for (std::size_t i = 0; i < impl_->engines.size(); ++i) {
    impl_->result.endpoints[i].totals = impl_->engines[i].totals();
  }
  if (impl_->ingestor != nullptr) impl_->result.events.ingest = impl_->ingestor->counters();
  return impl_->FlushRecords(0);
}

const PolicyResult& Simulation::result() const { return impl_->result; }
const Engine& Simulation::engine(std::size_t endpoint) const { return impl_->engines[endpoint]; }

}  // namespace llmd::replay
