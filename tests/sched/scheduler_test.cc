// Whole decisions: profile rules, handler loop, errors, explanations, hooks.
#include "llmd/sched/scheduler.h"

#include <gmock/gmock.h>

#include <functional>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A scorer of given numbers.
class FixedScorer final : public Plugin, public Scorer {
 public:
  FixedScorer(std::string name, std::vector<double> scores)
      : Plugin("fixed", std::move(name)), scores_(std::move(scores)) {}
  void Score(Context&, std::span<const Position> candidates, std::span<double> scores) const override {
    for (std::size_t i = 0; i < candidates.size(); ++i) scores[i] = scores_[candidates[i]];
  }

 private:
  std::vector<double> scores_;
};

// Drops the positions given.
class DropFilter final : public Plugin, public Filter {
 public:
  DropFilter(std::string name, std::set<Position> drop)
      : Plugin("drop", std::move(name)), drop_(std::move(drop)) {}
  void Apply(Context&, std::span<const Position> candidates, std::span<DropReason> dropped) const override {
    EXPECT_FALSE(candidates.empty());
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (drop_.count(candidates[i]) > 0) dropped[i] = "on the list";
    }
  }

 private:
  std::set<Position> drop_;
};

// Runs the profiles one after the other, skips those named "skip*"; the last done one is primary.
class ChainHandler final : public Plugin, public ProfileHandler {
 public:
  explicit ChainHandler(std::string name, bool endless = false)
      : Plugin("chain", std::move(name)), endless_(endless) {}
  absl::Status Bind(std::span<const std::string> profiles) override {
    names_.assign(profiles.begin(), profiles.end());
    return absl::OkStatus();
  }
  void Next(Context&, std::span<ProfileResult> profiles) const override {
    if (endless_) {
      profiles[0].state = ProfileState::kRequested;
      return;
    }
    for (std::size_t i = 0; i < profiles.size(); ++i) {
      if (profiles[i].state != ProfileState::kPending) continue;
      if (names_[i].starts_with("skip")) {
        profiles[i].state = ProfileState::kSkipped;
        continue;
      }
      profiles[i].state = ProfileState::kRequested;
      return;
    }
  }
  absl::Status Finish(Context&, Decision& decision) const override {
    for (std::uint32_t i = 0; i < decision.profiles.size(); ++i) {
      if (decision.profiles[i].state == ProfileState::kDone) decision.primary = i;
    }
    if (decision.primary_result().state == ProfileState::kDone) return absl::OkStatus();
    return absl::ResourceExhaustedError("nothing found");
  }

 private:
  bool endless_;
  std::vector<std::string> names_;
};

class FailingHook final : public Plugin, public PreRequest {
 public:
  FailingHook(std::string name, absl::Status status)
      : Plugin("hook", std::move(name)), status_(std::move(status)) {}
  absl::Status OnDecision(Context&, const Decision&, std::span<const std::string>,
                          Dispatch& dispatch) override {
    dispatch.headers.push_back({"x-" + name(), "yes"});
    return status_;
  }

 private:
  absl::Status status_;
};

class SchedulerTest : public ::testing::Test {
 protected:
  // Makes `name` a plugin built by `make`.
  void Define(const std::string& name, std::function<std::unique_ptr<Plugin>()> make) {
    ASSERT_TRUE(
        registry
            .Register(name,
                      [make](PluginBuilder&) -> absl::StatusOr<std::unique_ptr<Plugin>> { return make(); })
            .ok());
    config.plugins.push_back({name, name, {}});
  }
  void DefineScores(const std::string& name, std::vector<double> scores) {
    Define(name, [=] { return std::make_unique<FixedScorer>(name, scores); });
  }
  void DefineDrops(const std::string& name, std::set<Position> drop) {
    Define(name, [=] { return std::make_unique<DropFilter>(name, drop); });
  }

  absl::Status Run(std::optional<std::span<const Position>> candidates = std::nullopt,
                   std::uint64_t seed = 1) {
    if (scheduler == nullptr) {
      auto made = Scheduler::Create(config, registry, {{index.source(), index.source()}});
      EXPECT_TRUE(made.ok()) << made.status();
      scheduler = *std::move(made);
      workspace = std::make_unique<Workspace>(*scheduler);
    }
    return scheduler->Schedule(
        {.request = request, .pool = pool, .candidates = candidates, .now = kNow, .seed = seed}, *workspace,
        decision, &explanation);
  }
  std::vector<double> Totals(std::size_t profile = 0) const {
    std::vector<double> totals;
    for (const ScoredEndpoint& s : decision.profiles[profile].scored) totals.push_back(s.score);
    return totals;
  }

  PluginRegistry registry = PluginRegistry::Builtin();
  SchedulerConfig config;
  FakeIndex index;
  EndpointPool pool = MakePool(4);
  Request request;
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<Workspace> workspace;
  Decision decision;
  Explanation explanation;
};

TEST_F(SchedulerTest, ScoresAreClampedOneByOneAndNotNormalised) {
  DefineScores("a", {2.0, 0.5, -1.0, kNoScore});
  DefineScores("b", {0.25, 1.0, 1.0, 0.5});
  config.profiles = {{"p", {{"a", 4}, {"b", 2}}}};
  ASSERT_TRUE(Run().ok());
  EXPECT_THAT(Totals(), ElementsAre(4.5, 4.0, 2.0, 1.0));
  EXPECT_THAT(decision.primary_result().targets, ElementsAre(0));
  EXPECT_EQ(decision.target(), 0u);
}

TEST_F(SchedulerTest, ZeroNegativeAndDefaultWeights) {
  DefineScores("a", {1, 0.5, 0, 0});
  DefineScores("b", {1, 0, 0.5, 0});
  DefineScores("c", {1, 1, 1, 1});
  config.profiles = {{"p", {{"a", -2}, {"b", 0}, {"c", std::nullopt}}}};
  ASSERT_TRUE(Run().ok());
  EXPECT_THAT(Totals(), ElementsAre(-1.0, 0.0, 1.0, 1.0));
}

TEST_F(SchedulerTest, ExplanationTellsEverything) {
  DefineDrops("first", {1});
  DefineDrops("second", {3});
  DefineScores("a", {2.0, 0, kNoScore, 0});
  config.profiles = {{"p", {{"first", {}}, {"a", 3}, {"second", {}}}}};
  ASSERT_TRUE(Run({}, 77).ok());
  EXPECT_EQ(explanation.seed, 77u);
  EXPECT_EQ(explanation.candidates, 4u);
  const Explanation::Profile& p = explanation.profiles[0];
  EXPECT_EQ(p.state, ProfileState::kDone);
  ASSERT_EQ(p.drops.size(), 2u);
  EXPECT_EQ(p.drops[0].position, 1u);
  EXPECT_EQ(p.drops[0].filter, "first");
  EXPECT_STREQ(p.drops[1].reason, "on the list");
  ASSERT_EQ(p.totals.size(), 2u);
  EXPECT_EQ(p.raw_at(0, 0), 2.0);
  EXPECT_EQ(p.weighted_at(0, 0), 3.0);
  EXPECT_TRUE(std::isnan(p.raw_at(0, 1)));
  EXPECT_EQ(p.weighted_at(0, 1), 0.0);
  EXPECT_THAT(p.picked, ElementsAre(0));
  const std::string text = explanation.ToString(pool);
  EXPECT_THAT(text, HasSubstr("seed 77, 4 candidates"));
  EXPECT_THAT(text, HasSubstr("profile p (primary): done"));
  EXPECT_THAT(text, HasSubstr("dropped default/pod-1 by first: on the list"));
  EXPECT_THAT(text, HasSubstr("a x3"));
  EXPECT_THAT(text, HasSubstr("2.0000 -> 3.0000"));
  EXPECT_THAT(text, HasSubstr("- -> 0.0000"));
}

TEST_F(SchedulerTest, NoEndpointsAtAll) {
  pool = {};
  const absl::Status status = Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ToString(GetDroppedReason(status)), "rejected-no-endpoints");
  EXPECT_EQ(GetDroppedReason(absl::InternalError("x")), DroppedReason::kNone);
}

TEST_F(SchedulerTest, FiltersLeaveNone) {
  DefineDrops("first", {0, 1, 2, 3});
  DefineDrops("second", {0});  // must not be asked
  ASSERT_TRUE(pool.size() == 4);
  const absl::Status status = Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ToString(GetDroppedReason(status)), "rejected-saturated");
  EXPECT_THAT(std::string(status.message()), HasSubstr("no endpoints available for the given request"));
  EXPECT_THAT(decision.profiles[0].targets, IsEmpty());
  EXPECT_EQ(explanation.profiles[0].state, ProfileState::kFailed);
  EXPECT_EQ(explanation.profiles[0].drops.size(), 4u);
  EXPECT_THAT(explanation.ToString(pool), HasSubstr("no endpoint left"));
}

TEST_F(SchedulerTest, CandidatesAreASubset) {
  DefineScores("a", {1.0, 0.9, 0.8, 0.7});
  const std::vector<Position> some = {1, 3};
  ASSERT_TRUE(Run(some).ok());
  EXPECT_EQ(decision.target(), 1u);
  EXPECT_THAT(Totals(), ElementsAre(0.9, 0.7));
  const std::vector<Position> none;
  EXPECT_EQ(GetDroppedReason(Run(none)), DroppedReason::kNoEndpoints);
  for (const std::vector<Position>& bad : {std::vector<Position>{4}, {1, 1}, {2, 1}}) {
    EXPECT_EQ(Run(bad).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(SchedulerTest, MetricScorersLookAtSurvivorsOnly) {
  for (Position p = 0; p < 4; ++p) MetricsAt(pool, p).waiting_requests = {p * 10, kNow};
  DefineDrops("first", {0, 3});
  config.plugins.push_back({"", "queue-scorer", {}});
  ASSERT_TRUE(Run().ok());
  EXPECT_THAT(Totals(), ElementsAre(1.0, 0.0));
}

TEST_F(SchedulerTest, SeveralProfilesSeeAllCandidates) {
  DefineDrops("no0", {0});
  DefineDrops("no1", {1});
  DefineScores("a", {1.0, 0.9, 0.8, 0.7});
  Define("chain", [] { return std::make_unique<ChainHandler>("chain"); });
  config.profiles = {{"x", {{"no0", {}}, {"a", {}}}}, {"skip", {{"a", {}}}}, {"y", {{"no1", {}}, {"a", {}}}}};
  ASSERT_TRUE(Run().ok());
  EXPECT_THAT(scheduler->profiles(), ElementsAre("x", "skip", "y"));
  EXPECT_EQ(decision.primary, 2u);
  EXPECT_EQ(decision.target(), 0u);
  EXPECT_THAT(decision.profiles[0].targets, ElementsAre(1));
  EXPECT_EQ(decision.profiles[1].state, ProfileState::kSkipped);
  EXPECT_THAT(explanation.ToString(pool), HasSubstr("profile skip: skipped"));
}

TEST_F(SchedulerTest, AFailedProfileDoesNotFailTheOthers) {
  DefineDrops("all", {0, 1, 2, 3});
  Define("chain", [] { return std::make_unique<ChainHandler>("chain"); });
  config.profiles = {{"x", {}}, {"y", {{"all", {}}}}};
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(decision.primary, 0u);
  EXPECT_EQ(decision.profiles[1].state, ProfileState::kFailed);
}

TEST_F(SchedulerTest, AHandlerThatNeverEndsIsBounded) {
  DefineScores("a", {1.0, 0.9, 0.8, 0.7});
  Define("chain", [] { return std::make_unique<ChainHandler>("chain", true); });
  config.profiles = {{"x", {{"a", {}}}}};
  ASSERT_TRUE(Run().ok());
  EXPECT_THAT(decision.profiles[0].targets, ElementsAre(0));
  EXPECT_EQ(explanation.profiles[0].scorers.size(), 1u);
}

TEST_F(SchedulerTest, NoProfileRun) {
  Define("chain", [] { return std::make_unique<ChainHandler>("chain"); });
  config.profiles = {{"skip", {}}};
  EXPECT_THAT(std::string(Run().message()), HasSubstr("nothing found"));
}

TEST_F(SchedulerTest, SameInputSameDecision) {
  config.profiles = {{"p", {}}};  // no scorer: every endpoint ties
  std::set<Position> seen;
  for (std::uint64_t seed = 0; seed < 64; ++seed) {
    ASSERT_TRUE(Run({}, seed).ok());
    const Position target = decision.target();
    const std::uint64_t tie_seed = explanation.profiles[0].tie_seed;
    seen.insert(target);
    Workspace other(*scheduler);
    Decision again;
    ASSERT_TRUE(
        scheduler->Schedule({.request = request, .pool = pool, .now = kNow, .seed = seed}, other, again)
            .ok());
    EXPECT_EQ(again.target(), target);
    ASSERT_TRUE(Run({}, seed).ok());
    EXPECT_EQ(explanation.profiles[0].tie_seed, tie_seed);
  }
  EXPECT_EQ(seen.size(), 4u);
}

TEST_F(SchedulerTest, ApproximateIndexLearnsFromDecisions) {
  config = SchedulerConfig::Default();
  for (Position p = 0; p < 4; ++p) {
    ASSERT_TRUE(
        pool.BindHolder(kApproximateSource, {static_cast<std::uint16_t>(10 + p), 1}, pool[p].handle).ok());
  }
  const TestRequest prompt(8, 64);
  request = prompt.request;
  ASSERT_TRUE(Run({}, 5).ok());
  const Position first = decision.target();
  Dispatch dispatch;
  const ScheduleInput input{.request = request, .pool = pool, .now = kNow, .seed = 5};
  ASSERT_TRUE(scheduler->RunPreRequest(input, *workspace, decision, dispatch).ok());
  EXPECT_THAT(dispatch.headers, IsEmpty());
  EXPECT_EQ(index.Depth(10 + first, prompt.keys), 8u);
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    ASSERT_TRUE(Run({}, seed).ok());
    EXPECT_EQ(decision.target(), first);
    EXPECT_EQ(decision.primary_result().scored[first].score, 3.0);
  }
}

TEST_F(SchedulerTest, EveryHookRunsAndFailuresAreJoined) {
  const auto hook = [&](const char* name, absl::Status status) {
    Define(name, [=] { return std::make_unique<FailingHook>(name, status); });
  };
  hook("h1", absl::OkStatus());
  hook("h2", absl::UnavailableError("two"));
  hook("h3", absl::OkStatus());
  ASSERT_TRUE(Run().ok());
  Dispatch dispatch;
  const ScheduleInput input{.request = request, .pool = pool};
  EXPECT_EQ(scheduler->RunPreRequest(input, *workspace, decision, dispatch), absl::UnavailableError("two"));
  EXPECT_EQ(dispatch.headers.size(), 3u);
  scheduler = nullptr;
  hook("h4", absl::NotFoundError("four"));
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(scheduler->RunPreRequest(input, *workspace, decision, dispatch),
            absl::InternalError("two; four"));
}

}  // namespace
}  // namespace llmd::sched
