#include "llmd/hash/storage_path.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::hash {

std::string StorageRunDirectory(std::string_view root, std::string_view model, std::string_view fields_json,
                                std::uint32_t rank) {
  std::string flat(model);
  std::replace(flat.begin(), flat.end(), '/', '_');
  return absl::StrCat(ToAbsl(root), "/", flat, "_", Sha256(fields_json).hex().substr(0, 12), "_r", rank);
}

std::string StorageBlockPath(std::string_view run_directory, const Digest& digest, std::uint32_t group_id) {
  const std::string hex = digest.hex();
  const absl::string_view view = hex;
  return absl::StrCat(ToAbsl(run_directory), "/", view.substr(0, 3), "/",
                      view.substr(std::min<std::size_t>(3, hex.size()), 2), "_g", group_id, "/", view,
                      ".bin");
}

}  // namespace llmd::hash
