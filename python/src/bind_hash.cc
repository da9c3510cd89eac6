// vLLM's chain and llm-d's request keys.
#include <pybind11/pybind11.h>

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "llmd/hash/request_keys.h"
#include "llmd/hash/vllm.h"
#include "python/src/buffers.h"
#include "python/src/extra_keys.h"
#include "python/src/lock.h"
#include "python/src/module.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;
using hash::Digest;
using hash::VllmHasher;
namespace {

constexpr std::size_t kLong = 1024;  // tokens, some 20 us

const Digest* Pointer(const std::optional<Digest>& digest) { return digest ? &*digest : nullptr; }

std::uint32_t ToBlockSize(py::handle object) {
  return static_cast<std::uint32_t>(ToInt(object, "block_size", 1, kMaxBlockSize));
}

VllmHasher MakeVllmHasher(py::handle algorithm, py::handle block_size, py::handle seed,
                          py::handle none_hash) {
  hash::VllmHashOptions options;
  options.algorithm = Take(hash::ParseVllmAlgorithm(ToText(algorithm, "algorithm")));
  options.block_size = ToBlockSize(block_size);
  if (!seed.is_none() && !none_hash.is_none())
    throw py::value_error("seed and none_hash exclude one another");
  if (!seed.is_none()) {
    options.none_hash = hash::NoneHash::SeedText(ToText(seed, "seed"));
  } else if (PyLong_Check(none_hash.ptr())) {
    ToInt(none_hash, "none_hash", 0, 0);
    options.none_hash = hash::NoneHash::IntegerZero();
  } else if (!none_hash.is_none()) {
    options.none_hash = hash::NoneHash::Raw(*ToDigest(none_hash, "none_hash"));
  }
  return Take(VllmHasher::Create(options));
}

std::vector<Digest> HashBlocks(const VllmHasher& hasher, py::handle tokens, py::handle parent,
                               py::handle extra_keys) {
  const TokenBuffer buffer(tokens, "tokens");
  const auto before = ToDigest(parent, "parent");
  const auto extra = ToExtraKeysOfBlocks(extra_keys, "extra_keys");
  return WithoutGil(buffer.span().size() >= kLong, [&] {
    std::vector<Digest> digests;
    digests.reserve(buffer.span().size() / hasher.block_size());
    hasher.HashBlocks(buffer.span(), Pointer(before), extra, digests);
    return digests;
  });
}

py::object KeysOf(std::span<const Digest> digests) {
  std::vector<BlockKey> keys;
  keys.reserve(digests.size());
  for (const Digest& digest : digests) keys.push_back(digest.low64());
  return ToArray(keys);
}

// A VllmChain that several threads may use.
class Chain {
 public:
  Chain(const VllmHasher& hasher, py::handle extras, py::handle style)
      : chain_(hasher, hash::ExtraKeyBuilder(ToRequestExtras(extras), ToStyle(style), hasher.block_size())) {}

  py::list Extend(py::handle tokens) {
    const TokenBuffer buffer(tokens, "tokens");
    return FromDigests(Locked(mutex_, buffer.span().size() >= kLong, [&] {
      const auto added = chain_.Extend(buffer.span());
      return std::vector<Digest>(added.begin(), added.end());
    }));
  }
  py::list Digests() {
    return FromDigests(Locked(mutex_, false, [&] {
      return std::vector<Digest>(chain_.digests().begin(), chain_.digests().end());
    }));
  }
  py::object Keys() {
    return ToArray(Locked(mutex_, false,
                          [&] { return std::vector<BlockKey>(chain_.keys().begin(), chain_.keys().end()); }));
  }
  std::uint64_t TokenCount() {
    return Locked(mutex_, false, [&] { return chain_.token_count(); });
  }
  void Clear() {
    Locked(mutex_, false, [&] { chain_.Clear(); });
  }

 private:
  std::mutex mutex_;
  hash::VllmChain chain_;
};

std::vector<hash::ExtraStrings> ToExtraStrings(py::handle object) {
  std::vector<hash::ExtraStrings> blocks;
  if (object.is_none()) return blocks;
  CheckSequence(object, "extra", "the extra strings of each block");
  for (std::size_t i = 0; i < SequenceSize(object); ++i) {
    const std::string name = Element("extra", i);
    const py::object block = SequenceItem(object, i);
    auto& strings = blocks.emplace_back();
    if (block.is_none()) continue;
    CheckSequence(block, name.c_str(), "str");
    for (std::size_t j = 0; j < SequenceSize(block); ++j) {
      const py::object text = SequenceItem(block, j);
      strings.emplace_back(ToText(text, Element(name.c_str(), j).c_str()));
    }
  }
  return blocks;
}

void BindRequestKeys(py::module_& m) {
  using hash::RequestKeyHasher;
  py::class_<RequestKeyHasher>(m, "RequestKeyHasher")
      .def(py::init([](py::handle algorithm, py::handle seed, py::handle block_size) {
        return Take(RequestKeyHasher::Create(
            {.algorithm = Take(hash::ParseRequestKeyAlgorithm(ToText(algorithm, "algorithm"))),
             .hash_seed = std::string(ToText(seed, "seed")),
             .block_size = ToBlockSize(block_size)}));
      }))
      .def("root", [](const RequestKeyHasher& self,
                      py::handle model) { return self.Root(ToText(model, "model_or_lora")); })
      .def("hash_blocks",
           [](const RequestKeyHasher& self, py::handle tokens, py::handle parent, py::handle extra) {
             const TokenBuffer buffer(tokens, "tokens");
             const BlockKey before = ToKey(parent, "parent");
             const auto strings = ToExtraStrings(extra);
             return ToArray(WithoutGil(buffer.span().size() >= kLong, [&] {
               std::vector<BlockKey> keys;
               self.HashBlocks(buffer.span(), before, strings, keys);
               return keys;
             }));
           });
  m.def("extra_strings_of_request", [](py::handle extras, py::handle block_size, py::handle count) {
    const auto blocks =
        hash::ExtraStringsOfRequest(ToRequestExtras(extras), ToBlockSize(block_size),
                                    static_cast<std::uint64_t>(ToInt(count, "count", 0, kMaxBlockCount)));
    py::list list;
    for (const hash::ExtraStrings& block : blocks) {
      py::list strings;
      for (const std::string& text : block) strings.append(py::str(text));
      list.append(py::tuple(strings));
    }
    return list;
  });
}

}  // namespace

void BindHash(py::module_& m) {
  py::class_<VllmHasher>(m, "VllmHasher")
      .def(py::init(&MakeVllmHasher))
      .def("hash_blocks",
           [](const VllmHasher& self, py::handle tokens, py::handle parent, py::handle extra_keys) {
             return FromDigests(HashBlocks(self, tokens, parent, extra_keys));
           })
      .def("block_keys",
           [](const VllmHasher& self, py::handle tokens, py::handle parent, py::handle extra_keys) {
             return KeysOf(HashBlocks(self, tokens, parent, extra_keys));
           })
      .def("hash_block",
           [](const VllmHasher& self, py::handle tokens, py::handle parent, py::handle extra_keys) {
             const TokenBuffer buffer(tokens, "tokens");
             const auto before = ToDigest(parent, "parent");
             const auto extra = ToExtraKeys(extra_keys, "extra_keys");
             return FromDigest(WithoutGil(buffer.span().size() >= kLong, [&] {
               return self.HashBlock(buffer.span(), Pointer(before), &extra);
             }));
           })
      .def("preimage",
           [](const VllmHasher& self, py::handle tokens, py::handle parent, py::handle extra_keys) {
             const TokenBuffer buffer(tokens, "tokens");
             const std::vector<std::int64_t> wide(buffer.span().begin(), buffer.span().end());
             const auto before = ToDigest(parent, "parent");
             const auto extra = ToExtraKeys(extra_keys, "extra_keys");
             return py::bytes(self.Preimage(wide, Pointer(before), &extra));
           })
      .def_property_readonly("algorithm",
                             [](const VllmHasher& self) { return std::string(ToString(self.algorithm())); })
      .def_property_readonly("block_size", &VllmHasher::block_size)
      .def_property_readonly("none_hash",
                             [](const VllmHasher& self) { return FromDigest(self.none_hash()); });

  py::class_<Chain>(m, "VllmChain")
      .def(py::init<const VllmHasher&, py::handle, py::handle>())
      .def("extend", &Chain::Extend)
      .def("clear", &Chain::Clear)
      .def_property_readonly("digests", &Chain::Digests)
      .def_property_readonly("keys", &Chain::Keys)
      .def_property_readonly("token_count", &Chain::TokenCount);

  m.def("low64", [](py::handle digest) { return hash::ExternalKey(BytesBuffer(digest, "digest").text()); });
  m.def("first64", [](py::handle digest) {
    if (digest.is_none()) throw py::type_error("digest is None, wanted bytes");
    return ToDigest(digest, "digest")->first64();
  });
  m.def("pool_key", [](py::handle digest, py::handle group_id) {
    if (digest.is_none()) throw py::type_error("digest is None, wanted bytes");
    return py::bytes(hash::PoolKey(*ToDigest(digest, "digest"),
                                   static_cast<std::uint32_t>(ToInt(group_id, "group_id", 0, 0xFFFFFFFF))));
  });
  m.def("parse_pool_key", [](py::handle key) {
    const hash::PoolKeyParts parts = Take(hash::ParsePoolKey(BytesBuffer(key, "key").text()));
    return py::make_tuple(FromDigest(parts.digest), parts.group_id);
  });
  m.def("group_digests", [](py::handle digests, py::handle factor) {
    std::vector<Digest> out;
    hash::GroupDigests(ToDigests(digests, "digests"),
                       static_cast<std::uint32_t>(ToInt(factor, "factor", 1, kMaxBlockSize)), out);
    return FromDigests(out);
  });

  BindRequestKeys(m);
}

}  // namespace llmd::python
