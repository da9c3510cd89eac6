#include "llmd/hash/request_keys.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "src/hash/serialize.h"
#include "src/hash/xxh.h"

namespace llmd::hash {
namespace {

std::uint64_t Fnv1a64(std::span<const std::uint8_t> data) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const std::uint8_t byte : data) hash = (hash ^ byte) * 0x100000001b3;
  return hash;
}

std::size_t ExtraBound(const ExtraStrings& extra) {
  std::size_t bound = 0;
  for (const std::string& text : extra) bound += text.size() + 16;
  return bound;
}

// FNV-1a of CBOR [parent, tokens, extra]; a root has null for tokens and the model's name for extra.
BlockKey CborBlock(BlockKey parent, std::optional<TokenSpan> tokens, const std::string_view* model,
                   const ExtraStrings* extra, Scratch& scratch) {
  std::size_t bound = SizeBound(tokens ? tokens->size() : 0);
  if (model != nullptr) bound += model->size();
  if (extra != nullptr) bound += ExtraBound(*extra);
  std::uint8_t* const data = scratch.Reserve(bound);
  CborWriter writer(data);
  writer.BeginTuple(3);
  writer.Unsigned(parent);
  if (tokens) {
    writer.Tokens(*tokens);
  } else {
    writer.None();
  }
  if (model != nullptr) {
    writer.Text(*model);
  } else if (extra == nullptr || extra->empty()) {
    writer.None();
  } else {
    writer.BeginTuple(extra->size());
    for (const std::string& text : *extra) {
      writer.BeginMap(1);
      writer.Text("Hash");
      writer.Text(text);
    }
  }
  return Fnv1a64({data, writer.Finish()});
}

// XXH64 of LE64(parent) || LE32 tokens || for each extra string LE64(length) || bytes.
BlockKey Xxh64Block(BlockKey parent, TokenSpan tokens, std::span<const std::string> extra, Scratch& scratch) {
  std::size_t size = 8 + tokens.size_bytes();
  for (const std::string& text : extra) size += 8 + text.size();
  std::uint8_t* const data = scratch.Reserve(size);
  std::uint8_t* p = data;
  const auto put = [&p](const void* bytes, std::size_t count) {
    if (count > 0) std::memcpy(p, bytes, count);
    p += count;
  };
  put(&parent, 8);
  put(tokens.data(), tokens.size_bytes());
  for (const std::string& text : extra) {
    const std::uint64_t length = text.size();
    put(&length, 8);
    put(text.data(), text.size());
  }
  return XXH64(data, size, 0);
}

}  // namespace

std::string_view ToString(RequestKeyAlgorithm algorithm) {
  switch (algorithm) {
    case RequestKeyAlgorithm::kCborFnv:
      return "cbor-fnv";
    case RequestKeyAlgorithm::kCborFnvNoModel:
      return "cbor-fnv-no-model";
    case RequestKeyAlgorithm::kXxh64:
      return "xxh64";
  }
  return "unknown";
}

absl::StatusOr<RequestKeyAlgorithm> ParseRequestKeyAlgorithm(std::string_view name) {
  for (const auto algorithm :
       {RequestKeyAlgorithm::kCborFnv, RequestKeyAlgorithm::kCborFnvNoModel, RequestKeyAlgorithm::kXxh64}) {
    if (ToString(algorithm) == name) return algorithm;
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown request key algorithm \"", ToAbsl(name),
                                                 "\": expected cbor-fnv, cbor-fnv-no-model or xxh64"));
}

absl::StatusOr<RequestKeyHasher> RequestKeyHasher::Create(const RequestKeyOptions& options) {
  if (options.block_size == 0) return absl::InvalidArgumentError("block_size is 0, must be at least 1");
  const std::uint64_t init = options.algorithm == RequestKeyAlgorithm::kXxh64
                                 ? Xxh64(options.hash_seed)
                                 : Fnv1a64({reinterpret_cast<const std::uint8_t*>(options.hash_seed.data()),
                                            options.hash_seed.size()});
  return RequestKeyHasher(options.algorithm, options.block_size, init);
}

BlockKey RequestKeyHasher::Root(std::string_view model_or_lora) const {
  Scratch scratch;
  switch (algorithm_) {
    case RequestKeyAlgorithm::kCborFnv:
      return CborBlock(init_, std::nullopt, &model_or_lora, nullptr, scratch);
    case RequestKeyAlgorithm::kCborFnvNoModel:
      return init_;
    case RequestKeyAlgorithm::kXxh64: {
      const std::string model(model_or_lora);
      return Xxh64Block(init_, {}, {&model, 1}, scratch);
    }
  }
  return init_;
}

void RequestKeyHasher::HashBlocks(TokenSpan tokens, BlockKey parent, std::span<const ExtraStrings> extra,
                                  std::vector<BlockKey>& out) const {
  if (algorithm_ == RequestKeyAlgorithm::kCborFnvNoModel) extra = {};  // that release had no extra strings
  const std::size_t blocks = tokens.size() / block_size_;
  out.reserve(out.size() + blocks);
  Scratch scratch;
  for (std::size_t i = 0; i < blocks; ++i) {
    const TokenSpan block = tokens.subspan(i * block_size_, block_size_);
    const ExtraStrings* strings = i < extra.size() ? &extra[i] : nullptr;
    if (algorithm_ == RequestKeyAlgorithm::kXxh64) {
      parent =
          Xxh64Block(parent, block, strings ? std::span(*strings) : std::span<const std::string>(), scratch);
    } else {
      parent = CborBlock(parent, block, nullptr, strings, scratch);
    }
    out.push_back(parent);
  }
}

std::vector<ExtraStrings> ExtraStringsOfRequest(const RequestExtras& extras, std::uint32_t block_size,
                                                std::uint64_t block_count) {
  RequestExtras relevant;  // without the adapter, which the root covers
  relevant.multimodal = extras.multimodal;
  relevant.cache_salt = extras.cache_salt;
  const ExtraKeyBuilder builder(std::move(relevant), ExtraKeyStyle::kBare, block_size);
  std::vector<ExtraStrings> blocks(block_count);
  if (builder.empty()) return blocks;
  for (std::uint64_t i = 0; i < block_count; ++i) {
    for (ExtraKey& key : builder.ForBlock(i)) blocks[i].push_back(std::move(key.text));
  }
  return blocks;
}

ExtraStrings ExtraStringsOfEvent(const ExtraKeys& keys, std::string_view lora_name) {
  ExtraStrings strings;
  bool drop_lora = !lora_name.empty();
  for (const ExtraKey& key : keys) {
    if (key.is_text()) {
      if (drop_lora && key.text == lora_name) {
        drop_lora = false;
      } else {
        strings.push_back(key.text);
      }
    } else if (key.kind == ExtraKey::Kind::kTuple && key.items.size() == 2 && key.items[0].is_text() &&
               key.items[1].kind == ExtraKey::Kind::kInt) {
      strings.push_back(key.items[0].text);
    }
  }
  return strings;
}

std::vector<ExtraStrings> RealignExtraStrings(std::span<const ExtraStrings> from, std::size_t block_count) {
  std::vector<ExtraStrings> to(block_count);
  if (from.empty() || block_count == 0) return to;
  if (from.size() <= block_count) {
    for (std::size_t i = 0; i < block_count; ++i) to[i] = from[i * from.size() / block_count];
  } else {
    for (std::size_t i = 0; i < from.size(); ++i) {
      ExtraStrings& target = to[i * block_count / from.size()];
      target.insert(target.end(), from[i].begin(), from[i].end());
    }
  }
  return to;
}

}  // namespace llmd::hash
