// One line of progress on standard error, when that is a terminal.
#ifndef BENCH_INDEX_PROGRESS_H_
#define BENCH_INDEX_PROGRESS_H_

#include <unistd.h>

#include <cstdio>
#include <string>

namespace llmd::bench {

class Progress {
 public:
  Progress() : on_(isatty(STDERR_FILENO) != 0) {}
  ~Progress() { Clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Show(const std::string& what) const {
    if (on_) std::fprintf(stderr, "\r\033[K%s ...", what.c_str());
  }
  // Before a line of results.
  void Clear() const {
    if (on_) std::fprintf(stderr, "\r\033[K");
  }

 private:
  bool on_;
};

}  // namespace llmd::bench

#endif  // BENCH_INDEX_PROGRESS_H_
