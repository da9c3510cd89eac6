#include "examples/gateway_scheduler/metrics_scraper.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <map>
#include <mutex>
#include <queue>
#include <span>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

namespace llmd::host {
namespace {

using Clock = CurlLoop::Clock;
using std::chrono::nanoseconds;

// Of the interval, in which scrapes start: some at a time wake the thread less often than each by itself.
constexpr int kSlots = 10;

nanoseconds Nanoseconds(absl::Duration duration) { return absl::ToChronoNanoseconds(duration); }

ScraperOptions Sane(ScraperOptions options) {
  options.interval = std::max(options.interval, absl::Milliseconds(1));
  options.timeout = std::max(options.timeout, absl::Milliseconds(1));
  options.max_backoff = std::max(options.max_backoff, options.interval);
  options.batch = std::max(options.batch, absl::ZeroDuration());
  options.reading.limits.max_bytes = options.max_page_bytes;
  if (options.engines == nullptr) {
    options.engines = std::make_shared<const gateway::EngineCatalog>(*gateway::EngineCatalog::Create());
  }
  return options;
}

std::string UrlOf(const ScraperOptions& options, const sched::EndpointIdentity& identity) {
  std::string host_port = identity.host_port;
  if (options.port != 0) {
    host_port = absl::StrCat(host_port.substr(0, host_port.rfind(':')), ":", options.port);
  }
  return absl::StrCat(options.scheme, "://", host_port, options.path);
}

}  // namespace

class MetricsScraper::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(const ScraperOptions& options, PoolStore& pool, CurlLoop& loop)
      : options_(Sane(options)),
        interval_(Nanoseconds(options_.interval)),
        pool_(pool),
        loop_(loop),
        begin_(Clock::now()) {
    for (const gateway::EngineConfig& engine : options_.engines->engines()) {
      readers_.emplace_back(engine, options_.reading);
    }
  }

  void Listen() {
    pool_.AddListener([weak = weak_from_this()](const PoolChange& change, sched::EndpointPool&) {
      const std::shared_ptr<Impl> self = weak.lock();
      if (self == nullptr) return;
      self->loop_.Post([weak, change] {
        if (const std::shared_ptr<Impl> self = weak.lock()) self->Apply(change);
      });
    });
  }

  // On the loop's thread.
  void Stop() {
    stopped_ = true;
    for (const auto& [slot, target] : targets_) {
      if (target->in_flight != 0) loop_.Cancel(target->in_flight);
    }
  }

  CurlLoop& loop() { return loop_; }

  ScraperCounters counters() const {
    const std::lock_guard lock(mutex_);
    ScraperCounters counters = counters_;
    counters.connections = loop_.connections();
    return counters;
  }

  std::vector<EndpointScrape> Endpoints() const {
    std::vector<EndpointScrape> all;
    {
      const std::lock_guard lock(mutex_);
      all.reserve(targets_.size());
      for (const auto& [slot, target] : targets_) all.push_back(target->status);
    }
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    return all;
  }

 private:
  struct Target {
    sched::EndpointHandle handle;
    std::shared_ptr<const sched::EndpointIdentity> identity;
    gateway::EngineMetricsReader* reader = nullptr;
    nanoseconds phase{0};
    Clock::time_point not_before{};
    CurlLoop::Id in_flight = 0;
    bool dirty = false;
    sched::Metrics metrics;
    std::vector<sched::Attribute> attributes;
    std::vector<gateway::FieldProblem> problems;
    EndpointScrape status;  // under the mutex
  };
  struct Due {
    Clock::time_point when;
    sched::EndpointHandle handle;
    bool operator<(const Due& other) const { return when > other.when; }
  };

  Target* Find(sched::EndpointHandle handle) {
    const auto found = targets_.find(handle.slot);
    return found != targets_.end() && found->second->handle == handle ? found->second.get() : nullptr;
  }

  void Apply(const PoolChange& change) {
    if (stopped_) return;
    for (const sched::Endpoint& endpoint : change.removed) {
      Target* target = Find(endpoint.handle);
      if (target == nullptr) continue;
      if (target->in_flight != 0) loop_.Cancel(target->in_flight);
      const std::lock_guard lock(mutex_);
      targets_.erase(endpoint.handle.slot);
    }
    const Clock::time_point now = Clock::now();
    for (const sched::Endpoint& endpoint : change.added) {
      auto target = std::make_unique<Target>();
      target->handle = endpoint.handle;
      target->identity = endpoint.identity;
      target->metrics = endpoint.metrics;
      target->attributes = endpoint.attributes;
      const gateway::EngineConfig& engine = options_.engines->For(endpoint.metadata().labels);
      target->reader = &readers_[&engine - options_.engines->engines().data()];
      // Multiples of the golden ratio divide the interval evenly for any number of endpoints.
      const double share = std::fmod(0.6180339887498949 * static_cast<double>(phases_++), 1.0);
      target->phase = static_cast<std::int64_t>(share * kSlots) * (interval_ / kSlots);
      target->status.id = endpoint.id();
      target->status.url = UrlOf(options_, *endpoint.identity);
      target->status.engine = engine.name;
      due_.push({NextDue(*target, now), endpoint.handle});
      const std::lock_guard lock(mutex_);
      targets_[endpoint.handle.slot] = std::move(target);
    }
    Arm();
  }

  // The target's first turn that is not before `when`.
  Clock::time_point NextDue(const Target& target, Clock::time_point when) const {
    const nanoseconds since = when - begin_ - target.phase;
    const std::int64_t turns =
        since.count() <= 0 ? 0 : (since.count() + interval_.count() - 1) / interval_.count();
    return begin_ + target.phase + turns * interval_;
  }

  void Arm() {
    if (stopped_ || due_.empty() || (armed_ && *armed_ <= due_.top().when)) return;
    armed_ = due_.top().when;
    loop_.At(*armed_, [weak = weak_from_this(), when = *armed_] {
      const std::shared_ptr<Impl> self = weak.lock();
      if (self == nullptr || self->armed_ != when) return;
      self->armed_.reset();
      self->Tick();
    });
  }

  void Tick() {
    if (stopped_) return;
    const Clock::time_point now = Clock::now();
    while (!due_.empty() && due_.top().when <= now) {
      const sched::EndpointHandle handle = due_.top().handle;
      due_.pop();
      Target* target = Find(handle);
      if (target == nullptr) continue;
      if (target->in_flight != 0) {
        const std::lock_guard lock(mutex_);
        ++counters_.late;
      } else if (now >= target->not_before) {
        Scrape(*target, now);
      }
      due_.push({NextDue(*target, std::max(now + nanoseconds(1), target->not_before)), handle});
    }
    Arm();
  }

  void Scrape(Target& target, Clock::time_point now) {
    target.in_flight =
        loop_.Fetch({.url = target.status.url,
                     .headers = options_.headers,
                     .timeout = std::chrono::ceil<std::chrono::milliseconds>(Nanoseconds(options_.timeout)),
                     .max_body_bytes = options_.max_page_bytes,
                     .tls = options_.tls},
                    [weak = weak_from_this(), handle = target.handle, now](FetchResult& result) {
                      const std::shared_ptr<Impl> self = weak.lock();
                      if (self == nullptr || self->stopped_) return;
                      if (Target* target = self->Find(handle)) self->Finish(*target, now, result);
                    });
    const std::lock_guard lock(mutex_);
    ++counters_.started;
    target.status.in_flight = true;
  }

  void Finish(Target& target, Clock::time_point started, FetchResult& result) {
    target.in_flight = 0;
    const absl::Time now = absl::Now();
    absl::Status status = result.status;
    std::uint64_t ScraperCounters::*error = nullptr;
    bool new_problems = false;
    if (!status.ok()) {
      error = absl::IsDeadlineExceeded(status)    ? &ScraperCounters::timed_out
              : absl::IsResourceExhausted(status) ? &ScraperCounters::too_long
                                                  : &ScraperCounters::unreachable;
    } else if (result.code != 200) {
      error = &ScraperCounters::bad_status;
      status = absl::UnavailableError(absl::StrCat("HTTP status ", result.code));
    } else {
      status = target.reader->Read(result.body, now, target.metrics, target.attributes, report_);
      if (!status.ok()) {
        error = &ScraperCounters::refused_pages;
      } else {
        new_problems = target.problems != report_.problems;
        if (new_problems) target.problems = report_.problems;
      }
    }
    const Clock::time_point end = Clock::now();
    {
      const std::lock_guard lock(mutex_);
      EndpointScrape& shown = target.status;
      shown.in_flight = false;
      if (error != nullptr) {
        ++(counters_.*error);
        ++shown.failures;
        shown.last_error = std::string(status.message());
        shown.last_error_at = now;
      } else {
        ++counters_.good;
        counters_.bytes += result.body.size();
        counters_.field_problems += report_.problems.size();
        shown.failures = 0;
        shown.last_good = now;
        shown.took = absl::FromChrono(end - started);
        shown.page_bytes = result.body.size();
        if (new_problems) shown.problems = report_.ToString(target.reader->config());
      }
    }
    if (error != nullptr) {
      const auto delay = interval_ * (std::int64_t{1} << std::min<std::uint32_t>(target.status.failures, 20));
      target.not_before = end + std::min<nanoseconds>(delay, Nanoseconds(options_.max_backoff));
      return;
    }
    target.not_before = {};
    if (report_.updated == 0) return;
    if (!target.dirty) dirty_.push_back(target.handle);
    target.dirty = true;
    if (publishing_) return;
    publishing_ = true;
    loop_.At(std::max(end, published_ + Nanoseconds(options_.batch)), [weak = weak_from_this()] {
      if (const std::shared_ptr<Impl> self = weak.lock()) self->Publish();
    });
  }

  void Publish() {
    publishing_ = false;
    if (stopped_) return;
    pool_.Update([&](sched::EndpointPool& pool) {
      for (const sched::EndpointHandle handle : dirty_) {
        Target* target = Find(handle);
        sched::Metrics* metrics = pool.mutable_metrics(handle);
        if (target != nullptr) target->dirty = false;
        if (target == nullptr || metrics == nullptr) continue;
        *metrics = target->metrics;
        for (const sched::Attribute& attribute : target->attributes) {
          pool.SetAttribute(handle, attribute.name, attribute.sample);
        }
      }
    });
    dirty_.clear();
    published_ = Clock::now();
    const std::lock_guard lock(mutex_);
    ++counters_.publications;
  }

  const ScraperOptions options_;
  const nanoseconds interval_;
  PoolStore& pool_;
  CurlLoop& loop_;
  const Clock::time_point begin_;

  // Of the loop's thread. The map of targets is changed under the mutex.
  bool stopped_ = false;
  std::vector<gateway::EngineMetricsReader> readers_;
  absl::flat_hash_map<std::uint32_t, std::unique_ptr<Target>> targets_;  // by slot
  std::uint64_t phases_ = 0;
  std::priority_queue<Due> due_;
  std::optional<Clock::time_point> armed_;
  gateway::MetricsReport report_;
  std::vector<sched::EndpointHandle> dirty_;
  bool publishing_ = false;
  Clock::time_point published_{};

  mutable std::mutex mutex_;
  ScraperCounters counters_;
};

MetricsScraper::MetricsScraper(const ScraperOptions& options, PoolStore& pool, CurlLoop& loop)
    : impl_(std::make_shared<Impl>(options, pool, loop)) {
  impl_->Listen();
}

MetricsScraper::~MetricsScraper() {
  if (impl_->loop().OnLoopThread()) {
    impl_->Stop();
    return;
  }
  auto stopped = std::make_shared<std::promise<void>>();
  impl_->loop().Post([impl = impl_, stopped] {
    impl->Stop();
    stopped->set_value();
  });
  stopped->get_future().wait();
}

ScraperCounters MetricsScraper::counters() const { return impl_->counters(); }
std::vector<EndpointScrape> MetricsScraper::Endpoints() const { return impl_->Endpoints(); }

absl::StatusOr<std::optional<ScraperOptions>> ScraperOptionsOf(const sched::Scheduler& scheduler,
                                                               absl::Duration refresh) {
  const auto host_plugin = [&](const std::string& name) {
    return dynamic_cast<const sched::HostPlugin*>(scheduler.FindPlugin(name));
  };
  for (const sched::DataSourceConfig& config : scheduler.config().data_layer.sources) {
    const sched::HostPlugin* source = host_plugin(config.plugin);
    if (source == nullptr ||
        (source->type() != "metrics-data-source" && source->type() != "multicluster-metrics-data-source")) {
      continue;
    }
    ScraperOptions options;
    bool insecure = true;
    absl::Duration interval = refresh;
    sched::ParameterReader read(source->name(), source->parameters());
    read.Optional("scheme", &options.scheme);
    read.Optional("path", &options.path);
    read.Optional("insecureSkipVerify", &insecure);
    read.Optional("caCertPath", &options.tls.ca_file);
    read.Optional("clientCertPath", &options.tls.certificate_file);
    read.Optional("clientKeyPath", &options.tls.key_file);
    read.Optional("interval", &interval);
    if (absl::Status status = read.Finish(); !status.ok()) return status;
    if (options.scheme.empty()) options.scheme = "http";
    if (options.path.empty()) options.path = "/metrics";
    options.tls.verify = !insecure;
    options.interval = refresh * std::max(std::round(absl::FDivDuration(interval, refresh)), 1.0);
    options.reading.compatibility = scheduler.config().compatibility;
    for (const std::string& name : config.extractors) {
      const sched::HostPlugin* extractor = host_plugin(name);
      if (extractor == nullptr || extractor->type() != "core-metrics-extractor") continue;
      absl::StatusOr<gateway::EngineCatalog> catalog =
          gateway::EngineCatalog::FromParameters(extractor->parameters());
      if (!catalog.ok()) {
        return absl::Status(catalog.status().code(),
                            absl::StrCat("plugin \"", name, "\": ", catalog.status().message()));
      }
      options.engines = std::make_shared<const gateway::EngineCatalog>(*std::move(catalog));
    }
    return options;
  }
  return std::nullopt;
}

}  // namespace llmd::host
