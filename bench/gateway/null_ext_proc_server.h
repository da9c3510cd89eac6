// An external-processing server that decides nothing: every request goes to one fixed destination, bodies
// come back as they are. What gRPC itself costs, for comparison, and a partner for tests. One thread.
#ifndef BENCH_GATEWAY_NULL_EXT_PROC_SERVER_H_
#define BENCH_GATEWAY_NULL_EXT_PROC_SERVER_H_

#include <memory>
#include <string>

namespace llmd::bench {

class NullExtProcServer {
 public:
  struct Options {
    std::string destination = "127.0.0.1:8000";
    int refuse_with = 0;  // an HTTP status: every request is refused
  };

  // On any free port of the loopback; null when that cannot be had.
  static std::unique_ptr<NullExtProcServer> Start(const Options& options);
  ~NullExtProcServer();  // ends all streams

  int port() const;

 private:
  struct Impl;
  explicit NullExtProcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::bench

#endif  // BENCH_GATEWAY_NULL_EXT_PROC_SERVER_H_
