#include "examples/gateway_scheduler/kv_replay_runner.h"

#include <exception>
#include <utility>

namespace llmd::host {
namespace {
constexpr int kMessagesAtATime = 64;
}

class KvReplayRunner::Replay final : public PollSource {
 public:
  Replay(KvReplayRunner& runner, KvPublisher& publisher, std::uint64_t request)
      : publisher_(publisher),
        request_(request),
        socket_(runner.context_, runner.settings_, publisher.options().replay),
        runner_(runner) {}

  bool Begin(absl::Time now, std::uint64_t start) {
    last_ = now;
    if (!socket_.Send(start)) return false;
    descriptor_ = socket_.descriptor();
    runner_.poller_.Watch(descriptor_, this);
    return true;
  }

  bool OnReady(absl::Time now) override {
    for (int i = 0; i < kMessagesAtATime; ++i) {
      if (stopped_ || !socket_.Receive(message_)) return false;
      last_ = now;
      // May stop this replay, and start another one of the publisher.
      const bool over = publisher_.OnReplayMessage(now, request_, message_.frames());
      if (stopped_) return false;
      if (over) {
        runner_.Cancel(publisher_);
        return false;
      }
    }
    return true;
  }

  void Stop() {
    stopped_ = true;
    if (descriptor_ >= 0) runner_.poller_.Forget(std::exchange(descriptor_, -1));
  }
  absl::Time last() const { return last_; }
  std::uint64_t request() const { return request_; }

 private:
  KvPublisher& publisher_;
  const std::uint64_t request_;
  ReplaySocket socket_;
  KvReplayRunner& runner_;
  FramedMessage message_;
  absl::Time last_ = absl::InfinitePast();
  int descriptor_ = -1;
  bool stopped_ = false;
};

KvReplayRunner::KvReplayRunner(zmq::context_t& context, const SocketSettings& settings, SocketPoller& poller,
                               std::size_t max_running, absl::Duration idle_timeout)
    : context_(context),
      settings_(settings),
      poller_(poller),
      max_running_(max_running),
      idle_timeout_(idle_timeout) {}

KvReplayRunner::~KvReplayRunner() = default;

void KvReplayRunner::Request(KvPublisher& publisher, std::uint64_t request, std::uint64_t start) {
  Cancel(publisher);
  waiting_.push_back({&publisher, request, start});
}

bool KvReplayRunner::Stop(KvPublisher& publisher) {
  const auto it = running_.find(&publisher);
  if (it == running_.end()) return false;
  std::unique_ptr<Replay> replay = std::move(it->second);
  running_.erase(it);
  replay->Stop();
  poller_.Dispose(std::move(replay));
  return true;
}

void KvReplayRunner::Cancel(KvPublisher& publisher) {
  if (Stop(publisher)) return;
  std::erase_if(waiting_, [&](const Waiting& waiting) { return waiting.publisher == &publisher; });
}

void KvReplayRunner::StartWaiting(absl::Time now) {
  while (!waiting_.empty() && running_.size() < max_running_) {
    const Waiting next = waiting_.front();
    waiting_.pop_front();
    std::unique_ptr<Replay> replay;
    bool started = false;
    try {
      replay = std::make_unique<Replay>(*this, *next.publisher, next.request);
      started = replay->Begin(now, next.start);
    } catch (const std::exception&) {
      started = false;
    }
    if (started) {
      running_.emplace(next.publisher, std::move(replay));
      continue;
    }
    ++socket_errors_;
    next.publisher->OnReplayFailed(now, next.request);
  }
}

void KvReplayRunner::Tick(absl::Time now) {
  std::vector<std::pair<KvPublisher*, std::uint64_t>> silent;
  for (const auto& [publisher, replay] : running_) {
    if (now - replay->last() >= idle_timeout_) silent.emplace_back(publisher, replay->request());
  }
  for (const auto& [publisher, request] : silent) {
    Stop(*publisher);
    publisher->OnReplayFailed(now, request);
  }
  StartWaiting(now);
}

}  // namespace llmd::host
