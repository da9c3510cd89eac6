// Runs an engine in real time on an io_context: one timer, one strand.
//
// Threads: any thread may call; the engine itself, its sinks and its events stay on the strand.
#ifndef EXAMPLES_SIM_WORKER_ENGINE_DRIVER_H_
#define EXAMPLES_SIM_WORKER_ENGINE_DRIVER_H_

#include <functional>
#include <memory>

#include <boost/asio/io_context.hpp>

#include "examples/sim_worker/engine.h"

namespace llmd::sim {

class EngineDriver {
 public:
  EngineDriver(boost::asio::io_context& io, std::unique_ptr<Engine> engine);
  ~EngineDriver();  // as Stop()
  EngineDriver(const EngineDriver&) = delete;
  EngineDriver& operator=(const EngineDriver&) = delete;

  static double Now();  // seconds, steady

  RequestId Submit(EngineRequest request);
  void Abort(RequestId id);
  // Abort() for those who may outlive the driver: then it does nothing.
  std::function<void(RequestId)> Aborter();
  // Calls `done` on the strand.
  void ResetPrefixCache(std::function<void(bool)> done);
  // For looking at the engine between two steps.
  void Inspect(std::function<void(const Engine&)> look);
  // No step ends any more.
  void Stop();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace llmd::sim

#endif  // EXAMPLES_SIM_WORKER_ENGINE_DRIVER_H_
