#include "python/src/sched_types.h"

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "python/src/buffers.h"
#include "python/src/index_objects.h"
#include "python/src/testing_index.h"

namespace llmd::python {
namespace py = pybind11;
namespace {

// The two numbers of an object that has them as attributes or is a pair.
std::pair<py::object, py::object> TwoOf(py::handle object, const char* first, const char* second,
                                        const char* name) {
  if (py::hasattr(object, first) && py::hasattr(object, second)) {
    return {object.attr(first), object.attr(second)};
  }
  if (py::isinstance<py::tuple>(object) && py::len(object) == 2) {
    const auto pair = py::reinterpret_borrow<py::tuple>(object);
    return {pair[0], pair[1]};
  }
  throw py::type_error(std::string(name) + " has no " + first + " and " + second + ", and is no pair");
}

// Matches with the readers of the Python object, which belong to a match while it runs: workspaces may be
// many, and hold none.
template <typename Object>
struct PooledMatcher final : sched::PrefixMatcher {
  explicit PooledMatcher(Object& o) : object(o) {}
  void Match(const index::NamespaceId& ns, BlockKeySpan chain, index::MatchResult& result) override {
    object.readers.Match(ns, chain, result);
  }
  Object& object;
};

template <typename Object>
sched::PrefixSourceIndex WithReadersOf(Object& object, sched::PrefixSourceIndex source) {
  source.new_matcher = [&object] { return std::make_unique<PooledMatcher<Object>>(object); };
  return source;
}

}  // namespace

index::HolderId ToHolderId(py::handle object, const char* name) {
  const auto [slot, generation] = TwoOf(object, "slot", "generation", name);
  return {static_cast<std::uint16_t>(ToInt(slot, name, 0, 0xFFFF)),
          static_cast<std::uint32_t>(ToInt(generation, name, 0, 0xFFFFFFFF))};
}

index::NamespaceId ToNamespaceId(py::handle object, const char* name) {
  const auto [hi, lo] = TwoOf(object, "hi", "lo", name);
  return {ToKey(hi, name), ToKey(lo, name)};
}

sched::PrefixSourceIndex ToPrefixSource(py::handle object, const char* name) {
  if (object.is_none()) return {};
  if (py::isinstance<TestSource>(object)) {
    const auto source = object.cast<std::shared_ptr<TestSource>>();
    return source->index->Source(source->learns);
  }
  if (py::isinstance<PrefixIndexObject>(object)) {
    auto& exact = object.cast<PrefixIndexObject&>();
    return WithReadersOf(exact, sched::ExactIndex(*exact.index));
  }
  if (py::isinstance<ApproxIndexObject>(object)) {
    auto& approximate = object.cast<ApproxIndexObject&>();
    const std::shared_ptr<std::mutex> writer(&approximate.mutex, [](std::mutex*) {});  // the index's own
    return WithReadersOf(approximate, sched::ApproximateIndex(*approximate.index, writer));
  }
  throw py::type_error(std::string(name) + " has an element of type " + Py_TYPE(object.ptr())->tp_name +
                       ", wanted a PrefixIndex, an ApproxIndex or None");
}

}  // namespace llmd::python
