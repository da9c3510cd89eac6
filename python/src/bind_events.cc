// Codec of KV events, frames and topics.
#include <pybind11/pybind11.h>

#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llmd/events/decoder.h"
#include "llmd/events/encoder.h"
#include "llmd/events/frames.h"
#include "llmd/events/topic.h"
#include "python/src/arguments.h"
#include "python/src/buffers.h"
#include "python/src/event_objects.h"
#include "python/src/lock.h"
#include "python/src/module.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;
namespace {

constexpr std::size_t kLong = 8192;  // bytes

py::tuple Decode(py::handle payload, Arg<"zero_parent_is_root", bool> zero_parent_is_root,
                 py::handle max_payload_bytes) {
  const BytesBuffer bytes(payload, "payload");
  events::DecodeOptions options;
  options.zero_parent_is_root = *zero_parent_is_root;
  options.limits.max_payload_bytes =
      static_cast<std::size_t>(ToInt(max_payload_bytes, "max_payload_bytes", 1, std::int64_t{1} << 32));
  events::EventBatch batch;
  Check(WithoutGil(bytes.span().size() >= kLong,
                   [&] { return events::EventDecoder(options).Decode(bytes.span(), batch); }));
  py::object first_error = py::none();
  if (!batch.first_error().ok()) {
    const auto message = batch.first_error().message();
    first_error = FromWireText({message.data(), message.size()});
  }
  const auto rank = batch.data_parallel_rank();
  return py::make_tuple(FromEvents(batch.events()), batch.timestamp(),
                        rank ? py::object(py::int_(*rank)) : py::object(py::none()), batch.skipped_events(),
                        batch.truncated(), first_error);
}

py::bytes Encode(py::handle list, py::handle timestamp, py::handle schema, py::handle rank) {
  const EventReader reader(list);
  const double time = ToDouble(timestamp, "timestamp");
  const events::Schema form = ToSchema(schema);
  const auto data_parallel_rank = ToRank(rank, "data_parallel_rank");
  const std::vector<std::byte> payload = WithoutGil(reader.events().size() >= 16, [&] {
    std::vector<std::byte> out;
    events::EncodeBatch(form, time, reader.events(), data_parallel_rank, out);
    return out;
  });
  return py::bytes(reinterpret_cast<const char*>(payload.data()), payload.size());
}

// A multipart message: its frames, in place.
class Frames {
 public:
  explicit Frames(py::handle object) : object_(object) {
    CheckSequence(object, "frames", "bytes");
    for (std::size_t i = 0; i < SequenceSize(object); ++i) {
      items_.push_back(SequenceItem(object, i));
      buffers_.emplace_back(items_.back(), Element("frames", i).c_str());
      frames_.push_back(buffers_.back().span());
    }
  }
  std::span<const events::Frame> span() const { return frames_; }
  // The last frame's own object: it is the payload of every message.
  py::object payload() const { return items_.back(); }

 private:
  py::handle object_;
  std::vector<py::object> items_;
  std::deque<BytesBuffer> buffers_;
  std::vector<events::Frame> frames_;
};

}  // namespace

void BindEvents(py::module_& m) {
  BindEventObjects(m);
  m.def("key_array", [](py::handle keys, Arg<"name", std::string> name) {
    return ToArray(KeyBuffer(keys, name->c_str()).span());
  });
  m.def("token_array", [](py::handle tokens, Arg<"name", std::string> name) {
    return ToArray(TokenBuffer(tokens, name->c_str()).span());
  });
  m.def("decode", &Decode);
  m.def("encode", &Encode);
  m.def("parse_live_message", [](py::handle object) {
    const Frames frames(object);
    const events::LiveMessage message = Take(events::ParseLiveMessage(frames.span()));
    return py::make_tuple(FromWireText(message.topic), message.seq, frames.payload());
  });
  m.def("parse_replay_message", [](py::handle object) -> py::tuple {
    const Frames frames(object);
    const events::ReplayMessage message = Take(events::ParseReplayMessage(frames.span()));
    if (message.end) return py::make_tuple(true, "", 0, py::bytes());
    return py::make_tuple(false, FromWireText(message.topic), message.seq, frames.payload());
  });
  m.def("encode_seq", [](py::handle seq) {
    const auto bytes = events::EncodeSeq(ToUnsigned(seq, "seq"));
    return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  });
  m.def("parse_topic", [](py::handle object) {
    const events::Topic topic = events::ParseTopic(ToText(object, "topic"));
    return py::make_tuple(FromWireText(topic.pod), FromWireText(topic.model));
  });
  m.def("make_topic", [](py::handle pod, py::handle model) {
    return events::MakeTopic(ToText(pod, "pod"), ToText(model, "model"));
  });
  m.def("is_pseudo_pod", [](py::handle pod) { return events::IsPseudoPod(ToText(pod, "pod")); });
}

}  // namespace llmd::python
