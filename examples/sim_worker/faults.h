// Failures on demand, at start by flags or at run time by POST /sim/fault.
//
//   {"mode": "error", "rate": 0.5, "status": 503}            half of the requests
//   {"mode": "slow", "delay_ms": 2000, "count": 3}           the next three requests
//   {"mode": "hang", "scope": "all"}                         health and metrics as well
//
// Threads: any, at once.
#ifndef EXAMPLES_SIM_WORKER_FAULTS_H_
#define EXAMPLES_SIM_WORKER_FAULTS_H_

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/base/random.h"

namespace llmd::sim {

enum class FaultMode : std::uint8_t {
  kNone,
  kSlow,        // waits delay_ms before it begins
  kError,       // answers `status` at once
  kHang,        // never answers
  kDisconnect,  // breaks the connection off, a streamed answer after its first piece
  kCrash,       // the process ends at once, without any goodbye
};
std::string_view FaultModeName(FaultMode mode);
absl::StatusOr<FaultMode> ParseFaultMode(std::string_view name);

struct Fault {
  FaultMode mode = FaultMode::kNone;
  double rate = 1;  // share of requests, 0 .. 1
  std::uint32_t delay_ms = 1000;
  int status = 500;         // 400 .. 599
  std::int64_t count = -1;  // affected requests left; -1: no end
  bool all = false;         // every endpoint but /sim/*; else those that generate

  static absl::StatusOr<Fault> FromJson(std::string_view text);
  std::string ToJson() const;
  absl::Status Validate() const;
};

class Faults {
 public:
  explicit Faults(std::uint64_t seed) : random_(seed) {}

  void Set(const Fault& fault);
  Fault Get() const;
  // What is to happen to this request: mode kNone when nothing.
  Fault Draw(bool generates);

 private:
  mutable std::mutex mutex_;
  Fault fault_;
  Random random_;
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_FAULTS_H_
