// Arrays of any framework, in place: objects with __dlpack__ and __dlpack_device__.
//
// An Array is first a name, an object and a device; Export() then asks for its memory, for work on a given
// stream. It is kept from being freed while the Array lives. Everything that reads it names the argument in
// its errors: TypeError for what is no array or has another element type, ValueError for shapes, strides,
// devices.
//
// Construct, use and destroy with the GIL held.
#ifndef LLMD_PYTHON_SRC_ARRAY_H_
#define LLMD_PYTHON_SRC_ARRAY_H_

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/attention/types.h"
#include "python/src/dlpack.h"

namespace llmd::python {

enum class Framework { kOther, kTorch, kCupy };

class Array {
 public:
  // Reads the device. `object`: not None.
  Array(std::string name, pybind11::handle object);

  // `stream`: DLPack's number of the stream that the memory is to be ready for (-1: as it is now); not read
  // for memory of the host.
  void Export(std::int64_t stream);

  const std::string& name() const { return name_; }
  const dlpack::Device& device() const { return device_; }
  Framework framework() const { return framework_; }
  bool OnHost() const { return device_.type == dlpack::kCpu || device_.type == dlpack::kCudaHost; }

  // After Export(). Strides in elements; those that are never used, of a dimension of one element or of an
  // array without any, are what a compact array would have, whatever the exporter said.
  std::span<const std::int64_t> shape() const { return shape_; }
  std::span<const std::int64_t> strides() const { return strides_; }
  int rank() const { return static_cast<int>(shape_.size()); }
  std::int64_t size() const;  // elements
  void* data() const { return data_; }

  // Type of floats. `explicit_type`: None or a name; needed where the exporter has unsigned integers of the
  // same size. `argument`: the name of the argument it came in.
  llmd_dtype FloatType(pybind11::handle explicit_type, const char* argument) const;
  // The same, of float32 only.
  float* Floats() const;
  // Signed integers; of 64 bits, unsigned ones too.
  std::int32_t* Int32() const;
  std::int64_t* Int64() const;
  std::uint8_t* Bytes() const;

  void CheckWritable() const;
  // Whether the last dimension, or all of them, have no gaps.
  void CheckRows() const;
  void CheckCompact() const;
  // [tokens, heads, D] or [tokens, heads].
  llmd_token_strides TokenStrides() const { return {strides_[0], strides_[1]}; }
  // All dimensions but the last as one of rows with one stride.
  struct Rows {
    std::int64_t count = 1;
    std::int64_t stride = 0;
  };
  Rows AsRows() const;

  // "(3, 4)"
  static std::string Text(std::span<const std::int64_t> values);

 private:
  void Take(const pybind11::object& capsule);
  void Read(const dlpack::Tensor& tensor, std::uint64_t flags);
  std::string TypeText() const;
  void CheckType(dlpack::TypeCode code, int bits, const char* wanted) const;

  std::string name_;
  pybind11::object object_;
  dlpack::Device device_;
  Framework framework_ = Framework::kOther;

  std::shared_ptr<void> memory_;  // gives the tensor back
  void* data_ = nullptr;
  dlpack::DataType dtype_{};
  std::uint64_t flags_ = 0;
  std::vector<std::int64_t> shape_;
  std::vector<std::int64_t> strides_;
};

// "cpu", "cuda:0"
std::string DeviceText(const dlpack::Device& device);

// Sizes by the letters of the documentation, from the arrays and objects that were seen first.
class Dims {
 public:
  void Set(const std::string& letter, std::int64_t value, std::string source);

  // ValueError if the array's shape is another one. A letter that is new gets its size from this array. "B+1"
  // and "2*I" are the size plus one and twice the size; "3" is 3.
  void Match(const Array& array, std::initializer_list<const char*> letters);

  std::int64_t operator[](const std::string& letter) const { return sizes_.at(letter).value; }
  std::int32_t Int32(const std::string& letter) const;

 private:
  struct Size {
    std::int64_t value;
    std::string source;
  };
  std::map<std::string, Size> sizes_;
};

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_ARRAY_H_
