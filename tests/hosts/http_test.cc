// Server and client of the hosts against each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/system/system_error.hpp>
#include <nlohmann/json.hpp>

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

TEST(HttpTest, WriteWaitsForAClientThatDoesNotRead) {
  std::atomic<std::size_t> written = 0;
  const std::string piece(64 << 10, 'x');
  constexpr std::size_t kPieces = 2048;  // 128 MiB: more than any socket buffer
  ServerBed bed([&](Request, Response& response) -> asio::awaitable<void> {
    co_await response.Start(200, ContentType("text/plain"));
    for (std::size_t i = 0; i < kPieces; ++i) {
      co_await response.Write(piece);
      ++written;
    }
    co_await response.Finish();
  });
  Loop loop;
  Client client(loop.io().get_executor(), {});
  auto response = loop.Run(client.Send(bed.host_port(), Request()));
  std::size_t before = 0;
  ASSERT_TRUE(Eventually([&] {  // comes to a stand
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const std::size_t now = written;
    return now > 0 && std::exchange(before, now) == now;
  }));
  EXPECT_LT(written, kPieces);
  const std::string all = loop.Run(response->ReadAll(kPieces * piece.size()));
  EXPECT_EQ(all.size(), kPieces * piece.size());
  EXPECT_EQ(all.find_first_not_of('x'), all.npos);
}

TEST(HttpTest, DroppingAnAnswerIsAnAbortForTheServer) {
  std::atomic<int> released = 0;
  ServerBed bed([&](Request, Response& response) -> asio::awaitable<void> {
    const Held held{released};
    co_await response.Start(200, ContentType("text/plain"));
    co_await response.Write("first");
    co_await Sleep(std::chrono::hours(1));
  });
  Loop loop;
  Client client(loop.io().get_executor(), {});
  auto response = loop.Run(client.Send(bed.host_port(), Request()));
  EXPECT_EQ(*loop.Run(response->Read()), "first");
  EXPECT_EQ(released, 0);
  response.reset();
  EXPECT_TRUE(Eventually([&] { return released == 1; }));
}

TEST(HttpTest, CancellingTheCallerClosesTheConnection) {
  std::atomic<int> begun = 0;
  std::atomic<int> released = 0;
  ServerBed bed([&](Request, Response&) -> asio::awaitable<void> {
    const Held held{released};
    ++begun;
    co_await Sleep(std::chrono::hours(1));
  });
  Loop loop;
  Client client(loop.io().get_executor(), {});
  asio::cancellation_signal cancel;
  std::promise<std::exception_ptr> ended;
  asio::co_spawn(loop.io(), client.Send(bed.host_port(), Request()),
                 asio::bind_cancellation_slot(cancel.slot(),
                                              [&](std::exception_ptr error, std::unique_ptr<ClientResponse>) {
                                                ended.set_value(error);
                                              }));
  ASSERT_TRUE(Eventually([&] { return begun == 1; }));
  asio::post(loop.io(), [&] { cancel.emit(asio::cancellation_type::terminal); });
  EXPECT_THROW(std::rethrow_exception(ended.get_future().get()), boost::system::system_error);
  EXPECT_TRUE(Eventually([&] { return released == 1; }));
}

TEST(HttpTest, AKeptConnectionThatWasClosedIsReplaced) {
  Loop loop;
  Client client(loop.io().get_executor(), {});
  std::uint16_t port = 0;
  {
    ServerBed first(Echo);
    port = first.server().port();
    EXPECT_EQ(loop.Run(Ask(client, first.host_port(), Request())).status, 200);
  }
  ServerBed second(Echo, {.port = port});
  EXPECT_EQ(loop.Run(Ask(client, second.host_port(), Request())).status, 200);
}

// A server by hand: it answers the first request of each connection and closes at the next one.
TEST(HttpTest, AKeptConnectionThatClosesUnderTheRequestIsReplacedOnce) {
  asio::io_context io;
  asio::ip::tcp::acceptor acceptor(io, {asio::ip::make_address("127.0.0.1"), 0});
  std::atomic<int> connections = 0;
  std::thread server([&] {
    for (int i = 0; i < 2; ++i) {
      asio::ip::tcp::socket socket = acceptor.accept();
      ++connections;
      std::string request;
      asio::read_until(socket, asio::dynamic_buffer(request), "\r\n\r\n");
      asio::write(socket, asio::buffer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 40));
      request.clear();
      boost::system::error_code ignored;
      asio::read_until(socket, asio::dynamic_buffer(request), "\r\n\r\n", ignored);
    }
  });
  const std::string host_port = "127.0.0.1:" + std::to_string(acceptor.local_endpoint().port());
  Loop loop;
  {
    Client client(loop.io().get_executor(), {});
    EXPECT_EQ(loop.Run(Ask(client, host_port, Request())).body, "ok");
    EXPECT_EQ(loop.Run(Ask(client, host_port, Request("POST", "/", {}, "once"))).body, "ok");
  }
  EXPECT_EQ(connections, 2);
  loop.Join();  // closes the client's end
  server.join();
}

TEST(HttpTest, AFreshConnectionThatIsClosedIsAnError) {
  asio::io_context io;
  asio::ip::tcp::acceptor acceptor(io, {asio::ip::make_address("127.0.0.1"), 0});
  std::thread server([&] { acceptor.accept(); });
  const std::string host_port = "127.0.0.1:" + std::to_string(acceptor.local_endpoint().port());
  Loop loop;
  Client client(loop.io().get_executor(), {});
  EXPECT_THROW(loop.Run(Ask(client, host_port, Request())), boost::system::system_error);
  server.join();
  acceptor.close();
  EXPECT_THROW(loop.Run(Ask(client, host_port, Request())), boost::system::system_error);  // refused
}

TEST(HttpTest, ABrokenOffAnswerIsAnErrorForTheClient) {
  ServerBed bed([](Request request, Response& response) -> asio::awaitable<void> {
    co_await response.Start(200, Headers());
    co_await response.Write("half");
    if (request.path() == "/throw") throw std::runtime_error("too late for a 500");
    if (request.path() == "/abort") response.Abort();
  });
  Loop loop;
  Client client(loop.io().get_executor(), {});
  for (const char* path : {"/throw", "/abort", "/return"}) {
    EXPECT_THROW(loop.Run(Ask(client, bed.host_port(), Request("GET", path))), boost::system::system_error)
        << path;
  }
}

TEST(HttpTest, AHandlerThatFailsIsA500) {
  ServerBed bed([](Request request, Response&) -> asio::awaitable<void> {
    if (request.path() == "/throw") throw std::runtime_error("no \"luck\"");
    co_return;
  });
  Loop loop;
  Client client(loop.io().get_executor(), {});
  const Answer thrown = loop.Run(Ask(client, bed.host_port(), Request("GET", "/throw")));
  EXPECT_EQ(thrown.status, 500);
  EXPECT_EQ(nlohmann::json::parse(thrown.body),
            nlohmann::json::parse(R"({"object":"error","message":"no \"luck\"","type":"InternalServerError",
                                      "param":"","code":500})"));
  EXPECT_EQ(loop.Run(Ask(client, bed.host_port(), Request("GET", "/silent"))).status, 500);
  EXPECT_EQ(bed.server().connections(), 1) << "a failed handler costs no connection";
}

TEST(HttpTest, HeadHasTheHeadersAndNoBody) {
  ServerBed bed(Echo);
  Loop loop;
  Client client(loop.io().get_executor(), {});
  for (int i = 0; i < 2; ++i) {
    const Answer answer = loop.Run(Ask(client, bed.host_port(), Request("HEAD", "/x")));
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(*FindHeader(answer.headers, "content-length"), "8");
    EXPECT_EQ(answer.body, "");
  }
  EXPECT_EQ(bed.server().connections(), 1);
}

TEST(HttpTest, AnAnswerOfAnnouncedLengthIsSentByLength) {
  ServerBed bed([](Request request, Response& response) -> asio::awaitable<void> {
    Headers headers;
    headers.emplace_back("content-length", "6");
    co_await response.Start(200, headers);
    co_await response.Write("abc");
    if (request.path() == "/whole") co_await response.Write("def");
    if (request.path() == "/long") co_await response.Write("defg");
    co_await response.Finish();
  });
  Loop loop;
  Client client(loop.io().get_executor(), {});
  const Answer answer = loop.Run(Ask(client, bed.host_port(), Request("GET", "/whole")));
  EXPECT_EQ(answer.body, "abcdef");
  EXPECT_EQ(FindHeader(answer.headers, "transfer-encoding"), nullptr);
  for (const char* path : {"/short", "/long"}) {
    EXPECT_THROW(loop.Run(Ask(client, bed.host_port(), Request("GET", path))), boost::system::system_error);
  }
}

TEST(HttpTest, ReadAllHasALimit) {
  ServerBed bed(Echo);
  Loop loop;
  Client client(loop.io().get_executor(), {});
  auto response = loop.Run(client.Send(bed.host_port(), Request("POST", "/", {}, std::string(1000, 'x'))));
  try {
    (void)loop.Run(response->ReadAll(999));
    FAIL() << "1000 bytes fit into 999";
  } catch (const boost::system::system_error& error) {
    EXPECT_EQ(error.code(), asio::error::message_size);
  }
}

TEST(HttpTest, TheAnswersHeadersHaveATime) {
  ServerBed bed([](Request, Response&) -> asio::awaitable<void> { co_await Sleep(std::chrono::hours(1)); });
  Loop loop;
  Client client(loop.io().get_executor(), {.header_timeout = std::chrono::milliseconds(20)});
  try {
    (void)loop.Run(Ask(client, bed.host_port(), Request()));
    FAIL() << "nobody answered";
  } catch (const boost::system::system_error& error) {
    EXPECT_EQ(error.code(), asio::error::timed_out);
  }
}

TEST(HttpTest, LargeBodiesArriveWhole) {
  ServerBed bed([](Request request, Response& response) -> asio::awaitable<void> {
    co_await response.Send(200, Headers(), std::move(request.body));
  });
  Loop loop;
  Client client(loop.io().get_executor(), {});
  std::string body(5 << 20, '\0');
  for (std::size_t i = 0; i < body.size(); ++i) body[i] = static_cast<char>(i * 7 + i / 1000);
  EXPECT_TRUE(loop.Run(Ask(client, bed.host_port(), Request("POST", "/", {}, body))).body == body);
}

TEST(HttpTest, ManyConnectionsOnTwoThreads) {
  std::atomic<int> running = 0;
  ServerBed bed(
      [&](Request request, Response& response) -> asio::awaitable<void> {
        ++running;
        co_await response.Start(200, Headers());
        for (char c : request.body) {
          co_await response.Write(std::string_view(&c, 1));
          co_await Sleep(std::chrono::milliseconds(1));
        }
        co_await response.Finish();
        --running;
      },
      {}, 2);
  Loop loop;
  Client client(loop.io().get_executor(), {});
  constexpr int kClients = 200;
  std::atomic<int> right = 0;
  std::vector<std::future<void>> all;
  for (int i = 0; i < kClients; ++i) {
    all.push_back(asio::co_spawn(
        loop.io(),
        [](Client& client, std::string host_port, int i, std::atomic<int>& right) -> asio::awaitable<void> {
          for (int round = 0; round < 3; ++round) {
            const std::string body = "body " + std::to_string(i) + "." + std::to_string(round);
            const Answer answer = co_await Ask(client, host_port, Request("POST", "/", Headers(), body));
            right += answer.body == body;
          }
        }(client, bed.host_port(), i, right),
        asio::use_future));
  }
  for (auto& one : all) one.get();
  EXPECT_EQ(right, kClients * 3);
  EXPECT_TRUE(Eventually([&] { return running == 0; })) << "the last byte comes before the handler's end";
}

TEST(HttpTest, DrainEndsIdleConnectionsAtOnceAndBusyOnesAfterTheirAnswer) {
  std::atomic<int> begun = 0;
  std::atomic<bool> go_on = false;
  ServerBed bed([&](Request request, Response& response) -> asio::awaitable<void> {
    ++begun;
    while (request.path() == "/slow" && !go_on) co_await Sleep(std::chrono::milliseconds(1));
    co_await response.Send(200, Headers(), "done");
  });
  RawClient idle(bed.server().port());
  idle.Send("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_NE(idle.ReadUntil("done").find("200 OK"), std::string::npos);
  RawClient busy(bed.server().port());
  busy.Send("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n");
  ASSERT_TRUE(Eventually([&] { return begun == 2; }));
  bed.server().Drain();
  EXPECT_EQ(idle.ReadToEnd(), "");
  EXPECT_TRUE(Eventually([&] { return bed.server().connections() == 1; }));
  EXPECT_THROW(RawClient(bed.server().port()).Send("x"), boost::system::system_error) << "still listening";
  go_on = true;
  const std::string answer = busy.ReadToEnd();
  EXPECT_NE(answer.find("connection: close"), std::string::npos) << answer;
  EXPECT_NE(answer.find("done"), std::string::npos) << answer;
  EXPECT_TRUE(Eventually([&] { return bed.server().connections() == 0; }));
}

TEST(HttpTest, StopCancelsEveryHandler) {
  std::atomic<int> begun = 0;
  std::atomic<int> released = 0;
  ServerBed bed(
      [&](Request request, Response& response) -> asio::awaitable<void> {
        const Held held{released};
        ++begun;
        if (request.path() == "/stream") co_await response.Start(200, Headers());
        co_await Sleep(std::chrono::hours(1));
      },
      {}, 2);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(std::make_unique<RawClient>(bed.server().port()));
    clients.back()->Send(i % 2 == 0 ? "GET /stream HTTP/1.1\r\nhost: x\r\n\r\n"
                                    : "GET /silent HTTP/1.1\r\nhost: x\r\n\r\n");
  }
  ASSERT_TRUE(Eventually([&] { return begun == 20; }));
  bed.server().Stop();
  EXPECT_TRUE(Eventually([&] { return released == 20 && bed.server().connections() == 0; }));
  for (const auto& client : clients) (void)client->ReadToEnd();
}

TEST(HttpTest, ServersOfSeveralLoopsShareAPort) {
  ServerBed first(Echo, {.share_port = true});
  ServerBed second(Echo, {.port = first.server().port(), .share_port = true});
  EXPECT_EQ(first.server().port(), second.server().port());
}

TEST(HttpTest, ListeningTwiceIsUnavailableAndSaysWhere) {
  ServerBed first(Echo);
  asio::io_context io;
  const auto second = Server::Create(io, {.port = first.server().port()}, Echo);
  ASSERT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(std::string(second.status().message()).find(first.host_port()), std::string::npos);
  EXPECT_EQ(Server::Create(io, {.address = "nowhere"}, Echo).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace llmd::http
