// One profile: filters in order, weighted scorers, one picker; and the buffers it works in. Private to the
// component.
#ifndef SRC_SCHED_PROFILE_H_
#define SRC_SCHED_PROFILE_H_

#include <span>
#include <string>
#include <vector>

#include "llmd/sched/explanation.h"
#include "llmd/sched/plugin.h"
#include "llmd/sched/recorded.h"

namespace llmd::sched {

struct ProfileBuffers {
  std::vector<Position> survivors;
  std::vector<DropReason> dropped;
  std::vector<double> scores;
  std::vector<ScoredEndpoint> order;
};

// A score as it is weighted: 0 for "no opinion" (NaN), too.
inline double Clamp01(double score) { return score > 1 ? 1 : score > 0 ? score : 0; }

class Profile {
 public:
  explicit Profile(std::string name) : name_(std::move(name)) {}

  const std::string& name() const { return name_; }
  bool has_picker() const { return picker_ != nullptr; }

  // `remembers`: what it answers may depend on earlier decisions.
  void AddFilter(const Filter* filter, std::string_view name, bool remembers) {
    filters_.push_back({filter, name, remembers});
  }
  void AddScorer(const Scorer* scorer, std::string_view name, double weight, bool remembers) {
    scorers_.push_back({scorer, name, weight, remembers});
  }
  void SetPicker(const Picker* picker) { picker_ = picker; }

  struct WeightedScorer {
    const Scorer* scorer;
    std::string_view name;
    double weight;
    bool remembers;
  };
  std::span<const WeightedScorer> scorers() const { return scorers_; }

  // Fills `result`; its state becomes kDone or kFailed. `recorded` may be null.
  void Run(Context& context, std::span<const Position> candidates, const RecordedInputs* recorded,
           ProfileBuffers& buffers, ProfileResult& result, Explanation::Profile* explanation) const;

 private:
  struct NamedFilter {
    const Filter* filter;
    std::string_view name;
    bool remembers;
  };

  void ApplyFilters(Context& context, const RecordedInputs* recorded, ProfileBuffers& buffers,
                    Explanation::Profile* explanation) const;
  void ApplyScorers(Context& context, const RecordedInputs* recorded, ProfileBuffers& buffers,
                    std::span<ScoredEndpoint> totals, Explanation::Profile* explanation) const;

  std::string name_;
  std::vector<NamedFilter> filters_;
  std::vector<WeightedScorer> scorers_;
  const Picker* picker_ = nullptr;
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_PROFILE_H_
