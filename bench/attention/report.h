// Results of bench_attention: a line for people on stdout and, into a file, one JSON object a metric as every
// benchmark here prints them.
#ifndef BENCH_ATTENTION_REPORT_H_
#define BENCH_ATTENTION_REPORT_H_

#include <cstdio>
#include <string>
#include <vector>

namespace llmd::bench {

struct Metric {
  std::string name;
  double value;
  std::string unit;
  bool lower_is_better;
};

class Report {
 public:
  // `path` empty: no file; "-": JSON on stdout instead of the lines for people.
  explicit Report(const std::string& path) {
    if (path == "-") {
      json_ = stdout;
    } else if (!path.empty()) {
      json_ = std::fopen(path.c_str(), "w");
      if (json_ == nullptr) std::fprintf(stderr, "cannot write %s\n", path.c_str());
    }
  }
  ~Report() {
    if (json_ != nullptr && json_ != stdout) std::fclose(json_);
  }
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  void Add(const std::string& name, const std::vector<Metric>& metrics) const {
    if (json_ != stdout) {
      std::printf("%-58s", name.c_str());
      for (const Metric& m : metrics) std::printf("  %s %.4g %s", m.name.c_str(), m.value, m.unit.c_str());
      std::printf("\n");
      std::fflush(stdout);
    }
    if (json_ == nullptr) return;
    for (const Metric& m : metrics) {
      std::fprintf(json_,
                   "{\"bench\":\"bench_attention\",\"case\":\"%s\",\"metric\":\"%s\",\"value\":%.6g,"
                   "\"unit\":\"%s\",\"better\":\"%s\"}\n",
                   name.c_str(), m.name.c_str(), m.value, m.unit.c_str(),
                   m.lower_is_better ? "lower" : "higher");
    }
    std::fflush(json_);
  }

  void Note(const std::string& text) const {
    if (json_ != stdout) std::printf("%s\n", text.c_str());
    std::fflush(stdout);
  }

 private:
  std::FILE* json_ = nullptr;
};

}  // namespace llmd::bench

#endif  // BENCH_ATTENTION_REPORT_H_
