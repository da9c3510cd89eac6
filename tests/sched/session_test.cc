// Session ids, the table of sessions and the affinity plugins. (spec: scheduling.md 2.1, 2.4)
#include "llmd/sched/session.h"

#include <gmock/gmock.h>

#include <map>

#include "absl/strings/escaping.h"
#include "tests/sched/plugin_rig.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// --- session-id-producer and agent-identity ---

std::string SessionOf(const Value& parameters, const std::vector<Header>& headers) {
  const EndpointPool pool = MakePool(1);
  PluginRig rig(pool, "session-id-producer", parameters);
  const Request request{.headers = headers};
  rig.Begin(request);
  rig.Produce();
  const SessionId* id = rig.ReadOfRequest<SessionId>();
  return id == nullptr ? "none" : std::string(id->value);
}

TEST(SessionIdProducer, Header) {
  const Value by_header = Parameters({{"headerName", "X-Session"}});
  EXPECT_EQ(SessionOf(by_header, {{"x-session", "abc"}, {"x-session", "later"}}), "abc");
  EXPECT_EQ(SessionOf(by_header, {{"x-session", ""}}), "none");
  EXPECT_EQ(SessionOf(by_header, {{"cookie", "x-session=abc"}}), "none");
}

TEST(SessionIdProducer, Cookie) {
  const Value by_cookie = Parameters({{"cookieName", "sid"}});
  const auto sid = [&](std::string_view cookie) { return SessionOf(by_cookie, {{"cookie", cookie}}); };
  EXPECT_EQ(sid("sid=abc"), "abc");
  EXPECT_EQ(sid("a=1; sid=abc; sid=later"), "abc");
  EXPECT_EQ(sid("a=1;sid=abc;"), "abc");
  EXPECT_EQ(sid("sid=\"quoted value\""), "quoted value");
  EXPECT_EQ(sid("sid=a=b"), "a=b");
  EXPECT_EQ(sid("sid= spaced "), " spaced");
  EXPECT_EQ(sid("SID=abc; xsid=1; sid2=2; sid"), "none");  // names have a case
  EXPECT_EQ(sid("sid="), "none");
  EXPECT_EQ(sid("sid=\"\""), "none");
  EXPECT_EQ(sid(""), "none");
  EXPECT_EQ(sid(";;;===;; = ;"), "none");
  // A malformed value is passed over.
  EXPECT_EQ(sid("sid=a\"b; sid=ok"), "ok");
  EXPECT_EQ(sid("sid=\"open; sid=ok"), "ok");
  EXPECT_EQ(sid(std::string_view("sid=a\0b; sid=ok", 15)), "ok");
  EXPECT_EQ(sid("sid=\xC3\xA9; sid=ok"), "ok");
  EXPECT_EQ(SessionOf(by_cookie, {{"cookie", "a=1"}, {"cookie", "sid=second"}}), "second");
}

TEST(SessionIdProducer, HostileCookieIsOnePass) {
  std::string hostile;
  for (int i = 0; i < 200'000; ++i) hostile += "sid=\";";
  const Value by_cookie = Parameters({{"cookieName", "sid"}});
  EXPECT_EQ(SessionOf(by_cookie, {{"cookie", hostile}}), "none");
  hostile.assign(1 << 20, ';');
  EXPECT_EQ(SessionOf(by_cookie, {{"cookie", hostile}}), "none");
}

TEST(SessionIdProducer, ExactlyOneSource) {
  const auto message = [](const Value& p) {
    return std::string(PluginUnderTest("session-id-producer", p).status.message());
  };
  EXPECT_THAT(message({}), HasSubstr("headerName is missing, expected exactly one of"));
  EXPECT_THAT(message(Parameters({{"headerName", "a"}, {"cookieName", "b"}})), HasSubstr("exactly one of"));
  EXPECT_EQ(message(Parameters({{"headerName", "a"}, {"cookieName", ""}})), "");
}

TEST(AgentIdentity, FirstHeaderThatIsNotEmpty) {
  const auto identify = [](const Value& parameters, const std::vector<Header>& headers) {
    PluginUnderTest plugin("agent-identity", parameters);
    EXPECT_TRUE(plugin.status.ok()) << plugin.status;
    return std::string(plugin.As<AgentIdentity>().Identify({.headers = headers}));
  };
  EXPECT_EQ(identify({}, {}), "");
  EXPECT_EQ(identify({}, {{"session_id", "4"}, {"session-id", "3"}, {"x-session-affinity", "2"}}), "2");
  EXPECT_EQ(identify({}, {{"session_id", "4"}, {"session-id", "3"}, {"x-session-affinity", ""}}), "3");
  EXPECT_EQ(identify({}, {{"session_id", "4"}, {"x-claude-code-session-id", "1"}}), "1");
  EXPECT_EQ(identify({}, {{"session_id", "4"}}), "4");
  const Value extra = Parameters({{"additionalSessionHeaders", Value::MakeList({"X-A", "x-b"})}});
  EXPECT_EQ(identify(extra, {{"x-claude-code-session-id", "1"}, {"x-b", "b"}}), "b");
  EXPECT_EQ(identify(extra, {{"x-a", "a"}, {"x-b", "b"}}), "a");
  EXPECT_EQ(PluginRegistry::Builtin().Find("agent-identity")->stability, Stability::kExperimental);
}

// --- the table ---

constexpr EndpointHandle kA{1, 1}, kB{2, 1}, kC{3, 1};
constexpr absl::Duration kTtl = absl::Seconds(10);

TEST(SessionTable, BindRefreshMigrate) {
  SessionTable table(100);
  EXPECT_EQ(table.Find("s", kNow, kTtl), std::nullopt);
  table.Use("s", kA, std::nullopt, kNow, kTtl);
  EXPECT_EQ(table.Find("s", kNow, kTtl), kA);
  // Another pick does not move it, nor refresh it.
  table.Use("s", kB, std::nullopt, kNow + absl::Seconds(5), kTtl);
  table.Use("s", kB, kC, kNow + absl::Seconds(5), kTtl);           // the lookup knew an older binding
  EXPECT_EQ(table.Find("s", kNow + absl::Seconds(10), kTtl), kA);  // not longer than the TTL
  EXPECT_EQ(table.Find("s", kNow + absl::Seconds(11), kTtl), std::nullopt);
  // Reading does not refresh; using does.
  table.Use("s", kA, std::nullopt, kNow + absl::Seconds(10), kTtl);
  EXPECT_EQ(table.Find("s", kNow + absl::Seconds(20), kTtl), kA);
  // Its endpoint was absent: it moves.
  table.Use("s", kB, kA, kNow + absl::Seconds(20), kTtl);
  EXPECT_EQ(table.Find("s", kNow + absl::Seconds(20), kTtl), kB);
  // Expired, it is bound anew.
  table.Use("s", kC, std::nullopt, kNow + absl::Seconds(31), kTtl);
  EXPECT_EQ(table.Find("s", kNow + absl::Seconds(31), kTtl), kC);
  EXPECT_EQ(table.size(), 1u);
}

TEST(SessionTable, CapacityIsABudget) {
  EXPECT_EQ(SessionTable(1'000'000).memory_bytes(), 40'000'000u);
  EXPECT_EQ(SessionTable(0).capacity(), 1u);
  EXPECT_EQ(SessionTable(5).capacity(), 5u);
  EXPECT_EQ(SessionTable(23).capacity(), 16u);
  SessionTable table(1000);
  for (int i = 0; i < 10'000; ++i) {
    const std::string session = "session " + std::to_string(i);
    table.Use(session, kA, std::nullopt, kNow + absl::Milliseconds(i), absl::Hours(1));
    EXPECT_EQ(table.Find(session, kNow + absl::Milliseconds(i), absl::Hours(1)), kA);
  }
  EXPECT_EQ(table.size(), 1000u);
}

TEST(SessionTable, HardlyAnythingIsDisplacedBelowFourFifths) {
  SessionTable table(80'000);
  const int sessions = 64'000;
  for (int i = 0; i < sessions; ++i) table.Use(std::to_string(i), kA, std::nullopt, kNow, kTtl);
  int found = 0;
  for (int i = 0; i < sessions; ++i) found += table.Find(std::to_string(i), kNow, kTtl).has_value();
  EXPECT_GE(found, sessions - sessions / 1000);
}

// What the table means: a map, and for a full one "whoever is expired or was used longest ago goes". A table
// of up to eight sessions is one group, so equal in everything; a larger one while it is far from full.
class LiteralTable {
 public:
  LiteralTable(std::size_t capacity, absl::Duration ttl) : capacity_(capacity), ttl_(ttl) {}

  std::optional<EndpointHandle> Find(const std::string& session, absl::Time now) const {
    const auto it = map_.find(session);
    if (it == map_.end() || now - it->second.seen > ttl_) return std::nullopt;
    return it->second.endpoint;
  }
  void Use(const std::string& session, EndpointHandle picked, std::optional<EndpointHandle> absent,
           absl::Time now) {
    const std::optional<EndpointHandle> bound = Find(session, now);
    if (bound && *bound != picked && bound != absent) return;
    if (map_.count(session) == 0 && map_.size() == capacity_) {
      map_.erase(std::min_element(map_.begin(), map_.end(), [](const auto& a, const auto& b) {
        return a.second.seen < b.second.seen;
      }));
    }
    map_[session] = {picked, now};
  }

 private:
  struct Binding {
    EndpointHandle endpoint;
    absl::Time seen;
  };
  std::size_t capacity_;
  absl::Duration ttl_;
  std::map<std::string, Binding> map_;
};

void CompareOnRandomStream(std::size_t capacity, int sessions, int max_step_ms, std::uint64_t seed) {
  Random random(seed);
  SessionTable table(capacity);
  LiteralTable model(capacity, kTtl);
  absl::Time now = kNow;
  for (int step = 0; step < 20'000; ++step) {
    now += absl::Milliseconds(1 + random.Below(max_step_ms));  // no two uses at one moment
    const std::string session = "s" + std::to_string(random.Below(sessions));
    const auto any_endpoint = [&] { return EndpointHandle{static_cast<std::uint32_t>(random.Below(4)), 1}; };
    const std::optional<EndpointHandle> expected = model.Find(session, now);
    ASSERT_EQ(table.Find(session, now, kTtl), expected) << "seed " << seed << " step " << step;
    if (random.Chance(0.3)) continue;
    std::optional<EndpointHandle> absent;
    if (random.Chance(0.5)) absent = random.Chance(0.8) && expected ? *expected : any_endpoint();
    const EndpointHandle picked = any_endpoint();
    table.Use(session, picked, absent, now, kTtl);
    model.Use(session, picked, absent, now);
  }
}

TEST(SessionTable, EqualsALiteralMap) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    CompareOnRandomStream(8, 12, 400, seed);  // full, and expiring
    CompareOnRandomStream(3, 12, 10, seed);   // always too small
    CompareOnRandomStream(1, 3, 2000, seed);
    CompareOnRandomStream(4096, 300, 100, seed);  // never full
  }
}

// --- the plugins ---

constexpr char kScorer[] = "session-affinity-scorer";
constexpr char kFilter[] = "session-affinity-filter";

Value BySessionId(Value::Map config = {}) {
  return Parameters({{"strategy", "session_id"}, {"sessionIdConfig", Value::MakeMap(std::move(config))}});
}

class SessionAffinityTest : public ::testing::Test {
 protected:
  void Begin(PluginRig& rig, const std::vector<Header>& with,
             std::optional<std::vector<Position>> candidates = std::nullopt) {
    headers = with;
    request = {.headers = headers};
    rig.Begin(request, std::move(candidates));
    rig.Produce();
  }
  // Scores a request of the session on `candidates`, and sends it to `target`.
  std::vector<double> Serve(PluginRig& rig, std::string_view session, Position target,
                            std::vector<Position> candidates) {
    Begin(rig, {{"x-session-id", session}});
    const std::vector<double> scores = rig.Score(candidates);
    rig.Decide(target);
    return scores;
  }

  EndpointPool pool = MakePool(3);
  std::vector<Header> headers;
  Request request;
};

TEST_F(SessionAffinityTest, EncodedEndpointOfTheHeader) {
  PluginRig scorer(pool, kScorer);
  PluginRig filter(pool, kFilter);
  const auto score = [&](const std::vector<Header>& with) {
    Begin(scorer, with);
    return scorer.Score();
  };
  const auto kept = [&](const std::vector<Header>& with) {
    Begin(filter, with);
    return filter.Filter();
  };
  // base64 of "default/pod-1", by hand.
  const std::vector<Header> pod_1 = {{"x-session-token", "ZGVmYXVsdC9wb2QtMQ=="}};
  EXPECT_THAT(score(pod_1), ElementsAre(0, 1, 0));
  EXPECT_THAT(kept(pod_1), ElementsAre(1));
  for (const char* token :
       {"", "ZGVmYXVsdC9wb2QtMQ", "ZGVmYXVsdC9wb2QtMQ=", "ZGVmYXVsdC9wb2QtOQ==", "default/pod-1", "=",
        "====", "Z===", "ZGVm*XVsdC9wb2QtMQ==", "ZGVmYXVsdC9wb2QtMQ==\n"}) {
    EXPECT_THAT(score({{"x-session-token", token}}), ElementsAre(0, 0, 0)) << token;
    EXPECT_THAT(kept({{"x-session-token", token}}), ElementsAre(0, 1, 2)) << token;
  }
  EXPECT_THAT(score({{"x-session-token", std::string(100'000, 'A')}}), ElementsAre(0, 0, 0));
  EXPECT_THAT(score({}), ElementsAre(0, 0, 0));

  // Named, but no candidate.
  Begin(scorer, pod_1);
  EXPECT_THAT(scorer.Score({0, 2}), ElementsAre(0, 0));
  Begin(filter, pod_1, std::vector<Position>{0, 2});
  EXPECT_THAT(filter.Filter(), ElementsAre(0, 2));
}

TEST_F(SessionAffinityTest, TheAnswerNamesTheEndpoint) {
  PluginRig plain(pool, kFilter);
  Begin(plain, {});
  Dispatch dispatch;
  ASSERT_TRUE(plain.Decide({{"decode", {2, 0}}, {"prefill", {1}}}, dispatch).ok());
  EXPECT_TRUE(dispatch.headers.empty());
  HeaderEdits answer;
  dispatch.flight.OnResponseHeaders(kNow, answer);
  ASSERT_EQ(answer.size(), 1u);
  EXPECT_EQ(answer[0].name, "x-session-token");
  EXPECT_EQ(answer[0].value, "ZGVmYXVsdC9wb2QtMg==");  // default/pod-2

  const auto answers = [&](const Value& parameters, const std::vector<PluginRig::Ran>& profiles) {
    PluginRig rig(pool, kScorer, parameters);
    Begin(rig, {});
    Dispatch sent;
    EXPECT_TRUE(rig.Decide(profiles, sent).ok());
    HeaderEdits headers;
    sent.flight.OnResponseHeaders(kNow, headers);
    return headers;
  };
  const Value prefill = Parameters(
      {{"profileName", "prefill"}, {"encodedEndpointHeaderConfig", Parameters({{"header", "X-Prefill"}})}});
  const HeaderEdits of_prefill = answers(prefill, {{"decode", {2}}, {"prefill", {1}}});
  ASSERT_EQ(of_prefill.size(), 1u);
  EXPECT_EQ(of_prefill[0].name, "x-prefill");
  EXPECT_EQ(of_prefill[0].value, "ZGVmYXVsdC9wb2QtMQ==");
  EXPECT_TRUE(answers(prefill, {{"decode", {2}}, {"prefill", {}}}).empty());  // did not run
  EXPECT_TRUE(answers(prefill, {{"decode", {2}}}).empty());
  EXPECT_TRUE(answers(BySessionId(), {{"decode", {2}}}).empty());
}

TEST_F(SessionAffinityTest, SessionStaysWhereItIsBound) {
  PluginRig rig(pool, kScorer, BySessionId());
  EXPECT_THAT(Serve(rig, "s", 1, {0, 1, 2}), ElementsAre(0, 0, 0));
  EXPECT_THAT(Serve(rig, "s", 2, {0, 1, 2}), ElementsAre(0, 1, 0));  // outscored; the binding stays
  EXPECT_THAT(Serve(rig, "t", 0, {0, 1, 2}), ElementsAre(0, 0, 0));
  EXPECT_THAT(Serve(rig, "s", 1, {0, 1, 2}), ElementsAre(0, 1, 0));
  EXPECT_THAT(Serve(rig, "", 1, {0, 1, 2}), ElementsAre(0, 0, 0));
  // Not among the candidates: it moves.
  EXPECT_THAT(Serve(rig, "s", 2, {0, 2}), ElementsAre(0, 0));
  EXPECT_THAT(Serve(rig, "s", 2, {0, 1, 2}), ElementsAre(0, 0, 1));
  // Unused for longer than 300 s.
  rig.now += absl::Seconds(301);
  EXPECT_THAT(Serve(rig, "s", 0, {0, 1, 2}), ElementsAre(0, 0, 0));
  EXPECT_THAT(Serve(rig, "s", 0, {0, 1, 2}), ElementsAre(1, 0, 0));
}

TEST_F(SessionAffinityTest, FilterKeepsOnlyTheBoundEndpoint) {
  PluginRig rig(pool, kFilter, BySessionId({{"evictionTtlSeconds", 0.5}}));
  Begin(rig, {{"x-session-id", "s"}});
  EXPECT_THAT(rig.Filter(), ElementsAre(0, 1, 2));
  rig.Decide(2);
  Begin(rig, {{"x-session-id", "s"}});
  EXPECT_THAT(rig.Filter(), ElementsAre(2));
  rig.now += absl::Milliseconds(501);
  Begin(rig, {{"x-session-id", "s"}});
  EXPECT_THAT(rig.Filter(), ElementsAre(0, 1, 2));
}

TEST_F(SessionAffinityTest, OnlyAnAbsentEndpointIsLeft) {
  PluginRig rig(pool, kScorer, BySessionId());
  Serve(rig, "s", 1, {0, 1, 2});
  // No profile looked.
  Begin(rig, {{"x-session-id", "s"}});
  rig.Decide(0);
  EXPECT_THAT(Serve(rig, "s", 1, {0, 1, 2}), ElementsAre(0, 1, 0));
  // One profile saw it, another did not.
  for (const auto& order : {std::vector<std::vector<Position>>{{0, 2}, {1, 2}}, {{1, 2}, {0, 2}}}) {
    Begin(rig, {{"x-session-id", "s"}});
    for (const std::vector<Position>& candidates : order) rig.Score(candidates);
    rig.Decide(2);
    EXPECT_THAT(Serve(rig, "s", 1, {0, 1, 2}), ElementsAre(0, 1, 0));
  }
  // The table moved on between lookup and decision.
  Begin(rig, {{"x-session-id", "s"}});
  rig.Score({0, 2});
  rig.under_test.states.GetOrMake<SessionTable>(kScorer, [] { return nullptr; })
      ->Use("s", pool[2].handle, pool[1].handle, kNow, absl::Seconds(300));
  rig.Decide(0);
  EXPECT_THAT(Serve(rig, "s", 2, {0, 1, 2}), ElementsAre(0, 0, 1));
}

TEST_F(SessionAffinityTest, EndpointGoneAndBack) {
  PluginRig rig(pool, kScorer, BySessionId());
  Serve(rig, "s", 0, {0, 1, 2});
  const EndpointMetadata metadata = pool[0].metadata();
  pool.Remove(pool[0].handle);
  ASSERT_TRUE(pool.Add(metadata).ok());  // position 2 now; a new process with an empty cache
  EXPECT_THAT(Serve(rig, "s", 1, {0, 1, 2}), ElementsAre(0, 0, 0));
  EXPECT_THAT(Serve(rig, "s", 1, {0, 1, 2}), ElementsAre(0, 1, 0));
}

TEST_F(SessionAffinityTest, ProfileWhoseTargetCounts) {
  PluginRig rig(pool, kScorer, Parameters({{"strategy", "session_id"}, {"profileName", "prefill"}}));
  const auto serve = [&](const std::vector<PluginRig::Ran>& profiles) {
    Begin(rig, {{"x-session-id", "s"}});
    const std::vector<double> scores = rig.Score();
    Dispatch dispatch;
    EXPECT_TRUE(rig.Decide(profiles, dispatch).ok());
    return scores;
  };
  serve({{"decode", {0}}, {"prefill", {}}});
  EXPECT_THAT(serve({{"decode", {0}}, {"prefill", {2}}}), ElementsAre(0, 0, 0));
  EXPECT_THAT(serve({{"decode", {0}}, {"prefill", {2}}}), ElementsAre(0, 0, 1));
}

TEST_F(SessionAffinityTest, SourcesInOrder) {
  const Value sources =
      BySessionId({{"sources", Value::MakeList({Parameters({{"header", "X-First"}}),
                                                Parameters({{"attribute", "SessionID"}, {"producer", "ids"}}),
                                                Parameters({{"header", "x-last"}})})}});
  PluginRig rig(pool, kScorer, sources);
  const auto serve = [&](const std::vector<Header>& with, const char* datum, Position target) {
    headers = with;
    request = {.headers = headers};
    rig.Begin(request);
    if (datum != nullptr) rig.PublishForRequest<SessionId>("ids", {datum});
    rig.Produce();
    const std::vector<double> scores = rig.Score();
    rig.Decide(target);
    return scores;
  };
  serve({{"x-first", "a"}, {"x-last", "c"}}, "b", 0);
  EXPECT_THAT(serve({{"x-last", "c"}}, "b", 1), ElementsAre(0, 0, 0));
  EXPECT_THAT(serve({{"x-last", "c"}}, nullptr, 2), ElementsAre(0, 0, 0));
  EXPECT_THAT(serve({{"x-first", "c"}, {"x-last", "a"}}, "b", 2), ElementsAre(0, 0, 1));
  EXPECT_THAT(serve({{"x-first", ""}, {"x-last", "a"}}, "b", 1), ElementsAre(0, 1, 0));
  EXPECT_THAT(serve({{"x-session-id", "a"}}, nullptr, 2), ElementsAre(0, 0, 0));  // no source of ours
}

TEST_F(SessionAffinityTest, BadParameters) {
  const auto message = [](const Value& p) {
    return std::string(PluginUnderTest(kScorer, p).status.message());
  };
  EXPECT_THAT(message(Parameters({{"strategy", "sticky"}})),
              HasSubstr("strategy is \"sticky\", expected encoded_endpoint_header or session_id"));
  EXPECT_THAT(message(BySessionId({{"evictionTtlSeconds", 0}})),
              HasSubstr("sessionIdConfig.evictionTtlSeconds is 0, expected more than 0"));
  EXPECT_THAT(message(BySessionId({{"evictionSweepSeconds", -1}})), HasSubstr("evictionSweepSeconds is -1"));
  EXPECT_THAT(message(BySessionId({{"maxSessions", 0}})), HasSubstr("maxSessions is 0, expected 1.."));
  EXPECT_THAT(message(BySessionId({{"ttl", 1}})), HasSubstr("sessionIdConfig.ttl is unknown"));
  const auto source = [&](Value::Map fields) {
    return message(BySessionId({{"sources", Value::MakeList({Value::MakeMap(std::move(fields))})}}));
  };
  EXPECT_THAT(source({}), HasSubstr("sources[0].header is missing, expected one of header and attribute"));
  EXPECT_THAT(source({{"header", "a"}, {"attribute", "SessionID"}}),
              HasSubstr("one of header and attribute"));
  EXPECT_THAT(source({{"attribute", "Color"}}), HasSubstr("attribute is \"Color\", expected SessionID"));
  EXPECT_THAT(message(Parameters({{"encodedEndpointHeaderConfig", Parameters({{"header", ""}})}})),
              HasSubstr("encodedEndpointHeaderConfig.header is empty"));
  for (const char* type : {kScorer, kFilter}) {
    EXPECT_EQ(PluginRegistry::Builtin().Find(type)->stability, Stability::kExperimental);
  }
}

// Through a scheduler: the producer runs before the plugin, and a reload keeps sessions.
TEST_F(SessionAffinityTest, ReloadKeepsSessions) {
  SchedulerConfig config;
  config.allow_experimental = true;
  config.plugins = {
      {.name = "sticky",
       .type = kFilter,
       .parameters = BySessionId({{"sources", Value::MakeList({Parameters({{"attribute", "SessionID"}})})}})},
      {.type = "session-id-producer", .parameters = Parameters({{"cookieName", "sid"}})}};
  config.profiles = {{"default", {{.plugin = "sticky"}}}};
  const Resources resources{.states = std::make_shared<PluginStates>()};
  const std::vector<Header> with = {{"cookie", "sid=abc"}};
  const Request cookie{.headers = with};
  auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), resources);
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  std::optional<Position> bound;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    if (seed == 20) {
      config.plugins[0].parameters = BySessionId(
          {{"maxSessions", 10}, {"sources", Value::MakeList({Parameters({{"attribute", "SessionID"}})})}});
      auto next = Scheduler::Create(config, PluginRegistry::Builtin(), resources);
      ASSERT_TRUE(next.ok());
      EXPECT_THAT((*next)->warnings(), ElementsAre(HasSubstr("maxSessions is 10")));
      scheduler = std::move(next);
    }
    Workspace workspace(**scheduler);
    Decision decision;
    Dispatch dispatch;
    const ScheduleInput input{.request = cookie, .pool = pool, .now = kNow, .seed = seed};
    ASSERT_TRUE((*scheduler)->Schedule(input, workspace, decision).ok());
    ASSERT_TRUE((*scheduler)->RunPreRequest(input, workspace, decision, dispatch).ok());
    if (!bound) bound = decision.target();
    EXPECT_EQ(decision.target(), *bound);
  }
}

TEST(SessionAffinityDefault, SessionIdsNeedTheirParameters) {
  SchedulerConfig config;
  config.allow_experimental = true;
  config.plugins = {{.type = kFilter,
                     .parameters = BySessionId(
                         {{"sources", Value::MakeList({Parameters({{"attribute", "SessionID"}})})}})}};
  EXPECT_THAT(Scheduler::Create(config, PluginRegistry::Builtin(), {}).status().message(),
              HasSubstr("session-id-producer: headerName is missing"));
}

}  // namespace
}  // namespace llmd::sched
