// mm-embeddings-cache-producer. (spec: scheduling.md 2.8)
#include "llmd/sched/encoder_cache.h"

#include <gmock/gmock.h>

#include "src/sched/endpoint_index.h"
#include "tests/sched/plugin_rig.h"

namespace llmd::sched {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kType[] = "mm-embeddings-cache-producer";

class EncoderCacheTest : public ::testing::Test {
 protected:
  void SetUp() override { Make({}); }
  void Make(const Value& parameters) { rig = std::make_unique<PluginRig>(pool, kType, parameters); }

  void Begin(const std::vector<std::string>& hashes) {
    names = hashes;
    items.clear();
    for (const std::string& name : names) items.push_back({.modality = "image", .hash = name, .length = 100});
    prompts = {{.token_count = 5}, {.token_count = 5, .items = items}};
    request = {.prompts = prompts};
    rig->Begin(request);
    rig->Produce();
  }
  // "matched/requested" of each endpoint.
  std::vector<std::string> Matches(const std::vector<std::string>& hashes) {
    Begin(hashes);
    std::vector<std::string> texts;
    for (const EncoderCacheMatch& match : rig->Read<EncoderCacheMatch>()) {
      texts.push_back(std::to_string(match.matched) + "/" + std::to_string(match.requested));
    }
    return texts;
  }
  void Send(const std::vector<std::string>& hashes, const std::vector<PluginRig::Ran>& profiles,
            std::uint32_t primary = 0) {
    Begin(hashes);
    Dispatch dispatch;
    ASSERT_TRUE(rig->Decide(profiles, dispatch, primary).ok());
  }

  EndpointPool pool = MakePool(4);
  std::unique_ptr<PluginRig> rig;
  std::vector<std::string> names;
  std::vector<MultimodalItem> items;
  std::vector<Prompt> prompts;
  Request request;
};

TEST_F(EncoderCacheTest, DistinctContentsCountOne) {
  EXPECT_THAT(Matches({"a", "b"}), ElementsAre("0/2", "0/2", "0/2", "0/2"));
  Send({"a", "b", "a"}, {{"default", {1, 0}}});
  EXPECT_THAT(Matches({"a", "b", "c", "a", ""}), ElementsAre("0/3", "2/3", "0/3", "0/3"));
  Send({"c"}, {{"default", {3}}});
  EXPECT_THAT(Matches({"c", "b"}), ElementsAre("0/2", "1/2", "0/2", "1/2"));
  EXPECT_TRUE(Matches({}).empty());
  EXPECT_TRUE(Matches({"", ""}).empty());
}

TEST_F(EncoderCacheTest, EncodersCountToo) {
  Send({"a"}, {{"encode", {0, 1}}, {"decode", {2, 3}}, {"prefill", {3}}}, 1);
  EXPECT_THAT(Matches({"a"}), ElementsAre("1/1", "1/1", "1/1", "0/1"));
}

TEST_F(EncoderCacheTest, LeastRecentlySentGoesFirst) {
  Make(Parameters({{"cacheSizeInMBPerServer", 6}}));  // three items
  for (const char* hash : {"a", "b", "c"}) Send({hash}, {{"default", {0}}});
  Matches({"a"});  // a look is no use
  Send({"b"}, {{"default", {0}}});
  Send({"d"}, {{"default", {0}}});  // in place of a
  EXPECT_THAT(Matches({"a", "b", "c", "d"})[0], "3/4");
  EXPECT_THAT(Matches({"a"})[0], "0/1");
  Send({"e"}, {{"default", {0}}});  // in place of c
  EXPECT_THAT(Matches({"c"})[0], "0/1");
  EXPECT_THAT(Matches({"b", "d", "e"})[0], "3/3");
}

TEST_F(EncoderCacheTest, CapacityOfSizes) {
  const auto capacity = [&](std::int64_t megabytes, int items_sent) {
    Make(Parameters({{"cacheSizeInMBPerServer", megabytes}}));
    std::vector<std::string> all;
    for (int i = 0; i < items_sent; ++i) all.push_back("item " + std::to_string(i));
    Send(all, {{"default", {0}}});
    return Matches(all)[0];
  };
  EXPECT_EQ(capacity(1, 5), "1/5");
  EXPECT_EQ(capacity(20, 12), "10/12");
  EXPECT_EQ(capacity(0, 2100), "2048/2100");  // the default
  EXPECT_EQ(capacity(-5, 2100), "2048/2100");
}

TEST_F(EncoderCacheTest, EndpointsComeAndGo) {
  Send({"a"}, {{"default", {0}}});
  Send({"a"}, {{"default", {1}}});
  const EndpointMetadata metadata = pool[0].metadata();
  pool.Remove(pool[0].handle);
  EXPECT_THAT(Matches({"a"}), ElementsAre("1/1", "0/1", "0/1"));
  ASSERT_TRUE(pool.Add(metadata).ok());
  EXPECT_THAT(Matches({"a"}), ElementsAre("1/1", "0/1", "0/1", "0/1"));
  Send({"b"}, {{"default", {3}}});
  EXPECT_THAT(Matches({"a", "b"}), ElementsAre("1/2", "0/2", "0/2", "1/2"));
}

TEST_F(EncoderCacheTest, ForgetsEndpointsThatLeft) {
  const auto index = rig->under_test.states.GetOrMake<EndpointIndex>(kType, [] { return nullptr; });
  for (int i = 0; i < 200; ++i) {
    const absl::StatusOr<EndpointHandle> added =
        pool.Add({.name = "pod " + std::to_string(i), .address = "10.1.0.1", .port = 80});
    ASSERT_TRUE(added.ok());
    Send({"a"}, {{"default", {4}}});
    EXPECT_EQ(Matches({"a"})[4], "1/1");
    pool.Remove(*added);
  }
  EXPECT_LE(index->size(), 2 * pool.size() + 18);
}

// A flood of other endpoints' removal: holders outnumber the pool.
TEST_F(EncoderCacheTest, ForgetsManyAtOnce) {
  pool = MakePool(300);
  const auto index = rig->under_test.states.GetOrMake<EndpointIndex>(kType, [] { return nullptr; });
  for (Position p = 0; p < 300; ++p) Send({"a"}, {{"default", {p}}});
  EXPECT_EQ(index->size(), 300u);
  while (pool.size() > 3) pool.Remove(pool[3].handle);
  const absl::StatusOr<EndpointHandle> added = pool.Add({.name = "new", .address = "10.1.0.1", .port = 80});
  ASSERT_TRUE(added.ok());
  Send({"a"}, {{"default", {3}}});
  EXPECT_EQ(index->size(), 4u);
  EXPECT_THAT(Matches({"a"}), ElementsAre("1/1", "1/1", "1/1", "1/1"));
}

TEST_F(EncoderCacheTest, Registration) {
  EXPECT_EQ(PluginRegistry::Builtin().DefaultProducer("EncoderCacheMatchInfo"), kType);
  EXPECT_THAT(PluginUnderTest(kType, Parameters({{"cacheSizeInMB", 1}})).status.message(),
              HasSubstr("cacheSizeInMB is unknown, expected one of cacheSizeInMBPerServer"));
}

}  // namespace
}  // namespace llmd::sched
