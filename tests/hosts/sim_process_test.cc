// The program itself: its line, its signals, its events as a router gets them.
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include <zmq.hpp>
#include <zmq_addon.hpp>

#include "absl/strings/str_cat.h"
#include "examples/sim_worker/options.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/events/decoder.h"
#include "llmd/events/frames.h"
#include "tests/hosts/sim_worker_bed.h"

namespace llmd::sim {
namespace {

using testing::HasSubstr;

class Process {
 public:
  explicit Process(std::vector<std::string> arguments) {
    int out[2];
    if (pipe(out) != 0) throw std::runtime_error("pipe");
    std::vector<char*> argv;
    arguments.insert(arguments.begin(), SIM_WORKER);
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      close(out[0]);
      close(out[1]);
      alarm(120);  // should the test die
      execv(argv[0], argv.data());
      _exit(127);
    }
    close(out[1]);
    std::FILE* file = fdopen(out[0], "r");
    char line[200];
    if (std::fgets(line, sizeof line, file) != nullptr) ready_ = line;
    std::fclose(file);
    std::sscanf(ready_.c_str(), "ready http=%d kv_events=%d kv_replay=%d", &http, &kv_events, &kv_replay);
  }
  ~Process() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      Wait();
    }
  }
  void Signal(int signal) { kill(pid_, signal); }
  // The exit status; -1 when it was killed.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string target() const { return absl::StrCat("127.0.0.1:", http); }
  const std::string& ready() const { return ready_; }

  int http = 0;
  int kv_events = 0;
  int kv_replay = 0;

 private:
  pid_t pid_ = -1;
  std::string ready_;
};

boost::asio::awaitable<std::string> Post(std::string target, std::string path, std::string body) {
  http::Client client(co_await boost::asio::this_coro::executor, http::ClientOptions());
  http::Request request("POST", std::move(path), http::Headers(), std::move(body));
  const auto response = co_await client.Send(std::move(target), std::move(request));
  co_return co_await response->ReadAll(1 << 20);
}

TEST(SimProcessTest, ServesAnnouncesAndEnds) {
  Process process({"--port=0", "--model", "org/m", "--kv-events-port", "0", "--kv-replay-port", "0",
                   "--time-scale", "0.01", "--enforce-eager", "--seed", "42"});
  ASSERT_GT(process.http, 0) << process.ready();
  ASSERT_GT(process.kv_events, 0);
  ASSERT_GT(process.kv_replay, 0);
  http::Loop loop;
  const std::string prompt(200, '.');
  const Json answer = Json::parse(loop.Run(
      Post(process.target(), "/v1/completions", Json({{"prompt", prompt}, {"max_tokens", 1}}).dump())));
  ASSERT_EQ(answer["usage"]["prompt_tokens"], 201);

  zmq::context_t context;
  zmq::socket_t dealer(context, zmq::socket_type::dealer);
  dealer.set(zmq::sockopt::linger, 0);
  dealer.set(zmq::sockopt::rcvtimeo, 20'000);
  dealer.connect(absl::StrCat("tcp://127.0.0.1:", process.kv_replay));
  const events::ReplayRequest request(0);
  dealer.send(zmq::message_t(), zmq::send_flags::sndmore);
  dealer.send(zmq::const_buffer(request.frames()[1].data(), 8), zmq::send_flags::none);
  std::size_t blocks = 0;
  while (true) {
    std::vector<zmq::message_t> parts;
    ASSERT_TRUE(zmq::recv_multipart(dealer, std::back_inserter(parts)));
    std::vector<events::Frame> frames;
    for (const zmq::message_t& part : parts) {
      frames.emplace_back(static_cast<const std::byte*>(part.data()), part.size());
    }
    const auto message = events::ParseReplayMessage(frames);
    ASSERT_TRUE(message.ok()) << message.status();
    if (message->end) break;
    EXPECT_EQ(message->topic, absl::StrCat("kv@", process.target(), "@org/m"));
    events::EventBatch batch;
    ASSERT_TRUE(events::EventDecoder().Decode(message->payload, batch).ok());
    for (const events::Event& event : batch.events()) blocks += event.hashes.size();
  }
  EXPECT_EQ(blocks, 12);

  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 0);
}

TEST(SimProcessTest, SigtermLetsRequestsFinishWithinLimits) {
  // 20 tokens of 20 ms each: under way when the signal comes, and finished after it.
  Process process({"--port", "0", "--decode-us-per-token", "20000", "--mean-output-tokens", "0"});
  http::RawClient client(static_cast<std::uint16_t>(process.http));
  const std::string body = R"({"prompt":"a","max_tokens":20,"stream":true})";
  client.Send(absl::StrCat("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ", body.size(),
                           "\r\n\r\n", body));
  ASSERT_THAT(client.ReadUntil("data: "), HasSubstr("200 OK"));
  process.Signal(SIGTERM);
  EXPECT_THAT(client.ReadToEnd(), HasSubstr("[DONE]"));
  EXPECT_EQ(process.Wait(), 0);

  Process impatient({"--port", "0", "--fault", "hang", "--shutdown-timeout", "0.05"});
  http::RawClient hung(static_cast<std::uint16_t>(impatient.http));
  hung.Send(absl::StrCat("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ", body.size(),
                         "\r\n\r\n", body));
  http::Loop loop;
  ASSERT_THAT(loop.Run(Post(impatient.target(), "/sim/fault", R"({"mode":"none"})")), HasSubstr("none"));
  impatient.Signal(SIGTERM);
  EXPECT_EQ(impatient.Wait(), 0);
}

TEST(SimProcessTest, CrashIsACrash) {
  Process process({"--port", "0", "--fault", "crash"});
  http::Loop loop;
  EXPECT_THROW(loop.Run(Post(process.target(), "/v1/completions", R"({"prompt":"a"})")), std::exception);
  EXPECT_EQ(process.Wait(), 134);
}

TEST(SimProcessTest, BadArgumentsEndIt) {
  EXPECT_EQ(Process({"--bogus"}).Wait(), 2);
  Process first({"--port", "0"});
  EXPECT_EQ(Process({"--port", absl::StrCat(first.http)}).Wait(), 1);
}

TEST(SimOptionsTest, SpellingsOfVllm) {
  const auto line = ParseCommandLine(
      {"--model",
       "org/m",
       "--served-model-name",
       "a",
       "b",
       "--no-enable-prefix-caching",
       "--max-model-len=4096",
       "--no-enable-chunked-prefill",
       "--kv-events-config",
       R"({"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://10.0.0.1:5557","topic":"kv@p@m"})",
       "--kv-transfer-config",
       R"({"kv_connector":"NixlConnector","kv_role":"kv_producer"})",
       "--block-size",
       "32",
       "--prefix-caching-hash-algo",
       "sha256_cbor",
       "--time-scale",
       "0.5",
       "--block-size",
       "64"});
  ASSERT_TRUE(line.ok()) << line.status();
  const WorkerOptions& options = line->worker;
  EXPECT_THAT(options.served_model_names, testing::ElementsAre("a", "b"));
  EXPECT_FALSE(options.engine.prefix_caching);
  EXPECT_FALSE(options.engine.chunked_prefill);
  EXPECT_EQ(options.engine.max_model_len, 4096);
  EXPECT_EQ(options.engine.block_size, 64);
  EXPECT_EQ(options.kv_events_endpoint, "tcp://10.0.0.1:5557");
  EXPECT_EQ(options.kv_topic, "kv@p@m");
  EXPECT_EQ(options.role, "prefill");
  EXPECT_EQ(options.engine.latency.decode_us_per_token, 4000);
  for (const std::vector<std::string>& bad :
       std::vector<std::vector<std::string>>{{"--role", "x"},
                                             {"--prefix-caching-hash-algo", "builtin"},
                                             {"--fault", "x"},
                                             {"--fault-rate", "2"},
                                             {"--kv-events-config", "x"},
                                             {"--kv-replay-port", "0"},
                                             {"--kv-events-port", "70000"},
                                             {"--jitter", "-1"},
                                             {"--port", "x"}}) {
    EXPECT_FALSE(ParseCommandLine(bad).ok()) << bad[0];
  }
  EXPECT_THAT(ParseCommandLine({"--help"})->help, HasSubstr("--prefill-us-per-token"));
}

}  // namespace
}  // namespace llmd::sim
