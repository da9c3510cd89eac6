// Any sequence of messages and of the host's calls: no crash, bounded memory, answers in the protocol's
// order, one completion.
//
// Input: one byte of options, then steps of a length byte pair and an operation: 0 to 3 is a message (a
// ProcessingRequest as bytes), others are calls of the host.
#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "envoy/service/ext_proc/v3/external_processor.pb.h"
#include "llmd/gateway/ext_proc_stream.h"

namespace {

using namespace llmd::gateway;

void Require(bool condition) {
  if (!condition) std::abort();
}

struct Order {
  int request = 0, response = 0;  // 1 headers, 2 body, 3 trailers
  bool immediate = false;

  void Check(const ProcessingResponse& answer) {
    Require(!immediate);
    if (answer.has_immediate_response()) {
      immediate = true;
      return;
    }
    const bool to_request =
        answer.has_request_headers() || answer.has_request_body() || answer.has_request_trailers();
    const int stage = answer.has_request_headers() || answer.has_response_headers() ? 1
                      : answer.has_request_body() || answer.has_response_body()     ? 2
                                                                                    : 3;
    int& at = to_request ? request : response;
    Require(stage > at || (stage == at && stage == 2));
    at = stage;
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto quiet = google::protobuf::SetLogHandler(nullptr);  // it logs strings that are no UTF-8
  (void)quiet;
  static OpenAiParser parser({.max_depth = 32, .keep_bytes = 4096});
  if (size == 0) return 0;
  llmd::Random random(data[0]);
  ExtProcOptions options;
  options.max_body_bytes = 4096;
  options.max_response_body_bytes = 512;
  options.max_headers = 32;
  options.max_header_bytes = 4096;
  options.chunk_bytes = 64;
  options.single_destination = data[0] & 1;
  options.resend_headers = data[0] & 2;
  options.skip_response = data[0] & 4;
  options.require_model = !(data[0] & 8);
  options.report_served_endpoint = data[0] & 16;
  if (data[0] & 32) options.override_request_body_mode = BodyMode::kBuffered;
  if (data[0] & 64) options.override_response_body_mode = BodyMode::kStreamed;

  ExtProcStream stream(options, parser, random);
  Order order;
  int completions = 0;
  absl::Time now = absl::UnixEpoch();
  ProcessingResponse answer;
  std::size_t at = 1;
  while (at + 3 <= size) {
    const std::size_t length = std::min<std::size_t>(data[at] | data[at + 1] << 8, size - at - 3);
    const std::uint8_t operation = data[at + 2];
    const std::string_view payload(reinterpret_cast<const char*>(data) + at + 3, length);
    at += 3 + length;
    now += absl::Milliseconds(1);
    const std::string text(payload.substr(0, 64));
    switch (operation % 12) {
      case 4:
        (void)stream.Decide({.destinations = {"10.0.0.1:80", "10.0.0.2:80"}}, now);
        break;
      case 5:
        (void)stream.Decide({.destinations = {text}, .set_headers = {{text, text}}, .model = text}, now);
        break;
      case 6:
        (void)stream.Refuse(
            {.http_status = 429, .message = text, .reason = llmd::sched::DroppedReason::kSaturated}, now);
        break;
      case 7:
        stream.Evict(llmd::sched::DroppedReason::kEvicted, now);
        break;
      case 8:
        stream.Close(operation & 16 ? CloseReason::kCancelled : CloseReason::kEndOfStream, now);
        break;
      case 9: {
        const HeaderField header{text, text};
        (void)stream.EditResponseHeaders(std::span(&header, 1), std::span(&text, 1));
        break;
      }
      case 10: {
        const MetadataEntry entry{text, text, text};
        (void)stream.AddResponseMetadata(std::span(&entry, 1));
        break;
      }
      case 11:
        while (stream.Next(answer)) order.Check(answer);
        break;
      default:
        (void)stream.ReceiveBytes(payload, now);
    }
    Require(!stream.needs_decision() || !stream.finished());
    if (stream.TakeCompletion()) ++completions;
    Require(stream.held_bytes() < 4 * size + 65536);
  }
  while (stream.Next(answer)) order.Check(answer);
  stream.Close(CloseReason::kEndOfStream, now);
  if (stream.TakeCompletion()) ++completions;
  Require(completions == 1);
  Require(!stream.Next(answer));
  return 0;
}
