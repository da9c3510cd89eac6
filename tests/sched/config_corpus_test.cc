// Files with one mistake each. The first line of a file says what the error must be:
//   # expect: LINE: SUBSTRING | SUBSTRING ...
#include <gmock/gmock.h>

#include <cstddef>

#include "tests/sched/config_test_util.h"
#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class ConfigCorpus : public ::testing::TestWithParam<std::string> {};

TEST_P(ConfigCorpus, OneErrorWithFileLinePathAndExpectation) {
  const std::string text = ReadFile(LLMD_SOURCE_DIR "/tests/sched/config_corpus/" + GetParam());
  const std::string kMark = "# expect: ";
  ASSERT_THAT(text, StartsWith(kMark));
  const std::string head = text.substr(kMark.size(), text.find('\n') - kMark.size());
  const std::size_t colon = head.find(": ");
  ASSERT_NE(colon, std::string::npos);

  FakeIndex index;
  std::vector<std::string> warnings;
  const auto scheduler = LoadScheduler(text, {.source = "conf/" + GetParam()}, PluginRegistry::Builtin(),
                                       {{index.source(), index.source()}}, &warnings);
  ASSERT_EQ(scheduler.status().code(), absl::StatusCode::kInvalidArgument) << scheduler.status();
  const std::string message(scheduler.status().message());
  EXPECT_THAT(message, StartsWith("conf/" + GetParam() + ": line " + head.substr(0, colon) + ": "));
  EXPECT_THAT(message, HasSubstr(", expected "));
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  EXPECT_EQ(message.find("line "), message.rfind(": line ") + 2) << "named once: " << message;
  for (std::size_t at = colon + 2; at < head.size();) {
    const std::size_t end = std::min(head.find(" | ", at), head.size());
    EXPECT_THAT(message, HasSubstr(head.substr(at, end - at)));
    at = end + 3;
  }
}

INSTANTIATE_TEST_SUITE_P(Files, ConfigCorpus, ::testing::ValuesIn(FilesIn("config_corpus")), TestName);

TEST(ConfigCorpus, IsThere) { EXPECT_GE(FilesIn("config_corpus").size(), 70u); }

}  // namespace
}  // namespace llmd::sched
