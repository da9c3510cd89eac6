#include "bench/gateway/ext_proc_requests.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "envoy/service/ext_proc/v3/external_processor.pb.h"

namespace llmd::bench {
namespace {

using envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
using envoy::service::ext_proc::v3::ProcessingRequest;

constexpr std::string_view kModel = "meta-llama/Llama-3.1-8B-Instruct";
constexpr std::string_view kRequestId = "<request-id-16b>";
constexpr std::string_view kSessionId = "<session-id-16b>";
constexpr std::string_view kUniqueText = "<unique-text-16>";
constexpr std::string_view kUniqueIds = "10007,10009,10037,10039";

void WriteHex(std::uint64_t value, char* at) {
  for (int i = 0; i < 16; ++i, value >>= 4) at[i] = "0123456789abcdef"[value & 15];
}

// Four numbers of five digits.
void WriteIds(std::uint64_t value, char* at) {
  for (int number = 0; number < 4; ++number, value >>= 16) {
    std::uint64_t id = 10'000 + (value & 0xffff);
    for (int digit = 4; digit >= 0; --digit, id /= 10)
      at[number * 6 + digit] = static_cast<char>('0' + id % 10);
  }
}

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

template <typename HeaderMap>
void AddHeader(HeaderMap& map, std::string_view key, std::string_view value) {
  auto* header = map.add_headers();
  header->set_key(std::string(key));
  header->set_raw_value(std::string(value));
}

std::string ChatBody(const std::vector<std::string>& messages) {
  std::string body = "{\"model\":\"" + std::string(kModel) + "\",\"messages\":[";
  for (std::size_t i = 0; i < messages.size(); ++i) {
    body += i == 0 ? "" : ",";
    body += i % 2 == 0 ? "{\"role\":\"user\",\"content\":\"" : "{\"role\":\"assistant\",\"content\":\"";
    if (i == 0) body += std::string(kUniqueText) + " ";
    body += messages[i] + "\"}";
  }
  return body + "],\"max_tokens\":128,\"stream\":true,\"stream_options\":{\"include_usage\":true}}";
}

}  // namespace

std::string_view ToString(PromptKind kind) {
  switch (kind) {
    case PromptKind::kDistinct:
      return "distinct";
    case PromptKind::kSessions:
      return "sessions";
    case PromptKind::kIds:
      return "ids";
  }
  return "?";
}

std::string PromptText(std::size_t characters, Random& random) {
  std::string text;
  text.reserve(characters + 16);
  for (std::size_t word = 1; text.size() < characters; ++word) {
    for (std::uint64_t letters = random.Between(1, 7); letters > 0; --letters) {
      text += static_cast<char>('a' + random.Below(26));
    }
    text += word % 20 == 0 ? "\\n" : " ";
  }
  text.resize(characters);
  if (!text.empty() && text.back() == '\\') text.back() = '.';  // half an escape
  return text;
}

RequestSet::RequestSet(PromptKind kind, std::size_t tokens, std::uint64_t seed, int live_sessions)
    : kind_(kind), random_(seed) {
  const std::size_t characters = std::max<std::size_t>(tokens * kCharactersPerToken, 32) - kUniqueText.size();
  switch (kind) {
    case PromptKind::kDistinct:
      shapes_.push_back(
          MakeShape("/v1/chat/completions", ChatBody({PromptText(characters, random_)}), false));
      break;
    case PromptKind::kSessions: {
      std::vector<std::string> messages;
      for (int turn = 0; turn < kSessionTurns; ++turn) {
        const double part = turn == 0 ? 0.65 : 0.1;  // from 0.65 to 1.35, 1.0 on average
        const auto bytes = static_cast<std::size_t>(part * static_cast<double>(characters));
        if (turn > 0) messages.push_back(PromptText(bytes / 4, random_));  // the assistant's
        messages.push_back(PromptText(turn > 0 ? bytes - bytes / 4 : bytes, random_));
        shapes_.push_back(MakeShape("/v1/chat/completions", ChatBody(messages), true));
      }
      for (int i = 0; i < live_sessions; ++i)
        sessions_.push_back({random_.Next(), static_cast<std::size_t>(i % kSessionTurns)});
      break;
    }
    case PromptKind::kIds: {
      std::string body = "{\"model\":\"" + std::string(kModel) + "\",\"prompt\":[" + std::string(kUniqueIds);
      for (std::size_t i = 4; i < tokens; ++i) body += "," + std::to_string(random_.Below(100'000));
      shapes_.push_back(MakeShape("/v1/completions", body + "],\"max_tokens\":128,\"stream\":true}", false));
      break;
    }
  }

  ProcessingRequest message;
  AddHeader(*message.mutable_response_headers()->mutable_headers(), ":status", "200");
  AddHeader(*message.mutable_response_headers()->mutable_headers(), "content-type", "text/event-stream");
  response_headers_ = ToBuffer(message.SerializeAsString());
  std::string events;
  for (const char* word : {"One", " two", " three"}) {
    events += "data: {\"id\":\"1\",\"object\":\"chat.completion.chunk\",\"model\":\"" + std::string(kModel) +
              "\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" + word + "\"}}]}\n\n";
  }
  events += "data: {\"id\":\"1\",\"object\":\"chat.completion.chunk\",\"model\":\"" + std::string(kModel) +
            "\",\"choices\":[],\"usage\":{\"prompt_tokens\":" + std::to_string(tokens) +
            ",\"completion_tokens\":3,\"total_tokens\":" + std::to_string(tokens + 3) +
            "}}\n\ndata: [DONE]\n\n";
  response_body_bytes_ = events.size();
  message.Clear();
  message.mutable_response_body()->set_body(events);
  message.mutable_response_body()->set_end_of_stream(true);
  response_body_ = ToBuffer(message.SerializeAsString());
}

RequestSet::Shape RequestSet::MakeShape(const std::string& path, const std::string& body,
                                        bool session) const {
  Shape shape;
  shape.body_bytes = body.size();
  ProcessingRequest message;
  auto& headers = *message.mutable_request_headers()->mutable_headers();
  AddHeader(headers, ":authority", "gateway.example");
  AddHeader(headers, ":path", path);
  AddHeader(headers, ":method", "POST");
  AddHeader(headers, ":scheme", "http");
  AddHeader(headers, "content-type", "application/json");
  AddHeader(headers, "content-length", std::to_string(body.size()));
  AddHeader(headers, "accept", "text/event-stream");
  AddHeader(headers, "user-agent", "bench_gateway");
  AddHeader(headers, "x-forwarded-proto", "http");
  AddHeader(headers, "x-request-id", kRequestId);
  if (session) AddHeader(headers, "x-session-id", kSessionId);
  message.mutable_protocol_config()->set_request_body_mode(ProcessingMode::FULL_DUPLEX_STREAMED);
  message.mutable_protocol_config()->set_response_body_mode(ProcessingMode::FULL_DUPLEX_STREAMED);
  shape.headers = message.SerializeAsString();
  shape.id_at = shape.headers.find(kRequestId);
  if (session) shape.session_at = shape.headers.find(kSessionId);
  for (std::size_t at = 0; at < body.size(); at += kPieceBytes) {
    message.Clear();
    message.mutable_request_body()->set_body(body.substr(at, kPieceBytes));
    message.mutable_request_body()->set_end_of_stream(at + kPieceBytes >= body.size());
    std::string bytes = message.SerializeAsString();
    if (at == 0) {
      shape.first = std::move(bytes);
    } else {
      shape.rest.push_back(ToBuffer(bytes));
    }
  }
  shape.unique_at = shape.first.find(kind_ == PromptKind::kIds ? kUniqueIds : kUniqueText);
  return shape;
}

void RequestSet::Next(WireRequest& request) {
  std::uint64_t unique = random_.Next();
  const std::uint64_t id = random_.Next();
  std::size_t turn = 0;
  if (kind_ == PromptKind::kSessions) {
    Session& session = sessions_[next_session_];
    next_session_ = (next_session_ + 1) % sessions_.size();
    if (session.turn == kSessionTurns) session = {unique, 0};
    unique = session.id;
    turn = session.turn++;
  }
  Shape& shape = shapes_[turn];
  WriteHex(id, shape.headers.data() + shape.id_at);
  if (shape.session_at > 0) WriteHex(unique, shape.headers.data() + shape.session_at);
  if (kind_ == PromptKind::kIds) {
    WriteIds(unique, shape.first.data() + shape.unique_at);
  } else {
    WriteHex(unique, shape.first.data() + shape.unique_at);
  }
  request.messages.clear();
  request.messages.push_back(ToBuffer(shape.headers));
  request.messages.push_back(ToBuffer(shape.first));
  request.messages.insert(request.messages.end(), shape.rest.begin(), shape.rest.end());
  request.body_bytes = shape.body_bytes;
}

}  // namespace llmd::bench
