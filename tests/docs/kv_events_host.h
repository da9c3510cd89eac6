// What the host of docs/kv-events.md declares around the code shown there.
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"

extern std::span<const std::byte> payload;
void Count(std::uint64_t skipped, const absl::Status& why);
void Ingest(std::span<const std::byte> batch);
void ForgetPublisher();
void OpenReplay(std::uint64_t request, std::uint64_t sequence);
void CloseReplay(std::uint64_t request);
