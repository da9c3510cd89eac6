// What writer and reader of decision logs share: the frames, and digests that both compute. Private to the
// component.
#ifndef SRC_SCHED_RECORD_FORMAT_H_
#define SRC_SCHED_RECORD_FORMAT_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "llmd/sched/endpoint_pool.h"
#include "llmd/sched/explanation.h"
#include "llmd/sched/request.h"
#include "src/sched/record_bytes.h"

namespace llmd::sched::record {

inline constexpr std::string_view kMagic("llmdDec\x01", 8);  // the last byte is the version
inline constexpr std::size_t kFrameOverhead = 4 + 1 + 8;
inline constexpr std::size_t kMaxFrame = std::size_t{64} << 20;
inline constexpr std::size_t kMaxTexts = 65536;
// Of a header.
inline constexpr std::size_t kMaxProfiles = 64;
inline constexpr std::size_t kMaxScorers = 256;  // of all profiles
inline constexpr std::size_t kMaxData = 32;

enum FrameKind : std::uint8_t { kHeaderFrame = 1, kEndpointsFrame = 2, kDecisionFrame = 3 };

// Of a decision frame.
enum DecisionFlags : std::uint8_t { kAllCandidates = 1, kHasMaxOutput = 2, kSampledTogether = 4 };

// Which values of an endpoint follow.
enum EndpointFlags : std::uint8_t {
  kWaiting = 1,
  kRunning = 2,
  kCacheUsage = 4,
  kAdapters = 8,
  kCacheShape = 16,
  kAttributes = 32,
  kTimes = 64,
};

// A run of raw scores: its length * 4 + one of these.
enum ScoreRun : std::uint8_t { kLiteral = 0, kRepeat = 1, kAsBefore = 2 };

inline bool SameBits(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b);
}

// What the scores of a profile in the next record are relative to.
struct LastScores {
  std::vector<Position> survivors;
  std::vector<double> raw;  // [scorer][survivor]
};

std::uint64_t FrameChecksum(std::span<const std::byte> kind_and_payload, std::uint64_t previous);
std::uint64_t PromptDigest(const Request& request);
// Of the rest of the request; of headers, those to keep.
void AddRequest(const Request& request, bool (*keep_header)(std::string_view), WordDigest& digest);
// Of the state of every endpoint.
void AddEndpoints(const EndpointPool& pool, WordDigest& digest);
// Of what profiles computed from raw scores.
std::uint64_t ScoresDigest(const Explanation::Profile& profile);

}  // namespace llmd::sched::record

#endif  // SRC_SCHED_RECORD_FORMAT_H_
