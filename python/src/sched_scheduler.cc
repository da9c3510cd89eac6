#include "python/src/sched_scheduler.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/sched/config_file.h"
#include "llmd/sched/in_flight.h"
#include "llmd/sched/result_headers.h"
#include "python/src/arguments.h"
#include "python/src/buffers.h"
#include "python/src/module.h"
#include "python/src/sched_types.h"
#include "python/src/sched_value.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;

using sched::Position;

std::unique_ptr<sched::Workspace> SchedulerObject::Acquire(bool nested) {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      if (!idle_.empty()) {
        std::unique_ptr<sched::Workspace> workspace = std::move(idle_.back());
        idle_.pop_back();
        return workspace;
      }
      if (made_ < kMaxWorkspaces || nested) break;
      if (!parked_.empty()) {
        DecisionObject& oldest = *parked_.front();
        parked_.pop_front();
        return std::move(oldest.workspace_);
      }
      returned_.wait(lock);
    }
    ++made_;
  }
  return std::make_unique<sched::Workspace>(*scheduler_);
}

void SchedulerObject::Release(std::unique_ptr<sched::Workspace> workspace) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(workspace));
  }
  returned_.notify_one();
}

void SchedulerObject::Park(DecisionObject& decision, std::unique_ptr<sched::Workspace> workspace) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    decision.workspace_ = std::move(workspace);
    decision.place_ = parked_.insert(parked_.end(), &decision);
  }
  returned_.notify_one();
}

std::unique_ptr<sched::Workspace> SchedulerObject::Unpark(DecisionObject& decision) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (decision.workspace_ == nullptr) return nullptr;
  parked_.erase(decision.place_);
  return std::move(decision.workspace_);
}

DecisionObject::~DecisionObject() {
  if (scheduler == nullptr) return;
  if (auto workspace = scheduler->Unpark(*this)) scheduler->Release(std::move(workspace));
}

namespace {

// A flight and the scheduler's answer to being carried out. Calls take turns.
class FlightObject {
 public:
  void Start(sched::Dispatch dispatch) { dispatch_ = std::move(dispatch); }
  const sched::HeaderEdits& headers() const { return dispatch_.headers; }
  sched::HeaderEdits OnResponseHeaders(absl::Time now) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sched::HeaderEdits edits;
    dispatch_.flight.OnResponseHeaders(now, edits);
    return edits;
  }
  void OnResponseBody(const sched::ResponseBody& body) {
    const std::lock_guard<std::mutex> lock(mutex_);
    dispatch_.flight.OnResponseBody(body);
  }
  void Close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    dispatch_.flight = {};
  }
  bool open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return !dispatch_.flight.empty();
  }

 private:
  std::mutex mutex_;
  sched::Dispatch dispatch_;
};

// [(name, value or None)]
py::list ToEdits(const sched::HeaderEdits& edits) {
  py::list out;
  for (const sched::HeaderEdit& edit : edits) {
    out.append(py::make_tuple(FromWireText(edit.name),
                              edit.value ? py::object(FromWireText(*edit.value)) : py::object(py::none())));
  }
  return out;
}

std::shared_ptr<SchedulerObject> MakeScheduler(Arg<"config", std::string> text,
                                               Arg<"source", std::string> source,
                                               Arg<"allow_experimental", bool> allow_experimental,
                                               const Registry& registry, const py::list& indexes,
                                               std::shared_ptr<sched::PluginStates> states,
                                               py::list warnings) {
  sched::Resources resources;
  if (indexes.size() > sched::kMaxPrefixSources) {
    throw py::value_error("prefix_sources has " + std::to_string(indexes.size()) +
                          " elements, wanted at most " + std::to_string(sched::kMaxPrefixSources));
  }
  py::list keep_alive;
  for (const py::handle index : indexes) {
    keep_alive.append(index);
    resources.prefix_sources.push_back(ToPrefixSource(index, "prefix_sources"));
  }
  if (states == nullptr) states = std::make_shared<sched::PluginStates>();
  resources.states = states;
  std::vector<std::string> texts;
  auto made = sched::LoadScheduler(*text, {.source = *source, .allow_experimental = *allow_experimental},
                                   registry.Copy(), resources, &texts);
  auto scheduler = Take(std::move(made));
  for (const std::string& warning : texts) warnings.append(warning);
  PrefixPlan plan = Take(PrefixPlan::From(scheduler->config()));
  return std::make_shared<SchedulerObject>(std::move(scheduler), std::move(states), std::move(keep_alive),
                                           std::move(plan));
}

std::shared_ptr<DecisionObject> Schedule(const std::shared_ptr<SchedulerObject>& scheduler,
                                         std::shared_ptr<OwnedRequest> request, const Pool& pool,
                                         py::handle now, Arg<"seed", std::uint64_t> seed,
                                         py::object candidates, py::object request_object) {
  auto made = std::make_shared<DecisionObject>();
  made->request = std::move(request);
  made->now = ToTime(now, "now");
  made->seed = *seed;
  made->run.request = std::move(request_object);
  if (!candidates.is_none()) {
    made->candidates = To<std::vector<Position>>(candidates, "candidates");
  }
  made->scheduler = scheduler;
  {
    const py::gil_scoped_release release;
    made->run.pool = pool.Snapshot();
    const PluginRun::Scope scope(made->run);
    if (made->run.depth > PluginRun::kMaxDepth) {
      made->status = absl::ResourceExhaustedError(
          absl::StrCat("a plugin decides inside a decision, more than ", PluginRun::kMaxDepth, " deep"));
    } else {
      std::unique_ptr<sched::Workspace> workspace = scheduler->Acquire(made->run.depth > 0);
      made->status = scheduler->get().Schedule(made->Input(), *workspace, made->decision, &made->explanation);
      if (made->run.failed) made->status = made->run.status();
      if (made->status.ok()) {
        scheduler->Park(*made, std::move(workspace));
      } else {
        scheduler->Release(std::move(workspace));
      }
    }
  }
  return made;
}

std::shared_ptr<FlightObject> Dispatch(DecisionObject& decision) {
  if (!decision.status.ok())
    ThrowStatus(absl::FailedPreconditionError("the decision has no endpoint to dispatch to"));
  auto flight = std::make_shared<FlightObject>();
  absl::Status status;
  {
    const py::gil_scoped_release release;
    std::unique_ptr<sched::Workspace> workspace = decision.scheduler->Unpark(decision);
    if (workspace == nullptr) {
      status = absl::FailedPreconditionError(absl::StrCat("the decision was dispatched before, or ",
                                                          SchedulerObject::kMaxWorkspaces,
                                                          " later ones wait for their dispatch"));
    } else {
      sched::Dispatch dispatch;
      status =
          decision.scheduler->get().RunPreRequest(decision.Input(), *workspace, decision.decision, dispatch);
      decision.scheduler->Release(std::move(workspace));
      if (status.ok()) flight->Start(std::move(dispatch));  // else what plugins did is undone here
    }
  }
  Check(status);
  return flight;
}

EndpointView At(const DecisionObject& d, Position position) { return {d.run.pool, position}; }

const char* StateName(sched::ProfileState state) {
  switch (state) {
    case sched::ProfileState::kPending:
      return "pending";
    case sched::ProfileState::kRequested:
      return "requested";
    case sched::ProfileState::kSkipped:
      return "skipped";
    case sched::ProfileState::kFailed:
      return "failed";
    case sched::ProfileState::kDone:
      return "done";
  }
  return "pending";
}

py::tuple CostTuple(const PluginCost& cost) {
  return py::make_tuple(cost.plugin, cost.calls, cost.errors, cost.seconds, cost.gil_seconds);
}

py::array_t<double> Matrix(const std::vector<double>& values, std::size_t rows, std::size_t columns) {
  py::array_t<double> out({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(columns)});
  if (values.size() == rows * columns) std::copy(values.begin(), values.end(), out.mutable_data());
  return out;
}

// (name, state, [(position, filter, reason)], [(scorer, weight)], positions, raw, weighted, totals, tie_seed,
//  picked) of each profile that was looked at.
py::list ExplainProfiles(const DecisionObject& d) {
  py::list out;
  for (const sched::Explanation::Profile& profile : d.explanation.profiles) {
    py::list drops, scorers;
    for (const auto& drop : profile.drops) {
      drops.append(py::make_tuple(drop.position, FromWireText(drop.filter), FromWireText(drop.reason)));
    }
    for (const auto& scorer : profile.scorers)
      scorers.append(py::make_tuple(std::string(scorer.name), scorer.weight));
    std::vector<Position> positions;
    std::vector<double> totals;
    for (const sched::ScoredEndpoint& scored : profile.totals) {
      positions.push_back(scored.position);
      totals.push_back(scored.score);
    }
    out.append(py::make_tuple(std::string(profile.name), StateName(profile.state), drops, scorers,
                              ToArray(positions), Matrix(profile.raw, profile.scorers.size(), totals.size()),
                              Matrix(profile.weighted, profile.scorers.size(), totals.size()),
                              py::array_t<double>(static_cast<py::ssize_t>(totals.size()), totals.data()),
                              profile.tie_seed, ToArray(profile.picked)));
  }
  return out;
}

// (name, state, targets, port, skip_reason) of each profile.
py::list DecidedProfiles(const DecisionObject& d) {
  py::list out;
  const std::vector<std::string>& names = d.scheduler->get().profiles();
  for (std::size_t i = 0; i < d.decision.profiles.size(); ++i) {
    const sched::ProfileResult& result = d.decision.profiles[i];
    py::list targets;
    for (const Position target : result.targets) targets.append(At(d, target));
    out.append(py::make_tuple(
        names[i], StateName(result.state), targets, FromWireText(TargetHostPorts(result, *d.run.pool)),
        result.port, result.skip_reason == nullptr ? py::object(py::none()) : py::str(result.skip_reason)));
  }
  return out;
}

void BindDecision(py::module_& m) {
  py::class_<DecisionObject, std::shared_ptr<DecisionObject>>(m, "Decision")
      .def("check", [](const DecisionObject& d) { Check(d.status); })
      .def_property_readonly("ok", [](const DecisionObject& d) { return d.status.ok(); })
      .def_property_readonly(
          "message", [](const DecisionObject& d) { return FromWireText(std::string(d.status.message())); })
      .def_property_readonly("http_status",
                             [](const DecisionObject& d) { return sched::HttpStatus(d.status.code()); })
      .def_property_readonly(
          "code", [](const DecisionObject& d) { return absl::StatusCodeToString(d.status.code()); })
      .def_property_readonly("dropped_reason",
                             [](const DecisionObject& d) {
                               return std::string(sched::ToString(sched::GetDroppedReason(d.status)));
                             })
      .def_property_readonly("failed_plugin",
                             [](const DecisionObject& d) -> py::object {
                               if (!d.run.failed) return py::none();
                               return py::str(d.run.failed_plugin);
                             })
      .def_property_readonly("exception",
                             [](const DecisionObject& d) -> py::object {
                               if (!d.run.exception) return py::none();
                               return d.run.exception;
                             })
      .def_property_readonly("seed", [](const DecisionObject& d) { return d.seed; })
      .def_property_readonly("now", [](const DecisionObject& d) { return FromTime(d.now); })
      .def_property_readonly("primary",
                             [](const DecisionObject& d) -> py::object {
                               if (!d.status.ok()) return py::none();
                               return py::str(d.scheduler->get().profiles()[d.decision.primary]);
                             })
      .def_property_readonly("targets",
                             [](const DecisionObject& d) {
                               py::list out;
                               if (!d.status.ok()) return out;
                               for (const Position target : d.decision.primary_result().targets)
                                 out.append(At(d, target));
                               return out;
                             })
      .def_property_readonly(
          "destination",
          [](const DecisionObject& d) {
            return FromWireText(d.status.ok() ? sched::DestinationEndpoint(d.decision, *d.run.pool) : "");
          })
      .def_property_readonly("scores",
                             [](const DecisionObject& d) {
                               py::dict out;
                               if (!d.status.ok()) return out;
                               for (const auto& score : sched::EndpointScores(d.decision, *d.run.pool)) {
                                 out[FromWireText(score.host_port)] = score.score;
                               }
                               return out;
                             })
      .def_property_readonly("profiles", &DecidedProfiles)
      .def_property_readonly("explained", &ExplainProfiles)
      .def_property_readonly("candidates", [](const DecisionObject& d) { return d.explanation.candidates; })
      .def_property_readonly("refused_by",
                             [](const DecisionObject& d) { return std::string(d.explanation.refused_by); })
      .def_property_readonly(
          "explanation_text",
          [](const DecisionObject& d) {
            return FromWireText(d.run.pool == nullptr ? "" : d.explanation.ToString(*d.run.pool));
          })
      .def_property_readonly("costs",
                             [](const DecisionObject& d) {
                               py::list out;
                               for (const PluginCost& cost : d.run.costs) out.append(CostTuple(cost));
                               return out;
                             })
      .def("endpoint",
           [](const DecisionObject& d, std::size_t position) {
             if (position >= d.run.pool->size()) throw py::index_error("position is out of range");
             return At(d, static_cast<Position>(position));
           })
      .def("dispatch", &Dispatch);

  py::class_<FlightObject, std::shared_ptr<FlightObject>>(m, "Flight")
      .def_property_readonly("headers", [](const FlightObject& f) { return ToEdits(f.headers()); })
      .def_property_readonly("open", &FlightObject::open)
      .def("on_response_headers",
           [](FlightObject& f, py::handle now) { return ToEdits(f.OnResponseHeaders(ToTime(now, "now"))); })
      .def("on_response_body",
           [](FlightObject& f, py::handle now, Arg<"first", bool> first, Arg<"last", bool> last,
              py::handle prompt_tokens, py::handle completion_tokens) {
             constexpr std::int64_t kMax = std::int64_t{1} << 53;
             const auto count = [](py::handle tokens, const char* name) {
               return tokens.is_none() ? 0 : ToInt(tokens, name, 0, kMax);
             };
             sched::ResponseBody body{.now = ToTime(now, "now"), .first = *first, .last = *last};
             if (!prompt_tokens.is_none() || !completion_tokens.is_none()) {
               body.usage =
                   sched::TokenUsage{.prompt_tokens = count(prompt_tokens, "prompt_tokens"),
                                     .completion_tokens = count(completion_tokens, "completion_tokens")};
             }
             const py::gil_scoped_release release;
             f.OnResponseBody(body);
           })
      .def("close", &FlightObject::Close, py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void BindScheduler(py::module_& m) {
  BindDecision(m);

  py::class_<sched::PluginStates, std::shared_ptr<sched::PluginStates>>(m, "PluginStates")
      .def(py::init<>())
      .def("prune", &sched::PluginStates::Prune)
      .def("in_flight",
           [](sched::PluginStates& states, const std::string& producer, sched::EndpointHandle endpoint) {
             const auto table = states.GetOrMake<sched::InFlightTable>(
                 producer, [] { return std::make_shared<sched::InFlightTable>(); });
             const sched::InFlightLoad load = table->Get(endpoint);
             return py::make_tuple(load.requests, load.tokens);
           })
      .def("add_in_flight", [](sched::PluginStates& states, const std::string& producer,
                               sched::EndpointHandle endpoint, std::int64_t requests, std::int64_t tokens) {
        states
            .GetOrMake<sched::InFlightTable>(producer,
                                             [] { return std::make_shared<sched::InFlightTable>(); })
            ->Add(endpoint, {requests, tokens});
      });

  py::class_<SchedulerObject, std::shared_ptr<SchedulerObject>>(m, "Scheduler")
      .def(py::init(&MakeScheduler))
      .def("schedule", &Schedule)
      .def_property_readonly("profiles", [](SchedulerObject& s) { return s.get().profiles(); })
      .def_property_readonly("warnings", [](SchedulerObject& s) { return s.get().warnings(); })
      .def_property_readonly("config",
                             [](SchedulerObject& s) { return sched::PrintConfig(s.get().config()); })
      .def_property_readonly("states", [](SchedulerObject& s) { return s.states(); })
      .def_property_readonly("plan", [](SchedulerObject& s) { return s.plan(); })
      .def("fairness_id",
           [](SchedulerObject& s, const OwnedRequest& request) {
             return FromWireText(std::string(s.get().FairnessId(request.view())));
           })
      .def("costs", [](SchedulerObject& s) {
        py::list out;
        for (const PluginCost& cost : CostsOf(s.get())) out.append(CostTuple(cost));
        return out;
      });

  // ([(name, type, parameters)], [(profile, [(plugin, weight)])], YAML)
  m.def("parse_config", [](Arg<"text", std::string> text, Arg<"source", std::string> source,
                           Arg<"allow_experimental", bool> allow_experimental, py::list warnings) {
    std::vector<std::string> texts;
    const sched::SchedulerConfig config = Take(
        sched::ParseConfig(*text, {.source = *source, .allow_experimental = *allow_experimental}, &texts));
    for (const std::string& warning : texts) warnings.append(warning);
    py::list plugins, profiles;
    for (const sched::PluginSpec& spec : config.plugins) {
      plugins.append(py::make_tuple(spec.name.empty() ? spec.type : spec.name, spec.type,
                                    ValueToPython(spec.parameters)));
    }
    for (const sched::ProfileSpec& profile : config.profiles) {
      std::vector<std::pair<std::string, std::optional<double>>> refs;
      for (const sched::PluginRef& ref : profile.plugins) refs.emplace_back(ref.plugin, ref.weight);
      profiles.append(py::make_tuple(profile.name, refs));
    }
    return py::make_tuple(plugins, profiles, sched::PrintConfig(config));
  });
}

}  // namespace llmd::python
