// The structures of DLPack, an exchange format of arrays in memory (https://dmlc.github.io/dlpack), as far as
// they are read here: capsules "dltensor" (before version 1.0) and "dltensor_versioned".
#ifndef LLMD_PYTHON_SRC_DLPACK_H_
#define LLMD_PYTHON_SRC_DLPACK_H_

#include <cstdint>

namespace llmd::python::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

struct Device {
  std::int32_t type = 0;
  std::int32_t id = 0;
  bool operator==(const Device&) const = default;
};

enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6, kFloat8E4M3Fn = 10 };

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: compact, the last dimension first
  std::uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

enum Flags : std::uint64_t { kReadOnly = 1, kIsCopied = 2 };

struct ManagedVersioned {
  Version version;  // of another major version, nothing but the deleter may be used
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

}  // namespace llmd::python::dlpack

#endif  // LLMD_PYTHON_SRC_DLPACK_H_
