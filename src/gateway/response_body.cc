#include "llmd/gateway/response_body.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <limits>

#include "llmd/gateway/openai_request.h"
#include "src/gateway/json_reader.h"

namespace llmd::gateway {
namespace {

constexpr std::size_t kMaxLine = std::size_t{1} << 20;
constexpr std::string_view kModelKey = "\"model\":";

// A number, or a string of digits; other values are passed over.
bool ReadCount(JsonReader& reader, std::uint64_t& count) {
  std::uint64_t value = 0;
  if (reader.Peek() == '"') {
    std::string_view text;
    if (!reader.ReadString(text)) return false;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc() || result.ptr != text.data() + text.size()) return true;
  } else if (reader.Peek() == '-' || (reader.Peek() >= '0' && reader.Peek() <= '9')) {
    if (!reader.ReadUint(std::numeric_limits<std::int64_t>::max(), value)) return reader.ok();
  } else {
    return reader.Skip();
  }
  if (value != 0) count = value;
  return true;
}

bool ReadDetails(JsonReader& reader, Usage& usage) {
  if (reader.Peek() != '{') return reader.Skip();
  if (!reader.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader.NextField(first, key);) {
    if (!(key == "cached_tokens" ? ReadCount(reader, usage.cached_tokens) : reader.Skip())) return false;
  }
  return reader.ok();
}

bool ReadUsage(JsonReader& reader, Usage& usage) {
  if (reader.Peek() != '{') return reader.Skip();  // null in all events but the last
  usage.known = true;
  if (!reader.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader.NextField(first, key);) {
    bool read = true;
    if (key == "prompt_tokens" || key == "input_tokens") {
      read = ReadCount(reader, usage.prompt_tokens);
    } else if (key == "completion_tokens" || key == "output_tokens") {
      read = ReadCount(reader, usage.completion_tokens);
    } else if (key == "total_tokens") {
      read = ReadCount(reader, usage.total_tokens);
    } else if (key == "prompt_tokens_details" || key == "input_tokens_details") {
      read = ReadDetails(reader, usage);
    } else if (key == "cache_read_input_tokens") {
      read = ReadCount(reader, usage.cached_tokens);
    } else {
      read = reader.Skip();
    }
    if (!read) return false;
  }
  return reader.ok();
}

// `usage` at the top, under `response` (Responses API) or under `message` (Anthropic's message_start).
bool ReadEnvelope(JsonReader& reader, Usage& usage, bool top) {
  if (reader.Peek() != '{') return reader.Skip();
  if (!reader.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader.NextField(first, key);) {
    const bool read = key == "usage"                                   ? ReadUsage(reader, usage)
                      : top && (key == "response" || key == "message") ? ReadEnvelope(reader, usage, false)
                                                                       : reader.Skip();
    if (!read) return false;
  }
  return reader.ok();
}

// Whether some "usage" has an object: most events have none, or null.
bool MayHaveUsage(std::string_view json) {
  constexpr std::string_view kKey = "\"usage\"";
  for (std::size_t at = json.find(kKey); at != json.npos; at = json.find(kKey, at + 1)) {
    const std::size_t next = json.find_first_not_of(" \t\r\n:", at + kKey.size());
    if (next != json.npos && json[next] == '{') return true;
  }
  return false;
}

}  // namespace

void UsageReader::ReadDocument(std::string_view json) {
  if (!MayHaveUsage(json)) return;
  JsonReader reader(/*max_depth=*/256);
  TextArena arena;
  Usage usage = usage_;
  if (reader.Open(json, &arena) && ReadEnvelope(reader, usage, /*top=*/true) && reader.Close()) {
    usage_ = usage;
    if (usage_.known) {
      usage_.total_tokens = std::max(usage_.total_tokens, usage_.prompt_tokens + usage_.completion_tokens);
    }
  }
}

void UsageReader::ReadLine(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  if (!line.starts_with("data:")) return;
  line.remove_prefix(5);
  if (line.starts_with(' ')) line.remove_prefix(1);
  if (line != "[DONE]") ReadDocument(line);
}

void UsageReader::Append(std::string_view piece) {
  if (!event_stream_) {
    overlong_ = overlong_ || piece.size() > max_bytes_ - std::min(max_bytes_, held_.size());
    if (overlong_) {
      held_ = {};
    } else {
      held_.append(piece);
    }
    return;
  }
  while (!piece.empty()) {
    const std::size_t end = piece.find('\n');
    const std::string_view part = piece.substr(0, end);
    const std::size_t room = std::min(max_bytes_, kMaxLine);
    if (end == piece.npos) {
      overlong_ = overlong_ || part.size() > room - std::min(room, held_.size());
      if (overlong_) {
        held_.clear();
      } else {
        held_.append(part);
      }
      return;
    }
    if (overlong_) {
      overlong_ = false;
    } else if (held_.empty()) {
      ReadLine(part);
    } else if (part.size() <= room - std::min(room, held_.size())) {
      held_.append(part);
      ReadLine(held_);
    }
    held_.clear();
    piece.remove_prefix(end + 1);
  }
}

void UsageReader::Finish() {
  if (event_stream_) {
    ReadLine(held_);
  } else {
    ReadDocument(held_);
  }
  held_ = {};
}

ModelNameRestorer::ModelNameRestorer(std::string_view from, std::string_view to) {
  if (from == to || from.empty()) return;
  from_ = QuoteJson(from);
  to_ = QuoteJson(to);
}

std::size_t ModelNameRestorer::Match(std::string_view text) const {
  const auto begins = [](std::string_view whole, std::string_view part) {
    return part.substr(0, std::min(part.size(), whole.size())) ==
           whole.substr(0, std::min(part.size(), whole.size()));
  };
  if (!begins(kModelKey, text)) return 0;
  if (text.size() <= kModelKey.size()) return std::string_view::npos;
  std::size_t at = kModelKey.size();
  if (text[at] == ' ') ++at;
  const std::string_view rest = text.substr(at);
  if (!begins(from_, rest)) return 0;
  return rest.size() < from_.size() ? std::string_view::npos : at + from_.size();
}

void ModelNameRestorer::Append(std::string_view piece, std::string& out) {
  if (!active()) {
    out.append(piece);
    return;
  }
  std::string joined;
  if (!held_.empty()) {
    joined = std::move(held_);
    joined.append(piece);
    piece = joined;
    held_.clear();
  }
  std::size_t done = 0, at = 0;
  while ((at = piece.find('"', at)) != piece.npos) {
    const std::size_t size = Match(piece.substr(at));
    if (size == std::string_view::npos) {
      out.append(piece.substr(done, at - done));
      held_.assign(piece.substr(at));
      return;
    }
    if (size == 0) {
      ++at;
      continue;
    }
    out.append(piece.substr(done, at + size - from_.size() - done));
    out.append(to_);
    at += size;
    done = at;
  }
  out.append(piece.substr(done));
}

void ModelNameRestorer::Finish(std::string& out) {
  out.append(held_);
  held_.clear();
}

}  // namespace llmd::gateway
