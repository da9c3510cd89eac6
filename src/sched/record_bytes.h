// The primitives of decision logs: little-endian numbers, variable-length integers, times, digests. Private
// to the component.
#ifndef SRC_SCHED_RECORD_BYTES_H_
#define SRC_SCHED_RECORD_BYTES_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"

namespace llmd::sched {

inline std::uint64_t ZigZag(std::int64_t v) {
  return (static_cast<std::uint64_t>(v) << 1) ^ static_cast<std::uint64_t>(v >> 63);
}
inline std::int64_t UnZigZag(std::uint64_t v) {
  return static_cast<std::int64_t>(v >> 1) ^ -static_cast<std::int64_t>(v & 1);
}

// A time without loss. absl::Time counts quarters of a nanosecond and has two infinities.
struct TimeParts {
  std::int64_t seconds = 0;  // floor
  std::uint32_t quarters = 0;

  // Finite times only.
  static TimeParts Of(absl::Time time) {
    absl::Duration rest;
    TimeParts parts;
    parts.seconds = absl::IDivDuration(time - absl::UnixEpoch(), absl::Seconds(1), &rest);
    if (rest < absl::ZeroDuration()) {
      --parts.seconds;
      rest += absl::Seconds(1);
    }
    parts.quarters = static_cast<std::uint32_t>(absl::IDivDuration(rest, absl::Nanoseconds(1) / 4, &rest));
    return parts;
  }
  absl::Time ToTime() const {
    return absl::UnixEpoch() + absl::Seconds(seconds) + absl::Nanoseconds(1) / 4 * quarters;
  }
};

class ByteSink {
 public:
  explicit ByteSink(std::vector<std::byte>& out) : out_(out) {}

  std::vector<std::byte>& bytes() { return out_; }
  void U8(std::uint8_t v) { out_.push_back(std::byte{v}); }
  void Fixed32(std::uint32_t v) { Little(v, 4); }
  void Fixed64(std::uint64_t v) { Little(v, 8); }
  void Varint(std::uint64_t v) {
    for (; v >= 0x80; v >>= 7) U8(static_cast<std::uint8_t>(v | 0x80));
    U8(static_cast<std::uint8_t>(v));
  }
  void Signed(std::int64_t v) { Varint(ZigZag(v)); }
  void Double(double v) { Fixed64(std::bit_cast<std::uint64_t>(v)); }
  void Text(std::string_view v) {
    Varint(v.size());
    const auto* data = reinterpret_cast<const std::byte*>(v.data());
    out_.insert(out_.end(), data, data + v.size());
  }
  // 1 byte when it is what stood in the previous record.
  void Repeated(std::string_view v, std::string& last) {
    if (v == last) return Varint(0);
    Varint(v.size() + 1);
    const auto* data = reinterpret_cast<const std::byte*>(v.data());
    out_.insert(out_.end(), data, data + v.size());
    last.assign(v);
  }
  // Relative to `base`: short when both are whole nanoseconds within 292 years of each other.
  void Time(absl::Time v, absl::Time base) {
    if (v == absl::InfinitePast()) return U8(0);
    if (v == absl::InfiniteFuture()) return U8(1);
    const absl::Duration distance = v - base;
    const std::int64_t nanos = absl::ToInt64Nanoseconds(distance);
    if (base + absl::Nanoseconds(nanos) == v) {
      U8(2);
      return Signed(nanos);
    }
    const TimeParts parts = TimeParts::Of(v);
    U8(3);
    Signed(parts.seconds);
    Varint(parts.quarters);
  }

 private:
  void Little(std::uint64_t v, std::size_t size) {
    std::byte bytes[8];
    for (std::size_t i = 0; i < 8; ++i) bytes[i] = std::byte(static_cast<std::uint8_t>(v >> (8 * i)));
    out_.insert(out_.end(), bytes, bytes + size);
  }

  std::vector<std::byte>& out_;
};

// Reads what ByteSink wrote. After the first failure everything reads as 0, and failed() names the field.
class ByteSource {
 public:
  ByteSource() = default;
  explicit ByteSource(std::span<const std::byte> in) : in_(in) {}

  std::size_t left() const { return in_.size(); }
  std::span<const std::byte> rest() const { return in_; }
  const char* failed() const { return failed_; }
  bool ok() const { return failed_ == nullptr; }
  void Fail(const char* field) {
    if (failed_ == nullptr) failed_ = field;
    in_ = {};
  }

  std::uint8_t U8(const char* field) {
    if (in_.empty()) return Fail(field), 0;
    const auto v = static_cast<std::uint8_t>(in_.front());
    in_ = in_.subspan(1);
    return v;
  }
  std::uint32_t Fixed32(const char* field) { return static_cast<std::uint32_t>(Little(field, 4)); }
  std::uint64_t Fixed64(const char* field) { return Little(field, 8); }
  std::uint64_t Varint(const char* field) {
    std::uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const std::uint8_t byte = U8(field);
      if (shift == 63 && byte > 1) break;
      v |= std::uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return ok() ? v : 0;
    }
    return Fail(field), 0;
  }
  std::int64_t Signed(const char* field) { return UnZigZag(Varint(field)); }
  double Double(const char* field) { return std::bit_cast<double>(Fixed64(field)); }
  // At most `max`.
  std::uint64_t Below(const char* field, std::uint64_t max) {
    const std::uint64_t v = Varint(field);
    return v <= max ? v : (Fail(field), 0);
  }
  // A number of things of at least `min_bytes` each, so that memory is bounded by the input.
  std::size_t Count(const char* field, std::size_t min_bytes) {
    return static_cast<std::size_t>(Below(field, left() / min_bytes));
  }
  std::string_view Text(const char* field) { return Take(field, Varint(field)); }
  void Text(const char* field, std::string& out) { out.assign(Text(field)); }
  void Repeated(const char* field, std::string& last) {
    const std::uint64_t size = Varint(field);
    if (size > 0) last.assign(Take(field, size - 1));
  }
  absl::Time Time(const char* field, absl::Time base) {
    switch (U8(field)) {
      case 0:
        return ok() ? absl::InfinitePast() : absl::UnixEpoch();
      case 1:
        return absl::InfiniteFuture();
      case 2:
        return base + absl::Nanoseconds(Signed(field));
      case 3: {
        TimeParts parts;
        parts.seconds = Signed(field);
        parts.quarters = static_cast<std::uint32_t>(Below(field, 3'999'999'999));
        return parts.ToTime();
      }
      default:
        Fail(field);
        return absl::UnixEpoch();
    }
  }

 private:
  std::string_view Take(const char* field, std::uint64_t size) {
    if (size > in_.size()) return Fail(field), std::string_view();
    const std::string_view v(reinterpret_cast<const char*>(in_.data()), static_cast<std::size_t>(size));
    in_ = in_.subspan(static_cast<std::size_t>(size));
    return v;
  }
  std::uint64_t Little(const char* field, std::size_t size) {
    if (size > in_.size()) return Fail(field), 0;
    std::uint64_t v = 0;
    for (std::size_t i = 0; i < size; ++i) v |= std::uint64_t{static_cast<std::uint8_t>(in_[i])} << (8 * i);
    in_ = in_.subspan(size);
    return v;
  }

  std::span<const std::byte> in_;
  const char* failed_ = nullptr;
};

// Digest of a sequence of words; part of the format.
class WordDigest {
 public:
  void Add(std::uint64_t word) {
    const auto product = static_cast<unsigned __int128>(state_ ^ word) * 0x9E3779B97F4A7C15u;
    state_ = (static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64)) +
             0xD6E8FEB86659FD93u;
  }
  void Add(double v) { Add(std::bit_cast<std::uint64_t>(v)); }
  // To the nanosecond. Times often repeat, and their conversion is slow.
  void Add(absl::Time time) {
    if (time != last_time_) {
      last_time_ = time;
      last_nanos_ = static_cast<std::uint64_t>(absl::ToUnixNanos(time));
    }
    Add(last_nanos_);
  }
  void Add(std::string_view text) {
    Add(std::uint64_t{text.size()});
    for (; text.size() >= 8; text.remove_prefix(8)) {
      std::uint64_t word = 0;
      for (std::size_t i = 0; i < 8; ++i)
        word |= std::uint64_t{static_cast<std::uint8_t>(text[i])} << (8 * i);
      Add(word);
    }
    std::uint64_t word = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      word |= std::uint64_t{static_cast<std::uint8_t>(text[i])} << (8 * i);
    }
    Add(word);
  }
  std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0x2545F4914F6CDD1Du;
  absl::Time last_time_ = absl::UnixEpoch();
  std::uint64_t last_nanos_ = 0;  // of it
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_RECORD_BYTES_H_
