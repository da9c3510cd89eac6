#include "examples/sim_worker/answer.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"
#include "examples/sim_worker/json_reader.h"
#include "llmd/base/strings.h"

namespace llmd::sim {
namespace {

void AppendInteger(std::uint64_t number, std::string& out) {
  char text[24];
  const auto [end, error] = std::to_chars(text, text + sizeof text, number);
  out.append(text, static_cast<std::size_t>(end - text));
}

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  AppendEscaped(text, out);
  return out + '"';
}

void AppendFinish(FinishReason finish, std::string& out) {
  if (finish == FinishReason::kNone) {
    out += "null";
  } else {
    absl::StrAppend(&out, "\"", ToAbsl(FinishReasonName(finish)), "\"");
  }
}

}  // namespace

void AppendTokens(const std::vector<TokenId>& tokens, std::string& out) {
  out += '[';
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) out += ',';
    AppendInteger(tokens[i], out);
  }
  out += ']';
}

Answer::Answer(const ApiRequest& request, const std::string& id, std::int64_t created,
               const TransferIdentity& transfer, std::uint32_t block_size)
    : request_(request),
      transfer_(transfer),
      block_size_(block_size),
      choices_(request.prompts.size() * request.n),
      open_(choices_.size()) {
  if (request.api == Api::kGenerate) {
    id_ = id;
    head_ = absl::StrCat("{\"request_id\":", Quoted(id_), ",\"choices\":[");
  } else {
    const bool chat = request.api == Api::kChat;
    id_ = absl::StrCat(chat ? "chatcmpl-" : "cmpl-", id);
    const char* object = !chat            ? "text_completion"
                         : request.stream ? "chat.completion.chunk"
                                          : "chat.completion";
    head_ = absl::StrCat("{\"id\":", Quoted(id_), ",\"object\":\"", object, "\",\"created\":", created,
                         ",\"model\":", Quoted(request.model), ",\"choices\":[");
  }
  for (const std::string& stop : request.stop) longest_stop_ = std::max(longest_stop_, stop.size());
  if (request.echo) {
    for (std::size_t i = 0; i < choices_.size(); ++i) choices_[i].text = request.prompt_texts[i / request.n];
  }
}

void Answer::AppendChunk(std::uint32_t index, const Choice& choice, std::string_view text, TokenId token,
                         bool has_token, std::string& sse) const {
  sse += "data: ";
  sse += head_;
  sse += "{\"index\":";
  AppendInteger(index, sse);
  switch (request_.api) {
    case Api::kCompletions:
      sse += ",\"text\":\"";
      AppendEscaped(text, sse);
      sse += "\",\"logprobs\":null,\"finish_reason\":";
      break;
    case Api::kChat:
      sse += ",\"delta\":{\"content\":\"";
      AppendEscaped(text, sse);
      sse += "\"},\"logprobs\":null,\"finish_reason\":";
      break;
    case Api::kGenerate:
      sse += ",\"logprobs\":null,\"finish_reason\":";
      break;
  }
  AppendFinish(choice.finish, sse);
  if (request_.api == Api::kCompletions || choice.finish != FinishReason::kNone) {
    absl::StrAppend(&sse, ",\"stop_reason\":", choice.stop_reason);
  }
  if (request_.api == Api::kGenerate || request_.return_token_ids) {
    sse += ",\"token_ids\":[";
    if (has_token) AppendInteger(token, sse);
    sse += ']';
  }
  sse += "}]";
  if (request_.continuous_usage) AppendUsage(sse);
  sse += "}\n\n";
}

void Answer::Begin(std::string& sse) {
  for (std::uint32_t i = 0; i < choices_.size(); ++i) {
    if (request_.api == Api::kChat) {
      absl::StrAppend(&sse, "data: ", head_, "{\"index\":", i,
                      ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                      "\"finish_reason\":null}]}\n\n");
    } else if (request_.echo) {
      AppendChunk(i, choices_[i], choices_[i].text, 0, false, sse);
    }
    choices_[i].sent = choices_[i].text.size();
  }
}

bool Answer::FindStop(Choice& choice, std::size_t from) {
  std::size_t best = std::string::npos;
  const std::string* found = nullptr;
  for (const std::string& stop : request_.stop) {
    // A match may begin in what was there before.
    const std::size_t begin = from >= stop.size() ? from - stop.size() + 1 : 0;
    const std::size_t at = choice.text.find(stop, begin);
    if (at < best) {
      best = at;
      found = &stop;
    }
  }
  if (found == nullptr) return false;
  choice.text.resize(request_.include_stop ? best + found->size() : best);
  choice.sent = std::min(choice.sent, choice.text.size());
  choice.finish = FinishReason::kStop;
  choice.stop_reason = Quoted(*found);
  return true;
}

bool Answer::Add(const Output& output, std::string* sse) {
  Choice& choice = choices_[output.choice];
  if (choice.finish != FinishReason::kNone) return false;  // what the engine did before it heard of the stop
  const std::size_t before = choice.text.size();
  if (output.has_token) {
    choice.tokens.push_back(output.token);
    if (output.token < Tokenizer::kBos) Tokenizer::AppendCanonical(output.token, choice.text);
    choice.cached = output.cached_tokens;
  }
  bool stopped = false;
  if (!request_.stop.empty()) stopped = FindStop(choice, before);
  if (!stopped && output.finish != FinishReason::kNone) {
    choice.finish = output.finish;
    choice.held_blocks = output.held_blocks;
    if (output.stop_token) choice.stop_reason = absl::StrCat(*output.stop_token);
  }
  const bool ended = choice.finish != FinishReason::kNone;
  if (ended) --open_;
  if (sse != nullptr) {
    // The beginning of a stop string may be at the end of the text: it waits for what follows.
    const std::size_t hold = ended || longest_stop_ == 0 ? 0 : longest_stop_ - 1;
    const std::size_t until =
        std::max(choice.sent, choice.text.size() > hold ? choice.text.size() - hold : 0);
    const std::string_view text = std::string_view(choice.text).substr(choice.sent, until - choice.sent);
    if (ended || !text.empty() || request_.api == Api::kGenerate) {
      AppendChunk(output.choice, choice, text, output.token, output.has_token, *sse);
    }
    choice.sent = until;
  }
  return stopped && output.finish == FinishReason::kNone;
}

void Answer::AppendUsage(std::string& out) const {
  std::uint64_t prompt = 0;
  std::uint64_t completion = 0;
  std::uint64_t cached = 0;
  for (const std::vector<TokenId>& tokens : request_.prompts) prompt += tokens.size();
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    completion += choices_[i].tokens.size();
    if (i % request_.n == 0) cached += choices_[i].cached;
  }
  absl::StrAppend(&out, ",\"usage\":{\"prompt_tokens\":", prompt, ",\"total_tokens\":", prompt + completion,
                  ",\"completion_tokens\":", completion,
                  ",\"prompt_tokens_details\":{\"cached_tokens\":", cached, "}}");
}

void Answer::End(std::string& sse) const {
  if (request_.include_usage) {
    absl::StrAppend(&sse, "data: ", head_, "]");
    AppendUsage(sse);
    sse += "}\n\n";
  }
  sse += "data: [DONE]\n\n";
}

void Answer::AppendTransfer(std::string& out) const {
  out += ",\"kv_transfer_params\":";
  // As for any request with several prompts, there is nothing to hand over.
  if (!request_.params.remote_decode || choices_.size() != 1 || choices_[0].held_blocks.empty()) {
    out += "null";
    return;
  }
  // Full blocks only: the rest is computed by the one who decodes.
  std::vector<TokenId> blocks = choices_[0].held_blocks;
  blocks.resize(std::min<std::size_t>(blocks.size(), request_.prompts[0].size() / block_size_));
  out += "{\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_block_ids\":";
  AppendTokens(blocks, out);
  absl::StrAppend(&out, ",\"remote_engine_id\":", Quoted(transfer_.engine_id),
                  ",\"remote_request_id\":", Quoted(id_), ",\"remote_host\":", Quoted(transfer_.host),
                  ",\"remote_port\":", transfer_.port, ",\"tp_size\":1}");
}

std::string Answer::ToJson() const {
  std::string out = head_;
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    absl::StrAppend(&out, i > 0 ? "," : "", "{\"index\":", i);
    if (request_.api == Api::kCompletions) {
      out += ",\"text\":\"";
      AppendEscaped(choice.text, out);
      out += '"';
    } else if (request_.api == Api::kChat) {
      out += ",\"message\":{\"role\":\"assistant\",\"content\":\"";
      AppendEscaped(choice.text, out);
      out += "\",\"refusal\":null}";
    }
    out += ",\"logprobs\":null,\"finish_reason\":";
    AppendFinish(choice.finish, out);
    absl::StrAppend(&out, ",\"stop_reason\":", choice.stop_reason, ",\"token_ids\":");
    if (request_.api == Api::kGenerate || request_.return_token_ids) {
      AppendTokens(choice.tokens, out);
    } else {
      out += "null";
    }
    if (request_.api == Api::kCompletions) {
      out += ",\"prompt_logprobs\":null,\"prompt_token_ids\":";
      if (request_.return_token_ids) {
        AppendTokens(request_.prompts[i / request_.n], out);
      } else {
        out += "null";
      }
    }
    out += '}';
  }
  out += ']';
  if (request_.api == Api::kGenerate) {
    out += ",\"prompt_logprobs\":null";
  } else {
    out += ",\"service_tier\":null,\"system_fingerprint\":null";
  }
  AppendUsage(out);
  AppendTransfer(out);
  out += '}';
  return out;
}

}  // namespace llmd::sim
