// Generated workloads: what typical users of a shared cache do.
//
//   chat       conversations that grow turn by turn, below a few system prompts shared by all
//   agent      long tool loops: large shared instructions, many short steps, each appending an answer and a
//   tool's output retrieval  questions on documents from a shared corpus, some documents far more popular
//   than others
//
// Answers become part of the next turn's prompt with the very tokens that the engine generated. Arrivals do
// not depend on how fast answers come, so every policy is given the same requests at the same times.
#ifndef LLMD_EXAMPLES_TRACE_REPLAY_GENERATOR_H_
#define LLMD_EXAMPLES_TRACE_REPLAY_GENERATOR_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "examples/trace_replay/workload.h"

namespace llmd::replay {

enum class WorkloadKind : std::uint8_t { kChat, kAgent, kRetrieval };

// "chat", "agent", "retrieval". InvalidArgument otherwise.
absl::StatusOr<WorkloadKind> ParseWorkloadKind(std::string_view name);

struct GeneratorOptions {
  WorkloadKind kind = WorkloadKind::kChat;
  std::size_t requests = 2000;  // at least 1
  double rate = 8;              // requests a second, mean once sessions overlap; > 0
  std::uint64_t seed = 1;
};

Workload Generate(const GeneratorOptions& options);

}  // namespace llmd::replay

#endif  // LLMD_EXAMPLES_TRACE_REPLAY_GENERATOR_H_
