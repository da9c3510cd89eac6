// ZeroMQ sockets for the feed of KV events, and the poller that waits for all of them.
//
// The poller is epoll over the sockets' event descriptors: its cost depends on the sockets that have
// something to say, not on those that exist. Such a descriptor says only that something may have happened, so
// a signalled source is asked until it has nothing more; one that stops earlier, for fairness, asks to be
// called again.
//
// Errors of ZeroMQ are thrown (zmq::error_t) by constructors only. Threads: the feed's.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KV_SOCKETS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KV_SOCKETS_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "llmd/events/frames.h"
#include "zmq.hpp"

namespace llmd::host {

// One multipart message. Of an absurdly long one only the first frames are kept.
class FramedMessage {
 public:
  static constexpr std::size_t kMaxFrames = 5;

  // False when there is none.
  bool Receive(zmq::socket_t& socket);
  // One more than are kept when there were more.
  std::size_t count() const { return count_; }
  // Views into this message.
  std::span<const events::Frame> frames() const { return {frames_.data(), std::min(count_, kMaxFrames)}; }
  std::size_t bytes() const { return bytes_; }
  // Gives large frames back; their views end.
  void Release();
  // Of the connection that the first frame came by; -1 when not known.
  int connection() const { return connection_; }

 private:
  std::array<zmq::message_t, kMaxFrames> parts_;
  std::array<events::Frame, kMaxFrames> frames_;
  std::size_t count_ = 0;
  std::size_t bytes_ = 0;
  int connection_ = -1;
};

class PollSource {
 public:
  virtual ~PollSource() = default;
  // Takes what is there, up to a limit. True when there may be more.
  virtual bool OnReady(absl::Time now) = 0;

 private:
  friend class SocketPoller;
  bool queued_ = false;
  bool removed_ = false;
};

class SocketPoller {
 public:
  SocketPoller();
  ~SocketPoller();
  SocketPoller(const SocketPoller&) = delete;
  SocketPoller& operator=(const SocketPoller&) = delete;

  // The source is asked at once, and whenever the descriptor is readable. It may have several descriptors.
  void Watch(int fd, PollSource* source);
  void Forget(int fd);
  // Takes the source out and destroys it when no call into it can be under way. Forget its descriptors first.
  void Dispose(std::unique_ptr<PollSource> source);
  void Queue(PollSource* source);

  // Waits for sources, or for at most `timeout`, and asks each that is ready once.
  void Run(absl::Duration timeout);

 private:
  int epoll_;
  std::vector<PollSource*> ready_;
  std::vector<PollSource*> asked_;
  std::vector<std::unique_ptr<PollSource>> disposed_;
};

struct ConnectionEvent {
  enum class Kind : std::uint8_t { kUp, kDown, kFailed, kTrying };
  Kind kind;
  int connection = -1;  // descriptor, of kDown
};

struct SocketSettings {
  int receive_hwm = 1000;                     // messages
  std::int64_t max_message_bytes = 16 << 20;  // of a frame; a longer one closes its connection
  absl::Duration max_reconnect_interval = absl::Seconds(5);
};

// A SUB socket, connected or bound, with its connection events.
class LiveSocket {
 public:
  LiveSocket(zmq::context_t& context, const SocketSettings& settings, const std::string& topic_filter);
  ~LiveSocket();
  LiveSocket(const LiveSocket&) = delete;
  LiveSocket& operator=(const LiveSocket&) = delete;

  void Connect(const std::string& address);
  // ZeroMQ connects again by itself after a loss, but not to a peer that broke the protocol.
  void Reconnect(const std::string& address);
  // Returns the address with the port in use.
  std::string Bind(const std::string& address);

  bool Receive(FramedMessage& message) { return message.Receive(socket_); }
  bool ReceiveEvent(ConnectionEvent& event);
  std::array<int, 2> descriptors();

 private:
  zmq::socket_t socket_;
  zmq::socket_t monitor_;
};

// What is taken from a socket at a time: the next messages, few enough to be fair to other sockets and within
// some megabytes. Memory is reused.
class MessageBatch {
 public:
  // True when there may be more.
  bool Fill(LiveSocket& socket);
  std::span<const FramedMessage> messages() const { return {messages_.data(), count_}; }
  void Release();

 private:
  static constexpr std::size_t kMaxMessages = 32;
  static constexpr std::size_t kMaxBytes = 4u << 20;
  std::array<FramedMessage, kMaxMessages> messages_;
  std::size_t count_ = 0;
};

// A DEALER socket for one replay request.
class ReplaySocket {
 public:
  ReplaySocket(zmq::context_t& context, const SocketSettings& settings, const std::string& address);
  // False when the socket takes no message.
  bool Send(std::uint64_t start);
  bool Receive(FramedMessage& message) { return message.Receive(socket_); }
  int descriptor();

 private:
  zmq::socket_t socket_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KV_SOCKETS_H_
