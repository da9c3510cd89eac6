#include "llmd/testing/test_bed.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/sched/config_file.h"
#include "llmd/sched/in_flight.h"
#include "src/testing/fatal.h"
#include "src/testing/literal_index.h"

namespace llmd::testing {

using sched::Decision;
using sched::Dispatch;
using sched::EndpointHandle;
using sched::Explanation;
using sched::Position;

namespace {

constexpr std::string_view kInFlightProducer = "inflight-load-producer";

// A TestRequest as the scheduler wants it.
struct ConcreteRequest {
  std::vector<std::vector<BlockKey>> keys;
  std::vector<std::vector<sched::KeyChain>> chains;
  std::vector<std::vector<sched::MultimodalItem>> items;
  std::vector<sched::Prompt> prompts;
  std::vector<sched::Header> headers;
  sched::Request request;
};

}  // namespace

struct TestBed::Impl {
  // What the pool knows of an endpoint by name.
  struct Named {
    std::unique_ptr<EndpointSetup> setup;
    EndpointHandle handle;                           // generation 0: not in the pool yet
    std::map<std::string, index::HolderId> holders;  // exact source, by tier
  };

  Impl() {
    resources.prefix_sources = {exact.source(false), approximate.source(true)};
    resources.states = std::make_shared<sched::PluginStates>();
  }

  Named* Find(std::string_view name) {
    const auto it =
        std::find_if(endpoints.begin(), endpoints.end(), [&](const auto& e) { return e.first == name; });
    return it == endpoints.end() ? nullptr : &it->second;
  }
  Named& Get(std::string_view name) {
    Named* named = Find(name);
    if (named == nullptr) Fatal(absl::StrCat("no endpoint is named ", ToAbsl(name)));
    return *named;
  }
  // Puts all that were named into the pool.
  void Materialize();
  const std::string& NameOf(Position position) const { return pool[position].metadata().name; }

  void Make(const TestRequest& request, ConcreteRequest& out);
  Outcome Run(sched::Scheduler& with, const TestRequest& request,
              std::optional<std::vector<Position>> candidates, std::uint64_t seed, bool carry_out);
  void Describe(const sched::Scheduler& with, const Decision& decision, const Explanation& explanation,
                Outcome& outcome) const;
  sched::Scheduler& Current();

  std::vector<std::pair<std::string, Named>> endpoints;  // by the order of naming
  sched::EndpointPool pool;
  TextKeys keys;
  LiteralIndex exact, approximate;
  std::uint16_t next_slot = 1;  // of holders, in both sources
  sched::PluginRegistry registry = sched::PluginRegistry::Builtin();
  sched::Resources resources;
  std::unique_ptr<sched::Scheduler> scheduler;
  std::vector<sched::Flight> flights;
  absl::Time now = absl::FromUnixSeconds(1'700'000'000);
};

void TestBed::Impl::Materialize() {
  for (auto& [name, named] : endpoints) {
    if (named.handle.generation != 0) continue;
    EndpointSetup& setup = *named.setup;
    if (setup.address_.empty()) setup.address_ = name;
    absl::StatusOr<EndpointHandle> handle =
        pool.Add({.name = name, .address = setup.address_, .port = setup.port_, .labels = setup.labels_});
    if (!handle.ok()) Fatal(handle.status().ToString());
    named.handle = *handle;
    pool.BindHolder(sched::kApproximateSource, {next_slot++, 1}, named.handle).IgnoreError();
  }
}

void TestBed::Impl::Make(const TestRequest& request, ConcreteRequest& out) {
  out.keys.reserve(request.prompts_.size() * 2);  // chains refer to the elements
  out.chains.reserve(request.prompts_.size());
  out.items.reserve(request.prompts_.size());
  const index::NamespaceId ns = index::MakeNamespace({.model = request.model_});
  for (const TestRequest::Text& text : request.prompts_) {
    const auto& exact_keys = out.keys.emplace_back(keys.Full(text.name, text.tokens, kExactBlockTokens));
    const auto& approximate_keys =
        out.keys.emplace_back(keys.All(text.name, text.tokens, kApproximateBlockTokens));
    out.chains.push_back(
        {{ns, kExactBlockTokens, exact_keys}, {ns, kApproximateBlockTokens, approximate_keys}});
    std::vector<sched::MultimodalItem>& items = out.items.emplace_back();
    for (std::size_t i = 0; i < text.items.size(); ++i) {
      items.push_back(
          {.modality = text.items[i].first, .hash = text.items[i].second, .offset = i, .length = 1});
    }
    out.prompts.push_back({.token_count = text.tokens, .chains = out.chains.back(), .items = items});
  }
  for (const auto& [name, value] : request.headers_) out.headers.push_back({name, value});
  out.request = {.id = request.id_,
                 .model = request.model_,
                 .prompts = out.prompts,
                 .headers = out.headers,
                 .priority = request.priority_,
                 .fairness_id = request.fairness_id_,
                 .max_output_tokens = request.max_output_tokens_};
}

Outcome TestBed::Impl::Run(sched::Scheduler& with, const TestRequest& request,
                           std::optional<std::vector<Position>> candidates, std::uint64_t seed,
                           bool carry_out) {
  ConcreteRequest concrete;
  Make(request, concrete);
  sched::ScheduleInput input{.request = concrete.request, .pool = pool, .now = now, .seed = seed};
  if (candidates) input.candidates = *candidates;
  sched::Workspace workspace(with);
  Decision decision;
  Explanation explanation;
  Outcome outcome;
  outcome.status = with.Schedule(input, workspace, decision, &explanation);
  Describe(with, decision, explanation, outcome);
  if (!outcome.status.ok() || !carry_out) return outcome;
  Dispatch dispatch;
  outcome.status = with.RunPreRequest(input, workspace, decision, dispatch);
  for (const sched::HeaderEdit& edit : dispatch.headers) {
    outcome.headers[edit.name] = edit.value.value_or("(removed)");
  }
  flights.push_back(std::move(dispatch.flight));
  return outcome;
}

void TestBed::Impl::Describe(const sched::Scheduler& with, const Decision& decision,
                             const Explanation& explanation, Outcome& outcome) const {
  outcome.refused_by = explanation.refused_by;
  outcome.explanation = explanation.ToString(pool);
  if (outcome.status.ok()) outcome.primary = with.profiles()[decision.primary];
  for (std::size_t p = 0; p < explanation.profiles.size(); ++p) {
    const Explanation::Profile& from = explanation.profiles[p];
    if (from.state == sched::ProfileState::kPending || from.state == sched::ProfileState::kSkipped) continue;
    Outcome::Profile& profile = outcome.profiles[std::string(from.name)];
    profile.ran = from.state == sched::ProfileState::kDone;
    for (const Position target : decision.profiles[p].targets) profile.targets.push_back(NameOf(target));
    for (const Explanation::Drop& drop : from.drops) {
      profile.drops.push_back({NameOf(drop.position), std::string(drop.filter), drop.reason});
    }
    for (std::size_t e = 0; e < from.totals.size(); ++e) {
      const std::string& endpoint = NameOf(from.totals[e].position);
      profile.totals[endpoint] = from.totals[e].score;
      for (std::size_t s = 0; s < from.scorers.size(); ++s) {
        std::map<std::string, double>& scores = profile.raw[std::string(from.scorers[s].name)];
        if (!std::isnan(from.raw_at(s, e))) scores[endpoint] = from.raw_at(s, e);
      }
    }
  }
}

sched::Scheduler& TestBed::Impl::Current() {
  if (scheduler == nullptr) {
    auto made = sched::Scheduler::Create(sched::SchedulerConfig::Default(), registry, resources);
    if (!made.ok()) Fatal(made.status().ToString());
    scheduler = *std::move(made);
  }
  return *scheduler;
}

const std::vector<std::string>& Outcome::targets() const { return profile(primary).targets; }

const Outcome::Profile& Outcome::profile(std::string_view name) const {
  static const Profile& none = *new Profile;
  const auto it = profiles.find(std::string(name));
  return it == profiles.end() ? none : it->second;
}

TestBed::TestBed() : impl_(std::make_unique<Impl>()) {}
TestBed::~TestBed() = default;

TestBed::EndpointSetup& TestBed::Endpoint(std::string_view name) {
  if (Impl::Named* named = impl_->Find(name)) return *named->setup;
  Impl::Named named;
  named.setup.reset(new EndpointSetup(*this, std::string(name)));
  impl_->endpoints.emplace_back(std::string(name), std::move(named));
  return *impl_->endpoints.back().second.setup;
}

void TestBed::Remove(std::string_view name) {
  impl_->Materialize();
  Impl::Named& named = impl_->Get(name);
  for (const auto& [tier, holder] : named.holders) impl_->exact.Forget(holder.slot);
  const std::vector<index::HolderId>& first = impl_->pool.holders(sched::kApproximateSource).first_of;
  impl_->approximate.Forget(first[named.handle.slot].slot);
  impl_->pool.Remove(named.handle);
  std::erase_if(impl_->endpoints, [&](const auto& endpoint) { return endpoint.first == name; });
}

sched::PluginRegistry& TestBed::registry() { return impl_->registry; }
sched::Resources& TestBed::resources() { return impl_->resources; }

absl::Status TestBed::Configure(const sched::SchedulerConfig& config) {
  auto made = sched::Scheduler::Create(config, impl_->registry, impl_->resources);
  if (!made.ok()) return made.status();
  impl_->scheduler = *std::move(made);
  return absl::OkStatus();
}

absl::Status TestBed::Configure(std::string_view yaml) {
  auto made = sched::LoadScheduler(yaml, {.source = "test", .allow_experimental = true}, impl_->registry,
                                   impl_->resources);
  if (!made.ok()) return made.status();
  impl_->scheduler = *std::move(made);
  return absl::OkStatus();
}

Outcome TestBed::Decide(const TestRequest& request, std::uint64_t seed) {
  impl_->Materialize();
  return impl_->Run(impl_->Current(), request, std::nullopt, seed, true);
}

Outcome TestBed::DecideAmong(const std::vector<std::string>& candidates, const TestRequest& request,
                             std::uint64_t seed) {
  impl_->Materialize();
  std::vector<Position> positions;
  positions.reserve(candidates.size());
  for (const std::string& name : candidates) positions.push_back(*impl_->pool.Find(impl_->Get(name).handle));
  std::sort(positions.begin(), positions.end());
  return impl_->Run(impl_->Current(), request, std::move(positions), seed, true);
}

Outcome TestBed::Ask(const TestRequest& request, std::uint64_t seed) {
  impl_->Materialize();
  return impl_->Run(impl_->Current(), request, std::nullopt, seed, false);
}

void TestBed::Finish(std::int64_t completion_tokens) {
  for (sched::Flight& flight : impl_->flights) {
    sched::HeaderEdits headers;
    flight.OnResponseHeaders(impl_->now, headers);
    flight.OnResponseBody({.now = impl_->now,
                           .first = true,
                           .last = true,
                           .usage = sched::TokenUsage{.completion_tokens = completion_tokens}});
  }
  impl_->flights.clear();
}

std::map<std::string, double> TestBed::Score(std::string_view type, const sched::Value& parameters,
                                             const TestRequest& request) {
  impl_->Materialize();
  sched::SchedulerConfig config;
  config.allow_experimental = true;
  config.plugins = {{.type = std::string(type), .parameters = parameters}};
  auto made = sched::Scheduler::Create(config, impl_->registry, impl_->resources);
  if (!made.ok()) Fatal(made.status().ToString());
  const Outcome outcome = impl_->Run(**made, request, std::nullopt, 1, false);
  const auto& raw = outcome.profile("default").raw;
  const auto it = raw.find(std::string(type));
  if (it == raw.end()) Fatal(absl::StrCat(ToAbsl(type), " gave no scores: ", outcome.status.ToString()));
  return it->second;
}

std::vector<std::string> TestBed::Filter(std::string_view type, const sched::Value& parameters,
                                         const TestRequest& request, std::uint64_t seed) {
  impl_->Materialize();
  sched::SchedulerConfig config;
  config.allow_experimental = true;
  config.plugins = {{.type = std::string(type), .parameters = parameters}};
  auto made = sched::Scheduler::Create(config, impl_->registry, impl_->resources);
  if (!made.ok()) Fatal(made.status().ToString());
  const Outcome outcome = impl_->Run(**made, request, std::nullopt, seed, false);
  std::vector<std::string> kept;
  for (const sched::Endpoint& endpoint : impl_->pool.endpoints()) {
    const std::string& name = endpoint.metadata().name;
    const auto& drops = outcome.profile("default").drops;
    const bool dropped =
        std::any_of(drops.begin(), drops.end(), [&](const auto& d) { return d.endpoint == name; });
    if (!dropped) kept.push_back(name);
  }
  return kept;
}

absl::Time TestBed::now() const { return impl_->now; }
void TestBed::Advance(absl::Duration duration) { impl_->now += duration; }

const sched::EndpointPool& TestBed::pool() {
  impl_->Materialize();
  return impl_->pool;
}

const sched::Scheduler& TestBed::scheduler() { return impl_->Current(); }

// Setting up an endpoint.

TestBed::EndpointSetup& TestBed::EndpointSetup::Role(std::string_view role) {
  return Label(sched::kRoleLabel, role);
}

TestBed::EndpointSetup& TestBed::EndpointSetup::Label(std::string_view name, std::string_view value) {
  if (bed_.impl_->Get(name_).handle.generation != 0)
    Fatal("endpoint " + name_ + ": labels come before all else");
  labels_[std::string(name)] = value;
  return *this;
}

TestBed::EndpointSetup& TestBed::EndpointSetup::Address(std::string_view address, std::uint16_t port) {
  if (bed_.impl_->Get(name_).handle.generation != 0)
    Fatal("endpoint " + name_ + ": the address comes before all else");
  address_ = address;
  port_ = port;
  return *this;
}

sched::Metrics& TestBed::EndpointSetup::metrics() {
  bed_.impl_->Materialize();
  return *bed_.impl_->pool.mutable_metrics(bed_.impl_->Get(name_).handle);
}

TestBed::EndpointSetup& TestBed::EndpointSetup::Waiting(std::int64_t requests) {
  metrics().waiting_requests = {requests, bed_.impl_->now};
  return *this;
}

TestBed::EndpointSetup& TestBed::EndpointSetup::Running(std::int64_t requests) {
  metrics().running_requests = {requests, bed_.impl_->now};
  return *this;
}

TestBed::EndpointSetup& TestBed::EndpointSetup::KvUsage(double fraction) {
  metrics().kv_cache_usage = {fraction, bed_.impl_->now};
  return *this;
}

TestBed::EndpointSetup& TestBed::EndpointSetup::Adapters(std::int64_t max_active,
                                                         std::vector<std::string> active,
                                                         std::vector<std::string> waiting) {
  auto state = std::make_shared<sched::AdapterState>();
  state->max_active = max_active;
  state->active = std::move(active);
  state->waiting = std::move(waiting);
  metrics().adapters = {std::move(state), bed_.impl_->now};
  return *this;
}

TestBed::EndpointSetup& TestBed::EndpointSetup::Attribute(std::string_view name, double value) {
  bed_.impl_->Materialize();
  bed_.impl_->pool.SetAttribute(bed_.impl_->Get(name_).handle, name, {value, bed_.impl_->now});
  return *this;
}

TestBed::EndpointSetup& TestBed::EndpointSetup::Holds(std::string_view text, std::size_t tokens,
                                                      std::string_view tier) {
  Impl& impl = *bed_.impl_;
  impl.Materialize();
  Impl::Named& named = impl.Get(name_);
  index::HolderId& holder = named.holders[std::string(tier)];
  if (holder.generation == 0) {
    holder = {impl.next_slot++, 1};
    impl.pool.BindHolder(sched::kExactSource, holder, named.handle, tier).IgnoreError();
  }
  impl.exact.Store(holder.slot, impl.keys.Full(text, tokens, kExactBlockTokens));
  impl.approximate.Store(impl.pool.holders(sched::kApproximateSource).first_of[named.handle.slot].slot,
                         impl.keys.All(text, tokens, kApproximateBlockTokens));
  return *this;
}

TestBed::EndpointSetup& TestBed::EndpointSetup::InFlight(std::int64_t requests, std::int64_t tokens) {
  Impl& impl = *bed_.impl_;
  impl.Materialize();
  impl.resources.states
      ->GetOrMake<sched::InFlightTable>(kInFlightProducer,
                                        [] { return std::make_shared<sched::InFlightTable>(); })
      ->Add(impl.Get(name_).handle, {requests, tokens});
  return *this;
}

}  // namespace llmd::testing
