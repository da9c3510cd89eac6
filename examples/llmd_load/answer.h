// Reads the body of an OpenAI answer as it arrives: an event stream, or one JSON document.
#ifndef LLMD_EXAMPLES_LLMD_LOAD_ANSWER_H_
#define LLMD_EXAMPLES_LLMD_LOAD_ANSWER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "llmd/gateway/response_body.h"

namespace llmd::load {

class AnswerReader {
 public:
  explicit AnswerReader(bool event_stream, std::size_t max_bytes = std::size_t{64} << 20)
      : event_stream_(event_stream), max_bytes_(max_bytes), usage_(event_stream, max_bytes) {}

  // Returns how many pieces of generated text came with `bytes`.
  std::size_t Append(std::string_view bytes);
  // The body has ended. A plain body is read here.
  void Finish();

  // Why the answer is none; empty while it is well.
  const std::string& error() const { return error_; }
  // Ended as it should: with [DONE], or as a whole document.
  bool complete() const { return complete_ && error_.empty(); }
  const std::string& text() const { return text_; }  // generated
  const gateway::Usage& usage() const { return usage_.usage(); }

 private:
  bool Event(std::string_view data);

  bool event_stream_;
  std::size_t max_bytes_;
  bool complete_ = false;
  std::string held_, text_, error_;
  gateway::UsageReader usage_;
};

}  // namespace llmd::load

#endif  // LLMD_EXAMPLES_LLMD_LOAD_ANSWER_H_
