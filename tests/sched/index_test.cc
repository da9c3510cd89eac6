// The scheduler over the library's own indexes: events in one, decisions in the other.
#include <gmock/gmock.h>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

TEST(SchedulerOverIndexes, ExactAndApproximate) {
  const auto exact = *index::PrefixIndex::Create({});
  const auto approximate = *index::ApproxIndex::Create({});
  EndpointPool pool = MakePool(3);
  std::vector<index::HolderId> gpu;
  for (Position p = 0; p < pool.size(); ++p) {
    index::HolderOptions options;
    options.endpoint = pool[p].host_port();
    gpu.push_back(*exact->AddHolder(options));
    options.tier = "cpu";
    const index::HolderId cpu = *exact->AddHolder(options);
    const index::HolderId sent = *approximate->AddHolder(pool[p].host_port());
    ASSERT_TRUE(pool.BindHolder(kExactSource, gpu[p], pool[p].handle, "gpu").ok());
    ASSERT_TRUE(pool.BindHolder(kExactSource, cpu, pool[p].handle, "cpu").ok());
    ASSERT_TRUE(pool.BindHolder(kApproximateSource, sent, pool[p].handle).ok());
  }

  SchedulerConfig config;
  config.plugins = {{"", "precise-prefix-cache-producer", {}},
                    {"precise", "prefix-cache-scorer",
                     Parameters({{"prefixMatchInfoProducerName", "precise-prefix-cache-producer"}})},
                    {"approximate", "prefix-cache-scorer", {}}};
  config.profiles = {{"default", {{"precise", 1.0}, {"approximate", 10.0}}}};
  const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(),
                                           {{ExactIndex(*exact), ApproximateIndex(*approximate)}});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  Workspace workspace(**scheduler);
  Decision decision;
  const TestRequest request(8, 64);
  const ScheduleInput input{.request = request.request, .pool = pool, .now = kNow, .seed = 3};

  // Endpoint 1 has half of the prompt, as its events say.
  std::vector<index::StoredBlock> blocks;
  for (std::size_t i = 0; i < 4; ++i) blocks.push_back({100 + i, request.keys[i]});
  exact->Store(gpu[1], request.chains[kExactSource].ns, std::nullopt, blocks);
  ASSERT_TRUE((*scheduler)->Schedule(input, workspace, decision).ok());
  EXPECT_EQ(decision.target(), 1u);
  EXPECT_EQ(decision.primary_result().scored[1].score, 0.5);

  // The decision is carried out, so the approximate index expects the whole prompt there.
  Dispatch dispatch;
  ASSERT_TRUE((*scheduler)->RunPreRequest(input, workspace, decision, dispatch).ok());
  ASSERT_TRUE((*scheduler)->Schedule(input, workspace, decision).ok());
  EXPECT_EQ(decision.primary_result().scored[1].score, 10.5);

  // The endpoint goes; the others have nothing.
  ASSERT_TRUE(pool.Remove(pool[1].handle));
  ASSERT_TRUE((*scheduler)->Schedule(input, workspace, decision).ok());
  EXPECT_EQ(decision.primary_result().scored[0].score + decision.primary_result().scored[1].score, 0.0);
}

}  // namespace
}  // namespace llmd::sched
