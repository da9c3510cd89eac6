#include "llmd/sched/endpoint_pool.h"

#include <gmock/gmock.h>

#include "tests/sched/sched_test_util.h"

namespace llmd::sched {
namespace {

TEST(EndpointPool, NamesAndRoles) {
  const auto roles = [](const char* role) {
    return EndpointIdentity(
               {.name = "a", .address = "h", .port = 1, .labels = {{std::string(kRoleLabel), role}}})
        .roles;
  };
  EXPECT_EQ(EndpointIdentity({.name = "a", .address = "h", .port = 1}).roles, kRoleDecode);
  EXPECT_EQ(roles("decode"), kRoleDecode);
  EXPECT_EQ(roles("prefill"), kRolePrefill);
  EXPECT_EQ(roles("encode"), kRoleEncode);
  EXPECT_EQ(roles("both"), kRolePrefill | kRoleDecode);
  EXPECT_EQ(roles("prefill-decode"), kRolePrefill | kRoleDecode);
  EXPECT_EQ(roles("encode-prefill"), kRoleEncode | kRolePrefill);
  EXPECT_EQ(roles("encode-prefill-decode"), kRoleEncode | kRolePrefill | kRoleDecode);
  EXPECT_EQ(roles("Decode"), 0);
  EXPECT_EQ(roles(""), 0);

  const EndpointIdentity v4({.name = "a", .pod_namespace = "ns", .address = "10.0.0.1", .port = 80});
  EXPECT_EQ(v4.id, "ns/a");
  EXPECT_EQ(v4.host_port, "10.0.0.1:80");
  EXPECT_EQ(EndpointIdentity({.name = "a", .address = "fd00::1", .port = 80}).host_port, "[fd00::1]:80");
}

TEST(EndpointPool, RefusesIncompleteAndDuplicateEndpoints) {
  EndpointPool pool;
  EXPECT_EQ(pool.Add({.name = "", .address = "h", .port = 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pool.Add({.name = "a", .address = "", .port = 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pool.Add({.name = "a", .address = "h", .port = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(pool.Add({.name = "a", .address = "h", .port = 1}).ok());
  EXPECT_EQ(pool.Add({.name = "a", .address = "h2", .port = 1}).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(pool.Add({.name = "a", .pod_namespace = "other", .address = "h", .port = 1}).ok());
}

TEST(EndpointPool, HandlesOutliveNeighboursAndNotThemselves) {
  EndpointPool pool = MakePool(3);
  const EndpointHandle first = pool[0].handle, middle = pool[1].handle, last = pool[2].handle;
  EXPECT_TRUE(pool.Remove(middle));
  EXPECT_FALSE(pool.Remove(middle));
  EXPECT_EQ(pool.Find(first), 0u);
  EXPECT_EQ(pool.Find(last), 1u);
  EXPECT_EQ(pool.Find(middle), std::nullopt);
  EXPECT_EQ(pool.mutable_metrics(middle), nullptr);
  EXPECT_EQ(pool.FindId("default/pod-2"), 1u);

  const EndpointHandle next = *pool.Add({.name = "pod-3", .address = "h", .port = 1});
  EXPECT_EQ(next.slot, middle.slot);
  EXPECT_NE(next.generation, middle.generation);
  EXPECT_EQ(pool.Find(middle), std::nullopt);
  EXPECT_EQ(pool.Find(next), 2u);
}

TEST(EndpointPool, ACopyIsAMomentOfItsOwn) {
  EndpointPool pool = MakePool(1);
  MetricsAt(pool, 0).waiting_requests = {5, kNow};
  const EndpointPool copy = pool;
  MetricsAt(pool, 0).waiting_requests = {9, kNow};
  EXPECT_EQ(copy[0].metrics.waiting_requests.value, 5);
  EXPECT_EQ(copy[0].identity, pool[0].identity);
}

TEST(EndpointPool, Attributes) {
  EndpointPool pool = MakePool(1);
  EXPECT_TRUE(pool.SetAttribute(pool[0].handle, "power", {1.5, kNow}));
  EXPECT_TRUE(pool.SetAttribute(pool[0].handle, "power", {2.5, kNow}));
  EXPECT_FALSE(pool.SetAttribute({9, 1}, "power", {2.5, kNow}));
  ASSERT_NE(pool[0].FindAttribute("power"), nullptr);
  EXPECT_EQ(pool[0].FindAttribute("power")->sample.value, 2.5);
  EXPECT_EQ(pool[0].attributes.size(), 1u);
  EXPECT_EQ(pool[0].FindAttribute("heat"), nullptr);
}

TEST(EndpointPool, HoldersAreBoundAndUnbound) {
  EndpointPool pool = MakePool(2);
  const EndpointHandle a = pool[0].handle, b = pool[1].handle;
  EXPECT_FALSE(pool.BindHolder(kMaxPrefixSources, {0, 1}, a).ok());
  EXPECT_FALSE(pool.BindHolder(kExactSource, {0, 0}, a).ok());
  EXPECT_FALSE(pool.BindHolder(kExactSource, {0, 1}, {7, 7}).ok());
  EXPECT_TRUE(pool.holders(kApproximateSource).by_slot.empty());

  ASSERT_TRUE(pool.BindHolder(kExactSource, {3, 1}, a, "gpu").ok());
  ASSERT_TRUE(pool.BindHolder(kExactSource, {4, 1}, a, "cpu").ok());
  const HolderTable& table = pool.holders(kExactSource);
  EXPECT_EQ(table.by_slot[3].endpoint, a);
  EXPECT_EQ(table.tiers[table.by_slot[4].tier], "cpu");
  EXPECT_EQ(table.first_of[a.slot].slot, 3);

  // A holder that was retired long ago does not unbind its successor.
  pool.UnbindHolder(kExactSource, {3, 9});
  EXPECT_EQ(table.by_slot[3].endpoint, a);
  pool.UnbindHolder(kExactSource, {3, 1});
  EXPECT_EQ(table.by_slot[3].endpoint.generation, 0u);
  EXPECT_EQ(table.first_of[a.slot].slot, 4);

  // A slot given to another endpoint leaves the first.
  ASSERT_TRUE(pool.BindHolder(kExactSource, {4, 2}, b).ok());
  EXPECT_EQ(table.by_slot[4].endpoint, b);
  EXPECT_EQ(table.first_of[a.slot].generation, 0u);
  EXPECT_EQ(table.first_of[b.slot].slot, 4);

  pool.Remove(b);
  EXPECT_EQ(table.by_slot[4].endpoint.generation, 0u);
}

}  // namespace
}  // namespace llmd::sched
