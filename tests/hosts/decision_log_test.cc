#include "examples/gateway_scheduler/decision_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/sinks/ostream_sink.h"
#include "tests/hosts/scripted_host.h"

namespace llmd::host {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// What is logged while `use` has the log.
std::vector<std::string> Logged(const DecisionLogOptions& options,
                                const std::function<void(DecisionLog&)>& use) {
  std::ostringstream out;
  {
    DecisionLog log(options, std::make_shared<spdlog::sinks::ostream_sink_mt>(out));
    use(log);
  }
  return absl::StrSplit(out.str(), '\n', absl::SkipEmpty());
}

TEST(DecisionLogTest, OneLineOfText) {
  ScriptedHost host(1);
  EXPECT_THAT(
      Logged({}, [&](DecisionLog& log) { host.Decide(log, {.queued = absl::Milliseconds(2)}); }),
      ElementsAre(
          "1970-01-01T00:16:40.003000Z I decision request_id=\"r-1\" model=\"m\" target_model=\"m-target\" "
          "endpoint=\"10.0.0.1:8000\" prefill_endpoint=\"\" tokens=64 cached_blocks=3 total_blocks=4 "
          "reason=\"ok\" tokenizing_us=0 queued_us=2000 deciding_us=150"));
}

TEST(DecisionLogTest, OneLineOfJson) {
  ScriptedHost host(1);
  const std::vector<std::string> lines = Logged(
      {.json = true}, [&](DecisionLog& log) { host.Decide(log, {.fairness_id = "tenant", .priority = -2}); });
  ASSERT_THAT(lines, SizeIs(1));
  const nlohmann::json json = nlohmann::json::parse(lines[0]);
  EXPECT_EQ(json["msg"], "decision");
  EXPECT_EQ(json["level"], "info");
  EXPECT_EQ(json["request_id"], "r-1");
  EXPECT_EQ(json["endpoint"], "10.0.0.1:8000");
  EXPECT_EQ(json["cached_blocks"], 3);
  EXPECT_EQ(json["priority"], -2);
  EXPECT_EQ(json["fairness_id"], "tenant");
  EXPECT_EQ(json["deciding_us"], 150);
}

TEST(DecisionLogTest, RefusalsSayWhy) {
  ScriptedHost host(1);
  const absl::Status saturated =
      sched::WithDroppedReason(absl::ResourceExhaustedError("all full"), sched::DroppedReason::kSaturated);
  const std::vector<std::string> lines =
      Logged({}, [&](DecisionLog& log) { host.Decide(log, {.status = saturated}); });
  ASSERT_THAT(lines, SizeIs(1));
  EXPECT_THAT(lines[0], HasSubstr("Z W decision "));
  EXPECT_THAT(lines[0], HasSubstr("reason=\"ResourceExhausted: all full (rejected-saturated)\""));
}

TEST(DecisionLogTest, ClientsCannotForgeLinesOrFields) {
  ScriptedHost host(1);
  const Script hostile{.id = "x\" endpoint=\"evil\"\n2026 E decision {} %s {0}\x1b[2J\xff",
                       .model = "a\r\nb"};
  for (const bool json : {false, true}) {
    const std::vector<std::string> lines =
        Logged({.json = json}, [&](DecisionLog& log) { host.Decide(log, hostile); });
    ASSERT_THAT(lines, SizeIs(1));
    EXPECT_THAT(lines[0],
                HasSubstr("\"x\\\" endpoint=\\\"evil\\\"\\n2026 E decision {} %s {0}\\u001b[2J\uFFFD\""));
    EXPECT_THAT(lines[0], HasSubstr("\"a\\u000d\\nb\""));
    if (json) {
      EXPECT_EQ(nlohmann::json::parse(lines[0])["model"], "a\r\nb");
    }
  }
}

TEST(DecisionLogTest, VerbosityChooses) {
  ScriptedHost host(1);
  const auto use = [&](DecisionLog& log) {
    host.Decide(log, {});
    host.Finish(log, {});
  };
  EXPECT_THAT(Logged({.verbosity = 0}, use), IsEmpty());
  EXPECT_THAT(Logged({.verbosity = 1}, use), SizeIs(1));
  const std::vector<std::string> debug = Logged({.verbosity = 4}, use);
  ASSERT_THAT(debug, SizeIs(2));
  EXPECT_THAT(debug[1], HasSubstr("finished request_id=\"r-1\" endpoint=\"10.0.0.1:8000\" status=200"));
  EXPECT_THAT(debug[1], HasSubstr("duration_us=2000000 ttft_us=200000 input_tokens=64 output_tokens=10"));
  EXPECT_THAT(Logged({.verbosity = 0},
                     [&](DecisionLog& log) { host.Decide(log, {.status = absl::UnavailableError("none")}); }),
              SizeIs(1));
}

TEST(DecisionLogTest, ScoresAtTheHighestVerbosity) {
  ScriptedHost host(2);
  host.SetMetrics(0, 0, 1, 0.25, kStart);
  host.SetMetrics(1, 4, 1, 0.75, kStart);
  const std::vector<std::string> lines = Logged({.verbosity = 5}, [&](DecisionLog& log) {
    EXPECT_TRUE(log.wants_explanations());
    host.Schedule(log, {});
  });
  ASSERT_THAT(lines, SizeIs(1));
  // Queues of 0 and 4: 1 and 0, times 2; 1 - 0.25 and 1 - 0.75, times 2.
  EXPECT_THAT(lines[0], HasSubstr("default/pod-0 3.5 ("));
  EXPECT_THAT(lines[0], HasSubstr("queue-scorer 2"));
  EXPECT_THAT(lines[0], HasSubstr("default/pod-1 0.5 ("));
}

// A disk that has stopped: nothing is written until Open().
class BlockedSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  void Open() {
    const std::lock_guard<std::mutex> lock(gate_);
    open_ = true;
    opened_.notify_all();
  }

 protected:
  void sink_it_(const spdlog::details::log_msg&) override {
    std::unique_lock<std::mutex> lock(gate_);
    opened_.wait(lock, [this] { return open_; });
  }
  void flush_() override {}

 private:
  std::mutex gate_;
  std::condition_variable opened_;
  bool open_ = false;
};

TEST(DecisionLogTest, AStuckDiskDropsLinesAndStopsNobody) {
  ScriptedHost host(1);
  const auto sink = std::make_shared<BlockedSink>();
  DecisionLog log({.queue_lines = 16}, sink);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) host.Decide(log, {.id = absl::StrCat(i)});
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(log.dropped_lines(), 400u - 16 - 1);  // one is at the sink
  sink->Open();
}

}  // namespace
}  // namespace llmd::host
