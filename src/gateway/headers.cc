#include "llmd/gateway/headers.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "llmd/base/strings.h"

namespace llmd::gateway {
namespace {

constexpr std::size_t kMaxHeaderValue = 16384;

struct Alias {
  std::string_view current, deprecated;
};
constexpr Alias kControl[] = {
    {"x-llm-d-inference-objective", "x-gateway-inference-objective"},
    {"x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"},
    {"x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"},
    {"x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"},
    {"x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"},
};
constexpr std::string_view kOtherSystemOwned[] = {
    "x-llm-d-video-fps",        "x-llm-d-video-duration-seconds",
    "x-llm-d-video-resolution", kSubsetKey,
    kDestinationHeader,         kServedHeader,
    kDroppedReasonHeader,       "content-length",
};
constexpr std::string_view kRoutingHeaders[] = {
    kPrefillHeader,
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
};

// The address without the port and brackets, and the port (empty when there is none).
std::pair<std::string_view, std::string_view> SplitPort(std::string_view text) {
  if (text.starts_with('[')) {
    const std::size_t close = text.find(']');
    if (close == text.npos) return {text, {}};
    const std::string_view rest = text.substr(close + 1);
    return {text.substr(1, close - 1), rest.starts_with(':') ? rest.substr(1) : std::string_view()};
  }
  const std::size_t colon = text.rfind(':');
  if (colon == text.npos || text.find(':') != colon) return {text, {}};  // a bare IPv6 address has several
  return {text.substr(0, colon), text.substr(colon + 1)};
}

std::string_view Trim(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t");
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

}  // namespace

void HeaderList::Set(std::string_view name, std::string_view value) {
  std::string lower(name);
  absl::AsciiStrToLower(&lower);
  size_bytes_ += name.size() + value.size();
  for (HeaderField& field : fields_) {
    if (field.name == lower) {
      field.value = value;
      field.repeated = true;
      return;
    }
  }
  fields_.push_back({std::move(lower), std::string(value)});
}

const std::string* HeaderList::Find(std::string_view name) const {
  for (const HeaderField& field : fields_) {
    if (field.name == name) return &field.value;
  }
  return nullptr;
}

std::string_view HeaderList::Get(std::string_view name) const {
  const std::string* value = Find(name);
  return value ? std::string_view(*value) : std::string_view();
}

void HeaderList::Clear() {
  fields_.clear();
  size_bytes_ = 0;
}

std::optional<std::string_view> FindControl(const HeaderList& headers, ControlHeader which) {
  const Alias& alias = kControl[static_cast<std::size_t>(which)];
  if (const std::string* value = headers.Find(alias.current)) return *value;
  if (const std::string* value = headers.Find(alias.deprecated)) return *value;
  return std::nullopt;
}

bool IsSystemOwned(std::string_view name) {
  for (const Alias& alias : kControl) {
    if (name == alias.current || name == alias.deprecated) return true;
  }
  return std::ranges::find(kOtherSystemOwned, name) != std::end(kOtherSystemOwned);
}

bool IsStripped(std::string_view name) {
  if (std::ranges::find(kRoutingHeaders, name) != std::end(kRoutingHeaders)) return true;
  return IsSystemOwned(name) && name != "content-length";
}

absl::Status CheckHeader(std::string_view name, std::string_view value) {
  const std::string_view bare = name.starts_with(':') ? name.substr(1) : name;
  const auto token = [](unsigned char c) {
    return absl::ascii_isalnum(c) ||
           (c != 0 &&
            std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos);
  };
  if (bare.empty() || name.size() > kMaxHeaderValue || !std::ranges::all_of(bare, token)) {
    return absl::InvalidArgumentError(absl::StrCat("header name \"",
                                                   absl::CHexEscape(ToAbsl(name.substr(0, 64))),
                                                   "\" is no token of at most ", kMaxHeaderValue, " bytes"));
  }
  if (value.size() > kMaxHeaderValue) {
    return absl::InvalidArgumentError(absl::StrCat("header ", ToAbsl(name), " has ", value.size(),
                                                   " bytes, more than the limit of ", kMaxHeaderValue));
  }
  const auto control = [](unsigned char c) { return (c < 0x20 && c != '\t') || c == 0x7F; };
  if (std::ranges::any_of(value, control)) {
    return absl::InvalidArgumentError(
        absl::StrCat("header ", ToAbsl(name), " has a control character in its value"));
  }
  return absl::OkStatus();
}

std::string FormatUuid4(std::uint64_t high, std::uint64_t low) {
  high = (high & ~std::uint64_t{0xF000}) | 0x4000;
  low = (low & ~(std::uint64_t{3} << 62)) | std::uint64_t{2} << 62;
  return absl::StrFormat("%08x-%04x-%04x-%04x-%012x", high >> 32, high >> 16 & 0xFFFF, high & 0xFFFF,
                         low >> 48, low & 0xFFFFFFFFFFFF);
}

std::string_view CodeWord(int http_status) {
  switch (http_status) {
    case 400:
      return "BadRequest";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "NotFound";
    case 412:
      return "PreconditionFailed";
    case 413:
      return "PayloadTooLarge";
    case 429:
      return "ResourceExhausted";
    case 431:
      return "RequestHeaderFieldsTooLarge";
    case 503:
      return "ServiceUnavailable";
    default:
      return "Internal";
  }
}

Refusal RefusalOf(const absl::Status& status) {
  Refusal refusal;
  refusal.message = std::string(status.message());
  refusal.reason = sched::GetDroppedReason(status);
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      refusal.http_status = 400;
      break;
    case absl::StatusCode::kUnauthenticated:
      refusal.http_status = 401;
      break;
    case absl::StatusCode::kPermissionDenied:
      refusal.http_status = 403;
      break;
    case absl::StatusCode::kNotFound:
      refusal.http_status = 404;
      break;
    case absl::StatusCode::kFailedPrecondition:
      refusal.http_status = 412;
      break;
    case absl::StatusCode::kResourceExhausted:
      refusal.http_status = 429;
      break;
    case absl::StatusCode::kUnavailable:
      refusal.http_status = 503;
      break;
    default:
      refusal.http_status = 500;
      break;
  }
  return refusal;
}

std::string RefusalBody(const Refusal& refusal) {
  return absl::StrCat("inference error: ", ToAbsl(CodeWord(refusal.http_status)), " - ", refusal.message);
}

bool MatchesSubset(std::string_view entry, std::string_view endpoint, bool address_only) {
  const auto [entry_address, entry_port] = SplitPort(Trim(entry));
  const auto [address, port] = SplitPort(endpoint);
  if (entry_address.empty() || entry_address != address) return false;
  return address_only || entry_port.empty() || entry_port == port;
}

}  // namespace llmd::gateway
