// A decision log being read. Private to the component.
#ifndef SRC_SCHED_DECISION_LOG_READER_H_
#define SRC_SCHED_DECISION_LOG_READER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "llmd/base/strings.h"
#include "llmd/sched/decision_record.h"
#include "src/sched/record_format.h"

namespace llmd::sched {

struct DecisionLogReader::Impl {
  Impl(std::span<const std::byte> l, const ReadOptions& o) : log(l), options(o) {}

  absl::Status Error(std::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("decision log: byte ", frame_at, ": ", ToAbsl(what)));
  }
  absl::Status Failed(const ByteSource& source) const {
    return Error(absl::StrCat(source.failed(), " is cut short or out of range"));
  }
  absl::Status NextFrame(std::uint8_t& kind, ByteSource& payload);
  absl::Status Header();
  absl::Status Endpoints(ByteSource in);
  absl::Status Decision(ByteSource in, DecisionRecord& record);

  void Request(ByteSource& in, std::uint8_t flags, DecisionRecord& record);
  void Candidates(ByteSource& in, std::uint8_t flags, DecisionRecord& record) const;
  void States(ByteSource& in, absl::Time base);
  void State(ByteSource& in, absl::Time base, EndpointHandle handle);
  void Data(ByteSource& in, DecisionRecord& record) const;
  void Outcome(ByteSource& in, DecisionRecord& record);
  void Profile(ByteSource& in, std::size_t index, DecisionRecord& record);
  void Drops(ByteSource& in, const DecisionRecord& record, Explanation::Profile& profile);
  void Scores(ByteSource& in, std::span<const double> before, std::span<double> raw) const;
  std::string_view Text(ByteSource& in, const char* field);
  // At most the pool's size - 1.
  Position ReadPosition(ByteSource& in, const char* field) const {
    if (pool.size() == 0) in.Fail(field);
    return static_cast<Position>(in.Below(field, std::max<std::size_t>(pool.size(), 1) - 1));
  }

  std::span<const std::byte> log;
  ReadOptions options;
  DecisionLogHeader header;
  std::size_t at = 0;        // of the next frame
  std::size_t frame_at = 0;  // of the frame at hand
  bool failed = false;
  std::uint64_t checksum = 0;
  std::uint64_t next_index = 0;
  absl::Time last_now = absl::UnixEpoch();
  std::string last_model, last_fairness;
  std::deque<std::string> texts;  // addresses stay
  EndpointPool pool;
  std::uint64_t pool_generation = 0;
  std::vector<record::LastScores> last_scores;
  std::vector<char> left;  // by position: a candidate that no filter has dropped
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_DECISION_LOG_READER_H_
