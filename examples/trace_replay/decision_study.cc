#include "examples/trace_replay/decision_study.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "examples/trace_replay/config_policy.h"
#include "examples/trace_replay/report.h"
#include "llmd/sched/decision_record.h"
#include "llmd/sched/decision_replay.h"

namespace llmd::replay {
namespace {

using sched::Decision;
using sched::DecisionLogReader;
using sched::DecisionRecord;
using sched::DecisionReplayer;
using sched::EndpointPool;
using sched::PrefixMatch;

// Index into the header's data of the matches to count hits by: the exact index's, if there.
std::optional<std::size_t> FindMatches(const sched::DecisionLogHeader& header) {
  std::optional<std::size_t> found;
  for (std::size_t i = 0; i < header.data.size(); ++i) {
    if (header.data[i].data_type != PrefixMatch::kDataType) continue;
    if (!found || header.data[i].producer == kExactProducer) found = i;
  }
  return found;
}

class Study {
 public:
  Study(DecisionLogReader& log, const StudyOptions& options)
      : log_(log), options_(options), matches_(FindMatches(log.header())) {}

  absl::Status AddPolicies(std::vector<Policy> others);
  absl::StatusOr<DecisionStudy> Run(std::size_t bytes);

 private:
  struct Candidate {
    std::unique_ptr<DecisionReplayer> replayer;
    std::size_t figures;  // into study_.others
  };

  absl::StatusOr<std::unique_ptr<DecisionReplayer>> MakeReplayer(const Policy& policy) {
    // The replayer's scheduler writes expectations only when a decision is carried out, which none is here.
    return DecisionReplayer::Create(log_, policy.config, MakeRegistry(&expectation_), {}, MakeCodecs());
  }
  void Verify();
  void Count(const absl::Status& status, const Decision& decision, DecidedFigures& figures) const;
  std::uint64_t MatchedAt(sched::Position target) const;
  void Tell(const Candidate& candidate, DecidedFigures& figures) const;
  std::string Target(const absl::Status& status, const Decision& decision) const;
  void NotePool();

  DecisionLogReader& log_;
  const StudyOptions& options_;
  std::optional<std::size_t> matches_;
  Expectation expectation_;
  std::unique_ptr<DecisionReplayer> recorded_;
  std::vector<Candidate> candidates_;
  DecisionRecord record_;
  std::uint64_t seen_pool_ = 0;
  DecisionStudy study_;
};

bool SameTarget(const absl::Status& a, const Decision& x, const absl::Status& b, const Decision& y) {
  if (a.ok() != b.ok()) return false;
  return !a.ok() || x.target() == y.target();
}

absl::Status Study::AddPolicies(std::vector<Policy> others) {
  if (absl::StatusOr<Policy> policy = MakePolicyFromText(log_.header().text); policy.ok()) {
    absl::StatusOr<std::unique_ptr<DecisionReplayer>> replayer = MakeReplayer(*policy);
    if (!replayer.ok()) return replayer.status();
    recorded_ = *std::move(replayer);
    study_.verified_by = policy->name;
    study_.recorded.description = policy->description;
  }
  for (Policy& policy : others) {
    absl::StatusOr<std::unique_ptr<DecisionReplayer>> replayer = MakeReplayer(policy);
    if (!replayer.ok()) return replayer.status();
    if (recorded_ == nullptr && (*replayer)->same_config()) {
      recorded_ = std::move(*MakeReplayer(policy));
      study_.verified_by = policy.name;
      study_.recorded.description = policy.description;
    }
    DecidedFigures figures;
    figures.policy = policy.name;
    figures.description = policy.description;
    figures.missing = (*replayer)->missing();
    study_.others.push_back(std::move(figures));
    candidates_.push_back({*std::move(replayer), study_.others.size() - 1});
  }
  return absl::OkStatus();
}

absl::StatusOr<DecisionStudy> Study::Run(std::size_t bytes) {
  study_.text = log_.header().text;
  study_.unrecorded = log_.header().unrecorded;
  study_.bytes = bytes;
  study_.has_matches = matches_.has_value();
  study_.recorded.policy = "recorded";
  while (true) {
    const absl::StatusOr<bool> more = log_.Next(record_);
    if (!more.ok()) return more.status();
    if (!*more) break;
    NotePool();
    ++study_.decisions;
    Verify();
    Count(record_.status, record_.decision, study_.recorded);
    for (const Candidate& candidate : candidates_) {
      DecisionReplayer& replayer = *candidate.replayer;
      DecidedFigures& figures = study_.others[candidate.figures];
      replayer.Replay(record_);
      Count(replayer.status(), replayer.decision(), figures);
      const DecisionReplayer& first = *candidates_.front().replayer;
      figures.differs_first +=
          !SameTarget(replayer.status(), replayer.decision(), first.status(), first.decision());
      if (SameTarget(replayer.status(), replayer.decision(), record_.status, record_.decision)) continue;
      ++figures.changed;
      if (figures.examples.size() < options_.examples) Tell(candidate, figures);
    }
    if (options_.progress) options_.progress(log_.bytes_read());
  }
  for (const Candidate& candidate : candidates_) {
    study_.others[candidate.figures].from_record = candidate.replayer->from_record();
    study_.others[candidate.figures].without_memory = candidate.replayer->without_memory();
  }
  if (recorded_ != nullptr) study_.recorded.from_record = recorded_->from_record();
  study_.endpoints = study_.recorded.load.size();
  return std::move(study_);
}

void Study::Verify() {
  if (recorded_ == nullptr) return;
  recorded_->Replay(record_);
  const std::string difference = recorded_->Difference(record_);
  if (difference.empty()) {
    ++study_.equal;
  } else if (study_.difference.empty()) {
    study_.difference = absl::StrCat("decision ", record_.index, " (", record_.id, "): ", difference);
  }
}

void Study::Count(const absl::Status& status, const Decision& decision, DecidedFigures& figures) const {
  if (!status.ok()) {
    ++figures.failed;
    return;
  }
  const std::size_t prompt = record_.request().token_count();
  figures.prompt_tokens += prompt;
  figures.matched_tokens += MatchedAt(decision.target());
  figures.load[log_.pool()[decision.target()].id()] += prompt + record_.max_output_tokens.value_or(0);
}

// What a pool may reuse leaves at least the last token to be computed.
std::uint64_t Study::MatchedAt(sched::Position target) const {
  if (!matches_) return 0;
  const std::optional<PrefixMatch> match = record_.Get<PrefixMatch>(*matches_, target);
  if (!match || match->block_size == 0) return 0;
  const std::uint64_t prompt = std::max<std::uint64_t>(record_.request().token_count(), 1);
  const std::uint64_t usable = (prompt - 1) / match->block_size * match->block_size;
  return std::min(std::uint64_t{match->cached_blocks} * match->block_size, usable);
}

std::string Study::Target(const absl::Status& status, const Decision& decision) const {
  if (!status.ok()) return std::string(status.message());
  std::string text = log_.pool()[decision.target()].id();
  if (matches_) absl::StrAppend(&text, " (", WithCommas(MatchedAt(decision.target())), " tokens matched)");
  return text;
}

void Study::Tell(const Candidate& candidate, DecidedFigures& figures) const {
  const DecisionReplayer& replayer = *candidate.replayer;
  std::string text =
      absl::StrFormat("decision %d, %s at %.3f s, %s tokens: recorded %s, %s %s\n", record_.index, record_.id,
                      absl::ToDoubleSeconds(record_.now - absl::UnixEpoch()),
                      WithCommas(record_.request().token_count()), Target(record_.status, record_.decision),
                      figures.policy, Target(replayer.status(), replayer.decision()));
  if (options_.explain) {
    absl::StrAppend(&text, "recorded: ", record_.explanation.ToString(log_.pool()), figures.policy, ": ",
                    replayer.explanation().ToString(log_.pool()));
  }
  figures.examples.push_back(std::move(text));
}

// Endpoints without a request count for the mean.
void Study::NotePool() {
  if (seen_pool_ == log_.pool_generation()) return;
  seen_pool_ = log_.pool_generation();
  for (const sched::Endpoint& endpoint : log_.pool().endpoints()) {
    study_.recorded.load.try_emplace(endpoint.id(), 0);
    for (DecidedFigures& figures : study_.others) figures.load.try_emplace(endpoint.id(), 0);
  }
}

}  // namespace

double DecidedFigures::imbalance() const {
  std::vector<double> tokens;
  for (const auto& [id, sum] : load) tokens.push_back(static_cast<double>(sum));
  return MaxOverMean(tokens);
}

absl::StatusOr<DecisionStudy> StudyDecisions(std::span<const std::byte> log, std::vector<Policy> others,
                                             const StudyOptions& options) {
  absl::StatusOr<std::unique_ptr<DecisionLogReader>> reader = DecisionLogReader::Open(log);
  if (!reader.ok()) return reader.status();
  Study study(**reader, options);
  if (absl::Status s = study.AddPolicies(std::move(others)); !s.ok()) return s;
  return study.Run(log.size());
}

}  // namespace llmd::replay
