// The client of bench_gateway against a server with known answers.
#include "bench/gateway/ext_proc_load.h"

#include <unistd.h>

#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "bench/bench_util.h"
#include "bench/gateway/ext_proc_requests.h"
#include "bench/gateway/null_ext_proc_server.h"
#include "bench/gateway/server_process.h"
#include "envoy/service/ext_proc/v3/external_processor.pb.h"

namespace llmd::bench {
namespace {

using envoy::service::ext_proc::v3::ProcessingRequest;
using std::chrono::seconds;
using testing::HasSubstr;

struct Read {
  ProcessingRequest headers;
  std::string body;
  std::string Header(const std::string& name) const {
    for (const auto& header : headers.request_headers().headers().headers()) {
      if (header.key() == name) return header.raw_value();
    }
    return "";
  }
};

// What a server would read, with the framing checked.
Read ReadBack(RequestSet& requests) {
  WireRequest request;
  requests.Next(request);
  Read read;
  for (std::size_t i = 0; i < request.messages.size(); ++i) {
    ProcessingRequest message;
    grpc::ProtoBufferReader reader(&request.messages[i]);
    EXPECT_TRUE(message.ParseFromZeroCopyStream(&reader));
    EXPECT_EQ(message.has_protocol_config(), i == 0);
    if (i == 0) {
      read.headers = message;
      continue;
    }
    EXPECT_LE(message.request_body().body().size(), kPieceBytes);
    EXPECT_EQ(message.request_body().end_of_stream(), i + 1 == request.messages.size());
    read.body += message.request_body().body();
  }
  EXPECT_EQ(read.body.size(), request.body_bytes);
  EXPECT_EQ(read.Header("content-length"), std::to_string(request.body_bytes));
  return read;
}

TEST(Requests, DistinctTextSharesNoPrefixAndHasItsSize) {
  RequestSet requests(PromptKind::kDistinct, 20'000, 1);
  std::set<std::string> beginnings, ids;
  for (int i = 0; i < 50; ++i) {
    const Read read = ReadBack(requests);
    const std::string text = nlohmann::json::parse(read.body)["messages"][0]["content"];
    // Escapes make it somewhat shorter than its bytes.
    EXPECT_GT(text.size(), 19'000u * kCharactersPerToken);
    EXPECT_LE(text.size(), 20'001u * kCharactersPerToken);
    beginnings.insert(text.substr(0, 16));
    ids.insert(read.Header("x-request-id"));
    EXPECT_EQ(read.Header("x-session-id"), "");
  }
  EXPECT_EQ(beginnings.size(), 50u);
  EXPECT_EQ(ids.size(), 50u);
}

TEST(Requests, IdsAreAsManyAsAskedFor) {
  RequestSet requests(PromptKind::kIds, 1'000, 1);
  const Read first = ReadBack(requests), second = ReadBack(requests);
  EXPECT_EQ(first.Header(":path"), "/v1/completions");
  const nlohmann::json a = nlohmann::json::parse(first.body)["prompt"];
  const nlohmann::json b = nlohmann::json::parse(second.body)["prompt"];
  EXPECT_EQ(a.size(), 1'000u);
  EXPECT_NE(a[0], b[0]);
}

TEST(Requests, SessionsGrowByTheirOwnTurns) {
  RequestSet requests(PromptKind::kSessions, 2'000, 1, 1);
  std::string session;
  nlohmann::json before;
  for (int turn = 0; turn < kSessionTurns; ++turn) {
    const Read read = ReadBack(requests);
    const nlohmann::json messages = nlohmann::json::parse(read.body)["messages"];
    ASSERT_EQ(messages.size(), 2u * turn + 1);
    EXPECT_EQ(messages.back()["role"], "user");
    if (turn > 0) {
      EXPECT_EQ(read.Header("x-session-id"), session);
      for (std::size_t i = 0; i < before.size(); ++i) EXPECT_EQ(messages[i], before[i]);
    }
    session = read.Header("x-session-id");
    before = messages;
  }
  EXPECT_NE(ReadBack(requests).Header("x-session-id"), session);
}

TEST(Requests, AreTheSameForASeed) {
  RequestSet a(PromptKind::kSessions, 500, 7), b(PromptKind::kSessions, 500, 7);
  for (int i = 0; i < 200; ++i) EXPECT_EQ(ReadBack(a).body, ReadBack(b).body);
}

class Load : public testing::Test {
 protected:
  void Serve(const NullExtProcServer::Options& options) {
    server_ = NullExtProcServer::Start(options);
    ASSERT_NE(server_, nullptr);
    load_ =
        std::make_unique<ExtProcLoad>(LoadOptions{.target = "127.0.0.1:" + std::to_string(server_->port())});
    ASSERT_TRUE(load_->Connect(seconds(10)));
  }
  std::unique_ptr<NullExtProcServer> server_;
  std::unique_ptr<ExtProcLoad> load_;
};

TEST_F(Load, ClosedLoopCountsEveryRequest) {
  Serve({.destination = "10.1.2.3:8000"});
  RequestSet requests(PromptKind::kDistinct, 50'000, 1);  // several pieces
  const LoadResult result = load_->RunClosed(requests, 4, seconds(30), 40);
  EXPECT_TRUE(result.ok()) << result.first_error;
  EXPECT_EQ(result.decided, 40u);
  EXPECT_EQ(result.added_us.size(), 40u);
  EXPECT_EQ(result.destination, "10.1.2.3:8000");
}

TEST_F(Load, OpenLoopStartsWhatIsDue) {
  Serve({});
  RequestSet requests(PromptKind::kIds, 100, 1);
  const LoadResult result = load_->RunOpen(requests, 400, std::chrono::milliseconds(500));
  EXPECT_TRUE(result.ok()) << result.first_error;
  EXPECT_GT(result.decided, 120u);  // 200 on average
  EXPECT_LT(result.decided, 280u);
  EXPECT_EQ(result.late_us.size(), result.decided);
}

TEST_F(Load, HeldStreamsStayUntilReleased) {
  Serve({});
  RequestSet requests(PromptKind::kDistinct, 100, 1);
  const LoadResult held = load_->Hold(requests, 100);
  EXPECT_TRUE(held.ok()) << held.first_error;
  EXPECT_EQ(held.decided, 100u);
  // Others go on beside them.
  EXPECT_EQ(load_->RunClosed(requests, 2, seconds(30), 10).decided, 10u);
  const LoadResult released = load_->Release(requests);
  EXPECT_TRUE(released.ok()) << released.first_error;
  EXPECT_EQ(released.decided, 100u);
}

TEST_F(Load, ARefusalIsNoDecision) {
  Serve({.refuse_with = 503});
  RequestSet requests(PromptKind::kDistinct, 100, 1);
  const LoadResult result = load_->RunClosed(requests, 2, seconds(30), 10);
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(result.refused, 10u);
  EXPECT_EQ(result.decided, 0u);
  EXPECT_THAT(result.first_error, HasSubstr("503"));
}

TEST_F(Load, AServerThatGoesAwayIsAFailure) {
  Serve({});
  RequestSet requests(PromptKind::kDistinct, 100, 1);
  ASSERT_TRUE(load_->Hold(requests, 5).ok());
  server_.reset();
  const LoadResult result = load_->Release(requests);
  EXPECT_EQ(result.failed, 5u);
  EXPECT_FALSE(result.first_error.empty());
}

TEST(Process, ReadsPortsFromTheReadyLine) {
  const std::string line = "ready ext_proc=9002 health=9003 metrics=9090 status=0 proxy=x";
  EXPECT_EQ(ReadyPort(line, "ext_proc"), 9002);
  EXPECT_EQ(ReadyPort(line, "status"), 0);
  EXPECT_EQ(ReadyPort(line, "proc"), std::nullopt);
  EXPECT_EQ(ReadyPort(line, "proxy"), std::nullopt);
  EXPECT_EQ(ReadyPort("ready ext_proc=70000", "ext_proc"), std::nullopt);
}

TEST(Process, StartsWatchesAndEndsAChild) {
  std::string error;
  auto child = ServerProcess::Start({"/bin/sh", "-c", "echo noise; echo ready ext_proc=1; exec sleep 100"},
                                    std::chrono::seconds(20), error);
  ASSERT_NE(child, nullptr) << error;
  const pid_t pid = child->pid();
  EXPECT_EQ(child->ready_line(), "ready ext_proc=1");
  EXPECT_TRUE(CpuSeconds(pid).has_value());
  EXPECT_GT(ResidentBytes(pid).value_or(0), 0);
  child.reset();
  EXPECT_FALSE(CpuSeconds(pid).has_value());
}

TEST(Process, SaysWhyThereIsNoServer) {
  std::string error;
  EXPECT_EQ(ServerProcess::Start({"/nonexistent/server"}, std::chrono::seconds(20), error), nullptr);
  EXPECT_THAT(error, HasSubstr("ended before it was ready"));
  EXPECT_EQ(ServerProcess::Start({"/bin/sleep", "100"}, std::chrono::milliseconds(50), error), nullptr);
  EXPECT_THAT(error, HasSubstr("within 50 ms"));
}

TEST(Process, OwnTimeGrows) {
  const double before = CpuSeconds(::getpid()).value_or(-1);
  ASSERT_GE(before, 0);
  double now = before;
  for (std::uint64_t spin = 0; now == before && spin < 10'000'000'000; ++spin) {
    if (spin % 1'000'000 == 0) now = *CpuSeconds(::getpid());
    KeepAlive(spin);
  }
  EXPECT_GT(now, before);
}

}  // namespace
}  // namespace llmd::bench
