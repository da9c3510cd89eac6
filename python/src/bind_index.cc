#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llmd/index/approx_index.h"
#include "llmd/index/prefix_index.h"
#include "python/src/buffers.h"
#include "python/src/index_objects.h"
#include "python/src/lock.h"
#include "python/src/module.h"
#include "python/src/objects.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;
using index::HolderId;
using index::HolderOptions;
using index::NamespaceId;
using index::PrefixIndex;
namespace {

constexpr std::size_t kLong = 256;  // blocks written

template <typename T>
py::object OrNone(const std::optional<T>& value) {
  return value ? py::cast(*value) : py::object(py::none());
}

std::string_view OutcomeName(index::StoreOutcome outcome) {
  switch (outcome) {
    case index::StoreOutcome::kApplied:
      return "applied";
    case index::StoreOutcome::kUnknownParent:
      return "unknown_parent";
    case index::StoreOutcome::kStaleHolder:
      return "stale_holder";
    case index::StoreOutcome::kOtherNamespace:
      break;
  }
  return "other_namespace";
}

HolderId ToHolder(py::handle object) { return ToObject<HolderId>(object, "holder", "HolderId"); }

NamespaceId ToNamespace(py::handle object) { return ToObject<NamespaceId>(object, "ns", "NamespaceId"); }

std::vector<HolderId> ToHolders(py::handle object) {
  CheckSequence(object, "peers", "HolderId");
  std::vector<HolderId> holders;
  for (std::size_t i = 0; i < SequenceSize(object); ++i) {
    const py::object item = SequenceItem(object, i);
    holders.push_back(ToObject<HolderId>(item, Element("peers", i).c_str(), "HolderId"));
  }
  return holders;
}

py::tuple FromStats(const index::IndexStats& s) {
  return py::make_tuple(s.stored_blocks, s.duplicate_blocks, s.removed_blocks, s.unknown_removes,
                        s.unknown_parents, s.stale_holder_calls, s.namespace_mismatches, s.rebound_keys,
                        s.evicted_runs, s.evicted_holder_blocks, s.holders, s.nodes, s.runs, s.holder_blocks,
                        s.foreign_keys);
}

index::PrefixIndexOptions ToOptions(py::handle max_bytes, py::handle max_holders) {
  return {.max_bytes = static_cast<std::size_t>(ToInt(max_bytes, "max_bytes", 0, kMaxBytes)),
          .max_holders = static_cast<std::size_t>(ToInt(max_holders, "max_holders", 0, kMaxBytes))};
}

template <typename Object>
MatchObject Match(Object& self, py::handle ns, py::handle chain) {
  const NamespaceId space = ToNamespace(ns);
  const KeyBuffer buffer(chain, "chain");
  MatchObject match;
  WithoutGil(buffer.span().size() >= kLongChain,
             [&] { self.readers.Match(space, buffer.span(), match.rows); });
  return match;
}

template <typename Object>
py::tuple Stats(Object& self) {
  return FromStats(Locked(self.mutex, false, [&] { return self.index->stats(); }));
}

template <typename Object>
py::tuple Memory(Object& self) {
  return FromMemoryUsage(Locked(self.mutex, false, [&] { return self.index->memory_usage(); }));
}

HolderId AddHolder(PrefixIndexObject& self, py::handle endpoint, py::handle dp_rank, py::handle tier,
                   py::handle removal, py::handle key_space) {
  HolderOptions options;
  options.endpoint = ToText(endpoint, "endpoint");
  constexpr std::int64_t kMax = std::numeric_limits<std::uint32_t>::max();
  if (!dp_rank.is_none()) options.dp_rank = static_cast<std::uint32_t>(ToInt(dp_rank, "dp_rank", 0, kMax));
  options.tier = ToText(tier, "tier");
  options.removal = ToRemovalPolicy(removal, "removal");
  options.key_space = static_cast<std::uint32_t>(ToInt(key_space, "key_space", 0, kMax));
  return Take(Locked(self.mutex, false, [&] { return self.index->AddHolder(options); }));
}

py::list Holders(PrefixIndexObject& self) {
  std::vector<std::pair<HolderId, HolderOptions>> holders;
  Locked(self.mutex, false, [&] {
    self.index->ForEachHolder(
        [&](HolderId id, const HolderOptions& options) { holders.emplace_back(id, options); });
  });
  py::list list;
  for (const auto& [id, options] : holders) list.append(py::make_tuple(id, FromHolderOptions(options)));
  return list;
}

py::tuple Store(PrefixIndexObject& self, py::handle holder, py::handle ns, py::handle engine_keys,
                py::handle content_keys, py::handle parent, py::handle peers) {
  const HolderId id = ToHolder(holder);
  const NamespaceId space = ToNamespace(ns);
  const KeyBuffer engine(engine_keys, "engine_keys");
  const KeyBuffer content(content_keys, "content_keys");
  if (engine.span().size() != content.span().size()) {
    throw py::value_error("engine_keys has " + std::to_string(engine.span().size()) +
                          " elements, content_keys has " + std::to_string(content.span().size()));
  }
  const auto before = ToOptionalKey(parent, "parent");
  const std::vector<HolderId> others = ToHolders(peers);
  std::vector<index::StoredBlock> blocks(engine.span().size());
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = {engine.span()[i], content.span()[i]};
  const index::StoreResult result = Locked(self.mutex, blocks.size() >= kLong, [&] {
    return self.index->Store(id, space, before, blocks, others);
  });
  return py::make_tuple(FromWireText(OutcomeName(result.outcome)), result.added, result.duplicates);
}

py::bytes Snapshot(PrefixIndexObject& self) {
  std::string bytes;
  Check(Locked(self.mutex, true, [&] {
    return self.index->Snapshot([&](std::span<const std::byte> piece) {
      bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
      return absl::OkStatus();
    });
  }));
  return py::bytes(bytes);
}

std::unique_ptr<PrefixIndexObject> Restore(py::handle snapshot, py::handle max_bytes,
                                           py::handle max_holders) {
  const BytesBuffer bytes(snapshot, "snapshot");
  const index::PrefixIndexOptions options = ToOptions(max_bytes, max_holders);
  return std::make_unique<PrefixIndexObject>(
      Take(WithoutGil(true, [&] { return PrefixIndex::Restore(bytes.span(), options); })));
}

// The deepest match of each endpoint, over its ranks and tiers (of one tier when `tier` is a str).
py::dict ByEndpoint(PrefixIndexObject& self, py::handle result, py::handle tier) {
  const auto& match = ToObject<MatchObject>(result, "match", "Match");
  const std::optional<std::string> only =
      tier.is_none() ? std::nullopt : std::optional<std::string>(ToText(tier, "tier"));
  std::vector<std::pair<std::string, std::uint32_t>> depths;
  Locked(self.mutex, false, [&] {
    std::vector<std::uint32_t> by_slot;
    for (const index::HolderDepth& row : match.rows) {
      if (by_slot.size() <= row.slot) by_slot.resize(row.slot + 1);
      by_slot[row.slot] = row.depth;
    }
    self.index->ForEachHolder([&](HolderId id, const HolderOptions& options) {
      if (id.slot < by_slot.size() && by_slot[id.slot] != 0 && (!only || *only == options.tier)) {
        depths.emplace_back(options.endpoint, by_slot[id.slot]);
      }
    });
  });
  py::dict by_endpoint;
  for (const auto& [endpoint, depth] : depths) {
    const py::str key = FromWireText(endpoint);
    const std::uint32_t known = by_endpoint.contains(key) ? by_endpoint[key].cast<std::uint32_t>() : 0;
    by_endpoint[key] = std::max(known, depth);
  }
  return by_endpoint;
}

void BindTypes(py::module_& m) {
  py::class_<NamespaceId> namespace_id(
      m, "NamespaceId", "128-bit name of a namespace: chains of different namespaces never meet. Hashable.");
  namespace_id.attr("__module__") = "llmd.index";
  namespace_id
      .def(py::init([](py::handle hi, py::handle lo) {
        return NamespaceId{ToKey(hi, "hi"), ToKey(lo, "lo")};
      }))
      .def_readonly("hi", &NamespaceId::hi)
      .def_readonly("lo", &NamespaceId::lo)
      .def(
          "__eq__", [](const NamespaceId& a, const NamespaceId& b) { return a == b; }, py::is_operator())
      .def("__hash__", [](const NamespaceId& self) { return py::hash(py::make_tuple(self.hi, self.lo)); })
      .def("__repr__", [](const NamespaceId& self) {
        return py::str("NamespaceId(hi=0x{:016x}, lo=0x{:016x})").format(self.hi, self.lo);
      });
  m.def("make_namespace",
        [](py::handle model, py::handle lora, py::handle cache_salt, py::handle block_size) {
          return index::MakeNamespace(
              {.model = ToText(model, "model"),
               .lora = ToText(lora, "lora"),
               .cache_salt = ToText(cache_salt, "cache_salt"),
               .block_size = static_cast<std::uint32_t>(ToInt(block_size, "block_size", 1, kMaxBlockSize))});
        });

  py::class_<HolderId> holder_id(m, "HolderId",
                                 "Handle of a holder. A slot is reused under another generation. Hashable.");
  holder_id.attr("__module__") = "llmd.index";
  holder_id
      .def(py::init([](py::handle slot, py::handle generation) {
        return HolderId{static_cast<std::uint16_t>(ToInt(slot, "slot", 0, 65535)),
                        static_cast<std::uint32_t>(ToInt(generation, "generation", 0, 0xFFFFFFFF))};
      }))
      .def_readonly("slot", &HolderId::slot)
      .def_readonly("generation", &HolderId::generation)
      .def(
          "__eq__", [](const HolderId& a, const HolderId& b) { return a == b; }, py::is_operator())
      .def("__hash__",
           [](const HolderId& self) { return py::hash(py::make_tuple(self.slot, self.generation)); })
      .def("__repr__", [](const HolderId& self) {
        return py::str("HolderId(slot={}, generation={})").format(self.slot, self.generation);
      });

  py::class_<MatchObject> match(m, "Match",
                                "Result of a match: rows (slot, depth). The holder in `slot` has the first "
                                "`depth` blocks of the chain, at least one.");
  match.attr("__module__") = "llmd.index";
  match.def("__len__", [](const MatchObject& self) { return self.rows.size(); })
      .def("__getitem__",
           [](const MatchObject& self, py::ssize_t i) {
             if (i < 0) i += static_cast<py::ssize_t>(self.rows.size());
             if (i < 0 || i >= static_cast<py::ssize_t>(self.rows.size()))
               throw py::index_error("row of a match");
             return py::make_tuple(self.rows[i].slot, self.rows[i].depth);
           })
      .def_property_readonly(
          "slots",
          [](const MatchObject& self) {
            std::vector<std::uint32_t> slots;
            for (const index::HolderDepth& row : self.rows) slots.push_back(row.slot);
            return ToArray(slots);
          },
          "Slots of the rows: ndarray of uint32, shape (len,).")
      .def_property_readonly(
          "depths",
          [](const MatchObject& self) {
            std::vector<std::uint32_t> depths;
            for (const index::HolderDepth& row : self.rows) depths.push_back(row.depth);
            return ToArray(depths);
          },
          "Depths of the rows in blocks: ndarray of uint32, shape (len,).")
      .def(
          "depth",
          [](const MatchObject& self, py::handle object) -> std::uint32_t {
            const HolderId holder = ToHolder(object);
            for (const index::HolderDepth& row : self.rows) {
              if (row.slot == holder.slot) return row.depth;
            }
            return 0;
          },
          "Depth of one holder in blocks; 0 when it has no row.")
      .def(
          "__eq__", [](const MatchObject& a, const MatchObject& b) { return a.rows == b.rows; },
          py::is_operator())
      .def("__repr__", [](const MatchObject& self) {
        std::string text = "Match({";
        for (const index::HolderDepth& row : self.rows) {
          if (text.size() > 120) {
            text += ", ...";
            break;
          }
          text +=
              (text.size() == 7 ? "" : ", ") + std::to_string(row.slot) + ": " + std::to_string(row.depth);
        }
        return text + "})";
      });
}

void BindApprox(py::module_& m) {
  using index::ApproxIndex;
  py::class_<ApproxIndexObject>(m, "ApproxIndex")
      .def(py::init(
          [](py::handle capacity_blocks, py::handle ttl, py::handle max_bytes, py::handle max_holders) {
            index::ApproxIndexOptions options;
            options.capacity_blocks =
                static_cast<std::size_t>(ToInt(capacity_blocks, "capacity_blocks", 0, kMaxBytes));
            if (!ttl.is_none()) options.ttl = absl::Seconds(ToDouble(ttl, "ttl"));
            options.max_bytes = static_cast<std::size_t>(ToInt(max_bytes, "max_bytes", 0, kMaxBytes));
            options.max_holders = static_cast<std::size_t>(ToInt(max_holders, "max_holders", 0, kMaxBytes));
            return std::make_unique<ApproxIndexObject>(Take(ApproxIndex::Create(options)));
          }))
      .def("add_holder",
           [](ApproxIndexObject& self, py::handle endpoint, py::handle capacity_blocks) {
             const std::string_view name = ToText(endpoint, "endpoint");
             const auto capacity =
                 static_cast<std::size_t>(ToInt(capacity_blocks, "capacity_blocks", 0, kMaxBytes));
             return Take(Locked(self.mutex, false, [&] { return self.index->AddHolder(name, capacity); }));
           })
      .def("resize",
           [](ApproxIndexObject& self, py::handle holder, py::handle capacity_blocks) {
             const HolderId id = ToHolder(holder);
             const auto capacity =
                 static_cast<std::size_t>(ToInt(capacity_blocks, "capacity_blocks", 0, kMaxBytes));
             return Locked(self.mutex, true, [&] { return self.index->Resize(id, capacity); });
           })
      .def("predict",
           [](ApproxIndexObject& self, py::handle holder, py::handle ns, py::handle chain, py::handle now) {
             const HolderId id = ToHolder(holder);
             const NamespaceId space = ToNamespace(ns);
             const KeyBuffer buffer(chain, "chain");
             const absl::Time time = ToTime(now, "now");
             return Locked(self.mutex, buffer.span().size() >= kLong,
                           [&] { return self.index->Predict(id, space, buffer.span(), time); });
           })
      .def("expire",
           [](ApproxIndexObject& self, py::handle now) {
             const absl::Time time = ToTime(now, "now");
             Locked(self.mutex, true, [&] { self.index->Expire(time); });
           })
      .def("clear",
           [](ApproxIndexObject& self, py::handle holder) {
             const HolderId id = ToHolder(holder);
             return Locked(self.mutex, true, [&] { return self.index->Clear(id); });
           })
      .def("retire",
           [](ApproxIndexObject& self, py::handle holder) {
             const HolderId id = ToHolder(holder);
             return Locked(self.mutex, true, [&] { return self.index->Retire(id); });
           })
      .def("size",
           [](ApproxIndexObject& self, py::handle holder) {
             const HolderId id = ToHolder(holder);
             return Locked(self.mutex, false, [&] { return self.index->size(id); });
           })
      .def("match", &Match<ApproxIndexObject>)
      .def("stats", &Stats<ApproxIndexObject>)
      .def("memory_usage", &Memory<ApproxIndexObject>);
}

}  // namespace

index::RemovalPolicy ToRemovalPolicy(py::handle object, const char* name) {
  const std::string_view policy = ToText(object, name);
  if (policy == "set") return index::RemovalPolicy::kSet;
  if (policy == "refcount") return index::RemovalPolicy::kRefcount;
  throw py::value_error(std::string(name) + " is \"" + std::string(policy) +
                        "\", not \"set\" or \"refcount\"");
}

py::tuple FromHolderOptions(const HolderOptions& options) {
  return py::make_tuple(FromWireText(options.endpoint), OrNone(options.dp_rank), FromWireText(options.tier),
                        options.removal == index::RemovalPolicy::kSet ? "set" : "refcount",
                        options.key_space);
}

void BindIndex(py::module_& m) {
  BindTypes(m);
  py::class_<PrefixIndexObject, std::shared_ptr<PrefixIndexObject>>(m, "PrefixIndex")
      .def(py::init([](py::handle max_bytes, py::handle max_holders) {
        return std::make_shared<PrefixIndexObject>(
            Take(PrefixIndex::Create(ToOptions(max_bytes, max_holders))));
      }))
      .def_static("restore",
                  [](py::handle snapshot, py::handle max_bytes, py::handle max_holders) {
                    return std::shared_ptr<PrefixIndexObject>(Restore(snapshot, max_bytes, max_holders));
                  })
      .def("add_holder", &AddHolder)
      .def("find_holder",
           [](PrefixIndexObject& self, py::handle endpoint, py::handle dp_rank, py::handle tier) {
             const std::string_view name = ToText(endpoint, "endpoint");
             const std::string_view place = ToText(tier, "tier");
             std::optional<std::uint32_t> rank;
             if (!dp_rank.is_none())
               rank = static_cast<std::uint32_t>(ToInt(dp_rank, "dp_rank", 0, 0xFFFFFFFF));
             return OrNone(
                 Locked(self.mutex, false, [&] { return self.index->FindHolder(name, rank, place); }));
           })
      .def("get_holder",
           [](PrefixIndexObject& self, py::handle holder) -> py::object {
             const HolderId id = ToHolder(holder);
             const auto options = Locked(self.mutex, false, [&]() -> std::optional<HolderOptions> {
               const HolderOptions* found = self.index->GetHolder(id);
               return found == nullptr ? std::nullopt : std::optional(*found);
             });
             if (!options) return py::none();
             return FromHolderOptions(*options);
           })
      .def("holders", &Holders)
      .def("store", &Store)
      .def("store_known",
           [](PrefixIndexObject& self, py::handle holder, py::handle keys, py::handle peers) {
             const HolderId id = ToHolder(holder);
             const KeyBuffer buffer(keys, "engine_keys");
             const std::vector<HolderId> others = ToHolders(peers);
             return Locked(self.mutex, buffer.span().size() >= kLong,
                           [&] { return self.index->StoreKnown(id, buffer.span(), others); });
           })
      .def("remove",
           [](PrefixIndexObject& self, py::handle holder, py::handle keys) {
             const HolderId id = ToHolder(holder);
             const KeyBuffer buffer(keys, "engine_keys");
             return Locked(self.mutex, buffer.span().size() >= kLong,
                           [&] { return self.index->Remove(id, buffer.span()); });
           })
      .def("clear",
           [](PrefixIndexObject& self, py::handle holder) {
             const HolderId id = ToHolder(holder);
             return Locked(self.mutex, true, [&] { return self.index->Clear(id); });
           })
      .def("retire",
           [](PrefixIndexObject& self, py::handle holder) {
             const HolderId id = ToHolder(holder);
             return Locked(self.mutex, true, [&] { return self.index->Retire(id); });
           })
      .def("compact",
           [](PrefixIndexObject& self) { Locked(self.mutex, true, [&] { self.index->Compact(); }); })
      .def("match", &Match<PrefixIndexObject>)
      .def("by_endpoint", &ByEndpoint)
      .def("stats", &Stats<PrefixIndexObject>)
      .def("memory_usage", &Memory<PrefixIndexObject>)
      .def("snapshot", &Snapshot);
  BindApprox(m);
}

}  // namespace llmd::python
