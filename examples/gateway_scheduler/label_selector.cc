#include "examples/gateway_scheduler/label_selector.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

constexpr std::size_t kMaxText = 16 << 10;

// Letters and digits with -, _ and . between them, at most 63; a key may have a prefix before a slash.
bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= 63 && absl::ascii_isalnum(text.front()) &&
         absl::ascii_isalnum(text.back()) && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.';
         });
}

bool IsKey(std::string_view text) {
  const std::size_t slash = text.find('/');
  if (slash == std::string_view::npos) return IsName(text);
  const std::string_view prefix = text.substr(0, slash);
  return !prefix.empty() && prefix.size() <= 253 && IsName(text.substr(slash + 1)) &&
         std::all_of(prefix.begin(), prefix.end(),
                     [](char c) { return absl::ascii_isalnum(c) || c == '-' || c == '.'; });
}

}  // namespace

class LabelSelectorParser {
 public:
  explicit LabelSelectorParser(std::string_view text) : text_(text) {}

  absl::StatusOr<LabelSelector> Parse() {
    LabelSelector selector;
    selector.text_ = std::string(text_);
    if (text_.size() > kMaxText) {
      return absl::InvalidArgumentError(
          absl::StrCat("label selector has ", text_.size(), " bytes, expected at most ", kMaxText));
    }
    do {
      LabelSelector::Term term;
      if (absl::Status status = ReadTerm(term); !status.ok()) return status;
      selector.terms_.push_back(std::move(term));
    } while (Take(','));
    Blanks();
    if (at_ != text_.size()) return Error("expected a comma");
    return selector;
  }

 private:
  using Kind = LabelSelector::Term::Kind;

  absl::Status Error(std::string_view expected) const {
    return absl::InvalidArgumentError(absl::StrCat("label selector \"",
                                                   absl::CHexEscape(ToAbsl(text_.substr(0, 200))),
                                                   "\", character ", at_ + 1, ": ", ToAbsl(expected)));
  }
  void Blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
  }
  bool Take(char c) {
    Blanks();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  std::string_view Word() {
    Blanks();
    const std::size_t from = at_;
    while (at_ < text_.size() && text_.substr(at_, 1).find_first_of(" \t,()=!") == std::string_view::npos) {
      ++at_;
    }
    return text_.substr(from, at_ - from);
  }
  absl::Status ReadValue(std::vector<std::string>& values) {
    const std::string_view value = Word();
    if (!value.empty() && !IsName(value)) return Error("expected a label's value before here");
    values.emplace_back(value);  // a label may be empty
    return absl::OkStatus();
  }

  absl::Status ReadTerm(LabelSelector::Term& term) {
    const bool absent = Take('!');
    const std::string_view key = Word();
    if (!IsKey(key)) return Error("expected a label's name before here");
    term.key = std::string(key);
    if (absent) {
      term.kind = Kind::kAbsent;
      return absl::OkStatus();
    }
    if (Take('!')) {
      term.kind = Kind::kNotIn;
      if (!Take('=')) return Error("expected =");
      return ReadValue(term.values);
    }
    if (Take('=')) {
      term.kind = Kind::kIn;
      Take('=');
      return ReadValue(term.values);
    }
    const std::string_view word = Word();
    if (word.empty()) return absl::OkStatus();  // exists
    if (word != "in" && word != "notin") return Error("expected =, ==, !=, in or notin before here");
    term.kind = word == "in" ? Kind::kIn : Kind::kNotIn;
    if (!Take('(')) return Error("expected (");
    do {
      if (absl::Status status = ReadValue(term.values); !status.ok()) return status;
    } while (Take(','));
    return Take(')') ? absl::OkStatus() : Error("expected )");
  }

  const std::string_view text_;
  std::size_t at_ = 0;
};

absl::StatusOr<LabelSelector> LabelSelector::Parse(std::string_view text) {
  return LabelSelectorParser(text).Parse();
}

absl::StatusOr<LabelSelector> LabelSelector::FromLabels(const sched::Labels& labels) {
  std::string text;
  for (const auto& [key, value] : labels) {
    if (!IsKey(key) || (!value.empty() && !IsName(value))) {
      return absl::InvalidArgumentError(
          absl::StrCat("label ", absl::CHexEscape(key), "=", absl::CHexEscape(value), " is none"));
    }
    absl::StrAppend(&text, text.empty() ? "" : ",", key, "=", value);
  }
  return Parse(text);
}

bool LabelSelector::Matches(const sched::Labels& labels) const {
  if (terms_.empty()) return false;
  return std::all_of(terms_.begin(), terms_.end(), [&](const Term& term) {
    const auto label = labels.find(term.key);
    const bool there = label != labels.end();
    const bool listed =
        there && std::find(term.values.begin(), term.values.end(), label->second) != term.values.end();
    switch (term.kind) {
      case Term::Kind::kIn:
        return listed;
      case Term::Kind::kNotIn:
        return !listed;
      case Term::Kind::kExists:
        return there;
      case Term::Kind::kAbsent:
        return !there;
    }
    return false;
  });
}

}  // namespace llmd::host
