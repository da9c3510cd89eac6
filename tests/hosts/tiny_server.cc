#include "tests/hosts/tiny_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::host {

bool TinyServer::Reply::Raw(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) {
      close_ = true;
      return false;
    }
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

bool TinyServer::Reply::Send(int status, std::string_view body) {
  return Raw(
      absl::StrCat("HTTP/1.1 ", status, " X\r\nContent-Length: ", body.size(), "\r\n\r\n", ToAbsl(body)));
}

void TinyServer::Reply::Hang() {
  close_ = true;
  while (!server_.stopping_) {
    pollfd poll{.fd = fd_, .events = POLLIN, .revents = 0};
    if (::poll(&poll, 1, 10) <= 0) continue;
    char byte;
    if (recv(fd_, &byte, 1, MSG_DONTWAIT) <= 0) return;
  }
}

TinyServer::TinyServer(Handler handler) : handler_(std::move(handler)) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  socklen_t size = sizeof(address);
  if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener_, 1024) != 0 ||
      getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::runtime_error("no port to listen on");
  }
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { Accept(); });
}

TinyServer::~TinyServer() {
  stopping_ = true;
  shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  {
    const std::lock_guard lock(mutex_);
    for (const int fd : open_) shutdown(fd, SHUT_RDWR);
  }
  for (std::thread& thread : threads_) thread.join();
  close(listener_);
}

std::string TinyServer::url(std::string_view path) const {
  return absl::StrCat("http://127.0.0.1:", port_, ToAbsl(path));
}

void TinyServer::Accept() {
  for (;;) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (stopping_) {
      if (fd >= 0) close(fd);
      return;
    }
    if (fd < 0) continue;
    ++connections_;
    const std::lock_guard lock(mutex_);
    open_.push_back(fd);
    threads_.emplace_back([this, fd] { Serve(fd); });
  }
}

void TinyServer::Serve(int fd) {
  std::string bytes;
  const auto more = [&] {
    char piece[16384];
    const ssize_t got = recv(fd, piece, sizeof(piece), 0);
    if (got > 0) bytes.append(piece, static_cast<std::size_t>(got));
    return got > 0;
  };
  for (bool open = true; open && !stopping_;) {
    std::size_t end = bytes.find("\r\n\r\n");
    if (end == std::string::npos) {
      if (!more()) break;
      continue;
    }
    http::Request request;
    std::size_t length = 0;
    for (std::size_t at = 0; at < end;) {
      const std::size_t stop = bytes.find("\r\n", at);
      const std::string line = bytes.substr(at, stop - at);
      if (at == 0) {
        const std::size_t first = line.find(' '), second = line.rfind(' ');
        request.method = line.substr(0, first);
        request.target = line.substr(first + 1, second - first - 1);
      } else if (const std::size_t colon = line.find(':'); colon != std::string::npos) {
        std::string value(absl::StripAsciiWhitespace(line.substr(colon + 1)));
        request.headers.emplace_back(absl::AsciiStrToLower(line.substr(0, colon)), std::move(value));
        if (request.headers.back().first == "content-length") {
          length = std::strtoull(request.headers.back().second.c_str(), nullptr, 10);
        }
      }
      at = stop + 2;
    }
    end += 4;
    while (open && bytes.size() < end + length) open = more();
    if (!open) break;
    request.body = bytes.substr(end, length);
    bytes.erase(0, end + length);
    ++requests_;
    Reply reply(fd, *this);
    handler_(request, reply);
    open = !reply.close_;
  }
  const std::lock_guard lock(mutex_);
  open_.erase(std::find(open_.begin(), open_.end(), fd));
  close(fd);
}

}  // namespace llmd::host
