// A worker that tokenizes: byte-pair merges with pseudo-random ranks, so that what a byte becomes depends on
// what stands around it, and a chat template with tokens of its own around messages.
#ifndef TESTS_HOSTS_TOY_WORKER_H_
#define TESTS_HOSTS_TOY_WORKER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "examples/gateway_scheduler/token_source.h"
#include "llmd/base/types.h"
#include "llmd/gateway/openai_request.h"
#include "tests/hosts/tiny_server.h"

namespace llmd::host {

class ToyTokenizer {
 public:
  // Without `words`, merges run across words and lines.
  explicit ToyTokenizer(bool words = true) : words_(words) {}
  std::vector<TokenId> Encode(std::string_view text, bool add_special_tokens) const;

 private:
  void EncodePiece(std::string_view piece, std::vector<TokenId>& out) const;
  bool words_;
};

struct ToyWorkerOptions {
  bool words = true;
  bool render = true;       // has the render endpoints
  bool counting = false;    // the template numbers the messages, so that no part stands for itself
  std::string broken = {};  // answers this text with status 200
  int status = 200;
  bool hang = false;
};

class ToyWorker {
 public:
  explicit ToyWorker(const ToyWorkerOptions& options = {});

  std::uint16_t port() const { return server_.port(); }
  std::string url() const { return server_.url(""); }
  int requests() const { return server_.requests(); }
  std::uint64_t received_bytes() const { return received_; }
  // While true, requests wait.
  std::atomic<bool> hold = false;

  // What the worker's model sees.
  std::vector<TokenId> Tokens(std::string_view text) const { return tokenizer_.Encode(text, true); }
  std::vector<TokenId> ChatTokens(std::string_view body) const;

 private:
  void Handle(const http::Request& request, TinyServer::Reply& reply);

  const ToyWorkerOptions options_;
  const ToyTokenizer tokenizer_;
  std::atomic<std::uint64_t> received_ = 0;
  TinyServer server_;
};

// A request as the host has it, with the parser that its views need.
class ToyRequest {
 public:
  ToyRequest(std::string path, std::string body, std::string model = "m");
  TokenQuery query() const { return {.path = path_, .model = model_, .body = body_, .openai = &openai_}; }
  const std::string& body() const { return body_; }

 private:
  std::string path_, body_, model_;
  gateway::OpenAiParser parser_;
  gateway::OpenAiRequest openai_;
};

using TokenResult = absl::StatusOr<std::shared_ptr<const PromptTokens>>;
// Waits for the answer.
TokenResult Tokenize(TokenSource& source, const ToyRequest& request);

}  // namespace llmd::host

#endif  // TESTS_HOSTS_TOY_WORKER_H_
