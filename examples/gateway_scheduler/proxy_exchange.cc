#include "examples/gateway_scheduler/proxy_exchange.h"

#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/system_error.hpp>

#include "absl/strings/str_cat.h"
#include "examples/http/error.h"
#include "llmd/base/strings.h"
#include "llmd/gateway/headers.h"

namespace llmd::host {
namespace {

namespace asio = boost::asio;
using boost::system::system_error;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr std::size_t kMostPrefillAnswer = 64 << 20;

bool IsTimeout(const system_error& error) { return error.code() == asio::error::timed_out; }

}  // namespace

ProxyExchange::~ProxyExchange() {
  if (session_ == nullptr) return;
  session_->Close(natural_ ? gateway::CloseReason::kEndOfStream : gateway::CloseReason::kCancelled);
}

ProxyExchange::Reply ProxyExchange::OwnReply(int status, std::string_view message) {
  Reply reply;
  reply.status = status;
  reply.headers = http::ContentType("application/json");
  reply.body = http::ErrorBody(status, message);
  return reply;
}

asio::awaitable<void> ProxyExchange::Run(NewSession new_session) {
  if (request_.method == "CONNECT") {
    co_await response_.Send(501, http::ContentType("application/json"),
                            http::ErrorBody(501, "method CONNECT: not supported by the standalone proxy"));
    co_return;
  }
  ready_.emplace(co_await asio::this_coro::executor, asio::steady_timer::time_point::max());
  session_ = new_session([this] { ready_->cancel(); });
  RemoveHopByHop(request_.headers);
  AppendForwardedFor(request_.peer, request_.headers);
  const bool decided = co_await Decide();
  if (decided) co_await ServeUntilEvicted();
}

asio::awaitable<bool> ProxyExchange::Decide() {
  session_->Receive(RequestHeadersMessage(request_));
  // Kept: an unchanged body does not come back.
  if (!request_.body.empty() && !session_->finished()) session_->Receive(RequestBodyMessage(request_.body));
  for (;;) {
    gateway::ProcessingResponse answer;
    while (!decided_ && session_->Next(answer)) {
      if (answer.has_immediate_response()) {
        co_await SendImmediate(answer);
        natural_ = true;
        co_return false;
      }
      TakeRequestAnswer(answer);
    }
    if (decided_) break;
    if (session_->finished()) {
      // As Envoy's failure mode "closed".
      const std::string message = absl::StrCat("no decision: ", session_->status().message());
      co_await response_.Send(500, http::ContentType("application/json"), http::ErrorBody(500, message));
      co_return false;
    }
    (void)co_await ready_->async_wait(kAwait);
  }
  co_return true;
}

void ProxyExchange::TakeRequestAnswer(const gateway::ProcessingResponse& answer) {
  const auto& common =
      answer.has_request_body() ? answer.request_body().response() : answer.request_headers().response();
  ApplyMutation(common.header_mutation(), request_.headers, &request_.target);
  if (std::vector<std::string> all = DestinationsOf(answer); !all.empty()) destinations_ = std::move(all);
  // What a client sends under this name is nobody's decision.
  for (const auto& option : common.header_mutation().set_headers()) {
    if (option.header().key() != gateway::kPrefillHeader) continue;
    prefill_header_ =
        option.header().raw_value().empty() ? option.header().value() : option.header().raw_value();
  }
  if (answer.has_request_body()) {
    const auto& mutation = common.body_mutation();
    if (mutation.has_body()) request_.body = mutation.body();
    if (mutation.clear_body()) request_.body.clear();
  }
  decided_ = answer.has_request_body() || request_.body.empty();
}

asio::awaitable<void> ProxyExchange::SendImmediate(const gateway::ProcessingResponse& answer) {
  const auto& immediate = answer.immediate_response();
  http::Headers headers = http::ContentType("text/plain");
  ApplyMutation(immediate.headers(), headers, nullptr);
  std::string body = immediate.body();
  const int status = static_cast<int>(immediate.status().code());
  co_await response_.Send(status == 0 ? 200 : status, std::move(headers), std::move(body));
}

asio::awaitable<void> ProxyExchange::ServeUntilEvicted() {
  using namespace asio::experimental::awaitable_operators;  // NOLINT(google-build-using-namespace)
  auto outcome = co_await (Serve() || WaitForEviction());
  if (!immediate_) {
    if (const std::exception_ptr error = std::get<0>(outcome)) std::rethrow_exception(error);
    co_return;
  }
  if (response_.started()) {
    response_.Abort();
  } else {
    co_await SendImmediate(*immediate_);
  }
  natural_ = true;
}

// The session speaks unasked only to end the request.
asio::awaitable<void> ProxyExchange::WaitForEviction() {
  for (;;) {
    (void)co_await ready_->async_wait(kAwait);
    Collect();
    if (immediate_) co_return;
  }
}

// Returns its failure: the operator beside it would go on waiting for the other side.
asio::awaitable<std::exception_ptr> ProxyExchange::Serve() {
  std::exception_ptr failure;
  try {
    Reply reply = co_await Ask();
    co_await Relay(std::move(reply));
  } catch (...) {
    failure = std::current_exception();
  }
  co_return failure;
}

asio::awaitable<ProxyExchange::Reply> ProxyExchange::AskOnce(std::string host_port, http::Request request) {
  Reply reply;
  reply.served = host_port;
  try {
    reply.upstream = co_await client_.Send(host_port, std::move(request));
    reply.status = reply.upstream->status();
    reply.headers = reply.upstream->headers();
  } catch (const http::ConnectError&) {
    throw;
  } catch (const system_error& error) {
    if (error.code() == asio::error::operation_aborted) throw;
    if (error.code() == asio::error::invalid_argument) throw;
    reply = IsTimeout(error) ? OwnReply(504, absl::StrCat(host_port, " did not answer in time"))
                             : OwnReply(502, absl::StrCat(host_port, ": ", error.code().message()));
  }
  co_return reply;
}

asio::awaitable<ProxyExchange::Reply> ProxyExchange::AskDestinations(http::Request request) {
  std::string failures;
  for (std::size_t i = 0; i < destinations_.size(); ++i) {
    const std::string& destination = destinations_[i];
    http::Request copy = i + 1 < destinations_.size() ? request : std::move(request);
    std::optional<Reply> reply;
    try {
      reply = co_await AskOnce(destination, std::move(copy));
    } catch (const http::ConnectError& error) {
      if (error.code() == asio::error::operation_aborted) throw;
      absl::StrAppend(&failures, failures.empty() ? "" : "; ", destination, ": ", error.code().message());
    }
    if (reply) co_return std::move(*reply);
  }
  Reply none = OwnReply(503, absl::StrCat("no endpoint could be reached: ",
                                          failures.empty() ? "the decision names none" : failures));
  co_return none;
}

asio::awaitable<ProxyExchange::Reply> ProxyExchange::Ask() {
  const PdApi api = options_.pd ? PdApiOf(request_.method, request_.path()) : PdApi::kNone;
  if (options_.pd) {
    std::erase_if(request_.headers, [](const auto& header) {
      return header.first == gateway::kPrefillHeader || header.first == "x-encoder-hosts-ports" ||
             header.first == "x-kv-cache-source-host-port";
    });
  }
  const std::string target = api == PdApi::kNone ? std::string() : PrefillTarget(prefill_header_);
  if (target.empty()) {
    Reply reply = co_await AskDestinations(std::move(request_));
    co_return reply;
  }
  absl::StatusOr<PdRequest> bodies = PdRequest::Read(api, request_.body);
  if (!bodies.ok()) co_return OwnReply(400, std::string(bodies.status().message()));
  PrefillOutcome prefill = co_await Prefill(target, bodies->PrefillBody());
  if (prefill.failure) co_return std::move(*prefill.failure);
  request_.body = bodies->DecodeBody(prefill.result);
  Reply reply = co_await AskDestinations(std::move(request_));
  if (reply.upstream != nullptr) {
    reply.rewriter.emplace(IsEventStream(reply.headers), prefill.result.cached_tokens);
  }
  co_return reply;
}

asio::awaitable<ProxyExchange::PrefillOutcome> ProxyExchange::Prefill(std::string target, std::string body) {
  PrefillOutcome outcome;
  http::Request request = request_;
  request.body = std::move(body);
  for (int attempt = 0;; ++attempt) {
    Reply reply;
    std::string failure;
    try {
      reply = co_await AskOnce(target, request);
      // Read here: the answer is needed whole, and whether it comes whole decides about a retry.
      if (reply.upstream != nullptr) {
        reply.body = co_await reply.upstream->ReadAll(kMostPrefillAnswer);
        reply.upstream.reset();
      }
    } catch (const system_error& error) {
      if (error.code() == asio::error::operation_aborted) throw;
      failure = error.code().message();
    }
    if (!failure.empty()) reply = OwnReply(502, absl::StrCat("prefill at ", target, ": ", failure));
    if (reply.status >= 200 && reply.status < 300) {
      outcome.result = ReadPrefillAnswer(reply.body);
      co_return outcome;
    }
    const bool again = reply.status >= 502 && reply.status <= 504 && attempt < options_.prefill_retries;
    if (!again) {
      reply.credited = false;
      outcome.failure = std::move(reply);
      co_return outcome;
    }
    asio::steady_timer pause(co_await asio::this_coro::executor, options_.prefill_backoff);
    co_await pause.async_wait(asio::use_awaitable);
  }
}

void ProxyExchange::Collect() {
  gateway::ProcessingResponse answer;
  while (session_->Next(answer)) {
    if (answer.has_immediate_response()) {
      immediate_ = answer;
    } else if (answer.has_response_headers()) {
      ApplyMutation(answer.response_headers().response().header_mutation(), headers_, nullptr);
      head_ready_ = true;
    } else if (answer.has_response_body()) {
      auto& chunk = *answer.mutable_response_body()
                         ->mutable_response()
                         ->mutable_body_mutation()
                         ->mutable_streamed_response();
      if (out_.empty()) {
        out_ = std::move(*chunk.mutable_body());
      } else {
        out_.append(chunk.body());
      }
      ended_ = ended_ || chunk.end_of_stream();
    }
  }
}

asio::awaitable<void> ProxyExchange::Deliver(bool end) {
  if (!head_sent_ && end) {
    head_sent_ = true;
    co_await response_.Send(status_, std::move(headers_), std::move(out_));
    co_return;
  }
  if (!head_sent_ && (event_stream_ || !out_.empty())) {
    head_sent_ = true;
    co_await response_.Start(status_, std::move(headers_));
  }
  if (!out_.empty()) {
    const std::string piece = std::exchange(out_, std::string());
    co_await response_.Write(piece);
  }
  if (end) co_await response_.Finish();
}

asio::awaitable<void> ProxyExchange::Relay(Reply reply) {
  RemoveHopByHop(reply.headers);
  status_ = reply.status;
  headers_ = std::move(reply.headers);
  event_stream_ = IsEventStream(headers_);
  const std::string* length = http::FindHeader(headers_, "content-length");
  const bool no_body = head_only_ || status_ == 204 || status_ == 304 ||
                       (reply.upstream == nullptr ? reply.body.empty() : length != nullptr && *length == "0");
  bypass_ = session_->finished();
  if (!bypass_) {
    session_->Receive(ResponseHeadersMessage(
        status_, headers_, no_body, reply.credited ? std::string_view(reply.served) : std::string_view()));
    Collect();
    if (immediate_) co_return;
    bypass_ = session_->finished() && !no_body;
  }
  // The length of a body that the session may change is the server's to say.
  if (!head_only_) {
    std::erase_if(headers_, [](const auto& header) { return header.first == "content-length"; });
  }
  if (!reply.served.empty()) {
    std::erase_if(headers_, [](const auto& header) { return header.first == "x-upstream-host"; });
    headers_.emplace_back("x-upstream-host", reply.served);
  }
  for (bool end = no_body;;) {
    co_await Deliver(end);
    if (end) break;
    std::optional<std::string> piece;
    if (reply.upstream == nullptr) {
      if (!reply.body.empty()) piece = std::exchange(reply.body, std::string());
    } else {
      std::string failure;
      try {
        piece = co_await reply.upstream->Read();
      } catch (const system_error& error) {
        if (error.code() == asio::error::operation_aborted) throw;
        failure = error.code().message();
      }
      if (!failure.empty()) {
        if (response_.started()) {
          response_.Abort();
          co_return;
        }
        const std::string message = absl::StrCat(reply.served, " broke its response off: ", failure);
        co_await response_.Send(502, http::ContentType("application/json"), http::ErrorBody(502, message));
        co_return;
      }
    }
    end = !piece.has_value();
    std::string text = end ? std::string() : std::move(*piece);
    if (reply.rewriter) text = end ? reply.rewriter->Finish() : reply.rewriter->Append(text);
    if (bypass_) {
      out_ = std::move(text);
      continue;
    }
    if (text.empty() && !end) continue;
    session_->Receive(ResponseBodyMessage(std::move(text), end));
    Collect();
    if (immediate_) co_return;
    if (!session_->status().ok()) throw std::runtime_error(std::string(session_->status().message()));
  }
  natural_ = true;
}

}  // namespace llmd::host
