#include "src/sched/record_format.h"

#include <algorithm>
#include <array>

#include "llmd/sched/decision_record.h"

#define XXH_INLINE_ALL
#include "xxhash.h"

namespace llmd::sched {
namespace {

void AddValue(const Value& value, WordDigest& digest) {
  if (const bool* b = value.AsBool()) {
    digest.Add(std::uint64_t{1});
    digest.Add(std::uint64_t{*b});
  } else if (const std::int64_t* i = value.AsInt()) {
    digest.Add(std::uint64_t{2});
    digest.Add(static_cast<std::uint64_t>(*i));
  } else if (const double* d = value.AsDouble()) {
    digest.Add(std::uint64_t{3});
    digest.Add(*d);
  } else if (const std::string* s = value.AsString()) {
    digest.Add(std::uint64_t{4});
    digest.Add(std::string_view(*s));
  } else if (const Value::List* list = value.AsList()) {
    digest.Add(std::uint64_t{5});
    digest.Add(std::uint64_t{list->size()});
    for (const Value& element : *list) AddValue(element, digest);
  } else if (const Value::Map* map = value.AsMap(); map != nullptr && !map->empty()) {
    digest.Add(std::uint64_t{6});
    digest.Add(std::uint64_t{map->size()});
    std::vector<const Value::Field*> fields;  // their order means nothing
    for (const Value::Field& field : *map) fields.push_back(&field);
    std::sort(fields.begin(), fields.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
    for (const Value::Field* field : fields) {
      digest.Add(std::string_view(field->first));
      AddValue(field->second, digest);
    }
  } else {
    digest.Add(std::uint64_t{0});  // no parameters
  }
}

}  // namespace

std::uint64_t PluginDigest(const PluginSpec& spec) {
  WordDigest digest;
  digest.Add(std::string_view(spec.type));
  AddValue(spec.parameters, digest);
  return digest.value();
}

std::uint64_t ConfigDigest(const SchedulerConfig& config) {
  WordDigest digest;
  for (const PluginSpec& spec : config.plugins) {
    digest.Add(std::string_view(spec.name));
    digest.Add(PluginDigest(spec));
  }
  for (const ProfileSpec& profile : config.profiles) {
    digest.Add(std::string_view(profile.name));
    for (const PluginRef& ref : profile.plugins) {
      digest.Add(std::string_view(ref.plugin));
      digest.Add(ref.weight.value_or(1));
    }
  }
  digest.Add(std::uint64_t{config.feature_gates.flow_control});
  digest.Add(std::string_view(config.flow_control.saturation_detector));
  for (const CompatibilityField& field : CompatibilityFields()) {
    digest.Add(std::uint64_t{config.compatibility.*field.member});
  }
  return digest.value();
}

bool IsRecordableHeader(std::string_view name) {
  static constexpr std::array<std::string_view, 6> kSecret = {
      "authorization", "proxy-authorization", "cookie", "set-cookie", "api-key", "x-api-key"};
  return std::find(kSecret.begin(), kSecret.end(), name) == kSecret.end();
}

namespace record {

std::uint64_t FrameChecksum(std::span<const std::byte> kind_and_payload, std::uint64_t previous) {
  return XXH3_64bits_withSeed(kind_and_payload.data(), kind_and_payload.size(), previous);
}

std::uint64_t PromptDigest(const Request& request) {
  WordDigest digest;
  for (const Prompt& prompt : request.prompts) {
    digest.Add(std::uint64_t{prompt.chains.size()});
    for (const KeyChain& chain : prompt.chains) {
      digest.Add(chain.ns.lo);
      digest.Add(chain.ns.hi);
      digest.Add(std::uint64_t{chain.block_size});
      digest.Add(std::uint64_t{chain.keys.size()});
      digest.Add(std::uint64_t{XXH3_64bits(chain.keys.data(), chain.keys.size_bytes())});
    }
  }
  return digest.value();
}

void AddRequest(const Request& request, bool (*keep_header)(std::string_view), WordDigest& digest) {
  digest.Add(request.id);
  digest.Add(request.model);
  digest.Add(request.fairness_id);
  digest.Add(static_cast<std::uint64_t>(std::int64_t{request.priority}));
  digest.Add(std::uint64_t{request.size_bytes});
  digest.Add(request.max_output_tokens ? std::uint64_t{*request.max_output_tokens} : ~std::uint64_t{0});
  for (const Header& header : request.headers) {
    if (!keep_header(header.name)) continue;
    digest.Add(header.name);
    digest.Add(header.value);
  }
  for (const Prompt& prompt : request.prompts) {
    digest.Add(std::uint64_t{prompt.token_count});
    for (const MultimodalItem& item : prompt.items) {
      digest.Add(item.modality);
      digest.Add(item.hash);
      digest.Add(std::uint64_t{item.offset});
      digest.Add(std::uint64_t{item.length});
    }
  }
}

void AddEndpoints(const EndpointPool& pool, WordDigest& digest) {
  digest.Add(std::uint64_t{pool.size()});
  for (const Endpoint& endpoint : pool.endpoints()) {
    const Metrics& metrics = endpoint.metrics;
    digest.Add(std::string_view(endpoint.id()));
    digest.Add(static_cast<std::uint64_t>(metrics.waiting_requests.value));
    digest.Add(metrics.waiting_requests.at);
    digest.Add(static_cast<std::uint64_t>(metrics.running_requests.value));
    digest.Add(metrics.running_requests.at);
    digest.Add(metrics.kv_cache_usage.value);
    digest.Add(metrics.kv_cache_usage.at);
    digest.Add(metrics.adapters.at);
    if (const AdapterState* adapters = metrics.adapters.value.get()) {
      digest.Add(static_cast<std::uint64_t>(adapters->max_active));
      for (const auto* names : {&adapters->active, &adapters->waiting}) {
        digest.Add(std::uint64_t{names->size()});
        for (const std::string& name : *names) digest.Add(std::string_view(name));
      }
    }
    digest.Add(std::uint64_t{metrics.cache_block_size});
    digest.Add(metrics.cache_num_blocks);
    for (const Attribute& attribute : endpoint.attributes) {
      digest.Add(std::string_view(attribute.name));
      digest.Add(attribute.sample.value);
      digest.Add(attribute.sample.at);
    }
  }
}

std::uint64_t ScoresDigest(const Explanation::Profile& profile) {
  WordDigest digest;
  for (const double weighted : profile.weighted) digest.Add(weighted);
  for (const ScoredEndpoint& total : profile.totals) digest.Add(total.score);
  return digest.value();
}

}  // namespace record
}  // namespace llmd::sched
