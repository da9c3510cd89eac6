#include "examples/gateway_scheduler/kubernetes_discovery.h"

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include <spdlog/spdlog.h>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "examples/gateway_scheduler/published.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

using nlohmann::json;

// The objects of one kind as values, by key. Filled by a reflector's thread, read by the publisher's.
template <typename T>
class ObjectMap final : public ObjectHandler {
 public:
  using Read = std::function<absl::StatusOr<T>(const json&)>;
  // `keep_last`: an object that cannot be read stays what it was, instead of vanishing.
  ObjectMap(std::string kind, Read read, bool keep_last, std::function<void()> changed)
      : kind_(std::move(kind)), read_(std::move(read)), keep_last_(keep_last), changed_(std::move(changed)) {}

  void BeginList() override { listed_.clear(); }
  void Listed(const std::string& key, const json& object) override {
    if (std::optional<T> value = Value(key, object); value) listed_.insert_or_assign(key, *std::move(value));
  }
  void EndList() override {
    Change([&] {
      objects_ = std::exchange(listed_, {});
      known_ = true;
    });
  }
  void AddedOrModified(const std::string& key, const json& object) override {
    std::optional<T> value = Value(key, object);
    Change([&] {
      if (value) {
        objects_.insert_or_assign(key, *std::move(value));
      } else {
        objects_.erase(key);
      }
    });
  }
  void Deleted(const std::string& key) override {
    Change([&] { objects_.erase(key); });
  }
  void NotServed(const absl::Status&) override {
    Change([&] { not_served_ = true; });
  }

  // Calls `visit` with the map. False, without a call, before the first list.
  template <typename Visitor>
  bool Visit(Visitor visit) const {
    const std::lock_guard lock(mutex_);
    if (known_) visit(objects_);
    return known_;
  }
  bool settled() const {
    const std::lock_guard lock(mutex_);
    return known_ || not_served_;
  }

 private:
  template <typename Do>
  void Change(Do change) {
    {
      const std::lock_guard lock(mutex_);
      change();
    }
    changed_();
  }

  std::optional<T> Value(const std::string& key, const json& object) {
    absl::StatusOr<T> value = read_(object);
    if (value.ok()) return *std::move(value);
    spdlog::warn("Kubernetes: {} {} is passed over: {}", kind_, key, std::string(value.status().message()));
    if (!keep_last_) return std::nullopt;
    const std::lock_guard lock(mutex_);
    const auto last = objects_.find(key);
    return last == objects_.end() ? std::nullopt : std::optional<T>(last->second);
  }

  const std::string kind_;
  const Read read_;
  const bool keep_last_;
  const std::function<void()> changed_;
  std::map<std::string, T> listed_;  // of the reflector's thread
  mutable std::mutex mutex_;
  std::map<std::string, T> objects_;
  bool known_ = false;
  bool not_served_ = false;
};

// Of one API group: what is said about requests.
struct RequestGroup {
  explicit RequestGroup(const std::function<void()>& changed)
      : objectives("InferenceObjective", ReadObjective, false, changed),
        rewrites("InferenceModelRewrite", ReadRewrite, false, changed) {}

  ObjectMap<ObjectiveState> objectives;
  ObjectMap<RewriteState> rewrites;
  std::unique_ptr<Reflector> objective_reflector;  // ended before what they write to
  std::unique_ptr<Reflector> rewrite_reflector;
};

class Discovery final : public KubernetesDiscovery {
 public:
  Discovery(const KubernetesConfig& config, const KubernetesDiscoveryOptions& options,
            std::optional<PoolState> fixed, PoolStore& store)
      : config_(config),
        options_(options),
        store_(store),
        fixed_(std::move(fixed)),
        pools_("InferencePool", ReadPool, true, [this] { Wake(); }),
        objective_table_(std::make_shared<const ObjectiveTable>()),
        rewrite_table_(std::make_shared<const RewriteTable>()) {}

  ~Discovery() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    if (publisher_.joinable()) publisher_.join();
  }

  void Begin() {
    if (!fixed_) {
      const bool old = options_.pool_group == kPoolGroupOld;
      pool_reflector_ =
          Follow(absl::StrCat("/apis/", options_.pool_group, old ? "/v1alpha2" : "/v1"), "inferencepools", "",
                 absl::StrCat("metadata.name=", options_.pool_name), pools_);
      for (const std::string_view name : kObjectiveGroups) {
        RequestGroup& group =
            *request_groups_.emplace_back(std::make_unique<RequestGroup>([this] { Wake(); }));
        const std::string path = absl::StrCat("/apis/", ToAbsl(name), "/v1alpha2");
        group.objective_reflector = Follow(path, "inferenceobjectives", "", "", group.objectives);
        group.rewrite_reflector = Follow(path, "inferencemodelrewrites", "", "", group.rewrites);
      }
    }
    publisher_ = std::thread([this] { Run(); });
    Wake();
  }

  bool pool_synced() const override { return pool().has_value(); }
  std::optional<PoolState> pool() const override {
    const std::lock_guard lock(mutex_);
    return pool_;
  }
  std::shared_ptr<const ObjectiveTable> objectives() const override { return objective_table_.load(); }
  std::shared_ptr<const RewriteTable> rewrites() const override { return rewrite_table_.load(); }

  absl::Status status() const override {
    const std::lock_guard lock(mutex_);
    std::vector<const Reflector*> reflectors = {pool_reflector_.get(), pod_reflector_.get()};
    for (const auto& group : request_groups_) {
      reflectors.push_back(group->objective_reflector.get());
      reflectors.push_back(group->rewrite_reflector.get());
    }
    for (const Reflector* reflector : reflectors) {
      const absl::Status status = reflector == nullptr ? absl::OkStatus() : reflector->status();
      if (!status.ok() && !absl::IsNotFound(status)) return status;
    }
    return absl::OkStatus();
  }

  Counts counts() const override {
    const std::lock_guard lock(mutex_);
    Counts counts;
    counts.published = published_;
    if (pool_reflector_) counts.pools = pool_reflector_->counts();
    if (pod_reflector_) counts.pods = pod_reflector_->counts();
    return counts;
  }

 private:
  std::unique_ptr<Reflector> Follow(const std::string& group, const char* kind, const std::string& labels,
                                    const std::string& fields, ObjectHandler& handler) {
    ReflectorOptions options = options_.reflector;
    options.path = absl::StrCat(group, "/namespaces/", options_.pool_namespace, "/", kind);
    options.label_selector = labels;
    options.field_selector = fields;
    options.seed += ++reflectors_;
    return std::make_unique<Reflector>(config_, options, handler);
  }

  void Wake() {
    {
      const std::lock_guard lock(mutex_);
      dirty_ = true;
    }
    wake_.notify_all();
  }

  // Changes that come while one is published are published together.
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return dirty_ || stop_; });
      if (stop_) return;
      dirty_ = false;
      lock.unlock();
      Publish();
      lock.lock();
    }
  }

  void Publish() {
    std::optional<PoolState> pool = fixed_;
    if (!fixed_) {
      const bool known = pools_.Visit([&](const std::map<std::string, PoolState>& pools) {
        // The server was asked for one object, but may know no field selectors.
        const auto it = pools.find(absl::StrCat(options_.pool_namespace, "/", options_.pool_name));
        if (it != pools.end() && !it->second.terminating) pool = it->second;
      });
      if (!known) return;
    }
    SetPool(pool);
    if (!pool) {
      PublishTables(false);
      if (first_published_) SetEndpoints({});
      return;
    }
    const bool settled = std::all_of(request_groups_.begin(), request_groups_.end(), [](const auto& group) {
      return group->objectives.settled() && group->rewrites.settled();
    });
    if (!settled) return;
    PublishTables(true);
    std::vector<sched::EndpointMetadata> endpoints;
    const auto collect = [&](const std::map<std::string, PodState>& pods) {
      for (const auto& [key, pod] : pods) {
        if (pod.pod_namespace != options_.pool_namespace || !pool->selector.Matches(pod.labels)) continue;
        AppendEndpoints(pod, pool->target_ports, endpoints);
      }
    };
    // Pods of the last selector, among which are some of this one, until those of this one are listed.
    if (!pods_->Visit(collect) && !(last_pods_ && last_pods_->Visit(collect))) return;
    SetEndpoints(endpoints);
  }

  // Follows the pods of the pool's selector, and no others.
  void SetPool(const std::optional<PoolState>& pool) {
    const std::optional<LabelSelector> selector = pool ? std::optional(pool->selector) : std::nullopt;
    std::unique_ptr<Reflector> old;
    const bool moved = selector != selector_;
    {
      const std::lock_guard lock(mutex_);
      if (moved) old = std::move(pod_reflector_);
      if (pool_ != pool) {
        spdlog::info("Kubernetes: pool {}/{}: {}", options_.pool_namespace, options_.pool_name,
                     pool ? absl::StrCat("selector ", pool->selector.text(), ", ", pool->target_ports.size(),
                                         " target ports")
                          : std::string("there is none"));
      }
      pool_ = pool;
    }
    if (!moved) return;
    old.reset();
    selector_ = selector;
    if (pods_ && pods_->settled()) last_pods_ = std::move(pods_);
    pods_.reset();
    if (!pool) {
      last_pods_.reset();
      return;
    }
    pods_ = std::make_unique<ObjectMap<PodState>>("Pod", ReadPod, false, [this] { Wake(); });
    auto reflector = Follow("/api/v1", "pods", selector->text(), "", *pods_);
    const std::lock_guard lock(mutex_);
    pod_reflector_ = std::move(reflector);
  }

  void SetEndpoints(const std::vector<sched::EndpointMetadata>& endpoints) {
    if (pods_ && pods_->settled()) last_pods_.reset();
    if (const absl::Status status = store_.SetEndpoints(endpoints); !status.ok()) {
      spdlog::error("Kubernetes: {}", std::string(status.message()));
    }
    first_published_ = true;
    const std::lock_guard lock(mutex_);
    ++published_;
  }

  void PublishTables(bool pool_known) {
    auto objectives = std::make_shared<ObjectiveTable>();
    std::vector<RewriteObject> rewrites;
    const PoolReference self{.group = options_.pool_group, .name = options_.pool_name};
    if (pool_known) {
      // The group whose objects count comes last.
      for (auto group = request_groups_.rbegin(); group != request_groups_.rend(); ++group) {
        (*group)->objectives.Visit([&](const std::map<std::string, ObjectiveState>& all) {
          for (const auto& [key, objective] : all) {
            const auto& pools = objective.pools;
            if (objective.terminating || std::find(pools.begin(), pools.end(), self) == pools.end()) continue;
            objectives->Set(key.substr(key.find('/') + 1), objective.priority);
          }
        });
        (*group)->rewrites.Visit([&](const std::map<std::string, RewriteState>& all) {
          for (const auto& [key, rewrite] : all) {
            if (rewrite.terminating || rewrite.pool != self) continue;
            std::erase_if(rewrites,
                          [&](const RewriteObject& other) { return other.name == rewrite.object.name; });
            rewrites.push_back(rewrite.object);
          }
        });
      }
    }
    if (*objectives != *objective_table_.load()) objective_table_.store(std::move(objectives));
    if (RewriteTable table(std::move(rewrites)); !(table == *rewrite_table_.load())) {
      rewrite_table_.store(std::make_shared<const RewriteTable>(std::move(table)));
    }
  }

  const KubernetesConfig config_;
  const KubernetesDiscoveryOptions options_;
  PoolStore& store_;
  const std::optional<PoolState> fixed_;  // of the options

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool dirty_ = false;
  bool stop_ = false;
  std::optional<PoolState> pool_;
  std::uint64_t published_ = 0;

  ObjectMap<PoolState> pools_;
  Published<ObjectiveTable> objective_table_;
  Published<RewriteTable> rewrite_table_;

  // Of the publisher:
  std::optional<LabelSelector> selector_;           // whose pods are followed
  std::unique_ptr<ObjectMap<PodState>> pods_;       // null without a pool
  std::unique_ptr<ObjectMap<PodState>> last_pods_;  // of the selector before, until they are replaced
  bool first_published_ = false;
  std::uint64_t reflectors_ = 0;

  // After what they write to; ended before it.
  std::unique_ptr<Reflector> pool_reflector_;
  std::vector<std::unique_ptr<RequestGroup>> request_groups_;  // as kObjectiveGroups; none without a pool
  std::unique_ptr<Reflector> pod_reflector_;
  std::thread publisher_;
};

absl::Status CheckName(const char* option, const std::string& value) {
  const bool valid = !value.empty() && value.size() <= 253 &&
                     value.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-.") == std::string::npos;
  return valid ? absl::OkStatus()
               : absl::InvalidArgumentError(
                     absl::StrCat(option, " is \"", absl::CHexEscape(value.substr(0, 300)),
                                  "\", expected 1 to 253 lower-case letters, digits, dots and hyphens"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<KubernetesDiscovery>> KubernetesDiscovery::Start(
    const KubernetesConfig& config, const KubernetesDiscoveryOptions& given, PoolStore& pool) {
  KubernetesDiscoveryOptions options = given;
  if (options.pool_namespace.empty()) options.pool_namespace = config.pod_namespace;
  if (options.pool_namespace.empty()) options.pool_namespace = "default";
  absl::Status status = CheckName("--pool-namespace", options.pool_namespace);
  std::optional<PoolState> fixed;
  if (status.ok() && options.pool_name.empty() == options.endpoint_selector.empty()) {
    status = absl::InvalidArgumentError("one of --pool-name and --endpoint-selector is needed, not both");
  }
  if (!options.endpoint_selector.empty()) {
    absl::StatusOr<LabelSelector> selector = LabelSelector::Parse(options.endpoint_selector);
    absl::StatusOr<std::vector<std::uint16_t>> ports = CheckTargetPorts(options.endpoint_target_ports);
    if (status.ok()) status = selector.status();
    if (status.ok() && !ports.ok()) {
      status =
          absl::InvalidArgumentError(absl::StrCat("--endpoint-target-ports: ", ports.status().message()));
    }
    if (status.ok()) fixed = PoolState{.selector = *selector, .target_ports = *ports};
  } else {
    if (status.ok()) status = CheckName("--pool-name", options.pool_name);
    if (status.ok() && options.pool_group != kPoolGroup && options.pool_group != kPoolGroupOld) {
      status = absl::InvalidArgumentError(absl::StrCat("--pool-group is \"",
                                                       absl::CHexEscape(options.pool_group), "\", expected ",
                                                       ToAbsl(kPoolGroup), " or ", ToAbsl(kPoolGroupOld)));
    }
  }
  if (!status.ok()) return status;
  auto discovery = std::make_unique<Discovery>(config, options, std::move(fixed), pool);
  discovery->Begin();
  return discovery;
}

}  // namespace llmd::host
