#include "llmd/gateway/endpoints_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace llmd::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::StartsWith;

std::string Error(std::string_view text, EndpointsFileOptions options = {}) {
  return std::string(ParseEndpointsFile(text, options).status().message());
}

// The message for one bad entry between two good ones, which must be read.
std::string Skipped(const std::string& entry) {
  const std::string good = ", address: 10.0.0.1, port: 1}\n";
  const auto file =
      ParseEndpointsFile("endpoints:\n- {name: a" + good + "- " + entry + "\n- {name: z" + good);
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return "";
  EXPECT_EQ(file->endpoints.size(), 2u) << entry;
  EXPECT_EQ(file->skipped_count, 1u);
  return file->skipped.size() == 1 ? file->skipped[0] : "";
}

TEST(EndpointsFile, Yaml) {
  const auto file = ParseEndpointsFile(
      "# a comment\n"
      "endpoints:\n"
      "- name: worker-0\n"
      "  address: 127.0.0.1\n"
      "  port: \"8001\"\n"
      "  labels:\n"
      "    llm-d.ai/role: decode\n"
      "    weight: 1\n"
      "    empty: ''\n"
      "- name: worker-1\n"
      "  namespace: other\n"
      "  address: '::1'\n"
      "  port: 65535\n"
      "  labels:\n");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->skipped, IsEmpty());
  ASSERT_EQ(file->endpoints.size(), 2u);
  const sched::EndpointMetadata& first = file->endpoints[0];
  EXPECT_EQ(first.name, "worker-0");
  EXPECT_EQ(first.pod_namespace, "default");
  EXPECT_EQ(first.address, "127.0.0.1");
  EXPECT_EQ(first.port, 8001);
  EXPECT_THAT(first.labels,
              ElementsAre(Pair("empty", ""), Pair("llm-d.ai/role", "decode"), Pair("weight", "1")));
  EXPECT_EQ(file->endpoints[1].pod_namespace, "other");
  EXPECT_EQ(file->endpoints[1].address, "::1");
  EXPECT_EQ(file->endpoints[1].port, 65535);
  EXPECT_THAT(file->endpoints[1].labels, IsEmpty());
}

TEST(EndpointsFile, Json) {
  const auto file = ParseEndpointsFile(
      R"({"endpoints": [{"name": "a", "address": "10.0.0.1", "port": "8000", "labels": {"k": "v"}}]})");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->endpoints.size(), 1u);
  EXPECT_THAT(file->endpoints[0].labels, ElementsAre(Pair("k", "v")));
  EXPECT_THAT(ParseEndpointsFile("endpoints: []")->endpoints, IsEmpty());
}

TEST(EndpointsFile, BadEntriesAreSkippedWithTheirLine) {
  EXPECT_EQ(Skipped("{name: b, address: 10.0.0.1, port: 0}"),
            "line 3: endpoints[1].port is \"0\", expected 1 to 65535");
  for (const char* port : {"65536", "-1", "8e3", "'80 '", "x", "0x50", "''"}) {
    EXPECT_THAT(Skipped("{name: b, address: 10.0.0.1, port: " + std::string(port) + "}"),
                HasSubstr("expected 1 to 65535"));
  }
  for (const char* address :
       {"localhost", "10.0.0", "10.0.0.256", "'10.0.0.1 '", "'[::1]'", "10.0.0.1:80", "''"}) {
    EXPECT_THAT(Skipped("{name: b, port: 1, address: " + std::string(address) + "}"),
                HasSubstr("expected an IP"));
  }
  for (const char* name : {"a/b", "'a b'", "''", "\"a\\nb\"", "\"\\0\""}) {
    EXPECT_THAT(Skipped("{name: " + std::string(name) + ", address: 10.0.0.1, port: 1}"),
                HasSubstr("expected 1 to 253 characters"));
  }
  EXPECT_EQ(Skipped("{address: 10.0.0.1, port: 1}"), "line 3: endpoints[1] has no name");
  EXPECT_EQ(Skipped("{name: b, port: 1}"), "line 3: endpoints[1] has no address");
  EXPECT_EQ(Skipped("{name: b, address: 10.0.0.1}"), "line 3: endpoints[1] has no port");
  EXPECT_EQ(Skipped("name"), "line 3: endpoints[1] is a text, expected a map");
  EXPECT_EQ(Skipped(""), "line 4: endpoints[1] is null, expected a map");  // where the next thing stands
  EXPECT_EQ(Skipped("name: b\n  adress: 10.0.0.1\n  port: 1"),
            "line 4: endpoints[1].adress is no field, expected name, namespace, address, port or labels");
  EXPECT_EQ(Skipped("{name: b, name: c, address: 10.0.0.1, port: 1}"),
            "line 3: endpoints[1].name is given twice, expected once");
  EXPECT_EQ(Skipped("{name: , address: 10.0.0.1, port: 1}"),
            "line 3: endpoints[1].name is null, expected a text");
  EXPECT_EQ(Skipped("{name: [b], address: 10.0.0.1, port: 1}"),
            "line 3: endpoints[1].name is a list, expected a text");
  EXPECT_EQ(Skipped("{name: b, address: 10.0.0.1, port: 1, labels: x}"),
            "line 3: endpoints[1].labels is a text, expected a map of texts");
  EXPECT_EQ(Skipped("{name: b, address: 10.0.0.1, port: 1, labels: {k: }}"),
            "line 3: endpoints[1].labels.k is null, expected a text");
  EXPECT_EQ(Skipped("{name: b, address: 10.0.0.1, port: 1, labels: {k: v, k: w}}"),
            "line 3: endpoints[1].labels.k is given twice, expected once");
  EXPECT_EQ(Skipped("{name: a, address: 10.0.0.9, port: 9}"),
            "line 3: endpoints[1] is default/a again, which is at line 2");
}

TEST(EndpointsFile, OneNameInTwoNamespaces) {
  const auto file = ParseEndpointsFile(
      "endpoints:\n- {name: a, address: 10.0.0.1, port: 1}\n- {name: a, namespace: b, address: 10.0.0.1, "
      "port: 1}\n");
  EXPECT_EQ(file->endpoints.size(), 2u);
}

TEST(EndpointsFile, ManyBadEntriesAreCounted) {
  std::string text = "endpoints:\n";
  for (int i = 0; i < 150; ++i) text += "- {}\n";
  const auto file = ParseEndpointsFile(text);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->skipped.size(), 100u);
  EXPECT_EQ(file->skipped_count, 150u);
}

TEST(EndpointsFile, OrRefused) {
  EXPECT_EQ(Error("endpoints:\n- {name: a, address: x, port: 1}\n", {.refuse_bad_entries = true}),
            "line 2: endpoints[0].address is \"x\", expected an IP");
}

TEST(EndpointsFile, RefusesWhatIsNoSuchFile) {
  EXPECT_THAT(Error(""), HasSubstr("the document is null, expected a map"));
  EXPECT_THAT(Error("- a\n"), HasSubstr("the document is a list"));
  EXPECT_THAT(Error("{}"), HasSubstr("line 1: the document has no endpoints"));
  EXPECT_THAT(Error("endpoints:\n"),
              HasSubstr("line 1: endpoints is null, expected a list"));  // cut off, perhaps
  EXPECT_THAT(Error("endpoints: {}\n"), HasSubstr("endpoints is a map, expected a list"));
  EXPECT_THAT(Error("endpoints: []\nendpoints: []\n"), HasSubstr("line 2: endpoints is given twice"));
  EXPECT_THAT(Error("endpoints: []\nkind: x\n"), HasSubstr("line 2: kind is no field, expected endpoints"));
  EXPECT_THAT(Error("endpoints: []\n---\nendpoints: []\n"), HasSubstr("a second document begins"));
  EXPECT_THAT(Error("endpoints: [\n"), HasSubstr("not YAML"));
  EXPECT_THAT(Error("endpoints: &a [*a]\n"), HasSubstr("line 1: an alias, expected none"));
  EXPECT_THAT(Error("endpoints: !!seq []\n"), HasSubstr("the tag tag:yaml.org,2002:seq, expected none"));
  EXPECT_THAT(Error("endpoints:\n- {labels: {a: [b]}}\n"),
              HasSubstr("line 2: nested too deeply, expected at most 4"));
  EXPECT_THAT(Error("{[a]: b}\n"), HasSubstr("expected a text"));
  EXPECT_THAT(Error(std::string(100000, '[')), StartsWith("line 1: "));
  EXPECT_THAT(Error("endpoints: []\n", {.max_bytes = 13}),
              HasSubstr("the file has 14 bytes, expected at most 13"));
}

sched::EndpointMetadata Endpoint(std::string name, std::uint16_t port, sched::Labels labels = {}) {
  return {.name = std::move(name), .address = "10.0.0.1", .port = port, .labels = std::move(labels)};
}

std::vector<std::string> Ids(const sched::EndpointPool& pool) {
  std::vector<std::string> ids;
  for (const sched::Endpoint& endpoint : pool.endpoints()) ids.push_back(endpoint.id());
  return ids;
}

TEST(EndpointsDiff, AddedChangedRemoved) {
  sched::EndpointPool pool;
  std::vector<sched::EndpointMetadata> endpoints = {Endpoint("a", 1), Endpoint("b", 2), Endpoint("c", 3),
                                                    Endpoint("d", 4)};
  EndpointsDiff diff = DiffEndpoints(endpoints, pool);
  EXPECT_THAT(diff.added, ElementsAre(0, 1, 2, 3));
  ASSERT_TRUE(ApplyEndpoints(endpoints, diff, pool).ok());
  EXPECT_THAT(Ids(pool), ElementsAre("default/a", "default/b", "default/c", "default/d"));
  EXPECT_TRUE(DiffEndpoints(endpoints, pool).empty());
  std::vector<sched::EndpointHandle> handles;
  for (const sched::Endpoint& endpoint : pool.endpoints()) {
    handles.push_back(endpoint.handle);
    pool.mutable_metrics(endpoint.handle)->waiting_requests = {5, absl::FromUnixSeconds(1)};
    pool.SetAttribute(endpoint.handle, "power", {7, absl::FromUnixSeconds(1)});
  }

  endpoints = {Endpoint("e", 5), Endpoint("a", 1), Endpoint("b", 9), Endpoint("c", 3, {{"k", "v"}})};
  diff = DiffEndpoints(endpoints, pool);
  EXPECT_THAT(diff.added, ElementsAre(0));
  ASSERT_EQ(diff.changed.size(), 2u);
  EXPECT_EQ(diff.changed[0].index, 2u);
  EXPECT_EQ(diff.changed[0].endpoint, handles[1]);
  EXPECT_TRUE(diff.changed[0].address);
  EXPECT_EQ(diff.changed[1].index, 3u);
  EXPECT_FALSE(diff.changed[1].address);
  EXPECT_THAT(diff.removed, ElementsAre(handles[3]));

  ASSERT_TRUE(ApplyEndpoints(endpoints, diff, pool).ok());
  EXPECT_THAT(Ids(pool), ElementsAre("default/a", "default/b", "default/c", "default/e"));
  EXPECT_EQ(pool[0].handle, handles[0]);
  EXPECT_TRUE(pool[0].metrics.scraped());
  EXPECT_FALSE(pool.Find(handles[1]).has_value());
  EXPECT_EQ(pool[1].metadata().port, 9);
  EXPECT_FALSE(pool[1].metrics.scraped());  // another server
  EXPECT_EQ(pool[2].metrics.waiting_requests.value, 5);
  ASSERT_NE(pool[2].FindAttribute("power"), nullptr);
  EXPECT_EQ(pool[2].FindAttribute("power")->sample.value, 7);
  EXPECT_EQ(*pool[2].FindLabel("k"), "v");
  EXPECT_FALSE(pool[3].metrics.scraped());
  EXPECT_TRUE(DiffEndpoints(endpoints, pool).empty());

  ASSERT_TRUE(ApplyEndpoints({}, DiffEndpoints({}, pool), pool).ok());
  EXPECT_EQ(pool.size(), 0u);
}

TEST(EndpointsDiff, AnErrorDoesNotStopTheRest) {
  sched::EndpointPool pool;
  const std::vector<sched::EndpointMetadata> endpoints = {Endpoint("a", 0), Endpoint("b", 1)};
  EXPECT_FALSE(ApplyEndpoints(endpoints, DiffEndpoints(endpoints, pool), pool).ok());
  EXPECT_THAT(Ids(pool), ElementsAre("default/b"));
}

}  // namespace
}  // namespace llmd::gateway
