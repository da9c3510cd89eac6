// absl::Status to Python exceptions, message intact.
//
//   InvalidArgument, OutOfRange  ValueError
//   NotFound                     llmd.NotFoundError, a KeyError
//   AlreadyExists, FailedPrecondition, ResourceExhausted, Unavailable, DataLoss
//                                llmd.<Code>Error, subclasses of llmd.Error, a RuntimeError
//   Unimplemented                llmd.UnsupportedError, likewise
//   others                       llmd.Error
//
// Call with the GIL held.
#ifndef LLMD_PYTHON_SRC_STATUS_H_
#define LLMD_PYTHON_SRC_STATUS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace llmd::python {

// Looks up the classes of llmd.errors; once, when the module is made.
void InitStatus();

[[noreturn]] void ThrowStatus(const absl::Status& status);

inline void Check(const absl::Status& status) {
  if (!status.ok()) ThrowStatus(status);
}

// The value, or the exception.
template <typename T>
T Take(absl::StatusOr<T> value) {
  if (!value.ok()) ThrowStatus(value.status());
  return *std::move(value);
}

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_STATUS_H_
