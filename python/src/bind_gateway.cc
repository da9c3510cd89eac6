// What a router needs besides the protocol: requests and answers read, affinity, metrics pages, endpoints
// files.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llmd/gateway/bounded_load.h"
#include "llmd/gateway/endpoints_file.h"
#include "llmd/gateway/engine_metrics.h"
#include "llmd/gateway/headers.h"
#include "llmd/gateway/maglev.h"
#include "llmd/gateway/openai_request.h"
#include "llmd/gateway/request_hash.h"
#include "llmd/gateway/response_body.h"
#include "llmd/gateway/ring_hash.h"
#include "llmd/gateway/session_id.h"
#include "python/src/arguments.h"
#include "python/src/buffers.h"
#include "python/src/gateway_types.h"
#include "python/src/module.h"
#include "python/src/sched_pool.h"
#include "python/src/sched_types.h"
#include "python/src/sched_value.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;

py::dict FromOpenAi(const gateway::OpenAiRequest& request) {
  py::dict out;
  out["api"] = FromWireText(gateway::ToString(request.api));
  out["model"] = FromWireText(request.model);
  out["text"] = FromTexts(request.text);
  py::list messages, prompts, media, models;
  for (const gateway::ChatMessage& message : request.messages) {
    messages.append(py::make_tuple(FromWireText(message.role), message.first_piece, message.piece_count));
  }
  for (const gateway::OpenAiRequest::Prompt& prompt : request.prompts) {
    prompts.append(py::make_tuple(prompt.first_piece, prompt.piece_count, ToArray(request.TokensOf(prompt))));
  }
  for (const gateway::MediaItem& item : request.media) {
    media.append(py::make_tuple(FromWireText(item.modality), FromWireText(item.data),
                                FromWireText(item.format), FromWireText(item.hash), item.piece, item.offset,
                                item.length));
  }
  for (const gateway::ByteRange& range : request.model_values)
    models.append(py::make_tuple(range.begin, range.size));
  out["messages"] = messages;
  out["prompts"] = prompts;
  out["media"] = media;
  out["model_values"] = models;
  out["stream"] = request.stream;
  out["include_usage"] = request.include_usage;
  out["max_output_tokens"] = request.max_output_tokens;
  out["cache_salt"] = FromWireText(request.cache_salt);
  out["user"] = FromWireText(request.user);
  out["prompt_cache_key"] = FromWireText(request.prompt_cache_key);
  out["previous_response_id"] = FromWireText(request.previous_response_id);
  out["conversation"] = FromWireText(request.conversation);
  out["session_id"] = FromWireText(request.session_id);
  out["raw_messages"] = FromWireText(request.raw_messages);
  out["raw_tools"] = FromWireText(request.raw_tools);
  out["raw_chat_template"] = FromWireText(request.raw_chat_template);
  out["raw_chat_template_kwargs"] = FromWireText(request.raw_chat_template_kwargs);
  out["add_generation_prompt"] = request.add_generation_prompt;
  out["continue_final_message"] = request.continue_final_message;
  return out;
}

py::object FromUsage(const gateway::Usage& usage) {
  if (!usage.known) return py::none();
  return py::make_tuple(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens,
                        usage.cached_tokens);
}

namespace {

gateway::Api ToApi(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(gateway::Api::kGrpcEmbed); ++i) {
    const auto api = static_cast<gateway::Api>(i);
    if (gateway::ToString(api) == name) return api;
  }
  throw py::value_error("api is \"" + name + "\", wanted a name that api_of_path() gives");
}

// --- Requests and answers ---

py::dict ParseRequest(Arg<"api", std::string> api, py::object body, Arg<"max_depth", std::size_t> max_depth,
                      Arg<"max_body_bytes", std::size_t> max_body_bytes) {
  const BytesBuffer bytes(body, "body");
  const gateway::Api which = ToApi(*api);
  gateway::OpenAiParser parser({.max_depth = *max_depth, .max_body_bytes = *max_body_bytes});
  gateway::OpenAiRequest request;
  absl::Status status;
  {
    const py::gil_scoped_release release;
    status = parser.Parse(which, bytes.text(), request);
  }
  Check(status);
  return FromOpenAi(request);
}

class UsageReaderObject {
 public:
  explicit UsageReaderObject(bool event_stream) : reader_(event_stream) {}
  template <typename Use>
  auto With(const Use& use) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return use(reader_);
  }

 private:
  std::mutex mutex_;
  gateway::UsageReader reader_;
};

void BindText(py::module_& m) {
  m.def("api_of_path", [](Arg<"path", std::string> path) {
    return FromWireText(gateway::ToString(gateway::ApiOfPath(*path)));
  });
  m.def("parse_openai", &ParseRequest);
  using Ranges = std::vector<std::pair<std::size_t, std::size_t>>;
  m.def("splice_model",
        [](py::object body, Arg<"model_values", Ranges> values, Arg<"model", std::string> model) {
          const BytesBuffer bytes(body, "body");
          std::string text(bytes.text());
          std::vector<gateway::ByteRange> ranges;
          std::size_t end = 0;
          for (const auto& [begin, size] : *values) {
            if (begin < end || begin > text.size() || size > text.size() - begin) {
              throw py::value_error("model_values do not fit the body");
            }
            ranges.push_back({begin, size});
            end = begin + size;
          }
          gateway::SpliceModel(ranges, *model, text);
          return py::bytes(text);
        });
  py::class_<UsageReaderObject>(m, "UsageReader")
      .def(py::init([](Arg<"event_stream", bool> event_stream) {
        return std::make_unique<UsageReaderObject>(*event_stream);
      }))
      .def("append",
           [](UsageReaderObject& r, py::object piece) {
             const BytesBuffer bytes(piece, "piece");
             r.With([&](gateway::UsageReader& x) { x.Append(bytes.text()); });
           })
      .def("finish", [](UsageReaderObject& r) { r.With([](gateway::UsageReader& x) { x.Finish(); }); })
      .def_property_readonly("usage", [](UsageReaderObject& r) {
        return FromUsage(r.With([](gateway::UsageReader& x) { return x.usage(); }));
      });
}

// --- Affinity ---

using Sources = std::vector<std::pair<std::string, std::string>>;  // ("header" or "cookie", name)

gateway::SessionIdReader MakeSessionReader(const std::optional<Sources>& sources, std::size_t max_bytes) {
  gateway::SessionIdOptions options{.max_bytes = max_bytes};
  if (sources) {
    options.sources.clear();
    for (const auto& [kind, name] : *sources) {
      if (kind != "header" && kind != "cookie") {
        throw py::value_error("sources: kind is \"" + kind + "\", wanted header or cookie");
      }
      options.sources.push_back(
          {kind == "header" ? gateway::SessionSource::Kind::kHeader : gateway::SessionSource::Kind::kCookie,
           name});
    }
  }
  return Take(gateway::SessionIdReader::Create(std::move(options)));
}

using Hosts = std::vector<std::tuple<std::string, std::uint32_t, std::uint32_t>>;  // key, weight, locality

std::vector<gateway::HashHost> ToHosts(const Hosts& hosts) {
  std::vector<gateway::HashHost> out;
  for (const auto& [key, weight, locality] : hosts) out.push_back({key, weight, locality});
  return out;
}

py::object HostOrNone(std::uint32_t host) {
  if (host == gateway::kNoHost) return py::none();
  return py::int_(host);
}

template <typename Table>
py::object PickMany(const Table& table, py::object hashes) {
  const KeyBuffer keys(hashes, "hashes");
  std::vector<std::uint32_t> out(keys.span().size());
  {
    const py::gil_scoped_release release;
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = table.Pick(keys.span()[i]);
  }
  return ToArray(out);
}

template <typename Table>
py::class_<Table, std::shared_ptr<Table>> BindTable(py::module_& m, const char* name) {
  return py::class_<Table, std::shared_ptr<Table>>(m, name)
      .def("pick", [](const Table& t, Arg<"hash", std::uint64_t> hash,
                      Arg<"attempt", std::uint32_t> attempt) { return HostOrNone(t.Pick(*hash, *attempt)); })
      .def("pick_many", &PickMany<Table>)
      .def("__len__", &Table::size)
      .def("bounded", [](const Table& t, Arg<"balance_factor", std::uint32_t> balance_factor) {
        return std::make_shared<gateway::BoundedLoad>(
            Take(gateway::BoundedLoad::Create(*balance_factor, t.normalized())));
      });
}

void BindAffinity(py::module_& m) {
  using Localities = Arg<"locality_weights", std::vector<std::uint32_t>>;
  py::class_<gateway::SessionIdReader, std::shared_ptr<gateway::SessionIdReader>>(m, "SessionIdReader")
      .def(py::init(
          [](Arg<"sources", std::optional<Sources>> sources, Arg<"max_bytes", std::size_t> max_bytes) {
            return std::make_shared<gateway::SessionIdReader>(MakeSessionReader(*sources, *max_bytes));
          }))
      .def("read", [](const gateway::SessionIdReader& reader,
                      Arg<"headers", std::vector<std::pair<std::string, std::string>>> headers) {
        std::vector<gateway::HeaderView> views;
        for (const auto& [name, value] : *headers) views.push_back({name, value});
        std::string scratch;
        const gateway::SessionId id = reader.Read(views, scratch);
        constexpr const char* kResults[] = {"absent", "found", "too_long", "control"};
        return py::make_tuple(kResults[static_cast<int>(id.result)], id.source, FromWireText(id.value));
      });
  m.def("find_cookie", [](Arg<"cookie_header", std::string> header, Arg<"name", std::string> name) {
    return FromWireText(gateway::FindCookie(*header, *name));
  });

  py::class_<gateway::BoundedLoad, std::shared_ptr<gateway::BoundedLoad>>(m, "BoundedLoad")
      .def("pick", [](const gateway::BoundedLoad& bounded, Arg<"host", std::optional<std::uint32_t>> host,
                      Arg<"hash", std::uint64_t> hash, Arg<"active", std::vector<std::uint32_t>> active,
                      Arg<"total", std::optional<std::uint64_t>> total) {
        std::uint64_t sum = 0;
        for (const std::uint32_t n : *active) sum += n;
        std::vector<std::uint32_t> scratch;
        return HostOrNone(
            bounded.Pick(host->value_or(gateway::kNoHost), *hash, *active, total->value_or(sum), scratch));
      });
  BindTable<gateway::RingHash>(m, "RingHash")
      .def(py::init([](Arg<"hosts", Hosts> hosts, Arg<"min_ring_size", std::uint64_t> min_size,
                       Arg<"max_ring_size", std::uint64_t> max_size, bool murmur, Localities localities) {
        const std::vector<gateway::HashHost> given = ToHosts(*hosts);
        const py::gil_scoped_release release;
        auto made =
            gateway::RingHash::Create(given, {.min_ring_size = *min_size,
                                              .max_ring_size = *max_size,
                                              .function = murmur ? gateway::RingHashFunction::kMurmurHash2
                                                                 : gateway::RingHashFunction::kXxHash,
                                              .locality_weights = std::move(*localities)});
        const py::gil_scoped_acquire acquire;
        return std::make_shared<gateway::RingHash>(Take(std::move(made)));
      }));
  BindTable<gateway::Maglev>(m, "Maglev")
      .def(py::init(
          [](Arg<"hosts", Hosts> hosts, Arg<"table_size", std::uint64_t> table_size, Localities localities) {
            const std::vector<gateway::HashHost> given = ToHosts(*hosts);
            const py::gil_scoped_release release;
            auto made = gateway::Maglev::Create(
                given, {.table_size = *table_size, .locality_weights = std::move(*localities)});
            const py::gil_scoped_acquire acquire;
            return std::make_shared<gateway::Maglev>(Take(std::move(made)));
          }));
  m.def("envoy_address_key", [](Arg<"address", std::string> address, Arg<"port", std::uint16_t> port) {
    return FromWireText(gateway::EnvoyAddressKey(*address, *port));
  });
  m.def("hash_hosts_of", [](const Pool& pool) {
    Hosts out;
    for (const gateway::HashHost& host : gateway::HashHostsOf(*pool.Snapshot())) {
      out.emplace_back(host.key, host.weight, host.locality);
    }
    return out;
  });
  m.def("envoy_xxhash64", [](py::object text, Arg<"seed", std::uint64_t> seed) {
    const BytesBuffer bytes(text, "text");
    return gateway::XxHash64(bytes.text(), *seed);
  });
  m.def("envoy_murmur2", [](py::object text) {
    const BytesBuffer bytes(text, "text");
    return gateway::MurmurHash2(bytes.text());
  });
  m.def("hash_header_values", [](Arg<"values", std::vector<std::string>> values) {
    if (values->empty()) throw py::value_error("values is empty, wanted at least one");
    const std::vector<std::string_view> views(values->begin(), values->end());
    return gateway::HashHeaderValues(views);
  });
  m.def("combine_hashes", [](Arg<"hashes", std::vector<std::uint64_t>> hashes) {
    gateway::RequestHash hash;
    for (const std::uint64_t h : *hashes) hash.Add(h);
    return hash.value();
  });
}

// --- Metrics ---

class MetricsReaderObject {
 public:
  MetricsReaderObject(gateway::EngineConfig config, gateway::EngineMetricsOptions options)
      : reader_(std::move(config), std::move(options)) {}
  // Reads the page into what is known of the endpoint.
  absl::Status Read(std::string_view page, absl::Time now, sched::Metrics& metrics,
                    std::vector<sched::Attribute>& attributes, gateway::MetricsReport& report,
                    std::string& problems) {
    const std::lock_guard<std::mutex> lock(mutex_);
    absl::Status status = reader_.Read(page, now, metrics, attributes, report);
    if (status.ok()) problems = report.ToString(reader_.config());
    return status;
  }
  const gateway::EngineConfig& config() const { return reader_.config(); }

 private:
  std::mutex mutex_;
  gateway::EngineMetricsReader reader_;
};

using LabelsArg = Arg<"labels", std::map<std::string, std::string>>;

std::shared_ptr<MetricsReaderObject> MakeMetricsReader(LabelsArg labels, py::object parameters,
                                                       Arg<"first_rank_alone", bool> first_rank_alone) {
  const gateway::EngineCatalog catalog =
      parameters.is_none()
          ? Take(gateway::EngineCatalog::Create())
          : Take(gateway::EngineCatalog::FromParameters(ValueFromPython(parameters, "parameters")));
  gateway::EngineMetricsOptions options;
  options.compatibility.first_rank_alone = *first_rank_alone;
  return std::make_shared<MetricsReaderObject>(catalog.For(sched::Labels(labels->begin(), labels->end())),
                                               std::move(options));
}

py::object OrNone(const auto& sample) {
  if (!sample.known()) return py::none();
  return py::cast(sample.value);
}

void BindMetrics(py::module_& m) {
  py::class_<MetricsReaderObject, std::shared_ptr<MetricsReaderObject>>(m, "EngineMetricsReader")
      .def(py::init(&MakeMetricsReader))
      .def_property_readonly("engine", [](const MetricsReaderObject& r) { return r.config().name; })
      // (waiting, running, kv_usage, adapters, block size, blocks, attributes, updated fields, problems)
      .def("read",
           [](MetricsReaderObject& reader, py::object page, py::handle now) {
             const BytesBuffer bytes(page, "page");
             const absl::Time time = ToTime(now, "now");
             sched::Metrics metrics;
             std::vector<sched::Attribute> attributes;
             gateway::MetricsReport report;
             std::string problems;
             absl::Status status;
             {
               const py::gil_scoped_release release;
               status = reader.Read(bytes.text(), time, metrics, attributes, report, problems);
             }
             Check(status);
             py::object adapters = py::none();
             if (metrics.adapters.known() && metrics.adapters.value != nullptr) {
               const sched::AdapterState& state = *metrics.adapters.value;
               adapters = py::make_tuple(state.max_active, FromTexts(state.active), FromTexts(state.waiting));
             }
             py::dict values;
             for (const sched::Attribute& a : attributes) values[FromWireText(a.name)] = a.sample.value;
             return py::make_tuple(OrNone(metrics.waiting_requests), OrNone(metrics.running_requests),
                                   OrNone(metrics.kv_cache_usage), adapters, metrics.cache_block_size,
                                   metrics.cache_num_blocks, values, report.updated, problems);
           })
      // Into a pool: a field that the page does not give keeps its value and time. (updated fields, problems)
      .def("update", [](MetricsReaderObject& reader, py::object page, Pool& pool,
                        Arg<"endpoint", sched::EndpointHandle&> handle, py::handle now) {
        const sched::EndpointHandle endpoint = *handle;
        const BytesBuffer bytes(page, "page");
        const absl::Time time = ToTime(now, "now");
        gateway::MetricsReport report;
        std::string problems;
        absl::Status status;
        {
          const py::gil_scoped_release release;
          const PoolSnapshot before = pool.Snapshot();
          const std::optional<sched::Position> position = before->Find(endpoint);
          if (!position) {
            status = absl::NotFoundError(HandleText(endpoint) + " is not in the pool");
          } else {
            sched::Metrics metrics = (*before)[*position].metrics;
            std::vector<sched::Attribute> attributes;
            status = reader.Read(bytes.text(), time, metrics, attributes, report, problems);
            if (status.ok()) {
              pool.Write([&](sched::EndpointPool& p) {
                sched::Metrics* to = p.mutable_metrics(endpoint);
                if (to == nullptr) return false;  // removed meanwhile
                *to = metrics;
                for (const sched::Attribute& a : attributes) p.SetAttribute(endpoint, a.name, a.sample);
                return true;
              });
            }
          }
        }
        Check(status);
        return py::make_tuple(report.updated, problems);
      });
}

// --- Endpoints files ---

py::dict FromMetadata(const sched::EndpointMetadata& endpoint) {
  py::dict out;
  out["name"] = FromWireText(endpoint.name);
  out["namespace"] = FromWireText(endpoint.pod_namespace);
  out["address"] = FromWireText(endpoint.address);
  out["port"] = endpoint.port;
  py::dict labels;
  for (const auto& [name, value] : endpoint.labels) labels[FromWireText(name)] = FromWireText(value);
  out["labels"] = labels;
  return out;
}

void BindEndpointsFile(py::module_& m) {
  using Parsed = gateway::EndpointsFile;
  py::class_<Parsed, std::shared_ptr<Parsed>>(m, "EndpointsFile")
      .def(py::init([](py::object text, Arg<"refuse_bad_entries", bool> refuse_bad_entries,
                       Arg<"max_bytes", std::size_t> max_bytes) {
        const BytesBuffer bytes(text, "text");
        return std::make_shared<Parsed>(Take(gateway::ParseEndpointsFile(
            bytes.text(), {.max_bytes = *max_bytes, .refuse_bad_entries = *refuse_bad_entries})));
      }))
      .def_property_readonly("endpoints",
                             [](const Parsed& file) {
                               py::list out;
                               for (const sched::EndpointMetadata& e : file.endpoints)
                                 out.append(FromMetadata(e));
                               return out;
                             })
      .def_property_readonly("skipped", [](const Parsed& file) { return FromTexts(file.skipped); })
      .def_property_readonly("skipped_count", [](const Parsed& file) { return file.skipped_count; })
      // ([added ids], [(old handle, id, address changed)], [removed handles])
      .def("apply", [](const Parsed& file, Pool& pool) {
        gateway::EndpointsDiff diff;
        const absl::Status status = pool.Write([&](sched::EndpointPool& p) {
          diff = gateway::DiffEndpoints(file.endpoints, p);
          return gateway::ApplyEndpoints(file.endpoints, diff, p);
        });
        Check(status);
        const auto id = [&](std::uint32_t i) {
          return FromWireText(file.endpoints[i].pod_namespace + "/" + file.endpoints[i].name);
        };
        py::list added, changed, removed;
        for (const std::uint32_t i : diff.added) added.append(id(i));
        for (const auto& c : diff.changed) changed.append(py::make_tuple(c.endpoint, id(c.index), c.address));
        for (const sched::EndpointHandle& handle : diff.removed) removed.append(handle);
        return py::make_tuple(added, changed, removed);
      });
}

}  // namespace

void BindGateway(py::module_& m) {
  BindText(m);
  BindAffinity(m);
  BindMetrics(m);
  BindEndpointsFile(m);
}

}  // namespace llmd::python
