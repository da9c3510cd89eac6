#include "tests/hosts/fake_api_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace llmd::testing {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

// A socket, with TLS or without. One thread, but Shut() from any.
class Channel {
 public:
  Channel(int fd, SSL_CTX* context) : fd_(fd) {
    if (context == nullptr) return;
    ssl_ = SSL_new(context);
    SSL_set_fd(ssl_, fd);
    good_ = SSL_accept(ssl_) == 1;
  }
  ~Channel() {
    SSL_free(ssl_);
    ::close(fd_);
  }
  bool good() const { return good_; }
  void Shut() { ::shutdown(fd_, SHUT_RDWR); }

  bool Read(std::string& into) {
    char buffer[4096];
    const auto got = ssl_ != nullptr ? SSL_read(ssl_, buffer, sizeof buffer)
                                     : static_cast<int>(::recv(fd_, buffer, sizeof buffer, 0));
    if (got > 0) into.append(buffer, static_cast<std::size_t>(got));
    return got > 0;
  }
  bool Write(std::string_view text) {
    while (good_ && !text.empty()) {
      const auto sent = ssl_ != nullptr
                            ? SSL_write(ssl_, text.data(), static_cast<int>(text.size()))
                            : static_cast<int>(::send(fd_, text.data(), text.size(), MSG_NOSIGNAL));
      good_ = sent > 0;
      if (good_) text.remove_prefix(static_cast<std::size_t>(sent));
    }
    return good_;
  }
  bool PeerClosed() const {
    pollfd watched{fd_, POLLIN, 0};
    return ::poll(&watched, 1, 0) > 0;  // a client has nothing to say during an answer
  }

 private:
  const int fd_;
  SSL* ssl_ = nullptr;
  bool good_ = true;
};

std::string Decode(std::string_view text) {
  std::string decoded;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      decoded += static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16));
      i += 2;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

struct Query {
  std::string path;
  std::map<std::string, std::string> values;

  explicit Query(const std::string& target) : path(target.substr(0, target.find('?'))) {
    std::size_t from = target.find('?');
    while (from != std::string::npos && from < target.size()) {
      const std::size_t to = std::min(target.find('&', from + 1), target.size());
      const std::string pair = target.substr(from + 1, to - from - 1);
      const std::size_t equal = std::min(pair.find('='), pair.size());
      values[pair.substr(0, equal)] = equal < pair.size() ? Decode(pair.substr(equal + 1)) : "";
      from = to;
    }
  }
  std::string Value(const std::string& name) const {
    const auto it = values.find(name);
    return it == values.end() ? "" : it->second;
  }
  std::int64_t Number(const std::string& name, std::int64_t otherwise) const {
    std::int64_t number = 0;
    return absl::SimpleAtoi(Value(name), &number) ? number : otherwise;
  }
  bool Matches(const json& object) const {
    const std::string fields = Value("fieldSelector");
    if (!fields.empty() && fields != absl::StrCat("metadata.name=", object["metadata"].value("name", ""))) {
      return false;
    }
    const std::string labels = Value("labelSelector");
    for (std::size_t from = 0; from < labels.size();) {
      const std::size_t to = std::min(labels.find(',', from), labels.size());
      const std::string term = labels.substr(from, to - from);
      const std::string key = term.substr(0, term.find('='));
      const auto& metadata = object["metadata"];
      if (!metadata.contains("labels") || !metadata["labels"].contains(key) ||
          metadata["labels"][key] != term.substr(term.find('=') + 1)) {
        return false;
      }
      from = to + 1;
    }
    return true;
  }
};

std::string KeyOf(const json& object) {
  return absl::StrCat(object["metadata"].value("namespace", ""), "/", object["metadata"].value("name", ""));
}

json StatusObject(int code, const std::string& reason, const std::string& message) {
  return {{"kind", "Status"},   {"apiVersion", "v1"}, {"status", "Failure"},       {"reason", reason},
          {"message", message}, {"code", code},       {"metadata", json::object()}};
}

}  // namespace

class FakeApiServer::Impl {
 public:
  explicit Impl(const PemPair* pair) {
    std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes without MSG_NOSIGNAL
    if (pair != nullptr) Secure(*pair);
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(listener_, 64) != 0 ||
        ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      throw std::runtime_error("cannot listen");
    }
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~Impl() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      for (Channel* channel : channels_) channel->Shut();
    }
    changed_.notify_all();
    ::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    for (std::thread& thread : threads_) thread.join();
    ::close(listener_);
    SSL_CTX_free(context_);
  }

  std::string url() const {
    return absl::StrCat(context_ != nullptr ? "https" : "http", "://127.0.0.1:", port_);
  }

  struct Event {
    std::uint64_t version = 0;
    std::optional<json> before;
    std::optional<json> after;
  };
  struct Collection {
    std::map<std::string, json> objects;
    std::vector<Event> events;
    std::vector<std::string> injected;
    std::size_t watches = 0;
  };

  std::uint64_t Change(const std::string& path, const std::string& key, std::optional<json> object) {
    std::uint64_t version = 0;
    {
      const std::lock_guard lock(mutex_);
      Collection& collection = collections_.at(path);
      version = ++version_;
      Event event{version, std::nullopt, std::move(object)};
      if (const auto it = collection.objects.find(key); it != collection.objects.end()) {
        event.before = it->second;
      } else if (!event.after) {
        return version;
      }
      if (event.after) {
        (*event.after)["metadata"]["resourceVersion"] = std::to_string(version);
        collection.objects[key] = *event.after;
      } else {
        collection.objects.erase(key);
      }
      collection.events.push_back(std::move(event));
    }
    changed_.notify_all();
    return version;
  }

  template <typename Do>
  auto Locked(Do change) {
    struct Notify {
      std::condition_variable& changed;
      ~Notify() { changed.notify_all(); }
    } const notify{changed_};
    const std::lock_guard lock(mutex_);
    return change();
  }

  struct PendingFailure {
    Failure failure;
    int times = 0;
    std::string substring;
  };

  // All under mutex_.
  std::map<std::string, Collection> collections_;
  std::map<std::string, std::vector<json>> continued_;  // token -> what is left of a list
  std::uint64_t version_ = 1000;
  std::uint64_t compacted_ = 0;
  std::uint64_t bookmarks_ = 0;
  std::uint64_t drops_ = 0;
  bool drop_in_line_ = false;
  std::string token_;
  std::size_t page_limit_ = 100'000;
  bool gone_by_event_ = false;
  bool bytewise_ = false;
  bool expire_continue_ = false;
  LineFilter filter_;
  std::deque<PendingFailure> failures_;
  std::vector<std::string> requests_;
  std::size_t accepted_ = 0;
  std::mutex mutex_;

 private:
  void Secure(const PemPair& pair) {
    context_ = SSL_CTX_new(TLS_server_method());
    BIO* bio = BIO_new_mem_buf(pair.certificate.data(), static_cast<int>(pair.certificate.size()));
    X509* certificate = PEM_read_bio_X509(bio, nullptr, nullptr, nullptr);
    BIO_free(bio);
    bio = BIO_new_mem_buf(pair.key.data(), static_cast<int>(pair.key.size()));
    EVP_PKEY* key = PEM_read_bio_PrivateKey(bio, nullptr, nullptr, nullptr);
    BIO_free(bio);
    const bool good =
        SSL_CTX_use_certificate(context_, certificate) == 1 && SSL_CTX_use_PrivateKey(context_, key) == 1;
    X509_free(certificate);
    EVP_PKEY_free(key);
    if (!good) throw std::runtime_error("bad certificate");
  }

  void Accept() {
    while (true) {
      const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      const std::lock_guard lock(mutex_);
      if (stop_ || fd < 0) {
        if (fd >= 0) ::close(fd);
        if (stop_) return;
        continue;
      }
      ++accepted_;
      const timeval limit{10, 0};  // nobody waits for ever
      ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
      ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
      threads_.emplace_back([this, fd] { Serve(fd); });
    }
  }

  void Serve(int fd) {
    Channel channel(fd, context_);
    {
      const std::lock_guard lock(mutex_);
      if (stop_) return;
      channels_.insert(&channel);
    }
    std::string input;
    while (channel.good()) {
      const std::size_t end = input.find("\r\n\r\n");
      if (end == std::string::npos) {
        if (!channel.Read(input)) break;
        continue;
      }
      const std::string head = input.substr(0, end + 2);
      input.erase(0, end + 4);
      if (!Answer(channel, head)) break;
    }
    channel.Shut();
    const std::lock_guard lock(mutex_);
    channels_.erase(&channel);
  }

  static bool Reply(Channel& channel, int status, const std::string& headers, const std::string& body) {
    return channel.Write(absl::StrCat("HTTP/1.1 ", status, " Text\r\nContent-Type: application/json\r\n",
                                      headers, "Content-Length: ", body.size(), "\r\n\r\n", body));
  }
  static bool Refuse(Channel& channel, int status, const std::string& reason, const std::string& message) {
    return Reply(channel, status, "", StatusObject(status, reason, message).dump());
  }

  bool Answer(Channel& channel, const std::string& head) {
    const std::string target = head.substr(4, head.find(' ', 4) - 4);
    std::optional<Failure> failure;
    std::unique_lock lock(mutex_);
    requests_.push_back(target);
    for (auto it = failures_.begin(); it != failures_.end(); ++it) {
      if (target.find(it->substring) == std::string::npos) continue;
      failure = it->failure;
      if (--it->times == 0) failures_.erase(it);
      break;
    }
    if (failure) {
      if (failure->hang) {
        while (!stop_ && !channel.PeerClosed()) changed_.wait_for(lock, std::chrono::milliseconds(5));
        return false;
      }
      lock.unlock();
      if (failure->drop) return false;
      if (failure->raw) {
        channel.Write(failure->body);
        return false;
      }
      return Reply(channel, failure->status, failure->headers, failure->body);
    }
    const bool allowed = token_.empty() || head.find(absl::StrCat("\r\nAuthorization: Bearer ", token_,
                                                                  "\r\n")) != std::string::npos;
    const Query query(target);
    const bool known = collections_.contains(query.path);
    lock.unlock();
    if (!allowed) return Refuse(channel, 401, "Unauthorized", "Unauthorized");
    if (!known) return Refuse(channel, 404, "NotFound", "the server could not find the requested resource");
    return query.Value("watch") == "1" ? Watch(channel, query) : List(channel, query);
  }

  bool List(Channel& channel, const Query& query) {
    std::unique_lock lock(mutex_);
    std::vector<json> objects;
    std::string version = std::to_string(version_);
    if (const std::string token = query.Value("continue"); !token.empty()) {
      const auto it = continued_.find(token);
      if (it == continued_.end() || std::exchange(expire_continue_, false)) {
        lock.unlock();
        return Refuse(channel, 410, "Expired", "The provided continue parameter is too old");
      }
      objects = std::move(it->second);
      continued_.erase(it);
      version = token.substr(0, token.find('.'));  // pages are of one moment
    } else {
      for (const auto& [key, object] : collections_.at(query.path).objects) {
        if (query.Matches(object)) objects.push_back(object);
      }
    }
    const auto asked = static_cast<std::size_t>(query.Number("limit", 0));
    const std::size_t limit = asked == 0 ? objects.size() : std::min(asked, page_limit_);
    json metadata = {{"resourceVersion", version}};
    if (objects.size() > limit) {
      const std::string token = absl::StrCat(version, ".", ++tokens_, "/+=");
      continued_[token].assign(objects.begin() + static_cast<std::ptrdiff_t>(limit), objects.end());
      objects.resize(limit);
      metadata["continue"] = token;
    }
    lock.unlock();
    return Reply(channel, 200, "", json{{"kind", "List"}, {"metadata", metadata}, {"items", objects}}.dump());
  }

  static std::string Line(const char* type, const json& object) {
    return json{{"type", type}, {"object", object}}.dump() + "\n";
  }

  bool Watch(Channel& channel, const Query& query) {
    std::uint64_t from = 0;
    if (!absl::SimpleAtoi(query.Value("resourceVersion"), &from)) {
      return Refuse(channel, 400, "BadRequest", "invalid resourceVersion");
    }
    const auto end = Clock::now() + std::chrono::seconds(query.Number("timeoutSeconds", 60));
    std::unique_lock lock(mutex_);
    if (from < compacted_) {
      const bool by_event = gone_by_event_;
      lock.unlock();
      const json gone = StatusObject(410, "Expired", "too old resource version");
      if (!by_event) return Reply(channel, 410, "", gone.dump());
      return channel.Write(absl::StrCat("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")) &&
             Chunk(channel, Line("ERROR", gone), false) && channel.Write("0\r\n\r\n");
    }
    Collection& collection = collections_.at(query.path);
    ++collection.watches;
    const bool complete = Stream(channel, query, collection, from, end, lock);
    --collection.watches;
    lock.unlock();
    return complete && channel.Write("0\r\n\r\n");
  }

  static bool Chunk(Channel& channel, const std::string& text, bool bytewise) {
    if (!bytewise) return channel.Write(absl::StrCat(absl::Hex(text.size()), "\r\n", text, "\r\n"));
    for (const char c : text) {
      if (!channel.Write(absl::StrCat("1\r\n", std::string(1, c), "\r\n"))) return false;
    }
    return true;
  }

  // True when the watch came to its time, false when the connection is to be closed.
  bool Stream(Channel& channel, const Query& query, Collection& collection, std::uint64_t from,
              Clock::time_point end, std::unique_lock<std::mutex>& lock) {
    const std::uint64_t drops = drops_;
    std::uint64_t bookmarks = bookmarks_;
    std::size_t injected = collection.injected.size();
    std::size_t next = 0;
    std::uint64_t passed = from;  // the version up to which this watch is complete
    lock.unlock();
    bool good = channel.Write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    lock.lock();
    while (good && !stop_ && Clock::now() < end) {
      if (drops_ != drops) {
        const bool in_line = drop_in_line_;
        lock.unlock();
        if (in_line) Chunk(channel, R"({"type":"DELETED","object":{"metadata":{"name":"cut)", false);
        lock.lock();
        return false;
      }
      std::vector<std::string> lines;
      for (; next < collection.events.size(); ++next) {
        const Event& event = collection.events[next];
        if (event.version <= from) continue;
        const bool before = event.before && query.Matches(*event.before);
        const bool after = event.after && query.Matches(*event.after);
        if (!before && !after) continue;
        json object = after ? *event.after : *event.before;
        object["metadata"]["resourceVersion"] = std::to_string(event.version);
        lines.push_back(Line(!after ? "DELETED" : before ? "MODIFIED" : "ADDED", object));
      }
      passed = std::max(passed, version_);
      const LineFilter filter = filter_;
      if (bookmarks != bookmarks_ && query.Value("allowWatchBookmarks") == "true") {
        lines.push_back(Line("BOOKMARK", {{"metadata", {{"resourceVersion", std::to_string(passed)}}}}));
      }
      bookmarks = bookmarks_;
      std::vector<std::string> raw(collection.injected.begin() + static_cast<std::ptrdiff_t>(injected),
                                   collection.injected.end());
      injected = collection.injected.size();
      const bool bytewise = bytewise_;
      lock.unlock();
      for (const std::string& line : lines) {
        for (const std::string& text : filter ? filter(line) : std::vector<std::string>{line}) {
          good = good && Chunk(channel, text, bytewise);
        }
      }
      for (const std::string& text : raw) good = good && Chunk(channel, text, false);
      good = good && !channel.PeerClosed();
      const bool idle = lines.empty() && raw.empty();
      lock.lock();
      if (good && idle) changed_.wait_for(lock, std::chrono::milliseconds(5));
    }
    return good && !stop_;
  }

  SSL_CTX* context_ = nullptr;
  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::uint64_t tokens_ = 0;
  bool stop_ = false;
  std::set<Channel*> channels_;
  std::list<std::thread> threads_;
  std::condition_variable changed_;
  std::thread acceptor_;
};

FakeApiServer::FakeApiServer() : impl_(std::make_unique<Impl>(nullptr)) {}
FakeApiServer::FakeApiServer(const PemPair& pair) : impl_(std::make_unique<Impl>(&pair)) {}
FakeApiServer::~FakeApiServer() = default;
std::string FakeApiServer::url() const { return impl_->url(); }

void FakeApiServer::Install(const std::string& collection) {
  impl_->Locked([&] { impl_->collections_[collection]; });
}
std::uint64_t FakeApiServer::Apply(const std::string& collection, json object) {
  const std::string key = KeyOf(object);
  return impl_->Change(collection, key, std::move(object));
}
void FakeApiServer::Remove(const std::string& collection, const std::string& key) {
  impl_->Change(collection, key, std::nullopt);
}
std::vector<json> FakeApiServer::Objects(const std::string& collection) const {
  return impl_->Locked([&] {
    std::vector<json> objects;
    for (const auto& [key, object] : impl_->collections_.at(collection).objects) objects.push_back(object);
    return objects;
  });
}
void FakeApiServer::Compact() {
  impl_->Locked([&] {
    impl_->compacted_ = ++impl_->version_;
    impl_->continued_.clear();
  });
}
void FakeApiServer::Bookmark() {
  impl_->Locked([&] { ++impl_->bookmarks_; });
}
void FakeApiServer::RequireToken(const std::string& token) {
  impl_->Locked([&] { impl_->token_ = token; });
}
void FakeApiServer::LimitPages(std::size_t objects) {
  impl_->Locked([&] { impl_->page_limit_ = objects; });
}
void FakeApiServer::TellGoneByEvent(bool on) {
  impl_->Locked([&] { impl_->gone_by_event_ = on; });
}
void FakeApiServer::SendBytewise(bool on) {
  impl_->Locked([&] { impl_->bytewise_ = on; });
}
void FakeApiServer::Filter(LineFilter filter) {
  impl_->Locked([&] { impl_->filter_ = std::move(filter); });
}
void FakeApiServer::FailNext(const Failure& failure, int times, const std::string& substring) {
  impl_->Locked([&] { impl_->failures_.push_back({failure, times, substring}); });
}
void FakeApiServer::ExpireNextContinue() {
  impl_->Locked([&] { impl_->expire_continue_ = true; });
}
void FakeApiServer::DropWatches(bool in_line) {
  impl_->Locked([&] {
    ++impl_->drops_;
    impl_->drop_in_line_ = in_line;
  });
}
void FakeApiServer::Inject(const std::string& collection, const std::string& text) {
  impl_->Locked([&] { impl_->collections_.at(collection).injected.push_back(text); });
}
std::vector<std::string> FakeApiServer::Requests() const {
  return impl_->Locked([&] { return impl_->requests_; });
}
std::size_t FakeApiServer::CountRequests(const std::string& substring) const {
  std::size_t count = 0;
  for (const std::string& request : Requests()) count += request.find(substring) != std::string::npos;
  return count;
}
std::size_t FakeApiServer::Watches(const std::string& collection) const {
  return impl_->Locked([&] { return impl_->collections_.at(collection).watches; });
}
std::size_t FakeApiServer::Connections() const {
  return impl_->Locked([&] { return impl_->accepted_; });
}

}  // namespace llmd::testing
