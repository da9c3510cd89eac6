// Memory of plugins that outlives a scheduler: in-flight counts, sessions, recency.
//
// Put one object into Resources::states and give the same Resources to the scheduler that replaces another
// (live reload): plugins of the same name and kind find their memory again. Any thread may call anything.
#ifndef LLMD_SCHED_PLUGIN_STATES_H_
#define LLMD_SCHED_PLUGIN_STATES_H_

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <typeindex>
#include <utility>

namespace llmd::sched {

class PluginStates {
 public:
  // The T kept under `name`; `make()`, which returns a std::shared_ptr<T>, gives it at first.
  template <typename T, typename Make>
  std::shared_ptr<T> GetOrMake(std::string_view name, const Make& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<void>& state = states_[{std::type_index(typeid(T)), std::string(name)}];
    if (state == nullptr) state = std::shared_ptr<T>(make());
    return std::static_pointer_cast<T>(state);
  }

  // Forgets what no scheduler, detector or flight holds any more. Returns how many are left.
  std::size_t Prune() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::erase_if(states_, [](const auto& entry) { return entry.second.use_count() == 1; });
    return states_.size();
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<std::type_index, std::string>, std::shared_ptr<void>> states_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_PLUGIN_STATES_H_
