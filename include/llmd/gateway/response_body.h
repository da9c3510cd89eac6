// What a router does with a model server's response as it passes: reads the usage, and gives the model its
// public name back.
//
// Both take the body in pieces of any size. Memory: one line of an event stream, or one JSON body, up to a
// limit. Plain values, no threads. (spec: gateway.md 2.7, 6.5)
#ifndef LLMD_GATEWAY_RESPONSE_BODY_H_
#define LLMD_GATEWAY_RESPONSE_BODY_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace llmd::gateway {

struct Usage {
  std::uint64_t prompt_tokens = 0;
  std::uint64_t completion_tokens = 0;
  std::uint64_t total_tokens = 0;
  std::uint64_t cached_tokens = 0;
  bool known = false;  // some usage object was seen

  friend bool operator==(const Usage&, const Usage&) = default;
};

class UsageReader {
 public:
  explicit UsageReader(bool event_stream, std::size_t max_bytes = std::size_t{64} << 20)
      : event_stream_(event_stream), max_bytes_(max_bytes) {}

  void Append(std::string_view piece);
  // The body has ended. A plain body that was kept elsewhere may be given whole.
  void Finish();
  void ReadDocument(std::string_view json);

  // Later numbers replace earlier ones, but 0 never replaces a number: vLLM sends one usage, or a growing one
  // with every event; Anthropic's events each know a part.
  const Usage& usage() const { return usage_; }
  std::size_t held_bytes() const { return held_.size(); }

 private:
  void ReadLine(std::string_view line);

  bool event_stream_;
  bool overlong_ = false;  // the rest of this line, or of the body, is not kept
  std::size_t max_bytes_;
  std::string held_;
  Usage usage_;
};

// Replaces "model":"<from>" (with or without one space after the colon) by the name `to`, also when it is
// split between two pieces: as much as may begin such a text is held back.
class ModelNameRestorer {
 public:
  ModelNameRestorer() = default;
  ModelNameRestorer(std::string_view from, std::string_view to);

  bool active() const { return !from_.empty(); }
  // Appends what can be passed on after `piece` to `out`.
  void Append(std::string_view piece, std::string& out);
  // Appends what was held back: the body has ended.
  void Finish(std::string& out);
  std::size_t held_bytes() const { return held_.size(); }

 private:
  // Bytes of `text` that are the whole text to replace, 0 when they are not, npos when they may become it.
  std::size_t Match(std::string_view text) const;

  std::string from_, to_;  // quoted
  std::string held_;
};

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_RESPONSE_BODY_H_
