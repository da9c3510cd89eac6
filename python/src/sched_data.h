// Data that plugins written in Python read and publish: structured NumPy arrays, one element per endpoint.
#ifndef LLMD_PYTHON_SRC_SCHED_DATA_H_
#define LLMD_PYTHON_SRC_SCHED_DATA_H_

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string_view>

#include "llmd/sched/registry.h"

namespace llmd::python {

// One data type. `slot` is what declare gave.
struct DataAccess {
  std::string_view data_type;
  std::uint32_t (*consume)(sched::PluginBuilder& builder, std::string_view producer, bool required);
  std::uint32_t (*produce)(sched::PluginBuilder& builder);
  // A copy; None when nothing was published.
  pybind11::object (*read)(const sched::DataColumns& data, std::uint32_t slot);
  // `count` default values.
  pybind11::object (*blank)(std::size_t count);
  // ValueError when the array has another size.
  void (*publish)(sched::DataColumns& data, std::uint32_t slot, pybind11::handle array);
};

// Null for an unknown type.
const DataAccess* FindData(std::string_view data_type);
// The known types, for messages.
std::string_view DataTypes();
// Makes the NumPy types; once, when the module is made.
void InitData();

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_SCHED_DATA_H_
