// inflight-load-producer: counts what was sent to each endpoint and is not finished, and what the request at
// hand would cost there. (spec: scheduling.md 4.4)
#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "llmd/sched/in_flight.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/decided_targets.h"

namespace llmd::sched {
namespace {

// More than any prompt; sums of it do not overflow.
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 40;

std::int64_t ClampTokens(std::uint64_t tokens) {
  return static_cast<std::int64_t>(std::min<std::uint64_t>(tokens, kMaxTokens));
}

struct CostOptions {
  bool add_output = false;
  double output_ratio = 1.5;
  std::int64_t max_output = kMaxTokens;
};

// What a request still has at the endpoints of its profiles.
class Contribution final : public FlightState {
 public:
  struct Part {
    EndpointHandle endpoint;
    InFlightLoad load;
    bool prefill = false;
  };

  Contribution(std::shared_ptr<InFlightTable> table, bool keeps_output, std::vector<Part> parts)
      : table_(std::move(table)), keeps_output_(keeps_output), parts_(std::move(parts)) {}
  ~Contribution() override {
    for (Part& part : parts_) Release(part, part.load);
  }

  void OnResponseBody(const ResponseBody& body) override {
    if (body.first) {
      for (Part& part : parts_) {
        // The first chunk shows that the prefill is over.
        if (part.prefill) {
          Release(part, part.load);
        } else if (!keeps_output_) {
          Release(part, {.tokens = part.load.tokens});
        }
      }
    }
    if (body.last) {
      for (Part& part : parts_) Release(part, part.load);
    }
  }

 private:
  void Release(Part& part, InFlightLoad load) {
    if (load.requests == 0 && load.tokens == 0) return;
    table_->Subtract(part.endpoint, load);
    part.load.requests -= load.requests;
    part.load.tokens -= load.tokens;
  }

  std::shared_ptr<InFlightTable> table_;
  bool keeps_output_;
  std::vector<Part> parts_;
};

class InFlightLoadProducer final : public Plugin, public DataProducer, public PreRequest {
 public:
  InFlightLoadProducer(std::string type, std::string name, DataSlot<InFlightLoad> load,
                       DataSlot<UncachedRequestTokens> cost, DataSlot<PrefixMatch> prefix,
                       const CostOptions& options, std::shared_ptr<InFlightTable> table)
      : Plugin(std::move(type), std::move(name)),
        load_(load),
        cost_(cost),
        prefix_(prefix),
        options_(options),
        table_(std::move(table)) {}

  void Produce(Context& context, ThreadState*) const override {
    const std::span<InFlightLoad> loads = context.data.Publish(load_);
    const std::span<UncachedRequestTokens> costs = context.data.Publish(cost_);
    const RequestCost cost(*this, context);
    for (const Position p : context.candidates) {
      loads[p] = table_->Get(context.pool[p].handle);
      costs[p].tokens = cost.At(p);
    }
  }

  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string> profiles,
                          Dispatch& dispatch) override {
    const RequestCost cost(*this, context);
    std::vector<Contribution::Part> parts;
    for (std::size_t i = 0; i < decision.profiles.size(); ++i) {
      const std::optional<Position> target = TargetOf(decision, i);
      if (!target) continue;
      parts.push_back({context.pool[*target].handle,
                       {.requests = 1, .tokens = cost.At(*target)},
                       i < profiles.size() && profiles[i] == kPrefillProfile});
    }
    if (parts.empty()) return absl::OkStatus();
    for (const Contribution::Part& part : parts) table_->Add(part.endpoint, part.load);
    dispatch.flight.Attach(std::make_unique<Contribution>(table_, options_.add_output, std::move(parts)));
    return absl::OkStatus();
  }

 private:
  // Of one request, at any position.
  class RequestCost {
   public:
    RequestCost(const InFlightLoadProducer& producer, const Context& context)
        : input_(ClampTokens(context.request.token_count())),
          output_(producer.EstimateOutput(context.request, input_)),
          matches_(context.data.Read(producer.prefix_)) {}

    std::int64_t At(Position position) const { return std::min(kMaxTokens, Uncached(position) + output_); }

   private:
    std::int64_t Uncached(Position position) const {
      if (matches_.empty() || matches_[position].block_size == 0) return input_;
      const PrefixMatch& match = matches_[position];
      const std::uint64_t size = match.block_size;
      const std::int64_t indexed = ClampTokens(match.total_blocks * size);
      const std::int64_t matched = ClampTokens(match.match_blocks * size);
      return std::max<std::int64_t>(0, indexed - matched) + std::max<std::int64_t>(0, input_ - indexed);
    }

    std::int64_t input_;
    std::int64_t output_;
    std::span<const PrefixMatch> matches_;
  };

  std::int64_t EstimateOutput(const Request& request, std::int64_t input) const {
    if (!options_.add_output) return 0;
    const double estimate = std::round(static_cast<double>(input) * options_.output_ratio);
    std::int64_t output =
        estimate < static_cast<double>(kMaxTokens) ? static_cast<std::int64_t>(estimate) : kMaxTokens;
    if (request.max_output_tokens) output = std::min<std::int64_t>(output, *request.max_output_tokens);
    return std::min(output, options_.max_output);
  }

  DataSlot<InFlightLoad> load_;
  DataSlot<UncachedRequestTokens> cost_;
  DataSlot<PrefixMatch> prefix_;
  CostOptions options_;
  std::shared_ptr<InFlightTable> table_;
};

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  CostOptions options;
  std::string prefix;
  bool sync = true;
  read.Optional("addEstimatedOutputTokens", &options.add_output);
  read.Optional("outputRatio", &options.output_ratio);
  read.Optional("maxEstimatedOutputTokens", &options.max_output);
  read.Optional("prefixMatchInfoProducerName", &prefix);
  read.Optional("syncCrossReplicaState", &sync);
  if (options.output_ratio < 0) {
    read.Reject("outputRatio", absl::StrCat(options.output_ratio), "at least 0");
  }
  if (options.max_output < 0) {
    read.Reject("maxEstimatedOutputTokens", absl::StrCat(options.max_output), "at least 0");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  // A producer that is named must exist; the default one is used when there.
  const auto matches = builder.Consumes<PrefixMatch>(
      prefix.empty() ? kApproxProducerType : std::string_view(prefix), !prefix.empty());
  return std::make_unique<InFlightLoadProducer>(builder.type(), builder.name(),
                                                builder.Produces<InFlightLoad>(),
                                                builder.Produces<UncachedRequestTokens>(), matches, options,
                                                builder.State<InFlightTable>(builder.name()));
}

}  // namespace

void RegisterInFlightProducer(PluginRegistry& registry) {
  MustRegister(registry, kInFlightProducerType, Make);
  registry.SetDefaultProducer(InFlightLoad::kDataType, kInFlightProducerType);
  registry.SetDefaultProducer(UncachedRequestTokens::kDataType, kInFlightProducerType);
}

}  // namespace llmd::sched
