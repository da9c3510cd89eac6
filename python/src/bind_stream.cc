#include <pybind11/pybind11.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "llmd/events/publisher_stream.h"
#include "python/src/arguments.h"
#include "python/src/buffers.h"
#include "python/src/lock.h"
#include "python/src/module.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;
using events::PublisherStream;
using events::StreamAction;
namespace {

absl::Duration ToDuration(py::handle object, const char* name) {
  const double seconds = ToDouble(object, name);
  if (seconds < 0) throw py::value_error(std::string(name) + " is negative");
  return absl::Seconds(seconds);
}

std::string_view KindName(StreamAction::Kind kind) {
  switch (kind) {
    case StreamAction::Kind::kApply:
      return "apply";
    case StreamAction::Kind::kClear:
      return "clear";
    case StreamAction::Kind::kRequestReplay:
      return "request_replay";
    case StreamAction::Kind::kCancelReplay:
      break;
  }
  return "cancel_replay";
}

// A PublisherStream that several threads may use; actions are copied before the lock is given back.
class Stream {
 public:
  Stream(py::handle mode, Arg<"replay", bool> replay, py::handle replay_deadline, py::handle idle_timeout,
         py::handle retry_backoff, py::handle cooldown, py::handle max_attempts, py::handle max_held_bytes)
      : stream_(Options(mode, *replay, replay_deadline, idle_timeout, retry_backoff, cooldown, max_attempts,
                        max_held_bytes)) {}

  py::list OnConnected(py::handle now) {
    const absl::Time time = ToTime(now, "now");
    return Answer([&] { return stream_.OnConnected(time); });
  }
  py::list OnLive(py::handle now, py::handle seq, py::handle payload) {
    const absl::Time time = ToTime(now, "now");
    const std::uint64_t number = ToUnsigned(seq, "seq");
    const BytesBuffer bytes(payload, "payload");
    return Answer([&] { return stream_.OnLive(time, number, bytes.span()); });
  }
  py::list OnReplayBatch(py::handle now, py::handle request, py::handle seq, py::handle payload) {
    const absl::Time time = ToTime(now, "now");
    const std::uint64_t id = ToUnsigned(request, "request");
    const std::uint64_t number = ToUnsigned(seq, "seq");
    const BytesBuffer bytes(payload, "payload");
    return Answer([&] { return stream_.OnReplayBatch(time, id, number, bytes.span()); });
  }
  py::list OnReplayEnd(py::handle now, py::handle request) {
    const absl::Time time = ToTime(now, "now");
    const std::uint64_t id = ToUnsigned(request, "request");
    return Answer([&] { return stream_.OnReplayEnd(time, id); });
  }
  py::list OnReplayFailed(py::handle now, py::handle request, Arg<"malformed", bool> malformed) {
    const absl::Time time = ToTime(now, "now");
    const std::uint64_t id = ToUnsigned(request, "request");
    const auto why =
        *malformed ? PublisherStream::ReplayFailure::kMalformed : PublisherStream::ReplayFailure::kTransport;
    return Answer([&] { return stream_.OnReplayFailed(time, id, why); });
  }
  py::list Tick(py::handle now) {
    const absl::Time time = ToTime(now, "now");
    return Answer([&] { return stream_.Tick(time); });
  }

  py::object NextDeadline() {
    const absl::Time time = Locked(mutex_, false, [&] { return stream_.next_deadline(); });
    if (time == absl::InfiniteFuture()) return py::none();
    // Rounded up: Tick() at this time must find something to do.
    double seconds = absl::ToDoubleSeconds(time - absl::UnixEpoch());
    while (absl::UnixEpoch() + absl::Seconds(seconds) < time) {
      seconds = std::nextafter(seconds, std::numeric_limits<double>::infinity());
    }
    return py::float_(seconds);
  }
  py::object LastApplied() {
    const auto seq = Locked(mutex_, false, [&] { return stream_.last_applied(); });
    return seq ? py::object(py::int_(*seq)) : py::object(py::none());
  }
  bool InSync() {
    return Locked(mutex_, false, [&] { return stream_.in_sync(); });
  }
  std::size_t HeldBytes() {
    return Locked(mutex_, false, [&] { return stream_.held_bytes(); });
  }
  py::tuple Counters() {
    const events::StreamCounters c = Locked(mutex_, false, [&] { return stream_.counters(); });
    return py::make_tuple(c.applied, c.duplicates, c.dropped, c.gaps_total, c.events_lost_total, c.restarts,
                          c.clears, c.replays_requested, c.replays_failed, c.malformed);
  }

 private:
  struct Copy {
    StreamAction action;
    std::string payload;
  };

  static events::StreamOptions Options(py::handle mode, bool replay, py::handle replay_deadline,
                                       py::handle idle_timeout, py::handle retry_backoff, py::handle cooldown,
                                       py::handle max_attempts, py::handle max_held_bytes) {
    events::StreamOptions options;
    const std::string_view name = ToText(mode, "mode");
    if (name == "best_effort") {
      options.mode = events::StreamOptions::Mode::kBestEffort;
    } else if (name != "strict") {
      throw py::value_error("mode is \"" + std::string(name) + "\", not \"strict\" or \"best_effort\"");
    }
    options.replay = replay;
    options.replay_deadline = ToDuration(replay_deadline, "replay_deadline");
    options.idle_timeout = ToDuration(idle_timeout, "idle_timeout");
    options.retry_backoff = ToDuration(retry_backoff, "retry_backoff");
    options.cooldown = ToDuration(cooldown, "cooldown");
    options.max_attempts_without_progress =
        static_cast<int>(ToInt(max_attempts, "max_attempts_without_progress", 1, 1 << 30));
    options.max_held_bytes = static_cast<std::size_t>(ToInt(max_held_bytes, "max_held_bytes", 0, kMaxBytes));
    return options;
  }

  template <typename Call>
  py::list Answer(Call call) {
    const std::vector<Copy> copies = Locked(mutex_, false, [&] {
      std::vector<Copy> out;
      for (const StreamAction& action : call()) {
        out.push_back(
            {action, {reinterpret_cast<const char*>(action.payload.data()), action.payload.size()}});
      }
      return out;
    });
    py::list list;
    for (const Copy& copy : copies) {
      list.append(py::make_tuple(FromWireText(KindName(copy.action.kind)), copy.action.seq,
                                 copy.action.request, py::bytes(copy.payload)));
    }
    return list;
  }

  std::mutex mutex_;
  PublisherStream stream_;
};

}  // namespace

void BindStream(py::module_& m) {
  py::class_<Stream>(m, "PublisherStream")
      .def(py::init<py::handle, Arg<"replay", bool>, py::handle, py::handle, py::handle, py::handle,
                    py::handle, py::handle>())
      .def("on_connected", &Stream::OnConnected)
      .def("on_live", &Stream::OnLive)
      .def("on_replay_batch", &Stream::OnReplayBatch)
      .def("on_replay_end", &Stream::OnReplayEnd)
      .def("on_replay_failed", &Stream::OnReplayFailed)
      .def("tick", &Stream::Tick)
      .def_property_readonly("next_deadline", &Stream::NextDeadline)
      .def_property_readonly("last_applied", &Stream::LastApplied)
      .def_property_readonly("in_sync", &Stream::InSync)
      .def_property_readonly("held_bytes", &Stream::HeldBytes)
      .def_property_readonly("counters", &Stream::Counters);
}

}  // namespace llmd::python
