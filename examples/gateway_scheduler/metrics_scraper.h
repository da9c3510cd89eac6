// Reads the metrics pages of all endpoints of the pool again and again, and writes what they tell into it.
//
//   CurlLoop loop;
//   absl::StatusOr<std::optional<ScraperOptions>> options = ScraperOptionsOf(scheduler);
//   MetricsScraper scraper(**options, pool, loop);   // scrapes from now on
//
// Every endpoint has its own tenth of the interval, so that scrapes are spread over it, and is scraped once
// at a time: a slow one delays nobody but itself. One that fails is asked ever more seldom, down to once in
// max_backoff. Results enter the pool together with others that come within `batch`, since each change of the
// pool publishes a copy. A failed scrape changes nothing: that a value is old shows in its Sample::at.
// (spec: scheduling.md 4.1)
//
// Threads: the work is done on the loop's thread; any thread may call. The loop must outlive the scraper, the
// pool both.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_METRICS_SCRAPER_H_
#define EXAMPLES_GATEWAY_SCHEDULER_METRICS_SCRAPER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "examples/gateway_scheduler/curl_loop.h"
#include "examples/gateway_scheduler/pool_store.h"
#include "llmd/gateway/engine_config.h"
#include "llmd/gateway/engine_metrics.h"
#include "llmd/sched/scheduler.h"

namespace llmd::host {

struct ScraperOptions {
  absl::Duration interval = absl::Milliseconds(50);  // at least 1 ms
  absl::Duration timeout = absl::Seconds(1);         // of one scrape
  absl::Duration max_backoff = absl::Seconds(1);     // of an endpoint that fails
  absl::Duration batch = absl::Milliseconds(5);      // between two changes of the pool
  std::string scheme = "http";
  std::string path = "/metrics";
  std::uint16_t port = 0;  // instead of the endpoint's; 0: the endpoint's
  http::Headers headers = {};
  FetchTls tls = {.verify = false};
  std::size_t max_page_bytes = std::size_t{16} << 20;
  std::shared_ptr<const gateway::EngineCatalog> engines = nullptr;  // null: those that the library knows
  gateway::EngineMetricsOptions reading = {};                       // its limit of bytes is max_page_bytes
};

// What the configuration says of the plugins metrics-data-source and core-metrics-extractor; without a value
// when nothing is to be scraped. `refresh` is the host's interval, of which a plugin's is made a multiple.
// InvalidArgument names the plugin and the field.
absl::StatusOr<std::optional<ScraperOptions>> ScraperOptionsOf(
    const sched::Scheduler& scheduler, absl::Duration refresh = absl::Milliseconds(50));

// Sums since the scraper was made.
struct ScraperCounters {
  std::uint64_t started = 0;
  std::uint64_t good = 0;            // pages read
  std::uint64_t bytes = 0;           // of pages
  std::uint64_t late = 0;            // scrapes left out, since the one before was still under way
  std::uint64_t publications = 0;    // changes of the pool
  std::uint64_t connections = 0;     // opened by the loop, also for others
  std::uint64_t unreachable = 0;     // errors of polling: no connection, or it broke,
  std::uint64_t timed_out = 0;       // no answer in time,
  std::uint64_t bad_status = 0;      // an HTTP status other than 200,
  std::uint64_t too_long = 0;        // a page over the limit
  std::uint64_t refused_pages = 0;   // errors of extracting: no metrics page at all,
  std::uint64_t field_problems = 0;  // single metrics that are missing or without meaning

  // datalayer_poll_errors_total and datalayer_extract_errors_total (spec: gateway.md 3)
  std::uint64_t poll_errors() const { return unreachable + timed_out + bad_status + too_long; }
  std::uint64_t extract_errors() const { return refused_pages + field_problems; }
};

struct EndpointScrape {
  std::string id = {};  // of the endpoint
  std::string url = {};
  std::string engine = {};
  bool in_flight = false;
  std::uint32_t failures = 0;                   // in a row
  absl::Time last_good = absl::InfinitePast();  // when a page was read last
  std::string last_error = {};                  // the newest; stays after a success
  absl::Time last_error_at = absl::InfinitePast();
  absl::Duration took = absl::ZeroDuration();  // the last good scrape
  std::size_t page_bytes = 0;
  std::string problems = {};  // of single metrics of the last page
};

class MetricsScraper {
 public:
  MetricsScraper(const ScraperOptions& options, PoolStore& pool, CurlLoop& loop);
  ~MetricsScraper();  // returns when nothing more will touch the pool
  MetricsScraper(const MetricsScraper&) = delete;
  MetricsScraper& operator=(const MetricsScraper&) = delete;

  ScraperCounters counters() const;
  // In the order of the endpoints' ids.
  std::vector<EndpointScrape> Endpoints() const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_METRICS_SCRAPER_H_
