// A scorer of one's own: endpoints that were started long ago are warm, new ones get traffic slowly.
//
//   type: warm-start-scorer
//   parameters: {rampSeconds: 60}
//
// The host sets the attribute "uptime_seconds" of each endpoint. Score = min(1, uptime / ramp); an endpoint
// without the attribute gets no score.
#ifndef EXAMPLES_OFFLINE_SCORERS_WARM_START_SCORER_H_
#define EXAMPLES_OFFLINE_SCORERS_WARM_START_SCORER_H_

#include <algorithm>
#include <memory>
#include <string>

#include "llmd/sched/registry.h"

class WarmStartScorer final : public llmd::sched::Plugin, public llmd::sched::Scorer {
 public:
  static absl::Status Register(llmd::sched::PluginRegistry& registry) {
    return registry.Register("warm-start-scorer", Make);
  }

  void Score(llmd::sched::Context& context, std::span<const llmd::sched::Position> candidates,
             std::span<double> scores) const override {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const llmd::sched::Attribute* uptime = context.pool[candidates[i]].FindAttribute("uptime_seconds");
      if (uptime != nullptr) scores[i] = std::min(1.0, uptime->sample.value / ramp_seconds_);
    }
  }

 private:
  WarmStartScorer(std::string type, std::string name, double ramp_seconds)
      : Plugin(std::move(type), std::move(name)), ramp_seconds_(ramp_seconds) {}

  static absl::StatusOr<std::unique_ptr<llmd::sched::Plugin>> Make(llmd::sched::PluginBuilder& builder) {
    llmd::sched::ParameterReader read = builder.Read();
    double ramp_seconds = 60;
    read.Optional("rampSeconds", &ramp_seconds);
    if (!(ramp_seconds > 0)) read.Reject("rampSeconds", std::to_string(ramp_seconds), "more than 0");
    if (absl::Status status = read.Finish(); !status.ok()) return status;
    return std::unique_ptr<llmd::sched::Plugin>(
        new WarmStartScorer(builder.type(), builder.name(), ramp_seconds));
  }

  double ramp_seconds_;
};

#endif  // EXAMPLES_OFFLINE_SCORERS_WARM_START_SCORER_H_
