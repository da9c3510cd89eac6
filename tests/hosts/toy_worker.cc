#include "tests/hosts/toy_worker.h"

#include <cctype>
#include <chrono>
#include <future>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace llmd::host {
namespace {

using nlohmann::json;

constexpr std::string_view kSpecial[] = {"<|bos|>", "<|start|>", "<|end|>"};

std::uint64_t Hash(std::string_view bytes, std::uint64_t seed) {
  std::uint64_t hash = 0xcbf29ce484222325u ^ seed;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  hash ^= hash >> 29;
  return hash * 0x9E3779B97F4A7C15u >> 16;
}

bool Letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 || (c & 0x80) != 0; }
bool Digit(char c) { return c >= '0' && c <= '9'; }
bool Space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// The length of the first word, as patterns of common tokenizers have it.
std::size_t WordLength(std::string_view text) {
  const auto run = [&](std::size_t from, auto is) {
    while (from < text.size() && is(text[from])) ++from;
    return from;
  };
  const char first = text[0];
  if (Letter(first)) return run(0, Letter);
  if (!Digit(first) && first != '\n' && first != '\r' && text.size() > 1 && Letter(text[1]))
    return run(1, Letter);
  if (Digit(first)) return std::min<std::size_t>(run(0, Digit), 3);
  const auto mark = [](char c) { return !Letter(c) && !Digit(c) && !Space(c); };
  const std::size_t skip = first == ' ' ? 1 : 0;
  if (skip < text.size() && mark(text[skip])) {
    return run(run(skip, mark), [](char c) { return c == '\n' || c == '\r'; });
  }
  const std::size_t blanks = run(0, Space);
  const std::size_t feed = text.substr(0, blanks).rfind('\n');
  if (feed != std::string_view::npos) return feed + 1;
  return blanks < text.size() && blanks > 1 ? blanks - 1 : blanks;
}

std::string Render(const json& body, bool counting) {
  std::string text = "<|bos|>";
  if (body.contains("tools") && !body["tools"].is_null())
    text += "<|start|>tools\n" + body["tools"].dump() + "<|end|>\n";
  int number = 0;
  for (const json& message : body.at("messages")) {
    text += "<|start|>" + message.at("role").get<std::string>();
    if (counting) text += std::to_string(++number);
    text += "\n" + message.at("content").get<std::string>() + "<|end|>\n";
  }
  if (body.value("add_generation_prompt", true)) text += "<|start|>assistant\n";
  return text;
}

}  // namespace

std::vector<TokenId> ToyTokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  std::vector<TokenId> out;
  if (add_special_tokens) out.push_back(1);
  while (!text.empty()) {
    std::size_t at = text.size(), which = 0;
    for (std::size_t i = 0; i < std::size(kSpecial); ++i) {
      if (const std::size_t found = text.find(kSpecial[i]); found < at) {
        at = found;
        which = i;
      }
    }
    for (std::string_view plain = text.substr(0, at); !plain.empty();) {
      const std::size_t length = words_ ? WordLength(plain) : plain.size();
      EncodePiece(plain.substr(0, length), out);
      plain.remove_prefix(length);
    }
    if (at == text.size()) break;
    out.push_back(static_cast<TokenId>(1 + which));
    text.remove_prefix(at + kSpecial[which].size());
  }
  return out;
}

void ToyTokenizer::EncodePiece(std::string_view piece, std::vector<TokenId>& out) const {
  std::vector<std::string_view> parts;
  for (std::size_t i = 0; i < piece.size(); ++i) parts.push_back(piece.substr(i, 1));
  for (;;) {
    std::size_t best = parts.size();
    std::uint64_t best_rank = ~std::uint64_t{0};
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      const std::string_view both(parts[i].data(), parts[i].size() + parts[i + 1].size());
      const std::uint64_t rank = Hash(both, 1);
      if (both.size() <= 6 && rank % 4 != 0 && rank < best_rank) {
        best = i;
        best_rank = rank;
      }
    }
    if (best == parts.size()) break;
    parts[best] = {parts[best].data(), parts[best].size() + parts[best + 1].size()};
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  for (const std::string_view part : parts)
    out.push_back(static_cast<TokenId>(10 + Hash(part, 2) % 4'000'000'000u));
}

ToyWorker::ToyWorker(const ToyWorkerOptions& options)
    : options_(options),
      tokenizer_(options.words),
      server_([this](const http::Request& request, TinyServer::Reply& reply) { Handle(request, reply); }) {}

std::vector<TokenId> ToyWorker::ChatTokens(std::string_view body) const {
  return tokenizer_.Encode(Render(json::parse(body), options_.counting), false);
}

void ToyWorker::Handle(const http::Request& request, TinyServer::Reply& reply) {
  received_ += request.body.size();
  for (int i = 0; i < 2000 && hold; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  if (options_.hang) return reply.Hang();
  if (options_.status != 200) return void(reply.Send(options_.status, "{}"));
  if (!options_.broken.empty()) return void(reply.Send(200, options_.broken));
  const json body = json::parse(request.body, nullptr, false);
  if (request.method != "POST" || body.is_discarded()) return void(reply.Send(400, "{}"));
  if (request.target == "/tokenize") {
    const std::vector<TokenId> tokens =
        body.contains("messages")
            ? ChatTokens(request.body)
            : tokenizer_.Encode(body.at("prompt").get<std::string>(), body.value("add_special_tokens", true));
    reply.Send(200, json{{"count", tokens.size()}, {"max_model_len", 1000}, {"tokens", tokens}}.dump());
  } else if (options_.render && request.target == "/v1/chat/completions/render") {
    reply.Send(200, json{{"token_ids", ChatTokens(request.body)}, {"model", body.value("model", "")}}.dump());
  } else if (options_.render && request.target == "/v1/completions/render") {
    json prompts = json::array();
    const json& prompt = body.at("prompt");
    for (const json& text : prompt.is_array() ? prompt : json::array({prompt})) {
      prompts.push_back({{"token_ids", tokenizer_.Encode(text.get<std::string>(),
                                                         body.value("add_special_tokens", true))}});
    }
    reply.Send(200, prompts.dump());
  } else {
    reply.Send(404, R"({"detail":"Not Found"})");
  }
}

ToyRequest::ToyRequest(std::string path, std::string body, std::string model)
    : path_(std::move(path)), body_(std::move(body)), model_(std::move(model)) {
  const absl::Status status = parser_.Parse(gateway::ApiOfPath(path_), body_, openai_);
  if (!status.ok()) throw std::runtime_error(std::string(status.message()));
}

TokenResult Tokenize(TokenSource& source, const ToyRequest& request) {
  auto promise = std::make_shared<std::promise<TokenResult>>();
  source.Tokenize(request.query(), [promise](TokenResult result) { promise->set_value(std::move(result)); });
  return promise->get_future().get();
}

}  // namespace llmd::host
