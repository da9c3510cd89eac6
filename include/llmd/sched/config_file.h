// llm-d's EndpointPickerConfig as text: reading, printing, and schedulers made from it.
//
//   std::vector<std::string> warnings;
//   absl::StatusOr<std::unique_ptr<Scheduler>> scheduler =
//       LoadScheduler(text, {.source = "epp.yaml"}, PluginRegistry::Builtin(), resources, &warnings);
//
// Reading is strict: unknown fields anywhere, values of the wrong kind, repeated keys and a second document
// are errors. There is one error at a time; it reads
//
//   epp.yaml: line 12: plugins[2].parameters.queueDepthThreshold is a string, expected a number
//
// with the line of the field's key. YAML and JSON are accepted, up to 4 MiB, 100,000 values (aliases
// expanded) and 64 levels. Both apiVersions of llm-d are read, and what its first YAML releases (0.2) called
// differently is translated with a warning; docs/configuration.md tells what. One field is ours:
// `compatibility: llm-d`, or a map of the names in CompatibilityFields() (compatibility.h).
//
// No I/O: hosts read the files. Functions may be called from any thread.
#ifndef LLMD_SCHED_CONFIG_FILE_H_
#define LLMD_SCHED_CONFIG_FILE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "llmd/sched/config.h"
#include "llmd/sched/registry.h"
#include "llmd/sched/scheduler.h"

namespace llmd::sched {

struct ConfigTextOptions {
  std::string source = "config";    // the file's name, for messages
  bool allow_experimental = false;  // llm-d's --allow-experimental-plugins
};

// SchedulerConfig::Default() for a text without content. Says what the text says; Scheduler::Create() checks
// plugins and references and adds the defaults. Appends to `warnings`, which may be null, what is accepted
// but deserves a look.
absl::StatusOr<SchedulerConfig> ParseConfig(std::string_view text, const ConfigTextOptions& options = {},
                                            std::vector<std::string>* warnings = nullptr);

// The YAML text, apiVersion llm-d.ai/v1alpha1, that ParseConfig() reads as an equal configuration. With
// Scheduler::config() it shows every default, which is what llm-d's --print-config is for.
std::string PrintConfig(const SchedulerConfig& config);

// ParseConfig(), then Scheduler::Create(). `warnings` gets those of both, each with the name of the source.
absl::StatusOr<std::unique_ptr<Scheduler>> LoadScheduler(std::string_view text,
                                                         const ConfigTextOptions& options,
                                                         const PluginRegistry& registry,
                                                         const Resources& resources,
                                                         std::vector<std::string>* warnings = nullptr);

// The scheduler in force, and its replacement while requests are served.
//
//   ReloadableScheduler live(PluginRegistry::Builtin(), resources);
//   absl::Status status = live.Load(text, {.source = path});      // again and again; an error changes
//   nothing
//
//   // In each thread:
//   if (seen != live.generation()) {
//     workspace.reset();
//     std::tie(scheduler, seen) = live.Current();
//     workspace.emplace(*scheduler);
//   }
//
// Plugins of the same name keep their memory (PluginStates) across loads. Decisions and flights of a replaced
// scheduler may end in peace. Any thread may call anything.
class ReloadableScheduler {
 public:
  ReloadableScheduler(const PluginRegistry& registry, Resources resources);

  // On success the new scheduler is the current one. On an error the old one stays, if there is any.
  absl::Status Load(std::string_view text, const ConfigTextOptions& options,
                    std::vector<std::string>* warnings = nullptr);

  struct Snapshot {
    std::shared_ptr<Scheduler> scheduler;  // null before the first successful Load()
    std::uint64_t generation = 0;
  };
  Snapshot Current() const;
  // How many loads succeeded. Takes no lock.
  std::uint64_t generation() const { return generation_.load(std::memory_order_acquire); }

 private:
  const PluginRegistry registry_;
  const Resources resources_;
  mutable std::mutex mutex_;
  std::shared_ptr<Scheduler> scheduler_;
  std::atomic<std::uint64_t> generation_ = 0;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_CONFIG_FILE_H_
