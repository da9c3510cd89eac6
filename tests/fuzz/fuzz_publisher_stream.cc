// Any sequence of inputs: batches between two clears are consecutive, at most one request is under way,
// memory stays within its budget, and the stream always comes to rest when it is ticked at its deadlines.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>

#include "llmd/events/publisher_stream.h"

namespace {

using namespace llmd::events;

void Require(bool condition) {
  if (!condition) std::abort();
}

class Host {
 public:
  explicit Host(const StreamOptions& options) : options_(options), stream_(options) {}

  void Step(std::uint8_t operation, std::uint64_t seq, std::uint8_t content, std::uint8_t delay) {
    now_ += absl::Milliseconds(64 * delay);
    const std::byte bytes[] = {std::byte{content}, std::byte(seq)};
    // Now and then an answer to an earlier request.
    const std::uint64_t request = request_ - (operation >> 7);
    switch ((operation & 0x7f) % 6) {
      case 0:
        return Do(stream_.OnConnected(now_));
      case 1:
        return Do(stream_.OnLive(now_, seq, bytes));
      case 2:
        return Do(stream_.OnReplayBatch(now_, request, seq, bytes));
      case 3:
        if (request == request_) outstanding_ = false;
        return Do(stream_.OnReplayEnd(now_, request));
      case 4:
        return Do(stream_.OnReplayFailed(now_, request,
                                         content & 1 ? PublisherStream::ReplayFailure::kMalformed
                                                     : PublisherStream::ReplayFailure::kTransport));
      case 5:
        return Do(stream_.Tick(now_));
    }
  }

  // Nobody answers any more: deadlines must pass by and lead somewhere.
  void Settle() {
    for (int i = 0; i < 200; ++i) {
      const absl::Time deadline = stream_.next_deadline();
      if (deadline == absl::InfiniteFuture()) return Require(stream_.in_sync());
      now_ = std::max(now_, deadline);
      Do(stream_.Tick(now_));
      Require(stream_.next_deadline() > now_);
    }
    // Only a strict stream that cannot rebuild goes on trying.
    Require(options_.mode == StreamOptions::Mode::kStrict && options_.replay);
  }

 private:
  void Do(PublisherStream::Actions actions) {
    for (const StreamAction& action : actions) {
      switch (action.kind) {
        case StreamAction::Kind::kApply:
          Require(action.payload.size() == 2 && action.payload[1] == std::byte(action.seq));
          Require(!last_ || action.seq == *last_ + 1);
          last_ = action.seq;
          break;
        case StreamAction::Kind::kClear:
          Require(last_.has_value());
          last_.reset();
          break;
        case StreamAction::Kind::kRequestReplay:
          Require(options_.replay && !outstanding_ && action.request > request_);
          request_ = action.request;
          outstanding_ = true;
          break;
        case StreamAction::Kind::kCancelReplay:
          Require(outstanding_ && action.request == request_);
          outstanding_ = false;
          break;
      }
    }
    Require(last_ == stream_.last_applied());
    Require(stream_.held_bytes() <= options_.max_held_bytes);
    if (stream_.in_sync()) Require(stream_.held_bytes() == 0 && !outstanding_);
    if (stream_.next_deadline() == absl::InfiniteFuture()) Require(stream_.in_sync());
  }

  StreamOptions options_;
  PublisherStream stream_;
  absl::Time now_ = absl::FromUnixSeconds(1);
  std::uint64_t request_ = 0;
  bool outstanding_ = false;
  std::optional<std::uint64_t> last_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  StreamOptions options;
  options.mode = data[0] & 1 ? StreamOptions::Mode::kBestEffort : StreamOptions::Mode::kStrict;
  options.replay = (data[0] & 2) == 0;
  options.max_held_bytes = data[0] & 4 ? 200 : 4096;
  Host host(options);
  for (std::size_t at = 1; at + 4 <= size; at += 4) {
    // Small numbers, and some at the upper end of the range.
    const std::uint64_t seq = data[at + 1] < 0xf0 ? data[at + 1] : ~std::uint64_t{0} - (0xff - data[at + 1]);
    host.Step(data[at], seq, data[at + 2], data[at + 3]);
  }
  host.Settle();
  return 0;
}
