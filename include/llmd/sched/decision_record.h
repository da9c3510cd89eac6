// Decisions as bytes: what each was made from and how it came out, enough to take it again bit for bit.
//
//   DecisionLogWriter writer(*scheduler, {.text = yaml});     // one for each log, used by one thread at a
//   time std::vector<std::byte> out; writer.Begin(out);                                        // a new file
//   begins absl::Status status = scheduler->Schedule(input, workspace, decision, &explanation);
//   writer.Append(input, workspace, decision, explanation, status, out);
//   file.write(out); out.clear();                             // the host does I/O
//
// Meaning. A log is a header and then, in the order of Append(), decisions. A decision's record holds what
// the scheduler used of the request, time, seed, candidates, the state of the endpoints (each value with its
// time), what data producers published, filter drops with their reasons, raw scores, tie seed and result.
// Weighted scores and totals are not stored, since they follow from raw scores and weights; their digest is,
// and is checked on reading. Prompts are not in it: of tokens and block keys there is only a digest. Headers
// are, see RecordOptions::keep_header.
//
// Size. A record is relative to the ones before it: only endpoint values that changed, data that differ from
// their commonest value, and scores that differ from the last record's are written. So a log is read from its
// beginning; a host that rotates files calls Begin() for each.
//
// Format, version 1, little-endian. 8 bytes of magic; then frames: u32 length of the payload, u8 kind,
// payload, u64 XXH3-64 of kind and payload, seeded by the previous frame's. So a changed, missing or
// exchanged frame is found. A log may end after any frame, as it does when a host crashes; a frame cut short
// is an error, which comes after all that precede it were read.
//
// A reader is meant for hostile input: beside a few times the log's size it takes at most 16 bytes for each
// endpoint and scorer (at most 256) and 136 for each endpoint and datum (at most 32).
#ifndef LLMD_SCHED_DECISION_RECORD_H_
#define LLMD_SCHED_DECISION_RECORD_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "llmd/sched/data_codec.h"
#include "llmd/sched/decision.h"
#include "llmd/sched/endpoint_pool.h"
#include "llmd/sched/explanation.h"
#include "llmd/sched/request.h"
#include "llmd/sched/scheduler.h"

namespace llmd::sched {

// Of all that Scheduler::Create() makes of a configuration: equal digests, equal decisions.
std::uint64_t ConfigDigest(const SchedulerConfig& config);
// Of type and parameters.
std::uint64_t PluginDigest(const PluginSpec& spec);

// False for authorization, proxy-authorization, cookie, set-cookie, api-key and x-api-key, which hold
// secrets.
bool IsRecordableHeader(std::string_view name);

struct RecordOptions {
  std::string text = {};  // of the host's choice, such as the configuration file; kept in the header
  // Headers of requests to keep. A decision that reads others cannot be repeated.
  bool (*keep_header)(std::string_view name) = &IsRecordableHeader;
  DataCodecs codecs = DataCodecs::Builtin();
};

class DecisionLogWriter {
 public:
  // The scheduler must outlive the writer.
  DecisionLogWriter(const Scheduler& scheduler, RecordOptions options);
  ~DecisionLogWriter();
  DecisionLogWriter(DecisionLogWriter&&) noexcept;
  DecisionLogWriter& operator=(DecisionLogWriter&&) noexcept;

  // Appends the beginning of a log.
  void Begin(std::vector<std::byte>& out);
  // Appends the decision just taken on `workspace`, which `status`, `decision` and `explanation` are from.
  // Once warm it allocates nothing but the growth of `out`, as long as the pool has the same endpoints.
  // InvalidArgument for candidates that Schedule() refused, FailedPrecondition before Begin(),
  // ResourceExhausted when the log has too many distinct texts and should be begun anew; then nothing is
  // appended.
  absl::Status Append(const ScheduleInput& input, const Workspace& workspace, const Decision& decision,
                      const Explanation& explanation, const absl::Status& status,
                      std::vector<std::byte>& out);

  // Data that no codec knows, as "type/producer".
  const std::vector<std::string>& unrecorded() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct DecisionLogHeader {
  struct Plugin {
    std::string name;
    std::string type;
    std::uint64_t digest = 0;  // PluginDigest()
  };
  struct Scorer {
    std::string name;
    double weight = 0;
    bool remembers = false;  // see RecordedInputs
  };
  struct Profile {
    std::string name;
    std::vector<Scorer> scorers;
  };
  struct Datum {
    std::string data_type;
    std::string producer;
    std::size_t num_fields = 0;
    std::uint32_t doubles = 0;  // set of fields
  };

  std::string text;
  std::uint64_t config_digest = 0;
  std::vector<Plugin> plugins;
  std::vector<Profile> profiles;
  std::vector<Datum> data;
  std::vector<std::string> unrecorded;
};

// What a producer published: `common` for every element, except for those listed.
struct RecordedDatum {
  struct Exception {
    std::uint32_t element = 0;
    FieldCoder::Words words = {};
  };
  bool on_record = false;
  bool published = false;  // false: only kept elsewhere, such as loads of a request that was shed before
  std::size_t size = 0;    // elements
  FieldCoder::Words common = {};
  std::vector<Exception> exceptions;  // by element

  const FieldCoder::Words& at(std::uint32_t element) const;
};

// One decision, read back. Reused by Next(); views point into it or into the reader.
class DecisionRecord {
 public:
  struct Prompt {
    std::size_t token_count = 0;
    std::vector<std::pair<std::string, std::string>> items;   // modality, hash
    std::vector<std::pair<std::size_t, std::size_t>> places;  // offset, length
  };

  std::uint64_t index = 0;  // in the log
  absl::Time now;
  std::uint64_t seed = 0;
  std::string id, model, fairness_id;
  std::int32_t priority = 0;
  std::size_t size_bytes = 0;
  std::optional<std::uint32_t> max_output_tokens;
  std::vector<std::pair<std::string, std::string>> headers;
  std::vector<Prompt> prompts;
  std::uint64_t prompt_digest = 0;  // of all key chains
  std::uint64_t inputs_digest = 0;  // of everything the decision was made from
  std::vector<Position> candidates;
  std::vector<RecordedDatum> data;  // by DecisionLogHeader::data

  absl::Status status;
  Decision decision;
  Explanation explanation;

  // Valid until the record changes.
  const Request& request() const { return request_; }
  // What DecisionLogHeader::data[datum] was for an element; nothing when it was not published or is no T.
  template <typename T>
  std::optional<T> Get(std::size_t datum, std::uint32_t element) const {
    if (datum >= data.size() || !data[datum].published || element >= data[datum].size) return std::nullopt;
    FieldCoder::Words words = data[datum].at(element);
    return DataCodecs::Compose<T>(words);
  }

 private:
  friend class DecisionLogReader;
  void MakeRequest();

  Request request_;
  std::vector<llmd::sched::Prompt> prompt_views_;
  std::vector<std::vector<MultimodalItem>> item_views_;
  std::vector<Header> header_views_;
};

struct ReadOptions {
  std::size_t max_endpoints = 65536;
  bool check_digests = true;  // off for fuzzing, which gets nowhere with them
};

class DecisionLogReader {
 public:
  // Reads the header. InvalidArgument for what is no log, or one of another version. `log` must outlive the
  // reader.
  static absl::StatusOr<std::unique_ptr<DecisionLogReader>> Open(std::span<const std::byte> log,
                                                                 const ReadOptions& options = {});
  ~DecisionLogReader();
  DecisionLogReader(const DecisionLogReader&) = delete;
  DecisionLogReader& operator=(const DecisionLogReader&) = delete;

  const DecisionLogHeader& header() const;
  // The next decision; false at the end. An error names the byte and the field; there is nothing to be read
  // after it.
  absl::StatusOr<bool> Next(DecisionRecord& record);
  // The pool of the latest record, with the endpoints' state.
  const EndpointPool& pool() const;
  // Changes when endpoints come or go.
  std::uint64_t pool_generation() const;
  std::size_t bytes_read() const;

 private:
  struct Impl;
  explicit DecisionLogReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_DECISION_RECORD_H_
