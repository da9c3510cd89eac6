// How the values of a data type (data.h) are written into decision records, and read back bit for bit.
//
// A type says which of its fields count, once for both directions:
//
//   template <>
//   struct llmd::sched::DataFields<MyDatum> {
//     static void Visit(MyDatum& value, FieldCoder& field) { field(value.hits); field(value.ratio); }
//   };
//   DataCodecs codecs = DataCodecs::Builtin();
//   codecs.Add<MyDatum>();
//
// Fields are numbers; at most FieldCoder::kMaxFields of them. A datum without a codec is not recorded: on
// replay its producer is asked, which is as good for one that only reads the request. Plain values, no
// threads.
#ifndef LLMD_SCHED_DATA_CODEC_H_
#define LLMD_SCHED_DATA_CODEC_H_

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "llmd/sched/data.h"
#include "llmd/sched/in_flight.h"
#include "llmd/sched/latency.h"
#include "llmd/sched/prefix.h"

namespace llmd::sched {

// Turns the fields of a value into 64-bit words, or words into fields.
class FieldCoder {
 public:
  static constexpr std::size_t kMaxFields = 16;
  using Words = std::array<std::uint64_t, kMaxFields>;

  FieldCoder(Words& words, bool to_words) : words_(words), to_words_(to_words) {}

  template <typename T>
  void operator()(T& field) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8);
    if (count_ == kMaxFields) return;
    std::uint64_t& word = words_[count_++];
    if constexpr (std::is_floating_point_v<T>) {
      doubles_ |= 1u << (count_ - 1);
      static_assert(sizeof(T) == 8, "use double");
      if (to_words_) {
        word = std::bit_cast<std::uint64_t>(field);
      } else {
        field = std::bit_cast<T>(word);
      }
    } else if constexpr (std::is_same_v<T, bool>) {
      if (to_words_) {
        word = field ? 1 : 0;
      } else {
        field = word != 0;
      }
    } else if (to_words_) {
      word = static_cast<std::uint64_t>(field);
    } else {
      field = static_cast<T>(word);
    }
  }

  std::size_t count() const { return count_; }
  // Set of the fields that are floating-point numbers.
  std::uint32_t doubles() const { return doubles_; }

 private:
  Words& words_;
  bool to_words_;
  std::size_t count_ = 0;
  std::uint32_t doubles_ = 0;
};

template <typename T>
struct DataFields;

template <>
struct DataFields<PrefixMatch> {
  static void Visit(PrefixMatch& value, FieldCoder& field) {
    field(value.match_blocks);
    field(value.cached_blocks);
    field(value.total_blocks);
    field(value.block_size);
  }
};
template <>
struct DataFields<InFlightLoad> {
  static void Visit(InFlightLoad& value, FieldCoder& field) {
    field(value.requests);
    field(value.tokens);
  }
};
template <>
struct DataFields<UncachedRequestTokens> {
  static void Visit(UncachedRequestTokens& value, FieldCoder& field) { field(value.tokens); }
};
template <>
struct DataFields<LatencyPrediction> {
  static void Visit(LatencyPrediction& value, FieldCoder& field) {
    field(value.known);
    field(value.ttft_valid);
    field(value.tpot_valid);
    field(value.ttft_ms);
    field(value.tpot_ms);
    field(value.ttft_headroom_ms);
    field(value.tpot_headroom_ms);
    field(value.dispatched_requests);
  }
};

// One data type.
struct DataCodec {
  std::string_view data_type;
  const std::type_info* type = nullptr;
  std::size_t num_fields = 0;
  std::uint32_t doubles = 0;  // set of fields
  std::size_t (*size)(const internal::ColumnBase& column) = nullptr;
  void (*get)(const internal::ColumnBase& column, std::size_t element, FieldCoder::Words& words) = nullptr;
  // Makes `size` elements, each of `words`, and marks the column as published.
  void (*fill)(internal::ColumnBase& column, std::size_t size, FieldCoder::Words& words) = nullptr;
  void (*set)(internal::ColumnBase& column, std::size_t element, FieldCoder::Words& words) = nullptr;
};

class DataCodecs {
 public:
  // Of the types that this library's producers publish.
  static const DataCodecs& Builtin();

  template <typename T>
  void Add() {
    using Column = internal::Column<T>;
    DataCodec codec;
    codec.data_type = T::kDataType;
    codec.type = &typeid(T);
    FieldCoder::Words words{};
    const FieldCoder coder = Decompose(T{}, words);
    codec.num_fields = coder.count();
    codec.doubles = coder.doubles();
    codec.size = [](const internal::ColumnBase& c) { return static_cast<const Column&>(c).values.size(); };
    codec.get = [](const internal::ColumnBase& c, std::size_t i, FieldCoder::Words& words) {
      Decompose(static_cast<const Column&>(c).values[i], words);
    };
    codec.fill = [](internal::ColumnBase& c, std::size_t size, FieldCoder::Words& words) {
      static_cast<Column&>(c).values.assign(size, Compose<T>(words));
      c.published = true;
    };
    codec.set = [](internal::ColumnBase& c, std::size_t i, FieldCoder::Words& words) {
      static_cast<Column&>(c).values[i] = Compose<T>(words);
    };
    codecs_.push_back(codec);
  }

  // Null when there is none. The latest of a type counts.
  const DataCodec* Find(std::string_view data_type, const std::type_info& type) const;

  // A value from its words.
  template <typename T>
  static T Compose(FieldCoder::Words& words) {
    T value{};
    FieldCoder coder(words, false);
    DataFields<T>::Visit(value, coder);
    return value;
  }

 private:
  template <typename T>
  static FieldCoder Decompose(T value, FieldCoder::Words& words) {
    FieldCoder coder(words, true);
    DataFields<T>::Visit(value, coder);
    return coder;
  }

  std::vector<DataCodec> codecs_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_DATA_CODEC_H_
