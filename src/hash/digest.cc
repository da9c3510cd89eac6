// OpenSSL's one-shot SHA256() looks up a provider on each call, which costs more than hashing a block. The
// low-level functions do not, but are marked as deprecated.
#define OPENSSL_SUPPRESS_DEPRECATED

#include "llmd/hash/digest.h"

#include <openssl/sha.h>

#include <bit>
#include <cstring>

#include "src/hash/sha256.h"

namespace llmd::hash {
namespace {

static_assert(std::endian::native == std::endian::little, "llmd::hash needs a little-endian host");

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::optional<Digest> Digest::FromBytes(std::span<const std::uint8_t> data) {
  if (data.size() > kMaxSize) return std::nullopt;
  Digest digest;
  std::copy(data.begin(), data.end(), digest.bytes.begin());
  digest.size = static_cast<std::uint8_t>(data.size());
  return digest;
}

std::optional<Digest> Digest::FromHex(std::string_view text) {
  if (text.size() % 2 != 0 || text.size() > 2 * kMaxSize) return std::nullopt;
  Digest digest;
  for (std::size_t i = 0; i < text.size(); i += 2) {
    const int high = HexValue(text[i]);
    const int low = HexValue(text[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    digest.bytes[digest.size++] = static_cast<std::uint8_t>(high << 4 | low);
  }
  return digest;
}

std::string Digest::hex() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * size);
  for (const std::uint8_t byte : span()) {
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 15]);
  }
  return text;
}

Digest Sha256(std::span<const std::uint8_t> data) { return Sha256Concat(data, {}); }

Digest Sha256(std::string_view data) {
  return Sha256({reinterpret_cast<const std::uint8_t*>(data.data()), data.size()});
}

Digest Sha256Concat(std::span<const std::uint8_t> a, std::span<const std::uint8_t> b) {
  Digest digest;
  digest.size = 32;
  SHA256_CTX context;
  SHA256_Init(&context);
  SHA256_Update(&context, a.data(), a.size());
  SHA256_Update(&context, b.data(), b.size());
  SHA256_Final(digest.bytes.data(), &context);
  return digest;
}

// Padding here lets OpenSSL run its compression function once over whole blocks, without buffering.
Digest Sha256InPlace(std::uint8_t* message, std::size_t size) {
  const std::size_t padded = (size + 9 + 63) / 64 * 64;
  std::memset(message + size, 0, kSha256Padding);
  message[size] = 0x80;
  const std::uint64_t bits = __builtin_bswap64(std::uint64_t{size} * 8);
  std::memcpy(message + padded - 8, &bits, 8);

  SHA256_CTX context;
  SHA256_Init(&context);
  SHA256_Update(&context, message, padded);
  Digest digest;
  digest.size = 32;
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t word = __builtin_bswap32(context.h[i]);
    std::memcpy(digest.bytes.data() + 4 * i, &word, 4);
  }
  return digest;
}

}  // namespace llmd::hash
