// Rotary frequencies f_i in double, with Llama-3 scaling (layers.h).
#ifndef LLMD_ATTENTION_FREQUENCIES_H_
#define LLMD_ATTENTION_FREQUENCIES_H_

#include <cmath>
#include <numbers>

#include "llmd/attention/layers.h"

namespace llmd::attention {

inline double Frequency(const llmd_rope& rope, int32_t i) {
  const double f = std::pow(double{rope.theta}, -2.0 * i / rope.rotary_dim);
  if (!(rope.scale_factor > 0)) return f;
  const double wavelength = 2 * std::numbers::pi / f;
  const double low = rope.low_freq_factor;
  const double high = rope.high_freq_factor;
  if (wavelength < rope.old_context / high) return f;
  if (wavelength > rope.old_context / low) return f / rope.scale_factor;
  const double w = (rope.old_context / wavelength - low) / (high - low);
  return (1 - w) * f / rope.scale_factor + w * f;
}

}  // namespace llmd::attention

#endif  // LLMD_ATTENTION_FREQUENCIES_H_
