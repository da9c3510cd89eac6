#include "src/sched/profile.h"

namespace llmd::sched {

void Profile::Run(Context& context, std::span<const Position> candidates, const RecordedInputs* recorded,
                  ProfileBuffers& buffers, ProfileResult& result, Explanation::Profile* explanation) const {
  result.targets.clear();
  result.scored.clear();
  if (explanation != nullptr) explanation->Clear();
  buffers.survivors.assign(candidates.begin(), candidates.end());
  ApplyFilters(context, recorded, buffers, explanation);
  if (buffers.survivors.empty()) {
    result.state = ProfileState::kFailed;
    return;
  }

  result.scored.resize(buffers.survivors.size());
  for (std::size_t i = 0; i < buffers.survivors.size(); ++i) result.scored[i] = {buffers.survivors[i], 0};
  ApplyScorers(context, recorded, buffers, result.scored, explanation);

  buffers.order.assign(result.scored.begin(), result.scored.end());
  const std::uint64_t tie_seed = context.random.Next();
  const std::size_t picked = picker_->Pick(context, tie_seed, buffers.order);
  for (std::size_t i = 0; i < picked; ++i) result.targets.push_back(buffers.order[i].position);
  result.state = ProfileState::kDone;

  if (explanation != nullptr) {
    explanation->totals.assign(result.scored.begin(), result.scored.end());
    explanation->tie_seed = tie_seed;
    explanation->picked.assign(result.targets.begin(), result.targets.end());
  }
}

void Profile::ApplyFilters(Context& context, const RecordedInputs* recorded, ProfileBuffers& buffers,
                           Explanation::Profile* explanation) const {
  std::vector<Position>& survivors = buffers.survivors;
  for (const NamedFilter& filter : filters_) {
    if (survivors.empty()) return;
    buffers.dropped.assign(survivors.size(), nullptr);
    const bool known = recorded != nullptr && filter.remembers &&
                       recorded->Drops(name_, filter.name, survivors, buffers.dropped);
    if (!known) filter.filter->Apply(context, survivors, buffers.dropped);
    std::size_t kept = 0;
    for (std::size_t i = 0; i < survivors.size(); ++i) {
      if (buffers.dropped[i] == nullptr) {
        survivors[kept++] = survivors[i];
      } else if (explanation != nullptr) {
        explanation->drops.push_back({survivors[i], filter.name, buffers.dropped[i]});
      }
    }
    survivors.resize(kept);
  }
}

void Profile::ApplyScorers(Context& context, const RecordedInputs* recorded, ProfileBuffers& buffers,
                           std::span<ScoredEndpoint> totals, Explanation::Profile* explanation) const {
  std::vector<double>& scores = buffers.scores;
  for (const WeightedScorer& scorer : scorers_) {
    scores.assign(totals.size(), kNoScore);
    const bool known = recorded != nullptr && scorer.remembers &&
                       recorded->Scores(name_, scorer.name, buffers.survivors, scores);
    if (!known) scorer.scorer->Score(context, buffers.survivors, scores);
    if (explanation != nullptr) {
      explanation->scorers.push_back({scorer.name, scorer.weight});
      explanation->raw.insert(explanation->raw.end(), scores.begin(), scores.end());
    }
    for (std::size_t i = 0; i < totals.size(); ++i) {
      scores[i] = Clamp01(scores[i]) * scorer.weight;
      totals[i].score += scores[i];
    }
    if (explanation != nullptr) {
      explanation->weighted.insert(explanation->weighted.end(), scores.begin(), scores.end());
    }
  }
}

}  // namespace llmd::sched
