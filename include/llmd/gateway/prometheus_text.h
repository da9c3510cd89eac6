// A reader of a metrics page: the Prometheus text format 0.0.4, and of OpenMetrics 1.0 what engines emit.
//
// A scrape wants a handful of the several hundred series of a page, many times a second. So the reader walks
// from line to line and gives each sample's name alone; labels, value and timestamp are read when asked for.
// Everything is a view of the page, and nothing is allocated once the reader has read a page.
//
//   PrometheusReader reader;
//   if (absl::Status status = reader.Start(page); !status.ok()) return status;
//   while (reader.Next()) {
//     if (reader.name() == "vllm:num_requests_waiting" && reader.Parse()) use(reader.labels(),
//     reader.value());
//   }
//   if (!reader.status().ok()) ...   // the page was refused after all: forget what was read
//
// A page is untrusted. Limits refuse it as a whole: its size before the first byte is looked at, then lines
// and malformed lines. A malformed line by itself is counted and passed over: one bad exporter line must not
// blind a scheduler to the others. A last line without its line feed is malformed, since a page cut off in
// the middle of a number would read as another number. What Parse() was not called for is checked for its
// name only. Exemplars are ignored, `# EOF` ends the page. Names in quotes (`{"name"} 1`) are malformed here.
// A label given twice is in labels() twice; FindLabel() gives the first.
//
// One reader per thread. The page must outlive what was read from it.
#ifndef LLMD_GATEWAY_PROMETHEUS_TEXT_H_
#define LLMD_GATEWAY_PROMETHEUS_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace llmd::gateway {

struct PrometheusLimits {
  std::size_t max_bytes = std::size_t{4} << 20;
  std::size_t max_lines = 200'000;          // comments included
  std::size_t max_line_bytes = 256 * 1024;  // a longer line is malformed
  std::size_t max_labels = 64;              // of a series; more are malformed
  std::size_t max_malformed = 100;          // lines; more, and the page is none of metrics
};

// Of the family that a sample belongs to.
enum class PrometheusType : std::uint8_t { kUnknown, kGauge, kCounter, kHistogram, kSummary, kOther };

struct PrometheusLabel {
  std::string_view name;
  std::string_view raw;  // the value, escapes in place

  bool Is(std::string_view value) const;  // compares without allocating
  bool escaped() const { return raw.find('\\') != std::string_view::npos; }
  std::string Value() const;
};

class PrometheusReader {
 public:
  struct Stats {
    std::size_t lines = 0;
    std::size_t samples = 0;  // lines with a name
    std::size_t malformed = 0;
    std::size_t first_malformed_line = 0;  // from 1; 0 when there is none
  };

  explicit PrometheusReader(const PrometheusLimits& limits = {}) : limits_(limits) {}

  // ResourceExhausted for a page above max_bytes; nothing of it is read.
  absl::Status Start(std::string_view page);

  // Goes to the next line with a sample. False at the end of the page, or when status() says why it goes no
  // further.
  bool Next();
  const absl::Status& status() const { return status_; }

  // Of the line. The type is what the comment before the family's samples said.
  std::string_view name() const { return name_; }
  PrometheusType type() const;

  // Reads the rest of the line. False when it is malformed, which is counted once.
  bool Parse();
  // After Parse() gave true, until the next call of a function that is not const.
  std::span<const PrometheusLabel> labels() const { return labels_; }
  const PrometheusLabel* FindLabel(std::string_view name) const;
  double value() const { return value_; }
  std::optional<double> timestamp() const { return timestamp_; }  // milliseconds; seconds in OpenMetrics

  // The labels as they stand in the page, to be read again later with ParseLabels().
  std::string_view labels_text() const { return labels_text_; }
  // Reads labels that were read before.
  void ParseLabels(std::string_view text);

  const Stats& stats() const { return stats_; }

 private:
  bool ReadLabels(std::string_view& rest);
  void Malformed();
  void Comment(std::string_view line);

  PrometheusLimits limits_;
  absl::Status status_;
  Stats stats_;
  std::string_view rest_;    // of the page, after the line
  std::string_view family_;  // of the last TYPE comment
  PrometheusType family_type_ = PrometheusType::kUnknown;
  std::string_view name_;
  std::string_view tail_;  // of the line, after the name
  std::vector<PrometheusLabel> labels_;
  std::string_view labels_text_;
  double value_ = 0;
  std::optional<double> timestamp_;
};

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_PROMETHEUS_TEXT_H_
