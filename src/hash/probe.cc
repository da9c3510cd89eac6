#include "llmd/hash/probe.h"

#include <algorithm>
#include <functional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/hash/dynamo.h"
#include "llmd/hash/request_keys.h"
#include "llmd/hash/sglang.h"
#include "llmd/hash/trtllm.h"
#include "llmd/hash/vllm.h"

namespace llmd::hash {
namespace {

constexpr std::uint32_t kMaxBlockSize = 65536;
constexpr std::size_t kMaxNear = 8;
constexpr VllmAlgorithm kAlgorithms[] = {VllmAlgorithm::kSha256,    VllmAlgorithm::kSha256Cbor,
                                         VllmAlgorithm::kXxhash,    VllmAlgorithm::kXxhashCbor,
                                         VllmAlgorithm::kSha256Int, VllmAlgorithm::kSha256Cbor64bit};
// Seeds seen in guides and tests of the engines.
constexpr std::string_view kSeeds[] = {"0", "42", "", "1", "123", "1234", "random"};

// The ways to cut a published hash from a digest.
enum class Form { kNone, kWhole, kTail, kLow64, kFirst64, kLow64Swapped, kFirst64Swapped };

std::string_view ToString(Form form) {
  switch (form) {
    case Form::kNone:
      return "none";
    case Form::kWhole:
      return "whole digest";
    case Form::kTail:
      return "end of concatenated digests";
    case Form::kLow64:
      return "low 64 bits";
    case Form::kFirst64:
      return "first 64 bits";
    case Form::kLow64Swapped:
      return "low 64 bits, bytes swapped";
    case Form::kFirst64Swapped:
      return "first 64 bits, bytes swapped";
  }
  return "unknown";
}

std::string_view AsText(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.bytes.data()), digest.size};
}

std::optional<Digest> AsDigest(std::string_view bytes) {
  return Digest::FromBytes({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
}

// A 64-bit key as an 8-byte digest.
Digest KeyDigest(BlockKey key) {
  Digest digest;
  digest.size = 8;
  for (int i = 0; i < 8; ++i) digest.bytes[i] = static_cast<std::uint8_t>(key >> (56 - 8 * i));
  return digest;
}

Form Compare(const PublishedHash& published, const Digest& digest) {
  const std::string_view bytes = published.bytes;
  if (!bytes.empty()) {
    if (bytes == AsText(digest)) return Form::kWhole;
    if (bytes.size() > digest.size && bytes.ends_with(AsText(digest))) return Form::kTail;
    if (bytes.size() != 8) return Form::kNone;
  }
  const BlockKey number = bytes.empty() ? published.number : ExternalKey(bytes);
  if (number == digest.low64()) return Form::kLow64;
  if (number == digest.first64()) return Form::kFirst64;
  if (number == __builtin_bswap64(digest.low64())) return Form::kLow64Swapped;
  if (number == __builtin_bswap64(digest.first64())) return Form::kFirst64Swapped;
  return Form::kNone;
}

struct Recipe {
  std::string_view engine;
  std::string algorithm;
  std::string seed;
  std::string extra_keys;
};

// Extra keys of the event's blocks, and where they come from.
struct ExtraVariant {
  std::string name;  // empty: no extra keys
  std::vector<ExtraKeys> blocks;
};

// As the engine hashes them under kTagged, from the untagged form that events carry.
ExtraKeys AddTags(const ExtraKeys& keys, const RequestExtras& extras) {
  ExtraKeys tagged;
  bool lora_pending = !extras.lora_name.empty();
  for (const ExtraKey& key : keys) {
    if (key.is_text() && lora_pending && key.text == extras.lora_name) {
      lora_pending = false;
      tagged.push_back(ExtraKey::Tuple({ExtraKey::Tag("lora"), key, ExtraKey::Text(extras.lora_path)}));
    } else if (key.is_text()) {
      tagged.push_back(ExtraKey::Tuple({ExtraKey::Tag("cache_salt"), key}));
    } else if (key.kind == ExtraKey::Kind::kBytes) {
      tagged.push_back(ExtraKey::Tuple({ExtraKey::Tag("prompt_embeds"), key}));
    } else if (key.kind == ExtraKey::Kind::kTuple) {
      ExtraKey item = ExtraKey::Tuple({ExtraKey::Tag("mm")});
      item.items.insert(item.items.end(), key.items.begin(), key.items.end());
      tagged.push_back(std::move(item));
    } else {
      tagged.push_back(key);
    }
  }
  return tagged;
}

class Prober {
 public:
  explicit Prober(const ProbeInput& input) : input_(input), count_(input.hashes.size()) {
    if (input.parent) {
      parent_bytes_ = AsDigest(input.parent->bytes);
      if (parent_bytes_ && parent_bytes_->size == 0) parent_bytes_.reset();
      parent_number_ = input.parent->bytes.empty() ? input.parent->number : ExternalKey(input.parent->bytes);
    }
  }

  ProbeReport Run() {
    TryVllm();
    TrySglang();
    TryTrtllm();
    TryDynamo();
    TryLlmd();
    std::stable_sort(report_.near.begin(), report_.near.end(),
                     [](const ProbeMatch& a, const ProbeMatch& b) { return a.blocks > b.blocks; });
    if (report_.near.size() > kMaxNear) report_.near.resize(kMaxNear);
    report_.summary = Summary();
    return std::move(report_);
  }

 private:
  // Digests of the event's first n blocks.
  using Compute = std::function<std::vector<Digest>(std::size_t n)>;

  TokenSpan Tokens(std::size_t blocks) const { return input_.tokens.first(blocks * input_.block_size); }
  TokenSpan Block(std::size_t i) const {
    return input_.tokens.subspan(i * input_.block_size, input_.block_size);
  }

  // Compares one block, and only if that succeeds all of them.
  void Try(const Recipe& recipe, Form native_number, const Compute& compute) {
    ++report_.combinations;
    std::vector<Digest> digests = compute(1);
    if (digests.empty()) return;
    const Form form = Compare(input_.hashes[0], digests[0]);
    if (form == Form::kNone) return;
    digests = compute(count_);
    std::uint32_t blocks = 0;
    while (blocks < digests.size() && Compare(input_.hashes[blocks], digests[blocks]) == form) ++blocks;
    const bool own_form = form == native_number || form == Form::kWhole || form == Form::kTail;
    Record(recipe, form, blocks, own_form && blocks == count_);
  }

  void Record(const Recipe& recipe, Form form, std::uint32_t blocks, bool native) {
    ProbeMatch match{std::string(recipe.engine),  recipe.algorithm, recipe.seed, recipe.extra_keys,
                     std::string(ToString(form)), blocks,           native};
    if (native && !report_.match) {
      report_.match = std::move(match);
    } else {
      report_.near.push_back(std::move(match));
    }
  }

  // Where the published hash is the whole chained value, blocks after the first can be checked from their
  // predecessor, without the seed.
  void TrySeedless(const Recipe& recipe,
                   const std::function<Digest(std::size_t i, const Digest& parent)>& compute) {
    std::uint32_t blocks = 0;
    Form form = Form::kNone;
    for (std::size_t i = 1; i < count_; ++i) {
      const std::string& bytes = input_.hashes[i - 1].bytes;
      const std::optional<Digest> parent =
          bytes.empty() ? KeyDigest(input_.hashes[i - 1].number) : AsDigest(bytes);
      if (!parent || parent->size == 0) return;
      ++report_.combinations;
      const Form found = Compare(input_.hashes[i], compute(i, *parent));
      if (found != Form::kWhole && found != Form::kLow64) break;
      form = found;
      ++blocks;
    }
    if (blocks > 0) Record(recipe, form, blocks, false);
  }

  // --- vLLM and LMCache ---

  std::vector<ExtraVariant> ExtraVariants() const {
    std::vector<ExtraVariant> variants = {{"", {}}};
    const auto add = [&](std::string name, std::vector<ExtraKeys> blocks) {
      const bool all_none =
          std::all_of(blocks.begin(), blocks.end(), [](const ExtraKeys& keys) { return keys.empty(); });
      const bool known = std::any_of(variants.begin(), variants.end(),
                                     [&](const ExtraVariant& v) { return v.blocks == blocks; });
      if (!all_none && !known) variants.push_back({std::move(name), std::move(blocks)});
    };
    const auto build = [&](const RequestExtras& extras, ExtraKeyStyle style, std::string_view what) {
      const ExtraKeyBuilder builder(extras, style, input_.block_size);
      std::vector<ExtraKeys> blocks(count_);
      for (std::size_t i = 0; i < count_; ++i) blocks[i] = builder.ForBlock(input_.first_block + i);
      add(absl::StrCat(ToAbsl(what), ", ", ToAbsl(ToString(style)), " style"), std::move(blocks));
    };

    if (!input_.event_extra_keys.empty()) {
      std::vector<ExtraKeys> plain = input_.event_extra_keys;
      plain.resize(count_);
      std::vector<ExtraKeys> tagged;
      tagged.reserve(plain.size());
      for (const ExtraKeys& keys : plain) tagged.push_back(AddTags(keys, input_.extras));
      add("event, as published", std::move(plain));
      add("event, tagged style", std::move(tagged));
    }
    RequestExtras only_lora;
    only_lora.lora_name = input_.extras.lora_name;
    only_lora.lora_int_id = input_.extras.lora_int_id;
    only_lora.lora_path = input_.extras.lora_path;
    RequestExtras only_salt;
    only_salt.cache_salt = input_.extras.cache_salt;
    RequestExtras only_multimodal;
    only_multimodal.multimodal = input_.extras.multimodal;
    for (const auto style :
         {ExtraKeyStyle::kOffset, ExtraKeyStyle::kTagged, ExtraKeyStyle::kBare, ExtraKeyStyle::kIntLora}) {
      build(input_.extras, style, "request");
      build(only_lora, style, "request's LoRA only");
      build(only_salt, style, "request's salt only");
      build(only_multimodal, style, "request's multimodal items only");
    }
    return variants;
  }

  std::vector<std::pair<std::string, NoneHash>> NoneHashes() const {
    std::vector<std::pair<std::string, NoneHash>> all = {{"PYTHONHASHSEED not set", NoneHash::VllmDefault()}};
    const auto add_seed = [&](std::string_view seed) {
      all.emplace_back(absl::StrCat("PYTHONHASHSEED=\"", ToAbsl(seed), "\""), NoneHash::SeedText(seed));
    };
    for (const std::string& seed : input_.seeds) add_seed(seed);
    for (const std::string_view seed : kSeeds) add_seed(seed);
    for (const Digest& raw : input_.none_hashes) {
      all.emplace_back(absl::StrCat("NONE_HASH=", raw.hex()), NoneHash::Raw(raw));
    }
    all.emplace_back("NONE_HASH=0", NoneHash::IntegerZero());
    return all;
  }

  void TryVllm() {
    const std::vector<ExtraVariant> variants = ExtraVariants();
    for (const VllmAlgorithm algorithm : kAlgorithms) {
      const std::string name(ToString(algorithm));
      if (input_.parent) {
        std::optional<Digest> parent = parent_bytes_;
        if (!parent && algorithm == VllmAlgorithm::kSha256Cbor64bit) parent = KeyDigest(parent_number_);
        if (parent) TryVllmChain(algorithm, "event's parent", NoneHash::IntegerZero(), parent, variants);
      } else {
        for (const auto& [seed, none_hash] : NoneHashes()) {
          TryVllmChain(algorithm, seed, none_hash, std::nullopt, variants);
        }
      }
      const auto hasher = VllmHasher::Create({algorithm, NoneHash::IntegerZero(), input_.block_size});
      if (!hasher.ok()) continue;
      for (const ExtraVariant& variant : variants) {
        TrySeedless({"vllm", name, "unknown", variant.name}, [&](std::size_t i, const Digest& parent) {
          return hasher->HashBlock(Block(i), &parent,
                                   i < variant.blocks.size() ? &variant.blocks[i] : nullptr);
        });
      }
    }
  }

  void TryVllmChain(VllmAlgorithm algorithm, const std::string& seed, const NoneHash& none_hash,
                    const std::optional<Digest>& parent, const std::vector<ExtraVariant>& variants) {
    const std::string name(ToString(algorithm));
    const std::string_view engine =
        none_hash.kind == NoneHash::Kind::kIntegerZero && !parent ? "lmcache" : "vllm";
    const auto hasher = VllmHasher::Create({algorithm, none_hash, input_.block_size});
    if (!hasher.ok()) return;
    const Digest* const from = parent ? &*parent : nullptr;
    for (const ExtraVariant& variant : variants) {
      Try({engine, name, seed, variant.name}, Form::kLow64, [&](std::size_t n) {
        std::vector<Digest> digests;
        hasher->HashBlocks(Tokens(n), from, variant.blocks, digests);
        return digests;
      });
    }
    // Groups of layers with longer blocks publish the last of several finer hashes.
    for (const std::uint32_t factor : {2u, 4u, 8u, 16u}) {
      if (input_.block_size % factor != 0) break;
      const auto fine = VllmHasher::Create({algorithm, none_hash, input_.block_size / factor});
      const Recipe recipe{engine, absl::StrCat(name, ", hash block size ", input_.block_size / factor), seed,
                          ""};
      Try(recipe, Form::kLow64, [&](std::size_t n) {
        std::vector<Digest> digests, group;
        fine->HashBlocks(Tokens(n), from, {}, digests);
        GroupDigests(digests, factor, group);
        return group;
      });
    }
  }

  // --- Others ---

  void TrySglang() {
    const Recipe recipe{"sglang", "page hash", "", ""};
    if (!input_.parent || parent_bytes_) {
      Try(recipe, Form::kFirst64, [&](std::size_t n) {
        std::vector<Digest> digests;
        SglangPageHashes(Tokens(n), input_.block_size, parent_bytes_ ? &*parent_bytes_ : nullptr, digests);
        return digests;
      });
    }
  }

  void TryTrtllm() {
    std::vector<std::pair<std::string, TrtllmNamespace>> namespaces = {{"", {}}};
    TrtllmNamespace known;
    if (input_.extras.lora_int_id != 0) known.lora_task_id = input_.extras.lora_int_id;
    if (!input_.extras.cache_salt.empty()) known.salt_id = TrtllmSaltId(input_.extras.cache_salt);
    if (known.lora_task_id || known.salt_id) namespaces.emplace_back("request's LoRA id and salt", known);
    if (known.lora_task_id && known.salt_id) {
      namespaces.emplace_back("request's LoRA id only", TrtllmNamespace{known.lora_task_id, std::nullopt});
      namespaces.emplace_back("request's salt only", TrtllmNamespace{std::nullopt, known.salt_id});
    }
    for (const auto& [name, ns] : namespaces) {
      TryKeys({"trtllm", "v1_block_key", "", name},
              [&, &ns = ns](std::size_t n, std::vector<BlockKey>& keys) {
                TrtllmV1Keys(Tokens(n), input_.block_size, ns, input_.parent ? parent_number_ : 0, keys);
              });
      if (input_.parent && !parent_bytes_) continue;
      Try({"trtllm", "v2_sha256", "", name}, Form::kFirst64, [&, &ns = ns](std::size_t n) {
        std::vector<Digest> digests;
        TrtllmV2Digests(Tokens(n), input_.block_size, ns, parent_bytes_ ? &*parent_bytes_ : nullptr, digests);
        return digests;
      });
    }
  }

  void TryDynamo() {
    const RequestExtras& extras = input_.extras;
    std::vector<std::pair<std::string, std::uint64_t>> seeds = {{"", kDynamoSeed}};
    if (!extras.lora_name.empty())
      seeds.emplace_back("request's LoRA", DynamoLocalSeed(extras.lora_name, ""));
    if (!extras.cache_salt.empty())
      seeds.emplace_back("request's salt", DynamoLocalSeed("", extras.cache_salt));
    if (!extras.lora_name.empty() && !extras.cache_salt.empty()) {
      seeds.emplace_back("request's LoRA and salt", DynamoLocalSeed(extras.lora_name, extras.cache_salt));
    }
    for (const auto& [name, seed] : seeds) {
      const DynamoBlocks blocks{input_.block_size, seed, false};
      TryKeys({"dynamo", "local hash", "", name}, [&](std::size_t n, std::vector<BlockKey>& keys) {
        DynamoLocalHashes(Tokens(n), blocks, keys);
      });
      TryKeys({"dynamo", "sequence hash", "", name}, [&](std::size_t n, std::vector<BlockKey>& keys) {
        std::vector<BlockKey> local;
        DynamoLocalHashes(Tokens(n), blocks, local);
        DynamoSequenceHashes(local, input_.parent ? std::optional(parent_number_) : std::nullopt, keys);
      });
    }
  }

  void TryLlmd() {
    std::vector<std::string> models = input_.models;
    if (!input_.extras.lora_name.empty()) models.push_back(input_.extras.lora_name);
    if (input_.parent || models.empty()) models.resize(1);  // the root is not hashed, or not known
    std::vector<std::string> seeds = input_.seeds;
    seeds.insert(seeds.end(), {"", "0", "42"});
    std::vector<ExtraStrings> extra;
    for (const ExtraKeys& keys : input_.event_extra_keys) {
      extra.push_back(ExtraStringsOfEvent(keys, input_.extras.lora_name));
    }
    for (const auto algorithm :
         {RequestKeyAlgorithm::kCborFnv, RequestKeyAlgorithm::kXxh64, RequestKeyAlgorithm::kCborFnvNoModel}) {
      for (const std::string& seed : seeds) {
        const auto hasher = RequestKeyHasher::Create({algorithm, seed, input_.block_size});
        if (!hasher.ok()) continue;
        for (const std::string& model : models) {
          const Recipe recipe{"llm-d", std::string(ToString(algorithm)),
                              absl::StrCat("hashSeed=\"", seed, "\""),
                              model.empty() ? "" : absl::StrCat("model ", model)};
          TryKeys(recipe, [&](std::size_t n, std::vector<BlockKey>& keys) {
            hasher->HashBlocks(Tokens(n), input_.parent ? parent_number_ : hasher->Root(model), extra, keys);
          });
        }
      }
    }
  }

  // Functions that give 64-bit keys.
  void TryKeys(const Recipe& recipe,
               const std::function<void(std::size_t n, std::vector<BlockKey>&)>& compute) {
    Try(recipe, Form::kLow64, [&](std::size_t n) {
      std::vector<BlockKey> keys;
      compute(n, keys);
      std::vector<Digest> digests;
      digests.reserve(keys.size());
      for (const BlockKey key : keys) digests.push_back(KeyDigest(key));
      return digests;
    });
  }

  // --- Verdict ---

  std::string Describe(const ProbeMatch& match) const {
    std::string text = absl::StrCat(match.engine, " ", match.algorithm);
    if (!match.seed.empty()) absl::StrAppend(&text, ", seed: ", match.seed);
    absl::StrAppend(&text, ", extra keys: ", match.extra_keys.empty() ? "none" : match.extra_keys);
    absl::StrAppend(&text, ", form: ", match.form, " (", match.blocks, " of ", count_, " blocks)");
    return text;
  }

  std::string Summary() const {
    if (report_.match) return absl::StrCat("reproduced by ", Describe(*report_.match));
    if (!report_.near.empty()) {
      const ProbeMatch& best = report_.near.front();
      std::string text = absl::StrCat("not reproduced; closest: ", Describe(best), ". ");
      if (best.seed == "unknown") {
        absl::StrAppend(&text,
                        "Tokens, algorithm and extra keys agree and the first block does not: its parent is "
                        "unknown. Set PYTHONHASHSEED on every engine, or give its text to the probe");
      } else if (best.blocks == count_) {
        absl::StrAppend(
            &text,
            "The engine does not publish this form: a converter between engine and router changed "
            "the hashes");
      } else {
        absl::StrAppend(&text, "Later blocks differ: compare their extra keys and tokens");
      }
      return text;
    }
    if (input_.parent && !parent_bytes_) {
      return absl::StrCat(
          "not reproduced by ", report_.combinations,
          " combinations; 64 bits of a parent are not enough to continue most chains: probe an event "
          "without a parent, or let the engine publish whole digests");
    }
    return absl::StrCat("not reproduced by ", report_.combinations,
                        " combinations; likely causes: NONE_HASH is random (PYTHONHASHSEED is not set), the "
                        "algorithm is `builtin`, or "
                        "the request's LoRA, salt or multimodal items are not known here. Keys computed from "
                        "the events' tokens "
                        "need none of these");
  }

  const ProbeInput& input_;
  const std::size_t count_;
  std::optional<Digest> parent_bytes_;
  BlockKey parent_number_ = 0;
  ProbeReport report_;
};

}  // namespace

absl::StatusOr<ProbeReport> Probe(const ProbeInput& input) {
  if (input.hashes.empty()) return absl::InvalidArgumentError("hashes is empty, must hold at least one");
  if (input.block_size == 0 || input.block_size > kMaxBlockSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_size is ", input.block_size, ", must be 1 .. ", kMaxBlockSize));
  }
  if (input.tokens.size() != input.hashes.size() * input.block_size) {
    return absl::InvalidArgumentError(absl::StrCat("tokens has ", input.tokens.size(), " ids, must be ",
                                                   input.hashes.size(), " hashes * ", input.block_size));
  }
  return Prober(input).Run();
}

}  // namespace llmd::hash
