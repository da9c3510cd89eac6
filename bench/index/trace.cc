#include "bench/index/trace.h"

#include <algorithm>
#include <list>
#include <nlohmann/json.hpp>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace llmd::bench {
namespace {

using Id = std::uint64_t;

constexpr std::uint32_t kBatch = 8;
constexpr Id kMaxId = (Id{1} << 40) - 1;
constexpr Id kNone = ~Id{0};
constexpr std::size_t kMaxIdsPerRequest = kMaxQueryLength / kBlocksPerId;
constexpr std::uint64_t kTraceBlocks = std::uint64_t{1} << 50;  // numbers of a trace's blocks begin here

std::uint64_t BlockNumber(Id id, std::uint32_t position) {
  return kTraceBlocks + id * kBlocksPerId + position;
}

// The ids an endpoint has cached, most recently used first. Eviction takes a whole id: its blocks age
// together.
class Cache {
 public:
  std::size_t LeadingIds(std::span<const Id> request) const {
    std::size_t n = 0;
    while (n < request.size() && where_.count(request[n]) > 0) ++n;
    return n;
  }
  bool Has(Id id) const { return where_.count(id) > 0; }
  // Uses or inserts. Called from the last id of a request to the first, so that a parent is younger than its
  // child.
  void Touch(Id id) {
    if (auto found = where_.find(id); found != where_.end()) {
      order_.splice(order_.begin(), order_, found->second);
    } else {
      order_.push_front(id);
      where_[id] = order_.begin();
    }
  }
  std::size_t size() const { return order_.size(); }
  Id EvictOldest() {
    const Id id = order_.back();
    order_.pop_back();
    where_.erase(id);
    return id;
  }

 private:
  std::list<Id> order_;
  std::unordered_map<Id, std::list<Id>::iterator> where_;
};

class TraceRun {
 public:
  TraceRun() {
    workload_.name = "trace";
    workload_.holders = kTraceEndpoints;
    workload_.cells.push_back({"match", CellKind::kHit});
  }

  // InvalidArgument when an id follows another id than before: it would not determine its prefix.
  absl::Status Check(std::span<const Id> ids) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const Id before = i > 0 ? ids[i - 1] : kNone;
      const auto [known, is_new] = predecessor_.emplace(ids[i], before);
      if (!is_new && known->second != before) {
        return absl::InvalidArgumentError(
            absl::StrCat("hash_ids[", i, "]: ", ids[i], " has another predecessor than before"));
      }
    }
    return absl::OkStatus();
  }

  void Serve(std::span<const Id> ids) {
    ids = ids.first(std::min<std::size_t>(ids.size(), kTraceCapacityIds));
    const std::size_t target = Choose(ids);
    Cache& cache = caches_[target];
    ++requests_[target];
    // Eviction spares the request's own ids: they are the youngest before the cache is cut to its capacity.
    missing_.clear();
    for (std::size_t i = ids.size(); i-- > 0;) {
      if (!cache.Has(ids[i])) missing_.push_back(i);
      cache.Touch(ids[i]);
    }
    while (cache.size() > kTraceCapacityIds) EmitRemoval(target, cache.EvictOldest());
    std::reverse(missing_.begin(), missing_.end());
    for (const std::size_t i : missing_) EmitStores(target, ids, i);
  }

  void Ask(std::span<const Id> ids) {
    workload_.queries.push_back({workload_.chain_keys.size(),
                                 static_cast<std::uint32_t>(ids.size() * kBlocksPerId), 0,
                                 UnknownKey(unknown_++)});
    for (const Id id : ids) {
      for (std::uint32_t b = 0; b < kBlocksPerId; ++b)
        workload_.chain_keys.push_back(ContentKey(BlockNumber(id, b)));
    }
  }

  Workload Finish() {
    AddMisses(workload_, workload_.queries.size() / 4 + 1, kBlocksPerId, unknown_);
    return std::move(workload_);
  }

 private:
  std::size_t Choose(std::span<const Id> ids) const {
    std::size_t longest = 0, longest_ids = 0, idlest = 0;
    for (std::size_t i = 0; i < kTraceEndpoints; ++i) {
      const std::size_t leading = caches_[i].LeadingIds(ids);
      if (leading > longest_ids) {
        longest = i;
        longest_ids = leading;
      }
      if (requests_[i] < requests_[idlest]) idlest = i;
    }
    return 2 * longest_ids >= ids.size() ? longest : idlest;
  }

  void EmitStores(std::size_t holder, std::span<const Id> ids, std::size_t i) {
    for (std::uint32_t position = 0; position < kBlocksPerId; position += kBatch) {
      Op op;
      op.kind = OpKind::kStore;
      op.holder = static_cast<std::uint16_t>(holder);
      op.count = kBatch;
      op.has_parent = i > 0 || position > 0;
      if (position > 0) {
        op.parent = EngineKeyOf(BlockNumber(ids[i], position - 1));
      } else if (i > 0) {
        op.parent = EngineKeyOf(BlockNumber(ids[i - 1], kBlocksPerId - 1));
      }
      workload_.ops.push_back(op);
      for (std::uint32_t b = position; b < position + kBatch; ++b) {
        const std::uint64_t block = BlockNumber(ids[i], b);
        workload_.blocks.push_back({.engine = EngineKeyOf(block), .content = ContentKey(block)});
      }
    }
    workload_.live_holder_blocks += kBlocksPerId;
  }

  void EmitRemoval(std::size_t holder, Id id) {
    Op op;
    op.kind = OpKind::kRemove;
    op.holder = static_cast<std::uint16_t>(holder);
    op.count = kBlocksPerId;
    workload_.ops.push_back(op);
    for (std::uint32_t b = kBlocksPerId; b-- > 0;) {
      workload_.removed_keys.push_back(EngineKeyOf(BlockNumber(id, b)));
    }
    workload_.live_holder_blocks -= kBlocksPerId;
  }

  Cache caches_[kTraceEndpoints];
  std::uint64_t requests_[kTraceEndpoints] = {};
  std::unordered_map<Id, Id> predecessor_;
  std::vector<std::size_t> missing_;  // positions in the request
  std::uint64_t unknown_ = 0;
  Workload workload_;
};

absl::Status ReadIds(const std::string& line, std::vector<Id>& ids) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  const auto found = object.find("hash_ids");
  if (found == object.end() || !found->is_array())
    return absl::InvalidArgumentError("hash_ids: not an array");
  if (found->empty() || found->size() > kMaxIdsPerRequest) {
    return absl::InvalidArgumentError(
        absl::StrCat("hash_ids: ", found->size(), " entries, the limits are 1 and ", kMaxIdsPerRequest));
  }
  ids.clear();
  for (const nlohmann::json& id : *found) {
    if (!id.is_number_unsigned() || id.get<Id>() > kMaxId) {
      return absl::InvalidArgumentError(
          absl::StrCat("hash_ids[", ids.size(), "]: not an integer of 0 to ", kMaxId));
    }
    ids.push_back(id.get<Id>());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Workload> TraceWorkload(std::istream& trace, std::size_t max_requests) {
  TraceRun run;
  std::vector<std::vector<Id>> requests;
  std::vector<Id> ids;
  std::string line;
  for (std::size_t number = 1; requests.size() < max_requests && std::getline(trace, line); ++number) {
    if (line.empty()) continue;
    absl::Status status = ReadIds(line, ids);
    if (status.ok()) status = run.Check(ids);
    if (!status.ok())
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": ", status.message()));
    requests.push_back(ids);
  }
  if (requests.empty()) return absl::InvalidArgumentError("the trace has no requests");
  const std::size_t served = requests.size() - std::max<std::size_t>(requests.size() / 10, 1);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (i < served) {
      run.Serve(requests[i]);
    } else {
      run.Ask(requests[i]);
    }
  }
  return run.Finish();
}

}  // namespace llmd::bench
