#include "llmd/gateway/headers.h"

#include <gtest/gtest.h>

namespace llmd::gateway {
namespace {

TEST(Refusals, ByStatus) {
  struct Case {
    absl::StatusCode code;
    int http;
    std::string_view body;
  };
  const Case cases[] = {
      {absl::StatusCode::kInvalidArgument, 400, "inference error: BadRequest - why"},
      {absl::StatusCode::kUnauthenticated, 401, "inference error: Unauthorized - why"},
      {absl::StatusCode::kPermissionDenied, 403, "inference error: Forbidden - why"},
      {absl::StatusCode::kNotFound, 404, "inference error: NotFound - why"},
      {absl::StatusCode::kFailedPrecondition, 412, "inference error: PreconditionFailed - why"},
      {absl::StatusCode::kResourceExhausted, 429, "inference error: ResourceExhausted - why"},
      {absl::StatusCode::kInternal, 500, "inference error: Internal - why"},
      {absl::StatusCode::kUnknown, 500, "inference error: Internal - why"},
      {absl::StatusCode::kUnavailable, 503, "inference error: ServiceUnavailable - why"},
  };
  for (const Case& one : cases) {
    const Refusal refusal = RefusalOf(absl::Status(one.code, "why"));
    EXPECT_EQ(refusal.http_status, one.http);
    EXPECT_EQ(RefusalBody(refusal), one.body);
    EXPECT_EQ(refusal.reason, sched::DroppedReason::kNone);
  }
  EXPECT_EQ(RefusalOf(sched::WithDroppedReason(absl::ResourceExhaustedError("x"),
                                               sched::DroppedReason::kTtlExpired))
                .reason,
            sched::DroppedReason::kTtlExpired);
}

TEST(Subset, MatchesAddressAndPort) {
  EXPECT_TRUE(MatchesSubset("10.0.0.1:80", "10.0.0.1:80"));
  EXPECT_TRUE(MatchesSubset(" 10.0.0.1:80 ", "10.0.0.1:80"));
  EXPECT_FALSE(MatchesSubset("10.0.0.1:81", "10.0.0.1:80"));
  EXPECT_TRUE(MatchesSubset("10.0.0.1:81", "10.0.0.1:80", /*address_only=*/true));
  EXPECT_TRUE(MatchesSubset("10.0.0.1", "10.0.0.1:80"));
  EXPECT_FALSE(MatchesSubset("10.0.0.1", "10.0.0.11:80"));
  EXPECT_TRUE(MatchesSubset("[fd00::1]:80", "[fd00::1]:80"));
  EXPECT_TRUE(MatchesSubset("fd00::1", "[fd00::1]:80"));
  EXPECT_TRUE(MatchesSubset("[fd00::1]", "[fd00::1]:80"));
  EXPECT_FALSE(MatchesSubset("[fd00::1]:81", "[fd00::1]:80"));
  EXPECT_FALSE(MatchesSubset("", "10.0.0.1:80"));
  EXPECT_FALSE(MatchesSubset("", ""));
}

TEST(Names, OwnedByTheSystem) {
  for (const std::string_view name :
       {"x-llm-d-inference-objective", "x-gateway-inference-objective", "x-llm-d-inference-fairness-id",
        "x-gateway-inference-fairness-id", "x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite",
        "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms", "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms", "x-llm-d-video-fps",
        "x-llm-d-video-duration-seconds", "x-llm-d-video-resolution", "x-gateway-destination-endpoint",
        "x-gateway-destination-endpoint-served", "x-gateway-destination-endpoint-subset",
        "x-llm-d-request-dropped-reason"}) {
    EXPECT_TRUE(IsSystemOwned(name)) << name;
    EXPECT_TRUE(IsStripped(name)) << name;
  }
  EXPECT_TRUE(IsSystemOwned("content-length"));
  EXPECT_FALSE(IsStripped("content-length"));
  EXPECT_FALSE(IsSystemOwned("x-session-token"));
  EXPECT_FALSE(IsStripped("x-request-id"));
  EXPECT_TRUE(IsStripped("x-prefiller-host-port"));
}

TEST(Uuid, HasVersionAndVariant) {
  EXPECT_EQ(FormatUuid4(0, 0), "00000000-0000-4000-8000-000000000000");
  EXPECT_EQ(FormatUuid4(~std::uint64_t{0}, ~std::uint64_t{0}), "ffffffff-ffff-4fff-bfff-ffffffffffff");
}

TEST(Check, NamesAndValues) {
  EXPECT_TRUE(CheckHeader("x-a", "b\tc \xc3\xa9").ok());
  EXPECT_TRUE(CheckHeader(":path", "/").ok());
  EXPECT_TRUE(CheckHeader("x-a", std::string(16384, 'v')).ok());
  EXPECT_EQ(CheckHeader("x-a", std::string(16385, 'v')).message(),
            "header x-a has 16385 bytes, more than the limit of 16384");
  for (const std::string_view name : {"", ":", "a b", "a:b", "a\n", "\xc3"})
    EXPECT_FALSE(CheckHeader(name, "v").ok()) << name;
  for (const std::string_view value : {std::string_view("\r"), std::string_view("\n"),
                                       std::string_view("\0", 1), std::string_view("\x7f")}) {
    EXPECT_FALSE(CheckHeader("x", value).ok());
  }
}

}  // namespace
}  // namespace llmd::gateway
