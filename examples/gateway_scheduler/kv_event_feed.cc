#include "examples/gateway_scheduler/kv_event_feed.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "examples/gateway_scheduler/kv_feed_loop.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

constexpr std::size_t kMaxWork = 64;

// What other threads leave for the feed's. Outlives the feed, since a listener of the pool cannot be taken
// back; after Close() nothing is left in it.
class Mailbox {
 public:
  using Work = std::function<void(index::PrefixIndex&)>;
  struct Letters {
    bool changed = false;  // the pool
    EndpointIdentities endpoints = {};
    absl::flat_hash_set<std::string> left = {};
    std::vector<Work> work = {};
    bool stop = false;
  };

  Mailbox() : wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (wake_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  }
  ~Mailbox() { close(wake_); }

  void OnPoolChange(const PoolChange& change, sched::EndpointPool& pool) {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    bindings.OnPoolChange(change, pool);
    letters_.changed = true;
    letters_.endpoints.clear();
    for (const sched::Endpoint& endpoint : pool.endpoints()) letters_.endpoints.push_back(endpoint.identity);
    for (const sched::Endpoint& endpoint : change.removed) {
      if (!pool.FindId(endpoint.id())) letters_.left.insert(endpoint.id());
    }
    Wake();
  }
  bool Post(Work work) {
    const std::lock_guard lock(mutex_);
    if (closed_ || letters_.work.size() >= kMaxWork) return false;
    letters_.work.push_back(std::move(work));
    Wake();
    return true;
  }
  void Stop() {
    const std::lock_guard lock(mutex_);
    letters_.stop = true;
    Wake();
  }
  Letters Take() {
    std::uint64_t count;
    (void)!read(wake_, &count, sizeof(count));
    const std::lock_guard lock(mutex_);
    return std::exchange(letters_, Letters());
  }
  Letters Close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    return std::exchange(letters_, Letters());
  }
  int descriptor() const { return wake_; }

  HolderBindings bindings;

 private:
  void Wake() {
    const std::uint64_t one = 1;
    (void)!write(wake_, &one, sizeof(one));
  }

  const int wake_;
  std::mutex mutex_;
  bool closed_ = false;
  Letters letters_;
};

// Ends the poller's wait when there are letters.
class Doorbell final : public PollSource {
 public:
  bool OnReady(absl::Time) override {
    rang_ = true;
    return false;
  }
  bool Answer() { return std::exchange(rang_, false); }

 private:
  bool rang_ = false;
};

}  // namespace

struct KvEventFeed::Impl {
  Impl(const KvFeedOptions& feed_options, std::optional<LabelSelector> selector, PoolStore& pool,
       index::PrefixIndex& i)
      : options(feed_options),
        index(i),
        mailbox(std::make_shared<Mailbox>()),
        loop(feed_options, std::move(selector), pool, i, mailbox->bindings) {
    loop.poller().Watch(mailbox->descriptor(), &doorbell);
  }

  void Run();
  void Publish() {
    auto stats = std::make_shared<const KvFeedStats>(loop.stats());
    const std::lock_guard lock(published_mutex);
    published.swap(stats);
  }

  const KvFeedOptions options;
  index::PrefixIndex& index;
  const std::shared_ptr<Mailbox> mailbox;
  Doorbell doorbell;
  KvFeedLoop loop;
  std::string bound;
  std::mutex published_mutex;
  std::shared_ptr<const KvFeedStats> published;
  std::thread thread;
};

void KvEventFeed::Impl::Run() {
  absl::Time next_stats = absl::Now() + options.stats_interval;
  bool stop = false;
  while (!stop) {
    loop.RunOnce();
    if (doorbell.Answer()) {
      Mailbox::Letters letters = mailbox->Take();
      if (letters.changed) loop.SetEndpoints(letters.endpoints, letters.left);
      for (const Mailbox::Work& work : letters.work) work(index);
      stop = letters.stop;
    }
    if (const absl::Time now = absl::Now(); now >= next_stats) {
      Publish();
      next_stats = now + options.stats_interval;
    }
  }
  const Mailbox::Letters letters = mailbox->Close();
  for (const Mailbox::Work& work : letters.work) work(index);
  Publish();
}

absl::StatusOr<std::unique_ptr<KvEventFeed>> KvEventFeed::Start(const KvFeedOptions& options, PoolStore& pool,
                                                                index::PrefixIndex& index) {
  const sched::PreciseOptions::KvEvents& events = options.precise.kv_events;
  std::optional<LabelSelector> selector;
  if (!events.pod_label_selector.empty()) {
    absl::StatusOr<LabelSelector> parsed = LabelSelector::Parse(events.pod_label_selector);
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("kvEventsConfig.podDiscoveryConfig.podLabelSelector: ", parsed.status().message()));
    }
    selector = *std::move(parsed);
  }
  std::unique_ptr<Impl> impl;
  try {
    impl = std::make_unique<Impl>(options, std::move(selector), pool, index);
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(absl::StrCat("KV event feed: ", error.what()));
  }
  if (!events.zmq_endpoint.empty()) {
    try {
      impl->bound = impl->loop.Bind(events.zmq_endpoint);
    } catch (const std::exception& error) {
      return absl::FailedPreconditionError(absl::StrCat("kvEventsConfig.zmqEndpoint: \"", events.zmq_endpoint,
                                                        "\" cannot be bound: ", error.what()));
    }
  }
  impl->Publish();
  std::unique_ptr<KvEventFeed> feed(new KvEventFeed(std::move(impl)));
  Impl* running = feed->impl_.get();
  running->thread = std::thread([running] { running->Run(); });
  pool.AddListener([mailbox = running->mailbox](const PoolChange& change, sched::EndpointPool& p) {
    mailbox->OnPoolChange(change, p);
  });
  return feed;
}

KvEventFeed::KvEventFeed(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

KvEventFeed::~KvEventFeed() {
  if (!impl_->thread.joinable()) return;
  impl_->mailbox->Stop();
  impl_->thread.join();
}

std::shared_ptr<const KvFeedStats> KvEventFeed::stats() const {
  const std::lock_guard lock(impl_->published_mutex);
  return impl_->published;
}

bool KvEventFeed::RunOnIndex(std::function<void(index::PrefixIndex&)> work) {
  return impl_->mailbox->Post(std::move(work));
}

const std::string& KvEventFeed::bound_endpoint() const { return impl_->bound; }

}  // namespace llmd::host
