// concurrency-detector as detector and as filter; tables computed by hand from scheduling.md 2.7.
#include <gmock/gmock.h>

#include "llmd/sched/flow_control.h"
#include "llmd/sched/in_flight.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr const char* kProducer = "inflight-load-producer";

struct World {
  explicit World(const Value& parameters, const std::string& producer = kProducer)
      : plugin("concurrency-detector", parameters) {
    EXPECT_TRUE(plugin.status.ok()) << plugin.status;
    table =
        plugin.states.GetOrMake<InFlightTable>(producer, [] { return std::make_shared<InFlightTable>(); });
    slot = plugin.layout.Declare<InFlightLoad>(producer);
    plugin.columns = std::make_unique<DataColumns>(plugin.layout);
  }
  void Add(InFlightLoad load) {
    table->Add(AddEndpoint(pool), load);
    loads.push_back(load);
  }
  double Saturation() const {
    return plugin.As<SaturationDetector>().Saturation(pool, AllPositions(pool), kNow);
  }
  std::vector<Position> Kept(bool publish = true) {
    plugin.columns->Begin(pool.size());
    if (publish) {
      const std::span<InFlightLoad> column = plugin.columns->Publish(slot);
      std::copy(loads.begin(), loads.end(), column.begin());
    }
    Random random(1);
    const Request request;
    const std::vector<Position> all = AllPositions(pool);
    Context context{request, pool, kNow, random, *plugin.columns, all};
    std::vector<DropReason> dropped(all.size(), nullptr);
    plugin.As<Filter>().Apply(context, all, dropped);
    std::vector<Position> kept;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (dropped[i] == nullptr) kept.push_back(all[i]);
    }
    return kept;
  }

  PluginUnderTest plugin;
  EndpointPool pool;
  std::shared_ptr<InFlightTable> table;
  DataSlot<InFlightLoad> slot;
  std::vector<InFlightLoad> loads;
};

TEST(ConcurrencyDetector, Saturation) {
  const auto saturation = [](const char* mode) {
    World world(
        Parameters({{"maxConcurrency", 10}, {"maxTokenConcurrency", 1000}, {"concurrencyMode", mode}}));
    EXPECT_EQ(world.Saturation(), 1.0);  // no endpoint
    world.Add({.requests = 5, .tokens = 800});
    world.Add({.requests = 20, .tokens = 100});
    world.Add({.requests = 0, .tokens = 0});
    return world.Saturation();
  };
  EXPECT_DOUBLE_EQ(saturation("requests"), 25.0 / 30);
  EXPECT_DOUBLE_EQ(saturation("tokens"), 900.0 / 3000);
  EXPECT_DOUBLE_EQ(saturation("hybrid"), (0.8 + 2.0 + 0.0) / 3);
}

TEST(ConcurrencyDetector, Defaults) {
  World world({});
  world.Add({.requests = 50, .tokens = 999999});
  EXPECT_DOUBLE_EQ(world.Saturation(), 0.5);  // of 100 requests; tokens do not count
}

TEST(ConcurrencyDetector, ARemovedEndpointsSuccessorStartsEmpty) {
  World world(Parameters({{"maxConcurrency", 10}}));
  world.Add({.requests = 10});
  world.pool.Remove(world.pool[0].handle);
  AddEndpoint(world.pool);  // takes the slot
  EXPECT_EQ(world.Saturation(), 0.0);
}

TEST(ConcurrencyDetector, FilterKeepsWhatIsBelowTheLimit) {
  // Limits floor(10 * 1.25) = 12 requests, floor(1001 * 1.25) = 1251 tokens.
  const auto kept = [](const char* mode) {
    World world(Parameters({{"maxConcurrency", 10},
                            {"maxTokenConcurrency", 1001},
                            {"headroom", 0.25},
                            {"concurrencyMode", mode}}));
    world.Add({.requests = 11, .tokens = 1250});
    world.Add({.requests = 12, .tokens = 0});
    world.Add({.requests = 0, .tokens = 1251});
    world.Add({.requests = 100, .tokens = 10000});
    return world.Kept();
  };
  EXPECT_THAT(kept("requests"), ElementsAre(0, 2));
  EXPECT_THAT(kept("tokens"), ElementsAre(0, 1));
  EXPECT_THAT(kept("hybrid"), ElementsAre(0));
}

TEST(ConcurrencyDetector, FilterMayLeaveNothing) {
  World world(Parameters({{"maxConcurrency", 1}}));
  EXPECT_THAT(world.Kept(), IsEmpty());
  world.Add({.requests = 1});
  world.Add({.requests = 2});
  EXPECT_THAT(world.Kept(), IsEmpty());
  EXPECT_THAT(world.Kept(/*publish=*/false), ElementsAre(0, 1));  // nothing is known
}

TEST(ConcurrencyDetector, HostileValues) {
  World world(Parameters({{"concurrencyMode", "hybrid"}, {"headroom", 1e300}}));
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  world.Add({.requests = kMax, .tokens = kMax});
  world.Add({.requests = kMax, .tokens = 0});
  EXPECT_GT(world.Saturation(), 1e16);
  EXPECT_TRUE(std::isfinite(world.Saturation()));
  world.loads[0] = {.requests = -5, .tokens = -5};
  EXPECT_THAT(world.Kept(), ElementsAre(0, 1));  // the headroom is beyond any load
}

TEST(ConcurrencyDetector, AnotherProducer) {
  World world(Parameters({{"inFlightLoadProducerName", "mine"}, {"maxConcurrency", 2}}), "mine");
  world.Add({.requests = 1});
  world.Add({.requests = 2});
  EXPECT_DOUBLE_EQ(world.Saturation(), 0.75);
  EXPECT_THAT(world.Kept(), ElementsAre(0));
}

TEST(ConcurrencyDetector, ParameterErrors) {
  const auto complaint = [](std::initializer_list<Value::Field> fields) {
    return std::string(PluginUnderTest("concurrency-detector", Parameters(fields)).status.message());
  };
  EXPECT_EQ(complaint({{"maxConcurrency", 0}}),
            "concurrency-detector: maxConcurrency is 0, expected more than 0");
  EXPECT_EQ(complaint({{"maxTokenConcurrency", -1}}),
            "concurrency-detector: maxTokenConcurrency is -1, expected more than 0");
  EXPECT_EQ(complaint({{"headroom", -0.5}}), "concurrency-detector: headroom is -0.5, expected at least 0");
  EXPECT_EQ(complaint({{"concurrencyMode", "both"}}),
            "concurrency-detector: concurrencyMode is \"both\", expected requests, tokens or hybrid");
  EXPECT_EQ(complaint({{"maxConcurrency", 1.5}}),
            "concurrency-detector: maxConcurrency is a number, expected an integer");
}

// Publishes what the table says; stands for the library's producer.
class TableProducer final : public Plugin, public DataProducer {
 public:
  explicit TableProducer(PluginBuilder& b)
      : Plugin(b.type(), b.name()),
        out_(b.Produces<InFlightLoad>()),
        table_(b.State<InFlightTable>(b.name())) {}
  void Produce(Context& context, ThreadState*) const override {
    const std::span<InFlightLoad> column = context.data.Publish(out_);
    for (Position p = 0; p < context.pool.size(); ++p) column[p] = table_->Get(context.pool[p].handle);
  }

 private:
  DataSlot<InFlightLoad> out_;
  std::shared_ptr<InFlightTable> table_;
};

// The whole way: one table, the detector of flow control and the filter in a profile.
TEST(ConcurrencyDetector, InASchedulerWithFlowControl) {
  PluginRegistry registry = PluginRegistry::Builtin();
  ASSERT_TRUE(registry
                  .Register("table-producer",
                            [](PluginBuilder& b) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                              return std::make_unique<TableProducer>(b);
                            })
                  .ok());
  SchedulerConfig config;
  config.plugins = {
      {.name = "loads", .type = "table-producer"},
      {.type = "concurrency-detector",
       .parameters = Parameters({{"maxConcurrency", 2}, {"inFlightLoadProducerName", "loads"}})}};
  config.feature_gates.flow_control = true;
  config.flow_control.saturation_detector = "concurrency-detector";
  config.flow_control.enable_eviction = true;
  Resources resources{.states = std::make_shared<PluginStates>()};
  auto scheduler = Scheduler::Create(config, registry, resources);
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  const auto table =
      resources.states->GetOrMake<InFlightTable>("loads", [] { return std::make_shared<InFlightTable>(); });
  auto controller = FlowController::Create(**scheduler);
  ASSERT_TRUE(controller.ok());

  EndpointPool pool = MakePool(2);
  table->Add(pool[0].handle, {.requests = 2});
  std::vector<FlowOutcome> outcomes;
  for (const std::uint64_t id : {1u, 2u, 3u}) {
    ASSERT_TRUE((*controller)->Enqueue({.id = id, .priority = -1}, kNow, outcomes).ok());
  }
  Workspace workspace(**scheduler);
  Decision decision;
  const Request request;
  for (int sent = 0; sent < 2; ++sent) {  // room for two at endpoint 1
    ASSERT_TRUE((*controller)->Step(kNow, pool, outcomes));
    ASSERT_TRUE(
        (*scheduler)->Schedule({.request = request, .pool = pool, .now = kNow}, workspace, decision).ok());
    EXPECT_EQ(decision.target(), 1u);
    table->Add(pool[1].handle, {.requests = 1});
  }
  EXPECT_FALSE((*controller)->Step(kNow, pool, outcomes));
  // The filter leaves nothing for a decision without flow control.
  const absl::Status full =
      (*scheduler)->Schedule({.request = request, .pool = pool, .now = kNow}, workspace, decision);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetDroppedReason(full), DroppedReason::kSaturated);

  // Own counts are seen at once: the grace after an eviction is 10 ms.
  outcomes.clear();
  ASSERT_TRUE((*controller)->Enqueue({.id = 9, .priority = 1}, kNow, outcomes).ok());
  EXPECT_FALSE((*controller)->Step(kNow, pool, outcomes));
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].id, 2u);
  (*controller)->OnFinished(2, kNow);
  outcomes.clear();
  (*controller)->Step(kNow + absl::Milliseconds(9), pool, outcomes);
  EXPECT_THAT(outcomes, IsEmpty());
  (*controller)->Step(kNow + absl::Milliseconds(10), pool, outcomes);
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_EQ(outcomes[0].id, 1u);
}

}  // namespace
}  // namespace llmd::sched
