// Text that came from clients, made safe to print: into metric labels, log lines and JSON.
//
// Plain functions, any thread.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_SAFE_TEXT_H_
#define EXAMPLES_GATEWAY_SCHEDULER_SAFE_TEXT_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace llmd::host {

// Valid UTF-8 without control characters: each bad byte and each control character becomes U+FFFD, as do the
// marks that reorder text on a screen. At most `max_bytes` (cut between characters, then "...").
std::string SafeText(std::string_view text, std::size_t max_bytes = 256);
// Whether SafeText() would return it as it is; no more than a look at each byte for plain ASCII.
bool IsSafeText(std::string_view text, std::size_t max_bytes = 256);

// Appends `text` as a JSON string, quotes included. What SafeText() replaces is escaped (\u001b) where it is
// a character, and replaced where it is none, so that one line stays one line and starts no terminal command.
void AppendQuoted(std::string_view text, std::string& out, std::size_t max_bytes = 1024);

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_SAFE_TEXT_H_
