// llmd._core's part of llmd.cuda: backends, caches, workspaces, and the functions that move keys and values.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <string>

#include "python/src/append_arrays.h"
#include "python/src/arguments.h"
#include "python/src/attention_backend.h"
#include "python/src/attention_call.h"
#include "python/src/attention_objects.h"
#include "python/src/lock.h"
#include "python/src/module.h"
#include "python/src/status.h"
#include "src/attention/check.h"

namespace llmd::python {
namespace py = pybind11;
namespace {

using Handle = py::handle;

void AppendKv(const KvCache& cache, Handle k, Handle v, Handle slots, Handle batch_index, Handle positions,
              Handle pages, Handle error, Handle dtype, Handle stream, Handle backend) {
  Call call(stream, backend);
  AppendArrays append(call, cache, k, v, slots, batch_index, positions, pages, error);
  call.Begin();
  Dims dims;
  const llmd_append_kv_args args = append.Args(call, dims, dtype);
  call.Run(&llmd_attention_backend::append_kv, args);
  append.ThrowBadPlace();
}

// The addresses of 2 * layers pools, and the sizes of their blocks.
struct Bases {
  void* const* pointers;
  std::int32_t count;
};

Bases BasesOf(const Array& bases) {
  Dims dims;
  dims.Match(bases, {"2*layers"});
  bases.CheckCompact();
  return {reinterpret_cast<void* const*>(bases.Int64()), 2 * dims.Int32("layers")};
}

void CopyBlocks(Handle bases, Handle pairs, std::int64_t page_stride_bytes, std::int64_t block_bytes,
                Handle stream, Handle backend) {
  Call call(stream, backend);
  const Array& base = call.Add("bases", bases);
  const Array& pair = call.Add("pairs", pairs);
  call.Begin();
  Dims dims;
  dims.Match(pair, {"n", "2"});
  pair.CheckCompact();
  const Bases pools = BasesOf(base);
  call.Run(&llmd_attention_backend::copy_blocks, {.bases = pools.pointers,
                                                  .num_bases = pools.count,
                                                  .page_stride_bytes = page_stride_bytes,
                                                  .block_bytes = block_bytes,
                                                  .pairs = pair.Int64(),
                                                  .num_pairs = dims.Int32("n")});
}

void MoveBlocks(bool gather, Handle bases, Handle blocks, Handle staging, std::int64_t page_stride_bytes,
                std::int64_t block_bytes, Handle stream, Handle backend) {
  Call call(stream, backend);
  const Array& base = call.Add("bases", bases);
  const Array& block = call.Add("blocks", blocks);
  const Array& buffer = call.AddStaging("staging", staging);
  call.Begin();
  Dims dims;
  dims.Match(block, {"n"});
  block.CheckCompact();
  dims.Match(buffer, {"bytes"});
  buffer.CheckCompact();
  std::uint8_t* const bytes = buffer.Bytes();
  if (gather) buffer.CheckWritable();
  const Bases pools = BasesOf(base);
  std::int64_t needed = 0;
  if (__builtin_mul_overflow(dims["n"] * pools.count, block_bytes, &needed) || dims["bytes"] < needed) {
    throw py::value_error("staging has " + std::to_string(dims["bytes"]) + " bytes, wanted " +
                          std::to_string(dims["n"]) + " blocks * " + std::to_string(pools.count) +
                          " bases * block_bytes, " + std::to_string(block_bytes));
  }
  const auto entry =
      gather ? &llmd_attention_backend::gather_blocks : &llmd_attention_backend::scatter_blocks;
  call.Run(entry, {.bases = pools.pointers,
                   .num_bases = pools.count,
                   .page_stride_bytes = page_stride_bytes,
                   .block_bytes = block_bytes,
                   .blocks = block.Int64(),
                   .num_blocks = dims.Int32("n"),
                   .staging = bytes});
}

// On the host, where a wrong number would be read past the end.
void CheckPartStart(const Array& part_start, std::int64_t parts) {
  const std::int32_t* const values = part_start.Int32();
  for (std::int64_t i = 0; i < part_start.size(); ++i) {
    if (values[i] < (i > 0 ? values[i - 1] : 0) || values[i] > parts) {
      throw py::value_error("part_start[" + std::to_string(i) + "] is " + std::to_string(values[i]) +
                            ", wanted ascending numbers in 0 .. " + std::to_string(parts));
    }
  }
}

void MergeStates(Handle partial_o, Handle partial_lse, Handle o, Handle lse, Handle part_start,
                 Handle partial_dtype, Handle o_dtype, Handle stream, Handle backend) {
  Call call(stream, backend);
  const Array& parts = call.Add("partial_o", partial_o);
  const Array& part_lse = call.Add("partial_lse", partial_lse);
  const Array& out = call.Add("o", o);
  const Array* const out_lse = call.Optional("lse", lse);
  const Array* const start = call.Optional("part_start", part_start);
  call.Begin();
  Dims dims;
  dims.Match(out, {"T", "Hq", "D"});
  out.CheckRows();
  out.CheckWritable();
  llmd_merge_states_args args{};
  if (start != nullptr) {
    dims.Match(*start, {"T+1"});
    start->CheckCompact();
    dims.Match(parts, {"parts", "Hq", "D"});
    dims.Match(part_lse, {"parts", "Hq"});
    if (call.on_host()) CheckPartStart(*start, dims["parts"]);
    // Without any part there is none to begin.
    args.part_start = dims["parts"] > 0 ? start->Int32() : nullptr;
  } else {
    dims.Match(parts, {"parts", "T", "Hq", "D"});
    dims.Match(part_lse, {"parts", "T", "Hq"});
    args.num_parts = dims.Int32("parts");
  }
  parts.CheckCompact();
  part_lse.CheckCompact();
  args.partial_o = parts.data();
  args.partial_lse = part_lse.Floats();
  args.partial_dtype = parts.FloatType(partial_dtype, "partial_dtype");
  args.num_tokens = dims.Int32("T");
  args.num_heads = dims.Int32("Hq");
  args.head_dim = dims.Int32("D");
  args.o = out.data();
  args.o_strides = out.TokenStrides();
  args.o_dtype = out.FloatType(o_dtype, "o_dtype");
  if (out_lse != nullptr) {
    dims.Match(*out_lse, {"T", "Hq"});
    out_lse->CheckWritable();
    args.lse = out_lse->Floats();
    args.lse_strides = out_lse->TokenStrides();
  }
  call.Run(&llmd_attention_backend::merge_states, args);
}

void BindObjects(py::module_& m) {
  py::class_<AttentionBackend, std::shared_ptr<AttentionBackend>>(m, "AttentionBackend")
      .def_static("host", [](Arg<"name", std::string> name) { return Take(AttentionBackend::Host(*name)); })
      .def_static("load",
                  [](Arg<"path", std::string> path) {
                    return Take(WithoutGil(true, [&] { return AttentionBackend::Load(*path); }));
                  })
      .def_property_readonly("name", [](const AttentionBackend& self) { return self.table().name; })
      .def_property_readonly("path", [](const AttentionBackend& self) { return FromWireText(self.path()); })
      .def_property_readonly("abi", [](const AttentionBackend& self) { return self.table().abi; })
      .def("workspace_bytes", [](const AttentionBackend& self, Handle shape) {
        return AttentionWorkspace::BytesFor(self, AttentionWorkspace::Shape(shape));
      });

  py::class_<KvCache>(m, "KvCache")
      .def(py::init<Handle, Handle, Handle, Handle, Handle, Handle>())
      .def_property_readonly("layout", &KvCache::layout)
      .def_property_readonly("device", &KvCache::device)
      .def_property_readonly("num_pages", [](const KvCache& self) { return self.args().num_pages; })
      .def_property_readonly("page_size", [](const KvCache& self) { return self.args().page_size; })
      .def_property_readonly("num_kv_heads", [](const KvCache& self) { return self.args().num_kv_heads; })
      .def_property_readonly("head_dim", [](const KvCache& self) { return self.args().head_dim; })
      .def_property_readonly("dtype",
                             [](const KvCache& self) { return attention::NameOf(self.args().dtype); })
      .def_property_readonly("block_bytes", &KvCache::BlockBytes)
      .def_property_readonly(
          "page_stride_bytes",
          [](const KvCache& self) {
            const auto size = static_cast<std::int64_t>(attention::SizeOf(self.args().dtype));
            return py::make_tuple(self.args().k_strides.page * size, self.args().v_strides.page * size);
          })
      .def_property_readonly("addresses", [](const KvCache& self) {
        return py::make_tuple(reinterpret_cast<std::uintptr_t>(self.args().k),
                              reinterpret_cast<std::uintptr_t>(self.args().v));
      });

  py::class_<AttentionWorkspace, std::shared_ptr<AttentionWorkspace>>(m, "AttentionWorkspace")
      .def(py::init<Handle, Handle, Handle, Handle>())
      .def_property_readonly("bytes", &AttentionWorkspace::bytes)
      .def_property_readonly("device", &AttentionWorkspace::device)
      .def_property_readonly("backend", &AttentionWorkspace::backend_object)
      .def("check", &AttentionWorkspace::Check)
      .def("plan",
           [](const std::shared_ptr<AttentionWorkspace>& self, Handle pages, Handle q_start, Handle stream) {
             return std::make_unique<AttentionPlan>(self, pages, q_start, stream);
           });

  py::class_<AttentionPlan>(m, "AttentionPlan")
      .def_property_readonly("batch", &AttentionPlan::batch)
      .def_property_readonly("current", &AttentionPlan::current)
      .def("attention",
           [](AttentionPlan& self, Handle q, Handle o, Handle cache, Handle scale, Handle lse, Handle sinks,
              Arg<"validate", bool> validate, Arg<"zero_padding", bool> zero_padding,
              Arg<"early_start", bool> early_start, Handle q_dtype, Handle o_dtype, Handle stream) {
             std::uint32_t flags = 0;
             if (*validate) flags |= LLMD_VALIDATE;
             if (*zero_padding) flags |= LLMD_ZERO_PADDING;
             if (*early_start) flags |= LLMD_EARLY_START;
             self.Attention({q, o, cache, scale, lse, sinks, q_dtype, o_dtype, flags}, stream);
           });
}

}  // namespace

void BindAttention(py::module_& m) {
  BindObjects(m);
  m.def("append_kv",
        [](Arg<"cache", const KvCache&> cache, Handle k, Handle v, Handle slots, Handle batch_index,
           Handle positions, Handle pages, Handle error, Handle dtype, Handle stream, Handle backend) {
          AppendKv(*cache, k, v, slots, batch_index, positions, pages, error, dtype, stream, backend);
        });
  m.def("copy_blocks",
        [](Handle bases, Handle pairs, Arg<"page_stride_bytes", std::int64_t> page_stride_bytes,
           Arg<"block_bytes", std::int64_t> block_bytes, Handle stream,
           Handle backend) { CopyBlocks(bases, pairs, *page_stride_bytes, *block_bytes, stream, backend); });
  m.def("move_blocks", [](bool gather, Handle bases, Handle blocks, Handle staging,
                          Arg<"page_stride_bytes", std::int64_t> page_stride_bytes,
                          Arg<"block_bytes", std::int64_t> block_bytes, Handle stream, Handle backend) {
    MoveBlocks(gather, bases, blocks, staging, *page_stride_bytes, *block_bytes, stream, backend);
  });
  m.def("merge_states", &MergeStates);
}

}  // namespace llmd::python
