// Shared by the tests of llmd::events: hex, the golden vectors, and a readable form of decoded events.
#ifndef TESTS_EVENTS_EVENTS_TEST_UTIL_H_
#define TESTS_EVENTS_EVENTS_TEST_UTIL_H_

#include <cstddef>
#include <deque>
#include <fstream>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/events/event.h"
#include "nlohmann/json.hpp"

namespace llmd::events {

using Bytes = std::vector<std::byte>;

inline Bytes FromHex(std::string_view hex) {
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  Bytes bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(digit(hex[i]) * 16 + digit(hex[i + 1])));
  }
  return bytes;
}

inline Bytes FromText(std::string_view text) {
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

inline const nlohmann::json& GoldenVectors() {
  static const nlohmann::json vectors = [] {
    std::ifstream file(LLMD_VECTORS_DIR "/kv_events.json");
    return nlohmann::json::parse(file);
  }();
  return vectors;
}

inline const nlohmann::json& GoldenCase(std::string_view id) {
  for (const auto& entry : GoldenVectors()["cases"]) {
    if (entry["id"] == id) return entry;
  }
  ADD_FAILURE() << "no golden case " << id;
  static const nlohmann::json none;
  return none;
}

// Everything in an event, as JSON that can be compared and printed. Bytes become hex.
nlohmann::json ToJson(const Event& event);
nlohmann::json ToJson(std::span<const Event> events);

// Events with random contents that stay alive with this object.
class RandomEvents {
 public:
  explicit RandomEvents(std::uint64_t seed) : random_(seed) {}
  // `binary_hashes`: some hashes are byte strings.
  std::vector<Event> Batch(bool binary_hashes);
  Random& random() { return random_; }

 private:
  Event MakeEvent(bool binary_hashes);
  std::string_view Text();
  template <typename T>
  std::span<T> Array(std::size_t size) {
    storage_.push_back(std::make_unique<std::byte[]>(size * sizeof(T) + 1));
    return {new (storage_.back().get()) T[size], size};
  }
  TokenSpan Tokens(std::size_t count);
  std::uint64_t AnyWidth();

  Random random_;
  std::vector<std::unique_ptr<std::byte[]>> storage_;
  std::deque<std::string> texts_;
};

}  // namespace llmd::events

#endif  // TESTS_EVENTS_EVENTS_TEST_UTIL_H_
