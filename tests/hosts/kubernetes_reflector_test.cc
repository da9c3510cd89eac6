#include "examples/gateway_scheduler/kubernetes_reflector.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "llmd/base/random.h"
#include "tests/hosts/fake_api_server.h"
#include "tests/hosts/test_certificates.h"

namespace llmd::host {
namespace {

using llmd::testing::FakeApiServer;
using llmd::testing::TestAuthority;
using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr char kPods[] = "/api/v1/namespaces/ns/pods";

json Pod(const std::string& name, const std::string& value = "") {
  return {{"metadata", {{"name", name}, {"namespace", "ns"}, {"labels", {{"value", value}}}}}};
}

bool Eventually(const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

// What a reader of the stream knows: key -> label `value`.
class Mirror final : public ObjectHandler {
 public:
  using Objects = std::map<std::string, std::string>;

  void BeginList() override { listed_.clear(); }
  void Listed(const std::string& key, const json& object) override { listed_[key] = ValueOf(object); }
  void EndList() override {
    const std::lock_guard lock(mutex_);
    objects_ = listed_;
    ++lists_;
  }
  void AddedOrModified(const std::string& key, const json& object) override {
    const std::lock_guard lock(mutex_);
    objects_[key] = ValueOf(object);
  }
  void Deleted(const std::string& key) override {
    const std::lock_guard lock(mutex_);
    objects_.erase(key);
  }
  void NotServed(const absl::Status& why) override {
    const std::lock_guard lock(mutex_);
    not_served_ = why;
  }

  Objects objects() const {
    const std::lock_guard lock(mutex_);
    return objects_;
  }
  absl::Status not_served() const {
    const std::lock_guard lock(mutex_);
    return not_served_;
  }
  bool listed() const {
    const std::lock_guard lock(mutex_);
    return lists_ > 0;
  }

 private:
  static std::string ValueOf(const json& object) {
    const json& metadata = object["metadata"];
    return metadata.contains("labels") ? metadata["labels"].value("value", "") : "";
  }
  Objects listed_;
  mutable std::mutex mutex_;
  Objects objects_;
  int lists_ = 0;
  absl::Status not_served_;
};

class ReflectorTest : public ::testing::Test {
 protected:
  ReflectorTest() { server_.Install(kPods); }

  void Start(ReflectorOptions options = {}) {
    options.path = kPods;
    options.min_backoff = absl::Milliseconds(4);
    options.max_backoff = absl::Milliseconds(50);
    KubernetesConfig config;
    config.api_url = server_.url();
    reflector_ = std::make_unique<Reflector>(config, options, mirror_);
  }
  Mirror::Objects Truth() const {
    Mirror::Objects objects;
    for (const json& object : server_.Objects(kPods)) {
      const json& metadata = object["metadata"];
      objects[absl::StrCat("ns/", metadata["name"].get<std::string>())] =
          metadata["labels"]["value"].get<std::string>();
    }
    return objects;
  }
  ::testing::AssertionResult Agrees() const {
    if (Eventually([&] { return mirror_.listed() && mirror_.objects() == Truth(); })) {
      return ::testing::AssertionSuccess();
    }
    return ::testing::AssertionFailure() << ::testing::PrintToString(mirror_.objects()) << " is not "
                                         << ::testing::PrintToString(Truth()) << ", " << reflector_->status();
  }
  ::testing::AssertionResult Watches() const {
    return Eventually([&] { return server_.Watches(kPods) == 1; }) ? ::testing::AssertionSuccess()
                                                                   : ::testing::AssertionFailure();
  }

  FakeApiServer server_;
  Mirror mirror_;
  std::unique_ptr<Reflector> reflector_;
};

TEST_F(ReflectorTest, ListsInPages) {
  for (int i = 0; i < 23; ++i) server_.Apply(kPods, Pod(absl::StrCat("p", i), absl::StrCat(i)));
  Start({.page_size = 5});
  EXPECT_TRUE(Agrees());
  EXPECT_EQ(mirror_.objects().size(), 23u);
  EXPECT_EQ(server_.CountRequests("limit=5"), 5u);
  EXPECT_EQ(server_.CountRequests("continue="), 4u);
  EXPECT_TRUE(Eventually([&] { return reflector_->counts().lists == 1; }));
}

TEST_F(ReflectorTest, AnEmptyListIsKnown) {
  Start();
  EXPECT_TRUE(Eventually([&] { return mirror_.listed(); }));
  EXPECT_TRUE(mirror_.objects().empty());
}

TEST_F(ReflectorTest, AListWhoseTokenExpiresIsReadAtOnce) {
  for (int i = 0; i < 12; ++i) server_.Apply(kPods, Pod(absl::StrCat("p", i)));
  server_.ExpireNextContinue();
  Start({.page_size = 5});
  EXPECT_TRUE(Agrees());
  EXPECT_EQ(server_.CountRequests("limit=0"), 1u);
  EXPECT_EQ(reflector_->counts().expired, 1u);
}

TEST_F(ReflectorTest, ChangesArrive) {
  for (const bool bytewise : {false, true}) {
    server_.SendBytewise(bytewise);
    if (!reflector_) Start();
    EXPECT_TRUE(Watches());
    server_.Apply(kPods, Pod("a", "1"));
    server_.Apply(kPods, Pod("b", "1"));
    EXPECT_TRUE(Agrees());
    server_.Apply(kPods, Pod("a", "2"));
    server_.Remove(kPods, "ns/b");
    EXPECT_TRUE(Agrees());
    server_.Remove(kPods, "ns/a");
    EXPECT_TRUE(Agrees());
  }
  EXPECT_EQ(reflector_->counts().lists, 1u);
  EXPECT_TRUE(Eventually([&] { return reflector_->counts().events == 10; }));
}

TEST_F(ReflectorTest, AWatchOfTheSelectorSeesObjectsLeaveIt) {
  Start({.label_selector = "value=in"});
  EXPECT_TRUE(Watches());
  server_.Apply(kPods, Pod("a", "in"));
  server_.Apply(kPods, Pod("b", "out"));
  EXPECT_TRUE(Eventually([&] { return mirror_.objects() == Mirror::Objects{{"ns/a", "in"}}; }));
  server_.Apply(kPods, Pod("a", "out"));
  server_.Apply(kPods, Pod("b", "in"));
  EXPECT_TRUE(Eventually([&] { return mirror_.objects() == Mirror::Objects{{"ns/b", "in"}}; }));
  EXPECT_EQ(server_.CountRequests("labelSelector=value%3Din"), server_.Requests().size());
}

TEST_F(ReflectorTest, ADroppedConnectionGoesOnWhereItWas) {
  server_.Apply(kPods, Pod("a", "1"));
  Start();
  for (int round = 0; round < 20; ++round) {
    EXPECT_TRUE(Watches());
    server_.Apply(kPods, Pod("a", absl::StrCat("before ", round)));
    EXPECT_TRUE(Agrees());
    server_.DropWatches(round % 2 == 0);  // every other time in the midst of a line
    server_.Apply(kPods, Pod(absl::StrCat("during", round), "x"));
    EXPECT_TRUE(Agrees());
  }
  EXPECT_EQ(reflector_->counts().lists, 1u);
  EXPECT_GE(reflector_->counts().watches, 20u);
}

TEST_F(ReflectorTest, ABookmarkKeepsAnIdleWatchFromExpiring) {
  server_.Install("/other");
  server_.Apply(kPods, Pod("a", "1"));
  Start();
  EXPECT_TRUE(Watches());
  for (int i = 0; i < 10; ++i) server_.Apply("/other", Pod("x"));
  server_.Compact();  // forgets the version of our list
  server_.Bookmark();
  EXPECT_TRUE(Eventually([&] { return reflector_->counts().bookmarks == 1; }));
  server_.DropWatches(true);
  server_.Apply(kPods, Pod("b", "1"));
  EXPECT_TRUE(Agrees());
  EXPECT_EQ(reflector_->counts().lists, 1u);
  EXPECT_EQ(reflector_->counts().expired, 0u);
}

TEST_F(ReflectorTest, GoneByStatusOrByEventIsListedAgain) {
  std::uint64_t lists = 1;
  for (const bool by_event : {false, true}) {
    server_.TellGoneByEvent(by_event);
    server_.Apply(kPods, Pod("a", "1"));
    server_.Apply(kPods, Pod("b", "1"));
    if (!reflector_) Start();
    EXPECT_TRUE(Agrees());
    EXPECT_TRUE(Watches());
    server_.FailNext({.status = 503}, 3, "watch=1");  // it is away while much happens
    server_.DropWatches(false);
    EXPECT_TRUE(Eventually([&] { return server_.Watches(kPods) == 0; }));
    server_.Remove(kPods, "ns/a");
    server_.Apply(kPods, Pod("c", "1"));
    server_.Compact();
    EXPECT_TRUE(Agrees());
    EXPECT_TRUE(Watches());
    EXPECT_EQ(reflector_->counts().lists, ++lists);
    server_.Apply(kPods, Pod("d", "1"));
    EXPECT_TRUE(Agrees());
  }
  EXPECT_EQ(reflector_->counts().expired, 2u);
}

TEST_F(ReflectorTest, RetriesAfterErrorsAndKeepsWhatItKnows) {
  server_.Apply(kPods, Pod("a", "1"));
  server_.FailNext({.status = 500}, 2);
  server_.FailNext({.drop = true});
  server_.FailNext({.status = 200, .body = "<html>no JSON</html>"});
  server_.FailNext({.status = 200, .body = "{}"});
  server_.FailNext({.status = 200, .body = R"({"metadata":{"resourceVersion":"5"},"items":7})"});
  server_.FailNext({.status = 429, .headers = "Retry-After: 0\r\n"});
  Start();
  EXPECT_TRUE(Agrees());
  EXPECT_GE(reflector_->counts().failures, 6u);  // a connection that was in use already is tried twice
  EXPECT_TRUE(Watches());
  server_.FailNext({.status = 503, .body = "not JSON"}, 2, "watch=1");
  server_.DropWatches(false);
  server_.Apply(kPods, Pod("b", "1"));
  EXPECT_EQ(mirror_.objects().count("ns/a"), 1u);
  EXPECT_TRUE(Agrees());
  EXPECT_EQ(reflector_->counts().lists, 1u);
  EXPECT_TRUE(Eventually([&] { return reflector_->status().ok(); }));
}

TEST_F(ReflectorTest, ManyRefusedWatchesEndInAList) {
  Start();
  EXPECT_TRUE(Watches());
  server_.FailNext({.status = 504, .body = R"({"message": "Too large resource version"})"}, 6, "watch=1");
  server_.DropWatches(false);
  EXPECT_TRUE(Eventually([&] { return reflector_->counts().lists >= 2; }));
  server_.Apply(kPods, Pod("a", "1"));
  EXPECT_TRUE(Agrees());
}

TEST_F(ReflectorTest, WaitsAsLongAsTheServerSays) {
  server_.FailNext({.status = 429, .headers = "retry-after: 1\r\n"});
  const absl::Time begin = absl::Now();
  Start();
  EXPECT_TRUE(Eventually([&] { return mirror_.listed(); }));
  EXPECT_GE(absl::Now() - begin, absl::Seconds(1));
}

TEST_F(ReflectorTest, ASlowServerIsGivenUp) {
  server_.Apply(kPods, Pod("a", "1"));
  server_.FailNext({.hang = true}, 1, "limit=");
  server_.FailNext({.hang = true}, 1, "watch=1");
  server_.FailNext({.body = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc", .raw = true}, 1, "limit=");
  Start({.first_byte = absl::Milliseconds(100)});
  EXPECT_TRUE(Watches());
  EXPECT_GE(reflector_->counts().failures, 3u);
  server_.Apply(kPods, Pod("b", "1"));
  EXPECT_TRUE(Agrees());
}

TEST_F(ReflectorTest, AWatchThatOutlivesItsTimeIsTakenForDead) {
  Start({.watch_timeout = absl::Seconds(1), .watch_grace = absl::Milliseconds(100)});
  EXPECT_TRUE(Watches());
  server_.FailNext({.body = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", .raw = true}, 1, "watch=1");
  EXPECT_TRUE(Eventually([&] { return reflector_->counts().watches >= 3; }));  // each asks for 1 or 2 seconds
  server_.Apply(kPods, Pod("b", "1"));
  EXPECT_TRUE(Agrees());
  EXPECT_EQ(reflector_->counts().lists, 1u);
}

TEST_F(ReflectorTest, StopsAtOnceWhateverItWaitsFor) {
  server_.FailNext({.status = 503, .headers = "Retry-After: 300\r\n"});
  Start();
  EXPECT_TRUE(Eventually([&] { return reflector_->counts().failures == 1; }));
  reflector_.reset();
  server_.FailNext({.hang = true});
  Start();
  EXPECT_TRUE(Eventually([&] { return server_.Requests().size() == 2; }));
  reflector_.reset();
  Start();
  EXPECT_TRUE(Watches());
  reflector_.reset();
  EXPECT_TRUE(Eventually([&] { return server_.Watches(kPods) == 0; }));
}

TEST_F(ReflectorTest, RepeatedEventsAreToldOnce) {
  server_.Filter([](const std::string& line) { return std::vector<std::string>{line, line, line}; });
  Start();
  EXPECT_TRUE(Watches());
  for (int i = 0; i < 50; ++i) {
    server_.Apply(kPods, Pod(absl::StrCat("p", i % 7), absl::StrCat(i)));
    if (i % 5 == 4) server_.Remove(kPods, absl::StrCat("ns/p", i % 7));
  }
  EXPECT_TRUE(Agrees());
  EXPECT_EQ(reflector_->counts().lists, 1u);
  EXPECT_TRUE(Eventually([&] {
    const Reflector::Counts counts = reflector_->counts();
    return counts.events == 60 && counts.repeated == 120;
  })) << reflector_->counts().events
      << " " << reflector_->counts().repeated;
}

TEST_F(ReflectorTest, EventsOutOfOrderEndInTheTruth) {
  struct Held {
    std::mutex mutex;
    std::vector<std::string> lines;
  };
  server_.Filter([held = std::make_shared<Held>()](const std::string& line) {
    const std::lock_guard lock(held->mutex);  // every second event comes before the first
    held->lines.push_back(line);
    if (held->lines.size() < 2) return std::vector<std::string>();
    std::swap(held->lines[0], held->lines[1]);
    return std::exchange(held->lines, {});
  });
  Start();
  EXPECT_TRUE(Watches());
  server_.Apply(kPods, Pod("a", "old"));
  server_.Apply(kPods, Pod("b", "x"));
  EXPECT_TRUE(Agrees());
  EXPECT_TRUE(Watches());
  server_.Apply(kPods, Pod("a", "older"));
  server_.Apply(kPods, Pod("a", "newer"));  // the older state comes last
  EXPECT_TRUE(Agrees());
  EXPECT_TRUE(Watches());
  server_.Apply(kPods, Pod("c", "short"));
  server_.Remove(kPods, "ns/c");  // it is deleted before it is there
  EXPECT_TRUE(Agrees());
  EXPECT_FALSE(mirror_.objects().contains("ns/c"));
}

TEST_F(ReflectorTest, WhatCannotBeReadIsListedAgain) {
  server_.Apply(kPods, Pod("a", "1"));
  Start({.max_event_bytes = 1000});
  std::uint64_t lists = 0;
  for (const std::string& text :
       {std::string("no JSON\n"), std::string("{}\n"), std::string("{\"type\":\"ADDED\"}\n"),
        std::string("{\"type\":\"ADDED\",\"object\":[]}\n"), std::string("{\"type\":1,\"object\":{}}\n"),
        std::string("\xff\xfe\n"), std::string(5000, 'x'), std::string(5000, '['),
        std::string(R"({"type":"ERROR","object":{"code":500,"message":"etcd is away"}})") + "\n",
        std::string(R"({"type":"ERROR","object":{}})") + "\n"}) {
    EXPECT_TRUE(Agrees());
    EXPECT_TRUE(Watches());
    lists = reflector_->counts().lists;
    int looks = 0;
    EXPECT_TRUE(Eventually([&] {
      // Again from time to time: the server may not have noticed that the watch before is over.
      if (looks++ % 50 == 0) server_.Inject(kPods, text);
      return reflector_->counts().lists > lists;
    })) << text.substr(0, 70);
  }
  EXPECT_TRUE(Watches());
  server_.Apply(kPods, Pod("b", "1"));
  EXPECT_TRUE(Agrees());
}

TEST_F(ReflectorTest, ObjectsWithoutNamesAndEventsOfUnknownTypesArePassedOver) {
  server_.Apply(kPods, Pod("a", "1"));
  Start();
  EXPECT_TRUE(Watches());
  for (const char* object : {"{}", R"({"metadata":null})", R"({"metadata":{"name":7}})",
                             R"({"metadata":{"namespace":"ns","resourceVersion":"99999999"}})"}) {
    for (const char* type : {"ADDED", "MODIFIED", "DELETED", "BOOKMARK"}) {
      if (std::string(type) == "BOOKMARK" && std::string(object).find("9999") != std::string::npos) continue;
      server_.Inject(kPods, absl::StrCat(R"({"type":")", type, R"(","object":)", object, "}\n\n \r\n"));
    }
  }
  server_.Inject(kPods, R"({"type":"COMPACTED","object":{"metadata":{"name":"a","namespace":"ns"}}})"
                        "\n");
  server_.Apply(kPods, Pod("b", "1"));
  EXPECT_TRUE(Agrees());
  EXPECT_EQ(reflector_->counts().lists, 1u);
}

TEST_F(ReflectorTest, AnEventWithoutVersionIsTakenAndDoesNotMoveThePosition) {
  Start();
  EXPECT_TRUE(Watches());
  server_.Inject(kPods, R"({"type":"ADDED","object":{"metadata":{"name":"x","namespace":"ns"}}})"
                        "\n");
  EXPECT_TRUE(Eventually([&] { return mirror_.objects().contains("ns/x"); }));
  server_.DropWatches(false);
  server_.Apply(kPods, Pod("b", "1"));
  EXPECT_TRUE(Eventually([&] { return mirror_.objects().contains("ns/b"); }));
  EXPECT_EQ(reflector_->counts().lists, 1u);
}

TEST_F(ReflectorTest, AListThatIsTooLongIsRefused) {
  for (int i = 0; i < 20; ++i) server_.Apply(kPods, Pod(absl::StrCat("p", i), "1"));
  Start({.max_objects = 19});
  EXPECT_TRUE(Eventually([&] { return reflector_->counts().failures >= 3; }));
  EXPECT_FALSE(mirror_.listed());
  EXPECT_THAT(std::string(reflector_->status().message()), HasSubstr("more than 19 objects"));
  server_.Remove(kPods, "ns/p0");
  EXPECT_TRUE(Agrees());
}

TEST_F(ReflectorTest, AKindThatIsNotInstalledIsToldAndFoundLater) {
  KubernetesConfig config;
  config.api_url = server_.url();
  ReflectorOptions options{.path = "/apis/llm-d.ai/v1alpha2/namespaces/ns/inferenceobjectives"};
  options.min_backoff = absl::Milliseconds(4);
  options.max_backoff = absl::Milliseconds(20);
  reflector_ = std::make_unique<Reflector>(config, options, mirror_);
  EXPECT_TRUE(Eventually([&] { return absl::IsNotFound(mirror_.not_served()); }));
  EXPECT_FALSE(mirror_.listed());
  server_.Install(options.path);
  server_.Apply(options.path, Pod("o", "1"));
  EXPECT_TRUE(Eventually([&] { return mirror_.objects().size() == 1; }));
}

TEST_F(ReflectorTest, RandomOperationsAndFailures) {
  Random random(42);
  Start({.page_size = 3, .max_event_bytes = 4096});
  for (int round = 0; round < 60; ++round) {
    for (std::uint64_t n = random.Below(20); n > 0; --n) {
      const std::string name = absl::StrCat("p", random.Below(12));
      if (random.Chance(0.4)) {
        server_.Remove(kPods, "ns/" + name);
      } else {
        server_.Apply(kPods, Pod(name, absl::StrCat(random.Below(1000))));
      }
    }
    switch (random.Below(9)) {
      case 0:
        server_.DropWatches(true);
        break;
      case 1:
        server_.DropWatches(false);
        break;
      case 2:
        server_.Compact();
        server_.DropWatches(false);
        break;
      case 3:
        server_.Inject(kPods, "broken\n");
        break;
      case 4:
        server_.Inject(kPods, std::string(9000, 'z'));
        break;
      case 5:
        server_.FailNext({.status = 503}, 1 + static_cast<int>(random.Below(3)));
        break;
      case 6:
        server_.TellGoneByEvent(random.Chance(0.5));
        server_.Compact();
        break;
      case 7:
        server_.SendBytewise(random.Chance(0.5));
        break;
      case 8:
        server_.Bookmark();
        server_.ExpireNextContinue();
        break;
    }
    if (round % 6 == 5) {
      ASSERT_TRUE(Agrees()) << round;
    }
  }
  EXPECT_TRUE(Agrees());
  EXPECT_GT(reflector_->counts().lists, 1u);
}

class SecureTest : public ::testing::Test {
 protected:
  SecureTest() : server_(authority_.Issue("IP:127.0.0.1")) {
    char name[] = "/tmp/llmd_account_XXXXXX";
    directory_ = ::mkdtemp(name);
    Write("ca.crt", authority_.certificate());
    Write("token", "first\n");
    Write("namespace", "ns");
    server_.Install(kPods);
    server_.RequireToken("first");
  }
  ~SecureTest() override {
    reflector_.reset();
    std::filesystem::remove_all(directory_);
  }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(directory_ + "/" + name) << text;
  }
  const char* Environment(const std::string& name) {
    const std::string url = server_.url();
    port_ = url.substr(url.rfind(':') + 1);
    if (name == "KUBERNETES_SERVICE_HOST") return "127.0.0.1";
    return name == "KUBERNETES_SERVICE_PORT" ? port_.c_str() : nullptr;
  }
  absl::StatusOr<KubernetesConfig> Config(const KubernetesConfig& given = {}) {
    return ResolveKubernetesConfig(
        given, [this](const char* name) { return Environment(name); }, directory_);
  }
  void Start() {
    ReflectorOptions options{.path = kPods};
    options.min_backoff = absl::Milliseconds(4);
    options.max_backoff = absl::Milliseconds(20);
    reflector_ = std::make_unique<Reflector>(*Config(), options, mirror_);
  }

  TestAuthority authority_;
  FakeApiServer server_;
  std::string directory_;
  std::string port_;
  Mirror mirror_;
  std::unique_ptr<Reflector> reflector_;
};

TEST_F(SecureTest, InClusterConfiguration) {
  const absl::StatusOr<KubernetesConfig> config = Config();
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->api_url, server_.url());
  EXPECT_EQ(config->pod_namespace, "ns");
  const auto six = ResolveKubernetesConfig(
      {}, [](const char* name) { return std::string(name) == "KUBERNETES_SERVICE_HOST" ? "fd00::1" : "443"; },
      directory_);
  ASSERT_TRUE(six.ok()) << six.status();
  EXPECT_EQ(six->api_url, "https://[fd00::1]:443");
  const auto nothing = [](const char*) -> const char* { return nullptr; };
  EXPECT_EQ(ResolveKubernetesConfig({}, nothing, directory_).status().code(),
            absl::StatusCode::kFailedPrecondition);
  KubernetesConfig given;
  given.api_url = "http://127.0.0.1:8001/";
  const auto proxy = ResolveKubernetesConfig(given, nothing, "/nowhere");
  ASSERT_TRUE(proxy.ok());
  EXPECT_EQ(proxy->api_url, "http://127.0.0.1:8001");
  EXPECT_EQ(proxy->token_file + proxy->ca_file, "");  // a token goes nowhere it was not meant for
  given.api_url = "ftp://x";
  EXPECT_FALSE(ResolveKubernetesConfig(given, nothing, directory_).ok());
  given = {.api_url = "https://x", .token_file = directory_ + "/missing"};
  EXPECT_THAT(std::string(ResolveKubernetesConfig(given, nothing, directory_).status().message()),
              HasSubstr("/missing: cannot be read"));
  Write("token", "two words\r\nX-Injected: 1");
  EXPECT_THAT(std::string(Config().status().message()), HasSubstr("no token"));
}

TEST_F(SecureTest, TokenAndAuthorityAreAccepted) {
  Start();
  EXPECT_TRUE(Eventually([&] { return server_.Watches(kPods) == 1; }));
  server_.Apply(kPods, Pod("a", "1"));
  EXPECT_TRUE(Eventually([&] { return mirror_.objects().size() == 1; }));
  reflector_.reset();  // in the midst of a TLS watch
}

TEST_F(SecureTest, AReplacedTokenIsReadAgain) {
  Start();
  EXPECT_TRUE(Eventually([&] { return server_.Watches(kPods) == 1; }));
  server_.RequireToken("second");
  server_.DropWatches(false);
  EXPECT_TRUE(Eventually([&] { return absl::IsUnauthenticated(reflector_->status()); }));
  Write("token", "second");
  EXPECT_TRUE(Eventually([&] { return server_.Watches(kPods) == 1; }));
  server_.Apply(kPods, Pod("a", "1"));
  EXPECT_TRUE(Eventually([&] { return mirror_.objects().size() == 1; }));
  std::filesystem::remove(directory_ + "/token");
  server_.DropWatches(false);
  EXPECT_TRUE(Eventually([&] { return absl::IsUnavailable(reflector_->status()); }));
  EXPECT_EQ(mirror_.objects().size(), 1u);
  Write("token", "second");
  EXPECT_TRUE(Eventually([&] { return reflector_->status().ok() && server_.Watches(kPods) == 1; }));
}

TEST_F(SecureTest, AStrangeAuthorityOrNameGetsNoToken) {
  Write("ca.crt", TestAuthority().certificate());
  Start();
  EXPECT_TRUE(Eventually([&] { return reflector_->counts().failures >= 3; }));
  EXPECT_TRUE(server_.Requests().empty());
  Write("ca.crt", authority_.certificate());  // read again for each connection
  EXPECT_TRUE(Eventually([&] { return server_.Watches(kPods) == 1; }));
  reflector_.reset();

  FakeApiServer other(authority_.Issue("DNS:elsewhere"));
  other.Install(kPods);
  KubernetesConfig config = *Config();
  config.api_url = other.url();
  ReflectorOptions options{.path = kPods};
  options.min_backoff = absl::Milliseconds(4);
  reflector_ = std::make_unique<Reflector>(config, options, mirror_);
  EXPECT_TRUE(Eventually([&] { return reflector_->counts().failures >= 2; }));
  EXPECT_TRUE(other.Requests().empty());
}

TEST_F(SecureTest, RedirectsAreNotFollowed) {
  FakeApiServer other;
  other.Install(kPods);
  server_.FailNext({.status = 302, .headers = absl::StrCat("Location: ", other.url(), kPods, "\r\n")}, 2);
  Start();
  EXPECT_TRUE(Eventually([&] { return mirror_.listed(); }));
  EXPECT_EQ(reflector_->counts().failures, 2u);
  EXPECT_EQ(other.Connections(), 0u);
}

}  // namespace
}  // namespace llmd::host
