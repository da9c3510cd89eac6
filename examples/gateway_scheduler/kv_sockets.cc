#include "examples/gateway_scheduler/kv_sockets.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace llmd::host {
namespace {

constexpr std::size_t kLargeBytes = 64u << 10;
constexpr auto kNow = zmq::recv_flags::dontwait;

void Configure(zmq::socket_t& socket, const SocketSettings& settings) {
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::ipv6, true);
  socket.set(zmq::sockopt::rcvhwm, settings.receive_hwm);
  socket.set(zmq::sockopt::maxmsgsize, settings.max_message_bytes);
  socket.set(zmq::sockopt::reconnect_ivl, 100);
  socket.set(zmq::sockopt::reconnect_ivl_max,
             static_cast<int>(absl::ToInt64Milliseconds(settings.max_reconnect_interval)));
  // A host that vanished sends no farewell.
  socket.set(zmq::sockopt::tcp_keepalive, 1);
  socket.set(zmq::sockopt::tcp_keepalive_idle, 10);
  socket.set(zmq::sockopt::tcp_keepalive_intvl, 5);
  socket.set(zmq::sockopt::tcp_keepalive_cnt, 3);
}

}  // namespace

bool FramedMessage::Receive(zmq::socket_t& socket) {
  count_ = 0;
  bytes_ = 0;
  zmq::message_t surplus;
  for (bool more = true; more;) {
    zmq::message_t& part = count_ < kMaxFrames ? parts_[count_] : surplus;
    try {
      if (!socket.recv(part, kNow)) return false;
    } catch (const zmq::error_t&) {
      return false;  // interrupted, or the context is going away
    }
    more = part.more();
    bytes_ += part.size();
    if (count_ < kMaxFrames) frames_[count_] = {static_cast<const std::byte*>(part.data()), part.size()};
    if (count_ == 0) connection_ = zmq_msg_get(part.handle(), ZMQ_SRCFD);
    count_ = std::min(count_ + 1, kMaxFrames + 1);
  }
  return true;
}

void FramedMessage::Release() {
  if (bytes_ < kLargeBytes) return;
  for (zmq::message_t& part : parts_) part.rebuild();
  count_ = 0;
  bytes_ = 0;
}

bool MessageBatch::Fill(LiveSocket& socket) {
  std::size_t bytes = 0;
  count_ = 0;
  while (count_ < kMaxMessages && bytes < kMaxBytes) {
    if (!socket.Receive(messages_[count_])) return false;
    bytes += messages_[count_++].bytes();
  }
  return true;
}

void MessageBatch::Release() {
  for (std::size_t i = 0; i < count_; ++i) messages_[i].Release();
  count_ = 0;
}

SocketPoller::SocketPoller() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  if (epoll_ < 0) throw std::system_error(errno, std::generic_category(), "epoll_create1");
}

SocketPoller::~SocketPoller() { close(epoll_); }

void SocketPoller::Watch(int fd, PollSource* source) {
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.ptr = source;
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) < 0) {
    throw std::system_error(errno, std::generic_category(), "epoll_ctl");
  }
  Queue(source);
}

void SocketPoller::Forget(int fd) { epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr); }

void SocketPoller::Dispose(std::unique_ptr<PollSource> source) {
  source->removed_ = true;
  disposed_.push_back(std::move(source));
}

void SocketPoller::Queue(PollSource* source) {
  if (std::exchange(source->queued_, true)) return;
  ready_.push_back(source);
}

void SocketPoller::Run(absl::Duration timeout) {
  std::array<epoll_event, 64> events;
  const int wait_ms =
      ready_.empty() ? static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(timeout, absl::Milliseconds(1))))
                     : 0;
  const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), wait_ms);
  for (int i = 0; i < count; ++i) Queue(static_cast<PollSource*>(events[i].data.ptr));
  asked_.swap(ready_);
  const absl::Time now = absl::Now();
  for (PollSource* source : asked_) {
    if (source->removed_) continue;
    source->queued_ = false;
    if (source->OnReady(now) && !source->removed_) Queue(source);
  }
  asked_.clear();
  if (disposed_.empty()) return;
  std::erase_if(ready_, [](const PollSource* source) { return source->removed_; });
  disposed_.clear();
}

LiveSocket::LiveSocket(zmq::context_t& context, const SocketSettings& settings,
                       const std::string& topic_filter)
    : socket_(context, zmq::socket_type::sub), monitor_(context, zmq::socket_type::pair) {
  static std::atomic<std::uint64_t> monitors = 0;
  Configure(socket_, settings);
  socket_.set(zmq::sockopt::subscribe, topic_filter);
  const std::string address = "inproc://llmd-kv-monitor-" + std::to_string(++monitors);
  if (zmq_socket_monitor(socket_.handle(), address.c_str(),
                         ZMQ_EVENT_CONNECT_DELAYED | ZMQ_EVENT_CONNECT_RETRIED |
                             ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED |
                             ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                             ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) != 0) {
    throw zmq::error_t();
  }
  monitor_.set(zmq::sockopt::linger, 0);
  monitor_.connect(address);
}

LiveSocket::~LiveSocket() {
  // While somebody still reads: writing an event to a monitor without a reader would block.
  zmq_socket_monitor(socket_.handle(), nullptr, 0);
}

void LiveSocket::Connect(const std::string& address) { socket_.connect(address); }

void LiveSocket::Reconnect(const std::string& address) {
  try {
    socket_.disconnect(address);
  } catch (const zmq::error_t&) {
    // There was nothing left to disconnect.
  }
  socket_.connect(address);
}

std::string LiveSocket::Bind(const std::string& address) {
  socket_.bind(address);
  return socket_.get(zmq::sockopt::last_endpoint);
}

bool LiveSocket::ReceiveEvent(ConnectionEvent& event) {
  FramedMessage message;
  if (!message.Receive(monitor_) || message.count() == 0 || message.frames()[0].size() < 6) return false;
  std::uint16_t number = 0;
  std::int32_t value = 0;
  std::memcpy(&number, message.frames()[0].data(), sizeof(number));
  std::memcpy(&value, message.frames()[0].data() + sizeof(number), sizeof(value));
  switch (number) {
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
      event = {ConnectionEvent::Kind::kUp, -1};
      break;
    case ZMQ_EVENT_DISCONNECTED:
      event = {ConnectionEvent::Kind::kDown, value};
      break;
    case ZMQ_EVENT_CONNECT_DELAYED:
    case ZMQ_EVENT_CONNECT_RETRIED:
      event = {ConnectionEvent::Kind::kTrying, -1};
      break;
    default:
      event = {ConnectionEvent::Kind::kFailed, -1};
  }
  return true;
}

std::array<int, 2> LiveSocket::descriptors() {
  return {socket_.get(zmq::sockopt::fd), monitor_.get(zmq::sockopt::fd)};
}

ReplaySocket::ReplaySocket(zmq::context_t& context, const SocketSettings& settings,
                           const std::string& address)
    : socket_(context, zmq::socket_type::dealer) {
  Configure(socket_, settings);
  socket_.connect(address);
}

bool ReplaySocket::Send(std::uint64_t start) {
  const events::ReplayRequest request(start);
  const auto frames = request.frames();
  try {
    return socket_.send(zmq::const_buffer(frames[0].data(), frames[0].size()),
                        zmq::send_flags::sndmore | zmq::send_flags::dontwait) &&
           socket_.send(zmq::const_buffer(frames[1].data(), frames[1].size()), zmq::send_flags::dontwait);
  } catch (const zmq::error_t&) {
    return false;
  }
}

int ReplaySocket::descriptor() { return socket_.get(zmq::sockopt::fd); }

}  // namespace llmd::host
