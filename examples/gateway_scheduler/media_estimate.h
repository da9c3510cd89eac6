// How many tokens a picture, a video or a sound will probably be: llm-d's guesses, for prompts that no
// tokenizer has seen. (spec: scheduling.md 2.8; llm-d-router: .../dataproducer/tokenizer/mm_estimate.go)
//
//   image   width * height / 1024, from the header of a PNG, JPEG or GIF in a data URL, else of 640 x 360
//   video   frames * width * height / 1024: 10 s at 2 frames a second of 640 x 360
//   audio   14 + 12.5 a second, from the header or the length of inline data, else of 10 s
//
// What a client claims is bounded: no asset counts more than kMaxAssetTokens. Free functions, any thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_MEDIA_ESTIMATE_H_
#define EXAMPLES_GATEWAY_SCHEDULER_MEDIA_ESTIMATE_H_

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/statusor.h"
#include "llmd/gateway/openai_request.h"
#include "llmd/sched/parameters.h"

namespace llmd::host {

inline constexpr std::uint32_t kMaxAssetTokens = 1 << 17;

struct MediaEstimate {
  struct Size {
    std::uint32_t width = 640, height = 360;
  };
  struct Image {
    std::optional<std::uint32_t> static_tokens = {};  // instead of the size's
    std::uint32_t factor = 1024;
    Size size = {};
  } image = {};
  struct Video {
    std::optional<std::uint32_t> static_frame_tokens = {};
    std::uint32_t factor = 1024;
    Size size = {};
    double seconds = 10;
    bool strided = false;  // frames: seconds * source_fps / stride, else seconds * sample_fps / patch
    double sample_fps = 2, source_fps = 24;
    std::uint32_t stride = 1, patch = 1;
    std::uint32_t min_frames = 0, max_frames = 0;  // 0: no limit
    std::uint32_t max_tokens = 0;                  // 0: no limit
  } video = {};
  struct Audio {
    std::optional<std::uint32_t> static_tokens = {};
    double tokens_per_second = 12.5;
    std::uint32_t overhead_tokens = 14;
    std::uint32_t bytes_per_second = 16000;  // of what is no WAV
    double seconds = 10;
    std::uint32_t max_tokens = 0;  // 0: no limit
  } audio = {};

  // From `estimate` of token-producer's parameters, null for the defaults. InvalidArgument names the field.
  static absl::StatusOr<MediaEstimate> FromParameters(const sched::Value& estimate);

  // At least 1, at most kMaxAssetTokens.
  std::uint32_t Tokens(const gateway::MediaItem& item) const;
};

// Of a PNG, JPEG or GIF in a base64 data URL.
std::optional<MediaEstimate::Size> ImageSize(std::string_view data_url);
// Of base64 PCM WAV.
std::optional<double> WavSeconds(std::string_view base64);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_MEDIA_ESTIMATE_H_
