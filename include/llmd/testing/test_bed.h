// A pool, a request and a scheduler made by hand, to test scorers and whole configurations without a cluster.
//
//   TestBed bed;
//   bed.Endpoint("a").Waiting(4).KvUsage(0.5).Holds("chat", 512);    // has 512 tokens of the text "chat"
//   bed.Endpoint("b").Waiting(0).KvUsage(0.1);
//   bed.Configure(SchedulerConfig::Default());
//   Outcome outcome = bed.Decide(TestRequest("chat", 1024));         // a prompt of its first 1,024 tokens
//   EXPECT_THAT(outcome, Picks("a"));                                // matchers.h, with GoogleTest
//
// Names are the endpoints' names. What is not set is as at a freshly started endpoint that was never scraped:
// metrics unknown, nothing cached, no load. Decisions run the real scheduler with literal prefix indexes: in
// the exact source blocks are of 16 tokens, in the approximate one of 64. Mistakes in a test, such as an
// unknown name, end the process with a message: there is nothing to go on with. One thread; no GoogleTest
// needed.
#ifndef LLMD_TESTING_TEST_BED_H_
#define LLMD_TESTING_TEST_BED_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "llmd/sched/scheduler.h"

namespace llmd::testing {

inline constexpr std::uint32_t kExactBlockTokens = 16;
inline constexpr std::uint32_t kApproximateBlockTokens = 64;

// A request that owns what it refers to.
class TestRequest {
 public:
  TestRequest() = default;
  // One prompt: the first `tokens` tokens of `text`. Any name is a text; the same name is the same text.
  TestRequest(std::string_view text, std::size_t tokens) { Prompt(text, tokens); }

  TestRequest& Prompt(std::string_view text, std::size_t tokens);  // a further one
  // Inside the latest prompt; one placeholder token.
  TestRequest& Item(std::string_view modality, std::string_view hash);
  TestRequest& Id(std::string_view id);  // by itself: "request"
  TestRequest& Model(std::string_view model);
  TestRequest& Header(std::string_view name, std::string_view value);  // name in lower case
  TestRequest& Priority(std::int32_t priority);
  TestRequest& FairnessId(std::string_view id);
  TestRequest& MaxOutputTokens(std::uint32_t tokens);

 private:
  friend class TestBed;
  struct Text {
    std::string name;
    std::size_t tokens;
    std::vector<std::pair<std::string, std::string>> items;
  };
  std::vector<Text> prompts_;
  std::vector<std::pair<std::string, std::string>> headers_;
  std::string id_ = "request";
  std::string model_ = "model";
  std::string fairness_id_ = "default-flow";
  std::int32_t priority_ = 0;
  std::optional<std::uint32_t> max_output_tokens_;
};

// What came of a decision, by names.
struct Outcome {
  struct Drop {
    std::string endpoint;
    std::string filter;
    std::string reason;
  };
  struct Profile {
    bool ran = false;                  // and found an endpoint
    std::vector<std::string> targets;  // best first
    std::vector<Drop> drops;
    // By scorer's name, then endpoint's; an endpoint that got no score is left out.
    std::map<std::string, std::map<std::string, double>> raw;
    std::map<std::string, double> totals;
  };

  absl::Status status;
  std::string primary;                         // profile's name
  std::map<std::string, Profile> profiles;     // those that were looked at
  std::map<std::string, std::string> headers;  // that go upstream; a removed one has the value "(removed)"
  std::string refused_by;                      // the admitter
  std::string explanation;                     // a table for people

  // Of the primary profile; empty after an error.
  const std::vector<std::string>& targets() const;
  // As `profiles`; a profile that was not looked at is empty.
  const Profile& profile(std::string_view name) const;
};

class TestBed {
 public:
  // Sets up one endpoint; valid until the bed is gone.
  class EndpointSetup {
   public:
    EndpointSetup& Role(std::string_view role);  // label llm-d.ai/role
    EndpointSetup& Label(std::string_view name, std::string_view value);
    EndpointSetup& Address(std::string_view address, std::uint16_t port = 8000);
    // Metrics, read at the bed's present time.
    EndpointSetup& Waiting(std::int64_t requests);
    EndpointSetup& Running(std::int64_t requests);
    EndpointSetup& KvUsage(double fraction);
    EndpointSetup& Adapters(std::int64_t max_active, std::vector<std::string> active,
                            std::vector<std::string> waiting = {});
    EndpointSetup& Attribute(std::string_view name, double value);
    // The first `tokens` tokens of a text are in its cache. In the exact source by tier, in the approximate
    // one whatever the tier.
    EndpointSetup& Holds(std::string_view text, std::size_t tokens, std::string_view tier = "gpu");
    // As if that many requests and tokens were under way through this router.
    EndpointSetup& InFlight(std::int64_t requests, std::int64_t tokens = 0);

   private:
    friend class TestBed;
    EndpointSetup(TestBed& bed, std::string name) : bed_(bed), name_(std::move(name)) {}
    sched::Metrics& metrics();

    TestBed& bed_;
    std::string name_;
    sched::Labels labels_;
    std::string address_;
    std::uint16_t port_ = 8000;
  };

  TestBed();
  ~TestBed();
  TestBed(const TestBed&) = delete;
  TestBed& operator=(const TestBed&) = delete;

  // A new endpoint, or the one of that name. Endpoints keep the order in which they were first named.
  EndpointSetup& Endpoint(std::string_view name);
  // It goes away, with what it remembers.
  void Remove(std::string_view name);

  // For plugins of your own; register them before Configure().
  sched::PluginRegistry& registry();
  // As the host would give them; the prefix sources are the bed's.
  sched::Resources& resources();

  // The scheduler of the following decisions. A later call is a live reload: what plugins remember stays.
  absl::Status Configure(const sched::SchedulerConfig& config);
  // An EndpointPickerConfig in YAML or JSON, read with experimental plugins allowed.
  absl::Status Configure(std::string_view yaml);

  // Decides, and carries the decision out: PreRequest plugins run, and load stays in flight until Finish() or
  // the bed's end. Without Configure() the default configuration runs.
  Outcome Decide(const TestRequest& request, std::uint64_t seed = 1);
  // Only for the endpoints named.
  Outcome DecideAmong(const std::vector<std::string>& candidates, const TestRequest& request,
                      std::uint64_t seed = 1);
  // Decides without carrying out.
  Outcome Ask(const TestRequest& request, std::uint64_t seed = 1);
  // The answers of all decisions carried out have ended.
  void Finish(std::int64_t completion_tokens = 1);

  // The raw scores that one scorer gives to the endpoints; one without a score is left out.
  std::map<std::string, double> Score(std::string_view type, const sched::Value& parameters,
                                      const TestRequest& request);
  // The endpoints that one filter keeps, in order.
  std::vector<std::string> Filter(std::string_view type, const sched::Value& parameters,
                                  const TestRequest& request, std::uint64_t seed = 1);

  absl::Time now() const;
  void Advance(absl::Duration duration);
  const sched::EndpointPool& pool();
  const sched::Scheduler& scheduler();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::testing

#endif  // LLMD_TESTING_TEST_BED_H_
