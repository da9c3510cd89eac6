// What objects of the cluster say about requests: priorities by objective, and other models for a model
// (spec: gateway.md 2.7).
//
// Plain values. Whoever keeps them publishes copies that no longer change, from which any thread may read.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_REQUEST_TABLES_H_
#define EXAMPLES_GATEWAY_SCHEDULER_REQUEST_TABLES_H_

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "llmd/base/random.h"

namespace llmd::host {

class ObjectiveTable {
 public:
  void Set(std::string name, std::int32_t priority) { priorities_[std::move(name)] = priority; }
  // 0 for an unknown one, as for a request without objective. Below 0: may be shed.
  std::int32_t Priority(std::string_view name) const {
    const auto it = priorities_.find(name);
    return it == priorities_.end() ? 0 : it->second;
  }
  std::size_t size() const { return priorities_.size(); }
  friend bool operator==(const ObjectiveTable&, const ObjectiveTable&) = default;

 private:
  std::map<std::string, std::int32_t, std::less<>> priorities_;
};

struct RewriteTarget {
  std::string model = {};
  std::optional<std::uint32_t> weight = {};
  friend bool operator==(const RewriteTarget&, const RewriteTarget&) = default;
};

struct RewriteRule {
  std::vector<std::string> models = {};  // exact names
  bool generic = false;                  // for every model, after all exact ones
  std::vector<RewriteTarget> targets = {};
  friend bool operator==(const RewriteRule&, const RewriteRule&) = default;
};

// Rules that belong together.
struct RewriteObject {
  std::string name = {};
  absl::Time created = absl::InfiniteFuture();
  std::vector<RewriteRule> rules = {};
  friend bool operator==(const RewriteObject&, const RewriteObject&) = default;
};

class RewriteTable {
 public:
  struct Choice {
    std::string_view model = {};   // for the model server; valid while the table is
    std::string_view object = {};  // the name of the object that said so
  };

  RewriteTable() = default;
  // A rule without targets is none. Exact rules come before generic ones, then those of the older object (of
  // equal age: by name), then those that come first in an object.
  explicit RewriteTable(std::vector<RewriteObject> objects);

  // What a request for `model` shall be served with; nothing when no rule applies. With a total weight W > 0,
  // a target is taken with probability weight / W and never without one; with W = 0 all are alike.
  std::optional<Choice> Choose(std::string_view model, Random& random) const;
  bool empty() const { return objects_.empty(); }
  friend bool operator==(const RewriteTable& a, const RewriteTable& b) { return a.objects_ == b.objects_; }

 private:
  struct Place {
    std::uint32_t object = 0;
    std::uint32_t rule = 0;
  };
  std::vector<RewriteObject> objects_;  // in order of precedence
  std::map<std::string, Place, std::less<>> exact_;
  std::optional<Place> generic_;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_REQUEST_TABLES_H_
