#include "examples/gateway_scheduler/curl_loop.h"

#include <curl/curl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <queue>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace llmd::host {
namespace {

// Larger than most answers, so that one system call takes in all that is there.
constexpr long kReceiveBytes = 128 << 10;
constexpr std::size_t kKeepBodyBytes = 1 << 20;
constexpr std::size_t kKeepHandles = 256;

void InitCurl() {
  static const CURLcode initialized = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (initialized != CURLE_OK) throw std::runtime_error("libcurl does not initialize");
}

absl::StatusCode CodeOf(CURLcode code) {
  switch (code) {
    case CURLE_OPERATION_TIMEDOUT:
      return absl::StatusCode::kDeadlineExceeded;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
      return absl::StatusCode::kInvalidArgument;
    case CURLE_OUT_OF_MEMORY:
      return absl::StatusCode::kResourceExhausted;
    default:
      return absl::StatusCode::kUnavailable;
  }
}

}  // namespace

class CurlLoop::Impl {
 public:
  explicit Impl(const Options& options) {
    InitCurl();
    multi_ = curl_multi_init();
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (multi_ == nullptr || epoll_ < 0 || wake_ < 0)
      throw std::runtime_error("no file descriptors for a curl loop");
    epoll_event event{.events = EPOLLIN, .data = {.fd = wake_}};
    epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event);
    curl_multi_setopt(multi_, CURLMOPT_SOCKETFUNCTION, &Impl::OnSocket);
    curl_multi_setopt(multi_, CURLMOPT_SOCKETDATA, this);
    curl_multi_setopt(multi_, CURLMOPT_TIMERFUNCTION, &Impl::OnTimer);
    curl_multi_setopt(multi_, CURLMOPT_TIMERDATA, this);
    curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(options.max_idle_connections));
    max_idle_age_ = static_cast<long>(options.max_idle_age.count());
    thread_ = std::thread([this] { Run(); });
  }

  ~Impl() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    Wake();
    thread_.join();
    for (Transfer* transfer : spare_) Free(transfer);
    curl_multi_cleanup(multi_);
    close(wake_);
    close(epoll_);
  }

  Id Fetch(FetchRequest request, Done done) {
    const Id id = next_id_.fetch_add(1, std::memory_order_relaxed);
    Enqueue([this, id, request = std::move(request), done = std::move(done)](bool stopping) mutable {
      Start(id, std::move(request), std::move(done), stopping);
    });
    return id;
  }

  void Cancel(Id id) {
    Enqueue([this, id](bool) { CancelNow(id); });
  }

  void Post(std::function<void()> work) {
    Enqueue([work = std::move(work)](bool stopping) {
      if (!stopping) work();
    });
  }

  void At(Clock::time_point when, std::function<void()> work) {
    Enqueue([this, when, work = std::move(work)](bool stopping) mutable {
      if (!stopping) timers_.push({when, timer_order_++, std::move(work)});
    });
  }

  bool OnLoopThread() const { return std::this_thread::get_id() == thread_.get_id(); }
  std::uint64_t connections() const { return connections_.load(std::memory_order_relaxed); }

 private:
  using Work = std::function<void(bool stopping)>;

  struct Transfer {
    CURL* easy = nullptr;
    curl_slist* headers = nullptr;
    Id id = 0;
    FetchRequest request = {};
    Done done = nullptr;
    FetchResult result = {};
    bool too_long = false;
    bool plain = true;  // the handle has no option of this request but URL and time
  };

  struct Timer {
    Clock::time_point when;
    std::uint64_t order;
    std::function<void()> work;
    bool operator<(const Timer& other) const {
      return std::tie(when, order) > std::tie(other.when, other.order);
    }
  };

  // What epoll knows of a socket. A connection that curl lets go stays registered, since it will most likely
  // be used again: this saves two system calls a request.
  struct Socket {
    bool connection = false;  // else one of curl's own
    std::uint32_t registered = 0;
    std::uint32_t wanted = 0;
  };

  void Enqueue(Work work) {
    bool first = false;
    {
      const std::lock_guard lock(mutex_);
      if (!ended_) {
        first = queue_.empty();
        queue_.push_back(std::move(work));
        work = nullptr;
      }
    }
    if (work) return work(true);
    if (first && !OnLoopThread()) Wake();
  }

  void Wake() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof(one));
  }

  void Run() {
    for (;;) {
      RunQueue(false);
      RunTimers();
      RunQueue(false);
      {
        const std::lock_guard lock(mutex_);
        if (stopping_) break;
      }
      Wait();
      Finish();
    }
    while (!active_.empty()) CancelNow(active_.begin()->first);
    // Callbacks may have asked for more; from here on, callers are answered at once.
    for (bool more = true; more;) {
      RunQueue(true);
      const std::lock_guard lock(mutex_);
      more = !queue_.empty();
      ended_ = !more;
    }
  }

  void RunQueue(bool stopping) {
    {
      const std::lock_guard lock(mutex_);
      running_.swap(queue_);
    }
    for (Work& work : running_) work(stopping);
    running_.clear();
  }

  void RunTimers() {
    if (timers_.empty()) return;
    const Clock::time_point now = Clock::now();
    while (!timers_.empty() && timers_.top().when <= now) {
      const std::function<void()> work = std::move(const_cast<Timer&>(timers_.top()).work);
      timers_.pop();
      work();
    }
  }

  // Milliseconds until the next timer; -1: none.
  int Timeout() {
    {
      const std::lock_guard lock(mutex_);
      if (!queue_.empty() || stopping_) return 0;
    }
    std::optional<Clock::time_point> next = curl_due_;
    if (!timers_.empty() && (!next || timers_.top().when < *next)) next = timers_.top().when;
    if (!next) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - Clock::now());
    return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 60'000));
  }

  void Wait() {
    epoll_event events[64];
    const int count = epoll_wait(epoll_, events, std::size(events), Timeout());
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      if (fd == wake_) {
        std::uint64_t ignored;
        [[maybe_unused]] const ssize_t got = read(wake_, &ignored, sizeof(ignored));
        continue;
      }
      const auto found = sockets_.find(fd);
      if (found == sockets_.end()) continue;
      if (found->second.wanted == 0) {
        // An idle connection that the other side closed: curl will see so when it wants to use it.
        epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
        found->second.registered = 0;
        continue;
      }
      const std::uint32_t got = events[i].events;
      const int mask = (got & (EPOLLIN | EPOLLHUP) ? CURL_CSELECT_IN : 0) |
                       (got & EPOLLOUT ? CURL_CSELECT_OUT : 0) | (got & EPOLLERR ? CURL_CSELECT_ERR : 0);
      int running = 0;
      curl_multi_socket_action(multi_, fd, mask, &running);
    }
    if (curl_due_ && *curl_due_ <= Clock::now()) {
      curl_due_.reset();
      int running = 0;
      curl_multi_socket_action(multi_, CURL_SOCKET_TIMEOUT, 0, &running);
    }
  }

  void Finish() {
    int left = 0;
    while (const CURLMsg* message = curl_multi_info_read(multi_, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      const CURLcode code = message->data.result;
      Transfer* transfer = nullptr;
      curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
      if (code == CURLE_OK) {
        long status = 0;
        curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
        transfer->result.code = static_cast<int>(status);
      } else if (transfer->too_long || code == CURLE_FILESIZE_EXCEEDED) {
        transfer->result.status =
            absl::ResourceExhaustedError(absl::StrCat(transfer->request.url, ": the answer is longer than ",
                                                      transfer->request.max_body_bytes, " bytes"));
      } else {
        transfer->result.status = absl::Status(
            CodeOf(code), absl::StrCat(transfer->request.url, ": ", curl_easy_strerror(code),
                                       code == CURLE_OPERATION_TIMEDOUT
                                           ? absl::StrCat(" (", transfer->request.timeout.count(), " ms)")
                                           : ""));
      }
      Complete(transfer);
    }
  }

  void Start(Id id, FetchRequest request, Done done, bool stopping) {
    if (stopping) {
      FetchResult result{.status = absl::CancelledError(absl::StrCat(request.url, ": the loop ends"))};
      return done(result);
    }
    Transfer* transfer = nullptr;
    if (!spare_.empty()) {
      transfer = spare_.back();
      spare_.pop_back();
    } else {
      transfer = new Transfer{.easy = curl_easy_init()};
      SetUp(transfer);
    }
    transfer->id = id;
    transfer->request = std::move(request);
    transfer->done = std::move(done);
    if (!Prepare(transfer)) {
      transfer->result.status = absl::InvalidArgumentError(
          absl::StrCat(transfer->request.url, ": the request cannot be made, see its URL and headers"));
      return Give(transfer);
    }
    active_[id] = transfer;
    curl_multi_add_handle(multi_, transfer->easy);
  }

  // What all requests have in common; it stays with a handle for as long as it makes plain requests.
  void SetUp(Transfer* transfer) {
    const auto set = [&](CURLoption option, auto value) { curl_easy_setopt(transfer->easy, option, value); };
    set(CURLOPT_PRIVATE, transfer);
    set(CURLOPT_PROTOCOLS_STR, "http,https");
    set(CURLOPT_PROXY, "");
    set(CURLOPT_NOPROXY, "*");  // spares curl looking into the environment
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    set(CURLOPT_BUFFERSIZE, kReceiveBytes);
    set(CURLOPT_MAXAGE_CONN, max_idle_age_);
    set(CURLOPT_WRITEFUNCTION, &Impl::OnData);
    set(CURLOPT_WRITEDATA, transfer);
    set(CURLOPT_HEADERFUNCTION, &Impl::OnHeader);
    set(CURLOPT_HEADERDATA, transfer);
    set(CURLOPT_OPENSOCKETFUNCTION, &Impl::OnOpen);
    set(CURLOPT_OPENSOCKETDATA, this);
    set(CURLOPT_CLOSESOCKETFUNCTION, &Impl::OnClose);
    set(CURLOPT_CLOSESOCKETDATA, this);
    transfer->plain = true;
  }

  // False when curl refuses an option.
  bool Prepare(Transfer* transfer) {
    const FetchRequest& request = transfer->request;
    bool good = true;
    const auto set = [&](CURLoption option, auto value) {
      good = curl_easy_setopt(transfer->easy, option, value) == CURLE_OK && good;
    };
    set(CURLOPT_URL, request.url.c_str());
    set(CURLOPT_TIMEOUT_MS, static_cast<long>(std::max<std::int64_t>(request.timeout.count(), 1)));
    set(CURLOPT_CONNECTTIMEOUT_MS,
        static_cast<long>(std::max<std::int64_t>(request.connect_timeout.count(), 1)));
    if (request.body != nullptr) {
      transfer->plain = false;
      set(CURLOPT_POST, 1L);
      set(CURLOPT_POSTFIELDS, request.body->data());
      set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body->size()));
      // A round trip before each long body otherwise.
      good = Append(transfer, "Expect:") && good;
    }
    for (const auto& [name, value] : request.headers) {
      if (name.find_first_of("\r\n") != std::string::npos || value.find_first_of("\r\n") != std::string::npos)
        return false;
      good = Append(transfer, absl::StrCat(name, value.empty() ? ";" : ": ", value)) && good;
    }
    if (transfer->headers != nullptr) {
      transfer->plain = false;
      set(CURLOPT_HTTPHEADER, transfer->headers);
    }
    if (!request.url.starts_with("http://")) {
      transfer->plain = false;
      set(CURLOPT_SSL_VERIFYPEER, request.tls.verify ? 1L : 0L);
      set(CURLOPT_SSL_VERIFYHOST, request.tls.verify ? 2L : 0L);
      if (!request.tls.ca_file.empty()) set(CURLOPT_CAINFO, request.tls.ca_file.c_str());
      if (!request.tls.certificate_file.empty()) set(CURLOPT_SSLCERT, request.tls.certificate_file.c_str());
      if (!request.tls.key_file.empty()) set(CURLOPT_SSLKEY, request.tls.key_file.c_str());
    }
    return good;
  }

  static bool Append(Transfer* transfer, const std::string& line) {
    curl_slist* const longer = curl_slist_append(transfer->headers, line.c_str());
    if (longer == nullptr) return false;
    transfer->headers = longer;
    return true;
  }

  void CancelNow(Id id) {
    const auto found = active_.find(id);
    if (found == active_.end()) return;
    Transfer* transfer = found->second;
    transfer->result.status = absl::CancelledError(absl::StrCat(transfer->request.url, ": cancelled"));
    Complete(transfer);
  }

  void Complete(Transfer* transfer) {
    long opened = 0;
    curl_easy_getinfo(transfer->easy, CURLINFO_NUM_CONNECTS, &opened);
    connections_.fetch_add(static_cast<std::uint64_t>(opened), std::memory_order_relaxed);
    // curl counts how often a handle replaced a dead connection, and gives up at five unless it is reset.
    if (opened > 0) transfer->plain = false;
    curl_multi_remove_handle(multi_, transfer->easy);
    active_.erase(transfer->id);
    Give(transfer);
  }

  // Calls back and takes the transfer's memory for the next.
  void Give(Transfer* transfer) {
    const Done done = std::move(transfer->done);
    transfer->done = nullptr;
    done(transfer->result);
    if (!transfer->plain) {
      curl_easy_reset(transfer->easy);
      curl_slist_free_all(transfer->headers);
      transfer->headers = nullptr;
      SetUp(transfer);
    }
    transfer->request = {};
    transfer->too_long = false;
    std::string body = std::move(transfer->result.body);
    transfer->result = {};
    if (body.capacity() <= kKeepBodyBytes) {
      body.clear();
      transfer->result.body = std::move(body);
    }
    if (spare_.size() < kKeepHandles) {
      spare_.push_back(transfer);
    } else {
      Free(transfer);
    }
  }

  static void Free(Transfer* transfer) {
    curl_easy_cleanup(transfer->easy);
    curl_slist_free_all(transfer->headers);
    delete transfer;
  }

  static std::size_t OnData(char* data, std::size_t size, std::size_t count, void* context) {
    auto* transfer = static_cast<Transfer*>(context);
    const std::size_t bytes = size * count;
    std::string& body = transfer->result.body;
    if (bytes > transfer->request.max_body_bytes - body.size()) {
      transfer->too_long = true;
      return 0;
    }
    body.append(data, bytes);
    return bytes;
  }

  // A length that is announced and too long ends the request before its first byte.
  static std::size_t OnHeader(char* data, std::size_t size, std::size_t count, void* context) {
    auto* transfer = static_cast<Transfer*>(context);
    const std::size_t bytes = size * count;
    const absl::string_view line(data, bytes);
    constexpr absl::string_view kLength = "content-length:";
    if (bytes <= kLength.size() || !absl::EqualsIgnoreCase(line.substr(0, kLength.size()), kLength))
      return bytes;
    std::uint64_t length = 0;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(line.substr(kLength.size())), &length)) return bytes;
    if (length > transfer->request.max_body_bytes) {
      transfer->too_long = true;
      return 0;
    }
    transfer->result.body.reserve(length);
    return bytes;
  }

  static curl_socket_t OnOpen(void* context, curlsocktype, curl_sockaddr* address) {
    const int fd =
        socket(address->family, address->socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, address->protocol);
    if (fd < 0) return CURL_SOCKET_BAD;
    static_cast<Impl*>(context)->sockets_[fd] = {.connection = true};
    return fd;
  }

  // Closing takes the socket out of epoll.
  static int OnClose(void* context, curl_socket_t fd) {
    static_cast<Impl*>(context)->sockets_.erase(fd);
    return close(fd);
  }

  static int OnSocket(CURL*, curl_socket_t fd, int what, void* context, void*) {
    auto* loop = static_cast<Impl*>(context);
    if (what == CURL_POLL_REMOVE) {
      const auto found = loop->sockets_.find(fd);
      if (found == loop->sockets_.end()) return 0;
      found->second.wanted = 0;
      if (found->second.connection) return 0;
      epoll_ctl(loop->epoll_, EPOLL_CTL_DEL, fd, nullptr);
      loop->sockets_.erase(found);
      return 0;
    }
    Socket& socket = loop->sockets_[fd];
    socket.wanted = (what & CURL_POLL_IN ? EPOLLIN : 0u) | (what & CURL_POLL_OUT ? EPOLLOUT : 0u);
    if (socket.wanted == socket.registered) return 0;
    epoll_event event{.events = socket.wanted, .data = {.fd = fd}};
    const int operation = socket.registered == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    if (epoll_ctl(loop->epoll_, operation, fd, &event) != 0) {
      socket.registered = 0;
      return -1;
    }
    socket.registered = socket.wanted;
    return 0;
  }

  static int OnTimer(CURLM*, long milliseconds, void* context) {
    auto* loop = static_cast<Impl*>(context);
    if (milliseconds < 0) {
      loop->curl_due_.reset();
    } else {
      loop->curl_due_ = Clock::now() + std::chrono::milliseconds(milliseconds);
    }
    return 0;
  }

  CURLM* multi_ = nullptr;
  int epoll_ = -1;
  int wake_ = -1;
  long max_idle_age_ = 60;
  std::atomic<Id> next_id_ = 1;
  std::atomic<std::uint64_t> connections_ = 0;

  std::mutex mutex_;
  std::vector<Work> queue_;
  bool stopping_ = false;
  bool ended_ = false;

  // Of the loop's thread.
  std::vector<Work> running_;
  std::priority_queue<Timer> timers_;
  std::uint64_t timer_order_ = 0;
  std::optional<Clock::time_point> curl_due_;
  absl::flat_hash_map<int, Socket> sockets_;
  absl::flat_hash_map<Id, Transfer*> active_;
  std::vector<Transfer*> spare_;
  std::thread thread_;
};

CurlLoop::CurlLoop() : CurlLoop(Options()) {}
CurlLoop::CurlLoop(const Options& options) : impl_(std::make_unique<Impl>(options)) {}
CurlLoop::~CurlLoop() = default;

CurlLoop::Id CurlLoop::Fetch(FetchRequest request, Done done) {
  return impl_->Fetch(std::move(request), std::move(done));
}
void CurlLoop::Cancel(Id id) { impl_->Cancel(id); }
void CurlLoop::Post(std::function<void()> work) { impl_->Post(std::move(work)); }
void CurlLoop::At(Clock::time_point when, std::function<void()> work) { impl_->At(when, std::move(work)); }
bool CurlLoop::OnLoopThread() const { return impl_->OnLoopThread(); }
std::uint64_t CurlLoop::connections() const { return impl_->connections(); }

}  // namespace llmd::host
