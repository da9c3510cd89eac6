// What nobody should send to the hosts' HTTP server, and what no handler should answer.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/system/system_error.hpp>
#include <nlohmann/json.hpp>

#include "tests/hosts/http_bed.h"

namespace llmd::http {
namespace {

asio::awaitable<void> Echo(Request request, Response& response) {
  std::string body = request.method + " " + request.target + " [" + request.body + "]";
  for (const auto& [name, value] : request.headers) body += " " + name + "=" + value;
  co_await response.Send(200, ContentType("text/plain"), std::move(body));
}

// The whole of what the server says to `text`, until it closes the connection.
std::string Say(ServerBed& bed, std::string_view text) {
  RawClient client(bed.server().port());
  client.Send(text);
  return client.ReadToEnd();
}

std::string StatusLine(const std::string& answer) { return answer.substr(0, answer.find("\r\n")); }

TEST(HttpHostileTest, MalformedRequestsAreRefusedAndTheConnectionClosed) {
  ServerBed bed(Echo);
  struct Case {
    std::string request;
    std::string status;
  };
  const std::string post = "POST / HTTP/1.1\r\nhost: x\r\n";
  const std::vector<Case> cases = {
      {"G@T / HTTP/1.1\r\nhost: x\r\n\r\n", "400"},
      {"GET\r\n\r\n", "400"},
      {"GET  / HTTP/1.1\r\nhost: x\r\n\r\n", "400"},
      {"GET / HTTP/1.1\nhost: x\n\n", "505"},
      {"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n", "505"},
      {"GET / HTTP/2.0\r\nhost: x\r\n\r\n", "505"},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
      {"GET / FTP/1.1\r\nhost: x\r\n\r\n", "505"},
      {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n", "400"},
      {"GET / HTTP/1.1\r\n\r\n", "400"},                           // no host
      {"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", "400"},     // two
      {"GET / HTTP/1.1\r\nhost: x\r\nna me: y\r\n\r\n", "400"},    // blank in a name
      {"GET / HTTP/1.1\r\nhost: x\r\nname : y\r\n\r\n", "400"},    // blank before the colon
      {"GET / HTTP/1.1\r\nhost: x\r\nname: a\rb\r\n\r\n", "400"},  // bare CR
      {"GET / HTTP/1.1\r\nhost: x\r\nname: a" + std::string(1, '\0') + "b\r\n\r\n", "400"},
      {post + "content-length: -1\r\n\r\n", "400"},
      {post + "content-length: 1x\r\n\r\nab", "400"},
      {post + "content-length: 99999999999999999999999\r\n\r\n", "400"},
      {post + "content-length: 1\r\ncontent-length: 2\r\n\r\nab", "400"},
      {post + "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
      {post + "transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n", "400"},
      {post + "transfer-encoding: gzip\r\n\r\n", "501"},
      {post + "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501"},
      {post + "transfer-encoding: chunked\r\n\r\nzz\r\n", "400"},
      {post + "transfer-encoding: chunked\r\n\r\n-1\r\n", "400"},
      {post + "transfer-encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n", "400"},
      {post + "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "400"},
      {post + "expect: miracles\r\ncontent-length: 1\r\n\r\na", "417"},
  };
  for (const Case& one : cases) {
    const std::string answer = Say(bed, one.request);
    EXPECT_EQ(StatusLine(answer).substr(0, 12), "HTTP/1.1 " + one.status) << one.request;
    const std::size_t body = answer.find("\r\n\r\n");
    ASSERT_NE(body, std::string::npos) << one.request;
    const nlohmann::json error = nlohmann::json::parse(answer.substr(body + 4));
    EXPECT_EQ(error["object"], "error");
    EXPECT_EQ(error["code"], std::stoi(one.status));
    EXPECT_NE(answer.find("connection: close\r\n"), std::string::npos);
  }
  EXPECT_TRUE(Eventually([&] { return bed.server().connections() == 0; }));
}

TEST(HttpHostileTest, HeadersAreLimited) {
  ServerBed bed(Echo, {.max_header_bytes = 4096});
  EXPECT_EQ(StatusLine(Say(bed, "GET / HTTP/1.1\r\nhost: x\r\na: " + std::string(5000, 'y') + "\r\n\r\n")),
            "HTTP/1.1 431 Request Header Fields Too Large");
  // Without an end.
  EXPECT_EQ(StatusLine(Say(bed, "GET / HTTP/1.1\r\nhost: x\r\na: " + std::string(8 << 20, 'y'))),
            "HTTP/1.1 431 Request Header Fields Too Large");
  EXPECT_EQ(StatusLine(Say(bed, "GET /" + std::string(1 << 20, 'y'))),
            "HTTP/1.1 431 Request Header Fields Too Large");
  std::string many = "GET / HTTP/1.1\r\nhost: x\r\n";
  for (int i = 0; i < 10000; ++i) many += "a: b\r\n";
  EXPECT_EQ(StatusLine(Say(bed, many + "\r\n")), "HTTP/1.1 431 Request Header Fields Too Large");
  EXPECT_NE(
      Say(bed, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\na: " + std::string(3000, 'y') + "\r\n\r\n")
          .find("200 OK"),
      std::string::npos);
}

TEST(HttpHostileTest, BodiesAreLimited) {
  ServerBed bed(Echo, {.max_body_bytes = 1000});
  const std::string post = "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
  EXPECT_EQ(StatusLine(Say(bed, post + "content-length: 1001\r\n\r\n")), "HTTP/1.1 413 Payload Too Large");
  // A client that does not look before everything is sent gets to see the answer nevertheless.
  EXPECT_EQ(StatusLine(Say(bed, post + "content-length: 4000000\r\n\r\n" + std::string(4000000, 'x'))),
            "HTTP/1.1 413 Payload Too Large");
  std::string chunks;
  for (int i = 0; i < 11; ++i) chunks += "64\r\n" + std::string(100, 'x') + "\r\n";
  EXPECT_EQ(StatusLine(Say(bed, post + "transfer-encoding: chunked\r\n\r\n" + chunks + "0\r\n\r\n")),
            "HTTP/1.1 413 Payload Too Large");
  EXPECT_EQ(StatusLine(Say(bed, post + "content-length: 1000\r\n\r\n" + std::string(1000, 'x'))),
            "HTTP/1.1 200 OK");
  // With 100-continue the refusal comes before the body.
  RawClient polite(bed.server().port());
  polite.Send(post + "expect: 100-continue\r\ncontent-length: 1001\r\n\r\n");
  EXPECT_EQ(StatusLine(polite.ReadToEnd()), "HTTP/1.1 413 Payload Too Large");
}

TEST(HttpHostileTest, ContinueIsSaidToThoseWhoWait) {
  ServerBed bed(Echo);
  RawClient client(bed.server().port());
  client.Send("POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-Continue\r\ncontent-length: 4\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("body");
  EXPECT_NE(client.ReadUntil("[body]").find("HTTP/1.1 200 OK"), std::string::npos);
}

TEST(HttpHostileTest, ChunksAndTrailersAreRead) {
  ServerBed bed(Echo);
  const std::string answer =
      Say(bed,
          "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: "
          "chunked\r\n\r\n3;name=value\r\nabc\r\n02\r\nde\r\n0\r\nX-Evil: yes\r\n\r\n");
  EXPECT_NE(answer.find("[abcde]"), std::string::npos) << answer;
  EXPECT_NE(answer.find("host=x"), std::string::npos) << "names are in lower case";
  EXPECT_EQ(answer.find("x-evil"), std::string::npos) << "a trailer is no header";
}

TEST(HttpHostileTest, SlowRequestsEnd) {
  ServerBed bed(Echo, {.idle_timeout = std::chrono::seconds(1)});
  RawClient silent(bed.server().port());
  RawClient slow(bed.server().port());
  RawClient slow_body(bed.server().port());
  slow.Send("GET / HTTP/1.1\r\nhost: x\r\n");
  slow_body.Send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n");
  std::atomic<bool> end = false;
  std::thread trickle([&] {  // a byte now and then does not help
    while (!end) {
      slow.Send("a");
      slow_body.Send("a");
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  EXPECT_EQ(silent.ReadToEnd(), "") << "there was no request to answer";
  EXPECT_EQ(StatusLine(slow.ReadUntil("\r\n")), "HTTP/1.1 408 Request Timeout");
  EXPECT_EQ(StatusLine(slow_body.ReadUntil("\r\n")), "HTTP/1.1 408 Request Timeout");
  end = true;
  trickle.join();
  slow.Close();
  slow_body.Close();
  EXPECT_TRUE(Eventually([&] { return bed.server().connections() == 0; }));
}

TEST(HttpHostileTest, AClientThatDoesNotReadIsGivenUp) {
  std::atomic<bool> failed = false;
  ServerBed bed(
      [&](Request, Response& response) -> asio::awaitable<void> {
        const std::string piece(1 << 20, 'x');
        try {
          co_await response.Start(200, Headers());
          for (;;) co_await response.Write(piece);
        } catch (const boost::system::system_error&) {
          failed = true;
        }
      },
      {.idle_timeout = std::chrono::seconds(1)});
  RawClient client(bed.server().port());
  client.Send("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_TRUE(Eventually([&] { return failed && bed.server().connections() == 0; }));
}

TEST(HttpHostileTest, PipelinedRequestsAreAnsweredInOrderAndNoByteIsLost) {
  std::atomic<int> begun = 0;
  std::atomic<bool> go_on = false;
  ServerBed bed([&](Request request, Response& response) -> asio::awaitable<void> {
    ++begun;
    asio::steady_timer timer(co_await asio::this_coro::executor);
    while (!go_on) {
      timer.expires_after(std::chrono::milliseconds(1));
      co_await timer.async_wait(asio::use_awaitable);
    }
    co_await response.Send(200, Headers(), "<" + request.target + request.body + ">");
  });
  RawClient client(bed.server().port());
  client.Send("GET /0 HTTP/1.1\r\nhost: x\r\n\r\n");
  ASSERT_TRUE(Eventually([&] { return begun == 1; }));
  // While the handler runs, in pieces that end anywhere; more than is read ahead.
  std::string rest;
  std::string expected = "</0>";
  for (int i = 1; i < 40; ++i) {
    const std::string body(5000, static_cast<char>('a' + i % 26));
    rest += "POST /" + std::to_string(i) + " HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n" +
            (i == 39 ? "connection: close\r\n\r\n" : "\r\n") + body;
    expected += "</" + std::to_string(i) + body + ">";
  }
  std::thread sender([&] {
    for (std::size_t at = 0; at < rest.size(); at += 777) client.Send(rest.substr(at, 777));
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  go_on = true;
  const std::string answers = client.ReadToEnd();
  sender.join();
  std::string bodies;
  for (std::size_t at = 0; (at = answers.find('<', at)) != std::string::npos;) {
    const std::size_t end = answers.find('>', at);
    bodies += answers.substr(at, end + 1 - at);
    at = end;
  }
  EXPECT_TRUE(bodies == expected);
}

TEST(HttpHostileTest, TheNumberOfConnectionsIsLimited) {
  ServerBed bed(Echo, {.max_connections = 2});
  RawClient first(bed.server().port());
  RawClient second(bed.server().port());
  for (RawClient* client : {&first, &second}) {
    client->Send("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    EXPECT_NE(client->ReadUntil("host=x").find("200 OK"), std::string::npos);
  }
  EXPECT_EQ(RawClient(bed.server().port()).ReadToEnd(), "");
  first.Close();
  EXPECT_TRUE(Eventually([&] { return bed.server().connections() == 1; }));
  RawClient third(bed.server().port());
  third.Send("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_NE(third.ReadUntil("host=x").find("200 OK"), std::string::npos);
}

TEST(HttpHostileTest, NobodyInjectsHeadersThroughAValue) {
  ServerBed bed([](Request request, Response& response) -> asio::awaitable<void> {
    Headers headers;
    if (request.path() == "/name") {
      headers.emplace_back("x: y\r\nset-cookie", "evil");
    } else {
      headers.emplace_back("x-session-id", "a\r\nset-cookie: evil");
    }
    co_await response.Send(200, headers, "body");
  });
  for (const char* path : {"/name", "/value"}) {
    const std::string answer =
        Say(bed, "GET " + std::string(path) + " HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    EXPECT_EQ(StatusLine(answer), "HTTP/1.1 500 Internal Server Error");
    EXPECT_EQ(answer.find("evil"), std::string::npos) << answer;
  }
  Loop loop;
  Client client(loop.io().get_executor(), {});
  const std::vector<Request> bad = {Request("GET", "/", {{"a", "b\r\nc: d"}}),
                                    Request("GET", "/", {{"a b", "c"}}), Request("GET", "/ HTTP/1.1\r\nx: y"),
                                    Request("GET /", "/")};
  for (const Request& request : bad) {
    EXPECT_THROW(loop.Run(client.Send(bed.host_port(), request)), boost::system::system_error);
  }
}

TEST(HttpHostileTest, OldClientsAreServed) {
  ServerBed bed([](Request request, Response& response) -> asio::awaitable<void> {
    if (request.path() == "/abort") {
      co_await response.Start(200, Headers());
      co_await response.Write("half");
      response.Abort();
      co_return;
    }
    co_await response.Start(200, Headers());
    co_await response.Write("one ");
    co_await response.Write("two");
    co_await response.Finish();
  });
  const std::string answer = Say(bed, "GET / HTTP/1.0\r\n\r\n");
  EXPECT_EQ(answer.find("chunked"), std::string::npos);
  EXPECT_TRUE(answer.ends_with("\r\n\r\none two")) << answer;
  // An incomplete answer without chunks is told by a reset.
  RawClient client(bed.server().port());
  client.Send("GET /abort HTTP/1.0\r\n\r\n");
  boost::system::error_code error;
  std::string text;
  asio::read(client.socket(), asio::dynamic_buffer(text), error);
  EXPECT_EQ(error, asio::error::connection_reset);
}

TEST(HttpHostileTest, AProxysFormOfTargetIsUnderstood) {
  ServerBed bed(Echo);
  const std::string tail = " HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
  EXPECT_NE(Say(bed, "GET http://a.b:80/c?d" + tail).find("GET /c?d ["), std::string::npos);
  EXPECT_NE(Say(bed, "GET http://a.b?d" + tail).find("GET /?d ["), std::string::npos);
  EXPECT_NE(Say(bed, "GET http://a.b" + tail).find("GET / ["), std::string::npos);
}

// A server that says anything to whoever asks.
std::string AskLiar(const std::string& answer, std::size_t limit = 1 << 20) {
  asio::io_context io;
  asio::ip::tcp::acceptor acceptor(io, {asio::ip::make_address("127.0.0.1"), 0});
  std::thread server([&] {
    asio::ip::tcp::socket socket = acceptor.accept();
    boost::system::error_code ignored;
    asio::write(socket, asio::buffer(answer), ignored);
    socket.shutdown(asio::socket_base::shutdown_send, ignored);
    std::string rest;
    asio::read(socket, asio::dynamic_buffer(rest), ignored);
  });
  std::string said;
  {
    Loop loop;
    Client client(loop.io().get_executor(), {});
    try {
      auto response =
          loop.Run(client.Send("127.0.0.1:" + std::to_string(acceptor.local_endpoint().port()), Request()));
      said = std::to_string(response->status()) + " " + loop.Run(response->ReadAll(limit));
    } catch (const boost::system::system_error& error) {
      said = "error";
    }
  }
  server.join();
  return said;
}

TEST(HttpHostileTest, TheClientBelievesNoLiar) {
  EXPECT_EQ(AskLiar("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), "200 ok");
  EXPECT_EQ(AskLiar("HTTP/1.1 200 OK\r\n\r\nto the end"), "200 to the end");
  EXPECT_EQ(AskLiar("HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            "200 ");
  EXPECT_EQ(AskLiar("HTTP/1.1 204 No Content\r\n\r\n"), "204 ");
  for (const std::string& answer :
       {std::string("nonsense\r\n\r\n"), std::string("HTTP/1.1 2x0 OK\r\n\r\n"), std::string(),
        std::string("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"),
        std::string("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshor"),
        std::string("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
        "HTTP/1.1 200 OK\r\nx: " + std::string(1 << 20, 'y')}) {
    EXPECT_EQ(AskLiar(answer), "error") << answer.substr(0, 80);
  }
  EXPECT_EQ(AskLiar("HTTP/1.1 200 OK\r\n\r\n" + std::string(2 << 20, 'x')), "error") << "over the limit";
}

}  // namespace
}  // namespace llmd::http
