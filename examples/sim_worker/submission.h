// The engine requests of one HTTP request. Those that have not ended when it goes out of scope are aborted:
// an answer that is cancelled because the client went away frees its blocks this way.
#ifndef EXAMPLES_SIM_WORKER_SUBMISSION_H_
#define EXAMPLES_SIM_WORKER_SUBMISSION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "examples/sim_worker/engine_driver.h"
#include "examples/sim_worker/token_queue.h"

namespace llmd::sim {

class Submission {
 public:
  Submission(EngineDriver& driver, boost::asio::any_io_executor executor)
      : driver_(driver),
        abort_(driver.Aborter()),
        queue_(std::make_shared<TokenQueue>(std::move(executor))) {}
  ~Submission() {
    for (std::uint32_t choice = 0; choice < ids_.size(); ++choice) Abort(choice);
  }
  Submission(const Submission&) = delete;
  Submission& operator=(const Submission&) = delete;

  void Add(EngineRequest request) {
    request.choice = static_cast<std::uint32_t>(ids_.size());
    request.sink = queue_;
    ids_.push_back(driver_.Submit(std::move(request)));
  }
  // The choice has ended by itself.
  void Ended(std::uint32_t choice) { ids_[choice] = 0; }
  void Abort(std::uint32_t choice) {
    if (ids_[choice] != 0) abort_(std::exchange(ids_[choice], 0));
  }
  TokenQueue& queue() { return *queue_; }

 private:
  EngineDriver& driver_;
  std::function<void(RequestId)> abort_;  // an answer may be dropped after the driver
  std::shared_ptr<TokenQueue> queue_;
  std::vector<RequestId> ids_;
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_SUBMISSION_H_
