#include "examples/gateway_scheduler/tokenizer_trust.h"

#include <algorithm>

namespace llmd::host {
namespace {

constexpr std::size_t kMaxSettings = 1024;

}  // namespace

TokenizerTrust::Setting& TokenizerTrust::At(const TokenKey& setting) {
  if (settings_.size() >= kMaxSettings && !settings_.contains(setting)) {
    // One that is refused had better stay so; the others can be learned again.
    absl::erase_if(settings_, [](const auto& entry) { return !entry.second.refused; });
    if (settings_.size() >= kMaxSettings) settings_.clear();
  }
  return settings_[setting];
}

TokenizerTrust::Plan TokenizerTrust::PlanFor(const TokenKey& setting) {
  const std::lock_guard lock(mutex_);
  Setting& known = At(setting);
  if (known.refused) return {};
  const bool check = known.good < checks_ || (check_every_ > 0 && ++known.used % check_every_ == 0);
  return {.parts = true, .whole = check};
}

void TokenizerTrust::Judge(const TokenKey& setting, bool equal) {
  const std::lock_guard lock(mutex_);
  Setting& known = At(setting);
  known.good += equal;
  known.refused = known.refused || !equal;
}

bool TokenizerTrust::Refused(const TokenKey& setting) const {
  const std::lock_guard lock(mutex_);
  const auto found = settings_.find(setting);
  return found != settings_.end() && found->second.refused;
}

std::optional<TokenizerTrust::Stencil> TokenizerTrust::StencilOf(const TokenKey& setting,
                                                                 absl::Time oldest) const {
  const std::lock_guard lock(mutex_);
  const auto found = settings_.find(setting);
  if (found == settings_.end() || found->second.born < oldest || found->second.stencil.prompt.empty()) {
    return std::nullopt;
  }
  return found->second.stencil;
}

bool TokenizerTrust::BeginStencil(const TokenKey& setting) {
  const std::lock_guard lock(mutex_);
  Setting& known = At(setting);
  if (known.refused || known.asking) return false;
  return known.asking = true;
}

void TokenizerTrust::SetStencil(const TokenKey& setting, const absl::StatusOr<std::vector<TokenId>>& closed,
                                const absl::StatusOr<std::vector<TokenId>>& open, absl::Time now) {
  const std::lock_guard lock(mutex_);
  Setting& known = At(setting);
  known.asking = false;
  if (!closed.ok() || !open.ok()) return;
  if (closed->empty() || open->size() <= closed->size() ||
      !std::equal(closed->begin(), closed->end(), open->begin())) {
    known.refused = true;  // the template does not ask behind the messages
    return;
  }
  known.stencil.head = *closed;
  known.stencil.prompt.assign(open->begin() + static_cast<std::ptrdiff_t>(closed->size()), open->end());
  known.born = now;
}

void TokenizerTrust::ForgetStencil(const TokenKey& setting) {
  const std::lock_guard lock(mutex_);
  At(setting).stencil = {};
}

}  // namespace llmd::host
