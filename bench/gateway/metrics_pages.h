// A web server whose every path is the metrics page of an idle vLLM server, on all loopback addresses at
// once: 127.0.0.1, 127.0.0.2, ... are as many model servers.
#ifndef BENCH_GATEWAY_METRICS_PAGES_H_
#define BENCH_GATEWAY_METRICS_PAGES_H_

#include <memory>
#include <string>

namespace llmd::bench {

class MetricsPages {
 public:
  // On any free port, with a thread of its own. Null with the reason in `error`.
  static std::unique_ptr<MetricsPages> Start(std::string& error);
  ~MetricsPages();

  int port() const;

 private:
  struct Impl;
  explicit MetricsPages(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::bench

#endif  // BENCH_GATEWAY_METRICS_PAGES_H_
