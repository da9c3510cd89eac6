// Server and client of the hosts against each other.
#include <gtest/gtest.h>

#include <atomic>

#include "tests/hosts/http_bed.h"

namespace llmd::http {
namespace {

asio::awaitable<void> Sleep(std::chrono::milliseconds time) {
  asio::steady_timer timer(co_await asio::this_coro::executor, time);
  co_await timer.async_wait(asio::use_awaitable);
}

// Answers with what it was asked.
asio::awaitable<void> Echo(Request request, Response& response) {
  std::string body = request.method + " " + request.target + " " + request.body;
  co_await response.Send(200, ContentType("text/plain"), std::move(body));
}

struct Answer {
  int status = 0;
  Headers headers = {};
  std::string body = {};
};

asio::awaitable<Answer> Ask(Client& client, std::string host_port, Request request) {
  const auto response = co_await client.Send(std::move(host_port), std::move(request));
  Answer answer{response->status(), response->headers(), {}};
  answer.body = co_await response->ReadAll(std::size_t{64} << 20);
  co_return answer;
}

TEST(HttpTest, AnswersAndKeepsTheConnection) {
  ServerBed bed(Echo);
  Loop loop;
  Client client(loop.io().get_executor(), {});
  for (int i = 0; i < 3; ++i) {
    const Answer answer = loop.Run(Ask(client, bed.host_port(), Request("POST", "/a?b", {}, "hello")));
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, "POST /a?b hello");
    EXPECT_EQ(*FindHeader(answer.headers, "content-length"), "15");
  }
  EXPECT_EQ(bed.server().connections(), 1);
}

TEST(HttpTest, StreamsInOrderAsItComes) {
  std::atomic<int> taken = 0;
  ServerBed bed([&](Request, Response& response) -> asio::awaitable<void> {
    co_await response.Start(200, ContentType("text/event-stream"));
    for (int i = 0; i < 20; ++i) {
      co_await response.Write("data: " + std::to_string(i) + "\n\n");
      while (taken < i) co_await Sleep(std::chrono::milliseconds(1));  // the next only when this one is read
    }
    co_await response.Finish();
  });
  Loop loop;
  Client client(loop.io().get_executor(), {});
  const std::string all = loop.Run(
      [](Client& client, std::string host_port, std::atomic<int>& taken) -> asio::awaitable<std::string> {
        const auto response = co_await client.Send(host_port, Request());
        EXPECT_EQ(response->status(), 200);
        std::string all;
        while (const auto piece = co_await response->Read()) {
          all += *piece;
          taken = static_cast<int>(std::count(all.begin(), all.end(), ':'));
        }
        co_return all;
      }(client, bed.host_port(), taken));
  std::string expected;
  for (int i = 0; i < 20; ++i) expected += "data: " + std::to_string(i) + "\n\n";
  EXPECT_EQ(all, expected);
}

// Notes when it is destroyed: what a handler holds.
struct Held {
  std::atomic<int>& released;
  ~Held() { ++released; }
};

TEST(HttpTest, TheHandlerIsCancelledWhenTheClientLeaves) {
  std::atomic<int> begun = 0;
  std::atomic<int> released = 0;
  ServerBed bed([&](Request, Response& response) -> asio::awaitable<void> {
    const Held held{released};
    ++begun;
    co_await Sleep(std::chrono::hours(1));
    co_await response.Send(200, Headers(), "late");
  });
  RawClient client(bed.server().port());
  client.Send("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
  ASSERT_TRUE(Eventually([&] { return begun == 1; }));
  EXPECT_EQ(released, 0);
  client.Close();
  EXPECT_TRUE(Eventually([&] { return released == 1; }));
  EXPECT_TRUE(Eventually([&] { return bed.server().connections() == 0; }));
}

}  // namespace
}  // namespace llmd::http
