// A certificate authority that lives as long as a test, and certificates of it.
#ifndef TESTS_HOSTS_TEST_CERTIFICATES_H_
#define TESTS_HOSTS_TEST_CERTIFICATES_H_

#include <memory>
#include <string>

namespace llmd::testing {

struct PemPair {
  std::string certificate = {};
  std::string key = {};
};

class TestAuthority {
 public:
  TestAuthority();
  ~TestAuthority();
  const std::string& certificate() const { return pem_; }
  // `names` as OpenSSL has them: "IP:127.0.0.1,DNS:localhost".
  PemPair Issue(const std::string& names) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
  std::string pem_;
};

}  // namespace llmd::testing

#endif  // TESTS_HOSTS_TEST_CERTIFICATES_H_
