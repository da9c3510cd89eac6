#include "examples/trace_replay/trace_reader.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace llmd::replay {
namespace {

using Json = nlohmann::json;

// A value as it stands in the line, cut short.
std::string Excerpt(const Json& value) {
  constexpr std::size_t kMax = 40;
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kMax) text = text.substr(0, kMax) + "...";
  return text;
}

absl::Status Bad(const std::string& field, const Json& value, const std::string& expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": is ", Excerpt(value), ", expected ", expected));
}

absl::Status ReadInteger(const Json& value, const std::string& field, std::uint64_t low, std::uint64_t high,
                         std::uint64_t& out) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() < low || value.get<std::uint64_t>() > high) {
    return Bad(field, value, absl::StrCat("an integer from ", low, " to ", high));
  }
  out = value.get<std::uint64_t>();
  return absl::OkStatus();
}

absl::Status ReadField(const Json& object, const char* field, std::uint64_t low, std::uint64_t high,
                       std::uint64_t& out) {
  const auto it = object.find(field);
  if (it == object.end()) return absl::InvalidArgumentError(absl::StrCat(field, ": is missing"));
  return ReadInteger(*it, field, low, high, out);
}

absl::Status ReadHashIds(const Json& object, std::uint64_t input_length, const TraceLimits& limits,
                         std::vector<Segment>& prompt) {
  const auto it = object.find("hash_ids");
  if (it == object.end()) return absl::InvalidArgumentError("hash_ids: is missing");
  if (!it->is_array()) return Bad("hash_ids", *it, "a list of integers");
  const std::uint64_t blocks = (input_length + kTraceBlockTokens - 1) / kTraceBlockTokens;
  if (it->size() != blocks) {
    return absl::InvalidArgumentError(absl::StrCat("hash_ids: has ", it->size(), " ids, expected ", blocks,
                                                   " (", input_length, " input tokens in blocks of ",
                                                   kTraceBlockTokens, ")"));
  }
  prompt.reserve(blocks);
  for (std::uint64_t i = 0; i < blocks; ++i) {
    Segment segment;
    const std::string field = absl::StrCat("hash_ids[", i, "]");
    if (absl::Status s = ReadInteger((*it)[i], field, 0, limits.max_hash_id, segment.stream); !s.ok())
      return s;
    const std::uint64_t left = input_length - i * kTraceBlockTokens;
    segment.tokens = static_cast<std::uint32_t>(left < kTraceBlockTokens ? left : kTraceBlockTokens);
    prompt.push_back(segment);
  }
  return absl::OkStatus();
}

// `index` numbers the request's answer; `not_before` is the latest arrival so far.
absl::StatusOr<WorkloadRequest> ReadLine(const std::string& line, std::size_t index, Nanos not_before,
                                         const TraceLimits& limits) {
  if (line.size() > limits.max_line_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the line has ", line.size(), " bytes, the limit is ", limits.max_line_bytes));
  }
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", Excerpt(Json(line.substr(0, 64)))));
  }
  if (!object.is_object())
    return absl::InvalidArgumentError(absl::StrCat("is a JSON ", object.type_name(), ", expected an object"));

  std::uint64_t timestamp = 0, input_length = 0, output_length = 0;
  if (absl::Status s = ReadField(object, "timestamp", 0, limits.max_timestamp_ms, timestamp); !s.ok())
    return s;
  if (absl::Status s = ReadField(object, "input_length", 1, limits.max_input_tokens, input_length); !s.ok())
    return s;
  if (absl::Status s = ReadField(object, "output_length", 1, limits.max_output_tokens, output_length);
      !s.ok())
    return s;
  WorkloadRequest request;
  request.recorded = true;
  request.arrival = static_cast<Nanos>(timestamp) * 1'000'000;
  if (request.arrival < not_before) {
    return absl::InvalidArgumentError(absl::StrCat("timestamp: is ", timestamp, ", expected at least ",
                                                   not_before / 1'000'000, " of the request before"));
  }
  request.output = {kAnswerStreams + index, static_cast<std::uint32_t>(output_length)};
  if (absl::Status s = ReadHashIds(object, input_length, limits, request.prompt); !s.ok()) return s;
  return request;
}

}  // namespace

absl::StatusOr<Trace> ReadTrace(std::istream& input, const std::string& name, const TraceOptions& options) {
  Trace trace;
  std::string line;
  for (std::size_t number = 1; std::getline(input, line); ++number) {
    if (options.limit > 0 && trace.requests.size() >= options.limit) break;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const Nanos not_before = trace.requests.empty() ? 0 : trace.requests.back().arrival;
    absl::StatusOr<WorkloadRequest> request =
        ReadLine(line, trace.requests.size(), not_before, options.limits);
    if (request.ok()) {
      trace.requests.push_back(*std::move(request));
      continue;
    }
    absl::Status bad(request.status().code(),
                     absl::StrCat(name, ": line ", number, ": ", request.status().message()));
    if (!options.skip_bad) return bad;
    if (trace.skipped_lines++ == 0) trace.first_skipped = std::move(bad);
  }
  if (input.bad()) return absl::DataLossError(absl::StrCat(name, ": reading failed"));
  if (trace.requests.empty()) return absl::InvalidArgumentError(absl::StrCat(name, ": no requests"));
  return trace;
}

absl::StatusOr<Trace> ReadTraceFile(const std::string& path, const TraceOptions& options) {
  std::ifstream input(path, std::ios::binary);
  if (!input) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  return ReadTrace(input, path, options);
}

}  // namespace llmd::replay
