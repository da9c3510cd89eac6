// Values of the gateway component as Python objects.
#ifndef LLMD_PYTHON_SRC_GATEWAY_TYPES_H_
#define LLMD_PYTHON_SRC_GATEWAY_TYPES_H_

#include <pybind11/pybind11.h>

#include "llmd/gateway/openai_request.h"
#include "llmd/gateway/response_body.h"
#include "python/src/buffers.h"

namespace llmd::python {

pybind11::dict FromOpenAi(const gateway::OpenAiRequest& request);
// None when it is not known.
pybind11::object FromUsage(const gateway::Usage& usage);

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_GATEWAY_TYPES_H_
