#include "examples/gateway_scheduler/caching_token_source.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "examples/gateway_scheduler/request_shape.h"
#include "examples/gateway_scheduler/text_cuts.h"
#include "examples/gateway_scheduler/token_tree.h"
#include "examples/gateway_scheduler/tokenizer_trust.h"

namespace llmd::host {
namespace {

using Tokens = std::vector<TokenId>;
using Answer = std::shared_ptr<const PromptTokens>;
using Result = absl::StatusOr<Answer>;

constexpr std::string_view kStandIn = R"({"role":"user","content":"x"})";

Answer MakeAnswer(Tokens tokens) {
  auto answer = std::make_shared<PromptTokens>();
  answer->prompts.push_back(std::move(tokens));
  return answer;
}

bool StartsWith(TokenSpan tokens, TokenSpan prefix) {
  return tokens.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), tokens.begin());
}

bool EndsWith(TokenSpan tokens, TokenSpan suffix) {
  return tokens.size() >= suffix.size() && std::equal(suffix.rbegin(), suffix.rend(), tokens.rbegin());
}

// With the length of each, so that different lists are different texts.
std::string Joined(std::initializer_list<std::string_view> parts) {
  std::string all;
  for (const std::string_view part : parts) {
    absl::StrAppend(&all, part.size(), ":");
    all.append(part);
  }
  return all;
}

}  // namespace

class CachingTokenSource::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(const CachingTokenOptions& options, PartTokenSource& inner)
      : options_(options),
        inner_(inner),
        tree_(options.max_bytes),
        trust_(options.checks, options.check_every) {}

  void Tokenize(const TokenQuery& query, Done done);
  TokenCacheCounters counters() const;

 private:
  // Those that wait for the tokens of one prompt.
  struct Flight {
    Answer answer;
    std::vector<Done> waiting;
  };

  // One prompt on its way.
  struct Job {
    TokenKey setting, whole_key;
    absl::Time born;
    bool chat = false;
    // Results go to slots of their own; the last one to come concludes.
    std::atomic<int> pending = 0;
    bool whole_asked = false;
    Result whole = absl::UnknownError("");
    std::function<void(Done)> ask_whole;  // valid until the answer
    // Parts after the base; of text, keys at the ends of all but the last.
    TokenTree::Node base;
    std::vector<absl::StatusOr<Tokens>> parts;
    std::vector<TokenKey> part_keys;
    // Of a chat whose messages allow it: the conversation without what asks for an answer.
    std::optional<TokenKey> closed_key;
    std::optional<TokenizerTrust::Stencil> stencil;
  };
  using JobPtr = std::shared_ptr<Job>;

  void Text(const std::string& model, std::string text, Done done);
  void Chat(const TokenQuery& query, Done done);
  // True when the answer was given, or will be by another.
  bool FromMemory(const TokenKey& whole, Done& done);
  void AskWhole(const JobPtr& job);
  void OnWhole(const JobPtr& job, Result result);
  void OnPart(const JobPtr& job, std::size_t part, absl::StatusOr<Tokens> tokens);
  void Conclude(const JobPtr& job);
  std::optional<Tokens> PutTogether(const Job& job) const;
  void StoreParts(const Job& job);
  void StoreWhole(const Job& job, const Tokens& tokens);
  void Judge(const Job& job, bool equal);
  void Give(const Job& job, Result result, bool last);
  void AskForStencil(const TokenKey& setting, const ChatPrompt& prompt);
  // Where the keys of a setting's prompts begin. A setting that is refused finds nothing of what it put
  // together.
  TokenKey RootOf(const TokenKey& setting) const {
    return ChainKey(setting, trust_.Refused(setting) ? "whole" : "parts");
  }
  absl::Time oldest() const { return absl::Now() - options_.max_age; }

  const CachingTokenOptions options_;
  PartTokenSource& inner_;
  TokenTree tree_;
  TokenizerTrust trust_;

  mutable std::mutex mutex_;
  absl::flat_hash_map<TokenKey, Flight> flights_;
  TokenCacheCounters counters_;
};

TokenCacheCounters CachingTokenSource::Impl::counters() const {
  const TokenTree::Stats stats = tree_.stats();
  const std::lock_guard lock(mutex_);
  TokenCacheCounters counters = counters_;
  counters.nodes = stats.nodes;
  counters.bytes = stats.bytes;
  counters.evicted = stats.evicted;
  return counters;
}

void CachingTokenSource::Impl::Tokenize(const TokenQuery& query, Done done) {
  const gateway::OpenAiRequest& request = *query.openai;
  if (request.api == gateway::Api::kChatCompletions) return Chat(query, std::move(done));
  const bool text = (request.api == gateway::Api::kCompletions || request.api == gateway::Api::kEmbeddings) &&
                    request.tokens.empty() && !request.prompts.empty();
  if (!text || !OtherTokenOptions(query.body).empty()) {
    {
      const std::lock_guard lock(mutex_);
      ++counters_.passed;
    }
    return inner_.Tokenize(query, std::move(done));
  }
  // Texts and model of their own: the views end with the first answer.
  const std::string model(query.model);
  std::vector<std::string> texts;
  for (const auto& prompt : request.prompts) {
    std::string& text = texts.emplace_back();
    for (std::size_t i = 0; i < prompt.piece_count; ++i) text += request.text[prompt.first_piece + i];
  }
  if (texts.size() == 1) return Text(model, std::move(texts[0]), std::move(done));
  struct Collector {
    std::mutex mutex;
    std::shared_ptr<PromptTokens> tokens = std::make_shared<PromptTokens>();
    absl::Status status;
    std::size_t left = 0;
    Done done;
  };
  auto all = std::make_shared<Collector>();
  all->left = texts.size();
  all->tokens->prompts.resize(texts.size());
  all->done = std::move(done);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    Text(model, std::move(texts[i]), [all, i](Result result) {
      {
        const std::lock_guard lock(all->mutex);
        all->status.Update(result.status());
        if (result.ok()) all->tokens->prompts[i] = (*result)->prompts.at(0);
        if (--all->left > 0) return;
      }
      if (!all->status.ok()) return all->done(all->status);
      all->done(Answer(all->tokens));
    });
  }
}

bool CachingTokenSource::Impl::FromMemory(const TokenKey& whole, Done& done) {
  const TokenTree::Node node = tree_.Find(whole, oldest());
  Answer answer;
  if (node != nullptr) {
    Tokens tokens;
    AppendTokens(node.get(), tokens);
    answer = MakeAnswer(std::move(tokens));
  }
  {
    const std::lock_guard lock(mutex_);
    ++counters_.prompts;
    if (answer != nullptr) {
      ++counters_.hits;
    } else {
      const auto [flight, first] = flights_.try_emplace(whole);
      if (first || flight->second.answer == nullptr) {
        flight->second.waiting.push_back(std::move(done));
        counters_.joined += !first;
        return !first;
      }
      answer = flight->second.answer;
      ++counters_.joined;
    }
    counters_.prompt_tokens += answer->prompts[0].size();
    counters_.reused_tokens += answer->prompts[0].size();
  }
  done(std::move(answer));
  return true;
}

void CachingTokenSource::Impl::Text(const std::string& model, std::string text, Done done) {
  auto job = std::make_shared<Job>();
  job->setting = ChainKey(tree_.root(), Joined({"text", model}));
  const TextCuts cuts = CutText(RootOf(job->setting), text);
  job->whole_key = cuts.whole;
  if (FromMemory(cuts.whole, done)) return;
  job->born = absl::Now();
  auto shared = std::make_shared<const std::string>(std::move(text));
  job->ask_whole = [this, model, shared](Done done) {
    inner_.TokenizeText({.model = model, .text = *shared},
                        [done = std::move(done)](absl::StatusOr<Tokens> tokens) {
                          if (!tokens.ok()) return done(tokens.status());
                          done(MakeAnswer(*std::move(tokens)));
                        });
  };
  std::vector<std::size_t> ends;  // of the parts
  std::size_t begin = 0;
  TokenizerTrust::Plan plan;
  if (options_.put_together && !cuts.offsets.empty()) {
    if (const auto known = tree_.FindLast(cuts.keys, oldest())) {
      job->base = known->second;
      begin = cuts.offsets[known->first];
    }
    const std::vector<std::size_t> chosen =
        ChooseCuts(cuts, begin, options_.min_part_bytes, options_.max_parts);
    for (const std::size_t cut : chosen) {
      ends.push_back(cuts.offsets[cut]);
      job->part_keys.push_back(cuts.keys[cut]);
    }
    if (job->base != nullptr || !chosen.empty()) plan = trust_.PlanFor(job->setting);
  }
  if (plan.parts) job->parts.assign(ends.size() + 1, absl::UnknownError(""));
  job->whole_asked = plan.whole;
  job->pending = static_cast<int>(job->parts.size()) + job->whole_asked;
  ends.push_back(shared->size());
  if (job->whole_asked) AskWhole(job);
  for (std::size_t i = 0, count = plan.parts ? ends.size() : 0; i < count; ++i) {
    inner_.TokenizeText(
        {.model = model, .text = shared->substr(begin, ends[i] - begin), .add_special_tokens = begin == 0},
        [self = shared_from_this(), job, i](absl::StatusOr<Tokens> tokens) {
          self->OnPart(job, i, std::move(tokens));
        });
    begin = ends[i];
  }
}

void CachingTokenSource::Impl::Chat(const TokenQuery& query, Done done) {
  const gateway::OpenAiRequest& request = *query.openai;
  const std::string others = OtherTokenOptions(query.body);
  auto job = std::make_shared<Job>();
  job->chat = true;
  const char flags[] = {request.add_generation_prompt ? '1' : '0', request.continue_final_message ? '1' : '0',
                        '\0'};
  job->setting =
      ChainKey(tree_.root(), Joined({"chat", query.model, request.raw_tools, request.raw_chat_template,
                                     request.raw_chat_template_kwargs, flags, others}));
  const std::vector<RawMessage> messages = SplitMessages(request.raw_messages);
  std::vector<TokenKey> keys;
  TokenKey key = RootOf(job->setting);
  bool simple = others.empty() && request.media.empty() && request.add_generation_prompt &&
                !request.continue_final_message && messages.size() == request.messages.size();
  for (const RawMessage& message : messages) {
    // A JSON value does not begin another one, so that chains of different lists differ.
    keys.push_back(key = ChainKey(key, message.json));
    simple = simple && message.simple;
  }
  job->whole_key = ChainKey(key, "end");
  if (FromMemory(job->whole_key, done)) return;
  job->born = absl::Now();
  job->ask_whole = [this, query](Done done) { inner_.Tokenize(query, std::move(done)); };

  ChatPrompt rest;
  TokenizerTrust::Plan plan;
  std::optional<ChatPrompt> about;
  const std::size_t count = messages.size();
  if (options_.put_together && simple && count > 0 && request.messages.back().role == "user") {
    job->closed_key = keys.back();
    rest = {.model = std::string(query.model),
            .tools = std::string(request.raw_tools),
            .chat_template = std::string(request.raw_chat_template),
            .chat_template_kwargs = std::string(request.raw_chat_template_kwargs)};
    job->stencil = trust_.StencilOf(job->setting, oldest());
    if (!job->stencil && trust_.BeginStencil(job->setting)) about = rest;
    // Where the new messages begin: after a user's, with an assistant's.
    std::vector<TokenKey> ends;
    std::vector<std::size_t> begins;
    for (std::size_t i = 1; i < count && job->stencil; ++i) {
      if (request.messages[i - 1].role != "user" || request.messages[i].role != "assistant") continue;
      ends.push_back(keys[i - 1]);
      begins.push_back(i);
    }
    if (const auto known = tree_.FindLast(ends, oldest())) {
      plan = trust_.PlanFor(job->setting);
      if (plan.parts) {
        job->base = known->second;
        rest.messages = absl::StrCat("[", absl::string_view(kStandIn.data(), kStandIn.size()));
        for (std::size_t i = begins[known->first]; i < count; ++i) {
          rest.messages.append(",").append(messages[i].json);
        }
        rest.messages += ']';
      }
    }
  }
  if (plan.parts) job->parts.assign(1, absl::UnknownError(""));
  job->whole_asked = plan.whole;
  job->pending = static_cast<int>(job->parts.size()) + job->whole_asked;
  if (job->whole_asked) AskWhole(job);
  if (plan.parts) {
    inner_.TokenizeChat(std::move(rest), [self = shared_from_this(), job](absl::StatusOr<Tokens> tokens) {
      self->OnPart(job, 0, std::move(tokens));
    });
  }
  if (about) AskForStencil(job->setting, *about);
}

void CachingTokenSource::Impl::AskForStencil(const TokenKey& setting, const ChatPrompt& prompt) {
  struct Both {
    std::mutex mutex;
    std::optional<absl::StatusOr<Tokens>> open, closed;
  };
  auto both = std::make_shared<Both>();
  for (const bool open : {false, true}) {
    ChatPrompt ask = prompt;
    ask.messages = absl::StrCat("[", absl::string_view(kStandIn.data(), kStandIn.size()), "]");
    ask.add_generation_prompt = open;
    inner_.TokenizeChat(std::move(ask),
                        [self = shared_from_this(), both, setting, open](absl::StatusOr<Tokens> tokens) {
                          const std::lock_guard lock(both->mutex);
                          (open ? both->open : both->closed) = std::move(tokens);
                          if (!both->open || !both->closed) return;
                          self->trust_.SetStencil(setting, *both->closed, *both->open, absl::Now());
                        });
  }
}

void CachingTokenSource::Impl::AskWhole(const JobPtr& job) {
  job->ask_whole([self = shared_from_this(), job](Result result) { self->OnWhole(job, std::move(result)); });
}

void CachingTokenSource::Impl::OnWhole(const JobPtr& job, Result result) {
  if (result.ok() && (*result)->prompts.size() != 1) {
    result = absl::InvalidArgumentError(
        absl::StrCat("the tokenizer gave ", (*result)->prompts.size(), " prompts, expected 1"));
  }
  job->whole = std::move(result);
  if (--job->pending == 0) {
    Conclude(job);
  } else if (job->whole.ok()) {
    Give(*job, job->whole, false);  // parts are still under way, to be compared
  }
}

void CachingTokenSource::Impl::OnPart(const JobPtr& job, std::size_t part, absl::StatusOr<Tokens> tokens) {
  job->parts[part] = std::move(tokens);
  if (--job->pending == 0) Conclude(job);
}

std::optional<Tokens> CachingTokenSource::Impl::PutTogether(const Job& job) const {
  Tokens tokens;
  AppendTokens(job.base.get(), tokens);
  if (job.chat) {
    const Tokens& rendered = *job.parts[0];
    const auto& [head, prompt] = *job.stencil;
    if (!StartsWith(rendered, head) || !EndsWith(rendered, prompt) ||
        rendered.size() < head.size() + prompt.size()) {
      return std::nullopt;
    }
    tokens.insert(tokens.end(), rendered.begin() + static_cast<std::ptrdiff_t>(job.stencil->head.size()),
                  rendered.end());
    return tokens;
  }
  for (const absl::StatusOr<Tokens>& part : job.parts)
    tokens.insert(tokens.end(), part->begin(), part->end());
  return tokens;
}

void CachingTokenSource::Impl::StoreParts(const Job& job) {
  TokenTree::Node node = job.base;
  if (job.chat) {
    const Tokens& rendered = *job.parts[0];
    Tokens added(rendered.begin() + static_cast<std::ptrdiff_t>(job.stencil->head.size()),
                 rendered.end() - static_cast<std::ptrdiff_t>(job.stencil->prompt.size()));
    node = tree_.Insert(*job.closed_key, node, std::move(added), job.born);
    tree_.Insert(job.whole_key, node, job.stencil->prompt, job.born);
    return;
  }
  for (std::size_t i = 0; i < job.parts.size(); ++i) {
    const bool last = i + 1 == job.parts.size();
    node = tree_.Insert(last ? job.whole_key : job.part_keys[i], node, *job.parts[i], job.born);
  }
}

void CachingTokenSource::Impl::StoreWhole(const Job& job, const Tokens& tokens) {
  if (job.closed_key) {
    // What asks for an answer may have become known meanwhile.
    const std::optional<TokenizerTrust::Stencil> stencil =
        job.stencil ? job.stencil : trust_.StencilOf(job.setting, oldest());
    Tokens prompt = stencil ? stencil->prompt : Tokens();
    if (!prompt.empty() && EndsWith(tokens, prompt)) {
      Tokens closed(tokens.begin(), tokens.end() - static_cast<std::ptrdiff_t>(prompt.size()));
      const TokenTree::Node node = tree_.Insert(*job.closed_key, nullptr, std::move(closed), job.born);
      tree_.Insert(job.whole_key, node, std::move(prompt), job.born);
      return;
    }
  }
  tree_.Insert(job.whole_key, nullptr, tokens, job.born);
}

void CachingTokenSource::Impl::Judge(const Job& job, bool equal) {
  trust_.Judge(job.setting, equal);
  const std::lock_guard lock(mutex_);
  ++counters_.checked;
  counters_.mismatched += !equal;
}

void CachingTokenSource::Impl::Conclude(const JobPtr& job) {
  const bool parts_good = !job->parts.empty() && std::all_of(job->parts.begin(), job->parts.end(),
                                                             [](const auto& part) { return part.ok(); });
  std::optional<Tokens> tokens;
  if (parts_good) tokens = PutTogether(*job);
  if (job->whole_asked) {
    if (job->whole.ok()) {
      const Tokens& whole = (*job->whole)->prompts[0];
      const bool equal = tokens.has_value() && *tokens == whole;
      if (parts_good) Judge(*job, equal);
      if (equal) {
        StoreParts(*job);
      } else {
        StoreWhole(*job, whole);
      }
    }
    const std::lock_guard lock(mutex_);
    ++counters_.whole;
  } else if (tokens) {
    StoreParts(*job);
    const std::lock_guard lock(mutex_);
    ++counters_.extended;
    counters_.reused_tokens += job->base == nullptr ? 0 : job->base->total;
  } else {
    if (job->chat) trust_.ForgetStencil(job->setting);  // it is of yesterday, perhaps
    job->parts.clear();
    job->whole_asked = true;
    job->pending = 1;
    return AskWhole(job);
  }
  Give(*job, job->whole_asked ? job->whole : Result(MakeAnswer(*std::move(tokens))), true);
}

void CachingTokenSource::Impl::Give(const Job& job, Result result, bool last) {
  std::vector<Done> waiting;
  {
    const std::lock_guard lock(mutex_);
    const auto flight = flights_.find(job.whole_key);
    if (flight != flights_.end()) {
      waiting.swap(flight->second.waiting);
      if (result.ok()) flight->second.answer = *result;
      if (last) flights_.erase(flight);
    }
    if (result.ok()) {
      counters_.prompt_tokens += waiting.size() * (*result)->prompts[0].size();
      if (waiting.size() > 1) counters_.reused_tokens += (waiting.size() - 1) * (*result)->prompts[0].size();
    } else {
      counters_.failed += waiting.size();
    }
  }
  for (const Done& done : waiting) done(result);
}

CachingTokenSource::CachingTokenSource(const CachingTokenOptions& options,
                                       std::unique_ptr<PartTokenSource> inner)
    : impl_(std::make_shared<Impl>(options, *inner)), inner_(std::move(inner)) {}

CachingTokenSource::~CachingTokenSource() = default;

void CachingTokenSource::Tokenize(const TokenQuery& query, Done done) {
  impl_->Tokenize(query, std::move(done));
}

TokenCacheCounters CachingTokenSource::counters() const { return impl_->counters(); }

}  // namespace llmd::host
