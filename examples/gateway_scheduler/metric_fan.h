// One measurement under several names: a family of prometheus-cpp for each generation of names, and series
// that are looked up in them once and then cached.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_METRIC_FAN_H_
#define EXAMPLES_GATEWAY_SCHEDULER_METRIC_FAN_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "examples/gateway_scheduler/metric_names.h"

namespace llmd::host {

// Of a request, after the caps.
struct RequestLabels {
  std::string model = {};
  std::string target_model = {};
  std::string fairness_id = {};
  std::string priority = {};
};

// Which of them a family has. (spec: gateway.md 3)
enum class LabelStyle { kNone, kModel, kModels, kModelsPriority, kFull };

inline prometheus::Labels MakeLabels(LabelStyle style, const RequestLabels& of) {
  prometheus::Labels labels;
  if (style == LabelStyle::kNone) return labels;
  labels["model_name"] = of.model;
  if (style == LabelStyle::kModel) return labels;
  labels["target_model_name"] = of.target_model;
  if (style == LabelStyle::kModels) return labels;
  labels["priority"] = of.priority;
  if (style == LabelStyle::kFull) labels["fairness_id"] = of.fairness_id;
  return labels;
}

inline constexpr std::size_t kMaxTwins = 3;

// The series of one label set under all names.
template <typename T>
struct Fan {
  std::array<T*, kMaxTwins> twins{};  // the first ones are set

  template <typename Action>
  void Each(const Action& action) const {
    for (T* twin : twins) {
      if (twin == nullptr) return;
      action(*twin);
    }
  }
};

template <typename T>
class FanFamily {
 public:
  explicit FanFamily(Buckets buckets = {}) : buckets_(std::move(buckets)) {}

  // `on`: whether the generation that the name belongs to is exported.
  FanFamily& Name(bool on, prometheus::Registry& registry, const std::string& name, const std::string& help,
                  LabelStyle style) {
    if (!on) return *this;
    const std::string text = "[ALPHA] " + help;
    if constexpr (std::is_same_v<T, prometheus::Counter>) {
      twins_.push_back({&prometheus::BuildCounter().Name(name).Help(text).Register(registry), style});
    } else if constexpr (std::is_same_v<T, prometheus::Gauge>) {
      twins_.push_back({&prometheus::BuildGauge().Name(name).Help(text).Register(registry), style});
    } else {
      twins_.push_back({&prometheus::BuildHistogram().Name(name).Help(text).Register(registry), style});
    }
    return *this;
  }

  // Looks up or makes the series; `extra` labels go to all of them. Any thread.
  Fan<T> Find(const RequestLabels& labels, const prometheus::Labels& extra = {}) const {
    Fan<T> fan;
    for (std::size_t i = 0; i < twins_.size(); ++i) {
      prometheus::Labels all = MakeLabels(twins_[i].style, labels);
      all.insert(extra.begin(), extra.end());
      if constexpr (std::is_same_v<T, prometheus::Histogram>) {
        fan.twins[i] = &twins_[i].family->Add(all, buckets_);
      } else {
        fan.twins[i] = &twins_[i].family->Add(all);
      }
    }
    return fan;
  }

 private:
  struct Twin {
    prometheus::Family<T>* family;
    LabelStyle style;
  };

  Buckets buckets_;
  std::vector<Twin> twins_;
};

// A fan that is looked up at its first use: a series that has measured nothing is not exported.
template <typename T>
class LazyFan {
 public:
  LazyFan() = default;
  ~LazyFan() { delete fan_.load(std::memory_order_acquire); }
  LazyFan(const LazyFan&) = delete;
  LazyFan& operator=(const LazyFan&) = delete;

  const Fan<T>& Get(const FanFamily<T>& family, const RequestLabels& labels,
                    const prometheus::Labels& extra = {}) {
    if (const Fan<T>* fan = fan_.load(std::memory_order_acquire)) return *fan;
    const Fan<T>* made = new Fan<T>(family.Find(labels, extra));
    const Fan<T>* expected = nullptr;
    if (fan_.compare_exchange_strong(expected, made, std::memory_order_acq_rel)) return *made;
    delete made;
    return *expected;
  }

 private:
  std::atomic<const Fan<T>*> fan_ = nullptr;
};

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_METRIC_FAN_H_
