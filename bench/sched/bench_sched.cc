// Time of one decision: match in two prefix indexes, six scorers, filter and pick.
//
//   bench_sched [--json]
//
// Inside the clock is Scheduler::Schedule() alone: block keys are computed before. Each endpoint has a gpu
// and a cpu holder in the exact index; prompts are 16,384 tokens, 1,024 blocks of 16 in the exact and 256 of
// 64 in the approximate source. Each of the prompts is held, to a random depth, by a random share of the
// endpoints.
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bench/bench_util.h"
#include "llmd/base/random.h"
#include "llmd/index/approx_index.h"
#include "llmd/index/prefix_index.h"
#include "llmd/sched/scheduler.h"

namespace llmd::sched {
namespace {

constexpr std::size_t kPrompts = 512;
constexpr std::size_t kExactBlocks = 1024;
constexpr std::size_t kApproximateBlocks = 256;
constexpr int kWarmUp = 2000;
constexpr int kDecisions = 10000;
constexpr int kRepetitions = 5;

const absl::Time kNow = absl::FromUnixSeconds(1'700'000'000);

struct Fleet {
  EndpointPool pool;
  std::unique_ptr<index::PrefixIndex> exact = *index::PrefixIndex::Create({});
  std::unique_ptr<index::ApproxIndex> approximate = *index::ApproxIndex::Create({.capacity_blocks = 200000});
  std::vector<std::vector<BlockKey>> exact_keys;
  std::vector<std::vector<BlockKey>> approximate_keys;
  std::vector<std::vector<KeyChain>> chains;
  std::vector<Prompt> prompts;
};

std::vector<BlockKey> RandomKeys(Random& random, std::size_t blocks) {
  std::vector<BlockKey> keys;
  for (std::size_t i = 0; i < blocks; ++i) keys.push_back(random.Next());
  return keys;
}

void Store(index::PrefixIndex& index, index::HolderId holder, const std::vector<BlockKey>& keys,
           std::size_t depth) {
  std::vector<index::StoredBlock> blocks;
  for (std::size_t i = 0; i < depth; ++i) blocks.push_back({keys[i], keys[i]});
  if (depth > 0) index.Store(holder, {}, std::nullopt, blocks);
}

std::unique_ptr<Fleet> MakeFleet(std::size_t endpoints) {
  auto fleet = std::make_unique<Fleet>();
  Random random(7);
  for (std::size_t i = 0; i < kPrompts; ++i) {
    fleet->exact_keys.push_back(RandomKeys(random, kExactBlocks));
    fleet->approximate_keys.push_back(RandomKeys(random, kApproximateBlocks));
  }
  for (std::size_t i = 0; i < kPrompts; ++i) {
    fleet->chains.push_back({{{}, 16, fleet->exact_keys[i]}, {{}, 64, fleet->approximate_keys[i]}});
  }
  for (const std::vector<KeyChain>& chains : fleet->chains) {
    fleet->prompts.push_back({.token_count = kExactBlocks * 16, .tokens = {}, .chains = chains});
  }
  for (std::size_t e = 0; e < endpoints; ++e) {
    const std::string name = "pod-" + std::to_string(e);
    const EndpointHandle handle = *fleet->pool.Add({.name = name, .address = name, .port = 8000});
    Metrics& metrics = *fleet->pool.mutable_metrics(handle);
    metrics.waiting_requests = {static_cast<std::int64_t>(random.Below(20)), kNow};
    metrics.running_requests = {static_cast<std::int64_t>(random.Below(200)), kNow};
    metrics.kv_cache_usage = {random.Uniform(), kNow};
    const index::HolderId gpu = *fleet->exact->AddHolder({.endpoint = name, .dp_rank = {}, .tier = "gpu"});
    const index::HolderId cpu = *fleet->exact->AddHolder({.endpoint = name, .dp_rank = {}, .tier = "cpu"});
    const index::HolderId sent = *fleet->approximate->AddHolder(name);
    fleet->pool.BindHolder(kExactSource, gpu, handle, "gpu").IgnoreError();
    fleet->pool.BindHolder(kExactSource, cpu, handle, "cpu").IgnoreError();
    fleet->pool.BindHolder(kApproximateSource, sent, handle).IgnoreError();
    for (std::size_t i = 0; i < kPrompts; ++i) {
      if (!random.Chance(static_cast<double>(i % 10) / 9)) continue;
      Store(*fleet->exact, gpu, fleet->exact_keys[i], random.Below(kExactBlocks));
      Store(*fleet->exact, cpu, fleet->exact_keys[i], random.Below(kExactBlocks));
      const std::vector<BlockKey>& keys = fleet->approximate_keys[i];
      fleet->approximate->Predict(sent, {}, BlockKeySpan(keys).first(random.Below(keys.size())), kNow);
    }
  }
  return fleet;
}

SchedulerConfig FullConfig() {
  const Value precise = Parameters({{"prefixMatchInfoProducerName", "precise-prefix-cache-producer"}});
  const Value precise_length = Parameters(
      {{"prefixMatchInfoProducerName", "precise-prefix-cache-producer"}, {"matchLengthWeight", 0.5}});
  return {.plugins = {{"", "decode-filter", {}},
                      {"", "precise-prefix-cache-producer", {}},
                      {"precise", "prefix-cache-scorer", precise},
                      {"precise-length", "prefix-cache-scorer", precise_length},
                      {"approximate", "prefix-cache-scorer", {}},
                      {"", "queue-scorer", {}},
                      {"", "kv-cache-utilization-scorer", {}},
                      {"", "running-requests-size-scorer", {}},
                      {"", "max-score-picker", {}}},
          .profiles = {{"default",
                        {{"decode-filter", {}},
                         {"precise", 3.0},
                         {"precise-length", 1.0},
                         {"approximate", 1.0},
                         {"queue-scorer", 2.0},
                         {"kv-cache-utilization-scorer", 2.0},
                         {"running-requests-size-scorer", 1.0}}}}};
}

struct Times {
  std::vector<double> p50, p99;
};

// Calls `decide` on one random prompt after another, timing each call.
template <typename Decide>
Times Measure(const Fleet& fleet, const Decide& decide) {
  Times times;
  Random random(11);
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    std::vector<double> samples;
    for (int i = -kWarmUp; i < kDecisions; ++i) {
      const Prompt& prompt = fleet.prompts[random.Below(kPrompts)];
      const std::int64_t start = bench::NowNs();
      decide(prompt, static_cast<std::uint64_t>(i));
      const std::int64_t end = bench::NowNs();
      if (i >= 0) samples.push_back(static_cast<double>(end - start));
    }
    times.p50.push_back(bench::Quantile(samples, 0.5));
    times.p99.push_back(bench::Quantile(samples, 0.99));
  }
  return times;
}

void Report(const bench::Reporter& reporter, const std::string& name, const Times& times) {
  reporter.Report(name, "p50_ns", bench::Median(times.p50), "ns", true);
  reporter.Report(name, "p99_ns", bench::Median(times.p99), "ns", true);
}

void RunFleet(const bench::Reporter& reporter, std::size_t endpoints) {
  const std::unique_ptr<Fleet> fleet = MakeFleet(endpoints);
  const Resources resources{{ExactIndex(*fleet->exact), ApproximateIndex(*fleet->approximate)}};
  auto scheduler = *Scheduler::Create(FullConfig(), PluginRegistry::Builtin(), resources);
  Workspace workspace(*scheduler);
  Decision decision;
  Explanation explanation;
  const auto decide = [&](const Prompt& prompt, std::uint64_t seed, Explanation* explain) {
    Request request;
    request.prompts = {&prompt, 1};
    const ScheduleInput input{.request = request, .pool = fleet->pool, .now = kNow, .seed = seed};
    if (!scheduler->Schedule(input, workspace, decision, explain).ok()) std::abort();
    bench::KeepAlive(decision.target());
  };
  const std::string suffix = "_e" + std::to_string(endpoints);
  Report(reporter, "full_decision" + suffix,
         Measure(*fleet, [&](const Prompt& p, std::uint64_t seed) { decide(p, seed, nullptr); }));
  Report(reporter, "explained_decision" + suffix,
         Measure(*fleet, [&](const Prompt& p, std::uint64_t seed) { decide(p, seed, &explanation); }));

  // The two matches by themselves, to tell the index's share from the scheduler's.
  index::PrefixIndex::Reader exact(*fleet->exact);
  index::ApproxIndex::Reader approximate(*fleet->approximate);
  index::MatchResult rows;
  Report(reporter, "matches_only" + suffix, Measure(*fleet, [&](const Prompt& p, std::uint64_t) {
           exact.Match(p.chains[0].ns, p.chains[0].keys, rows);
           approximate.Match(p.chains[1].ns, p.chains[1].keys, rows);
           bench::KeepAlive(rows.size());
         }));
}

}  // namespace
}  // namespace llmd::sched

int main(int argc, char** argv) {
  const bool json = argc == 2 && std::strcmp(argv[1], "--json") == 0;
  if (argc > 1 && !json) {
    std::fprintf(stderr, "usage: bench_sched [--json]\n");
    return 2;
  }
  const llmd::bench::Reporter reporter("bench_sched", json);
  for (const std::size_t endpoints : {8, 100, 1000}) llmd::sched::RunFleet(reporter, endpoints);
  return 0;
}
