// topology-extractor and the plugins that stay near an earlier stage's endpoint. (spec:
// scheduling.md 2.1, 2.3)
#include "llmd/sched/topology.h"

#include <gmock/gmock.h>

#include "llmd/sched/peer_endpoint.h"
#include "tests/sched/plugin_bench.h"

namespace llmd::sched {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsNan;

const char* const kExtractor = "topology-extractor";
const char* const kHandler = "disagg-profile-handler";

Labels Place(const char* host, const char* rack, const char* zone, const char* region) {
  return {{"kubernetes.io/hostname", host},
          {"topology.kubernetes.io/rack", rack},
          {"topology.kubernetes.io/zone", zone},
          {"topology.kubernetes.io/region", region}};
}

// What the extractor publishes, printed; one thread's state is kept over several pools.
class Extraction {
 public:
  explicit Extraction(const Value& parameters = {}) : plugin_(kExtractor, parameters) {
    EXPECT_TRUE(plugin_.status.ok()) << plugin_.status;
    state_ = plugin_.As<DataProducer>().NewThreadState();
  }

  std::vector<std::string> Run(const EndpointPool& pool) {
    const DataSlot<Topology> slot = plugin_.layout.Declare<Topology>(kExtractor);
    Request request;
    Random random(1);
    Context context{request, pool, kNow, random, *plugin_.columns};
    plugin_.columns->Begin(pool.size());
    plugin_.As<DataProducer>().Produce(context, state_.get());
    std::vector<std::string> printed;
    for (const Topology& t : plugin_.columns->Read(slot)) {
      printed.push_back(std::string(t.hostname) + "/" + std::string(t.rack) + "/" + std::string(t.zone) +
                        "/" + std::string(t.region));
    }
    return printed;
  }

 private:
  PluginUnderTest plugin_;
  std::unique_ptr<ThreadState> state_;
};

TEST(TopologyExtractor, ReadsTheLabels) {
  EndpointPool pool;
  AddEndpoint(pool, Place("h1", "r1", "z1", "eu"));
  AddEndpoint(pool, {{"topology.kubernetes.io/zone", "z2"}});
  AddEndpoint(pool);
  EXPECT_THAT(Extraction().Run(pool), ElementsAre("h1/r1/z1/eu", "//z2/", "///"));
  EXPECT_THAT(Extraction().Run(MakePool(0)), IsEmpty());
}

TEST(TopologyExtractor, LabelNamesAreParameters) {
  EndpointPool pool;
  AddEndpoint(pool, {{"node", "h1"}, {"row", "r1"}, {"topology.kubernetes.io/zone", "z1"}, {"land", "eu"}});
  EXPECT_THAT(
      Extraction(Parameters({{"hostname", "node"}, {"rack", "row"}, {"zone", ""}, {"region", "land"}}))
          .Run(pool),
      ElementsAre("h1/r1/z1/eu"));
  EXPECT_THAT(ParameterError(kExtractor, Parameters({{"host", "x"}})), HasSubstr("host is unknown"));
}

TEST(TopologyExtractor, FollowsChangesOfThePool) {
  Extraction extraction;
  EndpointPool pool;
  AddEndpoint(pool, {{"kubernetes.io/hostname", "a"}});
  AddEndpoint(pool, {{"kubernetes.io/hostname", "b"}});
  EXPECT_THAT(extraction.Run(pool), ElementsAre("a///", "b///"));
  EXPECT_THAT(extraction.Run(pool), ElementsAre("a///", "b///"));
  pool.Remove(pool[0].handle);
  EXPECT_THAT(extraction.Run(pool), ElementsAre("b///"));
  ASSERT_TRUE(
      pool.Add({.name = "new", .address = "x", .port = 1, .labels = {{"kubernetes.io/hostname", "c"}}}).ok());
  EXPECT_THAT(extraction.Run(pool), ElementsAre("b///", "c///"));
  // Another pool altogether, at the same positions.
  EndpointPool other;
  AddEndpoint(other, {{"kubernetes.io/hostname", "d"}});
  AddEndpoint(other);
  EXPECT_THAT(extraction.Run(other), ElementsAre("d///", "///"));
}

TEST(TopologyExtractor, IsMadeOnDemand) {
  SchedulerConfig config;
  config.plugins = {{.type = "topology-affinity-scorer"}};
  EXPECT_FALSE(Scheduler::Create(config, PluginRegistry::Builtin(), {}).ok());  // alpha
  config.allow_experimental = true;
  const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), {});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  EXPECT_NE((*scheduler)->FindPlugin(kExtractor), nullptr);
  // No handler publishes a peer: all the same.
  const EndpointPool pool = MakePool(2);
  Request request;
  Workspace workspace(**scheduler);
  Decision decision;
  ASSERT_TRUE(
      (*scheduler)->Schedule({.request = request, .pool = pool, .now = kNow}, workspace, decision).ok());
  EXPECT_EQ(decision.primary_result().scored[0].score, 0.0);
}

constexpr Topology kPeer = {"h1", "r1", "z1", "eu"};

// The peer at position 0, then: same host; rack; zone; region; elsewhere; unknown.
const std::vector<Topology> kPlaces = {kPeer,
                                       {"h1", "r9", "z9", "us"},
                                       {"h2", "r1", "z1", "eu"},
                                       {"h2", "r2", "z1", "eu"},
                                       {"h2", "r2", "z2", "eu"},
                                       {"h2", "r2", "z2", "us"},
                                       {}};

std::vector<double> Near(const std::vector<Topology>& places, std::optional<Position> peer,
                         std::vector<Position> candidates) {
  PluginBench bench("topology-affinity-scorer", {}, MakePool(places.size()));
  bench.Publish(kExtractor, places);
  if (peer) bench.PublishForRequest<PeerEndpoint>(kHandler, {*peer});
  bench.candidates = std::move(candidates);
  return bench.Scores();
}

TEST(TopologyAffinityScorer, ByTheTightestCommonLevel) {
  EXPECT_THAT(Near(kPlaces, 0, {1, 2, 3, 4, 5, 6}), ElementsAre(1.0, 0.2, 0.05, 0.02, 0.0, 0.0));
  EXPECT_THAT(Near(kPlaces, 0, {0}), ElementsAre(1.0));
  EXPECT_THAT(Near(kPlaces, 0, {}), IsEmpty());
}

TEST(TopologyAffinityScorer, EmptyNamesNeverMatch) {
  const std::vector<Topology> places = {{"", "", "z1", ""}, {"", "", "z1", ""}, {"", "", "", ""}};
  EXPECT_THAT(Near(places, 0, {1, 2}), ElementsAre(0.05, 0.0));
}

TEST(TopologyAffinityScorer, NoPeerNoScore) {
  EXPECT_THAT(Near(kPlaces, std::nullopt, {1, 2}), Each(IsNan()));
  EXPECT_THAT(Near(kPlaces, 6, {1, 6}), Each(IsNan()));   // nothing is known of the peer's place
  EXPECT_THAT(Near(kPlaces, 99, {1, 2}), Each(IsNan()));  // of another pool
  PluginBench unpublished("topology-affinity-scorer", {}, MakePool(2));
  unpublished.PublishForRequest<PeerEndpoint>(kHandler, {0});
  EXPECT_THAT(unpublished.Scores(), Each(IsNan()));
}

std::vector<Position> KeptNear(const Value& parameters, std::optional<Position> peer,
                               std::vector<Position> candidates) {
  PluginBench bench("topology-affinity-filter", parameters, MakePool(kPlaces.size()));
  bench.Publish(kExtractor, kPlaces);
  if (peer) bench.PublishForRequest<PeerEndpoint>(kHandler, {*peer});
  bench.candidates = std::move(candidates);
  return bench.Kept();
}

TEST(TopologyAffinityFilter, AtLeastAsNearAsTheLevel) {
  const std::vector<Position> all = {1, 2, 3, 4, 5, 6};
  const auto level = [](const char* name) { return Parameters({{"minAffinity", name}}); };
  EXPECT_THAT(KeptNear({}, 0, all), ElementsAre(1));
  EXPECT_THAT(KeptNear(level("host"), 0, all), ElementsAre(1));
  EXPECT_THAT(KeptNear(level("rack"), 0, all), ElementsAre(1, 2));
  EXPECT_THAT(KeptNear(level("zone"), 0, all), ElementsAre(1, 2, 3));
  EXPECT_THAT(KeptNear(level("region"), 0, all), ElementsAre(1, 2, 3, 4));
}

TEST(TopologyAffinityFilter, FailsOpen) {
  EXPECT_THAT(KeptNear({}, 0, {2, 3, 6}), ElementsAre(2, 3, 6));
  EXPECT_THAT(KeptNear({}, std::nullopt, {1, 2}), ElementsAre(1, 2));
  EXPECT_THAT(KeptNear({}, 6, {1, 6}), ElementsAre(1, 6));
  EXPECT_THAT(KeptNear({}, 99, {1, 2}), ElementsAre(1, 2));
  EXPECT_THAT(KeptNear({}, 0, {}), IsEmpty());
  PluginBench unpublished("topology-affinity-filter", {}, MakePool(2));
  unpublished.PublishForRequest<PeerEndpoint>(kHandler, {0});
  EXPECT_THAT(unpublished.Kept(), ElementsAre(0, 1));
}

TEST(TopologyAffinityFilter, Parameters) {
  EXPECT_THAT(ParameterError("topology-affinity-filter", Parameters({{"minAffinity", "city"}})),
              HasSubstr("minAffinity is \"city\", expected host, rack, zone or region"));
  PluginBench renamed("topology-affinity-filter", Parameters({{"topologyProducerName", "map"}}), MakePool(2));
  renamed.Publish<Topology>("map", {kPeer, kPeer});
  EXPECT_THAT(renamed.Kept(), ElementsAre(0, 1));
}

}  // namespace
}  // namespace llmd::sched
