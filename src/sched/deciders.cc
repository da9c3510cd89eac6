// always-disagg-pd-decider, always-disagg-multimodal-decider, prefix-based-pd-decider. (spec: scheduling.md
// 1.5)
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

class AlwaysDecider final : public Plugin, public Decider {
 public:
  using Plugin::Plugin;
  Verdict Decide(Context&, std::optional<Position>) const override { return Verdict::Yes(); }
};

class MultimodalDecider final : public Plugin, public Decider {
 public:
  using Plugin::Plugin;
  Verdict Decide(Context& context, std::optional<Position>) const override {
    const auto prompts = context.request.prompts;
    const bool any = std::any_of(prompts.begin(), prompts.end(),
                                 [](const Prompt& prompt) { return !prompt.items.empty(); });
    return any ? Verdict::Yes() : Verdict::No("the request has no multimodal items");
  }
};

// Prefill elsewhere pays when enough of the prompt is not cached where it is to be decoded.
class PrefixBasedDecider final : public Plugin, public Decider {
 public:
  PrefixBasedDecider(std::string type, std::string name, DataSlot<PrefixMatch> slot,
                     std::uint64_t non_cached_tokens, std::uint64_t prompt_tokens)
      : Plugin(std::move(type), std::move(name)),
        slot_(slot),
        non_cached_tokens_(non_cached_tokens),
        prompt_tokens_(prompt_tokens) {}

  Verdict Decide(Context& context, std::optional<Position> endpoint) const override {
    if (non_cached_tokens_ == 0) return Verdict::No("nonCachedTokens is 0");
    if (!endpoint) return Verdict::No("no endpoint to look at");
    const std::uint64_t tokens = context.request.token_count();
    if (tokens < prompt_tokens_) return Verdict::No("the prompt is shorter than promptTokens");
    if (tokens < non_cached_tokens_) return Verdict::No("the prompt is shorter than nonCachedTokens");
    const std::span<const PrefixMatch> matches = context.data.Read(slot_);
    if (matches.empty() || matches[*endpoint].total_blocks == 0) {
      return Verdict::No("nothing is known of the cached prefix");
    }
    const PrefixMatch& match = matches[*endpoint];
    const std::uint64_t cached = std::uint64_t{match.cached_blocks} * match.block_size;
    if (cached >= tokens || tokens - cached < non_cached_tokens_) {
      return Verdict::No("fewer than nonCachedTokens are not cached");
    }
    return Verdict::Yes();
  }

 private:
  DataSlot<PrefixMatch> slot_;
  std::uint64_t non_cached_tokens_;
  std::uint64_t prompt_tokens_;  // 0: any length
};

std::string_view StringField(const Value& parameters, std::string_view field) {
  if (const Value::Map* map = parameters.AsMap()) {
    for (const auto& [name, value] : *map) {
      if (name == field && value.AsString() != nullptr) return *value.AsString();
    }
  }
  return {};
}

// Whose prefix matches a decider reads that is not told. The producer that the pd-profile-handler names,
// which refers to the decider; else the only producer that is configured; else the approximate one, with a
// warning when others could be meant. A name other than the approximate producer's is never dropped in
// silence.
std::string DefaultProducer(PluginBuilder& builder) {
  std::string approximate(kApproxProducerType);
  if (builder.config() == nullptr || builder.compatibility().decider_reads_default_producer)
    return approximate;
  std::vector<std::string> producers;
  bool clear = true;
  for (const PluginSpec& spec : builder.config()->plugins) {
    const std::string& name = spec.name.empty() ? spec.type : spec.name;
    if (spec.type == kPdHandlerType) {
      std::string_view decider = StringField(spec.parameters, "deciderPluginName");
      if (decider.empty()) decider = kPrefixDeciderType;
      const std::string_view named = StringField(spec.parameters, "prefixMatchInfoProducerName");
      if (decider == builder.name() && !named.empty()) return std::string(named);
    }
    // The scorer may or may not produce by itself.
    const bool scorer = spec.type == "precise-prefix-cache-scorer";
    if (scorer || spec.type == kApproxProducerType || spec.type == kPreciseProducerType ||
        spec.type == "burst-prefix-cache-producer") {
      producers.push_back(name);
      clear = clear && !scorer;
    }
  }
  if (clear && producers.size() == 1) return producers[0];
  if (!producers.empty()) {
    builder.Warn(absl::StrCat(builder.name(),
                              ": prefixMatchInfoProducerName is not given, so the decider reads ",
                              approximate, "; configured are ", absl::StrJoin(producers, ", ")));
  }
  return approximate;
}

absl::StatusOr<std::unique_ptr<Plugin>> MakePrefixBased(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::int64_t non_cached_tokens = 0;
  std::int64_t prompt_tokens = 0;
  std::string producer;
  read.Optional("nonCachedTokens", &non_cached_tokens);
  read.Optional("promptTokens", &prompt_tokens);
  read.Optional("prefixMatchInfoProducerName", &producer);
  if (non_cached_tokens < 0) read.Reject("nonCachedTokens", absl::StrCat(non_cached_tokens), "at least 0");
  if (prompt_tokens < 0) read.Reject("promptTokens", absl::StrCat(prompt_tokens), "at least 0");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  if (non_cached_tokens == 0) {
    builder.Warn(absl::StrCat(builder.name(), ": nonCachedTokens is 0, so it never says yes"));
  }
  if (producer.empty()) producer = DefaultProducer(builder);
  return std::make_unique<PrefixBasedDecider>(
      builder.type(), builder.name(), builder.Consumes<PrefixMatch>(producer),
      static_cast<std::uint64_t>(non_cached_tokens), static_cast<std::uint64_t>(prompt_tokens));
}

template <typename T>
absl::StatusOr<std::unique_ptr<Plugin>> MakePlain(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<T>(builder.type(), builder.name());
}

}  // namespace

void RegisterDeciders(PluginRegistry& registry) {
  MustRegister(registry, "always-disagg-pd-decider", MakePlain<AlwaysDecider>);
  MustRegister(registry, "always-disagg-multimodal-decider", MakePlain<MultimodalDecider>);
  MustRegister(registry, kPrefixDeciderType, MakePrefixBased);
}

}  // namespace llmd::sched
