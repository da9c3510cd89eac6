// single-profile-handler, data-parallel-profile-handler and header-profile-handler. (spec: scheduling.md 1.5)
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/sched/result_headers.h"
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

// One profile whose endpoints are ranks of pods: the request goes to the pod's primary port, where a sidecar
// hands it to the rank that the header names.
class DataParallelHandler final : public Plugin, public ProfileHandler, public PreRequest {
 public:
  DataParallelHandler(std::string type, std::string name, std::uint16_t primary_port)
      : Plugin(std::move(type), std::move(name)), primary_port_(primary_port) {}

  absl::Status Bind(std::span<const std::string> profiles) override {
    if (profiles.size() == 1) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(name(), ": ", profiles.size(), " profiles, expected 1"));
  }

  void Next(Context&, std::span<ProfileResult> profiles) const override {
    if (profiles[0].state == ProfileState::kPending) profiles[0].state = ProfileState::kRequested;
  }

  absl::Status Finish(Context&, Decision& decision) const override {
    decision.primary = 0;
    if (decision.profiles[0].state != ProfileState::kDone) {
      return absl::ResourceExhaustedError("the only profile found no endpoint");
    }
    decision.profiles[0].port = primary_port_;
    return absl::OkStatus();
  }

  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string>,
                          Dispatch& dispatch) override {
    SetHeader(dispatch.headers, kDataParallelHeader, context.pool[decision.target()].host_port());
    return absl::OkStatus();
  }

 private:
  std::uint16_t primary_port_;
};

// The one profile that a header of the request names.
class HeaderProfileHandler final : public Plugin, public ProfileHandler {
 public:
  HeaderProfileHandler(std::string type, std::string name, std::string header, std::string default_profile)
      : Plugin(std::move(type), std::move(name)),
        header_(std::move(header)),
        default_profile_(std::move(default_profile)) {}

  absl::Status Bind(std::span<const std::string> profiles) override {
    profiles_.assign(profiles.begin(), profiles.end());
    return absl::OkStatus();
  }

  // Requests none for an unknown name, which the scheduler then refuses.
  void Next(Context& context, std::span<ProfileResult> profiles) const override {
    for (const ProfileResult& profile : profiles) {
      if (profile.state != ProfileState::kPending) return;
    }
    if (profiles.size() == 1) {
      profiles[0].state = ProfileState::kRequested;
      return;
    }
    const absl::string_view value =
        absl::StripAsciiWhitespace(ToAbsl(context.request.FindHeader(header_).value_or("")));
    const absl::string_view name = value.empty() ? absl::string_view(default_profile_) : value;
    const auto it = std::find(profiles_.begin(), profiles_.end(), name);
    if (it == profiles_.end()) return;
    profiles[static_cast<std::size_t>(it - profiles_.begin())].state = ProfileState::kRequested;
  }

  absl::Status Finish(Context&, Decision& decision) const override {
    for (std::uint32_t i = 0; i < decision.profiles.size(); ++i) {
      if (decision.profiles[i].state == ProfileState::kPending) continue;
      decision.primary = i;
      if (decision.profiles[i].state == ProfileState::kDone) return absl::OkStatus();
    }
    return absl::ResourceExhaustedError("the profile of the request found no endpoint");
  }

 private:
  std::string header_;
  std::string default_profile_;
  std::vector<std::string> profiles_;
};

absl::StatusOr<std::unique_ptr<Plugin>> MakeDataParallel(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::int64_t port = 8000;
  read.Optional("primaryPort", &port);
  if (port < 1 || port > 65535) read.Reject("primaryPort", absl::StrCat(port), "1..65535");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<DataParallelHandler>(builder.type(), builder.name(),
                                               static_cast<std::uint16_t>(port));
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeHeaderProfile(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string header;
  std::string profile;
  read.Optional("headerName", &header);
  read.Optional("defaultProfile", &profile);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  absl::StripAsciiWhitespace(&header);
  absl::StripAsciiWhitespace(&profile);
  absl::AsciiStrToLower(&header);  // as headers of a request are
  if (header.empty()) header = "epp-profile";
  if (profile.empty()) profile = "decode";
  if (builder.config() != nullptr && builder.config()->profiles.size() > 1) {
    const std::vector<ProfileSpec>& profiles = builder.config()->profiles;
    const bool known = std::any_of(profiles.begin(), profiles.end(),
                                   [&](const ProfileSpec& p) { return p.name == profile; });
    if (!known) {
      builder.Warn(absl::StrCat(builder.name(), ": defaultProfile is \"", profile,
                                "\", which is no profile, so requests without the header are refused"));
    }
  }
  return std::make_unique<HeaderProfileHandler>(builder.type(), builder.name(), header, profile);
}

}  // namespace

void RegisterProfileHandlers(PluginRegistry& registry) {
  MustRegister(registry, kSingleProfileHandlerType,
               [](PluginBuilder& builder) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                 ParameterReader read = builder.Read();
                 if (absl::Status status = read.Finish(); !status.ok()) return status;
                 return std::make_unique<SingleProfileHandler>(builder.type(), builder.name());
               });
  MustRegister(registry, "data-parallel-profile-handler", MakeDataParallel);
  MustRegister(registry, "header-profile-handler", MakeHeaderProfile, Stability::kExperimental);
}

}  // namespace llmd::sched
