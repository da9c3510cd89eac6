// Reading and writing MessagePack, as far as KV events need it.
#ifndef LLMD_SRC_EVENTS_MSGPACK_H_
#define LLMD_SRC_EVENTS_MSGPACK_H_

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

namespace llmd::events::msgpack {

// The unsigned integer at `p`, big-endian.
template <typename T>
inline T LoadBig(const std::uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  if constexpr (std::endian::native == std::endian::little) {
    if constexpr (sizeof(T) == 8) value = __builtin_bswap64(value);
    if constexpr (sizeof(T) == 4) value = __builtin_bswap32(value);
    if constexpr (sizeof(T) == 2) value = __builtin_bswap16(value);
  }
  return value;
}

enum class Type : std::uint8_t {
  kNil,
  kBool,
  kUint,
  kNegative,
  kFloat,
  kString,
  kBinary,
  kArray,
  kMap,
  kExtension
};

constexpr std::string_view TypeName(Type type) {
  constexpr std::string_view kNames[] = {"nil",    "bool",   "int",   "int", "float",
                                         "string", "binary", "array", "map", "extension"};
  return kNames[static_cast<int>(type)];
}

// What precedes a value's body. For strings, binaries and extensions `bits` is the body's length in bytes (an
// extension's type byte included), for arrays and maps the number of elements or pairs; for numbers there is
// no body and `bits` is the value: a bool's 0 or 1, an integer's 64 bits, a float's double.
struct Head {
  Type type = Type::kNil;
  std::uint64_t bits = 0;

  double AsDouble() const {
    if (type == Type::kFloat) return std::bit_cast<double>(bits);
    if (type == Type::kNegative) return static_cast<double>(static_cast<std::int64_t>(bits));
    return static_cast<double>(bits);
  }
  bool is_number() const { return type == Type::kUint || type == Type::kNegative || type == Type::kFloat; }
};

// A cursor over a payload. Every function returns false, without moving past the end, when the payload is cut
// short or holds the one byte (0xc1) that MessagePack never uses: there is no way to go on from either.
class Reader {
 public:
  Reader() = default;
  explicit Reader(std::span<const std::byte> bytes)
      : next_(reinterpret_cast<const std::uint8_t*>(bytes.data())), end_(next_ + bytes.size()) {}

  const std::uint8_t* position() const { return next_; }
  std::size_t left() const { return static_cast<std::size_t>(end_ - next_); }
  void set_position(const std::uint8_t* position) { next_ = position; }

  bool ReadHead(Head& head) {
    if (next_ == end_) return false;
    const std::uint8_t c = *next_;
    if (c < 0x80) return Small(head, Type::kUint, c);
    if (c < 0x90) return Small(head, Type::kMap, c & 15);
    if (c < 0xa0) return Small(head, Type::kArray, c & 15);
    if (c < 0xc0) return Small(head, Type::kString, c & 31);
    if (c >= 0xe0) {
      return Small(head, Type::kNegative,
                   static_cast<std::uint64_t>(std::int64_t{static_cast<std::int8_t>(c)}));
    }
    return ReadWideHead(c, head);
  }

  // The body of a string, binary or extension whose head has just been read.
  bool ReadBody(std::uint64_t length, std::string_view& body) {
    if (length > left()) return false;
    body = {reinterpret_cast<const char*>(next_), static_cast<std::size_t>(length)};
    next_ += length;
    return true;
  }

  // Passes over one value. Needs no stack: every value of a container is one more to pass over.
  bool Skip() {
    Head head;
    std::string_view body;
    for (std::uint64_t pending = 1; pending > 0; --pending) {
      // Each pending value takes a byte at least.
      if (pending > left() || !ReadHead(head)) return false;
      if (head.type == Type::kArray) pending += head.bits;
      if (head.type == Type::kMap) pending += 2 * head.bits;
      if (HasBody(head.type) && !ReadBody(head.bits, body)) return false;
    }
    return true;
  }

  static constexpr int kMaxNesting = 64;

  // Skip(), which also tells how deeply containers are nested: 0 for a scalar; kMaxNesting + 1 stands for any
  // more.
  bool SkipMeasured(int& nesting) {
    std::array<std::uint64_t, kMaxNesting + 1> pending;
    int depth = 0;
    nesting = 0;
    pending[0] = 1;
    Head head;
    std::string_view body;
    while (depth >= 0) {
      if (pending[depth] == 0) {
        --depth;
        continue;
      }
      --pending[depth];
      if (!ReadHead(head)) return false;
      if (HasBody(head.type)) {
        if (!ReadBody(head.bits, body)) return false;
      } else if (head.type == Type::kArray || head.type == Type::kMap) {
        const std::uint64_t children = head.type == Type::kMap ? 2 * head.bits : head.bits;
        if (children > left()) return false;
        nesting = std::max(nesting, depth + 1);
        if (depth == kMaxNesting) {
          // Too deep to count: pass over this container's children one by one.
          for (std::uint64_t i = 0; i < children; ++i) {
            if (!Skip()) return false;
          }
        } else {
          pending[++depth] = children;
        }
      }
    }
    return true;
  }

 private:
  static bool HasBody(Type type) {
    return type == Type::kString || type == Type::kBinary || type == Type::kExtension;
  }

  bool Small(Head& head, Type type, std::uint64_t bits) {
    ++next_;
    head = {type, bits};
    return true;
  }

  template <typename T>
  bool Wide(Head& head, Type type) {
    if (left() < 1 + sizeof(T)) return false;
    head = {type, LoadBig<T>(next_ + 1)};
    next_ += 1 + sizeof(T);
    return true;
  }

  template <typename Signed>
  bool WideSigned(Head& head) {
    if (!Wide<std::make_unsigned_t<Signed>>(head, Type::kUint)) return false;
    const std::int64_t value{static_cast<Signed>(head.bits)};
    head = {value < 0 ? Type::kNegative : Type::kUint, static_cast<std::uint64_t>(value)};
    return true;
  }

  bool ReadWideHead(std::uint8_t c, Head& head);

  const std::uint8_t* next_ = nullptr;
  const std::uint8_t* end_ = nullptr;
};

}  // namespace llmd::events::msgpack

#endif  // LLMD_SRC_EVENTS_MSGPACK_H_
