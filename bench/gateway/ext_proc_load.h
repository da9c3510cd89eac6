// A load on an external-processing server, speaking as Envoy does: one gRPC stream for each request, bodies
// in full duplex, several connections, one thread.
//
//   ExtProcLoad load({.target = "127.0.0.1:9002"});
//   if (!load.Connect(std::chrono::seconds(5))) ...
//   LoadResult most = load.RunClosed(requests, 32, seconds);          // as much as it takes
//   LoadResult half = load.RunOpen(requests, most.rate() / 2, seconds);
//
// A request is: headers, the body in pieces, and when the answer to all of it is there (the decision is
// complete), the headers and the body of a response, until the server ends the stream.
#ifndef BENCH_GATEWAY_EXT_PROC_LOAD_H_
#define BENCH_GATEWAY_EXT_PROC_LOAD_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/gateway/ext_proc_requests.h"

namespace llmd::bench {

struct LoadOptions {
  std::string target = {};
  int connections = 4;
  std::uint64_t seed = 1;                   // of the arrival times
  std::size_t max_open_streams = 4096;      // beyond, arrivals are counted as shed
  std::chrono::seconds stream_timeout{60};  // a stream that takes longer has failed
};

struct LoadResult {
  std::uint64_t decided = 0;  // ended well, response phase included
  std::uint64_t refused = 0;  // immediate responses
  std::uint64_t failed = 0;
  std::uint64_t shed = 0;
  std::string first_error = {};
  std::string destination = {};       // the last one
  double seconds = 0;                 // during which requests were started
  std::vector<double> added_us = {};  // from the last message of the request to the last answer to it
  std::vector<double> late_us = {};   // open loop: from the time a request was due to its start

  double rate() const { return seconds > 0 ? static_cast<double>(decided) / seconds : 0; }
  bool ok() const { return decided > 0 && refused == 0 && failed == 0 && shed == 0; }
};

class ExtProcLoad {
 public:
  explicit ExtProcLoad(const LoadOptions& options);
  ~ExtProcLoad();
  ExtProcLoad(const ExtProcLoad&) = delete;
  ExtProcLoad& operator=(const ExtProcLoad&) = delete;

  bool Connect(std::chrono::milliseconds timeout);
  // `streams` at a time; at most `limit` requests, unless 0.
  LoadResult RunClosed(RequestSet& requests, std::size_t streams, std::chrono::duration<double> duration,
                       std::uint64_t limit = 0);
  // Arrivals at random (Poisson) whether or not earlier requests were answered.
  LoadResult RunOpen(RequestSet& requests, double per_second, std::chrono::duration<double> duration);
  // Brings `streams` streams, few at a time, to where the response's headers are answered, and keeps them.
  LoadResult Hold(RequestSet& requests, std::size_t streams);
  // Ends what Hold() kept; the result counts them.
  LoadResult Release(RequestSet& requests);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::bench

#endif  // BENCH_GATEWAY_EXT_PROC_LOAD_H_
