// Any bytes as a snapshot: an error, or an index that can be used, written and read again. An odd first byte
// means the rest as it is; an even one puts a good header before the rest and a good checksum behind it, so
// that the fuzzer need not find those.
#define XXH_INLINE_ALL
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "llmd/index/prefix_index.h"
#include "xxhash.h"

namespace {

using llmd::index::HolderId;
using llmd::index::MatchResult;
using llmd::index::PrefixIndex;
using llmd::index::StoredBlock;

std::vector<std::byte> Write(const PrefixIndex& index) {
  std::vector<std::byte> bytes;
  const absl::Status status = index.Snapshot([&](std::span<const std::byte> piece) {
    bytes.insert(bytes.end(), piece.begin(), piece.end());
    return absl::OkStatus();
  });
  if (!status.ok()) std::abort();
  return bytes;
}

std::vector<std::byte> WithHeaderAndChecksum(std::span<const std::byte> rest) {
  constexpr std::size_t kHeader = 16;  // magic and versions
  static const std::vector<std::byte> empty =
      Write(**PrefixIndex::Create({.max_bytes = std::size_t{1} << 20}));
  std::vector<std::byte> bytes(empty.begin(), empty.begin() + kHeader);
  bytes.insert(bytes.end(), rest.begin(), rest.end());
  const std::uint64_t checksum = XXH3_64bits(bytes.data(), bytes.size());
  bytes.resize(bytes.size() + sizeof(checksum));
  std::memcpy(bytes.data() + bytes.size() - sizeof(checksum), &checksum, sizeof(checksum));
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto rest = std::as_bytes(std::span(data + 1, size - 1));
  const std::vector<std::byte> bytes =
      data[0] % 2 != 0 ? std::vector<std::byte>(rest.begin(), rest.end()) : WithHeaderAndChecksum(rest);
  const llmd::index::PrefixIndexOptions options = {.max_bytes = std::size_t{1} << 20, .max_holders = 32};
  const auto restored = PrefixIndex::Restore(bytes, options);
  if (!restored.ok()) return 0;
  PrefixIndex& index = **restored;
  if (!PrefixIndex::Restore(Write(index), options).ok()) std::abort();
  PrefixIndex::Reader reader(index);
  MatchResult result;
  const std::uint64_t chain[] = {0, 1, 2, 3};
  reader.Match({0, 0}, chain, result);
  const auto id = index.AddHolder({.endpoint = "after", .dp_rank = {}});
  if (id.ok()) {
    std::vector<StoredBlock> blocks(40);
    for (std::uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = {i, i % 3};
    index.Store(*id, {0, 0}, std::nullopt, blocks);
    index.Retire(*id);
  }
  return 0;
}
