// Any bytes, read as operations on flow control: every request gets exactly one terminal outcome, and each
// step equals that of the literal model.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <vector>

#include "tests/sched/flow_operations.h"

namespace llmd::sched {
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

 private:
  std::span<const std::uint8_t> bytes_;
};

// Few ids, flows and priorities, so that operations meet.
FlowOperation ReadOperation(Bytes& bytes) {
  static constexpr std::int32_t kPriorities[] = {0, 2, -1, 1, -3, 9, INT32_MAX, INT32_MIN};
  FlowOperation op;
  const std::uint8_t what = bytes.Next();
  op.kind = static_cast<FlowOperation::Kind>(what % FlowOperation::kKinds);
  const std::uint8_t passes = what / FlowOperation::kKinds;  // 0 .. 31: nothing, or up to 9 hours
  if (passes >= 16) op.later = absl::Milliseconds(std::int64_t{1} << (passes - 7));
  op.id = bytes.Next() % 64;
  op.amount = bytes.Next();
  if (op.kind == FlowOperation::Kind::kEnqueue) {
    const std::uint8_t who = bytes.Next();
    op.flow = who % 8;
    op.priority = kPriorities[who / 8 % 8];
    if ((who & 64) != 0) op.ttl = bytes.Next();
    if ((who & 128) != 0) op.slo = bytes.Next();
  }
  return op;
}

}  // namespace
}  // namespace llmd::sched

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace llmd::sched;
  if (size > 4096) return 0;
  Bytes bytes({data, size});
  const std::uint64_t number = bytes.Next() + 256u * bytes.Next();
  std::vector<FlowOperation> operations;
  while (!bytes.empty()) operations.push_back(ReadOperation(bytes));
  if (const auto wrong = RunFlowOnBoth(FlowConfigNumber(number), operations)) {
    std::fprintf(stderr, "%s\n", wrong->c_str());
    std::abort();
  }
  return 0;
}
