// Completions, chat and generate: from a request to its tokens.
#include <chrono>
#include <utility>

#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "absl/strings/str_cat.h"
#include "examples/sim_worker/api.h"
#include "examples/sim_worker/submission.h"

namespace llmd::sim {

namespace asio = boost::asio;
using http::Headers;

asio::awaitable<void> ApiServer::Generate(Call& call, Api api, const Fault& fault) {
  const double arrival = EngineDriver::Now();
  absl::StatusOr<ApiRequest> parsed = ParseApiRequest(api, call.request.body, options_.model, tokenizer_);
  if (!parsed.ok()) {
    co_await SendError(call, parsed.status());
    co_return;
  }
  if (options_.max_waiting > 0 && metrics_.waiting.value() >= options_.max_waiting) {
    const std::string message = absl::StrCat("the queue is full: ", metrics_.waiting.value(),
                                             " requests wait, at most ", options_.max_waiting, " may");
    co_await SendError(call, 429, message);
    co_return;
  }
  ApiRequest& request = *parsed;
  if (options_.role == "prefill") request.params.remote_prefill = false;
  if (options_.role == "decode") request.params.remote_decode = false;

  Submission submission(driver_, co_await asio::this_coro::executor);
  for (std::size_t i = 0; i < request.prompts.size(); ++i) {
    for (std::uint32_t k = 0; k < request.n; ++k) {
      EngineRequest one = request.params;
      one.prompt = request.prompts[i];
      one.max_tokens = request.max_tokens[i];
      one.seed += k;
      one.arrival = arrival;
      submission.Add(std::move(one));
    }
  }
  const auto created =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
          .count();
  const std::string id = NewId(call.request, request);
  Answer answer(request, id, created, options_.transfer, options_.block_size);
  const bool disconnect = fault.mode == FaultMode::kDisconnect;
  if (request.stream) {
    co_await Stream(call, request, answer, submission, disconnect);
    co_return;
  }
  std::vector<Output> outputs;
  while (!answer.done()) {
    co_await submission.queue().Take(outputs);
    for (const Output& output : outputs) {
      if (output.finish != FinishReason::kNone) submission.Ended(output.choice);
      if (answer.Add(output, nullptr)) submission.Abort(output.choice);
    }
    if (disconnect) {
      call.response.Abort();
      co_return;
    }
  }
  co_await SendJson(call, answer.ToJson());
}

asio::awaitable<void> ApiServer::Stream(Call& call, const ApiRequest&, Answer& answer, Submission& submission,
                                        bool disconnect) {
  std::vector<Output> outputs;
  std::string sse;
  bool started = false;
  while (!answer.done()) {
    co_await submission.queue().Take(outputs);
    sse.clear();
    if (!started) {
      Headers headers = call.headers;
      headers.emplace_back("content-type", "text/event-stream; charset=utf-8");
      headers.emplace_back("cache-control", "no-cache");
      co_await call.response.Start(200, std::move(headers));
      answer.Begin(sse);
      started = true;
    }
    for (const Output& output : outputs) {
      if (output.finish != FinishReason::kNone) submission.Ended(output.choice);
      if (answer.Add(output, &sse)) submission.Abort(output.choice);
    }
    if (answer.done() && !disconnect) answer.End(sse);
    co_await call.response.Write(sse);
    if (disconnect) {
      call.response.Abort();
      co_return;
    }
  }
  co_await call.response.Finish();
}

}  // namespace llmd::sim
