// Block pool and KV cache manager of a worker.
#include <pybind11/pybind11.h>

#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llmd/hash/vllm.h"
#include "llmd/worker/block_pool.h"
#include "llmd/worker/event_writer.h"
#include "llmd/worker/kv_cache_manager.h"
#include "python/src/arguments.h"
#include "python/src/buffers.h"
#include "python/src/event_objects.h"
#include "python/src/extra_keys.h"
#include "python/src/lock.h"
#include "python/src/module.h"
#include "python/src/objects.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;
using worker::BlockId;
using worker::BlockPool;
using worker::KvCacheManager;
namespace {

template <ArgName kName>
using Flag = Arg<kName, bool>;

constexpr std::int64_t kMaxU32 = std::numeric_limits<std::uint32_t>::max();

std::uint32_t ToU32(py::handle object, const char* name) {
  return static_cast<std::uint32_t>(ToInt(object, name, 0, kMaxU32));
}

std::string_view StatusName(worker::RequestStatus status) {
  switch (status) {
    case worker::RequestStatus::kWaiting:
      return "waiting";
    case worker::RequestStatus::kWaitingForRemoteKv:
      return "waiting_for_remote_kv";
    case worker::RequestStatus::kRunning:
      return "running";
    case worker::RequestStatus::kPreempted:
      return "preempted";
    case worker::RequestStatus::kFinished:
      break;
  }
  return "finished";
}

worker::RequestStatus ToStatus(py::handle object) {
  using worker::RequestStatus;
  const std::string_view name = ToText(object, "status");
  for (const RequestStatus status :
       {RequestStatus::kWaiting, RequestStatus::kWaitingForRemoteKv, RequestStatus::kRunning,
        RequestStatus::kPreempted, RequestStatus::kFinished}) {
    if (name == StatusName(status)) return status;
  }
  throw py::value_error("status is \"" + std::string(name) + "\", not one of \"waiting\", " +
                        "\"waiting_for_remote_kv\", \"running\", \"preempted\", \"finished\"");
}

// A request with its tokens and the hashes of its full blocks. The mutex covers everything below it.
struct RequestObject {
  RequestObject(py::handle request_id, py::handle prompt, const hash::VllmHasher* hasher,
                py::handle request_extras, py::handle style, py::handle lora, bool skip_reading)
      : id(ToUnsigned(request_id, "id")) {
    const hash::RequestExtras about = ToRequestExtras(request_extras);
    if (hasher != nullptr) {
      extras = hash::ExtraKeyBuilder(about, ToStyle(style), hasher->block_size());
      chain.emplace(*hasher, extras);
      block_size = hasher->block_size();
    }
    lora_name = about.lora_name;
    if (!lora.is_none()) {
      constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
      state.lora_id = ToInt(lora, "lora_id", -kMax - 1, kMax);
    }
    state.skip_reading_prefix_cache = skip_reading;
    Append(prompt);
  }

  void Append(py::handle more) {
    const TokenBuffer buffer(more, "tokens");
    if (buffer.span().size() > static_cast<std::size_t>(kMaxU32) - tokens.size()) {
      throw py::value_error("tokens: a request has at most " + std::to_string(kMaxU32));
    }
    Locked(mutex, buffer.span().size() >= 1024, [&] {
      tokens.insert(tokens.end(), buffer.span().begin(), buffer.span().end());
      if (!chain) return;
      chain->Extend(buffer.span());
      if (extras.empty()) return;
      while (extra_keys.size() < chain->digests().size())
        extra_keys.push_back(extras.ForBlock(extra_keys.size()));
    });
  }

  // As the manager sees it; valid while the mutex is held.
  worker::Request View() const {
    worker::Request view = state;
    view.id = id;
    view.tokens = tokens;
    if (chain) view.block_hashes = chain->digests();
    view.lora_name = lora_name;
    view.extra_keys = extra_keys;
    return view;
  }

  const std::uint64_t id;
  std::uint32_t block_size = 0;  // 0: hashes nothing
  std::mutex mutex;
  std::vector<TokenId> tokens;
  std::optional<hash::VllmChain> chain;
  hash::ExtraKeyBuilder extras;
  std::vector<hash::ExtraKeys> extra_keys;
  std::string lora_name;
  worker::Request state;  // its counters and flags; no spans
};

struct EventFormat {
  worker::EventWriterOptions options;
  EventFormat(py::handle schema, bool full_digests, py::handle rank, py::handle medium) {
    options.schema = ToSchema(schema);
    options.full_digests = full_digests;
    options.data_parallel_rank = ToRank(rank, "data_parallel_rank");
    options.medium = ToText(medium, "medium");
  }
};

worker::BlockPoolOptions ToPoolOptions(py::handle num_blocks, py::handle block_size, bool enable_caching,
                                       bool enable_events, py::handle max_event_bytes) {
  return {
      .num_blocks = ToU32(num_blocks, "num_blocks"),
      .block_size = static_cast<std::uint32_t>(ToInt(block_size, "block_size", 1, kMaxBlockSize)),
      .enable_caching = enable_caching,
      .enable_events = enable_events,
      .max_event_bytes = static_cast<std::size_t>(ToInt(max_event_bytes, "max_event_bytes", 0, kMaxBytes))};
}

// What the pool alone and the pool of a manager have in common. `Object` has `mutex` and pool().
template <typename Object>
struct PoolMethods {
  static py::list TakeEvents(Object& self, Flag<"full_digests"> full_digests, py::handle medium) {
    worker::BlockEvents events;
    worker::EventWriterOptions options;
    options.full_digests = *full_digests;
    options.medium = ToText(medium, "medium");
    Locked(self.mutex, false, [&] { self.pool().TakeEvents(events); });
    worker::EventWriter writer(options);
    return FromEvents(writer.Convert(events));
  }
  static py::object TakeEventBatch(Object& self, py::handle timestamp, py::handle schema,
                                   Flag<"full_digests"> full_digests, py::handle rank, py::handle medium) {
    const EventFormat format(schema, *full_digests, rank, medium);
    const double time = ToDouble(timestamp, "timestamp");
    std::vector<std::byte> payload;
    const bool any = Locked(self.mutex, true, [&] {
      worker::BlockEvents events;
      self.pool().TakeEvents(events);
      if (events.empty()) return false;
      worker::EventWriter(format.options).Encode(events, time, payload);
      return true;
    });
    if (!any) return py::none();
    return py::bytes(reinterpret_cast<const char*>(payload.data()), payload.size());
  }
  static std::optional<BlockId> Find(Object& self, py::handle digest, py::handle group_id) {
    if (digest.is_none()) throw py::type_error("digest is None, wanted bytes");
    const hash::Digest key = *ToDigest(digest, "digest");
    const std::uint32_t group = ToU32(group_id, "group_id");
    const BlockId id = Locked(self.mutex, false, [&] { return self.pool().Find(key, group); });
    return id == worker::kNoBlock ? std::nullopt : std::optional(id);
  }
  static py::object Touch(Object& self, py::handle blocks) {
    const TokenBuffer buffer(blocks, "blocks");
    Check(Locked(self.mutex, false, [&] { return self.pool().Touch(buffer.span()); }));
    return py::none();
  }
  static py::object FreeBlocks(Object& self, py::handle blocks) {
    const TokenBuffer buffer(blocks, "blocks");
    Check(Locked(self.mutex, false, [&] { return self.pool().FreeBlocks(buffer.span()); }));
    return py::none();
  }
  static py::object EvictBlocks(Object& self, py::handle blocks) {
    const TokenBuffer buffer(blocks, "blocks");
    Check(Locked(self.mutex, false, [&] { return self.pool().EvictBlocks(buffer.span()); }));
    return py::none();
  }
  static py::tuple State(Object& self) {
    struct Values {
      std::uint32_t num_blocks, num_free, num_held;
      std::size_t cached_blocks, cached_keys;
      double usage;
      worker::BlockPoolStats stats;
    };
    const Values v = Locked(self.mutex, false, [&] {
      const BlockPool& pool = self.pool();
      return Values{pool.num_blocks(),      pool.num_free(), pool.num_held(), pool.num_cached_blocks(),
                    pool.num_cached_keys(), pool.usage(),    pool.stats()};
    });
    return py::make_tuple(v.num_blocks, v.num_free, v.num_held, v.cached_blocks, v.cached_keys, v.usage,
                          v.stats.blocks_allocated, v.stats.blocks_cached, v.stats.blocks_evicted,
                          v.stats.events_dropped);
  }
  static py::object BlockState(Object& self, py::handle id) {
    const std::uint32_t block_id = ToU32(id, "block");
    std::uint32_t count = 0;
    const auto block = Locked(self.mutex, false, [&]() -> std::optional<worker::Block> {
      count = self.pool().num_blocks();
      if (block_id >= count) return std::nullopt;
      return self.pool().block(block_id);
    });
    if (!block) {
      throw py::value_error("block is " + std::to_string(block_id) + ", the pool has " +
                            std::to_string(count) + " blocks");
    }
    return py::make_tuple(block->ref_cnt,
                          block->cached() ? py::object(FromDigest(block->hash)) : py::object(py::none()),
                          block->group_id, block->is_null);
  }
  static py::tuple Memory(Object& self) {
    return FromMemoryUsage(Locked(self.mutex, false, [&] { return self.pool().memory_usage(); }));
  }

  template <typename Class>
  static void Bind(Class& bound) {
    bound.def("take_events", &TakeEvents)
        .def("take_event_batch", &TakeEventBatch)
        .def("find",
             [](Object& self, py::handle digest, py::handle group_id) -> py::object {
               const auto id = Find(self, digest, group_id);
               return id ? py::object(py::int_(*id)) : py::object(py::none());
             })
        .def("touch", &Touch)
        .def("free_blocks", &FreeBlocks)
        .def("evict_blocks", &EvictBlocks)
        .def("block_state", &BlockState)
        .def("memory_usage", &Memory)
        .def_property_readonly("state", &State);
  }
};

struct PoolObject {
  explicit PoolObject(BlockPool made) : blocks(std::move(made)) {}
  BlockPool& pool() { return blocks; }
  std::mutex mutex;
  BlockPool blocks;
};

// A prefix hit that keeps its blocks.
struct HitObject {
  std::vector<BlockId> blocks;
  std::uint32_t num_tokens = 0;
};

class ManagerObject {
  // call(view) with both locks held.
  template <typename Call>
  auto With(RequestObject& request, Call call) {
    return Locked(mutex, true, [&] {
      std::lock_guard lock(request.mutex);
      return call(request.View());
    });
  }

 public:
  explicit ManagerObject(KvCacheManager made)
      : manager_(std::move(made)), block_size_(manager_.pool().block_size()) {}
  BlockPool& pool() { return manager_.pool(); }

  HitObject GetComputedBlocks(RequestObject& request) {
    CheckRequest(request);
    return With(request, [&](const worker::Request& view) {
      const worker::PrefixHit hit = manager_.GetComputedBlocks(view);
      return HitObject{{hit.blocks.begin(), hit.blocks.end()}, hit.num_tokens};
    });
  }

  // The new blocks, or None when they do not fit.
  py::object AllocateSlots(RequestObject& request, py::handle num_new_tokens, py::handle prefix_hit,
                           py::handle num_external, py::handle num_lookahead, py::handle reserved,
                           Flag<"delay_cache_blocks"> delay, Flag<"full_sequence_must_fit"> full_sequence,
                           Flag<"has_scheduled_requests"> has_scheduled) {
    CheckRequest(request);
    worker::SlotRequest slots;
    slots.num_new_tokens = ToU32(num_new_tokens, "num_new_tokens");
    if (!prefix_hit.is_none()) {
      const auto& hit = ToObject<HitObject>(prefix_hit, "hit", "PrefixHit");
      slots.hit = {hit.blocks, hit.num_tokens};
    }
    slots.num_external_computed_tokens = ToU32(num_external, "num_external_computed_tokens");
    slots.num_lookahead_tokens = ToU32(num_lookahead, "num_lookahead_tokens");
    slots.reserved_blocks = ToU32(reserved, "reserved_blocks");
    slots.delay_cache_blocks = *delay;
    slots.full_sequence_must_fit = *full_sequence;
    slots.has_scheduled_requests = *has_scheduled;
    using Blocks = std::optional<std::vector<BlockId>>;
    const Blocks blocks = Take(With(request, [&](const worker::Request& view) -> absl::StatusOr<Blocks> {
      const auto result = manager_.AllocateSlots(view, slots);
      if (!result.ok()) return result.status();
      if (!result->fits) return Blocks();
      return Blocks(std::in_place, result->new_blocks.begin(), result->new_blocks.end());
    }));
    if (!blocks) return py::none();
    return ToArray(*blocks);
  }

  void CacheBlocks(RequestObject& request, py::handle num_tokens) {
    CheckRequest(request);
    const std::uint32_t count = ToU32(num_tokens, "num_tokens");
    Check(With(request, [&](const worker::Request& view) { return manager_.CacheBlocks(view, count); }));
  }
  std::uint32_t CommitRemoteLoad(RequestObject& request, py::handle num_loaded_tokens) {
    CheckRequest(request);
    const std::uint32_t count = ToU32(num_loaded_tokens, "num_loaded_tokens");
    return Take(
        With(request, [&](const worker::Request& view) { return manager_.CommitRemoteLoad(view, count); }));
  }
  void Free(py::handle id) {
    const std::uint64_t request = IdOf(id);
    Check(Locked(mutex, false, [&] { return manager_.Free(request); }));
  }
  void Preempt(RequestObject& request) {
    Check(Locked(mutex, true, [&] {
      std::lock_guard lock(request.mutex);
      worker::Request view = request.View();
      const absl::Status status = manager_.Preempt(view);
      request.state.num_computed_tokens = view.num_computed_tokens;
      request.state.num_preemptions = view.num_preemptions;
      request.state.status = view.status;
      return status;
    }));
  }
  bool ResetPrefixCache() {
    return Locked(mutex, true, [&] { return manager_.ResetPrefixCache(); });
  }
  py::object BlockTable(py::handle id) {
    const std::uint64_t request = IdOf(id);
    return ToArray(Locked(mutex, false, [&] {
      const auto table = manager_.BlockTable(request);
      return std::vector<BlockId>(table.begin(), table.end());
    }));
  }
  std::size_t NumRequests() {
    return Locked(mutex, false, [&] { return manager_.num_requests(); });
  }
  py::tuple TakePrefixCacheStats() {
    const worker::PrefixCacheStats s = Locked(mutex, false, [&] { return manager_.TakePrefixCacheStats(); });
    return py::make_tuple(s.requests, s.queries, s.hits, s.preempted_requests, s.preempted_queries,
                          s.preempted_hits, s.reset);
  }
  std::uint32_t block_size() const { return block_size_; }

  std::mutex mutex;

 private:
  static std::uint64_t IdOf(py::handle id) {
    return py::isinstance<RequestObject>(id) ? id.cast<RequestObject&>().id : ToUnsigned(id, "request");
  }
  void CheckRequest(const RequestObject& request) const {
    if (request.block_size != 0 && request.block_size != block_size_) {
      throw py::value_error("request " + std::to_string(request.id) + " was hashed with block_size " +
                            std::to_string(request.block_size) + ", the pool's is " +
                            std::to_string(block_size_));
    }
  }
  KvCacheManager manager_;
  std::uint32_t block_size_;
};

void BindWorkerRequest(py::module_& m) {
  const auto counter = [](std::uint32_t worker::Request::*field) {
    return
        [field](RequestObject& self) { return Locked(self.mutex, false, [&] { return self.state.*field; }); };
  };
  py::class_<RequestObject>(m, "Request")
      .def(py::init([](py::handle id, py::handle tokens, const hash::VllmHasher* hasher, py::handle extras,
                       py::handle style, py::handle lora, Flag<"skip_reading_prefix_cache"> skip_reading) {
        return std::make_unique<RequestObject>(id, tokens, hasher, extras, style, lora, *skip_reading);
      }))
      .def("append", &RequestObject::Append)
      .def_readonly("id", &RequestObject::id)
      .def_property_readonly(
          "tokens",
          [](RequestObject& self) { return ToArray(Locked(self.mutex, false, [&] { return self.tokens; })); })
      .def_property_readonly(
          "num_tokens",
          [](RequestObject& self) { return Locked(self.mutex, false, [&] { return self.tokens.size(); }); })
      .def_property_readonly("block_hashes",
                             [](RequestObject& self) {
                               return FromDigests(Locked(self.mutex, false, [&] {
                                 if (!self.chain) return std::vector<hash::Digest>();
                                 const auto digests = self.chain->digests();
                                 return std::vector<hash::Digest>(digests.begin(), digests.end());
                               }));
                             })
      .def_property("num_computed_tokens", counter(&worker::Request::num_computed_tokens),
                    [](RequestObject& self, py::handle value) {
                      const std::uint32_t count = ToU32(value, "num_computed_tokens");
                      Locked(self.mutex, false, [&] { self.state.num_computed_tokens = count; });
                    })
      .def_property_readonly("num_preemptions", counter(&worker::Request::num_preemptions))
      .def_property(
          "status",
          [](RequestObject& self) {
            return FromWireText(StatusName(Locked(self.mutex, false, [&] { return self.state.status; })));
          },
          [](RequestObject& self, py::handle value) {
            const worker::RequestStatus status = ToStatus(value);
            Locked(self.mutex, false, [&] { self.state.status = status; });
          });
}

}  // namespace

void BindWorker(py::module_& m) {
  BindWorkerRequest(m);

  py::class_<PoolObject> pool(m, "BlockPool");
  pool.def(py::init([](py::handle num_blocks, py::handle block_size, Flag<"enable_caching"> enable_caching,
                       Flag<"enable_events"> enable_events, py::handle max_event_bytes) {
        return std::make_unique<PoolObject>(Take(BlockPool::Create(
            ToPoolOptions(num_blocks, block_size, *enable_caching, *enable_events, max_event_bytes))));
      }))
      .def("get_new_blocks",
           [](PoolObject& self, py::handle n) {
             const std::uint32_t count = ToU32(n, "n");
             std::vector<BlockId> blocks;
             Check(Locked(self.mutex, false, [&] { return self.blocks.GetNewBlocks(count, blocks); }));
             return ToArray(blocks);
           })
      .def("cache_full_blocks",
           [](PoolObject& self, RequestObject& request, py::handle table, py::handle num_cached,
              py::handle num_full, py::handle group_id) {
             const TokenBuffer blocks(table, "table");
             const std::uint32_t from = ToU32(num_cached, "num_cached");
             const std::uint32_t to = ToU32(num_full, "num_full");
             const std::uint32_t group = ToU32(group_id, "group_id");
             if (request.block_size != 0 && request.block_size != self.blocks.block_size()) {
               throw py::value_error("request " + std::to_string(request.id) +
                                     " was hashed with block_size " + std::to_string(request.block_size) +
                                     ", the pool's is " + std::to_string(self.blocks.block_size()));
             }
             Check(Locked(self.mutex, true, [&] {
               std::lock_guard lock(request.mutex);
               return self.blocks.CacheFullBlocks(request.View(), blocks.span(), from, to, group);
             }));
           })
      .def("reset",
           [](PoolObject& self) { return Locked(self.mutex, true, [&] { return self.blocks.Reset(); }); });
  PoolMethods<PoolObject>::Bind(pool);

  py::class_<HitObject> hit(m, "PrefixHit", "Leading blocks of a request that are cached already.");
  hit.attr("__module__") = "llmd.worker";
  hit.def_property_readonly(
         "blocks", [](const HitObject& self) { return ToArray(self.blocks); },
         "Ids: ndarray of uint32, shape (len,).")
      .def_readonly("num_tokens", &HitObject::num_tokens, "``len * block_size``.")
      .def("__len__", [](const HitObject& self) { return self.blocks.size(); })
      .def("__repr__", [](const HitObject& self) {
        return "PrefixHit(" + std::to_string(self.blocks.size()) +
               " blocks, num_tokens=" + std::to_string(self.num_tokens) + ")";
      });

  py::class_<ManagerObject> manager(m, "KvCacheManager");
  manager
      .def(py::init([](py::handle num_blocks, py::handle block_size, Flag<"enable_caching"> enable_caching,
                       Flag<"enable_events"> enable_events, py::handle max_event_bytes, py::handle group_id,
                       py::handle max_model_len, py::handle watermark) {
        worker::KvCacheManagerOptions options;
        options.pool =
            ToPoolOptions(num_blocks, block_size, *enable_caching, *enable_events, max_event_bytes);
        options.group_id = ToU32(group_id, "group_id");
        if (!max_model_len.is_none()) options.max_model_len = ToU32(max_model_len, "max_model_len");
        options.watermark = ToDouble(watermark, "watermark");
        return std::make_unique<ManagerObject>(Take(KvCacheManager::Create(options)));
      }))
      .def("get_computed_blocks", &ManagerObject::GetComputedBlocks)
      .def("allocate_slots", &ManagerObject::AllocateSlots)
      .def("cache_blocks", &ManagerObject::CacheBlocks)
      .def("commit_remote_load", &ManagerObject::CommitRemoteLoad)
      .def("free", &ManagerObject::Free)
      .def("preempt", &ManagerObject::Preempt)
      .def("reset_prefix_cache", &ManagerObject::ResetPrefixCache)
      .def("block_table", &ManagerObject::BlockTable)
      .def("take_prefix_cache_stats", &ManagerObject::TakePrefixCacheStats)
      .def_property_readonly("num_requests", &ManagerObject::NumRequests)
      .def_property_readonly("block_size", &ManagerObject::block_size);
  PoolMethods<ManagerObject>::Bind(manager);
}

}  // namespace llmd::python
