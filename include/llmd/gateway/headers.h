// HTTP headers as a picker reads them, the names it knows, and refusals.
//
// HeaderList keeps names in lower case and of a repeated header the last value, as the reference picker does.
// Plain values, no threads. (spec: gateway.md 2.5, 2.6)
#ifndef LLMD_GATEWAY_HEADERS_H_
#define LLMD_GATEWAY_HEADERS_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "llmd/sched/decision.h"

namespace llmd::gateway {

struct HeaderField {
  std::string name = {};  // lower case
  std::string value = {};
  bool repeated = false;  // came more than once

  friend bool operator==(const HeaderField&, const HeaderField&) = default;
};

class HeaderList {
 public:
  // Lower-cases the name; a later value replaces an earlier one.
  void Set(std::string_view name, std::string_view value);
  const std::string* Find(std::string_view name) const;
  // Empty when absent.
  std::string_view Get(std::string_view name) const;
  const std::vector<HeaderField>& fields() const { return fields_; }
  std::size_t size_bytes() const { return size_bytes_; }
  void Clear();

 private:
  std::vector<HeaderField> fields_;
  std::size_t size_bytes_ = 0;  // names and values received
};

inline constexpr std::string_view kDestinationHeader = "x-gateway-destination-endpoint";
inline constexpr std::string_view kServedHeader = "x-gateway-destination-endpoint-served";
inline constexpr std::string_view kSubsetKey = "x-gateway-destination-endpoint-subset";
inline constexpr std::string_view kScoresKey = "x-gateway-destination-endpoint-scores";
inline constexpr std::string_view kSubsetNamespace = "envoy.lb.subset_hint";
inline constexpr std::string_view kLbNamespace = "envoy.lb";
inline constexpr std::string_view kDroppedReasonHeader = "x-llm-d-request-dropped-reason";
inline constexpr std::string_view kRequestIdHeader = "x-request-id";
inline constexpr std::string_view kProcessedHeader = "x-went-into-resp-headers";
inline constexpr std::string_view kServedTestHeader = "x-conformance-test-served-endpoint";
inline constexpr std::string_view kPrefillHeader = "x-prefiller-host-port";

// Control headers under their current name; the deprecated alias is read when that is absent.
enum class ControlHeader { kObjective, kFairnessId, kModelRewrite, kSloTtft, kSloTpot };
std::optional<std::string_view> FindControl(const HeaderList& headers, ControlHeader which);

// Headers that only this protocol's own parties may set: never copied from a client's request.
bool IsSystemOwned(std::string_view lower_case_name);
// What a client must not smuggle to the model server: the system-owned headers but content-length, and the
// routing headers that pickers set for sidecars.
bool IsStripped(std::string_view lower_case_name);

// Whether a mutation may carry it: a token as the name, no control character but tab in the value, at most
// 16384 bytes each.
absl::Status CheckHeader(std::string_view name, std::string_view value);

// A uniform version-4 UUID from 128 random bits.
std::string FormatUuid4(std::uint64_t high, std::uint64_t low);

// A request turned away.
struct Refusal {
  int http_status = 500;
  std::string message = {};  // after "inference error: <Code> - "
  sched::DroppedReason reason = sched::DroppedReason::kNone;
  std::vector<HeaderField> headers = {};
};
// By the status' code (spec: gateway.md 2.6), with its dropped reason. Codes without an HTTP answer become
// 500.
Refusal RefusalOf(const absl::Status& status);
// "BadRequest" for 400, "Internal" where there is no better word.
std::string_view CodeWord(int http_status);
// The answer's body: "inference error: <Code> - <message>".
std::string RefusalBody(const Refusal& refusal);

// Whether an endpoint is named by an entry of a subset hint: by address alone when the entry has no port or
// with `address_only`, else by address and port. (spec: gateway.md 2.2)
bool MatchesSubset(std::string_view entry, std::string_view endpoint, bool address_only = false);

}  // namespace llmd::gateway

#endif  // LLMD_GATEWAY_HEADERS_H_
