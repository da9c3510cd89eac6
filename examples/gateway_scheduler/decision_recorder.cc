#include "examples/gateway_scheduler/decision_recorder.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/sched/config_file.h"

namespace llmd::host {

absl::StatusOr<std::unique_ptr<DecisionRecorder>> DecisionRecorder::Create(std::string path) {
  auto recorder = std::unique_ptr<DecisionRecorder>(new DecisionRecorder(std::move(path)));
  if (!recorder->Open()) {
    return absl::InvalidArgumentError(absl::StrCat("--decision-log: cannot write ", recorder->path_));
  }
  return recorder;
}

bool DecisionRecorder::Open() {
  file_ = std::ofstream(files_ == 0 ? path_ : absl::StrCat(path_, ".", files_),
                        std::ios::binary | std::ios::trunc);
  ++files_;
  return file_.good();
}

void DecisionRecorder::Record(const std::shared_ptr<sched::Scheduler>& scheduler,
                              const sched::ScheduleInput& input, const sched::Workspace& workspace,
                              const sched::Decision& decision, const sched::Explanation& explanation,
                              const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  if (scheduler != scheduler_) {
    writer_.reset();
    if (scheduler_ != nullptr && !Open()) {
      ++lost_;
      return;
    }
    scheduler_ = scheduler;
    writer_.emplace(*scheduler_, sched::RecordOptions{.text = sched::PrintConfig(scheduler_->config())});
    writer_->Begin(bytes_);
  }
  absl::Status appended = writer_->Append(input, workspace, decision, explanation, status, bytes_);
  if (absl::IsResourceExhausted(appended) && Open()) {  // too many texts for one log
    bytes_.clear();
    writer_->Begin(bytes_);
    appended = writer_->Append(input, workspace, decision, explanation, status, bytes_);
  }
  if (!appended.ok()) ++lost_;
  file_.write(reinterpret_cast<const char*>(bytes_.data()), static_cast<std::streamsize>(bytes_.size()));
  if (!file_) ++lost_;
  bytes_.clear();
}

std::uint64_t DecisionRecorder::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

}  // namespace llmd::host
