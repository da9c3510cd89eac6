#include "examples/gateway_scheduler/media_estimate.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

constexpr std::size_t kImageHeaderBytes = 256 << 10;  // a JPEG may have a long preamble
constexpr std::size_t kWavHeaderBytes = 1024;

// The first bytes of base64 text; empty when it is none.
std::string Decoded(std::string_view base64, std::size_t bytes) {
  base64 = base64.substr(0, bytes / 3 * 4);
  std::string out;
  if (!absl::Base64Unescape(ToAbsl(base64), &out)) out.clear();
  return out;
}

std::uint32_t Byte(std::string_view bytes, std::size_t at) { return static_cast<unsigned char>(bytes[at]); }
std::uint32_t Big16(std::string_view bytes, std::size_t at) {
  return Byte(bytes, at) << 8 | Byte(bytes, at + 1);
}
std::uint32_t Big32(std::string_view bytes, std::size_t at) {
  return Big16(bytes, at) << 16 | Big16(bytes, at + 2);
}
std::uint32_t Little16(std::string_view bytes, std::size_t at) {
  return Byte(bytes, at) | Byte(bytes, at + 1) << 8;
}
std::uint32_t Little32(std::string_view bytes, std::size_t at) {
  return Little16(bytes, at) | Little16(bytes, at + 2) << 16;
}

std::optional<MediaEstimate::Size> Sensible(std::uint32_t width, std::uint32_t height) {
  if (width == 0 || height == 0) return std::nullopt;
  return MediaEstimate::Size{width, height};
}

std::optional<MediaEstimate::Size> JpegSize(std::string_view jpeg) {
  for (std::size_t at = 2; at + 9 < jpeg.size();) {
    if (Byte(jpeg, at) != 0xFF) return std::nullopt;
    const std::uint32_t marker = Byte(jpeg, at + 1);
    if (marker == 0xFF) {
      ++at;  // filling
      continue;
    }
    const bool frame = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
    if (frame) return Sensible(Big16(jpeg, at + 7), Big16(jpeg, at + 5));
    if (marker == 0xD8 || marker == 0x01 || (marker >= 0xD0 && marker <= 0xD7)) {
      at += 2;
    } else {
      at += 2 + std::max<std::size_t>(Big16(jpeg, at + 2), 2);
    }
  }
  return std::nullopt;
}

// What follows "base64," of a data URL, else all.
std::string_view Payload(std::string_view data) {
  const std::size_t mark = data.substr(0, 256).find("base64,");
  return mark == std::string_view::npos ? data : data.substr(mark + 7);
}

std::uint32_t Clamped(double tokens, std::uint32_t max_tokens) {
  if (max_tokens > 0) tokens = std::min(tokens, static_cast<double>(max_tokens));
  // NaN becomes 1.
  return tokens >= 1 ? static_cast<std::uint32_t>(std::min(tokens, static_cast<double>(kMaxAssetTokens))) : 1;
}

std::uint64_t SizeTokens(const MediaEstimate::Size& size, std::uint32_t factor) {
  return std::max<std::uint64_t>(std::uint64_t{size.width} * size.height / std::max(factor, 1u), 1);
}

void Count(sched::ParameterReader& read, std::string_view field, std::uint32_t* out) {
  std::int64_t number = *out;
  read.Optional(field, &number);
  if (number < 0 || number > 0xffffffff) read.Reject(field, absl::StrCat(number), "0 to 4294967295");
  if (number > 0) *out = static_cast<std::uint32_t>(number);  // 0 stands for the default, as in llm-d
}

void Positive(sched::ParameterReader& read, std::string_view field, double* out) {
  double number = *out;
  read.Optional(field, &number);
  if (!(number >= 0 && number < 1e9)) read.Reject(field, absl::StrCat(number), "at least 0");
  if (number > 0) *out = number;
}

absl::Status ReadSize(sched::ParameterReader& owner, MediaEstimate::Size* size) {
  sched::ParameterReader read = owner.Nested("defaultResolution");
  Count(read, "width", &size->width);
  Count(read, "height", &size->height);
  return read.Finish();
}

// {mode, dynamic{...}, static{FIELD}}
absl::Status ReadMode(sched::ParameterReader& read, std::string_view field,
                      std::optional<std::uint32_t>* static_tokens) {
  std::string mode;
  read.Optional("mode", &mode);
  if (!mode.empty() && mode != "dynamic" && mode != "static") {
    read.Reject("mode", absl::StrCat("\"", mode, "\""), "dynamic or static");
  }
  sched::ParameterReader fixed = read.Nested("static");
  std::uint32_t tokens = 1;
  Count(fixed, field, &tokens);
  if (mode == "static") *static_tokens = tokens;
  return fixed.Finish();
}

absl::Status ReadVideo(sched::ParameterReader& read, MediaEstimate::Video& video) {
  Positive(read, "defaultDuration", &video.seconds);
  Count(read, "maxVideoTokens", &video.max_tokens);
  if (absl::Status s = ReadSize(read, &video.size); !s.ok()) return s;
  sched::ParameterReader tokens = read.Nested("tokensPerFrame");
  if (absl::Status s = ReadMode(tokens, "numTokensPerFrame", &video.static_frame_tokens); !s.ok()) return s;
  sched::ParameterReader dynamic = tokens.Nested("dynamic");
  Count(dynamic, "factor", &video.factor);
  sched::ParameterReader frames = read.Nested("frames");
  std::string mode;
  frames.Optional("mode", &mode);
  if (!mode.empty() && mode != "sampled" && mode != "strided") {
    frames.Reject("mode", absl::StrCat("\"", mode, "\""), "sampled or strided");
  }
  video.strided = mode == "strided";
  Count(frames, "minFrames", &video.min_frames);
  Count(frames, "maxFrames", &video.max_frames);
  sched::ParameterReader sampled = frames.Nested("sampled");
  Positive(sampled, "sampleFPS", &video.sample_fps);
  Count(sampled, "temporalPatchSize", &video.patch);
  sched::ParameterReader strided = frames.Nested("strided");
  Positive(strided, "defaultSourceFPS", &video.source_fps);
  Count(strided, "frameStride", &video.stride);
  for (sched::ParameterReader* part : {&dynamic, &tokens, &sampled, &strided, &frames, &read}) {
    if (absl::Status s = part->Finish(); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status ReadAudio(sched::ParameterReader& read, MediaEstimate::Audio& audio) {
  Positive(read, "defaultDuration", &audio.seconds);
  Count(read, "maxAudioTokens", &audio.max_tokens);
  if (absl::Status s = ReadMode(read, "numTokens", &audio.static_tokens); !s.ok()) return s;
  sched::ParameterReader dynamic = read.Nested("dynamic");
  Positive(dynamic, "tokensPerSecond", &audio.tokens_per_second);
  Count(dynamic, "overheadTokens", &audio.overhead_tokens);
  Count(dynamic, "bytesPerSecond", &audio.bytes_per_second);
  if (absl::Status s = dynamic.Finish(); !s.ok()) return s;
  return read.Finish();
}

}  // namespace

absl::StatusOr<MediaEstimate> MediaEstimate::FromParameters(const sched::Value& estimate) {
  MediaEstimate out;
  sched::ParameterReader read("token-producer: estimate", estimate);
  sched::ParameterReader image = read.Nested("image");
  if (absl::Status s = ReadSize(image, &out.image.size); !s.ok()) return s;
  if (absl::Status s = ReadMode(image, "staticToken", &out.image.static_tokens); !s.ok()) return s;
  sched::ParameterReader dynamic = image.Nested("dynamic");
  Count(dynamic, "factor", &out.image.factor);
  if (absl::Status s = dynamic.Finish(); !s.ok()) return s;
  if (absl::Status s = image.Finish(); !s.ok()) return s;
  sched::ParameterReader video = read.Nested("video");
  if (absl::Status s = ReadVideo(video, out.video); !s.ok()) return s;
  sched::ParameterReader audio = read.Nested("audio");
  if (absl::Status s = ReadAudio(audio, out.audio); !s.ok()) return s;
  if (absl::Status s = read.Finish(); !s.ok()) return s;
  return out;
}

std::uint32_t MediaEstimate::Tokens(const gateway::MediaItem& item) const {
  if (item.modality == "image") {
    if (image.static_tokens) return Clamped(*image.static_tokens, 0);
    const std::optional<Size> size = ImageSize(item.data);
    return Clamped(static_cast<double>(SizeTokens(size.value_or(image.size), image.factor)), 0);
  }
  if (item.modality == "video") {
    double frames = video.seconds * (video.strided ? video.source_fps : video.sample_fps);
    if (video.strided) frames = static_cast<double>(static_cast<std::uint64_t>(frames) / video.stride);
    if (video.min_frames > 0) frames = std::max<double>(frames, video.min_frames);
    if (video.max_frames > 0) frames = std::min<double>(frames, video.max_frames);
    if (!video.strided) frames = static_cast<double>(static_cast<std::uint64_t>(frames) / video.patch);
    const std::uint64_t frame_tokens = video.static_frame_tokens ? std::max(*video.static_frame_tokens, 1u)
                                                                 : SizeTokens(video.size, video.factor);
    return Clamped(
        static_cast<double>(static_cast<std::uint64_t>(frames)) * static_cast<double>(frame_tokens),
        video.max_tokens);
  }
  if (audio.static_tokens) return Clamped(*audio.static_tokens, 0);
  double seconds = audio.seconds;
  // A sound given by URL has no format, and its data is no payload.
  if (const std::string_view payload = Payload(item.data); !item.format.empty() && !payload.empty()) {
    seconds = WavSeconds(payload).value_or(static_cast<double>(payload.size() / 4 * 3) /
                                           std::max(audio.bytes_per_second, 1u));
  }
  return Clamped(static_cast<double>(static_cast<std::uint64_t>(audio.tokens_per_second * seconds)) +
                     audio.overhead_tokens,
                 audio.max_tokens);
}

std::optional<MediaEstimate::Size> ImageSize(std::string_view data_url) {
  if (!data_url.starts_with("data:image/") ||
      data_url.substr(0, 256).find("base64,") == std::string_view::npos)
    return std::nullopt;
  const std::string_view payload = Payload(data_url);
  const std::string head = Decoded(payload, 48);
  if (head.size() >= 24 && head.starts_with("\x89PNG\r\n\x1a\n"))
    return Sensible(Big32(head, 16), Big32(head, 20));
  if (head.size() >= 10 && head.starts_with("GIF8")) return Sensible(Little16(head, 6), Little16(head, 8));
  if (head.size() >= 3 && head.starts_with("\xFF\xD8\xFF"))
    return JpegSize(Decoded(payload, kImageHeaderBytes));
  return std::nullopt;
}

std::optional<double> WavSeconds(std::string_view base64) {
  const std::string head = Decoded(base64, kWavHeaderBytes);
  if (head.size() < 12 || !head.starts_with("RIFF") || head.compare(8, 4, "WAVE") != 0) return std::nullopt;
  std::uint32_t byte_rate = 0;
  for (std::uint64_t at = 12; at + 8 <= head.size();) {
    const std::uint32_t size = Little32(head, at + 4);
    if (head.compare(at, 4, "data") == 0) {
      if (byte_rate == 0) return std::nullopt;
      return static_cast<double>(size) / byte_rate;
    }
    if (head.compare(at, 4, "fmt ") == 0 && at + 20 <= head.size()) byte_rate = Little32(head, at + 16);
    at += 8 + std::uint64_t{size} + size % 2;
  }
  return std::nullopt;
}

}  // namespace llmd::host
