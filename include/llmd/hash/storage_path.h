// File names that llm-d's storage backend derives from vLLM digests.
//
//   <root>/<model, "/" -> "_">_<12 hex digits of the run's fields>_r<rank>/<h[0:3]>/<h[3:5]>_g<group>/<h>.bin
//
// where h is the whole digest in hexadecimal: nodes share files only if they share NONE_HASH. Strings only;
// no file is touched. Source: spec, block hashing 8b; llm-d-kv-cache:
// kv_connectors/llmd_fs_backend/.../file_mapper.py.
#ifndef LLMD_HASH_STORAGE_PATH_H_
#define LLMD_HASH_STORAGE_PATH_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "llmd/hash/digest.h"

namespace llmd::hash {

// Directory of one run and rank. `fields_json`: the run's fields as compact JSON with sorted keys.
std::string StorageRunDirectory(std::string_view root, std::string_view model, std::string_view fields_json,
                                std::uint32_t rank);
// Path of a block below that directory.
std::string StorageBlockPath(std::string_view run_directory, const Digest& digest, std::uint32_t group_id);

}  // namespace llmd::hash

#endif  // LLMD_HASH_STORAGE_PATH_H_
