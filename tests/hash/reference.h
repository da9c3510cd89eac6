// Literal, slow versions of what the library hashes: written from the format tables, sharing no code with it.
#ifndef TESTS_HASH_REFERENCE_H_
#define TESTS_HASH_REFERENCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "llmd/base/random.h"
#include "llmd/hash/extra_keys.h"

namespace llmd::hash::reference {

// pickle.dumps((parent, tokens, extra or None), protocol=5), and the same in canonical CBOR.
std::string PickleBlock(const std::string& parent, const std::vector<std::int64_t>& tokens,
                        const ExtraKeys& extra);
std::string CborBlock(const std::string& parent, const std::vector<std::int64_t>& tokens,
                      const ExtraKeys& extra);

std::string LittleEndian(std::uint64_t value, int bytes);
// SHA-256 by OpenSSL's EVP interface.
std::string Sha256(const std::string& data);

// Random extra keys, nested at most two levels; texts are sometimes long.
ExtraKeys RandomExtraKeys(Random& random);
// Ids of all widths.
std::vector<std::int64_t> RandomTokens(Random& random, std::size_t count, bool wide);

}  // namespace llmd::hash::reference

#endif  // TESTS_HASH_REFERENCE_H_
