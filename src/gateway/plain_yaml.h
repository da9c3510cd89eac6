// YAML and JSON without types, aliases and tags: scalars are texts. Private to the component.
#ifndef SRC_GATEWAY_PLAIN_YAML_H_
#define SRC_GATEWAY_PLAIN_YAML_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace llmd::gateway {

struct YamlNode {
  enum class Kind : std::uint8_t { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::uint32_t line = 0;  // a map's value has its key's
  std::string text = {};
  std::vector<YamlNode> items = {};                           // of a list
  std::vector<std::pair<std::string, YamlNode>> fields = {};  // of a map, in order; keys may repeat

  // "a text", "a list" ...
  std::string_view kind_name() const;
};

// The only document of the text; null for an empty one. InvalidArgument with the line.
absl::StatusOr<YamlNode> ParsePlainYaml(std::string_view text, std::size_t max_depth);

}  // namespace llmd::gateway

#endif  // SRC_GATEWAY_PLAIN_YAML_H_
