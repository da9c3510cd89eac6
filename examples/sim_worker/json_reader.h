// Reads the fields of a request that a stranger sent: types and ranges checked, the first error kept.
#ifndef EXAMPLES_SIM_WORKER_JSON_READER_H_
#define EXAMPLES_SIM_WORKER_JSON_READER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/base/types.h"

namespace llmd::sim {

using Json = nlohmann::json;

// InvalidArgument with the position for what is no JSON, is nested deeper than 64, or is of so many pieces
// that its tree would be much larger than its text.
absl::StatusOr<Json> ParseJson(std::string_view text);

// A field that is absent or null has its default.
class FieldReader {
 public:
  explicit FieldReader(const Json& object, std::string prefix = {})
      : object_(object), prefix_(std::move(prefix)) {}

  bool Bool(const char* name, bool otherwise);
  std::optional<std::int64_t> Integer(const char* name, std::int64_t least, std::int64_t most);
  void Number(const char* name, double least, double most);  // checks only
  std::string Text(const char* name, std::size_t max_bytes);
  // A text or a list of texts, none empty.
  std::vector<std::string> Texts(const char* name, std::size_t max_count);
  std::vector<TokenId> Tokens(const char* name, std::size_t max_count);
  // Null when absent or null.
  const Json* Find(const char* name) const;

  void Fail(const std::string& message);
  const absl::Status& status() const { return status_; }

 private:
  const Json& object_;
  std::string prefix_;
  absl::Status status_;
};

// Ids in [0, vocabulary): appends them. InvalidArgument names the first bad one by its position.
absl::Status ReadTokens(const Json& list, const std::string& name, std::vector<TokenId>& out);

// `text` as the inside of a JSON string.
void AppendEscaped(std::string_view text, std::string& out);

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_JSON_READER_H_
