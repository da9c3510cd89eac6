#include "llmd/hash/sglang.h"

#include "src/hash/sha256.h"

namespace llmd::hash {
namespace {

Digest PageHash(const Digest& parent, TokenSpan words) {
  return Sha256Concat(parent.span(),
                      {reinterpret_cast<const std::uint8_t*>(words.data()), words.size_bytes()});
}

}  // namespace

void SglangPageHashes(TokenSpan tokens, std::uint32_t page_size, const Digest* parent,
                      std::vector<Digest>& out) {
  if (page_size == 0) return;
  Digest digest = parent ? *parent : Digest();  // none: no bytes
  const std::size_t pages = tokens.size() / page_size;
  out.reserve(out.size() + pages);
  for (std::size_t i = 0; i < pages; ++i) {
    digest = PageHash(digest, tokens.subspan(i * page_size, page_size));
    out.push_back(digest);
  }
}

void SglangBigramPageHashes(TokenSpan tokens, std::uint32_t page_size, const Digest* parent,
                            std::vector<Digest>& out) {
  if (page_size == 0 || tokens.empty()) return;
  Digest digest = parent ? *parent : Digest();
  const std::size_t pages = (tokens.size() - 1) / page_size;
  out.reserve(out.size() + pages);
  std::vector<TokenId> pairs;
  for (std::size_t i = 0; i < pages; ++i) {
    pairs.clear();
    for (std::size_t j = i * page_size; j < (i + 1) * page_size; ++j) {
      pairs.push_back(tokens[j]);
      pairs.push_back(tokens[j + 1]);
    }
    digest = PageHash(digest, pairs);
    out.push_back(digest);
  }
}

}  // namespace llmd::hash
