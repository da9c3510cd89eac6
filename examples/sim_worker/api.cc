#include "examples/sim_worker/api.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include <boost/asio/experimental/concurrent_channel.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "examples/http/error.h"
#include "examples/sim_worker/json_reader.h"
#include "llmd/hash/digest.h"

namespace llmd::sim {

namespace asio = boost::asio;
using http::FindHeader;
using http::Headers;

namespace {

constexpr std::size_t kMaxEchoBytes = 16 << 10;

std::int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Fit to be part of an id.
bool IsPlainId(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' || c == ':';
  });
}

bool Generates(std::string_view path) {
  return path == "/v1/completions" || path == "/v1/chat/completions" || path == "/inference/v1/generate";
}

}  // namespace

ApiServer::ApiServer(ApiOptions options, EngineDriver& driver, Metrics& metrics, Faults& faults)
    : options_(std::move(options)),
      driver_(driver),
      metrics_(metrics),
      faults_(faults),
      created_(UnixSeconds()) {}

Headers ApiServer::CommonHeaders(const http::Request& request) const {
  Headers headers;
  headers.emplace_back("x-sim-worker", options_.worker_name);
  if (const std::string* id = FindHeader(request.headers, "x-request-id")) {
    headers.emplace_back("x-request-id", *id);
  }
  if (options_.echo || FindHeader(request.headers, "x-sim-echo") != nullptr) {
    headers.emplace_back("x-sim-body-sha256", hash::Sha256(request.body).hex());
    headers.emplace_back("x-sim-body-bytes", absl::StrCat(request.body.size()));
    std::size_t bytes = 0;
    for (const auto& [name, value] : request.headers) {
      bytes += name.size() + value.size() + 32;
      if (bytes > kMaxEchoBytes) break;
      headers.emplace_back(absl::StrCat("x-sim-received-", name), value);
    }
  }
  return headers;
}

asio::awaitable<void> ApiServer::SendJson(Call& call, std::string body, int status) {
  Headers headers = call.headers;
  headers.emplace_back("content-type", "application/json");
  co_await call.response.Send(status, std::move(headers), std::move(body));
}

asio::awaitable<void> ApiServer::SendEmpty(Call& call, int status) {
  co_await call.response.Send(status, call.headers, std::string());
}

asio::awaitable<void> ApiServer::SendError(Call& call, int status, std::string_view message,
                                           std::string_view type) {
  std::string body = http::ErrorBody(status, message, type);
  co_await SendJson(call, std::move(body), status);
}

asio::awaitable<void> ApiServer::SendError(Call& call, const absl::Status& status) {
  const int code = status.code() == absl::StatusCode::kNotFound          ? 404
                   : status.code() == absl::StatusCode::kUnimplemented   ? 501
                   : status.code() == absl::StatusCode::kInvalidArgument ? 400
                                                                         : 500;
  const std::string message(status.message());
  co_await SendError(call, code, message);
}

asio::awaitable<bool> ApiServer::Misbehave(Call& call, bool generates, Fault& fault) {
  fault = faults_.Draw(generates);
  if (fault.mode == FaultMode::kNone) co_return false;
  metrics_.faults.Add();
  asio::steady_timer timer(co_await asio::this_coro::executor);
  switch (fault.mode) {
    case FaultMode::kSlow:
      timer.expires_after(std::chrono::milliseconds(fault.delay_ms));
      co_await timer.async_wait(asio::use_awaitable);
      co_return false;
    case FaultMode::kError: {
      const std::string message = "the worker was told to fail";
      co_await SendError(call, fault.status, message);
      co_return true;
    }
    case FaultMode::kHang:
      // Until the client gives up, or the worker ends.
      timer.expires_at(std::chrono::steady_clock::time_point::max());
      co_await timer.async_wait(asio::use_awaitable);
      co_return true;
    case FaultMode::kDisconnect:
      if (generates) co_return false;  // after the first piece
      call.response.Abort();
      co_return true;
    case FaultMode::kCrash:
      if (options_.on_crash) options_.on_crash();
      call.response.Abort();
      co_return true;
    case FaultMode::kNone:
      break;
  }
  co_return false;
}

asio::awaitable<void> ApiServer::Handle(http::Request request, http::Response& response) {
  Call call{request, response, CommonHeaders(request)};
  co_await Dispatch(call);
}

asio::awaitable<void> ApiServer::Dispatch(Call& call) {
  const std::string_view path = call.request.path();
  const bool get = call.request.method == "GET" || call.request.method == "HEAD";
  const bool post = call.request.method == "POST";
  const bool generates = post && Generates(path);
  Fault fault;
  if (!path.starts_with("/sim/") && co_await Misbehave(call, generates, fault)) co_return;

  bool known = true;
  if (path == "/v1/completions" && post) {
    co_await Generate(call, Api::kCompletions, fault);
  } else if (path == "/v1/chat/completions" && post) {
    co_await Generate(call, Api::kChat, fault);
  } else if (path == "/inference/v1/generate" && post) {
    co_await Generate(call, Api::kGenerate, fault);
  } else if (path == "/v1/completions/render" && post) {
    co_await Render(call, Api::kCompletions);
  } else if (path == "/v1/chat/completions/render" && post) {
    co_await Render(call, Api::kChat);
  } else if (path == "/tokenize" && post) {
    co_await Tokenize(call);
  } else if (path == "/detokenize" && post) {
    co_await Detokenize(call);
  } else if (path == "/reset_prefix_cache" && post) {
    co_await ResetPrefixCache(call);
  } else if (path == "/metrics" && get) {
    std::string page;
    metrics_.Render(page);
    Headers headers = call.headers;
    headers.emplace_back("content-type", "text/plain; version=0.0.4; charset=utf-8");
    co_await call.response.Send(200, std::move(headers), std::move(page));
  } else if ((path == "/health" || path == "/ping") && (get || (post && path == "/ping"))) {
    co_await SendEmpty(call);
  } else if (path == "/v1/models" && get) {
    co_await SendJson(call, ModelsJson());
  } else if (path == "/version" && get) {
    co_await SendJson(call, std::string("{\"version\":\"0.1.0-sim\"}"));
  } else if (path == "/load" && get) {
    const auto load = static_cast<std::uint64_t>(metrics_.running.value() + metrics_.waiting.value());
    std::string body = absl::StrCat("{\"server_load\":", load, "}");
    co_await SendJson(call, std::move(body));
  } else if (path == "/is_sleeping" && get) {
    co_await SendJson(call, std::string("{\"is_sleeping\":false}"));
  } else if (path == "/sim/state" && get) {
    co_await SendJson(call, StateJson());
  } else if (path == "/sim/fault" && (get || post)) {
    co_await FaultSwitch(call);
  } else {
    known = false;
  }
  if (known) co_return;

  constexpr std::string_view kPaths[] = {"/v1/completions",
                                         "/v1/chat/completions",
                                         "/inference/v1/generate",
                                         "/v1/completions/render",
                                         "/tokenize",
                                         "/detokenize",
                                         "/v1/chat/completions/render",
                                         "/reset_prefix_cache",
                                         "/metrics",
                                         "/health",
                                         "/ping",
                                         "/v1/models",
                                         "/version",
                                         "/load",
                                         "/is_sleeping",
                                         "/sim/state",
                                         "/sim/fault"};
  for (const std::string_view other : kPaths) {
    if (path == other) {
      co_await SendJson(call, std::string("{\"detail\":\"Method Not Allowed\"}"), 405);
      co_return;
    }
  }
  co_await SendJson(call, std::string("{\"detail\":\"Not Found\"}"), 404);
}

asio::awaitable<void> ApiServer::Render(Call& call, Api api) {
  const auto prompts = ParseRender(api, call.request.body, options_.model, tokenizer_);
  if (!prompts.ok()) {
    co_await SendError(call, prompts.status());
    co_return;
  }
  std::string body = api == Api::kChat ? "" : "[";
  for (std::size_t i = 0; i < prompts->size(); ++i) {
    body += i > 0 ? ",{\"token_ids\":" : "{\"token_ids\":";
    AppendTokens((*prompts)[i], body);
    body += '}';
  }
  if (api != Api::kChat) body += ']';
  co_await SendJson(call, std::move(body));
}

asio::awaitable<void> ApiServer::Tokenize(Call& call) {
  std::vector<TokenId> tokens;
  bool strings = false;
  const auto read = [&]() -> absl::Status {
    const absl::StatusOr<Json> json = ParseJson(call.request.body);
    if (!json.ok()) return json.status();
    if (!json->is_object()) return absl::InvalidArgumentError("the body must be a JSON object");
    FieldReader fields(*json);
    const std::string model = fields.Text("model", 1024);
    strings = fields.Bool("return_token_strs", false);
    const bool add_bos = fields.Bool("add_special_tokens", true);
    if (!fields.status().ok()) return fields.status();
    if (absl::Status status = CheckModel(model, options_.model); !status.ok()) return status;
    const Json* prompt = fields.Find("prompt");
    if ((prompt != nullptr) == (fields.Find("messages") != nullptr)) {
      return absl::InvalidArgumentError("either prompt or messages must be given");
    }
    if (prompt == nullptr) return RenderChat(*json, tokenizer_, tokens);
    if (!prompt->is_string()) return absl::InvalidArgumentError("prompt must be a string");
    if (add_bos) tokens.push_back(Tokenizer::kBos);
    tokenizer_.Encode(prompt->get_ref<const std::string&>(), tokens);
    return absl::OkStatus();
  };
  const absl::Status status = read();
  if (!status.ok()) {
    co_await SendError(call, status);
    co_return;
  }
  std::string body = absl::StrCat("{\"count\":", tokens.size(),
                                  ",\"max_model_len\":", options_.model.max_model_len, ",\"tokens\":");
  AppendTokens(tokens, body);
  body += ",\"token_strs\":";
  if (strings) {
    Json list = Json::array();
    for (const TokenId token : tokens) {
      std::string text;
      tokenizer_.AppendText(token, text);
      list.push_back(std::move(text));
    }
    body += list.dump(-1, ' ', false, Json::error_handler_t::replace);
  } else {
    body += "null";
  }
  body += '}';
  co_await SendJson(call, std::move(body));
}

asio::awaitable<void> ApiServer::Detokenize(Call& call) {
  std::string text;
  const auto read = [&]() -> absl::Status {
    const absl::StatusOr<Json> json = ParseJson(call.request.body);
    if (!json.ok()) return json.status();
    if (!json->is_object() || !json->contains("tokens") || !(*json)["tokens"].is_array()) {
      return absl::InvalidArgumentError("tokens must be a list of token ids");
    }
    std::vector<TokenId> tokens;
    if (absl::Status status = ReadTokens((*json)["tokens"], "tokens", tokens); !status.ok()) return status;
    for (const TokenId token : tokens) tokenizer_.AppendText(token, text);
    return absl::OkStatus();
  };
  const absl::Status status = read();
  if (!status.ok()) {
    co_await SendError(call, status);
    co_return;
  }
  Json json = Json::object();
  json["prompt"] = std::move(text);
  std::string body = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  co_await SendJson(call, std::move(body));
}

asio::awaitable<void> ApiServer::ResetPrefixCache(Call& call) {
  using Channel = asio::experimental::concurrent_channel<void(boost::system::error_code, bool)>;
  const auto channel = std::make_shared<Channel>(co_await asio::this_coro::executor, 1);
  driver_.ResetPrefixCache([channel](bool done) { channel->try_send(boost::system::error_code(), done); });
  const bool done = co_await channel->async_receive(asio::use_awaitable);
  if (done) {
    co_await SendEmpty(call);
  } else {
    const std::string message = "the prefix cache is not reset while requests hold blocks";
    co_await SendError(call, 503, message);
  }
}

asio::awaitable<void> ApiServer::FaultSwitch(Call& call) {
  if (call.request.method == "POST") {
    const absl::StatusOr<Fault> fault = Fault::FromJson(call.request.body);
    if (!fault.ok()) {
      co_await SendError(call, fault.status());
      co_return;
    }
    faults_.Set(*fault);
  }
  std::string body = faults_.Get().ToJson();
  co_await SendJson(call, std::move(body));
}

std::string ApiServer::ModelsJson() const {
  Json list = Json::array();
  const auto add = [&](const std::string& name, const Json& parent) {
    list.push_back({{"id", name},
                    {"object", "model"},
                    {"created", created_},
                    {"owned_by", "vllm"},
                    {"root", parent.is_null() ? options_.model.names.front() : name},
                    {"parent", parent},
                    {"max_model_len", options_.model.max_model_len}});
  };
  for (const std::string& name : options_.model.names) add(name, nullptr);
  for (const std::string& name : options_.model.loras) add(name, options_.model.names.front());
  const Json models = {{"object", "list"}, {"data", std::move(list)}};
  return models.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ApiServer::StateJson() const {
  const Json state = {{"worker", options_.worker_name},
                      {"role", options_.role},
                      {"model", options_.model.names.front()},
                      {"block_size", options_.block_size},
                      {"running", metrics_.running.value()},
                      {"waiting", metrics_.waiting.value()},
                      {"kv_usage", metrics_.kv_usage.value()},
                      {"prefix_queries", metrics_.prefix_queries.value()},
                      {"prefix_hits", metrics_.prefix_hits.value()},
                      {"preemptions", metrics_.preemptions.value()},
                      {"kv_event_batches", metrics_.kv_batches.value()},
                      {"faults", metrics_.faults.value()},
                      {"fault", Json::parse(faults_.Get().ToJson())}};
  return state.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ApiServer::NewId(const http::Request& request, const ApiRequest& parsed) {
  const std::string* header = FindHeader(request.headers, "x-request-id");
  for (const std::string* id : {header, &parsed.request_id}) {
    if (id != nullptr && IsPlainId(*id)) return *id;
  }
  return absl::StrCat(options_.transfer.engine_id, "-", next_id_.fetch_add(1));
}

}  // namespace llmd::sim
