#include "examples/llmd_load/runner.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <deque>
#include <exception>
#include <memory>
#include <optional>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/system_error.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "examples/http/client.h"
#include "examples/llmd_load/answer.h"
#include "examples/llmd_load/request_body.h"
#include "llmd/base/random.h"

namespace llmd::load {
namespace {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kGapSamples = 1'000'000;
constexpr char kReasonHeader[] = "x-llm-d-request-dropped-reason";

std::string ErrorKind(const boost::system::error_code& code, bool answered) {
  if (answered) return "broken_off";
  if (code == asio::error::connection_refused || code == asio::error::host_unreachable ||
      code == asio::error::network_unreachable || code == asio::error::timed_out ||
      code == asio::error::host_not_found) {
    return "connect";
  }
  return "no_answer";
}

class Run {
 public:
  Run(const Plan& plan, const RunOptions& options)
      : plan_(plan), options_(options), client_(io_.get_executor(), {}), signals_(io_) {}

  RunResult Go() {
    boost::system::error_code ignored;
    signals_.add(SIGINT, ignored);
    signals_.add(SIGTERM, ignored);
    signals_.async_wait([this](const boost::system::error_code& error, int) {
      if (error) return;
      result_.interrupted = true;
      io_.stop();
    });
    asio::co_spawn(io_, Main(), [this](const std::exception_ptr& error) {
      io_.stop();
      if (error) std::rethrow_exception(error);
    });
    asio::co_spawn(io_, Watch(), asio::detached);
    io_.run();
    if (result_.seconds == 0) result_.seconds = Now();
    return std::move(result_);
  }

 private:
  double Now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  asio::awaitable<void> SleepUntil(double when) {
    asio::steady_timer timer(
        io_, start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(when)));
    co_await timer.async_wait(asio::use_awaitable);
  }

  bool Over() const { return options_.max_seconds > 0 && Now() >= options_.max_seconds; }

  asio::awaitable<void> Main() {
    for (const PlannedRequest& request : plan_.warmup) {
      RequestRecord record;
      Conversation conversation;
      AddMessages(request, conversation);
      co_await Send(conversation, request.max_tokens, record);
    }
    if (options_.warm) options_.warm();
    start_ = Clock::now();
    counting_ = true;
    for (std::size_t i = 0; i < plan_.lanes.size() && !Over(); ++i) {
      const Lane& lane = plan_.lanes[i];
      if (lane.start && *lane.start > Now()) {
        if (options_.max_seconds > 0 && *lane.start > options_.max_seconds) break;
        co_await SleepUntil(*lane.start);
      }
      // In a closed loop a lane takes a place for all its requests.
      if (!plan_.open_loop) co_await Acquire();
      ++lanes_open_;
      asio::co_spawn(io_, LaneTask(i), [this](const std::exception_ptr& error) {
        if (error) std::rethrow_exception(error);  // out of Go(): no result is better than a part of it
        --lanes_open_;
        if (!plan_.open_loop) Release();
        if (idle_) idle_->cancel();
      });
    }
    while (lanes_open_ > 0) {
      idle_ = std::make_unique<asio::steady_timer>(io_, Clock::time_point::max());
      boost::system::error_code ignored;
      co_await idle_->async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
    result_.seconds = Now();
  }

  asio::awaitable<void> LaneTask(std::size_t index) {
    const Lane& lane = plan_.lanes[index];
    Conversation conversation;
    double due = lane.start.value_or(Now());
    for (std::size_t turn = 0; turn < lane.requests.size() && !Over(); ++turn) {
      if (turn > 0) {
        due = Now() + lane.pause;
        if (options_.max_seconds > 0 && due > options_.max_seconds) break;
        if (lane.pause > 0) co_await SleepUntil(due);
      }
      if (plan_.open_loop) co_await Acquire();
      if (!lane.grows) conversation.clear();
      AddMessages(lane.requests[turn], conversation);
      RequestRecord record;
      record.lane = index;
      record.turn = turn;
      record.session = lane.session;
      record.due = due;
      std::string answer = co_await Send(conversation, lane.requests[turn].max_tokens, record);
      if (plan_.open_loop) Release();
      if (!record.ok()) ++errors_;
      const bool ok = record.ok();
      result_.records.push_back(std::move(record));
      if (!lane.grows) continue;
      if (!ok) {
        // The conversation goes on as if the turn had not been; the lane must not end for one failure.
        conversation.pop_back();
        continue;
      }
      conversation.emplace_back("assistant", std::move(answer));
    }
  }

  static void AddMessages(const PlannedRequest& request, Conversation& conversation) {
    for (const Message& message : request.messages) {
      conversation.emplace_back(message.role, message.content.Render());
    }
  }

  // Returns the generated text.
  asio::awaitable<std::string> Send(const Conversation& conversation, std::uint32_t max_tokens,
                                    RequestRecord& record) {
    using namespace asio::experimental::awaitable_operators;
    std::string text;
    http::Request request = MakeRequest(plan_.api, conversation, max_tokens, record.session, options_);
    result_.most_in_flight = std::max(result_.most_in_flight, ++in_flight_);
    record.sent = Now();
    asio::steady_timer timer(io_, options_.timeout);
    const auto outcome =
        co_await (Exchange(std::move(request), record, text) || timer.async_wait(asio::use_awaitable));
    if (outcome.index() == 1) record.error = "timeout";
    record.end = Now();
    --in_flight_;
    co_return text;
  }

  asio::awaitable<void> Exchange(http::Request request, RequestRecord& record, std::string& text) {
    bool answered = false;
    try {
      const std::unique_ptr<http::ClientResponse> response =
          co_await client_.Send(options_.target.host_port, std::move(request));
      answered = true;
      record.status = response->status();
      const http::Headers& headers = response->headers();
      if (const std::string* host = http::FindHeader(headers, "x-upstream-host")) record.upstream = *host;
      if (const std::string* reason = http::FindHeader(headers, kReasonHeader)) record.reason = *reason;
      const std::string* type = http::FindHeader(headers, "content-type");
      AnswerReader reader(type && absl::StrContains(*type, "text/event-stream"));
      std::optional<double> last;
      while (std::optional<std::string> bytes = co_await response->Read()) {
        const double now = Now();
        const std::size_t pieces = reader.Append(*bytes);
        if (!options_.stream && !record.first_token) record.first_token = now;
        if (pieces == 0) continue;
        if (!record.first_token) record.first_token = now;
        if (last) AddGap((now - *last) * 1e3);
        // Pieces that came together came without a gap.
        for (std::size_t i = 1; i < pieces; ++i) AddGap(0);
        last = now;
        record.pieces += static_cast<std::uint32_t>(pieces);
      }
      if (record.status != 200) {
        record.error = absl::StrCat("http_", record.status);
        co_return;
      }
      reader.Finish();
      if (!reader.complete()) record.error = reader.error().empty() ? "broken_off" : "bad_answer";
      record.has_usage = reader.usage().known;
      record.prompt_tokens = reader.usage().prompt_tokens;
      record.completion_tokens = reader.usage().completion_tokens;
      record.cached_tokens = reader.usage().cached_tokens;
      text = reader.text();
    } catch (const boost::system::system_error& error) {
      record.error = ErrorKind(error.code(), answered);
    }
  }

  void AddGap(double ms) {
    if (!counting_) return;
    const std::uint64_t seen = result_.gaps_seen++;
    if (result_.gaps_ms.size() < kGapSamples) {
      result_.gaps_ms.push_back(static_cast<float>(ms));
    } else if (const std::uint64_t at = random_.Below(seen + 1); at < kGapSamples) {
      result_.gaps_ms[at] = static_cast<float>(ms);
    }
  }

  asio::awaitable<void> Acquire() {
    if (options_.concurrency == 0) co_return;
    if (places_taken_ < options_.concurrency) {
      ++places_taken_;
      co_return;
    }
    asio::steady_timer turn(io_, Clock::time_point::max());
    waiting_.push_back(&turn);
    boost::system::error_code ignored;
    co_await turn.async_wait(asio::redirect_error(asio::use_awaitable, ignored));  // the place is handed over
  }

  void Release() {
    if (options_.concurrency == 0) return;
    if (waiting_.empty()) {
      --places_taken_;
      return;
    }
    waiting_.front()->cancel();
    waiting_.pop_front();
  }

  asio::awaitable<void> Watch() {
    const std::size_t all = plan_.requests();
    while (options_.progress) {
      asio::steady_timer timer(io_, std::chrono::seconds(1));
      co_await timer.async_wait(asio::use_awaitable);
      options_.progress({result_.records.size(), all, in_flight_, errors_, Now()});
    }
  }

  const Plan& plan_;
  const RunOptions& options_;
  asio::io_context io_{1};
  http::Client client_;
  asio::signal_set signals_;
  Clock::time_point start_ = Clock::now();
  RunResult result_;
  Random random_{1};
  bool counting_ = false;
  std::size_t in_flight_ = 0, lanes_open_ = 0, places_taken_ = 0, errors_ = 0;
  std::unique_ptr<asio::steady_timer> idle_;
  std::deque<asio::steady_timer*> waiting_;
};

}  // namespace

absl::StatusOr<Target> ParseTarget(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  if (url.rfind(kScheme, 0) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("\"", url, "\": not http://HOST:PORT"));
  }
  Target target;
  const std::size_t slash = url.find('/', kScheme.size());
  target.host_port = url.substr(kScheme.size(), slash == std::string::npos ? slash : slash - kScheme.size());
  if (slash != std::string::npos) target.base = url.substr(slash);
  while (!target.base.empty() && target.base.back() == '/') target.base.pop_back();
  const std::size_t colon = target.host_port.rfind(':');
  const bool bare_v6 = target.host_port.find(']') != std::string::npos && target.host_port.back() == ']';
  if (colon == std::string::npos || bare_v6) target.host_port += ":80";
  if (target.host_port.front() == ':' || target.host_port.back() == ':' ||
      target.host_port.find_first_of(" \t\r\n@") != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("\"", url, "\": not http://HOST:PORT"));
  }
  return target;
}

RunResult RunPlan(const Plan& plan, const RunOptions& options) { return Run(plan, options).Go(); }

absl::StatusOr<std::string> Get(const Target& target, const std::string& path,
                                std::chrono::milliseconds timeout, std::size_t limit) {
  asio::io_context io(1);
  http::Client client(io.get_executor(), {});
  absl::StatusOr<std::string> out = absl::UnavailableError(
      absl::StrCat(target.host_port, path, ": no answer within ", timeout.count(), " ms"));
  const auto fetch = [&]() -> asio::awaitable<void> {
    try {
      http::Request request;
      request.target = target.base + path;
      const auto response = co_await client.Send(target.host_port, std::move(request));
      std::string body = co_await response->ReadAll(limit);
      if (response->status() == 200) {
        out = std::move(body);
      } else {
        out = absl::UnavailableError(absl::StrCat(target.host_port, path, ": status ", response->status()));
      }
    } catch (const boost::system::system_error& error) {
      out = absl::UnavailableError(absl::StrCat(target.host_port, path, ": ", error.code().message()));
    }
  };
  asio::co_spawn(io, fetch(), [&](const std::exception_ptr&) { io.stop(); });
  io.run_for(timeout);
  return out;
}

}  // namespace llmd::load
