// A decision log being written. Private to the component.
#ifndef SRC_SCHED_DECISION_LOG_WRITER_H_
#define SRC_SCHED_DECISION_LOG_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "llmd/sched/decision_record.h"
#include "llmd/sched/in_flight.h"
#include "src/sched/record_format.h"
#include "src/sched/scheduler_impl.h"

namespace llmd::sched {

struct DecisionLogWriter::Impl {
  // A datum that is recorded.
  struct Slot {
    std::uint32_t index;  // into the layout
    DataCodec codec;
    std::shared_ptr<InFlightTable> table;  // of in-flight loads, for when none are published
  };
  // What the reader knows of an endpoint.
  struct Known {
    Metrics metrics;
    std::vector<Attribute> attributes;
  };

  Impl(const Scheduler::Impl& s, RecordOptions o) : scheduler(s), options(std::move(o)) {}

  void FindSlots();
  absl::Status Check(const ScheduleInput& input, std::span<const Position> candidates,
                     const sched::Decision& decision, const Explanation& explanation) const;
  // The two halves of a record: what a decision was made from, and how it came out.
  void Inputs(const ScheduleInput& input, std::span<const Position> candidates, const DataColumns& columns,
              ByteSink& sink);
  void Outcome(const sched::Decision& decision, const Explanation& explanation, const absl::Status& status,
               ByteSink& sink);
  // When every endpoint was scraped at the same moment, as is usual, and the reader does not know it yet.
  std::optional<absl::Time> NewCommonTime(const EndpointPool& pool) const;
  void Header(std::vector<std::byte>& out);
  bool SamePool(const EndpointPool& pool) const;
  void Endpoints(const EndpointPool& pool, std::vector<std::byte>& out);
  void Request(const ScheduleInput& input, ByteSink& sink, WordDigest& digest);
  void States(const EndpointPool& pool, absl::Time base, ByteSink& sink);
  void State(const Endpoint& endpoint, absl::Time base, std::uint32_t& last, std::uint32_t position,
             ByteSink& sink);
  void Data(const EndpointPool& pool, const DataColumns& columns, ByteSink& sink);
  void Datum(const Slot& slot, std::size_t size, ByteSink& sink);
  void Profile(const ProfileResult& result, const Explanation::Profile& profile, record::LastScores& last,
               ByteSink& sink);
  void Drops(const Explanation::Profile& profile, ByteSink& sink);
  void Scores(std::span<const double> raw, std::span<const double> before, ByteSink& sink);
  void Intern(std::string_view text, ByteSink& sink);

  std::size_t BeginFrame(record::FrameKind kind, std::vector<std::byte>& out) const {
    const std::size_t start = out.size();
    out.resize(start + 4);
    out.push_back(std::byte{kind});
    return start;
  }
  void EndFrame(std::size_t start, std::vector<std::byte>& out) {
    const auto length = static_cast<std::uint32_t>(out.size() - start - 5);
    for (std::size_t i = 0; i < 4; ++i)
      out[start + i] = std::byte(static_cast<std::uint8_t>(length >> (8 * i)));
    checksum = record::FrameChecksum(std::span(out).subspan(start + 4), checksum);
    ByteSink(out).Fixed64(checksum);
  }

  const Scheduler::Impl& scheduler;
  RecordOptions options;
  std::vector<Slot> slots;
  std::vector<std::string> unrecorded;

  // Of the log under way.
  bool begun = false;
  bool full = false;
  std::uint64_t checksum = 0;
  absl::Time last_now;
  std::string last_model, last_fairness;
  absl::flat_hash_map<std::string, std::uint32_t> texts;
  std::vector<std::shared_ptr<const EndpointIdentity>> identities;  // by position
  std::vector<Known> known;
  std::vector<record::LastScores> last_scores;  // by profile

  std::vector<FieldCoder::Words> words;  // of one datum
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_DECISION_LOG_WRITER_H_
