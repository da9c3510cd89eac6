#include "examples/sim_worker/options.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <utility>

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "examples/sim_worker/json_reader.h"

namespace llmd::sim {
namespace {

constexpr std::uint32_t kDefaultModelLen = 32'768;

const std::map<std::string, events::Schema> kSchemas = {
    {"array6", events::Schema::kArray6},   {"array7", events::Schema::kArray7},
    {"array8", events::Schema::kArray8},   {"array9", events::Schema::kArray9},
    {"array10", events::Schema::kArray10}, {"array12", events::Schema::kArray12},
    {"map", events::Schema::kMap},         {"mapwide", events::Schema::kMapWide}};

// What the flags say before they become options.
struct Flags {
  std::uint32_t max_model_len = 0;
  std::uint32_t max_num_batched_tokens = 0;
  std::string hash_algo = "sha256";
  std::string python_hash_seed;
  bool has_python_hash_seed = false;
  double time_scale = 1;
  std::string kv_events_config;
  std::string kv_transfer_config;
  std::string schema = "map";
  std::string fault = "none";
  std::uint32_t max_body_mb = 64;
  int kv_events_port = -1;
  int kv_replay_port = -1;
  std::vector<std::string> lora_modules;
};

// --kv-events-config, vLLM's JSON.
absl::Status ReadEventsConfig(const std::string& text, WorkerOptions& options) {
  const absl::StatusOr<Json> json = ParseJson(text);
  if (!json.ok() || !json->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-events-config must be a JSON object, not ", text));
  }
  FieldReader fields(*json, "--kv-events-config: ");
  const bool enabled = fields.Bool("enable_kv_cache_events", false);
  const std::string publisher = fields.Text("publisher", 64);
  std::string endpoint = fields.Text("endpoint", 1024);
  options.kv_replay_endpoint = fields.Text("replay_endpoint", 1024);
  options.kv_topic = fields.Text("topic", 1024);
  options.kv_buffer_steps =
      static_cast<std::size_t>(fields.Integer("buffer_steps", 1, 10'000'000).value_or(10'000));
  options.kv_hwm = static_cast<int>(fields.Integer("hwm", 0, 1'000'000'000).value_or(100'000));
  if (!publisher.empty() && publisher != "zmq" && publisher != "null")
    fields.Fail("publisher must be zmq or null");
  if (!fields.status().ok()) return fields.status();
  if (!enabled || publisher == "null") return absl::OkStatus();
  options.kv_events_endpoint = endpoint.empty() ? "tcp://*:5557" : std::move(endpoint);
  return absl::OkStatus();
}

absl::Status ReadTransferConfig(const std::string& text, WorkerOptions& options) {
  const absl::StatusOr<Json> json = ParseJson(text);
  if (!json.ok() || !json->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-transfer-config must be a JSON object, not ", text));
  }
  FieldReader fields(*json, "--kv-transfer-config: ");
  const std::string role = fields.Text("kv_role", 64);
  if (role == "kv_producer") {
    options.role = "prefill";
  } else if (role == "kv_consumer") {
    options.role = "decode";
  } else if (!role.empty() && role != "kv_both") {
    fields.Fail("kv_role must be kv_producer, kv_consumer or kv_both");
  }
  return fields.status();
}

absl::Status Finish(const Flags& flags, CommandLine& line) {
  WorkerOptions& options = line.worker;
  EngineOptions& engine = options.engine;
  const std::uint64_t usable =
      engine.num_gpu_blocks < 2 ? 0 : (engine.num_gpu_blocks - 1) * std::uint64_t{engine.block_size};
  engine.max_model_len = flags.max_model_len > 0
                             ? flags.max_model_len
                             : static_cast<std::uint32_t>(std::min<std::uint64_t>(kDefaultModelLen, usable));
  engine.max_num_batched_tokens = flags.max_num_batched_tokens > 0 ? flags.max_num_batched_tokens
                                  : engine.chunked_prefill
                                      ? 8192
                                      : std::max<std::uint32_t>(8192, engine.max_model_len);
  const absl::StatusOr<hash::VllmAlgorithm> algorithm = hash::ParseVllmAlgorithm(flags.hash_algo);
  if (!algorithm.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prefix-caching-hash-algo: ", std::string(algorithm.status().message())));
  }
  engine.hash_algorithm = *algorithm;
  if (flags.has_python_hash_seed) {
    engine.python_hash_seed = flags.python_hash_seed;
  } else if (const char* seed = std::getenv("PYTHONHASHSEED"); seed != nullptr) {
    engine.python_hash_seed = seed;
  }
  if (const char* address = std::getenv("POD_IP"); address != nullptr && options.advertise.empty()) {
    options.advertise = address;
  }
  LatencyModel& latency = engine.latency;
  for (double* cost :
       {&latency.prefill_us_per_token, &latency.decode_us_per_token, &latency.decode_us_per_sequence,
        &latency.transfer_us, &latency.transfer_us_per_token}) {
    *cost *= flags.time_scale;
  }
  if (!flags.kv_events_config.empty()) {
    if (absl::Status status = ReadEventsConfig(flags.kv_events_config, options); !status.ok()) return status;
  }
  if (!flags.kv_transfer_config.empty()) {
    if (absl::Status status = ReadTransferConfig(flags.kv_transfer_config, options); !status.ok())
      return status;
  }
  if (flags.kv_events_port >= 0) options.kv_events_port = static_cast<std::uint16_t>(flags.kv_events_port);
  if (flags.kv_replay_port >= 0) options.kv_replay_port = static_cast<std::uint16_t>(flags.kv_replay_port);
  if (options.kv_replay_port && !options.kv_events_port && options.kv_events_endpoint.empty()) {
    return absl::InvalidArgumentError("--kv-replay-port needs --kv-events-port or --kv-events-config");
  }
  options.kv_schema = kSchemas.at(flags.schema);
  options.max_body_bytes = std::size_t{flags.max_body_mb} << 20;
  for (const std::string& module : flags.lora_modules) {
    options.loras.push_back(module.substr(0, module.find('=')));
  }
  const absl::StatusOr<FaultMode> fault = ParseFaultMode(flags.fault);
  if (!fault.ok()) return fault.status();
  options.fault.mode = *fault;
  return options.fault.Validate();
}

void AddFlags(CLI::App& app, Flags& flags, CommandLine& line) {
  WorkerOptions& options = line.worker;
  EngineOptions& engine = options.engine;
  LatencyModel& latency = engine.latency;
  const auto port = CLI::Range(0, 65535);

  const std::string server = "Server";
  app.add_option("--host", options.host, "Address to listen on")->capture_default_str()->group(server);
  app.add_option("--port", options.port, "Port of the HTTP API; 0: any free one")
      ->default_val(8000)
      ->group(server);
  app.add_option("--advertise-address", options.advertise,
                 "Address that others know this worker by (default: POD_IP, else --host)")
      ->group(server);
  app.add_option("--model", options.model, "Model name")->capture_default_str()->group(server);
  app.add_option("--served-model-name", options.served_model_names, "Names in the API, the first in metrics")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->group(server);
  app.add_option("--lora-modules", flags.lora_modules, "Adapters as NAME or NAME=PATH")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->group(server);
  app.add_option("--max-loras", options.max_loras, "As told in the metrics")
      ->capture_default_str()
      ->group(server);
  app.add_option("--max-body-mb", flags.max_body_mb, "Longest request body, in MiB")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->group(server);
  app.add_option("--max-waiting", options.max_waiting, "Requests beyond this queue get 429; 0: no limit")
      ->capture_default_str()
      ->group(server);
  app.add_option("--threads", line.threads, "Threads of the event loop")
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->group(server);
  app.add_option("--shutdown-timeout", line.shutdown_timeout_s, "Seconds for open requests after SIGTERM")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str()
      ->group(server);

  const std::string cache = "KV cache";
  app.add_option("--block-size", engine.block_size, "Tokens per block")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->group(cache);
  app.add_option("--num-gpu-blocks,--num-gpu-blocks-override", engine.num_gpu_blocks,
                 "Blocks of the pool, the reserved one included")
      ->check(CLI::Range(2, 1 << 28))
      ->capture_default_str()
      ->group(cache);
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", engine.prefix_caching,
               "Reuse blocks of equal prefixes (default: on)")
      ->group(cache);
  app.add_option("--prefix-caching-hash-algo", flags.hash_algo, "sha256, sha256_cbor, xxhash, xxhash_cbor")
      ->capture_default_str()
      ->group(cache);
  app.add_option_function<std::string>(
         "--python-hash-seed",
         [&flags](const std::string& seed) {
           flags.python_hash_seed = seed;
           flags.has_python_hash_seed = true;
         },
         "Seed of the block hashes (default: PYTHONHASHSEED, else vLLM's fixed root)")
      ->group(cache);

  const std::string scheduling = "Scheduling";
  app.add_option("--max-model-len", flags.max_model_len,
                 "Longest prompt and output together (default: 32768, or what the blocks hold)")
      ->check(CLI::Range(1, 1 << 30))
      ->group(scheduling);
  app.add_option("--max-num-seqs", engine.max_num_seqs, "Most requests that run at once")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group(scheduling);
  app.add_option("--max-num-batched-tokens", flags.max_num_batched_tokens, "Tokens per step (default: 8192)")
      ->check(CLI::Range(1, 1 << 30))
      ->group(scheduling);
  app.add_option("--long-prefill-token-threshold", engine.long_prefill_token_threshold,
                 "Tokens per step of one request; 0: no limit")
      ->capture_default_str()
      ->group(scheduling);
  app.add_flag("--enable-chunked-prefill,!--no-enable-chunked-prefill", engine.chunked_prefill,
               "Split prompts over steps (default: on)")
      ->group(scheduling);
  app.add_option("--watermark", engine.watermark, "Share of blocks that admissions leave free")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str()
      ->group(scheduling);

  const std::string events = "KV events";
  app.add_option("--kv-events-port", flags.kv_events_port, "ZeroMQ PUB port; 0: any (default: no events)")
      ->check(port)
      ->group(events);
  app.add_option("--kv-replay-port", flags.kv_replay_port, "ZeroMQ ROUTER port for replays; 0: any")
      ->check(port)
      ->group(events);
  app.add_option("--kv-events-topic", options.kv_topic, "Topic (default: kv@ADDRESS:PORT@MODEL)")
      ->group(events);
  app.add_option("--kv-events-config", flags.kv_events_config, "vLLM's JSON form")->group(events);
  app.add_option("--kv-events-schema", flags.schema, "array6 .. array12 (vLLM before 0.24), map, mapwide")
      ->check(CLI::IsMember(kSchemas))
      ->capture_default_str()
      ->group(events);
  app.add_flag("--kv-events-full-digests", options.kv_full_digests, "Hashes as byte strings")->group(events);

  const std::string time = "Latency model";
  app.add_option("--prefill-us-per-token", latency.prefill_us_per_token,
                 "Microseconds per uncached prompt token")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str()
      ->group(time);
  app.add_option("--decode-us-per-token", latency.decode_us_per_token, "Microseconds of a decode step")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str()
      ->group(time);
  app.add_option("--decode-us-per-sequence", latency.decode_us_per_sequence,
                 "Added for each further sequence of a decode step")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str()
      ->group(time);
  app.add_option("--transfer-us", latency.transfer_us, "Microseconds of a KV transfer between workers")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str()
      ->group(time);
  app.add_option("--transfer-us-per-token", latency.transfer_us_per_token, "Added for each token")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str()
      ->group(time);
  app.add_option("--jitter", latency.jitter, "Spread of all times: 0.1 is +-10 %")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str()
      ->group(time);
  app.add_option("--time-scale", flags.time_scale,
                 "Factor of all times: 0.1 runs ten times as fast, 0 does not wait")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str()
      ->group(time);

  const std::string output = "Output";
  app.add_option("--seed", engine.seed, "Seed of texts and jitter; equal on all workers, texts are equal")
      ->capture_default_str()
      ->group(output);
  app.add_option("--mean-output-tokens", engine.mean_output_tokens,
                 "Where texts end by themselves, +-50 %; 0: only limits end them")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str()
      ->group(output);

  const std::string pd = "Prefill/decode";
  app.add_option("--role", options.role,
                 "both, prefill (serves no KV from elsewhere) or decode (keeps none for others)")
      ->check(CLI::IsMember({"both", "prefill", "decode"}))
      ->capture_default_str()
      ->group(pd);
  app.add_option("--kv-transfer-config", flags.kv_transfer_config,
                 "vLLM's JSON form; kv_role decides the role")
      ->group(pd);
  app.add_option("--kv-transfer-port", options.transfer_port, "Told to decode workers")
      ->capture_default_str()
      ->group(pd);

  const std::string faults = "Faults and looking in";
  app.add_option("--fault", flags.fault, "none, slow, error, hang, disconnect, crash (also POST /sim/fault)")
      ->capture_default_str()
      ->group(faults);
  app.add_option("--fault-rate", options.fault.rate, "Share of requests")
      ->capture_default_str()
      ->group(faults);
  app.add_option("--fault-delay-ms", options.fault.delay_ms, "Of slow")->capture_default_str()->group(faults);
  app.add_option("--fault-status", options.fault.status, "Of error")->capture_default_str()->group(faults);
  app.add_option("--fault-count", options.fault.count, "Requests affected; -1: no end")
      ->capture_default_str()
      ->group(faults);
  app.add_flag("--fault-all", options.fault.all, "Health and metrics fail as well")->group(faults);
  app.add_flag("--echo", options.echo, "Every answer tells of its request (also header x-sim-echo)")
      ->group(faults);
  app.add_flag("--legacy-metric-names,!--no-legacy-metric-names", options.legacy_metric_names,
               "vllm:gpu_cache_usage_perc, vllm:gpu_prefix_cache_* (default: on)")
      ->group(faults);

  // Flags of vLLM's command lines that mean nothing without a model.
  for (const char* name :
       {"--gpu-memory-utilization", "--kv-cache-dtype", "--dtype", "--tensor-parallel-size", "--load-format",
        "--tokenizer", "--download-dir", "--max-lora-rank", "--swap-space", "--uvicorn-log-level"}) {
    app.add_option(name)->group("")->expected(1);
  }
  for (const char* name : {"--enforce-eager", "--trust-remote-code", "--enable-lora",
                           "--disable-log-requests", "--disable-log-stats", "--no-enable-log-requests"}) {
    app.add_flag(name)->group("");
  }
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments) {
  CLI::App app("A vLLM-like server without a model: real block pool, KV events and metrics, simulated time.",
               "sim_worker");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);  // as argparse
  Flags flags;
  CommandLine line;
  AddFlags(app, flags, line);
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    line.help = app.help();
    return line;
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(error.what());
  }
  if (absl::Status status = Finish(flags, line); !status.ok()) return status;
  return line;
}

}  // namespace llmd::sim
