#include "examples/sim_worker/worker.h"

#include <chrono>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "examples/http/server.h"
#include "examples/sim_worker/api.h"
#include "examples/sim_worker/kv_publisher.h"
#include "llmd/events/topic.h"
#include "llmd/worker/event_writer.h"

namespace llmd::sim {
namespace {

// Different for every process, as vLLM's: who restarts is another engine.
std::string NewEngineId() {
  std::random_device device;
  return absl::StrFormat("%08x-%04x-4%03x-a%03x-%08x%04x", device(), device() & 0xFFFF, device() & 0xFFF,
                         device() & 0xFFF, device(), device() & 0xFFFF);
}

std::string PythonBool(bool value) { return value ? "True" : "False"; }

MetricsOptions MetricsOf(const WorkerOptions& options, const std::string& model_name) {
  const EngineOptions& engine = options.engine;
  return {.model_name = model_name,
          .max_model_len = engine.max_model_len,
          .legacy_names = options.legacy_metric_names,
          .max_loras = options.loras.empty() ? 0 : options.max_loras,
          .cache_config = {{"block_size", absl::StrCat(engine.block_size)},
                           {"cache_dtype", "auto"},
                           {"enable_prefix_caching", PythonBool(engine.prefix_caching)},
                           {"gpu_memory_utilization", "0.9"},
                           {"num_cpu_blocks", "None"},
                           {"num_gpu_blocks", absl::StrCat(engine.num_gpu_blocks)},
                           {"prefix_caching_hash_algo", std::string(hash::ToString(engine.hash_algorithm))},
                           {"sliding_window", "None"}}};
}

std::string TcpEndpoint(const std::string& host, std::uint16_t port) {
  const std::string address = host == "0.0.0.0" || host == "::" ? "*" : host;
  return absl::StrCat("tcp://", address, ":", port == 0 ? std::string("*") : absl::StrCat(port));
}

}  // namespace

struct Worker::Impl {
  Impl(const WorkerOptions& options, const std::string& model_name)
      : metrics(MetricsOf(options, model_name)),
        faults(options.engine.seed),
        writer({.schema = options.kv_schema, .full_digests = options.kv_full_digests}) {
    faults.Set(options.fault);
  }

  void Publish(const worker::BlockEvents& block_events) {
    const double now =
        std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    writer.Encode(block_events, now, payload);
    publisher->Publish(payload);
    metrics.kv_batches.Add();
  }

  Metrics metrics;
  Faults faults;
  worker::EventWriter writer;
  std::vector<std::byte> payload;
  std::unique_ptr<KvPublisher> publisher;
  std::unique_ptr<EngineDriver> driver;
  std::unique_ptr<ApiServer> api;
  std::unique_ptr<http::Server> server;
  std::string name;
};

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Worker::~Worker() {
  if (impl_->server) impl_->server->Stop();
}

absl::StatusOr<std::unique_ptr<Worker>> Worker::Create(boost::asio::io_context& io,
                                                       const WorkerOptions& options) {
  ApiOptions api;
  api.model = {.names = options.served_model_names,
               .loras = options.loras,
               .max_model_len = options.engine.max_model_len};
  if (api.model.names.empty()) api.model.names = {options.model};
  if (options.role != "both" && options.role != "prefill" && options.role != "decode") {
    return absl::InvalidArgumentError(
        absl::StrCat("role is \"", options.role, "\", must be both, prefill or decode"));
  }
  if (absl::Status status = options.fault.Validate(); !status.ok()) return status;
  const std::string address = options.advertise.empty() ? options.host : options.advertise;
  const std::string model_name = api.model.names.front();
  auto impl = std::make_unique<Impl>(options, model_name);
  Impl* raw = impl.get();

  const bool publish = options.kv_events_port.has_value() || !options.kv_events_endpoint.empty();
  if (publish) {
    KvPublisherOptions publisher;
    publisher.bind = options.kv_events_endpoint.empty();
    publisher.endpoint =
        publisher.bind ? TcpEndpoint(options.host, *options.kv_events_port) : options.kv_events_endpoint;
    publisher.replay_endpoint = options.kv_replay_port ? TcpEndpoint(options.host, *options.kv_replay_port)
                                                       : options.kv_replay_endpoint;
    publisher.buffer_steps = options.kv_buffer_steps;
    publisher.hwm = options.kv_hwm;
    absl::StatusOr<std::unique_ptr<KvPublisher>> created = KvPublisher::Create(publisher);
    if (!created.ok()) return created.status();
    impl->publisher = *std::move(created);
  }

  EngineOptions engine_options = options.engine;
  engine_options.kv_events = publish;
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(
      engine_options, impl->metrics,
      publish ? [raw](const worker::BlockEvents& events) { raw->Publish(events); } : Engine::EventSink());
  if (!engine.ok()) return engine.status();
  impl->driver = std::make_unique<EngineDriver>(io, *std::move(engine));

  api.role = options.role;
  api.block_size = options.engine.block_size;
  api.max_waiting = options.max_waiting;
  api.echo = options.echo;
  api.transfer = {.engine_id = NewEngineId(), .host = address, .port = options.transfer_port};
  api.on_crash = options.on_crash;
  impl->api = std::make_unique<ApiServer>(std::move(api), *impl->driver, impl->metrics, impl->faults);

  http::ServerOptions server;
  server.address = options.host;
  server.port = options.port;
  server.max_body_bytes = options.max_body_bytes;
  absl::StatusOr<std::unique_ptr<http::Server>> listening =
      http::Server::Create(io, server, [raw](http::Request request, http::Response& response) {
        return raw->api->Handle(std::move(request), response);
      });
  if (!listening.ok()) return listening.status();
  impl->server = *std::move(listening);
  impl->name = absl::StrCat(address, ":", impl->server->port());
  impl->api->set_worker_name(impl->name);
  if (impl->publisher) {
    impl->publisher->set_topic(options.kv_topic.empty() ? events::MakeTopic(impl->name, model_name)
                                                        : options.kv_topic);
  }
  return std::unique_ptr<Worker>(new Worker(std::move(impl)));
}

std::uint16_t Worker::port() const { return impl_->server->port(); }
std::uint16_t Worker::kv_events_port() const { return impl_->publisher ? impl_->publisher->port() : 0; }
std::uint16_t Worker::kv_replay_port() const {
  return impl_->publisher ? impl_->publisher->replay_port() : 0;
}
std::string Worker::name() const { return impl_->name; }
std::size_t Worker::connections() const { return impl_->server->connections(); }
void Worker::Drain() { impl_->server->Drain(); }
void Worker::Stop() {
  impl_->server->Stop();
  impl_->driver->Stop();
}
EngineDriver& Worker::driver() { return *impl_->driver; }
const Metrics& Worker::metrics() const { return impl_->metrics; }
Faults& Worker::faults() { return impl_->faults; }

}  // namespace llmd::sim
