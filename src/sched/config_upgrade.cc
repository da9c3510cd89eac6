// What llm-d 0.2 called differently, for files of the old apiVersion. (spec: deployment.md 6.2)
#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/config_text.h"

namespace llmd::sched {
namespace {

constexpr std::int64_t kCharactersPerToken = 4;

class Upgrade {
 public:
  Upgrade(SchedulerConfig& config, std::vector<std::string>& warnings)
      : config_(config), warnings_(warnings) {}

  void Run() {
    const std::size_t count = config_.plugins.size();  // others are added behind
    for (std::size_t i = 0; i < count; ++i) {
      const std::string& type = config_.plugins[i].type;
      if (type == "kv-cache-scorer") {
        RenameKvCacheScorer(config_.plugins[i]);
      } else if (type == "prefix-cache-scorer") {
        SplitPrefixScorer(i);
      } else if (type == "pd-profile-handler") {
        AddDecider(i);
      } else if (type == kSingleProfileHandlerType) {
        DropHeaders(config_.plugins[i]);
      }
    }
  }

 private:
  static Value::Map Fields(const PluginSpec& plugin) {
    const Value::Map* map = plugin.parameters.AsMap();
    return map == nullptr ? Value::Map() : *map;
  }
  // Takes the field out; null when absent.
  static std::optional<Value> Take(Value::Map& fields, std::string_view name) {
    const auto it =
        std::find_if(fields.begin(), fields.end(), [&](const auto& f) { return f.first == name; });
    if (it == fields.end()) return std::nullopt;
    Value value = std::move(it->second);
    fields.erase(it);
    return value;
  }
  static void SetParameters(PluginSpec& plugin, Value::Map fields) {
    const std::uint32_t line = plugin.parameters.line();
    plugin.parameters = fields.empty() ? Value() : Value::MakeMap(std::move(fields));
    plugin.parameters.set_line(line);
  }
  bool Exists(std::string_view name) const {
    return std::any_of(config_.plugins.begin(), config_.plugins.end(),
                       [&](const PluginSpec& p) { return (p.name.empty() ? p.type : p.name) == name; });
  }
  void Warn(const PluginSpec& plugin, std::string_view text) {
    warnings_.push_back(absl::StrCat(PlaceText(plugin.place), ": ", plugin.type, ": ", ToAbsl(text)));
  }

  void RenameKvCacheScorer(PluginSpec& plugin) {
    Warn(plugin, "is called kv-cache-utilization-scorer by now");
    if (plugin.name.empty()) plugin.name = plugin.type;
    plugin.type = "kv-cache-utilization-scorer";
  }

  void DropHeaders(PluginSpec& plugin) {
    Value::Map fields = Fields(plugin);
    for (const std::string_view name : {"selectedEndpointHeader", "selectedOverrideHeader"}) {
      if (Take(fields, name))
        Warn(plugin, absl::StrCat(ToAbsl(name), " was never read by llm-d and is left out"));
    }
    SetParameters(plugin, std::move(fields));
  }

  // The scorer had its producer's parameters. `mode: cache_tracking` meant the precise one.
  void SplitPrefixScorer(std::size_t index) {
    Value::Map fields = Fields(config_.plugins[index]);
    Value::Map producer;
    const std::optional<Value> mode = Take(fields, "mode");
    const bool precise = mode && mode->AsString() != nullptr && *mode->AsString() == "cache_tracking";
    if (mode && !precise && (mode->AsString() == nullptr || *mode->AsString() != "estimate")) {
      return;  // the plugin says what is wrong
    }
    const std::optional<Value> characters = Take(fields, "hashBlockSize");
    std::initializer_list<std::string_view> moved = {"autoTune",
                                                     "blockSize",
                                                     "blockSizeTokens",
                                                     "maxPrefixBlocksToMatch",
                                                     "maxPrefixTokensToMatch",
                                                     "lruCapacityPerServer"};
    for (const std::string_view name : moved) {
      std::optional<Value> value = Take(fields, name);
      if (value && !precise) producer.emplace_back(name, *std::move(value));
    }
    if (characters && !precise) {
      const std::int64_t* size = characters->AsInt();
      if (size == nullptr || *size <= 0) return;
      Value tokens((*size - 1) / kCharactersPerToken + 1);
      tokens.set_line(characters->line());
      producer.emplace_back("autoTune", false);
      producer.emplace_back("blockSizeTokens", std::move(tokens));
    }
    if (precise) TakePreciseFields(fields, producer);
    if (!precise && producer.empty()) {
      SetParameters(config_.plugins[index], std::move(fields));
      return;
    }
    const std::string_view type = precise ? kPreciseProducerType : kApproxProducerType;
    PluginSpec& scorer = config_.plugins[index];
    Warn(scorer, absl::StrCat("parameters of the index are given to the plugin ", ToAbsl(type)));
    if (precise) fields.emplace_back("prefixMatchInfoProducerName", std::string(type));
    SetParameters(scorer, std::move(fields));
    if (!Exists(type)) {
      PluginSpec made{.type = std::string(type), .place = scorer.place};
      SetParameters(made, std::move(producer));
      config_.plugins.push_back(std::move(made));
    }
  }

  // tokenProcessorConfig stood beside or within indexerConfig; its blockSize is blockSizeTokens by now.
  static void TakePreciseFields(Value::Map& fields, Value::Map& producer) {
    std::optional<Value> tokens = Take(fields, "tokenProcessorConfig");
    std::optional<Value> indexer = Take(fields, "indexerConfig");
    std::optional<Value> events = Take(fields, "kvEventsConfig");
    if (indexer && indexer->AsMap() != nullptr) {
      Value::Map inner = *indexer->AsMap();
      std::optional<Value> nested = Take(inner, "tokenProcessorConfig");
      if (nested && !tokens) tokens = std::move(nested);
      const std::uint32_t line = indexer->line();
      indexer = Value::MakeMap(std::move(inner));
      indexer->set_line(line);
    }
    if (tokens && tokens->AsMap() != nullptr) {
      Value::Map inner = *tokens->AsMap();
      if (std::optional<Value> size = Take(inner, "blockSize")) {
        inner.emplace_back("blockSizeTokens", *std::move(size));
      }
      const std::uint32_t line = tokens->line();
      tokens = Value::MakeMap(std::move(inner));
      tokens->set_line(line);
    }
    if (tokens) producer.emplace_back("tokenProcessorConfig", *std::move(tokens));
    if (indexer && (indexer->AsMap() == nullptr || !indexer->AsMap()->empty())) {
      producer.emplace_back("indexerConfig", *std::move(indexer));
    }
    if (events) producer.emplace_back("kvEventsConfig", *std::move(events));
  }

  // The handler decided itself: prefill runs when at least `threshold` characters are not cached.
  void AddDecider(std::size_t index) {
    Value::Map fields = Fields(config_.plugins[index]);
    const bool names_decider = std::any_of(fields.begin(), fields.end(),
                                           [](const auto& f) { return f.first == "deciderPluginName"; });
    const std::optional<Value> threshold = Take(fields, "threshold");
    const std::optional<Value> block_size = Take(fields, "hashBlockSize");
    if (names_decider || (!threshold && !block_size && Exists("prefix-based-pd-decider"))) return;
    if (threshold && threshold->AsInt() == nullptr) return;  // the plugin says what is wrong
    const std::int64_t characters = threshold ? *threshold->AsInt() : 0;
    PluginSpec decider{.type = "always-disagg-pd-decider", .place = config_.plugins[index].place};
    if (characters > 0) {
      Value tokens((characters - 1) / kCharactersPerToken + 1);
      if (threshold) tokens.set_line(threshold->line());
      decider.type = "prefix-based-pd-decider";
      decider.parameters = Value::MakeMap({{"nonCachedTokens", std::move(tokens)}});
    }
    Warn(config_.plugins[index], absl::StrCat("decides by the plugin ", decider.type, " by now"));
    fields.emplace_back("deciderPluginName", decider.type);
    SetParameters(config_.plugins[index], std::move(fields));
    if (!Exists(decider.type)) config_.plugins.push_back(std::move(decider));
  }

  SchedulerConfig& config_;
  std::vector<std::string>& warnings_;
};

}  // namespace

void UpgradeOldConfig(SchedulerConfig& config, std::vector<std::string>& warnings) {
  Upgrade(config, warnings).Run();
}

}  // namespace llmd::sched
