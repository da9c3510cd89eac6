// Small conversions that the scheduler's and gateway's bindings share.
#ifndef LLMD_PYTHON_SRC_SCHED_TYPES_H_
#define LLMD_PYTHON_SRC_SCHED_TYPES_H_

#include <pybind11/pybind11.h>

#include <string>

#include "absl/time/time.h"
#include "llmd/index/types.h"
#include "llmd/sched/endpoint.h"
#include "llmd/sched/prefix.h"

namespace llmd::python {

// Seconds since the epoch; ToTime() in buffers.h is the inverse.
inline double FromTime(absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); }
inline pybind11::object FromOptionalTime(absl::Time time) {
  if (time == absl::InfinitePast() || time == absl::InfiniteFuture()) return pybind11::none();
  return pybind11::float_(FromTime(time));
}

inline std::string HandleText(const sched::EndpointHandle& handle) {
  return "EndpointHandle(" + std::to_string(handle.slot) + ", " + std::to_string(handle.generation) + ")";
}

// An object with the attributes slot and generation, or a pair.
index::HolderId ToHolderId(pybind11::handle object, const char* name);
// An object with the attributes hi and lo, or a pair.
index::NamespaceId ToNamespaceId(pybind11::handle object, const char* name);
// A PrefixIndex or ApproxIndex of this module, or None for no index. The caller keeps the object alive.
sched::PrefixSourceIndex ToPrefixSource(pybind11::handle object, const char* name);

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_SCHED_TYPES_H_
