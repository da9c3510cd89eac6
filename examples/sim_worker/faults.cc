#include "examples/sim_worker/faults.h"

#include <array>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace llmd::sim {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::string_view, 6> kNames = {"none", "slow", "error", "hang", "disconnect", "crash"};

}  // namespace

std::string_view FaultModeName(FaultMode mode) { return kNames[static_cast<std::size_t>(mode)]; }

absl::StatusOr<FaultMode> ParseFaultMode(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<FaultMode>(i);
  }
  return absl::InvalidArgumentError(absl::StrCat("mode is \"", std::string(name.substr(0, 40)),
                                                 "\", must be none, slow, error, hang, disconnect or crash"));
}

absl::Status Fault::Validate() const {
  if (!(rate >= 0 && rate <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("rate is ", rate, ", must be 0 to 1"));
  }
  if (delay_ms > 3'600'000) {
    return absl::InvalidArgumentError(absl::StrCat("delay_ms is ", delay_ms, ", must be 0 to 3600000"));
  }
  if (status < 400 || status > 599) {
    return absl::InvalidArgumentError(absl::StrCat("status is ", status, ", must be 400 to 599"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Fault> Fault::FromJson(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return absl::InvalidArgumentError("the body must be a JSON object");
  Fault fault;
  for (const auto& [key, value] : json.items()) {
    if (key == "mode" && value.is_string()) {
      const absl::StatusOr<FaultMode> mode = ParseFaultMode(value.get_ref<const std::string&>());
      if (!mode.ok()) return mode.status();
      fault.mode = *mode;
    } else if (key == "rate" && value.is_number()) {
      fault.rate = value.get<double>();
    } else if (key == "delay_ms" && value.is_number_unsigned() && value.get<std::uint64_t>() <= 3'600'000) {
      fault.delay_ms = value.get<std::uint32_t>();
    } else if (key == "status" && value.is_number_unsigned() && value.get<std::uint64_t>() <= 599) {
      fault.status = value.get<int>();
    } else if (key == "count" && value.is_number_unsigned() && value.get<std::uint64_t>() < 1u << 31) {
      fault.count = value.get<std::int64_t>();
    } else if (key == "scope" && (value == "generation" || value == "all")) {
      fault.all = value == "all";
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          key.substr(0, 40), " has a value of no use here: the fields are mode (string), rate (0 to 1), ",
          "delay_ms (0 to 3600000), status (400 to 599), count (integer), scope (generation or all)"));
    }
  }
  if (absl::Status status = fault.Validate(); !status.ok()) return status;
  return fault;
}

std::string Fault::ToJson() const {
  Json json = {{"mode", std::string(FaultModeName(mode))},
               {"rate", rate},
               {"delay_ms", delay_ms},
               {"status", status},
               {"count", count},
               {"scope", all ? "all" : "generation"}};
  return json.dump();
}

void Faults::Set(const Fault& fault) {
  const std::scoped_lock lock(mutex_);
  fault_ = fault;
}

Fault Faults::Get() const {
  const std::scoped_lock lock(mutex_);
  return fault_;
}

Fault Faults::Draw(bool generates) {
  const std::scoped_lock lock(mutex_);
  if (fault_.mode == FaultMode::kNone || fault_.count == 0 || !(generates || fault_.all) ||
      !random_.Chance(fault_.rate)) {
    return Fault();
  }
  if (fault_.count > 0) --fault_.count;
  return fault_;
}

}  // namespace llmd::sim
