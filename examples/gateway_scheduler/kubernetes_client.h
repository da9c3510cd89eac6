// The Kubernetes API as HTTP: where it is, who we are there, and requests that can be stopped.
//
//   auto config = ResolveKubernetesConfig({}, Environment());     // in a pod: the service account's
//   KubernetesConnection connection(*config);
//   auto reply = connection.Get("/api/v1/namespaces/default/pods?limit=500", limits, {});
//
// The token and CA files are read again for each request and connection, as the cluster replaces them. A
// connection is used by one thread, and kept open between requests; Stop() may come from any thread and ends
// a request that is under way. There are no proxies and no redirects: a token goes to the server named and
// nowhere else.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_CLIENT_H_
#define EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_CLIENT_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace llmd::host {

struct KubernetesConfig {
  std::string api_url = {};        // https://host:port
  std::string token_file = {};     // empty: without a token
  std::string ca_file = {};        // empty: the system's authorities
  std::string pod_namespace = {};  // the one that we run in; empty: not known
  absl::Duration connect_timeout = absl::Seconds(10);
};

// Fills in what is empty from the environment of a pod: KUBERNETES_SERVICE_HOST and _PORT, the files of the
// service account, and POD_NAMESPACE. Given an api_url, token and CA are only what was given with it. Files
// that are named must be readable.
absl::StatusOr<KubernetesConfig> ResolveKubernetesConfig(
    KubernetesConfig given, const std::function<const char*(const char*)>& environment,
    const std::string& account_directory = "/var/run/secrets/kubernetes.io/serviceaccount");

class KubernetesConnection {
 public:
  struct Limits {
    std::size_t max_bytes = std::size_t{64} << 20;  // of an answer that is not streamed
    absl::Duration timeout = absl::Seconds(60);     // of all of it
    absl::Duration first_byte = absl::Seconds(30);  // until the answer begins
  };
  struct Reply {
    int status = 0;
    std::string body = {};  // empty when it went to the sink
    std::optional<absl::Duration> retry_after = {};
  };
  // Takes the body of a 200 as it comes, and nothing when it begins; an error ends the request and is what
  // Get() returns.
  using Sink = std::function<absl::Status(std::string_view)>;

  explicit KubernetesConnection(KubernetesConfig config);
  ~KubernetesConnection();

  // `target` is path and query. Any HTTP status is a reply. Cancelled: stopped; DeadlineExceeded: the
  // timeout; ResourceExhausted: too long; Unavailable: the network, the certificate or the token file.
  absl::StatusOr<Reply> Get(const std::string& target, const Limits& limits, const Sink& sink);
  // This request and all later ones are cancelled.
  void Stop();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// For a value in a query.
std::string UrlEncode(std::string_view text);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_KUBERNETES_CLIENT_H_
