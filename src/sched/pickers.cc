// max-score-picker, random-picker, weighted-random-picker. (spec: scheduling.md 2.6)
//
// The reference shuffles and sorts stably, so that equals come in random order. Here a hash of (tie seed,
// position) ranks equals: the same distribution, but a total order, so that the result depends neither on the
// sorting algorithm nor on the order of candidates.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

// Brings the first k by `before` to the front.
template <typename Before>
std::size_t SelectFirst(std::span<ScoredEndpoint> scored, std::size_t k, const Before& before) {
  k = std::min(k, scored.size());
  if (k == 1) {
    std::iter_swap(scored.begin(), std::min_element(scored.begin(), scored.end(), before));
  } else {
    std::partial_sort(scored.begin(), scored.begin() + k, scored.end(), before);
  }
  return k;
}

// Ranks equals at random; distinct positions are never equal.
bool TieBefore(std::uint64_t tie_seed, const ScoredEndpoint& a, const ScoredEndpoint& b) {
  const std::uint64_t key_a = TieKey(tie_seed, a.position);
  const std::uint64_t key_b = TieKey(tie_seed, b.position);
  return key_a != key_b ? key_a < key_b : a.position < b.position;
}

std::size_t PickRandom(std::uint64_t tie_seed, std::span<ScoredEndpoint> scored, std::size_t k) {
  return SelectFirst(scored, k, [tie_seed](const ScoredEndpoint& a, const ScoredEndpoint& b) {
    return TieBefore(tie_seed, a, b);
  });
}

// NaN, which sums of huge weights can give, ranks last instead of breaking the order.
double Rankable(double score) { return std::isnan(score) ? -std::numeric_limits<double>::infinity() : score; }

class MaxScorePicker final : public Plugin, public Picker {
 public:
  MaxScorePicker(std::string type, std::string name, std::size_t k)
      : Plugin(std::move(type), std::move(name)), k_(k) {}

  std::size_t Pick(Context&, std::uint64_t tie_seed, std::span<ScoredEndpoint> scored) const override {
    return SelectFirst(scored, k_, [tie_seed](const ScoredEndpoint& a, const ScoredEndpoint& b) {
      const double score_a = Rankable(a.score);
      const double score_b = Rankable(b.score);
      return score_a != score_b ? score_a > score_b : TieBefore(tie_seed, a, b);
    });
  }

 private:
  std::size_t k_;
};

class RandomPicker final : public Plugin, public Picker {
 public:
  RandomPicker(std::string type, std::string name, std::size_t k)
      : Plugin(std::move(type), std::move(name)), k_(k) {}

  std::size_t Pick(Context&, std::uint64_t tie_seed, std::span<ScoredEndpoint> scored) const override {
    return PickRandom(tie_seed, scored, k_);
  }

 private:
  std::size_t k_;
};

// Weighted sampling without replacement (Efraimidis and Spirakis, A-Res): the largest U^(1/score) first.
// Compared by logarithm, which does not underflow for small scores.
class WeightedRandomPicker final : public Plugin, public Picker {
 public:
  WeightedRandomPicker(std::string type, std::string name, std::size_t k)
      : Plugin(std::move(type), std::move(name)), k_(k) {}

  std::size_t Pick(Context&, std::uint64_t tie_seed, std::span<ScoredEndpoint> scored) const override {
    const bool any =
        std::any_of(scored.begin(), scored.end(), [](const ScoredEndpoint& s) { return s.score > 0; });
    if (!any) return PickRandom(tie_seed, scored, k_);
    for (ScoredEndpoint& s : scored) s.score = LogKey(tie_seed, s);
    return SelectFirst(scored, k_, [tie_seed](const ScoredEndpoint& a, const ScoredEndpoint& b) {
      return a.score != b.score ? a.score > b.score : TieBefore(tie_seed, a, b);
    });
  }

 private:
  static double LogKey(std::uint64_t tie_seed, const ScoredEndpoint& s) {
    if (!(s.score > 0)) return -std::numeric_limits<double>::infinity();
    double u = static_cast<double>(TieKey(~tie_seed, s.position) >> 11) * 0x1.0p-53;
    if (u == 0) u = 1e-10;
    return std::log(u) / s.score;
  }

  std::size_t k_;
};

template <typename PickerType>
void RegisterPicker(PluginRegistry& registry, std::string_view type) {
  MustRegister(registry, type, [](PluginBuilder& builder) -> absl::StatusOr<std::unique_ptr<Plugin>> {
    ParameterReader read = builder.Read();
    std::int64_t k = 1;
    read.Optional("maxNumOfEndpoints", &k);
    if (absl::Status status = read.Finish(); !status.ok()) return status;
    return std::make_unique<PickerType>(builder.type(), builder.name(),
                                        static_cast<std::size_t>(std::max<std::int64_t>(k, 1)));
  });
}

}  // namespace

void RegisterPickers(PluginRegistry& registry) {
  RegisterPicker<MaxScorePicker>(registry, kMaxScorePickerType);
  RegisterPicker<RandomPicker>(registry, "random-picker");
  RegisterPicker<WeightedRandomPicker>(registry, "weighted-random-picker");
}

}  // namespace llmd::sched
