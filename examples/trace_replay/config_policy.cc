#include "examples/trace_replay/config_policy.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "examples/trace_replay/simulation.h"
#include "llmd/base/strings.h"
#include "llmd/sched/config_file.h"
#include "llmd/sched/prefix.h"

namespace llmd::replay {
namespace {

// What the program cannot do with an approximate producer of these parameters.
absl::Status CheckApproximate(const sched::PluginSpec& spec, const std::string& source) {
  const absl::StatusOr<sched::ApproxPrefixOptions> options =
      sched::ParseApproxPrefixOptions(spec.name, spec.parameters);
  if (!options.ok()) return options.status();
  if (const std::uint32_t size = options->BlockSize(kBlockTokens); size != ApproxBlockTokens()) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", spec.name, ": blocks of ", size,
                                                   " tokens, expected ", ApproxBlockTokens(),
                                                   ", which is what this program makes keys for"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Policy> MakeConfigPolicy(std::string_view text, const std::string& source) {
  absl::StatusOr<sched::SchedulerConfig> config =
      sched::ParseConfig(text, {.source = source, .allow_experimental = true});
  if (!config.ok()) return config.status();
  Policy policy;
  policy.name = source.substr(source.find_last_of('/') + 1);
  policy.name = policy.name.substr(0, policy.name.find_last_of('.'));
  policy.text = absl::StrCat("config ", source, "\n", ToAbsl(text));
  policy.config = *std::move(config);
  // A trial with indexes that know nothing says which producers there will be.
  Expectation unused;
  const auto scheduler = sched::Scheduler::Create(policy.config, MakeRegistry(&unused), EmptyResources());
  if (!scheduler.ok()) return scheduler.status();
  std::string producer;
  for (const sched::PluginSpec& spec : (*scheduler)->config().plugins) {
    if (spec.type == kApproxProducer) {
      if (absl::Status s = CheckApproximate(spec, source); !s.ok()) return s;
      policy.uses_approx = true;
      if (producer.empty()) producer = spec.name;
    } else if (spec.type == kExactProducer || spec.type == "precise-prefix-cache-scorer") {
      policy.uses_exact = true;
      producer = spec.name;
    }
  }
  std::vector<std::string> parts;
  for (const sched::ProfileSpec& profile : (*scheduler)->config().profiles) {
    for (const sched::PluginRef& ref : profile.plugins) {
      parts.push_back(ref.weight ? absl::StrCat(ref.plugin, " ", *ref.weight) : ref.plugin);
    }
  }
  policy.description = absl::StrCat(source, ": ", absl::StrJoin(parts, ", "));
  if (!producer.empty()) AddProbe(producer, policy);
  return policy;
}

absl::StatusOr<Policy> ReadConfigPolicy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return absl::NotFoundError(absl::StrCat("config: ", path, " cannot be read"));
  return MakeConfigPolicy(text.str(), path);
}

absl::StatusOr<Policy> MakePolicyFromText(std::string_view text) {
  const auto rest = [&](std::string_view kind) {
    return text.substr(0, kind.size()) == kind ? std::optional(text.substr(kind.size())) : std::nullopt;
  };
  if (const auto name = rest("policy ")) return MakePolicy(*name);
  if (const auto weights = rest("weights ")) return MakeMix(*weights);
  if (const auto config = rest("config ")) {
    const std::size_t line = std::min(config->find('\n'), config->size());
    return MakeConfigPolicy(config->substr(std::min(line + 1, config->size())),
                            std::string(config->substr(0, line)));
  }
  return absl::InvalidArgumentError("text: names no policy of this program");
}

}  // namespace llmd::replay
