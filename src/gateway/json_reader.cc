#include "src/gateway/json_reader.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "simdjson.h"
#include "src/gateway/utf8.h"

namespace llmd::gateway {
namespace {

constexpr std::size_t kKeepIndexBytes = std::size_t{4} << 20;  // of document

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

int HexDigit(char c) {
  if (IsDigit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The four hex digits at `at`, or -1.
int HexQuad(std::string_view text, std::size_t at) {
  if (at + 4 > text.size()) return -1;
  int value = 0;
  for (std::size_t i = at; i < at + 4; ++i) {
    const int digit = HexDigit(text[i]);
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

char* AppendUtf8(std::uint32_t code, char* out) {
  if (code < 0x80) {
    *out++ = static_cast<char>(code);
  } else if (code < 0x800) {
    *out++ = static_cast<char>(0xC0 | code >> 6);
    *out++ = static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    *out++ = static_cast<char>(0xE0 | code >> 12);
    *out++ = static_cast<char>(0x80 | (code >> 6 & 0x3F));
    *out++ = static_cast<char>(0x80 | (code & 0x3F));
  } else {
    *out++ = static_cast<char>(0xF0 | code >> 18);
    *out++ = static_cast<char>(0x80 | (code >> 12 & 0x3F));
    *out++ = static_cast<char>(0x80 | (code >> 6 & 0x3F));
    *out++ = static_cast<char>(0x80 | (code & 0x3F));
  }
  return out;
}

char SimpleEscape(char c) {
  switch (c) {
    case '"':
    case '\\':
    case '/':
      return c;
    case 'b':
      return '\b';
    case 'f':
      return '\f';
    case 'n':
      return '\n';
    case 'r':
      return '\r';
    case 't':
      return '\t';
    default:
      return '\0';
  }
}

}  // namespace

char* TextArena::Take(std::size_t size) {
  if (data_ == nullptr || capacity_ < wanted_) {
    // Only before the first Take() since Reset(): later ones fit.
    capacity_ = wanted_;
    data_ = std::make_unique_for_overwrite<char[]>(capacity_);
  }
  char* const at = data_.get() + used_;
  used_ += size;
  return at;
}

// The one place that touches simdjson: its token index, chosen for the processor at run time.
struct JsonReader::Index {
  std::unique_ptr<simdjson::internal::dom_parser_implementation> parser;
  std::size_t capacity = 0;

  simdjson::error_code Run(std::string_view text) {
    const std::size_t wanted = std::max<std::size_t>(text.size(), 1024);
    if (parser == nullptr || capacity < wanted || (capacity > kKeepIndexBytes && wanted <= kKeepIndexBytes)) {
      parser = nullptr;
      const auto error = simdjson::get_active_implementation()->create_dom_parser_implementation(
          wanted, /*max_depth=*/1, parser);
      if (error) return error;
      capacity = wanted;
    }
    return parser->stage1(reinterpret_cast<const std::uint8_t*>(text.data()), text.size(),
                          simdjson::stage1_mode::regular);
  }
};

JsonReader::JsonReader(std::size_t max_depth) : impl_(std::make_unique<Index>()), max_depth_(max_depth) {}
JsonReader::~JsonReader() = default;

bool JsonReader::Open(std::string_view text, TextArena* arena) {
  text_ = text;
  arena_ = arena;
  arena_->Reset(2 * text.size());  // unescaped text, and the hashes of media
  position_ = count_ = depth_ = last_end_ = 0;
  reason_ = nullptr;
  if (text.empty()) return Fail("the document is empty", 0);
  if (text.size() > std::numeric_limits<std::int32_t>::max()) return Fail("the document is too large", 0);
  if (const auto error = impl_->Run(text); error) return DiagnoseIndexing(error);
  index_ = impl_->parser->structural_indexes.get();
  count_ = impl_->parser->n_structural_indexes;
  if (count_ == 0) return Fail("the document is empty", 0);
  return true;
}

bool JsonReader::DiagnoseIndexing(int error) {
  switch (error) {
    case simdjson::UTF8_ERROR:
      return Fail("not UTF-8", ValidUtf8Prefix(text_));
    case simdjson::UNCLOSED_STRING:
    case simdjson::UNESCAPED_CHARS: {
      bool inside = false;
      std::size_t opened = 0;
      for (std::size_t i = 0; i < text_.size(); ++i) {
        const char c = text_[i];
        if (inside && c == '\\') {
          ++i;
        } else if (c == '"') {
          inside = !inside;
          opened = i;
        } else if (inside && static_cast<unsigned char>(c) < 0x20) {
          return Fail("control character in a string", i);
        }
      }
      return Fail("string without an end", opened);
    }
    case simdjson::EMPTY:
      return Fail("the document is empty", 0);
    case simdjson::MEMALLOC:
      return Fail("no memory to index the document", 0);
    default:
      return Fail("not JSON", 0);
  }
}

bool JsonReader::Close() {
  if (!ok()) return false;
  if (position_ < count_) return FailHere("text after the document");
  return true;
}

absl::Status JsonReader::error() const {
  if (ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("byte ", error_offset_, ": ", reason_));
}

std::size_t JsonReader::offset() const { return position_ < count_ ? index_[position_] : text_.size(); }

bool JsonReader::Fail(const char* reason, std::size_t offset) {
  if (!ok()) return false;
  reason_ = reason;
  error_offset_ = offset;
  position_ = count_ = 0;  // so that no walk goes on
  return false;
}

std::string_view JsonReader::Token() const {
  if (position_ >= count_) return {};
  const std::size_t begin = index_[position_];
  std::size_t end = position_ + 1 < count_ ? index_[position_ + 1] : text_.size();
  while (end > begin && (text_[end - 1] == ' ' || text_[end - 1] == '\n' || text_[end - 1] == '\r' ||
                         text_[end - 1] == '\t')) {
    --end;
  }
  return text_.substr(begin, end - begin);
}

void JsonReader::Advance(std::size_t token_size) {
  last_end_ = index_[position_] + token_size;
  ++position_;
}

bool JsonReader::FailToken() {
  if (!ok()) return false;
  switch (Peek()) {
    case '\0':
      return position_ < count_ ? FailHere("unexpected character") : FailHere("unexpected end");
    case '}':
    case ']':
    case ',':
    case ':':
      return FailHere("expected a value");
    default:
      return FailHere("unexpected value");
  }
}

bool JsonReader::BeginObject() {
  if (Peek() != '{' || !ok()) return FailToken();
  if (++depth_ > max_depth_) return FailHere("nested too deeply");
  Advance(1);
  return true;
}

bool JsonReader::NextField(bool& first, std::string_view& key) {
  if (!ok()) return false;
  if (Peek() == '}') {
    Advance(1);
    --depth_;
    return false;
  }
  if (!first) {
    if (Peek() != ',') return FailHere("expected ',' or '}'");
    Advance(1);
  }
  first = false;
  if (Peek() != '"') return FailHere("expected a key");
  if (!ReadString(key)) return false;
  if (Peek() != ':') return FailHere("expected ':' after a key");
  Advance(1);
  return true;
}

bool JsonReader::BeginArray() {
  if (Peek() != '[' || !ok()) return FailToken();
  if (++depth_ > max_depth_) return FailHere("nested too deeply");
  Advance(1);
  return true;
}

bool JsonReader::NextElement(bool& first) {
  if (!ok()) return false;
  if (Peek() == ']') {
    Advance(1);
    --depth_;
    return false;
  }
  if (!first) {
    if (Peek() != ',') return FailHere("expected ',' or ']'");
    Advance(1);
    if (Peek() == ']') return FailHere("expected a value");
  }
  first = false;
  return true;
}

bool JsonReader::ReadString(std::string_view& value) {
  if (Peek() != '"' || !ok()) return FailToken();
  const std::string_view token = Token();
  if (token.size() < 2 || token.back() != '"') return FailHere("string without an end");
  const std::string_view body = token.substr(1, token.size() - 2);
  const std::size_t at = offset() + 1;
  Advance(token.size());
  if (std::memchr(body.data(), '\\', body.size()) == nullptr) {
    value = body;
    return true;
  }
  return Unescape(body, at, value);
}

bool JsonReader::Unescape(std::string_view body, std::size_t offset, std::string_view& value) {
  char* const begin = arena_->Take(body.size());
  char* out = begin;
  std::size_t i = 0;
  while (i < body.size()) {
    const void* const found = std::memchr(body.data() + i, '\\', body.size() - i);
    const std::size_t run = found ? static_cast<const char*>(found) - body.data() - i : body.size() - i;
    std::memcpy(out, body.data() + i, run);
    out += run;
    i += run;
    if (i == body.size()) break;
    const char kind = i + 1 < body.size() ? body[i + 1] : '\0';
    if (kind != 'u') {
      const char c = SimpleEscape(kind);
      if (c == '\0') return Fail("unknown escape in a string", offset + i);
      *out++ = c;
      i += 2;
      continue;
    }
    const int unit = HexQuad(body, i + 2);
    if (unit < 0) return Fail("\\u needs four hexadecimal digits", offset + i);
    i += 6;
    std::uint32_t code = static_cast<std::uint32_t>(unit);
    if (code >= 0xD800 && code < 0xE000) {
      // A surrogate without its other half becomes U+FFFD, as in Go.
      const int low = code < 0xDC00 && body.substr(i, 2) == "\\u" ? HexQuad(body, i + 2) : -1;
      if (low >= 0xDC00 && low < 0xE000) {
        code = 0x10000 + ((code - 0xD800) << 10) + (static_cast<std::uint32_t>(low) - 0xDC00);
        i += 6;
      } else {
        code = 0xFFFD;
      }
    }
    out = AppendUtf8(code, out);
  }
  value = {begin, static_cast<std::size_t>(out - begin)};
  arena_->Return(body.size() - value.size());
  return true;
}

bool JsonReader::CheckEscapes(std::string_view body, std::size_t offset) {
  std::size_t i = 0;
  while (i < body.size()) {
    const void* const found = std::memchr(body.data() + i, '\\', body.size() - i);
    if (found == nullptr) return true;
    i = static_cast<std::size_t>(static_cast<const char*>(found) - body.data());
    const char kind = i + 1 < body.size() ? body[i + 1] : '\0';
    if (kind == 'u') {
      if (HexQuad(body, i + 2) < 0) return Fail("\\u needs four hexadecimal digits", offset + i);
      i += 6;
    } else {
      if (SimpleEscape(kind) == '\0') return Fail("unknown escape in a string", offset + i);
      i += 2;
    }
  }
  return true;
}

bool JsonReader::CheckNumber(std::string_view token) {
  std::size_t i = token.starts_with('-') ? 1 : 0;
  const auto digits = [&] {
    const std::size_t begin = i;
    while (i < token.size() && IsDigit(token[i])) ++i;
    return i > begin;
  };
  const std::size_t integer = i;
  bool valid = digits() && !(token[integer] == '0' && i > integer + 1);
  if (valid && i < token.size() && token[i] == '.') {
    ++i;
    valid = digits();
  }
  if (valid && i < token.size() && (token[i] == 'e' || token[i] == 'E')) {
    ++i;
    if (i < token.size() && (token[i] == '+' || token[i] == '-')) ++i;
    valid = digits();
  }
  if (valid && i == token.size()) return true;
  return FailHere("not a number");
}

bool JsonReader::ReadDouble(double& value) {
  if (Peek() != '-' && !IsDigit(Peek())) return FailToken();
  const std::string_view token = Token();
  if (!CheckNumber(token)) return false;
  const auto result = std::from_chars(token.data(), token.data() + token.size(), value);
  if (result.ec == std::errc::result_out_of_range) {
    // Too near to zero, or too far.
    const std::size_t exponent = token.find_first_of("eE");
    const bool tiny = exponent != token.npos && token.substr(exponent + 1).starts_with('-');
    value = tiny ? 0.0 : std::numeric_limits<double>::infinity();
    if (token[0] == '-') value = -value;
  }
  Advance(token.size());
  return true;
}

bool JsonReader::ReadUint(std::uint64_t max, std::uint64_t& value) {
  if (IsDigit(Peek())) {
    const std::string_view token = Token();
    if (token.size() <= 19 && (token[0] != '0' || token.size() == 1)) {
      std::uint64_t sum = 0;
      std::size_t i = 0;
      for (; i < token.size() && IsDigit(token[i]); ++i)
        sum = sum * 10 + static_cast<std::uint64_t>(token[i] - '0');
      if (i == token.size()) {
        Advance(token.size());
        value = sum;
        return sum <= max;
      }
    }
  }
  double number = 0;
  if (!ReadDouble(number)) return false;
  if (!(number >= 0) || number != std::floor(number) || number >= 0x1p63) return false;
  value = static_cast<std::uint64_t>(number);
  return value <= max;
}

void JsonReader::ReadShortUints(std::vector<std::uint32_t>& values) {
  static_assert(std::endian::native == std::endian::little);
  constexpr std::uint64_t kZeros = 0x3030303030303030, kHighHalves = 0xF0F0F0F0F0F0F0F0;
  while (position_ + 2 < count_) {
    const std::size_t begin = index_[position_];
    const std::size_t length = index_[position_ + 1] - begin;
    const char next = text_[index_[position_ + 2]];
    if (length > 8 || begin + 8 > text_.size() || text_[index_[position_ + 1]] != ',' || !IsDigit(next))
      return;
    if (text_[begin] == '0' && length > 1) return;
    std::uint64_t digits;
    std::memcpy(&digits, text_.data() + begin, 8);
    // To the right, with zeros before; the shift by 64 bits of no digit at all cannot happen.
    digits <<= 8 * (8 - length);
    if (length < 8) digits |= kZeros >> (8 * length);
    if ((digits & kHighHalves) != kZeros || ((digits + 0x0606060606060606) & kHighHalves) != kZeros) return;
    // Eight digits at once: pairs, fours, all.
    digits -= kZeros;
    digits = digits * 10 + (digits >> 8);
    digits = (((digits & 0x000000FF000000FF) * (100 + (std::uint64_t{1000000} << 32))) +
              (((digits >> 16) & 0x000000FF000000FF) * (1 + (std::uint64_t{10000} << 32)))) >>
             32;
    values.push_back(static_cast<std::uint32_t>(digits));
    position_ += 2;
  }
}

bool JsonReader::ReadBool(bool& value) {
  const std::string_view token = Token();
  if (token != "true" && token != "false") return FailToken();
  value = token == "true";
  Advance(token.size());
  return true;
}

bool JsonReader::ReadNull() {
  const std::string_view token = Token();
  if (token != "null") return FailToken();
  Advance(token.size());
  return true;
}

bool JsonReader::Skip() {
  switch (Peek()) {
    case '{': {
      if (!BeginObject()) return false;
      bool first = true;
      while (ok()) {
        if (Peek() == '}') {
          Advance(1);
          --depth_;
          return true;
        }
        if (!first) {
          if (Peek() != ',') return FailHere("expected ',' or '}'");
          Advance(1);
        }
        first = false;
        if (Peek() != '"') return FailHere("expected a key");
        if (!Skip()) return false;
        if (Peek() != ':') return FailHere("expected ':' after a key");
        Advance(1);
        if (!Skip()) return false;
      }
      return false;
    }
    case '[': {
      if (!BeginArray()) return false;
      for (bool first = true; NextElement(first);) {
        if (!Skip()) return false;
      }
      return ok();
    }
    case '"': {
      const std::string_view token = Token();
      if (token.size() < 2 || token.back() != '"') return FailHere("string without an end");
      const std::size_t at = offset() + 1;
      Advance(token.size());
      return CheckEscapes(token.substr(1, token.size() - 2), at);
    }
    case 't':
    case 'f':
    case 'n': {
      const std::string_view token = Token();
      if (token != "true" && token != "false" && token != "null") return FailHere("unknown literal");
      Advance(token.size());
      return true;
    }
    default: {
      if (Peek() != '-' && !IsDigit(Peek())) return FailToken();
      const std::string_view token = Token();
      if (!CheckNumber(token)) return false;
      Advance(token.size());
      return true;
    }
  }
}

}  // namespace llmd::gateway
