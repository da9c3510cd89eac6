#include "examples/llmd_load/answer.h"

#include <nlohmann/json.hpp>

namespace llmd::load {
namespace {

using nlohmann::json;

// The generated text of an event or a document; false when it has none.
bool TextOf(const json& document, std::string& out) {
  const auto choices = document.find("choices");
  if (choices == document.end() || !choices->is_array() || choices->empty() ||
      !choices->front().is_object()) {
    return false;
  }
  const json& choice = choices->front();
  const json* text = nullptr;
  if (const auto it = choice.find("text"); it != choice.end()) text = &*it;
  for (const char* key : {"delta", "message"}) {
    const auto it = choice.find(key);
    if (it == choice.end() || !it->is_object()) continue;
    if (const auto content = it->find("content"); content != it->end()) text = &*content;
  }
  if (!text || !text->is_string() || text->get_ref<const std::string&>().empty()) return false;
  out += text->get_ref<const std::string&>();
  return true;
}

}  // namespace

bool AnswerReader::Event(std::string_view data) {
  if (data == "[DONE]") {
    complete_ = true;
    return false;
  }
  const json document = json::parse(data, nullptr, false);
  if (!document.is_object()) {
    error_ = "an event that is no JSON object";
    return false;
  }
  if (const auto error = document.find("error"); error != document.end() && !error->is_null()) {
    error_ = "an error within the answer";
    return false;
  }
  return TextOf(document, text_);
}

std::size_t AnswerReader::Append(std::string_view bytes) {
  if (!error_.empty()) return 0;
  usage_.Append(bytes);
  if (held_.size() + bytes.size() > max_bytes_) {
    error_ = "an answer that is too long";
    return 0;
  }
  held_ += bytes;
  if (!event_stream_) return 0;
  std::size_t pieces = 0, at = 0;
  for (std::size_t end; (end = held_.find('\n', at)) != std::string::npos; at = end + 1) {
    std::string_view line = std::string_view(held_).substr(at, end - at);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.substr(0, 5) != "data:") continue;
    line.remove_prefix(5);
    if (!line.empty() && line.front() == ' ') line.remove_prefix(1);
    if (Event(line)) ++pieces;
  }
  held_.erase(0, at);
  return pieces;
}

void AnswerReader::Finish() {
  usage_.Finish();
  if (event_stream_ || !error_.empty()) return;
  const json document = json::parse(held_, nullptr, false);
  if (!document.is_object()) {
    error_ = "an answer that is no JSON object";
    return;
  }
  TextOf(document, text_);
  complete_ = true;
}

}  // namespace llmd::load
