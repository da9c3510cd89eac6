// Pieces of reading and printing configurations. Private to the component.
#ifndef SRC_SCHED_CONFIG_TEXT_H_
#define SRC_SCHED_CONFIG_TEXT_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/sched/config.h"

namespace llmd::sched {

inline constexpr std::string_view kConfigKind = "EndpointPickerConfig";
inline constexpr std::string_view kApiVersion = "llm-d.ai/v1alpha1";
inline constexpr std::string_view kNextApiVersion = "llm-d.ai/v1";
inline constexpr std::string_view kOldApiVersion = "inference.networking.x-k8s.io/v1alpha1";

// From a parsed document, which is not null.
absl::StatusOr<SchedulerConfig> ReadConfig(const Value& document, std::vector<std::string>& warnings);

// Translates what files of the old apiVersion may hold in the manner of llm-d 0.2. (spec: deployment.md 6.2)
void UpgradeOldConfig(SchedulerConfig& config, std::vector<std::string>& warnings);

// A complaint on one line and of bounded length, whatever texts it quotes: "SOURCE: MESSAGE".
absl::Status WithSource(const absl::Status& status, std::string_view source);

// "line 12: plugins[2]", or the path alone; `otherwise` for what was not read from a file.
std::string PlaceText(const SourcePlace& place, std::string_view otherwise = {});

}  // namespace llmd::sched

#endif  // SRC_SCHED_CONFIG_TEXT_H_
