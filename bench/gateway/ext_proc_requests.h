// Requests as Envoy tells them to an external processor, ready for the wire.
//
// The text of a size is made and serialized once; Next() changes a few bytes at its beginning, so that the
// sending process does little else than send, and yet no two prompts share a prefix.
// Not thread safe.
#ifndef BENCH_GATEWAY_EXT_PROC_REQUESTS_H_
#define BENCH_GATEWAY_EXT_PROC_REQUESTS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <grpcpp/support/byte_buffer.h>

#include "llmd/base/random.h"

namespace llmd::bench {

enum class PromptKind {
  kDistinct,  // chat text, no two requests alike
  kSessions,  // conversations of 8 turns, from 0.65 to 1.35 of the tokens, with x-session-id
  kIds,       // completions of token ids: tokens given
};
std::string_view ToString(PromptKind kind);

inline constexpr int kSessionTurns = 8;
inline constexpr std::size_t kCharactersPerToken = 4;
inline constexpr std::size_t kPieceBytes = 65536;  // of a body, as Envoy cuts them

struct WireRequest {
  std::vector<grpc::ByteBuffer> messages = {};  // headers with protocol_config, then the body
  std::size_t body_bytes = 0;
};

class RequestSet {
 public:
  RequestSet(PromptKind kind, std::size_t tokens, std::uint64_t seed, int live_sessions = 64);

  // The next request. `request` may be reused.
  void Next(WireRequest& request);
  // Status and headers of a streamed answer, and its body: a short SSE stream with usage.
  const grpc::ByteBuffer& response_headers() const { return response_headers_; }
  const grpc::ByteBuffer& response_body() const { return response_body_; }
  std::size_t response_body_bytes() const { return response_body_bytes_; }

 private:
  struct Shape {
    std::string headers;         // ProcessingRequest
    std::string first;           // ProcessingRequest with the first piece of the body
    std::size_t id_at = 0;       // of the request's id in `headers`
    std::size_t session_at = 0;  // 0: none
    std::size_t unique_at = 0;   // in `first`
    std::vector<grpc::ByteBuffer> rest;
    std::size_t body_bytes = 0;
  };
  struct Session {
    std::uint64_t id = 0;
    std::size_t turn = 0;
  };

  Shape MakeShape(const std::string& path, const std::string& body, bool session) const;

  PromptKind kind_;
  Random random_;
  std::vector<Shape> shapes_;  // one for each turn
  std::vector<Session> sessions_;
  std::size_t next_session_ = 0;
  grpc::ByteBuffer response_headers_;
  grpc::ByteBuffer response_body_;
  std::size_t response_body_bytes_ = 0;
};

// Text of exactly `characters` bytes of JSON string content: words of 1 to 7 letters, a line break every 20.
std::string PromptText(std::size_t characters, Random& random);

}  // namespace llmd::bench

#endif  // BENCH_GATEWAY_EXT_PROC_REQUESTS_H_
