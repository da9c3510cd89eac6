#include "python/src/attention_objects.h"

#include <cmath>
#include <limits>
#include <utility>

#include "python/src/arguments.h"
#include "src/attention/check.h"

namespace llmd::python {
namespace py = pybind11;
namespace {

constexpr std::int64_t kAsItIs = -1;  // DLPack's stream of those who do no work yet

std::optional<Array> Given(const char* name, py::handle object) {
  if (object.is_none()) return std::nullopt;
  return Array(name, object);
}

template <typename T>
T Field(py::handle object, const char* group, const char* name) {
  return To<T>(object.attr(name), std::string(group) + name);
}

llmd_attention_mode ModeOf(const std::string& mode) {
  if (mode == "decode") return LLMD_DECODE;
  if (mode == "prefill") return LLMD_PREFILL;
  if (mode == "mixed") return LLMD_MIXED;
  throw py::value_error("shape.mode is \"" + mode + "\", wanted decode, prefill or mixed");
}

llmd_dtype StoredType(const std::string& name) {
  for (const llmd_dtype type : {LLMD_F32, LLMD_F16, LLMD_BF16, LLMD_E4M3}) {
    if (name == attention::NameOf(type)) return type;
  }
  throw py::value_error("shape.kv_dtype is \"" + name + "\", wanted f16, bf16 or e4m3");
}

}  // namespace

KvCache::KvCache(py::handle k, py::handle v, py::handle layout, py::handle dtype, py::handle k_scale,
                 py::handle v_scale)
    : k_("k", k),
      v_("v", v),
      k_scale_(Given("k_scale", k_scale)),
      v_scale_(Given("v_scale", v_scale)),
      layout_(ToText(layout, "layout")) {
  if (layout_ != "NHD" && layout_ != "HND") {
    throw py::value_error("layout is \"" + layout_ + "\", wanted NHD or HND");
  }
  Call devices{py::none(), py::none()};
  for (Array* array : {&k_, &v_, k_scale_ ? &*k_scale_ : nullptr, v_scale_ ? &*v_scale_ : nullptr}) {
    if (array == nullptr) continue;
    devices.Use(*array);
    array->Export(kAsItIs);
  }
  const bool nhd = layout_ == "NHD";
  Dims dims;
  for (Array* array : {&k_, &v_}) {
    nhd ? dims.Match(*array, {"pages", "P", "Hkv", "D"}) : dims.Match(*array, {"pages", "Hkv", "P", "D"});
    array->CheckRows();
  }
  const auto strides = [&](const Array& array) {
    const auto values = array.strides();
    return llmd_kv_strides{values[0], values[nhd ? 1 : 2], values[nhd ? 2 : 1]};
  };
  args_ = {.k = k_.data(),
           .v = v_.data(),
           .k_strides = strides(k_),
           .v_strides = strides(v_),
           .num_pages = dims["pages"],
           .page_size = dims.Int32("P"),
           .num_kv_heads = dims.Int32("Hkv"),
           .head_dim = dims.Int32("D"),
           .dtype = k_.FloatType(dtype, "dtype"),
           .k_scale = nullptr,
           .v_scale = nullptr,
           .scale_stride = 0};
  if (v_.FloatType(dtype, "dtype") != args_.dtype) throw py::value_error("v is of another type than k");
  args_.k_scale = Scale(k_scale_);
  args_.v_scale = Scale(v_scale_);
  // The backends' own rules of a cache, by way of a call that appends nothing.
  llmd_append_kv_args nothing{};
  nothing.cache = args_;
  if (attention::Check(nothing) != LLMD_OK) {
    const std::string message = attention::LastError();
    throw py::value_error(message.substr(message.find(": ") + 2));
  }
  // A float for all heads beside one a head: the stride is that of both.
  if (k_scale_ && v_scale_ && k_scale_->size() != v_scale_->size()) {
    throw py::value_error("v_scale has " + std::to_string(v_scale_->size()) + " elements, wanted " +
                          std::to_string(k_scale_->size()) + " as in k_scale");
  }
}

const float* KvCache::Scale(const std::optional<Array>& scale) {
  if (!scale) return nullptr;
  if (args_.dtype != LLMD_E4M3) {
    throw py::value_error(scale->name() + " is given, but the cache is " + attention::NameOf(args_.dtype) +
                          ", wanted e4m3");
  }
  if (scale->rank() > 1 || (scale->size() != 1 && scale->size() != args_.num_kv_heads)) {
    throw py::value_error(scale->name() + " is of shape " + Array::Text(scale->shape()) +
                          ", wanted (), (1,) or (Hkv,), where Hkv is " + std::to_string(args_.num_kv_heads));
  }
  scale->CheckCompact();
  args_.scale_stride = scale->size() > 1 ? 1 : 0;
  return scale->Floats();
}

void KvCache::Use(Call& call) const {
  call.Use(k_, "cache.");
  call.Use(v_, "cache.");
}

void KvCache::SetSizes(Dims& dims) const {
  dims.Set("P", args_.page_size, "cache");
  dims.Set("Hkv", args_.num_kv_heads, "cache");
  dims.Set("D", args_.head_dim, "cache");
}

void KvCache::CheckWritable() const {
  for (const Array* array : {&k_, &v_}) {
    try {
      array->CheckWritable();
    } catch (const py::value_error& error) {
      throw py::value_error(std::string("cache.") + error.what());
    }
  }
}

std::int64_t KvCache::BlockBytes() const {
  const std::int64_t elements = std::int64_t{args_.page_size} * args_.num_kv_heads * args_.head_dim;
  for (const Array* array : {&k_, &v_}) {
    std::int64_t compact = args_.head_dim;
    for (const std::size_t i : {2, 1}) {
      if (array->shape()[i] > 1 && array->strides()[i] != compact) {
        throw py::value_error("caches: the pages of " + array->name() + " have strides " +
                              Array::Text(array->strides()) + ", wanted each in one piece");
      }
      compact *= array->shape()[i];
    }
  }
  return elements * static_cast<std::int64_t>(attention::SizeOf(args_.dtype));
}

PageArrays::PageArrays(py::handle list)
    : pages_(Given("pages.pages", list.attr("pages"))),
      seq_lens_(Given("pages.seq_lens", list.attr("seq_lens"))),
      indptr_(Given("pages.indptr", list.attr("indptr"))),
      last_page_len_(Given("pages.last_page_len", list.attr("last_page_len"))) {
  if (!pages_) throw py::type_error("pages.pages is None, wanted an array");
  if (indptr_ && seq_lens_) throw py::value_error("pages.seq_lens and pages.indptr are both given");
  if (!indptr_ && last_page_len_) throw py::value_error("pages.last_page_len is given without pages.indptr");
}

llmd_page_list PageArrays::Args(Dims& dims, bool lengths) const {
  llmd_page_list out{};
  const auto vector = [&](const Array& array, const char* letter) {
    dims.Match(array, {letter});
    array.CheckCompact();
    return array.Int32();
  };
  out.pages = pages_->Int32();
  if (indptr_) {
    out.indptr = vector(*indptr_, "B+1");
    vector(*pages_, "capacity");
    out.max_pages = dims.Int32("capacity");
    if (last_page_len_) out.last_page_len = vector(*last_page_len_, "B");
    if (lengths && !last_page_len_) {
      throw py::value_error("pages.last_page_len is None, wanted an array beside pages.indptr");
    }
    return out;
  }
  dims.Match(*pages_, {"B", "max_pages"});
  pages_->CheckRows();
  out.row_stride = pages_->strides()[0];
  out.max_pages = dims.Int32("max_pages");
  if (seq_lens_) out.seq_lens = vector(*seq_lens_, "B");
  if (lengths && !seq_lens_) {
    throw py::value_error("pages.seq_lens is None, wanted an array (or pages.indptr)");
  }
  return out;
}

llmd_attention_shape AttentionWorkspace::Shape(py::handle shape) {
  constexpr char kGroup[] = "shape.";
  const auto number = [&](const char* name) { return Field<std::int32_t>(shape, kGroup, name); };
  return {.mode = ModeOf(Field<std::string>(shape, kGroup, "mode")),
          .max_batch = number("max_batch"),
          .max_tokens = number("max_tokens"),
          .num_q_heads = number("num_q_heads"),
          .num_kv_heads = number("num_kv_heads"),
          .head_dim = number("head_dim"),
          .kv_dtype = StoredType(Field<std::string>(shape, kGroup, "kv_dtype")),
          .page_size = number("page_size"),
          .window = number("window"),
          .fixed_split = number("fixed_split"),
          .max_kv_tokens = Field<std::int64_t>(shape, kGroup, "max_kv_tokens")};
}

std::size_t AttentionWorkspace::BytesFor(const AttentionBackend& backend, const llmd_attention_shape& shape) {
  const std::size_t bytes = backend.table().workspace_bytes(&shape);
  if (bytes > 0) return bytes;
  std::string message = backend.table().last_error();
  const bool right = attention::Check(shape) == LLMD_OK;
  ThrowStatus(
      AttentionBackend::ToStatus(right ? LLMD_UNSUPPORTED : LLMD_INVALID_ARGUMENT, std::move(message)));
}

AttentionWorkspace::AttentionWorkspace(py::handle shape, py::handle memory, py::handle stream,
                                       py::handle backend)
    : shape_(Shape(shape)) {
  Array array("memory", memory);
  Call call(stream, backend);
  call.Use(array);
  call.Begin();
  call.Export(array);
  Dims dims;
  dims.Match(array, {"bytes"});
  array.CheckCompact();
  array.CheckWritable();
  std::uint8_t* const bytes = array.Bytes();
  backend_ = call.shared_backend();
  const std::size_t needed = BytesFor(*backend_, shape_);
  if (static_cast<std::size_t>(dims["bytes"]) < needed) {
    throw py::value_error("memory has " + std::to_string(dims["bytes"]) + " bytes, wanted at least " +
                          std::to_string(needed));
  }
  call.Do([&](const llmd_attention_backend& table) {
    return table.init_workspace(bytes, static_cast<std::size_t>(dims["bytes"]), call.stream());
  });
  memory_ = std::move(array);
}

py::object AttentionWorkspace::Check(py::handle stream) {
  Call call(stream, backend_object());
  call.Use(*memory_);
  call.Begin();
  llmd_data_error error{};
  call.Do([&](const llmd_attention_backend& table) {
    const std::lock_guard lock(mutex_);
    const llmd_code code = table.check_workspace(memory_->data(), &error, call.stream());
    return code == LLMD_BAD_DATA ? LLMD_OK : code;
  });
  if (error.kind == LLMD_DATA_OK) return py::none();
  const char* kind = error.kind == LLMD_BAD_PAGE ? "page" : error.kind == LLMD_BAD_SLOT ? "slot" : "length";
  return py::make_tuple(kind, error.request, error.index, error.value);
}

template <typename Work>
void AttentionPlan::Do(Call& call, Work&& work) {
  call.Do([&](const llmd_attention_backend& table) {
    const std::lock_guard lock(workspace_->mutex_);
    return work(table);
  });
}

AttentionPlan::AttentionPlan(std::shared_ptr<AttentionWorkspace> workspace, py::handle pages,
                             py::handle q_start, py::handle stream)
    : workspace_(std::move(workspace)), pages_(pages), q_start_(Given("q_start", q_start)) {
  Call call(stream, workspace_->backend_object());
  call.Use(*workspace_->memory_);
  pages_.ForEach([&](Array& array) { call.Use(array); });
  if (q_start_) call.Use(*q_start_);
  call.Begin();
  pages_.ForEach([&](Array& array) { call.Export(array); });
  if (q_start_) call.Export(*q_start_);

  const llmd_attention_shape& shape = workspace_->shape();
  Dims dims;
  args_.shape = shape;
  args_.pages = pages_.Args(dims, /*lengths=*/true);
  args_.batch = dims.Int32("B");
  if (shape.mode == LLMD_DECODE && q_start_) {
    throw py::value_error(
        "q_start is given, but the workspace is for decode, where each request has one row");
  }
  if (q_start_) {
    dims.Match(*q_start_, {"B+1"});
    q_start_->CheckCompact();
    args_.q_start = q_start_->Int32();
  }
  args_.workspace = workspace_->memory_->data();
  args_.workspace_bytes = static_cast<std::size_t>(workspace_->bytes());
  Do(call, [&](const llmd_attention_backend& table) {
    number_ = ++workspace_->plans_;
    return table.plan(&args_, call.stream());
  });
}

void AttentionPlan::Attention(const Layer& layer, py::handle stream) {
  const auto& cache = To<const KvCache&>(layer.cache, "cache");
  Call call(stream, workspace_->backend_object());
  call.Use(*workspace_->memory_);
  Array& q = call.Add("q", layer.q);
  Array& o = call.Add("o", layer.o);
  Array* const lse = call.Optional("lse", layer.lse);
  Array* const sinks = call.Optional("sinks", layer.sinks);
  cache.Use(call);
  call.Begin();

  const llmd_attention_shape& shape = workspace_->shape();
  Dims dims;
  dims.Set("Hq", shape.num_q_heads, "shape.num_q_heads");
  dims.Set("D", shape.head_dim, "shape.head_dim");
  if (shape.mode == LLMD_DECODE) dims.Set("T", args_.batch, "the plan's batch");
  for (Array* array : {&q, &o}) {
    dims.Match(*array, {"T", "Hq", "D"});
    array->CheckRows();
  }
  o.CheckWritable();
  llmd_attention_args args{.shape = shape,
                           .batch = args_.batch,
                           .num_tokens = dims.Int32("T"),
                           .q = q.data(),
                           .q_strides = q.TokenStrides(),
                           .q_dtype = q.FloatType(layer.q_dtype, "q_dtype"),
                           .o = o.data(),
                           .o_strides = o.TokenStrides(),
                           .o_dtype = o.FloatType(layer.o_dtype, "o_dtype"),
                           .lse = nullptr,
                           .lse_strides = {},
                           .q_start = args_.q_start,
                           .cache = cache.args(),
                           .pages = args_.pages,
                           .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim)),
                           .sinks = nullptr,
                           .flags = layer.flags,
                           .workspace = args_.workspace,
                           .workspace_bytes = args_.workspace_bytes};
  if (!layer.scale.is_none()) args.scale = static_cast<float>(ToDouble(layer.scale, "scale"));
  if (lse != nullptr) {
    dims.Match(*lse, {"T", "Hq"});
    lse->CheckWritable();
    args.lse = lse->Floats();
    args.lse_strides = lse->TokenStrides();
  }
  if (sinks != nullptr) {
    dims.Match(*sinks, {"Hq"});
    sinks->CheckCompact();
    args.sinks = sinks->Floats();
  }
  bool stale = false;
  Do(call, [&](const llmd_attention_backend& table) {
    stale = !current();
    return stale ? LLMD_OK : table.attention(&args, call.stream());
  });
  if (stale) {
    ThrowStatus(
        absl::FailedPreconditionError("the plan is of an earlier step: its workspace was planned again"));
  }
}

}  // namespace llmd::python
