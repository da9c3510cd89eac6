#include "examples/trace_replay/policy.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "llmd/base/strings.h"
#include "llmd/sched/plugin.h"

namespace llmd::replay {
namespace {

using sched::Parameters;
using sched::PluginBuilder;
using sched::PluginSpec;

constexpr char kRoundRobin[] = "round-robin-picker";

// Endpoints in turn. The turn moves on when a decision is carried out, so asking twice gives the same answer.
// It is published as a datum, so that records of decisions have it.
class RoundRobinPicker final : public sched::Plugin,
                               public sched::DataProducer,
                               public sched::Picker,
                               public sched::PreRequest {
 public:
  explicit RoundRobinPicker(PluginBuilder& builder)
      : Plugin(builder.type(), builder.name()), turn_(builder.ProducesForRequest<Turn>()) {}

  void Produce(sched::Context& context, sched::ThreadState*) const override {
    context.data.Publish(turn_).next = next_;
  }

  std::size_t Pick(sched::Context& context, std::uint64_t,
                   std::span<sched::ScoredEndpoint> scored) const override {
    const Turn* turn = context.data.Read(turn_);
    const std::size_t next = turn != nullptr ? turn->next : 0;
    const std::size_t size = context.pool.size();
    const auto distance = [&](const sched::ScoredEndpoint& s) {
      return (s.position + size - next % size) % size;
    };
    std::iter_swap(scored.begin(),
                   std::min_element(scored.begin(), scored.end(),
                                    [&](const auto& a, const auto& b) { return distance(a) < distance(b); }));
    return 1;
  }

  absl::Status OnDecision(sched::Context&, const sched::Decision& decision, std::span<const std::string>,
                          sched::Dispatch&) override {
    next_ = decision.target() + 1;
    return absl::OkStatus();
  }

 private:
  sched::RequestSlot<Turn> turn_;
  sched::Position next_ = 0;
};

class EmptyMatcher final : public sched::PrefixMatcher {
 public:
  void Match(const index::NamespaceId&, BlockKeySpan, index::MatchResult& result) override { result.clear(); }
};

// Notes what was expected of the endpoint that a decision chose.
class PrefixProbe final : public sched::Plugin, public sched::PreRequest {
 public:
  PrefixProbe(std::string type, std::string name, sched::DataSlot<sched::PrefixMatch> slot, Expectation* out)
      : Plugin(std::move(type), std::move(name)), slot_(slot), out_(out) {}

  absl::Status OnDecision(sched::Context& context, const sched::Decision& decision,
                          std::span<const std::string>, sched::Dispatch&) override {
    *out_ = {};
    const std::span<const sched::PrefixMatch> matches = context.data.Read(slot_);
    if (matches.empty()) return absl::OkStatus();
    const sched::PrefixMatch& match = matches[decision.target()];
    *out_ = {.known = true, .blocks = match.cached_blocks, .block_tokens = match.block_size};
    return absl::OkStatus();
  }

 private:
  sched::DataSlot<sched::PrefixMatch> slot_;
  Expectation* out_;
};

// A scorer as the command line names it.
struct ScorerName {
  std::string_view name;
  std::string_view type;
  std::string_view producer;  // of a prefix scorer
};
constexpr ScorerName kScorers[] = {
    {"exact-prefix", "prefix-cache-scorer", kExactProducer},
    {"approx-prefix", "prefix-cache-scorer", kApproxProducer},
    {"queue", "queue-scorer", ""},
    {"kv", "kv-cache-utilization-scorer", ""},
    {"running", "running-requests-size-scorer", ""},
    {"active", "active-request-scorer", ""},
};

std::string ScorerNames() {
  std::vector<std::string> names;
  for (const ScorerName& scorer : kScorers) names.emplace_back(scorer.name);
  return absl::StrJoin(names, ", ");
}

void AddScorer(const ScorerName& scorer, double weight, Policy& policy) {
  PluginSpec spec{.name = std::string(scorer.name), .type = std::string(scorer.type), .parameters = {}};
  if (!scorer.producer.empty()) {
    const std::string producer(scorer.producer);
    spec.parameters = Parameters({{"prefixMatchInfoProducerName", producer}});
    policy.config.plugins.push_back({.name = "", .type = producer, .parameters = {}});
    (scorer.producer == kExactProducer ? policy.uses_exact : policy.uses_approx) = true;
  }
  policy.config.plugins.push_back(std::move(spec));
  policy.config.profiles.front().plugins.push_back({std::string(scorer.name), weight});
  absl::StrAppend(&policy.description, policy.description.empty() ? "" : ", ", ToAbsl(scorer.name), " ",
                  weight);
}

Policy EmptyPolicy(std::string name) {
  Policy policy;
  policy.name = std::move(name);
  policy.config.profiles.push_back({.name = "default", .plugins = {}});
  return policy;
}

Policy PickerOnly(std::string name, const std::string& picker) {
  Policy policy = EmptyPolicy(std::move(name));
  policy.description = picker;
  policy.text = absl::StrCat("policy ", policy.name);
  policy.config.plugins.push_back({.name = "", .type = picker, .parameters = {}});
  policy.config.profiles.front().plugins.push_back({picker, std::nullopt});
  return policy;
}

absl::StatusOr<Policy> ParseTerms(std::string name, std::string_view weights) {
  Policy policy = EmptyPolicy(std::move(name));
  std::vector<std::string_view> seen;
  for (const absl::string_view term : absl::StrSplit(ToAbsl(weights), ',')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(term, absl::MaxSplits('=', 1));
    const auto* scorer = std::find_if(std::begin(kScorers), std::end(kScorers),
                                      [&](const ScorerName& s) { return ToAbsl(s.name) == parts[0]; });
    if (scorer == std::end(kScorers)) {
      return absl::InvalidArgumentError(
          absl::StrCat("weights: scorer is \"", parts[0], "\", expected one of ", ScorerNames()));
    }
    double weight = 0;
    if (parts.size() != 2 || !absl::SimpleAtod(parts[1], &weight) || !(weight >= -1e6 && weight <= 1e6)) {
      return absl::InvalidArgumentError(absl::StrCat("weights: \"", term, "\" gives no weight, expected ",
                                                     parts[0], "=NUMBER with a number from -1e6 to 1e6"));
    }
    if (std::find(seen.begin(), seen.end(), scorer->name) != seen.end()) {
      return absl::InvalidArgumentError(absl::StrCat("weights: ", parts[0], " is given twice"));
    }
    seen.push_back(scorer->name);
    AddScorer(*scorer, weight, policy);
  }
  policy.text = absl::StrCat("weights ", ToAbsl(weights));
  if (policy.uses_exact || policy.uses_approx) {
    AddProbe(policy.uses_exact ? kExactProducer : kApproxProducer, policy);
  }
  return policy;
}

}  // namespace

const std::vector<std::string>& PolicyNames() {
  static const auto* const names =
      new std::vector<std::string>{"random", "round-robin", "least-queue", "approx", "exact"};
  return *names;
}

absl::StatusOr<Policy> MakePolicy(std::string_view name) {
  const std::string text(name);
  const auto mix = [&](std::string_view weights) {
    absl::StatusOr<Policy> policy = ParseTerms(text, weights);
    if (policy.ok()) policy->text = absl::StrCat("policy ", text);
    return policy;
  };
  if (name == "random") return PickerOnly(text, "random-picker");
  if (name == "round-robin") return PickerOnly(text, kRoundRobin);
  if (name == "least-queue") return mix("queue=1,running=1");
  if (name == "approx") return mix("approx-prefix=3,queue=2,kv=2");
  if (name == "exact") return mix(kDefaultWeights);
  return absl::InvalidArgumentError(
      absl::StrCat("policy: is \"", text, "\", expected one of ", absl::StrJoin(PolicyNames(), ", ")));
}

absl::StatusOr<Policy> MakeMix(std::string_view weights) { return ParseTerms("mix", weights); }

void AddProbe(const std::string& producer, Policy& policy) {
  policy.config.plugins.push_back(
      {.name = "", .type = kProbe, .parameters = Parameters({{"prefixMatchInfoProducerName", producer}})});
}

sched::Resources EmptyResources() {
  sched::Resources resources;
  resources.prefix_sources.resize(sched::kMaxPrefixSources);
  for (sched::PrefixSourceIndex& source : resources.prefix_sources) {
    source.new_matcher = [] { return std::make_unique<EmptyMatcher>(); };
  }
  return resources;
}

sched::DataCodecs MakeCodecs() {
  sched::DataCodecs codecs = sched::DataCodecs::Builtin();
  codecs.Add<Turn>();
  return codecs;
}

sched::PluginRegistry MakeRegistry(Expectation* expectation) {
  sched::PluginRegistry registry = sched::PluginRegistry::Builtin();
  // Both names are new, so registration cannot fail.
  registry
      .Register(kRoundRobin,
                [](PluginBuilder& builder) -> absl::StatusOr<std::unique_ptr<sched::Plugin>> {
                  return std::make_unique<RoundRobinPicker>(builder);
                })
      .IgnoreError();
  registry
      .Register(kProbe,
                [expectation](PluginBuilder& builder) -> absl::StatusOr<std::unique_ptr<sched::Plugin>> {
                  sched::ParameterReader read(builder.name(), builder.parameters());
                  std::string producer;
                  read.Optional("prefixMatchInfoProducerName", &producer);
                  if (absl::Status s = read.Finish(); !s.ok()) return s;
                  return std::make_unique<PrefixProbe>(builder.type(), builder.name(),
                                                       builder.Consumes<sched::PrefixMatch>(producer),
                                                       expectation);
                })
      .IgnoreError();
  return registry;
}

}  // namespace llmd::replay
