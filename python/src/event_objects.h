// KV events as Python objects.
//
// To Python: a tuple of the fields of llmd.events.Event in the order of their declaration, so that the class
// can be made from it. From Python: any object with these attributes. Text that is not UTF-8 survives both
// ways as lone surrogates ("surrogateescape").
#ifndef LLMD_PYTHON_SRC_EVENT_OBJECTS_H_
#define LLMD_PYTHON_SRC_EVENT_OBJECTS_H_

#include <pybind11/pybind11.h>

#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/events/encoder.h"
#include "llmd/events/event.h"
#include "python/src/buffers.h"

namespace llmd::python {

pybind11::tuple FromEvent(const events::Event& event);
pybind11::list FromEvents(std::span<const events::Event> events);

// Events read from Python objects, with what their views point to. Make and destroy with the GIL held.
class EventReader {
 public:
  // `object`: a list or tuple of events.
  explicit EventReader(pybind11::handle object);
  EventReader(const EventReader&) = delete;
  EventReader& operator=(const EventReader&) = delete;

  std::span<const events::Event> events() const { return events_; }

 private:
  events::Event Read(pybind11::handle object, const std::string& name);
  std::string_view Text(pybind11::handle object, const char* field, const std::string& name);
  std::string_view Bytes(pybind11::handle object, const std::string& name);
  std::span<const std::string_view> BytesList(pybind11::handle object, const std::string& name);
  TokenSpan Tokens(pybind11::handle object, const std::string& name);
  std::span<const events::ExtraKey> ExtraKeys(pybind11::handle object, const std::string& name);
  events::ExtraKey ReadExtraKey(pybind11::handle object, const std::string& name);

  std::vector<events::Event> events_;
  std::deque<TokenBuffer> tokens_;
  std::deque<KeyBuffer> keys_;
  std::deque<std::string> text_;
  std::deque<std::vector<std::string_view>> lists_;
  std::deque<std::vector<events::ExtraKey>> extra_keys_;
  std::deque<std::vector<std::span<const events::ExtraKey>>> extra_keys_of_blocks_;
  std::deque<std::vector<TokenSpan>> token_lists_;
};

// "array6" .. "array12", "map", "map_wide".
events::Schema ToSchema(pybind11::handle object);
std::optional<std::uint32_t> ToRank(pybind11::handle object, const char* name);

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_EVENT_OBJECTS_H_
