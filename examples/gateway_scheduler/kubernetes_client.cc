#include "examples/gateway_scheduler/kubernetes_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

constexpr std::size_t kMaxFileBytes = 64 << 10;
constexpr std::size_t kMaxErrorBytes = 64 << 10;

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad() || (!file.is_open()) || file.gcount() == 0) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot be read"));
  }
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) {
    return absl::UnavailableError(absl::StrCat(path, ": has more than ", kMaxFileBytes, " bytes"));
  }
  return text;
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  absl::StatusOr<std::string> text = ReadSmallFile(path);
  if (!text.ok()) return text.status();
  absl::StripAsciiWhitespace(&*text);
  // It becomes a header.
  if (text->empty() || !std::all_of(text->begin(), text->end(), absl::ascii_isgraph)) {
    return absl::UnavailableError(absl::StrCat(path, ": is empty or no token"));
  }
  return text;
}

bool IsPort(std::string_view text) {
  std::uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc() && end == text.data() + text.size() && port != 0;
}

}  // namespace

absl::StatusOr<KubernetesConfig> ResolveKubernetesConfig(
    KubernetesConfig given, const std::function<const char*(const char*)>& environment,
    const std::string& account_directory) {
  const auto variable = [&](const char* name) {
    const char* value = environment(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (given.api_url.empty()) {
    const std::string host = variable("KUBERNETES_SERVICE_HOST");
    const std::string port = variable("KUBERNETES_SERVICE_PORT");
    if (host.empty() || !IsPort(port)) {
      return absl::FailedPreconditionError(
          "no Kubernetes API: not in a pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT), and no URL "
          "given");
    }
    const bool ipv6 = host.find(':') != std::string::npos;
    given.api_url = absl::StrCat("https://", ipv6 ? "[" : "", host, ipv6 ? "]" : "", ":", port);
    if (given.token_file.empty()) given.token_file = account_directory + "/token";
    if (given.ca_file.empty()) given.ca_file = account_directory + "/ca.crt";
  }
  while (given.api_url.ends_with('/')) given.api_url.pop_back();
  const bool secure = absl::StartsWith(given.api_url, "https://");
  if (!secure && !absl::StartsWith(given.api_url, "http://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("Kubernetes API URL is \"", given.api_url, "\", expected http:// or https://"));
  }
  if (!given.token_file.empty()) {
    if (absl::Status status = ReadToken(given.token_file).status(); !status.ok()) return status;
  }
  if (!given.ca_file.empty()) {
    if (absl::Status status = ReadSmallFile(given.ca_file).status(); !status.ok()) return status;
  }
  if (given.pod_namespace.empty()) given.pod_namespace = variable("POD_NAMESPACE");
  if (given.pod_namespace.empty()) {
    if (auto text = ReadSmallFile(account_directory + "/namespace"); text.ok()) {
      absl::StripAsciiWhitespace(&*text);
      given.pod_namespace = *text;
    }
  }
  return given;
}

struct KubernetesConnection::State {
  // What one request needs in curl's callbacks.
  struct Exchange {
    State* state = nullptr;
    const Limits* limits = nullptr;
    const Sink* sink = nullptr;
    Reply reply;
    absl::Status error;
    bool begun = false;  // of the answer
  };

  explicit State(KubernetesConfig c) : config(std::move(c)) {
    static const CURLcode initialized = curl_global_init(CURL_GLOBAL_DEFAULT);
    if (initialized != CURLE_OK) return;
    easy = curl_easy_init();
    multi = curl_multi_init();
  }
  ~State() {
    curl_easy_cleanup(easy);
    curl_multi_cleanup(multi);
  }

  static std::size_t OnBody(char* data, std::size_t size, std::size_t count, void* user) {
    auto& exchange = *static_cast<Exchange*>(user);
    const std::string_view piece(data, size * count);
    long status = 0;
    curl_easy_getinfo(exchange.state->easy, CURLINFO_RESPONSE_CODE, &status);
    std::string& body = exchange.reply.body;
    if (status != 200) {  // what the server says about it; the rest does not matter
      body.append(piece.substr(0, kMaxErrorBytes - std::min(kMaxErrorBytes, body.size())));
    } else if (*exchange.sink) {
      exchange.error = (*exchange.sink)(piece);
    } else if (piece.size() >
               exchange.limits->max_bytes - std::min(exchange.limits->max_bytes, body.size())) {
      exchange.error = absl::ResourceExhaustedError(
          absl::StrCat("answer has more than ", exchange.limits->max_bytes, " bytes"));
    } else {
      body.append(piece);
    }
    return exchange.error.ok() ? piece.size() : 0;
  }

  static std::size_t OnHeader(char* data, std::size_t size, std::size_t count, void* user) {
    auto& exchange = *static_cast<Exchange*>(user);
    absl::string_view line(data, size * count);
    exchange.begun = true;
    constexpr absl::string_view kRetryAfter = "retry-after:";
    if (absl::StartsWithIgnoreCase(line, "HTTP/")) exchange.reply.retry_after.reset();
    if (absl::StartsWithIgnoreCase(line, kRetryAfter)) {
      line = absl::StripAsciiWhitespace(line.substr(kRetryAfter.size()));
      std::uint32_t seconds = 0;
      const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), seconds);
      if (error == std::errc() && end == line.data() + line.size()) {
        exchange.reply.retry_after = absl::Seconds(seconds);
      }
    }
    if (line == "\r\n" && *exchange.sink) {
      long status = 0;
      curl_easy_getinfo(exchange.state->easy, CURLINFO_RESPONSE_CODE, &status);
      if (status == 200) exchange.error = (*exchange.sink)({});
    }
    return exchange.error.ok() ? size * count : 0;
  }

  void Configure(const std::string& url, const Limits& limits, curl_slist* headers, Exchange& exchange) {
    const auto set = [this](CURLoption option, auto value) { curl_easy_setopt(easy, option, value); };
    curl_easy_reset(easy);
    set(CURLOPT_URL, url.c_str());
    set(CURLOPT_HTTPHEADER, headers);
    set(CURLOPT_USERAGENT, "llmd-gateway");
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_PROXY, "");
    set(CURLOPT_FOLLOWLOCATION, 0L);
    set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    set(CURLOPT_SSL_VERIFYPEER, 1L);
    set(CURLOPT_SSL_VERIFYHOST, 2L);
    if (!config.ca_file.empty()) set(CURLOPT_CAINFO, config.ca_file.c_str());
#if LIBCURL_VERSION_NUM >= 0x075700
    set(CURLOPT_CA_CACHE_TIMEOUT, 0L);
#endif
    set(CURLOPT_TCP_KEEPALIVE, 1L);  // finds out about a peer that vanished during a watch
    set(CURLOPT_TCP_KEEPIDLE, 30L);
    set(CURLOPT_TCP_KEEPINTVL, 10L);
    set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(absl::ToInt64Milliseconds(config.connect_timeout)));
    set(CURLOPT_TIMEOUT_MS, static_cast<long>(absl::ToInt64Milliseconds(limits.timeout)));
    set(CURLOPT_BUFFERSIZE, 65536L);
    set(CURLOPT_WRITEFUNCTION, &OnBody);
    set(CURLOPT_WRITEDATA, static_cast<void*>(&exchange));
    set(CURLOPT_HEADERFUNCTION, &OnHeader);
    set(CURLOPT_HEADERDATA, static_cast<void*>(&exchange));
  }

  // curl_easy_perform(), but Stop() ends it at once.
  CURLcode Perform(const Exchange& exchange) {
    const absl::Time latest = absl::Now() + exchange.limits->first_byte;
    if (curl_multi_add_handle(multi, easy) != CURLM_OK) return CURLE_FAILED_INIT;
    CURLcode result = CURLE_ABORTED_BY_CALLBACK;
    for (bool done = false; !done && !stopped.load();) {
      int running = 0;
      if (curl_multi_perform(multi, &running) != CURLM_OK) break;
      int left = 0;
      while (const CURLMsg* message = curl_multi_info_read(multi, &left)) {
        if (message->msg != CURLMSG_DONE) continue;
        result = message->data.result;
        done = true;
      }
      if (done || stopped.load()) break;
      const absl::Duration left_to_begin = exchange.begun ? absl::Seconds(1) : latest - absl::Now();
      if (left_to_begin <= absl::ZeroDuration()) {
        result = CURLE_OPERATION_TIMEDOUT;
        break;
      }
      const auto wait = std::min<std::int64_t>(1000, absl::ToInt64Milliseconds(left_to_begin) + 1);
      curl_multi_poll(multi, nullptr, 0, static_cast<int>(wait), nullptr);
    }
    curl_multi_remove_handle(multi, easy);
    return result;
  }

  const KubernetesConfig config;
  CURL* easy = nullptr;
  CURLM* multi = nullptr;
  std::atomic<bool> stopped = false;
};

KubernetesConnection::KubernetesConnection(KubernetesConfig config)
    : state_(std::make_unique<State>(std::move(config))) {}
KubernetesConnection::~KubernetesConnection() = default;

void KubernetesConnection::Stop() {
  state_->stopped.store(true);
  if (state_->multi != nullptr) curl_multi_wakeup(state_->multi);
}

absl::StatusOr<KubernetesConnection::Reply> KubernetesConnection::Get(const std::string& target,
                                                                      const Limits& limits,
                                                                      const Sink& sink) {
  if (state_->easy == nullptr || state_->multi == nullptr) return absl::UnavailableError("curl: no handle");
  using Headers = std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)>;
  Headers headers(curl_slist_append(nullptr, "Accept: application/json"), &curl_slist_free_all);
  if (!state_->config.token_file.empty()) {
    const absl::StatusOr<std::string> token = ReadToken(state_->config.token_file);
    if (!token.ok()) return token.status();
    curl_slist_append(headers.get(), absl::StrCat("Authorization: Bearer ", *token).c_str());
  }
  State::Exchange exchange{
      .state = state_.get(), .limits = &limits, .sink = &sink, .reply = {}, .error = {}, .begun = false};
  state_->Configure(state_->config.api_url + target, limits, headers.get(), exchange);
  const CURLcode result = state_->Perform(exchange);
  if (state_->stopped.load()) return absl::CancelledError("stopped");
  if (!exchange.error.ok()) return exchange.error;
  if (result == CURLE_OPERATION_TIMEDOUT) {
    return absl::DeadlineExceededError(absl::StrCat("no complete answer from ", state_->config.api_url));
  }
  if (result != CURLE_OK) {
    return absl::UnavailableError(absl::StrCat(state_->config.api_url, ": ", curl_easy_strerror(result)));
  }
  long status = 0;
  curl_easy_getinfo(state_->easy, CURLINFO_RESPONSE_CODE, &status);
  exchange.reply.status = static_cast<int>(status);
  return std::move(exchange.reply);
}

std::string UrlEncode(std::string_view text) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string encoded;
  for (const char c : text) {
    if (absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.' || c == '~') {
      encoded += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      encoded += {'%', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return encoded;
}

}  // namespace llmd::host
