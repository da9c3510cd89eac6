#include "python/src/attention_call.h"

#include <cstdint>
#include <limits>
#include <string>

#include "python/src/buffers.h"
#include "python/src/objects.h"

namespace llmd::python {
namespace py = pybind11;
namespace {

bool IsHost(const dlpack::Device& device) {
  return device.type == dlpack::kCpu || device.type == dlpack::kCudaHost;
}

// The handle of a stream that the caller gave.
std::uint64_t HandleOf(py::handle stream) {
  if (py::hasattr(stream, "__cuda_stream__")) {
    py::object pair = stream.attr("__cuda_stream__");
    if (PyCallable_Check(pair.ptr()) != 0) pair = pair();
    if (!PyTuple_Check(pair.ptr()) || PyTuple_GET_SIZE(pair.ptr()) != 2) {
      throw py::type_error("stream's __cuda_stream__ gives no (version, handle)");
    }
    return ToUnsigned(PyTuple_GET_ITEM(pair.ptr(), 1), "stream's __cuda_stream__");
  }
  for (const char* attribute : {"cuda_stream", "ptr"}) {  // torch, CuPy
    if (py::hasattr(stream, attribute)) {
      return ToUnsigned(stream.attr(attribute), (std::string("stream.") + attribute).c_str());
    }
  }
  if (!PyLong_Check(stream.ptr()) || PyBool_Check(stream.ptr())) {
    throw py::type_error(std::string("stream is of type ") + Py_TYPE(stream.ptr())->tp_name +
                         ", wanted an integer, or an object with __cuda_stream__, cuda_stream or ptr");
  }
  return ToUnsigned(stream, "stream");
}

// The current streams of frameworks, which the process has imported: arrays of theirs were given.
std::uint64_t TorchStream(int device) {
  const py::object cuda = py::module_::import("torch").attr("cuda");
  return ToUnsigned(cuda.attr("current_stream")(device).attr("cuda_stream"), "torch's current stream");
}

std::uint64_t CupyStream() {
  const py::object cuda = py::module_::import("cupy").attr("cuda");
  return ToUnsigned(cuda.attr("get_current_stream")().attr("ptr"), "CuPy's current stream");
}

}  // namespace

Call::Call(py::handle stream, py::handle backend)
    : stream_object_(py::reinterpret_borrow<py::object>(stream)),
      backend_object_(py::reinterpret_borrow<py::object>(backend)) {}

Array& Call::Add(const char* name, py::handle object) {
  Array& array = arrays_.emplace_back(name, object);
  Join(array);
  return array;
}

Array* Call::Optional(const char* name, py::handle object) {
  return object.is_none() ? nullptr : &Add(name, object);
}

Array& Call::AddStaging(const char* name, py::handle object) {
  Array& array = arrays_.emplace_back(name, object);
  if (array.device().type != dlpack::kCudaHost) Join(array);
  return array;
}

void Call::Join(const Array& array, const char* group) {
  torch_ = torch_ || array.framework() == Framework::kTorch;
  cupy_ = cupy_ || array.framework() == Framework::kCupy;
  const dlpack::Device& device = array.device();
  if (!device_) {
    device_ = device;
    device_of_ = group + array.name();
    return;
  }
  const bool both_host = IsHost(device) && IsHost(*device_);
  const bool same_gpu = !IsHost(device) && !IsHost(*device_) && device.id == device_->id;
  if (!both_host && !same_gpu) {
    throw py::value_error(group + array.name() + " is on " + DeviceText(device) + ", but " + device_of_ +
                          " is on " + DeviceText(*device_) + ", wanted one device");
  }
}

void Call::Begin() {
  ChooseBackend(backend_object_);
  ChooseStream();
  for (Array& array : arrays_) Export(array);
}

void Call::Export(Array& array) const {
  // Torch compares streams by numbers of its own, and would record and await an event even on its current
  // one.
  constexpr std::int64_t kAsItIs = -1;
  array.Export(array.framework() == Framework::kTorch && !torch_waits_ ? kAsItIs : dlpack_stream_);
}

void Call::ChooseBackend(py::handle given) {
  const bool host = !device_ || IsHost(*device_);
  py::object backend = py::reinterpret_borrow<py::object>(given);
  if (backend.is_none()) {
    const py::object find = py::module_::import("llmd._cuda_backend").attr("core_for");
    backend = find(host ? "cpu" : "cuda");
  }
  backend_ = backend.cast<std::shared_ptr<AttentionBackend>>();
  if (device_ && backend_->on_host() != host) {
    throw py::value_error("backend is " + std::string(backend_->table().name) + ", which works on " +
                          (host ? "CUDA devices" : "memory of the host") + ", but " + device_of_ + " is on " +
                          DeviceText(*device_));
  }
  if (host) return;
  const int current = CurrentCudaDevice();
  if (current >= 0 && current != device_->id) {
    throw py::value_error(device_of_ + " is on " + DeviceText(*device_) +
                          ", but the current device is cuda:" + std::to_string(current) +
                          ": make the array's device the current one");
  }
}

void Call::ChooseStream() {
  if (on_host()) {
    if (!stream_object_.is_none()) {
      throw py::value_error("stream is given, but " + device_of_ +
                            " is in memory of the host, where there are none");
    }
    return;
  }
  const std::uint64_t of_torch = torch_ ? TorchStream(device_->id) : 0;
  std::uint64_t handle = 0;
  if (!stream_object_.is_none()) {
    handle = HandleOf(stream_object_);
  } else if (torch_ || cupy_) {
    handle = torch_ ? of_torch : CupyStream();
    if (torch_ && cupy_ && CupyStream() != handle) {
      throw py::value_error("stream is not given, and the current streams of torch and CuPy differ");
    }
  } else {
    throw py::value_error(
        "stream is not given, and no array is torch's or CuPy's, whose current stream it would be: "
        "an integer (1: the legacy default stream), or an object with __cuda_stream__, cuda_stream or ptr");
  }
  if (handle > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    throw py::value_error("stream is " + std::to_string(handle) + ", which is no handle of a stream");
  }
  // 0 and 1 are names of the legacy default stream; DLPack knows 1 only.
  stream_ = reinterpret_cast<llmd_stream>(static_cast<std::uintptr_t>(handle == 1 ? 0 : handle));
  dlpack_stream_ = handle == 0 ? 1 : static_cast<std::int64_t>(handle);
  torch_waits_ = dlpack_stream_ != (of_torch == 0 ? 1 : static_cast<std::int64_t>(of_torch));
}

}  // namespace llmd::python
