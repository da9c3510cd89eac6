#include "llmd/sched/config_env.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

constexpr std::int64_t kCharactersPerToken = 4;

// What feeds a scorer of cached prefixes.
enum class Index { kNone, kPrecise, kApproximate };

struct ScorerVariable {
  std::string_view variable;  // without ENABLE_ and _WEIGHT
  std::string_view type;
  std::string_view name;
  Index index = Index::kNone;
};
constexpr ScorerVariable kScorers[] = {
    {"KVCACHE_AWARE_SCORER", "prefix-cache-scorer", "kvcache-aware-scorer", Index::kPrecise},
    {"LOAD_AWARE_SCORER", "load-aware-scorer", "load-aware-scorer"},
    {"PREFIX_AWARE_SCORER", "prefix-cache-scorer", "prefix-aware-scorer", Index::kApproximate},
    {"SESSION_AWARE_SCORER", "session-affinity-scorer", "session-affinity-scorer"},
    {"GIE_KVCACHE_UTILIZATION_SCORER", "kv-cache-utilization-scorer", "kv-cache-utilization-scorer"},
    {"GIE_QUEUE_SCORER", "queue-scorer", "queue-scorer"},
    {"GIE_PREFIX_SCORER", "prefix-cache-scorer", "gie-prefix-scorer", Index::kApproximate}};
constexpr std::string_view kFilters[] = {"GIE_LEAST_KVCACHE_FILTER", "GIE_LEAST_QUEUE_FILTER",
                                         "GIE_LORA_AFFINITY_FILTER", "GIE_LOW_QUEUE_FILTER",
                                         "GIE_SHEDDABLE_CAPACITY_FILTER"};

// Names that look like ours: a deployment that sets another of these expects something to happen.
bool IsOfThisKind(std::string_view name) {
  const auto contains = [name](std::string_view part) { return name.find(part) != std::string_view::npos; };
  for (const std::string_view prefix :
       {"PD_", "KVCACHE_", "PREFIX_SCORER_", "PREFIX_CACHE_", "SESSION_SCORING_", "SESSION_HEADER_",
        "SESSION_STICKY_", "SESSION_HASH_", "LOAD_AWARE_", "PREFILL_ENABLE_", "PREFILL_KVCACHE_",
        "DECODE_ENABLE_", "ENABLE_GIE_"}) {
    if (name.starts_with(prefix)) return true;
  }
  return contains("_SCORER_WEIGHT") || contains("_FILTER_WEIGHT") ||
         (name.starts_with("ENABLE_") && (name.ends_with("_SCORER") || name.ends_with("_FILTER")));
}

std::int64_t TokensOf(std::int64_t characters) {
  return std::max<std::int64_t>(1, (characters - 1) / kCharactersPerToken + 1);
}

class Translator {
 public:
  Translator(const std::map<std::string, std::string>& variables, std::vector<std::string>* warnings)
      : variables_(variables), warnings_(warnings) {}

  SchedulerConfig Run() {
    config_.source = "environment";
    disaggregated_ = Flag("PD_ENABLED");
    ProfileSpec decode{disaggregated_ ? "decode" : "default", {{.plugin = "decode-filter"}}};
    ProfileSpec prefill{"prefill", {{.plugin = "prefill-filter"}}};
    AddPlugin("decode-filter", "decode-filter");
    ReadScorers("", decode, true);
    ReadScorers("PREFILL_", prefill, disaggregated_);
    ReadFilters("");
    ReadFilters("PREFILL_");
    if (disaggregated_) {
      // Feeds the decision on prefill even when it is not wanted as a scorer.
      if (!used_.contains("decode/prefix-aware-scorer")) AddScorer(kScorers[2], decode, 0);
      AddDisaggregation();
      prefill.plugins.push_back({.plugin = std::string(kMaxScorePickerType)});
      config_.profiles.push_back(std::move(prefill));
    }
    AddProducers();
    AddPlugin(kMaxScorePickerType, kMaxScorePickerType);
    decode.plugins.push_back({.plugin = std::string(kMaxScorePickerType)});
    config_.profiles.push_back(std::move(decode));
    ReadRest();
    return std::move(config_);
  }

 private:
  void Warn(std::string_view variable, std::string_view text) {
    if (warnings_ != nullptr) warnings_->push_back(absl::StrCat(ToAbsl(variable), ": ", ToAbsl(text)));
  }
  // Null when not set or empty.
  const std::string* Find(std::string_view variable) {
    handled_.emplace(variable);
    const auto it = variables_.find(std::string(variable));
    return it == variables_.end() || it->second.empty() ? nullptr : &it->second;
  }
  bool Flag(std::string_view variable) {
    const std::string* text = Find(variable);
    if (text == nullptr || *text == "true") return text != nullptr;
    if (*text != "false") Warn(variable, absl::StrCat("\"", *text, "\" is off, for only true is on"));
    return false;
  }
  std::optional<std::int64_t> Integer(std::string_view variable) {
    const std::string* text = Find(variable);
    if (text == nullptr) return std::nullopt;
    const char* begin =
        text->data() + (text->starts_with('+') && text->size() > 1 && (*text)[1] != '-' ? 1 : 0);
    const char* const end = text->data() + text->size();
    std::int64_t number = 0;
    const auto [stop, error] = std::from_chars(begin, end, number);
    if (error == std::errc() && stop == end) return number;
    Warn(variable, absl::StrCat("\"", *text, "\" is no integer and counts as not given"));
    return std::nullopt;
  }
  std::int64_t PositiveInteger(std::string_view variable, std::int64_t otherwise) {
    const std::int64_t number = Integer(variable).value_or(otherwise);
    if (number > 0) return number;
    Warn(variable, absl::StrCat(number, " is not more than 0, so it counts as ", otherwise));
    return otherwise;
  }

  void AddPlugin(std::string_view name, std::string_view type, Value::Map parameters = {}) {
    const auto same = [name](const PluginSpec& plugin) { return plugin.name == name; };
    if (std::any_of(config_.plugins.begin(), config_.plugins.end(), same)) return;
    config_.plugins.push_back(
        {.name = std::string(name),
         .type = std::string(type),
         .parameters = parameters.empty() ? Value() : Value::MakeMap(std::move(parameters))});
  }

  void AddScorer(const ScorerVariable& scorer, ProfileSpec& profile, double weight) {
    Value::Map parameters;
    if (scorer.index == Index::kPrecise) {
      parameters.emplace_back("prefixMatchInfoProducerName", std::string(kPreciseProducerType));
      precise_ = true;
    } else if (scorer.index == Index::kApproximate) {
      (scorer.variable == "PREFIX_AWARE_SCORER" ? text_prefix_ : gie_prefix_) = true;
    } else if (scorer.type == "load-aware-scorer") {
      parameters.emplace_back("threshold", PositiveInteger("LOAD_AWARE_SCORER_QUEUE_THRESHOLD", 128));
    } else if (scorer.type == "session-affinity-scorer") {
      config_.allow_experimental = true;
    }
    AddPlugin(scorer.name, scorer.type, std::move(parameters));
    profile.plugins.push_back({.plugin = std::string(scorer.name), .weight = weight});
    used_.insert(absl::StrCat(profile.name == "prefill" ? "prefill/" : "decode/", ToAbsl(scorer.name)));
  }

  void ReadScorers(std::string_view prefix, ProfileSpec& profile, bool counts) {
    for (const ScorerVariable& scorer : kScorers) {
      const std::string enable = absl::StrCat(ToAbsl(prefix), "ENABLE_", ToAbsl(scorer.variable));
      const std::string weight_name = absl::StrCat(ToAbsl(prefix), ToAbsl(scorer.variable), "_WEIGHT");
      const bool enabled = Flag(enable);
      const std::optional<std::int64_t> weight = Integer(weight_name);
      if (!enabled) continue;
      if (counts) {
        AddScorer(scorer, profile, static_cast<double>(weight.value_or(1)));
      } else {
        Warn(enable, "has no effect without PD_ENABLED=true");
      }
    }
  }

  void ReadFilters(std::string_view prefix) {
    for (const std::string_view filter : kFilters) {
      const std::string enable = absl::StrCat(ToAbsl(prefix), "ENABLE_", ToAbsl(filter));
      Find(absl::StrCat(ToAbsl(prefix), ToAbsl(filter), "_WEIGHT"));
      if (Flag(enable)) Warn(enable, "has no successor and is left out");
    }
  }

  // Prefill runs when at least that many characters are not cached: always from 0 on down.
  void AddDisaggregation() {
    const std::int64_t characters = Integer("PD_PROMPT_LEN_THRESHOLD").value_or(100);
    std::string_view decider = "always-disagg-pd-decider";
    Value::Map parameters;
    if (characters > 0) {
      decider = "prefix-based-pd-decider";
      parameters.emplace_back("nonCachedTokens", TokensOf(characters));
    }
    // The filter of that time took no other role, and no endpoint without one.
    AddPlugin("prefill-filter", "label-selector-filter",
              {{"matchLabels", Value::MakeMap({{"llm-d.ai/role", "prefill"}})}});
    AddPlugin(decider, decider, std::move(parameters));
    AddPlugin(kDisaggHandlerType, kDisaggHandlerType,
              {{"deciders", Value::MakeMap({{"prefill", std::string(decider)}})}});
  }

  void AddProducers() {
    if (precise_) {
      AddPlugin(kPreciseProducerType, kPreciseProducerType);
      for (const std::string_view variable : {"KVCACHE_INDEXER_REDIS_ADDR", "HF_TOKEN"}) {
        if (Find(variable) == nullptr) {
          Warn(variable, "is not set, so v0.1.0 leaves out KVCACHE_AWARE_SCORER; this index does without it");
        }
      }
    }
    const std::int64_t text_size = PositiveInteger("PREFIX_SCORER_BLOCK_SIZE", 256);
    const std::int64_t gie_size = PositiveInteger("PREFIX_CACHE_HASH_BLOCK_SIZE", 64);
    const std::optional<std::int64_t> max_blocks = Integer("PREFIX_CACHE_MAX_PREFIX_BLOCKS");
    const std::optional<std::int64_t> capacity = Integer("PREFIX_CACHE_LRU_CAPACITY");
    if (!text_prefix_ && !gie_prefix_) return;
    if (text_prefix_ && gie_prefix_ && TokensOf(text_size) != TokensOf(gie_size)) {
      Warn("PREFIX_CACHE_HASH_BLOCK_SIZE",
           "gives way to PREFIX_SCORER_BLOCK_SIZE: both scorers use one index");
    }
    Value::Map parameters = {{"autoTune", false},
                             {"blockSizeTokens", TokensOf(text_prefix_ ? text_size : gie_size)}};
    if (gie_prefix_ && max_blocks && *max_blocks > 0) {
      parameters.emplace_back("maxPrefixTokensToMatch", 0);  // otherwise the limit in tokens wins
      parameters.emplace_back("maxPrefixBlocksToMatch", *max_blocks);
    }
    if (gie_prefix_ && capacity && *capacity > 0) parameters.emplace_back("lruCapacityPerServer", *capacity);
    AddPlugin(kApproxProducerType, kApproxProducerType, std::move(parameters));
  }

  void ReadRest() {
    if (disaggregated_) handled_.emplace("PD_PROMPT_LEN_THRESHOLD");
    for (const std::string_view name : {"PD_PROMPT_LEN_THRESHOLD", "LOAD_AWARE_SCORER_QUEUE_THRESHOLD",
                                        "KVCACHE_INDEXER_REDIS_ADDR", "HF_TOKEN"}) {
      handled_.emplace(name);  // without effect as long as what they belong to is off
    }
    for (const auto& [name, value] : variables_) {
      if (handled_.contains(name) || !IsOfThisKind(name)) continue;
      const bool decode = name.starts_with("DECODE_");
      Warn(name,
           decode ? "was read by releases 0.0.x only and has no effect" : "is read by no release of llm-d");
    }
  }

  const std::map<std::string, std::string>& variables_;
  std::vector<std::string>* warnings_;
  SchedulerConfig config_;
  std::set<std::string, std::less<>> handled_;
  std::set<std::string, std::less<>> used_;  // "decode/" or "prefill/" and the scorer's name
  bool disaggregated_ = false;
  bool precise_ = false;
  bool text_prefix_ = false;
  bool gie_prefix_ = false;
};

}  // namespace

SchedulerConfig ConfigFromEnvironment(const std::map<std::string, std::string>& variables,
                                      std::vector<std::string>* warnings) {
  return Translator(variables, warnings).Run();
}

}  // namespace llmd::sched
