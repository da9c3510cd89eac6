// Decision logs: header, frames and the order of a record's parts. decision_log_reader.cc reads the same.
#include "src/sched/decision_log_writer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::sched {

void DecisionLogWriter::Impl::FindSlots() {
  for (std::uint32_t i = 0; i < scheduler.layout.entries().size(); ++i) {
    const DataLayout::Entry& entry = scheduler.layout.entries()[i];
    const bool produced = std::any_of(scheduler.producers.begin(), scheduler.producers.end(),
                                      [&](const auto& p) { return p.name == entry.producer; });
    if (!produced) continue;  // nobody publishes it, or a profile handler does, from what is on record
    const DataCodec* codec = options.codecs.Find(entry.data_type, *entry.type);
    if (codec == nullptr) {
      unrecorded.push_back(absl::StrCat(entry.data_type, "/", entry.producer));
      continue;
    }
    Slot slot{i, *codec, nullptr};
    if (entry.data_type == InFlightLoad::kDataType) {
      slot.table = scheduler.states->GetOrMake<InFlightTable>(
          entry.producer, [] { return std::make_shared<InFlightTable>(); });
    }
    slots.push_back(std::move(slot));
  }
}

void DecisionLogWriter::Impl::Header(std::vector<std::byte>& out) {
  const std::size_t start = BeginFrame(record::kHeaderFrame, out);
  ByteSink sink(out);
  sink.Text(options.text);
  sink.Fixed64(ConfigDigest(scheduler.config));
  sink.Varint(scheduler.config.plugins.size());
  for (const PluginSpec& spec : scheduler.config.plugins) {
    sink.Text(spec.name);
    sink.Text(spec.type);
    sink.Fixed64(PluginDigest(spec));
  }
  sink.Varint(scheduler.profiles.size());
  for (const sched::Profile& profile : scheduler.profiles) {
    sink.Text(profile.name());
    sink.Varint(profile.scorers().size());
    for (const sched::Profile::WeightedScorer& scorer : profile.scorers()) {
      sink.Text(scorer.name);
      sink.Double(scorer.weight);
      sink.U8(scorer.remembers ? 1 : 0);
    }
  }
  sink.Varint(slots.size());
  for (const Slot& slot : slots) {
    const DataLayout::Entry& entry = scheduler.layout.entries()[slot.index];
    sink.Text(entry.data_type);
    sink.Text(entry.producer);
    sink.Varint(slot.codec.num_fields);
    sink.Varint(slot.codec.doubles);
  }
  sink.Varint(unrecorded.size());
  for (const std::string& name : unrecorded) sink.Text(name);
  EndFrame(start, out);
}

bool DecisionLogWriter::Impl::SamePool(const EndpointPool& pool) const {
  return pool.size() == identities.size() &&
         std::equal(identities.begin(), identities.end(), pool.endpoints().begin(),
                    [](const auto& identity, const Endpoint& e) { return identity == e.identity; });
}

// Each position of the new pool is one of the old pool, or a new endpoint.
void DecisionLogWriter::Impl::Endpoints(const EndpointPool& pool, std::vector<std::byte>& out) {
  absl::flat_hash_map<const EndpointIdentity*, std::uint32_t> old;
  for (std::uint32_t i = 0; i < identities.size(); ++i) old[identities[i].get()] = i;
  std::vector<std::shared_ptr<const EndpointIdentity>> new_identities;
  std::vector<Known> new_known;

  const std::size_t start = BeginFrame(record::kEndpointsFrame, out);
  ByteSink sink(out);
  sink.Varint(pool.size());
  for (const Endpoint& endpoint : pool.endpoints()) {
    new_identities.push_back(endpoint.identity);
    const auto it = old.find(endpoint.identity.get());
    if (it != old.end()) {
      sink.Varint(it->second + std::uint64_t{1});
      new_known.push_back(known[it->second]);
      continue;
    }
    new_known.emplace_back();
    const EndpointMetadata& metadata = endpoint.metadata();
    sink.Varint(0);
    sink.Text(metadata.name);
    sink.Text(metadata.pod_namespace);
    sink.Text(metadata.address);
    sink.Varint(metadata.port);
    sink.Text(metadata.node_address);
    sink.Varint(metadata.rank);
    sink.Varint(metadata.labels.size());
    for (const auto& [label, value] : metadata.labels) {
      sink.Text(label);
      sink.Text(value);
    }
  }
  EndFrame(start, out);
  identities = std::move(new_identities);
  known = std::move(new_known);
  for (record::LastScores& last : last_scores) last.survivors.clear();
}

DecisionLogWriter::DecisionLogWriter(const Scheduler& scheduler, RecordOptions options)
    : impl_(std::make_unique<Impl>(*scheduler.impl_, std::move(options))) {
  impl_->FindSlots();
}
DecisionLogWriter::~DecisionLogWriter() = default;
DecisionLogWriter::DecisionLogWriter(DecisionLogWriter&&) noexcept = default;
DecisionLogWriter& DecisionLogWriter::operator=(DecisionLogWriter&&) noexcept = default;

const std::vector<std::string>& DecisionLogWriter::unrecorded() const { return impl_->unrecorded; }

void DecisionLogWriter::Begin(std::vector<std::byte>& out) {
  Impl& impl = *impl_;
  impl.begun = true;
  impl.full = false;
  impl.checksum = 0;
  impl.last_now = absl::UnixEpoch();
  impl.last_model.clear();
  impl.last_fairness.clear();
  impl.texts.clear();
  impl.identities.clear();
  impl.known.clear();
  impl.last_scores.assign(impl.scheduler.profiles.size(), {});
  for (const char c : record::kMagic) out.push_back(std::byte(c));
  impl.Header(out);
}

absl::Status DecisionLogWriter::Impl::Check(const ScheduleInput& input, std::span<const Position> candidates,
                                            const sched::Decision& decision,
                                            const Explanation& explanation) const {
  if (!begun) return absl::FailedPreconditionError("decision log: Append() without Begin()");
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i] >= input.pool.size() || (i > 0 && candidates[i] <= candidates[i - 1])) {
      return absl::InvalidArgumentError(absl::StrCat("decision log: candidates[", i, "] is ", candidates[i],
                                                     ", expected ascending positions below ",
                                                     input.pool.size()));
    }
  }
  if (explanation.profiles.size() != scheduler.profiles.size() ||
      decision.profiles.size() != explanation.profiles.size()) {
    return absl::InvalidArgumentError("decision log: decision and explanation are not this scheduler's");
  }
  return absl::OkStatus();
}

void DecisionLogWriter::Impl::Inputs(const ScheduleInput& input, std::span<const Position> candidates,
                                     const DataColumns& columns, ByteSink& sink) {
  WordDigest digest;
  const std::optional<absl::Time> sampled = NewCommonTime(input.pool);
  std::uint8_t flags = 0;
  if (candidates.size() == input.pool.size()) flags |= record::kAllCandidates;
  if (input.request.max_output_tokens) flags |= record::kHasMaxOutput;
  if (sampled) flags |= record::kSampledTogether;
  sink.U8(flags);
  sink.Time(input.now, last_now);
  const bool finite = input.now != absl::InfinitePast() && input.now != absl::InfiniteFuture();
  const absl::Time base = finite ? input.now : absl::UnixEpoch();
  last_now = base;
  sink.Fixed64(input.seed);
  digest.Add(input.now);
  digest.Add(input.seed);
  Request(input, sink, digest);
  if (!(flags & record::kAllCandidates)) {
    sink.Varint(candidates.size());
    Position last = 0;
    for (const Position candidate : candidates) {
      sink.Varint(candidate - last);
      last = candidate;
    }
  }
  for (const Position candidate : candidates) digest.Add(std::uint64_t{candidate});
  if (sampled) {
    sink.Time(*sampled, base);
    for (Known& endpoint : known) {
      endpoint.metrics.waiting_requests.at = *sampled;
      endpoint.metrics.running_requests.at = *sampled;
      endpoint.metrics.kv_cache_usage.at = *sampled;
    }
  }
  States(input.pool, base, sink);
  record::AddEndpoints(input.pool, digest);
  const std::size_t data_at = sink.bytes().size();
  Data(input.pool, columns, sink);
  const std::span<const std::byte> data = std::span(sink.bytes()).subspan(data_at);
  digest.Add(std::string_view(reinterpret_cast<const char*>(data.data()), data.size()));
  sink.Fixed64(digest.value());
}

void DecisionLogWriter::Impl::Outcome(const sched::Decision& decision, const Explanation& explanation,
                                      const absl::Status& status, ByteSink& sink) {
  sink.Varint(static_cast<std::uint64_t>(status.code()));
  if (!status.ok()) {
    sink.Text({status.message().data(), status.message().size()});
    sink.U8(static_cast<std::uint8_t>(GetDroppedReason(status)));
  }
  sink.Text(explanation.refused_by);
  sink.Varint(decision.primary);
  for (std::size_t i = 0; i < decision.profiles.size(); ++i) {
    Profile(decision.profiles[i], explanation.profiles[i], last_scores[i], sink);
  }
}

absl::Status DecisionLogWriter::Append(const ScheduleInput& input, const Workspace& workspace,
                                       const Decision& decision, const Explanation& explanation,
                                       const absl::Status& status, std::vector<std::byte>& out) {
  Impl& impl = *impl_;
  const std::vector<Position>& candidates = workspace.state_->candidates;
  if (absl::Status s = impl.Check(input, candidates, decision, explanation); !s.ok()) return s;
  const std::size_t before = out.size();
  if (!impl.SamePool(input.pool)) impl.Endpoints(input.pool, out);
  const std::size_t start = impl.BeginFrame(record::kDecisionFrame, out);
  ByteSink sink(out);
  impl.Inputs(input, candidates, workspace.state_->columns, sink);
  impl.Outcome(decision, explanation, status, sink);
  if (impl.full || out.size() - start > record::kMaxFrame) {
    out.resize(before);
    impl.begun = false;
    return absl::ResourceExhaustedError(absl::StrCat("decision log: more than ", record::kMaxTexts,
                                                     " texts or ", record::kMaxFrame,
                                                     " bytes in a record; begin a new log"));
  }
  impl.EndFrame(start, out);
  return absl::OkStatus();
}

}  // namespace llmd::sched
