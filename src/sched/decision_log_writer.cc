// Writes decision logs; decision_log_reader.cc reads every field in the same order.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/sched/decision_record.h"
#include "llmd/sched/in_flight.h"
#include "src/sched/record_format.h"
#include "src/sched/scheduler_impl.h"

namespace llmd::sched {

using record::SameBits;

struct DecisionLogWriter::Impl {
  // A datum that is recorded.
  struct Slot {
    std::uint32_t index;  // into the layout
    DataCodec codec;
    std::shared_ptr<InFlightTable> table;  // of in-flight loads, for when none are published
  };
  // What the reader knows of an endpoint.
  struct Known {
    Metrics metrics;
    std::vector<Attribute> attributes;
  };

  Impl(const Scheduler::Impl& s, RecordOptions o) : scheduler(s), options(std::move(o)) {}

  void FindSlots();
  void Header(std::vector<std::byte>& out);
  bool SamePool(const EndpointPool& pool) const;
  void Endpoints(const EndpointPool& pool, std::vector<std::byte>& out);
  void Request(const ScheduleInput& input, ByteSink& sink, WordDigest& digest);
  void States(const EndpointPool& pool, absl::Time base, ByteSink& sink);
  void State(const Endpoint& endpoint, absl::Time base, std::uint32_t& last, std::uint32_t position,
             ByteSink& sink);
  void Data(const EndpointPool& pool, const DataColumns& columns, ByteSink& sink);
  void Datum(const Slot& slot, std::size_t size, ByteSink& sink);
  void Profile(const ProfileResult& result, const Explanation::Profile& profile, record::LastScores& last,
               ByteSink& sink);
  void Drops(const Explanation::Profile& profile, ByteSink& sink);
  void Scores(std::span<const double> raw, std::span<const double> before, ByteSink& sink);
  void Intern(std::string_view text, ByteSink& sink);

  std::size_t BeginFrame(record::FrameKind kind, std::vector<std::byte>& out) const {
    const std::size_t start = out.size();
    out.resize(start + 4);
    out.push_back(std::byte{kind});
    return start;
  }
  void EndFrame(std::size_t start, std::vector<std::byte>& out) {
    const auto length = static_cast<std::uint32_t>(out.size() - start - 5);
    for (std::size_t i = 0; i < 4; ++i)
      out[start + i] = std::byte(static_cast<std::uint8_t>(length >> (8 * i)));
    checksum = record::FrameChecksum(std::span(out).subspan(start + 4), checksum);
    ByteSink(out).Fixed64(checksum);
  }

  const Scheduler::Impl& scheduler;
  RecordOptions options;
  std::vector<Slot> slots;
  std::vector<std::string> unrecorded;

  // Of the log under way.
  bool begun = false;
  bool full = false;
  std::uint64_t checksum = 0;
  absl::Time last_now;
  std::string last_model, last_fairness;
  absl::flat_hash_map<std::string, std::uint32_t> texts;
  std::vector<std::shared_ptr<const EndpointIdentity>> identities;  // by position
  std::vector<Known> known;
  std::vector<record::LastScores> last_scores;  // by profile

  std::vector<FieldCoder::Words> words;  // of one datum
};

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

void DecisionLogWriter::Impl::Request(const ScheduleInput& input, ByteSink& sink, WordDigest& digest) {
  const sched::Request& request = input.request;
  const std::uint64_t prompts = record::PromptDigest(request);
  sink.Text(request.id);
  sink.Repeated(request.model, last_model);
  sink.Repeated(request.fairness_id, last_fairness);
  sink.Signed(request.priority);
  sink.Varint(request.size_bytes);
  if (request.max_output_tokens) sink.Varint(*request.max_output_tokens);
  const auto kept = [this](const sched::Header& header) { return options.keep_header(header.name); };
  sink.Varint(
      static_cast<std::uint64_t>(std::count_if(request.headers.begin(), request.headers.end(), kept)));
  for (const sched::Header& header : request.headers) {
    if (!kept(header)) continue;
    sink.Text(header.name);
    sink.Text(header.value);
  }
  sink.Varint(request.prompts.size());
  for (const Prompt& prompt : request.prompts) {
    sink.Varint(prompt.token_count);
    sink.Varint(prompt.items.size());
    for (const MultimodalItem& item : prompt.items) {
      sink.Text(item.modality);
      sink.Text(item.hash);
      sink.Varint(item.offset);
      sink.Varint(item.length);
    }
  }
  sink.Fixed64(prompts);
  digest.Add(prompts);
  record::AddRequest(request, options.keep_header, digest);
}

void DecisionLogWriter::Impl::States(const EndpointPool& pool, absl::Time base, ByteSink& sink) {
  std::uint32_t last = 0;
  for (std::uint32_t i = 0; i < pool.size(); ++i) State(pool[i], base, last, i, sink);
  sink.Varint(0);
}

void DecisionLogWriter::Impl::State(const Endpoint& endpoint, absl::Time base, std::uint32_t& last,
                                    std::uint32_t position, ByteSink& sink) {
  const Metrics& now = endpoint.metrics;
  Metrics& old = known[position].metrics;
  std::vector<Attribute>& attributes = known[position].attributes;
  const bool same_adapters = now.adapters.at == old.adapters.at &&
                             (now.adapters.value == old.adapters.value ||
                              (now.adapters.value != nullptr && old.adapters.value != nullptr &&
                               now.adapters.value->max_active == old.adapters.value->max_active &&
                               now.adapters.value->active == old.adapters.value->active &&
                               now.adapters.value->waiting == old.adapters.value->waiting));
  const bool same_attributes = std::equal(
      endpoint.attributes.begin(), endpoint.attributes.end(), attributes.begin(), attributes.end(),
      [](const Attribute& a, const Attribute& b) {
        return a.name == b.name && SameBits(a.sample.value, b.sample.value) && a.sample.at == b.sample.at;
      });
  std::uint8_t flags = 0;
  if (now.waiting_requests.value != old.waiting_requests.value) flags |= record::kWaiting;
  if (now.running_requests.value != old.running_requests.value) flags |= record::kRunning;
  if (!SameBits(now.kv_cache_usage.value, old.kv_cache_usage.value)) flags |= record::kCacheUsage;
  if (!same_adapters) flags |= record::kAdapters;
  if (now.cache_block_size != old.cache_block_size || now.cache_num_blocks != old.cache_num_blocks) {
    flags |= record::kCacheShape;
  }
  if (!same_attributes) flags |= record::kAttributes;
  if (now.waiting_requests.at != old.waiting_requests.at ||
      now.running_requests.at != old.running_requests.at || now.kv_cache_usage.at != old.kv_cache_usage.at) {
    flags |= record::kTimes;
  }
  if (flags == 0) return;
  sink.Varint(position - last + std::uint64_t{1});
  last = position;
  sink.U8(flags);
  if (flags & record::kWaiting) sink.Signed(now.waiting_requests.value);
  if (flags & record::kRunning) sink.Signed(now.running_requests.value);
  if (flags & record::kCacheUsage) sink.Double(now.kv_cache_usage.value);
  if (flags & record::kTimes) {
    sink.Time(now.waiting_requests.at, base);
    sink.Time(now.running_requests.at, base);
    sink.Time(now.kv_cache_usage.at, base);
  }
  if (flags & record::kAdapters) {
    sink.Time(now.adapters.at, base);
    const AdapterState* state = now.adapters.value.get();
    sink.U8(state != nullptr ? 1 : 0);
    if (state != nullptr) {
      sink.Signed(state->max_active);
      for (const auto* names : {&state->active, &state->waiting}) {
        sink.Varint(names->size());
        for (const std::string& name : *names) sink.Text(name);
      }
    }
  }
  if (flags & record::kCacheShape) {
    sink.Varint(now.cache_block_size);
    sink.Varint(now.cache_num_blocks);
  }
  if (flags & record::kAttributes) {
    sink.Varint(endpoint.attributes.size());
    for (const Attribute& attribute : endpoint.attributes) {
      Intern(attribute.name, sink);
      sink.Double(attribute.sample.value);
      sink.Time(attribute.sample.at, base);
    }
    attributes = endpoint.attributes;
  }
  old = now;
}

void DecisionLogWriter::Impl::Data(const EndpointPool& pool, const DataColumns& columns, ByteSink& sink) {
  for (const Slot& slot : slots) {
    const internal::ColumnBase& column = columns.column(slot.index);
    if (column.published) {
      words.resize(slot.codec.size(column));
      for (std::size_t i = 0; i < words.size(); ++i) slot.codec.get(column, i, words[i]);
    } else if (slot.table != nullptr) {
      words.resize(pool.size());
      for (Position i = 0; i < pool.size(); ++i) {
        const InFlightLoad load = slot.table->Get(pool[i].handle);
        words[i][0] = static_cast<std::uint64_t>(load.requests);
        words[i][1] = static_cast<std::uint64_t>(load.tokens);
      }
    } else {
      sink.U8(0);
      continue;
    }
    sink.U8(column.published ? 1 : 2);
    Datum(slot, words.size(), sink);
  }
}

void DecisionLogWriter::Impl::Datum(const Slot& slot, std::size_t size, ByteSink& sink) {
  const std::size_t fields = slot.codec.num_fields;
  const auto same = [fields](const FieldCoder::Words& a, const FieldCoder::Words& b) {
    return std::equal(a.begin(), a.begin() + fields, b.begin());
  };
  // The majority's value, if there is one (Boyer and Moore); else any value will do.
  FieldCoder::Words common{};
  std::size_t votes = 0;
  for (std::size_t i = 0; i < size; ++i) {
    if (votes == 0) common = words[i];
    votes = same(common, words[i]) ? votes + 1 : votes - 1;
  }
  sink.Varint(size);
  for (std::size_t f = 0; f < fields; ++f) {
    if (slot.codec.doubles >> f & 1u) {
      sink.Fixed64(common[f]);
    } else {
      sink.Signed(static_cast<std::int64_t>(common[f]));
    }
  }
  std::size_t last = 0;
  for (std::size_t i = 0; i < size; ++i) {
    if (same(common, words[i])) continue;
    sink.Varint(i - last + 1);
    last = i;
    std::uint32_t differing = 0;
    for (std::size_t f = 0; f < fields; ++f) differing |= std::uint32_t{words[i][f] != common[f]} << f;
    sink.Varint(differing);
    for (std::size_t f = 0; f < fields; ++f) {
      if (!(differing >> f & 1u)) continue;
      if (slot.codec.doubles >> f & 1u) {
        sink.Fixed64(words[i][f]);
      } else {
        sink.Signed(static_cast<std::int64_t>(words[i][f] - common[f]));
      }
    }
  }
  sink.Varint(0);
}

void DecisionLogWriter::Impl::Profile(const ProfileResult& result, const Explanation::Profile& profile,
                                      record::LastScores& last, ByteSink& sink) {
  sink.U8(static_cast<std::uint8_t>(result.state));
  Drops(profile, sink);
  const std::size_t n = profile.totals.size();
  sink.U8(n > 0 ? 1 : 0);
  if (n > 0) {
    const bool comparable =
        std::equal(last.survivors.begin(), last.survivors.end(), profile.totals.begin(), profile.totals.end(),
                   [](Position position, const ScoredEndpoint& total) { return position == total.position; });
    for (std::size_t s = 0; s < profile.scorers.size(); ++s) {
      const auto row = std::span(profile.raw).subspan(s * n, n);
      Scores(row,
             comparable ? std::span<const double>(last.raw).subspan(s * n, n) : std::span<const double>(),
             sink);
    }
    last.survivors.resize(n);
    for (std::size_t i = 0; i < n; ++i) last.survivors[i] = profile.totals[i].position;
    last.raw.assign(profile.raw.begin(), profile.raw.end());
    sink.Fixed64(record::ScoresDigest(profile));
    sink.Fixed64(profile.tie_seed);
    sink.Varint(profile.picked.size());
    for (const Position position : profile.picked) sink.Varint(position);
  }
  const bool as_picked = result.targets == profile.picked;
  sink.U8(as_picked ? 1 : 0);
  if (!as_picked) {
    sink.Varint(result.targets.size());
    for (const Position position : result.targets) sink.Varint(position);
  }
  sink.Varint(result.port);
}

// Neighbours with the same filter and reason together.
void DecisionLogWriter::Impl::Drops(const Explanation::Profile& profile, ByteSink& sink) {
  for (std::size_t i = 0; i < profile.drops.size();) {
    const Explanation::Drop& first = profile.drops[i];
    std::size_t end = i + 1;
    while (end < profile.drops.size() && profile.drops[end].filter == first.filter &&
           std::string_view(profile.drops[end].reason) == first.reason) {
      ++end;
    }
    sink.Varint(end - i);
    Intern(first.filter, sink);
    Intern(first.reason, sink);
    for (Position last = 0; i < end; ++i) {
      sink.Varint(profile.drops[i].position - last);
      last = profile.drops[i].position;
    }
  }
  sink.Varint(0);
}

void DecisionLogWriter::Impl::Scores(std::span<const double> raw, std::span<const double> before,
                                     ByteSink& sink) {
  const auto as_before = [&](std::size_t i) {
    std::size_t end = i;
    while (end < before.size() && SameBits(raw[end], before[end])) ++end;
    return end - i;
  };
  const auto repeated = [&](std::size_t i) {
    std::size_t end = i + 1;
    while (end < raw.size() && SameBits(raw[end], raw[i])) ++end;
    return end - i;
  };
  for (std::size_t i = 0; i < raw.size();) {
    const std::size_t same = as_before(i);
    const std::size_t repeats = repeated(i);
    if (same > 0 && same + 8 >= repeats) {
      sink.Varint(same * 4 + record::kAsBefore);
      i += same;
    } else if (repeats > 1) {
      sink.Varint(repeats * 4 + record::kRepeat);
      sink.Double(raw[i]);
      i += repeats;
    } else {
      std::size_t end = i + 1;
      while (end < raw.size() && as_before(end) == 0 && repeated(end) < 2) ++end;
      sink.Varint((end - i) * 4 + record::kLiteral);
      for (; i < end; ++i) sink.Double(raw[i]);
    }
  }
}

// A number for a text seen before; else the next number, and the text.
void DecisionLogWriter::Impl::Intern(std::string_view text, ByteSink& sink) {
  const auto it = texts.find(ToAbsl(text));
  if (it != texts.end()) return sink.Varint(it->second);
  if (texts.size() == record::kMaxTexts) {
    full = true;
    return;
  }
  const auto number = static_cast<std::uint32_t>(texts.size());
  texts.emplace(std::string(text), number);
  sink.Varint(number);
  sink.Text(text);
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

absl::Status DecisionLogWriter::Append(const ScheduleInput& input, const Workspace& workspace,
                                       const Decision& decision, const Explanation& explanation,
                                       const absl::Status& status, std::vector<std::byte>& out) {
  Impl& impl = *impl_;
  if (!impl.begun) return absl::FailedPreconditionError("decision log: Append() without Begin()");
  const std::vector<Position>& candidates = workspace.state_->candidates;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i] >= input.pool.size() || (i > 0 && candidates[i] <= candidates[i - 1])) {
      return absl::InvalidArgumentError(absl::StrCat("decision log: candidates[", i, "] is ", candidates[i],
                                                     ", expected ascending positions below ",
                                                     input.pool.size()));
    }
  }
  if (explanation.profiles.size() != impl.scheduler.profiles.size() ||
      decision.profiles.size() != explanation.profiles.size()) {
    return absl::InvalidArgumentError("decision log: decision and explanation are not this scheduler's");
  }
  const std::size_t before = out.size();
  if (!impl.SamePool(input.pool)) impl.Endpoints(input.pool, out);

  const std::size_t start = impl.BeginFrame(record::kDecisionFrame, out);
  ByteSink sink(out);
  WordDigest digest;
  std::uint8_t flags = 0;
  const bool all = candidates.size() == input.pool.size();
  if (all) flags |= record::kAllCandidates;
  if (input.request.max_output_tokens) flags |= record::kHasMaxOutput;
  // Usual: every endpoint was scraped at the same moment.
  bool together = input.pool.size() > 0;
  bool news = false;
  absl::Time sampled = together ? input.pool[0].metrics.waiting_requests.at : absl::InfinitePast();
  for (std::size_t i = 0; i < input.pool.size() && together; ++i) {
    const Metrics& m = input.pool[i].metrics;
    together = m.waiting_requests.at == sampled && m.running_requests.at == sampled &&
               m.kv_cache_usage.at == sampled;
    news |= impl.known[i].metrics.waiting_requests.at != sampled;
  }
  if (together && news) flags |= record::kSampledTogether;
  sink.U8(flags);
  sink.Time(input.now, impl.last_now);
  const bool finite = input.now != absl::InfinitePast() && input.now != absl::InfiniteFuture();
  const absl::Time base = finite ? input.now : absl::UnixEpoch();
  impl.last_now = base;
  sink.Fixed64(input.seed);
  digest.Add(input.now);
  digest.Add(input.seed);
  impl.Request(input, sink, digest);
  if (!all) {
    sink.Varint(candidates.size());
    Position last = 0;
    for (const Position candidate : candidates) {
      sink.Varint(candidate - last);
      last = candidate;
    }
  }
  for (const Position candidate : candidates) digest.Add(std::uint64_t{candidate});
  if (flags & record::kSampledTogether) {
    sink.Time(sampled, base);
    for (Impl::Known& known : impl.known) {
      known.metrics.waiting_requests.at = sampled;
      known.metrics.running_requests.at = sampled;
      known.metrics.kv_cache_usage.at = sampled;
    }
  }
  impl.States(input.pool, base, sink);
  record::AddEndpoints(input.pool, digest);
  const std::size_t data_at = out.size();
  impl.Data(input.pool, workspace.state_->columns, sink);
  digest.Add(std::string_view(reinterpret_cast<const char*>(out.data()) + data_at, out.size() - data_at));
  sink.Fixed64(digest.value());

  sink.Varint(static_cast<std::uint64_t>(status.code()));
  if (!status.ok()) {
    sink.Text({status.message().data(), status.message().size()});
    sink.U8(static_cast<std::uint8_t>(GetDroppedReason(status)));
  }
  sink.Text(explanation.refused_by);
  sink.Varint(decision.primary);
  for (std::size_t i = 0; i < decision.profiles.size(); ++i) {
    impl.Profile(decision.profiles[i], explanation.profiles[i], impl.last_scores[i], sink);
  }
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
