#include "examples/sim_worker/api_request.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace llmd::sim {
namespace {

constexpr std::size_t kMaxPrompts = 128;
constexpr std::int64_t kMaxInteger = std::numeric_limits<std::int64_t>::max();

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Checked, though a worker without a model has no use for them (spec: decode-worker.md 4.5).
void CheckSampling(FieldReader& fields) {
  fields.Number("temperature", 0, 2);
  fields.Number("top_p", 0, 1);
  fields.Integer("top_k", -1, kMaxInteger);
  fields.Number("min_p", 0, 1);
  fields.Number("presence_penalty", -2, 2);
  fields.Number("frequency_penalty", -2, 2);
  fields.Number("repetition_penalty", 0, 1e9);
  fields.Integer("top_logprobs", -1, 20);
  if (fields.Integer("best_of", 1, 20).value_or(1) > 1) fields.Fail("best_of must be 1");
  if (fields.Find("suffix") != nullptr) fields.Fail("suffix is not supported");
  if (fields.Bool("use_beam_search", false)) fields.Fail("use_beam_search is not supported");
}

// Limits that are in the request itself or, for generate, in its sampling_params.
struct Limits {
  std::optional<std::int64_t> max_tokens;
  std::int64_t min_tokens = 0;
};

Limits ReadSampling(FieldReader& fields, ApiRequest& request) {
  CheckSampling(fields);
  Limits limits;
  limits.max_tokens = fields.Integer("max_tokens", 1, kMaxInteger);
  if (request.api == Api::kChat) {
    if (const auto limit = fields.Integer("max_completion_tokens", 1, kMaxInteger)) limits.max_tokens = limit;
  }
  limits.min_tokens = fields.Integer("min_tokens", 0, kMaxInteger).value_or(0);
  if (limits.max_tokens && limits.min_tokens > *limits.max_tokens) {
    fields.Fail(absl::StrCat("min_tokens is ", limits.min_tokens, ", must be at most max_tokens ",
                             *limits.max_tokens));
  }
  request.n = static_cast<std::uint32_t>(fields.Integer("n", 1, kMaxPrompts).value_or(1));
  request.stop = fields.Texts("stop", 16);
  request.include_stop = fields.Bool("include_stop_str_in_output", false);
  request.params.ignore_eos = fields.Bool("ignore_eos", false);
  request.params.stop_token_ids = fields.Tokens("stop_token_ids", 256);
  request.params.seed = static_cast<std::uint64_t>(
      fields.Integer("seed", std::numeric_limits<std::int64_t>::min(), kMaxInteger).value_or(0));
  return limits;
}

absl::Status ReadTransfer(FieldReader& fields, ApiRequest& request) {
  const Json* params = fields.Find("kv_transfer_params");
  if (params == nullptr) return absl::OkStatus();
  if (!params->is_object()) return absl::InvalidArgumentError("kv_transfer_params must be an object");
  FieldReader transfer(*params, "kv_transfer_params.");
  request.params.remote_decode = transfer.Bool("do_remote_decode", false);
  const Json* blocks = transfer.Find("remote_block_ids");
  // A prompt shorter than a block has none to fetch: it is computed here.
  request.params.remote_prefill = transfer.Bool("do_remote_prefill", false) && blocks != nullptr &&
                                  blocks->is_array() && !blocks->empty();
  if (request.params.remote_decode && request.params.remote_prefill) {
    transfer.Fail("do_remote_decode and do_remote_prefill must not both be true");
  }
  return transfer.status();
}

absl::Status ReadPrompt(Api api, const Json& body, const Tokenizer& tokenizer,
                        std::vector<std::vector<TokenId>>& prompts, std::vector<std::string>* texts) {
  if (api == Api::kChat) return RenderChat(body, tokenizer, prompts.emplace_back());
  const auto it = body.find(api == Api::kGenerate ? "token_ids" : "prompt");
  if (api == Api::kGenerate) {
    if (it == body.end() || !it->is_array() || it->empty()) {
      return absl::InvalidArgumentError("token_ids must be a list of at least one token id");
    }
    return ReadTokens(*it, "token_ids", prompts.emplace_back());
  }
  if (it == body.end()) return absl::InvalidArgumentError("prompt is missing");
  FieldReader fields(body);
  const bool add_bos = fields.Bool("add_special_tokens", true);
  if (!fields.status().ok()) return fields.status();
  return ReadPrompts(*it, add_bos, tokenizer, prompts, texts);
}

absl::Status FitLimits(const Limits& limits, const ApiModel& model, ApiRequest& request) {
  for (const std::vector<TokenId>& prompt : request.prompts) {
    const std::int64_t length = static_cast<std::int64_t>(prompt.size());
    const std::int64_t room = std::int64_t{model.max_model_len} - length;
    std::int64_t most = room;
    if (limits.max_tokens) {
      most = *limits.max_tokens;
    } else if (request.api != Api::kChat) {
      most = std::min<std::int64_t>(std::max<std::int64_t>(16, limits.min_tokens), room);
    }
    if (room < 1 || most > room || limits.min_tokens > room) {
      const std::int64_t completion = std::max<std::int64_t>({most, limits.min_tokens, 1});
      return absl::InvalidArgumentError(
          absl::StrCat("This model's maximum context length is ", model.max_model_len,
                       " tokens. However, you requested ", length, " tokens of prompt and ", completion,
                       " tokens of completion. Please reduce the length of the messages or completion."));
    }
    request.max_tokens.push_back(static_cast<std::uint32_t>(most));
  }
  request.params.min_tokens = static_cast<std::uint32_t>(limits.min_tokens);
  return absl::OkStatus();
}

absl::StatusOr<Json> ParseObject(std::string_view body) {
  absl::StatusOr<Json> json = ParseJson(body);
  if (json.ok() && !json->is_object()) return absl::InvalidArgumentError("the body must be a JSON object");
  return json;
}

}  // namespace

absl::Status CheckModel(const std::string& name, const ApiModel& model) {
  if (name.empty() || Contains(model.names, name) || Contains(model.loras, name)) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("The model `", name, "` does not exist."));
}

absl::Status ReadPrompts(const Json& prompt, bool add_bos, const Tokenizer& tokenizer,
                         std::vector<std::vector<TokenId>>& prompts, std::vector<std::string>* texts) {
  const auto add_text = [&](const std::string& text) {
    std::vector<TokenId>& tokens = prompts.emplace_back();
    if (add_bos) tokens.push_back(Tokenizer::kBos);
    tokenizer.Encode(text, tokens);
    if (texts != nullptr) texts->push_back(text);
  };
  const auto add_tokens = [&](const Json& list, const std::string& name) {
    const absl::Status status = ReadTokens(list, name, prompts.emplace_back());
    if (texts != nullptr) {
      std::string& text = texts->emplace_back();
      for (const TokenId token : prompts.back()) tokenizer.AppendText(token, text);
    }
    return status;
  };
  const absl::Status wrong = absl::InvalidArgumentError(
      "prompt must be a string, a list of strings, a list of token ids or a list of such lists, none empty");
  if (prompt.is_string()) {
    if (prompt.get_ref<const std::string&>().empty()) return wrong;
    add_text(prompt.get_ref<const std::string&>());
    return absl::OkStatus();
  }
  if (!prompt.is_array() || prompt.empty()) return wrong;
  if (prompt[0].is_number()) return add_tokens(prompt, "prompt");
  if (prompt.size() > kMaxPrompts) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt has ", prompt.size(), " prompts, at most ", kMaxPrompts, " are allowed"));
  }
  const bool strings = prompt[0].is_string();
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    const Json& item = prompt[i];
    if (strings ? !item.is_string() || item.get_ref<const std::string&>().empty()
                : !item.is_array() || item.empty()) {
      return wrong;
    }
    if (strings) {
      add_text(item.get_ref<const std::string&>());
    } else if (absl::Status status = add_tokens(item, absl::StrCat("prompt[", i, "]")); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::vector<TokenId>>> ParseRender(Api api, std::string_view body,
                                                              const ApiModel& model,
                                                              const Tokenizer& tokenizer) {
  const absl::StatusOr<Json> json = ParseObject(body);
  if (!json.ok()) return json.status();
  FieldReader fields(*json);
  const std::string name = fields.Text("model", 1024);
  if (!fields.status().ok()) return fields.status();
  if (absl::Status status = CheckModel(name, model); !status.ok()) return status;
  std::vector<std::vector<TokenId>> prompts;
  if (absl::Status status = ReadPrompt(api, *json, tokenizer, prompts, nullptr); !status.ok()) return status;
  return prompts;
}

absl::StatusOr<ApiRequest> ParseApiRequest(Api api, std::string_view body, const ApiModel& model,
                                           const Tokenizer& tokenizer) {
  const absl::StatusOr<Json> json = ParseObject(body);
  if (!json.ok()) return json.status();
  ApiRequest request;
  request.api = api;
  FieldReader fields(*json);
  request.model = fields.Text("model", 1024);
  request.request_id = fields.Text("request_id", 256);
  if (absl::Status status = CheckModel(request.model, model); !status.ok()) return status;
  if (request.model.empty()) request.model = model.names.front();
  if (Contains(model.loras, request.model)) request.params.lora_name = request.model;

  request.stream = fields.Bool("stream", false);
  request.echo = api == Api::kCompletions && fields.Bool("echo", false);
  request.return_token_ids = fields.Bool("return_token_ids", false);
  request.params.cache_salt = fields.Text("cache_salt", 1024);
  if (fields.Find("cache_salt") != nullptr && request.params.cache_salt.empty()) {
    fields.Fail("cache_salt must not be empty");
  }
  if (const Json* options = fields.Find("stream_options")) {
    if (!options->is_object()) {
      fields.Fail("stream_options must be an object");
    } else if (!request.stream) {
      fields.Fail("stream_options is allowed with stream only");
    } else {
      FieldReader inner(*options, "stream_options.");
      request.include_usage = inner.Bool("include_usage", false);
      request.continuous_usage = inner.Bool("continuous_usage_stats", false);
      if (!inner.status().ok()) return inner.status();
    }
  }
  Limits limits;
  if (api == Api::kGenerate) {
    const Json none = Json::object();
    const Json* sampling = fields.Find("sampling_params");
    if (sampling != nullptr && !sampling->is_object()) {
      return absl::InvalidArgumentError("sampling_params must be an object");
    }
    FieldReader inner(sampling == nullptr ? none : *sampling, "sampling_params.");
    limits = ReadSampling(inner, request);
    if (!inner.status().ok()) return inner.status();
  } else {
    limits = ReadSampling(fields, request);
  }
  if (!fields.status().ok()) return fields.status();
  if (absl::Status status = ReadTransfer(fields, request); !status.ok()) return status;
  if (absl::Status status =
          ReadPrompt(api, *json, tokenizer, request.prompts, request.echo ? &request.prompt_texts : nullptr);
      !status.ok()) {
    return status;
  }
  if (request.prompts.size() * request.n > kMaxPrompts) {
    return absl::InvalidArgumentError(absl::StrCat("prompts times n is ", request.prompts.size() * request.n,
                                                   ", at most ", kMaxPrompts, " are allowed"));
  }
  if (absl::Status status = FitLimits(limits, model, request); !status.ok()) return status;
  request.params.n = request.n;
  return request;
}

}  // namespace llmd::sim
