// concurrency-detector: how full endpoints are by this router's own count of requests and tokens in flight;
// as a filter, which of them have room. (spec: scheduling.md 2.7)
//
// The filter may leave nothing: the count is exact and at hand, so the limit is one, unlike the scraped
// values of utilization-detector.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/sched/in_flight.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

struct ConcurrencyLimits {
  enum class Mode { kRequests, kTokens, kHybrid };

  Mode mode = Mode::kRequests;
  std::int64_t requests = 100;
  std::int64_t tokens = 1000000;
  double headroom = 0;  // more of both for the filter
};

class ConcurrencyDetector final : public Plugin, public SaturationDetector, public Filter {
 public:
  ConcurrencyDetector(PluginBuilder& builder, const ConcurrencyLimits& limits, const std::string& producer)
      : Plugin(builder.type(), builder.name()),
        limits_(limits),
        request_limit_(std::floor(static_cast<double>(limits.requests) * (1 + limits.headroom))),
        token_limit_(std::floor(static_cast<double>(limits.tokens) * (1 + limits.headroom))),
        load_(builder.Consumes<InFlightLoad>(producer)),
        table_(builder.State<InFlightTable>(producer)) {}

  // The mean over the endpoints, of the fuller of the two in hybrid mode.
  double Saturation(const EndpointPool& pool, std::span<const Position> candidates,
                    absl::Time) const override {
    if (candidates.empty()) return 1.0;
    double sum = 0;
    for (const Position candidate : candidates) {
      const InFlightLoad load = table_->Get(pool[candidate].handle);
      const double requests = static_cast<double>(load.requests) / static_cast<double>(limits_.requests);
      const double tokens = static_cast<double>(load.tokens) / static_cast<double>(limits_.tokens);
      sum += limits_.mode == ConcurrencyLimits::Mode::kRequests ? requests
             : limits_.mode == ConcurrencyLimits::Mode::kTokens ? tokens
                                                                : std::max(requests, tokens);
    }
    return sum / static_cast<double>(candidates.size());
  }

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    const std::span<const InFlightLoad> loads = context.data.Read(load_);
    if (loads.empty()) return;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const InFlightLoad& load = loads[candidates[i]];
      if (limits_.mode != ConcurrencyLimits::Mode::kTokens &&
          !(static_cast<double>(load.requests) < request_limit_)) {
        dropped[i] = "too many requests in flight";
      } else if (limits_.mode != ConcurrencyLimits::Mode::kRequests &&
                 !(static_cast<double>(load.tokens) < token_limit_)) {
        dropped[i] = "too many tokens in flight";
      }
    }
  }

 private:
  ConcurrencyLimits limits_;
  double request_limit_;
  double token_limit_;
  DataSlot<InFlightLoad> load_;
  std::shared_ptr<InFlightTable> table_;
};

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  ConcurrencyLimits limits;
  std::string mode = "requests";
  std::string producer;
  read.Optional("maxConcurrency", &limits.requests);
  read.Optional("maxTokenConcurrency", &limits.tokens);
  read.Optional("headroom", &limits.headroom);
  read.Optional("concurrencyMode", &mode);
  read.Optional("inFlightLoadProducerName", &producer);
  if (limits.requests <= 0) read.Reject("maxConcurrency", absl::StrCat(limits.requests), "more than 0");
  if (limits.tokens <= 0) read.Reject("maxTokenConcurrency", absl::StrCat(limits.tokens), "more than 0");
  if (!(limits.headroom >= 0)) read.Reject("headroom", absl::StrCat(limits.headroom), "at least 0");
  if (mode == "tokens") {
    limits.mode = ConcurrencyLimits::Mode::kTokens;
  } else if (mode == "hybrid") {
    limits.mode = ConcurrencyLimits::Mode::kHybrid;
  } else if (mode != "requests") {
    read.Reject("concurrencyMode", absl::StrCat("\"", mode, "\""), "requests, tokens or hybrid");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  if (producer.empty()) producer = kInFlightProducerType;
  return std::make_unique<ConcurrencyDetector>(builder, limits, producer);
}

}  // namespace

void RegisterConcurrencyDetector(PluginRegistry& registry) {
  MustRegister(registry, kConcurrencyDetectorType, Make);
}

}  // namespace llmd::sched
