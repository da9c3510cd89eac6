#include "examples/gateway_scheduler/caching_token_source.h"

#include <future>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "examples/gateway_scheduler/engine_token_source.h"
#include "examples/gateway_scheduler/text_cuts.h"
#include "examples/gateway_scheduler/token_tree.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "tests/hosts/toy_worker.h"

namespace llmd::host {
namespace {

using nlohmann::json;
using testing::ElementsAre;

// Text of lines, blank ones too, with words, numbers and marks.
std::string SomeText(Random& random, int lines) {
  static constexpr std::string_view kPieces[] = {
      "the ",    "lazy ", "dog's ", "12345 ", "x=", "(f(", ") ", "\t", "...", "\xC3\xA9t\xC3\xA9 ",
      "<|end|>", "  ",    "Ab",     "zz9 ",   "\r"};
  std::string text;
  for (int i = 0; i < lines; ++i) {
    for (std::uint64_t n = random.Below(12); n > 0; --n) text += kPieces[random.Below(std::size(kPieces))];
    text += random.Below(6) == 0 ? "\n\n" : "\n";
  }
  return text;
}

std::string CompletionBody(const std::string& text) {
  return json{{"model", "m"}, {"prompt", text}, {"max_tokens", 5}}.dump();
}

class CachingTokenSourceTest : public testing::Test {
 protected:
  std::unique_ptr<CachingTokenSource> MakeSource(const ToyWorker& worker,
                                                 const CachingTokenOptions& options = {}) {
    auto engine = std::make_unique<EngineTokenSource>(
        EngineTokenOptions{.url = worker.url(), .timeout = absl::Seconds(30)}, loop_, nullptr);
    engine_ = engine.get();
    return std::make_unique<CachingTokenSource>(options, std::move(engine));
  }
  static std::vector<TokenId> Of(CachingTokenSource& source, const std::string& path,
                                 const std::string& body) {
    const TokenResult result = Tokenize(source, ToyRequest(path, body));
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? (*result)->prompts.at(0) : std::vector<TokenId>();
  }

  CurlLoop loop_;
  EngineTokenSource* engine_ = nullptr;
};

TEST_F(CachingTokenSourceTest, GrowingTextsAreTheTokensOfTheWhole) {
  ToyWorker worker;
  const auto source = MakeSource(worker, {.check_every = 0, .min_part_bytes = 256});
  Random random(7);
  std::uint64_t bytes = 0;
  for (int conversation = 0; conversation < 8; ++conversation) {
    std::string text = SomeText(random, 20);
    for (int turn = 0; turn < 25; ++turn) {
      text += SomeText(random, 1 + static_cast<int>(random.Below(12)));
      if (random.Below(3) == 0) text.pop_back();  // ends within a line
      bytes += text.size();
      ASSERT_EQ(Of(*source, "/v1/completions", CompletionBody(text)), worker.Tokens(text)) << text;
    }
  }
  const TokenCacheCounters counters = source->counters();
  EXPECT_EQ(counters.mismatched, 0);
  EXPECT_GE(counters.checked, 4);
  EXPECT_GE(counters.extended, 180);
  EXPECT_GT(counters.reused_tokens, counters.prompt_tokens / 2);
  EXPECT_LT(worker.received_bytes(), bytes / 3);
}

TEST_F(CachingTokenSourceTest, GrowingChatsAreTheTokensOfTheWhole) {
  ToyWorker worker;
  const auto source = MakeSource(worker, {.check_every = 0});
  Random random(11);
  std::uint64_t bytes = 0;
  for (int conversation = 0; conversation < 8; ++conversation) {
    json body = {{"model", "m"}, {"messages", json::array()}, {"temperature", 0.5}};
    if (conversation % 2 == 1)
      body["messages"].push_back({{"role", "system"}, {"content", SomeText(random, 5)}});
    if (conversation >= 4) body["tools"] = {{{"type", "function"}, {"name", "f"}}};
    for (int turn = 0; turn < 20; ++turn) {
      if (turn > 0) body["messages"].push_back({{"role", "assistant"}, {"content", SomeText(random, 6)}});
      body["messages"].push_back({{"role", "user"}, {"content", SomeText(random, 4)}});
      body["max_tokens"] = turn + 1;  // of no influence
      const std::string text = body.dump();
      bytes += text.size();
      ASSERT_EQ(Of(*source, "/v1/chat/completions", text), worker.ChatTokens(text)) << text;
    }
  }
  const TokenCacheCounters counters = source->counters();
  EXPECT_EQ(counters.mismatched, 0);
  EXPECT_GE(counters.checked, 8);  // four for each set of tools
  EXPECT_GE(counters.extended, 120);
  EXPECT_LT(worker.received_bytes(), bytes / 2);
}

TEST_F(CachingTokenSourceTest, ATokenizerWithoutWordsIsFoundOut) {
  ToyWorker worker({.words = false});
  const auto source = MakeSource(worker, {.min_part_bytes = 256});
  Random random(3);
  std::string text = SomeText(random, 30);
  for (int turn = 0; turn < 12; ++turn) {
    text += SomeText(random, 3);
    ASSERT_EQ(Of(*source, "/v1/completions", CompletionBody(text)), worker.Tokens(text));
  }
  const TokenCacheCounters counters = source->counters();
  EXPECT_GE(counters.mismatched, 1);
  EXPECT_EQ(counters.extended, 0);
}

TEST_F(CachingTokenSourceTest, ATemplateThatLooksAtPositionsIsFoundOut) {
  ToyWorker worker({.counting = true});
  const auto source = MakeSource(worker);
  json body = {{"model", "m"}, {"messages", json::array()}};
  for (int turn = 0; turn < 10; ++turn) {
    if (turn > 0) body["messages"].push_back({{"role", "assistant"}, {"content", "Well."}});
    body["messages"].push_back({{"role", "user"}, {"content", absl::StrCat("And ", turn, "?")}});
    ASSERT_EQ(Of(*source, "/v1/chat/completions", body.dump()), worker.ChatTokens(body.dump()));
  }
  EXPECT_GE(source->counters().mismatched, 1);
  EXPECT_EQ(source->counters().extended, 0);
}

TEST_F(CachingTokenSourceTest, IdenticalPromptsAreAskedForOnce) {
  ToyWorker worker;
  const auto source = MakeSource(worker);
  const std::string text = CompletionBody("Once upon a time.");
  const std::vector<TokenId> tokens = Of(*source, "/v1/completions", text);
  EXPECT_EQ(Of(*source, "/v1/completions", text), tokens);
  EXPECT_EQ(worker.requests(), 1);
  EXPECT_EQ(source->counters().hits, 1);
  // Also when all come at once.
  worker.hold = true;
  const ToyRequest other("/v1/completions", CompletionBody("Twice upon a time."));
  std::vector<std::future<TokenResult>> results;
  for (int i = 0; i < 20; ++i) {
    auto promise = std::make_shared<std::promise<TokenResult>>();
    results.push_back(promise->get_future());
    source->Tokenize(other.query(), [promise](TokenResult result) { promise->set_value(std::move(result)); });
  }
  worker.hold = false;
  for (auto& result : results) EXPECT_EQ((*result.get())->prompts.at(0), worker.Tokens("Twice upon a time."));
  EXPECT_EQ(worker.requests(), 2);
  EXPECT_EQ(source->counters().joined, 19);
}

TEST_F(CachingTokenSourceTest, WhatChangesTokensIsPartOfTheKey) {
  ToyWorker worker;
  const auto source = MakeSource(worker);
  const json chat = {{"model", "m"}, {"messages", {{{"role", "user"}, {"content", "Hi"}}}}};
  json tools = chat, closed = chat;
  tools["tools"] = {{{"name", "f"}}};
  closed["add_generation_prompt"] = false;
  for (int round = 0; round < 2; ++round) {
    for (const json& body : {chat, tools, closed}) {
      EXPECT_EQ(Of(*source, "/v1/chat/completions", body.dump()), worker.ChatTokens(body.dump()));
    }
    EXPECT_EQ(Of(*source, "/v1/completions", CompletionBody("Hi")), worker.Tokens("Hi"));
    EXPECT_EQ(Of(*source, "/v1/completions", R"({"model":"m","prompt":"Hi","add_special_tokens":false})"),
              ToyTokenizer().Encode("Hi", false));
  }
  EXPECT_EQ(source->counters().hits, 4);
  EXPECT_EQ(source->counters().passed, 2);
}

TEST_F(CachingTokenSourceTest, SeveralPromptsOfOneRequest) {
  ToyWorker worker;
  const auto source = MakeSource(worker);
  const ToyRequest request("/v1/completions", R"({"prompt":["a b","c d","a b"]})");
  const TokenResult result = Tokenize(*source, request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT((*result)->prompts,
              ElementsAre(worker.Tokens("a b"), worker.Tokens("c d"), worker.Tokens("a b")));
  EXPECT_EQ(worker.requests(), 2);
}

TEST_F(CachingTokenSourceTest, OldAnswersAreForgotten) {
  ToyWorker worker;
  const auto source = MakeSource(worker, {.max_age = absl::Milliseconds(1)});
  for (int i = 0; i < 2; ++i) {
    Of(*source, "/v1/completions", CompletionBody("x"));
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_EQ(worker.requests(), 2);
}

TEST_F(CachingTokenSourceTest, ErrorsAreGivenToAllAndNotKept) {
  ToyWorker worker({.broken = "{}"});
  const auto source = MakeSource(worker);
  Random random(1);
  const std::string text = SomeText(random, 200);
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(Tokenize(*source, ToyRequest("/v1/completions", CompletionBody(text))).ok());
    EXPECT_FALSE(Tokenize(*source, ToyRequest("/v1/chat/completions",
                                              R"({"messages":[{"role":"user","content":"x"}]})"))
                     .ok());
  }
  EXPECT_EQ(source->counters().failed, 6);
  EXPECT_EQ(source->counters().nodes, 0);
}

TEST_F(CachingTokenSourceTest, MemoryIsBounded) {
  ToyWorker worker;
  const auto source = MakeSource(worker, {.max_bytes = 40'000, .min_part_bytes = 128});
  Random random(5);
  for (int conversation = 0; conversation < 10; ++conversation) {
    std::string text;
    for (int turn = 0; turn < 10; ++turn) {
      text += SomeText(random, 10);
      ASSERT_EQ(Of(*source, "/v1/completions", CompletionBody(text)), worker.Tokens(text));
      EXPECT_LE(source->counters().bytes, 40'000);
    }
  }
  EXPECT_GT(source->counters().evicted, 0);
  EXPECT_EQ(source->counters().mismatched, 0);
}

TEST_F(CachingTokenSourceTest, ManyThreads) {
  ToyWorker worker;
  const auto source =
      MakeSource(worker, {.max_bytes = 200'000, .checks = 2, .check_every = 3, .min_part_bytes = 128});
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Random random(static_cast<std::uint64_t>(t % 2));  // two and two say the same
      std::string text;
      json body = {{"model", "m"}, {"messages", json::array()}};
      for (int turn = 0; turn < 20; ++turn) {
        text += SomeText(random, 8);
        wrong += Of(*source, "/v1/completions", CompletionBody(text)) != worker.Tokens(text);
        if (turn > 0) body["messages"].push_back({{"role", "assistant"}, {"content", SomeText(random, 2)}});
        body["messages"].push_back({{"role", "user"}, {"content", SomeText(random, 2)}});
        wrong += Of(*source, "/v1/chat/completions", body.dump()) != worker.ChatTokens(body.dump());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(source->counters().mismatched, 0);
  EXPECT_GT(source->counters().extended, 0);
}

TEST_F(CachingTokenSourceTest, EndsWithPromptsUnderWay) {
  ToyWorker worker({.hang = true});
  auto source = MakeSource(worker);
  Random random(2);
  std::vector<std::future<TokenResult>> results;
  std::vector<std::unique_ptr<ToyRequest>> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(
        std::make_unique<ToyRequest>("/v1/completions", CompletionBody(SomeText(random, 100))));
    auto promise = std::make_shared<std::promise<TokenResult>>();
    results.push_back(promise->get_future());
    source->Tokenize(requests.back()->query(),
                     [promise](TokenResult result) { promise->set_value(std::move(result)); });
  }
  source.reset();
  for (auto& result : results) EXPECT_EQ(result.get().status().code(), absl::StatusCode::kCancelled);
}

TEST(TextCutsTest, GrowingTextKeepsItsCuts) {
  Random random(1);
  std::string text;
  TextCuts before;
  for (int i = 0; i < 200; ++i) {
    text += SomeText(random, 3);
    const TextCuts now = CutText({1, 2}, text);
    ASSERT_GE(now.offsets.size(), before.offsets.size());
    EXPECT_TRUE(std::equal(before.offsets.begin(), before.offsets.end(), now.offsets.begin()));
    EXPECT_TRUE(std::equal(before.keys.begin(), before.keys.end(), now.keys.begin()));
    EXPECT_FALSE(now.whole == before.whole);
    before = now;
  }
  EXPECT_GT(before.offsets.size(), 20);
  for (const std::size_t max_parts : {1, 2, 6}) {
    const std::vector<std::size_t> chosen = ChooseCuts(before, before.offsets[3], 500, max_parts);
    EXPECT_EQ(chosen.size(), max_parts - 1);
    std::size_t last = before.offsets[3];
    for (const std::size_t cut : chosen) {
      EXPECT_GE(before.offsets[cut], last + 500);
      last = before.offsets[cut];
    }
  }
}

TEST(TokenTreeTest, ParentsOutliveChildren) {
  TokenTree tree(4000);
  const absl::Time now = absl::Now();
  TokenTree::Node node;
  TokenKey key = tree.root();
  std::vector<TokenKey> keys;
  for (TokenId i = 0; i < 200; ++i) {
    key = ChainKey(key, "x");
    keys.push_back(key);
    node = tree.Insert(key, node, {i}, now);
    std::vector<TokenId> tokens;
    AppendTokens(node.get(), tokens);
    ASSERT_EQ(tokens.size(), i + 1);
    for (TokenId t = 0; t <= i; ++t) ASSERT_EQ(tokens[t], t);
    ASSERT_LE(tree.stats().bytes, 4000);
  }
  // What is left of the chain is its beginning or its latest copy, never a node whose prefix is gone.
  for (const TokenKey& k : keys) {
    const TokenTree::Node found = tree.Find(k, absl::InfinitePast());
    if (found != nullptr && found->parent != nullptr) {
      EXPECT_NE(tree.Find(found->parent->key, absl::InfinitePast()), nullptr);
    }
  }
}

}  // namespace
}  // namespace llmd::host
