// Arrays between Python and the library: token ids, 64-bit keys, digests.
//
// In: anything with the buffer protocol (NumPy arrays, array.array, memoryview, torch tensors through NumPy)
// or a list or tuple. A buffer whose layout fits is read in place and stays exported while the object here
// lives, so that it cannot be freed or resized; use these objects on the stack, around the work. Buffers must
// have one dimension and be contiguous; read-only ones are welcome. Errors name the argument: TypeError for
// what is no array of integers, ValueError (with index and value) for a value out of range.
//
// Out: new NumPy arrays, written through the buffer protocol, so no version of NumPy is compiled in.
//
// Construct and destroy with the GIL held; the spans may be read without it.
#ifndef LLMD_PYTHON_SRC_BUFFERS_H_
#define LLMD_PYTHON_SRC_BUFFERS_H_

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "llmd/base/memory_usage.h"
#include "llmd/base/types.h"
#include "llmd/hash/digest.h"

namespace llmd::python {

// Limits of what a caller may ask for in one argument.
inline constexpr std::int64_t kMaxBlockSize = std::int64_t{1} << 20;   // tokens
inline constexpr std::int64_t kMaxBlockCount = std::int64_t{1} << 24;  // blocks of one request

inline constexpr std::int64_t kMaxBytes = std::int64_t{1} << 46;  // of a budget

// Looks up NumPy; once, when the module is made.
void InitBuffers();

// A Py_buffer that is given back.
class BufferView {
 public:
  BufferView() = default;
  ~BufferView() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }
  BufferView(const BufferView&) = delete;
  BufferView& operator=(const BufferView&) = delete;

  // A contiguous view with one dimension; throws. `name`: the argument, for the message.
  void Acquire(pybind11::handle object, const char* name, int flags = PyBUF_FORMAT | PyBUF_ND);
  const Py_buffer& operator*() const { return view_; }
  const Py_buffer* operator->() const { return &view_; }

 private:
  Py_buffer view_{};
};

// Token ids: int32 and uint32 in place; int64 and uint64 in one pass; lists and tuples of integers.
class TokenBuffer {
 public:
  TokenBuffer(pybind11::handle object, const char* name);
  TokenSpan span() const { return span_; }
  operator TokenSpan() const { return span_; }  // NOLINT: a TokenBuffer is one

 private:
  BufferView view_;
  std::vector<TokenId> copy_;
  TokenSpan span_;
};

// 64-bit keys: uint64 in place, int64 too (two's complement, as SGLang publishes); lists and tuples of
// integers in -2^63 .. 2^64 - 1.
class KeyBuffer {
 public:
  KeyBuffer(pybind11::handle object, const char* name);
  BlockKeySpan span() const { return span_; }
  operator BlockKeySpan() const { return span_; }  // NOLINT

 private:
  BufferView view_;
  std::vector<BlockKey> copy_;
  BlockKeySpan span_;
};

// One key: an integer in -2^63 .. 2^64 - 1.
BlockKey ToKey(pybind11::handle object, const char* name);
// As ToKey(), nullopt for None.
std::optional<BlockKey> ToOptionalKey(pybind11::handle object, const char* name);
// A number of type T with a minimum and a maximum; TypeError or ValueError naming the argument.
std::int64_t ToInt(pybind11::handle object, const char* name, std::int64_t min, std::int64_t max);

// As ToInt() for 0 .. 2^64 - 1.
std::uint64_t ToUnsigned(pybind11::handle object, const char* name);
// True or False, NumPy's too.
bool ToBool(pybind11::handle object, const char* name);

// A finite number.
double ToDouble(pybind11::handle object, const char* name);
// Seconds since any epoch that the caller uses throughout.
absl::Time ToTime(pybind11::handle object, const char* name);
// str(object) for a message, whatever it is; never fails.
std::string DisplayText(pybind11::handle object);
// A str in UTF-8, valid as long as the object lives.
std::string_view ToText(pybind11::handle object, const char* name);
// Text of a wire, which may not be UTF-8: bad bytes become lone surrogates ("surrogateescape"), and again
// bytes.
pybind11::str FromWireText(std::string_view text);
std::string ToWireText(pybind11::handle object, const char* name);
template <typename Text>
pybind11::list FromTexts(const std::vector<Text>& texts) {
  pybind11::list out;
  for (const Text& text : texts) out.append(FromWireText(text));
  return out;
}
// True for a list or a tuple.
bool IsSequence(pybind11::handle object);
// A list or tuple, or a TypeError; `of` says what of.
void CheckSequence(pybind11::handle object, const char* name, const char* of);
std::size_t SequenceSize(pybind11::handle sequence);
// Element `i` of a list or tuple; IndexError when the list became shorter meanwhile.
pybind11::object SequenceItem(pybind11::handle sequence, std::size_t i);
// "name[i]"
std::string Element(const char* name, std::size_t i);

// A payload: bytes, bytearray, memoryview, or any contiguous buffer, read in place.
class BytesBuffer {
 public:
  BytesBuffer(pybind11::handle object, const char* name);
  std::span<const std::byte> span() const {
    return {static_cast<const std::byte*>(view_->buf), static_cast<std::size_t>(view_->len)};
  }
  std::string_view text() const {
    return {static_cast<const char*>(view_->buf), static_cast<std::size_t>(view_->len)};
  }

 private:
  BufferView view_;
};

// A digest: bytes, at most 32. None gives nullopt.
std::optional<hash::Digest> ToDigest(pybind11::handle object, const char* name);
pybind11::bytes FromDigest(const hash::Digest& digest);
// A list of bytes.
pybind11::list FromDigests(std::span<const hash::Digest> digests);
// A sequence of bytes, each at most 32.
std::vector<hash::Digest> ToDigests(pybind11::handle object, const char* name);

// (budget, ((name, live, dead, free), ...)), all in bytes.
pybind11::tuple FromMemoryUsage(const MemoryUsage& usage);

// New NumPy arrays.
pybind11::object ToArray(std::span<const std::uint64_t> values);
pybind11::object ToArray(std::span<const std::uint32_t> values);

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_BUFFERS_H_
