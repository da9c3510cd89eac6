// A saturation detector that says what the test says.
#ifndef TESTS_SCHED_FAKE_DETECTOR_H_
#define TESTS_SCHED_FAKE_DETECTOR_H_

#include <string>
#include <utility>
#include <vector>

#include "llmd/sched/plugin.h"

namespace llmd::sched {

class FakeDetector final : public Plugin, public SaturationDetector {
 public:
  struct Control {
    double saturation = 0;
    std::vector<double> by_position = {};  // when not empty, the mean over the candidates
  };
  FakeDetector(std::string type, std::string name, const Control& control)
      : Plugin(std::move(type), std::move(name)), control_(control) {}
  double Saturation(const EndpointPool&, std::span<const Position> candidates, absl::Time) const override {
    if (control_.by_position.empty()) return control_.saturation;
    double sum = 0;
    for (const Position p : candidates) sum += control_.by_position[p];
    return sum / static_cast<double>(candidates.size());
  }

 private:
  const Control& control_;
};

}  // namespace llmd::sched

#endif  // TESTS_SCHED_FAKE_DETECTOR_H_
