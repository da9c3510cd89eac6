// Messages, content blocks and media of a request. (spec: gateway.md 6.2, 6.3)
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <limits>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/gateway/openai_parser.h"

namespace llmd::gateway {
namespace {

// 128 bits of XXH3 in hexadecimal: an identity for routing, not a proof of anything.
void HashMedia(std::string_view data, char* out) {
  constexpr char kHex[] = "0123456789abcdef";
  const XXH128_hash_t hash = XXH3_128bits(data.data(), data.size());
  for (const std::uint64_t half : {hash.high64, hash.low64}) {
    for (int shift = 60; shift >= 0; shift -= 4) *out++ = kHex[half >> shift & 15];
  }
}

}  // namespace

bool OpenAiParser::Impl::ReadMessages(std::string_view what) {
  if (reader_.Peek() != '[') return Refuse(absl::StrCat(ToAbsl(what), " must be a list"));
  if (!reader_.BeginArray()) return false;
  for (bool first = true; reader_.NextElement(first);) {
    if (!ReadMessage(what)) return false;
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::ReadMessage(std::string_view what) {
  if (reader_.Peek() != '{') return Refuse(absl::StrCat(ToAbsl(what), " must be a list of objects"));
  OpenAiRequest& out = *out_;
  ChatMessage message{.first_piece = out.text.size()};
  const std::size_t media = out.media.size();
  if (!reader_.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader_.NextField(first, key);) {
    bool read = true;
    if (key == "role") {
      read = ReadStringOrSkip(message.role = {});
    } else if (key == "content") {
      out.text.resize(message.first_piece);
      out.media.resize(media);
      read = ReadContent();
    } else {
      read = reader_.Skip();
    }
    if (!read) return false;
  }
  message.piece_count = out.text.size() - message.first_piece;
  out.messages.push_back(message);
  return reader_.ok();
}

// A string, a list of blocks, or null (an assistant that only calls tools).
bool OpenAiParser::Impl::ReadContent() {
  switch (reader_.Peek()) {
    case '"':
      pieces_->emplace_back();
      return reader_.ReadString(pieces_->back());
    case 'n':
      return reader_.ReadNull();
    case '[':
      if (!reader_.BeginArray()) return false;
      for (bool first = true; reader_.NextElement(first);) {
        if (!ReadBlock()) return false;
      }
      return reader_.ok();
    default:
      return Refuse("content must be a string or a list of blocks");
  }
}

bool OpenAiParser::Impl::ReadBlock() {
  if (reader_.Peek() != '{') return Refuse("a content block must be an object");
  std::string_view key, type, text, image, audio, video, format, ignored;
  bool has_text = false;
  if (!reader_.BeginObject()) return false;
  for (bool first = true; reader_.NextField(first, key);) {
    bool read = true;
    if (key == "type") {
      read = ReadStringOrSkip(type = {});
    } else if (key == "text") {
      has_text = reader_.Peek() == '"';
      read = ReadStringOrSkip(text = {});
    } else if (key == "image_url" || key == "source") {
      read = ReadMedia(image, ignored);
    } else if (key == "input_audio" || key == "audio_url") {
      read = ReadMedia(audio, format);
    } else if (key == "video_url") {
      read = ReadMedia(video, ignored);
    } else {
      read = reader_.Skip();
    }
    if (!read) return false;
  }
  if (!reader_.ok()) return false;
  if (type == "text" || type == "input_text" || type == "output_text") {
    if (!has_text) return Refuse("a text block must have a text");
    pieces_->push_back(text);
    pieces_->push_back(" ");
    return true;
  }
  if (type == "image_url" || type == "input_image" || type == "image") return AddMedia("image", image, {});
  if (type == "input_audio" || type == "audio_url") return AddMedia("audio", audio, format);
  if (type == "video_url") return AddMedia("video", video, {});
  return true;
}

bool OpenAiParser::Impl::ReadMedia(std::string_view& data, std::string_view& format) {
  data = format = {};
  if (reader_.Peek() != '{') return ReadStringOrSkip(data);
  if (!reader_.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader_.NextField(first, key);) {
    const bool read = key == "url" || key == "data" ? ReadStringOrSkip(data)
                      : key == "format"             ? ReadStringOrSkip(format)
                                                    : reader_.Skip();
    if (!read) return false;
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::AddMedia(std::string_view modality, std::string_view data, std::string_view format) {
  if (out_->media.size() >= limits_.max_media_items) {
    return Refuse(absl::StrCat("more than ", limits_.max_media_items, " images, sounds and videos"));
  }
  char* const hash = arena_.Take(32);
  HashMedia(data, hash);
  out_->media.push_back({.modality = modality,
                         .data = data,
                         .format = format,
                         .hash = std::string_view(hash, 32),
                         .piece = pieces_ == &lead_ ? 0 : out_->text.size()});
  return true;
}

bool OpenAiParser::Impl::ReadLead() {
  lead_.clear();
  pieces_ = &lead_;
  const bool read = ReadContent();
  pieces_ = &out_->text;
  return read;
}

bool OpenAiParser::Impl::ReadFeatures() {
  placeholders_.clear();
  hashes_.clear();
  if (reader_.Peek() != '{') return reader_.Skip();
  if (!reader_.BeginObject()) return false;
  std::string_view key;
  for (bool first = true; reader_.NextField(first, key);) {
    const bool object = reader_.Peek() == '{';
    const bool read = object && key == "mm_hashes"         ? ReadHashes()
                      : object && key == "mm_placeholders" ? ReadPlaceholders()
                                                           : reader_.Skip();
    if (!read) return false;
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::ReadHashes() {
  hashes_.clear();
  if (!reader_.BeginObject()) return false;
  std::string_view modality;
  for (bool first = true; reader_.NextField(first, modality);) {
    if (reader_.Peek() != '[') return Refuse("mm_hashes must hold lists");
    if (!reader_.BeginArray()) return false;
    for (bool head = true; reader_.NextElement(head);) {
      if (hashes_.size() >= limits_.max_media_items) return Refuse("too many mm_hashes");
      hashes_.push_back({modality, {}});
      if (!ReadStringOrSkip(hashes_.back().hash)) return false;
    }
    if (!reader_.ok()) return false;
  }
  return reader_.ok();
}

bool OpenAiParser::Impl::ReadPlaceholders() {
  placeholders_.clear();
  if (!reader_.BeginObject()) return false;
  std::string_view modality, key;
  for (bool first = true; reader_.NextField(first, modality);) {
    if (reader_.Peek() != '[') return Refuse("mm_placeholders must hold lists");
    if (!reader_.BeginArray()) return false;
    for (bool head = true; reader_.NextElement(head);) {
      if (placeholders_.size() >= limits_.max_media_items) return Refuse("too many mm_placeholders");
      Placeholder range{.modality = modality};
      if (reader_.Peek() != '{') return Refuse("a placeholder must be an object");
      if (!reader_.BeginObject()) return false;
      for (bool one = true; reader_.NextField(one, key);) {
        if (key == "offset" || key == "length") {
          std::uint64_t& value = key == "offset" ? range.offset : range.length;
          const char c = reader_.Peek();
          if ((c != '-' && !(c >= '0' && c <= '9')) ||
              !reader_.ReadUint(std::numeric_limits<TokenId>::max(), value)) {
            return Refuse("a placeholder's offset and length must be whole numbers from 0 to 4294967295");
          }
        } else if (!reader_.Skip()) {
          return false;
        }
      }
      if (!reader_.ok()) return false;
      placeholders_.push_back(range);
    }
    if (!reader_.ok()) return false;
  }
  return reader_.ok();
}

// The k-th hash of a modality belongs to its k-th placeholder. Both lists are grouped by modality.
void OpenAiParser::Impl::PairFeatures() {
  std::vector<MediaItem>& media = out_->media;
  for (const MediaHash& hash : hashes_) media.push_back({.modality = hash.modality, .hash = hash.hash});
  std::size_t item = 0;
  for (const Placeholder& range : placeholders_) {
    // The next item of that modality without a range; the search goes on from the last one found.
    std::size_t found = media.size();
    for (std::size_t step = 0; step < hashes_.size(); ++step) {
      const std::size_t at = (item + step) % hashes_.size();
      if (media[at].modality == range.modality && media[at].length == 0 && media[at].offset == 0) {
        found = at;
        break;
      }
    }
    if (found == media.size()) {
      media.push_back({.modality = range.modality});
    } else {
      item = found + 1;
    }
    media[found].offset = range.offset;
    media[found].length = range.length;
  }
}

}  // namespace llmd::gateway
