// What the workspaces of the CPU backends begin with: the error of validated mode.
#ifndef LLMD_ATTENTION_HOST_WORKSPACE_H_
#define LLMD_ATTENTION_HOST_WORKSPACE_H_

#include <cstring>
#include <exception>

#include "src/attention/check.h"

namespace llmd::attention {

struct HostWorkspace {
  uint64_t mark;  // kMark once initialized
  llmd_data_error error;
};
inline constexpr uint64_t kMark = 0x6c6c6d64'68777331;
inline constexpr std::size_t kHostWorkspaceBytes = 64;
static_assert(sizeof(HostWorkspace) <= kHostWorkspaceBytes);

inline llmd_code InitHostWorkspace(void* workspace, std::size_t bytes, llmd_stream) {
  if (workspace == nullptr) return Fail(LLMD_INVALID_ARGUMENT, "init_workspace: workspace is null");
  if (reinterpret_cast<uintptr_t>(workspace) % 16 != 0) {
    return Fail(LLMD_INVALID_ARGUMENT, "init_workspace: workspace is not a multiple of 16 bytes");
  }
  if (const llmd_code code = CheckWorkspaceBytes(bytes, kHostWorkspaceBytes); code != LLMD_OK) return code;
  const HostWorkspace fresh{kMark, {}};
  std::memcpy(workspace, &fresh, sizeof fresh);
  return LLMD_OK;
}

// The header of an initialized workspace, or null with last_error() set.
inline HostWorkspace* HostWorkspaceOf(void* workspace) {
  auto* header = static_cast<HostWorkspace*>(workspace);
  if (workspace != nullptr && reinterpret_cast<uintptr_t>(workspace) % 16 == 0 && header->mark == kMark) {
    return header;
  }
  Fail(LLMD_INVALID_ARGUMENT, "workspace was not initialized by init_workspace");
  return nullptr;
}

inline llmd_code CheckHostWorkspace(void* workspace, llmd_data_error* error, llmd_stream) {
  HostWorkspace* header = HostWorkspaceOf(workspace);
  if (header == nullptr) return LLMD_INVALID_ARGUMENT;
  const llmd_data_error found = header->error;
  header->error = {};
  if (error != nullptr) *error = found;
  if (found.kind == LLMD_DATA_OK) return LLMD_OK;
  const char* what = found.kind == LLMD_BAD_PAGE ? "page" : found.kind == LLMD_BAD_SLOT ? "slot" : "length";
  return Fail(LLMD_BAD_DATA, "request " + std::to_string(found.request) + ", index " +
                                 std::to_string(found.index) + ": bad " + what + " " +
                                 std::to_string(found.value));
}

// No exception crosses the C boundary; the only one there can be is lack of memory.
template <typename F>
llmd_code Guarded(F&& f) noexcept {
  try {
    return f();
  } catch (const std::exception&) {
    return Fail(LLMD_DEVICE_ERROR, "out of memory");
  }
}

}  // namespace llmd::attention

#endif  // LLMD_ATTENTION_HOST_WORKSPACE_H_
