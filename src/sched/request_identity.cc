// session-id-producer and agent-identity: what a request says about who sends it. (spec: scheduling.md 2.1)
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "llmd/sched/session.h"
#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

bool IsCookieByte(char c) { return c >= 0x20 && c < 0x7F && c != '"' && c != ';' && c != '\\'; }

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t";
  const std::size_t begin = text.find_first_not_of(kSpace);
  return begin == std::string_view::npos ? std::string_view()
                                         : text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

// The first cookie of that name with a well-formed value; a quoted value without its quotes. One pass over
// the text, whatever it holds. (RFC 6265 4.1.1, with the leniency of usual servers: spaces and commas are
// fine)
std::string_view FindCookie(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(';'), text.size());
    const std::string_view pair = Trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t equals = pair.find('=');
    if (equals == std::string_view::npos || pair.substr(0, equals) != name) continue;
    std::string_view value = pair.substr(equals + 1);
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"') {
      value = value.substr(1, value.size() - 2);
    }
    if (std::all_of(value.begin(), value.end(), IsCookieByte)) return value;
  }
  return {};
}

class SessionIdProducer final : public Plugin, public DataProducer {
 public:
  SessionIdProducer(std::string type, std::string name, std::string header, std::string cookie,
                    RequestSlot<SessionId> slot)
      : Plugin(std::move(type), std::move(name)),
        header_(std::move(header)),
        cookie_(std::move(cookie)),
        slot_(slot) {}

  void Produce(Context& context, ThreadState*) const override {
    const std::string_view session = Find(context.request);
    if (!session.empty()) context.data.Publish(slot_).value = session;
  }

 private:
  std::string_view Find(const Request& request) const {
    if (!header_.empty()) return request.FindHeader(header_).value_or(std::string_view());
    for (const Header& header : request.headers) {
      if (header.name != "cookie") continue;
      const std::string_view value = FindCookie(header.value, cookie_);
      if (!value.empty()) return value;
    }
    return {};
  }

  std::string header_;
  std::string cookie_;
  RequestSlot<SessionId> slot_;
};

absl::StatusOr<std::unique_ptr<Plugin>> MakeSessionIdProducer(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::string header;
  std::string cookie;
  read.Optional("headerName", &header);
  read.Optional("cookieName", &cookie);
  if (header.empty() == cookie.empty()) {
    read.Reject("headerName", header.empty() ? "missing" : "given with cookieName",
                "exactly one of headerName and cookieName");
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  absl::AsciiStrToLower(&header);
  return std::make_unique<SessionIdProducer>(builder.type(), builder.name(), std::move(header),
                                             std::move(cookie), builder.ProducesForRequest<SessionId>());
}

class HeaderAgentIdentity final : public Plugin, public AgentIdentity {
 public:
  HeaderAgentIdentity(std::string type, std::string name, std::vector<std::string> headers)
      : Plugin(std::move(type), std::move(name)), headers_(std::move(headers)) {}

  std::string_view Identify(const Request& request) const override {
    for (const std::string& header : headers_) {
      const std::optional<std::string_view> value = request.FindHeader(header);
      if (value && !value->empty()) return *value;
    }
    return {};
  }

 private:
  std::vector<std::string> headers_;
};

absl::StatusOr<std::unique_ptr<Plugin>> MakeAgentIdentity(PluginBuilder& builder) {
  ParameterReader read = builder.Read();
  std::vector<std::string> headers;
  read.Optional("additionalSessionHeaders", &headers);
  for (std::string& header : headers) {
    if (header.empty()) read.Reject("additionalSessionHeaders", "an empty name", "names of headers");
    absl::AsciiStrToLower(&header);
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  headers.insert(headers.end(),
                 {"x-claude-code-session-id", "x-session-affinity", "session-id", "session_id"});
  return std::make_unique<HeaderAgentIdentity>(builder.type(), builder.name(), std::move(headers));
}

}  // namespace

void RegisterRequestIdentity(PluginRegistry& registry) {
  MustRegister(registry, kSessionIdProducerType, MakeSessionIdProducer);
  MustRegister(registry, "agent-identity", MakeAgentIdentity, Stability::kExperimental);
  // Made by default it has no parameters and so says what is missing.
  registry.SetDefaultProducer(SessionId::kDataType, kSessionIdProducerType);
}

}  // namespace llmd::sched
