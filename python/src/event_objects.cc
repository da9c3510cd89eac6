#include "python/src/event_objects.h"

#include <pybind11/pybind11.h>

#include <limits>
#include <utility>

#include "python/src/module.h"

namespace llmd::python {
namespace py = pybind11;
using events::Event;
using events::EventKind;
using events::ExtraKey;
namespace {

constexpr std::int64_t kMaxU32 = std::numeric_limits<std::uint32_t>::max();
constexpr std::int64_t kMaxI64 = std::numeric_limits<std::int64_t>::max();

PyObject* raw_class = nullptr;  // llmd.events.RawMsgpack; never given back

// `text` as bytes, and as str.
py::bytes FromBytes(std::string_view bytes) { return py::bytes(bytes.data(), bytes.size()); }

template <typename T>
py::object OrNone(const std::optional<T>& value) {
  return value ? py::object(py::int_(*value)) : py::object(py::none());
}

py::object FromExtraKey(const ExtraKey& key) {
  switch (key.kind) {
    case ExtraKey::Kind::kString:
      return FromWireText(key.text);
    case ExtraKey::Kind::kStringAt:
      return py::make_tuple(FromWireText(key.text), key.number);
    case ExtraKey::Kind::kInt:
      return py::int_(key.number);
    case ExtraKey::Kind::kBytes:
      return FromBytes(key.text);
    case ExtraKey::Kind::kOther:
      break;
  }
  return py::handle(raw_class)(FromBytes(key.text));
}

// A tuple with make(item) for each item.
template <typename Items, typename Make>
py::tuple Tuple(const Items& items, Make make) {
  py::tuple tuple(items.size());
  for (std::size_t i = 0; i < items.size(); ++i) {
    PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i), py::object(make(items[i])).release().ptr());
  }
  return tuple;
}

}  // namespace

py::tuple FromEvent(const Event& event) {
  return py::make_tuple(
      FromWireText(EventKindName(event.kind)), ToArray(event.hashes), Tuple(event.hash_bytes, FromBytes),
      OrNone(event.parent), FromBytes(event.parent_bytes), ToArray(event.tokens),
      ToArray(event.bigram_tokens), event.block_size, OrNone(event.lora_id), FromWireText(event.lora_name),
      Tuple(event.extra_keys, [](std::span<const ExtraKey> keys) { return Tuple(keys, FromExtraKey); }),
      Tuple(event.lookahead_tokens, [](TokenSpan tokens) { return ToArray(tokens); }),
      FromWireText(event.cache_salt), FromWireText(event.session_id), FromWireText(event.medium),
      FromWireText(event.tier), OrNone(event.group_idx), FromWireText(event.spec_kind),
      OrNone(event.sliding_window), FromWireText(event.locality), FromWireText(event.ownership),
      FromWireText(event.model_name), FromWireText(event.tenant_id), FromWireText(event.backend_id),
      FromWireText(event.object_key), OrNone(event.first_block));
}

py::list FromEvents(std::span<const Event> events) {
  py::list list(events.size());
  for (std::size_t i = 0; i < events.size(); ++i) {
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), FromEvent(events[i]).release().ptr());
  }
  return list;
}

EventReader::EventReader(py::handle object) {
  CheckSequence(object, "events", "Event");
  events_.reserve(SequenceSize(object));
  for (std::size_t i = 0; i < SequenceSize(object); ++i) {
    const py::object item = SequenceItem(object, i);
    events_.push_back(Read(item, Element("events", i)));
  }
}

Event EventReader::Read(py::handle object, const std::string& name) {
  const auto field = [&](const char* of) {
    if (!py::hasattr(object, of)) {
      throw py::type_error(name + " is of type " + Py_TYPE(object.ptr())->tp_name +
                           ", wanted llmd.events.Event");
    }
    return py::object(object.attr(of));
  };
  const auto path = [&](const char* of) { return name + "." + of; };
  const auto integer = [&](const char* of, std::int64_t max) -> std::optional<std::int64_t> {
    const py::object value = field(of);
    if (value.is_none()) return std::nullopt;
    return ToInt(value, path(of).c_str(), of == std::string_view("lora_id") ? -kMaxI64 - 1 : 0, max);
  };

  Event event;
  const std::string_view kind = Text(object, "kind", name);
  if (kind == EventKindName(EventKind::kBlockStored)) {
    event.kind = EventKind::kBlockStored;
  } else if (kind == EventKindName(EventKind::kBlockRemoved)) {
    event.kind = EventKind::kBlockRemoved;
  } else if (kind != EventKindName(EventKind::kAllBlocksCleared)) {
    throw py::value_error(path("kind") + " is \"" + std::string(kind) +
                          "\", not one of \"BlockStored\", \"BlockRemoved\", \"AllBlocksCleared\"");
  }
  event.hashes = keys_.emplace_back(field("hashes"), path("hashes").c_str()).span();
  event.hash_bytes = BytesList(field("hash_bytes"), path("hash_bytes"));
  event.parent = ToOptionalKey(field("parent"), path("parent").c_str());
  event.parent_bytes = Bytes(field("parent_bytes"), path("parent_bytes"));
  event.tokens = Tokens(field("tokens"), path("tokens"));
  event.bigram_tokens = Tokens(field("bigram_tokens"), path("bigram_tokens"));
  if (!event.bigram_tokens.empty() && event.bigram_tokens.size() != event.tokens.size()) {
    throw py::value_error(path("bigram_tokens") + " has " + std::to_string(event.bigram_tokens.size()) +
                          " elements, tokens has " + std::to_string(event.tokens.size()));
  }
  event.block_size =
      static_cast<std::uint32_t>(ToInt(field("block_size"), path("block_size").c_str(), 0, kMaxU32));
  event.lora_id = integer("lora_id", kMaxI64);
  event.lora_name = Text(object, "lora_name", name);

  const py::object extra_keys = field("extra_keys");
  CheckSequence(extra_keys, path("extra_keys").c_str(), "the extra keys of each block");
  auto& of_blocks = extra_keys_of_blocks_.emplace_back();
  for (std::size_t i = 0; i < SequenceSize(extra_keys); ++i) {
    of_blocks.push_back(ExtraKeys(SequenceItem(extra_keys, i), Element(path("extra_keys").c_str(), i)));
  }
  event.extra_keys = of_blocks;
  const py::object lookahead = field("lookahead_tokens");
  CheckSequence(lookahead, path("lookahead_tokens").c_str(), "token arrays");
  auto& token_list = token_lists_.emplace_back();
  for (std::size_t i = 0; i < SequenceSize(lookahead); ++i) {
    token_list.push_back(Tokens(SequenceItem(lookahead, i), Element(path("lookahead_tokens").c_str(), i)));
  }
  event.lookahead_tokens = token_list;

  event.cache_salt = Text(object, "cache_salt", name);
  event.session_id = Text(object, "session_id", name);
  event.medium = Text(object, "medium", name);
  event.tier = Text(object, "tier", name);
  if (const auto value = integer("group_idx", kMaxU32)) event.group_idx = static_cast<std::uint32_t>(*value);
  event.spec_kind = Text(object, "spec_kind", name);
  if (const auto value = integer("sliding_window", kMaxU32))
    event.sliding_window = static_cast<std::uint32_t>(*value);
  event.locality = Text(object, "locality", name);
  event.ownership = Text(object, "ownership", name);
  event.model_name = Text(object, "model_name", name);
  event.tenant_id = Text(object, "tenant_id", name);
  event.backend_id = Text(object, "backend_id", name);
  event.object_key = Text(object, "object_key", name);
  if (const auto value = integer("first_block", kMaxI64))
    event.first_block = static_cast<std::uint64_t>(*value);
  return event;
}

std::string_view EventReader::Text(py::handle object, const char* field, const std::string& name) {
  if (!py::hasattr(object, field)) {
    throw py::type_error(name + " is of type " + Py_TYPE(object.ptr())->tp_name +
                         ", wanted llmd.events.Event");
  }
  const py::object value = object.attr(field);
  if (!PyUnicode_Check(value.ptr())) {
    throw py::type_error(name + "." + field + " is of type " + Py_TYPE(value.ptr())->tp_name +
                         ", wanted str");
  }
  const py::object encoded =
      py::reinterpret_steal<py::object>(PyUnicode_AsEncodedString(value.ptr(), "utf-8", "surrogateescape"));
  if (!encoded) throw py::error_already_set();
  return Bytes(encoded, name);
}

std::string_view EventReader::Bytes(py::handle object, const std::string& name) {
  const BytesBuffer bytes(object, name.c_str());
  if (bytes.text().empty()) return {};
  return text_.emplace_back(bytes.text());
}

std::span<const std::string_view> EventReader::BytesList(py::handle object, const std::string& name) {
  CheckSequence(object, name.c_str(), "bytes");
  if (SequenceSize(object) == 0) return {};
  auto& list = lists_.emplace_back();
  for (std::size_t i = 0; i < SequenceSize(object); ++i) {
    list.push_back(Bytes(SequenceItem(object, i), Element(name.c_str(), i)));
  }
  return list;
}

TokenSpan EventReader::Tokens(py::handle object, const std::string& name) {
  return tokens_.emplace_back(object, name.c_str()).span();
}

std::span<const ExtraKey> EventReader::ExtraKeys(py::handle object, const std::string& name) {
  if (object.is_none()) return {};
  CheckSequence(object, name.c_str(), "extra keys");
  auto& keys = extra_keys_.emplace_back();
  for (std::size_t i = 0; i < SequenceSize(object); ++i) {
    keys.push_back(ReadExtraKey(SequenceItem(object, i), Element(name.c_str(), i)));
  }
  return keys;
}

ExtraKey EventReader::ReadExtraKey(py::handle object, const std::string& name) {
  ExtraKey key;
  if (PyUnicode_Check(object.ptr())) {
    key.text = text_.emplace_back(ToText(object, name.c_str()));
  } else if (PyBytes_Check(object.ptr())) {
    const bool raw = PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(raw_class));
    key.kind = raw ? ExtraKey::Kind::kOther : ExtraKey::Kind::kBytes;
    key.text = text_.emplace_back(BytesBuffer(object, name.c_str()).text());
    if (raw && key.text.empty()) throw py::value_error(name + " is empty, not a MessagePack value");
  } else if (PyLong_Check(object.ptr())) {
    key.kind = ExtraKey::Kind::kInt;
    key.number = ToInt(object, name.c_str(), -kMaxI64 - 1, kMaxI64);
  } else if (IsSequence(object) && SequenceSize(object) == 2) {
    key.kind = ExtraKey::Kind::kStringAt;
    const py::object text = SequenceItem(object, 0);
    key.text = text_.emplace_back(ToText(text, Element(name.c_str(), 0).c_str()));
    key.number = ToInt(SequenceItem(object, 1), Element(name.c_str(), 1).c_str(), -kMaxI64 - 1, kMaxI64);
  } else {
    throw py::type_error(name + " is of type " + Py_TYPE(object.ptr())->tp_name +
                         ", wanted str, (str, int), int or bytes");
  }
  return key;
}

events::Schema ToSchema(py::handle object) {
  using events::Schema;
  constexpr std::pair<std::string_view, Schema> kNames[] = {
      {"array6", Schema::kArray6}, {"array7", Schema::kArray7},   {"array8", Schema::kArray8},
      {"array9", Schema::kArray9}, {"array10", Schema::kArray10}, {"array12", Schema::kArray12},
      {"map", Schema::kMap},       {"map_wide", Schema::kMapWide}};
  const std::string_view name = ToText(object, "schema");
  std::string known;
  for (const auto& [text, schema] : kNames) {
    if (text == name) return schema;
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  throw py::value_error("schema is \"" + std::string(name) + "\", not one of " + known);
}

std::optional<std::uint32_t> ToRank(py::handle object, const char* name) {
  if (object.is_none()) return std::nullopt;
  return static_cast<std::uint32_t>(ToInt(object, name, 0, kMaxU32));
}

void BindEventObjects(py::module_& m) {
  py::dict members;
  members["__module__"] = "llmd.events";
  members["__doc__"] =
      "An extra key of a shape that is not known: its MessagePack bytes. Compare it, do not interpret it.";
  const py::object type = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyType_Type));
  py::object raw =
      type("RawMsgpack", py::make_tuple(py::handle(reinterpret_cast<PyObject*>(&PyBytes_Type))), members);
  m.attr("RawMsgpack") = raw;
  raw_class = raw.release().ptr();
}

}  // namespace llmd::python
