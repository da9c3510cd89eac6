// A gateway and its workers in one small server, for the load generator's tests: it answers OpenAI requests
// as if a worker had, and counts cache hits as vLLM does.
#ifndef TESTS_HOSTS_LOAD_FAKE_GATEWAY_H_
#define TESTS_HOSTS_LOAD_FAKE_GATEWAY_H_

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "tests/hosts/http_bed.h"

namespace llmd::load {

struct FakeBehaviour {
  bool sticky = true;    // each session on one worker, else round robin
  bool caches = true;    // a prompt seen before is a hit
  int refuse_every = 0;  // each so-many-th request: 503 with a reason
  int break_every = 0;   // breaks off within the answer
  int hang_every = 0;    // never answers
  int words = 3;         // generated
  double seconds = 0;    // before the first word
  bool upstream_header = true;
  bool error_event = false;  // an error in place of a word
};

struct SeenRequest {
  std::string path, body;
  http::Headers headers;
  std::string Header(std::string_view name) const {
    const std::string* value = http::FindHeader(headers, name);
    return value ? *value : "";
  }
};

class FakeGateway {
 public:
  explicit FakeGateway(FakeBehaviour behaviour);

  std::string url() const { return "http://" + bed_.host_port(); }
  std::vector<SeenRequest> seen() const {
    const std::lock_guard lock(mutex_);
    return seen_;
  }
  std::size_t most_at_once() const {
    const std::lock_guard lock(mutex_);
    return most_;
  }

 private:
  http::asio::awaitable<void> Handle(http::Request request, http::Response& response);
  http::asio::awaitable<void> Complete(http::Request request, http::Response& response);

  const FakeBehaviour behaviour_;
  mutable std::mutex mutex_;
  std::vector<SeenRequest> seen_;
  std::map<std::string, std::size_t> caches_;  // bodies by how often they came
  double queries_ = 0, hits_ = 0;
  std::size_t now_ = 0, most_ = 0;
  http::ServerBed bed_;  // last: its threads use the others
};

}  // namespace llmd::load

#endif  // TESTS_HOSTS_LOAD_FAKE_GATEWAY_H_
