// Handlers of data-parallel ranks and of profiles named by a header.
#include <gmock/gmock.h>

#include "llmd/sched/result_headers.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class HandlerTest : public ::testing::Test {
 protected:
  absl::Status Create(PluginSpec handler, const std::vector<std::string>& profiles) {
    SchedulerConfig config;
    config.allow_experimental = allow_experimental;
    config.plugins = {std::move(handler),
                      {"", "decode-filter", {}},
                      {"", "prefill-filter", {}},
                      {"", "max-score-picker", Parameters({{"maxNumOfEndpoints", 9}})},
                      {"", "queue-scorer", {}}};
    for (const std::string& profile : profiles) {
      config.profiles.push_back(
          {profile, {{profile == "prefill" ? "prefill-filter" : "decode-filter", {}}, {"queue-scorer", {}}}});
    }
    auto made = Scheduler::Create(config, PluginRegistry::Builtin(), {});
    if (!made.ok()) return made.status();
    scheduler = *std::move(made);
    workspace = std::make_unique<Workspace>(*scheduler);
    return absl::OkStatus();
  }

  absl::Status Run(const std::vector<Header>& headers = {}) {
    request.headers = headers;
    const ScheduleInput input{.request = request, .pool = pool, .now = kNow, .seed = 1};
    const absl::Status status = scheduler->Schedule(input, *workspace, decision);
    dispatch = {};
    if (status.ok()) {
      EXPECT_TRUE(scheduler->RunPreRequest(input, *workspace, decision, dispatch).ok());
    }
    return status;
  }

  bool allow_experimental = true;
  EndpointPool pool;
  Request request;
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<Workspace> workspace;
  Decision decision;
  Dispatch dispatch;
};

TEST_F(HandlerTest, DataParallelGoesToThePrimaryPort) {
  // Two pods of two ranks; queues 3, 1, 0, 2.
  for (std::uint32_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(pool.Add({.name = "rank-" + std::to_string(i),
                          .address = i < 2 ? "10.0.0.1" : "10.0.0.2",
                          .port = static_cast<std::uint16_t>(8200 + i % 2),
                          .rank = i % 2})
                    .ok());
  }
  for (Position p = 0; p < 4; ++p) {
    MetricsAt(pool, p).waiting_requests = {std::vector<int>{3, 1, 0, 2}[p], kNow};
  }
  ASSERT_TRUE(Create({"", "data-parallel-profile-handler", {}}, {"default"}).ok());
  ASSERT_TRUE(Run().ok());
  // Best first: 2, 1, 3, 0.
  EXPECT_EQ(DestinationEndpoint(decision, pool), "10.0.0.2:8000,10.0.0.1:8000,10.0.0.2:8000,10.0.0.1:8000");
  EXPECT_THAT(decision.primary_result().targets, ElementsAre(2, 1, 3, 0));
  ASSERT_EQ(dispatch.headers.size(), 1u);
  EXPECT_EQ(dispatch.headers[0].name, "x-data-parallel-host-port");
  EXPECT_EQ(dispatch.headers[0].value, "10.0.0.2:8200");

  ASSERT_TRUE(Create({"", "data-parallel-profile-handler", Parameters({{"primaryPort", 1}})}, {"x"}).ok());
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(decision.primary_result().port, 1);
  // Another decision into the same object starts afresh.
  pool = {};
  AddEndpoint(pool, {{std::string(kRoleLabel), "prefill"}});
  EXPECT_EQ(Run().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(decision.primary_result().port, 0);
}

TEST_F(HandlerTest, DataParallelErrors) {
  EXPECT_EQ(Create({"", "data-parallel-profile-handler", {}}, {"a", "b"}).message(),
            "data-parallel-profile-handler: 2 profiles, expected 1");
  for (const int port : {0, -1, 65536}) {
    EXPECT_THAT(
        std::string(Create({"", "data-parallel-profile-handler", Parameters({{"primaryPort", port}})}, {"a"})
                        .message()),
        HasSubstr("primaryPort is " + std::to_string(port) + ", expected 1..65535"));
  }
}

TEST_F(HandlerTest, TheHeaderNamesTheProfile) {
  AddEndpoint(pool, {{std::string(kRoleLabel), "prefill"}});
  AddEndpoint(pool, {{std::string(kRoleLabel), "decode"}});
  ASSERT_TRUE(Create({"", "header-profile-handler", {}}, {"prefill", "decode"}).ok());
  EXPECT_THAT(scheduler->warnings(), IsEmpty());
  const auto target = [&](const std::vector<Header>& headers) -> std::string {
    const absl::Status status = Run(headers);
    return status.ok() ? pool[decision.target()].id() : std::string(status.message());
  };
  EXPECT_EQ(target({{"epp-profile", "prefill"}}), "default/pod-0");
  EXPECT_EQ(decision.primary, 0u);
  EXPECT_EQ(decision.profiles[1].state, ProfileState::kPending);
  EXPECT_EQ(target({{"epp-profile", " \tprefill "}}), "default/pod-0");
  EXPECT_EQ(target({{"epp-profile", "decode"}}), "default/pod-1");
  EXPECT_EQ(target({}), "default/pod-1");
  EXPECT_EQ(target({{"epp-profile", "  "}}), "default/pod-1");
  // Names are exact.
  for (const char* name : {"Prefill", "prefil", "encode", "prefill,decode"}) {
    EXPECT_EQ(target({{"epp-profile", name}}), "failed to run any scheduler profile") << name;
    EXPECT_EQ(HttpStatus(Run({{"epp-profile", name}}).code()), 429);
  }
}

TEST_F(HandlerTest, AHeaderProfileThatFindsNobody) {
  AddEndpoint(pool, {{std::string(kRoleLabel), "decode"}});
  ASSERT_TRUE(Create({"", "header-profile-handler", {}}, {"prefill", "decode"}).ok());
  const absl::Status status = Run({{"epp-profile", "prefill"}});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetDroppedReason(status), DroppedReason::kSaturated);
}

TEST_F(HandlerTest, HeaderProfileParameters) {
  AddEndpoint(pool, {{std::string(kRoleLabel), "prefill"}});
  AddEndpoint(pool, {{std::string(kRoleLabel), "decode"}});
  const Value parameters = Parameters({{"headerName", " X-Stage "}, {"defaultProfile", " prefill "}});
  ASSERT_TRUE(Create({"", "header-profile-handler", parameters}, {"prefill", "decode"}).ok());
  ASSERT_TRUE(Run({{"x-stage", "decode"}}).ok());
  EXPECT_EQ(decision.target(), 1u);
  ASSERT_TRUE(Run({{"epp-profile", "decode"}}).ok());
  EXPECT_EQ(decision.target(), 0u);
  // The only profile runs whatever the header says.
  ASSERT_TRUE(Create({"", "header-profile-handler", {}}, {"prefill"}).ok());
  ASSERT_TRUE(Run({{"epp-profile", "decode"}}).ok());
  EXPECT_EQ(decision.target(), 0u);
  // A default that does not exist is worth a warning.
  ASSERT_TRUE(Create({"", "header-profile-handler", {}}, {"prefill", "other"}).ok());
  EXPECT_THAT(
      scheduler->warnings(),
      ElementsAre("header-profile-handler: defaultProfile is \"decode\", which is no profile, so requests "
                  "without the header are refused"));
  EXPECT_EQ(Run().message(), "failed to run any scheduler profile");
  EXPECT_THAT(
      std::string(Create({"", "header-profile-handler", Parameters({{"header", "x"}})}, {"a"}).message()),
      HasSubstr("header is unknown, expected one of headerName, defaultProfile"));
  allow_experimental = false;
  EXPECT_THAT(std::string(Create({"", "header-profile-handler", {}}, {"a"}).message()),
              HasSubstr("type \"header-profile-handler\" is experimental"));
}

}  // namespace
}  // namespace llmd::sched
