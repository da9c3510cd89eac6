#include "llmd/sched/decision_replay.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "llmd/base/strings.h"
#include "llmd/sched/in_flight.h"
#include "llmd/sched/recorded.h"
#include "src/sched/record_format.h"
#include "src/sched/scheduler_impl.h"

namespace llmd::sched {
namespace {

using record::SameBits;

class EmptyMatcher final : public PrefixMatcher {
 public:
  void Match(const index::NamespaceId&, BlockKeySpan, index::MatchResult& result) override { result.clear(); }
};

std::string Name(std::string_view type, std::string_view producer) {
  return absl::StrCat(ToAbsl(type), "/", ToAbsl(producer));
}

// 17 digits tell any two numbers apart; NaNs by their bits.
std::string Exact(double value) {
  if (!std::isnan(value)) return absl::StrFormat("%.17g", value);
  return absl::StrFormat("NaN (%016x)", std::bit_cast<std::uint64_t>(value));
}

}  // namespace

struct DecisionReplayer::Impl final : RecordedInputs {
  // A datum of the log and its place in this scheduler.
  struct Slot {
    std::size_t datum;
    std::uint32_t index;
    bool of_request;
    DataCodec codec;
    std::shared_ptr<InFlightTable> table;
  };

  explicit Impl(const DecisionLogReader& l) : log(l) {}

  void Bind(const DataCodecs& codecs);
  void SetTable(const Slot& slot, const EndpointPool& pool) const;
  // Whether each datum has the elements that this scheduler expects of it.
  absl::Status CheckData(const EndpointPool& pool) const;
  std::string ProfileDifference(std::size_t index, const DecisionRecord& record) const;
  std::string Id(Position position) const {
    return position < log.pool().size() ? log.pool()[position].id() : absl::StrCat("position ", position);
  }

  bool Replaces(std::string_view producer) const override {
    return std::find(replaced.begin(), replaced.end(), producer) != replaced.end();
  }
  void Publish(const DataLayout& layout, DataColumns& data) const override;
  bool Drops(std::string_view profile, std::string_view filter, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override;
  bool Scores(std::string_view profile, std::string_view scorer, std::span<const Position> candidates,
              std::span<double> scores) const override;
  // The recorded run of a profile, if this plugin is the one that ran.
  const Explanation::Profile* RecordedRun(std::string_view profile, std::string_view plugin) const;

  const DecisionLogReader& log;
  std::unique_ptr<Scheduler> scheduler;
  std::optional<Workspace> workspace;
  std::shared_ptr<PluginStates> states;
  bool same_config = false;
  std::vector<Slot> slots;
  std::vector<std::string> replaced;   // producers
  std::vector<std::string> unchanged;  // plugins as recorded
  std::vector<std::string> missing;

  const DecisionRecord* record = nullptr;
  absl::Status status;
  Decision decision;
  Explanation explanation;
  mutable std::uint64_t from_record = 0;
  mutable std::uint64_t without_memory = 0;
};

void DecisionReplayer::Impl::Bind(const DataCodecs& codecs) {
  const Scheduler::Impl& impl = *scheduler->impl_;
  const DecisionLogHeader& header = log.header();
  same_config = ConfigDigest(impl.config) == header.config_digest;
  for (const PluginSpec& spec : impl.config.plugins) {
    for (const DecisionLogHeader::Plugin& recorded : header.plugins) {
      if (recorded.name == spec.name && recorded.digest == PluginDigest(spec)) unchanged.push_back(spec.name);
    }
  }
  for (const Scheduler::Impl::NamedProducer& producer : impl.producers) {
    bool all = true;
    bool any = false;
    for (std::uint32_t i = 0; i < impl.layout.entries().size(); ++i) {
      const DataLayout::Entry& entry = impl.layout.entries()[i];
      if (entry.producer != producer.name) continue;
      const DataCodec* codec = codecs.Find(entry.data_type, *entry.type);
      const auto datum = std::find_if(header.data.begin(), header.data.end(), [&](const auto& d) {
        return d.data_type == entry.data_type && d.producer == entry.producer;
      });
      if (codec == nullptr || datum == header.data.end() || datum->num_fields != codec->num_fields ||
          datum->doubles != codec->doubles) {
        all = false;
        missing.push_back(Name(entry.data_type, entry.producer));
        continue;
      }
      any = true;
      Slot slot{static_cast<std::size_t>(datum - header.data.begin()), i, entry.of_request, *codec, nullptr};
      if (entry.data_type == InFlightLoad::kDataType) {
        slot.table = states->GetOrMake<InFlightTable>(entry.producer,
                                                      [] { return std::make_shared<InFlightTable>(); });
      }
      slots.push_back(std::move(slot));
    }
    if (all && any) replaced.emplace_back(producer.name);
  }
}

void DecisionReplayer::Impl::Publish(const DataLayout&, DataColumns& data) const {
  for (const Slot& slot : slots) {
    const RecordedDatum& datum = record->data[slot.datum];
    if (!datum.published) continue;
    internal::ColumnBase& column = data.column(slot.index);
    FieldCoder::Words words = datum.common;
    slot.codec.fill(column, datum.size, words);
    for (const RecordedDatum::Exception& exception : datum.exceptions) {
      words = exception.words;
      slot.codec.set(column, exception.element, words);
    }
  }
}

absl::Status DecisionReplayer::Impl::CheckData(const EndpointPool& pool) const {
  for (const Slot& slot : slots) {
    const RecordedDatum& datum = record->data[slot.datum];
    const std::size_t expected = slot.of_request ? 1 : pool.size();
    if (!datum.published || datum.size == expected) continue;
    const DecisionLogHeader::Datum& kind = log.header().data[slot.datum];
    return absl::DataLossError(absl::StrCat("record ", record->index, ": ",
                                            Name(kind.data_type, kind.producer), " has ", datum.size,
                                            " elements, expected ", expected));
  }
  return absl::OkStatus();
}

// For detectors, which read the table itself.
void DecisionReplayer::Impl::SetTable(const Slot& slot, const EndpointPool& pool) const {
  const RecordedDatum& datum = record->data[slot.datum];
  for (Position i = 0; i < pool.size(); ++i) {
    InFlightLoad load;
    if (datum.on_record && i < datum.size) {
      FieldCoder::Words words = datum.at(i);
      load = DataCodecs::Compose<InFlightLoad>(words);
    }
    const InFlightLoad now = slot.table->Get(pool[i].handle);
    slot.table->Subtract(pool[i].handle, now);
    slot.table->Add(pool[i].handle, load);
  }
}

const Explanation::Profile* DecisionReplayer::Impl::RecordedRun(std::string_view profile,
                                                                std::string_view plugin) const {
  if (std::find(unchanged.begin(), unchanged.end(), plugin) == unchanged.end()) return nullptr;
  for (const Explanation::Profile& recorded : record->explanation.profiles) {
    if (recorded.name == profile) return &recorded;
  }
  return nullptr;
}

bool DecisionReplayer::Impl::Drops(std::string_view profile, std::string_view filter,
                                   std::span<const Position> candidates,
                                   std::span<DropReason> dropped) const {
  const Explanation::Profile* recorded = RecordedRun(profile, filter);
  if (recorded == nullptr || (recorded->totals.empty() && recorded->drops.empty())) {
    ++without_memory;
    return false;
  }
  for (const Explanation::Drop& drop : recorded->drops) {
    if (drop.filter != filter) continue;
    const auto it = std::lower_bound(candidates.begin(), candidates.end(), drop.position);
    if (it != candidates.end() && *it == drop.position) {
      dropped[static_cast<std::size_t>(it - candidates.begin())] = drop.reason;
    }
  }
  ++from_record;
  return true;
}

bool DecisionReplayer::Impl::Scores(std::string_view profile, std::string_view scorer,
                                    std::span<const Position> candidates, std::span<double> scores) const {
  const Explanation::Profile* recorded = RecordedRun(profile, scorer);
  const auto by_name = [&](const Explanation::ScorerUse& use) { return use.name == scorer; };
  if (recorded != nullptr) {
    const auto use = std::find_if(recorded->scorers.begin(), recorded->scorers.end(), by_name);
    // All or nothing, so that no endpoint is compared by another measure than its rivals.
    const auto covers = [&](Position position) {
      return std::binary_search(recorded->totals.begin(), recorded->totals.end(), ScoredEndpoint{position, 0},
                                [](const auto& a, const auto& b) { return a.position < b.position; });
    };
    if (use != recorded->scorers.end() && std::all_of(candidates.begin(), candidates.end(), covers)) {
      const auto row = static_cast<std::size_t>(use - recorded->scorers.begin());
      std::size_t from = 0;
      for (std::size_t i = 0; i < candidates.size(); ++i) {
        while (recorded->totals[from].position != candidates[i]) ++from;
        scores[i] = recorded->raw_at(row, from);
      }
      ++from_record;
      return true;
    }
  }
  ++without_memory;
  return false;
}

DecisionReplayer::DecisionReplayer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DecisionReplayer::~DecisionReplayer() = default;

absl::StatusOr<std::unique_ptr<DecisionReplayer>> DecisionReplayer::Create(const DecisionLogReader& log,
                                                                           const SchedulerConfig& config,
                                                                           const PluginRegistry& registry,
                                                                           Resources resources,
                                                                           const DataCodecs& codecs) {
  auto impl = std::make_unique<Impl>(log);
  if (resources.prefix_sources.size() < kMaxPrefixSources) resources.prefix_sources.resize(kMaxPrefixSources);
  for (PrefixSourceIndex& source : resources.prefix_sources) {
    if (source.new_matcher == nullptr) source.new_matcher = [] { return std::make_unique<EmptyMatcher>(); };
  }
  if (resources.states == nullptr) resources.states = std::make_shared<PluginStates>();
  impl->states = resources.states;
  absl::StatusOr<std::unique_ptr<Scheduler>> scheduler = Scheduler::Create(config, registry, resources);
  if (!scheduler.ok()) return scheduler.status();
  impl->scheduler = *std::move(scheduler);
  impl->workspace.emplace(*impl->scheduler);
  impl->Bind(codecs);
  return std::unique_ptr<DecisionReplayer>(new DecisionReplayer(std::move(impl)));
}

void DecisionReplayer::Replay(const DecisionRecord& record) {
  Impl& impl = *impl_;
  impl.record = &record;
  const EndpointPool& pool = impl.log.pool();
  impl.status = impl.CheckData(pool);
  if (!impl.status.ok()) {
    impl.decision = {};
    impl.explanation = {};
    return;
  }
  for (const Impl::Slot& slot : impl.slots) {
    if (slot.table != nullptr) impl.SetTable(slot, pool);
  }
  impl.status = impl.scheduler->Schedule({.request = record.request(),
                                          .pool = pool,
                                          .candidates = std::span<const Position>(record.candidates),
                                          .now = record.now,
                                          .seed = record.seed,
                                          .recorded = &impl},
                                         *impl.workspace, impl.decision, &impl.explanation);
}

std::string DecisionReplayer::Difference(const DecisionRecord& record) const {
  const Impl& impl = *impl_;
  const auto differ = [](std::string_view what, const auto& is, const auto& recorded) {
    return absl::StrCat(ToAbsl(what), " is ", is, ", recorded ", recorded);
  };
  if (impl.status.code() != record.status.code() || impl.status.message() != record.status.message() ||
      GetDroppedReason(impl.status) != GetDroppedReason(record.status)) {
    return differ("status", impl.status.ToString(), record.status.ToString());
  }
  if (impl.explanation.refused_by != record.explanation.refused_by) {
    return differ("refused by", ToAbsl(impl.explanation.refused_by), ToAbsl(record.explanation.refused_by));
  }
  if (impl.decision.profiles.size() != record.decision.profiles.size()) {
    return differ("number of profiles", impl.decision.profiles.size(), record.decision.profiles.size());
  }
  for (std::size_t i = 0; i < record.decision.profiles.size(); ++i) {
    std::string difference = impl.ProfileDifference(i, record);
    if (!difference.empty()) {
      return absl::StrCat("profile ", ToAbsl(record.explanation.profiles[i].name), ": ", difference);
    }
  }
  if (impl.decision.primary != record.decision.primary) {
    return differ("primary profile", impl.decision.primary, record.decision.primary);
  }
  return "";
}

std::string DecisionReplayer::Impl::ProfileDifference(std::size_t index,
                                                      const DecisionRecord& recorded_in) const {
  const Explanation::Profile& profile = explanation.profiles[index];
  const Explanation::Profile& recorded = recorded_in.explanation.profiles[index];
  const ProfileResult& result = decision.profiles[index];
  const ProfileResult& recorded_result = recorded_in.decision.profiles[index];
  if (profile.name != recorded.name) return absl::StrCat("its name is ", ToAbsl(profile.name));
  if (result.state != recorded_result.state) {
    return absl::StrCat("state is ", static_cast<int>(result.state), ", recorded ",
                        static_cast<int>(recorded_result.state));
  }
  for (std::size_t i = 0; i < std::max(profile.drops.size(), recorded.drops.size()); ++i) {
    const auto text = [&](const Explanation::Profile& p) {
      if (i >= p.drops.size()) return std::string("none");
      return absl::StrCat(Id(p.drops[i].position), " by ", ToAbsl(p.drops[i].filter), " (", p.drops[i].reason,
                          ")");
    };
    if (text(profile) != text(recorded)) {
      return absl::StrCat("drop ", i + 1, " is ", text(profile), ", recorded ", text(recorded));
    }
  }
  if (profile.totals.size() != recorded.totals.size()) {
    return absl::StrCat(profile.totals.size(), " endpoints are scored, recorded ", recorded.totals.size());
  }
  if (profile.scorers.size() != recorded.scorers.size()) {
    return absl::StrCat(profile.scorers.size(), " scorers, recorded ", recorded.scorers.size());
  }
  for (std::size_t s = 0; s < profile.scorers.size(); ++s) {
    const std::string_view name = profile.scorers[s].name;
    if (name != recorded.scorers[s].name) {
      return absl::StrCat("scorer ", s + 1, " is ", ToAbsl(name), ", recorded ",
                          ToAbsl(recorded.scorers[s].name));
    }
    for (std::size_t e = 0; e < profile.totals.size(); ++e) {
      for (const bool raw : {true, false}) {
        const double is = raw ? profile.raw_at(s, e) : profile.weighted_at(s, e);
        const double was = raw ? recorded.raw_at(s, e) : recorded.weighted_at(s, e);
        // Any NaN is "no opinion".
        if (SameBits(is, was) || (std::isnan(is) && std::isnan(was))) continue;
        return absl::StrCat(raw ? "raw" : "weighted", " score of ", ToAbsl(name), " for ",
                            Id(profile.totals[e].position), " is ", Exact(is), ", recorded ", Exact(was));
      }
    }
  }
  for (std::size_t e = 0; e < profile.totals.size(); ++e) {
    if (profile.totals[e].position != recorded.totals[e].position) {
      return absl::StrCat("scored endpoint ", e + 1, " is ", Id(profile.totals[e].position), ", recorded ",
                          Id(recorded.totals[e].position));
    }
    if (!SameBits(profile.totals[e].score, recorded.totals[e].score)) {
      return absl::StrCat("total of ", Id(profile.totals[e].position), " is ", Exact(profile.totals[e].score),
                          ", recorded ", Exact(recorded.totals[e].score));
    }
  }
  if (profile.tie_seed != recorded.tie_seed) {
    return absl::StrCat("tie seed is ", profile.tie_seed, ", recorded ", recorded.tie_seed);
  }
  for (const bool picked : {true, false}) {
    const std::vector<Position>& is = picked ? profile.picked : result.targets;
    const std::vector<Position>& was = picked ? recorded.picked : recorded_result.targets;
    for (std::size_t i = 0; i < std::max(is.size(), was.size()); ++i) {
      const std::string a = i < is.size() ? Id(is[i]) : "none";
      const std::string b = i < was.size() ? Id(was[i]) : "none";
      if (a != b) {
        return absl::StrCat(picked ? "picked endpoint " : "target ", i + 1, " is ", a, ", recorded ", b);
      }
    }
  }
  if (result.port != recorded_result.port) {
    return absl::StrCat("port is ", result.port, ", recorded ", recorded_result.port);
  }
  return "";
}

const absl::Status& DecisionReplayer::status() const { return impl_->status; }
const Decision& DecisionReplayer::decision() const { return impl_->decision; }
const Explanation& DecisionReplayer::explanation() const { return impl_->explanation; }
bool DecisionReplayer::same_config() const { return impl_->same_config; }
const std::vector<std::string>& DecisionReplayer::missing() const { return impl_->missing; }
std::uint64_t DecisionReplayer::from_record() const { return impl_->from_record; }
std::uint64_t DecisionReplayer::without_memory() const { return impl_->without_memory; }
const Scheduler& DecisionReplayer::scheduler() const { return *impl_->scheduler; }

}  // namespace llmd::sched
