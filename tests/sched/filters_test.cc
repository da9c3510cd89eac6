#include <gmock/gmock.h>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Positions that the filter keeps; each dropped one must have a reason.
std::vector<Position> Kept(const std::string& type, const Value& parameters, const EndpointPool& pool) {
  PluginUnderTest plugin(type, parameters);
  EXPECT_TRUE(plugin.status.ok()) << plugin.status;
  Request request;
  Random random(1);
  Context context{request, pool, kNow, random, *plugin.columns};
  const std::vector<Position> all = AllPositions(pool);
  std::vector<DropReason> dropped(all.size(), nullptr);
  plugin.As<Filter>().Apply(context, all, dropped);
  std::vector<Position> kept;
  for (const Position p : all) {
    if (dropped[p] == nullptr) {
      kept.push_back(p);
    } else {
      EXPECT_STRNE(dropped[p], "");
    }
  }
  return kept;
}

EndpointPool RolePool() {
  EndpointPool pool;
  AddEndpoint(pool);  // 0: no label
  for (const char* role : {"decode", "prefill", "encode", "both", "prefill-decode", "encode-prefill",
                           "encode-prefill-decode", "other"}) {
    AddEndpoint(pool, {{std::string(kRoleLabel), role}});
  }
  return pool;
}

TEST(RoleFilters, Matrix) {
  EXPECT_THAT(Kept("decode-filter", {}, RolePool()), ElementsAre(0, 1, 4, 5, 7));
  EXPECT_THAT(Kept("prefill-filter", {}, RolePool()), ElementsAre(2, 4, 5, 6, 7));
  EXPECT_THAT(Kept("encode-filter", {}, RolePool()), ElementsAre(3, 6, 7));
}

EndpointPool LabelPool() {
  EndpointPool pool;
  AddEndpoint(pool, {{"gpu", "h100"}, {"zone", "a"}});
  AddEndpoint(pool, {{"gpu", "h200"}});
  AddEndpoint(pool, {{"zone", "b"}});
  AddEndpoint(pool);
  return pool;
}

Value Expression(const char* op, std::initializer_list<Value> values) {
  Value::Map map = {{"key", "gpu"}, {"operator", op}};
  if (values.size() > 0) map.emplace_back("values", Value::MakeList(values));
  return Parameters({{"matchExpressions", Value::MakeList({Value::MakeMap(map)})}});
}

TEST(LabelFilters, Selector) {
  const std::string type = "label-selector-filter";
  EXPECT_THAT(Kept(type, {}, LabelPool()), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Kept(type, Parameters({{"matchLabels", Parameters({{"gpu", "h100"}})}}), LabelPool()),
              ElementsAre(0));
  EXPECT_THAT(
      Kept(type, Parameters({{"matchLabels", Parameters({{"gpu", "h100"}, {"zone", "b"}})}}), LabelPool()),
      IsEmpty());
  EXPECT_THAT(Kept(type, Expression("In", {"h100", "h200"}), LabelPool()), ElementsAre(0, 1));
  EXPECT_THAT(Kept(type, Expression("NotIn", {"h100"}), LabelPool()), ElementsAre(1, 2, 3));
  EXPECT_THAT(Kept(type, Expression("Exists", {}), LabelPool()), ElementsAre(0, 1));
  EXPECT_THAT(Kept("by-label-selector", Expression("DoesNotExist", {}), LabelPool()), ElementsAre(2, 3));
}

TEST(LabelFilters, ByLabel) {
  const Value strict = Parameters({{"label", "gpu"}, {"validValues", Value::MakeList({"h200"})}});
  EXPECT_THAT(Kept("by-label", strict, LabelPool()), ElementsAre(1));
  const Value lenient =
      Parameters({{"label", "gpu"}, {"validValues", Value::MakeList({"h200"})}, {"allowsNoLabel", true}});
  EXPECT_THAT(Kept("by-label", lenient, LabelPool()), ElementsAre(1, 2, 3));
}

TEST(LabelFilters, BadParameters) {
  const auto message = [](const char* type, const Value& parameters) {
    return std::string(PluginUnderTest(type, parameters).status.message());
  };
  EXPECT_THAT(message("by-label", Parameters({{"validValues", Value::MakeList({"x"})}})),
              HasSubstr("label is missing"));
  EXPECT_THAT(message("by-label", Parameters({{"label", "x"}})), HasSubstr("validValues is empty"));
  EXPECT_THAT(message("label-selector-filter", Expression("Near", {"x"})), HasSubstr("operator is \"Near\""));
  EXPECT_THAT(message("label-selector-filter", Expression("In", {})), HasSubstr("values is empty"));
  EXPECT_THAT(message("label-selector-filter", Expression("Exists", {"x"})), HasSubstr("values is given"));
  EXPECT_THAT(message("label-selector-filter", Parameters({{"matchLabels", 1}})),
              HasSubstr("matchLabels is an integer"));
  EXPECT_THAT(message("label-selector-filter", Parameters({{"matchLabels", Parameters({{"a", 1}})}})),
              HasSubstr("matchLabels.a is an integer"));
  EXPECT_THAT(message("label-selector-filter", Parameters({{"matchExpressions", 1}})),
              HasSubstr("matchExpressions is an integer"));
  EXPECT_THAT(message("decode-filter", Parameters({{"a", 1}})), HasSubstr("a is unknown"));
}

}  // namespace
}  // namespace llmd::sched
