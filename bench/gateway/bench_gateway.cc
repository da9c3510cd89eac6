// What an endpoint picker costs: external-processing requests as Envoy sends them, from this process over
// loopback to the server in another one.
//
//   bench_gateway --json                          our gateway_scheduler, started here, freshly for each case
//   bench_gateway --null-server                   a server that decides nothing: what gRPC itself costs
//   bench_gateway --target HOST:PORT --target-pid PID    any other server, plaintext; its endpoints are its
//   own
//
// Cases: extproc_t<tokens>_e<endpoints>, chat prompts of text, four characters a token, no two alike;
// with _ids the prompt is token ids (/v1/completions), with _sessions it is the turns of 64 growing
// conversations, from 0.65 to 1.35 of the tokens. Bodies come in pieces of 64 KiB, in full duplex; a request
// is one stream, the response phase (headers, a short SSE body with usage) included.
//   decisions_per_s       for each core: decisions divided by the server's processor seconds, as much load
//                         as it takes (--streams at a time)
//   decisions_per_s_wall  the same by the clock
//   cpu_us_per_request    the server's processor time, all its threads, response phase included
//   added_p50_us, added_p99_us   at half of that load, arrivals at random: from the last message of the
//   request
//                         to the last answer to it, when the decision is known and the body is back
//   late_p99_us           of the same load: how late this process started requests. When it is not far
//                         below added_p99_us, the machine was too busy for the latter to be the server's
//   stream_bytes          growth of the server's resident memory for each open stream, --held-streams held
//                         where a model would be generating
//   idle_cores            processor seconds of the server a second, without load (metrics every --refresh-ms)
// The server has --server-threads threads. Its endpoints are addresses 127.0.0.N of one small metrics server
// in this process.
// Exit code: 0, 1 when a case could not be measured or a request failed, 2 for wrong usage.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>

#include "bench/bench_util.h"
#include "bench/gateway/ext_proc_load.h"
#include "bench/gateway/ext_proc_requests.h"
#include "bench/gateway/metrics_pages.h"
#include "bench/gateway/null_ext_proc_server.h"
#include "bench/gateway/server_process.h"

namespace llmd::bench {
namespace {

struct Options {
  bool json = false, table = false, null_server = false, serve_null = false;
  std::string target, server, config;
  pid_t target_pid = 0;
  int server_threads = 1, refresh_ms = 1000, connections = 4;
  std::vector<std::size_t> tokens{1'000, 16'000, 100'000}, endpoints{10, 100};
  std::vector<std::string> prompts{"distinct", "ids", "sessions"}, server_arguments;
  double seconds = 3;
  std::size_t streams = 0, held_streams = 1000;
  std::uint64_t seed = 1;
};

std::string DefaultServer(const char* program) {
  std::error_code error;
  std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) self = program;
  return self.parent_path() / "../../examples/gateway_scheduler/gateway_scheduler";  // in the build tree
}

PromptKind KindOf(const std::string& name) {
  if (name == "ids") return PromptKind::kIds;
  return name == "sessions" ? PromptKind::kSessions : PromptKind::kDistinct;
}

// What is measured: its address, and its process when there is one to watch.
struct Subject {
  std::unique_ptr<ServerProcess> process;
  std::string target;
  pid_t pid = 0;
};

// An endpoints file, which goes away with this object.
class EndpointsFile {
 public:
  EndpointsFile(std::size_t endpoints, int port)
      : path_(std::filesystem::temp_directory_path() /
              ("bench_gateway_" + std::to_string(::getpid()) + ".yaml")) {
    std::ofstream file(path_);
    file << "endpoints:\n";
    for (std::size_t i = 0; i < endpoints; ++i) {
      file << "- {name: worker-" << i << ", address: 127.0." << i / 250 << '.' << i % 250 + 1 << ", port: \""
           << port << "\", labels: {llm-d.ai/role: decode}}\n";
    }
  }
  ~EndpointsFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  std::string path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::optional<Subject> StartSubject(const Options& options, const std::string& endpoints_file,
                                    const char* program) {
  Subject subject;
  if (!options.target.empty()) {
    subject.target = options.target;
    subject.pid = options.target_pid;
    return subject;
  }
  std::vector<std::string> command;
  if (options.null_server) {
    command = {"/proc/self/exe", "--serve-null"};
  } else {
    command = {options.server.empty() ? DefaultServer(program) : options.server,
               "--bind-address=127.0.0.1",
               "--grpc-port=0",
               "--grpc-health-port=0",
               "--metrics-port=0",
               "--status-port=0",
               "--secure-serving=false",
               "--endpoints-file=" + endpoints_file,
               "--drain-timeout=0s",
               "--threads=" + std::to_string(options.server_threads),
               "--refresh-metrics-interval=" + std::to_string(options.refresh_ms) + "ms",
               "--metrics-staleness-threshold=" + std::to_string(4 * options.refresh_ms) + "ms"};
    if (!options.config.empty()) command.push_back("--config-file=" + options.config);
    command.insert(command.end(), options.server_arguments.begin(), options.server_arguments.end());
  }
  std::string error;
  subject.process = ServerProcess::Start(command, std::chrono::seconds(20), error);
  if (!subject.process) {
    std::fprintf(stderr, "bench_gateway: %s\n", error.c_str());
    return std::nullopt;
  }
  const std::optional<int> port = ReadyPort(subject.process->ready_line(), "ext_proc");
  if (!port) {
    std::fprintf(stderr, "bench_gateway: no ext_proc=PORT in \"%s\"\n",
                 subject.process->ready_line().c_str());
    return std::nullopt;
  }
  subject.target = "127.0.0.1:" + std::to_string(*port);
  subject.pid = subject.process->pid();
  return subject;
}

bool Check(const std::string& name, const char* what, const LoadResult& result) {
  if (result.ok()) return true;
  std::fprintf(
      stderr, "bench_gateway: %s, %s: %llu decided, %llu refused, %llu failed, %llu not started: %s\n",
      name.c_str(), what, static_cast<unsigned long long>(result.decided),
      static_cast<unsigned long long>(result.refused), static_cast<unsigned long long>(result.failed),
      static_cast<unsigned long long>(result.shed), result.first_error.c_str());
  return false;
}

// False when something of it could not be measured.
bool RunCase(const Options& options, const Reporter& reporter, PromptKind kind, std::size_t tokens,
             std::size_t endpoints, int pages_port, const char* program) {
  std::string name = "extproc_t" + std::to_string(tokens) + "_e" + std::to_string(endpoints);
  if (kind != PromptKind::kDistinct) name += "_" + std::string(ToString(kind));
  const EndpointsFile file(endpoints, pages_port);
  const std::optional<Subject> subject = StartSubject(options, file.path(), program);
  if (!subject) return false;
  ExtProcLoad load({.target = subject->target, .connections = options.connections, .seed = options.seed});
  if (!load.Connect(std::chrono::seconds(10))) {
    std::fprintf(stderr, "bench_gateway: %s: no connection to %s\n", name.c_str(), subject->target.c_str());
    return false;
  }
  RequestSet requests(kind, tokens, options.seed);
  const std::chrono::duration<double> duration(options.seconds);
  const bool watched = subject->pid > 0;

  const LoadResult warm_up = load.RunClosed(requests, 8, duration / 4);
  if (!Check(name, "warm-up", warm_up)) return false;

  if (watched && options.held_streams > 0) {
    // What takes longer than some seconds to build up is measured with fewer.
    const auto held = std::min(options.held_streams,
                               std::max<std::size_t>(50, static_cast<std::size_t>(warm_up.rate() * 10)));
    const std::optional<double> before = ResidentBytes(subject->pid);
    const LoadResult holding = load.Hold(requests, held);
    const std::optional<double> after = ResidentBytes(subject->pid);
    const LoadResult released = load.Release(requests);
    if (!Check(name, "held streams", holding) || !Check(name, "released streams", released)) return false;
    if (before && after) {
      reporter.Report(name, "stream_bytes", (*after - *before) / static_cast<double>(held), "B", true);
    }
  }
  if (watched) {
    const std::optional<double> before = CpuSeconds(subject->pid);
    std::this_thread::sleep_for(duration / 2);
    const std::optional<double> after = CpuSeconds(subject->pid);
    if (before && after)
      reporter.Report(name, "idle_cores", (*after - *before) / (options.seconds / 2), "1", true);
  }

  const std::size_t streams = options.streams > 0 ? options.streams : tokens > 50'000 ? 8 : 32;
  const double cpu_before = CpuSeconds(subject->pid).value_or(0);
  const LoadResult most = load.RunClosed(requests, streams, duration);
  const double cpu = CpuSeconds(subject->pid).value_or(0) - cpu_before;
  if (!Check(name, "full load", most)) return false;
  if (watched && cpu > 0) {
    reporter.Report(name, "decisions_per_s", static_cast<double>(most.decided) / cpu, "1/s/core", false);
    reporter.Report(name, "cpu_us_per_request", cpu * 1e6 / static_cast<double>(most.decided), "us", true);
  }
  reporter.Report(name, "decisions_per_s_wall", most.rate(), "1/s", false);

  LoadResult half = load.RunOpen(requests, most.rate() / 2, duration);
  if (!Check(name, "half load", half)) return false;
  reporter.Report(name, "offered_per_s", most.rate() / 2, "1/s", false);
  reporter.Report(name, "added_p50_us", Quantile(half.added_us, 0.5), "us", true);
  reporter.Report(name, "added_p99_us", Quantile(half.added_us, 0.99), "us", true);
  reporter.Report(name, "late_p99_us", Quantile(half.late_us, 0.99), "us", true);
  return true;
}

int ServeNull() {
  const auto server = NullExtProcServer::Start({});
  if (!server) return 1;
  std::printf("ready ext_proc=%d\n", server->port());
  std::fflush(stdout);
  while (true) ::pause();  // until a signal ends us
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Benchmark of an external-processing server (endpoint picker)");
  app.add_flag("--json", options.json, "one JSON object a line");
  app.add_flag("--table", options.table, "a table (the default)")->excludes("--json");
  auto* null_server =
      app.add_flag("--null-server", options.null_server, "measure a server that decides nothing");
  app.add_flag("--serve-null", options.serve_null, "be that server, on any free port");
  app.add_option("--target", options.target, "HOST:PORT of a server that runs already")
      ->excludes(null_server);
  app.add_option("--target-pid", options.target_pid, "its process, on this machine")->needs("--target");
  app.add_option("--server", options.server, "gateway_scheduler; default: that of this build tree");
  app.add_option("--server-threads", options.server_threads)
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--server-arg", options.server_arguments, "a further argument for it, repeatable");
  app.add_option("--config", options.config, "its --config-file")->check(CLI::ExistingFile);
  app.add_option("--refresh-ms", options.refresh_ms, "how often it reads metrics")
      ->check(CLI::Range(50, 60'000))
      ->capture_default_str();
  app.add_option("--tokens", options.tokens)
      ->delimiter(',')
      ->check(CLI::Range(8, 2'000'000))
      ->capture_default_str();
  app.add_option("--endpoints", options.endpoints)
      ->delimiter(',')
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  app.add_option("--prompts", options.prompts)
      ->delimiter(',')
      ->check(CLI::IsMember({"distinct", "ids", "sessions"}))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "of each measurement")
      ->check(CLI::Range(0.05, 600.0))
      ->capture_default_str();
  app.add_option("--streams", options.streams, "at a time at full load; default 32, or 8 for long prompts")
      ->check(CLI::Range(1, 4096));
  app.add_option("--held-streams", options.held_streams, "0: do not measure memory")
      ->check(CLI::Range(0, 100'000))
      ->capture_default_str();
  app.add_option("--connections", options.connections)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--seed", options.seed)->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (options.serve_null) return ServeNull();

  std::string error;
  const auto pages = options.target.empty() && !options.null_server ? MetricsPages::Start(error) : nullptr;
  if (!pages && !error.empty()) {
    std::fprintf(stderr, "bench_gateway: %s\n", error.c_str());
    return 1;
  }
  const Reporter reporter(options.null_server ? "bench_gateway_null" : "bench_gateway", options.json);
  bool ok = true;
  for (const std::string& prompts : options.prompts) {
    for (const std::size_t tokens : options.tokens) {
      for (const std::size_t endpoints : options.endpoints) {
        ok &= RunCase(options, reporter, KindOf(prompts), tokens, endpoints, pages ? pages->port() : 8000,
                      argv[0]);
        if (!options.target.empty() || options.null_server) break;  // the number is not ours to set
      }
    }
  }
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace llmd::bench

int main(int argc, char** argv) { return llmd::bench::Main(argc, argv); }
