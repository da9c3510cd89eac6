// One call of an attention function: from Python's arrays to a backend and a stream.
//
//   Call call("rope", stream, backend);
//   Array& q = call.Add("q", q_object);
//   call.Begin();                 // all arrays are named: now their memory is asked for
//   dims.Match(q, {"T", "Hq", "D"});
//   call.Run(&llmd_attention_backend::rope, args);
#ifndef LLMD_PYTHON_SRC_ATTENTION_CALL_H_
#define LLMD_PYTHON_SRC_ATTENTION_CALL_H_

#include <pybind11/pybind11.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "llmd/attention/backend.h"
#include "python/src/array.h"
#include "python/src/attention_backend.h"
#include "python/src/status.h"

namespace llmd::python {

class Call {
 public:
  // `stream`: None, an integer, or an object with __cuda_stream__, cuda_stream or ptr. `backend`: None, then
  // it goes by the arrays' device, or an AttentionBackend.
  Call(pybind11::handle stream, pybind11::handle backend);

  // The reference lives as long as the call.
  Array& Add(const char* name, pybind11::handle object);
  // Null for None.
  Array* Optional(const char* name, pybind11::handle object);
  // An array that was exported before takes part in the choice of device and stream.
  // Or is exported by its owner, after Begin(), with Export().
  void Use(const Array& array, const char* group = "") { Join(array, group); }
  // May be page-locked memory of the host, whatever the device.
  Array& AddStaging(const char* name, pybind11::handle object);

  // Chooses backend and stream, exports the arrays.
  void Begin();

  const AttentionBackend& backend() const { return *backend_; }
  std::shared_ptr<AttentionBackend> shared_backend() const { return backend_; }
  llmd_stream stream() const { return stream_; }
  void Export(Array& array) const;
  bool on_host() const { return backend_->on_host(); }

  // Without the GIL; throws what went wrong.
  template <typename Args>
  void Run(llmd_code (*llmd_attention_backend::*const entry)(const Args*, llmd_stream), const Args& args) {
    Do([&](const llmd_attention_backend& table) { return (table.*entry)(&args, stream_); });
  }
  template <typename Work>
  void Do(Work&& work) {
    llmd_code code;
    std::string message;
    {
      pybind11::gil_scoped_release release;
      code = work(backend_->table());
      if (code != LLMD_OK) message = backend_->table().last_error();  // of this thread
    }
    Check(AttentionBackend::ToStatus(code, std::move(message)));
  }

 private:
  void Join(const Array& array, const char* group = "");
  void ChooseBackend(pybind11::handle backend);
  void ChooseStream();

  pybind11::object stream_object_;
  pybind11::object backend_object_;
  std::deque<Array> arrays_;
  std::optional<dlpack::Device> device_;  // of the first array that is not the host's staging memory
  std::string device_of_;                 // its name
  bool torch_ = false;
  bool cupy_ = false;

  std::shared_ptr<AttentionBackend> backend_;
  llmd_stream stream_ = nullptr;
  std::int64_t dlpack_stream_ = 0;
  bool torch_waits_ = true;  // unless the stream is torch's current one
};

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_ATTENTION_CALL_H_
