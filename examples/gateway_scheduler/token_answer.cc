#include "examples/gateway_scheduler/token_answer.h"

#include <simdjson.h>

#include <cstdint>
#include <limits>

#include "absl/strings/str_cat.h"

namespace llmd::host {
namespace {

using simdjson::error_code;
namespace dom = simdjson::dom;

// A parser keeps several times the memory of the longest text that it read.
constexpr std::size_t kKeptParserBytes = 4 << 20;

absl::Status Malformed(error_code error) {
  return absl::InvalidArgumentError(
      absl::StrCat("the tokenizer's answer is not as expected: ", simdjson::error_message(error)));
}

absl::Status ReadIds(dom::element value, std::vector<TokenId>& out) {
  dom::array array;
  if (const error_code error = value.get_array().get(array)) return Malformed(error);
  out.reserve(array.size());
  for (const dom::element element : array) {
    std::uint64_t id = 0;
    if (const error_code error = element.get_uint64().get(id)) return Malformed(error);
    if (id > std::numeric_limits<TokenId>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the tokenizer's answer has token id ", id, ", expected at most 4294967295"));
    }
    out.push_back(static_cast<TokenId>(id));
  }
  return absl::OkStatus();
}

// Reads the ids in `field`; `count`, when there is one, must be theirs.
absl::Status ReadObject(dom::element value, const char* field, std::vector<TokenId>& out) {
  dom::object object;
  if (const error_code error = value.get_object().get(object)) return Malformed(error);
  dom::element ids;
  if (object[field].get(ids)) {
    return absl::InvalidArgumentError(absl::StrCat("the tokenizer's answer has no ", field));
  }
  if (absl::Status status = ReadIds(ids, out); !status.ok()) return status;
  std::uint64_t count = 0;
  if (!object["count"].get_uint64().get(count) && count != out.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tokenizer's answer has count ", count, " and ", out.size(), " tokens"));
  }
  return absl::OkStatus();
}

template <typename Read>
absl::Status WithDocument(std::string_view json, const Read& read) {
  thread_local dom::parser kept;
  dom::parser large;
  dom::parser& parser = json.size() > kKeptParserBytes ? large : kept;
  dom::element root;
  if (const error_code error = parser.parse(json.data(), json.size()).get(root)) return Malformed(error);
  return read(root);
}

}  // namespace

absl::StatusOr<std::vector<TokenId>> ReadTokenizeAnswer(std::string_view json) {
  std::vector<TokenId> tokens;
  absl::Status status =
      WithDocument(json, [&](dom::element root) { return ReadObject(root, "tokens", tokens); });
  if (!status.ok()) return status;
  return tokens;
}

absl::StatusOr<std::vector<std::vector<TokenId>>> ReadRenderAnswer(std::string_view json) {
  std::vector<std::vector<TokenId>> prompts;
  absl::Status status = WithDocument(json, [&](dom::element root) {
    if (root.is_object()) return ReadObject(root, "token_ids", prompts.emplace_back());
    dom::array array;
    if (const error_code error = root.get_array().get(array)) return Malformed(error);
    for (const dom::element element : array) {
      if (absl::Status s = ReadObject(element, "token_ids", prompts.emplace_back()); !s.ok()) return s;
    }
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return prompts;
}

}  // namespace llmd::host
