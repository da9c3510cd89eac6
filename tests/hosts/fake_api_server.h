// A Kubernetes API server for tests: the list and watch protocol over real sockets, with TLS and tokens, and
// with the ways in which real ones fail.
//
// It keeps collections of JSON objects, gives each change a version, and answers GET of a collection: lists
// in pages with continue tokens, watches from a version with bookmarks, label selectors (equality) and field
// selectors (metadata.name). Any thread may call anything.
#ifndef TESTS_HOSTS_FAKE_API_SERVER_H_
#define TESTS_HOSTS_FAKE_API_SERVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tests/hosts/test_certificates.h"

namespace llmd::testing {

class FakeApiServer {
 public:
  struct Failure {
    int status = 500;
    std::string headers = {};  // "Retry-After: 1\r\n"
    std::string body = {};
    bool hang = false;  // never answers
    bool drop = false;  // closes without an answer
    bool raw = false;   // `body` is all that is sent
  };
  // What a watch sends for a line: as it is, twice, something else, nothing.
  using LineFilter = std::function<std::vector<std::string>(const std::string& line)>;

  FakeApiServer();                              // plain HTTP
  explicit FakeApiServer(const PemPair& pair);  // HTTPS
  ~FakeApiServer();
  std::string url() const;

  void Install(const std::string& collection);  // others are 404
  // Creates or replaces by metadata.namespace and name; returns the version given.
  std::uint64_t Apply(const std::string& collection, nlohmann::json object);
  void Remove(const std::string& collection, const std::string& key);
  std::vector<nlohmann::json> Objects(const std::string& collection) const;
  // Changes so far can no longer be watched from, and tokens of lists no longer be continued.
  void Compact();
  void Bookmark();  // on all watches

  void RequireToken(const std::string& token);  // empty: anyone
  void LimitPages(std::size_t objects);
  void TellGoneByEvent(bool on);
  void SendBytewise(bool on);
  void Filter(LineFilter filter);
  void FailNext(const Failure& failure, int times = 1, const std::string& substring = "");
  // Expires the token of a list that is being read, once.
  void ExpireNextContinue();
  // Ends all watches, in the midst of a line if asked for.
  void DropWatches(bool in_line);
  void Inject(const std::string& collection, const std::string& text);  // to all its watches

  std::vector<std::string> Requests() const;  // "/path?query" of each
  std::size_t CountRequests(const std::string& substring) const;
  std::size_t Watches(const std::string& collection) const;  // open now
  std::size_t Connections() const;                           // accepted so far

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::testing

#endif  // TESTS_HOSTS_FAKE_API_SERVER_H_
