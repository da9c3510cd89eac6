#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "src/attention/cpu.h"
#include "src/attention/cpu_kernels.h"
#include "src/attention/cpu_pool.h"
#include "src/attention/host_workspace.h"
#include "src/attention/numeric.h"
#include "src/attention/pages.h"

namespace llmd::attention::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kPartKeys = 512;          // of a part, without a fixed split
constexpr int64_t kTileRows = 64;           // rows (a token and a head) of a part, about
constexpr int64_t kPartialBytes = 8 << 20;  // room for partial results, about

// Rows of a tile: whole tokens, each with the G heads of one KV head.
struct Tile {
  int32_t request;
  int32_t head;         // KV head
  int64_t first_token;  // of the request
  int64_t tokens;
};

// One part of one tile; `slot` is its place among the partial results.
struct Item {
  int32_t group;
  int64_t part;
};

// Parts of one tile in this wave. The first and last tile of a wave may be cut: what came before is then in
// the carry.
struct Group {
  Tile tile;
  int32_t first_item;
  int32_t count;
  bool begins, ends;
};

int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Where things lie in a workspace, in bytes from its beginning. The same for every call with a shape.
struct Layout {
  int64_t group_size, tile_tokens, rows, padded, part_keys, slots;
  int64_t row_state;  // bytes of (o, m, l) of `rows` rows
  int64_t items, groups, partials, carry, scratch, scratch_bytes, bytes;

  explicit Layout(const llmd_attention_shape& shape) {
    group_size = shape.num_q_heads / shape.num_kv_heads;
    tile_tokens = shape.mode == LLMD_DECODE ? 1 : std::max<int64_t>(1, kTileRows / group_size);
    rows = tile_tokens * group_size;
    padded = Padded(shape.head_dim);
    part_keys = shape.fixed_split > 0 ? shape.fixed_split : kPartKeys;
    row_state = Aligned(rows * (padded + 2) * int64_t{sizeof(float)});
    slots = std::max<int64_t>(4 * Workers(), std::min<int64_t>(4096, kPartialBytes / row_state));
    int64_t at = kHostWorkspaceBytes;
    const auto take = [&at](int64_t size) {
      const int64_t begin = at;
      at += Aligned(size);
      return begin;
    };
    items = take(slots * int64_t{sizeof(Item)});
    groups = take(slots * int64_t{sizeof(Group)});
    partials = take(slots * row_state);
    carry = take(2 * row_state);
    scratch_bytes = Aligned(2 * kBlockKeys * padded * int64_t{sizeof(float)}) +  // k, v
                    Aligned(kBlockKeys * int64_t{sizeof(float)}) +
                    Aligned(rows * padded * int64_t{sizeof(float)}) +  // q
                    2 * Aligned(rows * int64_t{sizeof(int64_t)});
    scratch = take(Workers() * scratch_bytes);
    bytes = at;
  }
};

struct State {
  float* o;
  float* m;
  float* l;
};

class Call {
 public:
  Call(const llmd_attention_args& args, char* workspace)
      : args_(args), kernels_(Kernels()), layout_(args.shape), workspace_(workspace) {}

  void Run() {
    auto* items = reinterpret_cast<Item*>(workspace_ + layout_.items);
    auto* groups = reinterpret_cast<Group*>(workspace_ + layout_.groups);
    int32_t num_items = 0, num_groups = 0;
    const auto flush = [&] {
      Parallel(num_items, [&](int64_t i, int worker) {
        Compute(groups[items[i].group].tile, items[i].part, i, worker);
      });
      Parallel(num_groups, [&](int64_t g, int) { Finish(groups[g]); });
      num_items = num_groups = 0;
      wave_ ^= 1;
    };
    for (int32_t b = 0; b < args_.batch; ++b) {
      const Request request = RequestOf(args_, b);
      for (int64_t token = 0; token < request.rows; token += layout_.tile_tokens) {
        const int64_t tokens = std::min(layout_.tile_tokens, request.rows - token);
        const int64_t first_part = request.Begin(token, args_.shape.window) / layout_.part_keys;
        const int64_t end = std::max<int64_t>(0, request.End(token + tokens - 1));
        // At least one part, for rows that see nothing are written too.
        const int64_t end_part = std::max(first_part + 1, (end + layout_.part_keys - 1) / layout_.part_keys);
        for (int32_t head = 0; head < args_.shape.num_kv_heads; ++head) {
          const Tile tile = {b, head, token, tokens};
          for (int64_t part = first_part; part < end_part; ++part) {
            if (num_items == layout_.slots) flush();
            if (part == first_part || num_items == 0) {
              groups[num_groups++] = {tile, num_items, 0, part == first_part, false};
            }
            Group& group = groups[num_groups - 1];
            ++group.count;
            group.ends = part == end_part - 1;
            items[num_items++] = {num_groups - 1, part};
          }
        }
      }
    }
    flush();
  }

 private:
  State StateAt(char* at) const {
    auto* o = reinterpret_cast<float*>(at);
    float* m = o + layout_.rows * layout_.padded;
    return {o, m, m + layout_.rows};
  }
  State Partial(int64_t slot) const {
    return StateAt(workspace_ + layout_.partials + slot * layout_.row_state);
  }

  // What a cut group has so far, for this wave and the next in turns.
  State Carry(int wave) const { return StateAt(workspace_ + layout_.carry + wave * layout_.row_state); }

  float ScaleOf(const float* scales, int32_t head) const {
    const llmd_kv_cache& cache = args_.cache;
    return cache.dtype == LLMD_E4M3 && scales != nullptr ? scales[head * cache.scale_stride] : 1.0f;
  }

  void Compute(const Tile& tile, int64_t part_index, int64_t slot, int worker) const {
    const Request request = RequestOf(args_, tile.request);
    const int64_t group = layout_.group_size;
    const int64_t padded = layout_.padded;
    char* at = workspace_ + layout_.scratch + worker * layout_.scratch_bytes;
    const auto take = [&at]<typename T>(T*, int64_t count) {
      T* begin = reinterpret_cast<T*>(at);
      at += Aligned(count * int64_t{sizeof(T)});
      return begin;
    };
    constexpr float* kFloats = nullptr;
    constexpr int64_t* kInts = nullptr;
    float* kv = take(kFloats, 2 * kBlockKeys * padded);
    float* scores = take(kFloats, kBlockKeys);
    float* q = take(kFloats, layout_.rows * padded);
    int64_t* begin = take(kInts, layout_.rows);
    int64_t* end = take(kInts, layout_.rows);

    const int rows = static_cast<int>(tile.tokens * group);
    const float factor = static_cast<float>(double{args_.scale} * std::numbers::log2e *
                                            ScaleOf(args_.cache.k_scale, tile.head));
    const auto size = static_cast<int64_t>(SizeOf(args_.q_dtype));
    for (int r = 0; r < rows; ++r) {
      const int64_t token = tile.first_token + r / group;
      const int64_t head = tile.head * group + r % group;
      const int64_t from = (request.first_row + token) * args_.q_strides.token + head * args_.q_strides.head;
      float* row = q + r * padded;
      kernels_.to_floats(args_.q_dtype, static_cast<const char*>(args_.q) + from * size, args_.shape.head_dim,
                         row);
      for (int32_t d = 0; d < args_.shape.head_dim; ++d) row[d] *= factor;
      for (int64_t d = args_.shape.head_dim; d < padded; ++d) row[d] = 0;
      begin[r] = request.Begin(token, args_.shape.window);
      end[r] = request.End(token);
    }
    // Padding of k and v that no conversion writes.
    if (padded != args_.shape.head_dim) std::memset(kv, 0, 2 * kBlockKeys * padded * sizeof(float));

    const State state = Partial(slot);
    Part part = {};
    part.cache = &args_.cache;
    part.pages = request.pages;
    part.validate = (args_.flags & LLMD_VALIDATE) != 0;
    part.kv_head = tile.head;
    part.rows = rows;
    part.first = std::max(part_index * layout_.part_keys, begin[0]);
    part.last = std::min((part_index + 1) * layout_.part_keys, end[rows - 1]);
    part.begin = begin;
    part.end = end;
    part.q = q;
    part.k = kv;
    part.v = kv + kBlockKeys * padded;
    part.scores = scores;
    part.o = state.o;
    part.m = state.m;
    part.l = state.l;
    kernels_.part(part);
  }

  // Joins a group's parts in the order of keys, and writes the rows if those were the last.
  void Finish(const Group& group) const {
    const int64_t rows = group.tile.tokens * layout_.group_size;
    State state = Partial(group.first_item);
    int32_t next = 1;
    if (!group.begins) {
      state = Carry(wave_);
      next = 0;
    }
    for (; next < group.count; ++next) {
      const State part = Partial(group.first_item + next);
      for (int64_t r = 0; r < rows; ++r) {
        kernels_.join(static_cast<int>(layout_.padded), state.o + r * layout_.padded, state.m + r,
                      state.l + r, part.o + r * layout_.padded, part.m[r], part.l[r]);
      }
    }
    if (!group.ends) {  // the last group of a wave
      std::memcpy(Carry(wave_ ^ 1).o, state.o, layout_.row_state);
      return;
    }
    Write(group.tile, state);
  }

  void Write(const Tile& tile, const State& state) const {
    const Request request = RequestOf(args_, tile.request);
    const int64_t group = layout_.group_size;
    const float v_scale = ScaleOf(args_.cache.v_scale, tile.head);
    for (int64_t r = 0; r < tile.tokens * group; ++r) {
      const int64_t token = request.first_row + tile.first_token + r / group;
      const int64_t head = tile.head * group + r % group;
      float m = state.m[r];
      float l = state.l[r];
      float numerator = v_scale;
      if (args_.sinks != nullptr) {  // exp(sink) more in the denominator
        const float sink = args_.sinks[head] * std::numbers::log2e_v<float>;
        const float top = std::max(m, sink);
        if (top != -kInfinity) {
          const float factor = std::exp2(m - top);
          l = l * factor + std::exp2(sink - top);
          numerator *= factor;
          m = top;
        }
      }
      float* o = state.o + r * layout_.padded;
      const float factor = l == 0 ? 0.0f : numerator / l;
      for (int64_t d = 0; d < layout_.padded; ++d) o[d] *= factor;
      const float lse = l == 0 ? -kInfinity : (m + std::log2(l)) * std::numbers::ln2_v<float>;
      WriteRow(token, head, o, lse);
    }
  }

  void WriteRow(int64_t token, int64_t head, const float* o, float lse) const {
    const int64_t to = token * args_.o_strides.token + head * args_.o_strides.head;
    kernels_.from_floats(args_.o_dtype, o, args_.shape.head_dim,
                         static_cast<char*>(args_.o) + to * static_cast<int64_t>(SizeOf(args_.o_dtype)));
    if (args_.lse != nullptr)
      args_.lse[token * args_.lse_strides.token + head * args_.lse_strides.head] = lse;
  }

 public:
  void ZeroPadding() const {
    auto* zeros = StateAt(workspace_ + layout_.carry).o;
    std::memset(zeros, 0, layout_.padded * sizeof(float));
    for (int64_t t = std::max(0, args_.q_start[args_.batch]); t < args_.num_tokens; ++t) {
      for (int64_t h = 0; h < args_.shape.num_q_heads; ++h) WriteRow(t, h, zeros, -kInfinity);
    }
  }

 private:
  const llmd_attention_args& args_;
  const KernelTable& kernels_;
  const Layout layout_;
  char* workspace_;
  int wave_ = 0;
};

}  // namespace

size_t WorkspaceBytes(const llmd_attention_shape& shape) { return Layout(shape).bytes; }

void Attention(const llmd_attention_args& args, llmd_data_error* error) {
  if ((args.flags & LLMD_VALIDATE) != 0) {
    for (int32_t b = 0; b < args.batch && error->kind == LLMD_DATA_OK; ++b) {
      *error = FirstError(args, b, RequestOf(args, b));
    }
  }
  Call call(args, static_cast<char*>(args.workspace));
  call.Run();
  if ((args.flags & LLMD_ZERO_PADDING) != 0 && args.shape.mode != LLMD_DECODE) call.ZeroPadding();
}

void MergeStates(const llmd_merge_states_args& args) {
  const KernelTable& kernels = Kernels();
  const auto size = static_cast<int64_t>(SizeOf(args.partial_dtype));
  const int64_t rows = int64_t{args.num_tokens} * args.num_heads;
  ParallelRanges(rows, 64, [&](int64_t begin, int64_t end) {
    constexpr int kPiece = 128;  // elements of a head at a time
    float sum[kPiece], x[kPiece];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t t = row / args.num_heads;
      const int64_t h = row % args.num_heads;
      const bool list = args.part_start != nullptr;
      const int64_t first = list ? args.part_start[t] : t;
      const int64_t last = list ? args.part_start[t + 1] : args.num_parts * int64_t{args.num_tokens};
      const int64_t step = list ? 1 : args.num_tokens;
      float top = -kInfinity;
      for (int64_t p = first; p < last; p += step) {
        const float lse = args.partial_lse[p * args.num_heads + h];
        if (lse != kInfinity && lse > top) top = lse;
      }
      double total = 0;
      const auto weight_of = [&](int64_t p) {
        const float lse = args.partial_lse[p * args.num_heads + h];
        return std::isinf(lse) ? 0.0f : std::exp(lse - top);
      };
      for (int64_t p = first; p < last; p += step) total += weight_of(p);
      const int64_t to = t * args.o_strides.token + h * args.o_strides.head;
      for (int32_t d = 0; d < args.head_dim; d += kPiece) {
        const int count = std::min(kPiece, args.head_dim - d);
        std::fill_n(sum, count, 0.0f);
        for (int64_t p = first; p < last; p += step) {
          const float weight = weight_of(p);
          if (weight == 0) continue;
          kernels.to_floats(args.partial_dtype,
                            static_cast<const char*>(args.partial_o) +
                                ((p * args.num_heads + h) * args.head_dim + d) * size,
                            count, x);
          for (int i = 0; i < count; ++i) sum[i] += weight * x[i];
        }
        const float factor = total > 0 ? static_cast<float>(1 / total) : 0.0f;
        for (int i = 0; i < count; ++i) sum[i] *= factor;
        kernels.from_floats(
            args.o_dtype, sum, count,
            static_cast<char*>(args.o) + (to + d) * static_cast<int64_t>(SizeOf(args.o_dtype)));
      }
      if (args.lse != nullptr) {
        args.lse[t * args.lse_strides.token + h * args.lse_strides.head] =
            total > 0 ? static_cast<float>(top + std::log(total)) : -kInfinity;
      }
    }
  });
}

}  // namespace llmd::attention::cpu
