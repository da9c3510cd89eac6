#include <pybind11/pybind11.h>

#include <limits>
#include <string>
#include <utility>

#include "python/src/buffers.h"
#include "python/src/extra_keys.h"
#include "python/src/module.h"

namespace llmd::python {
namespace py = pybind11;
using hash::ExtraKey;
namespace {

constexpr int kMaxNesting = 16;
constexpr std::int64_t kMaxInt = std::numeric_limits<std::int64_t>::max();

PyObject* tag_class = nullptr;  // llmd.hash.Tag; never given back

ExtraKey ToExtraKey(py::handle object, const std::string& name, int depth) {
  if (object.is_none()) return ExtraKey::None();
  if (PyUnicode_Check(object.ptr())) {
    const std::string_view text = ToText(object, name.c_str());
    return Py_TYPE(object.ptr()) == reinterpret_cast<PyTypeObject*>(tag_class) ? ExtraKey::Tag(text)
                                                                               : ExtraKey::Text(text);
  }
  if (PyBytes_Check(object.ptr())) return ExtraKey::Bytes(BytesBuffer(object, name.c_str()).text());
  if (PyBool_Check(object.ptr()))
    throw py::type_error(name + " is of type bool, wanted None, int, str, bytes or a tuple");
  if (PyLong_Check(object.ptr())) return ExtraKey::Int(ToInt(object, name.c_str(), -kMaxInt - 1, kMaxInt));
  if (!PyTuple_Check(object.ptr())) {
    throw py::type_error(name + " is of type " + Py_TYPE(object.ptr())->tp_name +
                         ", wanted None, int, str, bytes or a tuple");
  }
  if (depth == kMaxNesting)
    throw py::value_error(name + ": nested deeper than " + std::to_string(kMaxNesting));
  std::vector<ExtraKey> items;
  for (std::size_t i = 0; i < SequenceSize(object); ++i) {
    items.push_back(ToExtraKey(SequenceItem(object, i), Element(name.c_str(), i), depth + 1));
  }
  return ExtraKey::Tuple(std::move(items));
}

py::object FromExtraKey(const ExtraKey& key) {
  switch (key.kind) {
    case ExtraKey::Kind::kInt:
      return py::int_(key.number);
    case ExtraKey::Kind::kText:
      return FromWireText(key.text);
    case ExtraKey::Kind::kTag:
      return py::handle(tag_class)(FromWireText(key.text));
    case ExtraKey::Kind::kBytes:
      return py::bytes(key.text);
    case ExtraKey::Kind::kTuple: {
      py::tuple items(key.items.size());
      for (std::size_t i = 0; i < key.items.size(); ++i) items[i] = FromExtraKey(key.items[i]);
      return items;
    }
    case ExtraKey::Kind::kNone:
      break;
  }
  return py::none();
}

}  // namespace

hash::ExtraKeys ToExtraKeys(py::handle object, const char* name) {
  hash::ExtraKeys keys;
  if (object.is_none()) return keys;
  CheckSequence(object, name, "extra keys");
  for (std::size_t i = 0; i < SequenceSize(object); ++i) {
    keys.push_back(ToExtraKey(SequenceItem(object, i), Element(name, i), 0));
  }
  return keys;
}

py::object FromExtraKeys(const hash::ExtraKeys& keys) {
  if (keys.empty()) return py::none();
  return FromExtraKey(ExtraKey::Tuple(keys));
}

std::vector<hash::ExtraKeys> ToExtraKeysOfBlocks(py::handle object, const char* name) {
  std::vector<hash::ExtraKeys> blocks;
  if (object.is_none()) return blocks;
  CheckSequence(object, name, "the extra keys of each block");
  blocks.reserve(SequenceSize(object));
  for (std::size_t i = 0; i < SequenceSize(object); ++i) {
    blocks.push_back(ToExtraKeys(SequenceItem(object, i), Element(name, i).c_str()));
  }
  return blocks;
}

hash::RequestExtras ToRequestExtras(py::handle object) {
  hash::RequestExtras extras;
  if (object.is_none()) return extras;
  for (const char* field :
       {"lora_name", "lora_path", "cache_salt", "lora_int_id", "multimodal", "embeds_digests"}) {
    if (!py::hasattr(object, field)) {
      throw py::type_error(std::string("extras is of type ") + Py_TYPE(object.ptr())->tp_name +
                           ", wanted RequestExtras");
    }
  }
  const auto text = [&](const char* field) {
    return std::string(ToText(py::object(object.attr(field)), (std::string("extras.") + field).c_str()));
  };
  extras.lora_name = text("lora_name");
  extras.lora_path = text("lora_path");
  extras.cache_salt = text("cache_salt");
  extras.lora_int_id = ToInt(object.attr("lora_int_id"), "extras.lora_int_id", -kMaxInt - 1, kMaxInt);
  const py::object items = object.attr("multimodal");
  CheckSequence(items, "extras.multimodal", "MultimodalItem");
  for (std::size_t i = 0; i < SequenceSize(items); ++i) {
    const std::string name = Element("extras.multimodal", i);
    const py::object item = SequenceItem(items, i);
    if (!IsSequence(item) || SequenceSize(item) != 3) {
      throw py::type_error(name + " is not (identifier, offset, length)");
    }
    // Bounded so that offset + length is a number.
    constexpr std::int64_t kMax = std::int64_t{1} << 40;
    const py::object identifier = SequenceItem(item, 0);
    extras.multimodal.push_back({std::string(ToText(identifier, (name + ".identifier").c_str())),
                                 ToInt(SequenceItem(item, 1), (name + ".offset").c_str(), 0, kMax),
                                 ToInt(SequenceItem(item, 2), (name + ".length").c_str(), 0, kMax)});
  }
  extras.embeds_digests = ToDigests(object.attr("embeds_digests"), "extras.embeds_digests");
  return extras;
}

hash::ExtraKeyStyle ToStyle(py::handle object) {
  using hash::ExtraKeyStyle;
  const std::string_view name = ToText(object, "style");
  for (const ExtraKeyStyle style :
       {ExtraKeyStyle::kIntLora, ExtraKeyStyle::kBare, ExtraKeyStyle::kOffset, ExtraKeyStyle::kTagged}) {
    if (name == ToString(style)) return style;
  }
  throw py::value_error("style is \"" + std::string(name) + "\", not one of \"" +
                        std::string(ToString(ExtraKeyStyle::kIntLora)) + "\", \"" +
                        std::string(ToString(ExtraKeyStyle::kBare)) + "\", \"" +
                        std::string(ToString(ExtraKeyStyle::kOffset)) + "\", \"" +
                        std::string(ToString(ExtraKeyStyle::kTagged)) + "\"");
}

void BindExtraKeys(py::module_& m) {
  py::dict members;
  members["__module__"] = "llmd.hash";
  members["__doc__"] =
      "A string literal of the engine's source, e.g. ``\"mm\"``: one Python object however often it "
      "occurs.\n\n"
      "Pickle writes an object that occurs twice in one block once, and then refers to it; so a tag and an "
      "equal\n"
      "``str`` hash differently.";
  members["__slots__"] = py::tuple();
  const py::object type = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyType_Type));
  py::object tag =
      type("Tag", py::make_tuple(py::handle(reinterpret_cast<PyObject*>(&PyUnicode_Type))), members);
  m.attr("Tag") = tag;
  tag_class = tag.release().ptr();

  m.def("extra_keys_of_request",
        [](py::handle extras, py::handle style, py::handle block_size, py::handle count) {
          const auto size = static_cast<std::uint32_t>(ToInt(block_size, "block_size", 1, kMaxBlockSize));
          const hash::ExtraKeyBuilder builder(ToRequestExtras(extras), ToStyle(style), size);
          const std::int64_t blocks = ToInt(count, "count", 0, kMaxBlockCount);
          py::list list(static_cast<std::size_t>(blocks));
          for (std::int64_t i = 0; i < blocks; ++i) {
            PyList_SET_ITEM(list.ptr(), i, FromExtraKeys(builder.ForBlock(i)).release().ptr());
          }
          return list;
        });
}

}  // namespace llmd::python
