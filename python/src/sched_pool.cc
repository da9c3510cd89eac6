#include "python/src/sched_pool.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "python/src/arguments.h"
#include "python/src/buffers.h"
#include "python/src/index_objects.h"
#include "python/src/module.h"
#include "python/src/sched_types.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;

using sched::EndpointHandle;

namespace {

template <typename T>
std::optional<T> Known(const sched::Sample<T>& sample) {
  return sample.known() ? std::optional<T>(sample.value) : std::nullopt;
}

template <typename T>
[[noreturn]] void Refuse(const char* name, T value, const char* expected) {
  throw py::value_error(std::string(name) + " is " + std::to_string(value) + ", wanted " + expected);
}

using HandleArg = Arg<"endpoint", EndpointHandle&>;
using SourceArg = Arg<"source", std::uint32_t>;
template <ArgName kName>
using Count = Arg<kName, std::optional<std::int64_t>>;

struct MetricValues {
  std::optional<std::int64_t> waiting, running;
  std::optional<double> kv_usage;
  std::optional<std::int64_t> max_adapters;
  std::vector<std::string> active, queued;
  std::optional<std::uint32_t> cache_block_size;
  std::optional<std::uint64_t> cache_num_blocks;
};

void CheckMetrics(const MetricValues& values) {
  if (values.waiting && *values.waiting < 0) Refuse("waiting", *values.waiting, "at least 0");
  if (values.running && *values.running < 0) Refuse("running", *values.running, "at least 0");
  if (values.kv_usage && !(*values.kv_usage >= 0 && *values.kv_usage <= 1)) {
    Refuse("kv_usage", *values.kv_usage, "a fraction from 0 to 1");
  }
}

void SetMetrics(Pool& pool, EndpointHandle handle, const MetricValues& values, py::handle at) {
  CheckMetrics(values);
  const absl::Time time = ToTime(at, "at");
  const bool known = pool.Write([&](sched::EndpointPool& p) {
    sched::Metrics* metrics = p.mutable_metrics(handle);
    if (metrics == nullptr) return false;
    if (values.waiting) metrics->waiting_requests = {*values.waiting, time};
    if (values.running) metrics->running_requests = {*values.running, time};
    if (values.kv_usage) metrics->kv_cache_usage = {*values.kv_usage, time};
    if (values.max_adapters) {
      auto state = std::make_shared<sched::AdapterState>();
      *state = {*values.max_adapters, values.active, values.queued};
      metrics->adapters = {std::move(state), time};
    }
    if (values.cache_block_size) metrics->cache_block_size = *values.cache_block_size;
    if (values.cache_num_blocks) metrics->cache_num_blocks = *values.cache_num_blocks;
    return true;
  });
  if (!known) ThrowStatus(absl::NotFoundError(HandleText(handle) + " is not in the pool"));
}

// A holder of an index and where it belongs.
struct Wanted {
  index::HolderId holder;
  EndpointHandle endpoint;
  std::string tier;
};

// Whether the table says just this.
bool Says(const sched::HolderTable& table, const std::vector<Wanted>& wanted) {
  std::size_t bound = 0;
  for (const sched::HolderBinding& binding : table.by_slot) bound += binding.endpoint.generation != 0 ? 1 : 0;
  return bound == wanted.size() && std::all_of(wanted.begin(), wanted.end(), [&](const Wanted& w) {
           if (w.holder.slot >= table.by_slot.size()) return false;
           const sched::HolderBinding& binding = table.by_slot[w.holder.slot];
           return binding.endpoint == w.endpoint && binding.generation == w.holder.generation &&
                  table.tiers[binding.tier] == w.tier;
         });
}

// Binds every live holder of the index to the endpoint of its address and unbinds all others; returns how
// many are bound. Short, and changes the pool only when something is different.
std::size_t BindIndex(Pool& pool, PrefixIndexObject& index, std::uint32_t source) {
  std::vector<std::pair<index::HolderId, index::HolderOptions>> holders;
  {
    const std::lock_guard<std::mutex> lock(index.mutex);
    index.index->ForEachHolder(
        [&](index::HolderId id, const index::HolderOptions& options) { holders.emplace_back(id, options); });
  }
  const PoolSnapshot before = pool.Snapshot();
  std::unordered_map<std::string_view, EndpointHandle> by_address;
  for (const sched::Endpoint& endpoint : before->endpoints())
    by_address.emplace(endpoint.host_port(), endpoint.handle);
  std::vector<Wanted> wanted;
  for (const auto& [id, options] : holders) {
    const auto it = by_address.find(options.endpoint);
    if (it != by_address.end()) wanted.push_back({id, it->second, options.tier});
  }
  if (Says(before->holders(source), wanted)) return wanted.size();
  return pool.Write([&](sched::EndpointPool& p) {
    const std::vector<sched::HolderBinding> old = p.holders(source).by_slot;
    for (std::size_t slot = 0; slot < old.size(); ++slot) {
      if (old[slot].endpoint.generation == 0) continue;
      p.UnbindHolder(source, {static_cast<std::uint16_t>(slot), old[slot].generation});
    }
    std::size_t bound = 0;
    for (const Wanted& w : wanted) bound += p.BindHolder(source, w.holder, w.endpoint, w.tier).ok() ? 1 : 0;
    return bound;
  });
}

}  // namespace

void BindPool(py::module_& m) {
  py::class_<EndpointHandle>(
      m, "EndpointHandle",
      "Names an endpoint for as long as it lives; hashable. A slot is reused under another generation.")
      .def(py::init([](Arg<"slot", std::uint32_t> slot, Arg<"generation", std::uint32_t> generation) {
             return EndpointHandle{*slot, *generation};
           }),
           py::arg("slot"), py::arg("generation"))
      .def_readonly("slot", &EndpointHandle::slot)
      .def_readonly("generation", &EndpointHandle::generation)
      .def(
          "__eq__", [](const EndpointHandle& a, const EndpointHandle& b) { return a == b; },
          py::is_operator())
      .def("__hash__",
           [](const EndpointHandle& h) {
             return std::hash<std::uint64_t>()(std::uint64_t{h.generation} << 32 | h.slot);
           })
      .def("__repr__", &HandleText);

  py::class_<EndpointView>(m, "Endpoint",
                           "An endpoint as it was at one moment. What was never measured is None.")
      .def_readonly("position", &EndpointView::position)
      .def_property_readonly("handle", [](const EndpointView& e) { return e.get().handle; })
      .def_property_readonly("id", [](const EndpointView& e) { return FromWireText(e.get().id()); })
      .def_property_readonly("name",
                             [](const EndpointView& e) { return FromWireText(e.get().metadata().name); })
      .def_property_readonly(
          "namespace", [](const EndpointView& e) { return FromWireText(e.get().metadata().pod_namespace); })
      .def_property_readonly("address",
                             [](const EndpointView& e) { return FromWireText(e.get().metadata().address); })
      .def_property_readonly("port", [](const EndpointView& e) { return e.get().metadata().port; })
      .def_property_readonly("host_port",
                             [](const EndpointView& e) { return FromWireText(e.get().host_port()); })
      .def_property_readonly(
          "node_address", [](const EndpointView& e) { return FromWireText(e.get().metadata().node_address); })
      .def_property_readonly("rank", [](const EndpointView& e) { return e.get().metadata().rank; })
      .def_property_readonly("labels",
                             [](const EndpointView& e) {
                               py::dict labels;
                               for (const auto& [name, value] : e.get().metadata().labels)
                                 labels[FromWireText(name)] = FromWireText(value);
                               return labels;
                             })
      .def_property_readonly("waiting",
                             [](const EndpointView& e) { return Known(e.get().metrics.waiting_requests); })
      .def_property_readonly("running",
                             [](const EndpointView& e) { return Known(e.get().metrics.running_requests); })
      .def_property_readonly("kv_usage",
                             [](const EndpointView& e) { return Known(e.get().metrics.kv_cache_usage); })
      .def_property_readonly("cache_block_size",
                             [](const EndpointView& e) { return e.get().metrics.cache_block_size; })
      .def_property_readonly("cache_num_blocks",
                             [](const EndpointView& e) { return e.get().metrics.cache_num_blocks; })
      .def_property_readonly("updated",
                             [](const EndpointView& e) -> std::optional<double> {
                               if (!e.get().metrics.scraped()) return std::nullopt;
                               return FromTime(e.get().metrics.updated());
                             })
      .def_property_readonly("adapters",
                             [](const EndpointView& e) -> py::object {
                               const auto& adapters = e.get().metrics.adapters;
                               if (!adapters.known() || adapters.value == nullptr) return py::none();
                               return py::make_tuple(adapters.value->max_active,
                                                     FromTexts(adapters.value->active),
                                                     FromTexts(adapters.value->waiting));
                             })
      .def_property_readonly("attributes",
                             [](const EndpointView& e) {
                               py::dict out;
                               for (const sched::Attribute& a : e.get().attributes)
                                 out[FromWireText(a.name)] = a.sample.value;
                               return out;
                             })
      .def(
          "__eq__",
          [](const EndpointView& a, const EndpointView& b) {
            return a.get().handle == b.get().handle && a.get().identity == b.get().identity;
          },
          py::is_operator())
      .def("__hash__", [](const EndpointView& e) { return std::hash<std::string>()(e.get().id()); })
      .def("__repr__", [](const EndpointView& e) {
        return FromWireText("Endpoint(" + e.get().id() + " at " + e.get().host_port() + ")");
      });

  py::class_<Pool, std::shared_ptr<Pool>>(m, "EndpointPool")
      .def(py::init<>())
      .def("__len__", [](const Pool& pool) { return pool.Snapshot()->size(); })
      .def(
          "add",
          [](Pool& pool, Arg<"name", std::string> name, Arg<"address", std::string> address, py::handle port,
             Arg<"namespace", std::string> pod_namespace,
             Arg<"labels", std::map<std::string, std::string>> labels,
             Arg<"node_address", std::string> node_address, Arg<"rank", std::uint32_t> rank) {
            sched::EndpointMetadata metadata{
                .name = *name,
                .pod_namespace = *pod_namespace,
                .address = *address,
                .port = static_cast<std::uint16_t>(ToInt(port, "port", 1, 65535)),
                .node_address = *node_address,
                .labels = sched::Labels(labels->begin(), labels->end()),
                .rank = *rank};
            return Take(pool.Write([&](sched::EndpointPool& p) { return p.Add(std::move(metadata)); }));
          },
          py::arg("name"), py::arg("address"), py::arg("port"), py::arg("namespace"), py::arg("labels"),
          py::arg("node_address"), py::arg("rank"))
      .def(
          "remove",
          [](Pool& pool, HandleArg handle) {
            return pool.Write([&](sched::EndpointPool& p) { return p.Remove(*handle); });
          },
          py::arg("endpoint"))
      .def("endpoints",
           [](const Pool& pool) {
             const PoolSnapshot snapshot = pool.Snapshot();
             std::vector<EndpointView> out;
             for (std::size_t i = 0; i < snapshot->size(); ++i) {
               out.push_back({snapshot, static_cast<sched::Position>(i)});
             }
             return out;
           })
      .def(
          "find",
          [](const Pool& pool, HandleArg handle) -> std::optional<EndpointView> {
            const PoolSnapshot snapshot = pool.Snapshot();
            const std::optional<sched::Position> position = snapshot->Find(*handle);
            if (!position) return std::nullopt;
            return EndpointView{snapshot, *position};
          },
          py::arg("endpoint"))
      .def(
          "find_id",
          [](const Pool& pool, Arg<"endpoint", std::string> id) -> std::optional<EndpointView> {
            const PoolSnapshot snapshot = pool.Snapshot();
            const std::optional<sched::Position> position = snapshot->FindId(*id);
            if (!position) return std::nullopt;
            return EndpointView{snapshot, *position};
          },
          py::arg("id"))
      .def(
          "set_metrics",
          [](Pool& pool, HandleArg handle, py::handle at, Count<"waiting"> waiting, Count<"running"> running,
             Arg<"kv_usage", std::optional<double>> kv_usage, Count<"max_adapters"> max_adapters,
             Arg<"active_adapters", std::vector<std::string>> active,
             Arg<"waiting_adapters", std::vector<std::string>> queued,
             Arg<"cache_block_size", std::optional<std::uint32_t>> cache_block_size,
             Arg<"cache_num_blocks", std::optional<std::uint64_t>> cache_num_blocks) {
            SetMetrics(pool, *handle,
                       {*waiting, *running, *kv_usage, *max_adapters, std::move(*active), std::move(*queued),
                        *cache_block_size, *cache_num_blocks},
                       at);
          },
          py::arg("endpoint"), py::arg("at"), py::arg("waiting"), py::arg("running"), py::arg("kv_usage"),
          py::arg("max_adapters"), py::arg("active_adapters"), py::arg("waiting_adapters"),
          py::arg("cache_block_size"), py::arg("cache_num_blocks"))
      .def(
          "set_attribute",
          [](Pool& pool, HandleArg handle, Arg<"name", std::string> name, Arg<"value", double> value,
             py::handle at) {
            const absl::Time time = ToTime(at, "at");
            const bool known = pool.Write([&](sched::EndpointPool& p) {
              return p.SetAttribute(*handle, *name, {*value, time});
            });
            if (!known) ThrowStatus(absl::NotFoundError(HandleText(*handle) + " is not in the pool"));
          },
          py::arg("endpoint"), py::arg("name"), py::arg("value"), py::arg("at"))
      .def(
          "bind_holder",
          [](Pool& pool, SourceArg source, py::object holder, HandleArg handle,
             Arg<"tier", std::string> tier) {
            const index::HolderId id = ToHolderId(holder, "holder");
            Check(pool.Write(
                [&](sched::EndpointPool& p) { return p.BindHolder(*source, id, *handle, *tier); }));
          },
          py::arg("source"), py::arg("holder"), py::arg("endpoint"), py::arg("tier"))
      .def(
          "bind_index",
          [](Pool& pool, SourceArg source, Arg<"index", PrefixIndexObject&> index) {
            if (*source >= sched::kMaxPrefixSources) Refuse("source", *source, "below 8");
            const py::gil_scoped_release release;
            return BindIndex(pool, *index, *source);
          },
          py::arg("source"), py::arg("index"))
      .def(
          "unbind_holder",
          [](Pool& pool, SourceArg source, py::object holder) {
            const index::HolderId id = ToHolderId(holder, "holder");
            if (*source >= sched::kMaxPrefixSources) Refuse("source", *source, "below 8");
            pool.Write([&](sched::EndpointPool& p) {
              p.UnbindHolder(*source, id);
              return true;
            });
          },
          py::arg("source"), py::arg("holder"));
}

}  // namespace llmd::python
