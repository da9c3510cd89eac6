// What does not change a result of the cpu backend, bit for bit; and the reference within rounding.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "tests/attention/attention_problem.h"

namespace llmd::attention {
namespace {

const llmd_attention_backend& Cpu() { return *llmd_attention_cpu(); }

Case PrefillCase() {
  Case c;
  c.mode = LLMD_PREFILL;
  c.group = 3;
  c.kv_heads = 2;
  c.o_dtype = LLMD_F32;
  c.sinks = true;
  return c;
}

// Runs rows [first, first + rows) of a one-request prefill problem as a chunk of its own.
Result RunChunk(const Problem& whole, int32_t first, int32_t rows, llmd_attention_mode mode) {
  llmd_attention_args args = whole.args();
  const int64_t heads = whole.num_heads(), dim = whole.config().head_dim;
  const int32_t length = whole.config().requests[0].length - whole.num_tokens() + first + rows;
  const int32_t q_start[] = {0, rows};
  args.shape.mode = mode;
  args.shape.max_tokens = rows;
  args.num_tokens = rows;
  args.q_start = q_start;
  args.pages.seq_lens = &length;
  args.q = static_cast<const char*>(args.q) + first * args.q_strides.token * 2;
  Result result;
  result.o.resize(rows * heads * dim);
  result.lse.resize(rows * heads);
  args.o = result.o.data();
  args.o_strides = {heads * dim, dim};
  args.lse = result.lse.data();
  args.lse_strides = {heads, 1};
  std::vector<char> workspace = NewWorkspace(Cpu(), args.shape);
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();
  result.code = Cpu().attention(&args, nullptr);
  EXPECT_EQ(result.code, LLMD_OK) << Cpu().last_error();
  return result;
}

TEST(Invariance, ChunksOfAPrefillAreTheWhole) {
  std::mt19937 random(7);
  for (const int32_t window : {0, 37}) {
    Case c = PrefillCase();
    c.window = window;
    c.requests = {{1200, 1200}};
    const Problem problem(c, 5);
    const Result whole = problem.Run(Cpu());
    Result chunks;
    for (int32_t first = 0; first < 1200;) {
      const int32_t rows = std::min<int32_t>(1200 - first, 1 + random() % 300);
      const Result chunk = RunChunk(problem, first, rows, LLMD_PREFILL);
      chunks.o.insert(chunks.o.end(), chunk.o.begin(), chunk.o.end());
      chunks.lse.insert(chunks.lse.end(), chunk.lse.begin(), chunk.lse.end());
      first += rows;
    }
    EXPECT_TRUE(chunks.o == whole.o);
    EXPECT_TRUE(chunks.lse == whole.lse);
    // So is every token decoded after those before it.
    const int64_t row = problem.num_heads() * c.head_dim;
    for (const int32_t position : {0, 1, 31, 32, 511, 512, 513, 1199}) {
      const Result one = RunChunk(problem, position, 1, LLMD_DECODE);
      EXPECT_EQ(std::memcmp(one.o.data(), whole.o.data() + position * row, row * sizeof(float)), 0)
          << position;
    }
  }
}

TEST(Invariance, NeighboursDoNotMatter) {
  Case c;
  c.o_dtype = LLMD_F32;
  for (const int32_t split : {0, 64}) {
    c.fixed_split = split;
    c.requests = {{777}, {5}, {2000}, {0}, {64}};
    const Problem problem(c, 9);
    const Result among = problem.Run(Cpu());
    ASSERT_EQ(Compare(problem, among, problem.Run(*llmd_attention_reference())), "");
    // The same without those after the first.
    llmd_attention_args args = problem.args();
    const int64_t row = problem.num_heads() * c.head_dim;
    std::vector<float> o(row);
    std::vector<char> workspace = NewWorkspace(Cpu(), args.shape);
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    args.o = o.data();
    args.o_strides = {row, c.head_dim};
    args.batch = args.num_tokens = 1;
    ASSERT_EQ(Cpu().attention(&args, nullptr), LLMD_OK);
    EXPECT_EQ(std::memcmp(o.data(), among.o.data(), row * sizeof(float)), 0);
  }
}

// More parts than a workspace has room for at a time: requests are cut between waves.
TEST(Invariance, ManyPartsGoInWaves) {
  Case c;
  c.group = 2;
  c.kv_heads = 1;
  c.head_dim = 8;
  c.fixed_split = 64;
  c.o_dtype = LLMD_F32;
  c.requests = {{300'000}, {100}, {600'000}, {70'000}};
  const Problem problem(c, 1);
  const Result got = problem.Run(Cpu());
  const Result want = problem.Run(*llmd_attention_reference());
  EXPECT_EQ(Compare(problem, got, want), "");
}

TEST(Invariance, RepeatsAreEqual) {
  Case c = PrefillCase();
  c.mode = LLMD_MIXED;
  c.requests = {{100, 60}, {900, 1}, {700, 9}};
  const Problem problem(c, 3);
  const Result first = problem.Run(Cpu());
  for (int i = 0; i < 20; ++i) {
    const Result again = problem.Run(Cpu());
    ASSERT_TRUE(again.o == first.o && again.lse == first.lse);
  }
}

// A workspace made for the largest batch serves every smaller one, as with a captured graph.
TEST(Invariance, AWorkspaceIsReused) {
  Case c;
  c.page_size = 16;
  c.flags = LLMD_VALIDATE;
  c.requests = {{300}, {20}, {40}, {70}};
  const Problem largest(c, 1);
  std::vector<char> workspace = NewWorkspace(Cpu(), largest.shape());
  std::mt19937 random(11);
  for (int step = 0; step < 50; ++step) {
    c.requests.assign(4, {0});
    for (Request32& r : c.requests) r.length = random() % 4 == 0 ? 0 : random() % 300;
    const Problem problem(c, step);
    const Result got = problem.Run(Cpu(), workspace);
    ASSERT_EQ(Compare(problem, got, problem.Run(*llmd_attention_reference())), "") << step;
  }
  llmd_data_error error;
  EXPECT_EQ(Cpu().check_workspace(workspace.data(), &error, nullptr), LLMD_OK);
}

// Threads call at the same time, each with a workspace of its own.
TEST(Invariance, CallersTakeTurns) {
  Case c = PrefillCase();
  c.requests = {{200, 30}, {70, 1}};
  const Problem problem(c, 2);
  const Result want = problem.Run(Cpu());
  std::vector<std::thread> threads;
  std::atomic<int> equal{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int run = 0; run < 10; ++run) equal += problem.Run(Cpu()).o == want.o ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal, 40);
}

#ifndef __SANITIZE_THREAD__  // it has no fork with threads
TEST(Invariance, AForkedChildHasThreadsOfItsOwn) {
  Case c = PrefillCase();
  c.requests = {{200, 30}};
  const Problem problem(c, 2);
  const Result want = problem.Run(Cpu());  // the pool runs
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);
    _exit(problem.Run(Cpu()).o == want.o ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}
#endif

}  // namespace
}  // namespace llmd::attention
