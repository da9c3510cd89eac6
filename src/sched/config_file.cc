#include "llmd/sched/config_file.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/sched/config_text.h"
#include "src/sched/yaml_value.h"

namespace llmd::sched {
namespace {

void AppendWarnings(const std::vector<std::string>& from, const std::string& source,
                    std::vector<std::string>* to) {
  if (to == nullptr) return;
  for (const std::string& warning : from) to->push_back(absl::StrCat(source, ": ", warning));
}

Resources WithStates(Resources resources) {
  if (resources.states == nullptr) resources.states = std::make_shared<PluginStates>();
  return resources;
}

}  // namespace

absl::StatusOr<SchedulerConfig> ParseConfig(std::string_view text, const ConfigTextOptions& options,
                                            std::vector<std::string>* warnings) {
  absl::StatusOr<Value> document = ParseYaml(text);
  if (!document.ok()) return WithSource(document.status(), options.source);
  SchedulerConfig config = SchedulerConfig::Default();
  if (!document->is_null()) {
    std::vector<std::string> found;
    absl::StatusOr<SchedulerConfig> read = ReadConfig(*document, found);
    if (!read.ok()) return WithSource(read.status(), options.source);
    AppendWarnings(found, options.source, warnings);
    config = *std::move(read);
  }
  config.allow_experimental = options.allow_experimental;
  config.source = options.source;
  return config;
}

absl::StatusOr<std::unique_ptr<Scheduler>> LoadScheduler(std::string_view text,
                                                         const ConfigTextOptions& options,
                                                         const PluginRegistry& registry,
                                                         const Resources& resources,
                                                         std::vector<std::string>* warnings) {
  absl::StatusOr<SchedulerConfig> config = ParseConfig(text, options, warnings);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::unique_ptr<Scheduler>> scheduler = Scheduler::Create(*config, registry, resources);
  if (scheduler.ok()) AppendWarnings((*scheduler)->warnings(), options.source, warnings);
  return scheduler;
}

ReloadableScheduler::ReloadableScheduler(const PluginRegistry& registry, Resources resources)
    : registry_(registry), resources_(WithStates(std::move(resources))) {}

absl::Status ReloadableScheduler::Load(std::string_view text, const ConfigTextOptions& options,
                                       std::vector<std::string>* warnings) {
  absl::StatusOr<std::unique_ptr<Scheduler>> made =
      LoadScheduler(text, options, registry_, resources_, warnings);
  if (!made.ok()) return made.status();
  std::shared_ptr<Scheduler> scheduler = *std::move(made);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    scheduler_.swap(scheduler);
    generation_.fetch_add(1, std::memory_order_release);
  }
  // The replaced one, if nobody holds it, ends here and not under the lock.
  scheduler.reset();
  resources_.states->Prune();
  return absl::OkStatus();
}

ReloadableScheduler::Snapshot ReloadableScheduler::Current() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {scheduler_, generation_.load(std::memory_order_relaxed)};
}

}  // namespace llmd::sched
