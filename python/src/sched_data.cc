#include "python/src/sched_data.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "llmd/sched/in_flight.h"
#include "llmd/sched/prefix.h"

namespace llmd::python {
namespace py = pybind11;
namespace {

// What a producer written in Python may publish when nothing else fits.
struct Number {
  static constexpr std::string_view kDataType = "Number";
  double value = 0;
};

// The element of the NumPy array that stands for T; of the same size.
template <typename T>
struct ElementOf {
  using type = T;
};
template <>
struct ElementOf<Number> {
  using type = double;
};

template <typename T>
struct Access {
  using Element = typename ElementOf<T>::type;
  using Array = py::array_t<Element, py::array::c_style | py::array::forcecast>;
  static_assert(sizeof(Element) == sizeof(T) && std::is_trivially_copyable_v<T>);

  static std::uint32_t Consume(sched::PluginBuilder& builder, std::string_view producer, bool required) {
    return builder.Consumes<T>(producer, required).index;
  }
  static std::uint32_t Produce(sched::PluginBuilder& builder) { return builder.Produces<T>().index; }
  static py::object Read(const sched::DataColumns& data, std::uint32_t slot) {
    const std::span<const T> values = data.Read(sched::DataSlot<T>{slot});
    if (values.empty()) return py::none();
    Array out(static_cast<py::ssize_t>(values.size()));
    std::memcpy(static_cast<void*>(out.mutable_data()), values.data(), values.size_bytes());
    return out;
  }
  static py::object Blank(std::size_t count) {
    Array out(static_cast<py::ssize_t>(count));
    auto* to = reinterpret_cast<T*>(out.mutable_data());
    std::fill(to, to + count, T{});
    return out;
  }
  static void Publish(sched::DataColumns& data, std::uint32_t slot, py::handle object) {
    const Array array = Array::ensure(object);
    if (!array) throw py::error_already_set();
    if (array.ndim() != 1 || static_cast<std::size_t>(array.size()) != data.pool_size()) {
      throw py::value_error("produce gave " + std::to_string(array.size()) +
                            " values, wanted one for each of " + std::to_string(data.pool_size()) +
                            " endpoints");
    }
    const std::span<T> values = data.Publish(sched::DataSlot<T>{slot});
    std::memcpy(static_cast<void*>(values.data()), array.data(), values.size_bytes());
  }
  static constexpr DataAccess kAccess = {T::kDataType, Consume, Produce, Read, Blank, Publish};
};

constexpr DataAccess kData[] = {
    Access<sched::PrefixMatch>::kAccess,
    Access<sched::InFlightLoad>::kAccess,
    Access<sched::UncachedRequestTokens>::kAccess,
    Access<Number>::kAccess,
};

}  // namespace

const DataAccess* FindData(std::string_view data_type) {
  for (const DataAccess& access : kData) {
    if (access.data_type == data_type) return &access;
  }
  return nullptr;
}

std::string_view DataTypes() { return "PrefixCacheMatchInfo, InFlightLoad, UncachedRequestTokens or Number"; }

void InitData() {
  using sched::InFlightLoad;
  using sched::PrefixMatch;
  using sched::UncachedRequestTokens;
  PYBIND11_NUMPY_DTYPE(PrefixMatch, match_blocks, total_blocks, block_size, cached_blocks, tiers_known,
                       cpu_blocks);
  PYBIND11_NUMPY_DTYPE(InFlightLoad, requests, tokens);
  PYBIND11_NUMPY_DTYPE(UncachedRequestTokens, tokens);
}

}  // namespace llmd::python
