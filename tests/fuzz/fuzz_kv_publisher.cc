// Any messages, replay answers and connection events of two publishers, from frames to the index and the
// pool: no crash; at most one replay asked for at a time; the pool's bindings are the index's live holders,
// and none is left when the publishers are retired.
//
// Input: steps of one byte of operation (low bit: publisher; next 3: what), one of detail, and for messages a
// 16-bit little-endian length with that many bytes (or what is left).
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "examples/gateway_scheduler/kv_publisher.h"
#include "llmd/events/frames.h"

namespace {

using namespace llmd;

void Require(bool condition) {
  if (!condition) std::abort();
}

class Replays final : public host::KvReplays {
 public:
  void Request(host::KvPublisher& publisher, std::uint64_t request, std::uint64_t) override {
    Slot(publisher) = request;
  }
  void Cancel(host::KvPublisher& publisher) override { Slot(publisher).reset(); }

  std::optional<std::uint64_t>& Slot(const host::KvPublisher& publisher) {
    return slots_[publisher.options().holder_name.back() - '0'];
  }

 private:
  std::optional<std::uint64_t> slots_[2];
};

class Harness {
 public:
  Harness() : index_(*index::PrefixIndex::Create({.max_bytes = 2 << 20, .max_holders = 8})) {
    std::vector<sched::EndpointMetadata> endpoints;
    for (int i = 0; i < 2; ++i) {
      endpoints.push_back({.name = std::string(1, static_cast<char>('0' + i)),
                           .address = "h",
                           .port = static_cast<std::uint16_t>(10 + i)});
    }
    Require(pool_.SetEndpoints(endpoints).ok());
    for (int i = 0; i < 2; ++i) {
      const std::string host_port = "h:1" + std::to_string(i);
      host::KvPublisherOptions options{.endpoint_id = "default/" + std::to_string(i),
                                       .host_port = host_port,
                                       .holder_name = host_port,
                                       .replay = i == 0 ? "tcp://h:1" : "",
                                       .default_model = i == 0 ? "" : "m"};
      options.stream.replay = i == 0;
      options.stream.mode = events::StreamOptions::Mode::kBestEffort;
      options.stream.max_held_bytes = 1 << 12;
      publishers_.push_back(std::make_unique<host::KvPublisher>(options, intake_, replays_));
    }
  }

  void Step(std::uint8_t operation, std::uint8_t detail, std::span<const std::byte> data) {
    now_ += absl::Milliseconds(20 * (operation >> 4));
    host::KvPublisher& publisher = *publishers_[operation & 1];
    switch ((operation >> 1) & 7) {
      case 0:
        return publisher.OnConnected(now_);
      case 1:
        return publisher.OnDisconnected(now_);
      case 2:
      case 3: {
        if (detail & 0x80) intake_.DecodeAhead(data);
        publisher.OnLive(now_, {.topic = kTopics[detail & 3], .seq = (detail >> 2) & 31u, .payload = data});
        return intake_.ForgetPayload();
      }
      case 4:
        return Answer(publisher, detail, data);
      case 5: {  // any frames
        const std::size_t half = data.size() / 2;
        const events::Frame frames[] = {{}, data.first(half), data.subspan(half), {}, {}};
        return Deliver(publisher, std::span(frames).first(detail % 6));
      }
      case 6:
        if (std::optional<std::uint64_t>& request = replays_.Slot(publisher); request && (detail & 1)) {
          publisher.OnReplayFailed(now_, *std::exchange(request, std::nullopt));
        }
        return publisher.Tick(now_);
      default:
        if (detail != 0) return;
        publisher.Restart();
        host::KvPublisher* one = &publisher;
        intake_.Retire({&one, 1});
    }
  }

  void Check() {
    bindings_.Flush(pool_);
    Require(Bound() == index_->stats().holders);
    Require(index_->memory_usage().live_bytes() <= (2u << 20));
  }

  void End() {
    std::vector<host::KvPublisher*> all;
    for (const auto& publisher : publishers_) all.push_back(publisher.get());
    intake_.Retire(all);
    Check();
    Require(Bound() == 0);
  }

 private:
  static constexpr std::string_view kTopics[] = {"kv@h:10@m", "kv@h:10@n", "", "kv@x@\xff"};

  void Answer(host::KvPublisher& publisher, std::uint8_t detail, std::span<const std::byte> data) {
    const bool end = (detail & 0x60) == 0x60;
    const auto seq = events::EncodeSeq(end ? events::kEndSeq : detail & 31u);
    const std::string_view topic = end || (detail & 0x40) ? std::string_view() : kTopics[0];
    const events::Frame payload = end ? events::Frame() : data;
    const events::Frame with[] = {{}, std::as_bytes(std::span(topic)), seq, payload};
    const events::Frame without[] = {{}, seq, payload};
    if (detail & 0x80) return Deliver(publisher, with);
    Deliver(publisher, without);
  }
  void Deliver(host::KvPublisher& publisher, std::span<const events::Frame> frames) {
    std::optional<std::uint64_t>& request = replays_.Slot(publisher);
    if (!request) return;
    const std::uint64_t asked = *request;
    const bool over = publisher.OnReplayMessage(now_, asked, frames);
    if (over && request == asked) request.reset();
  }
  std::size_t Bound() const {
    const host::PoolStore::Snapshot pool = pool_.snapshot();
    const auto& slots = pool->holders(sched::kExactSource).by_slot;
    return std::count_if(slots.begin(), slots.end(), [](const sched::HolderBinding& binding) {
      return binding.endpoint.generation != 0;
    });
  }

  std::unique_ptr<index::PrefixIndex> index_;
  host::PoolStore pool_;
  host::HolderBindings bindings_;
  host::KvIntake intake_{*index_, pool_, bindings_};
  Replays replays_;
  std::vector<std::unique_ptr<host::KvPublisher>> publishers_;
  absl::Time now_ = absl::FromUnixSeconds(1);
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::span<const std::byte> rest(reinterpret_cast<const std::byte*>(data), size);
  Harness harness;
  for (int step = 0; rest.size() >= 2; ++step) {
    const auto operation = std::to_integer<std::uint8_t>(rest[0]);
    const auto detail = std::to_integer<std::uint8_t>(rest[1]);
    rest = rest.subspan(2);
    std::span<const std::byte> payload;
    if (const int what = (operation >> 1) & 7; what >= 2 && what <= 5 && rest.size() >= 2) {
      const std::size_t length =
          std::to_integer<std::size_t>(rest[0]) | (std::to_integer<std::size_t>(rest[1]) << 8);
      rest = rest.subspan(2);
      payload = rest.first(std::min(length, rest.size()));
      rest = rest.subspan(payload.size());
    }
    harness.Step(operation, detail, payload);
    if (step % 8 == 7) harness.Check();
  }
  harness.End();
  return 0;
}
