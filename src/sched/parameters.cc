#include "llmd/sched/parameters.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "llmd/base/strings.h"

namespace llmd::sched {

std::string_view Value::kind() const {
  static constexpr std::string_view kNames[] = {"null",     "a boolean", "an integer", "a number",
                                                "a string", "a list",    "a map"};
  return kNames[data_.index()];
}

namespace {

// Kubernetes: a decimal number with a suffix of powers of 1000 or 1024, rounded up. Nothing for what is
// malformed, negative or beyond 2^63 - 1.
std::optional<std::uint64_t> ParseQuantity(std::string_view text) {
  struct Suffix {
    std::string_view name;
    double factor;
  };
  static constexpr Suffix kSuffixes[] = {{"Ki", 0x1p10}, {"Mi", 0x1p20}, {"Gi", 0x1p30}, {"Ti", 0x1p40},
                                         {"Pi", 0x1p50}, {"Ei", 0x1p60}, {"m", 1e-3},    {"k", 1e3},
                                         {"M", 1e6},     {"G", 1e9},     {"T", 1e12},    {"P", 1e15},
                                         {"E", 1e18}};
  double factor = 1;
  for (const Suffix& suffix : kSuffixes) {
    if (!text.ends_with(suffix.name)) continue;
    factor = suffix.factor;
    text.remove_suffix(suffix.name.size());
    break;
  }
  double number = 0;
  if (text.empty() || text.find_first_not_of("+0123456789.eE") != std::string_view::npos ||
      !absl::SimpleAtod(ToAbsl(text), &number)) {
    return std::nullopt;
  }
  const double product = std::ceil(number * factor);
  if (!(product >= 0 && product < 0x1p63)) return std::nullopt;
  return static_cast<std::uint64_t>(product);
}

std::string LinePrefix(std::uint32_t line) { return line == 0 ? "" : absl::StrCat("line ", line, ": "); }

}  // namespace

ParameterReader::ParameterReader(std::string_view owner, const Value& parameters)
    : ParameterReader(absl::StrCat(ToAbsl(owner), ": "), absl::StrCat(ToAbsl(owner), ": parameters"),
                      parameters) {}

ParameterReader::ParameterReader(std::string prefix, std::string whole, const Value& parameters)
    : prefix_(std::move(prefix)), whole_(std::move(whole)), line_(parameters.line()), fields_(&empty_) {
  if (const Value::Map* map = parameters.AsMap()) {
    fields_ = map;
  } else if (!parameters.is_null()) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat(LinePrefix(line_), whole_, " is ", ToAbsl(parameters.kind()), ", expected a map"));
  }
  used_.assign(fields_->size(), false);
}

ParameterReader ParameterReader::At(std::string_view path, const Value& parameters) {
  return ParameterReader(path.empty() ? "" : absl::StrCat(ToAbsl(path), "."),
                         path.empty() ? "the document" : std::string(path), parameters);
}

ParameterReader ParameterReader::Nested(std::string_view field) {
  static const Value& none = *new Value();
  const Value* value = Raw(field);
  const std::string path = absl::StrCat(prefix_, ToAbsl(field));
  return ParameterReader(path + ".", path, value != nullptr ? *value : none);
}

ParameterReader ParameterReader::NestedItem(std::string_view field, std::size_t index,
                                            const Value& item) const {
  const std::string path = absl::StrCat(prefix_, ToAbsl(field), "[", index, "]");
  return ParameterReader(path + ".", path, item);
}

const Value* ParameterReader::Raw(std::string_view field) {
  const Value* found = nullptr;
  if (std::find(known_.begin(), known_.end(), field) == known_.end()) known_.emplace_back(field);
  for (std::size_t i = 0; i < fields_->size(); ++i) {
    if ((*fields_)[i].first != field) continue;
    used_[i] = true;
    if (found != nullptr) Reject(field, "given twice", "one value");
    found = &(*fields_)[i].second;
  }
  return found != nullptr && !found->is_null() ? found : nullptr;
}

void ParameterReader::Optional(std::string_view field, bool* out) {
  const Value* value = Raw(field);
  if (value == nullptr) return;
  if (const bool* b = value->AsBool()) {
    *out = *b;
  } else {
    WrongType(field, *value, "a boolean");
  }
}

void ParameterReader::Optional(std::string_view field, std::int64_t* out) {
  const Value* value = Raw(field);
  if (value == nullptr) return;
  if (const std::int64_t* i = value->AsInt()) {
    *out = *i;
  } else {
    WrongType(field, *value, "an integer");
  }
}

void ParameterReader::Optional(std::string_view field, double* out) {
  const Value* value = Raw(field);
  if (value == nullptr) return;
  if (const std::int64_t* i = value->AsInt()) {
    *out = static_cast<double>(*i);
  } else if (const double* d = value->AsDouble(); d != nullptr && std::isfinite(*d)) {
    *out = *d;
  } else if (d != nullptr) {
    Reject(field, absl::StrCat(*d), "a finite number");
  } else {
    WrongType(field, *value, "a number");
  }
}

void ParameterReader::Optional(std::string_view field, std::string* out) {
  const Value* value = Raw(field);
  if (value == nullptr) return;
  if (const std::string* s = value->AsString()) {
    *out = *s;
  } else {
    WrongType(field, *value, "a string");
  }
}

void ParameterReader::Optional(std::string_view field, std::vector<std::string>* out) {
  const Value* value = Raw(field);
  if (value == nullptr) return;
  const Value::List* list = value->AsList();
  if (list == nullptr) return WrongType(field, *value, "a list of strings");
  out->clear();
  for (const Value& item : *list) {
    const std::string* s = item.AsString();
    if (s == nullptr) return WrongType(field, item, "a list of strings");
    out->push_back(*s);
  }
}

void ParameterReader::Optional(std::string_view field, absl::Duration* out) {
  constexpr std::string_view kExpected = "a duration such as \"200ms\"";
  const Value* value = Raw(field);
  if (value == nullptr) return;
  const std::string* text = value->AsString();
  if (text == nullptr) return WrongType(field, *value, kExpected);
  absl::Duration parsed;
  if (!absl::ParseDuration(*text, &parsed) || absl::AbsDuration(parsed) == absl::InfiniteDuration()) {
    return Reject(field, absl::StrCat("\"", *text, "\""), kExpected);
  }
  *out = parsed;
}

void ParameterReader::OptionalQuantity(std::string_view field, std::uint64_t* out) {
  const Value* value = Raw(field);
  if (value == nullptr) return;
  constexpr std::string_view kExpected = "a quantity of at least 0, such as 500, \"5k\" or \"1Gi\"";
  if (const std::int64_t* i = value->AsInt()) {
    if (*i < 0) return Reject(field, absl::StrCat(*i), kExpected);
    *out = static_cast<std::uint64_t>(*i);
  } else if (const std::string* s = value->AsString()) {
    const std::optional<std::uint64_t> parsed = ParseQuantity(*s);
    if (!parsed) return Reject(field, absl::StrCat("\"", *s, "\""), kExpected);
    *out = *parsed;
  } else {
    WrongType(field, *value, kExpected);
  }
}

const Value::List* ParameterReader::OptionalList(std::string_view field) {
  const Value* value = Raw(field);
  if (value == nullptr) return nullptr;
  const Value::List* list = value->AsList();
  if (list == nullptr) WrongType(field, *value, "a list");
  return list;
}

void ParameterReader::Reject(std::string_view field, std::string_view value, std::string_view expected) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(absl::StrCat(LinePrefix(LineOf(field)), prefix_, ToAbsl(field), " is ",
                                                    ToAbsl(value), ", expected ", ToAbsl(expected)));
}

std::string ParameterReader::KnownFields() const {
  return known_.empty() ? "no parameters" : absl::StrCat("one of ", absl::StrJoin(known_, ", "));
}

std::uint32_t ParameterReader::LineOf(std::string_view field) const {
  const auto find = [](const Value::Map& map, std::string_view name) -> const Value* {
    for (const Value::Field& f : map) {
      if (f.first == name) return &f.second;
    }
    return nullptr;
  };
  const Value* value = find(*fields_, field);
  // "deciders.prefill" may stand for a field within a field.
  for (std::size_t dot = field.find('.'); value == nullptr && dot != std::string_view::npos;
       dot = field.find('.', dot + 1)) {
    const Value* outer = find(*fields_, field.substr(0, dot));
    if (outer == nullptr) continue;
    value = outer->AsMap() == nullptr ? nullptr : find(*outer->AsMap(), field.substr(dot + 1));
    if (value == nullptr) value = outer;
  }
  return value != nullptr && value->line() != 0 ? value->line() : line_;
}

void ParameterReader::WrongType(std::string_view field, const Value& value, std::string_view expected) {
  Reject(field, value.kind(), expected);
}

absl::Status ParameterReader::Finish() {
  for (std::size_t i = 0; i < fields_->size() && status_.ok(); ++i) {
    if (!used_[i]) {
      const std::string& field = (*fields_)[i].first;
      status_ = absl::InvalidArgumentError(
          absl::StrCat(LinePrefix(LineOf(field)), prefix_, field, " is unknown, expected ", KnownFields()));
    }
  }
  return status_;
}

}  // namespace llmd::sched
