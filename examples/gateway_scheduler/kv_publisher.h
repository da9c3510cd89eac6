// One publisher of KV events as the feed follows it: its stream, the model it publishes for, and its holders
// in the index. It has no socket: messages and connection events go in, replay requests go out through
// KvReplays.
//
// The model. Requests are matched under their model's name, so a publisher's blocks must be filed under the
// same text: the model part of the topic (kv@<pod>@<model>), else the endpoint's label llmd.ai/kv-model, else
// FeedOptions::default_model. Older replay replies carry no topic; a publisher of which no model is known yet
// is then asked again after its first live message. A topic that names another model than before starts the
// publisher anew.
//
// Threads: the feed's.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KV_PUBLISHER_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KV_PUBLISHER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/kv_feed_stats.h"
#include "examples/gateway_scheduler/kv_holder_bindings.h"
#include "llmd/events/decoder.h"
#include "llmd/events/event.h"
#include "llmd/events/frames.h"
#include "llmd/events/publisher_stream.h"
#include "llmd/index/prefix_index.h"
#include "llmd/ingest/kv_event_ingestor.h"

namespace llmd::host {

class KvPublisher;

// Carries replay requests. Neither call may call the publisher back.
class KvReplays {
 public:
  virtual ~KvReplays() = default;
  virtual void Request(KvPublisher& publisher, std::uint64_t request, std::uint64_t start) = 0;
  virtual void Cancel(KvPublisher& publisher) = 0;
};

// What all publishers of a feed share: the way from a payload into the index and the pool.
class KvIntake {
 public:
  KvIntake(index::PrefixIndex& index, PoolStore& pool, HolderBindings& bindings);

  // False when the payload is not a batch. After DecodeAhead(), Decode() of the same payload is free, until
  // ForgetPayload(): to be called before the payload's memory holds another.
  bool Decode(std::span<const std::byte> payload);
  bool DecodeAhead(std::span<const std::byte> payload);
  void ForgetPayload() { ahead_ = {}; }
  const events::EventBatch& batch() const { return batch_; }
  const absl::Status& decode_status() const { return decode_status_; }

  // The publishers' holders leave pool and index; their next batch makes new ones.
  void Retire(std::span<KvPublisher* const> publishers);

  ingest::KvEventIngestor& ingestor() { return ingestor_; }
  const ingest::KvEventIngestor& ingestor() const { return ingestor_; }
  // Adds the publisher to the ingestor. It is known from then on to the holder callback.
  absl::Status Add(KvPublisher& publisher, const ingest::PublisherOptions& options);

 private:
  PoolStore& pool_;
  HolderBindings& bindings_;
  ingest::KvEventIngestor ingestor_;
  events::EventDecoder decoder_;
  events::EventBatch batch_;
  absl::Status decode_status_;
  std::span<const std::byte> ahead_ = {};  // what batch_ was decoded from, if that may be used again
  KvPublisher* adding_ = nullptr;
  absl::flat_hash_map<ingest::PublisherId, KvPublisher*> publishers_;
};

struct KvPublisherOptions {
  std::string endpoint_id = {};    // of the pool, "namespace/name"
  std::string host_port = {};      // the endpoint's
  std::string holder_name = {};    // unique among all publishers
  std::string replay = {};         // address of the replay socket; empty: none
  std::string default_model = {};  // where the topic does not say; empty: not known
  index::RemovalPolicy gpu_removal = index::RemovalPolicy::kSet;
  events::StreamOptions stream = {};
  absl::Duration disconnect_grace = absl::Seconds(30);
};

class KvPublisher {
 public:
  KvPublisher(const KvPublisherOptions& options, KvIntake& intake, KvReplays& replays);
  KvPublisher(const KvPublisher&) = delete;
  KvPublisher& operator=(const KvPublisher&) = delete;

  void OnConnected(absl::Time now);
  void OnDisconnected(absl::Time now);
  void OnLive(absl::Time now, const events::LiveMessage& message);
  // A live message that is none.
  void OnMalformed(const absl::Status& why);
  // An answer to `request`, as received. True when it was the last one.
  bool OnReplayMessage(absl::Time now, std::uint64_t request, std::span<const events::Frame> frames);
  void OnReplayFailed(absl::Time now, std::uint64_t request);
  void Tick(absl::Time now);
  // Tick() has something to do before long.
  bool busy() const;
  // Everything heard of it is to be forgotten (KvIntake::Retire() does it for index and pool).
  void Restart();

  const KvPublisherOptions& options() const { return options_; }
  bool connected() const { return connected_; }
  KvPublisherStats stats() const;

 private:
  friend class KvIntake;

  void Perform(absl::Time now, events::PublisherStream::Actions actions);
  void Apply(absl::Time now, std::span<const std::byte> payload);
  // False when the message is not to be used.
  bool SetModel(absl::Time now, std::string_view model);
  void NewStream();

  const KvPublisherOptions options_;
  KvIntake& intake_;
  KvReplays& replays_;
  events::PublisherStream stream_;
  events::StreamCounters earlier_;  // of streams that were given up

  ingest::PublisherId ingest_id_ = 0;     // 0: not in the ingestor
  std::vector<index::HolderId> holders_;  // of the index
  std::string model_;
  bool model_known_ = false;   // from a topic or from the options
  bool named_ = false;         // by a topic
  bool live_topic_ = false;    // of a live message
  bool awaits_topic_ = false;  // a replay brought batches of no known model
  bool connected_ = false;
  bool was_connected_ = false;
  absl::Time disconnected_ = absl::InfiniteFuture();
  absl::Time model_changed_ = absl::InfinitePast();
  absl::Time last_message_ = absl::InfinitePast();
  absl::Duration lag_ = absl::ZeroDuration();

  std::uint64_t live_messages_ = 0;
  std::uint64_t replay_messages_ = 0;
  std::uint64_t malformed_ = 0;
  std::uint64_t bad_batches_ = 0;
  std::uint64_t skipped_events_ = 0;
  std::uint64_t unknown_parents_ = 0;
  std::uint64_t reconnections_ = 0;
  std::uint64_t model_changes_ = 0;
  std::string last_error_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KV_PUBLISHER_H_
