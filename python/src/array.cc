#include "python/src/array.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "python/src/buffers.h"
#include "src/attention/check.h"

namespace llmd::python {
namespace py = pybind11;
namespace {

constexpr int kMostDimensions = 32;

std::string TypeOf(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

// ValueError from the exception that is being handled. What asks to stop is passed on as it is.
[[noreturn]] void Wrap(py::error_already_set& error, const std::string& what) {
  if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw error;
  const std::string text = what + ": " + TypeOf(error.value()) + ": " + DisplayText(error.value());
  py::raise_from(error, PyExc_ValueError, text.c_str());
  throw py::error_already_set();
}

// Whether the object is of a class of a module that somebody has imported; asking imports nothing.
bool IsInstance(py::handle object, const char* module, const char* type) {
  PyObject* modules = PyImport_GetModuleDict();
  PyObject* found = PyDict_GetItemString(modules, module);
  if (found == nullptr) return false;
  const py::object wanted = py::getattr(found, type, py::none());
  if (!PyType_Check(wanted.ptr())) return false;
  const int is = PyObject_IsInstance(object.ptr(), wanted.ptr());
  if (is < 0) throw py::error_already_set();
  return is != 0;
}

Framework FrameworkOf(py::handle object) {
  if (IsInstance(object, "torch", "Tensor")) return Framework::kTorch;
  if (IsInstance(object, "cupy", "ndarray")) return Framework::kCupy;
  return Framework::kOther;
}

dlpack::Device DeviceOf(py::handle object, const std::string& name) {
  py::object pair;
  try {
    pair = object.attr("__dlpack_device__")();
  } catch (py::error_already_set& error) {
    Wrap(error, name + "'s __dlpack_device__ failed");
  }
  if (!PyTuple_Check(pair.ptr()) || PyTuple_GET_SIZE(pair.ptr()) != 2) {
    throw py::type_error(name + "'s __dlpack_device__ gives " + TypeOf(pair) + ", wanted (type, number)");
  }
  dlpack::Device device;
  const std::string text = name + "'s __dlpack_device__";
  const auto number = [&](Py_ssize_t i) {  // the type is an enumeration in some frameworks
    const py::int_ value(py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(pair.ptr(), i)));
    return static_cast<std::int32_t>(ToInt(value, text.c_str(), 0, std::numeric_limits<std::int32_t>::max()));
  };
  try {
    device.type = number(0);
    device.id = number(1);
  } catch (py::error_already_set& error) {
    Wrap(error, text + " gives no numbers");
  }
  switch (device.type) {
    case dlpack::kCpu:
    case dlpack::kCuda:
    case dlpack::kCudaHost:
    case dlpack::kCudaManaged:
      return device;
    default:
      throw py::value_error(name + " is on a device of DLPack's type " + std::to_string(device.type) +
                            ", wanted 1 (cpu), 2 (cuda), 3 (cuda host) or 13 (cuda managed)");
  }
}

constexpr const char* kLegacy = "dltensor";
constexpr const char* kVersioned = "dltensor_versioned";

template <typename Managed>
std::shared_ptr<void> Owner(const py::object& capsule, const char* name, const char* used) {
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (managed == nullptr) throw py::error_already_set();
  std::shared_ptr<void> owner(managed, [](void* pointer) {
    auto* const tensor = static_cast<Managed*>(pointer);
    if (tensor->deleter != nullptr) tensor->deleter(tensor);
  });
  if (PyCapsule_SetName(capsule.ptr(), used) != 0) {
    PyErr_Clear();  // cannot be; then the capsule gives it back as well
    throw py::value_error("the capsule cannot be renamed");
  }
  return owner;
}

bool IsNamed(const py::object& capsule, const char* name) {
  return PyCapsule_IsValid(capsule.ptr(), name) != 0;
}

}  // namespace

std::string DeviceText(const dlpack::Device& device) {
  switch (device.type) {
    case dlpack::kCpu:
      return "cpu";
    case dlpack::kCudaHost:
      return "cuda host";
    default:
      return (device.type == dlpack::kCuda ? "cuda:" : "cuda managed:") + std::to_string(device.id);
  }
}

std::string Array::Text(std::span<const std::int64_t> values) {
  std::string text = "(";
  for (const std::int64_t value : values) text += (text.size() > 1 ? ", " : "") + std::to_string(value);
  return text + (values.size() == 1 ? ",)" : ")");
}

Array::Array(std::string name, py::handle object)
    : name_(std::move(name)), object_(py::reinterpret_borrow<py::object>(object)) {
  if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__")) {
    throw py::type_error(name_ + " is of type " + TypeOf(object) +
                         ", wanted an array with __dlpack__ (NumPy, torch, CuPy, JAX)");
  }
  device_ = DeviceOf(object, name_);
  framework_ = FrameworkOf(object);
}

void Array::Export(std::int64_t stream) {
  py::object capsule;
  const py::object method = object_.attr("__dlpack__");
  py::dict keywords;
  if (!OnHost()) keywords["stream"] = stream;
  keywords["max_version"] = py::make_tuple(1, 1);
  try {
    try {
      capsule = method(**keywords);
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      keywords.attr("pop")("max_version");  // from before DLPack 1.0
      capsule = method(**keywords);
    }
  } catch (py::error_already_set& error) {
    Wrap(error, name_ + "'s __dlpack__ failed");
  }
  Take(capsule);
}

void Array::Take(const py::object& capsule) {
  if (IsNamed(capsule, kVersioned)) {
    const auto* managed =
        static_cast<const dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), kVersioned));
    if (managed->version.major != 1) {  // the capsule, which keeps its name, gives it back
      throw py::value_error(name_ + "'s __dlpack__ gives DLPack " + std::to_string(managed->version.major) +
                            "." + std::to_string(managed->version.minor) + ", wanted 1");
    }
    memory_ = Owner<dlpack::ManagedVersioned>(capsule, kVersioned, "used_dltensor_versioned");
    Read(managed->tensor, managed->flags);
  } else if (IsNamed(capsule, kLegacy)) {
    memory_ = Owner<dlpack::Managed>(capsule, kLegacy, "used_dltensor");
    Read(static_cast<const dlpack::Managed*>(memory_.get())->tensor, 0);
  } else if (PyCapsule_CheckExact(capsule.ptr()) != 0) {
    const char* name = PyCapsule_GetName(capsule.ptr());
    throw py::value_error(name_ + "'s __dlpack__ gives a capsule \"" + (name != nullptr ? name : "") +
                          "\", wanted dltensor or dltensor_versioned, unused");
  } else {
    throw py::type_error(name_ + "'s __dlpack__ gives " + TypeOf(capsule) + ", wanted a capsule");
  }
}

void Array::Read(const dlpack::Tensor& tensor, std::uint64_t flags) {
  // torch's tensors in page-locked memory say so themselves, but not in what they export.
  const bool locked = device_.type == dlpack::kCudaHost && tensor.device.type == dlpack::kCpu;
  if (tensor.device != device_ && !locked) {
    throw py::value_error(name_ + " is on " + DeviceText(tensor.device) +
                          ", but its __dlpack_device__ says " + DeviceText(device_));
  }
  if (tensor.ndim < 0 || tensor.ndim > kMostDimensions || (tensor.ndim > 0 && tensor.shape == nullptr)) {
    throw py::value_error(name_ + " has " + std::to_string(tensor.ndim) + " dimensions, wanted 0 to " +
                          std::to_string(kMostDimensions));
  }
  dtype_ = tensor.dtype;
  flags_ = flags;
  shape_.assign(tensor.shape, tensor.shape + tensor.ndim);
  strides_.assign(shape_.size(), 0);
  for (const std::int64_t size : shape_) {
    if (size < 0) {
      throw py::value_error(name_ + " is of shape " + Text(shape_) + ", wanted sizes of at least 0");
    }
  }
  const bool empty = std::find(shape_.begin(), shape_.end(), 0) != shape_.end();
  std::int64_t compact = 1;
  for (std::size_t i = shape_.size(); i-- > 0;) {
    const bool used = shape_[i] > 1 && !empty && tensor.strides != nullptr;
    strides_[i] = used ? tensor.strides[i] : compact;
    // The next dimension's stride, were there no gaps.
    if (__builtin_mul_overflow(strides_[i], std::max<std::int64_t>(shape_[i], 1), &compact)) {
      throw py::value_error(name_ + " is of shape " + Text(shape_) + ", which reaches past 2^63 elements");
    }
  }
  if (empty) return;
  std::int64_t count = 1;
  for (const std::int64_t size : shape_) {
    if (__builtin_mul_overflow(count, size, &count)) {
      throw py::value_error(name_ + " is of shape " + Text(shape_) + ", which is past 2^63 elements");
    }
  }
  if (tensor.data == nullptr) throw py::value_error(name_ + " has no data");
  data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
}

std::int64_t Array::size() const {
  std::int64_t count = 1;
  for (const std::int64_t size : shape_) count *= size;
  return count;
}

std::string Array::TypeText() const {
  const std::string bits = std::to_string(dtype_.bits);
  std::string text;
  switch (dtype_.code) {
    case dlpack::kInt:
      text = "int" + bits;
      break;
    case dlpack::kUInt:
      text = "uint" + bits;
      break;
    case dlpack::kFloat:
      text = "float" + bits;
      break;
    case dlpack::kBfloat:
      text = "bfloat" + bits;
      break;
    case dlpack::kBool:
      text = "bool";
      break;
    case dlpack::kFloat8E4M3Fn:
      text = "float8_e4m3fn";
      break;
    default:
      text = "DLPack's type " + std::to_string(dtype_.code) + " of " + bits + " bits";
  }
  return dtype_.lanes == 1 ? text : text + " x " + std::to_string(dtype_.lanes);
}

void Array::CheckType(dlpack::TypeCode code, int bits, const char* wanted) const {
  if (dtype_.code != code || dtype_.bits != bits || dtype_.lanes != 1) {
    throw py::type_error(name_ + " is of " + TypeText() + ", wanted " + wanted);
  }
}

llmd_dtype Array::FloatType(py::handle explicit_type, const char* argument) const {
  const auto is = [&](dlpack::TypeCode code, int bits) {
    return dtype_.code == code && dtype_.bits == bits && dtype_.lanes == 1;
  };
  std::optional<llmd_dtype> own;
  if (is(dlpack::kFloat, 32)) own = LLMD_F32;
  if (is(dlpack::kFloat, 16)) own = LLMD_F16;
  if (is(dlpack::kBfloat, 16)) own = LLMD_BF16;
  if (is(dlpack::kFloat8E4M3Fn, 8)) own = LLMD_E4M3;
  if (explicit_type.is_none()) {
    if (own) return *own;
    throw py::type_error(name_ + " is of " + TypeText() +
                         ", wanted float32, float16, bfloat16 or float8_e4m3fn" +
                         (dtype_.code == dlpack::kUInt ? std::string(", or ") + argument + "=" : ""));
  }
  const std::string_view text = ToText(explicit_type, argument);
  for (const llmd_dtype type : {LLMD_F32, LLMD_F16, LLMD_BF16, LLMD_E4M3}) {
    if (text != attention::NameOf(type)) continue;
    if (own == type) return type;
    const int bits = 8 * static_cast<int>(attention::SizeOf(type));
    if (!own && is(dlpack::kUInt, bits)) return type;
    throw py::type_error(std::string(argument) + " is " + std::string(text) + ", but " + name_ + " is of " +
                         TypeText() + ", wanted this or uint" + std::to_string(bits));
  }
  throw py::value_error(std::string(argument) + " is \"" + std::string(text.substr(0, 100)) +
                        "\", wanted f32, f16, bf16 or e4m3");
}

float* Array::Floats() const {
  CheckType(dlpack::kFloat, 32, "float32");
  return static_cast<float*>(data_);
}

std::int32_t* Array::Int32() const {
  CheckType(dlpack::kInt, 32, "int32");
  return static_cast<std::int32_t*>(data_);
}

std::int64_t* Array::Int64() const {
  if (dtype_.code != dlpack::kUInt) CheckType(dlpack::kInt, 64, "int64");
  if (dtype_.code == dlpack::kUInt) CheckType(dlpack::kUInt, 64, "int64 or uint64");
  return static_cast<std::int64_t*>(data_);
}

std::uint8_t* Array::Bytes() const {
  CheckType(dlpack::kUInt, 8, "uint8");
  return static_cast<std::uint8_t*>(data_);
}

void Array::CheckWritable() const {
  if ((flags_ & dlpack::kReadOnly) != 0) {
    throw py::value_error(name_ + " is read-only, wanted an array to write to");
  }
  if ((flags_ & dlpack::kIsCopied) != 0) {
    throw py::value_error(name_ + " was copied by its __dlpack__, so that what is written would be lost");
  }
}

void Array::CheckRows() const {
  if (!strides_.empty() && shape_.back() > 1 && strides_.back() != 1) {
    throw py::value_error(name_ + " has a stride of " + std::to_string(strides_.back()) +
                          " elements in its last dimension, wanted 1");
  }
}

void Array::CheckCompact() const {
  std::int64_t compact = 1;
  for (std::size_t i = shape_.size(); i-- > 0;) {
    if (shape_[i] == 0) return;
    if (shape_[i] > 1 && strides_[i] != compact) {
      throw py::value_error(name_ + " is of shape " + Text(shape_) + " with strides " + Text(strides_) +
                            ", wanted a contiguous array");
    }
    compact *= shape_[i];
  }
}

Array::Rows Array::AsRows() const {
  if (rank() == 0) throw py::value_error(name_ + " is of shape (), wanted (..., size)");
  CheckRows();
  Rows rows{.count = 1, .stride = shape_.back()};
  bool first = true;
  for (std::size_t i = shape_.size() - 1; i-- > 0;) {
    if (shape_[i] > 1 && first) {
      rows.stride = strides_[i];
      first = false;
    } else if (shape_[i] > 1 && strides_[i] != rows.stride * rows.count) {
      throw py::value_error(name_ + " is of shape " + Text(shape_) + " with strides " + Text(strides_) +
                            ", wanted rows at even distances");
    }
    rows.count *= shape_[i];
  }
  return rows;
}

void Dims::Set(const std::string& letter, std::int64_t value, std::string source) {
  sizes_[letter] = {value, std::move(source)};
}

std::int32_t Dims::Int32(const std::string& letter) const {
  const Size& size = sizes_.at(letter);
  if (size.value > std::numeric_limits<std::int32_t>::max()) {
    throw py::value_error(size.source + " has " + std::to_string(size.value) +
                          " elements in a dimension, wanted at most 2147483647");
  }
  return static_cast<std::int32_t>(size.value);
}

void Dims::Match(const Array& array, std::initializer_list<const char*> letters) {
  const auto fail = [&](const std::string& why) {
    std::string wanted = "(";
    for (const char* letter : letters) wanted += (wanted.size() > 1 ? ", " : "") + std::string(letter);
    wanted += letters.size() == 1 ? ",)" : ")";
    throw py::value_error(array.name() + " is of shape " + Array::Text(array.shape()) + ", wanted " + wanted +
                          why);
  };
  if (array.shape().size() != letters.size()) fail("");
  std::size_t i = 0;
  for (std::string letter : letters) {
    std::int64_t value = array.shape()[i++];
    if (letter.ends_with("+1")) {
      letter.resize(letter.size() - 2);
      if (value < 1) fail("");
      --value;
    } else if (letter.starts_with("2*")) {
      letter.erase(0, 2);
      if (value % 2 != 0) fail("");
      value /= 2;
    } else if (letter.find_first_not_of("0123456789") == std::string::npos) {
      if (std::to_string(value) != letter) fail("");
      continue;
    }
    const auto [at, is_new] = sizes_.try_emplace(letter, Size{value, array.name()});
    if (!is_new && at->second.value != value) {
      fail(", where " + letter + " is " + std::to_string(at->second.value) + " as in " + at->second.source);
    }
  }
}

}  // namespace llmd::python
