#include "python/src/attention_backend.h"

#include <dlfcn.h>

namespace llmd::python {
namespace {

std::string LoaderError() {
  const char* const error = dlerror();
  return error != nullptr ? error : "unknown error";
}

}  // namespace

absl::StatusOr<std::shared_ptr<AttentionBackend>> AttentionBackend::Host(const std::string& name) {
  const auto make = [](const llmd_attention_backend* table) {
    return std::shared_ptr<AttentionBackend>(new AttentionBackend(table, ""));
  };
  if (name == "cpu") return make(llmd_attention_cpu());
  if (name == "reference") return make(llmd_attention_reference());
  return absl::InvalidArgumentError("backend is \"" + name + "\", wanted cpu, reference or cuda");
}

absl::StatusOr<std::shared_ptr<AttentionBackend>> AttentionBackend::Load(const std::string& path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::UnavailableError(LoaderError());
  const auto entry = reinterpret_cast<decltype(&llmd_attention_cuda)>(dlsym(library, "llmd_attention_cuda"));
  if (entry == nullptr) {
    const std::string error = LoaderError();
    dlclose(library);
    return absl::UnavailableError(error);
  }
  const llmd_attention_backend* const table = entry();
  // What lies behind the number is known only if it is ours.
  if (table == nullptr || table->abi != LLMD_ATTENTION_ABI) {
    const std::string abi = table == nullptr ? "has no table" : "has ABI " + std::to_string(table->abi);
    dlclose(library);
    return absl::FailedPreconditionError(path + " " + abi + ", wanted " + std::to_string(LLMD_ATTENTION_ABI) +
                                         ": install the versions of llmd and llmd-cuda that go together");
  }
  return std::shared_ptr<AttentionBackend>(new AttentionBackend(table, path));
}

absl::Status AttentionBackend::ToStatus(llmd_code code, std::string message) {
  switch (code) {
    case LLMD_OK:
      return absl::OkStatus();
    case LLMD_INVALID_ARGUMENT:
      return absl::InvalidArgumentError(message);
    case LLMD_UNSUPPORTED:
      return absl::UnimplementedError(message);
    case LLMD_BAD_DATA:
      return absl::DataLossError(message);
    default:
      return absl::InternalError(message);
  }
}

int CurrentCudaDevice() {
  using GetDevice = int (*)(int*);
  // Asked for anew until somebody has loaded it.
  void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (driver == nullptr) return -1;
  const auto get = reinterpret_cast<GetDevice>(dlsym(driver, "cuCtxGetDevice"));
  int device = 0;
  // Without a context the CUDA runtime takes device 0.
  if (get != nullptr && get(&device) != 0) device = 0;
  dlclose(driver);
  return get != nullptr ? device : -1;
}

}  // namespace llmd::python
