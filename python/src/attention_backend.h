// Tables of attention functions as Python sees them: those of this module, and one that is found at run time.
#ifndef LLMD_PYTHON_SRC_ATTENTION_BACKEND_H_
#define LLMD_PYTHON_SRC_ATTENTION_BACKEND_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "llmd/attention/backend.h"

namespace llmd::python {

class AttentionBackend {
 public:
  // "cpu" or "reference".
  static absl::StatusOr<std::shared_ptr<AttentionBackend>> Host(const std::string& name);
  // dlopen of `path`, which stays loaded, and its llmd_attention_cuda. Unavailable if there is none;
  // FailedPrecondition if it was made for another LLMD_ATTENTION_ABI.
  static absl::StatusOr<std::shared_ptr<AttentionBackend>> Load(const std::string& path);

  const llmd_attention_backend& table() const { return *table_; }
  const std::string& path() const { return path_; }  // empty for those of this module
  bool on_host() const { return path_.empty(); }

  // OK, or the status for the code, with `message`.
  static absl::Status ToStatus(llmd_code code, std::string message);

 private:
  AttentionBackend(const llmd_attention_backend* table, std::string path)
      : table_(table), path_(std::move(path)) {}

  const llmd_attention_backend* table_;
  std::string path_;
};

// The number of the calling thread's current CUDA device; -1 if the process has not loaded the driver.
int CurrentCudaDevice();

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_ATTENTION_BACKEND_H_
