// A simulated worker in one object: engine, HTTP surface, metrics, KV events. Tests and hosts may run several
// on one io_context.
//
//   auto worker = Worker::Create(io, options);
//   io.run();
//
// Threads: any number may run the io_context. After Stop(), keep the worker until connections() is 0 or the
// threads have ended.
#ifndef EXAMPLES_SIM_WORKER_WORKER_H_
#define EXAMPLES_SIM_WORKER_WORKER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <boost/asio/io_context.hpp>

#include "absl/status/statusor.h"
#include "examples/sim_worker/engine_driver.h"
#include "examples/sim_worker/faults.h"
#include "examples/sim_worker/metrics.h"
#include "llmd/events/encoder.h"

namespace llmd::sim {

struct WorkerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;      // 0: any
  std::string advertise = {};  // address in topics, x-sim-worker and kv_transfer_params; empty: host
  std::string model = "sim-model";
  std::vector<std::string> served_model_names = {};  // empty: the model
  std::vector<std::string> loras = {};
  std::uint32_t max_loras = 1;
  std::string role = "both";  // both, prefill, decode
  EngineOptions engine = {};
  std::uint32_t max_waiting = 0;
  std::size_t max_body_bytes = std::size_t{64} << 20;
  bool echo = false;
  bool legacy_metric_names = true;
  std::uint16_t transfer_port = 5600;  // told to decode workers

  std::optional<std::uint16_t> kv_events_port = {};  // 0: any; absent: no events over ZeroMQ
  std::optional<std::uint16_t> kv_replay_port = {};
  std::string kv_events_endpoint = {};  // instead of the port: may be one to connect to
  std::string kv_replay_endpoint = {};
  std::string kv_topic = {};  // empty: kv@<address>:<port>@<model>
  std::size_t kv_buffer_steps = 10'000;
  int kv_hwm = 100'000;
  events::Schema kv_schema = events::Schema::kMap;
  bool kv_full_digests = false;

  Fault fault = {};
  std::function<void()> on_crash = {};
};

class Worker {
 public:
  // The status names the option.
  static absl::StatusOr<std::unique_ptr<Worker>> Create(boost::asio::io_context& io,
                                                        const WorkerOptions& options);
  ~Worker();

  std::uint16_t port() const;
  std::uint16_t kv_events_port() const;  // 0: none
  std::uint16_t kv_replay_port() const;
  std::string name() const;  // address:port
  std::size_t connections() const;

  // Accepts nothing more and lets the requests under way finish.
  void Drain();
  // Ends them.
  void Stop();

  EngineDriver& driver();
  const Metrics& metrics() const;
  Faults& faults();

 private:
  struct Impl;
  explicit Worker(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_WORKER_H_
