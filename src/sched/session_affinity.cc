// session-affinity-scorer and session-affinity-filter: a session stays where it was served. (spec:
// scheduling.md 2.4)
//
// encoded_endpoint_header keeps nothing: the answer carries the endpoint's name, and the client brings it
// back. session_id keeps a SessionTable. A binding is looked up once a decision, and the profiles in which
// the plugin takes part note whether they saw the bound endpoint: only a session whose endpoint no profile
// saw moves.
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "llmd/sched/session.h"
#include "src/sched/base64.h"
#include "src/sched/builtin_plugins.h"
#include "src/sched/decided_targets.h"

namespace llmd::sched {
namespace {

struct SessionSource {
  std::string header = {};  // empty: the datum
  RequestSlot<SessionId> datum = {};
};

struct AffinityOptions {
  bool by_session_id = false;
  std::string header = "x-session-token";
  std::vector<SessionSource> sources = {};
  absl::Duration ttl = absl::Seconds(300);
  std::size_t max_sessions = 1'000'000;
  std::string profile = {};  // empty: the primary one
};

// What one decision knows of its session.
struct SessionPin {
  static constexpr std::string_view kDataType = "SessionPin";

  std::string_view session = {};
  EndpointHandle endpoint = {};  // generation 0: not bound
  bool examined = false;         // some profile looked for the endpoint
  bool present = false;          // and found it among its candidates
};

// Tells the client where it was served.
class EndpointEcho final : public FlightState {
 public:
  EndpointEcho(std::string header, std::string value)
      : header_(std::move(header)), value_(std::move(value)) {}
  void OnResponseHeaders(absl::Time, HeaderEdits& headers) override { headers.push_back({header_, value_}); }

 private:
  std::string header_;
  std::string value_;
};

class SessionAffinity : public Plugin, public DataProducer, public PreRequest {
 public:
  SessionAffinity(std::string type, std::string name, AffinityOptions options, RequestSlot<SessionPin> pin,
                  std::shared_ptr<SessionTable> table)
      : Plugin(std::move(type), std::move(name)),
        options_(std::move(options)),
        pin_(pin),
        table_(std::move(table)) {}

  void Produce(Context& context, ThreadState*) const override {
    SessionPin& pin = context.data.Publish(pin_);
    if (options_.by_session_id) {
      pin.session = FindSession(context);
      if (pin.session.empty()) return;
      pin.endpoint = table_->Find(pin.session, context.now, options_.ttl).value_or(EndpointHandle{});
    } else if (const auto token = context.request.FindHeader(options_.header)) {
      std::array<char, 768> buffer;  // namespace and name have at most 253 characters each
      const std::optional<std::string_view> id = DecodeBase64(*token, buffer);
      if (!id) return;
      for (const Position p : context.candidates) {
        if (context.pool[p].id() == *id) pin.endpoint = context.pool[p].handle;
      }
    }
  }

  absl::Status OnDecision(Context& context, const Decision& decision, std::span<const std::string> profiles,
                          Dispatch& dispatch) override {
    const std::optional<Position> target = TargetOf(decision, profiles, options_.profile);
    if (!target) return absl::OkStatus();
    const Endpoint& endpoint = context.pool[*target];
    if (!options_.by_session_id) {
      dispatch.flight.Attach(
          std::make_unique<EndpointEcho>(options_.header, absl::Base64Escape(endpoint.id())));
      return absl::OkStatus();
    }
    const SessionPin* pin = context.data.Read(pin_);
    if (pin == nullptr || pin->session.empty()) return absl::OkStatus();
    const bool absent = pin->endpoint.generation != 0 && pin->examined && !pin->present;
    table_->Use(pin->session, endpoint.handle, absent ? std::optional(pin->endpoint) : std::nullopt,
                context.now, options_.ttl);
    return absl::OkStatus();
  }

 protected:
  // Index into `candidates` of the endpoint that the session is pinned to. Notes the outcome.
  std::optional<std::size_t> FindPinned(Context& context, std::span<const Position> candidates) const {
    const SessionPin* published = context.data.Read(pin_);
    if (published == nullptr || published->endpoint.generation == 0) return std::nullopt;
    SessionPin pin = *published;
    pin.examined = true;
    std::optional<std::size_t> found;
    if (const std::optional<Position> position = context.pool.Find(pin.endpoint)) {
      for (std::size_t i = 0; i < candidates.size(); ++i) {
        if (candidates[i] == *position) found = i;
      }
    }
    pin.present |= found.has_value();
    context.data.Publish(pin_) = pin;
    return found;
  }

 private:
  std::string_view FindSession(const Context& context) const {
    for (const SessionSource& source : options_.sources) {
      std::string_view session;
      if (!source.header.empty()) {
        session = context.request.FindHeader(source.header).value_or(std::string_view());
      } else if (const SessionId* id = context.data.Read(source.datum)) {
        session = id->value;
      }
      if (!session.empty()) return session;
    }
    return {};
  }

  AffinityOptions options_;
  RequestSlot<SessionPin> pin_;
  std::shared_ptr<SessionTable> table_;  // null without session ids
};

class SessionAffinityScorer final : public SessionAffinity, public Scorer {
 public:
  using SessionAffinity::SessionAffinity;

  void Score(Context& context, std::span<const Position> candidates,
             std::span<double> scores) const override {
    for (double& score : scores) score = 0;
    if (const std::optional<std::size_t> pinned = FindPinned(context, candidates)) scores[*pinned] = 1;
  }
};

class SessionAffinityFilter final : public SessionAffinity, public Filter {
 public:
  using SessionAffinity::SessionAffinity;

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    const std::optional<std::size_t> pinned = FindPinned(context, candidates);
    if (!pinned) return;
    for (std::size_t i = 0; i < dropped.size(); ++i) {
      if (i != *pinned) dropped[i] = "the session is served by another endpoint";
    }
  }
};

absl::StatusOr<std::vector<SessionSource>> ReadSources(PluginBuilder& builder, ParameterReader& config) {
  std::vector<SessionSource> sources;
  const Value::List* list = config.OptionalList("sources");
  for (std::size_t i = 0; list != nullptr && i < list->size(); ++i) {
    ParameterReader item = config.NestedItem("sources", i, (*list)[i]);
    SessionSource source;
    std::string attribute;
    std::string producer = std::string(kSessionIdProducerType);
    item.Optional("header", &source.header);
    item.Optional("attribute", &attribute);
    item.Optional("producer", &producer);
    if (source.header.empty() == attribute.empty()) {
      item.Reject("header", source.header.empty() ? "missing" : "given with attribute",
                  "one of header and attribute");
    } else if (!attribute.empty() && attribute != SessionId::kDataType) {
      item.Reject("attribute", absl::StrCat("\"", attribute, "\""), "SessionID");
    }
    if (absl::Status status = item.Finish(); !status.ok()) return status;
    absl::AsciiStrToLower(&source.header);
    if (!attribute.empty()) source.datum = builder.ConsumesOfRequest<SessionId>(producer);
    sources.push_back(std::move(source));
  }
  if (sources.empty()) sources.push_back({.header = "x-session-id"});
  return sources;
}

// Seconds as a duration.
void ReadSeconds(ParameterReader& read, std::string_view field, absl::Duration* out) {
  double seconds = absl::ToDoubleSeconds(*out);
  read.Optional(field, &seconds);
  if (seconds <= 0) read.Reject(field, absl::StrCat(seconds), "more than 0");
  *out = absl::Seconds(seconds);
}

absl::StatusOr<AffinityOptions> ReadOptions(PluginBuilder& builder) {
  AffinityOptions options;
  ParameterReader read = builder.Read();
  std::string strategy = "encoded_endpoint_header";
  read.Optional("strategy", &strategy);
  read.Optional("profileName", &options.profile);
  options.by_session_id = strategy == "session_id";
  if (!options.by_session_id && strategy != "encoded_endpoint_header") {
    read.Reject("strategy", absl::StrCat("\"", strategy, "\""), "encoded_endpoint_header or session_id");
  }

  ParameterReader encoded = read.Nested("encodedEndpointHeaderConfig");
  encoded.Optional("header", &options.header);
  if (options.header.empty()) encoded.Reject("header", "empty", "the name of a header");
  absl::AsciiStrToLower(&options.header);

  ParameterReader by_id = read.Nested("sessionIdConfig");
  absl::Duration sweep = absl::Seconds(10);  // nothing is swept: what has expired reads as unbound
  auto max_sessions = static_cast<std::int64_t>(options.max_sessions);
  ReadSeconds(by_id, "evictionTtlSeconds", &options.ttl);
  ReadSeconds(by_id, "evictionSweepSeconds", &sweep);
  by_id.Optional("maxSessions", &max_sessions);
  if (max_sessions < 1 || max_sessions > static_cast<std::int64_t>(SessionTable::kMaxCapacity)) {
    by_id.Reject("maxSessions", absl::StrCat(max_sessions), absl::StrCat("1..", SessionTable::kMaxCapacity));
  }
  options.max_sessions = static_cast<std::size_t>(max_sessions);
  absl::StatusOr<std::vector<SessionSource>> sources = ReadSources(builder, by_id);
  if (!sources.ok()) return sources.status();
  options.sources = *std::move(sources);

  for (ParameterReader* reader : {&encoded, &by_id, &read}) {
    if (absl::Status status = reader->Finish(); !status.ok()) return status;
  }
  return options;
}

template <typename T>
absl::StatusOr<std::unique_ptr<Plugin>> Make(PluginBuilder& builder) {
  absl::StatusOr<AffinityOptions> options = ReadOptions(builder);
  if (!options.ok()) return options.status();
  std::shared_ptr<SessionTable> table;
  if (options->by_session_id) {
    table = builder.State<SessionTable>(builder.name(), options->max_sessions);
    const std::size_t wanted = SessionTable::CapacityFor(options->max_sessions);
    if (table->capacity() != wanted) {
      builder.Warn(absl::StrCat(builder.name(), ": sessionIdConfig.maxSessions is ", options->max_sessions,
                                "; the table of ", table->capacity(), " sessions from before goes on"));
    }
  }
  return std::make_unique<T>(builder.type(), builder.name(), *std::move(options),
                             builder.ProducesForRequest<SessionPin>(), std::move(table));
}

}  // namespace

void RegisterSessionAffinity(PluginRegistry& registry) {
  MustRegister(registry, "session-affinity-scorer", Make<SessionAffinityScorer>, Stability::kExperimental);
  MustRegister(registry, "session-affinity-filter", Make<SessionAffinityFilter>, Stability::kExperimental);
}

}  // namespace llmd::sched
