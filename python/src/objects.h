// Arguments that are objects of our own classes, with errors that name the argument.
#ifndef LLMD_PYTHON_SRC_OBJECTS_H_
#define LLMD_PYTHON_SRC_OBJECTS_H_

#include <pybind11/pybind11.h>

#include <string>

namespace llmd::python {

// `type`: the class's name, for the message. The reference is valid as long as the object.
template <typename T>
T& ToObject(pybind11::handle object, const char* name, const char* type) {
  pybind11::detail::make_caster<T> caster;
  if (object.is_none() || !caster.load(object, false)) {
    throw pybind11::type_error(std::string(name) + " is of type " + Py_TYPE(object.ptr())->tp_name +
                               ", wanted " + type);
  }
  return pybind11::detail::cast_op<T&>(caster);
}

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_OBJECTS_H_
