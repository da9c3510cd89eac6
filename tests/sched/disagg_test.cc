// disagg-profile-handler and its relatives: which stages run, what is said about it, what goes upstream.
#include "llmd/sched/disagg.h"

#include <gmock/gmock.h>

#include "llmd/sched/peer_endpoint.h"
#include "llmd/sched/result_headers.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Says what it is told to, and remembers what it was asked.
class ScriptedDecider final : public Plugin, public Decider {
 public:
  ScriptedDecider(std::string name, Verdict verdict)
      : Plugin("scripted", std::move(name)), verdict_(verdict) {}
  Verdict Decide(Context&, std::optional<Position> endpoint) const override {
    asked.push_back(endpoint);
    return verdict_;
  }

  mutable std::vector<std::optional<Position>> asked;

 private:
  Verdict verdict_;
};

class NotADecider final : public Plugin {
 public:
  explicit NotADecider(std::string name) : Plugin("other", std::move(name)) {}
};

// Profiles are encode (0), prefill (1), decode (2); a stage that runs chooses the endpoint of its number.
class DisaggTest : public ::testing::Test {
 protected:
  DisaggTest() {
    const auto add = [this](std::unique_ptr<Plugin> plugin) { others[plugin->name()] = std::move(plugin); };
    add(std::make_unique<ScriptedDecider>("yes", Verdict::Yes()));
    add(std::make_unique<ScriptedDecider>("also-yes", Verdict::Yes()));
    add(std::make_unique<ScriptedDecider>("no", Verdict::No("too short")));
    add(std::make_unique<NotADecider>("filter"));
  }

  absl::Status Make(const std::string& type, const Value& parameters,
                    const std::vector<std::string>& profiles = {"encode", "prefill", "decode"}) {
    const PluginSpec spec{.name = type, .type = type, .parameters = parameters};
    SchedulerConfig config;
    for (const std::string& profile : profiles) config.profiles.push_back({profile, {}});
    const Resources resources;
    const Compatibility compatibility;
    warnings.clear();
    layout = {};
    PluginEnvironment environment{resources,
                                  layout,
                                  states,
                                  compatibility,
                                  [this](std::string_view name) -> absl::StatusOr<Plugin*> {
                                    const auto it = others.find(std::string(name));
                                    if (it == others.end()) return absl::NotFoundError("no such plugin");
                                    return it->second.get();
                                  },
                                  [this](std::string warning) { warnings.push_back(std::move(warning)); },
                                  &config};
    PluginBuilder builder(spec, environment);
    absl::StatusOr<std::unique_ptr<Plugin>> made = PluginRegistry::Builtin().Find(type)->factory(builder);
    if (!made.ok()) return made.status();
    plugin = *std::move(made);
    peer = layout.DeclareForRequest<PeerEndpoint>(type);  // the slot that a consumer gets
    columns = std::make_unique<DataColumns>(layout);
    names = profiles;
    handler = dynamic_cast<ProfileHandler*>(plugin.get());
    return handler == nullptr ? absl::OkStatus() : handler->Bind(names);
  }

  // Plays the scheduler's loop. Stages in `failing` find no endpoint. Gives what ran, in order, with the peer
  // that the stage saw: "decode", "prefill@2".
  std::vector<std::string> Run(const std::set<std::string>& failing = {}) {
    Context context = MakeContext();
    columns->Begin(pool.size());
    decision = {};
    decision.profiles.resize(names.size());
    std::vector<std::string> ran;
    for (int turn = 0; turn < 9; ++turn) {
      handler->Next(context, decision.profiles);
      const std::vector<ProfileResult> before = decision.profiles;
      handler->Next(context, decision.profiles);  // asking again changes nothing
      bool any = false;
      for (std::size_t i = 0; i < names.size(); ++i) {
        ProfileResult& result = decision.profiles[i];
        EXPECT_EQ(result.state, before[i].state) << names[i];
        if (result.state != ProfileState::kRequested) continue;
        any = true;
        const auto* seen = columns->Read(peer);
        ran.push_back(names[i] + (seen != nullptr ? "@" + std::to_string(seen->position) : ""));
        if (failing.count(names[i]) > 0) {
          result.state = ProfileState::kFailed;
        } else {
          result.state = ProfileState::kDone;
          result.targets = {static_cast<Position>(i)};
        }
      }
      if (!any) break;
    }
    finished = handler->Finish(context, decision);
    return ran;
  }

  Context MakeContext() { return {request, pool, kNow, random, *columns, candidates}; }

  // "name=value", or "-name" for a removal.
  std::vector<std::string> Headers(Dispatch dispatch = {}) {
    Context context = MakeContext();
    EXPECT_TRUE(dynamic_cast<PreRequest&>(*plugin).OnDecision(context, decision, names, dispatch).ok());
    std::vector<std::string> headers;
    for (const HeaderEdit& edit : dispatch.headers) {
      headers.push_back(edit.value ? edit.name + "=" + *edit.value : "-" + edit.name);
    }
    return headers;
  }

  const ScriptedDecider& Scripted(const std::string& name) {
    return dynamic_cast<const ScriptedDecider&>(*others.at(name));
  }
  ProfileState StateOf(std::size_t profile) const { return decision.profiles[profile].state; }
  std::uint64_t Decisions(DisaggKind kind, const std::string& handler = "disagg-profile-handler") {
    return DisaggCountersOf(states, handler)->decisions(kind);
  }

  std::map<std::string, std::unique_ptr<Plugin>> others;
  std::vector<std::string> warnings;
  DataLayout layout;
  PluginStates states;
  RequestSlot<PeerEndpoint> peer;
  std::unique_ptr<Plugin> plugin;
  ProfileHandler* handler = nullptr;
  std::unique_ptr<DataColumns> columns;
  std::vector<std::string> names;
  Request request;
  EndpointPool pool = MakePool(5);
  std::vector<Position> candidates = AllPositions(pool);
  Random random{1};
  Decision decision;
  absl::Status finished;
};

Value Deciders(const char* prefill, const char* encode) {
  Value::Map map;
  if (prefill != nullptr) map.push_back({"prefill", prefill});
  if (encode != nullptr) map.push_back({"encode", encode});
  return Value::MakeMap(map);
}

TEST_F(DisaggTest, DecodeFirstRunsTheStagesThatDecidersWant) {
  struct Case {
    const char* prefill;
    const char* encode;
    std::vector<std::string> ran;
    DisaggKind kind;
  };
  const Case cases[] = {
      {nullptr, nullptr, {"decode"}, DisaggKind::kDecodeOnly},
      {"no", "no", {"decode"}, DisaggKind::kDecodeOnly},
      {"yes", nullptr, {"decode", "prefill@2"}, DisaggKind::kPrefillDecode},
      {"yes", "no", {"decode", "prefill@2"}, DisaggKind::kPrefillDecode},
      {nullptr, "yes", {"decode", "encode"}, DisaggKind::kEncodeDecode},
      {"no", "yes", {"decode", "encode"}, DisaggKind::kEncodeDecode},
      {"yes", "also-yes", {"decode", "encode", "prefill@2"}, DisaggKind::kEncodePrefillDecode},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.prefill ? c.prefill : "-") + " " + (c.encode ? c.encode : "-"));
    ASSERT_TRUE(
        Make("disagg-profile-handler", Parameters({{"deciders", Deciders(c.prefill, c.encode)}})).ok());
    const std::uint64_t before = Decisions(c.kind);
    EXPECT_EQ(Run(), c.ran);
    EXPECT_TRUE(finished.ok()) << finished;
    EXPECT_EQ(decision.primary, 2u);
    EXPECT_EQ(decision.target(), 2u);
    EXPECT_EQ(Decisions(c.kind), before + 1);
  }
}

TEST_F(DisaggTest, DecidersSeeTheDecodeEndpointAndAreAskedOnce) {
  ASSERT_TRUE(Make("disagg-profile-handler", Parameters({{"deciders", Deciders("yes", "no")}})).ok());
  Run();
  EXPECT_THAT(Scripted("yes").asked, ElementsAre(std::optional<Position>(2)));
  EXPECT_THAT(Scripted("no").asked, ElementsAre(std::optional<Position>(2)));
  EXPECT_EQ(StateOf(0), ProfileState::kSkipped);
  EXPECT_STREQ(decision.profiles[0].skip_reason, "too short");
  EXPECT_EQ(decision.profiles[1].skip_reason, nullptr);
}

TEST_F(DisaggTest, DecodeFirstWithoutDecodeEndpointStops) {
  ASSERT_TRUE(Make("disagg-profile-handler", Parameters({{"deciders", Deciders("yes", "also-yes")}})).ok());
  EXPECT_THAT(Run({"decode"}), ElementsAre("decode"));
  EXPECT_EQ(finished, absl::ResourceExhaustedError("failed to find available decode workers"));
  EXPECT_THAT(Scripted("yes").asked, IsEmpty());
  EXPECT_EQ(StateOf(1), ProfileState::kPending);
  EXPECT_EQ(Decisions(DisaggKind::kDecodeOnly), 0u);
}

TEST_F(DisaggTest, AFailedStageIsLeftOut) {
  ASSERT_TRUE(Make("disagg-profile-handler", Parameters({{"deciders", Deciders("yes", "also-yes")}})).ok());
  EXPECT_THAT(Run({"prefill"}), ElementsAre("decode", "encode", "prefill@2"));
  EXPECT_TRUE(finished.ok());
  EXPECT_EQ(Decisions(DisaggKind::kEncodeDecode), 1u);
  EXPECT_THAT(Headers(), ElementsAre("-x-prefiller-host-port", "x-encoder-hosts-ports=10.0.0.0:8000"));
  Run({"prefill", "encode"});
  EXPECT_TRUE(finished.ok());
  EXPECT_EQ(Decisions(DisaggKind::kDecodeOnly), 1u);
  EXPECT_THAT(Headers(), ElementsAre("-x-prefiller-host-port", "-x-encoder-hosts-ports"));
}

TEST_F(DisaggTest, PrefillFirst) {
  const auto make = [&](const char* encode) {
    return Make("disagg-profile-handler",
                Parameters({{"stageOrder", "prefill-first"}, {"deciders", Deciders(nullptr, encode)}}));
  };
  ASSERT_TRUE(make("yes").ok());
  EXPECT_THAT(Run(), ElementsAre("prefill", "encode", "decode@1"));
  EXPECT_EQ(Decisions(DisaggKind::kEncodePrefillDecode), 1u);
  EXPECT_THAT(Scripted("yes").asked, ElementsAre(std::nullopt));  // no endpoint to look at
  EXPECT_EQ(decision.primary, 2u);

  ASSERT_TRUE(make("no").ok());
  EXPECT_THAT(Run(), ElementsAre("prefill", "decode@1"));
  EXPECT_EQ(Decisions(DisaggKind::kPrefillDecode), 1u);
  // Without a prefiller decode has no peer, and the request goes on.
  EXPECT_THAT(Run({"prefill"}), ElementsAre("prefill", "decode"));
  EXPECT_TRUE(finished.ok());
  EXPECT_EQ(Decisions(DisaggKind::kDecodeOnly), 1u);
  EXPECT_THAT(Run({"decode"}), ElementsAre("prefill", "decode@1"));
  EXPECT_EQ(finished.code(), absl::StatusCode::kResourceExhausted);

  ASSERT_TRUE(make(nullptr).ok());
  EXPECT_THAT(Run(), ElementsAre("prefill", "decode@1"));
  EXPECT_STREQ(decision.profiles[0].skip_reason, "no decider is configured");
}

TEST_F(DisaggTest, StagesWithoutProfileDoNotExist) {
  ASSERT_TRUE(
      Make("disagg-profile-handler", Parameters({{"deciders", Deciders("yes", "yes")}}), {"decode"}).ok());
  EXPECT_THAT(Run(), ElementsAre("decode"));
  EXPECT_EQ(Decisions(DisaggKind::kDecodeOnly), 1u);
  EXPECT_THAT(DisaggCountersOf(states, "disagg-profile-handler")->absences(DisaggStage::kPrefill), IsEmpty());
  EXPECT_THAT(Headers(), ElementsAre("-x-prefiller-host-port", "-x-encoder-hosts-ports"));
  ASSERT_EQ(warnings.size(), 2u);
  EXPECT_EQ(warnings[0],
            "disagg-profile-handler: there is a decider for prefill but no profile \"prefill\", so the stage "
            "never runs");

  ASSERT_TRUE(Make("disagg-profile-handler", Parameters({{"stageOrder", "prefill-first"}}), {"decode"}).ok());
  EXPECT_THAT(Run(), ElementsAre("decode"));
  EXPECT_THAT(warnings, IsEmpty());
}

TEST_F(DisaggTest, ProfilesThatNeverRunAreWarnedOf) {
  ASSERT_TRUE(Make("disagg-profile-handler", {}, {"decode", "prefill", "spare"}).ok());
  EXPECT_THAT(
      warnings,
      ElementsAre("disagg-profile-handler: there is a profile \"prefill\" but no decider for prefill, so "
                  "the stage never runs",
                  "disagg-profile-handler: profile \"spare\" is no stage, so it never runs"));
}

TEST_F(DisaggTest, ProfilesAreFoundByName) {
  const Value profiles = Parameters({{"decode", "d"}, {"prefill", "p"}, {"encode", "e"}});
  ASSERT_TRUE(Make("disagg-profile-handler",
                   Parameters({{"profiles", profiles}, {"deciders", Deciders("yes", "also-yes")}}),
                   {"d", "e", "p"})
                  .ok());
  EXPECT_THAT(Run(), ElementsAre("d", "e", "p@0"));
  EXPECT_EQ(decision.primary, 0u);
  EXPECT_THAT(Headers(),
              ElementsAre("x-prefiller-host-port=10.0.0.2:8000", "x-encoder-hosts-ports=10.0.0.1:8000"));
}

TEST_F(DisaggTest, TheFlatFormOfOlderReleases) {
  ASSERT_TRUE(Make("disagg-profile-handler",
                   Parameters({{"decodeProfile", "d"},
                               {"prefillProfile", "p"},
                               {"encodeProfile", "e"},
                               {"prefillDeciderPluginName", "yes"},
                               {"encodeDeciderPluginName", "also-yes"}}),
                   {"d", "e", "p"})
                  .ok());
  EXPECT_THAT(Run(), ElementsAre("d", "e", "p@0"));
  ASSERT_TRUE(Make("disagg-profile-handler",
                   Parameters({{"deciderPluginName", "yes"}, {"stageOrder", "decode-first"}}))
                  .ok());
  EXPECT_THAT(Run(), ElementsAre("decode", "prefill@2"));
  ASSERT_TRUE(Make("disagg-profile-handler",
                   Parameters({{"deciderPluginName", "yes"}, {"prefillDeciderPluginName", "yes"}}))
                  .ok());
}

TEST_F(DisaggTest, SpellingsOfTheStageOrder) {
  for (const char* order : {"decode-first", "Decode_First", "DECODEFIRST", "decode", ""}) {
    ASSERT_TRUE(Make("disagg-profile-handler", Parameters({{"stageOrder", order}})).ok()) << order;
    EXPECT_EQ(Run().front(), "decode") << order;
  }
  for (const char* order : {"prefill-first", "Prefill_First", "PREFILLFIRST", "prefill"}) {
    ASSERT_TRUE(Make("disagg-profile-handler", Parameters({{"stageOrder", order}})).ok()) << order;
    EXPECT_EQ(Run().front(), "prefill") << order;
  }
}

TEST_F(DisaggTest, ParameterErrors) {
  struct Case {
    Value parameters;
    const char* message;
  };
  const Value nested = Parameters({{"decode", "decode"}});
  const Case cases[] = {
      {Parameters({{"stageOrder", "encode-first"}}),
       "stageOrder is \"encode-first\", expected decode-first or prefill-first"},
      {Parameters({{"stageOrder", "prefill-first"}, {"deciders", Deciders("yes", nullptr)}}),
       "deciders.prefill is \"yes\", expected none with stageOrder prefill-first"},
      {Parameters({{"stageOrder", "prefill-first"}, {"deciderPluginName", "yes"}}),
       "prefillDeciderPluginName is \"yes\", expected none with stageOrder prefill-first"},
      {Parameters({{"profiles", nested}, {"decodeProfile", "x"}}),
       "decodeProfile is given, expected none beside profiles and deciders"},
      {Parameters({{"deciders", Deciders("yes", nullptr)}, {"prefillDeciderPluginName", "yes"}}),
       "prefillDeciderPluginName is given"},
      {Parameters({{"deciders", Deciders("yes", nullptr)}, {"deciderPluginName", "yes"}}),
       "deciderPluginName is given"},
      {Parameters({{"deciderPluginName", "yes"}, {"prefillDeciderPluginName", "no"}}),
       "deciderPluginName is \"yes\", expected the same as prefillDeciderPluginName"},
      {Parameters({{"deciders", Deciders("nobody", nullptr)}}),
       "deciders.prefill is \"nobody\", expected the name of a plugin"},
      {Parameters({{"deciders", Deciders(nullptr, "nobody")}}), "deciders.encode is \"nobody\""},
      {Parameters({{"deciders", Deciders("filter", nullptr)}}),
       "deciders.prefill is \"filter\", expected a plugin of another kind"},
      {Parameters({{"profiles", Parameters({{"prefil", "x"}})}}), "profiles.prefil is unknown"},
      {Parameters({{"profiles", "decode"}}), "profiles is a string, expected a map"},
      {Parameters({{"deciders", Parameters({{"prefill", 7}})}}), "deciders.prefill is an integer"},
      {Parameters({{"primaryPort", 8000}}), "primaryPort is unknown"},
      {Parameters({{"profiles", Parameters({{"decode", "gone"}})}}),
       "the decode profile is \"gone\", expected the name of a profile"},
      {Parameters({{"profiles", Parameters({{"prefill", "decode"}})}}), "two stages have the same profile"},
      {Parameters({{"profiles", Parameters({{"prefill", "encode"}})}}), "two stages have the same profile"},
  };
  for (const Case& c : cases) {
    const absl::Status status = Make("disagg-profile-handler", c.parameters);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
    EXPECT_THAT(std::string(status.message()), HasSubstr("disagg-profile-handler"));
  }
}

TEST_F(DisaggTest, HeadersNameTheStagesAndReplaceTheClients) {
  ASSERT_TRUE(Make("disagg-profile-handler", Parameters({{"deciders", Deciders("yes", "also-yes")}})).ok());
  Run();
  decision.profiles[0].targets = {0, 4, 3};  // several encoders
  decision.profiles[1].targets = {1, 3};     // the first prefiller counts
  Dispatch dispatch;
  dispatch.headers = {{"x-prefiller-host-port", "6.6.6.6:1"}, {"x-other", "kept"}};
  EXPECT_THAT(Headers(std::move(dispatch)),
              ElementsAre("x-prefiller-host-port=10.0.0.1:8000", "x-other=kept",
                          "x-encoder-hosts-ports=10.0.0.0:8000,10.0.0.4:8000,10.0.0.3:8000"));
}

TEST_F(DisaggTest, Ipv6StandsInBrackets) {
  pool = {};
  for (const char* address : {"2001:db8::1", "2001:db8::2", "2001:db8::3"}) {
    ASSERT_TRUE(pool.Add({.name = address, .address = address, .port = 9000}).ok());
  }
  ASSERT_TRUE(Make("disagg-profile-handler", Parameters({{"deciders", Deciders("yes", "also-yes")}})).ok());
  Run();
  EXPECT_THAT(Headers(), ElementsAre("x-prefiller-host-port=[2001:db8::2]:9000",
                                     "x-encoder-hosts-ports=[2001:db8::1]:9000"));
}

TEST_F(DisaggTest, AbsencesAreCountedByReason) {
  ASSERT_TRUE(Make("disagg-profile-handler", Parameters({{"deciders", Deciders("no", "yes")}})).ok());
  Run();
  Run({"encode"});
  Run({"decode"});  // not a decision
  const auto counters = DisaggCountersOf(states, "disagg-profile-handler");
  const auto rows = [&](DisaggStage stage) {
    std::vector<std::string> text;
    for (const auto& row : counters->absences(stage))
      text.push_back(row.reason + " " + std::to_string(row.count));
    return text;
  };
  EXPECT_THAT(rows(DisaggStage::kPrefill), ElementsAre("too short 2"));
  EXPECT_THAT(rows(DisaggStage::kEncode), ElementsAre("no endpoint left 1"));
  EXPECT_EQ(counters->decisions(DisaggKind::kEncodeDecode), 1u);
  EXPECT_EQ(counters->decisions(DisaggKind::kDecodeOnly), 1u);
  // A scheduler that replaces this one goes on counting.
  ASSERT_TRUE(Make("disagg-profile-handler", {}).ok());
  Run();
  EXPECT_EQ(counters->decisions(DisaggKind::kDecodeOnly), 2u);
  EXPECT_THAT(rows(DisaggStage::kPrefill), ElementsAre("too short 2", "no decider is configured 1"));
}

// pd-profile-handler.

TEST_F(DisaggTest, PdRunsDecodeThenPrefill) {
  ASSERT_TRUE(
      Make("pd-profile-handler", Parameters({{"deciderPluginName", "yes"}}), {"prefill", "decode"}).ok());
  EXPECT_THAT(Run(), ElementsAre("decode", "prefill"));  // publishes no peer
  EXPECT_EQ(decision.primary, 1u);
  EXPECT_EQ(Decisions(DisaggKind::kPrefillDecode, "pd-profile-handler"), 1u);
  EXPECT_THAT(Headers(), IsEmpty());  // that is the headers handler's work
  EXPECT_THAT(Run({"prefill"}), ElementsAre("decode", "prefill"));
  EXPECT_TRUE(finished.ok());
  EXPECT_THAT(Run({"decode"}), ElementsAre("decode"));
  EXPECT_EQ(finished, absl::ResourceExhaustedError("failed to find available decode workers"));

  ASSERT_TRUE(
      Make("pd-profile-handler", Parameters({{"deciderPluginName", "no"}}), {"prefill", "decode"}).ok());
  EXPECT_THAT(Run(), ElementsAre("decode"));
  EXPECT_EQ(DestinationEndpoint(decision, pool), "10.0.0.1:8000");
}

TEST_F(DisaggTest, PdWithPrimaryPort) {
  ASSERT_TRUE(Make("pd-profile-handler",
                   Parameters({{"deciderPluginName", "yes"},
                               {"primaryPort", 7000},
                               {"decodeProfile", "d"},
                               {"prefillProfile", "p"}}),
                   {"p", "d"})
                  .ok());
  Run();
  decision.profiles[1].targets = {1, 3};
  EXPECT_EQ(DestinationEndpoint(decision, pool), "10.0.0.1:7000,10.0.0.3:7000");
  EXPECT_EQ(TargetHostPorts(decision.profiles[0], pool), "10.0.0.0:8000");  // prefill keeps its port
  EXPECT_THAT(Headers(), ElementsAre("x-data-parallel-host-port=10.0.0.1:8000"));
}

TEST_F(DisaggTest, PdParameterErrors) {
  struct Case {
    Value parameters;
    const char* message;
  };
  const Case cases[] = {
      {{}, "deciderPluginName is \"prefix-based-pd-decider\", expected the name of a plugin"},
      {Parameters({{"deciderPluginName", "filter"}}), "deciderPluginName is \"filter\""},
      {Parameters({{"deciderPluginName", "yes"}, {"primaryPort", 65536}}),
       "primaryPort is 65536, expected 0 (off) to 65535"},
      {Parameters({{"deciderPluginName", "yes"}, {"primaryPort", -1}}), "primaryPort is -1"},
      {Parameters({{"deciderPluginName", "yes"}, {"primaryPort", "8000"}}), "primaryPort is a string"},
      {Parameters({{"deciderPluginName", "yes"}, {"encodeProfile", "e"}}), "encodeProfile is unknown"},
      {Parameters({{"deciderPluginName", "yes"}, {"decodeProfile", "x"}}), "the decode profile is \"x\""},
  };
  for (const Case& c : cases) {
    const absl::Status status = Make("pd-profile-handler", c.parameters);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

// disagg-headers-handler, prefill-header-handler.

TEST_F(DisaggTest, HeadersHandlers) {
  for (const char* type : {"disagg-headers-handler", "prefill-header-handler"}) {
    ASSERT_TRUE(Make(type, {}).ok());
    decision = {};
    decision.profiles.resize(3);
    decision.profiles[0] = {.state = ProfileState::kDone, .targets = {0, 4}, .scored = {}};
    decision.profiles[1] = {.state = ProfileState::kDone, .targets = {1}, .scored = {}};
    decision.profiles[2] = {.state = ProfileState::kDone, .targets = {2}, .scored = {}};
    decision.primary = 2;
    EXPECT_THAT(Headers(), ElementsAre("x-prefiller-host-port=10.0.0.1:8000",
                                       "x-encoder-hosts-ports=10.0.0.0:8000,10.0.0.4:8000"));
    decision.profiles[0].state = ProfileState::kFailed;
    decision.profiles[0].targets = {};
    decision.profiles[1].state = ProfileState::kSkipped;  // whatever is left in it does not count
    EXPECT_THAT(Headers(), ElementsAre("-x-prefiller-host-port", "-x-encoder-hosts-ports"));

    ASSERT_TRUE(
        Make(type, Parameters({{"prefillProfile", "p"}, {"encodeProfile", "e"}}), {"e", "p", "decode"}).ok());
    decision.profiles[0] = {.state = ProfileState::kDone, .targets = {3}, .scored = {}};
    decision.profiles[1] = {.state = ProfileState::kDone, .targets = {1}, .scored = {}};
    EXPECT_THAT(Headers(),
                ElementsAre("x-prefiller-host-port=10.0.0.1:8000", "x-encoder-hosts-ports=10.0.0.3:8000"));
    ASSERT_TRUE(Make(type, {}, {"e", "p", "decode"}).ok());  // no such profiles
    EXPECT_THAT(Headers(), ElementsAre("-x-prefiller-host-port", "-x-encoder-hosts-ports"));
    EXPECT_THAT(std::string(Make(type, Parameters({{"decodeProfile", "x"}})).message()),
                HasSubstr("decodeProfile is unknown, expected one of prefillProfile, encodeProfile"));
    EXPECT_EQ(PluginRegistry::Builtin().Find(type)->stability, Stability::kDeprecated);
  }
}

}  // namespace
}  // namespace llmd::sched
