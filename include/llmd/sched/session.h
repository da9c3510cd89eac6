// Sessions: which one a request belongs to, and where each is served.
//
// SessionId is what session-id-producer reads from a header or cookie. SessionTable is the memory of the
// session-affinity plugins with strategy session_id: session -> endpoint and when it was last used. It
// belongs to a plugin name and is shared, through Resources::states, with the next scheduler after a reload.
// (spec: scheduling.md 2.4)
//
// Memory is taken at once and never grows: kEntryBytes for each of the capacity's entries, 40 MB for the
// default of a million sessions. A session is known by a 128-bit fingerprint (XXH3), so its length costs
// nothing. It may live in one of two groups of eight entries; when both are full of sessions in use, the one
// used least recently makes room. Until four fifths of the capacity are in use that hardly happens.
//
// Any thread may call anything. Find() takes no lock and waits for nobody: a session that is being bound for
// the first time, or replaced by another, at that very moment may read as unbound.
#ifndef LLMD_SCHED_SESSION_H_
#define LLMD_SCHED_SESSION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "absl/time/time.h"
#include "llmd/sched/endpoint.h"

namespace llmd::sched {

// A datum of the request; not published for a request without one.
struct SessionId {
  static constexpr std::string_view kDataType = "SessionID";

  std::string_view value = {};  // not empty
};

class SessionTable {
 public:
  static constexpr std::size_t kEntryBytes = 40;
  static constexpr std::size_t kMaxCapacity = 100'000'000;

  // The number of entries for `max_sessions` (1 .. kMaxCapacity, clamped): as many, or up to 7 fewer.
  static std::size_t CapacityFor(std::size_t max_sessions);
  explicit SessionTable(std::size_t max_sessions);
  ~SessionTable();
  SessionTable(const SessionTable&) = delete;
  SessionTable& operator=(const SessionTable&) = delete;

  // The endpoint that the session is bound to, unless it was unused for longer than `ttl`.
  std::optional<EndpointHandle> Find(std::string_view session, absl::Time now, absl::Duration ttl) const;

  // The session's request goes to `picked`: binds an unbound session, refreshes a binding to `picked`, and
  // moves a binding to `absent`. One to any other endpoint stays as it is.
  void Use(std::string_view session, EndpointHandle picked, std::optional<EndpointHandle> absent,
           absl::Time now, absl::Duration ttl);

  std::size_t capacity() const;
  // Entries in use; expired ones count until they are replaced.
  std::size_t size() const;
  std::size_t memory_bytes() const { return capacity() * kEntryBytes; }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_SESSION_H_
