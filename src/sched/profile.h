// One profile: filters in order, weighted scorers, one picker; and the buffers it works in. Private to the
// component.
#ifndef SRC_SCHED_PROFILE_H_
#define SRC_SCHED_PROFILE_H_

#include <span>
#include <string>
#include <vector>

#include "llmd/sched/explanation.h"
#include "llmd/sched/plugin.h"

namespace llmd::sched {

struct ProfileBuffers {
  std::vector<Position> survivors;
  std::vector<DropReason> dropped;
  std::vector<double> scores;
  std::vector<ScoredEndpoint> order;
};

class Profile {
 public:
  explicit Profile(std::string name) : name_(std::move(name)) {}

  const std::string& name() const { return name_; }
  bool has_picker() const { return picker_ != nullptr; }

  void AddFilter(const Filter* filter, std::string_view name) { filters_.push_back({filter, name}); }
  void AddScorer(const Scorer* scorer, std::string_view name, double weight) {
    scorers_.push_back({scorer, name, weight});
  }
  void SetPicker(const Picker* picker) { picker_ = picker; }

  // Fills `result`; its state becomes kDone or kFailed.
  void Run(Context& context, std::span<const Position> candidates, ProfileBuffers& buffers,
           ProfileResult& result, Explanation::Profile* explanation) const;

 private:
  struct NamedFilter {
    const Filter* filter;
    std::string_view name;
  };
  struct WeightedScorer {
    const Scorer* scorer;
    std::string_view name;
    double weight;
  };

  void ApplyFilters(Context& context, ProfileBuffers& buffers, Explanation::Profile* explanation) const;
  void ApplyScorers(Context& context, ProfileBuffers& buffers, std::span<ScoredEndpoint> totals,
                    Explanation::Profile* explanation) const;

  std::string name_;
  std::vector<NamedFilter> filters_;
  std::vector<WeightedScorer> scorers_;
  const Picker* picker_ = nullptr;
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_PROFILE_H_
