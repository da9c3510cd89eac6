#include "examples/gateway_scheduler/gateway.h"

#include <algorithm>

#include <thread>
#include <utility>

#include "examples/gateway_scheduler/approx_holders.h"
#include "examples/gateway_scheduler/flow_gate.h"
#include "examples/gateway_scheduler/prefix_plan.h"

namespace llmd::host {

Gateway::Gateway(GatewayOptions options, PoolStore& pool) : options_(std::move(options)), pool_(pool) {}

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Create(GatewayOptions options, PoolStore& pool) {
  auto gateway = std::unique_ptr<Gateway>(new Gateway(std::move(options), pool));
  const GatewayOptions& o = gateway->options_;
  auto exact = index::PrefixIndex::Create({.max_bytes = o.index_max_bytes});
  if (!exact.ok()) return exact.status();
  gateway->exact_ = *std::move(exact);
  auto approx = index::ApproxIndex::Create({.max_bytes = o.approx_index_max_bytes});
  if (!approx.ok()) return approx.status();
  gateway->approx_ = *std::move(approx);
  gateway->approx_holders_ =
      std::make_unique<ApproxHolders>(*gateway->approx_, gateway->approx_writer_, pool);
  gateway->flow_ = std::make_unique<FlowGate>(pool, [raw = gateway.get()](absl::Duration took) {
    for (Observer* observer : raw->observers_) observer->OnDispatchCycle(took);
  });

  sched::Resources& resources = gateway->resources_;
  resources.prefix_sources.resize(2);
  resources.prefix_sources[sched::kExactSource] = sched::ExactIndex(*gateway->exact_);
  resources.prefix_sources[sched::kApproximateSource] =
      sched::ApproximateIndex(*gateway->approx_, gateway->approx_writer_);
  resources.states = std::make_shared<sched::PluginStates>();
  gateway->schedulers_ =
      std::make_unique<sched::ReloadableScheduler>(sched::PluginRegistry::Builtin(), resources);
  std::vector<std::string> warnings;
  if (absl::Status s = gateway->Reload(o.config_text, &warnings); !s.ok()) return s;
  gateway->maintenance_ = std::thread([raw = gateway.get()] { raw->Maintain(); });
  return gateway;
}

Gateway::~Gateway() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (maintenance_.joinable()) maintenance_.join();
}

void Gateway::Maintain() {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, std::chrono::seconds(1), [this] { return stop_; })) {
    lock.unlock();
    approx_holders_->FollowReportedSizes();
    lock.lock();
  }
}

void Gateway::AddObserver(Observer* observer) { observers_.push_back(observer); }

bool Gateway::wants_explanations() const {
  return std::any_of(observers_.begin(), observers_.end(),
                     [](const Observer* observer) { return observer->wants_explanations(); });
}

void Gateway::SetTokenSource(std::unique_ptr<TokenSource> source) { tokens_ = std::move(source); }

void Gateway::SetRecorder(std::unique_ptr<DecisionRecorder> recorder) { recorder_ = std::move(recorder); }

void Gateway::SetObjectives(std::function<std::int32_t(std::string_view)> priority) {
  priority_ = std::move(priority);
}

void Gateway::SetRewrites(std::function<std::optional<std::string>(std::string_view, Random&)> rewrite) {
  rewrite_ = std::move(rewrite);
}

absl::Status Gateway::Reload(std::string_view text, std::vector<std::string>* warnings) {
  std::vector<std::string> said;
  if (absl::Status s = schedulers_->Load(text, options_.config, &said); !s.ok()) return s;
  const std::shared_ptr<sched::Scheduler> scheduler = schedulers_->Current().scheduler;
  const absl::StatusOr<PrefixPlan> plan = PrefixPlan::From(scheduler->config());
  if (!plan.ok()) return plan.status();
  approx_holders_->SetOptions(plan->approx);
  if (absl::Status s = flow_->SetScheduler(scheduler); !s.ok()) return s;
  if (warnings != nullptr) *warnings = said;
  const std::lock_guard lock(mutex_);
  warnings_ = std::move(said);
  return absl::OkStatus();
}

void Gateway::ShutDown() { flow_->ShutDown(); }

std::vector<std::string> Gateway::warnings() const {
  const std::lock_guard lock(mutex_);
  return warnings_;
}

Gateway::ApproxStats Gateway::approx_stats() const {
  const std::lock_guard lock(*approx_writer_);
  return {.index = approx_->stats(), .memory = approx_->memory_usage()};
}

}  // namespace llmd::host
