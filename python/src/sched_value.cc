#include "python/src/sched_value.h"

#include <string>
#include <utility>

namespace llmd::python {
namespace py = pybind11;
namespace {

constexpr int kMaxDepth = 64;

sched::Value FromPython(py::handle object, const std::string& path, int depth) {
  if (depth > kMaxDepth) throw py::value_error(path + " is nested more than 64 levels deep");
  if (object.is_none()) return {};
  if (py::isinstance<py::bool_>(object)) return object.cast<bool>();
  if (py::isinstance<py::int_>(object)) {
    try {
      return object.cast<std::int64_t>();
    } catch (const py::cast_error&) {
      throw py::value_error(path + " is " + std::string(py::str(object)) + ", expected a 64-bit integer");
    }
  }
  if (py::isinstance<py::float_>(object)) return object.cast<double>();
  if (py::isinstance<py::str>(object)) return object.cast<std::string>();
  if (py::isinstance<py::dict>(object)) {
    sched::Value::Map map;
    for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(object)) {
      if (!py::isinstance<py::str>(key)) throw py::value_error(path + " has a key that is no string");
      std::string name = key.cast<std::string>();
      sched::Value field = FromPython(value, path + "." + name, depth + 1);
      map.emplace_back(std::move(name), std::move(field));
    }
    return sched::Value::MakeMap(std::move(map));
  }
  if (py::isinstance<py::list>(object) || py::isinstance<py::tuple>(object)) {
    sched::Value::List list;
    for (const py::handle item : object) {
      list.push_back(FromPython(item, path + "[" + std::to_string(list.size()) + "]", depth + 1));
    }
    return sched::Value::MakeList(std::move(list));
  }
  throw py::value_error(path + " is of type " + std::string(py::str(py::type::of(object).attr("__name__"))) +
                        ", expected None, bool, int, float, str, list or dict");
}

}  // namespace

py::object ValueToPython(const sched::Value& value) {
  if (const bool* b = value.AsBool()) return py::bool_(*b);
  if (const std::int64_t* i = value.AsInt()) return py::int_(*i);
  if (const double* d = value.AsDouble()) return py::float_(*d);
  if (const std::string* s = value.AsString()) return py::str(*s);
  if (const sched::Value::List* list = value.AsList()) {
    py::list out;
    for (const sched::Value& item : *list) out.append(ValueToPython(item));
    return out;
  }
  if (const sched::Value::Map* map = value.AsMap()) {
    py::dict out;
    for (const auto& [name, field] : *map) out[py::str(name)] = ValueToPython(field);
    return out;
  }
  return py::none();
}

sched::Value ValueFromPython(py::handle object, const std::string& path) {
  return FromPython(object, path, 0);
}

}  // namespace llmd::python
