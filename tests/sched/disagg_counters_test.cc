#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "llmd/sched/disagg.h"

namespace llmd::sched {
namespace {

TEST(DisaggCounters, ReasonsAreBoundedAndNullIsUnknown) {
  DisaggCounters counters;
  static const char* const kReasons[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i",
                                         "j", "k", "l", "m", "n", "o", "p", "q", "r"};
  for (const char* reason : kReasons) counters.CountAbsence(DisaggStage::kEncode, reason);
  const auto rows = counters.absences(DisaggStage::kEncode);
  ASSERT_EQ(rows.size(), 17u);
  EXPECT_EQ(rows[15].reason, "p");
  EXPECT_EQ(rows[16].reason, "other reasons");
  EXPECT_EQ(rows[16].count, 2u);
  counters.CountAbsence(DisaggStage::kPrefill, nullptr);
  EXPECT_EQ(counters.absences(DisaggStage::kPrefill)[0].reason, "unknown");
}

TEST(DisaggCounters, ThreadsLoseNothing) {
  DisaggCounters counters;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&counters] {
      for (int i = 0; i < 1000; ++i) {
        counters.CountDecision(DisaggKind::kDecodeOnly);
        counters.CountAbsence(DisaggStage::kPrefill, i % 2 ? "odd" : "even");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counters.decisions(DisaggKind::kDecodeOnly), 4000u);
  std::uint64_t sum = 0;
  for (const auto& row : counters.absences(DisaggStage::kPrefill)) {
    EXPECT_EQ(row.count, 2000u) << row.reason;
    sum += row.count;
  }
  EXPECT_EQ(sum, 4000u);
}

TEST(DisaggCounters, KindsAreNamedAsInTheMetric) {
  EXPECT_EQ(ToString(DisaggKind::kDecodeOnly), "decode-only");
  EXPECT_EQ(ToString(DisaggKind::kPrefillDecode), "prefill-decode");
  EXPECT_EQ(ToString(DisaggKind::kEncodeDecode), "encode-decode");
  EXPECT_EQ(ToString(DisaggKind::kEncodePrefillDecode), "encode-prefill-decode");
}

}  // namespace
}  // namespace llmd::sched
