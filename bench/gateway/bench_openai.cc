// Reading OpenAI requests and carrying them through the endpoint-picker protocol, one thread, processor time,
// bodies in memory, parser warm.
//
// A prompt of n tokens is text of words of 1 to 7 letters with a line break (an escape, so that the text must
// be copied) every 20 words, text without any escape (`plain`), or token ids below 151,936 (`tokens`).
//   text_16k          OpenAiParser::Parse of a completions request with such a prompt
//     ns_per_kb         processor time for 1000 bytes of body
//     copied_share      bytes written for each byte of body: unescaped text, and four for a token id
//     allocations       of a warm parser
//   stream_text_16k   a whole request phase: messages of 64 KiB in, decision, headers and body answers out
//     us_per_request, ns_per_kb, with reading and writing the Protobuf messages
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bench/bench_util.h"
#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "llmd/base/random.h"
#include "llmd/gateway/ext_proc_stream.h"
#include "llmd/gateway/openai_request.h"
#include "tests/support/allocation_count.h"

namespace llmd::gateway {
namespace {

constexpr int kRounds = 15;
constexpr std::int64_t kRoundNs = 30'000'000;

std::int64_t CpuNs() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

template <typename Work>
double NsPerCall(const Work& work) {
  std::vector<double> rounds;
  for (int round = 0; round <= kRounds; ++round) {
    const std::int64_t start = CpuNs();
    std::int64_t now = start, calls = 0;
    for (; now - start < kRoundNs; now = CpuNs()) {
      work();
      ++calls;
    }
    if (round > 0) rounds.push_back(static_cast<double>(now - start) / static_cast<double>(calls));
  }
  return bench::Median(rounds);
}

enum class Kind { kText, kPlain, kTokens };

std::string MakeBody(Kind kind, int tokens) {
  Random random(1);
  std::string body =
      "{\"model\":\"meta-llama/Llama-3.1-8B-Instruct\",\"max_tokens\":128,\"stream\":true,\"prompt\":";
  body += kind == Kind::kTokens ? "[" : "\"";
  for (int i = 0; i < tokens; ++i) {
    if (kind == Kind::kTokens) {
      if (i > 0) body += ',';
      body += std::to_string(random.Below(random.Chance(1.0 / 3) ? 2000 : 151'936));
      continue;
    }
    for (std::uint64_t letters = random.Between(1, 7); letters > 0; --letters) {
      body += static_cast<char>('a' + random.Below(26));
    }
    body += kind == Kind::kText && i % 20 == 19 ? "\\n" : " ";
  }
  body += kind == Kind::kTokens ? "]}" : "\"}";
  return body;
}

void RunParse(const bench::Reporter& reporter, const std::string& name, const std::string& body) {
  OpenAiParser parser;
  OpenAiRequest request;
  const auto parse = [&] {
    if (!parser.Parse(Api::kCompletions, body, request).ok()) std::abort();
    bench::KeepAlive(request.text.data());
  };
  const double ns = NsPerCall(parse);
  const std::size_t before = AllocationCount();
  parse();
  const std::size_t allocations = AllocationCount() - before;
  std::size_t copied = 4 * request.tokens.size();
  for (const std::string_view piece : request.text) {
    const bool view = piece.data() >= body.data() && piece.data() < body.data() + body.size();
    if (!view) copied += piece.size();
  }
  const double size = static_cast<double>(body.size());
  reporter.Report(name, "ns_per_kb", ns / size * 1000, "ns", true);
  reporter.Report(name, "us_per_request", ns / 1000, "us", true);
  reporter.Report(name, "copied_share", static_cast<double>(copied) / size, "1", true);
  reporter.Report(name, "allocations", static_cast<double>(allocations), "1", true);
}

void RunStream(const bench::Reporter& reporter, const std::string& name, const std::string& body) {
  ExtProcOptions options;
  OpenAiParser parser;
  Random random(1);
  std::vector<ProcessingRequest> messages(1);
  auto* headers = messages[0].mutable_request_headers()->mutable_headers();
  for (const auto& [key, value] :
       {std::pair(":method", "POST"), std::pair(":path", "/v1/completions"),
        std::pair("content-type", "application/json"), std::pair("x-request-id", "1")}) {
    auto* header = headers->add_headers();
    header->set_key(key);
    header->set_raw_value(value);
  }
  for (std::size_t at = 0; at < body.size(); at += 65536) {
    auto* part = messages.emplace_back().mutable_request_body();
    part->set_body(body.substr(at, 65536));
    part->set_end_of_stream(at + 65536 >= body.size());
  }
  std::vector<std::string> wire;
  for (const ProcessingRequest& message : messages) wire.push_back(message.SerializeAsString());
  const RoutingResult result{.destinations = {"10.0.0.1:8000"}};
  const absl::Time now = absl::UnixEpoch();
  std::string answer;
  const double ns = NsPerCall([&] {
    ExtProcStream stream(options, parser, random);
    for (const std::string& message : wire) stream.ReceiveBytes(message, now);
    if (!stream.Decide(result, now).ok()) std::abort();
    while (stream.NextBytes(answer)) bench::KeepAlive(answer.data());
  });
  reporter.Report(name, "us_per_request", ns / 1000, "us", true);
  reporter.Report(name, "ns_per_kb", ns / static_cast<double>(body.size()) * 1000, "ns", true);
}

}  // namespace
}  // namespace llmd::gateway

int main(int argc, char** argv) {
  using namespace llmd::gateway;
  const bool json = argc > 1 && std::strcmp(argv[1], "--json") == 0;
  if (argc > 2 || (argc == 2 && !json)) {
    std::fprintf(stderr, "usage: bench_openai [--json]\n");
    return 2;
  }
  const llmd::bench::Reporter reporter("bench_openai", json);
  for (const auto& [kind, name] : {std::pair(Kind::kText, "text"), std::pair(Kind::kPlain, "plain"),
                                   std::pair(Kind::kTokens, "tokens")}) {
    for (const auto& [tokens, size] :
         {std::pair(1'000, "1k"), std::pair(16'000, "16k"), std::pair(100'000, "100k")}) {
      const std::string body = MakeBody(kind, tokens);
      const std::string name_of = std::string(name) + "_" + size;
      RunParse(reporter, name_of, body);
      RunStream(reporter, "stream_" + name_of, body);
    }
  }
}
