#include "examples/gateway_scheduler/session.h"

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "examples/gateway_scheduler/flow_gate.h"
#include "examples/gateway_scheduler/gateway.h"
#include "examples/gateway_scheduler/worker.h"
#include "llmd/sched/result_headers.h"

namespace llmd::host {
namespace {

using gateway::ExtProcEvent;

// A request whose tokens are being made elsewhere: a copy of its own, since the stream's reading of the body
// lasts only until the worker's parser reads another one.
struct OwnedRequest {
  std::string path, model, body;
  gateway::OpenAiParser parser;
  gateway::OpenAiRequest openai;
};

class SessionImpl final : public Session {
 public:
  SessionImpl(Gateway& gateway, Worker& worker, Post post, std::function<void()> ready)
      : gateway_(gateway),
        worker_(worker),
        post_(std::move(post)),
        ready_(std::move(ready)),
        stream_(gateway.options().ext_proc, worker.parser, worker.random) {
    gateway_.active_sessions.fetch_add(1, std::memory_order_relaxed);
  }
  ~SessionImpl() override {
    Close(gateway::CloseReason::kCancelled);
    gateway_.active_sessions.fetch_sub(1, std::memory_order_relaxed);
  }

  void Receive(gateway::ProcessingRequest&& message) override {
    const absl::Time now = absl::Now();
    switch (stream_.Receive(std::move(message), now)) {
      case ExtProcEvent::kNeedsDecision:
        Begin(now);
        break;
      case ExtProcEvent::kRequestRefused:
        Describe();
        for (Observer* observer : gateway_.observers()) observer->OnReceived(info_);
        break;
      case ExtProcEvent::kResponseHeaders:
        OnResponseHeaders(now);
        responding_ += absl::Now() - now;
        break;
      case ExtProcEvent::kResponseBody:
      case ExtProcEvent::kResponseEnd:
        OnResponseBody(now);
        responding_ += absl::Now() - now;
        break;
      case ExtProcEvent::kNone:
      case ExtProcEvent::kFailed:
        break;
    }
    Settle(now);
  }

  bool Next(gateway::ProcessingResponse& answer) override { return stream_.Next(answer); }
  bool finished() const override { return stream_.finished(); }
  const absl::Status& status() const override { return stream_.status(); }

  void Fail(absl::Status status) override {
    const absl::Time now = absl::Now();
    stream_.Fail(std::move(status), now);
    Settle(now);
  }

  void Close(gateway::CloseReason reason) override {
    closed_ = true;
    const absl::Time now = absl::Now();
    if (queued_) gateway_.flow().Cancel(id_, now);
    queued_ = false;
    stream_.Close(reason, now);
    Settle(now);
  }

 private:
  // What another thread calls to go on here, if the session is still open then. It must not hold the session
  // itself, which could then end on that thread.
  template <typename F>
  auto Continuation(F f) {
    return [self = weak_from_this(), post = post_, f = std::move(f)](auto result) {
      post([self, f, result = std::move(result)]() mutable {
        const std::shared_ptr<Session> alive = self.lock();
        if (alive == nullptr) return;
        auto& me = static_cast<SessionImpl&>(*alive);
        if (me.closed_) return;
        f(me, std::move(result));
        if (me.ready_) me.ready_();
      });
    };
  }

  void Describe() {
    const gateway::RequestFacts& facts = stream_.facts();
    info_ = {.request_id = facts.request_id,
             .path = facts.path,
             .model = facts.incoming_model,
             .target_model = facts.target_model,
             .fairness_id = facts.fairness_id,
             .priority = gateway_.Priority(facts.objective),
             .request_bytes = facts.body.size(),
             .streaming = facts.openai.stream,
             .headers_only = facts.headers_only || facts.bodyless,
             .received = facts.received};
  }

  void Begin(absl::Time now) {
    Describe();
    const gateway::RequestFacts& facts = stream_.facts();
    if (std::optional<std::string> target = gateway_.Rewrite(facts.incoming_model, worker_.random);
        target && facts.can_rewrite_model) {
      model_ = *std::move(target);
      info_.target_model = *model_;
    }
    for (Observer* observer : gateway_.observers()) observer->OnReceived(info_);
    if (facts.bodyless) {
      PickAny(now);
      return;
    }
    worker_.Refresh();
    if (facts.api == gateway::Api::kNone || facts.headers_only || facts.truncated ||
        (facts.openai.tokens.empty() && gateway_.tokens() == nullptr)) {
      Enqueue(now);
      return;
    }
    if (!facts.openai.tokens.empty()) {
      auto tokens = std::make_shared<PromptTokens>();
      for (const auto& prompt : facts.openai.prompts) {
        const TokenSpan span = facts.openai.TokensOf(prompt);
        tokens->prompts.emplace_back(span.begin(), span.end());
      }
      tokens_ = std::move(tokens);
      Enqueue(now);
      return;
    }
    Tokenize(now);
  }

  void Tokenize(absl::Time now) {
    const gateway::RequestFacts& facts = stream_.facts();
    started_tokenizing_ = now;
    TokenSource& source = *gateway_.tokens();
    if (source.immediate()) {
      source.Tokenize(
          {.path = facts.path, .model = info_.target_model, .body = facts.body, .openai = &facts.openai},
          [this](absl::StatusOr<std::shared_ptr<const PromptTokens>> tokens) {
            if (tokens.ok()) tokens_ = *std::move(tokens);
          });
      tokenizing_ = absl::Now() - now;
      Enqueue(now);
      return;
    }
    auto own = std::make_shared<OwnedRequest>();
    own->path = facts.path;
    own->model = info_.target_model;
    own->body = facts.body;
    (void)own->parser.Parse(facts.api, own->body, own->openai);  // it was accepted before
    const TokenQuery query{.path = own->path, .model = own->model, .body = own->body, .openai = &own->openai};
    using Tokens = absl::StatusOr<std::shared_ptr<const PromptTokens>>;
    source.Tokenize(query, Continuation([own](SessionImpl& me, Tokens tokens) {
                      const absl::Time now = absl::Now();
                      me.tokenizing_ = now - me.started_tokenizing_;
                      if (tokens.ok()) me.tokens_ = *std::move(tokens);
                      me.worker_.Refresh();
                      me.Enqueue(now);
                      me.Settle(now);
                    }));
  }

  // Fills the worker's buffers with the request as the scheduler sees it; its views last as long as they do.
  sched::Request MakeRequest(const sched::EndpointPool& pool) {
    const gateway::RequestFacts& facts = stream_.facts();
    worker_.headers.clear();
    for (const gateway::HeaderField& field : facts.headers.fields()) {
      worker_.headers.push_back({field.name, field.value});
    }
    worker_.AddSessionHeader();
    worker_.token_spans.clear();
    if (tokens_ != nullptr) {
      for (const std::vector<TokenId>& prompt : tokens_->prompts) worker_.token_spans.push_back(prompt);
    }
    std::uint32_t reported = 0;
    for (std::size_t i = 0; i < pool.size() && reported == 0; ++i)
      reported = pool[i].metrics.cache_block_size;
    worker_.chains.Make(worker_.plan, info_.target_model, facts.openai.cache_salt, reported,
                        worker_.token_spans, facts.openai.media);
    return {.id = info_.request_id,
            .model = info_.target_model,
            .prompts = worker_.chains.prompts(),
            .headers = worker_.headers,
            .priority = info_.priority,
            .fairness_id = info_.fairness_id,
            .size_bytes = info_.request_bytes,
            .max_output_tokens = facts.openai.max_output_tokens};
  }

  void Enqueue(absl::Time now) {
    if (!gateway_.flow().enabled()) {
      Schedule(now);
      return;
    }
    id_ = gateway_.NextId();
    const PoolStore::Snapshot pool = gateway_.pool().snapshot();
    const sched::Request request = MakeRequest(*pool);
    const sched::FlowItem item = sched::MakeFlowItem(id_, request, *worker_.scheduler, info_.received);
    queued_ = true;
    gateway_.flow().Enqueue(
        item, now, Continuation([](SessionImpl& me, sched::FlowOutcome outcome) { me.OnOutcome(outcome); }));
  }

  void OnOutcome(const sched::FlowOutcome& outcome) {
    const absl::Time now = absl::Now();
    if (outcome.kind != sched::FlowOutcome::Kind::kEvictRunning) flow_ = outcome.kind;
    if (outcome.kind == sched::FlowOutcome::Kind::kEvictRunning) {
      stream_.Evict(sched::GetDroppedReason(outcome.kind), now);
    } else if (outcome.kind == sched::FlowOutcome::Kind::kDispatched) {
      queued_ = false;
      dispatched_ = true;
      waited_ = outcome.waited;
      worker_.Refresh();
      Schedule(now);
      gateway_.flow().Carried(id_);
    } else {
      queued_ = false;
      waited_ = outcome.waited;
      worker_.Refresh();
      Refuse(sched::ToStatus(outcome), *gateway_.pool().snapshot(), now);
    }
    Settle(now);
  }

  std::optional<std::span<const sched::Position>> Candidates(const sched::EndpointPool& pool) {
    const gateway::RequestFacts& facts = stream_.facts();
    if (!facts.subset || gateway_.options().ignore_subset) return std::nullopt;
    worker_.candidates.clear();
    for (sched::Position i = 0; i < pool.size(); ++i) {
      for (const std::string& entry : *facts.subset) {
        if (gateway::MatchesSubset(entry, pool[i].host_port(), gateway_.options().subset_by_address)) {
          worker_.candidates.push_back(i);
          break;
        }
      }
    }
    return worker_.candidates;
  }

  // A request that nothing is known of goes anywhere (spec: gateway.md 2.4).
  void PickAny(absl::Time now) {
    const PoolStore::Snapshot pool = gateway_.pool().snapshot();
    const auto candidates = Candidates(*pool);
    const std::size_t count = candidates ? candidates->size() : pool->size();
    if (count == 0) {
      (void)stream_.Refuse(
          {.http_status = candidates ? 503 : 500,
           .message = candidates ? "no endpoint of the subset is known" : "no pods available in datastore",
           .reason = candidates ? sched::DroppedReason::kNoEndpoints : sched::DroppedReason::kNone},
          now);
      return;
    }
    const std::size_t at = worker_.random.Below(count);
    endpoint_ = (*pool)[candidates ? (*candidates)[at] : at].host_port();
    (void)stream_.Decide({.destinations = {endpoint_}}, now);
  }

  void Schedule(absl::Time now) {
    const PoolStore::Snapshot pool = gateway_.pool().snapshot();
    const sched::Request request = MakeRequest(*pool);
    const sched::ScheduleInput input{.request = request,
                                     .pool = *pool,
                                     .candidates = Candidates(*pool),
                                     .now = now,
                                     .seed = worker_.random.Next()};
    DecisionRecorder* recorder = gateway_.recorder();
    sched::Explanation* explanation =
        recorder != nullptr || gateway_.wants_explanations() ? &worker_.explanation : nullptr;
    sched::Decision& decision = worker_.decision;
    absl::Status status = worker_.scheduler->Schedule(input, *worker_.workspace, decision, explanation);
    if (recorder != nullptr) {
      recorder->Record(worker_.scheduler, input, *worker_.workspace, decision, *explanation, status);
    }
    if (!status.ok()) {
      Refuse(status, *pool, now, explanation);
      return;
    }
    const sched::EndpointHandle target = (*pool)[decision.target()].handle;
    const Worker::Held held = gateway_.observers().empty() ? Worker::Held{} : worker_.HeldAt(*pool, target);
    sched::Dispatch dispatch;
    // A plugin that fails here has only less to remember.
    (void)worker_.scheduler->RunPreRequest(input, *worker_.workspace, decision, dispatch);
    flight_ = std::move(dispatch.flight);

    gateway::RoutingResult result{.model = model_};
    const sched::ProfileResult& primary = decision.primary_result();
    for (const sched::Position position : primary.targets) {
      result.destinations.push_back(sched::TargetHostPort(primary, position, *pool));
    }
    for (sched::HeaderEdit& edit : dispatch.headers) {
      if (edit.value) {
        result.set_headers.push_back({.name = std::move(edit.name), .value = *std::move(edit.value)});
      } else {
        result.remove_headers.push_back(std::move(edit.name));
      }
    }
    if (gateway_.options().emit_scores) {
      for (sched::EndpointScore& score : sched::EndpointScores(decision, *pool)) {
        result.scores.emplace_back(std::move(score.host_port), score.score);
      }
    }
    endpoint_ = result.destinations.front();
    if (const absl::Status s = stream_.Decide(result, now); !s.ok()) {
      flight_ = {};
      Refuse(absl::InternalError(s.message()), *pool, now, explanation);
      return;
    }
    std::string prefill;
    for (const gateway::HeaderField& field : result.set_headers) {
      if (field.name == sched::kPrefillerHeader) prefill = field.value;
    }
    Report({.request = info_,
            .pool = *pool,
            .scheduler = *worker_.scheduler,
            .decision = &decision,
            .explanation = explanation,
            .endpoint = endpoint_,
            .prefill_endpoint = std::move(prefill),
            .cached_blocks = held.blocks,
            .total_blocks = held.of},
           now);
  }

  void Refuse(const absl::Status& status, const sched::EndpointPool& pool, absl::Time now,
              const sched::Explanation* explanation = nullptr) {
    (void)stream_.Refuse(gateway::RefusalOf(status), now);
    Report({.request = info_,
            .status = status,
            .pool = pool,
            .scheduler = *worker_.scheduler,
            .explanation = explanation},
           now);
  }

  void Report(DecisionReport report, absl::Time began) {
    report.now = absl::Now();
    report.deciding = report.now - began;
    report.tokenizing = tokenizing_;
    report.queued = waited_;
    report.flow = flow_;
    decided_ = report.status.ok();
    if (tokens_ != nullptr) {
      for (const auto& prompt : tokens_->prompts) report.prompt_tokens += prompt.size();
    }
    for (Observer* observer : gateway_.observers()) observer->OnDecision(report);
    tokens_.reset();  // they would live as long as the response
  }

  void OnResponseHeaders(absl::Time now) {
    sched::HeaderEdits edits;
    flight_.OnResponseHeaders(now, edits);
    std::vector<gateway::HeaderField> set;
    std::vector<std::string> remove;
    for (sched::HeaderEdit& edit : edits) {
      if (edit.value) {
        set.push_back({.name = std::move(edit.name), .value = *std::move(edit.value)});
      } else {
        remove.push_back(std::move(edit.name));
      }
    }
    if (!set.empty() || !remove.empty()) (void)stream_.EditResponseHeaders(set, remove);
  }

  void OnResponseBody(absl::Time now) {
    const gateway::ResponseFacts& response = stream_.response();
    const bool first = response.body_bytes > 0 && last_chunk_ == absl::InfinitePast();
    sched::ResponseBody body{.now = now, .first = first, .last = response.ended};
    if (response.ended && response.usage.known) {
      body.usage = {.prompt_tokens = static_cast<std::int64_t>(response.usage.prompt_tokens),
                    .completion_tokens = static_cast<std::int64_t>(response.usage.completion_tokens)};
    }
    flight_.OnResponseBody(body);
    if (response.chunks > chunks_ && response.streaming && !first) {
      for (Observer* observer : gateway_.observers()) observer->OnResponseChunk(info_, now - last_chunk_);
    }
    chunks_ = response.chunks;
    if (response.body_bytes > 0) last_chunk_ = now;
  }

  // Once, when the request's end is known: everything that counted it forgets it.
  void Settle(absl::Time now) {
    const std::optional<gateway::Completion> completion = stream_.TakeCompletion();
    if (!completion) return;
    flight_ = {};
    const gateway::ResponseFacts& response = stream_.response();
    if (dispatched_) {
      std::optional<sched::TokenUsage> usage;
      if (response.usage.known) {
        usage = {.prompt_tokens = static_cast<std::int64_t>(response.usage.prompt_tokens),
                 .completion_tokens = static_cast<std::int64_t>(response.usage.completion_tokens)};
      }
      gateway_.flow().Finished(id_, now, usage);
    }
    if (info_.received == absl::InfinitePast()) return;  // nothing came that could be called a request
    const std::string& served = response.served_endpoint.empty() ? endpoint_ : response.served_endpoint;
    const FinishReport report{.request = info_,
                              .response = response,
                              .completion = *completion,
                              .endpoint = served,
                              .decided = decided_,
                              .response_processing = responding_,
                              .now = now};
    for (Observer* observer : gateway_.observers()) observer->OnFinished(report);
  }

  Gateway& gateway_;
  Worker& worker_;
  const Post post_;
  const std::function<void()> ready_;
  gateway::ExtProcStream stream_;
  bool closed_ = false;

  RequestInfo info_;
  std::optional<std::string> model_;  // by a rewrite rule
  std::shared_ptr<const PromptTokens> tokens_;
  absl::Time started_tokenizing_ = absl::InfinitePast();
  absl::Duration tokenizing_ = absl::ZeroDuration();
  std::uint64_t id_ = 0;  // in flow control
  bool queued_ = false;   // waits there
  bool dispatched_ = false;
  bool decided_ = false;                          // an endpoint was reported
  std::optional<sched::FlowOutcome::Kind> flow_;  // what flow control said  // left it, and counts as running
  absl::Duration waited_ = absl::ZeroDuration();
  std::string endpoint_;
  sched::Flight flight_;
  absl::Duration responding_ = absl::ZeroDuration();  // spent on the response
  std::uint64_t chunks_ = 0;
  absl::Time last_chunk_ = absl::InfinitePast();
};

}  // namespace

std::shared_ptr<Session> Session::Create(Gateway& gateway, Worker& worker, Post post,
                                         std::function<void()> ready) {
  return std::make_shared<SessionImpl>(gateway, worker, std::move(post), std::move(ready));
}

}  // namespace llmd::host
