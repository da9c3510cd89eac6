// program-aware-fairness: the program that has got least service lately goes first. (spec: scheduling.md 2.7)
#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/sched/flow_policy.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/pairing_heap.h"

namespace llmd::sched {
namespace {

struct ProgramParameters {
  double weight_service = 0.8;
  double weight_head_wait = 0.2;
  absl::Duration half_life = absl::Seconds(60);  // 0: service is never forgotten
  absl::Duration ttl = absl::Seconds(3600);
  absl::Duration sweep_interval = absl::Seconds(300);
};

// Tokens served to each program, decaying. A program is kept while it has something queued, and until it was
// not used for the TTL; of the others at most kMaxUnused.
class ProgramTable {
 public:
  explicit ProgramTable(const ProgramParameters& parameters) : parameters_(parameters) {}

  // Keeps the program until Release().
  std::uint32_t Acquire(std::string_view id) {
    const std::uint32_t program = FindOrAdd(id);
    Unlink(program);
    ++programs_[program].holders;
    return program;
  }
  void Release(std::uint32_t program, absl::Time now) {
    if (--programs_[program].holders == 0) LinkUnused(program, now);
  }

  void AddService(std::string_view id, const TokenUsage& usage, absl::Time now) {
    const std::uint32_t index = FindOrAdd(id);
    Program& program = programs_[index];
    program.service = Service(index, now) + Cost(usage);
    program.at = now;
    if (program.holders == 0) {
      Unlink(index);
      LinkUnused(index, now);
    }
  }

  double Service(std::uint32_t index, absl::Time now) const {
    const Program& program = programs_[index];
    if (program.service == 0 || parameters_.half_life == absl::ZeroDuration()) return program.service;
    return program.service * std::exp2(-absl::FDivDuration(now - program.at, parameters_.half_life));
  }

  void Sweep(absl::Time now) {
    if (now < next_sweep_) return;
    next_sweep_ = now + parameters_.sweep_interval;
    while (oldest_ != kNoNode && programs_[oldest_].used + parameters_.ttl <= now) Forget(oldest_);
  }

  std::size_t MemoryBytes() const {
    return programs_.size() * sizeof(Program) + free_.capacity() * sizeof(std::uint32_t) +
           by_id_.capacity() * (sizeof(absl::string_view) + sizeof(std::uint32_t) + 1) + id_bytes_;
  }

 private:
  static constexpr std::size_t kMaxUnused = 65536;

  struct Program {
    std::string id;
    double service = 0;  // as of `at`
    absl::Time at = absl::InfinitePast();
    absl::Time used = absl::InfinitePast();
    std::uint32_t holders = 0;
    std::uint32_t older = kNoNode;  // of those without holders, by `used`
    std::uint32_t newer = kNoNode;
    bool linked = false;
  };

  // An output token counts twice.
  static double Cost(const TokenUsage& usage) {
    return std::max(0.0, static_cast<double>(usage.prompt_tokens)) +
           2 * std::max(0.0, static_cast<double>(usage.completion_tokens));
  }

  std::uint32_t FindOrAdd(std::string_view id) {
    if (const auto it = by_id_.find(ToAbsl(id)); it != by_id_.end()) return it->second;
    std::uint32_t index = 0;
    if (free_.empty()) {
      index = static_cast<std::uint32_t>(programs_.size());
      programs_.emplace_back();
    } else {
      index = free_.back();
      free_.pop_back();
    }
    Program& program = programs_[index];
    id_bytes_ -= program.id.capacity();
    program.id = id;
    id_bytes_ += program.id.capacity();
    program.service = 0;
    program.holders = 0;
    by_id_.emplace(ToAbsl(program.id), index);
    return index;
  }

  void LinkUnused(std::uint32_t index, absl::Time now) {
    Program& program = programs_[index];
    program.used = now;
    program.older = newest_;
    program.newer = kNoNode;
    program.linked = true;
    (newest_ == kNoNode ? oldest_ : programs_[newest_].newer) = index;
    newest_ = index;
    if (++unused_ > kMaxUnused) Forget(oldest_);
  }
  void Unlink(std::uint32_t index) {
    Program& program = programs_[index];
    if (!program.linked) return;
    (program.older == kNoNode ? oldest_ : programs_[program.older].newer) = program.newer;
    (program.newer == kNoNode ? newest_ : programs_[program.newer].older) = program.older;
    program.linked = false;
    --unused_;
  }
  void Forget(std::uint32_t index) {
    Unlink(index);
    by_id_.erase(ToAbsl(programs_[index].id));
    free_.push_back(index);
  }

  ProgramParameters parameters_;
  std::deque<Program> programs_;  // ids do not move
  std::vector<std::uint32_t> free_;
  absl::flat_hash_map<absl::string_view, std::uint32_t> by_id_;
  std::uint32_t oldest_ = kNoNode;
  std::uint32_t newest_ = kNoNode;
  std::size_t unused_ = 0;
  std::size_t id_bytes_ = 0;
  absl::Time next_sweep_ = absl::InfinitePast();
};

class ProgramSelector final : public FlowSelector {
 public:
  ProgramSelector(const ProgramParameters& parameters, ProgramTable& table)
      : parameters_(parameters), table_(table) {}

  void Set(const FlowHead& head, absl::Time) override {
    if (head.flow >= place_.size()) place_.resize(head.flow + std::size_t{1}, kNoNode);
    if (place_[head.flow] == kNoNode) {
      place_[head.flow] = static_cast<std::uint32_t>(active_.size());
      active_.push_back({.flow = head.flow, .program = table_.Acquire(head.id)});
    }
    Active& active = active_[place_[head.flow]];
    active.sequence = head.sequence;
    active.enqueued = head.enqueued;
  }
  void Clear(std::uint32_t flow, absl::Time now) override {
    const std::uint32_t place = place_[flow];
    table_.Release(active_[place].program, now);
    active_[place] = active_.back();
    place_[active_[place].flow] = place;
    active_.pop_back();
    place_[flow] = kNoNode;
  }

  // Both terms are scaled by their ranges over all flows, so every flow is looked at.
  std::optional<std::uint32_t> Pick(absl::Time now) override {
    if (active_.empty()) return std::nullopt;
    Range service, wait;
    for (Active& active : active_) {
      active.service = table_.Service(active.program, now);
      active.wait = absl::ToDoubleMilliseconds(now - active.enqueued);
      service.Add(active.service);
      wait.Add(active.wait);
    }
    const Active* best = nullptr;
    double best_score = 0;
    for (const Active& active : active_) {
      const double score = parameters_.weight_service * (1 - service.Scale(active.service)) +
                           parameters_.weight_head_wait * wait.Scale(active.wait);
      if (best != nullptr &&
          (score < best_score || (score == best_score && active.sequence > best->sequence))) {
        continue;
      }
      best = &active;
      best_score = score;
    }
    return best->flow;
  }
  std::size_t MemoryBytes() const override {
    return active_.capacity() * sizeof(Active) + place_.capacity() * sizeof(std::uint32_t);
  }

 private:
  struct Active {
    std::uint32_t flow = 0;
    std::uint32_t program = 0;
    std::uint64_t sequence = 0;
    absl::Time enqueued = absl::UnixEpoch();
    double service = 0;
    double wait = 0;
  };
  struct Range {
    double min = std::numeric_limits<double>::infinity();
    double max = -std::numeric_limits<double>::infinity();
    void Add(double value) {
      min = std::min(min, value);
      max = std::max(max, value);
    }
    double Scale(double value) const { return max > min ? (value - min) / (max - min) : 0.5; }
  };

  const ProgramParameters& parameters_;
  ProgramTable& table_;
  std::vector<Active> active_;        // in no order
  std::vector<std::uint32_t> place_;  // by flow: in active_
};

class ProgramState final : public FairnessState {
 public:
  explicit ProgramState(const ProgramParameters& parameters) : parameters_(parameters), table_(parameters) {}

  std::unique_ptr<FlowSelector> NewBand() override {
    return std::make_unique<ProgramSelector>(parameters_, table_);
  }
  bool NeedsUsage() const override { return true; }
  void OnFinished(std::string_view flow, const TokenUsage& usage, absl::Time now) override {
    table_.AddService(flow, usage, now);
  }
  void Sweep(absl::Time now) override { table_.Sweep(now); }
  std::size_t MemoryBytes() const override { return table_.MemoryBytes(); }

 private:
  ProgramParameters parameters_;
  ProgramTable table_;
};

class ProgramFairness final : public Plugin, public FairnessPolicy {
 public:
  ProgramFairness(std::string type, std::string name, const ProgramParameters& parameters)
      : Plugin(std::move(type), std::move(name)), parameters_(parameters) {}
  std::unique_ptr<FairnessState> NewState() const override {
    return std::make_unique<ProgramState>(parameters_);
  }

 private:
  ProgramParameters parameters_;
};

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  ProgramParameters parameters;
  std::string strategy = "las";
  read.Optional("strategy", &strategy);
  if (strategy != "las") read.Reject("strategy", absl::StrCat("\"", strategy, "\""), "las");
  const auto weight = [&read](std::string_view field, double* out) {
    read.Optional(field, out);
    if (!(*out >= 0)) read.Reject(field, absl::StrCat(*out), "at least 0");
  };
  const auto seconds = [&read](std::string_view field, absl::Duration* out, bool zero_allowed) {
    // About 300 years, as far as all arithmetic goes.
    constexpr double kMax = 1e10;
    double value = absl::ToDoubleSeconds(*out);
    read.Optional(field, &value);
    if (!(value >= 0 && value <= kMax) || (value == 0 && !zero_allowed)) {
      read.Reject(field, absl::StrCat(value), zero_allowed ? "0 to 1e10" : "more than 0 and at most 1e10");
    }
    *out = absl::Seconds(value);
  };
  weight("lasWeightService", &parameters.weight_service);
  weight("lasWeightHeadWait", &parameters.weight_head_wait);
  seconds("lasHalfLifeSeconds", &parameters.half_life, true);
  seconds("evictionTtlSeconds", &parameters.ttl, false);
  seconds("evictionSweepSeconds", &parameters.sweep_interval, false);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return std::make_unique<ProgramFairness>(builder.type(), builder.name(), parameters);
}

}  // namespace

void RegisterProgramFairness(PluginRegistry& registry) {
  MustRegister(registry, "program-aware-fairness", Make);
}

}  // namespace llmd::sched
