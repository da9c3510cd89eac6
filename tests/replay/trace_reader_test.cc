#include "examples/trace_replay/trace_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>

#include "tests/replay/replay_test_util.h"

namespace llmd::replay {
namespace {

using ::testing::HasSubstr;

constexpr char kGood[] =
    R"({"timestamp": 5, "input_length": 1030, "output_length": 7, "hash_ids": [0, 3, 4]})";

absl::StatusOr<Trace> Read(const std::string& text, const TraceOptions& options = {}) {
  std::istringstream input(text);
  return ReadTrace(input, "t.jsonl", options);
}

TEST(TraceReaderTest, ReadsARequest) {
  const absl::StatusOr<Trace> trace = Read(std::string(kGood) + "\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests.size(), 1u);
  const WorkloadRequest& request = trace->requests[0];
  EXPECT_EQ(request.arrival, 5'000'000);
  EXPECT_TRUE(request.recorded);
  ASSERT_EQ(request.prompt.size(), 3u);
  EXPECT_EQ(request.prompt[0].stream, 0u);
  EXPECT_EQ(request.prompt[0].tokens, 512u);
  EXPECT_EQ(request.prompt[2].stream, 4u);
  EXPECT_EQ(request.prompt[2].tokens, 6u);
  EXPECT_EQ(request.prompt_tokens(), 1030u);
  EXPECT_EQ(request.output.tokens, 7u);
}

TEST(TraceReaderTest, EmptyLinesCarriageReturnsAndOtherFieldsAreIgnored) {
  const absl::StatusOr<Trace> trace = Read(
      "\n{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[9],\"user\":\"x\"}\r\n  \n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->requests.size(), 1u);
}

TEST(TraceReaderTest, ALimitStopsTheReading) {
  const absl::StatusOr<Trace> trace = Read(std::string(kGood) + "\nnot json\n", {.limit = 1});
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->requests.size(), 1u);
}

struct BadLine {
  const char* line;
  const char* message;  // after "t.jsonl: line 2: "
};

class TraceReaderBadLineTest : public ::testing::TestWithParam<BadLine> {};

TEST_P(TraceReaderBadLineTest, NamesLineFieldValueAndLimit) {
  const std::string text = std::string(kGood) + "\n" + GetParam().line + "\n";
  const absl::StatusOr<Trace> trace = Read(text);
  ASSERT_FALSE(trace.ok());
  EXPECT_EQ(trace.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(trace.status().message()),
              HasSubstr(std::string("t.jsonl: line 2: ") + GetParam().message));

  const absl::StatusOr<Trace> skipping = Read(text + kGood, {.skip_bad = true});
  ASSERT_TRUE(skipping.ok()) << skipping.status();
  EXPECT_EQ(skipping->requests.size(), 2u);
  EXPECT_EQ(skipping->skipped_lines, 1u);
  EXPECT_EQ(skipping->first_skipped, trace.status());
}

INSTANTIATE_TEST_SUITE_P(
    All, TraceReaderBadLineTest,
    ::testing::Values(
        BadLine{"{\"timestamp\": 5,", "not JSON: "}, BadLine{"[1, 2]", "is a JSON array, expected an object"},
        BadLine{R"({"input_length": 1, "output_length": 1, "hash_ids": [0]})", "timestamp: is missing"},
        BadLine{R"({"timestamp": 4, "input_length": 1, "output_length": 1, "hash_ids": [0]})",
                "timestamp: is 4, expected at least 5 of the request before"},
        BadLine{R"({"timestamp": -1, "input_length": 1, "output_length": 1, "hash_ids": [0]})",
                "timestamp: is -1, expected an integer from 0 to"},
        BadLine{R"({"timestamp": 5, "input_length": 0, "output_length": 1, "hash_ids": []})",
                "input_length: is 0, expected an integer from 1 to 4194304"},
        BadLine{R"({"timestamp": 5, "input_length": 1.5, "output_length": 1, "hash_ids": [0]})",
                "input_length: is 1.5, expected an integer"},
        BadLine{R"({"timestamp": 5, "input_length": 99999999999, "output_length": 1, "hash_ids": [0]})",
                "input_length: is 99999999999, expected an integer from 1 to 4194304"},
        BadLine{R"({"timestamp": 5, "input_length": 1, "output_length": "7", "hash_ids": [0]})",
                "output_length: is \"7\", expected an integer from 1 to 1048576"},
        BadLine{R"({"timestamp": 5, "input_length": 1, "output_length": 1, "hash_ids": 3})",
                "hash_ids: is 3, expected a list of integers"},
        BadLine{R"({"timestamp": 5, "input_length": 513, "output_length": 1, "hash_ids": [3]})",
                "hash_ids: has 1 ids, expected 2 (513 input tokens in blocks of 512)"},
        BadLine{R"({"timestamp": 5, "input_length": 513, "output_length": 1, "hash_ids": [3, null]})",
                "hash_ids[1]: is null, expected an integer from 0 to"},
        BadLine{
            R"({"timestamp": 5, "input_length": 1, "output_length": 1, "hash_ids": [18446744073709551615]})",
            "hash_ids[0]: is 18446744073709551615, expected an integer from 0 to"}));

TEST(TraceReaderTest, DeepNestingAndOddBytesAreBadLines) {
  const std::string deep(100'000, '[');
  EXPECT_EQ(Read(deep).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Read(std::string("\xff\xfe{\0}", 5)).status().code(), absl::StatusCode::kInvalidArgument);
  const std::string nested = std::string(50'000, '[') + std::string(50'000, ']');
  EXPECT_EQ(Read(nested).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Read(std::string(kGood), {.limits = {.max_line_bytes = 10}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(TraceReaderTest, InputWithoutRequestsAndMissingFileAreErrors) {
  EXPECT_EQ(Read("").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Read("bad\n", {.skip_bad = true}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadTraceFile("no-such-file.jsonl", {}).status().code(), absl::StatusCode::kNotFound);
}

TEST(TraceReaderTest, ReadsTheSample) { EXPECT_EQ(SampleTrace().size(), 48u); }

}  // namespace
}  // namespace llmd::replay
