#include "python/src/append_arrays.h"

#include <string>

namespace llmd::python {
namespace py = pybind11;

AppendArrays::AppendArrays(Call& call, const KvCache& cache, py::handle k, py::handle v, py::handle slots,
                           py::handle batch_index, py::handle positions, py::handle pages, py::handle error)
    : cache_(cache),
      k_(call.Add("k", k)),
      v_(call.Add("v", v)),
      slots_(call.Optional("slots", slots)),
      batch_index_(call.Optional("batch_index", batch_index)),
      positions_(call.Optional("positions", positions)),
      error_(call.Optional("error", error)) {
  cache.Use(call);
  if (slots_ != nullptr && (batch_index_ != nullptr || !pages.is_none())) {
    throw py::value_error("slots and batch_index or pages are both given, wanted one way to place tokens");
  }
  if (slots_ != nullptr) return;
  if (batch_index_ == nullptr || positions_ == nullptr || pages.is_none()) {
    throw py::value_error("slots is None, wanted it, or batch_index, positions and pages");
  }
  pages_.emplace(pages);
  pages_->ForEach([&](Array& array) { call.Use(array); });
}

llmd_append_kv_args AppendArrays::Args(Call& call, Dims& dims, py::handle dtype) {
  cache_.SetSizes(dims);
  cache_.CheckWritable();
  for (Array* array : {&k_, &v_}) {
    dims.Match(*array, {"T", "Hkv", "D"});
    array->CheckRows();
  }
  llmd_append_kv_args args{};
  args.cache = cache_.args();
  args.k = k_.data();
  args.v = v_.data();
  args.k_strides = k_.TokenStrides();
  args.v_strides = v_.TokenStrides();
  args.dtype = k_.FloatType(dtype, "dtype");
  if (v_.FloatType(dtype, "dtype") != args.dtype) throw py::value_error("v is of another type than k");
  args.num_tokens = dims.Int32("T");
  for (Array* array : {slots_, batch_index_, positions_}) {
    if (array == nullptr) continue;
    dims.Match(*array, {"T"});
    array->CheckCompact();
  }
  if (slots_ != nullptr) args.slots = slots_->Int64();
  if (batch_index_ != nullptr) args.batch_index = batch_index_->Int32();
  if (positions_ != nullptr) args.positions = positions_->Int32();
  if (pages_) {
    pages_->ForEach([&](Array& array) { call.Export(array); });
    args.pages = pages_->Args(dims, /*lengths=*/false);
    for (std::int64_t t = 0; call.on_host() && t < args.num_tokens; ++t) {
      if (args.batch_index[t] >= dims["B"]) {  // the backends do not know B
        throw py::value_error("batch_index[" + std::to_string(t) + "] is " +
                              std::to_string(args.batch_index[t]) + ", wanted less than B, " +
                              std::to_string(dims["B"]));
      }
    }
  }
  if (error_ != nullptr) {
    dims.Match(*error_, {"3"});
    error_->CheckCompact();
    error_->CheckWritable();
    args.error = error_->Int64();
  } else if (call.on_host()) {
    args.error = own_error_;
  }
  return args;
}

void AppendArrays::ThrowBadPlace() const {
  const auto [kind, token, value] = own_error_;
  if (kind == LLMD_DATA_OK) return;
  const std::string at = "[" + std::to_string(token) + "]";
  const std::string is = " is " + std::to_string(value);
  switch (kind) {
    case LLMD_BAD_SLOT:
      throw py::value_error("slots" + at + is + ", past the last page");
    case LLMD_BAD_PAGE:
      throw py::value_error("pages.pages has page " + std::to_string(value) + " for token " +
                            std::to_string(token) + ", not in 0 .. " +
                            std::to_string(cache_.args().num_pages - 1));
    default:
      throw py::value_error("positions" + at + is + ", outside of the request's pages");
  }
}

}  // namespace llmd::python
