#include "src/hash/serialize.h"

#include <bit>
#include <cstring>
#include <limits>

namespace llmd::hash {
namespace {

static_assert(std::endian::native == std::endian::little, "llmd::hash needs a little-endian host");

std::span<const std::uint8_t> AsSpan(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::span<const std::uint8_t> StripZeros(std::span<const std::uint8_t> big_endian) {
  while (!big_endian.empty() && big_endian.front() == 0) big_endian = big_endian.subspan(1);
  return big_endian;
}

std::uint64_t ReadBigEndian(std::span<const std::uint8_t> bytes) {
  std::uint64_t value = 0;
  for (const std::uint8_t byte : bytes) value = value << 8 | byte;
  return value;
}

// Widths of small ids are unpredictable, branches on them would miss. Both encoders write eight bytes, of
// which the next token overwrites the surplus.
inline std::uint8_t* PickleToken(std::uint8_t* p, std::uint32_t token) {
  if (token > 0x7fffffffu) {
    const std::uint64_t long1 = 0x058a | std::uint64_t{token}
                                             << 16;  // LONG1 of five bytes, the last one zero
    std::memcpy(p, &long1, 8);
    return p + 7;
  }
  const std::uint32_t two = token > 0xff;     // BININT2 or wider
  const std::uint32_t four = token > 0xffff;  // BININT
  const std::uint64_t word = ('K' + 2 * two - 3 * four) | std::uint64_t{token} << 8;
  std::memcpy(p, &word, 8);
  return p + 2 + two + 2 * four;
}

inline std::uint8_t* CborToken(std::uint8_t* p, std::uint32_t token) {
  static constexpr std::uint64_t kHead[] = {0, 0x18, 0x19, 0x1a};
  static constexpr std::uint8_t kShift[] = {56, 48, 40, 24};
  static constexpr std::uint8_t kWidth[] = {1, 2, 3, 5};
  const int wide = (token > 23) + (token > 0xff) + (token > 0xffff);
  const std::uint64_t word = __builtin_bswap64(kHead[wide] << 56 | std::uint64_t{token} << kShift[wide]);
  std::memcpy(p, &word, 8);
  return p + kWidth[wide];
}

// CPython has one object for the empty text and one for each character up to U+00FF, however it came to be.
bool IsOneObject(std::string_view text) {
  if (text.size() <= 1) return true;
  const auto first = static_cast<std::uint8_t>(text[0]);
  return text.size() == 2 && (first == 0xc2 || first == 0xc3);
}

std::size_t SizeBound(const ExtraKey& key) {
  // Opcode, length, memo, a tuple's marks, and the frame header that a long payload can cause on each side.
  std::size_t bound = 48 + key.text.size();
  for (const ExtraKey& item : key.items) bound += SizeBound(item);
  return bound;
}

template <typename Writer>
void WriteKey(const ExtraKey& key, Writer& writer) {
  switch (key.kind) {
    case ExtraKey::Kind::kNone:
      return writer.None();
    case ExtraKey::Kind::kInt:
      return writer.Int(key.number);
    case ExtraKey::Kind::kText:
      return writer.Text(key.text);
    case ExtraKey::Kind::kTag:
      return writer.Tag(key.text);
    case ExtraKey::Kind::kBytes:
      return writer.Bytes(AsSpan(key.text));
    case ExtraKey::Kind::kTuple:
      writer.BeginTuple(key.items.size());
      for (const ExtraKey& item : key.items) WriteKey(item, writer);
      writer.EndTuple(key.items.size());
      return;
  }
}

}  // namespace

std::size_t SizeBound(const ExtraKeys& keys) {
  std::size_t bound = 48;
  for (const ExtraKey& key : keys) bound += SizeBound(key);
  return bound;
}

template <typename Writer>
void WriteExtraKeys(const ExtraKeys& keys, Writer& writer) {
  if (keys.empty()) return writer.None();
  writer.BeginTuple(keys.size());
  for (const ExtraKey& key : keys) WriteKey(key, writer);
  writer.EndTuple(keys.size());
}
template void WriteExtraKeys(const ExtraKeys&, PickleWriter&);
template void WriteExtraKeys(const ExtraKeys&, CborWriter&);

// --- Pickle ---

PickleWriter::PickleWriter(std::uint8_t* out) : begin_(out), p_(out) {
  Put(0x80);  // PROTO 5
  Put(0x05);
}

void PickleWriter::PutLittleEndian(std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) Put(static_cast<std::uint8_t>(value >> (8 * i)));
}

void PickleWriter::PutData(std::span<const std::uint8_t> data) {
  if (!data.empty()) std::memcpy(p_, data.data(), data.size());
  p_ += data.size();
}

void PickleWriter::OpenFrame() {
  if (frame_ != nullptr) return;
  frame_ = p_;
  p_ += kFrameHeader;
}

void PickleWriter::CloseFrame() {
  if (frame_ == nullptr) return;
  const std::uint64_t size = p_ - frame_ - kFrameHeader;
  if (size >= 4) {
    frame_[0] = 0x95;
    std::memcpy(frame_ + 1, &size, 8);
  } else {  // too short to be worth a header
    std::memmove(frame_, frame_ + kFrameHeader, size);
    p_ -= kFrameHeader;
  }
  frame_ = nullptr;
}

void PickleWriter::BeginObject() {
  if (frame_ != nullptr && p_ - frame_ >= kFrameTarget + kFrameHeader) CloseFrame();
  OpenFrame();
}

void PickleWriter::None() {
  BeginObject();
  Put('N');
}

void PickleWriter::PutInt(std::int64_t value) {
  if (value >= 0 && value <= 0xff) {
    Put('K');
    Put(static_cast<std::uint8_t>(value));
  } else if (value >= 0 && value <= 0xffff) {
    Put('M');
    PutLittleEndian(value, 2);
  } else if (value >= std::numeric_limits<std::int32_t>::min() &&
             value <= std::numeric_limits<std::int32_t>::max()) {
    Put('J');
    PutLittleEndian(static_cast<std::uint64_t>(value), 4);
  } else {
    // LONG1: the shortest two's complement, i.e. enough bits for the magnitude and the sign.
    const std::uint64_t magnitude = static_cast<std::uint64_t>(value < 0 ? ~value : value);
    const int bytes = std::bit_width(magnitude) / 8 + 1;
    Put(0x8a);
    Put(static_cast<std::uint8_t>(bytes));
    PutLittleEndian(static_cast<std::uint64_t>(value), bytes);
  }
}

void PickleWriter::Int(std::int64_t value) {
  BeginObject();
  PutInt(value);
}

void PickleWriter::UnsignedInt(std::span<const std::uint8_t> big_endian) {
  big_endian = StripZeros(big_endian);
  if (big_endian.size() < 8 || (big_endian.size() == 8 && big_endian[0] < 0x80)) {
    return Int(static_cast<std::int64_t>(ReadBigEndian(big_endian)));
  }
  BeginObject();
  const bool sign_byte = big_endian[0] >= 0x80;
  Put(0x8a);  // LONG1
  Put(static_cast<std::uint8_t>(big_endian.size() + sign_byte));
  for (std::size_t i = big_endian.size(); i-- > 0;) Put(big_endian[i]);
  if (sign_byte) Put(0);
}

void PickleWriter::Payload(std::uint8_t short_opcode, std::uint8_t long_opcode,
                           std::span<const std::uint8_t> data) {
  BeginObject();
  const bool outside_frames = data.size() >= kFrameTarget;
  if (outside_frames) CloseFrame();
  if (data.size() <= 0xff) {
    Put(short_opcode);
    Put(static_cast<std::uint8_t>(data.size()));
  } else {
    Put(long_opcode);
    PutLittleEndian(data.size(), 4);
  }
  PutData(data);
  Memoize();
}

bool PickleWriter::WroteBefore(bool text, std::string_view value) {
  for (const Shared& shared : shared_) {
    if (shared.text != text || shared.value != value) continue;
    BeginObject();
    Put(shared.index < 256 ? 'h' : 'j');
    PutLittleEndian(shared.index, shared.index < 256 ? 1 : 4);
    return true;
  }
  shared_.push_back({text, value, memo_count_});
  return false;
}

void PickleWriter::Bytes(std::span<const std::uint8_t> value) {
  if (value.empty() && WroteBefore(false, {})) return;
  Payload('C', 'B', value);
}

void PickleWriter::Text(std::string_view value) {
  if (IsOneObject(value) && WroteBefore(true, value)) return;
  Payload(0x8c, 'X', AsSpan(value));
}

void PickleWriter::Tag(std::string_view value) {
  if (!WroteBefore(true, value)) Payload(0x8c, 'X', AsSpan(value));
}

void PickleWriter::BeginTuple(std::size_t size) {
  BeginObject();
  if (size > 3) Put('(');
}

void PickleWriter::EndTuple(std::size_t size) {
  static constexpr std::uint8_t kSmall[] = {')', 0x85, 0x86, 0x87};
  OpenFrame();
  Put(size > 3 ? 't' : kSmall[size]);
  if (size > 0) Memoize();
}

void PickleWriter::Tokens(TokenSpan tokens) {
  BeginTuple(tokens.size());
  // Seven bytes a token at most: where no frame can fill up, there is no need to look.
  if (p_ - frame_ + tokens.size() * 7 < kFrameTarget) {
    std::uint8_t* p = p_;
    for (const TokenId token : tokens) p = PickleToken(p, token);
    p_ = p;
  } else {
    for (const TokenId token : tokens) {
      BeginObject();
      p_ = PickleToken(p_, token);
    }
  }
  EndTuple(tokens.size());
}

void PickleWriter::Tokens(WideTokenSpan tokens) {
  BeginTuple(tokens.size());
  for (const std::int64_t token : tokens) Int(token);
  EndTuple(tokens.size());
}

std::size_t PickleWriter::Finish() {
  OpenFrame();
  Put('.');
  CloseFrame();
  return p_ - begin_;
}

std::size_t WritePlainPickle(const Digest& parent, TokenSpan tokens, std::uint8_t* out) {
  std::uint8_t* p = out + 11;  // PROTO 5 and FRAME come last
  p[0] = 'C';
  p[1] = parent.size;
  std::memcpy(p + 2, parent.bytes.data(), Digest::kMaxSize);
  p += 2 + parent.size;
  p[0] = 0x94;  // MEMOIZE
  p[1] = '(';
  p += 2;
  for (const TokenId token : tokens) p = PickleToken(p, token);
  static constexpr std::uint8_t kEnd[] = {'t', 0x94, 'N', 0x87, 0x94, '.'};
  std::memcpy(p, kEnd, sizeof(kEnd));
  p += sizeof(kEnd);
  const std::uint64_t frame = p - out - 11;
  static constexpr std::uint8_t kStart[] = {0x80, 0x05, 0x95};
  std::memcpy(out, kStart, sizeof(kStart));
  std::memcpy(out + sizeof(kStart), &frame, sizeof(frame));
  return p - out;
}

// --- CBOR ---

void CborWriter::Head(std::uint8_t major, std::uint64_t value) {
  major = static_cast<std::uint8_t>(major << 5);
  if (value < 24) {
    *p_++ = static_cast<std::uint8_t>(major | value);
    return;
  }
  const int log_width = (value > 0xff) + (value > 0xffff) + (value > 0xffffffff);
  *p_++ = static_cast<std::uint8_t>(major | (24 + log_width));
  for (int shift = (8 << log_width) - 8; shift >= 0; shift -= 8)
    *p_++ = static_cast<std::uint8_t>(value >> shift);
}

void CborWriter::Int(std::int64_t value) {
  if (value >= 0) return Head(0, static_cast<std::uint64_t>(value));
  Head(1, static_cast<std::uint64_t>(~value));
}

void CborWriter::UnsignedInt(std::span<const std::uint8_t> big_endian) {
  big_endian = StripZeros(big_endian);
  if (big_endian.size() <= 8) return Head(0, ReadBigEndian(big_endian));
  *p_++ = 0xc2;  // tag 2: bignum
  Bytes(big_endian);
}

void CborWriter::Bytes(std::span<const std::uint8_t> value) {
  Head(2, value.size());
  if (!value.empty()) std::memcpy(p_, value.data(), value.size());
  p_ += value.size();
}

void CborWriter::Text(std::string_view value) {
  Head(3, value.size());
  if (!value.empty()) std::memcpy(p_, value.data(), value.size());
  p_ += value.size();
}

void CborWriter::Tokens(TokenSpan tokens) {
  Head(4, tokens.size());
  std::uint8_t* p = p_;
  for (const TokenId token : tokens) p = CborToken(p, token);
  p_ = p;
}

void CborWriter::Tokens(WideTokenSpan tokens) {
  Head(4, tokens.size());
  for (const std::int64_t token : tokens) Int(token);
}

}  // namespace llmd::hash
