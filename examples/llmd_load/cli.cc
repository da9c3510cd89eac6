#include "examples/llmd_load/cli.h"

#include <unistd.h>

#include <chrono>
#include <exception>
#include <fstream>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "examples/llmd_load/plan.h"
#include "examples/llmd_load/report.h"
#include "examples/llmd_load/runner.h"
#include "examples/llmd_load/worker_metrics.h"

namespace llmd::load {
namespace {

constexpr std::chrono::seconds kGetTimeout{10};

struct Options {
  std::string target, workload = "sessions", api, arrivals = "even", prompt_file, prometheus, records,
                      session_by = "all", api_key;
  std::vector<std::string> workers, headers;
  std::string model, test_id;
  PlanOptions plan;
  RunOptions run;
  bool no_stream = false, json = false, quiet = false;
  double timeout = 300, settle = 0;
  std::optional<double> min_hit_rate, min_stickiness;
  double max_error_rate = 0;
};

void Define(CLI::App& app, Options& o) {
  app.add_option("--target", o.target, "http://HOST:PORT of the gateway")->required();
  app.add_option("--workload", o.workload,
                 "sessions, ramp, multi5, chat, shared-prefix, vllm-load-test or trace")
      ->check(
          CLI::IsMember({"sessions", "ramp", "multi5", "chat", "shared-prefix", "vllm-load-test", "trace"}))
      ->capture_default_str();
  app.add_option("--model", o.model, "default: the first of the target's /v1/models");
  app.add_flag("--no-stream", o.no_stream, "ask for whole answers");
  app.add_option("--api", o.api)->check(CLI::IsMember({"chat", "completions"}));
  app.add_option("--seed", o.plan.seed, "of session names, texts and random arrivals")->capture_default_str();

  const char* kWhat = "Workload (defaults are the workload's own)";
  app.add_option("--sessions", o.plan.sessions)->group(kWhat);
  app.add_option("--requests", o.plan.requests, "of each session; of a trace or shared-prefix, in all")
      ->group(kWhat);
  app.add_option("--pause", o.plan.pause, "seconds between an answer and the session's next request")
      ->group(kWhat);
  app.add_option("--warmup", o.plan.warmup, "requests before anything is counted")->group(kWhat);
  app.add_option("--max-tokens", o.plan.max_tokens, "to generate; for a trace, at most")->group(kWhat);
  app.add_option("--prompt", o.plan.prompt, "of sessions, ramp, multi5")->group(kWhat);
  app.add_option("--prompt-file", o.prompt_file)->check(CLI::ExistingFile)->group(kWhat);
  app.add_option("--prefixes", o.plan.prefixes, "shared-prefix")->group(kWhat)->capture_default_str();
  app.add_option("--prefix-tokens", o.plan.prefix_tokens, "shared-prefix, chat")
      ->group(kWhat)
      ->capture_default_str();
  app.add_option("--turn-tokens", o.plan.turn_tokens, "of a question")->group(kWhat)->capture_default_str();
  app.add_option("--trace", o.plan.trace_file, "Mooncake schema, one JSON object a line")
      ->check(CLI::ExistingFile)
      ->group(kWhat);
  app.add_option("--block-tokens", o.plan.block_tokens, "text for each block of a trace")
      ->check(CLI::Range(1, 1 << 20))
      ->group(kWhat)
      ->capture_default_str();
  app.add_option("--max-prompt-tokens", o.plan.max_prompt_tokens, "cut longer prompts of a trace")
      ->group(kWhat);

  const char* kPace = "Pace";
  app.add_option("--rate", o.plan.rate, "requests a second, in an open loop")
      ->check(CLI::PositiveNumber)
      ->group(kPace);
  app.add_option("--arrivals", o.arrivals, "of an open loop: even or poisson")
      ->check(CLI::IsMember({"even", "poisson"}))
      ->group(kPace)
      ->capture_default_str();
  app.add_option("--time-scale", o.plan.time_scale, "of recorded times: 0.5 is twice as fast")
      ->check(CLI::PositiveNumber)
      ->group(kPace)
      ->capture_default_str();
  app.add_option("--concurrency", o.run.concurrency,
                 "requests (of a closed loop: sessions) at a time; 0: no limit")
      ->group(kPace);
  app.add_option("--max-seconds", o.run.max_seconds, "start nothing later")
      ->check(CLI::NonNegativeNumber)
      ->group(kPace);
  app.add_option("--timeout", o.timeout, "seconds for a request")
      ->check(CLI::PositiveNumber)
      ->group(kPace)
      ->capture_default_str();

  const char* kWire = "Headers";
  app.add_option("--session-by", o.session_by,
                 "what carries the session: all, header, x-header, cookie, none")
      ->check(CLI::IsMember({"all", "header", "x-header", "cookie", "none"}))
      ->group(kWire)
      ->capture_default_str();
  app.add_option("--test-id", o.test_id, "x-test-id; default: made from the clock")->group(kWire);
  app.add_option("--api-key", o.api_key, "authorization: Bearer")->envname("LLMD_LOAD_API_KEY")->group(kWire);
  app.add_option("--header", o.headers, "NAME: VALUE, repeatable")->group(kWire);

  const char* kPass = "Measuring and passing";
  app.add_option("--worker", o.workers, "http://HOST:PORT of a worker, for its cache counters; repeatable")
      ->group(kPass);
  app.add_option("--prometheus-url", o.prometheus, "read them there instead")
      ->excludes("--worker")
      ->group(kPass);
  app.add_option("--settle", o.settle,
                 "seconds to wait before the counters are read again (Prometheus: its interval)")
      ->check(CLI::Range(0.0, 3600.0))
      ->group(kPass);
  app.add_option("--min-hit-rate", o.min_hit_rate, "fraction; sessions, ramp, multi5: 0.8")
      ->check(CLI::Range(0.0, 1.0))
      ->group(kPass);
  app.add_option("--min-stickiness", o.min_stickiness, "fraction, of the worst session; with sessions: 1")
      ->check(CLI::Range(0.0, 1.0))
      ->group(kPass);
  app.add_option("--max-error-rate", o.max_error_rate)
      ->check(CLI::Range(0.0, 1.0))
      ->group(kPass)
      ->capture_default_str();
  app.add_flag("--json", o.json, "one JSON object instead of the table")->group(kPass);
  app.add_option("--records", o.records, "file for one JSON object for each request")->group(kPass);
  app.add_flag("--quiet", o.quiet, "no progress")->group(kPass);
}

absl::StatusOr<std::string> FirstModel(const Target& target) {
  const absl::StatusOr<std::string> body = Get(target, "/v1/models", kGetTimeout);
  if (!body.ok()) return body.status();
  const nlohmann::json root = nlohmann::json::parse(*body, nullptr, false);
  if (root.is_object() && root.contains("data") && root["data"].is_array() && !root["data"].empty()) {
    const nlohmann::json& first = root["data"][0];
    if (first.is_object() && first.contains("id") && first["id"].is_string())
      return first["id"].get<std::string>();
  }
  return absl::NotFoundError("/v1/models: names no model");
}

absl::Status Complete(Options& o) {
  const auto workload = ParseWorkload(o.workload);
  if (!workload.ok()) return workload.status();
  o.plan.workload = *workload;
  o.plan.poisson = o.arrivals == "poisson";
  if (!o.api.empty()) o.plan.api = o.api == "chat" ? Api::kChat : Api::kCompletions;
  if (!o.prompt_file.empty()) {
    std::ifstream file(o.prompt_file);
    o.plan.prompt.assign(std::istreambuf_iterator<char>(file), {});
    if (o.plan.prompt.empty()) return absl::InvalidArgumentError("prompt-file: is empty");
  }
  const auto target = ParseTarget(o.target);
  if (!target.ok()) return absl::InvalidArgumentError(absl::StrCat("target: ", target.status().message()));
  o.run.target = *target;
  o.run.stream = !o.no_stream;
  o.run.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(o.timeout * 1000));
  o.run.session_header = o.session_by == "all" || o.session_by == "header";
  o.run.session_x_header = o.session_by == "all" || o.session_by == "x-header";
  o.run.session_cookie = o.session_by == "all" || o.session_by == "cookie";
  o.run.test_id = o.test_id.empty()
                      ? absl::StrCat("llmd-load-",
                                     std::chrono::system_clock::now().time_since_epoch().count() / 1'000'000)
                      : o.test_id;
  for (const std::string& header : o.headers) {
    const std::size_t colon = header.find(':');
    if (colon == 0 || colon == std::string::npos || absl::StrContains(header, '\n') ||
        absl::StrContains(header, '\r')) {
      return absl::InvalidArgumentError(absl::StrCat("header: \"", header, "\" is not NAME: VALUE"));
    }
    const std::size_t value = header.find_first_not_of(' ', colon + 1);
    o.run.headers.emplace_back(header.substr(0, colon),
                               value == std::string::npos ? "" : header.substr(value));
  }
  if (!o.api_key.empty()) o.run.headers.emplace_back("authorization", "Bearer " + o.api_key);
  return absl::OkStatus();
}

// Progress for people: a line that is written over, or without a terminal one now and then.
std::function<void(const Progress&)> Show(std::ostream& err) {
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  return [&err, terminal, last = 0.0](const Progress& p) mutable {
    if (!terminal && p.seconds - last < 10) return;
    last = p.seconds;
    err << (terminal ? "\r\033[K" : "")
        << absl::StrFormat("%.0f s: %d of %d done, %d on their way, %d failed", p.seconds, p.done, p.all,
                           p.in_flight, p.errors)
        << (terminal ? "" : "\n") << std::flush;
  };
}

class Counters {
 public:
  static absl::StatusOr<Counters> Make(const Options& o) {
    Counters counters;
    for (const std::string& url : o.workers) {
      const auto worker = ParseTarget(url);
      if (!worker.ok())
        return absl::InvalidArgumentError(absl::StrCat("worker: ", worker.status().message()));
      counters.workers_.push_back(*worker);
    }
    if (!o.prometheus.empty()) {
      const auto prometheus = ParseTarget(o.prometheus);
      if (!prometheus.ok()) {
        return absl::InvalidArgumentError(absl::StrCat("prometheus-url: ", prometheus.status().message()));
      }
      counters.prometheus_ = *prometheus;
    }
    return counters;
  }

  bool any() const { return prometheus_ || !workers_.empty(); }
  const char* name() const { return prometheus_ ? "prometheus" : "workers"; }

  // Sets `complete` to false when some did not answer; says so on `err`.
  std::vector<WorkerCounters> Read(std::ostream& err, bool& complete) const {
    std::vector<WorkerCounters> out;
    if (prometheus_) {
      auto read = FetchPrometheus(*prometheus_, kGetTimeout);
      if (read.ok()) return *std::move(read);
      complete = false;
      err << "llmd_load: " << read.status().message() << "\n";
      return out;
    }
    out = FetchWorkers(workers_, kGetTimeout);
    for (const WorkerCounters& worker : out) {
      if (worker.error.empty()) continue;
      complete = false;
      err << "llmd_load: " << worker.worker << ": " << worker.error << "\n";
    }
    return out;
  }

 private:
  std::vector<Target> workers_;
  std::optional<Target> prometheus_;
};

// The limit asked for, else the workload's own.
Criterion Limit(const std::optional<double>& asked, const std::optional<double>& own) {
  return {asked ? asked : own, asked.has_value()};
}

int Fail(std::ostream& err, const absl::Status& status) {
  err << "llmd_load: " << status.message() << "\n";
  return 2;
}

int Run(Options& o, std::ostream& out, std::ostream& err) {
  if (absl::Status status = Complete(o); !status.ok()) return Fail(err, status);
  const absl::StatusOr<Plan> plan = MakePlan(o.plan);
  if (!plan.ok()) return Fail(err, plan.status());
  const absl::StatusOr<Counters> counters = Counters::Make(o);
  if (!counters.ok()) return Fail(err, counters.status());
  std::ofstream records;
  if (!o.records.empty()) {
    records.open(o.records);
    if (!records) return Fail(err, absl::InvalidArgumentError("records: cannot write " + o.records));
  }
  o.run.model = o.model;
  if (o.run.model.empty()) {
    const absl::StatusOr<std::string> model = FirstModel(o.run.target);
    if (!model.ok())
      return Fail(err, absl::UnavailableError(absl::StrCat("no --model, and ", model.status().message())));
    o.run.model = *model;
  }
  if (!o.quiet) {
    o.run.progress = Show(err);
    err << absl::StrFormat(
        "%s: %d requests for %s%s\n", o.workload, plan->requests(), o.run.model,
        plan->open_loop ? absl::StrFormat(", the last one due after %.0f s", plan->last_start()) : "");
  }

  Sources sources;
  sources.name = counters->name();
  std::vector<WorkerCounters> before;
  o.run.warm = [&] { before = counters->Read(err, sources.complete); };
  const RunResult result = RunPlan(*plan, o.run);
  if (!o.quiet && ::isatty(STDERR_FILENO) == 1) err << "\r\033[K" << std::flush;
  if (counters->any()) {
    std::this_thread::sleep_for(std::chrono::duration<double>(o.settle));
    sources.workers = Delta(before, counters->Read(err, sources.complete));
  }
  const Criteria criteria{Limit(o.min_hit_rate, plan->min_hit_rate),
                          Limit(o.min_stickiness, plan->min_stickiness), o.max_error_rate};
  const Report report = MakeReport(result, sources, criteria);
  if (o.json) {
    PrintJson(report, o.workload, out);
  } else {
    PrintTable(report, out);
  }
  if (records.is_open()) PrintRecords(result, records);
  return report.exit_code();
}

}  // namespace

int RunCommandLine(int argc, const char* const* argv, std::ostream& out, std::ostream& err) {
  Options options;
  CLI::App app("Sends OpenAI requests through a gateway and measures latency, stickiness and cache hits.");
  app.footer(
      "Exit code: 0 when all limits are kept, 1 when one is missed, 2 for wrong usage or when nothing was "
      "measured.");
  Define(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, out, err) == 0 ? 0 : 2;
  }
  try {
    return Run(options, out, err);
  } catch (const std::exception& error) {
    err << "llmd_load: " << error.what() << "\n";
    return 2;
  }
}

}  // namespace llmd::load
