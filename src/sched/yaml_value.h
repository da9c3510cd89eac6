// YAML and JSON text to the tree that parameters are read from. Private to the component.
#ifndef SRC_SCHED_YAML_VALUE_H_
#define SRC_SCHED_YAML_VALUE_H_

#include <cstddef>
#include <string_view>

#include "absl/status/statusor.h"
#include "llmd/sched/parameters.h"

namespace llmd::sched {

// What a text may cost. Aliases count as often as they are used.
struct YamlLimits {
  std::size_t text_bytes = std::size_t{4} << 20;
  std::size_t value_bytes = std::size_t{16} << 20;  // of all scalars and keys
  std::size_t nodes = 100'000;
  std::size_t depth = 64;
};

// The only document of the text; null for an empty one. A map's value has the line of its key, everything
// else its own. Plain scalars are typed as Kubernetes' tools type them, which is YAML 1.2's core schema and
// YAML 1.1's spellings of booleans and integers: yes, off, 0x1f, 017, 1_000. InvalidArgument reads "line 3:
// PATH is
// ..., expected ...".
absl::StatusOr<Value> ParseYaml(std::string_view text, const YamlLimits& limits = {});

// The value of a plain scalar.
Value ResolvePlainScalar(std::string_view text);

}  // namespace llmd::sched

#endif  // SRC_SCHED_YAML_VALUE_H_
