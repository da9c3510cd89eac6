// The arguments that append_kv and rope_append share.
#ifndef LLMD_PYTHON_SRC_APPEND_ARRAYS_H_
#define LLMD_PYTHON_SRC_APPEND_ARRAYS_H_

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>

#include "llmd/attention/cache.h"
#include "python/src/array.h"
#include "python/src/attention_call.h"
#include "python/src/attention_objects.h"

namespace llmd::python {

class AppendArrays {
 public:
  // Names the arrays to the call, before its Begin(). `pages`: None or a PageList.
  AppendArrays(Call& call, const KvCache& cache, pybind11::handle k, pybind11::handle v,
               pybind11::handle slots, pybind11::handle batch_index, pybind11::handle positions,
               pybind11::handle pages, pybind11::handle error);

  // After Begin(). Sets T, Hkv and D.
  llmd_append_kv_args Args(Call& call, Dims& dims, pybind11::handle dtype);

  // On the host, a place out of range is an error of the call, unless the caller gave `error`.
  void ThrowBadPlace() const;

 private:
  const KvCache& cache_;
  Array& k_;
  Array& v_;
  Array* slots_;
  Array* batch_index_;
  Array* positions_;
  Array* error_;
  std::optional<PageArrays> pages_;
  std::int64_t own_error_[3] = {};
};

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_APPEND_ARRAYS_H_
