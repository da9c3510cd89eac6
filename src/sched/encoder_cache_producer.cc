// mm-embeddings-cache-producer: which endpoints have seen a request's images, sounds and videos. (spec:
// scheduling.md 2.8)
//
// For each endpoint the hashes of the contents sent there last, as chains of one block in an index of their
// own. Every item counts 1.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "llmd/sched/encoder_cache.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/decided_targets.h"
#include "src/sched/endpoint_index.h"

namespace llmd::sched {
namespace {

constexpr std::string_view kEncodeProfile = "encode";

// A content's fingerprint: half of it serves as namespace, half as key.
struct Item {
  std::uint64_t hi = 0;
  BlockKey lo = 0;

  index::NamespaceId ns() const { return {hi, 0}; }
  BlockKeySpan chain() const { return {&lo, 1}; }
  friend bool operator==(const Item&, const Item&) = default;
  friend bool operator<(const Item& a, const Item& b) { return std::tie(a.hi, a.lo) < std::tie(b.hi, b.lo); }
};

// The distinct contents of a request.
void FindItems(const Request& request, std::vector<Item>& items) {
  items.clear();
  for (const Prompt& prompt : request.prompts) {
    for (const MultimodalItem& item : prompt.items) {
      if (item.hash.empty()) continue;
      const XXH128_hash_t hash = XXH3_128bits(item.hash.data(), item.hash.size());
      items.push_back({hash.high64, hash.low64});
    }
  }
  std::sort(items.begin(), items.end());
  items.erase(std::unique(items.begin(), items.end()), items.end());
}

struct Matcher final : ThreadState {
  explicit Matcher(const std::shared_ptr<EndpointIndex>& index) : reader(index) {}

  EndpointIndex::Reader reader;
  std::vector<Item> items;
};

class EncoderCacheProducer final : public Plugin, public DataProducer, public PreRequest {
 public:
  EncoderCacheProducer(std::string type, std::string name, DataSlot<EncoderCacheMatch> slot,
                       std::size_t capacity, std::shared_ptr<EndpointIndex> index)
      : Plugin(std::move(type), std::move(name)),
        slot_(slot),
        capacity_(capacity),
        index_(std::move(index)) {}

  std::unique_ptr<ThreadState> NewThreadState() const override { return std::make_unique<Matcher>(index_); }

  void Produce(Context& context, ThreadState* state) const override {
    auto& matcher = static_cast<Matcher&>(*state);
    FindItems(context.request, matcher.items);
    if (matcher.items.empty()) return;
    const std::span<EncoderCacheMatch> matches = context.data.Publish(slot_);
    for (EncoderCacheMatch& match : matches) {
      match.requested = static_cast<std::int64_t>(matcher.items.size());
    }
    for (const Item& item : matcher.items) {
      matcher.reader.Match(item.ns(), item.chain(), context.now, [&](EndpointHandle endpoint, std::uint32_t) {
        if (const std::optional<Position> position = context.pool.Find(endpoint))
          ++matches[*position].matched;
      });
    }
  }

  // The contents go to the primary target, and to those that encode for it.
  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string> profiles,
                          Dispatch&) override {
    std::vector<Item> items;
    FindItems(context.request, items);
    if (items.empty()) return absl::OkStatus();
    EndpointIndex::Writer writer(*index_, context.pool, context.now, capacity_);
    const auto record = [&](Position target) {
      for (const Item& item : items) writer.Record(context.pool[target].handle, item.ns(), item.chain());
    };
    const std::optional<Position> primary = TargetOf(decision, decision.primary);
    if (primary) record(*primary);
    for (std::size_t i = 0; i < decision.profiles.size() && i < profiles.size(); ++i) {
      if (profiles[i] != kEncodeProfile || !TargetOf(decision, i)) continue;
      for (const Position target : decision.profiles[i].targets) {
        if (target != primary) record(target);
      }
    }
    return absl::OkStatus();
  }

 private:
  DataSlot<EncoderCacheMatch> slot_;
  std::size_t capacity_;
  std::shared_ptr<EndpointIndex> index_;
};

absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  constexpr std::int64_t kDefaultMegabytes = 4096;
  constexpr std::int64_t kMegabytesPerItem = 2;
  ParameterReader read = builder.Read();
  std::int64_t megabytes = kDefaultMegabytes;
  read.Optional("cacheSizeInMBPerServer", &megabytes);
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  if (megabytes <= 0) megabytes = kDefaultMegabytes;
  const auto capacity = static_cast<std::size_t>(std::max<std::int64_t>(1, megabytes / kMegabytesPerItem));
  return std::make_unique<EncoderCacheProducer>(builder.type(), builder.name(),
                                                builder.Produces<EncoderCacheMatch>(), capacity,
                                                builder.State<EndpointIndex>(builder.name()));
}

}  // namespace

void RegisterEncoderCacheProducer(PluginRegistry& registry) {
  MustRegister(registry, kEncoderCacheProducerType, Make);
  registry.SetDefaultProducer(EncoderCacheMatch::kDataType, kEncoderCacheProducerType);
}

}  // namespace llmd::sched
