// What is called for every request or scrape allocates nothing once warm.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "llmd/base/random.h"
#include "llmd/gateway/bounded_load.h"
#include "llmd/gateway/engine_metrics.h"
#include "llmd/gateway/maglev.h"
#include "llmd/gateway/request_hash.h"
#include "llmd/gateway/ring_hash.h"
#include "llmd/gateway/session_id.h"
#include "tests/support/allocation_count.h"

namespace llmd::gateway {

namespace {

TEST(Allocations, Picks) {
  std::vector<HashHost> hosts;
  for (int i = 0; i < 20; ++i) hosts.push_back({"h" + std::to_string(i)});
  const auto ring = RingHash::Create(hosts);
  const auto maglev = Maglev::Create(hosts);
  const auto bounded = BoundedLoad::Create(125, ring->normalized());
  const std::vector<std::uint32_t> active(20, 50);
  std::vector<std::uint32_t> scratch(20);
  Random random(1);
  const std::size_t before = AllocationCount();
  std::uint32_t sum = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t bits = random.Next();
    const std::string_view session(reinterpret_cast<const char*>(&bits), sizeof bits);
    const std::uint64_t hash = HashHeaderValues({&session, 1});
    sum += ring->Pick(hash) + maglev->Pick(hash, 1);
    sum += bounded->Pick(ring->Pick(hash), hash, active, 3, scratch);
  }
  EXPECT_EQ(AllocationCount(), before);
  EXPECT_GT(sum, 0u);
}

TEST(Allocations, Sessions) {
  const auto reader = SessionIdReader::Create();
  const std::vector<HeaderView> cookie = {{":path", "/"},
                                          {"cookie", "a=1; session-id=abcdefghijklmnopqrstuvwxyz"}};
  const std::vector<HeaderView> repeated = {{"session-id", "abcdefghijklmnopqrstuvwxyz"},
                                            {"session-id", "b"}};
  std::string scratch;
  ASSERT_TRUE(reader->Read(repeated, scratch).found());
  const std::size_t before = AllocationCount();
  bool found = reader->Read(cookie, scratch).found() && reader->Read(repeated, scratch).found();
  EXPECT_EQ(AllocationCount(), before);
  EXPECT_TRUE(found);
}

TEST(Allocations, MetricsPages) {
  const std::string page =
      "# TYPE vllm:num_requests_waiting gauge\n"
      "vllm:num_requests_waiting{engine=\"0\",model_name=\"a model with a long name\"} 3\n"
      "vllm:num_requests_waiting{engine=\"1\",model_name=\"a model with a long name\"} 5\n"
      "vllm:num_requests_running{engine=\"0\",model_name=\"a model with a long name\"} 1\n"
      "vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"100\"} 1.0\n"
      "vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"a very long name of an adapter\"} 1\n"
      "gpu_power_in_watts 5\nnonsense\n";
  EngineConfig config = BuiltinEngines().front();
  config.custom = {{"an attribute with a long name", {"gpu_power_in_watts"}}};
  EngineMetricsReader reader(config);
  sched::Metrics metrics;
  std::vector<sched::Attribute> attributes;
  MetricsReport report;
  ASSERT_TRUE(reader.Read(page, absl::FromUnixSeconds(1), metrics, attributes, report).ok());
  ASSERT_EQ(report.problems.size(), 1u);  // the cache's use
  const std::size_t before = AllocationCount();
  const bool ok = reader.Read(page, absl::FromUnixSeconds(2), metrics, attributes, report).ok();
  EXPECT_EQ(AllocationCount(), before);
  EXPECT_TRUE(ok);
  EXPECT_EQ(metrics.waiting_requests.value, 8);
  EXPECT_EQ(metrics.adapters.at, absl::FromUnixSeconds(2));
}

}  // namespace
}  // namespace llmd::gateway
