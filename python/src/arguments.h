// Arguments of bound functions that know their names, so that every error says which argument is wrong.
//
//   m.def("add", [](Arg<"name", std::string> name, Arg<"port", std::uint16_t> port) { Add(*name, *port); });
//
// raises `TypeError: port is of type str, wanted an integer`. Converts str (with the surrogates that stand
// for bytes of a wire that are not UTF-8), bool, integers within the limits of their type, finite numbers,
// objects of our own classes; optional (None), lists and tuples, pairs, and dictionaries of these. An element
// of a container is called "name[i]".
#ifndef LLMD_PYTHON_SRC_ARGUMENTS_H_
#define LLMD_PYTHON_SRC_ARGUMENTS_H_

#include <pybind11/pybind11.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "python/src/buffers.h"
#include "python/src/objects.h"

namespace llmd::python {

// Converts one object to T, or throws TypeError or ValueError. Specialized below.
template <typename T>
struct Convert;

template <typename T>
T To(pybind11::handle object, const std::string& name) {
  return Convert<T>::From(object, name);
}

template <>
struct Convert<std::string> {
  static std::string From(pybind11::handle object, const std::string& name) {
    return ToWireText(object, name.c_str());
  }
};

template <>
struct Convert<bool> {
  static bool From(pybind11::handle object, const std::string& name) { return ToBool(object, name.c_str()); }
};

template <std::integral T>
struct Convert<T> {
  static T From(pybind11::handle object, const std::string& name) {
    if constexpr (std::is_same_v<T, std::uint64_t>) {
      return ToUnsigned(object, name.c_str());
    } else {
      return static_cast<T>(
          ToInt(object, name.c_str(), std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
    }
  }
};

template <>
struct Convert<double> {
  static double From(pybind11::handle object, const std::string& name) {
    return ToDouble(object, name.c_str());
  }
};

// An object that lives as long as the call.
template <typename T>
struct Convert<T&> {
  static T& From(pybind11::handle object, const std::string& name) {
    using Class = std::remove_const_t<T>;
    const auto type = pybind11::type::of<Class>().attr("__name__").template cast<std::string>();
    return ToObject<Class>(object, name.c_str(), type.c_str());
  }
};

template <typename T>
struct Convert<std::shared_ptr<T>> {
  static std::shared_ptr<T> From(pybind11::handle object, const std::string& name) {
    To<T&>(object, name);
    return object.cast<std::shared_ptr<T>>();
  }
};

template <typename T>
struct Convert<std::optional<T>> {
  static std::optional<T> From(pybind11::handle object, const std::string& name) {
    if (object.is_none()) return std::nullopt;
    return To<T>(object, name);
  }
};

template <typename T>
struct Convert<std::vector<T>> {
  static std::vector<T> From(pybind11::handle object, const std::string& name) {
    CheckSequence(object, name.c_str(), "elements");
    std::vector<T> out;
    for (std::size_t i = 0; i < SequenceSize(object); ++i) {
      const pybind11::object item = SequenceItem(object, i);
      out.push_back(To<T>(item, Element(name.c_str(), i)));
    }
    return out;
  }
};

template <typename... T>
struct Convert<std::tuple<T...>> {
  static std::tuple<T...> From(pybind11::handle object, const std::string& name) {
    if (!IsSequence(object) || SequenceSize(object) != sizeof...(T)) {
      throw pybind11::type_error(name + " is no tuple of " + std::to_string(sizeof...(T)) + " elements");
    }
    return Elements(object, name, std::index_sequence_for<T...>());
  }

 private:
  template <std::size_t... kIndex>
  static std::tuple<T...> Elements(pybind11::handle object, const std::string& name,
                                   std::index_sequence<kIndex...>) {
    return {To<T>(SequenceItem(object, kIndex), Element(name.c_str(), kIndex))...};
  }
};

template <typename First, typename Second>
struct Convert<std::pair<First, Second>> {
  static std::pair<First, Second> From(pybind11::handle object, const std::string& name) {
    auto [first, second] = To<std::tuple<First, Second>>(object, name);
    return {std::move(first), std::move(second)};
  }
};

template <typename T>
struct Convert<std::map<std::string, T>> {
  static std::map<std::string, T> From(pybind11::handle object, const std::string& name) {
    if (!PyDict_Check(object.ptr())) {
      throw pybind11::type_error(name + " is of type " + Py_TYPE(object.ptr())->tp_name + ", wanted dict");
    }
    std::map<std::string, T> out;
    for (const auto& [key, value] : pybind11::reinterpret_borrow<pybind11::dict>(object)) {
      const auto text = To<std::string>(key, name + "'s key");
      out.emplace(text, To<T>(value, name + "[\"" + text + "\"]"));
    }
    return out;
  }
};

template <std::size_t kSize>
struct ArgName {
  constexpr ArgName(const char (&name)[kSize]) { std::copy_n(name, kSize, text); }  // NOLINT: a literal
  char text[kSize];
};

template <ArgName kName, typename T>
class Arg {
 public:
  explicit Arg(pybind11::handle object) : value_(To<T>(object, kName.text)) {}
  std::remove_reference_t<T>& operator*() { return value_; }
  const std::remove_reference_t<T>& operator*() const { return value_; }
  std::remove_reference_t<T>* operator->() { return &value_; }

 private:
  T value_;
};

}  // namespace llmd::python

template <llmd::python::ArgName kName, typename T>
struct pybind11::detail::type_caster<llmd::python::Arg<kName, T>> {
  using Value = llmd::python::Arg<kName, T>;
  static constexpr auto name = const_name("object");
  template <typename>
  using cast_op_type = Value&&;

  bool load(handle source, bool) {
    value_.emplace(source);
    return true;
  }
  operator Value&&() && { return std::move(*value_); }  // NOLINT: as pybind11 wants it

 private:
  std::optional<Value> value_;
};

#endif  // LLMD_PYTHON_SRC_ARGUMENTS_H_
