// Workloads, generators, prompts and the infinite-cache bound.
#include "examples/trace_replay/workload.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "examples/trace_replay/bound.h"
#include "llmd/hash/approx_prefix.h"
#include "tests/replay/replay_test_util.h"

namespace llmd::replay {
namespace {

Workload AtSeconds(const std::vector<int>& arrivals) {
  Workload workload;
  for (const int at : arrivals) {
    WorkloadRequest request;
    request.arrival = at * kSecond;
    request.prompt = {{1, 10}};
    request.output = {2, 1};
    workload.push_back(request);
  }
  return workload;
}

std::vector<double> Arrivals(const Workload& workload) {
  std::vector<double> out;
  for (const WorkloadRequest& request : workload) out.push_back(Seconds(request.arrival));
  return out;
}

TEST(WorkloadTest, StreamsAreDeterministicPrefixClosedAndDistinct) {
  std::vector<TokenId> a(512), b(512), shorter(33);
  FillTokens(7, a);
  FillTokens(8, b);
  FillTokens(7, shorter);
  EXPECT_NE(a, b);
  EXPECT_TRUE(std::equal(shorter.begin(), shorter.end(), a.begin()));
  EXPECT_LT(*std::max_element(a.begin(), a.end()), 128256u);
}

TEST(WorkloadTest, EqualArrivalsAreSpreadToTheNext) {
  Workload workload = AtSeconds({0, 0, 0, 3, 4, 4});
  SpreadEqualArrivals(workload);
  EXPECT_EQ(Arrivals(workload), (std::vector<double>{0, 1, 2, 3, 4, 4.5}));
  Workload same = AtSeconds({2, 2});
  SpreadEqualArrivals(same);
  EXPECT_EQ(Arrivals(same), (std::vector<double>{2, 2}));
}

TEST(WorkloadTest, MergesCompressesAndCuts) {
  Workload merged = Merge(AtSeconds({0, 4, 8}), AtSeconds({2, 4, 10}));
  EXPECT_EQ(Arrivals(merged), (std::vector<double>{0, 2, 4, 4, 8, 10}));
  CompressAndCut(2, 4, merged);
  EXPECT_EQ(Arrivals(merged), (std::vector<double>{0, 1, 2, 2}));
}

TEST(GeneratorTest, SameSeedSameRequests) {
  for (const WorkloadKind kind : {WorkloadKind::kChat, WorkloadKind::kAgent, WorkloadKind::kRetrieval}) {
    const Workload a = Generate({.kind = kind, .requests = 300, .seed = 5});
    const Workload b = Generate({.kind = kind, .requests = 300, .seed = 5});
    const Workload c = Generate({.kind = kind, .requests = 300, .seed = 6});
    ASSERT_EQ(a.size(), 300u);
    EXPECT_EQ(Arrivals(a), Arrivals(b));
    EXPECT_NE(Arrivals(a), Arrivals(c));
    EXPECT_TRUE(std::is_sorted(a.begin(), a.end(),
                               [](const auto& x, const auto& y) { return x.arrival < y.arrival; }));
    for (std::size_t i = 0; i < a.size(); ++i) {
      ASSERT_EQ(a[i].prompt_tokens(), b[i].prompt_tokens());
      ASSERT_EQ(a[i].prompt.back().stream, b[i].prompt.back().stream);
      ASSERT_GE(a[i].output.tokens, 1u);
      ASSERT_LE(a[i].prompt_tokens(), 120'000u);
    }
  }
}

TEST(GeneratorTest, ConversationsGrowAndRepeatTheirAnswers) {
  const Workload workload = Generate({.kind = WorkloadKind::kChat, .requests = 500, .seed = 1});
  std::set<StreamId> answers, shared;
  std::size_t repeats = 0;
  for (const WorkloadRequest& request : workload) {
    shared.insert(request.prompt[0].stream);
    for (const Segment& segment : request.prompt) repeats += answers.contains(segment.stream);
    answers.insert(request.output.stream);
  }
  EXPECT_EQ(shared.size(), 4u);
  EXPECT_GT(repeats, 500u);
}

TEST(PromptTest, TokensHashesAndKeysBelongTogether) {
  WorkloadRequest request;
  request.prompt = {{1, 100}, {2, 77}};
  request.output = {3, 40};
  const auto made = MakePromptMaker().Make(4, request);
  EXPECT_EQ(made->index, 4u);
  ASSERT_EQ(made->tokens.size(), 217u);
  std::vector<TokenId> expected(217);
  FillTokens(1, std::span(expected).first(100));
  FillTokens(2, std::span(expected).subspan(100, 77));
  FillTokens(3, std::span(expected).subspan(177));
  EXPECT_EQ(made->tokens, expected);

  hash::VllmChain chain(*hash::VllmHasher::Create({}));
  for (const TokenId token : expected) chain.Extend({&token, 1});
  ASSERT_EQ(made->digests.size(), 13u);
  EXPECT_TRUE(std::equal(made->digests.begin(), made->digests.end(), chain.digests().begin()));
  EXPECT_EQ(made->exact_keys.size(), 11u);  // full blocks of 16 in 177 tokens
  EXPECT_EQ(made->approx_keys.size(), 3u);  // blocks of 64, the partial one too
}

// The literal definition: the longest common beginning with any earlier request.
TEST(BoundTest, EqualsBruteForceOnTheSample) {
  const Workload workload = SampleTrace();
  const PromptMaker maker = MakePromptMaker();
  InfiniteCache bound;
  std::vector<std::shared_ptr<const PreparedRequest>> earlier;
  std::uint64_t hit_blocks = 0, hit_tokens = 0, trace_hits = 0, trace_tokens = 0, trace_blocks = 0;
  for (std::size_t i = 0; i < workload.size(); ++i) {
    const auto prepared = maker.Make(i, workload[i]);
    bound.Add(workload[i], *prepared);
    std::size_t best = 0, best_ids = 0;
    for (std::size_t j = 0; j < i; ++j) {
      const auto& other = *earlier[j];
      const std::size_t computed = other.tokens.size() - 1;  // the last token is never fed back
      std::size_t common = 0;
      while (common < prepared->prompt_tokens && common < computed &&
             prepared->tokens[common] == other.tokens[common]) {
        ++common;
      }
      best = std::max(best, common / 16);
      const auto& ids = workload[j].prompt;
      std::size_t known = 0;
      while (known < ids.size() && known < workload[i].prompt.size() &&
             ids[known].stream == workload[i].prompt[known].stream) {
        ++known;
      }
      best_ids = std::max(best_ids, known);
    }
    best = std::min<std::size_t>(best, (prepared->prompt_tokens - 1) / 16);
    EXPECT_EQ(bound.hit_tokens()[i], best * 16) << i;
    hit_blocks += best;
    hit_tokens += best * 16;
    trace_hits += best_ids;
    trace_blocks += workload[i].prompt.size();
    trace_tokens += std::min<std::uint64_t>(best_ids * 512, prepared->prompt_tokens);
    earlier.push_back(prepared);
  }
  EXPECT_GT(hit_blocks, 0u);
  EXPECT_EQ(bound.engine_blocks().hit_blocks, hit_blocks);
  EXPECT_EQ(bound.engine_blocks().hit_tokens, hit_tokens);
  EXPECT_EQ(bound.trace_blocks().hit_blocks, trace_hits);
  EXPECT_EQ(bound.trace_blocks().blocks, trace_blocks);
  EXPECT_EQ(bound.trace_blocks().hit_tokens, trace_tokens);
}

}  // namespace
}  // namespace llmd::replay
