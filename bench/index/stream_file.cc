#include "bench/index/stream_file.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace llmd::bench {
namespace {

// Arrays are written as they lie in memory.
static_assert(std::endian::native == std::endian::little);

constexpr char kMagic[8] = {'l', 'l', 'm', 'd', 'o', 'p', 's', '\n'};
constexpr std::uint32_t kVersion = 1;
constexpr std::uint64_t kMaxEntries = std::uint64_t{1} << 34;  // of one section
constexpr std::uint32_t kMaxCells = 256;

struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t holders;
  std::uint64_t ops;
  std::uint64_t blocks;
  std::uint64_t removed_keys;
  std::uint64_t chain_keys;
  std::uint64_t queries;
  std::uint64_t live_holder_blocks;
  std::uint32_t cells;
  std::uint32_t zero;
  char name[40];
};
static_assert(sizeof(Header) == 112);

struct CellRecord {
  char metric[40];
  std::uint32_t kind;
  std::uint32_t zero;
};
static_assert(sizeof(CellRecord) == 48);
static_assert(sizeof(Op) == 16 && offsetof(Op, count) == 8 && offsetof(Op, holder) == 12 &&
              offsetof(Op, kind) == 14 && offsetof(Op, has_parent) == 15);
static_assert(sizeof(index::StoredBlock) == 16 && offsetof(index::StoredBlock, content) == 8);
static_assert(sizeof(Query) == 24 && offsetof(Query, length) == 8 && offsetof(Query, cell) == 12);

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// Checksum over 64-bit words; every section is a multiple of eight bytes.
std::uint64_t Fold(std::uint64_t sum, const void* data, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, static_cast<const char*>(data) + i, 8);
    sum = MixBits(sum ^ word) + 1;
  }
  return sum;
}

class Writer {
 public:
  explicit Writer(std::FILE* file) : file_(file) {}
  void Put(const void* data, std::size_t bytes) {
    sum_ = Fold(sum_, data, bytes);
    ok_ = ok_ && (bytes == 0 || std::fwrite(data, 1, bytes, file_) == bytes);
  }
  template <typename T>
  void PutArray(const std::vector<T>& items) {
    static_assert(std::is_trivially_copyable_v<T>);
    Put(items.data(), items.size() * sizeof(T));
  }
  bool Finish() {
    const std::uint64_t sum = sum_;
    Put(&sum, sizeof(sum));
    return ok_ && std::fflush(file_) == 0;
  }

 private:
  std::FILE* file_;
  std::uint64_t sum_ = 0;
  bool ok_ = true;
};

void CopyName(const std::string& name, char (&out)[40]) {
  std::memset(out, 0, sizeof(out));
  std::memcpy(out, name.data(), std::min(name.size(), sizeof(out) - 1));
}

// Reads and checks a file; `offset_` is where the section being read begins.
class Loader {
 public:
  Loader(std::FILE* file, const std::string& path) : file_(file), path_(path) {}

  absl::StatusOr<Workload> Run() {
    absl::Status status = ReadHeader();
    if (status.ok()) status = ReadCells();
    if (status.ok()) status = ReadArray("ops", header_.ops, workload_.ops);
    if (status.ok()) status = CheckOps();
    if (status.ok()) status = ReadArray("blocks", header_.blocks, workload_.blocks);
    if (status.ok()) status = ReadArray("removed_keys", header_.removed_keys, workload_.removed_keys);
    if (status.ok()) status = ReadArray("chain_keys", header_.chain_keys, workload_.chain_keys);
    if (status.ok()) status = ReadArray("queries", header_.queries, workload_.queries);
    if (status.ok()) status = CheckQueries();
    if (status.ok()) status = ReadChecksum();
    if (!status.ok()) return status;
    return std::move(workload_);
  }

 private:
  template <typename... Args>
  absl::Status Bad(std::uint64_t offset, const Args&... args) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": offset ", offset, ": ", args...));
  }

  absl::Status Read(const char* field, void* data, std::size_t bytes) {
    if (bytes > 0 && std::fread(data, 1, bytes, file_) != bytes)
      return Bad(next_, field, ": the file ends inside it");
    sum_ = Fold(sum_, data, bytes);
    offset_ = next_;
    next_ += bytes;
    return absl::OkStatus();
  }

  template <typename T>
  absl::Status ReadArray(const char* field, std::uint64_t count, std::vector<T>& items) {
    items.resize(count);
    return Read(field, items.data(), count * sizeof(T));
  }

  absl::Status ReadName(const char* field, const char (&name)[40], std::uint64_t offset,
                        std::string& out) const {
    const std::size_t length = strnlen(name, sizeof(name));
    const bool zero_filled = std::all_of(name + length, name + sizeof(name), [](char c) { return c == 0; });
    const bool plain = std::all_of(name, name + length, [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
    });
    if (length == 0 || length == sizeof(name) || !zero_filled || !plain) {
      return Bad(offset, field, ": must be 1 to 39 characters of [a-z0-9_], then zeros");
    }
    out.assign(name, length);
    return absl::OkStatus();
  }

  absl::Status CheckRange(const char* field, std::uint64_t offset, std::uint64_t value, std::uint64_t low,
                          std::uint64_t high) const {
    if (value >= low && value <= high) return absl::OkStatus();
    return Bad(offset, field, ": ", value, " is outside ", low, " to ", high);
  }

  absl::Status ReadHeader() {
    if (absl::Status status = Read("header", &header_, sizeof(header_)); !status.ok()) return status;
    if (std::memcmp(header_.magic, kMagic, sizeof(kMagic)) != 0)
      return Bad(0, "magic: not a bench_index stream");
    if (header_.version != kVersion) {
      return Bad(offsetof(Header, version), "version: ", header_.version, ", only ", kVersion, " is known");
    }
    const struct {
      const char* field;
      std::size_t offset;
      std::uint64_t value, low, high;
    } ranges[] = {
        {"holders", offsetof(Header, holders), header_.holders, 1, kMaxHolders},
        {"ops", offsetof(Header, ops), header_.ops, 0, kMaxEntries},
        {"blocks", offsetof(Header, blocks), header_.blocks, 0, kMaxEntries},
        {"removed_keys", offsetof(Header, removed_keys), header_.removed_keys, 0, kMaxEntries},
        {"chain_keys", offsetof(Header, chain_keys), header_.chain_keys, 0, kMaxEntries},
        {"queries", offsetof(Header, queries), header_.queries, 0, kMaxEntries},
        {"live_holder_blocks", offsetof(Header, live_holder_blocks), header_.live_holder_blocks, 0,
         header_.blocks},
        {"cells", offsetof(Header, cells), header_.cells, 0, kMaxCells},
        {"zero", offsetof(Header, zero), header_.zero, 0, 0},
    };
    for (const auto& range : ranges) {
      absl::Status status = CheckRange(range.field, range.offset, range.value, range.low, range.high);
      if (!status.ok()) return status;
    }
    if (std::fseek(file_, 0, SEEK_END) != 0) return Bad(0, "file: cannot be sought in");
    const auto size = static_cast<std::uint64_t>(std::ftell(file_));
    const std::uint64_t expected = sizeof(Header) + header_.cells * sizeof(CellRecord) +
                                   header_.ops * sizeof(Op) + header_.blocks * sizeof(index::StoredBlock) +
                                   header_.removed_keys * 8 + header_.chain_keys * 8 +
                                   header_.queries * sizeof(Query) + 8;
    if (size != expected) {
      return Bad(0, "file: ", size, " bytes, but the counts in its header make ", expected);
    }
    if (std::fseek(file_, sizeof(Header), SEEK_SET) != 0) return Bad(0, "file: cannot be sought in");
    workload_.holders = header_.holders;
    workload_.live_holder_blocks = header_.live_holder_blocks;
    return ReadName("name", header_.name, offsetof(Header, name), workload_.name);
  }

  absl::Status ReadCells() {
    for (std::uint32_t i = 0; i < header_.cells; ++i) {
      CellRecord record;
      if (absl::Status status = Read("cells", &record, sizeof(record)); !status.ok()) return status;
      Cell cell;
      absl::Status status = ReadName("cells.metric", record.metric, offset_, cell.metric);
      if (status.ok())
        status = CheckRange("cells.kind", offset_ + offsetof(CellRecord, kind), record.kind, 0, 1);
      if (status.ok())
        status = CheckRange("cells.zero", offset_ + offsetof(CellRecord, zero), record.zero, 0, 0);
      if (!status.ok()) return status;
      cell.kind = static_cast<CellKind>(record.kind);
      workload_.cells.push_back(std::move(cell));
    }
    return absl::OkStatus();
  }

  absl::Status CheckOps() const {
    std::uint64_t blocks = 0, keys = 0;
    for (std::size_t i = 0; i < workload_.ops.size(); ++i) {
      const Op& op = workload_.ops[i];
      const std::uint64_t at = offset_ + i * sizeof(Op);
      const auto kind = static_cast<std::uint8_t>(op.kind);
      absl::Status status =
          CheckRange("ops.holder", at + offsetof(Op, holder), op.holder, 0, header_.holders - 1);
      if (status.ok()) status = CheckRange("ops.kind", at + offsetof(Op, kind), kind, 0, 1);
      if (status.ok()) {
        // A removal names no parent.
        status =
            CheckRange("ops.has_parent", at + offsetof(Op, has_parent), op.has_parent, 0, kind == 0 ? 1 : 0);
      }
      if (status.ok() && !op.has_parent) status = CheckRange("ops.parent", at, op.parent, 0, 0);
      if (status.ok()) {
        std::uint64_t& used = kind == 0 ? blocks : keys;
        const std::uint64_t left = (kind == 0 ? header_.blocks : header_.removed_keys) - used;
        status = CheckRange("ops.count", at + offsetof(Op, count), op.count, 1, left);
        used += op.count;
      }
      if (!status.ok()) return status;
    }
    if (blocks != header_.blocks) {
      return Bad(offsetof(Header, blocks), "blocks: ", header_.blocks, ", but the stores take ", blocks);
    }
    if (keys != header_.removed_keys) {
      return Bad(offsetof(Header, removed_keys), "removed_keys: ", header_.removed_keys,
                 ", but the removals take ", keys);
    }
    return absl::OkStatus();
  }

  absl::Status CheckQueries() const {
    for (std::size_t i = 0; i < workload_.queries.size(); ++i) {
      const Query& query = workload_.queries[i];
      const std::uint64_t at = offset_ + i * sizeof(Query);
      absl::Status status = CheckRange("queries.first", at, query.first, 0, header_.chain_keys);
      if (status.ok()) {
        const std::uint64_t left = std::min<std::uint64_t>(kMaxQueryLength, header_.chain_keys - query.first);
        status = CheckRange("queries.length", at + offsetof(Query, length), query.length, 1, left);
      }
      if (status.ok() && query.cell >= header_.cells) {
        status =
            Bad(at + offsetof(Query, cell), "queries.cell: ", query.cell, ", but there are ", header_.cells);
      }
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status ReadChecksum() {
    const std::uint64_t computed = sum_;
    std::uint64_t stored = 0;
    if (absl::Status status = Read("checksum", &stored, sizeof(stored)); !status.ok()) return status;
    if (stored == computed) return absl::OkStatus();
    return Bad(offset_, "checksum: ", absl::Hex(stored), ", but the contents give ", absl::Hex(computed));
  }

  std::FILE* file_;
  const std::string& path_;
  std::uint64_t offset_ = 0, next_ = 0;
  std::uint64_t sum_ = 0;
  Header header_{};
  Workload workload_;
};

}  // namespace

absl::Status Dump(const Workload& workload, const std::string& path) {
  File file(std::fopen(path.c_str(), "wb"));
  if (file == nullptr) return absl::UnavailableError(absl::StrCat(path, ": cannot be opened for writing"));
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.holders = workload.holders;
  header.ops = workload.ops.size();
  header.blocks = workload.blocks.size();
  header.removed_keys = workload.removed_keys.size();
  header.chain_keys = workload.chain_keys.size();
  header.queries = workload.queries.size();
  header.live_holder_blocks = workload.live_holder_blocks;
  header.cells = static_cast<std::uint32_t>(workload.cells.size());
  CopyName(workload.name, header.name);
  Writer writer(file.get());
  writer.Put(&header, sizeof(header));
  for (const Cell& cell : workload.cells) {
    CellRecord record{};
    CopyName(cell.metric, record.metric);
    record.kind = static_cast<std::uint32_t>(cell.kind);
    writer.Put(&record, sizeof(record));
  }
  writer.PutArray(workload.ops);
  writer.PutArray(workload.blocks);
  writer.PutArray(workload.removed_keys);
  writer.PutArray(workload.chain_keys);
  writer.PutArray(workload.queries);
  if (writer.Finish()) return absl::OkStatus();
  file.reset();
  std::remove(path.c_str());
  return absl::UnavailableError(absl::StrCat(path, ": cannot be written (is the disk full?)"));
}

absl::StatusOr<Workload> Load(const std::string& path) {
  File file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  return Loader(file.get(), path).Run();
}

}  // namespace llmd::bench
