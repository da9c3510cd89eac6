// EndpointPickerConfig files as policies.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_CONFIG_POLICY_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_CONFIG_POLICY_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "examples/trace_replay/policy.h"
#include "llmd/sched/config.h"

namespace llmd::replay {

// A policy from the text of a configuration; the indexes that its producers need are found out. `source` is
// the file's path, its last part the policy's name. InvalidArgument also for an approximate index that this
// program's engines and keys do not fit.
absl::StatusOr<Policy> MakeConfigPolicy(std::string_view text, const std::string& source);
// The same from the file. NotFound when it cannot be read.
absl::StatusOr<Policy> ReadConfigPolicy(const std::string& path);

// A policy from Policy::text. InvalidArgument for a text that this program did not write.
absl::StatusOr<Policy> MakePolicyFromText(std::string_view text);

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_CONFIG_POLICY_H_
