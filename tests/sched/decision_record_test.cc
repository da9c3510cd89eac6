// Decisions of a random world are recorded, read and taken again.
#include "llmd/sched/decision_record.h"

#include <gmock/gmock.h>

#include <bit>

#include "llmd/sched/decision_replay.h"
#include "tests/sched/recorded_world.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

bool SameTime(absl::Time a, absl::Time b) { return a == b; }
bool SameBits(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b);
}

TEST(DecisionRecord, ReplaysBitForBit) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    World world(seed);
    world.Decide(200);
    const auto log = DecisionLogReader::Open(world.log);
    ASSERT_TRUE(log.ok()) << log.status();
    const auto replayer = DecisionReplayer::Create(**log, TestConfig(), TestRegistry());
    ASSERT_TRUE(replayer.ok()) << replayer.status();
    EXPECT_TRUE((*replayer)->same_config());
    EXPECT_THAT((*replayer)->missing(), IsEmpty());
    DecisionRecord record;
    for (std::size_t i = 0; i < world.decisions.size(); ++i) {
      const absl::StatusOr<bool> more = (*log)->Next(record);
      ASSERT_TRUE(more.ok() && *more) << more.status();
      EXPECT_EQ(record.index, i);
      EXPECT_EQ(record.status, world.statuses[i]);
      const EndpointPool& pool = (*log)->pool();
      const EndpointPool& expected = world.pools[i];
      ASSERT_EQ(pool.size(), expected.size());
      for (Position p = 0; p < pool.size(); ++p) {
        EXPECT_EQ(pool[p].id(), expected[p].id());
        EXPECT_EQ(pool[p].host_port(), expected[p].host_port());
        EXPECT_EQ(pool[p].metadata().labels, expected[p].metadata().labels);
        const Metrics& a = pool[p].metrics;
        const Metrics& b = expected[p].metrics;
        EXPECT_EQ(a.waiting_requests.value, b.waiting_requests.value);
        EXPECT_TRUE(SameTime(a.waiting_requests.at, b.waiting_requests.at));
        EXPECT_TRUE(SameTime(a.running_requests.at, b.running_requests.at));
        EXPECT_TRUE(SameBits(a.kv_cache_usage.value, b.kv_cache_usage.value));
        EXPECT_TRUE(SameTime(a.kv_cache_usage.at, b.kv_cache_usage.at));
        EXPECT_EQ(a.cache_num_blocks, b.cache_num_blocks);
        ASSERT_EQ(a.adapters.value == nullptr, b.adapters.value == nullptr);
        if (a.adapters.value != nullptr) {
          EXPECT_EQ(a.adapters.value->active, b.adapters.value->active);
        }
        ASSERT_EQ(pool[p].attributes.size(), expected[p].attributes.size());
        for (std::size_t k = 0; k < pool[p].attributes.size(); ++k) {
          EXPECT_TRUE(SameBits(pool[p].attributes[k].sample.value, expected[p].attributes[k].sample.value));
          EXPECT_TRUE(SameTime(pool[p].attributes[k].sample.at, expected[p].attributes[k].sample.at));
        }
      }
      EXPECT_EQ(record.explanation.ToString(pool), world.explanations[i].ToString(expected));
      (*replayer)->Replay(record);
      ASSERT_EQ((*replayer)->Difference(record), "") << "seed " << seed << ", decision " << i;
      if (record.status.ok()) {
        EXPECT_EQ((*replayer)->decision().target(), world.decisions[i].target());
      }
    }
    EXPECT_GT((*replayer)->from_record(), 0u);
    EXPECT_EQ((*replayer)->without_memory(), 0u);
    const absl::StatusOr<bool> end = (*log)->Next(record);
    EXPECT_TRUE(end.ok() && !*end);
  }
}

TEST(DecisionRecord, HoldsTheRequestButNoSecrets) {
  World world(3);
  world.Decide(1);
  const auto log = DecisionLogReader::Open(world.log);
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_EQ((*log)->header().text, "the configuration");
  ASSERT_EQ((*log)->header().profiles.size(), 1u);
  EXPECT_EQ((*log)->header().profiles[0].scorers[0].name, "memory");
  EXPECT_TRUE((*log)->header().profiles[0].scorers[0].remembers);
  EXPECT_FALSE((*log)->header().profiles[0].scorers[1].remembers);
  DecisionRecord record;
  ASSERT_TRUE(*(*log)->Next(record));
  EXPECT_EQ(record.request().id, "request-0");
  ASSERT_EQ(record.request().headers.size(), 2u);
  EXPECT_EQ(record.request().FindHeader("x-color"), "red");
  EXPECT_EQ(record.request().FindHeader("x-empty"), "");
  EXPECT_EQ(record.request().FindHeader("authorization"), std::nullopt);
  const std::string_view bytes(reinterpret_cast<const char*>(world.log.data()), world.log.size());
  EXPECT_EQ(bytes.find("secret"), std::string_view::npos);
}

TEST(DecisionRecord, AnotherConfigurationDecidesOtherwise) {
  World world(5);
  world.Decide(300);
  const auto log = DecisionLogReader::Open(world.log);
  ASSERT_TRUE(log.ok());
  const auto replayer = DecisionReplayer::Create(**log, TestConfig(-20), TestRegistry());
  ASSERT_TRUE(replayer.ok()) << replayer.status();
  EXPECT_FALSE((*replayer)->same_config());
  DecisionRecord record;
  int other_target = 0, scores = 0;
  while (*(*log)->Next(record)) {
    (*replayer)->Replay(record);
    if (!record.status.ok()) continue;
    other_target += (*replayer)->decision().target() != record.decision.target();
    scores += (*replayer)->Difference(record).find("weighted score of queue-scorer") != std::string::npos;
  }
  EXPECT_GT(other_target, 10);
  EXPECT_GT(scores, 10);
  // The memory plugin is as recorded, so its answers are.
  EXPECT_GT((*replayer)->from_record(), 100u);
}

TEST(DecisionRecord, AChangedPluginWithMemoryStartsWithNone) {
  World world(5);
  world.Decide(50);
  const auto log = DecisionLogReader::Open(world.log);
  SchedulerConfig config = TestConfig();
  config.plugins[3].parameters = Parameters({{"shift", 1}});
  const auto replayer = DecisionReplayer::Create(**log, config, TestRegistry());
  ASSERT_TRUE(replayer.ok()) << replayer.status();
  DecisionRecord record;
  while (*(*log)->Next(record)) (*replayer)->Replay(record);
  EXPECT_EQ((*replayer)->from_record(), 0u);
  EXPECT_GT((*replayer)->without_memory(), 0u);
}

TEST(DecisionRecord, DataWithoutCodecAreNamed) {
  World world(5, {.codecs = DataCodecs()});
  world.Decide(5);
  const auto log = DecisionLogReader::Open(world.log);
  EXPECT_THAT((*log)->header().unrecorded,
              ElementsAre("PrefixCacheMatchInfo/exact", "InFlightLoad/test-producer",
                          "LatencyPredictionInfo/test-producer"));
  const auto replayer = DecisionReplayer::Create(**log, TestConfig(), TestRegistry());
  EXPECT_EQ((*replayer)->missing(), (*log)->header().unrecorded);
}

TEST(DecisionRecord, DataOfAnotherNumberOfEndpointsAreRefused) {
  World world(5);
  world.Decide(5);
  const auto log = DecisionLogReader::Open(world.log);
  const auto replayer = DecisionReplayer::Create(**log, TestConfig(), TestRegistry());
  DecisionRecord record;
  ASSERT_TRUE(*(*log)->Next(record));
  ASSERT_TRUE(record.data[0].published);
  ASSERT_GT(record.data[0].size, 1u);
  --record.data[0].size;
  (*replayer)->Replay(record);
  EXPECT_THAT((*replayer)->Difference(record),
              HasSubstr("record 0: PrefixCacheMatchInfo/exact has 5 elements, expected 6"));
}

TEST(DecisionRecord, EveryChangedByteIsFound) {
  World world(7);
  world.Decide(12);
  for (std::size_t i = 0; i < world.log.size(); ++i) {
    std::vector<std::byte> log = world.log;
    log[i] ^= std::byte{static_cast<unsigned char>(1u << (i % 8))};
    absl::Status status;
    std::size_t decisions = 0;
    if (auto reader = DecisionLogReader::Open(log); !reader.ok()) {
      status = reader.status();
    } else {
      DecisionRecord record;
      for (absl::StatusOr<bool> more = true; status.ok() && *more; ++decisions) {
        more = (*reader)->Next(record);
        status = more.status();
      }
    }
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << "byte " << i;
    EXPECT_THAT(std::string(status.message()), HasSubstr("decision log: byte "));
  }
}

TEST(DecisionRecord, ALogMayEndAfterAnyFrameAndNowhereElse) {
  World world(7);
  world.Decide(6);
  int whole = 0;
  for (std::size_t size = 0; size < world.log.size(); ++size) {
    const std::span<const std::byte> cut = std::span(world.log).first(size);
    auto reader = DecisionLogReader::Open(cut);
    absl::Status status = reader.status();
    DecisionRecord record;
    while (status.ok()) {
      const absl::StatusOr<bool> more = (*reader)->Next(record);
      status = more.status();
      if (more.ok() && !*more) break;
    }
    whole += status.ok();
    if (!status.ok()) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    }
  }
  EXPECT_GE(whole, 6);   // header, endpoints and five decisions
  EXPECT_LE(whole, 14);  // endpoint frames come before decisions
}

TEST(DecisionRecord, MissingAndExchangedFramesAreFound) {
  World world(7);
  world.Decide(4);
  const auto refused = [](std::span<const std::byte> log) {
    auto reader = DecisionLogReader::Open(log);
    if (!reader.ok()) return std::string(reader.status().message());
    DecisionRecord record;
    while (true) {
      const absl::StatusOr<bool> more = (*reader)->Next(record);
      if (!more.ok()) return std::string(more.status().message());
      if (!*more) return std::string();
    }
  };
  EXPECT_EQ(refused(world.log), "");
  // Frames after the header: start and size.
  std::vector<std::pair<std::size_t, std::size_t>> frames;
  for (std::size_t at = 8; at < world.log.size();) {
    std::size_t length = 0;
    for (std::size_t b = 0; b < 4; ++b) length |= static_cast<std::size_t>(world.log[at + b]) << (8 * b);
    frames.emplace_back(at, length + 13);
    at += length + 13;
  }
  ASSERT_GE(frames.size(), 4u);
  std::vector<std::byte> without = world.log;
  const auto begin = without.begin() + static_cast<std::ptrdiff_t>(frames[2].first);
  without.erase(begin, begin + static_cast<std::ptrdiff_t>(frames[2].second));
  EXPECT_THAT(refused(without), HasSubstr("checksum differs"));
  EXPECT_THAT(refused({}), HasSubstr("no decision log"));
  std::vector<std::byte> version = world.log;
  version[7] = std::byte{9};
  EXPECT_THAT(refused(version), HasSubstr("version is 9, expected 1"));
}

TEST(DecisionRecord, MisuseIsRefused) {
  const auto scheduler = *Scheduler::Create({}, PluginRegistry::Builtin(), {});
  Workspace workspace(*scheduler);
  DecisionLogWriter writer(*scheduler, {});
  const EndpointPool pool = MakePool(2);
  const TestRequest test(1);
  const std::vector<Position> backwards = {1, 0};
  const ScheduleInput input{.request = test.request, .pool = pool, .candidates = backwards};
  Decision decision;
  Explanation explanation;
  const absl::Status status = scheduler->Schedule(input, workspace, decision, &explanation);
  EXPECT_FALSE(status.ok());
  std::vector<std::byte> out;
  EXPECT_EQ(writer.Append(input, workspace, decision, explanation, status, out).code(),
            absl::StatusCode::kFailedPrecondition);
  writer.Begin(out);
  const std::size_t size = out.size();
  EXPECT_THAT(std::string(writer.Append(input, workspace, decision, explanation, status, out).message()),
              HasSubstr("candidates[1] is 0"));
  EXPECT_EQ(out.size(), size);
}

TEST(DecisionRecord, ConfigDigestsTellDecidingPartsApart) {
  const std::uint64_t digest = ConfigDigest(TestConfig());
  EXPECT_EQ(digest, ConfigDigest(TestConfig()));
  EXPECT_NE(digest, ConfigDigest(TestConfig(1.2)));
  SchedulerConfig config = TestConfig();
  config.plugins[3].parameters = Parameters({{"shift", 1}});
  EXPECT_NE(digest, ConfigDigest(config));
  config = TestConfig();
  config.compatibility.unscraped_looks_idle = true;
  EXPECT_NE(digest, ConfigDigest(config));
  // The order of parameters means nothing; an empty map is no parameters.
  EXPECT_EQ(PluginDigest({"", "x", Parameters({{"a", 1}, {"b", true}})}),
            PluginDigest({"y", "x", Parameters({{"b", true}, {"a", 1}})}));
  EXPECT_EQ(PluginDigest({"", "x", {}}), PluginDigest({"", "x", Parameters({})}));
  EXPECT_NE(PluginDigest({"", "x", Parameters({{"a", 1}})}),
            PluginDigest({"", "x", Parameters({{"a", 1.0}})}));
}

}  // namespace
}  // namespace llmd::sched
