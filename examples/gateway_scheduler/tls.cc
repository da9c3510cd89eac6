#include "examples/gateway_scheduler/tls.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace llmd::host {
namespace {

constexpr int kReloadSeconds = 2;
constexpr long kYears = 10;

template <typename T, void (*free)(T*)>
struct Free {
  void operator()(T* object) const { free(object); }
};
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY, EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Free<X509, X509_free>>;
struct FreeBio {
  void operator()(BIO* bio) const { BIO_free_all(bio); }
};
using Bio = std::unique_ptr<BIO, FreeBio>;

std::string Text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<std::size_t>(size));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file || text.empty())
    return absl::InvalidArgumentError(absl::StrCat("--cert-path: cannot read ", path));
  return text;
}

// gRPC says nothing of a pair that does not fit until the first handshake fails.
absl::Status CheckPair(const PemPair& pair, const std::string& where) {
  const Bio certificate_text(
      BIO_new_mem_buf(pair.certificate.data(), static_cast<int>(pair.certificate.size())));
  const Bio key_text(BIO_new_mem_buf(pair.key.data(), static_cast<int>(pair.key.size())));
  const Certificate certificate(PEM_read_bio_X509(certificate_text.get(), nullptr, nullptr, nullptr));
  if (certificate == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("--cert-path: ", where, "/tls.crt is not a PEM certificate"));
  }
  const Key key(PEM_read_bio_PrivateKey(key_text.get(), nullptr, nullptr, nullptr));
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("--cert-path: ", where, "/tls.key is not a PEM private key"));
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--cert-path: tls.key does not belong to tls.crt in ", where));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PemPair> MakeSelfSigned() {
  const Key key(EVP_EC_gen("P-256"));
  const Certificate certificate(X509_new());
  if (key == nullptr || certificate == nullptr) return absl::InternalError("OpenSSL makes no key");
  X509_set_version(certificate.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), kYears * 365 * 24 * 3600);
  X509_set_pubkey(certificate.get(), key.get());
  X509_NAME* name = X509_get_subject_name(certificate.get());
  const auto* organization = reinterpret_cast<const unsigned char*>("Inference Ext");
  X509_NAME_add_entry_by_txt(name, "O", MBSTRING_ASC, organization, -1, -1, 0);
  X509_set_issuer_name(certificate.get(), name);
  X509_EXTENSION* names =
      X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
  if (names != nullptr) {
    X509_add_ext(certificate.get(), names, -1);
    X509_EXTENSION_free(names);
  }
  if (X509_sign(certificate.get(), key.get(), EVP_sha256()) == 0) {
    return absl::InternalError("OpenSSL signs no certificate");
  }
  const Bio certificate_text(BIO_new(BIO_s_mem())), key_text(BIO_new(BIO_s_mem()));
  PEM_write_bio_X509(certificate_text.get(), certificate.get());
  PEM_write_bio_PrivateKey(key_text.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr);
  return PemPair{.certificate = Text(certificate_text.get()), .key = Text(key_text.get())};
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const TlsOptions& options) {
  namespace tls = grpc::experimental;
  PemPair pair;
  if (options.cert_path.empty()) {
    absl::StatusOr<PemPair> made = MakeSelfSigned();
    if (!made.ok()) return made.status();
    pair = *std::move(made);
  } else {
    absl::StatusOr<std::string> certificate = ReadFile(options.cert_path + "/tls.crt");
    if (!certificate.ok()) return certificate.status();
    absl::StatusOr<std::string> key = ReadFile(options.cert_path + "/tls.key");
    if (!key.ok()) return key.status();
    pair = {.certificate = *std::move(certificate), .key = *std::move(key)};
    if (absl::Status s = CheckPair(pair, options.cert_path); !s.ok()) return s;
  }
  std::shared_ptr<tls::CertificateProviderInterface> provider;
  if (options.reload && !options.cert_path.empty()) {
    provider = std::make_shared<tls::FileWatcherCertificateProvider>(
        options.cert_path + "/tls.key", options.cert_path + "/tls.crt", kReloadSeconds);
  } else {
    provider = std::make_shared<tls::StaticDataCertificateProvider>(
        std::vector<tls::IdentityKeyCertPair>{{pair.key, pair.certificate}});
  }
  tls::TlsServerCredentialsOptions tls_options(std::move(provider));
  tls_options.watch_identity_key_cert_pairs();
  tls_options.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  return tls::TlsServerCredentials(tls_options);
}

}  // namespace llmd::host
