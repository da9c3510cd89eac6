// The environment variables of llm-d's first releases, such as ENABLE_LOAD_AWARE_SCORER=true, as a
// configuration. (spec: scheduling.md 3.6)
//
// The meaning is that of release v0.1.0, the last one that read them: "true" and nothing else switches on,
// weights are integers, PD_ENABLED adds a prefill profile that runs when at least PD_PROMPT_LEN_THRESHOLD
// characters of the prompt are not cached. What differs: thresholds and block sizes in characters become
// tokens of four characters, and scores are those of today's scorers. One warning for each variable that
// looks like one of these and changes nothing.
#ifndef LLMD_SCHED_CONFIG_ENV_H_
#define LLMD_SCHED_CONFIG_ENV_H_

#include <map>
#include <string>
#include <vector>

#include "llmd/sched/config.h"

namespace llmd::sched {

// `variables` may be the whole environment; names that no release had are not looked at. As in v0.1.0 nothing
// is an error: a number that is malformed counts as not given, with a warning. `warnings` may be null. The
// result is experimental (SchedulerConfig::allow_experimental) when it needs the session scorer, which is.
SchedulerConfig ConfigFromEnvironment(const std::map<std::string, std::string>& variables,
                                      std::vector<std::string>* warnings = nullptr);

}  // namespace llmd::sched

#endif  // LLMD_SCHED_CONFIG_ENV_H_
