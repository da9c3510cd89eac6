// single-profile-handler. (spec: scheduling.md 1.5)
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

class SingleProfileHandler final : public Plugin, public ProfileHandler {
 public:
  using Plugin::Plugin;

  absl::Status Bind(std::span<const std::string> profiles) override {
    if (profiles.size() == 1) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(name(), ": ", profiles.size(), " profiles, expected 1"));
  }

  void Next(Context&, std::span<ProfileResult> profiles) const override {
    if (profiles[0].state == ProfileState::kPending) profiles[0].state = ProfileState::kRequested;
  }

  absl::Status Finish(Context&, Decision& decision) const override {
    decision.primary = 0;
    if (decision.profiles[0].state == ProfileState::kDone) return absl::OkStatus();
    return absl::ResourceExhaustedError("the only profile found no endpoint");
  }
};

}  // namespace

void RegisterProfileHandlers(PluginRegistry& registry) {
  MustRegister(registry, kSingleProfileHandlerType,
               [](PluginBuilder& builder) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                 ParameterReader read = builder.Read();
                 if (absl::Status status = read.Finish(); !status.ok()) return status;
                 return std::make_unique<SingleProfileHandler>(builder.type(), builder.name());
               });
}

}  // namespace llmd::sched
