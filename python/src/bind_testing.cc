#include <pybind11/pybind11.h>

#include "python/src/buffers.h"
#include "python/src/module.h"
#include "python/src/testing_index.h"

namespace llmd::python {
namespace py = pybind11;

void BindTesting(py::module_& m) {
  py::class_<TestSource, std::shared_ptr<TestSource>>(m, "TestIndex")
      .def(py::init([](bool learns) {
        return std::make_shared<TestSource>(TestSource{std::make_shared<TestIndex>(), learns});
      }))
      .def("store", [](TestSource& source, std::uint32_t slot,
                       py::object keys) { source.index->Store(slot, KeyBuffer(keys, "keys")); })
      .def("forget", [](TestSource& source, std::uint32_t slot) { source.index->Forget(slot); });
}

}  // namespace llmd::python
