#include "examples/sim_worker/kv_publisher.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <deque>
#include <iterator>
#include <mutex>
#include <span>
#include <string_view>
#include <thread>
#include <utility>

#include <zmq.hpp>
#include <zmq_addon.hpp>

#include "absl/strings/str_cat.h"
#include "llmd/events/frames.h"

namespace llmd::sim {
namespace {

using Payload = std::shared_ptr<const std::vector<std::byte>>;

std::uint16_t PortOf(const zmq::socket_t& socket) {
  const std::string endpoint = socket.get(zmq::sockopt::last_endpoint);
  if (!endpoint.starts_with("tcp://")) return 0;
  const std::string_view digits = std::string_view(endpoint).substr(endpoint.rfind(':') + 1);
  std::uint16_t port = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), port);
  return port;
}

zmq::const_buffer Buffer(std::string_view text) { return {text.data(), text.size()}; }
zmq::const_buffer Buffer(std::span<const std::byte> bytes) { return {bytes.data(), bytes.size()}; }

// A message that shares the payload's bytes.
zmq::message_t Shared(const Payload& payload) {
  return {const_cast<std::byte*>(payload->data()), payload->size(),
          [](void*, void* holder) { delete static_cast<Payload*>(holder); }, new Payload(payload)};
}

absl::Status Unavailable(const char* what, const std::string& endpoint, const zmq::error_t& error) {
  return absl::UnavailableError(absl::StrCat("cannot open ", what, " ", endpoint, ": ", error.what()));
}

}  // namespace

struct KvPublisher::Impl {
  zmq::context_t context{1};
  zmq::socket_t pub{context, zmq::socket_type::pub};
  zmq::socket_t router{context, zmq::socket_type::router};
  zmq::socket_t stop_send{context, zmq::socket_type::pair};
  zmq::socket_t stop_receive{context, zmq::socket_type::pair};
  KvPublisherOptions options;
  std::uint16_t port = 0;
  std::uint16_t replay_port = 0;

  std::mutex mutex;  // what follows, and `pub`
  std::string topic;
  std::uint64_t next_seq = 0;
  std::deque<Payload> buffer;  // the last is next_seq - 1
  std::size_t buffered_bytes = 0;

  std::thread thread;

  void Reply(zmq::message_t& identity, std::uint64_t seq, std::string_view reply_topic,
             zmq::message_t payload) {
    zmq::message_t id;
    id.copy(identity);
    const std::array<std::byte, 8> seq_frame = events::EncodeSeq(seq);
    router.send(id, zmq::send_flags::sndmore);
    router.send(zmq::message_t(), zmq::send_flags::sndmore);
    if (options.replay_topic) router.send(Buffer(reply_topic), zmq::send_flags::sndmore);
    router.send(Buffer(std::span<const std::byte>(seq_frame)), zmq::send_flags::sndmore);
    router.send(payload, zmq::send_flags::none);
  }

  void Replay(std::vector<zmq::message_t>& request) {
    std::vector<events::Frame> frames;
    for (const zmq::message_t& part : request) {
      frames.emplace_back(static_cast<const std::byte*>(part.data()), part.size());
    }
    const absl::StatusOr<std::uint64_t> start = events::ParseReplayRequest(frames);
    if (!start.ok()) return;
    std::vector<Payload> batches;
    std::uint64_t first = 0;
    std::string reply_topic;
    {
      const std::scoped_lock lock(mutex);
      reply_topic = topic;
      first = next_seq - buffer.size();
      if (*start > first) first = std::min(*start, next_seq);
      batches.assign(buffer.end() - static_cast<std::ptrdiff_t>(next_seq - first), buffer.end());
    }
    try {
      for (const Payload& payload : batches) Reply(request[0], first++, reply_topic, Shared(payload));
      Reply(request[0], events::kEndSeq, "", zmq::message_t());
    } catch (const zmq::error_t&) {
      // The client went away or does not read; it will ask again.
    }
  }

  void Serve() {
    std::array<zmq::pollitem_t, 2> items = {
        {{stop_receive.handle(), 0, ZMQ_POLLIN, 0}, {router.handle(), 0, ZMQ_POLLIN, 0}}};
    while (true) {
      zmq::poll(items.data(), items.size(), std::chrono::milliseconds(-1));
      if ((items[0].revents & ZMQ_POLLIN) != 0) return;
      if ((items[1].revents & ZMQ_POLLIN) == 0) continue;
      std::vector<zmq::message_t> request;
      if (!zmq::recv_multipart(router, std::back_inserter(request), zmq::recv_flags::dontwait)) continue;
      Replay(request);
    }
  }
};

KvPublisher::KvPublisher(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<KvPublisher>> KvPublisher::Create(const KvPublisherOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->topic = options.topic;
  try {
    impl->pub.set(zmq::sockopt::sndhwm, options.hwm);
    impl->pub.set(zmq::sockopt::linger, 0);
    const std::string& endpoint = options.endpoint;
    if (options.bind || endpoint.find('*') != std::string::npos || endpoint.find("::") != std::string::npos ||
        endpoint.starts_with("ipc://") || endpoint.starts_with("inproc://")) {
      impl->pub.bind(endpoint);
      impl->port = PortOf(impl->pub);
    } else {
      impl->pub.connect(endpoint);
    }
  } catch (const zmq::error_t& error) {
    return Unavailable("the KV events' endpoint", options.endpoint, error);
  }
  try {
    impl->router.set(zmq::sockopt::linger, 0);
    // A client that asks and does not read loses what is beyond one replay.
    impl->router.set(zmq::sockopt::sndhwm, static_cast<int>(options.buffer_steps) + 16);
    impl->stop_receive.bind("inproc://stop");
    impl->stop_send.connect("inproc://stop");
    if (!options.replay_endpoint.empty()) {
      impl->router.bind(options.replay_endpoint);
      impl->replay_port = PortOf(impl->router);
      impl->thread = std::thread([raw = impl.get()] { raw->Serve(); });
    }
  } catch (const zmq::error_t& error) {
    return Unavailable("the replay endpoint", options.replay_endpoint, error);
  }
  return std::unique_ptr<KvPublisher>(new KvPublisher(std::move(impl)));
}

KvPublisher::~KvPublisher() {
  if (!impl_->thread.joinable()) return;
  impl_->stop_send.send(zmq::message_t(), zmq::send_flags::none);
  impl_->thread.join();
}

void KvPublisher::Publish(const std::vector<std::byte>& payload) {
  const std::scoped_lock lock(impl_->mutex);
  const std::array<std::byte, 8> seq = events::EncodeSeq(impl_->next_seq++);
  impl_->pub.send(Buffer(impl_->topic), zmq::send_flags::sndmore);
  impl_->pub.send(Buffer(std::span<const std::byte>(seq)), zmq::send_flags::sndmore);
  impl_->pub.send(Buffer(std::span<const std::byte>(payload)), zmq::send_flags::none);
  impl_->buffer.push_back(std::make_shared<const std::vector<std::byte>>(payload));
  impl_->buffered_bytes += payload.size();
  while (impl_->buffer.size() > impl_->options.buffer_steps ||
         (impl_->buffered_bytes > impl_->options.buffer_bytes && impl_->buffer.size() > 1)) {
    impl_->buffered_bytes -= impl_->buffer.front()->size();
    impl_->buffer.pop_front();
  }
}

void KvPublisher::set_topic(std::string topic) {
  const std::scoped_lock lock(impl_->mutex);
  impl_->topic = std::move(topic);
}

std::uint16_t KvPublisher::port() const { return impl_->port; }
std::uint16_t KvPublisher::replay_port() const { return impl_->replay_port; }
std::uint64_t KvPublisher::next_seq() const {
  const std::scoped_lock lock(impl_->mutex);
  return impl_->next_seq;
}

}  // namespace llmd::sim
