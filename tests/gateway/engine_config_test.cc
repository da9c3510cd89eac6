#include "llmd/gateway/engine_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace llmd::gateway {
namespace {

using sched::Parameters;
using sched::Value;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(MetricSpec, Parse) {
  const auto plain = MetricSpec::Parse("vllm:num_requests_waiting");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->name, "vllm:num_requests_waiting");
  EXPECT_THAT(plain->labels, IsEmpty());
  const auto spec = MetricSpec::Parse(" m { a=b , c = \"d,\\\"e\\\\}\" ,f=,} ");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->name, "m");
  EXPECT_THAT(spec->labels, ElementsAre(Pair("a", "b"), Pair("c", "d,\"e\\}"), Pair("f", "")));
  EXPECT_THAT(MetricSpec::Parse("m{}")->labels, IsEmpty());
}

TEST(MetricSpec, Refuses) {
  for (const char* text : {"", " ", "1m", "m n", "m{", "m{a}", "m{a=b", "m{a=b}x", "m{=b}", "m{a=\"b}",
                           "m{a=b\"c}", "m{a:b=c}", "m{a=\"b\"c}", "{a=b}", "m{,}", "m-n", "m{a=\"b\\}"}) {
    EXPECT_THAT(std::string(MetricSpec::Parse(text).status().message()),
                HasSubstr("expected name or name{label=value,...}"))
        << text;
  }
}

std::string Error(const Value& parameters) {
  return std::string(EngineCatalog::FromParameters(parameters).status().message());
}

Value Engines(std::vector<Value> engines) {
  return Parameters({{"engineConfigs", Value::MakeList(std::move(engines))}});
}

TEST(EngineCatalog, BuiltinEnginesByLabel) {
  const auto catalog = EngineCatalog::FromParameters(Value());
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  EXPECT_EQ(catalog->engines().size(), 5u);
  EXPECT_EQ(catalog->For({}).name, "vllm");
  EXPECT_EQ(catalog->For({{"llm-d.ai/engine-type", "sglang"}}).name, "sglang");
  EXPECT_EQ(catalog->For({{"llm-d.ai/engine-type", "unheard-of"}}).name, "vllm");
  EXPECT_EQ(catalog->For({{"inference.networking.k8s.io/engine-type", "triton"}}).name, "triton");
  EXPECT_EQ(catalog
                ->For({{"llm-d.ai/engine-type", "trtllm-serve"},
                       {"inference.networking.k8s.io/engine-type", "triton"}})
                .name,
            "trtllm-serve");
  EXPECT_EQ(
      catalog->For({{"llm-d.ai/engine-type", ""}, {"inference.networking.k8s.io/engine-type", "triton"}})
          .name,
      "triton");
}

TEST(EngineCatalog, OwnEngines) {
  const auto catalog = EngineCatalog::FromParameters(Parameters(
      {{"engineLabelKey", "engine"},
       {"defaultEngine", "mine"},
       {"engineConfigs",
        Value::MakeList(
            {Parameters({{"name", "mine"},
                         {"queuedRequestsSpec", "q{a=b}"},
                         {"runningRequestsSpec", ""},
                         {"kvUsageSpec", "k"},
                         {"loraSpec", "l"},
                         {"cacheInfoSpec", "i"},
                         {"cacheBlockSizeLabelName", "bs"},
                         {"cacheNumBlocksLabelName", "nb"},
                         {"cacheBlockSizeSpec", "b"},
                         {"cacheNumBlocksSpec", "n"},
                         {"customMetrics", Value::MakeList({Parameters(
                                               {{"attributeKey", "power"}, {"metricSpec", "p{gpu=0}"}})})}}),
             Parameters({{"name", "vllm"}, {"queuedRequestsSpec", "other"}})})}}));
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  EXPECT_EQ(catalog->engines().size(), 6u);
  const EngineConfig& mine = catalog->For({});
  EXPECT_EQ(mine.name, "mine");
  ASSERT_EQ(mine.queued_requests.size(), 1u);
  EXPECT_EQ(mine.queued_requests[0].name, "q");
  EXPECT_THAT(mine.queued_requests[0].labels, ElementsAre(Pair("a", "b")));
  EXPECT_THAT(mine.running_requests, IsEmpty());
  EXPECT_EQ(mine.kv_usage[0].name, "k");
  EXPECT_EQ(mine.lora[0].name, "l");
  EXPECT_EQ(mine.cache_info[0].name, "i");
  EXPECT_EQ(mine.cache_block_size_label, "bs");
  EXPECT_EQ(mine.cache_num_blocks_label, "nb");
  EXPECT_EQ(mine.cache_block_size[0].name, "b");
  EXPECT_EQ(mine.cache_num_blocks[0].name, "n");
  ASSERT_EQ(mine.custom.size(), 1u);
  EXPECT_EQ(mine.custom[0].attribute_key, "power");
  EXPECT_EQ(mine.custom[0].metric.name, "p");
  // Redefined, not merged: what is not given is not read.
  const EngineConfig& vllm = catalog->For({{"engine", "vllm"}});
  EXPECT_EQ(vllm.queued_requests[0].name, "other");
  EXPECT_THAT(vllm.kv_usage, IsEmpty());
  EXPECT_EQ(vllm.cache_block_size_label, "block_size");
}

TEST(EngineCatalog, Refuses) {
  EXPECT_THAT(Error(Parameters({{"defaultEngine", "none"}})), HasSubstr("defaultEngine is \"none\""));
  EXPECT_THAT(Error(Parameters({{"defaultEngin", "vllm"}})), HasSubstr("defaultEngin"));
  EXPECT_THAT(Error(Engines({Parameters({{"name", "default"}})})),
              HasSubstr("engineConfigs[0].name is \"default\""));
  EXPECT_THAT(Error(Engines({Parameters({{"name", "a"}}), Parameters({})})),
              HasSubstr("engineConfigs[1].name is \"\""));
  EXPECT_THAT(Error(Engines({Parameters({{"name", "a"}}), Parameters({{"name", "a"}})})),
              HasSubstr("engineConfigs[1].name is \"a\" again"));
  EXPECT_THAT(Error(Engines({Parameters({{"name", "a"}, {"kvUsageSpec", "b{"}})})),
              HasSubstr("engineConfigs[0].kvUsageSpec is b{, expected name or"));
  EXPECT_THAT(Error(Engines({Parameters({{"name", "a"}, {"kvUsage", "b"}})})), HasSubstr("kvUsage"));
  EXPECT_THAT(Error(Engines({Parameters({{"name", 1}})})), HasSubstr("name is an integer"));
  EXPECT_THAT(
      Error(Engines({Parameters(
          {{"name", "a"}, {"customMetrics", Value::MakeList({Parameters({{"attributeKey", "k"}})})}})})),
      HasSubstr("customMetrics[0].metricSpec is empty"));
  EXPECT_THAT(
      Error(Engines({Parameters(
          {{"name", "a"}, {"customMetrics", Value::MakeList({Parameters({{"metricSpec", "k"}})})}})})),
      HasSubstr("customMetrics[0].attributeKey is empty"));
}

}  // namespace
}  // namespace llmd::gateway
