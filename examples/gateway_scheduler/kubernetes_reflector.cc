#include "examples/gateway_scheduler/kubernetes_reflector.h"

#include <algorithm>
#include <compare>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include <spdlog/spdlog.h>
#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "llmd/base/random.h"
#include "llmd/base/strings.h"

namespace llmd::host {
namespace {

using nlohmann::json;

constexpr int kMaxPages = 100'000;
constexpr std::size_t kMaxVersion = 64;
constexpr int kGone = 410;
constexpr int kMaxFailedWatches = 5;  // in a row; then the place to go on at may be what is wrong
constexpr absl::Duration kMaxRetryAfter = absl::Minutes(5);
// A watch that ends sooner without news was no watch: the server has a problem.
constexpr absl::Duration kShortWatch = absl::Seconds(1);

std::string TextAt(const json& object, const char* field) {
  if (!object.is_object()) return {};
  const auto it = object.find(field);
  return it != object.end() && it->is_string() ? it->get_ref<const std::string&>() : std::string();
}

const json& MetadataOf(const json& object) {
  static const json kNone;
  if (!object.is_object()) return kNone;
  const auto it = object.find("metadata");
  return it == object.end() ? kNone : *it;
}

// Empty where there is none.
std::string VersionOf(const json& object) {
  std::string version = TextAt(MetadataOf(object), "resourceVersion");
  if (version.size() > kMaxVersion) version.clear();
  return version;
}

// Empty for an object without name.
std::string KeyOf(const json& object) {
  const json& metadata = MetadataOf(object);
  const std::string name = TextAt(metadata, "name");
  const std::string space = TextAt(metadata, "namespace");
  return name.empty() || space.empty() ? name : absl::StrCat(space, "/", name);
}

// Versions are decimal numbers that grow; where they are not, their order is unknown.
std::optional<std::strong_ordering> Compare(std::string_view a, std::string_view b) {
  const auto is_number = [](std::string_view text) {
    return !text.empty() && text.front() != '0' &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  };
  if (!is_number(a) || !is_number(b)) return std::nullopt;
  return a.size() == b.size() ? a <=> b : a.size() <=> b.size();
}

// As errors are told in the log and to handlers. OutOfRange stands for 410.
absl::Status HttpError(const std::string& what, int code, const std::string& body) {
  const json status = json::parse(body, nullptr, false);
  std::string message = absl::StrCat(what, ": HTTP ", code);
  if (const std::string text = TextAt(status, "message"); !text.empty()) {
    absl::StrAppend(&message, ": ", absl::CHexEscape(ToAbsl(std::string_view(text).substr(0, 300))));
  }
  switch (code) {
    case 400:
      return absl::InvalidArgumentError(message);
    case 401:
      return absl::UnauthenticatedError(message);
    case 403:
      return absl::PermissionDeniedError(message);
    case 404:
      return absl::NotFoundError(message);
    case kGone:
      return absl::OutOfRangeError(message);
    default:
      return absl::UnavailableError(message);
  }
}

}  // namespace

class Reflector::Impl {
 public:
  Impl(const KubernetesConfig& config, const ReflectorOptions& options, ObjectHandler& handler)
      : options_(options), handler_(handler), connection_(config), random_(options.seed) {
    thread_ = std::thread([this] { Run(); });
  }
  ~Impl() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    connection_.Stop();
    thread_.join();
  }

  Counts counts() const {
    const std::lock_guard lock(mutex_);
    return counts_;
  }
  absl::Status status() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  using Reply = KubernetesConnection::Reply;

  bool stopped() const {
    const std::lock_guard lock(mutex_);
    return stop_;
  }
  template <typename Change>
  void Count(Change change) {
    const std::lock_guard lock(mutex_);
    change(counts_);
  }

  void Run() {
    while (!stopped()) {
      if (const absl::Status status = List(); !status.ok()) {
        if (absl::IsNotFound(status) || absl::IsPermissionDenied(status)) handler_.NotServed(status);
        Fail(status);
        continue;
      }
      SetOk();
      for (int failed = 0; !stopped() && failed < kMaxFailedWatches;) {
        const absl::Status status = Watch();
        failed = status.ok() ? 0 : failed + 1;
        if (status.ok()) continue;
        Fail(status);
        // The network and a busy server do not invalidate what we know.
        const bool resume = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
                            absl::IsUnauthenticated(status);
        if (!resume) break;
      }
    }
  }

  std::string Query() const {
    std::string query;
    const auto add = [&](const char* name, const std::string& value) {
      if (!value.empty()) absl::StrAppend(&query, "&", name, "=", UrlEncode(value));
    };
    add("labelSelector", options_.label_selector);
    add("fieldSelector", options_.field_selector);
    return query;
  }

  absl::Status List() {
    absl::Status status = ListPages(options_.page_size);
    // The snapshot that the pages are of did not last as long as we read: all at once, then.
    if (absl::IsOutOfRange(status) && options_.page_size > 0) {
      Count([](Counts& counts) { ++counts.expired; });
      status = ListPages(0);
    }
    return status;
  }

  absl::Status ListPages(int page_size) {
    handler_.BeginList();
    versions_.clear();
    position_.clear();
    std::string next;
    for (int page = 0; page < kMaxPages; ++page) {
      const std::string target = absl::StrCat(options_.path, "?limit=", page_size, Query(),
                                              next.empty() ? "" : "&continue=", UrlEncode(next));
      absl::StatusOr<Reply> reply = connection_.Get(target,
                                                    {.max_bytes = options_.max_page_bytes,
                                                     .timeout = options_.list_timeout,
                                                     .first_byte = options_.first_byte},
                                                    nullptr);
      if (!reply.ok()) return reply.status();
      retry_after_ = reply->retry_after;
      if (reply->status != 200) return HttpError(options_.path, reply->status, reply->body);
      const json list = json::parse(reply->body, nullptr, false);
      reply->body = {};
      if (absl::Status status = ReadPage(list); !status.ok()) return status;
      next = TextAt(MetadataOf(list), "continue");
      if (next.empty()) {
        handler_.EndList();
        Count([](Counts& counts) { ++counts.lists; });
        return absl::OkStatus();
      }
    }
    return absl::ResourceExhaustedError(
        absl::StrCat(options_.path, ": list has more than ", kMaxPages, " pages"));
  }

  absl::Status ReadPage(const json& list) {
    const std::string version = VersionOf(list);
    if (version.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(options_.path, ": the answer is no list, or has no metadata.resourceVersion"));
    }
    if (position_.empty()) position_ = version;
    const auto items = list.find("items");
    if (items == list.end() || items->is_null()) return absl::OkStatus();
    if (!items->is_array()) {
      return absl::InvalidArgumentError(absl::StrCat(options_.path, ": items is no list"));
    }
    for (const json& item : *items) {
      const std::string key = KeyOf(item);
      if (key.empty()) {
        spdlog::warn("{}: an object without metadata.name is passed over", options_.path);
        continue;
      }
      if (absl::Status status = Remember(key, VersionOf(item)); !status.ok()) return status;
      handler_.Listed(key, item);
    }
    return absl::OkStatus();
  }

  absl::Status Remember(const std::string& key, const std::string& version) {
    if (versions_.size() >= options_.max_objects && !versions_.contains(key)) {
      return absl::ResourceExhaustedError(
          absl::StrCat(options_.path, ": there are more than ", options_.max_objects, " objects"));
    }
    versions_[key] = version;
    return absl::OkStatus();
  }

  // Until the watch ends. OK: go on with another one at once.
  absl::Status Watch() {
    const std::int64_t least = std::max<std::int64_t>(1, absl::ToInt64Seconds(options_.watch_timeout));
    const auto seconds = static_cast<std::int64_t>(
        random_.Between(static_cast<std::uint64_t>(least), 2 * static_cast<std::uint64_t>(least)));
    const std::string target = absl::StrCat(
        options_.path, "?watch=1&allowWatchBookmarks=true&resourceVersion=", UrlEncode(position_),
        "&timeoutSeconds=", seconds, Query());
    Count([](Counts& counts) { ++counts.watches; });
    line_.clear();
    const std::string began_at = position_;
    const absl::Time begin = absl::Now();
    absl::StatusOr<Reply> reply = connection_.Get(target,
                                                  {.max_bytes = 0,
                                                   .timeout = absl::Seconds(seconds) + options_.watch_grace,
                                                   .first_byte = options_.first_byte},
                                                  [this](std::string_view piece) { return Take(piece); });
    const bool news = position_ != began_at;
    if (news) Succeed();
    if (!reply.ok()) {
      // A connection that broke after it brought news is nothing to wait for.
      return news && absl::IsUnavailable(reply.status()) ? absl::OkStatus() : reply.status();
    }
    retry_after_ = reply->retry_after;
    if (reply->status == kGone) Count([](Counts& counts) { ++counts.expired; });
    if (reply->status != 200) return HttpError(options_.path, reply->status, reply->body);
    if (!news && absl::Now() - begin < kShortWatch) {
      return absl::UnavailableError(absl::StrCat(options_.path, ": the watch ended at once"));
    }
    Succeed();
    return absl::OkStatus();
  }

  // Cuts the stream into lines, one event each. What is left at its end was cut off, and will come again.
  absl::Status Take(std::string_view piece) {
    if (piece.empty()) SetOk();  // the server lets us watch, though nothing may happen for long
    while (!piece.empty()) {
      const std::size_t end = piece.find('\n');
      const std::string_view part = piece.substr(0, end);
      if (part.size() > options_.max_event_bytes - std::min(options_.max_event_bytes, line_.size())) {
        return absl::ResourceExhaustedError(
            absl::StrCat(options_.path, ": an event has more than ", options_.max_event_bytes, " bytes"));
      }
      line_.append(part);
      if (end == std::string_view::npos) break;
      piece.remove_prefix(end + 1);
      const absl::Status status =
          line_.find_first_not_of(" \r\t") == std::string::npos ? absl::OkStatus() : TakeEvent(line_);
      line_.clear();
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status TakeEvent(const std::string& line) {
    const json event = json::parse(line, nullptr, false);
    const std::string type = TextAt(event, "type");
    const auto object = event.is_object() ? event.find("object") : event.end();
    if (type.empty() || object == event.end() || !object->is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(options_.path, ": cannot read an event of ", line.size(),
                                                     " bytes: ", absl::CHexEscape(line.substr(0, 60))));
    }
    if (type == "ERROR") return EventError(*object);
    const std::string version = VersionOf(*object);
    const auto order = Compare(version, position_);
    if (type == "BOOKMARK") {
      Count([](Counts& counts) { ++counts.bookmarks; });
      if (!version.empty() && order != std::strong_ordering::less) position_ = version;
      return absl::OkStatus();
    }
    if (type != "ADDED" && type != "MODIFIED" && type != "DELETED") {
      spdlog::warn("{}: an event of the unknown type {} is passed over", options_.path,
                   absl::CHexEscape(type));
      return absl::OkStatus();
    }
    const std::string key = KeyOf(*object);
    if (key.empty()) {
      spdlog::warn("{}: an object without metadata.name is passed over", options_.path);
      return absl::OkStatus();
    }
    const bool late = order && *order != std::strong_ordering::greater;
    if (const auto known = versions_.find(key); known != versions_.end()) {
      const auto age = Compare(version, known->second);
      // Servers that give a deletion the version of the object's last state exist.
      const bool old = age && (*age == std::strong_ordering::less ||
                               (*age == std::strong_ordering::equal && type != "DELETED"));
      if (old) return Repeated();
      if (late && age != std::strong_ordering::equal) return OutOfOrder(version);
    } else if (type == "DELETED") {
      if (!late && !version.empty()) position_ = version;
      return Repeated();
    } else if (late) {
      return OutOfOrder(version);
    }
    if (type == "DELETED") {
      versions_.erase(key);
      handler_.Deleted(key);
    } else {
      if (absl::Status status = Remember(key, version); !status.ok()) return status;
      handler_.AddedOrModified(key, *object);
    }
    if (!version.empty() && !late) position_ = version;
    Count([](Counts& counts) { ++counts.events; });
    return absl::OkStatus();
  }

  absl::Status Repeated() {
    Count([](Counts& counts) { ++counts.repeated; });
    return absl::OkStatus();
  }
  absl::Status OutOfOrder(const std::string& version) const {
    return absl::FailedPreconditionError(absl::StrCat(options_.path, ": a change to version ", version,
                                                      " came after that to version ", position_));
  }

  absl::Status EventError(const json& status) {
    const auto code = status.find("code");
    const bool is_code =
        code != status.end() && code->is_number_unsigned() && code->get<std::uint64_t>() < 1000;
    const std::string reason = TextAt(status, "reason");
    const bool gone = reason == "Expired" || reason == "Gone" || (is_code && code->get<int>() == kGone);
    if (gone) Count([](Counts& counts) { ++counts.expired; });
    const std::string message =
        absl::StrCat(options_.path, ": ",
                     absl::CHexEscape(ToAbsl(std::string_view(TextAt(status, "message")).substr(0, 300))));
    // Whatever it is, what we know may be incomplete.
    return gone ? absl::OutOfRangeError(message) : absl::InternalError(message);
  }

  void Succeed() {
    failures_in_a_row_ = 0;
    SetOk();
  }
  void SetOk() {
    const std::lock_guard lock(mutex_);
    if (!status_.ok()) spdlog::info("{}: is followed again", options_.path);
    status_ = absl::OkStatus();
  }

  // Tells and waits.
  void Fail(const absl::Status& status) {
    if (absl::IsCancelled(status)) return;
    // A token may just have been replaced: it is read again for each request.
    const bool at_once = absl::IsUnauthenticated(status) && failures_in_a_row_ == 0;
    absl::Duration delay = options_.min_backoff;
    for (int i = 0; i < failures_in_a_row_ && delay < options_.max_backoff; ++i) delay *= 2;
    delay = std::min(delay, options_.max_backoff) * (0.5 + 0.5 * random_.Uniform());
    if (const auto asked = std::exchange(retry_after_, std::nullopt); asked) {
      delay = std::max(delay, std::min(*asked, kMaxRetryAfter) * (1 + 0.1 * random_.Uniform()));
    }
    ++failures_in_a_row_;
    std::unique_lock lock(mutex_);
    ++counts_.failures;
    if (status != status_) {  // once, not with every attempt
      spdlog::log(absl::IsNotFound(status) ? spdlog::level::info : spdlog::level::warn, "Kubernetes: {}",
                  std::string(status.message()));
      status_ = status;
    }
    if (!at_once) {
      changed_.wait_for(lock, absl::ToChronoMilliseconds(delay), [this] { return stop_; });
    }
  }

  const ReflectorOptions options_;
  ObjectHandler& handler_;
  KubernetesConnection connection_;
  // Of the thread alone:
  Random random_;
  std::string position_;                                    // the version up to which we know everything
  absl::flat_hash_map<std::string, std::string> versions_;  // key -> version
  std::string line_;                                        // of the watch, as far as it came
  std::optional<absl::Duration> retry_after_;
  int failures_in_a_row_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  Counts counts_;
  absl::Status status_;
  std::thread thread_;
};

Reflector::Reflector(const KubernetesConfig& config, const ReflectorOptions& options, ObjectHandler& handler)
    : impl_(std::make_unique<Impl>(config, options, handler)) {}
Reflector::~Reflector() = default;
Reflector::Counts Reflector::counts() const { return impl_->counts(); }
absl::Status Reflector::status() const { return impl_->status(); }

}  // namespace llmd::host
