#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "examples/trace_replay/decision_study.h"
#include "examples/trace_replay/modes.h"
#include "examples/trace_replay/progress.h"
#include "llmd/base/strings.h"

namespace llmd::replay {
namespace {

double Share(std::uint64_t part, std::uint64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

void AppendRow(const DecisionStudy& study, const DecidedFigures& figures, bool recorded, std::string& out) {
  const auto percent = [&](std::uint64_t part) {
    return absl::StrFormat("%.2f", 100 * Share(part, study.decisions));
  };
  absl::StrAppendFormat(&out, "%-16s  %10s  %10s  %8s  %9.3f  %8s\n", figures.policy,
                        recorded ? "-" : percent(figures.changed),
                        recorded || study.others.size() < 2 ? "-" : percent(figures.differs_first),
                        study.has_matches ? absl::StrFormat("%.2f", 100 * figures.hit_rate()) : "-",
                        figures.imbalance(), WithCommas(figures.failed));
}

std::string Text(const DecisionStudy& study, const std::string& path) {
  std::string out;
  absl::StrAppendFormat(&out, "%-12s %s: %s decisions among %d endpoints, %d bytes each\n", "log", path,
                        WithCommas(study.decisions), study.endpoints,
                        study.decisions > 0 ? study.bytes / study.decisions : 0);
  absl::StrAppendFormat(&out, "%-12s %s\n", "recorded by", study.text.substr(0, study.text.find('\n')));
  if (study.verified_by.empty()) {
    absl::StrAppendFormat(&out, "%-12s no policy given is the recorded one, so nothing was verified\n",
                          "replayed");
  } else {
    absl::StrAppendFormat(&out, "%-12s %s of %s decisions are bit-identical under %s\n", "replayed",
                          WithCommas(study.equal), WithCommas(study.decisions), study.verified_by);
  }
  if (!study.unrecorded.empty()) {
    absl::StrAppendFormat(&out, "%-12s %s: not on record, their producers ran again\n", "",
                          absl::StrJoin(study.unrecorded, ", "));
  }
  if (study.recorded.from_record > 0) {
    absl::StrAppendFormat(&out, "%-12s %s answers of plugins that remember were taken from the record\n", "",
                          WithCommas(study.recorded.from_record));
  }
  if (study.others.empty()) return out;

  out += "\n";
  absl::StrAppendFormat(&out, "%-16s  %10s  %10s  %8s  %9s  %8s\n", "", "other than", "other than",
                        "hit rate", "imbalance", "");
  absl::StrAppendFormat(&out, "%-16s  %10s  %10s  %8s  %9s  %8s\n", "policy", "recorded %", "the 1st %",
                        "tokens %", "tokens", "failed");
  AppendRow(study, study.recorded, true, out);
  for (const DecidedFigures& figures : study.others) AppendRow(study, figures, false, out);
  out += "\n";
  for (const DecidedFigures& figures : study.others) {
    absl::StrAppendFormat(&out, "%-16s %s\n", figures.policy, figures.description);
    if (!figures.missing.empty()) {
      absl::StrAppend(&out, "  the log has no ", absl::StrJoin(figures.missing, ", "),
                      ": asked anew, without what was learned then\n");
    }
    if (figures.from_record + figures.without_memory > 0) {
      absl::StrAppend(&out, "  plugins that remember: ", WithCommas(figures.from_record),
                      " answers taken from the record, ", WithCommas(figures.without_memory),
                      " given without a memory\n");
    }
    for (const std::string& example : figures.examples) absl::StrAppend(&out, "  ", example);
  }
  out +=
      "Each decision was taken in the recorded state. Hit rate: recorded matches at the chosen endpoints. "
      "Imbalance: busiest\n"
      "endpoint / mean, by tokens of the requests. That other decisions would have led to other states is "
      "not "
      "modelled.\n";
  return out;
}

nlohmann::ordered_json Json(const DecisionStudy& study, const DecidedFigures& figures) {
  nlohmann::ordered_json json = {{"policy", figures.policy},
                                 {"description", figures.description},
                                 {"failed", figures.failed},
                                 {"changed", figures.changed},
                                 {"changed_share", Share(figures.changed, study.decisions)},
                                 {"differs_from_first", figures.differs_first},
                                 {"token_imbalance", figures.imbalance()},
                                 {"missing_data", figures.missing}};
  if (study.has_matches) json["token_hit_rate"] = figures.hit_rate();
  return json;
}

std::string JsonText(const DecisionStudy& study) {
  nlohmann::ordered_json json = {{"recorded_by", study.text},
                                 {"decisions", study.decisions},
                                 {"bytes", study.bytes},
                                 {"endpoints", study.endpoints},
                                 {"verified_by", study.verified_by},
                                 {"bit_identical", study.equal},
                                 {"first_difference", study.difference},
                                 {"unrecorded_data", study.unrecorded},
                                 {"states", "as recorded"},
                                 {"recorded", Json(study, study.recorded)}};
  json["policies"] = nlohmann::ordered_json::array();
  for (const DecidedFigures& figures : study.others) json["policies"].push_back(Json(study, figures));
  return json.dump(2) + "\n";
}

}  // namespace

absl::Status RunDecisions(const Options& options) {
  absl::StatusOr<std::vector<Policy>> policies = ChoosePolicies(options, {});
  if (!policies.ok()) return policies.status();
  std::ifstream file(options.decisions, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (!file) return absl::NotFoundError(absl::StrCat("--decisions: ", options.decisions, " cannot be read"));
  const std::string log = std::move(bytes).str();
  const bool only_verify = policies->empty();

  absl::StatusOr<DecisionStudy> study = absl::UnknownError("");
  {
    ProgressBar progress(std::max<std::size_t>(log.size(), 1));
    study = StudyDecisions(AsBytes(log), *std::move(policies),
                           {.examples = options.simulation.explain > 0 ? options.simulation.explain : 3,
                            .explain = options.simulation.explain > 0,
                            .progress = [&](std::size_t done) { progress.Update(done); }});
  }
  if (!study.ok()) {
    return absl::Status(study.status().code(),
                        absl::StrCat("--decisions: ", options.decisions, ": ", study.status().message()));
  }
  std::cout << (options.json ? JsonText(*study) : Text(*study, options.decisions));
  std::cout.flush();
  if (!study->difference.empty()) return absl::DataLossError(study->difference);
  if (only_verify && study->verified_by.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--decisions: ", options.decisions,
        ": its text names no policy of this program, expected --config with the configuration that took it"));
  }
  return absl::OkStatus();
}

}  // namespace llmd::replay
