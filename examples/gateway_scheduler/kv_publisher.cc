#include "examples/gateway_scheduler/kv_publisher.h"

#include <algorithm>
#include <utility>

#include "llmd/base/strings.h"
#include "llmd/events/topic.h"
#include "src/gateway/utf8.h"

namespace llmd::host {
namespace {

using events::StreamAction;
using events::StreamCounters;

constexpr std::size_t kMaxModelBytes = 512;
// A publisher whose topic alternates must not have the feed start over with each message.
constexpr absl::Duration kMinModelAge = absl::Seconds(1);
// Timestamps above are milliseconds since the epoch, as stores write them.
constexpr double kMillisecondsFrom = 1e11;

void AddTo(StreamCounters& sum, const StreamCounters& counters) {
  sum.applied += counters.applied;
  sum.duplicates += counters.duplicates;
  sum.dropped += counters.dropped;
  sum.gaps_total += counters.gaps_total;
  sum.events_lost_total += counters.events_lost_total;
  sum.restarts += counters.restarts;
  sum.clears += counters.clears;
  sum.replays_requested += counters.replays_requested;
  sum.replays_failed += counters.replays_failed;
  sum.malformed += counters.malformed;
}

bool IsModelName(std::string_view text) {
  return text.size() <= kMaxModelBytes && gateway::IsUtf8(text) &&
         std::none_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

}  // namespace

KvIntake::KvIntake(index::PrefixIndex& index, PoolStore& pool, HolderBindings& bindings)
    : pool_(pool), bindings_(bindings), ingestor_(index, {}) {
  ingestor_.SetHolderCallback(
      [this](ingest::PublisherId id, index::HolderId holder, const index::HolderOptions& options) {
        const auto it = publishers_.find(id);
        KvPublisher* publisher = it == publishers_.end() ? adding_ : it->second;
        publisher->holders_.push_back(holder);
        bindings_.Bind(publisher->options_.endpoint_id, publisher->options_.host_port, holder, options.tier);
      });
}

bool KvIntake::Decode(std::span<const std::byte> payload) {
  if (ahead_.empty() || ahead_.data() != payload.data() || ahead_.size() != payload.size()) {
    ahead_ = {};
    decode_status_ = decoder_.Decode(payload, batch_);
  }
  return decode_status_.ok();
}

bool KvIntake::DecodeAhead(std::span<const std::byte> payload) {
  ahead_ = {};
  const bool decoded = Decode(payload);
  ahead_ = payload;
  return decoded;
}

absl::Status KvIntake::Add(KvPublisher& publisher, const ingest::PublisherOptions& options) {
  adding_ = &publisher;
  const absl::StatusOr<ingest::PublisherId> id = ingestor_.AddPublisher(options);
  adding_ = nullptr;
  if (!id.ok()) return id.status();
  publisher.ingest_id_ = *id;
  publishers_.emplace(*id, &publisher);
  // What the index holds of the endpoint from before, nobody has verified.
  if (!publisher.holders_.empty()) ingestor_.Clear(*id);
  return absl::OkStatus();
}

void KvIntake::Retire(std::span<KvPublisher* const> publishers) {
  // Out of the pool first: a slot of the index that is used again must not lead to an earlier endpoint.
  for (KvPublisher* publisher : publishers) {
    for (const index::HolderId holder : publisher->holders_) {
      bindings_.Unbind(publisher->options_.endpoint_id, holder);
    }
  }
  bindings_.Flush(pool_);
  for (KvPublisher* publisher : publishers) {
    publisher->holders_.clear();
    if (publisher->ingest_id_ == 0) continue;
    ingestor_.RemovePublisher(publisher->ingest_id_);
    publishers_.erase(publisher->ingest_id_);
    publisher->ingest_id_ = 0;
  }
}

KvPublisher::KvPublisher(const KvPublisherOptions& options, KvIntake& intake, KvReplays& replays)
    : options_(options),
      intake_(intake),
      replays_(replays),
      stream_(options.stream),
      model_(options.default_model),
      model_known_(!options.default_model.empty()) {}

void KvPublisher::NewStream() {
  replays_.Cancel(*this);
  AddTo(earlier_, stream_.counters());
  stream_ = events::PublisherStream(options_.stream);
}

void KvPublisher::Restart() {
  NewStream();
  awaits_topic_ = false;
}

void KvPublisher::OnConnected(absl::Time now) {
  reconnections_ += was_connected_;
  connected_ = was_connected_ = true;
  disconnected_ = absl::InfiniteFuture();
  if (!awaits_topic_) Perform(now, stream_.OnConnected(now));
}

void KvPublisher::OnDisconnected(absl::Time now) {
  if (!std::exchange(connected_, false)) return;
  disconnected_ = now;
  // Whoever answers from now on may be another process; its stream begins with the next connection.
  replays_.Cancel(*this);
}

void KvPublisher::OnLive(absl::Time now, const events::LiveMessage& message) {
  ++live_messages_;
  last_message_ = now;
  if (!SetModel(now, events::ParseTopic(message.topic).model)) return;
  live_topic_ = true;
  if (std::exchange(awaits_topic_, false)) Perform(now, stream_.OnConnected(now));
  Perform(now, stream_.OnLive(now, message.seq, message.payload));
}

void KvPublisher::OnMalformed(const absl::Status& why) {
  ++malformed_;
  last_error_ = std::string(why.message());
}

bool KvPublisher::OnReplayMessage(absl::Time now, std::uint64_t request,
                                  std::span<const events::Frame> frames) {
  const absl::StatusOr<events::ReplayMessage> message = events::ParseReplayMessage(frames);
  if (!message.ok()) {
    ++malformed_;
    last_error_ = std::string(message.status().message());
    Perform(now, stream_.OnReplayFailed(now, request, events::PublisherStream::ReplayFailure::kMalformed));
    return true;
  }
  if (message->end) {
    Perform(now, stream_.OnReplayEnd(now, request));
    return true;
  }
  ++replay_messages_;
  // What live messages say goes before what replays say.
  if (!live_topic_) {
    if (const std::string_view model = events::ParseTopic(message->topic).model; !model.empty()) {
      const bool restarts = ingest_id_ != 0 && model != model_;
      if (!SetModel(now, model) || restarts) return false;
    } else if (!model_known_) {
      NewStream();
      awaits_topic_ = true;
      return true;
    }
  }
  Perform(now, stream_.OnReplayBatch(now, request, message->seq, message->payload));
  return false;
}

void KvPublisher::OnReplayFailed(absl::Time now, std::uint64_t request) {
  Perform(now, stream_.OnReplayFailed(now, request, events::PublisherStream::ReplayFailure::kTransport));
}

bool KvPublisher::SetModel(absl::Time now, std::string_view model) {
  if (!IsModelName(model)) {
    ++malformed_;
    last_error_ = "the topic's model is not UTF-8 of at most 512 bytes without control characters";
    return false;
  }
  const bool by_topic = !model.empty();
  if (!by_topic) model = options_.default_model;
  if (model == model_) {
    model_known_ = true;
    named_ |= by_topic;
    return true;
  }
  if (named_) {
    if (now - model_changed_ < kMinModelAge) {
      ++malformed_;
      last_error_ = "the topic's model changes more than once a second";
      return false;
    }
    ++model_changes_;
    model_changed_ = now;
  }
  model_ = model;
  model_known_ = true;
  named_ |= by_topic;
  if (ingest_id_ == 0) return true;
  KvPublisher* self = this;
  intake_.Retire({&self, 1});
  NewStream();
  if (!awaits_topic_) Perform(now, stream_.OnConnected(now));
  return true;
}

void KvPublisher::Perform(absl::Time now, events::PublisherStream::Actions actions) {
  for (const StreamAction& action : actions) {
    switch (action.kind) {
      case StreamAction::Kind::kApply:
        Apply(now, action.payload);
        break;
      case StreamAction::Kind::kClear:
        if (ingest_id_ != 0) intake_.ingestor().Clear(ingest_id_);
        break;
      case StreamAction::Kind::kRequestReplay:
        if (connected_) replays_.Request(*this, action.request, action.seq);
        break;
      case StreamAction::Kind::kCancelReplay:
        replays_.Cancel(*this);
        break;
    }
  }
}

void KvPublisher::Apply(absl::Time now, std::span<const std::byte> payload) {
  if (ingest_id_ == 0) {
    const absl::Status added = intake_.Add(
        *this, {.endpoint = options_.holder_name, .model = model_, .gpu_removal = options_.gpu_removal});
    if (!added.ok()) {
      ++bad_batches_;
      last_error_ = std::string(added.message());
      return;
    }
  }
  if (!intake_.Decode(payload)) {
    ++bad_batches_;
    last_error_ = std::string(intake_.decode_status().message());
    return;
  }
  const events::EventBatch& batch = intake_.batch();
  if (batch.skipped_events() > 0) {
    skipped_events_ += batch.skipped_events();
    last_error_ = std::string(batch.first_error().message());
  }
  const double sent = batch.timestamp() > kMillisecondsFrom ? batch.timestamp() / 1000 : batch.timestamp();
  if (sent > 0) lag_ = now - absl::UnixEpoch() - absl::Seconds(sent);
  const absl::StatusOr<bool> parent_unknown = intake_.ingestor().Apply(ingest_id_, batch);
  unknown_parents_ += parent_unknown.ok() && *parent_unknown;
}

bool KvPublisher::busy() const {
  return (connected_ && stream_.next_deadline() != absl::InfiniteFuture()) ||
         disconnected_ != absl::InfiniteFuture();
}

void KvPublisher::Tick(absl::Time now) {
  if (now - disconnected_ >= options_.disconnect_grace) {
    // Nobody knows what it still has. When it is back its stream begins anew.
    disconnected_ = absl::InfiniteFuture();
    NewStream();
    if (ingest_id_ != 0) intake_.ingestor().Clear(ingest_id_);
  } else if (connected_ && now >= stream_.next_deadline()) {
    Perform(now, stream_.Tick(now));
  }
}

KvPublisherStats KvPublisher::stats() const {
  KvPublisherStats stats;
  stats.endpoint_id = options_.endpoint_id;
  stats.host_port = options_.host_port;
  stats.holder_name = options_.holder_name;
  stats.model = model_;
  stats.connected = connected_;
  stats.in_sync = connected_ && !awaits_topic_ && stream_.in_sync();
  stats.replays = options_.stream.replay;
  stats.last_message = last_message_;
  stats.lag = lag_;
  stats.live_messages = live_messages_;
  stats.replay_messages = replay_messages_;
  stats.malformed = malformed_;
  stats.bad_batches = bad_batches_;
  stats.skipped_events = skipped_events_;
  stats.unknown_parents = unknown_parents_;
  stats.reconnections = reconnections_;
  stats.model_changes = model_changes_;
  stats.holders = holders_.size();
  stats.held_bytes = stream_.held_bytes();
  stats.stream = earlier_;
  AddTo(stats.stream, stream_.counters());
  stats.last_error = last_error_;
  return stats;
}

}  // namespace llmd::host
