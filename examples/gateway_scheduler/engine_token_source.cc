#include "examples/gateway_scheduler/engine_token_source.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "examples/gateway_scheduler/request_shape.h"
#include "examples/gateway_scheduler/token_answer.h"
#include "llmd/base/strings.h"
#include "llmd/gateway/openai_request.h"

namespace llmd::host {
namespace {

using Lists = std::vector<std::vector<TokenId>>;
using gateway::QuoteJson;

constexpr int kAttempts = 3;
constexpr std::size_t kKnownWorkers = 4096;
constexpr absl::Duration kFirstRest = absl::Seconds(1);
constexpr absl::Duration kForgetRender = absl::Minutes(5);

std::string ModelField(std::string_view model) {
  return model.empty() ? std::string() : absl::StrCat("\"model\":", QuoteJson(model), ",");
}

std::string TextBody(const TextPrompt& prompt) {
  return absl::StrCat("{", ModelField(prompt.model), "\"prompt\":", QuoteJson(prompt.text),
                      ",\"add_special_tokens\":", prompt.add_special_tokens ? "true}" : "false}");
}

std::string ChatBody(const ChatPrompt& prompt) {
  std::string body =
      absl::StrCat("{", ModelField(prompt.model), "\"messages\":", prompt.messages,
                   ",\"add_generation_prompt\":", prompt.add_generation_prompt ? "true" : "false");
  if (prompt.continue_final_message) absl::StrAppend(&body, ",\"continue_final_message\":true");
  const auto add = [&](const char* name, const std::string& raw) {
    if (!raw.empty() && raw != "null") absl::StrAppend(&body, ",\"", name, "\":", raw);
  };
  add("tools", prompt.tools);
  add("chat_template", prompt.chat_template);
  add("chat_template_kwargs", prompt.chat_template_kwargs);
  body += '}';
  return body;
}

absl::StatusOr<Lists> ReadOne(std::string_view json) {
  absl::StatusOr<std::vector<TokenId>> tokens = ReadTokenizeAnswer(json);
  if (!tokens.ok()) return tokens.status();
  Lists lists;
  lists.push_back(*std::move(tokens));
  return lists;
}

absl::StatusOr<Lists> ReadRendered(std::string_view json, std::size_t expected) {
  absl::StatusOr<Lists> lists = ReadRenderAnswer(json);
  if (lists.ok() && lists->size() != expected) {
    return absl::InvalidArgumentError(
        absl::StrCat("the renderer's answer has ", lists->size(), " prompts, expected ", expected));
  }
  return lists;
}

}  // namespace

class EngineTokenSource::Impl : public std::enable_shared_from_this<Impl> {
 public:
  using ListsDone = std::function<void(absl::StatusOr<Lists>)>;

  // What to ask, and how to read the answer.
  struct Question {
    std::string path;
    std::shared_ptr<const std::string> body;
    std::function<absl::StatusOr<Lists>(std::string_view)> read;
  };
  struct Call {
    Question question;
    std::shared_ptr<const Question> instead = nullptr;  // for a worker that does not know the path
    bool rendered = false;
    absl::Duration timeout = absl::ZeroDuration();
    ListsDone done = nullptr;
    absl::Time deadline = absl::InfiniteFuture();
    int attempts = 0;
    std::string worker = {};
  };

  Impl(const EngineTokenOptions& options, CurlLoop& loop, PoolStore* pool)
      : options_(options), loop_(loop), pool_(pool) {
    while (options_.url.ends_with('/')) options_.url.pop_back();
    options_.max_in_flight = std::max<std::size_t>(options_.max_in_flight, 1);
  }

  void Ask(Call call) {
    call.deadline = absl::Now() + call.timeout;
    bool overloaded = false;
    {
      const std::lock_guard lock(mutex_);
      if (stopped_ || in_flight_.size() + starting_ < options_.max_in_flight) {
        ++starting_;
      } else if (waiting_.size() < options_.max_waiting) {
        waiting_.push_back(std::move(call));
        return;
      } else {
        ++counters_.overloaded;
        overloaded = true;
      }
    }
    if (!overloaded) return Start(std::move(call));
    call.done(absl::ResourceExhaustedError(
        absl::StrCat(options_.max_waiting, " calls wait for the workers' tokenizers")));
  }

  // Ends everything; returns when every answer was given.
  void Stop() {
    std::deque<Call> waiting;
    std::vector<CurlLoop::Id> ids;
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
      waiting.swap(waiting_);
      ids.assign(in_flight_.begin(), in_flight_.end());
    }
    for (Call& call : waiting) call.done(absl::CancelledError("the token source ends"));
    for (const CurlLoop::Id id : ids) loop_.Cancel(id);
    if (loop_.OnLoopThread()) return;
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return in_flight_.empty() && starting_ == 0; });
  }

  EngineTokenCounters counters() const {
    const std::lock_guard lock(mutex_);
    EngineTokenCounters counters = counters_;
    counters.in_flight = in_flight_.size();
    counters.waiting = waiting_.size();
    return counters;
  }

  const EngineTokenOptions& options() const { return options_; }

 private:
  struct Worker {
    int calls = 0;
    int failures = 0;
    absl::Time rests_until = absl::InfinitePast();
    absl::Time no_render_until = absl::InfinitePast();
    // One that failed is tried with a single call.
    bool resting(absl::Time now) const { return now < rests_until || (failures > 0 && calls > 0); }
  };

  // The worker to ask next, as a URL; empty: none.
  std::string Choose(absl::Time now) {
    if (!options_.url.empty()) {
      const auto found = workers_.find(options_.url);
      return found == workers_.end() || !found->second.resting(now) ? options_.url : std::string();
    }
    if (pool_ == nullptr) return {};
    const PoolStore::Snapshot pool = pool_->snapshot();
    const std::size_t size = pool->size();
    const sched::Endpoint* best = nullptr;
    std::pair<bool, int> best_rank;
    for (std::size_t i = 0; i < size; ++i) {
      const sched::Endpoint& endpoint = (*pool)[static_cast<sched::Position>((first_ + i) % size)];
      const auto found = workers_.find(absl::StrCat("http://", endpoint.host_port()));
      if (found != workers_.end() && found->second.resting(now)) continue;
      // Those known to live go first.
      const std::pair rank(!endpoint.metrics.scraped(), found == workers_.end() ? 0 : found->second.calls);
      if (best == nullptr || rank < best_rank) {
        best = &endpoint;
        best_rank = rank;
      }
    }
    ++first_;
    return best == nullptr ? std::string() : absl::StrCat("http://", best->host_port());
  }

  // One of `starting_` becomes one of `in_flight_`, or ends.
  void Start(Call call) {
    const absl::Time now = absl::Now();
    FetchRequest request;
    absl::Status failure;
    {
      const std::lock_guard lock(mutex_);
      call.worker = Choose(now);
      if (stopped_) {
        failure = absl::CancelledError("the token source ends");
      } else if (now >= call.deadline) {
        failure = absl::DeadlineExceededError("no worker's tokenizer had time");
      } else if (call.worker.empty()) {
        ++counters_.no_worker;
        failure = absl::UnavailableError("no worker is left whose tokenizer can be asked");
      } else {
        if (workers_.size() > kKnownWorkers) Forget();
        Worker& worker = workers_[call.worker];
        ++worker.calls;
        ++call.attempts;
        call.rendered = call.instead == nullptr || now >= worker.no_render_until;
        const Question& question = call.rendered ? call.question : *call.instead;
        request.url = absl::StrCat(call.worker, question.path);
        request.body = question.body;
        ++counters_.calls;
        counters_.sent_bytes += question.body->size();
      }
    }
    if (!failure.ok()) return End(std::move(call), failure);
    request.headers = options_.headers;
    request.headers.emplace_back("Content-Type", "application/json");
    request.timeout = absl::ToChronoMilliseconds(call.deadline - now) + std::chrono::milliseconds(1);
    request.connect_timeout = absl::ToChronoMilliseconds(options_.connect_timeout);
    request.max_body_bytes = options_.max_answer_bytes;
    request.tls = options_.tls;
    auto id = std::make_shared<CurlLoop::Id>(0);
    auto shared = std::make_shared<Call>(std::move(call));
    // The lock keeps the answer from overtaking the bookkeeping.
    const std::lock_guard lock(mutex_);
    --starting_;
    *id = loop_.Fetch(std::move(request), [self = shared_from_this(), shared, id](FetchResult& result) {
      self->OnAnswer(std::move(*shared), id, result);
    });
    in_flight_.insert(*id);
    if (stopped_) loop_.Cancel(*id);
  }

  void OnAnswer(Call call, const std::shared_ptr<CurlLoop::Id>& id, FetchResult& result) {
    const Question& question = call.rendered ? call.question : *call.instead;
    absl::StatusOr<Lists> lists = result.status.ok() ? absl::UnknownError("") : result.status;
    if (result.status.ok()) {
      if (result.code == 200) {
        lists = question.read(result.body);
      } else {
        lists = absl::Status(result.code >= 500 || result.code == 429 ? absl::StatusCode::kUnavailable
                                                                      : absl::StatusCode::kFailedPrecondition,
                             absl::StrCat(call.worker, question.path, ": HTTP status ", result.code, ": ",
                                          absl::CHexEscape(absl::string_view(result.body).substr(0, 200))));
      }
    }
    const bool no_render = call.rendered && call.instead != nullptr && result.status.ok() &&
                           (result.code == 404 || result.code == 405 || result.code == 501);
    const bool down =
        !no_render && (absl::IsUnavailable(lists.status()) || absl::IsDeadlineExceeded(lists.status()));
    const bool again = no_render || (down && !absl::IsDeadlineExceeded(lists.status()) &&
                                     call.attempts < kAttempts && options_.url.empty());
    {
      const std::lock_guard lock(mutex_);
      in_flight_.erase(*id);  // which was set under this lock
      ++starting_;
      const absl::Time now = absl::Now();
      Worker& worker = workers_[call.worker];
      worker.calls = std::max(worker.calls - 1, 0);
      if (no_render) {
        worker.no_render_until = now + kForgetRender;
      } else if (down) {
        ++counters_.unreachable;
        worker.rests_until =
            now + std::min(options_.max_rest, kFirstRest * (1 << std::min(worker.failures++, 10)));
      } else if (!absl::IsCancelled(lists.status())) {
        worker.failures = 0;
      }
      if (lists.ok()) {
        ++counters_.good;
        for (const std::vector<TokenId>& list : *lists) counters_.tokens += list.size();
      } else if (result.status.ok() && result.code == 200) {
        ++counters_.malformed;
      } else if (absl::IsFailedPrecondition(lists.status()) && !no_render) {
        ++counters_.refused;
      } else if (absl::IsResourceExhausted(lists.status())) {
        ++counters_.malformed;
      }
    }
    if (again) return Start(std::move(call));
    End(std::move(call), std::move(lists));
  }

  // Gives the answer, then its place to one that waits.
  void End(Call call, absl::StatusOr<Lists> lists) {
    call.done(std::move(lists));
    Call next;
    {
      const std::lock_guard lock(mutex_);
      --starting_;
      if (stopped_ || waiting_.empty()) {
        idle_.notify_all();
        return;
      }
      next = std::move(waiting_.front());
      waiting_.pop_front();
      ++starting_;
    }
    // Not deeper and deeper, when many end at once without being asked.
    loop_.Post([self = shared_from_this(), next = std::make_shared<Call>(std::move(next))] {
      self->Start(std::move(*next));
    });
  }

  void Forget() {
    absl::erase_if(workers_, [](const auto& entry) { return entry.second.calls == 0; });
  }

  EngineTokenOptions options_;
  CurlLoop& loop_;
  PoolStore* const pool_;

  mutable std::mutex mutex_;
  std::condition_variable idle_;
  bool stopped_ = false;
  std::size_t starting_ = 0;  // between waiting and being in flight
  std::set<CurlLoop::Id> in_flight_;
  std::deque<Call> waiting_;
  absl::flat_hash_map<std::string, Worker> workers_;  // by URL
  std::size_t first_ = 0;
  EngineTokenCounters counters_;
};

EngineTokenSource::EngineTokenSource(const EngineTokenOptions& options, CurlLoop& loop, PoolStore* pool)
    : impl_(std::make_shared<Impl>(options, loop, pool)) {}

EngineTokenSource::~EngineTokenSource() { impl_->Stop(); }

EngineTokenCounters EngineTokenSource::counters() const { return impl_->counters(); }

void EngineTokenSource::TokenizeText(TextPrompt prompt, PromptDone done) {
  if (!impl_->options().model.empty()) prompt.model = impl_->options().model;
  impl_->Ask({.question = {"/tokenize", std::make_shared<const std::string>(TextBody(prompt)), ReadOne},
              .timeout = impl_->options().timeout,
              .done = [done = std::move(done)](absl::StatusOr<Lists> lists) {
                if (!lists.ok()) return done(lists.status());
                done(std::move(lists->front()));
              }});
}

void EngineTokenSource::TokenizeChat(ChatPrompt prompt, PromptDone done) {
  if (!impl_->options().model.empty()) prompt.model = impl_->options().model;
  impl_->Ask({.question = {"/tokenize", std::make_shared<const std::string>(ChatBody(prompt)), ReadOne},
              .timeout = impl_->options().timeout,
              .done = [done = std::move(done)](absl::StatusOr<Lists> lists) {
                if (!lists.ok()) return done(lists.status());
                done(std::move(lists->front()));
              }});
}

namespace {

// The client's body for the model that the server knows.
std::string RenderBody(const TokenQuery& query, std::string_view model) {
  std::string body(query.body);
  if (!model.empty() && model != query.openai->model) {
    gateway::SpliceModel(query.openai->model_values, model, body);
  }
  return body;
}

// The tokens of several prompts, asked for one by one.
struct Collector {
  std::shared_ptr<PromptTokens> tokens = std::make_shared<PromptTokens>();
  std::mutex mutex;
  absl::Status status;
  std::size_t left = 0;
  TokenSource::Done done;
};

}  // namespace

void EngineTokenSource::Tokenize(const TokenQuery& query, Done done) {
  const gateway::OpenAiRequest& request = *query.openai;
  const EngineTokenOptions& options = impl_->options();
  const std::string model = options.model.empty() ? std::string(query.model) : options.model;
  const std::size_t prompts = request.prompts.size();
  const auto give = [](Done done) {
    return [done = std::move(done)](absl::StatusOr<Lists> lists) {
      if (!lists.ok()) return done(lists.status());
      done(std::make_shared<const PromptTokens>(PromptTokens{*std::move(lists)}));
    };
  };
  if (!request.tokens.empty() || prompts == 0) {
    Lists lists;
    for (const auto& prompt : request.prompts) {
      const TokenSpan span = request.TokensOf(prompt);
      lists.emplace_back(span.begin(), span.end());
    }
    return done(std::make_shared<const PromptTokens>(PromptTokens{std::move(lists)}));
  }
  const std::string others = OtherTokenOptions(query.body);
  if (request.api == gateway::Api::kChatCompletions) {
    Impl::Call call{.question = {"/v1/chat/completions/render",
                                 std::make_shared<const std::string>(RenderBody(query, model)),
                                 [](std::string_view json) { return ReadRendered(json, 1); }},
                    .timeout = request.media.empty() ? options.timeout : options.media_timeout,
                    .done = give(std::move(done))};
    if (others.empty()) {
      call.instead = std::make_shared<const Impl::Question>(
          Impl::Question{"/tokenize",
                         std::make_shared<const std::string>(
                             ChatBody({.model = model,
                                       .messages = std::string(request.raw_messages),
                                       .tools = std::string(request.raw_tools),
                                       .chat_template = std::string(request.raw_chat_template),
                                       .chat_template_kwargs = std::string(request.raw_chat_template_kwargs),
                                       .add_generation_prompt = request.add_generation_prompt,
                                       .continue_final_message = request.continue_final_message})),
                         ReadOne});
    }
    return impl_->Ask(std::move(call));
  }
  if (request.api != gateway::Api::kCompletions && request.api != gateway::Api::kEmbeddings) {
    return done(absl::UnimplementedError(
        absl::StrCat("no worker tokenizes a ", ToAbsl(gateway::ToString(request.api)), " request")));
  }
  if (request.api == gateway::Api::kCompletions && !others.empty()) {
    return impl_->Ask(
        {.question = {"/v1/completions/render", std::make_shared<const std::string>(RenderBody(query, model)),
                      [prompts](std::string_view json) { return ReadRendered(json, prompts); }},
         .timeout = options.timeout,
         .done = give(std::move(done))});
  }
  auto all = std::make_shared<Collector>();
  all->left = prompts;
  all->tokens->prompts.resize(prompts);
  all->done = std::move(done);
  std::vector<std::string> texts;  // of their own: the views may end with the first answer
  for (const auto& prompt : request.prompts) {
    std::string& text = texts.emplace_back();
    for (std::size_t piece = 0; piece < prompt.piece_count; ++piece) {
      text += request.text[prompt.first_piece + piece];
    }
  }
  for (std::size_t i = 0; i < prompts; ++i) {
    TokenizeText({.model = model, .text = std::move(texts[i])},
                 [all, i](absl::StatusOr<std::vector<TokenId>> tokens) {
                   {
                     const std::lock_guard lock(all->mutex);
                     all->status.Update(tokens.status());
                     if (tokens.ok()) all->tokens->prompts[i] = *std::move(tokens);
                     if (--all->left > 0) return;
                   }
                   if (!all->status.ok()) return all->done(all->status);
                   all->done(std::shared_ptr<const PromptTokens>(all->tokens));
                 });
  }
}

absl::StatusOr<EngineTokenOptions> EngineTokenOptionsOf(const sched::Scheduler& scheduler) {
  EngineTokenOptions options;
  for (const sched::PluginSpec& plugin : scheduler.config().plugins) {
    if (plugin.type != "token-producer" && plugin.type != "tokenizer") continue;
    sched::ParameterReader read(plugin.type, plugin.parameters);
    read.Optional("modelName", &options.model);
    if (read.Raw("vllm") == nullptr) continue;
    options.url = "http://localhost:8000";
    sched::ParameterReader vllm = read.Nested("vllm");
    vllm.Optional("url", &options.url);
    vllm.Optional("timeout", &options.timeout);
    vllm.Optional("mmTimeout", &options.media_timeout);
    if (absl::Status status = vllm.Finish(); !status.ok()) return status;
  }
  return options;
}

}  // namespace llmd::host
