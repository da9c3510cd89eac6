// A validating pull reader of one JSON document over bytes that it does not copy.
//
// simdjson's first stage finds the tokens and checks UTF-8; this walks them. Everything is validated, also
// what is skipped, and an error knows its byte. Strings without escapes are views of the document; others are
// unescaped into the arena given. Nothing is allocated once the index is as large as the largest document so
// far.
//
//   if (reader.Open(text)) {
//     for (bool more = reader.BeginObject(); reader.NextField(more, key);) ... read or skip the value ...
//     reader.Close();
//   }
//   if (!reader.ok()) return reader.error();
//
// After the first error every call fails, so callers check once at the end.
#ifndef SRC_GATEWAY_JSON_READER_H_
#define SRC_GATEWAY_JSON_READER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace llmd::gateway {

// Room for text made while reading; reused from one document to the next.
class TextArena {
 public:
  void Reset(std::size_t capacity) {
    used_ = 0;
    wanted_ = capacity;
  }
  // Room for `size` bytes; the sum since Reset() stays within its capacity.
  char* Take(std::size_t size);
  void Return(std::size_t size) { used_ -= size; }
  std::size_t capacity() const { return capacity_; }
  void Free() { *this = TextArena(); }

 private:
  std::unique_ptr<char[]> data_;
  std::size_t capacity_ = 0, used_ = 0, wanted_ = 0;
};

class JsonReader {
 public:
  explicit JsonReader(std::size_t max_depth = 256);
  ~JsonReader();
  JsonReader(const JsonReader&) = delete;
  JsonReader& operator=(const JsonReader&) = delete;

  // Indexes `text`, which must outlive the walk.
  bool Open(std::string_view text, TextArena* arena);
  // Nothing may follow the document.
  bool Close();

  bool ok() const { return reason_ == nullptr; }
  // "byte 17: expected ':' after a key"
  absl::Status error() const;
  std::size_t error_offset() const { return error_offset_; }

  // First character of the next token, 0 at the end.
  char Peek() const { return position_ < count_ ? text_[index_[position_]] : '\0'; }
  std::size_t offset() const;
  // The bytes from `begin` (an earlier offset()) to the end of the last token read.
  std::string_view RawSince(std::size_t begin) const { return text_.substr(begin, last_end_ - begin); }

  bool BeginObject();
  // True with the next key; false at the end of the object or on an error.
  bool NextField(bool& first, std::string_view& key);
  bool BeginArray();
  bool NextElement(bool& first);

  bool ReadString(std::string_view& value);
  // Integers, also in the spellings 3.0 and 3e2. False without an error when it is a number that is no
  // integer in [0, max].
  bool ReadUint(std::uint64_t max, std::uint64_t& value);
  // At an element of an array: reads elements of at most 8 digits for as long as another number follows, and
  // stops before the first that is anything else. A fast way through long lists of token ids.
  void ReadShortUints(std::vector<std::uint32_t>& values);
  bool ReadDouble(double& value);
  bool ReadBool(bool& value);
  bool ReadNull();
  bool Skip();

 private:
  bool Fail(const char* reason, std::size_t offset);
  bool FailHere(const char* reason) { return Fail(reason, offset()); }
  std::string_view Token() const;  // without white space
  void Advance(std::size_t token_size);
  bool FailToken();
  bool CheckNumber(std::string_view token);
  bool CheckEscapes(std::string_view body, std::size_t offset);
  bool Unescape(std::string_view body, std::size_t offset, std::string_view& value);
  bool DiagnoseIndexing(int error);

  struct Index;
  std::unique_ptr<Index> impl_;
  const std::size_t max_depth_;
  std::string_view text_;
  const std::uint32_t* index_ = nullptr;
  std::size_t count_ = 0, position_ = 0, depth_ = 0, last_end_ = 0;
  TextArena* arena_ = nullptr;
  const char* reason_ = nullptr;
  std::size_t error_offset_ = 0;
};

}  // namespace llmd::gateway

#endif  // SRC_GATEWAY_JSON_READER_H_
