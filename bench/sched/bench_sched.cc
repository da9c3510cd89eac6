// Time and allocations of one decision.
//
//   bench_sched [--json] [--quick]
//
// Inside the clock is Scheduler::Schedule() alone, matches of the prompt's keys in the indexes included; the
// keys are computed before. Cases are <configuration>_e<endpoints>_t<tokens>:
//   default  queue 2, KV usage 2, approximate prefix 3, max score: what llm-d runs when nothing is configured
//   precise  the same with the exact index
//   pd       decode and prefill profiles, each role filter, exact prefix 2, queue 1, active requests 1, with
//   a
//            decider on non-cached tokens
// and matches_e<endpoints>_t<tokens>, the match in the exact index by itself. Decisions meet one random
// prompt of 512 (fewer where they are long) after another.
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/bench_util.h"
#include "bench/sched/fleet.h"
#include "llmd/base/random.h"
#include "tests/support/allocation_count.h"

namespace llmd::sched {

namespace {

constexpr char kPrecise[] = "precise-prefix-cache-producer";

SchedulerConfig PreciseConfig() {
  SchedulerConfig config = SchedulerConfig::Default();
  config.plugins.push_back({.type = kPrecise});
  config.plugins[2].parameters = Parameters({{"prefixMatchInfoProducerName", kPrecise}});
  return config;
}

SchedulerConfig DisaggregatedConfig() {
  const Value precise = Parameters({{"prefixMatchInfoProducerName", kPrecise}});
  const std::vector<PluginRef> scorers = {
      {"prefix-cache-scorer", 2.0}, {"queue-scorer", 1.0}, {"active-request-scorer", 1.0}};
  ProfileSpec prefill{"prefill", {{"prefill-filter"}}}, decode{"decode", {{"decode-filter"}}};
  prefill.plugins.insert(prefill.plugins.end(), scorers.begin(), scorers.end());
  decode.plugins.insert(decode.plugins.end(), scorers.begin(), scorers.end());
  return {.plugins = {{.type = kPrecise},
                      {.type = "prefix-cache-scorer", .parameters = precise},
                      {.type = "queue-scorer"},
                      {.type = "active-request-scorer"},
                      {.type = "prefill-filter"},
                      {.type = "decode-filter"},
                      {.type = "prefix-based-pd-decider",
                       .parameters =
                           Parameters({{"nonCachedTokens", 512}, {"prefixMatchInfoProducerName", kPrecise}})},
                      {.type = "disagg-profile-handler",
                       .parameters =
                           Parameters({{"deciders", Parameters({{"prefill", "prefix-based-pd-decider"}})}})}},
          .profiles = {prefill, decode}};
}

struct Effort {
  int warm_up = 1000;
  int decisions = 5000;
  int repetitions = 5;
};

// Calls `decide` on one random prompt after another, timing each call; reports the medians over repetitions.
void Measure(const bench::Reporter& reporter, const std::string& name, const Fleet& fleet,
             const Effort& effort, const std::function<void(const Prompt&, std::uint64_t seed)>& decide) {
  std::vector<double> p50, p99, allocated;
  Random random(11);
  for (int repetition = 0; repetition < effort.repetitions; ++repetition) {
    std::vector<double> samples;
    samples.reserve(static_cast<std::size_t>(effort.decisions));
    std::size_t before = 0;
    for (int i = -effort.warm_up; i < effort.decisions; ++i) {
      if (i == 0) before = AllocationCount();
      const Prompt& prompt = fleet.prompts[random.Below(fleet.prompts.size())];
      const std::int64_t start = bench::NowNs();
      decide(prompt, static_cast<std::uint64_t>(i));
      const std::int64_t end = bench::NowNs();
      if (i >= 0) samples.push_back(static_cast<double>(end - start));
    }
    allocated.push_back(static_cast<double>(AllocationCount() - before) / effort.decisions);
    p50.push_back(bench::Quantile(samples, 0.5));
    p99.push_back(bench::Quantile(samples, 0.99));
  }
  reporter.Report(name, "p50_ns", bench::Median(p50), "ns", true);
  reporter.Report(name, "p99_ns", bench::Median(p99), "ns", true);
  reporter.Report(name, "allocs_per_decision", bench::Median(allocated), "allocations", true);
}

void RunFleet(const bench::Reporter& reporter, std::size_t endpoints, std::size_t tokens, Effort effort) {
  // Long prompts held in many places take memory, not insight.
  const std::size_t prompts = tokens > 50'000 ? 64 : tokens > 10'000 ? 512 : 2048;
  if (endpoints >= 10'000) effort.decisions /= 5;
  Fleet fleet({.endpoints = endpoints, .tokens = tokens, .prompts = prompts});
  const std::string suffix = "_e" + std::to_string(endpoints) + "_t" + std::to_string(tokens / 1024) + "k";
  const std::pair<std::string, SchedulerConfig> configs[] = {
      {"default", SchedulerConfig::Default()}, {"precise", PreciseConfig()}, {"pd", DisaggregatedConfig()}};
  for (const auto& [name, config] : configs) {
    auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), fleet.resources());
    if (!scheduler.ok()) {
      std::fprintf(stderr, "bench_sched: %s: %s\n", name.c_str(), scheduler.status().ToString().c_str());
      std::exit(1);
    }
    Workspace workspace(**scheduler);
    Decision decision;
    Measure(reporter, name + suffix, fleet, effort, [&](const Prompt& prompt, std::uint64_t seed) {
      Request request;
      request.prompts = {&prompt, 1};
      const ScheduleInput input{.request = request, .pool = fleet.pool, .now = kFleetTime, .seed = seed};
      if (!(*scheduler)->Schedule(input, workspace, decision).ok()) std::abort();
      bench::KeepAlive(decision.target());
    });
  }
  index::PrefixIndex::Reader reader(*fleet.exact);
  index::MatchResult rows;
  Measure(reporter, "matches" + suffix, fleet, effort, [&](const Prompt& prompt, std::uint64_t) {
    reader.Match(prompt.chains[0].ns, prompt.chains[0].keys, rows);
    bench::KeepAlive(rows.size());
  });
}

}  // namespace
}  // namespace llmd::sched

int main(int argc, char** argv) {
  bool json = false, quick = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0) {
      json = true;
    } else if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else {
      std::fprintf(
          stderr, "usage: bench_sched [--json] [--quick]\n  --quick  8 and 100 endpoints, fewer decisions\n");
      return 2;
    }
  }
  const llmd::bench::Reporter reporter("bench_sched", json);
  const llmd::sched::Effort effort =
      quick ? llmd::sched::Effort{.warm_up = 100, .decisions = 500, .repetitions = 3} : llmd::sched::Effort{};
  const std::vector<std::size_t> endpoints =
      quick ? std::vector<std::size_t>{8, 100} : std::vector<std::size_t>{8, 100, 1000, 10000};
  for (const std::size_t e : endpoints) {
    for (const std::size_t tokens : {1024, 16 * 1024, 100 * 1024})
      llmd::sched::RunFleet(reporter, e, tokens, effort);
  }
  return 0;
}
