#include "python/src/buffers.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

namespace llmd::python {
namespace py = pybind11;
namespace {

static_assert(std::endian::native == std::endian::little);

// Never given back: arrays may be made until the interpreter ends.
PyObject* numpy_empty = nullptr;
PyObject* numpy_uint64 = nullptr;
PyObject* numpy_uint32 = nullptr;

// From here on a conversion pass lets other threads run.
constexpr std::size_t kLongPass = 16384;

std::string TypeName(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

// The items of a buffer in place, or copied where they are not aligned.
template <typename T>
std::span<const T> Items(const Py_buffer& view, std::vector<T>& copy) {
  const std::size_t count = view.len / sizeof(T);
  if (count == 0) return {};
  if (reinterpret_cast<std::uintptr_t>(view.buf) % alignof(T) == 0) {
    return {static_cast<const T*>(view.buf), count};
  }
  copy.resize(count);
  std::memcpy(copy.data(), view.buf, count * sizeof(T));
  return copy;
}

// 'i': signed, 'u': unsigned, 'x': something else, in the machine's byte order.
char Signedness(const Py_buffer& view) {
  const char* format = view.format == nullptr ? "B" : view.format;
  if (*format == '@' || *format == '=' || *format == '<') ++format;
  if (std::strlen(format) != 1) return 'x';
  if (std::strchr("bhilqn", *format) != nullptr) return 'i';
  if (std::strchr("BHILQN", *format) != nullptr) return 'u';
  return 'x';
}

[[noreturn]] void ThrowDtype(const Py_buffer& view, const char* name, const char* wanted) {
  throw py::type_error(std::string(name) + ": a buffer of format '" +
                       (view.format == nullptr ? "B" : view.format) + "' with items of " +
                       std::to_string(view.itemsize) + " bytes; wanted " + wanted);
}

[[noreturn]] void ThrowElement(const char* name, std::size_t index, const std::string& value,
                               const char* range) {
  throw py::value_error(std::string(name) + "[" + std::to_string(index) + "] is " + value + ", not in " +
                        range);
}

constexpr char kTokenRange[] = "0 .. 4294967295";
constexpr char kKeyRange[] = "-2^63 .. 2^64 - 1";

// The 32-bit values of `from`; the index of the first one that does not fit, or from.size().
std::size_t Narrow(std::span<const std::uint64_t> from, TokenId* to) {
  std::uint64_t seen = 0;
  for (std::size_t i = 0; i < from.size(); ++i) {
    seen |= from[i];
    to[i] = static_cast<TokenId>(from[i]);
  }
  if (seen >> 32 == 0) return from.size();
  return std::find_if(from.begin(), from.end(), [](std::uint64_t v) { return v >> 32 != 0; }) - from.begin();
}

// The pending exception, which is replaced by one that names the argument where Python only says that the
// type is wrong. What an object's own method raised stays.
[[noreturn]] void ThrowConversion(py::handle object, const std::string& what, const char* wanted) {
  if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
    PyErr_Clear();
    throw py::value_error(what + " is too large");
  }
  if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
  PyErr_Clear();
  throw py::type_error(what + " is of type " + TypeName(object) + ", wanted " + wanted);
}

// An integer as Python sees it (__index__ counts: NumPy's scalars), or a TypeError. A bool is none: it would
// be another value in a hash.
py::object AsInt(py::handle object, const std::string& what) {
  if (PyBool_Check(object.ptr())) throw py::type_error(what + " is of type bool, wanted an integer");
  PyObject* number = PyNumber_Index(object.ptr());
  if (number == nullptr) ThrowConversion(object, what, "an integer");
  return py::reinterpret_steal<py::object>(number);
}

// True when `number` (an int) is in -2^63 .. 2^64 - 1; `key` is its low 64 bits then.
bool ReadKey(PyObject* number, BlockKey& key) {
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number, &overflow);
  if (overflow == 0) {
    key = static_cast<BlockKey>(value);
    return true;
  }
  if (overflow < 0) return false;
  key = PyLong_AsUnsignedLongLong(number);
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    return false;
  }
  return true;
}

// Calls use(i, int) for each element. __index__ may run Python code, so the length is read each time.
template <typename Use>
void ForEachInt(py::handle object, const char* name, Use use) {
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object.ptr()); ++i) {
    PyObject* item = PySequence_Fast_GET_ITEM(object.ptr(), i);
    if (PyLong_CheckExact(item)) {
      use(i, item);
    } else {
      const py::object hold = py::reinterpret_borrow<py::object>(item);
      use(i, AsInt(hold, Element(name, i)).ptr());
    }
  }
}

py::object MakeArray(PyObject* dtype, const void* data, std::size_t count, std::size_t item_size) {
  const py::object size = py::reinterpret_steal<py::object>(PyLong_FromSize_t(count));
  PyObject* arguments[] = {size.ptr(), dtype};
  py::object array =
      py::reinterpret_steal<py::object>(PyObject_Vectorcall(numpy_empty, arguments, 2, nullptr));
  if (!array) throw py::error_already_set();
  if (count != 0) {
    Py_buffer view;
    if (PyObject_GetBuffer(array.ptr(), &view, PyBUF_WRITABLE) != 0) throw py::error_already_set();
    std::memcpy(view.buf, data, count * item_size);
    PyBuffer_Release(&view);
  }
  return array;
}

}  // namespace

std::string DisplayText(py::handle object) {
  const py::object text = py::reinterpret_steal<py::object>(PyObject_Str(object.ptr()));
  const py::object bytes = py::reinterpret_steal<py::object>(
      text ? PyUnicode_AsEncodedString(text.ptr(), "utf-8", "backslashreplace") : nullptr);
  if (!bytes) {
    PyErr_Clear();
    return "an unprintable " + TypeName(object);
  }
  return {PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

void InitBuffers() {
  const py::module_ numpy = py::module_::import("numpy");
  numpy_empty = py::object(numpy.attr("empty")).release().ptr();
  numpy_uint64 = py::object(numpy.attr("dtype")("uint64")).release().ptr();
  numpy_uint32 = py::object(numpy.attr("dtype")("uint32")).release().ptr();
}

void BufferView::Acquire(py::handle object, const char* name, int flags) {
  if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) {
    // The reason in the exporter's words: not contiguous, released, of a dtype without a format, ...
    py::error_already_set error;
    throw py::value_error(std::string(name) + ": " + DisplayText(error.value()) +
                          "; wanted a contiguous array");
  }
  if ((flags & PyBUF_ND) != 0 && view_.ndim != 1) {
    throw py::value_error(std::string(name) + " has " + std::to_string(view_.ndim) + " dimensions, wanted 1");
  }
}

TokenBuffer::TokenBuffer(py::handle object, const char* name) {
  constexpr char kWanted[] = "int32, uint32 or int64";
  if (PyObject_CheckBuffer(object.ptr())) {
    view_.Acquire(object, name);
    const char kind = Signedness(*view_);
    if (kind == 'x' || (view_->itemsize != 4 && view_->itemsize != 8)) ThrowDtype(*view_, name, kWanted);
    if (view_->itemsize == 4) {
      span_ = Items(*view_, copy_);
      if (kind == 'i') {
        TokenId seen = 0;
        for (const TokenId token : span_) seen |= token;
        if (seen >> 31 != 0) {
          const auto bad = std::find_if(span_.begin(), span_.end(), [](TokenId t) { return t >> 31 != 0; });
          // Not found when another thread has changed the array meanwhile; then there is nothing to report.
          if (bad != span_.end()) {
            ThrowElement(name, bad - span_.begin(), std::to_string(static_cast<std::int32_t>(*bad)),
                         kTokenRange);
          }
        }
      }
      return;
    }
    std::vector<std::uint64_t> aligned;
    const std::span<const std::uint64_t> wide = Items(*view_, aligned);
    const std::size_t count = wide.size();
    copy_.resize(count);
    std::size_t bad;
    if (count >= kLongPass) {
      py::gil_scoped_release release;
      bad = Narrow(wide, copy_.data());
    } else {
      bad = Narrow(wide, copy_.data());
    }
    if (bad != count) {
      ThrowElement(
          name, bad,
          kind == 'i' ? std::to_string(static_cast<std::int64_t>(wide[bad])) : std::to_string(wide[bad]),
          kTokenRange);
    }
  } else if (IsSequence(object)) {
    copy_.reserve(PySequence_Fast_GET_SIZE(object.ptr()));
    ForEachInt(object, name, [&](std::size_t i, PyObject* number) {
      BlockKey value = 0;
      if (!ReadKey(number, value) || value >> 32 != 0)
        ThrowElement(name, i, DisplayText(number), kTokenRange);
      copy_.push_back(static_cast<TokenId>(value));
    });
  } else {
    throw py::type_error(std::string(name) + " is of type " + TypeName(object) + ", wanted an array of " +
                         kWanted + ", or a list");
  }
  span_ = copy_;
}

KeyBuffer::KeyBuffer(py::handle object, const char* name) {
  if (PyObject_CheckBuffer(object.ptr())) {
    view_.Acquire(object, name);
    if (Signedness(*view_) == 'x' || view_->itemsize != 8) ThrowDtype(*view_, name, "uint64 or int64");
    span_ = Items(*view_, copy_);
    return;
  }
  if (!IsSequence(object)) {
    throw py::type_error(std::string(name) + " is of type " + TypeName(object) +
                         ", wanted an array of uint64, or a list");
  }
  copy_.reserve(PySequence_Fast_GET_SIZE(object.ptr()));
  ForEachInt(object, name, [&](std::size_t i, PyObject* number) {
    BlockKey key = 0;
    if (!ReadKey(number, key)) ThrowElement(name, i, DisplayText(number), kKeyRange);
    copy_.push_back(key);
  });
  span_ = copy_;
}

BlockKey ToKey(py::handle object, const char* name) {
  BlockKey key = 0;
  if (!ReadKey(AsInt(object, name).ptr(), key)) {
    throw py::value_error(std::string(name) + " is " + DisplayText(object) + ", not in " + kKeyRange);
  }
  return key;
}

std::optional<BlockKey> ToOptionalKey(py::handle object, const char* name) {
  if (object.is_none()) return std::nullopt;
  return ToKey(object, name);
}

std::int64_t ToInt(py::handle object, const char* name, std::int64_t min, std::int64_t max) {
  const py::object number = AsInt(object, name);
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0 || value < min || value > max) {
    throw py::value_error(std::string(name) + " is " + DisplayText(number) + ", not in " +
                          std::to_string(min) + " .. " + std::to_string(max));
  }
  return value;
}

std::uint64_t ToUnsigned(py::handle object, const char* name) {
  const py::object number = AsInt(object, name);
  const std::uint64_t value = PyLong_AsUnsignedLongLong(number.ptr());
  if (value == std::numeric_limits<std::uint64_t>::max() && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw py::value_error(std::string(name) + " is " + DisplayText(number) + ", not in 0 .. 2^64 - 1");
  }
  return value;
}

bool ToBool(py::handle object, const char* name) {
  const std::string_view type = Py_TYPE(object.ptr())->tp_name;
  if (!PyBool_Check(object.ptr()) && type != "numpy.bool" && type != "numpy.bool_") {
    throw py::type_error(std::string(name) + " is of type " + TypeName(object) + ", wanted bool");
  }
  return PyObject_IsTrue(object.ptr()) == 1;
}

BytesBuffer::BytesBuffer(py::handle object, const char* name) {
  if (!PyObject_CheckBuffer(object.ptr())) {
    throw py::type_error(std::string(name) + " is of type " + TypeName(object) +
                         ", wanted bytes or a buffer");
  }
  view_.Acquire(object, name, PyBUF_SIMPLE);
}

std::optional<hash::Digest> ToDigest(py::handle object, const char* name) {
  if (object.is_none()) return std::nullopt;
  const BytesBuffer bytes(object, name);
  const std::span<const std::byte> data = bytes.span();
  auto digest = hash::Digest::FromBytes({reinterpret_cast<const std::uint8_t*>(data.data()), data.size()});
  if (!digest) {
    throw py::value_error(std::string(name) + " has " + std::to_string(data.size()) +
                          " bytes, a digest has at most " + std::to_string(hash::Digest::kMaxSize));
  }
  return digest;
}

py::bytes FromDigest(const hash::Digest& digest) {
  return py::bytes(reinterpret_cast<const char*>(digest.bytes.data()), digest.size);
}

py::list FromDigests(std::span<const hash::Digest> digests) {
  py::list list(digests.size());
  for (std::size_t i = 0; i < digests.size(); ++i) {
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), FromDigest(digests[i]).release().ptr());
  }
  return list;
}

std::vector<hash::Digest> ToDigests(py::handle object, const char* name) {
  CheckSequence(object, name, "bytes");
  std::vector<hash::Digest> digests;
  digests.reserve(SequenceSize(object));
  for (std::size_t i = 0; i < SequenceSize(object); ++i) {
    const py::object item = SequenceItem(object, i);
    const std::string element = Element(name, i);
    if (item.is_none()) throw py::type_error(element + " is None, wanted bytes");
    digests.push_back(*ToDigest(item, element.c_str()));
  }
  return digests;
}

double ToDouble(py::handle object, const char* name) {
  if (PyBool_Check(object.ptr()))
    throw py::type_error(std::string(name) + " is of type bool, wanted a number");
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1 && PyErr_Occurred() != nullptr) ThrowConversion(object, name, "a number");
  if (!std::isfinite(value))
    throw py::value_error(std::string(name) + " is " + DisplayText(object) + ", not finite");
  return value;
}

absl::Time ToTime(py::handle object, const char* name) {
  return absl::UnixEpoch() + absl::Seconds(ToDouble(object, name));
}

std::string_view ToText(py::handle object, const char* name) {
  if (!PyUnicode_Check(object.ptr())) {
    throw py::type_error(std::string(name) + " is of type " + TypeName(object) + ", wanted str");
  }
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
  if (data == nullptr) {
    const py::error_already_set error;
    throw py::value_error(std::string(name) + ": " + DisplayText(error.value()));
  }
  return {data, static_cast<std::size_t>(size)};
}

py::str FromWireText(std::string_view text) {
  PyObject* object =
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape");
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(object);
}

std::string ToWireText(py::handle object, const char* name) {
  if (!PyUnicode_Check(object.ptr())) {
    throw py::type_error(std::string(name) + " is of type " + TypeName(object) + ", wanted str");
  }
  Py_ssize_t size = 0;
  if (const char* data = PyUnicode_AsUTF8AndSize(object.ptr(), &size); data != nullptr) {
    return {data, static_cast<std::size_t>(size)};
  }
  PyErr_Clear();
  const py::object bytes =
      py::reinterpret_steal<py::object>(PyUnicode_AsEncodedString(object.ptr(), "utf-8", "surrogateescape"));
  if (!bytes) {
    const py::error_already_set error;
    throw py::value_error(std::string(name) + ": " + DisplayText(error.value()));
  }
  return {PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

bool IsSequence(py::handle object) { return PyList_Check(object.ptr()) || PyTuple_Check(object.ptr()); }

void CheckSequence(py::handle object, const char* name, const char* of) {
  if (!IsSequence(object)) {
    throw py::type_error(std::string(name) + " is of type " + TypeName(object) +
                         ", wanted a list or tuple of " + of);
  }
}

std::size_t SequenceSize(py::handle sequence) { return PySequence_Fast_GET_SIZE(sequence.ptr()); }

py::object SequenceItem(py::handle sequence, std::size_t i) {
  if (i >= SequenceSize(sequence)) throw py::index_error("the list changed while it was read");
  return py::reinterpret_borrow<py::object>(
      PySequence_Fast_GET_ITEM(sequence.ptr(), static_cast<Py_ssize_t>(i)));
}

std::string Element(const char* name, std::size_t i) {
  return std::string(name) + "[" + std::to_string(i) + "]";
}

py::tuple FromMemoryUsage(const MemoryUsage& usage) {
  py::list causes;
  for (const MemoryUsage::Cause& cause : usage.causes) {
    causes.append(py::make_tuple(cause.name, cause.live_bytes, cause.dead_bytes, cause.free_bytes));
  }
  return py::make_tuple(usage.budget_bytes, py::tuple(causes));
}

py::object ToArray(std::span<const std::uint64_t> values) {
  return MakeArray(numpy_uint64, values.data(), values.size(), sizeof(std::uint64_t));
}

py::object ToArray(std::span<const std::uint32_t> values) {
  return MakeArray(numpy_uint32, values.data(), values.size(), sizeof(std::uint32_t));
}

}  // namespace llmd::python
