// What each file bind_<component>.cc adds to llmd._core.
//
// The classes and functions here are the package's private core: short positional signatures, strings for
// enumerations. The modules in python/llmd/ give them names, defaults, documentation and types.
#ifndef LLMD_PYTHON_SRC_MODULE_H_
#define LLMD_PYTHON_SRC_MODULE_H_

namespace pybind11 {
class module_;
}

namespace llmd::python {

void BindHash(pybind11::module_& m);
void BindExtraKeys(pybind11::module_& m);
void BindRouterHashes(pybind11::module_& m);
void BindEvents(pybind11::module_& m);
void BindEventObjects(pybind11::module_& m);  // called by BindEvents()
void BindStream(pybind11::module_& m);
void BindIndex(pybind11::module_& m);
void BindIngest(pybind11::module_& m);
void BindWorker(pybind11::module_& m);
void BindPool(pybind11::module_& m);
void BindPlugins(pybind11::module_& m);
void BindRequest(pybind11::module_& m);
void BindScheduler(pybind11::module_& m);
void BindGateway(pybind11::module_& m);
void BindExtProc(pybind11::module_& m);
void BindTesting(pybind11::module_& m);
void BindAttention(pybind11::module_& m);
void BindLayers(pybind11::module_& m);

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_MODULE_H_
