// Any bytes, read as operations on the prefix index: after each, the index must equal its literal reference.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>

#include "llmd/index/prefix_index.h"
#include "tests/index/operations.h"

namespace llmd::index {
namespace {

class Bytes {
 public:
  explicit Bytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  bool empty() const { return bytes_.empty(); }
  std::uint8_t Next() {
    if (bytes_.empty()) return 0;
    const std::uint8_t byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }
  std::uint64_t Below(std::uint64_t n) { return Next() % n; }

 private:
  std::span<const std::uint8_t> bytes_;
};

// Small universes: everything collides. A long batch is a start and a length, so that few bytes make long
// runs.
Operation ReadOperation(Bytes& bytes) {
  Operation operation;
  operation.kind = static_cast<Operation::Kind>(bytes.Below(8));
  const std::uint8_t who = bytes.Next();
  operation.holder = who % 6;
  operation.ns = {(who >> 3) % 2u, 0};
  switch (operation.kind) {
    case Operation::Kind::kAddHolder:
      operation.options.endpoint = std::to_string(who % 4);
      operation.options.removal = (who & 64) != 0 ? RemovalPolicy::kRefcount : RemovalPolicy::kSet;
      operation.options.key_space = who >> 7;
      break;
    case Operation::Kind::kStore: {
      const std::uint8_t shape = bytes.Next();
      if ((shape & 1) != 0) operation.parent = bytes.Next();
      if ((shape & 2) != 0) {
        const std::uint8_t engine = bytes.Next();
        for (std::uint64_t i = 0, length = bytes.Next(); i < length; ++i)
          operation.blocks.push_back({engine + i, i});
      } else {
        for (std::uint64_t length = shape >> 2 & 15; length > 0; --length) {
          const std::uint8_t block = bytes.Next();
          operation.blocks.push_back({block / 4u, block % 4u});
        }
      }
      break;
    }
    case Operation::Kind::kStoreKnown:
    case Operation::Kind::kRemove:
      for (std::uint64_t length = bytes.Below(8); length > 0; --length)
        operation.keys.push_back(bytes.Next());
      break;
    case Operation::Kind::kMatch: {
      const std::uint8_t shape = bytes.Next();
      for (std::uint64_t i = 0; i < (shape & 31); ++i) {
        operation.chain.push_back((shape & 32) != 0 ? i : bytes.Below(4));
      }
      break;
    }
    default:
      break;
  }
  return operation;
}

}  // namespace
}  // namespace llmd::index

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace llmd::index;
  // Too small for huge pages, whose clearing would take most of the time.
  constexpr PrefixIndexOptions kOptions = {.max_bytes = std::size_t{24} << 20, .max_holders = 16};
  if (size > 2048) return 0;
  Bytes bytes({data, size});
  Operations operations(3);
  for (std::size_t i = 0; i < operations.size(); ++i) {
    operations[i].kind = Operation::Kind::kAddHolder;
    operations[i].holder = i;
    operations[i].options.endpoint = std::to_string(i);
  }
  while (!bytes.empty()) operations.push_back(ReadOperation(bytes));
  if (const auto difference = RunOnBoth(operations, kOptions)) {
    std::fprintf(stderr, "%s\n", Explain(operations, *difference, kOptions).c_str());
    std::abort();
  }
  return 0;
}
