#include "examples/gateway_scheduler/endpoints_file_watcher.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace llmd::host {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string FileOf(const std::vector<std::string>& names) {
  std::string text = "endpoints:\n";
  if (names.empty()) return "endpoints: []\n";
  for (std::size_t i = 0; i < names.size(); ++i) {
    absl::StrAppend(&text, "- {name: ", names[i], ", address: 127.0.0.1, port: ", 8000 + i, "}\n");
  }
  return text;
}

class EndpointsFileWatcherTest : public testing::Test {
 protected:
  EndpointsFileWatcherTest() {
    char name[] = "/tmp/llmd_endpoints_XXXXXX";
    directory_ = ::mkdtemp(name);
    path_ = directory_ / "endpoints.yaml";
  }
  ~EndpointsFileWatcherTest() override {
    watcher_.reset();
    fs::remove_all(directory_);
  }

  static void Write(const fs::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  }
  static void Rename(const fs::path& path, const std::string& text) {
    const fs::path next = path.string() + ".next";
    Write(next, text);
    fs::rename(next, path);
  }

  // Without a poll, so that only a reported change can be the cause.
  absl::Status Start(EndpointsFileWatcherOptions options = {.poll_interval = absl::InfiniteDuration()}) {
    if (options.path.empty()) options.path = path_.string();
    options.settle = absl::Milliseconds(2);
    auto watcher = EndpointsFileWatcher::Start(options, pool_);
    if (!watcher.ok()) return watcher.status();
    watcher_ = *std::move(watcher);
    return absl::OkStatus();
  }

  std::vector<std::string> Names() const {
    std::set<std::string> names;
    const PoolStore::Snapshot pool = pool_.snapshot();
    for (const sched::Endpoint& endpoint : pool->endpoints()) names.insert(endpoint.metadata().name);
    return {names.begin(), names.end()};
  }
  // What the pool has once it has it, or after a minute.
  std::vector<std::string> Await(const std::vector<std::string>& names) const {
    AwaitThat([&] { return Names() == names; });
    return Names();
  }
  static bool AwaitThat(const std::function<bool()>& condition) {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    while (!condition()) {
      if (absl::Now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
  }

  fs::path directory_;
  fs::path path_;
  PoolStore pool_;
  std::unique_ptr<EndpointsFileWatcher> watcher_;
};

TEST_F(EndpointsFileWatcherTest, TheFirstLoadIsThereWhenStartReturns) {
  Write(path_, FileOf({"a", "b"}));
  EXPECT_FALSE(pool_.synced());
  ASSERT_TRUE(Start().ok());
  EXPECT_TRUE(pool_.synced());
  EXPECT_THAT(Names(), ElementsAre("a", "b"));
}

TEST_F(EndpointsFileWatcherTest, AMissingOrBadFileIsAnErrorOfStart) {
  absl::Status status = Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("endpoints.yaml: cannot be opened"));
  Write(path_, "endpoints: 3\n");
  status = Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("endpoints.yaml: line 1: endpoints is"));
  status = Start({.path = directory_.string()});
  EXPECT_THAT(std::string(status.message()), HasSubstr("no plain file"));
  ASSERT_EQ(::mkfifo((directory_ / "fifo").c_str(), 0600), 0);
  status = Start({.path = (directory_ / "fifo").string()});  // and does not wait for a writer
  EXPECT_THAT(std::string(status.message()), HasSubstr("no plain file"));
  Write(path_, std::string(2 << 20, '#'));
  EXPECT_THAT(std::string(Start().message()), HasSubstr("expected at most 1048576"));
  EXPECT_FALSE(pool_.synced());
}

TEST_F(EndpointsFileWatcherTest, WritesInPlace) {
  Write(path_, FileOf({"a"}));
  ASSERT_TRUE(Start().ok());
  Write(path_, FileOf({"a", "b"}));
  EXPECT_THAT(Await({"a", "b"}), ElementsAre("a", "b"));
  Write(path_, FileOf({}));
  EXPECT_THAT(Await({}), IsEmpty());
}

TEST_F(EndpointsFileWatcherTest, RenamesRepeatedly) {
  Write(path_, FileOf({"a"}));
  ASSERT_TRUE(Start().ok());
  for (int i = 0; i < 20; ++i) {
    const std::string name = absl::StrCat("n", i);
    Rename(path_, FileOf({name}));
    EXPECT_THAT(Await({name}), ElementsAre(name));
  }
}

TEST_F(EndpointsFileWatcherTest, ARemovedFileLeavesTheEndpointsUntilItIsBack) {
  Write(path_, FileOf({"a"}));
  ASSERT_TRUE(Start().ok());
  fs::remove(path_);
  EXPECT_TRUE(AwaitThat([&] { return watcher_->counts().refused == 1; }));
  EXPECT_EQ(watcher_->status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Names(), ElementsAre("a"));
  Write(path_, FileOf({"b"}));
  EXPECT_THAT(Await({"b"}), ElementsAre("b"));
  EXPECT_TRUE(AwaitThat([&] { return watcher_->status().ok(); }));
}

TEST_F(EndpointsFileWatcherTest, ABadFileLeavesTheEndpoints) {
  Write(path_, FileOf({"a"}));
  ASSERT_TRUE(Start().ok());
  std::uint64_t refused = 0;
  for (const std::string& bad : {std::string(""), std::string("endpoints: [{"), std::string("other: []"),
                                 std::string("\xff\xfe\0", 3), std::string(2 << 20, 'x')}) {
    Rename(path_, bad);
    EXPECT_TRUE(AwaitThat([&] { return watcher_->counts().refused > refused; })) << bad.substr(0, 20);
    refused = watcher_->counts().refused;
    EXPECT_FALSE(watcher_->status().ok());
    EXPECT_THAT(Names(), ElementsAre("a"));
  }
  Rename(path_, FileOf({"b"}));
  EXPECT_THAT(Await({"b"}), ElementsAre("b"));
}

TEST_F(EndpointsFileWatcherTest, ABadEntryIsPassedOver) {
  Write(path_, FileOf({"a"}));
  ASSERT_TRUE(Start().ok());
  Write(path_, FileOf({"a", "b"}) + "- {name: c, address: nowhere, port: 1}\n");
  EXPECT_THAT(Await({"a", "b"}), ElementsAre("a", "b"));
}

// Kubernetes: file -> ..data/file, ..data -> ..version1, then ..data is replaced by a rename.
TEST_F(EndpointsFileWatcherTest, SwapsOfAConfigMap) {
  const auto version = [&](const std::string& name, const std::string& text) {
    fs::create_directory(directory_ / name);
    Write(directory_ / name / "endpoints.yaml", text);
    fs::create_directory_symlink(name, directory_ / "..data_tmp");
    fs::rename(directory_ / "..data_tmp", directory_ / "..data");
  };
  version("..v0", FileOf({"a"}));
  fs::create_symlink("..data/endpoints.yaml", path_);
  ASSERT_TRUE(Start().ok());
  EXPECT_THAT(Names(), ElementsAre("a"));
  for (int i = 1; i < 10; ++i) {
    const std::string name = absl::StrCat("n", i);
    version(absl::StrCat("..v", i), FileOf({name}));
    fs::remove_all(directory_ / absl::StrCat("..v", i - 1));
    EXPECT_THAT(Await({name}), ElementsAre(name));
  }
}

TEST_F(EndpointsFileWatcherTest, LinksToElsewhereAreFollowed) {
  fs::create_directories(directory_ / "here");
  fs::create_directories(directory_ / "there" / "deep");
  fs::create_directories(directory_ / "other");
  Write(directory_ / "there" / "deep" / "real.yaml", FileOf({"a"}));
  Write(directory_ / "other" / "real.yaml", FileOf({"other"}));
  fs::create_directory_symlink(directory_ / "there" / "deep", directory_ / "middle");
  fs::create_symlink("../middle/real.yaml", directory_ / "here" / "endpoints.yaml");
  ASSERT_TRUE(Start({.path = (directory_ / "here" / "endpoints.yaml").string(),
                     .poll_interval = absl::InfiniteDuration()})
                  .ok());
  Write(directory_ / "there" / "deep" / "real.yaml", FileOf({"b"}));  // behind two links
  EXPECT_THAT(Await({"b"}), ElementsAre("b"));
  fs::create_directory_symlink(directory_ / "other", directory_ / "next");
  fs::rename(directory_ / "next", directory_ / "middle");  // a link in the middle of the path
  EXPECT_THAT(Await({"other"}), ElementsAre("other"));
  Rename(directory_ / "other" / "real.yaml", FileOf({"c"}));  // where the new link leads
  EXPECT_THAT(Await({"c"}), ElementsAre("c"));
}

TEST_F(EndpointsFileWatcherTest, TheDirectoryItselfIsReplaced) {
  const fs::path inner = directory_ / "inner";
  fs::create_directory(inner);
  Write(inner / "endpoints.yaml", FileOf({"a"}));
  ASSERT_TRUE(
      Start({.path = (inner / "endpoints.yaml").string(), .poll_interval = absl::InfiniteDuration()}).ok());
  fs::remove_all(inner);
  EXPECT_TRUE(AwaitThat([&] { return watcher_->counts().refused >= 1; }));
  EXPECT_THAT(Names(), ElementsAre("a"));
  fs::create_directory(inner);
  Write(inner / "endpoints.yaml", FileOf({"b"}));
  EXPECT_THAT(Await({"b"}), ElementsAre("b"));
  Write(inner / "endpoints.yaml", FileOf({"c"}));
  EXPECT_THAT(Await({"c"}), ElementsAre("c"));
}

TEST_F(EndpointsFileWatcherTest, LinksInACircleAreAnError) {
  fs::create_symlink("b", directory_ / "a");
  fs::create_symlink("a", directory_ / "b");
  EXPECT_THAT(std::string(Start({.path = (directory_ / "a").string()}).message()),
              HasSubstr("cannot be opened"));
}

TEST_F(EndpointsFileWatcherTest, APollSeesWhatNobodyReports) {
  Write(path_, FileOf({"a"}));
  ASSERT_TRUE(Start({.poll_interval = absl::Milliseconds(5), .use_inotify = false}).ok());
  Rename(path_, FileOf({"b"}));
  EXPECT_THAT(Await({"b"}), ElementsAre("b"));
  fs::remove(path_);
  EXPECT_TRUE(AwaitThat([&] { return watcher_->counts().refused == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(watcher_->counts().refused, 1u);  // told once, not with every look
}

TEST_F(EndpointsFileWatcherTest, ReloadLooksAtOnce) {
  Write(path_, FileOf({"a"}));
  ASSERT_TRUE(Start({.poll_interval = absl::InfiniteDuration(), .use_inotify = false}).ok());
  Rename(path_, FileOf({"b"}));
  watcher_->Reload();
  EXPECT_THAT(Await({"b"}), ElementsAre("b"));
  EXPECT_EQ(watcher_->counts().applied, 2u);
}

TEST_F(EndpointsFileWatcherTest, EqualContentIsNoChange) {
  Write(path_, FileOf({"a"}));
  ASSERT_TRUE(Start().ok());
  const sched::EndpointHandle before = pool_.snapshot()->endpoints()[0].handle;
  Rename(path_, FileOf({"a"}));
  Rename(path_, FileOf({"a"}) + "\n");
  EXPECT_TRUE(AwaitThat([&] { return watcher_->counts().applied == 2; }));
  EXPECT_EQ(pool_.snapshot()->endpoints()[0].handle, before);
}

// A writer that holds no lock and renames nothing, while readers look on: the last content wins.
TEST_F(EndpointsFileWatcherTest, AStormOfChangesEndsWithTheLastOne) {
  Write(path_, FileOf({"a"}));
  ASSERT_TRUE(Start().ok());
  for (int i = 0; i < 300; ++i) {
    switch (i % 4) {
      case 0:
        Write(path_, FileOf({absl::StrCat("w", i)}));
        break;
      case 1:
        Rename(path_, FileOf({absl::StrCat("r", i)}));
        break;
      case 2:
        fs::remove(path_);
        break;
      case 3:
        Write(path_, "endpoints: [{");
        break;
    }
  }
  Write(path_, FileOf({"last", "least"}));
  EXPECT_THAT(Await({"last", "least"}), ElementsAre("last", "least"));
}

}  // namespace
}  // namespace llmd::host
