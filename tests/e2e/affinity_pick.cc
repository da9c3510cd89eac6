// Answers, line by line, what this library decides, for comparison with Envoy.
//
//   affinity_pick ring|murmur|maglev SIZE [KEY=WEIGHT[@LOCALITY]]... [locality=WEIGHT]... [balance=PERCENT]
//     reads JSON lists of a header's values, writes the host's key; with balance, as if no request ever ended
//   affinity_pick session [lua]
//     reads JSON lists of [name, value] of a request's headers, writes the session as JSON, null when there
//     is none; with `lua`, without the spelling that the demo's filter does not know
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "llmd/gateway/bounded_load.h"
#include "llmd/gateway/maglev.h"
#include "llmd/gateway/request_hash.h"
#include "llmd/gateway/ring_hash.h"
#include "llmd/gateway/session_id.h"

namespace {

using namespace llmd::gateway;

[[noreturn]] void Die(std::string_view why) {
  std::fprintf(stderr, "affinity_pick: %.*s\n", static_cast<int>(why.size()), why.data());
  std::exit(2);
}

std::uint32_t Number(std::string_view text) {
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) Die("not a number: " + std::string(text));
  return number;
}

template <typename Table>
std::function<std::uint32_t(std::uint64_t)> Picker(absl::StatusOr<Table> table) {
  if (!table.ok()) Die(std::string(table.status().message()));
  return [table = std::make_shared<const Table>(*std::move(table))](std::uint64_t hash) {
    return table->Pick(hash);
  };
}

void Hosts(std::string_view kind, std::uint32_t size, std::span<char*> arguments) {
  std::vector<HashHost> hosts;
  std::vector<std::uint32_t> localities;
  std::uint32_t balance = 0;
  for (const std::string_view argument : arguments) {
    const std::size_t equals = argument.rfind('=');
    if (equals == std::string_view::npos) Die("no '=' in " + std::string(argument));
    const std::string_view rest = argument.substr(equals + 1);
    if (argument.substr(0, equals) == "locality") {
      localities.push_back(Number(rest));
      continue;
    }
    if (argument.substr(0, equals) == "balance") {
      balance = Number(rest);
      continue;
    }
    const std::size_t at = rest.find('@');
    hosts.push_back({.key = std::string(argument.substr(0, equals)),
                     .weight = Number(rest.substr(0, at)),
                     .locality = at == std::string_view::npos ? 0 : Number(rest.substr(at + 1))});
  }
  std::function<std::uint32_t(std::uint64_t)> pick;
  if (kind == "maglev") {
    pick = Picker(Maglev::Create(hosts, {.table_size = size, .locality_weights = localities}));
  } else {
    const auto function = kind == "ring" ? RingHashFunction::kXxHash : RingHashFunction::kMurmurHash2;
    pick = Picker(RingHash::Create(
        hosts, {.min_ring_size = size, .function = function, .locality_weights = localities}));
  }
  const auto normalized = Normalize(hosts, localities);
  const auto bounded = BoundedLoad::Create(balance, *normalized);
  if (!bounded.ok()) Die(std::string(bounded.status().message()));
  std::vector<std::uint32_t> active(hosts.size()), scratch;
  std::uint32_t total = 0;
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto texts = nlohmann::json::parse(line).get<std::vector<std::string>>();
    const std::vector<std::string_view> values(texts.begin(), texts.end());
    const std::uint64_t hash = HashHeaderValues(values);
    const std::uint32_t host = bounded->Pick(pick(hash), hash, active, total++, scratch);
    std::cout << hosts.at(host).key << '\n';
    ++active[host];
  }
}

void Sessions(bool lua) {
  SessionIdOptions options;
  if (lua) options.sources.pop_back();
  const auto reader = SessionIdReader::Create(options);
  std::string line, scratch;
  while (std::getline(std::cin, line)) {
    const auto pairs = nlohmann::json::parse(line).get<std::vector<std::pair<std::string, std::string>>>();
    std::vector<HeaderView> headers;
    for (const auto& [name, value] : pairs) headers.push_back({name, value});
    const SessionId id = reader->Read(headers, scratch);
    nlohmann::json answer;
    if (id.found()) answer = std::string(id.value);
    std::cout << answer.dump() << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  const std::string_view mode = argc > 1 ? argv[1] : "";
  if (mode == "session") {
    Sessions(argc > 2 && std::string_view(argv[2]) == "lua");
  } else if (argc > 3 && (mode == "ring" || mode == "murmur" || mode == "maglev")) {
    Hosts(mode, Number(argv[2]), std::span(argv + 3, argv + argc));
  } else {
    Die("usage: affinity_pick ring|murmur|maglev SIZE KEY=WEIGHT[@LOCALITY]... [locality=WEIGHT]..., or "
        "session [lua]");
  }
}
