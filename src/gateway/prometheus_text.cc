#include "llmd/gateway/prometheus_text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace llmd::gateway {
namespace {

enum : std::uint8_t { kNameStart = 1, kNameChar = 2, kLabelStart = 4, kLabelChar = 8 };

constexpr std::array<std::uint8_t, 256> kClasses = [] {
  std::array<std::uint8_t, 256> classes{};
  const auto add = [&](unsigned char from, unsigned char to, std::uint8_t bits) {
    for (int c = from; c <= to; ++c) classes[c] |= bits;
  };
  add('a', 'z', kNameStart | kNameChar | kLabelStart | kLabelChar);
  add('A', 'Z', kNameStart | kNameChar | kLabelStart | kLabelChar);
  add('_', '_', kNameStart | kNameChar | kLabelStart | kLabelChar);
  add(':', ':', kNameStart | kNameChar);
  add('0', '9', kNameChar | kLabelChar);
  return classes;
}();

bool Is(char c, std::uint8_t bits) { return (kClasses[static_cast<unsigned char>(c)] & bits) != 0; }

bool IsBlank(char c) { return c == ' ' || c == '\t'; }

void SkipBlanks(std::string_view& text) {
  while (!text.empty() && IsBlank(text.front())) text.remove_prefix(1);
}

// Takes the identifier at the front; empty when there is none.
std::string_view TakeName(std::string_view& text, std::uint8_t start, std::uint8_t rest) {
  if (text.empty() || !Is(text.front(), start)) return {};
  std::size_t length = 1;
  while (length < text.size() && Is(text[length], rest)) ++length;
  const std::string_view name = text.substr(0, length);
  text.remove_prefix(length);
  return name;
}

// Takes the number at the front, which must end at a blank or the end.
bool TakeNumber(std::string_view& text, double& out) {
  std::size_t length = 0;
  while (length < text.size() && !IsBlank(text[length])) ++length;
  std::string_view number = text.substr(0, length);
  text.remove_prefix(length);
  if (number.starts_with('+')) {
    number.remove_prefix(1);
    if (number.starts_with('-')) return false;
  }
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), out);
  // Parentheses: from_chars also reads nan(text).
  return error == std::errc() && end == number.data() + number.size() && number.back() != ')';
}

PrometheusType TypeOf(std::string_view word) {
  if (word == "gauge") return PrometheusType::kGauge;
  if (word == "counter") return PrometheusType::kCounter;
  if (word == "histogram") return PrometheusType::kHistogram;
  if (word == "summary") return PrometheusType::kSummary;
  if (word == "untyped" || word == "unknown") return PrometheusType::kUnknown;
  return PrometheusType::kOther;
}

}  // namespace

bool PrometheusLabel::Is(std::string_view value) const {
  if (!escaped()) return raw == value;
  std::size_t at = 0;
  for (std::size_t i = 0; i < raw.size(); ++i, ++at) {
    char c = raw[i];
    if (c == '\\') c = raw[++i] == 'n' ? '\n' : raw[i];
    if (at >= value.size() || value[at] != c) return false;
  }
  return at == value.size();
}

std::string PrometheusLabel::Value() const {
  std::string value;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    char c = raw[i];
    if (c == '\\') c = raw[++i] == 'n' ? '\n' : raw[i];
    value.push_back(c);
  }
  return value;
}

absl::Status PrometheusReader::Start(std::string_view page) {
  stats_ = {};
  family_ = name_ = tail_ = labels_text_ = {};
  family_type_ = PrometheusType::kUnknown;
  labels_.clear();
  timestamp_.reset();
  rest_ = page;
  status_ = absl::OkStatus();
  if (page.size() > limits_.max_bytes) {
    rest_ = {};
    status_ = absl::ResourceExhaustedError(
        absl::StrCat("the metrics page has ", page.size(), " bytes, expected at most ", limits_.max_bytes));
  }
  return status_;
}

void PrometheusReader::Malformed() {
  if (stats_.malformed++ == 0) stats_.first_malformed_line = stats_.lines;
  if (stats_.malformed <= limits_.max_malformed || !status_.ok()) return;
  rest_ = {};
  status_ = absl::InvalidArgumentError(absl::StrCat("the metrics page has more than ", limits_.max_malformed,
                                                    " malformed lines, the first at line ",
                                                    stats_.first_malformed_line));
}

bool PrometheusReader::Next() {
  while (!rest_.empty()) {
    if (stats_.lines == limits_.max_lines) {
      rest_ = {};
      status_ = absl::ResourceExhaustedError(
          absl::StrCat("the metrics page has more than ", limits_.max_lines, " lines"));
      return false;
    }
    ++stats_.lines;
    const void* feed = std::memchr(rest_.data(), '\n', rest_.size());
    if (feed == nullptr) {
      // "# EOF" needs no line feed.
      std::string_view last = rest_;
      rest_ = {};
      SkipBlanks(last);
      if (!last.empty() && last.front() != '#') Malformed();
      return false;
    }
    std::string_view line(rest_.data(), static_cast<const char*>(feed) - rest_.data());
    rest_.remove_prefix(line.size() + 1);
    if (line.size() > limits_.max_line_bytes) {
      Malformed();
      continue;
    }
    if (line.ends_with('\r')) line.remove_suffix(1);
    SkipBlanks(line);
    if (line.empty()) continue;
    if (line.front() == '#') {
      Comment(line);
      continue;
    }
    // Most lines have the name of the line before.
    if (const std::size_t length = name_.size(); length > 0 && length < line.size() &&
                                                 !Is(line[length], kNameChar) &&
                                                 line.substr(0, length) == name_) {
      name_ = line.substr(0, length);
      line.remove_prefix(length);
    } else {
      name_ = TakeName(line, kNameStart, kNameChar);
    }
    if (name_.empty() || line.empty() || (line.front() != '{' && !IsBlank(line.front()))) {
      Malformed();
      continue;
    }
    tail_ = line;
    ++stats_.samples;
    return true;
  }
  return false;
}

void PrometheusReader::Comment(std::string_view line) {
  if (line == "# EOF") {
    rest_ = {};
    return;
  }
  line.remove_prefix(1);
  SkipBlanks(line);
  if (!line.starts_with("TYPE") || line.size() == 4 || !IsBlank(line[4])) return;
  line.remove_prefix(4);
  SkipBlanks(line);
  const std::string_view family = TakeName(line, kNameStart, kNameChar);
  if (family.empty()) return Malformed();
  SkipBlanks(line);
  while (!line.empty() && IsBlank(line.back())) line.remove_suffix(1);
  family_ = family;
  family_type_ = TypeOf(line);
}

PrometheusType PrometheusReader::type() const {
  if (family_.empty() || !name_.starts_with(family_)) return PrometheusType::kUnknown;
  const std::string_view suffix = name_.substr(family_.size());
  switch (family_type_) {
    case PrometheusType::kHistogram:
    case PrometheusType::kSummary:
    case PrometheusType::kOther:
      return suffix.empty() || suffix.front() == '_' ? family_type_ : PrometheusType::kUnknown;
    case PrometheusType::kCounter:
      return suffix.empty() || suffix == "_total" ? family_type_ : PrometheusType::kUnknown;
    default:
      return suffix.empty() ? family_type_ : PrometheusType::kUnknown;
  }
}

// `rest` begins after '{'; afterwards, after '}'.
bool PrometheusReader::ReadLabels(std::string_view& rest) {
  labels_.clear();
  for (;;) {
    SkipBlanks(rest);
    if (rest.starts_with('}')) break;
    PrometheusLabel label;
    label.name = TakeName(rest, kLabelStart, kLabelChar);
    SkipBlanks(rest);
    if (label.name.empty() || !rest.starts_with('=')) return false;
    rest.remove_prefix(1);
    SkipBlanks(rest);
    if (!rest.starts_with('"')) return false;
    rest.remove_prefix(1);
    std::size_t end = 0;
    for (;; ++end) {
      if (end >= rest.size()) return false;
      if (rest[end] == '"') break;
      if (rest[end] != '\\') continue;
      ++end;
      if (end >= rest.size() || std::string_view("\\\"n").find(rest[end]) == std::string_view::npos)
        return false;
    }
    label.raw = rest.substr(0, end);
    rest.remove_prefix(end + 1);
    if (labels_.size() == limits_.max_labels) return false;
    labels_.push_back(label);
    SkipBlanks(rest);
    if (rest.starts_with(',')) {
      rest.remove_prefix(1);
    } else if (!rest.starts_with('}')) {
      return false;
    }
  }
  rest.remove_prefix(1);
  return true;
}

void PrometheusReader::ParseLabels(std::string_view text) {
  labels_.clear();
  if (!text.empty()) ReadLabels(text);
}

bool PrometheusReader::Parse() {
  std::string_view rest = tail_;
  labels_.clear();
  labels_text_ = {};
  timestamp_.reset();
  const auto parse = [&] {
    SkipBlanks(rest);
    if (rest.starts_with('{')) {
      rest.remove_prefix(1);
      const char* begin = rest.data();
      if (!ReadLabels(rest)) return false;
      labels_text_ = std::string_view(begin, rest.data() - begin);
    }
    SkipBlanks(rest);
    if (!TakeNumber(rest, value_)) return false;
    SkipBlanks(rest);
    if (rest.empty() || rest.front() == '#') return true;  // an exemplar
    double timestamp = 0;
    if (!TakeNumber(rest, timestamp)) return false;
    timestamp_ = timestamp;
    SkipBlanks(rest);
    return rest.empty() || rest.front() == '#';
  };
  if (parse()) return true;
  Malformed();
  return false;
}

const PrometheusLabel* PrometheusReader::FindLabel(std::string_view name) const {
  const auto it = std::find_if(labels_.begin(), labels_.end(),
                               [&](const PrometheusLabel& label) { return label.name == name; });
  return it == labels_.end() ? nullptr : &*it;
}

}  // namespace llmd::gateway
