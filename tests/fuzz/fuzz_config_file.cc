// Any text as a configuration: no crash, bounded work, errors of one line with a place, and what is
// understood is printed so that it is understood again, as the same.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "llmd/sched/config_file.h"

namespace {

using namespace llmd::sched;

void Require(bool condition, const char* what, std::string_view text) {
  if (condition) return;
  std::fprintf(stderr, "%s\n%.*s\n", what, static_cast<int>(text.size()), text.data());
  std::abort();
}

void CheckMessage(const absl::Status& status) {
  const std::string_view message(status.message().data(), status.message().size());
  Require(message.starts_with("f: "), "no file", message);
  Require(message.size() <= 8192, "long", message);
  for (const char c : message) Require(!(c >= 0 && c < 0x20), "control character", message);
}

// Has nothing.
struct NoMatch final : PrefixMatcher {
  void Match(const llmd::index::NamespaceId&, llmd::BlockKeySpan, llmd::index::MatchResult& result) override {
    result.clear();
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const ConfigTextOptions options{.source = "f", .allow_experimental = true};
  const absl::StatusOr<SchedulerConfig> config = ParseConfig(text, options);
  if (!config.ok()) {
    CheckMessage(config.status());
    const std::string_view message(config.status().message().data(), config.status().message().size());
    Require(message.starts_with("f: line "), "no line", message);
    Require(message.find(", expected ") != std::string_view::npos, "nothing expected", message);
    return 0;
  }
  const std::string printed = PrintConfig(*config);
  if (printed.size() > (1u << 20)) return 0;  // aliases, written out, may pass the limits on texts
  const absl::StatusOr<SchedulerConfig> again = ParseConfig(printed, options);
  Require(again.ok(), "not read again", again.ok() ? "" : again.status().ToString());
  Require(PrintConfig(*again) == printed, "printed otherwise", printed);

  const PrefixSourceIndex index{[] { return std::make_unique<NoMatch>(); }, nullptr};
  const Resources resources{{index, index}};
  const auto scheduler = Scheduler::Create(*config, PluginRegistry::Builtin(), resources);
  if (!scheduler.ok()) {
    CheckMessage(scheduler.status());
    return 0;
  }
  const std::string completed = PrintConfig((*scheduler)->config());
  const auto reloaded = LoadScheduler(completed, options, PluginRegistry::Builtin(), resources);
  Require(reloaded.ok(), "completed, not loaded again", reloaded.ok() ? "" : reloaded.status().ToString());
  Require(PrintConfig((*reloaded)->config()) == completed, "completed otherwise", completed);
  return 0;
}
