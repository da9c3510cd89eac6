#include "examples/sim_worker/engine_driver.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <utility>

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>

namespace llmd::sim {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;

struct EngineDriver::Impl : std::enable_shared_from_this<Impl> {
  Impl(asio::io_context& io, std::unique_ptr<Engine> owned)
      : strand(asio::make_strand(io)), timer(strand), engine(std::move(owned)) {}

  // Begins a step if there is something to do and none runs.
  void Go() {
    if (stopped || engine->in_step()) return;
    const Engine::Tick tick = engine->Begin(Now());
    if (tick.kind == Engine::Tick::Kind::kIdle) {
      timer.cancel();
      return;
    }
    // Replaces a wait that was under way.
    timer.expires_after(
        std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(tick.seconds)));
    timer.async_wait([self = shared_from_this(), mine = ++waits](const boost::system::error_code& error) {
      // A wait that was replaced may have been over already.
      if (error || self->stopped || mine != self->waits) return;
      if (self->engine->in_step()) self->engine->End(Now());
      self->Go();
    });
  }

  template <typename Function>
  void Post(Function function) {
    asio::post(strand, [self = shared_from_this(), function = std::move(function)]() mutable {
      if (!self->stopped) function(*self);
    });
  }

  asio::strand<asio::io_context::executor_type> strand;
  asio::steady_timer timer;
  std::unique_ptr<Engine> engine;
  std::uint64_t waits = 0;
  std::atomic<bool> stopped = false;
  std::atomic<RequestId> next_id = 1;
};

EngineDriver::EngineDriver(asio::io_context& io, std::unique_ptr<Engine> engine)
    : impl_(std::make_shared<Impl>(io, std::move(engine))) {}

EngineDriver::~EngineDriver() { Stop(); }

double EngineDriver::Now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

RequestId EngineDriver::Submit(EngineRequest request) {
  const RequestId id = impl_->next_id++;
  impl_->Post([id, request = std::move(request)](Impl& impl) mutable {
    impl.engine->Add(id, std::move(request), Now());
    impl.Go();
  });
  return id;
}

void EngineDriver::Abort(RequestId id) { Aborter()(id); }

std::function<void(RequestId)> EngineDriver::Aborter() {
  return [weak = std::weak_ptr<Impl>(impl_)](RequestId id) {
    const std::shared_ptr<Impl> impl = weak.lock();
    if (impl == nullptr || impl->stopped) return;
    impl->Post([id](Impl& engine_impl) {
      engine_impl.engine->Abort(id, Now());
      engine_impl.Go();
    });
  };
}

void EngineDriver::ResetPrefixCache(std::function<void(bool)> done) {
  impl_->Post([done = std::move(done)](Impl& impl) { done(impl.engine->ResetPrefixCache()); });
}

void EngineDriver::Inspect(std::function<void(const Engine&)> look) {
  impl_->Post([look = std::move(look)](Impl& impl) { look(*impl.engine); });
}

void EngineDriver::Stop() {
  impl_->stopped = true;
  asio::post(impl_->strand, [impl = impl_] { impl->timer.cancel(); });
}

}  // namespace llmd::sim
