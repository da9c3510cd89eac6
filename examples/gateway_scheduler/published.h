// The newest of a series of values that do not change any more, for readers on other threads.
//
// What std::atomic<std::shared_ptr<const T>> is for; but in libstdc++ 12 its load() does not order a reader's
// access to the pointer before a later store(). Any thread may call anything; a lock is held for the copy of
// a pointer.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_PUBLISHED_H_
#define EXAMPLES_GATEWAY_SCHEDULER_PUBLISHED_H_

#include <memory>
#include <mutex>
#include <utility>

namespace llmd::host {

template <typename T>
class Published {
 public:
  using Value = std::shared_ptr<const T>;

  Published() = default;
  explicit Published(Value value) : value_(std::move(value)) {}

  Value load() const {
    const std::lock_guard lock(mutex_);
    return value_;
  }
  void store(Value value) {
    {
      const std::lock_guard lock(mutex_);
      value_.swap(value);
    }
    // The old one, if it was the last reference, ends here, where nobody waits.
  }

 private:
  mutable std::mutex mutex_;
  Value value_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_PUBLISHED_H_
