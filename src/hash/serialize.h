// The two serializations that engines hash: pickle protocol 5 and canonical CBOR, as far as block hashing
// reaches.
//
// A writer fills a buffer that its caller has sized with SizeBound(); it checks nothing. Pickle output equals
// CPython's pickle.dumps(obj, protocol=5) byte for byte, frames included, of an object whose texts and bytes
// each are an object of their own; except that tags are one object, and, as in every CPython, the empty text,
// the empty bytes and each single character up to U+00FF. CBOR output equals cbor2.dumps(obj,
// canonical=True).
#ifndef SRC_HASH_SERIALIZE_H_
#define SRC_HASH_SERIALIZE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "llmd/base/types.h"
#include "llmd/hash/extra_keys.h"

namespace llmd::hash {

// Scratch memory: on the stack for ordinary blocks, on the heap beyond.
class Scratch {
 public:
  std::uint8_t* Reserve(std::size_t size) {
    if (size <= sizeof(inline_)) return inline_;
    if (size > heap_size_) {
      heap_ = std::make_unique_for_overwrite<std::uint8_t[]>(size);
      heap_size_ = size;
    }
    return heap_.get();
  }

 private:
  std::uint8_t inline_[2048];
  std::unique_ptr<std::uint8_t[]> heap_;
  std::size_t heap_size_ = 0;
};

using WideTokenSpan = std::span<const std::int64_t>;

// Upper bounds of what either writer produces, with frames.
std::size_t SizeBound(const ExtraKeys& keys);
inline std::size_t SizeBound(std::size_t token_count) { return token_count * 12 + 128; }

class PickleWriter {
 public:
  explicit PickleWriter(std::uint8_t* out);

  void None();
  void Int(std::int64_t value);
  void UnsignedInt(std::span<const std::uint8_t> big_endian);
  void Bytes(std::span<const std::uint8_t> value);
  void Text(std::string_view value);
  void Tag(std::string_view value);
  // A tuple's items come between these.
  void BeginTuple(std::size_t size);
  void EndTuple(std::size_t size);
  // The tuple of token ids.
  void Tokens(TokenSpan tokens);
  void Tokens(WideTokenSpan tokens);

  // Ends the stream; returns the number of bytes written.
  std::size_t Finish();

 private:
  static constexpr std::size_t kFrameHeader = 9;
  static constexpr std::size_t kFrameTarget = 65536;

  void Put(std::uint8_t byte) { *p_++ = byte; }
  void PutLittleEndian(std::uint64_t value, int bytes);
  void PutData(std::span<const std::uint8_t> data);
  // CPython looks at the frame's size before each object.
  void BeginObject();
  void OpenFrame();
  void CloseFrame();
  void Memoize() {
    OpenFrame();
    Put(0x94);
    ++memo_count_;
  }
  // Refers back to a text or bytes that is one object however often it occurs; false, and remembers it, at
  // its first occurrence.
  bool WroteBefore(bool text, std::string_view value);
  void Payload(std::uint8_t short_opcode, std::uint8_t long_opcode, std::span<const std::uint8_t> data);
  void PutInt(std::int64_t value);

  std::uint8_t* begin_;
  std::uint8_t* p_;
  std::uint8_t* frame_ = nullptr;  // header of the open frame
  std::uint32_t memo_count_ = 0;
  struct Shared {
    bool text;  // else bytes
    std::string_view value;
    std::uint32_t index;  // in the memo
  };
  std::vector<Shared> shared_;
};

class CborWriter {
 public:
  explicit CborWriter(std::uint8_t* out) : begin_(out), p_(out) {}

  void None() { *p_++ = 0xf6; }
  void Int(std::int64_t value);
  void Unsigned(std::uint64_t value) { Head(0, value); }
  void UnsignedInt(std::span<const std::uint8_t> big_endian);
  void Bytes(std::span<const std::uint8_t> value);
  void Text(std::string_view value);
  void Tag(std::string_view value) { Text(value); }
  void BeginTuple(std::size_t size) { Head(4, size); }
  void EndTuple(std::size_t) {}
  void BeginMap(std::size_t size) { Head(5, size); }
  void Tokens(TokenSpan tokens);
  void Tokens(WideTokenSpan tokens);

  std::size_t Finish() { return p_ - begin_; }

 private:
  void Head(std::uint8_t major, std::uint64_t value);

  std::uint8_t* begin_;
  std::uint8_t* p_;
};

// The pickle of (parent, tokens, None), as the writer above gives it, for what nearly every block is: a
// parent of at least one byte and kMinPlainTokens to kMaxPlainTokens tokens. The pointer stays in a register,
// which halves the time.
inline constexpr std::size_t kMinPlainTokens = 4;
inline constexpr std::size_t kMaxPlainTokens = 4096;
std::size_t WritePlainPickle(const Digest& parent, TokenSpan tokens, std::uint8_t* out);

// Writes None for no keys, else the tuple of them.
template <typename Writer>
void WriteExtraKeys(const ExtraKeys& keys, Writer& writer);

}  // namespace llmd::hash

#endif  // SRC_HASH_SERIALIZE_H_
