// Ends the process when something that the program itself guarantees does not hold.
#ifndef EXAMPLES_SIM_WORKER_CHECK_H_
#define EXAMPLES_SIM_WORKER_CHECK_H_

#include <cstdio>
#include <cstdlib>

#include "absl/status/status.h"

namespace llmd::sim {

inline void Check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "sim_worker: broken invariant: %s\n", what);
  std::abort();
}

inline void Check(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "sim_worker: %s: %s\n", what, status.ToString().c_str());
  std::abort();
}

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_CHECK_H_
