// The endpoint-picker protocol on bytes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llmd/base/random.h"
#include "llmd/gateway/ext_proc_stream.h"
#include "python/src/arguments.h"
#include "python/src/buffers.h"
#include "python/src/gateway_types.h"
#include "python/src/module.h"
#include "python/src/sched_types.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;
namespace {

using gateway::BodyMode;
using gateway::ExtProcEvent;

constexpr std::pair<const char*, BodyMode> kBodyModes[] = {{"none", BodyMode::kNone},
                                                           {"streamed", BodyMode::kStreamed},
                                                           {"buffered", BodyMode::kBuffered},
                                                           {"buffered_partial", BodyMode::kBufferedPartial},
                                                           {"full_duplex", BodyMode::kFullDuplex}};

BodyMode ToBodyMode(const std::string& name, const char* field) {
  for (const auto& [text, mode] : kBodyModes) {
    if (name == text) return mode;
  }
  throw py::value_error(std::string(field) + " is \"" + name +
                        "\", wanted none, streamed, buffered, buffered_partial or full_duplex");
}

const char* FromBodyMode(BodyMode mode) { return kBodyModes[static_cast<std::size_t>(mode)].first; }

const char* EventName(ExtProcEvent event) {
  switch (event) {
    case ExtProcEvent::kNone:
      return "none";
    case ExtProcEvent::kNeedsDecision:
      return "needs_decision";
    case ExtProcEvent::kRequestRefused:
      return "request_refused";
    case ExtProcEvent::kResponseHeaders:
      return "response_headers";
    case ExtProcEvent::kResponseBody:
      return "response_body";
    case ExtProcEvent::kResponseEnd:
      return "response_end";
    case ExtProcEvent::kFailed:
      return "failed";
  }
  return "none";
}

gateway::ExtProcOptions ToOptions(const py::dict& given) {
  gateway::ExtProcOptions options;
  for (const auto& [key, value] : given) {
    const auto name = key.cast<std::string>();
    const auto size = [&](std::size_t& field) {
      field = static_cast<std::size_t>(ToInt(value, name.c_str(), 0, std::int64_t{1} << 40));
    };
    const auto flag = [&](bool& field) { field = To<bool>(value, name); };
    const auto mode = [&](std::optional<BodyMode>& field) {
      if (!value.is_none()) field = ToBodyMode(To<std::string>(value, name), name.c_str());
    };
    if (name == "max_body_bytes")
      size(options.max_body_bytes);
    else if (name == "max_response_body_bytes")
      size(options.max_response_body_bytes);
    else if (name == "max_headers")
      size(options.max_headers);
    else if (name == "max_header_bytes")
      size(options.max_header_bytes);
    else if (name == "max_subset_entries")
      size(options.max_subset_entries);
    else if (name == "chunk_bytes")
      options.chunk_bytes = static_cast<std::size_t>(ToInt(value, "chunk_bytes", 1, 1 << 30));
    else if (name == "single_destination")
      flag(options.single_destination);
    else if (name == "refuse_unknown_paths")
      flag(options.refuse_unknown_paths);
    else if (name == "require_model")
      flag(options.require_model);
    else if (name == "strip_client_headers")
      flag(options.strip_client_headers);
    else if (name == "resend_headers")
      flag(options.resend_headers);
    else if (name == "mark_responses")
      flag(options.mark_responses);
    else if (name == "report_served_endpoint")
      flag(options.report_served_endpoint);
    else if (name == "skip_response")
      flag(options.skip_response);
    else if (name == "assumed_request_body_mode")
      options.assumed_request_body_mode = ToBodyMode(To<std::string>(value, name), name.c_str());
    else if (name == "assumed_response_body_mode")
      options.assumed_response_body_mode = ToBodyMode(To<std::string>(value, name), name.c_str());
    else if (name == "override_request_body_mode")
      mode(options.override_request_body_mode);
    else if (name == "override_response_body_mode")
      mode(options.override_response_body_mode);
    else
      throw py::value_error("unknown option \"" + name + "\"");
  }
  return options;
}

std::vector<gateway::HeaderField> ToFields(const std::vector<std::pair<std::string, std::string>>& headers) {
  std::vector<gateway::HeaderField> fields;
  for (const auto& [name, value] : headers) fields.push_back({name, value});
  return fields;
}

py::dict FromHeaders(const gateway::HeaderList& headers) {
  py::dict out;
  for (const gateway::HeaderField& field : headers.fields())
    out[FromWireText(field.name)] = FromWireText(field.value);
  return out;
}

// (namespace, key, text or {name: number})
std::vector<gateway::MetadataEntry> ToMetadata(const py::list& list) {
  std::vector<gateway::MetadataEntry> out;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const py::tuple parts = list[i];
    const std::string place = Element("metadata", i);
    gateway::MetadataEntry entry{.filter_namespace = To<std::string>(parts[0], place + "'s namespace"),
                                 .key = To<std::string>(parts[1], place + "'s key")};
    if (py::isinstance<py::dict>(parts[2])) {
      // In the order that was given.
      for (const auto& [name, number] : py::reinterpret_borrow<py::dict>(parts[2])) {
        auto text = To<std::string>(name, place + "'s number's name");
        entry.numbers.emplace_back(std::move(text), To<double>(number, place + "'s number"));
      }
    } else {
      entry.text = To<std::string>(parts[2], place + "'s text");
    }
    out.push_back(std::move(entry));
  }
  return out;
}

// A stream with what must outlive it. Calls take turns.
class StreamObject {
 public:
  StreamObject(const py::dict& options, std::uint64_t seed)
      : options_(ToOptions(options)), random_(seed), stream_(options_, parser_, random_) {}

  // Runs `use` on the stream, without the GIL.
  template <typename Use>
  auto With(const Use& use) {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return use(stream_);
  }
  // With the GIL and the lock, for answers made of Python objects: nothing that they need calls back here.
  template <typename Use>
  auto Read(const Use& use) {
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    {
      const py::gil_scoped_release release;
      lock.lock();
    }
    return use(stream_);
  }

 private:
  const gateway::ExtProcOptions options_;
  gateway::OpenAiParser parser_;
  Random random_;
  std::mutex mutex_;
  gateway::ExtProcStream stream_;
};

py::dict FactsOf(const gateway::RequestFacts& facts) {
  py::dict out;
  out["headers"] = FromHeaders(facts.headers);
  out["request_id"] = FromWireText(facts.request_id);
  out["method"] = FromWireText(facts.method);
  out["path"] = FromWireText(facts.path);
  out["api"] = FromWireText(gateway::ToString(facts.api));
  out["openai"] = FromOpenAi(facts.openai);
  out["body"] = py::bytes(facts.body.data(), facts.body.size());
  out["bodyless"] = facts.bodyless;
  out["headers_only"] = facts.headers_only;
  out["truncated"] = facts.truncated;
  out["incoming_model"] = FromWireText(facts.incoming_model);
  out["target_model"] = FromWireText(facts.target_model);
  out["can_rewrite_model"] = facts.can_rewrite_model;
  out["objective"] = FromWireText(facts.objective);
  out["fairness_id"] = FromWireText(facts.fairness_id);
  out["subset"] = facts.subset ? py::object(FromTexts(*facts.subset)) : py::object(py::none());
  out["received"] = FromOptionalTime(facts.received);
  out["complete"] = FromOptionalTime(facts.complete);
  return out;
}

py::dict ResponseOf(const gateway::ResponseFacts& facts) {
  py::dict out;
  out["headers"] = FromHeaders(facts.headers);
  out["status"] = facts.status;
  out["streaming"] = facts.streaming;
  out["ended"] = facts.ended;
  out["served_endpoint"] = FromWireText(facts.served_endpoint);
  out["body_bytes"] = facts.body_bytes;
  out["chunks"] = facts.chunks;
  out["usage"] = FromUsage(facts.usage);
  out["started"] = FromOptionalTime(facts.started);
  out["first_byte"] = FromOptionalTime(facts.first_byte);
  out["last_byte"] = FromOptionalTime(facts.last_byte);
  return out;
}

sched::DroppedReason ToReason(const std::string& reason) {
  if (reason.empty()) return sched::DroppedReason::kNone;
  for (int i = 1; i <= static_cast<int>(sched::DroppedReason::kEvictedPriority); ++i) {
    const auto value = static_cast<sched::DroppedReason>(i);
    if (sched::ToString(value) == reason) return value;
  }
  throw py::value_error("reason is \"" + reason + "\", wanted one such as \"rejected-saturated\"");
}

}  // namespace

void BindExtProc(py::module_& m) {
  using Pairs = std::vector<std::pair<std::string, std::string>>;
  py::class_<StreamObject, std::shared_ptr<StreamObject>>(m, "ExtProcStream")
      .def(py::init([](const py::dict& options, Arg<"seed", std::uint64_t> seed) {
        return std::make_shared<StreamObject>(options, *seed);
      }))
      .def("receive",
           [](StreamObject& s, py::object message, py::handle now) {
             const BytesBuffer bytes(message, "message");
             const absl::Time time = ToTime(now, "now");
             return EventName(
                 s.With([&](gateway::ExtProcStream& x) { return x.ReceiveBytes(bytes.text(), time); }));
           })
      .def("next",
           [](StreamObject& s) -> py::object {
             std::string answer;
             if (!s.With([&](gateway::ExtProcStream& x) { return x.NextBytes(answer); })) return py::none();
             return py::bytes(answer);
           })
      .def("decide",
           [](StreamObject& s, py::handle now, Arg<"destinations", std::vector<std::string>> destinations,
              Arg<"set_headers", Pairs> set_headers,
              Arg<"remove_headers", std::vector<std::string>> remove_headers, const py::list& metadata,
              Arg<"scores", std::vector<std::pair<std::string, double>>> scores,
              Arg<"model", std::optional<std::string>> model) {
             const gateway::RoutingResult result{.destinations = std::move(*destinations),
                                                 .set_headers = ToFields(*set_headers),
                                                 .remove_headers = std::move(*remove_headers),
                                                 .metadata = ToMetadata(metadata),
                                                 .scores = std::move(*scores),
                                                 .model = std::move(*model)};
             const absl::Time time = ToTime(now, "now");
             Check(s.With([&](gateway::ExtProcStream& x) { return x.Decide(result, time); }));
           })
      .def("refuse",
           [](StreamObject& s, py::handle now, Arg<"http_status", int> http_status,
              Arg<"message", std::string> message, Arg<"reason", std::string> reason,
              Arg<"headers", Pairs> headers) {
             const gateway::Refusal refusal{.http_status = *http_status,
                                            .message = std::move(*message),
                                            .reason = ToReason(*reason),
                                            .headers = ToFields(*headers)};
             const absl::Time time = ToTime(now, "now");
             Check(s.With([&](gateway::ExtProcStream& x) { return x.Refuse(refusal, time); }));
           })
      .def("evict",
           [](StreamObject& s, py::handle now, Arg<"reason", std::string> reason) {
             const sched::DroppedReason why = ToReason(*reason);
             const absl::Time time = ToTime(now, "now");
             s.With([&](gateway::ExtProcStream& x) { x.Evict(why, time); });
           })
      .def("fail",
           [](StreamObject& s, py::handle now, Arg<"message", std::string> message) {
             const absl::Time time = ToTime(now, "now");
             s.With([&](gateway::ExtProcStream& x) { x.Fail(absl::InternalError(*message), time); });
           })
      .def("close",
           [](StreamObject& s, py::handle now, Arg<"cancelled", bool> cancelled) {
             const absl::Time time = ToTime(now, "now");
             s.With([&](gateway::ExtProcStream& x) {
               x.Close(*cancelled ? gateway::CloseReason::kCancelled : gateway::CloseReason::kEndOfStream,
                       time);
             });
           })
      .def("edit_response_headers",
           [](StreamObject& s, Arg<"set", Pairs> set, Arg<"remove", std::vector<std::string>> remove) {
             const std::vector<gateway::HeaderField> fields = ToFields(*set);
             Check(s.With([&](gateway::ExtProcStream& x) { return x.EditResponseHeaders(fields, *remove); }));
           })
      .def("add_response_metadata",
           [](StreamObject& s, const py::list& metadata) {
             const std::vector<gateway::MetadataEntry> entries = ToMetadata(metadata);
             Check(s.With([&](gateway::ExtProcStream& x) { return x.AddResponseMetadata(entries); }));
           })
      .def_property_readonly(
          "needs_decision",
          [](StreamObject& s) { return s.With([](auto& x) { return x.needs_decision(); }); })
      .def_property_readonly("finished",
                             [](StreamObject& s) { return s.With([](auto& x) { return x.finished(); }); })
      // (gRPC status code, message)
      .def_property_readonly("status",
                             [](StreamObject& s) {
                               const absl::Status status = s.With([](auto& x) { return x.status(); });
                               return py::make_tuple(static_cast<int>(status.code()),
                                                     FromWireText(std::string(status.message())));
                             })
      .def_property_readonly("facts",
                             [](StreamObject& s) -> py::object {
                               return s.Read([](auto& x) -> py::object {
                                 if (!x.needs_decision()) return py::none();
                                 return FactsOf(x.facts());
                               });
                             })
      .def_property_readonly(
          "response",
          [](StreamObject& s) { return s.Read([](auto& x) { return ResponseOf(x.response()); }); })
      .def("take_completion",
           [](StreamObject& s) -> py::object {
             const std::optional<gateway::Completion> done =
                 s.With([](auto& x) { return x.TakeCompletion(); });
             if (!done) return py::none();
             return py::make_tuple(FromWireText(gateway::ToString(done->cause)), done->routed,
                                   done->refused_with, FromWireText(done->error));
           })
      .def_property_readonly(
          "request_body_mode",
          [](StreamObject& s) { return FromBodyMode(s.With([](auto& x) { return x.request_body_mode(); })); })
      .def_property_readonly("response_body_mode",
                             [](StreamObject& s) {
                               return FromBodyMode(s.With([](auto& x) { return x.response_body_mode(); }));
                             })
      .def_property_readonly(
          "ignored_messages",
          [](StreamObject& s) { return s.With([](auto& x) { return x.ignored_messages(); }); })
      .def_property_readonly("held_bytes",
                             [](StreamObject& s) { return s.With([](auto& x) { return x.held_bytes(); }); });
}

}  // namespace llmd::python
