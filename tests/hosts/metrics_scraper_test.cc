#include "examples/gateway_scheduler/metrics_scraper.h"

#include <atomic>
#include <functional>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/sched/config_file.h"
#include "llmd/sched/registry.h"
#include "tests/hosts/tiny_server.h"

namespace llmd::host {
namespace {

using testing::HasSubstr;

std::string VllmPage(int waiting, int running) {
  return absl::StrCat(
      "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\"} ", waiting,
      "\n# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\"} ", running,
      "\n# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n"
      "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"1000\"} 1\nmine{a=\"b\"} 42\n");
}

sched::EndpointMetadata Endpoint(const std::string& name, std::uint16_t port, sched::Labels labels = {},
                                 const std::string& address = "127.0.0.1") {
  return {.name = name, .address = address, .port = port, .labels = std::move(labels)};
}

// Whether `condition` became true within a generous time.
bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return false;
}

const sched::Endpoint& ById(const PoolStore::Snapshot& pool, const std::string& id) {
  return (*pool)[*pool->FindId(id)];
}

ScraperOptions Quick() { return {.interval = absl::Milliseconds(10), .max_backoff = absl::Milliseconds(40)}; }

TEST(MetricsScraperTest, WritesWhatThePagesTell) {
  TinyServer server([](const http::Request& request, TinyServer::Reply& reply) {
    reply.Send(request.target == "/metrics" ? 200 : 404, VllmPage(7, 3));
  });
  PoolStore pool;
  ASSERT_TRUE(pool.SetEndpoints(std::vector{Endpoint("a", server.port())}).ok());
  CurlLoop loop;
  const absl::Time start = absl::Now();
  MetricsScraper scraper(Quick(), pool, loop);
  ASSERT_TRUE(
      Eventually([&] { return ById(pool.snapshot(), "default/a").metrics.waiting_requests.known(); }));
  const PoolStore::Snapshot now = pool.snapshot();
  const sched::Metrics& metrics = ById(now, "default/a").metrics;
  EXPECT_EQ(metrics.waiting_requests.value, 7);
  EXPECT_EQ(metrics.running_requests.value, 3);
  EXPECT_EQ(metrics.kv_cache_usage.value, 0.5);
  EXPECT_EQ(metrics.cache_block_size, 16);
  EXPECT_EQ(metrics.cache_num_blocks, 1000);
  EXPECT_GE(metrics.waiting_requests.at, start);
  EXPECT_LE(metrics.waiting_requests.at, absl::Now());

  ASSERT_TRUE(Eventually([&] { return scraper.counters().good >= 5; }));
  const std::vector<EndpointScrape> shown = scraper.Endpoints();
  ASSERT_EQ(shown.size(), 1);
  EXPECT_EQ(shown[0].id, "default/a");
  EXPECT_EQ(shown[0].url, server.url("/metrics"));
  EXPECT_EQ(shown[0].engine, "vllm");
  EXPECT_EQ(shown[0].page_bytes, VllmPage(7, 3).size());
  EXPECT_GT(shown[0].last_good, start);
  EXPECT_EQ(shown[0].failures, 0);
  const ScraperCounters counters = scraper.counters();
  EXPECT_GE(counters.bytes, 5 * VllmPage(7, 3).size());
  EXPECT_EQ(counters.poll_errors() + counters.extract_errors(), 0);
  EXPECT_EQ(server.connections(), 1);
}

TEST(MetricsScraperTest, FollowsThePool) {
  TinyServer one([](const http::Request&, TinyServer::Reply& reply) { reply.Send(200, VllmPage(1, 1)); });
  TinyServer two([](const http::Request&, TinyServer::Reply& reply) {
    reply.Send(200, "sglang:num_queue_reqs 9\nsglang:num_running_reqs 8\nsglang:token_usage 0.25\n");
  });
  PoolStore pool;
  CurlLoop loop;
  MetricsScraper scraper(Quick(), pool, loop);
  const sched::EndpointMetadata a = Endpoint("a", one.port());
  const sched::EndpointMetadata b = Endpoint("b", two.port(), {{"llm-d.ai/engine-type", "sglang"}});
  ASSERT_TRUE(pool.SetEndpoints(std::vector{a, b}).ok());
  ASSERT_TRUE(Eventually([&] {
    return ById(pool.snapshot(), "default/b").metrics.scraped() &&
           ById(pool.snapshot(), "default/a").metrics.scraped();
  }));
  EXPECT_EQ(ById(pool.snapshot(), "default/b").metrics.waiting_requests.value, 9);
  ASSERT_TRUE(pool.SetEndpoints(std::vector{b}).ok());
  ASSERT_TRUE(Eventually([&] { return scraper.Endpoints().size() == 1; }));
  const std::uint64_t good = scraper.counters().good;
  ASSERT_TRUE(Eventually([&] { return scraper.counters().good > good + 3; }));
  const int asked = one.requests();
  ASSERT_TRUE(Eventually([&] { return scraper.counters().good > good + 6; }));
  EXPECT_EQ(one.requests(), asked);
  EXPECT_EQ(pool.snapshot()->size(), 1);
}

TEST(MetricsScraperTest, OneThatHangsDelaysNobodyAndIsAskedOnceAtATime) {
  std::atomic<int> at_once = 0, most = 0;
  TinyServer slow([&](const http::Request&, TinyServer::Reply& reply) {
    const int now = ++at_once;
    if (now > most) most = now;
    reply.Hang();
    --at_once;
  });
  TinyServer quick([](const http::Request&, TinyServer::Reply& reply) { reply.Send(200, VllmPage(1, 1)); });
  PoolStore pool;
  ASSERT_TRUE(
      pool.SetEndpoints(std::vector{Endpoint("quick", quick.port()), Endpoint("slow", slow.port())}).ok());
  CurlLoop loop;
  ScraperOptions options = Quick();
  options.timeout = absl::Milliseconds(150);
  MetricsScraper scraper(options, pool, loop);
  ASSERT_TRUE(Eventually([&] { return scraper.counters().timed_out >= 2; }));
  EXPECT_GE(scraper.counters().late, 2);
  EXPECT_GE(scraper.counters().good, 3);
  EXPECT_EQ(most, 1);
  const std::vector<EndpointScrape> shown = scraper.Endpoints();
  ASSERT_EQ(shown.size(), 2);
  EXPECT_EQ(shown[0].failures, 0);
  EXPECT_GE(shown[1].failures, 2);
  EXPECT_THAT(shown[1].last_error, HasSubstr("150 ms"));
  EXPECT_EQ(shown[1].last_good, absl::InfinitePast());
  EXPECT_FALSE(ById(pool.snapshot(), "default/slow").metrics.scraped());
}

TEST(MetricsScraperTest, CountsErrorsByKindAndKeepsOldValues) {
  std::atomic<int> mode = 0;
  TinyServer server([&](const http::Request&, TinyServer::Reply& reply) {
    switch (mode) {
      case 0:
        return void(reply.Send(200, VllmPage(5, 5)));
      case 1:
        return void(reply.Send(500, "oops"));
      case 2:
        return void(reply.Send(200, std::string(5000, 'x')));
      case 3:
        return reply.Close();
      case 4: {
        std::string bad;
        for (int i = 0; i < 200; ++i) bad += "{{{\n";
        return void(reply.Send(200, bad));
      }
      default:
        return void(reply.Send(200, "vllm:num_requests_waiting NaN\nvllm:num_requests_running 6\n"));
    }
  });
  PoolStore pool;
  ASSERT_TRUE(pool.SetEndpoints(std::vector{Endpoint("a", server.port())}).ok());
  CurlLoop loop;
  ScraperOptions options = Quick();
  options.max_page_bytes = 4000;
  MetricsScraper scraper(options, pool, loop);
  const auto metrics = [&] { return ById(pool.snapshot(), "default/a").metrics; };
  ASSERT_TRUE(Eventually([&] { return metrics().scraped(); }));
  const std::pair<int, std::uint64_t ScraperCounters::*> kinds[] = {{1, &ScraperCounters::bad_status},
                                                                    {2, &ScraperCounters::too_long},
                                                                    {3, &ScraperCounters::unreachable},
                                                                    {4, &ScraperCounters::refused_pages}};
  for (const auto& [number, counter] : kinds) {
    mode = number;
    ASSERT_TRUE(Eventually([&] { return scraper.counters().*counter >= 2; })) << number;
  }
  EXPECT_EQ(metrics().waiting_requests.value, 5);
  const absl::Time old = metrics().waiting_requests.at;
  EXPECT_GE(scraper.Endpoints()[0].failures, 8);
  EXPECT_THAT(scraper.Endpoints()[0].last_error, HasSubstr("malformed"));
  mode = 5;
  ASSERT_TRUE(Eventually([&] { return metrics().running_requests.value == 6; }));
  EXPECT_EQ(metrics().waiting_requests.value, 5);
  EXPECT_EQ(metrics().waiting_requests.at, old);
  EXPECT_GT(metrics().running_requests.at, old);
  EXPECT_EQ(scraper.Endpoints()[0].failures, 0);
  EXPECT_THAT(scraper.Endpoints()[0].problems, HasSubstr("waiting requests has a value without meaning"));
  EXPECT_GT(scraper.counters().extract_errors(), 0);
}

TEST(MetricsScraperTest, ADeadEndpointIsAskedEverMoreSeldom) {
  TinyServer server([](const http::Request&, TinyServer::Reply& reply) { reply.Send(503, ""); });
  PoolStore pool;
  ASSERT_TRUE(pool.SetEndpoints(std::vector{Endpoint("a", server.port())}).ok());
  CurlLoop loop;
  ScraperOptions options = Quick();
  options.interval = absl::Milliseconds(2);
  options.max_backoff = absl::Hours(1);
  MetricsScraper scraper(options, pool, loop);
  // Waits of 4, 8, 16 ... ms: after ten failures the next is two seconds away.
  ASSERT_TRUE(Eventually([&] { return scraper.counters().bad_status >= 8; }));
  EXPECT_LE(server.requests(), 12);
}

TEST(MetricsScraperTest, PublishesInBatches) {
  TinyServer server([](const http::Request&, TinyServer::Reply& reply) { reply.Send(200, VllmPage(1, 1)); });
  PoolStore pool;
  std::vector<sched::EndpointMetadata> all;
  for (int i = 1; i <= 40; ++i) {
    all.push_back(Endpoint(absl::StrCat("e", i), server.port(), {}, absl::StrCat("127.0.0.", i)));
  }
  ASSERT_TRUE(pool.SetEndpoints(all).ok());
  CurlLoop loop;
  ScraperOptions options = Quick();
  options.interval = absl::Milliseconds(20);
  options.batch = absl::Milliseconds(100);
  MetricsScraper scraper(options, pool, loop);
  ASSERT_TRUE(Eventually([&] { return scraper.counters().publications >= 3; }));
  const ScraperCounters counters = scraper.counters();
  EXPECT_GT(counters.good, 3 * counters.publications);
  for (const sched::Endpoint& endpoint : pool.snapshot()->endpoints())
    EXPECT_TRUE(endpoint.metrics.scraped());
}

TEST(MetricsScraperTest, OtherPortPathHeaders) {
  TinyServer server([](const http::Request& request, TinyServer::Reply& reply) {
    const std::string* token = http::FindHeader(request.headers, "authorization");
    const bool good = token != nullptr && *token == "Bearer t" && request.target == "/m/x";
    reply.Send(good ? 200 : 403, VllmPage(4, 4));
  });
  PoolStore pool;
  ASSERT_TRUE(pool.SetEndpoints(std::vector{Endpoint("a", 1)}).ok());
  CurlLoop loop;
  ScraperOptions options = Quick();
  options.port = server.port();
  options.path = "/m/x";
  options.headers = {{"Authorization", "Bearer t"}};
  MetricsScraper scraper(options, pool, loop);
  EXPECT_TRUE(Eventually([&] { return ById(pool.snapshot(), "default/a").metrics.scraped(); }));
}

TEST(MetricsScraperTest, EndsWhileEndpointsComeAndGo) {
  TinyServer server([](const http::Request&, TinyServer::Reply& reply) { reply.Send(200, VllmPage(1, 1)); });
  PoolStore pool;
  CurlLoop loop;
  std::atomic<bool> stop = false;
  std::thread churn([&] {
    for (int i = 0; !stop; ++i) {
      std::vector<sched::EndpointMetadata> all;
      for (int e = 0; e < 5; ++e) {
        if ((i >> e) % 2 == 0) all.push_back(Endpoint(absl::StrCat("e", e), server.port()));
      }
      EXPECT_TRUE(pool.SetEndpoints(all).ok());
      absl::SleepFor(absl::Milliseconds(1));
    }
  });
  for (int round = 0; round < 20; ++round) {
    MetricsScraper scraper({.interval = absl::Milliseconds(2), .batch = absl::ZeroDuration()}, pool, loop);
    absl::SleepFor(absl::Milliseconds(5));
  }
  stop = true;
  churn.join();
  EXPECT_LE(pool.snapshot()->size(), 5);
}

std::unique_ptr<sched::Scheduler> SchedulerOf(std::string_view yaml) {
  auto scheduler =
      sched::LoadScheduler(yaml, {.allow_experimental = true}, sched::PluginRegistry::Builtin(), {});
  EXPECT_TRUE(scheduler.ok()) << scheduler.status();
  return *std::move(scheduler);
}

TEST(ScraperOptionsTest, DefaultsWhenNothingIsSaid) {
  const auto options = ScraperOptionsOf(*SchedulerOf(R"(
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: max-score-picker
)"),
                                        absl::Milliseconds(70));
  ASSERT_TRUE(options.ok()) << options.status();
  ASSERT_TRUE(options->has_value());
  EXPECT_EQ((*options)->interval, absl::Milliseconds(70));
  EXPECT_EQ((*options)->scheme, "http");
  EXPECT_EQ((*options)->path, "/metrics");
  EXPECT_FALSE((*options)->tls.verify);
}

TEST(ScraperOptionsTest, ReadsSourceAndExtractor) {
  const auto options = ScraperOptionsOf(*SchedulerOf(R"(
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: metrics-data-source
  name: pages
  parameters: {scheme: https, path: /m, insecureSkipVerify: false, caCertPath: /ca.pem, interval: 130ms}
- type: core-metrics-extractor
  name: mine
  parameters:
    defaultEngine: custom
    engineConfigs:
    - {name: custom, queuedRequestsSpec: "q{a=b}", customMetrics: [{attributeKey: heat, metricSpec: temperature}]}
- type: max-score-picker
dataLayer:
  sources:
  - pluginRef: pages
    extractors:
    - pluginRef: mine
)"));
  ASSERT_TRUE(options.ok()) << options.status();
  ASSERT_TRUE(options->has_value());
  EXPECT_EQ((*options)->interval, absl::Milliseconds(150));
  EXPECT_EQ((*options)->scheme, "https");
  EXPECT_EQ((*options)->path, "/m");
  EXPECT_TRUE((*options)->tls.verify);
  EXPECT_EQ((*options)->tls.ca_file, "/ca.pem");
  ASSERT_NE((*options)->engines, nullptr);
  EXPECT_EQ((*options)->engines->For({}).name, "custom");
  EXPECT_EQ((*options)->engines->For({}).custom.at(0).attribute_key, "heat");
}

TEST(ScraperOptionsTest, NothingToScrape) {
  const auto options = ScraperOptionsOf(*SchedulerOf(R"(
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: max-score-picker
dataLayer: {injectDefaults: false}
)"));
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_FALSE(options->has_value());
}

TEST(MetricsScraperTest, CustomMetricsBecomeAttributes) {
  TinyServer server([](const http::Request&, TinyServer::Reply& reply) { reply.Send(200, VllmPage(1, 1)); });
  PoolStore pool;
  ASSERT_TRUE(pool.SetEndpoints(std::vector{Endpoint("a", server.port())}).ok());
  CurlLoop loop;
  gateway::EngineConfig engine{.name = "mine", .queued_requests = {{"vllm:num_requests_waiting"}}};
  engine.custom.push_back({.attribute_key = "answer", .metric = {"mine", {{"a", "b"}}}});
  ScraperOptions options = Quick();
  options.engines = std::make_shared<const gateway::EngineCatalog>(
      *gateway::EngineCatalog::Create({.engines = {engine}, .default_engine = "mine"}));
  MetricsScraper scraper(options, pool, loop);
  ASSERT_TRUE(Eventually([&] { return ById(pool.snapshot(), "default/a").metrics.scraped(); }));
  const PoolStore::Snapshot now = pool.snapshot();
  const sched::Attribute* attribute = ById(now, "default/a").FindAttribute("answer");
  ASSERT_NE(attribute, nullptr);
  EXPECT_EQ(attribute->sample.value, 42);
  EXPECT_TRUE(attribute->sample.known());
}

}  // namespace
}  // namespace llmd::host
