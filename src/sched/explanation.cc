#include "llmd/sched/explanation.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "llmd/base/strings.h"

namespace llmd::sched {
namespace {

std::string_view StateName(ProfileState state) {
  switch (state) {
    case ProfileState::kPending:
      return "not run";
    case ProfileState::kRequested:
      return "requested";
    case ProfileState::kSkipped:
      return "skipped";
    case ProfileState::kFailed:
      return "no endpoint left";
    case ProfileState::kDone:
      return "done";
  }
  return "";
}

std::string Rank(const Explanation::Profile& profile, Position position) {
  const auto it = std::find(profile.picked.begin(), profile.picked.end(), position);
  return it == profile.picked.end() ? "" : absl::StrCat("  <- ", it - profile.picked.begin() + 1);
}

void AppendScores(const EndpointPool& pool, const Explanation::Profile& profile, std::string& out) {
  std::size_t id_width = 8;
  for (const ScoredEndpoint& total : profile.totals) {
    id_width = std::max(id_width, pool[total.position].id().size());
  }
  std::vector<int> widths;
  absl::StrAppendFormat(&out, "  %-*s", static_cast<int>(id_width), "endpoint");
  for (const Explanation::ScorerUse& scorer : profile.scorers) {
    const std::string title = absl::StrCat(ToAbsl(scorer.name), " x", scorer.weight);
    widths.push_back(static_cast<int>(std::max<std::size_t>(title.size(), 17)));
    absl::StrAppendFormat(&out, "  %*s", widths.back(), title);
  }
  absl::StrAppendFormat(&out, "  %9s\n", "total");
  for (std::size_t e = 0; e < profile.totals.size(); ++e) {
    const ScoredEndpoint& total = profile.totals[e];
    absl::StrAppendFormat(&out, "  %-*s", static_cast<int>(id_width), pool[total.position].id());
    for (std::size_t s = 0; s < profile.scorers.size(); ++s) {
      const double raw = profile.raw_at(s, e);
      const std::string raw_text = std::isnan(raw) ? "-" : absl::StrFormat("%.4f", raw);
      const std::string cell = absl::StrFormat("%s -> %.4f", raw_text, profile.weighted_at(s, e));
      absl::StrAppendFormat(&out, "  %*s", widths[s], cell);
    }
    absl::StrAppendFormat(&out, "  %9.4f%s\n", total.score, Rank(profile, total.position));
  }
}

}  // namespace

void Explanation::Profile::Clear() {
  state = ProfileState::kPending;
  drops.clear();
  scorers.clear();
  totals.clear();
  raw.clear();
  weighted.clear();
  tie_seed = 0;
  picked.clear();
}

std::string Explanation::ToString(const EndpointPool& pool) const {
  std::string out = absl::StrFormat("seed %d, %d candidates\n", seed, candidates);
  if (!refused_by.empty()) absl::StrAppend(&out, "refused by ", ToAbsl(refused_by), "\n");
  for (std::size_t p = 0; p < profiles.size(); ++p) {
    const Profile& profile = profiles[p];
    const bool is_primary = p == primary && profile.state == ProfileState::kDone;
    absl::StrAppend(&out, "profile ", ToAbsl(profile.name), is_primary ? " (primary): " : ": ",
                    ToAbsl(StateName(profile.state)));
    if (profile.state == ProfileState::kDone) absl::StrAppend(&out, ", tie seed ", profile.tie_seed);
    absl::StrAppend(&out, "\n");
    for (const Drop& drop : profile.drops) {
      absl::StrAppend(&out, "  dropped ", pool[drop.position].id(), " by ", ToAbsl(drop.filter), ": ",
                      drop.reason, "\n");
    }
    if (!profile.totals.empty()) AppendScores(pool, profile, out);
  }
  return out;
}

}  // namespace llmd::sched
