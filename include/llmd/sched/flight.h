// A request on its way: what plugins remember of it from the decision to the last byte of the answer.
//
// Scheduler::RunPreRequest() fills a Dispatch: headers that go upstream, and a Flight, to which plugins
// attach their memory of the request. The host keeps the Flight as long as the request, and tells it of the
// response:
//
//   Dispatch dispatch;
//   scheduler->RunPreRequest(input, workspace, decision, dispatch);
//   dispatch.flight.OnResponseHeaders(now, response_headers);       // may add headers
//   dispatch.flight.OnResponseBody({.now = now, .first = true});
//   dispatch.flight.OnResponseBody({.now = now, .last = true, .usage = usage});
//
// A Flight that is destroyed or replaced early undoes what is left, exactly once, as after an abort; so a
// host cannot leak load by forgetting a call. It may outlive the scheduler that made it. Calls for one Flight
// come from one thread at a time, for different ones from any threads.
#ifndef LLMD_SCHED_FLIGHT_H_
#define LLMD_SCHED_FLIGHT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace llmd::sched {

// A header to set, or to remove.
struct HeaderEdit {
  std::string name;                  // lower case
  std::optional<std::string> value;  // nullopt removes the header
};
using HeaderEdits = std::vector<HeaderEdit>;

// As the engine reports it at the end of an answer.
struct TokenUsage {
  std::int64_t prompt_tokens = 0;
  std::int64_t completion_tokens = 0;
};

// A chunk of the response body.
struct ResponseBody {
  absl::Time now = absl::UnixEpoch();
  bool first = false;
  bool last = false;
  std::optional<TokenUsage> usage = {};
};

// A plugin's memory of one request. Its destructor undoes what is left of the request's effects. Must hold
// shared ownership of whatever it touches.
class FlightState {
 public:
  virtual ~FlightState() = default;
  virtual void OnResponseHeaders(absl::Time, HeaderEdits&) {}
  virtual void OnResponseBody(const ResponseBody&) {}
};

class Flight {
 public:
  Flight() = default;
  Flight(Flight&&) = default;
  Flight& operator=(Flight&&) = default;

  void Attach(std::unique_ptr<FlightState> state) { states_.push_back(std::move(state)); }
  bool empty() const { return states_.empty(); }

  void OnResponseHeaders(absl::Time now, HeaderEdits& headers) {
    for (const auto& state : states_) state->OnResponseHeaders(now, headers);
  }
  // After the last chunk the flight is empty.
  void OnResponseBody(const ResponseBody& body) {
    for (const auto& state : states_) state->OnResponseBody(body);
    if (body.last) states_.clear();
  }

 private:
  std::vector<std::unique_ptr<FlightState>> states_;
};

// What a decision sets in motion.
struct Dispatch {
  HeaderEdits headers = {};  // go upstream with the request
  Flight flight = {};
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_FLIGHT_H_
