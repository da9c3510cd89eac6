#include "examples/sim_worker/engine.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "examples/sim_worker/check.h"
#include "examples/sim_worker/engine_entry.h"
#include "examples/sim_worker/tokenizer.h"

namespace llmd::sim {
namespace {

std::uint64_t Mix(std::uint64_t state, std::uint64_t value) {
  state = (state ^ value) * 0x9E3779B97F4A7C15u;
  return state ^ (state >> 29);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options, Metrics& metrics,
                                                       EventSink on_events) {
  const auto at_least_one = [](const char* name, std::uint32_t value) {
    return value >= 1 ? absl::OkStatus()
                      : absl::InvalidArgumentError(absl::StrCat(name, " is 0, must be at least 1"));
  };
  for (const auto& [name, value] : {std::pair<const char*, std::uint32_t>{"block size", options.block_size},
                                    {"max_model_len", options.max_model_len},
                                    {"max_num_seqs", options.max_num_seqs},
                                    {"max_num_batched_tokens", options.max_num_batched_tokens}}) {
    if (absl::Status status = at_least_one(name, value); !status.ok()) return status;
  }
  const std::uint64_t usable =
      options.num_gpu_blocks < 2 ? 0 : (options.num_gpu_blocks - 1) * std::uint64_t{options.block_size};
  if (options.max_model_len > usable) {
    return absl::InvalidArgumentError(absl::StrCat("max_model_len is ", options.max_model_len, ", but ",
                                                   options.num_gpu_blocks, " blocks of ", options.block_size,
                                                   " tokens (one of them reserved) hold ", usable));
  }
  if (!options.chunked_prefill && options.max_num_batched_tokens < options.max_model_len) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_num_batched_tokens is ", options.max_num_batched_tokens,
                     ", must be at least max_model_len ", options.max_model_len, " without chunked prefill"));
  }
  absl::StatusOr<hash::VllmHasher> hasher = hash::VllmHasher::Create(
      {.algorithm = options.hash_algorithm,
       .none_hash = options.python_hash_seed ? hash::NoneHash::SeedText(*options.python_hash_seed)
                                             : hash::NoneHash::VllmDefault(),
       .block_size = options.block_size});
  if (!hasher.ok()) return hasher.status();
  absl::StatusOr<worker::KvCacheManager> kv =
      worker::KvCacheManager::Create({.pool = {.num_blocks = options.num_gpu_blocks,
                                               .block_size = options.block_size,
                                               .enable_caching = options.prefix_caching,
                                               .enable_events = options.kv_events && options.prefix_caching},
                                      .max_model_len = options.max_model_len,
                                      .watermark = options.watermark});
  if (!kv.ok()) return kv.status();
  return std::unique_ptr<Engine>(
      new Engine(options, *std::move(hasher), *std::move(kv), metrics, std::move(on_events)));
}

Engine::Engine(const EngineOptions& options, hash::VllmHasher hasher, worker::KvCacheManager kv,
               Metrics& metrics, EventSink on_events)
    : options_(options),
      hasher_(std::move(hasher)),
      kv_(std::move(kv)),
      metrics_(metrics),
      on_events_(std::move(on_events)),
      random_(options.seed) {}

Engine::~Engine() = default;

void Engine::Add(RequestId id, EngineRequest request, double now) {
  Check(!request.prompt.empty() && request.max_tokens >= 1, "a request has tokens and a limit");
  hash::ExtraKeyBuilder extra_keys;
  if (!request.cache_salt.empty() || !request.lora_name.empty()) {
    hash::RequestExtras extras;
    extras.lora_name = request.lora_name;
    extras.cache_salt = request.cache_salt;
    extra_keys = hash::ExtraKeyBuilder(std::move(extras), hash::ExtraKeyStyle::kOffset, options_.block_size);
  }
  auto owner = std::make_unique<Entry>(hasher_, std::move(request), extra_keys);
  Entry& entry = *owner;
  if (options_.prefix_caching) {
    entry.chain.Extend(entry.tokens);
    if (!extra_keys.empty()) {
      // An adapter is in the keys of every block, those of the output included.
      const std::uint64_t last = entry.in.lora_name.empty() ? 1 : entry.num_prompt + entry.in.max_tokens;
      entry.extra_keys = extra_keys.ForBlocks(last / options_.block_size + 1);
      entry.state.extra_keys = entry.extra_keys;
    }
  }
  entry.state.id = id;
  entry.state.lora_name = entry.in.lora_name;
  entry.Renew();
  entry.queued = now;
  entry.text_state = Mix(options_.seed + 1, entry.in.seed);
  for (const TokenId token : entry.tokens) entry.text_state = Mix(entry.text_state, token);
  if (options_.mean_output_tokens > 0 && !entry.in.ignore_eos) {
    std::uint64_t state = entry.text_state;
    const std::uint64_t mean = options_.mean_output_tokens;
    const std::uint64_t length = (mean + 1) / 2 + SplitMix64(state) % (mean + 1);
    entry.natural_length = static_cast<std::uint32_t>(
        std::max<std::uint64_t>(std::max<std::uint64_t>(length, 1), entry.in.min_tokens));
  }
  waiting_.push_back(&entry);
  loras_changed_ |= !entry.in.lora_name.empty();
  Check(entries_.emplace(id, std::move(owner)).second, "request ids are new");
  UpdateGauges();
}

void Engine::Abort(RequestId id, double now) {
  const auto it = entries_.find(id);
  if (it == entries_.end()) return;
  Entry& entry = *it->second;
  std::erase(waiting_, &entry);
  std::erase(loaded_, &entry);
  std::erase(loading_, &entry);
  std::erase(running_, &entry);
  for (Scheduled& scheduled : scheduled_) {
    if (scheduled.entry == &entry) scheduled.entry = nullptr;
  }
  Finish(entry, FinishReason::kAbort, {.choice = entry.in.choice, .finish = FinishReason::kAbort}, now);
  UpdateGauges();
}

bool Engine::ResetPrefixCache() {
  const bool done = kv_.ResetPrefixCache();
  FlushEvents();
  return done;
}

TokenId Engine::NextToken(Entry& entry) {
  const std::uint32_t position = entry.num_output();
  entry.text_state = Mix(entry.text_state, position);
  if (position == entry.natural_length) return Tokenizer::kEot;
  std::uint64_t state = entry.text_state;
  return Tokenizer::kFirstWord + static_cast<TokenId>(SplitMix64(state) % Tokenizer::kWords);
}

void Engine::EmitToken(Entry& entry, double now) {
  const TokenId token = NextToken(entry);
  entry.tokens.push_back(token);
  if (options_.prefix_caching) entry.chain.Extend(TokenSpan(&token, 1));
  entry.Renew();
  metrics_.generation_tokens.Add();
  if (entry.first_token < 0) {
    entry.first_token = now;
    const std::uint32_t cached = entry.local_hit + entry.external_hit;
    metrics_.ttft.Observe(now - entry.in.arrival);
    metrics_.prompt_tokens.Add(entry.num_prompt);
    metrics_.prompt_local_compute.Add(entry.num_prompt - cached);
    metrics_.prompt_cache_hit.Add(entry.local_hit);
    metrics_.prompt_external.Add(entry.external_hit);
    metrics_.prompt_cached.Add(cached);
  } else {
    metrics_.inter_token.Observe(now - entry.last_token);
    metrics_.inter_token_fine.Observe(now - entry.last_token);
  }
  entry.last_token = now;

  // In vLLM's order (spec: decode-worker.md 2.6): the end of the text goes before the limit.
  Output output = {.choice = entry.in.choice,
                   .has_token = true,
                   .token = token,
                   .cached_tokens = entry.local_hit + entry.external_hit};
  const std::uint32_t count = entry.num_output();
  if (count >= entry.in.min_tokens) {
    if (token == Tokenizer::kEot && !entry.in.ignore_eos) {
      output.finish = FinishReason::kStop;
    } else if (std::find(entry.in.stop_token_ids.begin(), entry.in.stop_token_ids.end(), token) !=
               entry.in.stop_token_ids.end()) {
      output.finish = FinishReason::kStop;
      output.stop_token = token;
    }
  }
  if (output.finish == FinishReason::kNone &&
      (entry.state.num_tokens() >= options_.max_model_len || count >= entry.in.max_tokens)) {
    output.finish = FinishReason::kLength;
  }
  if (output.finish == FinishReason::kNone) {
    if (entry.in.sink) entry.in.sink->OnOutput(std::move(output));
    return;
  }
  std::erase(running_, &entry);
  const FinishReason reason = output.finish;
  Finish(entry, reason, std::move(output), now);
}

void Engine::Finish(Entry& entry, FinishReason reason, Output output, double now) {
  const RequestId id = entry.state.id;
  const bool keep = entry.in.remote_decode && reason == FinishReason::kLength;
  if (keep) {
    const std::span<const worker::BlockId> table = kv_.BlockTable(id);
    output.held_blocks.assign(table.begin(), table.end());
    sending_.push_back({id, now + options_.latency.TransferSeconds(entry.num_prompt, random_)});
  } else if (!kv_.BlockTable(id).empty()) {
    Check(kv_.Free(id), "free");
  }
  metrics_.success[static_cast<std::size_t>(reason)].Add();
  metrics_.e2e.Observe(now - entry.in.arrival);
  if (entry.scheduled >= 0) {
    metrics_.queue_time.Observe(entry.scheduled - entry.queued);
    if (entry.first_token >= 0) {
      const std::uint32_t count = entry.num_output();
      const double decode = entry.last_token - entry.first_token;
      metrics_.prefill_time.Observe(entry.first_token - entry.scheduled);
      metrics_.decode_time.Observe(decode);
      metrics_.inference_time.Observe(entry.last_token - entry.scheduled);
      metrics_.request_time_per_token.Observe(count > 1 ? decode / (count - 1) : 0);
      metrics_.request_generation_tokens.Observe(count);
      metrics_.request_prefill_computed.Observe(entry.num_prompt - entry.local_hit - entry.external_hit);
    }
  }
  metrics_.request_prompt_tokens.Observe(entry.num_prompt);
  metrics_.request_max_generation_tokens.Observe(entry.in.max_tokens);
  metrics_.request_max_tokens.Observe(entry.in.max_tokens);
  metrics_.request_n.Observe(entry.in.n);
  loras_changed_ |= !entry.in.lora_name.empty();
  output.cached_tokens = entry.local_hit + entry.external_hit;
  const std::shared_ptr<OutputSink> sink = std::move(entry.in.sink);
  entries_.erase(id);
  if (sink) sink->OnOutput(std::move(output));
}

void Engine::End(double now) {
  Check(in_step_, "a step runs");
  in_step_ = false;
  for (const Scheduled& scheduled : scheduled_) {
    if (scheduled.entry != nullptr && scheduled.entry->missing() == 0) EmitToken(*scheduled.entry, now);
  }
  scheduled_.clear();
  FlushEvents();
  UpdateGauges();
}

void Engine::FlushEvents() {
  kv_.TakeEvents(events_);
  if (!events_.empty() && on_events_) on_events_(events_);
}

void Engine::UpdateGauges() {
  metrics_.running.Set(static_cast<double>(running_.size()));
  metrics_.waiting.Set(static_cast<double>(waiting_.size() + loaded_.size() + loading_.size()));
  metrics_.waiting_capacity.Set(static_cast<double>(waiting_.size() + loaded_.size()));
  metrics_.waiting_deferred.Set(static_cast<double>(loading_.size()));
  metrics_.kv_usage.Set(kv_.usage());
  if (loras_changed_ && metrics_.has_loras()) {
    std::set<std::string> running;
    std::set<std::string> waiting;
    for (const Entry* entry : running_) running.insert(entry->in.lora_name);
    for (const Entry* entry : waiting_) waiting.insert(entry->in.lora_name);
    running.erase("");
    waiting.erase("");
    metrics_.SetLoras(absl::StrJoin(running, ","), absl::StrJoin(waiting, ","));
  }
  loras_changed_ = false;
  const worker::PrefixCacheStats stats = kv_.TakePrefixCacheStats();
  metrics_.prefix_queries.Add(stats.queries);
  metrics_.prefix_hits.Add(stats.hits);
}

}  // namespace llmd::sim
