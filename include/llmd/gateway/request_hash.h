// The hash of a request that Envoy's consistent load balancers turn into a host, bit for bit.
//
// Envoy walks a route's hash policies; each that finds something gives a 64-bit hash, and the hashes are
// combined. Without any, Envoy draws a random number: no stickiness (spec: gateway.md 4.4).
//
//   RequestHash hash;
//   hash.Add(HashHeaderValues({&session_id, 1}));
//   ring.Pick(hash.value().value_or(random.Next()));
//
// Plain values, no threads, nothing allocated but for repeated headers.
#ifndef LLMD_GATEWAY_REQUEST_HASH_H_
#define LLMD_GATEWAY_REQUEST_HASH_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace llmd::gateway {

// XXH64. With seed 0 it is the policy hash of a cookie's value, of a source IP's text without port, and of a
// query parameter's first value.
std::uint64_t XxHash64(std::string_view text, std::uint64_t seed = 0);

// std::hash<std::string> of libstdc++ on 64-bit machines, which Envoy calls MURMUR_HASH_2.
std::uint64_t MurmurHash2(std::string_view text, std::uint64_t seed = 0xc70f6907);

// The policy hash of a header: its values in byte order, each hashed with the hash before it as the seed, so
// that one value v gives XxHash64(v). `values` must not be empty; a header without a value has one, "".
std::uint64_t HashHeaderValues(std::span<const std::string_view> values);

// The combination of several policies' hashes.
class RequestHash {
 public:
  void Add(std::uint64_t hash) {
    const std::uint64_t old = value_.value_or(0);
    value_ = (old << 1 | old >> 63) ^ hash;
  }
  const std::optional<std::uint64_t>& value() const { return value_; }

 private:
  std::optional<std::uint64_t> value_;
};

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_REQUEST_HASH_H_
