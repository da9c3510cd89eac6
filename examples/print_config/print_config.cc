// print_config: what a configuration comes to once every default is added, or why it is refused.
#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "llmd/sched/config_env.h"
#include "llmd/sched/config_file.h"

extern char** environ;

namespace llmd::sched {
namespace {

// Stands for the indexes that a host would have: no decision is made here.
struct NoMatch final : PrefixMatcher {
  void Match(const index::NamespaceId&, BlockKeySpan, index::MatchResult& result) override { result.clear(); }
};

std::map<std::string, std::string> Environment() {
  std::map<std::string, std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::size_t equals = text.find('=');
    if (equals != std::string::npos) variables[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return variables;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  if (path == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  std::ifstream file(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file.good() && !file.eof()) return absl::NotFoundError(path + ": cannot be read, expected a file");
  return text;
}

absl::StatusOr<std::string> Complete(const std::string& path, bool from_environment, bool allow_experimental,
                                     std::vector<std::string>& warnings) {
  const PrefixSourceIndex index{[] { return std::make_unique<NoMatch>(); }, nullptr};
  const Resources resources{.prefix_sources = {index, index}};
  absl::StatusOr<std::unique_ptr<Scheduler>> scheduler;
  if (from_environment) {
    SchedulerConfig config = ConfigFromEnvironment(Environment(), &warnings);
    if (config.allow_experimental) warnings.emplace_back("the result needs --allow-experimental-plugins");
    scheduler = Scheduler::Create(config, PluginRegistry::Builtin(), resources);
    if (scheduler.ok()) {
      const std::vector<std::string>& more = (*scheduler)->warnings();
      warnings.insert(warnings.end(), more.begin(), more.end());
    }
  } else {
    const absl::StatusOr<std::string> text = ReadText(path);
    if (!text.ok()) return text.status();
    const ConfigTextOptions options{.source = path, .allow_experimental = allow_experimental};
    scheduler = LoadScheduler(*text, options, PluginRegistry::Builtin(), resources, &warnings);
  }
  if (!scheduler.ok()) return scheduler.status();
  return PrintConfig((*scheduler)->config());
}

}  // namespace
}  // namespace llmd::sched

int main(int argc, char** argv) {
  CLI::App app("Prints a scheduler's configuration with every default added.");
  std::string path;
  bool from_environment = false;
  bool allow_experimental = false;
  auto* file = app.add_option("FILE", path, "EndpointPickerConfig as YAML or JSON; - for standard input");
  app.add_flag("--from-env", from_environment, "Translate the environment variables of llm-d 0.1 instead")
      ->excludes(file);
  app.add_flag("--allow-experimental-plugins", allow_experimental,
               "Accept plugin types that llm-d calls alpha");
  CLI11_PARSE(app, argc, argv);
  if (path.empty() && !from_environment) {
    std::cerr << "error: give FILE or --from-env\n";
    return 1;
  }
  std::vector<std::string> warnings;
  const auto printed = llmd::sched::Complete(path, from_environment, allow_experimental, warnings);
  for (const std::string& warning : warnings) std::cerr << "warning: " << warning << "\n";
  if (!printed.ok()) {
    std::cerr << "error: " << printed.status().message() << "\n";
    return 1;
  }
  std::cout << *printed;
  return 0;
}
