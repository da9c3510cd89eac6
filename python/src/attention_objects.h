// What lives longer than a call: a layer's cache, a page list, a workspace and what was planned in it.
#ifndef LLMD_PYTHON_SRC_ATTENTION_OBJECTS_H_
#define LLMD_PYTHON_SRC_ATTENTION_OBJECTS_H_

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "llmd/attention/backend.h"
#include "python/src/array.h"
#include "python/src/attention_call.h"

namespace llmd::python {

// Keeps its arrays exported. Immutable.
class KvCache {
 public:
  // `layout`: "NHD" for [pages, P, Hkv, D], "HND" for [pages, Hkv, P, D]. `dtype`: None or a name.
  KvCache(pybind11::handle k, pybind11::handle v, pybind11::handle layout, pybind11::handle dtype,
          pybind11::handle k_scale, pybind11::handle v_scale);

  const llmd_kv_cache& args() const { return args_; }
  const std::string& layout() const { return layout_; }
  std::string device() const { return DeviceText(k_.device()); }

  // The call works on this cache: its device, and the sizes P, Hkv and D.
  void Use(Call& call) const;
  void SetSizes(Dims& dims) const;
  void CheckWritable() const;
  // Whether a page of K and one of V are each one piece of memory, and its size; throws if not.
  std::int64_t BlockBytes() const;

 private:
  const float* Scale(const std::optional<Array>& scale);

  Array k_;
  Array v_;
  std::optional<Array> k_scale_;
  std::optional<Array> v_scale_;
  std::string layout_;
  llmd_kv_cache args_{};
};

// Reads an object with attributes pages, seq_lens, indptr and last_page_len (a llmd.cuda.PageList).
class PageArrays {
 public:
  explicit PageArrays(pybind11::handle list);

  template <typename F>
  void ForEach(F&& f) {
    for (std::optional<Array>* array : {&pages_, &seq_lens_, &indptr_, &last_page_len_}) {
      if (*array) f(**array);
    }
  }
  // After Export() of all; sets B. `lengths`: whether lengths are needed.
  llmd_page_list Args(Dims& dims, bool lengths) const;

 private:
  std::optional<Array> pages_;
  std::optional<Array> seq_lens_;
  std::optional<Array> indptr_;
  std::optional<Array> last_page_len_;
};

// Functions of one workspace take turns.
class AttentionWorkspace {
 public:
  // `shape`: an object with the fields of llmd_attention_shape as attributes.
  AttentionWorkspace(pybind11::handle shape, pybind11::handle memory, pybind11::handle stream,
                     pybind11::handle backend);

  static llmd_attention_shape Shape(pybind11::handle shape);
  // Throws where there is no such workspace.
  static std::size_t BytesFor(const AttentionBackend& backend, const llmd_attention_shape& shape);

  const llmd_attention_shape& shape() const { return shape_; }
  const AttentionBackend& backend() const { return *backend_; }
  pybind11::object backend_object() const { return pybind11::cast(backend_); }
  std::int64_t bytes() const { return memory_->size(); }
  std::string device() const { return DeviceText(memory_->device()); }

  // None, or (kind, request, index, value).
  pybind11::object Check(pybind11::handle stream);

 private:
  friend class AttentionPlan;

  llmd_attention_shape shape_;
  std::shared_ptr<AttentionBackend> backend_;
  std::optional<Array> memory_;
  std::mutex mutex_;
  std::atomic<std::uint64_t> plans_ = 0;  // that were made
};

// A step: keeps the arrays of lengths and pages exported.
class AttentionPlan {
 public:
  AttentionPlan(std::shared_ptr<AttentionWorkspace> workspace, pybind11::handle pages,
                pybind11::handle q_start, pybind11::handle stream);

  struct Layer {
    pybind11::handle q, o, cache, scale, lse, sinks, q_dtype, o_dtype;
    std::uint32_t flags;
  };
  void Attention(const Layer& layer, pybind11::handle stream);

  std::int32_t batch() const { return args_.batch; }
  bool current() const { return number_ == workspace_->plans_; }
  const AttentionWorkspace& workspace() const { return *workspace_; }

 private:
  // Runs `work` alone on the workspace.
  template <typename Work>
  void Do(Call& call, Work&& work);

  std::shared_ptr<AttentionWorkspace> workspace_;
  PageArrays pages_;
  std::optional<Array> q_start_;
  llmd_plan_args args_{};
  std::uint64_t number_ = 0;
};

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_ATTENTION_OBJECTS_H_
