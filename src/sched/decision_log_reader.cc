// Reads decision logs; decision_log_writer.cc writes every field in the same order. Each number is checked
// before it is used, and nothing is allocated that the bytes at hand do not pay for, but columns and scores
// of the endpoints that are known already.
#include <algorithm>
#include <deque>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/sched/decision_record.h"
#include "src/sched/profile.h"
#include "src/sched/record_format.h"

namespace llmd::sched {

struct DecisionLogReader::Impl {
  Impl(std::span<const std::byte> l, const ReadOptions& o) : log(l), options(o) {}

  absl::Status Error(std::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("decision log: byte ", frame_at, ": ", ToAbsl(what)));
  }
  absl::Status Failed(const ByteSource& source) const {
    return Error(absl::StrCat(source.failed(), " is cut short or out of range"));
  }
  absl::Status NextFrame(std::uint8_t& kind, ByteSource& payload);
  absl::Status Header();
  absl::Status Endpoints(ByteSource in);
  absl::Status Decision(ByteSource in, DecisionRecord& record);

  void Request(ByteSource& in, std::uint8_t flags, DecisionRecord& record);
  void Candidates(ByteSource& in, std::uint8_t flags, DecisionRecord& record) const;
  void States(ByteSource& in, absl::Time base);
  void State(ByteSource& in, absl::Time base, EndpointHandle handle);
  void Data(ByteSource& in, DecisionRecord& record) const;
  void Outcome(ByteSource& in, DecisionRecord& record);
  void Profile(ByteSource& in, std::size_t index, DecisionRecord& record);
  void Drops(ByteSource& in, const DecisionRecord& record, Explanation::Profile& profile);
  void Scores(ByteSource& in, std::span<const double> before, std::span<double> raw) const;
  std::string_view Text(ByteSource& in, const char* field);
  // At most the pool's size - 1.
  Position ReadPosition(ByteSource& in, const char* field) const {
    if (pool.size() == 0) in.Fail(field);
    return static_cast<Position>(in.Below(field, std::max<std::size_t>(pool.size(), 1) - 1));
  }

  std::span<const std::byte> log;
  ReadOptions options;
  DecisionLogHeader header;
  std::size_t at = 0;        // of the next frame
  std::size_t frame_at = 0;  // of the frame at hand
  bool failed = false;
  std::uint64_t checksum = 0;
  std::uint64_t next_index = 0;
  absl::Time last_now = absl::UnixEpoch();
  std::string last_model, last_fairness;
  std::deque<std::string> texts;  // addresses stay
  EndpointPool pool;
  std::uint64_t pool_generation = 0;
  std::vector<record::LastScores> last_scores;
  std::vector<char> left;  // by position: a candidate that no filter has dropped
};

absl::Status DecisionLogReader::Impl::NextFrame(std::uint8_t& kind, ByteSource& payload) {
  frame_at = at;
  const std::span<const std::byte> rest = log.subspan(at);
  if (rest.size() < record::kFrameOverhead) return Error("frame is cut short");
  ByteSource source(rest);
  const std::size_t length = source.Fixed32("length");
  if (length > record::kMaxFrame) {
    return Error(absl::StrCat("length is ", length, ", expected at most ", record::kMaxFrame));
  }
  if (rest.size() - record::kFrameOverhead < length) return Error("frame is cut short");
  const std::span<const std::byte> body = rest.subspan(4, length + 1);
  ByteSource tail(rest.subspan(5 + length, 8));
  const std::uint64_t expected = record::FrameChecksum(body, checksum);
  if (tail.Fixed64("checksum") != expected) {
    return Error("checksum differs: the frame was changed, or one before it is missing");
  }
  checksum = expected;
  kind = static_cast<std::uint8_t>(body.front());
  payload = ByteSource(body.subspan(1));
  at += record::kFrameOverhead + length;
  return absl::OkStatus();
}

absl::Status DecisionLogReader::Impl::Header() {
  if (log.size() < record::kMagic.size() ||
      !std::equal(record::kMagic.begin(), record::kMagic.end() - 1, log.begin(),
                  [](char a, std::byte b) { return std::byte(a) == b; })) {
    return Error("no decision log: magic differs");
  }
  const auto version = static_cast<int>(log[record::kMagic.size() - 1]);
  if (version != record::kMagic.back()) {
    return Error(absl::StrCat("version is ", version, ", expected ", int{record::kMagic.back()}));
  }
  at = record::kMagic.size();
  std::uint8_t kind = 0;
  ByteSource in;
  if (absl::Status s = NextFrame(kind, in); !s.ok()) return s;
  if (kind != record::kHeaderFrame) return Error("the first frame is no header");
  in.Text("text", header.text);
  header.config_digest = in.Fixed64("config digest");
  header.plugins.resize(in.Count("plugins", 10));
  for (DecisionLogHeader::Plugin& plugin : header.plugins) {
    in.Text("plugin name", plugin.name);
    in.Text("plugin type", plugin.type);
    plugin.digest = in.Fixed64("plugin digest");
  }
  header.profiles.resize(static_cast<std::size_t>(in.Below("profiles", record::kMaxProfiles)));
  std::size_t scorers = 0;
  for (DecisionLogHeader::Profile& profile : header.profiles) {
    in.Text("profile name", profile.name);
    profile.scorers.resize(static_cast<std::size_t>(in.Below("scorers", record::kMaxScorers - scorers)));
    scorers += profile.scorers.size();
    for (DecisionLogHeader::Scorer& scorer : profile.scorers) {
      in.Text("scorer name", scorer.name);
      scorer.weight = in.Double("scorer weight");
      scorer.remembers = in.U8("scorer memory") != 0;
    }
  }
  header.data.resize(static_cast<std::size_t>(in.Below("data", record::kMaxData)));
  for (DecisionLogHeader::Datum& datum : header.data) {
    in.Text("data type", datum.data_type);
    in.Text("data producer", datum.producer);
    datum.num_fields = static_cast<std::size_t>(in.Below("data fields", FieldCoder::kMaxFields));
    datum.doubles = static_cast<std::uint32_t>(in.Below("data fields", (1u << FieldCoder::kMaxFields) - 1));
  }
  header.unrecorded.resize(in.Count("unrecorded", 1));
  for (std::string& name : header.unrecorded) in.Text("unrecorded", name);
  if (!in.ok()) return Failed(in);
  if (in.left() > 0) return Error("bytes behind the header's last field");
  last_scores.resize(header.profiles.size());
  return absl::OkStatus();
}

absl::Status DecisionLogReader::Impl::Endpoints(ByteSource in) {
  EndpointPool next;
  const std::size_t size = in.Count("endpoints", 1);
  if (size > options.max_endpoints) {
    return Error(absl::StrCat("endpoints is ", size, ", expected at most ", options.max_endpoints));
  }
  std::vector<char> used(pool.size(), 0);
  for (std::size_t i = 0; i < size && in.ok(); ++i) {
    const auto old = static_cast<std::size_t>(in.Below("endpoint", pool.size()));
    EndpointMetadata metadata;
    if (old > 0) {
      if (used[old - 1]++ != 0) return Error("endpoint is named twice");
      metadata = pool[static_cast<Position>(old - 1)].metadata();
    } else {
      in.Text("endpoint name", metadata.name);
      in.Text("endpoint namespace", metadata.pod_namespace);
      in.Text("endpoint address", metadata.address);
      metadata.port = static_cast<std::uint16_t>(in.Below("endpoint port", 65535));
      in.Text("endpoint node address", metadata.node_address);
      metadata.rank = static_cast<std::uint32_t>(in.Below("endpoint rank", ~std::uint32_t{0}));
      const std::size_t labels = in.Count("endpoint labels", 2);
      for (std::size_t l = 0; l < labels && in.ok(); ++l) {
        std::string label(in.Text("endpoint label"));
        metadata.labels[std::move(label)] = in.Text("endpoint label");
      }
      if (!in.ok()) break;
    }
    const absl::StatusOr<EndpointHandle> handle = next.Add(std::move(metadata));
    if (!handle.ok()) return Error(std::string(handle.status().message()));
    if (old > 0) {
      const Endpoint& from = pool[static_cast<Position>(old - 1)];
      *next.mutable_metrics(*handle) = from.metrics;
      for (const Attribute& a : from.attributes) next.SetAttribute(*handle, a.name, a.sample);
    }
  }
  if (!in.ok()) return Failed(in);
  if (in.left() > 0) return Error("bytes behind the last endpoint");
  pool = std::move(next);
  ++pool_generation;
  for (record::LastScores& last : last_scores) last.survivors.clear();
  return absl::OkStatus();
}

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

absl::Status DecisionLogReader::Impl::Decision(ByteSource in, DecisionRecord& record) {
  const std::uint8_t flags = in.U8("flags");
  record.now = in.Time("now", last_now);
  const bool finite = record.now != absl::InfinitePast() && record.now != absl::InfiniteFuture();
  const absl::Time base = finite ? record.now : absl::UnixEpoch();
  last_now = base;
  record.seed = in.Fixed64("seed");
  Request(in, flags, record);
  Candidates(in, flags, record);
  if (flags & record::kSampledTogether) {
    const absl::Time sampled = in.Time("sample time", base);
    for (const Endpoint& endpoint : pool.endpoints()) {
      Metrics& metrics = *pool.mutable_metrics(endpoint.handle);
      metrics.waiting_requests.at = sampled;
      metrics.running_requests.at = sampled;
      metrics.kv_cache_usage.at = sampled;
    }
  }
  States(in, base);
  const std::span<const std::byte> before = in.rest();
  Data(in, record);
  if (!in.ok()) return Failed(in);
  const std::span<const std::byte> data = before.first(before.size() - in.left());
  record.inputs_digest = in.Fixed64("inputs digest");
  Outcome(in, record);
  if (!in.ok()) return Failed(in);
  if (in.left() > 0) return Error("bytes behind the last field");
  record.MakeRequest();

  WordDigest digest;
  digest.Add(record.now);
  digest.Add(record.seed);
  digest.Add(record.prompt_digest);
  record::AddRequest(
      record.request(), [](std::string_view) { return true; }, digest);
  for (const Position candidate : record.candidates) digest.Add(std::uint64_t{candidate});
  record::AddEndpoints(pool, digest);
  digest.Add(std::string_view(reinterpret_cast<const char*>(data.data()), data.size()));
  if (options.check_digests && digest.value() != record.inputs_digest)
    return Error("inputs digest differs from the inputs");
  record.index = next_index++;
  return absl::OkStatus();
}

void DecisionRecord::MakeRequest() {
  header_views_.clear();
  for (const auto& [name, value] : headers) header_views_.push_back({name, value});
  prompt_views_.clear();
  item_views_.resize(prompts.size());
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    item_views_[p].clear();
    for (std::size_t i = 0; i < prompts[p].items.size(); ++i) {
      item_views_[p].push_back({.modality = prompts[p].items[i].first,
                                .hash = prompts[p].items[i].second,
                                .offset = prompts[p].places[i].first,
                                .length = prompts[p].places[i].second});
    }
    prompt_views_.push_back({.token_count = prompts[p].token_count, .items = item_views_[p]});
  }
  request_ = {.id = id,
              .model = model,
              .prompts = prompt_views_,
              .headers = header_views_,
              .priority = priority,
              .fairness_id = fairness_id,
              .size_bytes = size_bytes,
              .max_output_tokens = max_output_tokens};
}

const FieldCoder::Words& RecordedDatum::at(std::uint32_t element) const {
  const auto it = std::lower_bound(exceptions.begin(), exceptions.end(), element,
                                   [](const Exception& e, std::uint32_t i) { return e.element < i; });
  return it != exceptions.end() && it->element == element ? it->words : common;
}

DecisionLogReader::DecisionLogReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DecisionLogReader::~DecisionLogReader() = default;

absl::StatusOr<std::unique_ptr<DecisionLogReader>> DecisionLogReader::Open(std::span<const std::byte> log,
                                                                           const ReadOptions& options) {
  auto impl = std::make_unique<Impl>(log, options);
  if (absl::Status s = impl->Header(); !s.ok()) return s;
  return std::unique_ptr<DecisionLogReader>(new DecisionLogReader(std::move(impl)));
}

const DecisionLogHeader& DecisionLogReader::header() const { return impl_->header; }
const EndpointPool& DecisionLogReader::pool() const { return impl_->pool; }
std::uint64_t DecisionLogReader::pool_generation() const { return impl_->pool_generation; }
std::size_t DecisionLogReader::bytes_read() const { return impl_->at; }

absl::StatusOr<bool> DecisionLogReader::Next(DecisionRecord& record) {
  Impl& impl = *impl_;
  if (impl.failed) return absl::FailedPreconditionError("decision log: read on after an error");
  while (impl.at < impl.log.size()) {
    std::uint8_t kind = 0;
    ByteSource payload;
    absl::Status status = impl.NextFrame(kind, payload);
    if (status.ok()) {
      switch (kind) {
        case record::kEndpointsFrame:
          status = impl.Endpoints(payload);
          break;
        case record::kDecisionFrame:
          status = impl.Decision(payload, record);
          break;
        default:
          status = impl.Error(absl::StrCat("frame kind is ", int{kind}, ", expected 2 or 3"));
      }
    }
    if (!status.ok()) {
      impl.failed = true;
      return status;
    }
    if (kind == record::kDecisionFrame) return true;
  }
  return false;
}

}  // namespace llmd::sched
