#include "llmd/sched/parameters.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::sched {

std::string_view Value::kind() const {
  static constexpr std::string_view kNames[] = {"null",     "a boolean", "an integer", "a number",
                                                "a string", "a list",    "a map"};
  return kNames[data_.index()];
}

ParameterReader::ParameterReader(std::string_view owner, const Value& parameters)
    : owner_(owner), fields_(&empty_) {
  if (const Value::Map* map = parameters.AsMap()) {
    fields_ = map;
  } else if (!parameters.is_null()) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat(owner_, ": parameters are ", ToAbsl(parameters.kind()), ", expected a map"));
  }
  used_.assign(fields_->size(), false);
}

const Value* ParameterReader::Raw(std::string_view field) {
  const Value* found = nullptr;
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
  std::string text;
  Optional(field, &text);
  if (text.empty()) return;
  if (!absl::ParseDuration(text, out)) Reject(field, text, "a duration such as \"200ms\"");
}

void ParameterReader::Reject(std::string_view field, std::string_view value, std::string_view expected) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(
      absl::StrCat(owner_, ": ", ToAbsl(field), " is ", ToAbsl(value), ", expected ", ToAbsl(expected)));
}

void ParameterReader::WrongType(std::string_view field, const Value& value, std::string_view expected) {
  Reject(field, value.kind(), expected);
}

absl::Status ParameterReader::Finish() {
  for (std::size_t i = 0; i < fields_->size() && status_.ok(); ++i) {
    if (!used_[i]) {
      status_ = absl::InvalidArgumentError(absl::StrCat(owner_, ": unknown parameter ", (*fields_)[i].first));
    }
  }
  return status_;
}

}  // namespace llmd::sched
