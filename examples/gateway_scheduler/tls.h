// Certificates of the gRPC port: from a folder, reloaded when the files change, or self-signed for this
// process.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_TLS_H_
#define EXAMPLES_GATEWAY_SCHEDULER_TLS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace grpc {
class ServerCredentials;
}

namespace llmd::host {

struct TlsOptions {
  std::string cert_path = {};  // folder with tls.crt and tls.key (PEM); empty: self-signed
  bool reload = false;         // look for new files every few seconds
};

// Without a client certificate. InvalidArgument names the file that cannot be used.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const TlsOptions& options);

struct PemPair {
  std::string certificate;
  std::string key;
};
// An EC key and a certificate of it for ten years, as llm-d makes one.
absl::StatusOr<PemPair> MakeSelfSigned();

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_TLS_H_
