// Plugin parameters between the configuration and Python: llmd::sched::Value <-> dict, list, str, ...
#ifndef LLMD_PYTHON_SRC_SCHED_VALUE_H_
#define LLMD_PYTHON_SRC_SCHED_VALUE_H_

#include <pybind11/pybind11.h>

#include "llmd/sched/parameters.h"

namespace llmd::python {

pybind11::object ValueToPython(const sched::Value& value);
// ValueError names the place below `path` and the type.
sched::Value ValueFromPython(pybind11::handle object, const std::string& path);

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_SCHED_VALUE_H_
