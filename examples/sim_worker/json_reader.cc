#include "examples/sim_worker/json_reader.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "examples/sim_worker/tokenizer.h"

namespace llmd::sim {
namespace {

constexpr int kMaxDepth = 64;
constexpr std::size_t kMaxContainers = 200'000;

absl::Status CheckShape(std::string_view text) {
  int depth = 0;
  std::size_t containers = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) {
        return absl::InvalidArgumentError(
            absl::StrCat("the JSON is nested deeper than ", kMaxDepth, " at byte ", i));
      }
      if (++containers > kMaxContainers) {
        return absl::InvalidArgumentError(
            absl::StrCat("the JSON has more than ", kMaxContainers, " objects and lists"));
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text) {
  if (absl::Status status = CheckShape(text); !status.ok()) return status;
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    std::string_view what = error.what();
    if (const std::size_t end = what.find("] "); end != what.npos) what.remove_prefix(end + 2);
    // What was read last may be long.
    return absl::InvalidArgumentError(std::string(what.substr(0, 200)));
  }
}

void FieldReader::Fail(const std::string& message) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(prefix_, message));
}

const Json* FieldReader::Find(const char* name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool FieldReader::Bool(const char* name, bool otherwise) {
  const Json* value = Find(name);
  if (value == nullptr) return otherwise;
  if (value->is_boolean()) return value->get<bool>();
  Fail(absl::StrCat(name, " must be true or false"));
  return otherwise;
}

std::optional<std::int64_t> FieldReader::Integer(const char* name, std::int64_t least, std::int64_t most) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  std::optional<std::int64_t> number;
  if (value->is_number_unsigned()) {
    const auto unsigned_number = value->get<std::uint64_t>();
    if (unsigned_number <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      number = static_cast<std::int64_t>(unsigned_number);
    }
  } else if (value->is_number_integer()) {
    number = value->get<std::int64_t>();
  } else if (value->is_number_float()) {
    const auto real = value->get<double>();
    if (std::abs(real) < 9e15 && real == std::floor(real)) number = static_cast<std::int64_t>(real);
  }
  if (number && *number >= least && *number <= most) return number;
  Fail(absl::StrCat(name, " must be an integer from ", least, " to ", most));
  return std::nullopt;
}

void FieldReader::Number(const char* name, double least, double most) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (value->is_number() && value->get<double>() >= least && value->get<double>() <= most) return;
  Fail(absl::StrCat(name, " must be a number from ", least, " to ", most));
}

std::string FieldReader::Text(const char* name, std::size_t max_bytes) {
  const Json* value = Find(name);
  if (value == nullptr) return {};
  if (value->is_string()) {
    const auto& text = value->get_ref<const std::string&>();
    if (text.size() <= max_bytes) return text;
  }
  Fail(absl::StrCat(name, " must be a string of at most ", max_bytes, " bytes"));
  return {};
}

std::vector<std::string> FieldReader::Texts(const char* name, std::size_t max_count) {
  std::vector<std::string> texts;
  const Json* value = Find(name);
  if (value == nullptr) return texts;
  const auto add = [&](const Json& item) {
    if (item.is_string() && !item.get_ref<const std::string&>().empty() && texts.size() < max_count) {
      texts.push_back(item.get<std::string>());
      return true;
    }
    Fail(absl::StrCat(name, " must be a string or a list of at most ", max_count, " strings, none empty"));
    return false;
  };
  if (value->is_array()) {
    for (const Json& item : *value) {
      if (!add(item)) break;
    }
  } else {
    add(*value);
  }
  return texts;
}

std::vector<TokenId> FieldReader::Tokens(const char* name, std::size_t max_count) {
  std::vector<TokenId> tokens;
  const Json* value = Find(name);
  if (value == nullptr) return tokens;
  if (!value->is_array() || value->size() > max_count) {
    Fail(absl::StrCat(name, " must be a list of at most ", max_count, " token ids"));
    return tokens;
  }
  if (absl::Status status = ReadTokens(*value, name, tokens); !status.ok()) {
    Fail(std::string(status.message()));
  }
  return tokens;
}

absl::Status ReadTokens(const Json& list, const std::string& name, std::vector<TokenId>& out) {
  out.reserve(out.size() + list.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    const Json& item = list[i];
    if (!item.is_number_unsigned() || item.get<std::uint64_t>() >= Tokenizer::kVocabSize) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, "[", i, "] must be a token id from 0 to ", Tokenizer::kVocabSize - 1));
    }
    out.push_back(item.get<TokenId>());
  }
  return absl::OkStatus();
}

void AppendEscaped(std::string_view text, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
}

}  // namespace llmd::sim
