// The extension module llmd._core: one BindX() per component, one line each.
#include "python/src/module.h"

#include <pybind11/pybind11.h>

#include "python/src/buffers.h"
#include "python/src/status.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ part of llmd. Use the modules of the package instead.";
  m.attr("__version__") = LLMD_VERSION;
  llmd::python::InitStatus();
  llmd::python::InitBuffers();

  llmd::python::BindHash(m);
  llmd::python::BindExtraKeys(m);
  llmd::python::BindRouterHashes(m);
  llmd::python::BindEvents(m);
  llmd::python::BindStream(m);
  llmd::python::BindIndex(m);
  llmd::python::BindIngest(m);
  llmd::python::BindWorker(m);
  llmd::python::BindPool(m);
  llmd::python::BindPlugins(m);
  llmd::python::BindRequest(m);
  llmd::python::BindScheduler(m);
  llmd::python::BindGateway(m);
  llmd::python::BindExtProc(m);
  llmd::python::BindTesting(m);
  llmd::python::BindAttention(m);
  llmd::python::BindLayers(m);
}
