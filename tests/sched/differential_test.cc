// The profile run against a literal reading of the specification, on random pools, requests and
// configurations.
#include <gmock/gmock.h>

#include <limits>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

constexpr double kOdd[] = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                           -3.0, 2.0};

struct World {
  EndpointPool pool;
  FakeIndex exact;
  FakeIndex approximate;
};

struct Holder {
  std::uint16_t slot;
  Position position;
  std::string tier;
};

const char* kRoles[] = {"", "decode", "prefill", "both", "encode", "unknown"};
const char* kTiers[] = {"gpu", "cpu", "disk"};

// The specification, endpoint by endpoint and block by block.
class Reference {
 public:
  Reference(const World& world, const std::vector<Holder>& holders, const TestRequest& request)
      : world_(world), holders_(holders), request_(request) {}

  bool Keeps(const std::string& filter, Position p) const {
    const std::string* label = world_.pool[p].FindLabel(kRoleLabel);
    const std::string role = label == nullptr ? "" : *label;
    if (filter == "decode-filter") return label == nullptr || role == "decode" || role == "both";
    return role == "prefill" || role == "both";
  }

  // nullopt: no opinion.
  std::optional<double> Score(const std::string& scorer, const std::vector<Position>& survivors,
                              Position p) const {
    const Metrics& m = world_.pool[p].metrics;
    if (scorer == "queue-scorer") return MinMax(&Metrics::waiting_requests, survivors, p);
    if (scorer == "running-requests-size-scorer") return MinMax(&Metrics::running_requests, survivors, p);
    if (scorer == "kv-cache-utilization-scorer") {
      if (!m.kv_cache_usage.known()) return std::nullopt;
      return 1 - m.kv_cache_usage.value;
    }
    const std::size_t total = request_.keys.size();
    if (total == 0) return std::nullopt;
    if (scorer == "precise") return std::trunc(PreciseSum(p)) / total;
    std::size_t depth = 0;
    for (const Holder& h : holders_) {
      if (h.position == p && h.tier == "gpu") depth = world_.approximate.Depth(h.slot, request_.keys);
    }
    return static_cast<double>(depth) / total;
  }

 private:
  double PreciseSum(Position p) const {
    double sum = 0;
    for (std::size_t i = 0; i < request_.keys.size(); ++i) {
      double best = -1;
      for (const Holder& h : holders_) {
        if (h.position != p || world_.exact.Depth(h.slot, request_.keys) <= i) continue;
        best = std::max(best, h.tier == "cpu" ? 0.8 : 1.0);
      }
      if (best < 0) break;
      sum += best;
    }
    return sum + 1e-9;  // ten times 0.8 are eight
  }

  std::optional<double> MinMax(Sample<std::int64_t> Metrics::*member, const std::vector<Position>& survivors,
                               Position p) const {
    if (!(world_.pool[p].metrics.*member).known()) return std::nullopt;
    std::vector<std::int64_t> values;
    for (const Position s : survivors) {
      if ((world_.pool[s].metrics.*member).known()) values.push_back((world_.pool[s].metrics.*member).value);
    }
    const double low = *std::min_element(values.begin(), values.end());
    const double high = *std::max_element(values.begin(), values.end());
    if (low == high) return 1.0;
    return (high - (world_.pool[p].metrics.*member).value) / (high - low);
  }

  const World& world_;
  const std::vector<Holder>& holders_;
  const TestRequest& request_;
};

void FillMetrics(World& world, Random& random) {
  for (Position p = 0; p < world.pool.size(); ++p) {
    Metrics& m = MetricsAt(world.pool, p);
    if (random.Chance(0.9)) m.waiting_requests = {static_cast<std::int64_t>(random.Below(6)) - 1, kNow};
    if (random.Chance(0.9)) m.running_requests = {static_cast<std::int64_t>(random.Below(50)), kNow};
    if (random.Chance(0.9)) m.kv_cache_usage = {random.Uniform(), kNow};
    if (random.Chance(0.05)) m.kv_cache_usage = {kOdd[random.Below(4)], kNow};
  }
}

std::vector<Holder> FillIndexes(World& world, Random& random, std::size_t blocks) {
  std::vector<Holder> holders;
  std::uint16_t slot = 0;
  for (Position p = 0; p < world.pool.size(); ++p) {
    for (const char* tier : kTiers) {
      if (std::string_view(tier) != "gpu" && !random.Chance(0.5)) continue;
      slot = static_cast<std::uint16_t>(slot + 1 + random.Below(3));
      const index::HolderId id{slot, 1};
      EXPECT_TRUE(world.pool.BindHolder(kExactSource, id, world.pool[p].handle, tier).ok());
      if (std::string_view(tier) == "gpu") {
        EXPECT_TRUE(world.pool.BindHolder(kApproximateSource, id, world.pool[p].handle).ok());
      }
      for (FakeIndex* index : {&world.exact, &world.approximate}) {
        std::vector<BlockKey> keys;
        const std::uint64_t depth = random.Below(blocks + 1);
        for (std::uint64_t i = 0; i < depth; ++i) {
          if (!random.Chance(0.02)) keys.push_back(i);
        }
        index->Store(slot, keys);
      }
      holders.push_back({slot, p, tier});
    }
  }
  return holders;
}

void RunCase(std::uint64_t seed) {
  SCOPED_TRACE(seed);
  Random random(seed);
  World world;
  const std::size_t endpoints = 1 + random.Below(12);
  for (std::size_t i = 0; i < endpoints; ++i) {
    const std::string role = kRoles[random.Below(6)];
    AddEndpoint(world.pool, role.empty() ? Labels{} : Labels{{std::string(kRoleLabel), role}});
  }
  const TestRequest request(random.Below(40));
  FillMetrics(world, random);
  const std::vector<Holder> holders = FillIndexes(world, random, request.keys.size());

  SchedulerConfig config;
  config.plugins = {
      {"precise", "prefix-cache-scorer", Parameters({{"prefixMatchInfoProducerName", "exact"}})},
      {"exact", "precise-prefix-cache-producer", {}},
      {"approx", "prefix-cache-scorer", {}},
      {"", "queue-scorer", {}},
      {"", "running-requests-size-scorer", {}},
      {"", "kv-cache-utilization-scorer", {}},
      {"", "decode-filter", {}},
      {"", "prefill-filter", {}},
      {"", "max-score-picker", Parameters({{"maxNumOfEndpoints", static_cast<int>(1 + random.Below(4))}})}};
  ProfileSpec profile{"p", {}};
  for (const PluginSpec& plugin : config.plugins) {
    const std::string name = plugin.name.empty() ? plugin.type : plugin.name;
    if (name == "exact" || name == "max-score-picker" || !random.Chance(0.7)) continue;
    if (name.ends_with("filter") && random.Chance(0.5)) continue;
    profile.plugins.push_back({name, random.Chance(0.1) ? -1.0 : random.Between(0, 5) * 0.5});
  }
  random.Shuffle(profile.plugins);
  config.profiles = {profile};
  const auto scheduler = Scheduler::Create(config, PluginRegistry::Builtin(),
                                           {{world.exact.source(), world.approximate.source()}});
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  Workspace workspace(**scheduler);
  Decision decision;
  Explanation explanation;
  const absl::Status status =
      (*scheduler)
          ->Schedule({.request = request.request, .pool = world.pool, .now = kNow, .seed = seed}, workspace,
                     decision, &explanation);

  const Reference reference(world, holders, request);
  std::vector<Position> survivors = AllPositions(world.pool);
  for (const PluginRef& ref : profile.plugins) {
    if (!ref.plugin.ends_with("filter")) continue;
    std::erase_if(survivors, [&](Position p) { return !reference.Keeps(ref.plugin, p); });
  }
  const Explanation::Profile& explained = explanation.profiles[0];
  EXPECT_EQ(explained.drops.size(), endpoints - survivors.size());
  ASSERT_EQ(status.ok(), !survivors.empty()) << status;
  if (!status.ok()) return;

  const std::vector<ScoredEndpoint>& scored = decision.primary_result().scored;
  ASSERT_EQ(scored.size(), survivors.size());
  for (std::size_t i = 0; i < survivors.size(); ++i) {
    ASSERT_EQ(scored[i].position, survivors[i]);
    double total = 0;
    for (const PluginRef& ref : profile.plugins) {
      if (ref.plugin.ends_with("filter")) continue;
      const double score = reference.Score(ref.plugin, survivors, survivors[i]).value_or(0);
      if (score > 0) total += std::min(score, 1.0) * *ref.weight;
    }
    EXPECT_DOUBLE_EQ(scored[i].score, total);
    double sum = 0;
    for (std::size_t s = 0; s < explained.scorers.size(); ++s) sum += explained.weighted_at(s, i);
    EXPECT_EQ(sum, scored[i].score);
  }

  // Best first, and nobody left out is better than the last.
  const std::vector<Position>& targets = decision.primary_result().targets;
  const auto score_of = [&](Position p) {
    return std::find_if(scored.begin(), scored.end(),
                        [p](const ScoredEndpoint& s) { return s.position == p; })
        ->score;
  };
  for (std::size_t i = 1; i < targets.size(); ++i) EXPECT_GE(score_of(targets[i - 1]), score_of(targets[i]));
  for (const ScoredEndpoint& s : scored) {
    if (std::find(targets.begin(), targets.end(), s.position) == targets.end()) {
      EXPECT_LE(s.score, score_of(targets.back()));
    }
  }
  EXPECT_EQ(explained.picked, targets);
}

TEST(Differential, ProfileRunEqualsTheSpecification) {
  for (std::uint64_t seed = 1; seed <= 2000 && !::testing::Test::HasFailure(); ++seed) RunCase(seed);
}

}  // namespace
}  // namespace llmd::sched
