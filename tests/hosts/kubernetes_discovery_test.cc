#include "examples/gateway_scheduler/kubernetes_discovery.h"

#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "llmd/base/random.h"
#include "tests/hosts/fake_api_server.h"

namespace llmd::host {
namespace {

using llmd::testing::FakeApiServer;
using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kPods[] = "/api/v1/namespaces/llm-d/pods";
constexpr char kPools[] = "/apis/inference.networking.k8s.io/v1/namespaces/llm-d/inferencepools";
constexpr char kOldPools[] = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/llm-d/inferencepools";
constexpr char kObjectives[] = "/apis/llm-d.ai/v1alpha2/namespaces/llm-d/inferenceobjectives";
constexpr char kOldObjectives[] =
    "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/llm-d/inferenceobjectives";
constexpr char kRewrites[] = "/apis/llm-d.ai/v1alpha2/namespaces/llm-d/inferencemodelrewrites";

bool Eventually(const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

json Meta(const std::string& name) { return {{"name", name}, {"namespace", "llm-d"}}; }

json Pod(const std::string& name, int address, const std::string& group = "one", bool ready = true) {
  json pod = {{"metadata", Meta(name)},
              {"status",
               {{"podIP", absl::StrCat("10.0.0.", address)},
                {"conditions", {{{"type", "Ready"}, {"status", ready ? "True" : "False"}}}}}}};
  pod["metadata"]["labels"] = {{"group", group}, {"llm-d.ai/role", "decode"}};
  return pod;
}

json Pool(const std::string& group = "one", std::vector<int> ports = {8000}) {
  json pool = {{"metadata", Meta("llm-d")}, {"spec", {{"selector", {{"matchLabels", {{"group", group}}}}}}}};
  for (const int port : ports) pool["spec"]["targetPorts"].push_back({{"number", port}});
  return pool;
}

class KubernetesDiscoveryTest : public ::testing::Test {
 protected:
  KubernetesDiscoveryTest() {
    for (const char* collection : {kPods, kPools, kObjectives, kRewrites}) server_.Install(collection);
  }

  absl::Status TryStart(KubernetesDiscoveryOptions options) {
    KubernetesConfig config;
    config.api_url = server_.url();
    config.pod_namespace = "llm-d";
    options.reflector.min_backoff = absl::Milliseconds(4);
    options.reflector.max_backoff = absl::Milliseconds(40);
    auto discovery = KubernetesDiscovery::Start(config, options, pool_);
    if (discovery.ok()) discovery_ = *std::move(discovery);
    return discovery.status();
  }
  void Start(const KubernetesDiscoveryOptions& options = {.pool_name = "llm-d"}) {
    const absl::Status status = TryStart(options);
    ASSERT_TRUE(status.ok()) << status;
  }

  // "name address:port", sorted.
  std::vector<std::string> Endpoints() const {
    std::set<std::string> texts;
    const PoolStore::Snapshot pool = pool_.snapshot();
    for (const sched::Endpoint& endpoint : pool->endpoints()) {
      texts.insert(absl::StrCat(endpoint.metadata().name, " ", endpoint.host_port()));
    }
    return {texts.begin(), texts.end()};
  }
  std::vector<std::string> Await(const std::vector<std::string>& endpoints) const {
    Eventually([&] { return pool_.synced() && Endpoints() == endpoints; });
    return Endpoints();
  }

  FakeApiServer server_;
  PoolStore pool_;
  std::unique_ptr<KubernetesDiscovery> discovery_;
};

TEST_F(KubernetesDiscoveryTest, PodsOfThePool) {
  server_.Apply(kPools, Pool());
  server_.Apply(kPods, Pod("a", 1));
  server_.Apply(kPods, Pod("b", 2, "one", false));
  server_.Apply(kPods, Pod("c", 3, "two"));
  Start();
  EXPECT_THAT(Await({"a-rank-0 10.0.0.1:8000"}), ElementsAre("a-rank-0 10.0.0.1:8000"));
  EXPECT_TRUE(discovery_->pool_synced());
  const PoolStore::Snapshot pool = pool_.snapshot();
  EXPECT_EQ((*pool)[0].id(), "llm-d/a-rank-0");
  EXPECT_EQ(*(*pool)[0].FindLabel("llm-d.ai/role"), "decode");
  EXPECT_GE(server_.CountRequests("labelSelector=group%3Done"), 1u);
  EXPECT_GE(server_.CountRequests("fieldSelector=metadata.name%3Dllm-d"), 1u);
}

TEST_F(KubernetesDiscoveryTest, NothingIsPublishedBeforeThePoolIsThere) {
  server_.Apply(kPods, Pod("a", 1));
  Start();
  EXPECT_TRUE(Eventually([&] { return discovery_->counts().pools.lists == 1; }));
  EXPECT_FALSE(discovery_->pool_synced());
  EXPECT_FALSE(pool_.synced());
  server_.Apply(kPools, Pool("none"));
  EXPECT_THAT(Await({}), IsEmpty());  // no pods are fine
  EXPECT_TRUE(pool_.synced());
  EXPECT_TRUE(discovery_->pool_synced());
}

TEST_F(KubernetesDiscoveryTest, PodsComeAndGo) {
  server_.Apply(kPools, Pool());
  Start();
  EXPECT_THAT(Await({}), IsEmpty());
  server_.Apply(kPods, Pod("a", 1));
  server_.Apply(kPods, Pod("b", 2));
  EXPECT_EQ(Await({"a-rank-0 10.0.0.1:8000", "b-rank-0 10.0.0.2:8000"}).size(), 2u);
  const auto change = [&](const json& pod, const std::vector<std::string>& expected) {
    server_.Apply(kPods, pod);
    EXPECT_EQ(Await(expected), expected) << pod;
    server_.Apply(kPods, Pod("a", 1));
    EXPECT_EQ(Await({"a-rank-0 10.0.0.1:8000", "b-rank-0 10.0.0.2:8000"}).size(), 2u);
  };
  change(Pod("a", 1, "one", false), {"b-rank-0 10.0.0.2:8000"});  // not ready
  change(Pod("a", 1, "two"), {"b-rank-0 10.0.0.2:8000"});         // another label
  json leaving = Pod("a", 1);
  leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z";
  change(leaving, {"b-rank-0 10.0.0.2:8000"});
  json inactive = Pod("a", 1);
  inactive["metadata"]["annotations"]["llm-d.ai/active-ports"] = "9999";
  change(inactive, {"b-rank-0 10.0.0.2:8000"});
  change(Pod("a", 9), {"a-rank-0 10.0.0.9:8000", "b-rank-0 10.0.0.2:8000"});  // restarted elsewhere
  json strange = Pod("a", 1);
  strange["status"] = "none";
  change(strange, {"b-rank-0 10.0.0.2:8000"});
  server_.Remove(kPods, "llm-d/a");
  EXPECT_THAT(Await({"b-rank-0 10.0.0.2:8000"}), ElementsAre("b-rank-0 10.0.0.2:8000"));
}

TEST_F(KubernetesDiscoveryTest, AnEndpointThatStaysKeepsItsHandle) {
  server_.Apply(kPools, Pool());
  server_.Apply(kPods, Pod("a", 1));
  Start();
  Await({"a-rank-0 10.0.0.1:8000"});
  const sched::EndpointHandle handle = pool_.snapshot()->endpoints()[0].handle;
  server_.Apply(kPods, Pod("b", 2));
  server_.DropWatches(true);
  server_.Compact();
  server_.Apply(kPods, Pod("c", 3));
  EXPECT_EQ(Await({"a-rank-0 10.0.0.1:8000", "b-rank-0 10.0.0.2:8000", "c-rank-0 10.0.0.3:8000"}).size(), 3u);
  EXPECT_TRUE(pool_.snapshot()->Find(handle));
}

TEST_F(KubernetesDiscoveryTest, ChangesOfThePool) {
  server_.Apply(kPools, Pool());
  server_.Apply(kPods, Pod("a", 1));
  server_.Apply(kPods, Pod("b", 2, "two"));
  Start();
  EXPECT_THAT(Await({"a-rank-0 10.0.0.1:8000"}), ElementsAre("a-rank-0 10.0.0.1:8000"));
  server_.Apply(kPools, Pool("one", {8000, 8001}));
  EXPECT_THAT(Await({"a-rank-0 10.0.0.1:8000", "a-rank-1 10.0.0.1:8001"}),
              ElementsAre("a-rank-0 10.0.0.1:8000", "a-rank-1 10.0.0.1:8001"));
  server_.Apply(kPools, Pool("two", {9000}));
  EXPECT_THAT(Await({"b-rank-0 10.0.0.2:9000"}), ElementsAre("b-rank-0 10.0.0.2:9000"));
  server_.Apply(kPods, Pod("c", 3, "two"));
  EXPECT_EQ(Await({"b-rank-0 10.0.0.2:9000", "c-rank-0 10.0.0.3:9000"}).size(), 2u);
  json bad = Pool("three");
  bad["spec"].erase("targetPorts");
  server_.Apply(kPools, bad);
  server_.Apply(kPods, Pod("d", 4, "two"));
  EXPECT_EQ(Await({"b-rank-0 10.0.0.2:9000", "c-rank-0 10.0.0.3:9000", "d-rank-0 10.0.0.4:9000"}).size(), 3u);
  server_.Remove(kPools, "llm-d/llm-d");
  EXPECT_THAT(Await({}), IsEmpty());
  EXPECT_TRUE(Eventually([&] { return !discovery_->pool_synced(); }));
  EXPECT_TRUE(Eventually([&] { return server_.Watches(kPods) == 0; }));
  server_.Apply(kPods, Pod("e", 5, "two"));
  server_.Apply(kPools, Pool("two", {9000}));
  EXPECT_EQ(Await({"b-rank-0 10.0.0.2:9000", "c-rank-0 10.0.0.3:9000", "d-rank-0 10.0.0.4:9000",
                   "e-rank-0 10.0.0.5:9000"})
                .size(),
            4u);
  json leaving = Pool("two", {9000});
  leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z";
  server_.Apply(kPools, leaving);
  EXPECT_THAT(Await({}), IsEmpty());
}

TEST_F(KubernetesDiscoveryTest, PoolsOfTheOldGroup) {
  server_.Install(kOldPools);
  server_.Apply(kOldPools, json::parse(R"({"metadata": {"name": "llm-d", "namespace": "llm-d"}, "spec": {
      "selector": {"group": "one"}, "targetPortNumber": 8200, "extensionRef": {"name": "epp"}}})"));
  json other = Pool("two");
  other["metadata"]["name"] = "other";
  server_.Apply(kOldPools, other);
  server_.Apply(kPods, Pod("a", 1));
  Start({.pool_name = "llm-d", .pool_group = std::string(kPoolGroupOld)});
  EXPECT_THAT(Await({"a-rank-0 10.0.0.1:8200"}), ElementsAre("a-rank-0 10.0.0.1:8200"));
}

TEST_F(KubernetesDiscoveryTest, ASelectorInsteadOfAPool) {
  server_.Apply(kPods, Pod("a", 1));
  server_.Apply(kPods, Pod("b", 2, "two"));
  Start({.endpoint_selector = "group=one", .endpoint_target_ports = {3000, 3001}});
  EXPECT_THAT(Await({"a-rank-0 10.0.0.1:3000", "a-rank-1 10.0.0.1:3001"}),
              ElementsAre("a-rank-0 10.0.0.1:3000", "a-rank-1 10.0.0.1:3001"));
  EXPECT_TRUE(discovery_->pool_synced());
  EXPECT_EQ(server_.CountRequests("inference"), 0u);
}

TEST_F(KubernetesDiscoveryTest, OptionsAreChecked) {
  const auto error = [&](const KubernetesDiscoveryOptions& options) {
    return std::string(TryStart(options).message());
  };
  EXPECT_THAT(error({}), HasSubstr("one of --pool-name and --endpoint-selector"));
  EXPECT_THAT(error({.pool_name = "p", .endpoint_selector = "a=b"}), HasSubstr("not both"));
  EXPECT_THAT(error({.pool_name = "p/../x"}), HasSubstr("--pool-name is \"p/../x\""));
  EXPECT_THAT(error({.pool_name = "p", .pool_namespace = "a/b"}), HasSubstr("--pool-namespace"));
  EXPECT_THAT(error({.pool_name = "p", .pool_group = "apps"}),
              HasSubstr("--pool-group is \"apps\", expected"));
  EXPECT_THAT(error({.endpoint_selector = "a=b"}),
              HasSubstr("--endpoint-target-ports: there is no target port"));
  EXPECT_THAT(error({.endpoint_selector = "a in", .endpoint_target_ports = {1}}), HasSubstr("expected ("));
  EXPECT_TRUE(server_.Requests().empty());
}

TEST_F(KubernetesDiscoveryTest, ObjectivesAndRewritesOfThisPool) {
  server_.Apply(kPools, Pool());
  const auto objective = [](const std::string& name, int priority, const std::string& pool) {
    return json{{"metadata", Meta(name)}, {"spec", {{"priority", priority}, {"poolRef", {{"name", pool}}}}}};
  };
  const auto rewrite = [](const std::string& name, const std::string& pool, const std::string& target) {
    json object =
        json::parse(R"({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"rules": [
        {"matches": [{"model": {"type": "Exact", "value": "m"}}], "targets": [{"weight": 1}]}]}})");
    object["metadata"].update(Meta(name));
    object["spec"]["poolRef"] = {{"name", pool}};
    object["spec"]["rules"][0]["targets"][0]["modelRewrite"] = target;
    return object;
  };
  server_.Apply(kObjectives, objective("batch", -1, "llm-d"));
  server_.Apply(kObjectives, objective("foreign", 7, "other"));
  server_.Apply(kRewrites, rewrite("r", "llm-d", "m-lora"));
  server_.Apply(kRewrites, rewrite("a-foreign", "other", "no"));
  Start();
  EXPECT_TRUE(Eventually([&] { return pool_.synced(); }));
  // They are there before the first endpoint is.
  EXPECT_EQ(discovery_->objectives()->Priority("batch"), -1);
  EXPECT_EQ(discovery_->objectives()->Priority("foreign"), 0);
  Random random(1);
  const std::shared_ptr<const RewriteTable> table = discovery_->rewrites();
  ASSERT_TRUE(table->Choose("m", random));
  EXPECT_EQ(table->Choose("m", random)->model, "m-lora");
  server_.Apply(kObjectives, objective("batch", -2, "llm-d"));
  server_.Apply(kObjectives, objective("foreign", 7, "llm-d"));
  server_.Remove(kRewrites, "llm-d/r");
  EXPECT_TRUE(Eventually([&] {
    return discovery_->objectives()->Priority("batch") == -2 &&
           discovery_->objectives()->Priority("foreign") == 7 && discovery_->rewrites()->empty();
  }));
  EXPECT_EQ(table->Choose("m", random)->model, "m-lora");  // a table in use does not change
  server_.Remove(kPools, "llm-d/llm-d");
  EXPECT_TRUE(Eventually([&] { return discovery_->objectives()->size() == 0; }));
  server_.Apply(kPools, Pool());
  EXPECT_TRUE(Eventually([&] { return discovery_->objectives()->Priority("foreign") == 7; }));
}

TEST_F(KubernetesDiscoveryTest, ObjectivesOfTheOldGroupCountWhereThereAreNoNewOnes) {
  server_.Install(kOldObjectives);
  const auto objective = [](const std::string& name, int priority) {
    return json{{"metadata", Meta(name)},
                {"spec", {{"priority", priority}, {"poolRef", {{"name", "llm-d"}}}}}};
  };
  server_.Apply(kPools, Pool());
  server_.Apply(kOldObjectives, objective("a", 1));
  server_.Apply(kOldObjectives, objective("b", 1));
  server_.Apply(kObjectives, objective("b", 2));
  Start();
  EXPECT_TRUE(Eventually([&] { return pool_.synced(); }));
  EXPECT_EQ(discovery_->objectives()->Priority("a"), 1);
  EXPECT_EQ(discovery_->objectives()->Priority("b"), 2);
}

TEST(KubernetesDiscoveryOptionalTest, KindsThatAreNotInstalledHoldNothingUp) {
  FakeApiServer server;
  server.Install(kPods);
  server.Install(kPools);
  server.Apply(kPools, Pool());
  server.Apply(kPods, Pod("a", 1));
  KubernetesConfig config;
  config.api_url = server.url();
  PoolStore pool;
  auto discovery =
      KubernetesDiscovery::Start(config, {.pool_name = "llm-d", .pool_namespace = "llm-d"}, pool);
  ASSERT_TRUE(discovery.ok());
  EXPECT_TRUE(Eventually([&] { return pool.snapshot()->size() == 1; }));
}

TEST_F(KubernetesDiscoveryTest, AllStaysWhileTheClusterIsAway) {
  server_.Apply(kPools, Pool());
  server_.Apply(kPods, Pod("a", 1));
  Start();
  Await({"a-rank-0 10.0.0.1:8000"});
  server_.FailNext({.status = 503}, 40);
  server_.DropWatches(true);
  EXPECT_TRUE(Eventually([&] { return !discovery_->status().ok(); }));
  EXPECT_THAT(Endpoints(), ElementsAre("a-rank-0 10.0.0.1:8000"));
  server_.Apply(kPods, Pod("b", 2));
  EXPECT_EQ(Await({"a-rank-0 10.0.0.1:8000", "b-rank-0 10.0.0.2:8000"}).size(), 2u);
  EXPECT_TRUE(Eventually([&] { return discovery_->status().ok(); }));
}

TEST_F(KubernetesDiscoveryTest, MutatedPodsNeverCostTheGoodOnes) {
  server_.Apply(kPools, Pool());
  server_.Apply(kPods, Pod("good", 1));
  Start();
  Await({"good-rank-0 10.0.0.1:8000"});
  struct Mutations {
    std::mutex mutex;
    Random random{99};
  };
  // Other pods' lines arrive with bytes changed.
  server_.Filter([mutations = std::make_shared<Mutations>()](const std::string& line) {
    std::string text = line;
    const std::lock_guard lock(mutations->mutex);
    if (line.find("\"good") == std::string::npos && line.find("other") != std::string::npos) {
      for (std::uint64_t n = mutations->random.Between(1, 3); n > 0; --n) {
        text[mutations->random.Below(text.size() - 1)] = static_cast<char>(mutations->random.Below(256));
      }
    }
    return std::vector<std::string>{text};
  });
  Random random(5);
  bool kept = true;
  for (int i = 0; i < 400; ++i) {
    server_.Apply(kPods,
                  Pod(absl::StrCat("other", random.Below(5)), 100 + static_cast<int>(random.Below(9))));
    const std::vector<std::string> now = Endpoints();
    kept = kept && std::find(now.begin(), now.end(), "good-rank-0 10.0.0.1:8000") != now.end();
    if (i % 20 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_TRUE(kept);
  server_.Filter(nullptr);
  server_.Apply(kPods, Pod("good2", 2));
  EXPECT_TRUE(Eventually([&] {
    const std::vector<std::string> now = Endpoints();
    return std::find(now.begin(), now.end(), "good2-rank-0 10.0.0.2:8000") != now.end();
  }));
}

// Pods flap, the pool changes and the server fails; in the end the pool is what the cluster says.
TEST_F(KubernetesDiscoveryTest, RandomClustersAreFollowedToTheEnd) {
  server_.Apply(kPools, Pool());
  server_.LimitPages(2);
  Start();
  ASSERT_TRUE(Eventually([&] { return pool_.synced(); }));
  Random random(2026);
  std::string group = "one";
  std::vector<int> ports = {8000};
  bool has_pool = true;
  for (int round = 0; round < 40; ++round) {
    for (std::uint64_t n = random.Below(25); n > 0; --n) {
      const std::string name = absl::StrCat("p", random.Below(8));
      json pod = Pod(name, 1 + static_cast<int>(random.Below(250)), random.Chance(0.7) ? "one" : "two",
                     random.Chance(0.7));
      if (random.Chance(0.1)) pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z";
      if (random.Chance(0.2)) pod["metadata"]["annotations"]["llm-d.ai/active-ports"] = "8001,8002";
      if (random.Chance(0.05)) pod["status"].erase("podIP");
      if (random.Chance(0.05)) pod.erase("status");
      if (random.Chance(0.2)) {
        server_.Remove(kPods, "llm-d/" + name);
      } else {
        server_.Apply(kPods, pod);
      }
    }
    switch (random.Below(8)) {
      case 0:
        server_.DropWatches(random.Chance(0.5));
        break;
      case 1:
        server_.TellGoneByEvent(random.Chance(0.5));
        server_.Compact();
        server_.DropWatches(false);
        break;
      case 2:
        server_.FailNext({.status = 500}, 2);
        break;
      case 3:
        server_.Inject(kPods, "{\"type\": broken\n");
        break;
      case 4:
        group = random.Chance(0.5) ? "one" : "two";
        ports = random.Chance(0.5) ? std::vector<int>{8000} : std::vector<int>{8001, 8000, 8002};
        has_pool = true;
        server_.Apply(kPools, Pool(group, ports));
        break;
      case 5:
        if (random.Chance(0.4)) {
          has_pool = false;
          server_.Remove(kPools, "llm-d/llm-d");
        }
        break;
      default:
        break;
    }
    if (round % 5 != 4) continue;
    // A model of the rules, written anew.
    std::set<std::string> expected;
    for (const json& pod : has_pool ? server_.Objects(kPods) : std::vector<json>()) {
      const json& metadata = pod["metadata"];
      if (metadata["labels"]["group"] != group || metadata.contains("deletionTimestamp")) continue;
      if (!pod.contains("status") || !pod["status"].contains("podIP")) continue;
      if (pod["status"]["conditions"][0]["status"] != "True") continue;
      for (std::size_t rank = 0; rank < ports.size(); ++rank) {
        if (metadata.contains("annotations") && ports[rank] != 8001 && ports[rank] != 8002) continue;
        expected.insert(absl::StrCat(metadata["name"].get<std::string>(), "-rank-", rank, " ",
                                     pod["status"]["podIP"].get<std::string>(), ":", ports[rank]));
      }
    }
    const std::vector<std::string> wanted(expected.begin(), expected.end());
    ASSERT_EQ(Await(wanted), wanted) << "round " << round << ", " << discovery_->status();
  }
}

TEST_F(KubernetesDiscoveryTest, EndsPromptlyAtAnyMoment) {
  server_.Apply(kPools, Pool());
  for (int i = 0; i < 50; ++i) server_.Apply(kPods, Pod(absl::StrCat("p", i), i + 1));
  for (int i = 0; i < 30; ++i) {
    Start();
    std::this_thread::sleep_for(std::chrono::microseconds(i * 300));
    server_.Apply(kPools, Pool(i % 2 == 0 ? "two" : "one"));
    discovery_.reset();
  }
}

}  // namespace
}  // namespace llmd::host
