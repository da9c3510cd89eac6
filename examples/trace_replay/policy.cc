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

constexpr char kExactProducer[] = "precise-prefix-cache-producer";
constexpr char kApproxProducer[] = "approx-prefix-cache-producer";
constexpr char kRoundRobin[] = "round-robin-picker";
constexpr char kProbe[] = "prefix-probe";

// Endpoints in turn. The turn moves on when a decision is carried out, so asking twice gives the same answer.
class RoundRobinPicker final : public sched::Plugin, public sched::Picker, public sched::PreRequest {
 public:
  using Plugin::Plugin;

  std::size_t Pick(sched::Context& context, std::uint64_t,
                   std::span<sched::ScoredEndpoint> scored) const override {
    const std::size_t size = context.pool.size();
    const auto distance = [&](const sched::ScoredEndpoint& s) {
      return (s.position + size - next_ % size) % size;
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
  sched::Position next_ = 0;
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
  if (policy.uses_exact || policy.uses_approx) {
    policy.config.plugins.push_back(
        {.name = "",
         .type = kProbe,
         .parameters = Parameters(
             {{"prefixMatchInfoProducerName", policy.uses_exact ? kExactProducer : kApproxProducer}})});
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
  if (name == "random") return PickerOnly(text, "random-picker");
  if (name == "round-robin") return PickerOnly(text, kRoundRobin);
  if (name == "least-queue") return ParseTerms(text, "queue=1,running=1");
  if (name == "approx") return ParseTerms(text, "approx-prefix=3,queue=2,kv=2");
  if (name == "exact") return ParseTerms(text, "exact-prefix=3,queue=2,kv=2");
  return absl::InvalidArgumentError(
      absl::StrCat("policy: is \"", text, "\", expected one of ", absl::StrJoin(PolicyNames(), ", ")));
}

absl::StatusOr<Policy> MakeMix(std::string_view weights) { return ParseTerms("mix", weights); }

sched::PluginRegistry MakeRegistry(Expectation* expectation) {
  sched::PluginRegistry registry = sched::PluginRegistry::Builtin();
  // Both names are new, so registration cannot fail.
  registry
      .Register(kRoundRobin,
                [](PluginBuilder& builder) -> absl::StatusOr<std::unique_ptr<sched::Plugin>> {
                  return std::make_unique<RoundRobinPicker>(builder.type(), builder.name());
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
