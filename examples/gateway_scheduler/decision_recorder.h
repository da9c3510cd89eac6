// Writes every decision to a file that trace_replay reads: `trace_replay --decisions FILE --config A --versus
// B`.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_DECISION_RECORDER_H_
#define EXAMPLES_GATEWAY_SCHEDULER_DECISION_RECORDER_H_

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/sched/decision_record.h"

namespace llmd::host {

// Any thread; one decision at a time. A log belongs to one configuration: after a reload a new file is begun,
// named FILE.1, FILE.2 and so on. What cannot be written is counted and costs no decision.
class DecisionRecorder {
 public:
  // InvalidArgument when the file cannot be written.
  static absl::StatusOr<std::unique_ptr<DecisionRecorder>> Create(std::string path);

  void Record(const std::shared_ptr<sched::Scheduler>& scheduler, const sched::ScheduleInput& input,
              const sched::Workspace& workspace, const sched::Decision& decision,
              const sched::Explanation& explanation, const absl::Status& status);
  std::uint64_t lost() const;

 private:
  explicit DecisionRecorder(std::string path) : path_(std::move(path)) {}
  bool Open();

  const std::string path_;
  mutable std::mutex mutex_;
  std::size_t files_ = 0;
  std::ofstream file_;
  std::shared_ptr<sched::Scheduler> scheduler_;  // that writer_ is for
  std::optional<sched::DecisionLogWriter> writer_;
  std::vector<std::byte> bytes_;
  std::uint64_t lost_ = 0;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_DECISION_RECORDER_H_
