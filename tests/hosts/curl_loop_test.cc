#include "examples/gateway_scheduler/curl_loop.h"

#include <atomic>
#include <chrono>
#include <future>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/hosts/tiny_server.h"

namespace llmd::host {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::IsEmpty;

// Waits for the request's end; a second answer breaks the promise and so the test.
class Answer {
 public:
  CurlLoop::Done Done() {
    return [promise = promise_](FetchResult& result) { promise->set_value(std::move(result)); };
  }
  FetchResult Get() { return promise_->get_future().get(); }

 private:
  std::shared_ptr<std::promise<FetchResult>> promise_ = std::make_shared<std::promise<FetchResult>>();
};

FetchResult Fetch(CurlLoop& loop, FetchRequest request) {
  Answer answer;
  loop.Fetch(std::move(request), answer.Done());
  return answer.Get();
}

TEST(CurlLoopTest, GetsAndPosts) {
  TinyServer server([](const http::Request& request, TinyServer::Reply& reply) {
    const std::string* header = http::FindHeader(request.headers, "x-test");
    reply.Send(request.method == "POST" ? 201 : 200,
               absl::StrCat(request.method, " ", request.target, " ", header == nullptr ? "-" : *header, " ",
                            request.body));
  });
  CurlLoop loop;
  const FetchResult get = Fetch(loop, {.url = server.url("/metrics?a=b"), .headers = {{"X-Test", "yes"}}});
  EXPECT_TRUE(get.status.ok()) << get.status;
  EXPECT_EQ(get.code, 200);
  EXPECT_EQ(get.body, "GET /metrics?a=b yes ");
  const std::string long_body(3 << 20, 'x');
  const FetchResult post =
      Fetch(loop, {.url = server.url(), .body = std::make_shared<const std::string>(long_body)});
  EXPECT_EQ(post.code, 201);
  EXPECT_EQ(post.body, absl::StrCat("POST / - ", long_body));
  // What one request set is gone for the next.
  EXPECT_EQ(Fetch(loop, {.url = server.url()}).body, "GET / - ");
  EXPECT_EQ(server.connections(), 1);
  EXPECT_EQ(loop.connections(), 1);
}

TEST(CurlLoopTest, AnErrorOfTheServerIsAnAnswer) {
  TinyServer server([](const http::Request&, TinyServer::Reply& reply) { reply.Send(503, "busy"); });
  CurlLoop loop;
  const FetchResult result = Fetch(loop, {.url = server.url()});
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.code, 503);
  EXPECT_EQ(result.body, "busy");
}

TEST(CurlLoopTest, EndsWhenTheTimeIsUp) {
  TinyServer server([](const http::Request& request, TinyServer::Reply& reply) {
    // Half an answer is no answer.
    if (request.target == "/half") reply.Raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc");
    reply.Hang();
  });
  CurlLoop loop;
  for (const char* path : {"/", "/half"}) {
    const FetchResult result = Fetch(loop, {.url = server.url(path), .timeout = milliseconds(50)});
    EXPECT_EQ(result.status.code(), absl::StatusCode::kDeadlineExceeded) << result.status;
    EXPECT_THAT(std::string(result.status.message()), HasSubstr("50 ms"));
  }
}

TEST(CurlLoopTest, CutsOffWhatIsTooLong) {
  std::atomic<std::size_t> sent = 0;
  TinyServer server([&](const http::Request& request, TinyServer::Reply& reply) {
    const std::string piece(64 << 10, 'm');
    if (request.target == "/length") {
      reply.Raw("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    } else {
      reply.Raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    }
    for (int i = 0; i < 16384; ++i) {
      if (!reply.Raw(request.target == "/length" ? piece : absl::StrCat("10000\r\n", piece, "\r\n"))) break;
      sent += piece.size();
    }
    reply.Close();
  });
  CurlLoop loop;
  for (const char* path : {"/length", "/chunked"}) {
    sent = 0;
    const FetchResult result =
        Fetch(loop, {.url = server.url(path), .timeout = milliseconds(30'000), .max_body_bytes = 100'000});
    EXPECT_EQ(result.status.code(), absl::StatusCode::kResourceExhausted) << result.status;
    EXPECT_THAT(std::string(result.status.message()), HasSubstr("100000 bytes"));
    EXPECT_LE(result.body.size(), 100'000);
    EXPECT_LT(sent, 64 << 20);
  }
}

TEST(CurlLoopTest, ALimitIsReachedExactly) {
  TinyServer server([](const http::Request&, TinyServer::Reply& reply) { reply.Send(200, "12345"); });
  CurlLoop loop;
  EXPECT_EQ(Fetch(loop, {.url = server.url(), .max_body_bytes = 5}).body, "12345");
  EXPECT_FALSE(Fetch(loop, {.url = server.url(), .max_body_bytes = 4}).status.ok());
}

TEST(CurlLoopTest, Cancels) {
  TinyServer server([](const http::Request&, TinyServer::Reply& reply) { reply.Hang(); });
  CurlLoop loop;
  Answer answer;
  const CurlLoop::Id id = loop.Fetch({.url = server.url(), .timeout = milliseconds(60'000)}, answer.Done());
  loop.Cancel(id);
  loop.Cancel(id);
  EXPECT_EQ(answer.Get().status.code(), absl::StatusCode::kCancelled);
  loop.Cancel(12345);
}

TEST(CurlLoopTest, EndsWithRequestsUnderWay) {
  TinyServer server([](const http::Request&, TinyServer::Reply& reply) { reply.Hang(); });
  std::vector<Answer> answers(20);
  std::optional<absl::Status> late;
  {
    CurlLoop loop;
    for (Answer& answer : answers) {
      loop.Fetch({.url = server.url(), .timeout = milliseconds(60'000)}, answer.Done());
    }
    // A callback that wants more while the loop ends.
    loop.Fetch({.url = server.url(), .timeout = milliseconds(60'000)}, [&](FetchResult&) {
      loop.Fetch({.url = server.url()}, [&](FetchResult& result) { late = result.status; });
    });
  }
  for (Answer& answer : answers) EXPECT_EQ(answer.Get().status.code(), absl::StatusCode::kCancelled);
  ASSERT_TRUE(late.has_value());
  EXPECT_EQ(late->code(), absl::StatusCode::kCancelled);
}

TEST(CurlLoopTest, RefusesWhatCannotBeAsked) {
  CurlLoop loop;
  EXPECT_EQ(Fetch(loop, {.url = "file:///etc/passwd"}).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Fetch(loop, {.url = "http://"}).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Fetch(loop, {.url = "http://127.0.0.1:1/", .headers = {{"a", "b\r\nc: d"}}}).status.code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Fetch(loop, {.url = "http://127.0.0.1:1/"}).status.code(), absl::StatusCode::kUnavailable);
}

TEST(CurlLoopTest, AConnectionThatTheServerClosedIsReplaced) {
  std::atomic<int> pause = 0;
  TinyServer server([&](const http::Request&, TinyServer::Reply& reply) {
    reply.Send(200, "once");
    // The next request may be on its way when the connection ends.
    std::this_thread::sleep_for(std::chrono::microseconds(50 * pause++));
    reply.Close();
  });
  CurlLoop loop;
  for (int i = 0; i < 20; ++i) {
    const FetchResult result = Fetch(loop, {.url = server.url()});
    EXPECT_EQ(result.body, "once") << result.status;
  }
  EXPECT_EQ(server.requests(), 20);
}

TEST(CurlLoopTest, ManyAtOnceFromManyThreads) {
  TinyServer server(
      [](const http::Request& request, TinyServer::Reply& reply) { reply.Send(200, request.target); });
  CurlLoop loop;
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<Answer> answers(50);
      for (int i = 0; i < 50; ++i) {
        const CurlLoop::Id id =
            loop.Fetch({.url = server.url(absl::StrCat("/", t, "/", i)), .timeout = milliseconds(30'000)},
                       answers[i].Done());
        if (i % 10 == 9) loop.Cancel(id);
      }
      for (int i = 0; i < 50; ++i) {
        const FetchResult result = answers[i].Get();
        const bool may_be_cancelled = i % 10 == 9 && absl::IsCancelled(result.status);
        wrong += result.body != absl::StrCat("/", t, "/", i) && !may_be_cancelled;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(CurlLoopTest, TimersRunInOrder) {
  CurlLoop loop;
  std::promise<void> done;
  std::vector<int> order;
  const CurlLoop::Clock::time_point now = CurlLoop::Clock::now();
  loop.At(now + milliseconds(20), [&] {
    order.push_back(2);
    done.set_value();
  });
  loop.At(now + milliseconds(10), [&] { order.push_back(1); });
  loop.Post([&] { order.push_back(0); });
  done.get_future().wait();
  EXPECT_THAT(order, testing::ElementsAre(0, 1, 2));
}

}  // namespace
}  // namespace llmd::host
