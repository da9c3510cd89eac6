// Snapshots of the exact index. All numbers are little-endian, nothing is aligned:
//
// clang-format off
//   "LLMDIDX\0"  major u32  minor u32  holders u32  free slots u32  runs u32
//   holder: slot u16  generation u32  removal u8  key_space u32  has_rank u8  rank u32
//        endpoint, tier, each as u32 size and bytes
//   free slot, in the order of reuse: slot u16  generation u32
//   run, parents first: parent u32 (1-based position, 0 at the root)  parent_offset u32  namespace 2 x u64
//        key_space u32  length u32  words u32  flags u8  content u64[length]  engine u64[length]
//        if flags & 1, one bit per block, whether it owns its engine key, u64[(length + 63) / 64]; else all do
//        word: slot u16  lead u16  flags u8, then what the flags announce, each as u32 size and the items:
//              1 held bits u64[]   2 references beyond the first u8[]   4 foreign bits u64[], foreign keys u64[]
//   checksum u64: XXH3-64 of everything before
// clang-format on
#define XXH_INLINE_ALL
#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "src/index/prefix_index_impl.h"
#include "xxhash.h"

namespace llmd::index {

static_assert(std::endian::native == std::endian::little, "snapshots are written in host order");

namespace {

constexpr char kMagic[8] = {'L', 'L', 'M', 'D', 'I', 'D', 'X', '\0'};
constexpr std::uint32_t kMajor = 1;
constexpr std::uint32_t kMinor = 0;
constexpr std::uint8_t kSomeUnowned = 1;
constexpr std::uint8_t kHasHeld = 1;
constexpr std::uint8_t kHasCounts = 2;
constexpr std::uint8_t kHasForeign = 4;

class Writer {
 public:
  explicit Writer(const PrefixIndex::Sink& sink) : sink_(sink) { XXH3_64bits_reset(&checksum_); }

  template <typename T>
  void Number(T value) {
    static_assert(std::is_integral_v<T>);
    Bytes(&value, sizeof(value));
  }
  // At most `limit` of the items.
  template <typename T>
  void Array(const std::vector<T>& items, std::size_t limit) {
    const std::size_t size = std::min(items.size(), limit);
    Number(static_cast<std::uint32_t>(size));
    Bytes(items.data(), size * sizeof(T));
  }
  void Text(const std::string& text) {
    Number(static_cast<std::uint32_t>(text.size()));
    Bytes(text.data(), text.size());
  }
  void Bytes(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::byte*>(data);
    buffer_.insert(buffer_.end(), bytes, bytes + size);
    if (buffer_.size() >= kPiece) Flush();
  }
  absl::Status Finish() {
    Flush();
    Number(std::uint64_t{XXH3_64bits_digest(&checksum_)});
    Flush();
    return status_;
  }

 private:
  static constexpr std::size_t kPiece = std::size_t{1} << 20;

  void Flush() {
    XXH3_64bits_update(&checksum_, buffer_.data(), buffer_.size());
    if (status_.ok()) status_ = sink_(buffer_);
    buffer_.clear();
  }

  const PrefixIndex::Sink& sink_;
  std::vector<std::byte> buffer_;
  XXH3_state_t checksum_;
  absl::Status status_;
};

// Reads within bounds; after the first failure every value is zero.
class Input {
 public:
  explicit Input(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
  T Number() {
    T value{};
    Copy(&value, sizeof(value));
    return value;
  }
  template <typename T>
  std::vector<T> Array(std::size_t size) {
    if (size > bytes_.size() / sizeof(T)) {
      failed_ = true;
      return {};
    }
    std::vector<T> items(size);
    Copy(items.data(), size * sizeof(T));
    return items;
  }
  template <typename T>
  std::vector<T> Array() {
    return Array<T>(Number<std::uint32_t>());
  }
  std::string Text() {
    const std::vector<char> text = Array<char>();
    return {text.begin(), text.end()};
  }
  bool failed() const { return failed_; }
  std::size_t left() const { return bytes_.size(); }

 private:
  void Copy(void* to, std::size_t size) {
    if (failed_ || size > bytes_.size()) {
      failed_ = true;
      return;
    }
    if (size > 0) std::memcpy(to, bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
  }

  std::span<const std::byte> bytes_;
  bool failed_ = false;
};

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(absl::StrCat("snapshot is damaged: ", std::string(what)));
}

void WriteWord(Writer& out, const Trie& trie, RunId run, Coverage word) {
  const auto slot = static_cast<std::uint16_t>(SlotOf(word));
  out.Number(slot);
  out.Number(static_cast<std::uint16_t>(LeadOf(word)));
  const Detail* detail = trie.FindDetail(slot, run);
  std::uint8_t flags = 0;
  if (detail != nullptr) {
    if (!detail->held.empty()) flags |= kHasHeld;
    if (!detail->counts.empty()) flags |= kHasCounts;
    if (!detail->foreign_keys.empty()) flags |= kHasForeign;
  }
  out.Number(flags);
  // What is kept for a run that has become shorter may be longer than the run.
  const std::uint32_t length = trie.length(run);
  if ((flags & kHasHeld) != 0) out.Array(detail->held, (length + 63) / 64);
  if ((flags & kHasCounts) != 0) out.Array(detail->counts, length);
  if ((flags & kHasForeign) != 0) {
    out.Array(detail->is_foreign, (length + 63) / 64);
    out.Array(detail->foreign_keys, length);
  }
}

void WriteRun(Writer& out, const Trie& trie, RunId run, std::uint32_t parent_position) {
  const Body& body = *trie.body(run);
  const RunMeta& meta = trie.meta(run);
  const std::uint32_t length = trie.length(run);
  out.Number(parent_position);
  out.Number(std::uint32_t{body.parent_offset});
  out.Number(body.ns.hi);
  out.Number(body.ns.lo);
  out.Number(meta.key_space);
  out.Number(length);
  out.Number(std::uint32_t{meta.live_holders});
  out.Number(meta.unowned_keys ? kSomeUnowned : std::uint8_t{0});
  out.Bytes(body.content(), length * sizeof(BlockKey));
  out.Bytes(body.engine(), length * sizeof(EngineKey));
  if (meta.unowned_keys) {
    std::vector<std::uint64_t> owned((length + 63) / 64);
    for (std::uint32_t i = 0; i < length; ++i) {
      if (trie.OwnsKey({run, i})) Detail::SetBit(owned, i);
    }
    out.Bytes(owned.data(), owned.size() * sizeof(std::uint64_t));
  }
  for (std::uint32_t i = 0; i < body.holders.load(std::memory_order_relaxed); ++i) {
    const Coverage word = body.coverage()[i].load(std::memory_order_relaxed);
    if (word != 0) WriteWord(out, trie, run, word);
  }
}

absl::Status ReadHolder(Input& in, HolderRegistry& registry) {
  const auto slot = in.Number<std::uint16_t>();
  const auto generation = in.Number<std::uint32_t>();
  HolderOptions options;
  const auto removal = in.Number<std::uint8_t>();
  options.removal = removal == 0 ? RemovalPolicy::kSet : RemovalPolicy::kRefcount;
  options.key_space = in.Number<std::uint32_t>();
  const bool has_rank = in.Number<std::uint8_t>() != 0;
  const auto rank = in.Number<std::uint32_t>();
  if (has_rank) options.dp_rank = rank;
  options.endpoint = in.Text();
  options.tier = in.Text();
  if (in.failed() || removal > 1) return Damaged("holder table");
  return registry.AddAt(slot, generation, options);
}

// True when the bits say something that `length` blocks allow.
bool BitsFit(const std::vector<std::uint64_t>& bits, std::uint32_t length) {
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const std::size_t valid = i * 64 >= length ? 0 : std::min<std::size_t>(64, length - i * 64);
    if (valid < 64 && (bits[i] >> valid) != 0) return false;
  }
  return true;
}

absl::Status ReadWord(Input& in, Trie& trie, RunId run, std::uint32_t length) {
  const auto slot = in.Number<std::uint16_t>();
  const std::uint32_t lead = in.Number<std::uint16_t>();
  const auto flags = in.Number<std::uint8_t>();
  Detail detail;
  if ((flags & kHasHeld) != 0) detail.held = in.Array<std::uint64_t>();
  if ((flags & kHasCounts) != 0) detail.counts = in.Array<std::uint8_t>();
  if ((flags & kHasForeign) != 0) {
    detail.is_foreign = in.Array<std::uint64_t>();
    detail.foreign_keys = in.Array<EngineKey>();
  }
  if (in.failed() || slot == 0 || slot >= trie.holders().size() || !trie.holders()[slot].live) {
    return Damaged("holder of a run");
  }
  const Body& body = *trie.body(run);
  for (std::uint32_t i = 0; i < body.holders.load(std::memory_order_relaxed); ++i) {
    if (SlotOf(body.coverage()[i].load(std::memory_order_relaxed)) == slot)
      return Damaged("holder twice in a run");
  }
  const auto holds = [&](std::uint32_t i) { return i < lead || Detail::Bit(detail.held, i); };
  bool consistent = lead <= length && BitsFit(detail.held, length) && BitsFit(detail.is_foreign, length) &&
                    detail.counts.size() <= length && detail.foreign_keys.size() <= length &&
                    BitsFit(detail.is_foreign, static_cast<std::uint32_t>(detail.foreign_keys.size()));
  if (consistent && !detail.held.empty()) {
    for (std::uint32_t i = 0; i < lead; ++i) consistent = consistent && Detail::Bit(detail.held, i);
    consistent = consistent && !Detail::Bit(detail.held, lead) && detail.EndOfHeld(lead) > lead;
  }
  consistent = consistent && detail.CountHeld(lead) > 0;
  for (std::uint32_t i = 0; consistent && i < detail.counts.size(); ++i) {
    consistent = detail.counts[i] == 0 || (holds(i) && trie.holders()[slot].refcount);
  }
  absl::flat_hash_set<EngineKey> keys;
  for (std::uint32_t i = 0; consistent && i < detail.foreign_keys.size(); ++i) {
    if (!Detail::Bit(detail.is_foreign, i)) continue;
    consistent = holds(i) && !trie.holders()[slot].foreign.contains(detail.foreign_keys[i]) &&
                 keys.insert(detail.foreign_keys[i]).second;
  }
  if (!consistent) return Damaged("coverage of a run");
  trie.RestoreCover(slot, run, lead, std::move(detail));
  return absl::OkStatus();
}

absl::Status ReadRun(Input& in, Trie& trie, std::vector<RunId>& runs) {
  const auto parent_position = in.Number<std::uint32_t>();
  Trie::Cursor parent;
  parent.offset = in.Number<std::uint32_t>();
  NamespaceId ns;
  ns.hi = in.Number<std::uint64_t>();
  ns.lo = in.Number<std::uint64_t>();
  const auto key_space = in.Number<std::uint32_t>();
  const auto length = in.Number<std::uint32_t>();
  const auto words = in.Number<std::uint32_t>();
  const auto flags = in.Number<std::uint8_t>();
  if (in.failed() || length == 0 || length > kMaxRunLength || parent_position > runs.size())
    return Damaged("run");
  const auto content = in.Array<BlockKey>(length);
  const auto engine = in.Array<EngineKey>(length);
  const auto owned = (flags & kSomeUnowned) != 0 ? in.Array<std::uint64_t>((length + 63) / 64)
                                                 : std::vector<std::uint64_t>();
  if (in.failed()) return Damaged("run");
  if (parent_position != 0) {
    parent.run = runs[parent_position - 1];
    const Body& above = *trie.body(parent.run);
    if (!(above.ns == ns) || parent.offset == 0 || parent.offset > trie.length(parent.run) ||
        (parent.offset < trie.length(parent.run) && above.content()[parent.offset] == content[0])) {
      return Damaged("place of a run");
    }
  } else if (parent.offset != 0) {
    return Damaged("place of a run");
  }
  if (trie.FindChild(ns, parent, content[0]) != 0) return Damaged("two runs in one place");
  if (!trie.HasRoomForRun() || trie.over_budget()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("snapshot does not fit max_bytes = ", trie.options().max_bytes));
  }
  const RunId run = trie.AddRun(ns, key_space, parent, content, engine);
  runs.push_back(run);
  trie.meta(run).unowned_keys = (flags & kSomeUnowned) != 0;
  for (const EngineKey key : engine) trie.PrefetchIdentity(IdentityHash(key_space, key));
  for (std::uint32_t i = 0; i < length; ++i) {
    if ((flags & kSomeUnowned) != 0 && !Detail::Bit(owned, i)) continue;
    if (trie.Own({run, i}, key_space, engine[i])) return Damaged("two owners of an engine key");
  }
  for (std::uint32_t i = 0; i < words; ++i) {
    if (absl::Status status = ReadWord(in, trie, run, length); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadAll(Input& in, Trie& trie, HolderRegistry& registry) {
  const auto holders = in.Number<std::uint32_t>();
  const auto free_slots = in.Number<std::uint32_t>();
  const auto run_count = in.Number<std::uint32_t>();
  for (std::uint32_t i = 0; i < holders; ++i) {
    if (absl::Status status = ReadHolder(in, registry); !status.ok()) return status;
  }
  for (std::uint32_t i = 0; i < free_slots; ++i) {
    const auto slot = in.Number<std::uint16_t>();
    const auto generation = in.Number<std::uint32_t>();
    if (in.failed()) return Damaged("free slots");
    if (absl::Status status = registry.AddFree(slot, generation); !status.ok()) return status;
  }
  if (!registry.EverySlotIsKnown()) return Damaged("holder slots");
  std::vector<RunId> runs;
  for (std::uint32_t i = 0; i < run_count; ++i) {
    if (absl::Status status = ReadRun(in, trie, runs); !status.ok()) return status;
  }
  if (in.failed() || in.left() != 0) return Damaged("length");
  for (const RunId run : runs) {
    if (trie.LiveEnd(run) != trie.length(run)) return Damaged("blocks without holder");
  }
  if (trie.over_budget()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("snapshot does not fit max_bytes = ", trie.options().max_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PrefixIndex::Snapshot(const Sink& sink) const {
  const Trie& trie = impl_->trie;
  Writer out(sink);
  out.Bytes(kMagic, sizeof(kMagic));
  out.Number(kMajor);
  out.Number(kMinor);
  const std::vector<HolderId> free_slots = impl_->registry.FreeSlots();
  out.Number(static_cast<std::uint32_t>(impl_->registry.size()));
  out.Number(static_cast<std::uint32_t>(free_slots.size()));
  out.Number(static_cast<std::uint32_t>(trie.stats().runs));
  for (std::size_t slot = 1; slot < trie.holders().size(); ++slot) {
    const HolderState& state = trie.holders()[slot];
    if (!state.live) continue;
    const HolderOptions& options = *impl_->registry.Get({static_cast<std::uint16_t>(slot), state.generation});
    out.Number(static_cast<std::uint16_t>(slot));
    out.Number(state.generation);
    out.Number(static_cast<std::uint8_t>(options.removal == RemovalPolicy::kRefcount));
    out.Number(options.key_space);
    out.Number(static_cast<std::uint8_t>(options.dp_rank.has_value()));
    out.Number(options.dp_rank.value_or(0));
    out.Text(options.endpoint);
    out.Text(options.tier);
  }
  for (const HolderId& free : free_slots) {
    out.Number(free.slot);
    out.Number(free.generation);
  }
  // Depth first from each root run, so that parents come before their children.
  std::uint32_t written = 0;
  std::vector<std::pair<RunId, std::uint32_t>> pending;  // run, position of its parent
  for (RunId root = 1; root < trie.run_limit(); ++root) {
    if (trie.body(root) == nullptr || trie.body(root)->parent != kRoot) continue;
    pending.emplace_back(root, 0);
    while (!pending.empty()) {
      const auto [run, parent_position] = pending.back();
      pending.pop_back();
      WriteRun(out, trie, run, parent_position);
      ++written;
      for (RunId child = trie.meta(run).first_child; child != 0; child = trie.meta(child).next_sibling) {
        pending.emplace_back(child, written);
      }
    }
  }
  return out.Finish();
}

absl::StatusOr<std::unique_ptr<PrefixIndex>> PrefixIndex::Restore(std::span<const std::byte> snapshot,
                                                                  const PrefixIndexOptions& options) {
  auto index = Create(options);
  if (!index.ok()) return index;
  if (snapshot.size() < sizeof(kMagic) + 5 * sizeof(std::uint32_t) + sizeof(std::uint64_t) ||
      std::memcmp(snapshot.data(), kMagic, sizeof(kMagic)) != 0) {
    return Damaged("no header");
  }
  const std::span<const std::byte> covered = snapshot.first(snapshot.size() - sizeof(std::uint64_t));
  Input in(covered.subspan(sizeof(kMagic)));
  const auto major = in.Number<std::uint32_t>();
  in.Number<std::uint32_t>();
  Input tail(snapshot.last(sizeof(std::uint64_t)));
  if (tail.Number<std::uint64_t>() != XXH3_64bits(covered.data(), covered.size())) {
    return Damaged("checksum does not match");
  }
  if (major != kMajor) {
    return absl::FailedPreconditionError(
        absl::StrCat("snapshot has format version ", major, ", this library reads version ", kMajor));
  }
  Impl& impl = *(*index)->impl_;
  if (absl::Status status = ReadAll(in, impl.trie, impl.registry); !status.ok()) return status;
  impl.trie.Compact();
  return index;
}

}  // namespace llmd::index
