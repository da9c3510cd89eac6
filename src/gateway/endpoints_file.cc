#include "llmd/gateway/endpoints_file.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <system_error>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/gateway/plain_yaml.h"

namespace llmd::gateway {
namespace {

using Kind = YamlNode::Kind;

constexpr std::size_t kMaxMessages = 100;

absl::Status Error(std::uint32_t line, std::string_view path, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", ToAbsl(path), " ", ToAbsl(what)));
}

std::string Quoted(std::string_view text) {
  constexpr std::size_t kMost = 64;
  return absl::StrCat("\"", absl::CHexEscape(ToAbsl(text.substr(0, kMost))),
                      text.size() > kMost ? "...\"" : "\"");
}

// A name becomes a part of an id and of logs.
bool ValidName(std::string_view name) {
  return !name.empty() && name.size() <= 253 && std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) > 0x20 && c != 0x7f && c != '/';
  });
}

bool IsAddress(const std::string& text) {
  unsigned char binary[sizeof(in6_addr)];
  if (text.find('\0') != std::string::npos) return false;
  return inet_pton(AF_INET, text.c_str(), binary) == 1 || inet_pton(AF_INET6, text.c_str(), binary) == 1;
}

absl::Status ReadLabels(std::string_view path, const YamlNode& node, sched::Labels& labels) {
  if (node.kind == Kind::kNull) return absl::OkStatus();
  if (node.kind != Kind::kMap) {
    return Error(node.line, path, absl::StrCat("is ", ToAbsl(node.kind_name()), ", expected a map of texts"));
  }
  for (const auto& [key, value] : node.fields) {
    const std::string label = absl::StrCat(ToAbsl(path), ".", key);
    if (value.kind != Kind::kScalar) {
      return Error(value.line, label, absl::StrCat("is ", ToAbsl(value.kind_name()), ", expected a text"));
    }
    if (!labels.emplace(key, value.text).second)
      return Error(value.line, label, "is given twice, expected once");
  }
  return absl::OkStatus();
}

absl::Status ReadField(const std::string& path, const std::string& field, const YamlNode& value,
                       sched::EndpointMetadata& endpoint) {
  if (field == "labels") return ReadLabels(path, value, endpoint.labels);
  if (field != "name" && field != "namespace" && field != "address" && field != "port") {
    return Error(value.line, path, "is no field, expected name, namespace, address, port or labels");
  }
  if (value.kind != Kind::kScalar) {
    return Error(value.line, path, absl::StrCat("is ", ToAbsl(value.kind_name()), ", expected a text"));
  }
  const std::string& text = value.text;
  if (field == "port") {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), endpoint.port);
    if (error != std::errc() || end != text.data() + text.size() || endpoint.port == 0) {
      return Error(value.line, path, absl::StrCat("is ", Quoted(text), ", expected 1 to 65535"));
    }
  } else if (field == "address") {
    if (!IsAddress(text))
      return Error(value.line, path, absl::StrCat("is ", Quoted(text), ", expected an IP"));
    endpoint.address = text;
  } else {
    if (!ValidName(text)) {
      return Error(
          value.line, path,
          absl::StrCat("is ", Quoted(text), ", expected 1 to 253 characters without blanks and '/'"));
    }
    (field == "name" ? endpoint.name : endpoint.pod_namespace) = text;
  }
  return absl::OkStatus();
}

absl::StatusOr<sched::EndpointMetadata> ReadEndpoint(const std::string& path, const YamlNode& node) {
  if (node.kind != Kind::kMap) {
    return Error(node.line, path, absl::StrCat("is ", ToAbsl(node.kind_name()), ", expected a map"));
  }
  sched::EndpointMetadata endpoint;
  absl::flat_hash_set<absl::string_view> seen;
  for (const auto& [field, value] : node.fields) {
    const std::string at = absl::StrCat(path, ".", absl::CHexEscape(field));
    if (!seen.insert(field).second) return Error(value.line, at, "is given twice, expected once");
    if (absl::Status status = ReadField(at, field, value, endpoint); !status.ok()) return status;
  }
  for (const char* required : {"name", "address", "port"}) {
    if (!seen.contains(required)) return Error(node.line, path, absl::StrCat("has no ", required));
  }
  return endpoint;
}

std::string IdOf(const sched::EndpointMetadata& endpoint) {
  return absl::StrCat(endpoint.pod_namespace, "/", endpoint.name);
}

}  // namespace

absl::StatusOr<EndpointsFile> ParseEndpointsFile(std::string_view text, const EndpointsFileOptions& options) {
  if (text.size() > options.max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file has ", text.size(), " bytes, expected at most ", options.max_bytes));
  }
  constexpr std::size_t kDepth = 4;  // document, list, endpoint, labels
  absl::StatusOr<YamlNode> document = ParsePlainYaml(text, kDepth);
  if (!document.ok()) return document.status();
  if (document->kind != Kind::kMap) {
    return Error(
        std::max(document->line, 1u), "the document",
        absl::StrCat("is ", ToAbsl(document->kind_name()), ", expected a map with the list endpoints"));
  }
  const YamlNode* list = nullptr;
  for (const auto& [field, value] : document->fields) {
    if (field != "endpoints") {
      return Error(value.line, absl::CHexEscape(field), "is no field, expected endpoints");
    }
    if (list != nullptr) return Error(value.line, field, "is given twice, expected once");
    if (value.kind != Kind::kList) {
      return Error(value.line, field, absl::StrCat("is ", ToAbsl(value.kind_name()), ", expected a list"));
    }
    list = &value;
  }
  if (list == nullptr) return Error(document->line, "the document", "has no endpoints");

  EndpointsFile file;
  absl::flat_hash_map<std::string, std::uint32_t> line_of_id;
  for (std::size_t i = 0; i < list->items.size(); ++i) {
    const YamlNode& item = list->items[i];
    const std::string path = absl::StrCat("endpoints[", i, "]");
    absl::StatusOr<sched::EndpointMetadata> endpoint = ReadEndpoint(path, item);
    if (endpoint.ok()) {
      const auto [it, is_new] = line_of_id.try_emplace(IdOf(*endpoint), item.line);
      if (is_new) {
        file.endpoints.push_back(*std::move(endpoint));
        continue;
      }
      endpoint =
          Error(item.line, path, absl::StrCat("is ", it->first, " again, which is at line ", it->second));
    }
    if (options.refuse_bad_entries) return endpoint.status();
    if (file.skipped_count++ < kMaxMessages) file.skipped.emplace_back(endpoint.status().message());
  }
  return file;
}

EndpointsDiff DiffEndpoints(std::span<const sched::EndpointMetadata> endpoints,
                            const sched::EndpointPool& pool) {
  EndpointsDiff diff;
  std::vector<bool> kept(pool.size(), false);
  for (std::uint32_t i = 0; i < endpoints.size(); ++i) {
    const sched::EndpointMetadata& wanted = endpoints[i];
    const std::optional<sched::Position> position = pool.FindId(IdOf(wanted));
    if (!position) {
      diff.added.push_back(i);
      continue;
    }
    kept[*position] = true;
    const sched::Endpoint& known = pool[*position];
    const sched::EndpointMetadata& now = known.metadata();
    const bool address = wanted.address != now.address || wanted.port != now.port;
    if (address || wanted.labels != now.labels || wanted.rank != now.rank ||
        wanted.node_address != now.node_address) {
      diff.changed.push_back({i, known.handle, address});
    }
  }
  for (sched::Position i = 0; i < pool.size(); ++i) {
    if (!kept[i]) diff.removed.push_back(pool[i].handle);
  }
  return diff;
}

absl::Status ApplyEndpoints(std::span<const sched::EndpointMetadata> endpoints, const EndpointsDiff& diff,
                            sched::EndpointPool& pool) {
  absl::Status first_error;
  const auto add = [&](std::uint32_t index) {
    absl::StatusOr<sched::EndpointHandle> handle = pool.Add(endpoints[index]);
    if (!handle.ok() && first_error.ok()) first_error = handle.status();
    return handle;
  };
  for (const sched::EndpointHandle endpoint : diff.removed) pool.Remove(endpoint);
  for (const EndpointsDiff::Change& change : diff.changed) {
    const std::optional<sched::Position> position = pool.Find(change.endpoint);
    sched::Metrics metrics;
    std::vector<sched::Attribute> attributes;
    if (position && !change.address) {
      metrics = pool[*position].metrics;
      attributes = pool[*position].attributes;
    }
    pool.Remove(change.endpoint);
    const auto handle = add(change.index);
    if (!handle.ok()) continue;
    *pool.mutable_metrics(*handle) = std::move(metrics);
    for (const sched::Attribute& attribute : attributes)
      pool.SetAttribute(*handle, attribute.name, attribute.sample);
  }
  for (const std::uint32_t index : diff.added) (void)add(index);
  return first_error;
}

}  // namespace llmd::gateway
