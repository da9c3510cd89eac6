#include "python/src/sched_plugins.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "python/src/arguments.h"
#include "python/src/module.h"
#include "python/src/sched_data.h"
#include "python/src/sched_types.h"
#include "python/src/sched_value.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;

using sched::Position;

namespace {

thread_local PluginRun* current_run = nullptr;

using Clock = std::chrono::steady_clock;

// A Python object that C++ may let go of in any thread.
using Held = std::shared_ptr<py::object>;
Held Hold(py::object object) {
  return {new py::object(std::move(object)), [](py::object* held) {
            const py::gil_scoped_acquire gil;
            delete held;
          }};
}

// A datum that the plugin asked for under a name of its own.
struct ConsumedData {
  std::string name;
  const DataAccess* access;
  std::uint32_t slot;
};

// Drop reasons that a filter gives; they must live as long as the plugin.
class Reasons {
 public:
  const char* Keep(std::string reason) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto it = kept_.find(reason); it != kept_.end()) return it->c_str();
    if (kept_.size() >= kMost) return "dropped";  // a filter that makes up ever new texts
    return kept_.insert(std::move(reason)).first->c_str();
  }

 private:
  static constexpr std::size_t kMost = 1000;
  std::mutex mutex_;
  std::set<std::string> kept_;
};

// What the context object of a call may still be asked for. Used with the GIL held.
struct PluginContext {
  sched::Context* context = nullptr;  // null after the call
  PluginRun* run = nullptr;
  std::span<const Position> candidates;
  const std::vector<ConsumedData>* consumed = nullptr;

  PluginContext& Live() {
    if (context == nullptr) throw std::runtime_error("the context of a plugin's call is used after the call");
    return *this;
  }
};

py::array_t<Position> ToPositions(std::span<const Position> positions) {
  return py::array_t<Position>(static_cast<py::ssize_t>(positions.size()), positions.data());
}

// One number of each candidate, NaN where it is not known.
template <typename Read>
py::array_t<double> PerCandidate(PluginContext& context, const Read& read) {
  const PluginContext& live = context.Live();
  py::array_t<double> out(static_cast<py::ssize_t>(live.candidates.size()));
  double* to = out.mutable_data();
  for (const Position position : live.candidates) *to++ = read(live.context->pool[position]);
  return out;
}

template <typename T>
double ValueOf(const sched::Sample<T>& sample) {
  return sample.known() ? static_cast<double>(sample.value) : std::numeric_limits<double>::quiet_NaN();
}

// The object and what is known of it, shared by the parts of a plugin.
struct Hooks {
  Held object;
  Held score, filter, pick, produce;  // bound methods; null when there is none
  std::vector<ConsumedData> consumed;
  const DataAccess* produced = nullptr;
  std::uint32_t produced_slot = 0;
  const char* default_reason = nullptr;
  std::unique_ptr<Reasons> reasons = std::make_unique<Reasons>();
  std::unique_ptr<PluginCounters> counters = std::make_unique<PluginCounters>();

  // Calls body(context object) with the GIL, and sees to errors and costs.
  template <typename Body>
  void Call(sched::Context& context, std::span<const Position> candidates, const Body& body) const;

 private:
  void Fail(PluginRun* run, py::error_already_set& error) const;
  void Fail(PluginRun* run, std::string what, py::object exception) const;
};

void Hooks::Fail(PluginRun* run, std::string what, py::object exception) const {
  counters->errors.fetch_add(1, std::memory_order_relaxed);
  run->failed = true;
  run->failed_plugin = counters->plugin;
  run->message = absl::StrCat("plugin \"", counters->plugin, "\": ", what);
  run->exception = std::move(exception);
}

void Hooks::Fail(PluginRun* run, py::error_already_set& error) const {
  py::object exception = error.value();
  if (error.trace()) PyException_SetTraceback(exception.ptr(), error.trace().ptr());
  std::string text = Py_TYPE(exception.ptr())->tp_name;
  // Nothing here may throw: a failure inside a decision ends the decision, no more.
  const std::string words = DisplayText(exception);
  if (!words.empty()) absl::StrAppend(&text, ": ", words);
  Fail(run, std::move(text), std::move(exception));
}

template <typename Body>
void Hooks::Call(sched::Context& context, std::span<const Position> candidates, const Body& body) const {
  PluginRun* run = current_run;
  if (run == nullptr || run->failed) return;
  const Clock::time_point asked = Clock::now();
  const py::gil_scoped_acquire gil;
  const Clock::time_point started = Clock::now();
  const auto plugin_context =
      std::make_shared<PluginContext>(PluginContext{&context, run, candidates, &consumed});
  try {
    body(py::cast(plugin_context));
  } catch (py::error_already_set& error) {
    Fail(run, error);
  } catch (const std::exception& error) {
    Fail(run, error.what(), py::none());
  }
  plugin_context->context = nullptr;
  const Clock::time_point ended = Clock::now();
  const auto nanoseconds = [](Clock::duration d) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(d).count();
  };
  counters->calls.fetch_add(1, std::memory_order_relaxed);
  counters->nanoseconds.fetch_add(nanoseconds(ended - asked), std::memory_order_relaxed);
  counters->gil_nanoseconds.fetch_add(nanoseconds(started - asked), std::memory_order_relaxed);
  auto cost = std::find_if(run->costs.begin(), run->costs.end(),
                           [&](const PluginCost& c) { return c.plugin == counters->plugin; });
  if (cost == run->costs.end()) cost = run->costs.insert(cost, {.plugin = counters->plugin});
  ++cost->calls;
  if (run->failed) ++cost->errors;
  cost->seconds += 1e-9 * static_cast<double>(nanoseconds(ended - asked));
  cost->gil_seconds += 1e-9 * static_cast<double>(nanoseconds(started - asked));
}

[[noreturn]] void BadResult(const std::string& message) { throw py::value_error(message); }

// The parts of a plugin, one for each kind.

template <int kNumber>
struct NoPart {
  void Init(const Hooks&) {}
};

struct ScorePart : sched::Scorer {
  void Init(const Hooks& h) { hooks = &h; }
  void Score(sched::Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    hooks->Call(context, candidates, [&](const py::object& plugin_context) {
      py::array_t<double> values(static_cast<py::ssize_t>(scores.size()), scores.data());
      const py::object result = (*hooks->score)(plugin_context, ToPositions(candidates), values);
      if (!result.is_none()) {
        using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;
        values = Array::ensure(result);
        if (!values) throw py::error_already_set();
      }
      if (values.ndim() != 1 || static_cast<std::size_t>(values.size()) != scores.size()) {
        BadResult(absl::StrCat("score gave ", values.size(), " numbers, wanted ", scores.size()));
      }
      std::copy_n(values.data(), scores.size(), scores.begin());
    });
  }
  const Hooks* hooks = nullptr;
};

struct FilterPart : sched::Filter {
  void Init(const Hooks& h) { hooks = &h; }
  void Apply(sched::Context& context, std::span<const Position> candidates,
             std::span<sched::DropReason> dropped) const override {
    hooks->Call(context, candidates, [&](const py::object& plugin_context) {
      const py::object result = (*hooks->filter)(plugin_context, ToPositions(candidates));
      if (!py::isinstance<py::iterable>(result) || py::isinstance<py::str>(result)) {
        BadResult("filter gave no sequence, wanted one element for each candidate");
      }
      std::vector<sched::DropReason> reasons;
      for (const py::handle item : result) {
        if (reasons.size() == candidates.size()) {
          BadResult(absl::StrCat("filter gave more elements than ", candidates.size(), " candidates"));
        }
        reasons.push_back(ReasonOf(item));
      }
      if (reasons.size() != candidates.size()) {
        BadResult(absl::StrCat("filter gave ", reasons.size(), " elements, wanted ", candidates.size()));
      }
      std::copy(reasons.begin(), reasons.end(), dropped.begin());
    });
  }
  // None and true keep.
  sched::DropReason ReasonOf(py::handle item) const {
    if (item.is_none()) return nullptr;
    if (py::isinstance<py::str>(item)) return hooks->reasons->Keep(ToWireText(item, "filter: a reason"));
    const int keep = PyObject_IsTrue(item.ptr());
    if (keep < 0) throw py::error_already_set();
    return keep == 1 ? nullptr : hooks->default_reason;
  }
  const Hooks* hooks = nullptr;
};

struct PickPart : sched::Picker {
  void Init(const Hooks& h) { hooks = &h; }
  std::size_t Pick(sched::Context& context, std::uint64_t tie_seed,
                   std::span<sched::ScoredEndpoint> scored) const override {
    std::size_t picked = 1;  // of a decision that fails anyhow
    std::vector<Position> positions;
    for (const sched::ScoredEndpoint& endpoint : scored) positions.push_back(endpoint.position);
    hooks->Call(context, positions, [&](const py::object& plugin_context) {
      py::array_t<double> scores(static_cast<py::ssize_t>(scored.size()));
      py::array_t<std::uint64_t> ties(static_cast<py::ssize_t>(scored.size()));
      for (std::size_t i = 0; i < scored.size(); ++i) {
        scores.mutable_data()[i] = scored[i].score;
        ties.mutable_data()[i] = sched::TieKey(tie_seed, scored[i].position);
      }
      const py::object result = (*hooks->pick)(plugin_context, ToPositions(positions), scores, ties);
      const py::array given = py::array::ensure(result);
      if (!given) throw py::error_already_set();
      if (given.size() > 0 && given.dtype().kind() != 'i' && given.dtype().kind() != 'u') {
        BadResult("pick gave something else than positions");
      }
      using Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;
      const Array chosen(given);
      if (chosen.ndim() > 1 || chosen.size() < 1 || static_cast<std::size_t>(chosen.size()) > scored.size()) {
        BadResult(absl::StrCat("pick gave ", chosen.size(), " positions, wanted 1 to ", scored.size()));
      }
      const auto count = static_cast<std::size_t>(chosen.size());
      for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t position = chosen.data()[i];
        const auto it = std::find_if(scored.begin() + static_cast<std::ptrdiff_t>(i), scored.end(),
                                     [&](const auto& s) { return s.position == position; });
        if (it == scored.end()) {
          BadResult(absl::StrCat("pick gave position ", position, ", which is no candidate or given twice"));
        }
        std::swap(scored[i], *it);
      }
      picked = count;
    });
    return picked;
  }
  const Hooks* hooks = nullptr;
};

struct ProducePart : sched::DataProducer {
  void Init(const Hooks& h) { hooks = &h; }
  void Produce(sched::Context& context, sched::ThreadState*) const override {
    hooks->Call(context, context.candidates, [&](const py::object& plugin_context) {
      py::object values = hooks->produced->blank(context.pool.size());
      const py::object result = (*hooks->produce)(plugin_context, values);
      if (py::isinstance<py::bool_>(result)) {
        if (!result.cast<bool>()) return;
      } else if (!result.is_none()) {
        values = result;
      }
      hooks->produced->publish(context.data, hooks->produced_slot, values);
    });
  }
  const Hooks* hooks = nullptr;
};

struct PythonPlugin : sched::Plugin {
  PythonPlugin(std::string type, std::string name, Hooks h)
      : Plugin(std::move(type), std::move(name)), hooks(std::move(h)) {}
  const Hooks hooks;
};

template <bool kScore, bool kFilter, bool kPick, bool kProduce>
struct PluginOf final : PythonPlugin,
                        std::conditional_t<kScore, ScorePart, NoPart<0>>,
                        std::conditional_t<kFilter, FilterPart, NoPart<1>>,
                        std::conditional_t<kPick, PickPart, NoPart<2>>,
                        std::conditional_t<kProduce, ProducePart, NoPart<3>> {
  PluginOf(std::string type, std::string name, Hooks h)
      : PythonPlugin(std::move(type), std::move(name), std::move(h)) {
    std::conditional_t<kScore, ScorePart, NoPart<0>>::Init(hooks);
    std::conditional_t<kFilter, FilterPart, NoPart<1>>::Init(hooks);
    std::conditional_t<kPick, PickPart, NoPart<2>>::Init(hooks);
    std::conditional_t<kProduce, ProducePart, NoPart<3>>::Init(hooks);
  }
};

template <int kParts>
std::unique_ptr<sched::Plugin> MakeParts(int parts, std::string type, std::string name, Hooks hooks) {
  if constexpr (kParts == 16) {
    return nullptr;
  } else {
    if (parts != kParts) {
      return MakeParts<kParts + 1>(parts, std::move(type), std::move(name), std::move(hooks));
    }
    return std::make_unique<
        PluginOf<(kParts & 1) != 0, (kParts & 2) != 0, (kParts & 4) != 0, (kParts & 8) != 0>>(
        std::move(type), std::move(name), std::move(hooks));
  }
}

Held MethodOf(const py::object& object, const char* name) {
  if (!py::hasattr(object, name)) return nullptr;
  py::object method = object.attr(name);
  if (!PyCallable_Check(method.ptr())) return nullptr;
  return Hold(std::move(method));
}

absl::Status Bad(std::string message) { return absl::InvalidArgumentError(message); }

// consumes = {name: (data type, producer) or (data type, producer, required)}
absl::Status ReadConsumes(const py::object& object, sched::PluginBuilder& builder, Hooks& hooks) {
  if (!py::hasattr(object, "consumes")) return absl::OkStatus();
  for (const auto& [name, what] : py::cast<py::dict>(object.attr("consumes"))) {
    const auto parts = py::cast<py::tuple>(what);
    if (parts.size() < 2 || parts.size() > 3)
      return Bad("consumes: wanted (data type, producer[, required])");
    const auto data_type = parts[0].cast<std::string>();
    const DataAccess* access = FindData(data_type);
    if (access == nullptr) {
      return Bad(absl::StrCat("consumes: data type \"", data_type, "\", wanted ", std::string(DataTypes())));
    }
    const bool required = parts.size() < 3 || parts[2].cast<bool>();
    hooks.consumed.push_back({py::cast<std::string>(name), access,
                              access->consume(builder, parts[1].cast<std::string>(), required)});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<sched::Plugin>> MakePlugin(const Held& factory,
                                                          sched::PluginBuilder& builder) {
  const py::gil_scoped_acquire gil;
  const auto place = [&](const std::string& what) {
    return absl::StrCat("plugin \"", builder.name(), "\": ", what);
  };
  try {
    const sched::Value& parameters = builder.parameters();
    if (!parameters.is_null() && parameters.AsMap() == nullptr) {
      return Bad(place(absl::StrCat("parameters is ", std::string(parameters.kind()), ", expected a map")));
    }
    py::dict keywords;
    if (!parameters.is_null()) keywords = ValueToPython(parameters);
    py::object object = (*factory)(**keywords);
    Hooks hooks;
    hooks.score = MethodOf(object, "score");
    hooks.filter = MethodOf(object, "filter");
    hooks.pick = MethodOf(object, "pick");
    hooks.produce = MethodOf(object, "produce");
    hooks.counters->plugin = builder.name();
    if (absl::Status status = ReadConsumes(object, builder, hooks); !status.ok()) {
      return Bad(place(std::string(status.message())));
    }
    if (hooks.produce != nullptr) {
      const auto data_type = py::cast<std::string>(py::getattr(object, "produces", py::str("Number")));
      hooks.produced = FindData(data_type);
      if (hooks.produced == nullptr) {
        return Bad(place(absl::StrCat("produces \"", data_type, "\", wanted ", std::string(DataTypes()))));
      }
      hooks.produced_slot = hooks.produced->produce(builder);
    }
    const py::object reason = py::getattr(object, "reason", py::none());
    hooks.default_reason = hooks.reasons->Keep(reason.is_none() ? "dropped by " + builder.name()
                                                                : py::cast<std::string>(reason));
    hooks.object = Hold(std::move(object));
    const int parts =
        (hooks.score ? 1 : 0) | (hooks.filter ? 2 : 0) | (hooks.pick ? 4 : 0) | (hooks.produce ? 8 : 0);
    if (parts == 0) return Bad(place("has none of the methods score, filter, pick and produce"));
    return MakeParts<1>(parts, builder.type(), builder.name(), std::move(hooks));
  } catch (py::error_already_set& error) {
    return Bad(place(error.what()));
  } catch (const std::exception& error) {
    return Bad(place(error.what()));
  }
}

}  // namespace

PluginRun* PluginRun::Current() { return current_run; }
PluginRun::Scope::Scope(PluginRun& run) : outer_(current_run) {
  run.depth = outer_ == nullptr ? 0 : outer_->depth + 1;
  current_run = &run;
}
PluginRun::Scope::~Scope() { current_run = outer_; }

PluginCost PluginCounters::Read() const {
  return {.plugin = plugin,
          .calls = calls.load(std::memory_order_relaxed),
          .errors = errors.load(std::memory_order_relaxed),
          .seconds = 1e-9 * static_cast<double>(nanoseconds.load(std::memory_order_relaxed)),
          .gil_seconds = 1e-9 * static_cast<double>(gil_nanoseconds.load(std::memory_order_relaxed))};
}

void Registry::Register(const std::string& type, py::object factory, bool experimental) {
  if (!PyCallable_Check(factory.ptr())) {
    throw py::type_error(std::string("factory is of type ") + Py_TYPE(factory.ptr())->tp_name +
                         ", which is not callable");
  }
  const Held held = Hold(std::move(factory));
  absl::Status status;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    status = registry_.Register(
        type, [held](sched::PluginBuilder& builder) { return MakePlugin(held, builder); },
        experimental ? sched::Stability::kExperimental : sched::Stability::kStable);
  }
  Check(status);
}

std::vector<PluginCost> CostsOf(const sched::Scheduler& scheduler) {
  std::vector<PluginCost> costs;
  for (const sched::PluginSpec& spec : scheduler.config().plugins) {
    const auto* plugin = dynamic_cast<const PythonPlugin*>(scheduler.FindPlugin(spec.name));
    if (plugin != nullptr) costs.push_back(plugin->hooks.counters->Read());
  }
  return costs;
}

void BindPlugins(py::module_& m) {
  InitData();

  py::class_<PluginContext, std::shared_ptr<PluginContext>>(
      m, "PluginContext",
      "What a plugin written in Python sees of one decision. Any use after the call raises RuntimeError.")
      .def_property_readonly("request", [](PluginContext& c) { return c.Live().run->request; })
      .def_property_readonly("now", [](PluginContext& c) { return FromTime(c.Live().context->now); })
      .def_property_readonly("pool_size", [](PluginContext& c) { return c.Live().context->pool.size(); })
      .def_property_readonly("candidates", [](PluginContext& c) { return ToPositions(c.Live().candidates); })
      .def("random", [](PluginContext& c) { return c.Live().context->random.Next(); })
      .def("endpoint",
           [](PluginContext& c, Arg<"position", std::size_t> position) {
             const PoolSnapshot& pool = c.Live().run->pool;
             if (*position >= pool->size()) {
               throw py::index_error("position is " + std::to_string(*position) + ", wanted below " +
                                     std::to_string(pool->size()));
             }
             return EndpointView{pool, static_cast<Position>(*position)};
           })
      .def_property_readonly("waiting",
                             [](PluginContext& c) {
                               return PerCandidate(c, [](const sched::Endpoint& e) {
                                 return ValueOf(e.metrics.waiting_requests);
                               });
                             })
      .def_property_readonly("running",
                             [](PluginContext& c) {
                               return PerCandidate(c, [](const sched::Endpoint& e) {
                                 return ValueOf(e.metrics.running_requests);
                               });
                             })
      .def_property_readonly("kv_usage",
                             [](PluginContext& c) {
                               return PerCandidate(c, [](const sched::Endpoint& e) {
                                 return ValueOf(e.metrics.kv_cache_usage);
                               });
                             })
      .def("attribute",
           [](PluginContext& c, Arg<"name", std::string> name) {
             return PerCandidate(c, [&](const sched::Endpoint& e) {
               const sched::Attribute* attribute = e.FindAttribute(*name);
               return attribute == nullptr ? std::numeric_limits<double>::quiet_NaN()
                                           : ValueOf(attribute->sample);
             });
           })
      .def("data", [](PluginContext& c, Arg<"name", std::string> name) {
        for (const ConsumedData& data : *c.Live().consumed) {
          if (data.name == *name) return data.access->read(c.context->data, data.slot);
        }
        throw py::key_error("data \"" + *name + "\" is not among what the plugin declares in `consumes`");
      });

  py::class_<Registry, std::shared_ptr<Registry>>(m, "Registry")
      .def(py::init<>())
      .def("register",
           [](Registry& r, Arg<"type_name", std::string> type, py::object factory,
              Arg<"experimental", bool> experimental) {
             r.Register(*type, std::move(factory), *experimental);
           })
      .def("types", [](const Registry& registry) { return registry.Copy().Types(); });
}

}  // namespace llmd::python
