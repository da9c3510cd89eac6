// llmd._core's part of llmd.cuda: rotary embedding, norms, activations, sampling.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "python/src/append_arrays.h"
#include "python/src/arguments.h"
#include "python/src/attention_call.h"
#include "python/src/attention_objects.h"
#include "python/src/module.h"

namespace llmd::python {
namespace py = pybind11;
namespace {

using Handle = py::handle;

// From a llmd.cuda.Rope.
llmd_rope RopeOf(Handle rope) {
  const auto number = [&](const char* name) {
    return static_cast<float>(ToDouble(rope.attr(name), (std::string("rope.") + name).c_str()));
  };
  return {.theta = number("theta"),
          .rotary_dim = To<std::int32_t>(rope.attr("rotary_dim"), "rope.rotary_dim"),
          .interleaved = ToBool(rope.attr("interleaved"), "rope.interleaved") ? 1 : 0,
          .scale_factor = number("scale_factor"),
          .low_freq_factor = number("low_freq_factor"),
          .high_freq_factor = number("high_freq_factor"),
          .old_context = number("old_context")};
}

llmd_dtype SameType(std::initializer_list<const Array*> arrays, Handle dtype) {
  const llmd_dtype type = (*arrays.begin())->FloatType(dtype, "dtype");
  for (const Array* array : arrays) {
    if (array != nullptr && array->FloatType(dtype, "dtype") != type) {
      throw py::type_error(array->name() + " is of another type than " + (*arrays.begin())->name());
    }
  }
  return type;
}

void CheckOutput(const Array& array) {
  array.CheckRows();
  array.CheckWritable();
}

void Rope(Handle rope, Handle positions, Handle q, Handle k, Handle q_out, Handle k_out, Handle dtype,
          Handle stream, Handle backend) {
  Call call(stream, backend);
  const Array& place = call.Add("positions", positions);
  const Array& query = call.Add("q", q);
  const Array& query_out = call.Add("q_out", q_out.is_none() ? q : q_out);
  const Array* const key = call.Optional("k", k);
  const Array* const key_out = call.Optional("k_out", k_out.is_none() ? k : k_out);
  if (key == nullptr && key_out != nullptr) throw py::value_error("k_out is given without k");
  call.Begin();
  Dims dims;
  llmd_rope_args args{};
  args.rope = RopeOf(rope);
  dims.Match(query, {"T", "Hq", "D"});
  dims.Match(query_out, {"T", "Hq", "D"});
  dims.Match(place, {"T"});
  query.CheckRows();
  CheckOutput(query_out);
  place.CheckCompact();
  args.dtype = SameType({&query, &query_out, key, key_out}, dtype);
  args.num_tokens = dims.Int32("T");
  args.num_q_heads = dims.Int32("Hq");
  args.head_dim = dims.Int32("D");
  args.positions = place.Int32();
  args.q = query.data();
  args.q_strides = query.TokenStrides();
  args.q_out = query_out.data();
  args.q_out_strides = query_out.TokenStrides();
  if (key != nullptr) {
    dims.Match(*key, {"T", "Hkv", "D"});
    dims.Match(*key_out, {"T", "Hkv", "D"});
    key->CheckRows();
    CheckOutput(*key_out);
    args.num_kv_heads = dims.Int32("Hkv");
    args.k = key->data();
    args.k_strides = key->TokenStrides();
    args.k_out = key_out->data();
    args.k_out_strides = key_out->TokenStrides();
  }
  call.Run(&llmd_attention_backend::rope, args);
}

void RopeAppend(Handle rope, const KvCache& cache, Handle q, Handle k, Handle v, Handle positions,
                Handle q_out, Handle slots, Handle batch_index, Handle pages, Handle error, Handle dtype,
                Handle stream, Handle backend) {
  Call call(stream, backend);
  AppendArrays append(call, cache, k, v, slots, batch_index, positions, pages, error);
  if (positions.is_none()) throw py::type_error("positions is None, wanted an array");
  const Array& query = call.Add("q", q);
  const Array& query_out = call.Add("q_out", q_out.is_none() ? q : q_out);
  call.Begin();
  Dims dims;
  llmd_rope_append_args args{};
  args.rope = RopeOf(rope);
  args.append = append.Args(call, dims, dtype);
  dims.Match(query, {"T", "Hq", "D"});
  dims.Match(query_out, {"T", "Hq", "D"});
  query.CheckRows();
  CheckOutput(query_out);
  if (SameType({&query, &query_out}, dtype) != args.append.dtype) {
    throw py::type_error("q is of another type than k");
  }
  args.num_q_heads = dims.Int32("Hq");
  args.q = query.data();
  args.q_strides = query.TokenStrides();
  args.q_out = query_out.data();
  args.q_out_strides = query_out.TokenStrides();
  call.Run(&llmd_attention_backend::rope_append, args);
  append.ThrowBadPlace();
}

void CheckShape(const Array& array, std::span<const std::int64_t> shape, const Array& of) {
  if (!std::equal(shape.begin(), shape.end(), array.shape().begin(), array.shape().end())) {
    throw py::value_error(array.name() + " is of shape " + Array::Text(array.shape()) + ", wanted " +
                          Array::Text(shape) + ", which goes with " + of.name());
  }
}

void RmsNorm(Handle x, Handle weight, Handle y, double epsilon, Handle residual, Handle dtype, Handle stream,
             Handle backend) {
  Call call(stream, backend);
  const Array& in = call.Add("x", x);
  const Array& factor = call.Add("weight", weight);
  const Array& out = call.Add("y", y);
  const Array* const sum = call.Optional("residual", residual);
  call.Begin();
  const Array::Rows rows = in.AsRows();
  Dims dims;
  dims.Set("size", in.shape().back(), "x");
  dims.Match(factor, {"size"});
  factor.CheckCompact();
  CheckShape(out, in.shape(), in);
  out.CheckWritable();
  const Array::Rows out_rows = out.AsRows();
  if (sum != nullptr) {
    CheckShape(*sum, in.shape(), in);
    sum->CheckCompact();
    sum->CheckWritable();
  }
  call.Run(&llmd_attention_backend::rms_norm, {.dtype = SameType({&in, &factor, &out, sum}, dtype),
                                               .num_rows = rows.count,
                                               .size = dims.Int32("size"),
                                               .x = in.data(),
                                               .x_stride = rows.stride,
                                               .residual = sum != nullptr ? sum->data() : nullptr,
                                               .weight = factor.data(),
                                               .epsilon = static_cast<float>(epsilon),
                                               .y = out.data(),
                                               .y_stride = out_rows.stride});
}

void SiluAndMul(Handle x, Handle y, Handle dtype, Handle stream, Handle backend) {
  Call call(stream, backend);
  const Array& in = call.Add("x", x);
  const Array& out = call.Add("y", y);
  call.Begin();
  const Array::Rows rows = in.AsRows();
  Dims dims;
  dims.Set("size", in.shape().back() / 2, "x");
  std::vector<std::int64_t> half(in.shape().begin(), in.shape().end());
  half.back() /= 2;
  if (in.shape().back() % 2 != 0) {
    throw py::value_error("x is of shape " + Array::Text(in.shape()) + ", wanted an even last dimension");
  }
  CheckShape(out, half, in);
  in.CheckCompact();
  out.CheckCompact();
  out.CheckWritable();
  call.Run(&llmd_attention_backend::silu_and_mul, {.dtype = SameType({&in, &out}, dtype),
                                                   .num_rows = rows.count,
                                                   .size = dims.Int32("size"),
                                                   .x = in.data(),
                                                   .y = out.data()});
}

void Sample(Handle logits, Handle tokens, Handle temperature, Handle min_p, Handle top_k, Handle top_p,
            std::uint64_t seed, Handle request_ids, Handle steps, Handle logprobs, Handle dtype,
            Handle stream, Handle backend) {
  Call call(stream, backend);
  const Array& in = call.Add("logits", logits);
  const Array& out = call.Add("tokens", tokens);
  const Array* const floats[] = {call.Optional("temperature", temperature), call.Optional("min_p", min_p),
                                 call.Optional("top_p", top_p), call.Optional("logprobs", logprobs)};
  const Array* const k = call.Optional("top_k", top_k);
  const Array* const numbers[] = {call.Optional("request_ids", request_ids), call.Optional("steps", steps)};
  call.Begin();
  Dims dims;
  dims.Match(in, {"B", "vocab"});
  in.CheckRows();
  const auto each = [&](const Array* array) {
    if (array == nullptr) return false;
    dims.Match(*array, {"B"});
    array->CheckCompact();
    return true;
  };
  const auto float_data = [&](const Array* array) { return each(array) ? array->Floats() : nullptr; };
  const auto number_data = [&](const Array* array) {
    return each(array) ? reinterpret_cast<const std::uint64_t*>(array->Int64()) : nullptr;
  };
  each(&out);
  out.CheckWritable();
  if (floats[3] != nullptr) floats[3]->CheckWritable();
  call.Run(&llmd_attention_backend::sample, {.logits = in.data(),
                                             .dtype = in.FloatType(dtype, "dtype"),
                                             .row_stride = in.strides()[0],
                                             .batch = dims.Int32("B"),
                                             .vocab = dims.Int32("vocab"),
                                             .temperature = float_data(floats[0]),
                                             .min_p = float_data(floats[1]),
                                             .top_k = each(k) ? k->Int32() : nullptr,
                                             .top_p = float_data(floats[2]),
                                             .seed = seed,
                                             .request_ids = number_data(numbers[0]),
                                             .steps = number_data(numbers[1]),
                                             .tokens = out.Int32(),
                                             .logprobs = float_data(floats[3])});
}

}  // namespace

void BindLayers(py::module_& m) {
  m.def("rope", &Rope);
  m.def("rope_append", [](Handle rope, Arg<"cache", const KvCache&> cache, Handle q, Handle k, Handle v,
                          Handle positions, Handle q_out, Handle slots, Handle batch_index, Handle pages,
                          Handle error, Handle dtype, Handle stream, Handle backend) {
    RopeAppend(rope, *cache, q, k, v, positions, q_out, slots, batch_index, pages, error, dtype, stream,
               backend);
  });
  m.def("rms_norm", [](Handle x, Handle weight, Handle y, Arg<"epsilon", double> epsilon, Handle residual,
                       Handle dtype, Handle stream, Handle backend) {
    RmsNorm(x, weight, y, *epsilon, residual, dtype, stream, backend);
  });
  m.def("silu_and_mul", &SiluAndMul);
  m.def("sample", [](Handle logits, Handle tokens, Handle temperature, Handle min_p, Handle top_k,
                     Handle top_p, Arg<"seed", std::uint64_t> seed, Handle request_ids, Handle steps,
                     Handle logprobs, Handle dtype, Handle stream, Handle backend) {
    Sample(logits, tokens, temperature, min_p, top_k, top_p, *seed, request_ids, steps, logprobs, dtype,
           stream, backend);
  });
}

}  // namespace llmd::python
