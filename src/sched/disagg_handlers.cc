// disagg-profile-handler and pd-profile-handler: encode, prefill and decode on endpoints of their own; and
// the deprecated disagg-headers-handler and prefill-header-handler. (spec: scheduling.md 1.5)
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "llmd/base/strings.h"
#include "llmd/sched/disagg.h"
#include "llmd/sched/peer_endpoint.h"
#include "llmd/sched/result_headers.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

constexpr char kNoDecider[] = "no decider is configured";
constexpr char kNoEndpoint[] = "no endpoint left";

struct DisaggOptions {
  bool prefill_first = false;
  std::string decode = "decode";  // profiles
  std::string prefill = "prefill";
  std::string encode = "encode";
  std::string prefill_decider = {};  // plugins; empty: the stage never runs, or always in prefill-first order
  std::string encode_decider = {};
  bool sets_stage_headers = true;
  std::uint16_t primary_port = 0;  // where decode targets are reached; 0: at their own ports
};

class DisaggHandler final : public Plugin, public ProfileHandler, public PreRequest {
 public:
  DisaggHandler(std::string type, std::string name, DisaggOptions options, const Decider* prefill_decider,
                const Decider* encode_decider, std::optional<RequestSlot<PeerEndpoint>> peer,
                std::shared_ptr<DisaggCounters> counters)
      : Plugin(std::move(type), std::move(name)),
        options_(std::move(options)),
        prefill_decider_(prefill_decider),
        encode_decider_(encode_decider),
        peer_(peer),
        counters_(std::move(counters)) {}

  absl::Status Bind(std::span<const std::string> profiles) override {
    const auto find = [&](const std::string& profile) -> std::optional<std::size_t> {
      const auto it = std::find(profiles.begin(), profiles.end(), profile);
      if (it == profiles.end()) return std::nullopt;
      return static_cast<std::size_t>(it - profiles.begin());
    };
    const std::optional<std::size_t> decode = find(options_.decode);
    if (!decode) {
      return absl::InvalidArgumentError(absl::StrCat(name(), ": the decode profile is \"", options_.decode,
                                                     "\", expected the name of a profile"));
    }
    decode_ = *decode;
    prefill_ = find(options_.prefill);
    encode_ = find(options_.encode);
    if (prefill_ == decode_ || encode_ == decode_ || (prefill_ && prefill_ == encode_)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name(), ": two stages have the same profile, expected distinct ones"));
    }
    return absl::OkStatus();
  }

  void Next(Context& context, std::span<ProfileResult> profiles) const override {
    if (options_.prefill_first) {
      NextPrefillFirst(context, profiles);
    } else {
      NextDecodeFirst(context, profiles);
    }
  }

  absl::Status Finish(Context& context, Decision& decision) const override {
    decision.primary = static_cast<std::uint32_t>(decode_);
    ProfileResult& decode = decision.profiles[decode_];
    if (decode.state != ProfileState::kDone) return NoDecoder(context);
    decode.port = options_.primary_port;
    Count(decision);
    return absl::OkStatus();
  }

  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string>,
                          Dispatch& dispatch) override {
    if (options_.sets_stage_headers) {
      SetStageHeaders(prefill_ ? &decision.profiles[*prefill_] : nullptr,
                      encode_ ? &decision.profiles[*encode_] : nullptr, context.pool, dispatch.headers);
    }
    if (options_.primary_port != 0) {
      SetHeader(dispatch.headers, kDataParallelHeader, context.pool[decision.target()].host_port());
    }
    return absl::OkStatus();
  }

 private:
  // Endpoints that are full may be free again soon; a pool in which none decodes will not serve a retry.
  static absl::Status NoDecoder(const Context& context) {
    const bool any = std::any_of(
        context.candidates.begin(), context.candidates.end(),
        [&](Position candidate) { return (context.pool[candidate].identity->roles & kRoleDecode) != 0; });
    if (any) return absl::ResourceExhaustedError("failed to find available decode workers");
    return WithDroppedReason(absl::UnavailableError("no candidate endpoint decodes"),
                             DroppedReason::kNoEndpoints);
  }

  void NextDecodeFirst(Context& context, std::span<ProfileResult> profiles) const {
    ProfileResult& decode = profiles[decode_];
    if (decode.state == ProfileState::kPending) decode.state = ProfileState::kRequested;
    if (decode.state != ProfileState::kDone) return;
    const Position target = decode.targets.front();
    if (encode_ && Choose(context, encode_decider_, target, profiles[*encode_])) return;
    if (prefill_ && Choose(context, prefill_decider_, target, profiles[*prefill_])) Publish(context, target);
  }

  void NextPrefillFirst(Context& context, std::span<ProfileResult> profiles) const {
    ProfileResult& decode = profiles[decode_];
    if (decode.state != ProfileState::kPending) return;
    if (prefill_) {
      ProfileResult& prefill = profiles[*prefill_];
      if (prefill.state == ProfileState::kPending) prefill.state = ProfileState::kRequested;
      if (prefill.state == ProfileState::kRequested) return;
    }
    if (encode_ && Choose(context, encode_decider_, std::nullopt, profiles[*encode_])) return;
    if (prefill_ && profiles[*prefill_].state == ProfileState::kDone) {
      Publish(context, profiles[*prefill_].targets.front());
    }
    decode.state = ProfileState::kRequested;
  }

  // Decides on a stage that is still open. True when it is to be run now.
  static bool Choose(Context& context, const Decider* decider, std::optional<Position> endpoint,
                     ProfileResult& stage) {
    if (stage.state == ProfileState::kPending) {
      const Verdict verdict =
          decider != nullptr ? decider->Decide(context, endpoint) : Verdict::No(kNoDecider);
      stage.state = verdict.run ? ProfileState::kRequested : ProfileState::kSkipped;
      stage.skip_reason = verdict.run ? nullptr : verdict.reason;
    }
    return stage.state == ProfileState::kRequested;
  }

  void Publish(Context& context, Position position) const {
    if (peer_) context.data.Publish(*peer_).position = position;
  }

  void Count(const Decision& decision) const {
    const auto took_place = [&](std::optional<std::size_t> profile, DisaggStage stage) {
      if (!profile) return false;
      const ProfileResult& result = decision.profiles[*profile];
      if (result.state == ProfileState::kDone) return true;
      counters_->CountAbsence(stage,
                              result.state == ProfileState::kFailed ? kNoEndpoint : result.skip_reason);
      return false;
    };
    const bool prefill = took_place(prefill_, DisaggStage::kPrefill);
    const bool encode = took_place(encode_, DisaggStage::kEncode);
    counters_->CountDecision(encode ? prefill ? DisaggKind::kEncodePrefillDecode : DisaggKind::kEncodeDecode
                             : prefill ? DisaggKind::kPrefillDecode
                                       : DisaggKind::kDecodeOnly);
  }

  DisaggOptions options_;
  const Decider* prefill_decider_;
  const Decider* encode_decider_;
  std::optional<RequestSlot<PeerEndpoint>> peer_;
  std::shared_ptr<DisaggCounters> counters_;
  std::size_t decode_ = 0;  // profiles
  std::optional<std::size_t> prefill_;
  std::optional<std::size_t> encode_;
};

// "decode-first" in any case, with hyphens, underscores or neither; the stage alone is enough.
std::optional<bool> ParsePrefillFirst(std::string_view text) {
  const std::string order = absl::AsciiStrToLower(absl::StrReplaceAll(ToAbsl(text), {{"-", ""}, {"_", ""}}));
  if (order.empty() || order == "decodefirst" || order == "decode") return false;
  if (order == "prefillfirst" || order == "prefill") return true;
  return std::nullopt;
}

// Reads a name that must not be empty.
void ReadName(ParameterReader& read, std::string_view field, std::string& name) {
  const std::string otherwise = name;
  read.Optional(field, &name);
  if (name.empty()) name = otherwise;
}

bool Given(const PluginBuilder& builder, std::string_view field) {
  const Value::Map* map = builder.parameters().AsMap();
  return map != nullptr && std::any_of(map->begin(), map->end(), [&](const Value::Field& f) {
           return f.first == field && !f.second.is_null();
         });
}

// Says what can never happen in this configuration. Not an error: llm-d runs it.
void WarnOfIdleStages(PluginBuilder& builder, const DisaggOptions& options) {
  if (builder.config() == nullptr || builder.config()->profiles.empty()) return;
  const auto exists = [&](std::string_view profile) {
    const std::vector<ProfileSpec>& profiles = builder.config()->profiles;
    return std::any_of(profiles.begin(), profiles.end(),
                       [&](const ProfileSpec& p) { return p.name == profile; });
  };
  const auto check = [&](std::string_view stage, const std::string& profile, const std::string& decider,
                         bool needs_decider) {
    if (profile.empty()) return;
    if (!decider.empty() && !exists(profile)) {
      builder.Warn(absl::StrCat(builder.name(), ": there is a decider for ", ToAbsl(stage),
                                " but no profile \"", profile, "\", so the stage never runs"));
    } else if (decider.empty() && needs_decider && exists(profile)) {
      builder.Warn(absl::StrCat(builder.name(), ": there is a profile \"", profile, "\" but no decider for ",
                                ToAbsl(stage), ", so the stage never runs"));
    }
  };
  check("prefill", options.prefill, options.prefill_decider, !options.prefill_first);
  check("encode", options.encode, options.encode_decider, true);
  for (const ProfileSpec& profile : builder.config()->profiles) {
    if (profile.name == options.decode || profile.name == options.prefill || profile.name == options.encode) {
      continue;
    }
    builder.Warn(
        absl::StrCat(builder.name(), ": profile \"", profile.name, "\" is no stage, so it never runs"));
  }
}

// The nested form of the parameters, or the flat one of older releases, not both.
absl::StatusOr<DisaggOptions> ParseDisagg(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  DisaggOptions options;
  std::string order;
  read.Optional("stageOrder", &order);
  const std::optional<bool> prefill_first = ParsePrefillFirst(order);
  if (!prefill_first) {
    read.Reject("stageOrder", absl::StrCat("\"", order, "\""), "decode-first or prefill-first");
  }
  options.prefill_first = prefill_first.value_or(false);

  const bool nested = Given(builder, "profiles") || Given(builder, "deciders");
  std::string old_decider;
  for (const std::string_view field :
       {"decodeProfile", "prefillProfile", "encodeProfile", "deciderPluginName", "prefillDeciderPluginName",
        "encodeDeciderPluginName"}) {
    if (nested && Given(builder, field)) read.Reject(field, "given", "none beside profiles and deciders");
  }
  ReadName(read, "decodeProfile", options.decode);
  ReadName(read, "prefillProfile", options.prefill);
  ReadName(read, "encodeProfile", options.encode);
  read.Optional("deciderPluginName", &old_decider);
  read.Optional("prefillDeciderPluginName", &options.prefill_decider);
  read.Optional("encodeDeciderPluginName", &options.encode_decider);
  if (!old_decider.empty() && !options.prefill_decider.empty() && old_decider != options.prefill_decider) {
    read.Reject("deciderPluginName", absl::StrCat("\"", old_decider, "\""),
                "the same as prefillDeciderPluginName, or none");
  }
  if (options.prefill_decider.empty()) options.prefill_decider = old_decider;

  ParameterReader profiles = read.Nested("profiles");
  ReadName(profiles, "decode", options.decode);
  ReadName(profiles, "prefill", options.prefill);
  ReadName(profiles, "encode", options.encode);
  ParameterReader deciders = read.Nested("deciders");
  if (nested) {
    deciders.Optional("prefill", &options.prefill_decider);
    deciders.Optional("encode", &options.encode_decider);
  }
  if (options.prefill_first && !options.prefill_decider.empty()) {
    (nested ? deciders : read)
        .Reject(nested ? "prefill" : "prefillDeciderPluginName",
                absl::StrCat("\"", options.prefill_decider, "\""), "none with stageOrder prefill-first");
  }
  for (ParameterReader* part : {&read, &profiles, &deciders}) {
    if (absl::Status status = part->Finish(); !status.ok()) return status;
  }
  return options;
}

// Null for an empty name.
absl::StatusOr<const Decider*> FindDecider(PluginBuilder& builder, std::string_view field,
                                           const std::string& name) {
  if (name.empty()) return nullptr;
  absl::StatusOr<Decider*> decider = builder.Reference<Decider>(field, name);
  if (!decider.ok()) return decider.status();
  return *decider;
}

absl::StatusOr<std::unique_ptr<Plugin>> MakeDisagg(PluginBuilder& builder) {
  const absl::StatusOr<DisaggOptions> options = ParseDisagg(builder);
  if (!options.ok()) return options.status();
  const absl::StatusOr<const Decider*> prefill =
      FindDecider(builder, "deciders.prefill", options->prefill_decider);
  if (!prefill.ok()) return prefill.status();
  const absl::StatusOr<const Decider*> encode =
      FindDecider(builder, "deciders.encode", options->encode_decider);
  if (!encode.ok()) return encode.status();
  WarnOfIdleStages(builder, *options);
  return std::make_unique<DisaggHandler>(builder.type(), builder.name(), *options, *prefill, *encode,
                                         builder.ProducesForRequest<PeerEndpoint>(),
                                         builder.State<DisaggCounters>(builder.name()));
}

absl::StatusOr<std::unique_ptr<Plugin>> MakePd(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  DisaggOptions options;
  std::int64_t port = 0;
  std::string producer;
  std::string ignored;
  options.encode = "";
  options.prefill_decider = kPrefixDeciderType;
  options.sets_stage_headers = false;
  ReadName(read, "decodeProfile", options.decode);
  ReadName(read, "prefillProfile", options.prefill);
  ReadName(read, "deciderPluginName", options.prefill_decider);
  read.Optional("primaryPort", &port);
  read.Optional("prefixMatchInfoProducerName", &producer);
  if (port < 0 || port > 65535) read.Reject("primaryPort", absl::StrCat(port), "0 (off) to 65535");
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  options.primary_port = static_cast<std::uint16_t>(port);
  const absl::StatusOr<const Decider*> decider =
      FindDecider(builder, "deciderPluginName", options.prefill_decider);
  if (!decider.ok()) return decider.status();
  // The decider reads it; a name that nobody produces is an error even with a decider that reads nothing.
  if (!producer.empty()) builder.Consumes<PrefixMatch>(producer);
  WarnOfIdleStages(builder, options);
  return std::make_unique<DisaggHandler>(builder.type(), builder.name(), options, *decider, nullptr,
                                         std::nullopt, builder.State<DisaggCounters>(builder.name()));
}

// For handlers that do not set the headers of stages themselves.
class StageHeaders final : public Plugin, public PreRequest {
 public:
  StageHeaders(std::string type, std::string name, std::string prefill, std::string encode)
      : Plugin(std::move(type), std::move(name)), prefill_(std::move(prefill)), encode_(std::move(encode)) {}

  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string> profiles,
                          Dispatch& dispatch) override {
    const auto find = [&](const std::string& profile) -> const ProfileResult* {
      const auto it = std::find(profiles.begin(), profiles.end(), profile);
      return it == profiles.end() ? nullptr
                                  : &decision.profiles[static_cast<std::size_t>(it - profiles.begin())];
    };
    SetStageHeaders(find(prefill_), find(encode_), context.pool, dispatch.headers);
    return absl::OkStatus();
  }

 private:
  std::string prefill_;
  std::string encode_;
};

absl::StatusOr<std::unique_ptr<Plugin>> MakeStageHeaders(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string prefill = "prefill";
  std::string encode = "encode";
  ReadName(read, "prefillProfile", prefill);
  ReadName(read, "encodeProfile", encode);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<StageHeaders>(builder.type(), builder.name(), prefill, encode);
}

}  // namespace

void RegisterDisaggHandlers(PluginRegistry& registry) {
  MustRegister(registry, kDisaggHandlerType, MakeDisagg);
  MustRegister(registry, kPdHandlerType, MakePd, Stability::kDeprecated, "disagg-profile-handler");
  for (const std::string_view type : {"disagg-headers-handler", "prefill-header-handler"}) {
    MustRegister(registry, type, MakeStageHeaders, Stability::kDeprecated,
                 "disagg-profile-handler, which sets the headers itself");
  }
}

}  // namespace llmd::sched
