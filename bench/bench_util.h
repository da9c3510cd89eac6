// Shared by the benchmark programs: a monotonic clock, order statistics and the one-object-a-line output.
#ifndef BENCH_BENCH_UTIL_H_
#define BENCH_BENCH_UTIL_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace llmd::bench {

inline std::int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Keeps the compiler from removing the computation of `value`.
template <typename T>
inline void KeepAlive(const T& value) {
  asm volatile("" : : "r,m"(value) : "memory");
}

// The q-quantile (0..1, nearest rank) of `samples`; reorders them. Zero when empty.
inline double Quantile(std::vector<double>& samples, double q) {
  if (samples.empty()) return 0;
  const auto rank = static_cast<std::size_t>(q * static_cast<double>(samples.size() - 1) + 0.5);
  std::nth_element(samples.begin(), samples.begin() + rank, samples.end());
  return samples[rank];
}

inline double Median(std::vector<double> samples) { return Quantile(samples, 0.5); }

// Collects results and prints them: a table for people, or with `json` one object a line
// {"bench","case","metric","value","unit","better"}.
class Reporter {
 public:
  Reporter(std::string bench, bool json) : bench_(std::move(bench)), json_(json) {}

  void Report(const std::string& case_name, const std::string& metric, double value, const std::string& unit,
              bool lower_is_better) const {
    if (json_) {
      std::printf(
          "{\"bench\":\"%s\",\"case\":\"%s\",\"metric\":\"%s\",\"value\":%.6g,\"unit\":\"%s\",\"better\":\"%"
          "s\"}\n",
          bench_.c_str(), case_name.c_str(), metric.c_str(), value, unit.c_str(),
          lower_is_better ? "lower" : "higher");
    } else {
      std::printf("%-14s %-26s %-34s %14.6g %s\n", bench_.c_str(), case_name.c_str(), metric.c_str(), value,
                  unit.c_str());
    }
    std::fflush(stdout);
  }

 private:
  std::string bench_;
  bool json_;
};

}  // namespace llmd::bench

#endif  // BENCH_BENCH_UTIL_H_
