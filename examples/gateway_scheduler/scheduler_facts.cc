#include "examples/gateway_scheduler/scheduler_facts.h"

#include <algorithm>

#include "llmd/sched/prefix.h"

namespace llmd::host {
namespace {

constexpr double kCharactersPerToken = 4;

const sched::Value* Field(const sched::Value& value, std::string_view name) {
  const sched::Value::Map* map = value.AsMap();
  if (map == nullptr) return nullptr;
  for (const auto& [key, field] : *map) {
    if (key == name) return &field;
  }
  return nullptr;
}

// The profile of a stage, in both spellings of the handlers' parameters. (spec: scheduling.md 1.5)
std::string StageProfile(const sched::Value& parameters, std::string_view stage) {
  const sched::Value* profiles = Field(parameters, "profiles");
  const sched::Value* name = profiles != nullptr ? Field(*profiles, stage) : nullptr;
  if (name == nullptr) name = Field(parameters, std::string(stage) + "Profile");
  const std::string* text = name != nullptr ? name->AsString() : nullptr;
  return text != nullptr ? *text : std::string(stage);
}

PluginId IdOf(const sched::PluginSpec& spec) {
  return {spec.name.empty() ? spec.type : spec.name, spec.type};
}

}  // namespace

SchedulerFacts::SchedulerFacts(const sched::Scheduler& of) : scheduler(&of) {
  const sched::SchedulerConfig& config = of.config();
  const auto find_profile = [&](const std::string& name) -> std::optional<std::size_t> {
    const auto it = std::find(of.profiles().begin(), of.profiles().end(), name);
    if (it == of.profiles().end()) return std::nullopt;
    return static_cast<std::size_t>(it - of.profiles().begin());
  };
  for (const sched::PluginSpec& spec : config.plugins) {
    const PluginId id = IdOf(spec);
    if (spec.type == "inflight-load-producer") in_flight_producers.push_back(id.name);
    if (spec.type == "disagg-profile-handler" || spec.type == "pd-profile-handler") {
      disagg_handler = id;
      prefill = find_profile(StageProfile(spec.parameters, "prefill"));
      if (spec.type == "disagg-profile-handler")
        encode = find_profile(StageProfile(spec.parameters, "encode"));
    }
    const bool is_precise =
        spec.type == "precise-prefix-cache-producer" || spec.type == "precise-prefix-cache-scorer";
    if (is_precise) {
      prefix_producer = id;
      precise = true;
      const auto options = sched::ParsePreciseOptions(id.name, spec.parameters);
      fixed_block_tokens_ = static_cast<std::uint32_t>(options.ok() ? options->block_size : 16);
    } else if (spec.type == "approx-prefix-cache-producer" && !precise) {
      prefix_producer = id;
      const auto options = sched::ParseApproxPrefixOptions(id.name, spec.parameters);
      if (options.ok()) approx_ = *options;
    }
  }
  if (!prefill && !encode) disagg_handler.reset();
  saturation_detector = config.flow_control.saturation_detector.empty()
                            ? "utilization-detector"
                            : config.flow_control.saturation_detector;
  max_queued_requests = config.flow_control.max_requests;
  max_queued_bytes = config.flow_control.max_bytes;
}

std::optional<sched::DisaggKind> SchedulerFacts::Kind(const sched::Decision& decision) const {
  if (!disagg_handler) return std::nullopt;
  const auto done = [&](const std::optional<std::size_t>& profile) {
    return profile && *profile < decision.profiles.size() &&
           decision.profiles[*profile].state == sched::ProfileState::kDone;
  };
  if (done(encode)) {
    return done(prefill) ? sched::DisaggKind::kEncodePrefillDecode : sched::DisaggKind::kEncodeDecode;
  }
  return done(prefill) ? sched::DisaggKind::kPrefillDecode : sched::DisaggKind::kDecodeOnly;
}

double SchedulerFacts::BlockBytes(std::uint32_t reported) const {
  return kCharactersPerToken * (fixed_block_tokens_ ? *fixed_block_tokens_ : approx_.BlockSize(reported));
}

}  // namespace llmd::host
