#include "python/src/status.h"

#include <pybind11/pybind11.h>

#include <string>

namespace llmd::python {
namespace py = pybind11;
namespace {

// References that are never given back: exceptions may be thrown until the interpreter ends.
struct Classes {
  PyObject* base = nullptr;
  PyObject* not_found = nullptr;
  PyObject* already_exists = nullptr;
  PyObject* failed_precondition = nullptr;
  PyObject* resource_exhausted = nullptr;
  PyObject* unavailable = nullptr;
  PyObject* unsupported = nullptr;
  PyObject* data_loss = nullptr;
};
Classes classes;

PyObject* ClassOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return PyExc_ValueError;
    case absl::StatusCode::kNotFound:
      return classes.not_found;
    case absl::StatusCode::kAlreadyExists:
      return classes.already_exists;
    case absl::StatusCode::kFailedPrecondition:
      return classes.failed_precondition;
    case absl::StatusCode::kResourceExhausted:
      return classes.resource_exhausted;
    case absl::StatusCode::kUnavailable:
      return classes.unavailable;
    case absl::StatusCode::kUnimplemented:
      return classes.unsupported;
    case absl::StatusCode::kDataLoss:
      return classes.data_loss;
    default:
      return classes.base;
  }
}

}  // namespace

void InitStatus() {
  const py::module_ errors = py::module_::import("llmd.errors");
  const auto find = [&](const char* name) { return py::object(errors.attr(name)).release().ptr(); };
  classes = {.base = find("Error"),
             .not_found = find("NotFoundError"),
             .already_exists = find("AlreadyExistsError"),
             .failed_precondition = find("FailedPreconditionError"),
             .resource_exhausted = find("ResourceExhaustedError"),
             .unavailable = find("UnavailableError"),
             .unsupported = find("UnsupportedError"),
             .data_loss = find("DataLossError")};
}

void ThrowStatus(const absl::Status& status) {
  const std::string message(status.message());
  const py::object text =
      py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(message.data(), message.size(), "replace"));
  PyErr_SetObject(ClassOf(status.code()), text.ptr());
  throw py::error_already_set();
}

}  // namespace llmd::python
