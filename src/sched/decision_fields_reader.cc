// The fields of a decision's record; decision_fields_writer.cc writes each in the same order. Each number is
// checked before it is used, and nothing is allocated that the bytes at hand do not pay for, but columns and
// scores of the endpoints that are known already.
#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "src/sched/decision_log_reader.h"
#include "src/sched/profile.h"

namespace llmd::sched {

void DecisionLogReader::Impl::Request(ByteSource& in, std::uint8_t flags, DecisionRecord& record) {
  in.Text("request id", record.id);
  in.Repeated("model", last_model);
  in.Repeated("fairness id", last_fairness);
  record.model = last_model;
  record.fairness_id = last_fairness;
  record.priority = static_cast<std::int32_t>(in.Signed("priority"));
  record.size_bytes = static_cast<std::size_t>(in.Varint("size"));
  record.max_output_tokens.reset();
  if (flags & record::kHasMaxOutput) {
    record.max_output_tokens = static_cast<std::uint32_t>(in.Below("max output tokens", ~std::uint32_t{0}));
  }
  record.headers.resize(in.Count("headers", 2));
  for (auto& [name, value] : record.headers) {
    in.Text("header", name);
    in.Text("header", value);
  }
  record.prompts.resize(in.Count("prompts", 2));
  for (DecisionRecord::Prompt& prompt : record.prompts) {
    prompt.token_count = static_cast<std::size_t>(in.Varint("token count"));
    prompt.items.resize(in.Count("items", 4));
    prompt.places.resize(prompt.items.size());
    for (std::size_t i = 0; i < prompt.items.size(); ++i) {
      in.Text("item modality", prompt.items[i].first);
      in.Text("item hash", prompt.items[i].second);
      prompt.places[i].first = static_cast<std::size_t>(in.Varint("item offset"));
      prompt.places[i].second = static_cast<std::size_t>(in.Varint("item length"));
    }
  }
  record.prompt_digest = in.Fixed64("prompt digest");
}

void DecisionLogReader::Impl::Candidates(ByteSource& in, std::uint8_t flags, DecisionRecord& record) const {
  if (flags & record::kAllCandidates) {
    record.candidates.resize(pool.size());
    std::iota(record.candidates.begin(), record.candidates.end(), Position{0});
    return;
  }
  record.candidates.resize(in.Count("candidates", 1));
  std::uint64_t last = 0;
  for (std::size_t i = 0; i < record.candidates.size() && in.ok(); ++i) {
    const std::uint64_t gap = in.Varint("candidate");
    last += gap;
    if ((i > 0 && gap == 0) || gap > pool.size() || last >= pool.size()) return in.Fail("candidate");
    record.candidates[i] = static_cast<Position>(last);
  }
}

void DecisionLogReader::Impl::States(ByteSource& in, absl::Time base) {
  std::uint64_t position = 0;
  while (in.ok()) {
    const std::uint64_t gap = in.Varint("endpoint state");
    if (gap == 0) return;
    if (gap > pool.size() || (position += gap - 1) >= pool.size()) return in.Fail("endpoint state");
    State(in, base, pool[static_cast<Position>(position)].handle);
  }
}

void DecisionLogReader::Impl::State(ByteSource& in, absl::Time base, EndpointHandle handle) {
  Metrics& metrics = *pool.mutable_metrics(handle);
  const std::uint8_t flags = in.U8("endpoint flags");
  if (flags & record::kWaiting) metrics.waiting_requests.value = in.Signed("waiting requests");
  if (flags & record::kRunning) metrics.running_requests.value = in.Signed("running requests");
  if (flags & record::kCacheUsage) metrics.kv_cache_usage.value = in.Double("cache usage");
  if (flags & record::kTimes) {
    metrics.waiting_requests.at = in.Time("sample time", base);
    metrics.running_requests.at = in.Time("sample time", base);
    metrics.kv_cache_usage.at = in.Time("sample time", base);
  }
  if (flags & record::kAdapters) {
    metrics.adapters.at = in.Time("adapters time", base);
    metrics.adapters.value = nullptr;
    if (in.U8("adapters") != 0) {
      auto state = std::make_shared<AdapterState>();
      state->max_active = in.Signed("adapters");
      for (auto* names : {&state->active, &state->waiting}) {
        names->resize(in.Count("adapters", 1));
        for (std::string& name : *names) in.Text("adapter", name);
      }
      metrics.adapters.value = std::move(state);
    }
  }
  if (flags & record::kCacheShape) {
    metrics.cache_block_size = static_cast<std::uint32_t>(in.Below("cache block size", ~std::uint32_t{0}));
    metrics.cache_num_blocks = in.Varint("cache blocks");
  }
  if (flags & record::kAttributes) {
    // All of them, in order; names never go away.
    const std::size_t count = in.Count("attributes", 10);
    for (std::size_t i = 0; i < count && in.ok(); ++i) {
      const std::string_view name = Text(in, "attribute name");
      Sample<double> sample;
      sample.value = in.Double("attribute");
      sample.at = in.Time("attribute time", base);
      pool.SetAttribute(handle, name, sample);
    }
  }
}

void DecisionLogReader::Impl::Data(ByteSource& in, DecisionRecord& record) const {
  record.data.resize(header.data.size());
  for (std::size_t d = 0; d < header.data.size() && in.ok(); ++d) {
    const DecisionLogHeader::Datum& kind = header.data[d];
    RecordedDatum& datum = record.data[d];
    const std::uint8_t state = in.U8("data");
    datum.on_record = state != 0;
    datum.published = state == 1;
    datum.exceptions.clear();
    datum.size = 0;
    if (state == 0) continue;
    // Of each endpoint, or of the request.
    datum.size = static_cast<std::size_t>(in.Below("data elements", std::max<std::size_t>(pool.size(), 1)));
    for (std::size_t f = 0; f < kind.num_fields; ++f) {
      datum.common[f] = kind.doubles >> f & 1u ? in.Fixed64("data field")
                                               : static_cast<std::uint64_t>(in.Signed("data field"));
    }
    std::uint64_t element = 0;
    while (in.ok()) {
      const std::uint64_t gap = in.Varint("data element");
      if (gap == 0) break;
      const bool first = datum.exceptions.empty();
      if (gap > datum.size || (!first && gap == 1)) return in.Fail("data element");
      element += gap - 1;
      if (element >= datum.size) return in.Fail("data element");
      RecordedDatum::Exception exception{static_cast<std::uint32_t>(element), datum.common};
      const std::uint64_t differing = in.Below("data fields", (std::uint64_t{1} << kind.num_fields) - 1);
      for (std::size_t f = 0; f < kind.num_fields; ++f) {
        if (!(differing >> f & 1u)) continue;
        if (kind.doubles >> f & 1u) {
          exception.words[f] = in.Fixed64("data field");
        } else {
          exception.words[f] += static_cast<std::uint64_t>(in.Signed("data field"));
        }
      }
      datum.exceptions.push_back(exception);
    }
  }
}

void DecisionLogReader::Impl::Drops(ByteSource& in, const DecisionRecord& record,
                                    Explanation::Profile& profile) {
  left.assign(pool.size(), 0);
  for (const Position candidate : record.candidates) left[candidate] = 1;
  while (in.ok()) {
    const std::size_t count = in.Count("drops", 1);
    if (count == 0) return;
    const std::string_view filter = Text(in, "filter");
    const std::string_view reason = Text(in, "drop reason");
    std::uint64_t position = 0;
    for (std::size_t i = 0; i < count && in.ok(); ++i) {
      const std::uint64_t gap = in.Varint("drop");
      position += gap;
      if (gap > pool.size() || position >= pool.size() || left[position] == 0) return in.Fail("drop");
      left[position] = 0;
      profile.drops.push_back({static_cast<Position>(position), filter, reason.data()});
    }
  }
}

void DecisionLogReader::Impl::Scores(ByteSource& in, std::span<const double> before,
                                     std::span<double> raw) const {
  for (std::size_t i = 0; i < raw.size();) {
    const std::uint64_t run = in.Varint("score run");
    const std::uint64_t length = run / 4;
    if (length == 0 || length > raw.size() - i) return in.Fail("score run");
    switch (run % 4) {
      case record::kLiteral:
        for (std::uint64_t k = 0; k < length && in.ok(); ++k) raw[i + k] = in.Double("score");
        break;
      case record::kRepeat: {
        const double value = in.Double("score");
        std::fill_n(raw.begin() + static_cast<std::ptrdiff_t>(i), length, value);
        break;
      }
      case record::kAsBefore:
        if (before.size() != raw.size()) return in.Fail("score run");
        std::copy_n(before.begin() + static_cast<std::ptrdiff_t>(i), length,
                    raw.begin() + static_cast<std::ptrdiff_t>(i));
        break;
      default:
        return in.Fail("score run");
    }
    i += static_cast<std::size_t>(length);
  }
}

void DecisionLogReader::Impl::Profile(ByteSource& in, std::size_t index, DecisionRecord& record) {
  const DecisionLogHeader::Profile& spec = header.profiles[index];
  Explanation::Profile& profile = record.explanation.profiles[index];
  ProfileResult& result = record.decision.profiles[index];
  profile.Clear();
  profile.name = spec.name;
  result.scored.clear();
  result.targets.clear();
  result.state = static_cast<ProfileState>(in.Below("profile state", static_cast<int>(ProfileState::kDone)));
  profile.state = result.state;
  Drops(in, record, profile);
  const bool scored = in.U8("profile") != 0;
  if (!in.ok()) return;
  if (scored) {
    record::LastScores& last = last_scores[index];
    for (const Position candidate : record.candidates) {
      if (left[candidate] != 0) profile.totals.push_back({candidate, 0});
    }
    const std::size_t n = profile.totals.size();
    if (n == 0) return in.Fail("profile");
    const bool comparable =
        std::equal(last.survivors.begin(), last.survivors.end(), profile.totals.begin(), profile.totals.end(),
                   [](Position position, const ScoredEndpoint& total) { return position == total.position; });
    for (std::size_t s = 0; s < spec.scorers.size() && in.ok(); ++s) {
      profile.scorers.push_back({spec.scorers[s].name, spec.scorers[s].weight});
      profile.raw.resize((s + 1) * n);
      const auto row = std::span(profile.raw).subspan(s * n, n);
      Scores(in, comparable ? std::span<const double>(last.raw).subspan(s * n, n) : std::span<const double>(),
             row);
      for (std::size_t e = 0; e < n; ++e) {
        profile.weighted.push_back(Clamp01(row[e]) * spec.scorers[s].weight);
        profile.totals[e].score += profile.weighted.back();
      }
    }
    const std::uint64_t digest = in.Fixed64("scores digest");
    if (options.check_digests && digest != record::ScoresDigest(profile)) return in.Fail("scores digest");
    profile.tie_seed = in.Fixed64("tie seed");
    profile.picked.resize(in.Count("picked", 1));
    for (Position& position : profile.picked) position = ReadPosition(in, "picked");
    last.survivors.clear();
    for (const ScoredEndpoint& total : profile.totals) last.survivors.push_back(total.position);
    last.raw = profile.raw;
    result.scored = profile.totals;
  }
  if (in.U8("targets") != 0) {
    result.targets = profile.picked;
  } else {
    result.targets.resize(in.Count("targets", 1));
    for (Position& position : result.targets) position = ReadPosition(in, "target");
  }
  if (result.state == ProfileState::kDone && result.targets.empty()) return in.Fail("targets");
  result.port = static_cast<std::uint16_t>(in.Below("port", 65535));
}

void DecisionLogReader::Impl::Outcome(ByteSource& in, DecisionRecord& record) {
  record.status = absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(in.Below("status", 16));
  if (code != absl::StatusCode::kOk) {
    record.status = absl::Status(code, ToAbsl(in.Text("status message")));
    const auto reason = static_cast<DroppedReason>(
        in.Below("dropped reason", static_cast<std::uint64_t>(DroppedReason::kEvictedPriority)));
    if (reason != DroppedReason::kNone) record.status = WithDroppedReason(std::move(record.status), reason);
  }
  record.explanation.refused_by = in.Text("refused by");
  record.explanation.seed = record.seed;
  record.explanation.candidates = record.candidates.size();
  const std::uint64_t primary = in.Varint("primary");
  if (primary > 0 && primary >= header.profiles.size()) in.Fail("primary");
  record.decision.primary = static_cast<std::uint32_t>(primary);
  record.explanation.primary = record.decision.primary;
  record.decision.profiles.resize(header.profiles.size());
  record.explanation.profiles.resize(header.profiles.size());
  for (std::size_t i = 0; i < header.profiles.size() && in.ok(); ++i) Profile(in, i, record);
  if (!in.ok() || code != absl::StatusCode::kOk) return;
  if (header.profiles.empty() || record.decision.primary_result().targets.empty()) in.Fail("targets");
}

// A text lives as long as the reader, and ends with a 0.
std::string_view DecisionLogReader::Impl::Text(ByteSource& in, const char* field) {
  const std::uint64_t number = in.Below(field, texts.size());
  if (in.ok() && number == texts.size()) {
    if (texts.size() == record::kMaxTexts) {
      in.Fail(field);
      return "";
    }
    texts.emplace_back(in.Text(field));
  }
  return in.ok() ? std::string_view(texts[static_cast<std::size_t>(number)]) : std::string_view("");
}

}  // namespace llmd::sched
