// Takes recorded decisions again, under the configuration that took them or under another one.
//
//   auto log = *DecisionLogReader::Open(bytes);
//   auto replayer = *DecisionReplayer::Create(*log, config, PluginRegistry::Builtin());
//   DecisionRecord record;
//   while (*log->Next(record)) {
//     replayer->Replay(record);
//     std::string difference = replayer->Difference(record);   // empty: the same, bit for bit
//   }
//
// What is held fixed. Request, endpoints' state, time and seed are the record's. Producers whose data are on
// record do not run: what they published is published again, and in-flight tables are set to the recorded
// loads. So a decision under another configuration is the one it would have taken in that moment; that its
// own earlier decisions would have led to another moment is not modelled.
//
// Memory. A filter or scorer that also acts on decisions (PreRequest) may remember earlier ones, which no
// record has. Under the recorded name, type and parameters its recorded answers are used, as far as they
// cover the endpoints at hand, and thus are not verified; from_record() counts them. Otherwise it runs with
// an empty memory; without_memory() counts that. A plugin of other kinds that remembers (a picker, a profile
// handler) should publish what it remembers as a datum; otherwise its decisions are found to differ.
//
// Limits. Headers that were not kept and prompts' tokens are missing; a plugin that reads them decides
// otherwise. Data that the log lacks (missing()) are not published. One object belongs to one thread.
#ifndef LLMD_SCHED_DECISION_REPLAY_H_
#define LLMD_SCHED_DECISION_REPLAY_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/sched/data_codec.h"
#include "llmd/sched/decision_record.h"
#include "llmd/sched/registry.h"
#include "llmd/sched/scheduler.h"

namespace llmd::sched {

class DecisionReplayer {
 public:
  // `log` must outlive the replayer. Indexes that `resources` lacks are replaced by empty ones. Errors are
  // Scheduler::Create()'s.
  static absl::StatusOr<std::unique_ptr<DecisionReplayer>> Create(
      const DecisionLogReader& log, const SchedulerConfig& config, const PluginRegistry& registry,
      Resources resources = {}, const DataCodecs& codecs = DataCodecs::Builtin());
  ~DecisionReplayer();
  DecisionReplayer(const DecisionReplayer&) = delete;
  DecisionReplayer& operator=(const DecisionReplayer&) = delete;

  // Takes the log's latest decision anew.
  void Replay(const DecisionRecord& record);
  // Of the latest Replay().
  const absl::Status& status() const;
  const Decision& decision() const;
  const Explanation& explanation() const;
  // The first thing in which it differs from the record, down to single bits of a score; empty when nothing
  // does.
  std::string Difference(const DecisionRecord& record) const;

  // The configuration is the recorded one, as far as it decides.
  bool same_config() const;
  // Data that producers of this configuration publish and the log does not have, as "type/producer"; their
  // producers run, with what `resources` gave.
  const std::vector<std::string>& missing() const;
  std::uint64_t from_record() const;
  std::uint64_t without_memory() const;
  const Scheduler& scheduler() const;

 private:
  struct Impl;
  explicit DecisionReplayer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_DECISION_REPLAY_H_
