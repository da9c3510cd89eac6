// The parameters of precise-prefix-cache-producer and -scorer. (spec: scheduling.md 2.2, 3.5, 5)
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/sched/prefix_producer.h"

namespace llmd::sched {
namespace {

void AtLeast(ParameterReader& read, std::string_view field, std::int64_t value, std::int64_t least) {
  if (value < least) read.Reject(field, absl::StrCat(value), absl::StrCat("at least ", least));
}

absl::Status ReadTokenProcessor(ParameterReader read, PreciseOptions& options) {
  std::int64_t old_block_size = 0;
  read.Optional("blockSizeTokens", &options.block_size);
  read.Optional("blockSize", &old_block_size);
  read.Optional("hashSeed", &options.hash_seed);
  read.Optional("hashAlgorithm", &options.hash_algorithm);
  if (old_block_size != 0) {
    AtLeast(read, "blockSize", old_block_size, 1);
    if (options.block_size == 16) options.block_size = old_block_size;
  }
  AtLeast(read, "blockSizeTokens", options.block_size, 1);
  if (options.hash_algorithm != "cbor-fnv" && options.hash_algorithm != "xxh64") {
    read.Reject("hashAlgorithm", absl::StrCat("\"", options.hash_algorithm, "\""), "cbor-fnv or xxh64");
  }
  return read.Finish();
}

absl::Status ReadPodDiscovery(ParameterReader read, PreciseOptions::KvEvents& events) {
  read.Optional("podLabelSelector", &events.pod_label_selector);
  read.Optional("podNamespace", &events.pod_namespace);
  read.Optional("socketPort", &events.socket_port);
  read.Optional("replaySocketPort", &events.replay_socket_port);
  if (events.socket_port < 1 || events.socket_port > 65535) {
    read.Reject("socketPort", absl::StrCat(events.socket_port), "1..65535");
  }
  if (events.replay_socket_port > 65535) {
    read.Reject("replaySocketPort", absl::StrCat(events.replay_socket_port), "at most 65535");
  }
  return read.Finish();
}

absl::Status ReadKvEvents(ParameterReader read, PreciseOptions::KvEvents& events) {
  read.Optional("zmqEndpoint", &events.zmq_endpoint);
  read.Optional("topicFilter", &events.topic_filter);
  read.Optional("concurrency", &events.concurrency);
  read.Optional("discoverPods", &events.discover_pods);
  read.Optional("engineType", &events.engine_type);
  AtLeast(read, "concurrency", events.concurrency, 1);
  if (events.engine_type != "vllm" && events.engine_type != "sglang") {
    read.Reject("engineType", absl::StrCat("\"", events.engine_type, "\""), "vllm or sglang");
  }
  if (absl::Status status = ReadPodDiscovery(read.Nested("podDiscoveryConfig"), events); !status.ok()) {
    return status;
  }
  return read.Finish();
}

// Nanoseconds, as Go writes durations in JSON, or "1m".
void ReadInterval(ParameterReader& read, std::string_view field, absl::Duration* out) {
  const Value* value = read.Raw(field);
  if (value == nullptr) return;
  if (const std::int64_t* nanoseconds = value->AsInt()) {
    *out = absl::Nanoseconds(*nanoseconds);
  } else if (const std::string* text = value->AsString();
             text == nullptr || !absl::ParseDuration(*text, out)) {
    read.Reject(field, text == nullptr ? value->kind() : std::string_view(*text),
                "nanoseconds or a duration such as \"1m\"");
  }
}

absl::Status ReadBlocks(ParameterReader read, PreciseOptions::Blocks& blocks) {
  read.Optional("enableMetrics", &blocks.enable_metrics);
  ReadInterval(read, "metricsLoggingInterval", &blocks.metrics_logging_interval);
  ParameterReader memory = read.Nested("inMemoryConfig");
  memory.Optional("size", &blocks.max_keys);
  memory.Optional("podCacheSize", &blocks.pods_per_key);
  AtLeast(memory, "size", blocks.max_keys, 1);
  AtLeast(memory, "podCacheSize", blocks.pods_per_key, 1);
  const bool cost_aware = read.Raw("costAwareMemoryConfig") != nullptr;
  ParameterReader cost = read.Nested("costAwareMemoryConfig");
  cost.Optional("size", &blocks.max_size);
  const bool redis = read.Raw("redisConfig") != nullptr;
  ParameterReader redis_config = read.Nested("redisConfig");
  std::string ignored;
  bool rdma = false;
  redis_config.Optional("address", &blocks.redis_address);
  redis_config.Optional("backendType", &ignored);
  redis_config.Optional("enableRDMA", &rdma);
  blocks.store = cost_aware ? PreciseOptions::Store::kCostAware
                 : redis    ? PreciseOptions::Store::kRedis
                            : PreciseOptions::Store::kMemory;
  for (ParameterReader* reader : {&memory, &cost, &redis_config, &read}) {
    if (absl::Status status = reader->Finish(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadIndexer(ParameterReader read, PreciseOptions& options) {
  if (const Value::List* list = read.OptionalList("kvCacheBackendConfigs")) {
    options.tiers.clear();
    for (std::size_t i = 0; i < list->size(); ++i) {
      ParameterReader backend = read.NestedItem("kvCacheBackendConfigs", i, (*list)[i]);
      PreciseOptions::Tier tier;
      backend.Optional("name", &tier.name);
      backend.Optional("weight", &tier.weight);
      if (tier.name.empty()) backend.Reject("name", "missing", "a tier");
      if (tier.weight < 0) backend.Reject("weight", absl::StrCat(tier.weight), "at least 0");
      if (absl::Status status = backend.Finish(); !status.ok()) return status;
      options.tiers.push_back(std::move(tier));
    }
  }
  if (absl::Status status = ReadBlocks(read.Nested("kvBlockIndexConfig"), options.blocks); !status.ok()) {
    return status;
  }
  // Of the host's tokenizer.
  read.Raw("tokenizersPoolConfig");
  read.Raw("prefixStoreConfig");
  return read.Finish();
}

}  // namespace

absl::StatusOr<PreciseOptions> ReadPreciseOptions(ParameterReader read) {
  PreciseOptions options;
  read.Optional("speculativeIndexing", &options.speculative_indexing);
  read.Optional("speculativeTTL", &options.speculative_ttl);
  if (options.speculative_ttl <= absl::ZeroDuration()) {
    read.Reject("speculativeTTL", absl::FormatDuration(options.speculative_ttl), "more than 0");
  }
  absl::Status status = ReadTokenProcessor(read.Nested("tokenProcessorConfig"), options);
  if (status.ok()) status = ReadIndexer(read.Nested("indexerConfig"), options);
  if (status.ok()) status = ReadKvEvents(read.Nested("kvEventsConfig"), options.kv_events);
  if (status.ok()) status = read.Finish();
  if (!status.ok()) return status;
  return options;
}

absl::StatusOr<PreciseOptions> ParsePreciseOptions(std::string_view owner, const Value& parameters) {
  return ReadPreciseOptions(ParameterReader(owner, parameters));
}

}  // namespace llmd::sched
