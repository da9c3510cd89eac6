// Writes MessagePack with the widths that msgspec chooses: the smallest unsigned form for integers from 0 up,
// the smallest signed form below, doubles always.
#ifndef LLMD_SRC_EVENTS_MSGPACK_WRITER_H_
#define LLMD_SRC_EVENTS_MSGPACK_WRITER_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace llmd::events::msgpack {

class Writer {
 public:
  explicit Writer(std::vector<std::byte>& out) : out_(out) {}

  void Nil() { Byte(0xc0); }
  void Double(double value) { Put(0xcb, std::bit_cast<std::uint64_t>(value), 8); }

  void Uint(std::uint64_t value) {
    if (value < 0x80) {
      Byte(static_cast<std::uint8_t>(value));
    } else {
      PutSized(0xcc, value);
    }
  }

  void Int(std::int64_t value) {
    const auto bits = static_cast<std::uint64_t>(value);
    if (value >= 0) {
      Uint(bits);
    } else if (value >= -32) {
      Byte(static_cast<std::uint8_t>(bits));
    } else if (value >= INT8_MIN) {
      Put(0xd0, bits, 1);
    } else if (value >= INT16_MIN) {
      Put(0xd1, bits, 2);
    } else if (value >= INT32_MIN) {
      Put(0xd2, bits, 4);
    } else {
      Put(0xd3, bits, 8);
    }
  }

  void String(std::string_view text) {
    if (text.size() < 32) {
      Byte(static_cast<std::uint8_t>(0xa0 | text.size()));
    } else {
      PutSized(0xd9, text.size());
    }
    Raw(text);
  }

  void Binary(std::string_view bytes) {
    PutSized(0xc4, bytes.size());
    Raw(bytes);
  }

  void Array(std::size_t size) { PutCount(0x90, 0xdc, size, false); }
  void Map(std::size_t size, bool wide) { PutCount(0x80, 0xde, size, wide); }

  // Bytes that are MessagePack already.
  void Raw(std::string_view bytes) {
    const auto* const data = reinterpret_cast<const std::byte*>(bytes.data());
    out_.insert(out_.end(), data, data + bytes.size());
  }

 private:
  void Byte(std::uint8_t byte) { out_.push_back(static_cast<std::byte>(byte)); }

  // `head` and the low `width` bytes of `bits`, big-endian.
  void Put(std::uint8_t head, std::uint64_t bits, int width) {
    std::byte bytes[9] = {static_cast<std::byte>(head)};
    for (int i = 0; i < width; ++i) bytes[1 + i] = static_cast<std::byte>(bits >> (8 * (width - 1 - i)));
    out_.insert(out_.end(), bytes, bytes + 1 + width);
  }

  // The smallest of the forms head (8 bits), head + 1 (16), head + 2 (32), head + 3 (64).
  void PutSized(std::uint8_t head, std::uint64_t bits) {
    if (bits <= UINT8_MAX) {
      Put(head, bits, 1);
    } else if (bits <= UINT16_MAX) {
      Put(head + 1, bits, 2);
    } else if (bits <= UINT32_MAX) {
      Put(head + 2, bits, 4);
    } else {
      Put(head + 3, bits, 8);
    }
  }

  void PutCount(std::uint8_t small_head, std::uint8_t head, std::size_t size, bool wide) {
    if (size < 16 && !wide) {
      Byte(static_cast<std::uint8_t>(small_head | size));
    } else if (size <= UINT16_MAX) {
      Put(head, size, 2);
    } else {
      Put(head + 1, size, 4);
    }
  }

  std::vector<std::byte>& out_;
};

}  // namespace llmd::events::msgpack

#endif  // LLMD_SRC_EVENTS_MSGPACK_WRITER_H_
