// From KV events to the index, and the keys of the request's side.
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "llmd/events/decoder.h"
#include "llmd/ingest/kv_event_ingestor.h"
#include "python/src/buffers.h"
#include "python/src/index_objects.h"
#include "python/src/lock.h"
#include "python/src/module.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;
namespace {

// An ingestor, which writes to its index under the index's lock.
class Ingestor {
 public:
  Ingestor(std::shared_ptr<PrefixIndexObject> index, py::handle max_orphan_blocks, py::handle max_publishers)
      : index_(std::move(index)),
        ingestor_(*index_->index, {.max_orphan_blocks = static_cast<std::size_t>(
                                       ToInt(max_orphan_blocks, "max_orphan_blocks", 0, kMaxBlockCount)),
                                   .max_publishers = static_cast<std::size_t>(
                                       ToInt(max_publishers, "max_publishers", 1, kMaxBlockCount))}) {}

  std::uint64_t AddPublisher(py::handle endpoint, py::handle model, py::handle gpu_removal) {
    const ingest::PublisherOptions options{.endpoint = std::string(ToText(endpoint, "endpoint")),
                                           .model = std::string(ToText(model, "model")),
                                           .gpu_removal = ToRemovalPolicy(gpu_removal, "gpu_removal")};
    return Take(Locked(index_->mutex, false, [&] { return ingestor_.AddPublisher(options); }));
  }

  // (a replay would help, events skipped by the decoder)
  py::tuple Apply(py::handle publisher, py::handle payload) {
    const std::uint64_t id = ToUnsigned(publisher, "publisher");
    const BytesBuffer bytes(payload, "payload");
    std::uint64_t skipped = 0;
    const bool wants_replay = Take(Locked(index_->mutex, true, [&]() -> absl::StatusOr<bool> {
      if (absl::Status status = decoder_.Decode(bytes.span(), batch_); !status.ok()) return status;
      skipped = batch_.skipped_events();
      return ingestor_.Apply(id, batch_);
    }));
    return py::make_tuple(wants_replay, skipped);
  }

  bool Clear(py::handle publisher) {
    const std::uint64_t id = ToUnsigned(publisher, "publisher");
    return Locked(index_->mutex, true, [&] { return ingestor_.Clear(id); });
  }
  bool RemovePublisher(py::handle publisher) {
    const std::uint64_t id = ToUnsigned(publisher, "publisher");
    return Locked(index_->mutex, true, [&] { return ingestor_.RemovePublisher(id); });
  }
  py::tuple Counters() {
    const ingest::IngestCounters c = Locked(index_->mutex, false, [&] { return ingestor_.counters(); });
    return py::make_tuple(c.batches, c.stored_events, c.removed_events, c.cleared_events, c.stored_blocks,
                          c.removed_blocks, c.tier_updates, c.tier_updates_unknown, c.skipped_groups,
                          c.skipped_sparse, c.skipped_malformed, c.orphans_parked, c.orphans_attached,
                          c.orphans_dropped, c.holders_refused);
  }

 private:
  std::shared_ptr<PrefixIndexObject> index_;
  ingest::KvEventIngestor ingestor_;
  events::EventDecoder decoder_;
  events::EventBatch batch_;
};

}  // namespace

void BindIngest(py::module_& m) {
  py::class_<Ingestor>(m, "KvEventIngestor")
      .def(py::init<std::shared_ptr<PrefixIndexObject>, py::handle, py::handle>())
      .def("add_publisher", &Ingestor::AddPublisher)
      .def("apply", &Ingestor::Apply)
      .def("clear", &Ingestor::Clear)
      .def("remove_publisher", &Ingestor::RemovePublisher)
      .def_property_readonly("counters", &Ingestor::Counters);

  m.def("content_keys", [](py::handle tokens, py::handle block_size, py::handle cache_salt,
                           py::handle items) {
    const TokenBuffer buffer(tokens, "tokens");
    CheckSequence(items, "items", "MultimodalItem");
    std::vector<py::object> held;  // the texts that `parts` points to
    std::vector<ingest::MultimodalItem> parts;
    for (std::size_t i = 0; i < SequenceSize(items); ++i) {
      const std::string name = Element("items", i);
      const py::object item = SequenceItem(items, i);
      if (!IsSequence(item) || SequenceSize(item) != 3) {
        throw py::type_error(name + " is not (identifier, offset, length)");
      }
      held.push_back(SequenceItem(item, 0));
      constexpr std::int64_t kMax = std::int64_t{1} << 31;
      parts.push_back(
          {ToText(held.back(), (name + ".identifier").c_str()),
           static_cast<std::uint32_t>(ToInt(SequenceItem(item, 1), (name + ".offset").c_str(), 0, kMax - 1)),
           static_cast<std::uint32_t>(
               ToInt(SequenceItem(item, 2), (name + ".length").c_str(), 0, kMax - 1))});
    }
    const ingest::PromptBlocks prompt{
        .tokens = buffer.span(),
        .block_size = static_cast<std::uint32_t>(ToInt(block_size, "block_size", 1, kMaxBlockSize)),
        .cache_salt = ToText(cache_salt, "cache_salt"),
        .items = parts};
    return ToArray(WithoutGil(buffer.span().size() >= 8192, [&] {
      std::vector<BlockKey> keys;
      ingest::ContentKeys(prompt, keys);
      return keys;
    }));
  });
  m.def("request_namespace", [](py::handle model, py::handle lora, py::handle block_size) {
    return ingest::RequestNamespace(
        ToText(model, "model"), ToText(lora, "lora"),
        static_cast<std::uint32_t>(ToInt(block_size, "block_size", 1, kMaxBlockSize)));
  });
}

}  // namespace llmd::python
