#include <pybind11/pybind11.h>

#include "python/src/module.h"

namespace llmd::python {

void BindHash(pybind11::module_&) {}

}  // namespace llmd::python
