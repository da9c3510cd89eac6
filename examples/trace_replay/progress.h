// Progress of long work on stderr, where that is a terminal.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_PROGRESS_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_PROGRESS_H_

#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <string>

namespace llmd::replay {

class ProgressBar {
 public:
  explicit ProgressBar(std::size_t total) : total_(total), on_(isatty(STDERR_FILENO) == 1) {}
  ~ProgressBar() {
    if (on_) std::fputs("\r\033[K", stderr);
  }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // `done` from 1 to the total. `note` stands behind the bar.
  void Update(std::size_t done, const std::string& note = {}) {
    if (!on_ || (done * 200 / total_ == shown_ && note == note_)) return;
    shown_ = done * 200 / total_;
    note_ = note;
    constexpr std::size_t kWidth = 40;
    const std::size_t filled = done * kWidth / total_;
    const auto elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    std::fprintf(stderr, "\r\033[K[%s%s] %3zu %%  %.0f s left  %s", std::string(filled, '#').c_str(),
                 std::string(kWidth - filled, '.').c_str(), done * 100 / total_,
                 elapsed * static_cast<double>(total_ - done) / static_cast<double>(done), note.c_str());
    std::fflush(stderr);
  }

 private:
  std::size_t total_;
  bool on_;
  std::size_t shown_ = 0;
  std::string note_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_PROGRESS_H_
