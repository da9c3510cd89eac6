#include "examples/gateway_scheduler/kubernetes_objects.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "llmd/base/random.h"

namespace llmd::host {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

json GoodPod() {
  return json::parse(R"({
    "kind": "Pod", "apiVersion": "v1",
    "metadata": {"name": "decode-0", "namespace": "llm-d", "resourceVersion": "12",
      "labels": {"llm-d.ai/role": "decode", "llm-d.ai/inferenceServing": "true"},
      "annotations": {"other": "x"}},
    "spec": {"containers": [{"name": "vllm"}]},
    "status": {"phase": "Running", "podIP": "10.0.0.7", "hostIP": "192.168.1.3",
      "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]}})");
}

json GoodPool() {
  return json::parse(R"({
    "metadata": {"name": "llm-d", "namespace": "llm-d"},
    "spec": {"selector": {"matchLabels": {"llm-d.ai/inferenceServing": "true"}},
      "targetPorts": [{"number": 8000}, {"number": 8001}], "appProtocol": "kubernetes.io/h2c",
      "endpointPickerRef": {"name": "epp", "port": {"number": 9002}, "failureMode": "FailOpen"}}})");
}

std::vector<std::string> EndpointsOf(const json& object, const std::vector<std::uint16_t>& ports) {
  const absl::StatusOr<PodState> pod = ReadPod(object);
  std::vector<sched::EndpointMetadata> endpoints;
  if (pod.ok()) AppendEndpoints(*pod, ports, endpoints);
  std::vector<std::string> texts;
  for (const sched::EndpointMetadata& endpoint : endpoints) {
    texts.push_back(sched::EndpointIdentity(endpoint).id + " " + sched::EndpointIdentity(endpoint).host_port +
                    " " + std::to_string(endpoint.rank));
  }
  return texts;
}

TEST(ReadPodTest, AnEndpointPerTargetPort) {
  EXPECT_THAT(EndpointsOf(GoodPod(), {8000, 8001}),
              ElementsAre("llm-d/decode-0-rank-0 10.0.0.7:8000 0", "llm-d/decode-0-rank-1 10.0.0.7:8001 1"));
  std::vector<sched::EndpointMetadata> endpoints;
  AppendEndpoints(*ReadPod(GoodPod()), {8000}, endpoints);
  ASSERT_EQ(endpoints.size(), 1u);
  EXPECT_EQ(endpoints[0].node_address, "192.168.1.3");
  EXPECT_EQ(endpoints[0].labels.at("llm-d.ai/role"), "decode");
  EXPECT_EQ(endpoints[0].labels.size(), 2u);
}

TEST(ReadPodTest, OnlyReadyPodsThatStayAreMembers) {
  const auto with = [](const char* pointer, json value) {
    json pod = GoodPod();
    pod[json::json_pointer(pointer)] = std::move(value);
    return EndpointsOf(pod, {8000});
  };
  EXPECT_THAT(with("/status/conditions/1/status", "False"), IsEmpty());
  EXPECT_THAT(with("/status/conditions/1/status", "Unknown"), IsEmpty());
  EXPECT_THAT(with("/status/conditions/1/status", true), IsEmpty());
  EXPECT_THAT(with("/status/conditions", json::array()), IsEmpty());
  EXPECT_THAT(with("/status/conditions", nullptr), IsEmpty());
  EXPECT_THAT(with("/status", 3), IsEmpty());
  EXPECT_THAT(with("/status/podIP", ""), IsEmpty());
  EXPECT_THAT(with("/status/podIP", nullptr), IsEmpty());
  EXPECT_THAT(with("/status/podIP", "evil.example\r\nx: y"), IsEmpty());
  EXPECT_THAT(with("/metadata/deletionTimestamp", "2026-01-01T00:00:00Z"), IsEmpty());
  EXPECT_THAT(with("/metadata/deletionTimestamp", nullptr).size(), 1u);
  EXPECT_THAT(with("/status/podIP", "fd00::7"), ElementsAre("llm-d/decode-0-rank-0 [fd00::7]:8000 0"));
  EXPECT_THAT(with("/metadata/labels", "none").size(), 1u);
}

TEST(ReadPodTest, AnnotationOfActivePorts) {
  const auto with = [](const std::string& value, const char* key = "llm-d.ai/active-ports") {
    json pod = GoodPod();
    pod["metadata"]["annotations"][key] = value;
    return EndpointsOf(pod, {8000, 8001, 8002});
  };
  EXPECT_THAT(with("8001"), ElementsAre("llm-d/decode-0-rank-1 10.0.0.7:8001 1"));
  EXPECT_EQ(with(" 8002 , 8000,9000").size(), 2u);
  EXPECT_EQ(with("8000,8000,8000").size(), 1u);
  EXPECT_THAT(with(""), IsEmpty());
  EXPECT_THAT(with("none,-8000,0,99999999999999999999"), IsEmpty());
  EXPECT_EQ(with("8002", "inference.networking.k8s.io/active-ports").size(), 1u);
  json both = GoodPod();
  both["metadata"]["annotations"] = {{"llm-d.ai/active-ports", "8000"},
                                     {"inference.networking.k8s.io/active-ports", "8001,8002"}};
  EXPECT_THAT(EndpointsOf(both, {8000, 8001, 8002}), ElementsAre("llm-d/decode-0-rank-0 10.0.0.7:8000 0"));
}

TEST(ReadPodTest, APodWithoutNameIsAnError) {
  for (const char* name : {"", "a/b", "a b", "a\nb"}) {
    json pod = GoodPod();
    pod["metadata"]["name"] = name;
    EXPECT_FALSE(ReadPod(pod).ok()) << name;
  }
  EXPECT_FALSE(ReadPod(json()).ok());
  EXPECT_FALSE(ReadPod(json::array({1})).ok());
  EXPECT_FALSE(ReadPod(json{{"metadata", 1}}).ok());
}

TEST(ReadPoolTest, BothForms) {
  const absl::StatusOr<PoolState> pool = ReadPool(GoodPool());
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_EQ(pool->selector.text(), "llm-d.ai/inferenceServing=true");
  EXPECT_THAT(pool->target_ports, ElementsAre(8000, 8001));
  EXPECT_EQ(pool->app_protocol, "kubernetes.io/h2c");
  EXPECT_TRUE(pool->fail_open);
  const absl::StatusOr<PoolState> old = ReadPool(json::parse(R"({"metadata": {"name": "llm-d"}, "spec": {
      "selector": {"llm-d.ai/model": "m", "llm-d.ai/role": "decode"}, "targetPortNumber": 8200,
      "extensionRef": {"name": "epp", "portNumber": 9002}}})"));
  ASSERT_TRUE(old.ok()) << old.status();
  EXPECT_EQ(old->selector.text(), "llm-d.ai/model=m,llm-d.ai/role=decode");
  EXPECT_THAT(old->target_ports, ElementsAre(8200));
  EXPECT_EQ(old->app_protocol, "http");
  EXPECT_FALSE(old->fail_open);
}

TEST(ReadPoolTest, WhatWouldMatchEverythingOrNothingIsRefused) {
  const auto error = [](const char* pointer, json value) {
    json pool = GoodPool();
    pool[json::json_pointer(pointer)] = std::move(value);
    return std::string(ReadPool(pool).status().message());
  };
  EXPECT_THAT(error("/spec/selector", json::object()), HasSubstr("spec.selector has no labels"));
  EXPECT_THAT(error("/spec/selector/matchLabels", json::object()), HasSubstr("spec.selector has no labels"));
  EXPECT_THAT(error("/spec/selector/matchLabels", {{"a", 1}}), HasSubstr("no text"));
  EXPECT_THAT(error("/spec/selector/matchLabels", {{"a", "b,c=d"}}), HasSubstr("is none"));
  EXPECT_THAT(error("/spec", 1), HasSubstr("spec.selector has no labels"));
  EXPECT_THAT(error("/spec/targetPorts", json::array()), HasSubstr("no target port"));
  EXPECT_THAT(error("/spec/targetPorts/1/number", 8000), HasSubstr("8000 is given twice"));
  EXPECT_THAT(error("/spec/targetPorts/1/number", 65536), HasSubstr("no number of 1 to 65535"));
  EXPECT_THAT(error("/spec/targetPorts/1/number", "8000"), HasSubstr("no number of 1 to 65535"));
  json many = json::array();
  for (int i = 1; i < 10; ++i) many.push_back({{"number", i}});
  EXPECT_THAT(error("/spec/targetPorts", many), HasSubstr("more than 8"));
}

TEST(ReadObjectiveTest, Priority) {
  const auto read = [](const char* text) { return ReadObjective(json::parse(text)); };
  const auto plain =
      read(R"({"metadata": {"name": "a"}, "spec": {"priority": -3, "poolRef": {"name": "p"}}})");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->priority, -3);
  EXPECT_THAT(plain->pools, ElementsAre(PoolReference{.group = std::string(kPoolGroup), .name = "p"}));
  const auto many = read(R"({"metadata": {"name": "a"}, "spec": {"poolRefs": [{"name": "p"},
      {"group": "inference.networking.x-k8s.io", "name": "q"}, {"kind": "Service", "name": "s"}]}})");
  ASSERT_TRUE(many.ok());
  EXPECT_EQ(many->priority, 0);
  EXPECT_THAT(many->pools,
              ElementsAre(PoolReference{.group = std::string(kPoolGroup), .name = "p"},
                          PoolReference{.group = std::string(kPoolGroupOld), .name = "q"}, PoolReference{}));
  EXPECT_FALSE(read(R"({"metadata": {"name": "a"}, "spec": {"priority": 2147483648}})").ok());
  EXPECT_FALSE(read(R"({"metadata": {"name": "a"}, "spec": {"priority": "high"}})").ok());
  EXPECT_FALSE(read(R"({"metadata": {"name": "a"}, "spec": {"priority": 18446744073709551615}})").ok());
}

TEST(ReadRewriteTest, Rules) {
  const auto rewrite = ReadRewrite(json::parse(R"({
      "metadata": {"name": "r", "creationTimestamp": "2026-01-02T03:04:05Z"},
      "spec": {"poolRef": {"name": "p", "group": "inference.networking.k8s.io"}, "rules": [
        {"matches": [{"model": {"type": "Exact", "value": "a"}}, {"model": {"value": "b"}}, {},
                     {"model": {"type": "Prefix", "value": "c"}}],
         "targets": [{"modelRewrite": "x", "weight": 3}, {"modelRewrite": "y"}, {"modelRewrite": ""},
                     {"modelRewrite": "z", "weight": -1}, {"modelRewrite": "z", "weight": "1"}, 7]},
        {"matches": [], "targets": [{"modelRewrite": "g"}]},
        {"matches": "all", "targets": [{"modelRewrite": "h"}]},
        {"targets": [{"modelRewrite": "i"}]}, 3]}})"));
  ASSERT_TRUE(rewrite.ok()) << rewrite.status();
  EXPECT_EQ(rewrite->pool.name, "p");
  EXPECT_EQ(rewrite->object.created, absl::FromUnixSeconds(1767323045));
  const auto& rules = rewrite->object.rules;
  ASSERT_EQ(rules.size(), 5u);
  EXPECT_THAT(rules[0].models, ElementsAre("a", "b"));
  EXPECT_THAT(rules[0].targets, ElementsAre(RewriteTarget{"x", 3}, RewriteTarget{"y", std::nullopt}));
  EXPECT_FALSE(rules[0].generic);
  EXPECT_TRUE(rules[1].generic);
  EXPECT_FALSE(rules[2].generic);  // not surely meant for all
  EXPECT_TRUE(rules[3].generic);
  EXPECT_FALSE(rules[4].generic);
}

TEST(CheckTargetPortsTest, Values) {
  const auto check = [](std::vector<int> ports) { return CheckTargetPorts(ports); };
  EXPECT_THAT(*check({8000, 8001, 1}), ElementsAre(8000, 8001, 1));
  for (const std::vector<int>& bad :
       {std::vector<int>{}, {0}, {65536}, {-1}, {1, 2, 3, 4, 5, 6, 7, 8, 9}, {1, 1}}) {
    EXPECT_FALSE(check(bad).ok()) << bad.size();
  }
}

TEST(LabelSelectorTest, Terms) {
  const sched::Labels labels = {{"app", "vllm"}, {"env", "prod"}, {"llm-d.ai/role", "decode"}, {"empty", ""}};
  const std::map<std::string, bool> cases = {
      {"app=vllm", true},
      {"app==vllm", true},
      {" app = vllm , env in (prod,staging) ", true},
      {"app=other", false},
      {"app!=other", true},
      {"missing!=x", true},
      {"missing=x", false},
      {"env in (staging)", false},
      {"env notin (staging, test)", true},
      {"env notin (prod)", false},
      {"missing notin (prod)", true},
      {"app", true},
      {"missing", false},
      {"!missing", true},
      {"!app", false},
      {"llm-d.ai/role=decode,app", true},
      {"empty=", true},
      {"empty", true},
      {"app=", false},
      {"in=x", false},
      {"in", false},
      {"in in (in)", false},
  };
  for (const auto& [text, matches] : cases) {
    const absl::StatusOr<LabelSelector> selector = LabelSelector::Parse(text);
    ASSERT_TRUE(selector.ok()) << text << ": " << selector.status();
    EXPECT_EQ(selector->Matches(labels), matches) << text;
  }
  EXPECT_FALSE(LabelSelector().Matches(labels));
}

TEST(LabelSelectorTest, ErrorsNameThePlace) {
  const auto error = [](std::string_view text) {
    return std::string(LabelSelector::Parse(text).status().message());
  };
  EXPECT_THAT(error(""), HasSubstr("character 1: expected a label's name"));
  EXPECT_THAT(error("app=vllm,"), HasSubstr("character 10: expected a label's name"));
  EXPECT_THAT(error("app within (a)"), HasSubstr("expected =, ==, !=, in or notin"));
  EXPECT_THAT(error("app in a"), HasSubstr("expected ("));
  EXPECT_THAT(error("app in (a"), HasSubstr("expected )"));
  EXPECT_THAT(error("app!vllm"), HasSubstr("expected ="));
  EXPECT_THAT(error("app=a b"), HasSubstr("expected a comma"));
  EXPECT_THAT(error("app=%"), HasSubstr("expected a label's value"));
  EXPECT_THAT(error("-app=a"), HasSubstr("expected a label's name"));
  EXPECT_THAT(error("/app"), HasSubstr("expected a label's name"));
  EXPECT_THAT(error(std::string(17 << 10, 'a')), HasSubstr("expected at most 16384"));
}

TEST(RewriteTableTest, Precedence) {
  const auto rule = [](std::vector<std::string> models, bool generic, std::string target) {
    RewriteRule rule{.models = std::move(models), .generic = generic, .targets = {}};
    if (!target.empty()) rule.targets.push_back({.model = std::move(target)});
    return rule;
  };
  const absl::Time t = absl::FromUnixSeconds(100);
  const RewriteTable table({
      {.name = "young", .created = t + absl::Seconds(1), .rules = {rule({"a", "b"}, false, "young")}},
      {.name = "b-old", .created = t, .rules = {rule({"c"}, false, "b-old")}},
      {.name = "a-old",
       .created = t,
       .rules = {rule({}, true, "generic"), rule({"a"}, false, "first"), rule({"a"}, false, "second"),
                 rule({"c"}, false, "a-old"), rule({"d"}, false, "")}},
      {.name = "undated", .rules = {rule({"a"}, false, "undated"), rule({}, true, "undated")}},
  });
  Random random(1);
  const auto choose = [&](std::string_view model) { return table.Choose(model, random)->model; };
  EXPECT_EQ(choose("a"), "first");
  EXPECT_EQ(choose("b"), "young");  // an exact rule before an older generic one
  EXPECT_EQ(choose("c"), "a-old");
  EXPECT_EQ(choose("d"), "generic");  // a rule without targets is none
  EXPECT_EQ(choose("other"), "generic");
  EXPECT_EQ(table.Choose("b", random)->object, "young");
  EXPECT_FALSE(RewriteTable().Choose("a", random));
  EXPECT_FALSE(RewriteTable({{.name = "x", .rules = {rule({"a"}, false, "y")}}}).Choose("b", random));
}

TEST(RewriteTableTest, WeightsAreProbabilities) {
  const auto shares = [](std::vector<RewriteTarget> targets) {
    RewriteRule rule{.models = {"m"}, .generic = false, .targets = std::move(targets)};
    const RewriteTable table({{.name = "o", .created = absl::UnixEpoch(), .rules = {rule}}});
    Random random(7);
    std::map<std::string, int> counts;
    for (int i = 0; i < 10'000; ++i) ++counts[std::string(table.Choose("m", random)->model)];
    return counts;
  };
  auto counts = shares({{"a", 9}, {"b", 1}, {"c", std::nullopt}, {"d", 0}});
  EXPECT_NEAR(counts["a"], 9000, 150);
  EXPECT_NEAR(counts["b"], 1000, 150);
  EXPECT_EQ(counts["c"] + counts["d"], 0);
  counts = shares({{"a", std::nullopt}, {"b", 0}});
  EXPECT_NEAR(counts["a"], 5000, 250);
  counts = shares({{"a", 1'000'000}, {"b", 1'000'000}, {"c", 1'000'000}, {"d", 1'000'000}});
  EXPECT_NEAR(counts["d"], 2500, 250);
}

TEST(ObjectiveTableTest, UnknownIsZero) {
  ObjectiveTable table;
  table.Set("batch", -5);
  EXPECT_EQ(table.Priority("batch"), -5);
  EXPECT_EQ(table.Priority("other"), 0);
  EXPECT_EQ(table.Priority(""), 0);
}

// Replaces, removes and duplicates parts of a document at random.
void Mutate(json& value, Random& random, int depth = 0) {
  static const std::vector<json> kOdd = {nullptr,
                                         true,
                                         -1,
                                         0,
                                         65536,
                                         1e308,
                                         "",
                                         "x",
                                         "\xc3\xa9\n",
                                         json::array(),
                                         json::object(),
                                         std::uint64_t{18446744073709551615u},
                                         std::string(5000, 'a'),
                                         json::array({json::object()})};
  if (random.Chance(0.15) || depth > 6) {
    value = kOdd[random.Below(kOdd.size())];
    return;
  }
  if (value.is_structured() && !value.empty()) {
    auto it = value.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random.Below(value.size())));
    switch (random.Below(4)) {
      case 0:
        value.erase(it);
        break;
      case 1:
        if (value.is_array()) {
          value.push_back(json(*it));
        } else {
          const json copy = *it;
          value["other"] = copy;
        }
        break;
      default:
        Mutate(*it, random, depth + 1);
    }
  }
}

TEST(KubernetesObjectsTest, MutatedObjectsNeverCrashAndYieldOnlyValidEndpoints) {
  Random random(20260101);
  const json rewrite = json::parse(R"({"metadata": {"name": "r", "creationTimestamp": "2026-01-02T03:04:05Z"},
      "spec": {"poolRef": {"name": "p"}, "rules": [{"matches": [{"model": {"value": "a"}}],
      "targets": [{"modelRewrite": "x", "weight": 3}]}]}})");
  int endpoints_seen = 0;
  for (int i = 0; i < 20'000; ++i) {
    json pod = GoodPod();
    json pool = GoodPool();
    json rules = rewrite;
    pod["metadata"]["annotations"]["llm-d.ai/active-ports"] = "8000,8001";
    for (std::uint64_t n = random.Between(1, 4); n > 0; --n) {
      Mutate(pod, random);
      Mutate(pool, random);
      Mutate(rules, random);
    }
    (void)ReadObjective(pod);
    if (const auto read = ReadRewrite(rules); read.ok()) {
      (void)RewriteTable({read->object}).Choose("a", random);
    }
    const absl::StatusOr<PoolState> state = ReadPool(pool);
    const absl::StatusOr<PodState> member = ReadPod(pod);
    if (!state.ok() || !member.ok()) continue;
    EXPECT_GE(state->target_ports.size(), 1u);
    EXPECT_LE(state->target_ports.size(), kMaxTargetPorts);
    std::vector<sched::EndpointMetadata> endpoints;
    AppendEndpoints(*member, state->target_ports, endpoints);
    for (const sched::EndpointMetadata& endpoint : endpoints) {
      ++endpoints_seen;
      EXPECT_FALSE(endpoint.name.empty());
      EXPECT_EQ(endpoint.address, "10.0.0.7");  // nothing else that appears here is an address
      EXPECT_NE(endpoint.port, 0);
    }
  }
  EXPECT_GT(endpoints_seen, 1000);  // or the mutations left nothing to test
}

}  // namespace
}  // namespace llmd::host
