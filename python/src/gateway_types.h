// Values of the gateway component as Python objects.
#ifndef LLMD_PYTHON_SRC_GATEWAY_TYPES_H_
#define LLMD_PYTHON_SRC_GATEWAY_TYPES_H_

#include <pybind11/pybind11.h>

#include <string>
#include <string_view>
#include <vector>

#include "llmd/gateway/openai_request.h"
#include "llmd/gateway/response_body.h"

namespace llmd::python {

// Text from outside need not be UTF-8: other bytes become surrogates (PEP 383).
inline pybind11::str FromText(std::string_view text) {
  PyObject* object =
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape");
  if (object == nullptr) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::str>(object);
}
template <typename Text>
pybind11::list FromTexts(const std::vector<Text>& texts) {
  pybind11::list out;
  for (const Text& text : texts) out.append(FromText(text));
  return out;
}

pybind11::dict FromOpenAi(const gateway::OpenAiRequest& request);
// None when it is not known.
pybind11::object FromUsage(const gateway::Usage& usage);

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_GATEWAY_TYPES_H_
