// Block hashes of routers and engines other than vLLM, and the probe.
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "llmd/hash/approx_prefix.h"
#include "llmd/hash/dynamo.h"
#include "llmd/hash/lmcache.h"
#include "llmd/hash/probe.h"
#include "llmd/hash/sglang.h"
#include "llmd/hash/trtllm.h"
#include "python/src/arguments.h"
#include "python/src/buffers.h"
#include "python/src/extra_keys.h"
#include "python/src/lock.h"
#include "python/src/module.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;
using hash::Digest;
namespace {

constexpr std::size_t kLong = 4096;  // tokens
constexpr std::int64_t kMaxCount = std::int64_t{1} << 40;

std::uint32_t ToSize(py::handle object, const char* name) {
  return static_cast<std::uint32_t>(ToInt(object, name, 1, kMaxBlockSize));
}

// make(tokens, out) over the tokens, as an array of keys.
template <typename Make>
py::object Keys(py::handle tokens, Make make) {
  const TokenBuffer buffer(tokens, "tokens");
  return ToArray(WithoutGil(buffer.span().size() >= kLong, [&] {
    std::vector<BlockKey> keys;
    make(buffer.span(), keys);
    return keys;
  }));
}

template <typename Make>
py::list Digests(py::handle tokens, Make make) {
  const TokenBuffer buffer(tokens, "tokens");
  return FromDigests(WithoutGil(buffer.span().size() >= kLong, [&] {
    std::vector<Digest> digests;
    make(buffer.span(), digests);
    return digests;
  }));
}

const Digest* Pointer(const std::optional<Digest>& digest) { return digest ? &*digest : nullptr; }

std::optional<std::uint64_t> ToId(py::handle object, const char* name) { return ToOptionalKey(object, name); }

void BindApprox(py::module_& m) {
  m.def("approx_prefix_keys",
        [](py::handle tokens, py::handle model, py::handle cache_salt, py::handle block_size,
           py::handle max_prefix_tokens, py::handle max_prefix_blocks) {
          const hash::ApproxPrefixOptions options{
              .block_size = ToSize(block_size, "block_size"),
              .max_prefix_tokens =
                  static_cast<std::uint64_t>(ToInt(max_prefix_tokens, "max_prefix_tokens", 0, kMaxCount)),
              .max_prefix_blocks =
                  static_cast<std::uint64_t>(ToInt(max_prefix_blocks, "max_prefix_blocks", 0, kMaxCount))};
          const std::string_view name = ToText(model, "model");
          const std::string_view salt = ToText(cache_salt, "cache_salt");
          return Keys(tokens, [&](TokenSpan span, std::vector<BlockKey>& out) {
            hash::ApproxPrefixKeys(span, name, salt, options, out);
          });
        });
  m.def("gaie_prefix_keys", [](py::handle prompt, py::handle model, py::handle cache_salt,
                               py::handle block_bytes, py::handle max_blocks) {
    const std::string_view name = ToText(model, "model");
    const std::string_view salt = ToText(cache_salt, "cache_salt");
    const std::uint32_t size = ToSize(block_bytes, "block_bytes");
    const auto limit = static_cast<std::uint64_t>(ToInt(max_blocks, "max_blocks", 0, kMaxCount));
    const auto make = [&](std::string_view text) {
      return ToArray(WithoutGil(text.size() >= kLong * 4, [&] {
        std::vector<BlockKey> keys;
        hash::GaiePrefixKeys(text, name, salt, size, limit, keys);
        return keys;
      }));
    };
    if (PyUnicode_Check(prompt.ptr())) return make(ToText(prompt, "prompt"));
    const BytesBuffer bytes(prompt, "prompt");
    return make(bytes.text());
  });
  m.def("estimate_tokens", [](py::handle parts) {
    CheckSequence(parts, "parts", "str or (str, int)");
    hash::EstimatePacker packer;
    for (std::size_t i = 0; i < SequenceSize(parts); ++i) {
      const std::string name = Element("parts", i);
      const py::object part = SequenceItem(parts, i);
      if (IsSequence(part) && SequenceSize(part) == 2) {
        const py::object url = SequenceItem(part, 0);
        packer.AddAsset(ToText(url, Element(name.c_str(), 0).c_str()),
                        static_cast<std::uint32_t>(ToInt(
                            SequenceItem(part, 1), Element(name.c_str(), 1).c_str(), 0, kMaxBlockSize)));
      } else {
        packer.AddText(ToText(part, name.c_str()));
      }
    }
    std::vector<TokenId> tokens;
    packer.Finish(tokens);
    return ToArray(tokens);
  });
}

void BindDynamo(py::module_& m) {
  m.def("dynamo_local_seed", [](py::handle lora_name, py::handle cache_namespace) {
    return hash::DynamoLocalSeed(ToText(lora_name, "lora_name"), ToText(cache_namespace, "cache_namespace"));
  });
  m.def("dynamo_local_hashes",
        [](py::handle tokens, py::handle block_size, py::handle seed, Arg<"eagle", bool> eagle) {
          const hash::DynamoBlocks blocks{
              .block_size = ToSize(block_size, "block_size"), .seed = ToKey(seed, "seed"), .eagle = *eagle};
          return Keys(tokens, [&](TokenSpan span, std::vector<BlockKey>& out) {
            hash::DynamoLocalHashes(span, blocks, out);
          });
        });
  m.def("dynamo_sequence_hashes", [](py::handle local, py::handle parent, py::handle seed) {
    const KeyBuffer buffer(local, "local");
    const auto before = ToOptionalKey(parent, "parent");
    const BlockKey start = ToKey(seed, "seed");
    return ToArray(WithoutGil(buffer.span().size() >= kLong, [&] {
      std::vector<BlockKey> keys;
      hash::DynamoSequenceHashes(buffer.span(), before, keys, start);
      return keys;
    }));
  });
}

void BindEngines(py::module_& m) {
  m.def("sglang_page_hashes", [](py::handle tokens, py::handle page_size, py::handle parent,
                                 Arg<"bigram", bool> bigram) {
    const std::uint32_t size = ToSize(page_size, "page_size");
    const auto before = ToDigest(parent, "parent");
    return Digests(tokens, [&](TokenSpan span, std::vector<Digest>& out) {
      (*bigram ? hash::SglangBigramPageHashes : hash::SglangPageHashes)(span, size, Pointer(before), out);
    });
  });
  m.def("lmcache_chunk_hashes", [](const hash::VllmHasher& hasher, py::handle tokens,
                                   Arg<"save_unfull_chunk", bool> save_unfull_chunk) {
    return Digests(tokens, [&](TokenSpan span, std::vector<Digest>& out) {
      hash::LmcacheChunkHashes(hasher, span, *save_unfull_chunk, out);
    });
  });
  m.def("parse_lmcache_algorithm", [](py::handle name) {
    return std::string(ToString(Take(hash::ParseLmcacheAlgorithm(ToText(name, "algorithm")))));
  });
  m.def("trtllm_salt_id",
        [](py::handle cache_salt) { return hash::TrtllmSaltId(ToText(cache_salt, "cache_salt")); });
  m.def("trtllm_v1_keys", [](py::handle tokens, py::handle tokens_per_block, py::handle parent,
                             py::handle lora_task_id, py::handle salt_id) {
    const std::uint32_t size = ToSize(tokens_per_block, "tokens_per_block");
    const BlockKey before = ToKey(parent, "parent");
    const hash::TrtllmNamespace ns{ToId(lora_task_id, "lora_task_id"), ToId(salt_id, "salt_id")};
    return Keys(tokens, [&](TokenSpan span, std::vector<BlockKey>& out) {
      hash::TrtllmV1Keys(span, size, ns, before, out);
    });
  });
  m.def("trtllm_v2_digests", [](py::handle tokens, py::handle tokens_per_block, py::handle parent,
                                py::handle lora_task_id, py::handle salt_id) {
    const std::uint32_t size = ToSize(tokens_per_block, "tokens_per_block");
    const auto before = ToDigest(parent, "parent");
    const hash::TrtllmNamespace ns{ToId(lora_task_id, "lora_task_id"), ToId(salt_id, "salt_id")};
    return Digests(tokens, [&](TokenSpan span, std::vector<Digest>& out) {
      hash::TrtllmV2Digests(span, size, ns, Pointer(before), out);
    });
  });
}

hash::PublishedHash ToPublished(py::handle object, const char* name) {
  if (PyBytes_Check(object.ptr()))
    return {.number = 0, .bytes = std::string(BytesBuffer(object, name).text())};
  return {.number = ToKey(object, name), .bytes = {}};
}

std::vector<std::string> ToStrings(py::handle object, const char* name) {
  CheckSequence(object, name, "str");
  std::vector<std::string> strings;
  for (std::size_t i = 0; i < SequenceSize(object); ++i) {
    const py::object item = SequenceItem(object, i);
    strings.emplace_back(ToText(item, Element(name, i).c_str()));
  }
  return strings;
}

py::tuple FromMatch(const hash::ProbeMatch& match) {
  return py::make_tuple(match.engine, match.algorithm, match.seed, match.extra_keys, match.form, match.blocks,
                        match.native);
}

void BindProbe(py::module_& m) {
  m.def("probe", [](py::handle tokens, py::handle block_size, py::handle hashes, py::handle parent,
                    py::handle extras, py::handle event_extra_keys, py::handle first_block, py::handle seeds,
                    py::handle none_hashes, py::handle models) {
    const TokenBuffer buffer(tokens, "tokens");
    hash::ProbeInput input;
    input.tokens = buffer.span();
    input.block_size = ToSize(block_size, "block_size");
    CheckSequence(hashes, "hashes", "int or bytes");
    for (std::size_t i = 0; i < SequenceSize(hashes); ++i) {
      input.hashes.push_back(ToPublished(SequenceItem(hashes, i), Element("hashes", i).c_str()));
    }
    if (!parent.is_none()) input.parent = ToPublished(parent, "parent");
    input.extras = ToRequestExtras(extras);
    input.event_extra_keys = ToExtraKeysOfBlocks(event_extra_keys, "event_extra_keys");
    input.first_block = static_cast<std::uint64_t>(ToInt(first_block, "first_block", 0, kMaxBlockCount));
    input.seeds = ToStrings(seeds, "seeds");
    input.none_hashes = ToDigests(none_hashes, "none_hashes");
    input.models = ToStrings(models, "models");
    const hash::ProbeReport report = Take(WithoutGil(true, [&] { return hash::Probe(input); }));
    py::list near;
    for (const hash::ProbeMatch& match : report.near) near.append(FromMatch(match));
    return py::make_tuple(report.match ? py::object(FromMatch(*report.match)) : py::object(py::none()), near,
                          report.combinations, report.summary);
  });
}

}  // namespace

void BindRouterHashes(py::module_& m) {
  BindApprox(m);
  BindDynamo(m);
  BindEngines(m);
  BindProbe(m);
}

}  // namespace llmd::python
