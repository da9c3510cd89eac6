// Paged decode for one new token a request: MHA, GQA and MQA, split over keys, combined in the same kernel.
//
// A block of four warps walks its share of the plan (plan.h). Within a piece, warp w takes the 16-key tiles
// w, w + 4, ...; each warp has a ring of stages in shared memory that it fills by cp.async on its own, across
// the ends of pieces, so there is no barrier in the main loop and loads never stop between pieces. The query
// heads of a group are the rows of the matrix products (16 x 8 x 16): S = Q K^T leaves P in the registers
// where P V wants it. At the end of a piece the four warps' (m, l, o) are merged in shared memory; a cut
// item's part goes to the workspace, and the block that arrives last merges the parts in their order (spec:
// paged-attention.md 3.2, 3.3, 3.6).
#ifndef LLMD_CUDA_ATTENTION_DECODE_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_CUH_

#include <type_traits>

#include "cuda/attention/decode_params.h"
#include "cuda/attention/ptx.cuh"

namespace llmd::cuda {

inline constexpr int kDecodeWarps = 4;
inline constexpr int kDecodeThreads = 32 * kDecodeWarps;

// Compile-time shape of a kernel. Cache is __nv_bfloat16, __half or __nv_fp8_e4m3.
template <typename Cache, int D, int kStages>
struct DecodeTraits {
  using Matrix = std::conditional_t<sizeof(Cache) == 1, __half, Cache>;  // what is multiplied
  static constexpr bool kFp8 = sizeof(Cache) == 1;
  static constexpr int kRowBytes = D * sizeof(Cache);
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kTileBytes = kTileKeys * kRowBytes;  // of K; V follows
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kColumns = D / 8;  // 8-wide column tiles of the output
  static constexpr int kMergeBytes = kDecodeWarps * kColumns * 32 * sizeof(float2);

  struct Shared {
    alignas(128) char ring[kDecodeWarps][kStages][kStageBytes];
    float2 merge[kDecodeWarps][kColumns][32];
    float max[kDecodeWarps][kRowTile];
    float sum[kDecodeWarps][kRowTile];
    std::uint32_t live[kDecodeWarps][kStages];  // a bit a key: visible
    int arrived_last;
  };

  // Rows are stored so that the lanes of a matrix load meet in no bank.
  __device__ static int Swizzle(int row, int chunk) {
    return kChunks >= 8 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3);
  }
  // Dimension of element e of column tile `tile` in lane 4r + j. For fp8 the columns are permuted, so that a
  // lane reads 8 or 16 neighbouring bytes of V.
  __device__ static int Dimension(int tile, int j, int e) {
    return kFp8 ? (2 * j + e) * kColumns + tile : 8 * tile + 2 * j + e;
  }
};

// A block's way through its share.
struct PieceWalk {
  int request, head, unit, unit_end, units, length;

  __device__ void Begin(const DecodeParams& p, const PieceStart& start, const PieceStart& end) {
    request = start.request;
    head = start.head;
    unit = start.unit;
    length = start.length;
    units = UnitsOf(length, p.window, p.unit_keys);
    SetEnd(p, end);
  }
  __device__ bool Next(const DecodeParams& p, const PieceStart& end) {
    if (unit_end < units) {
      if (AtItemOf(end) && unit_end == end.unit) return false;
      unit = unit_end;
    } else {
      unit = 0;
      if (++head == p.heads) {
        head = 0;
        do {
          if (++request >= p.batch || request > end.request) return false;
        } while (p.workspace.units[request + 1] == p.workspace.units[request]);
        length = p.workspace.lengths[request];
        units = UnitsOf(length, p.window, p.unit_keys);
      }
      if (AtItemOf(end) && end.unit == 0) return false;
    }
    SetEnd(p, end);
    return true;
  }
  __device__ bool AtItemOf(const PieceStart& end) const { return request == end.request && head == end.head; }
  __device__ void SetEnd(const DecodeParams& p, const PieceStart& end) {
    unit_end = AtItemOf(end) && end.unit > 0 ? end.unit : units;
    if (p.fixed_split) unit_end = min(unit_end, unit + 1);
  }
  __device__ int FirstVisible(const DecodeParams& p) const {
    return p.window > 0 ? max(0, length - p.window) : 0;
  }
  __device__ int BeginKey(const DecodeParams& p) const {
    return FirstKey(length, p.window) + unit * p.unit_keys;
  }
  __device__ int EndKey(const DecodeParams& p) const {
    return min(length, FirstKey(length, p.window) + unit_end * p.unit_keys);
  }
  // Tiles of the piece for one of the warps.
  __device__ int TilesOfWarp(const DecodeParams& p, int warp) const {
    int tiles = CeilDivide(EndKey(p) - BeginKey(p), kTileKeys);
    return (tiles - warp + kDecodeWarps - 1) / kDecodeWarps;
  }
};

// Fills a warp's ring, ahead of the computation.
template <typename Traits>
class TileLoader {
 public:
  __device__ TileLoader(const DecodeParams& p, typename Traits::Shared& shared, const PieceStart& start,
                        const PieceStart& end)
      : p_(p), end_(end), lane_(threadIdx.x % 32), warp_(threadIdx.x / 32), policy_(EvictFirstPolicy()) {
    ring_ = SharedAddress(shared.ring[warp_][0]);
    live_ = shared.live[warp_];
    walk_.Begin(p, start, end);
    more_ = true;
    BeginPiece();
  }

  // Starts the copy of the next tile, if there is one, into `stage`.
  __device__ void Issue(int stage) {
    while (more_ && next_ == count_) {
      more_ = walk_.Next(p_, end_);
      if (more_) BeginPiece();
    }
    if (!more_) return;
    if (next_ % 32 == 0 && next_ > 0) {
      ids_ = ids_ahead_;
      ids_ahead_ = LoadIds(next_ + 32);
    }
    const int key = first_key_ + next_ * kUnitKeys;
    const int begin = max(walk_.FirstVisible(p_) - key, 0), end = min(walk_.length - key, kTileKeys);
    std::uint32_t live = ((2u << (end - 1)) - 1) & ~((1u << begin) - 1);
    if (p_.tiles_in_pages) {
      const int id = __shfl_sync(~0u, ids_, next_ % 32);
      if (id < 0) live = 0;
      const int offset = key - p_.page_size.Divide(key) * p_.page_size.divisor();
      CopyTile(stage, live, id * p_.k_strides.page + offset * p_.k_strides.token,
               id * p_.v_strides.page + offset * p_.v_strides.token);
    } else {
      CopyRows(stage, live, key);
    }
    if (lane_ == 0) live_[stage] = live;
    ++next_;
  }

 private:
  static constexpr int kRowsPerCopy = 32 / Traits::kChunks;
  static constexpr std::uint32_t kAllLive = 0xFFFF;

  __device__ void BeginPiece() {
    count_ = walk_.TilesOfWarp(p_, warp_);
    next_ = 0;
    first_key_ = walk_.BeginKey(p_) + warp_ * kTileKeys;
    row_ = PagesOf(p_.pages, walk_.request);
    const int kv_head = walk_.head / p_.row_tiles;
    k_ = p_.k + kv_head * p_.k_strides.head + lane_ % Traits::kChunks * 16;
    v_ = p_.v + kv_head * p_.v_strides.head + lane_ % Traits::kChunks * 16;
    ids_ = LoadIds(0);
    ids_ahead_ = LoadIds(32);
  }

  // Page ids of 32 of the warp's tiles, one a lane.
  __device__ int LoadIds(int first) const {
    const int tile = first + lane_;
    if (!p_.tiles_in_pages || tile >= count_) return 0;
    return PageId(p_.page_size.Divide(first_key_ + tile * kUnitKeys));
  }
  __device__ int PageId(int index) const {
    const int id = __ldg(row_ + index);
    if (p_.validate && (id < 0 || id >= p_.num_pages)) {
      ReportDataError(p_.workspace.header, LLMD_BAD_PAGE, walk_.request, index, id);
      return -1;
    }
    return id;
  }

  __device__ std::uint32_t Target(int stage, int i) const {
    const int row = lane_ / Traits::kChunks + kRowsPerCopy * i;
    return ring_ + stage * Traits::kStageBytes + row * Traits::kRowBytes +
           Traits::Swizzle(row, lane_ % Traits::kChunks) * 16;
  }

  __device__ void CopyTile(int stage, std::uint32_t live, std::int64_t k_offset,
                           std::int64_t v_offset) const {
    const int row = lane_ / Traits::kChunks;
    const char* k = k_ + k_offset + row * p_.k_strides.token;
    const char* v = v_ + v_offset + row * p_.v_strides.token;
    const std::int64_t k_step = kRowsPerCopy * p_.k_strides.token, v_step = kRowsPerCopy * p_.v_strides.token;
    if (live == kAllLive) {
#pragma unroll
      for (int i = 0; i < kTileKeys / kRowsPerCopy; ++i)
        CopyAsync16(Target(stage, i), k + i * k_step, policy_);
#pragma unroll
      for (int i = 0; i < kTileKeys / kRowsPerCopy; ++i) {
        CopyAsync16(Target(stage, i) + Traits::kTileBytes, v + i * v_step, policy_);
      }
    } else {  // rows that are not live are zeros: 0 * garbage could be NaN
#pragma unroll 1
      for (int i = 0; i < kTileKeys / kRowsPerCopy; ++i) {
        const bool use = live >> (row + kRowsPerCopy * i) & 1;
        CopyAsync16(Target(stage, i), use ? k + i * k_step : p_.k, use, policy_);
        CopyAsync16(Target(stage, i) + Traits::kTileBytes, use ? v + i * v_step : p_.v, use, policy_);
      }
    }
  }

  // Any page size: every row has its own page.
  __device__ void CopyRows(int stage, std::uint32_t& live, int key) const {
    const int mine = lane_ % kTileKeys;
    int id = -1, offset = 0;
    if (live >> mine & 1) {
      const int index = p_.page_size.Divide(key + mine);
      offset = key + mine - index * p_.page_size.divisor();
      id = PageId(index);
    }
    live = __ballot_sync(~0u, id >= 0) & kAllLive;
    const std::int64_t k_mine = id * p_.k_strides.page + offset * p_.k_strides.token;
    const std::int64_t v_mine = id * p_.v_strides.page + offset * p_.v_strides.token;
#pragma unroll 1
    for (int i = 0; i < kTileKeys / kRowsPerCopy; ++i) {
      const int row = lane_ / Traits::kChunks + kRowsPerCopy * i;
      const std::int64_t k_offset = __shfl_sync(~0u, k_mine, row), v_offset = __shfl_sync(~0u, v_mine, row);
      const bool use = live >> row & 1;
      CopyAsync16(Target(stage, i), use ? k_ + k_offset : p_.k, use, policy_);
      CopyAsync16(Target(stage, i) + Traits::kTileBytes, use ? v_ + v_offset : p_.v, use, policy_);
    }
  }

  const DecodeParams& p_;
  const PieceStart& end_;
  const int lane_, warp_;
  const std::uint64_t policy_;
  std::uint32_t ring_;
  std::uint32_t* live_;
  PieceWalk walk_;
  bool more_;
  int count_, next_, first_key_;
  int ids_, ids_ahead_;
  const std::int32_t* row_;
  const char* k_;
  const char* v_;
};

// A warp's running softmax over its keys of a piece: rows r = lane / 4 and r + 8.
template <typename Traits, int D>
struct WarpState {
  using Matrix = typename Traits::Matrix;

  std::uint32_t q[D / 16][4];
  float o[Traits::kColumns][4];
  float max[2], sum[2];  // sum: this lane's keys only
  float scale[2];        // of scores, to base 2

  __device__ void Begin() {
#pragma unroll
    for (int i = 0; i < Traits::kColumns; ++i) {
      o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
    }
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  // Q as the left operand. For an fp8 cache, lane j of four takes dimensions j * D / 4 on, four a step, as it
  // reads K.
  __device__ void LoadQuery(const DecodeParams& p, std::int64_t token, int first_head, int rows,
                            float head_scale) {
    const int lane = threadIdx.x % 32, j = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
      const bool live = row < rows;
      const char* source =
          p.q + 2 * (token * p.q_strides.token + (live ? first_head + row : 0) * p.q_strides.head);
      scale[half] = head_scale;
      if constexpr (!Traits::kFp8) {
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
          const std::uint32_t* pair = reinterpret_cast<const std::uint32_t*>(source) + 8 * step + j;
          q[step][half] = live ? __ldg(pair) : 0;
          q[step][half + 2] = live ? __ldg(pair + 4) : 0;
        }
      } else {
        const uint2* four = reinterpret_cast<const uint2*>(source + 2 * j * (D / 4));
        if (p.q_dtype == LLMD_F16) {
#pragma unroll
          for (int step = 0; step < D / 16; ++step) {
            const uint2 value = live ? __ldg(four + step) : uint2{0, 0};
            q[step][half] = value.x;
            q[step][half + 2] = value.y;
          }
        } else {
          LoadBfloatQuery(four, live, half);
        }
      }
    }
  }

  // bf16 as halves: a power of two a row, which its scale gives back, brings the greatest value to [1, 2).
  __device__ void LoadBfloatQuery(const uint2* four, bool live, int half) {
    std::uint32_t greatest = 0;
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      const uint2 value = live ? __ldg(four + step) : uint2{0, 0};
      q[step][half] = value.x;
      q[step][half + 2] = value.y;
      greatest = ::max(greatest, ::max(::max(value.x & 0x7FFF, value.x >> 16 & 0x7FFF),
                                       ::max(value.y & 0x7FFF, value.y >> 16 & 0x7FFF)));
    }
    greatest = ::max(greatest, __shfl_xor_sync(~0u, greatest, 1));
    greatest = ::max(greatest, __shfl_xor_sync(~0u, greatest, 2));
    const int exponent = ::min(::max(static_cast<int>(greatest >> 7), 1), 253) - 127;
    const float shrink = __uint_as_float((127 - exponent) << 23);
    scale[half] *= __uint_as_float((127 + exponent) << 23);
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
#pragma unroll
      for (int part = 0; part < 4; part += 2) {
        const std::uint32_t pair = q[step][half + part];
        q[step][half + part] =
            Pack<__half>(__uint_as_float(pair << 16) * shrink, __uint_as_float(pair & 0xFFFF0000u) * shrink);
      }
    }
  }

  __device__ void Add(std::uint32_t stage, std::uint32_t live, bool two_rows) {
    float s[2][4] = {};
    Scores(stage, s);
    std::uint32_t p[4];
    Softmax(s, live, two_rows, p);
    Output(stage + Traits::kTileBytes, p);
  }

  __device__ void Scores(std::uint32_t tile, float (&s)[2][4]) const {
    const int lane = threadIdx.x % 32;
    if constexpr (!Traits::kFp8) {
      const int row = (lane & 7) + (lane >> 4) * 8;
      const std::uint32_t base = tile + row * Traits::kRowBytes;
      const std::uint32_t first = (lane >> 3 & 1) ^ (row & 7);
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        std::uint32_t k[4];
        LoadMatrix4(k, base + ((first ^ (2 * step)) << 4));
        MatrixMultiplyAdd<Matrix>(s[0], q[step], k[0], k[1]);
        MatrixMultiplyAdd<Matrix>(s[1], q[step], k[2], k[3]);
      }
    } else {
      const int j = lane % 4;
#pragma unroll
      for (int chunk = 0; chunk < D / 64; ++chunk) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int row = lane / 4 + 8 * n;
          std::uint32_t k[4];
          LoadShared16(k, tile + row * Traits::kRowBytes + Traits::Swizzle(row, j * (D / 64) + chunk) * 16);
#pragma unroll
          for (int word = 0; word < 4; ++word) {
            MatrixMultiplyAdd<Matrix>(s[n], q[4 * chunk + word], HalfPairOfE4m3(k[word] & 0xFFFF),
                                      HalfPairOfE4m3(k[word] >> 16));
          }
        }
      }
    }
  }

  // Scores to probabilities, in the layout of the next product's left operand.
  __device__ void Softmax(float (&s)[2][4], std::uint32_t live, bool two_rows, std::uint32_t (&p)[4]) {
    const int j = threadIdx.x % 4;
    if (live != 0xFFFF) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (!(live >> (8 * n + 2 * j + e) & 1)) s[n][e] = s[n][e + 2] = -INFINITY;
        }
      }
    }
    p[1] = p[3] = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == 1 && !two_rows) break;
      const int e = 2 * half;
      float t[4] = {s[0][e], s[0][e + 1], s[1][e], s[1][e + 1]};
#pragma unroll
      for (int i = 0; i < 4; ++i) t[i] = t[i] == -INFINITY ? t[i] : t[i] * scale[half];
      float greatest = fmaxf(fmaxf(t[0], t[1]), fmaxf(t[2], t[3]));
      greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 1));
      greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 2));
      if (__any_sync(~0u, greatest > max[half])) {
        const float updated = fmaxf(max[half], greatest);
        const float factor = updated == -INFINITY ? 1 : Exp2(max[half] - updated);
        max[half] = updated;
        sum[half] *= factor;
#pragma unroll
        for (int i = 0; i < Traits::kColumns; ++i) {
          o[i][e] *= factor;
          o[i][e + 1] *= factor;
        }
      }
      const float shift = max[half] == -INFINITY ? 0 : max[half];
#pragma unroll
      for (int i = 0; i < 4; ++i) t[i] = Exp2(t[i] - shift);
      sum[half] += (t[0] + t[1]) + (t[2] + t[3]);
      p[half] = Pack<Matrix>(t[0], t[1]);
      p[half + 2] = Pack<Matrix>(t[2], t[3]);
    }
  }

  __device__ void Output(std::uint32_t tile, const std::uint32_t (&p)[4]) {
    const int lane = threadIdx.x % 32;
    if constexpr (!Traits::kFp8) {
      const int row = lane & 15;
      const std::uint32_t base = tile + row * Traits::kRowBytes;
      const std::uint32_t first = (lane >> 4) ^ (row & 7);
#pragma unroll
      for (int i = 0; i < Traits::kColumns; i += 2) {
        std::uint32_t v[4];
        LoadMatrix4Transposed(v, base + ((first ^ i) << 4));
        MatrixMultiplyAdd<Matrix>(o[i], p, v[0], v[1]);
        MatrixMultiplyAdd<Matrix>(o[i + 1], p, v[2], v[3]);
      }
    } else {
      // Keys 2j, 2j + 1, 2j + 8, 2j + 9; of each the D / 8 dimensions of lane / 4.
      constexpr int kWords = Traits::kColumns / 4;
      const int j = lane % 4, r = lane / 4;
      std::uint32_t v[4][kWords];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 2 * j + (i & 1) + (i & 2) * 4;
        const std::uint32_t base = tile + row * Traits::kRowBytes;
        if constexpr (kWords == 4) {
          LoadShared16(v[i], base + Traits::Swizzle(row, r) * 16);
        } else {
          LoadShared8(v[i], base + Traits::Swizzle(row, r / 2) * 16 + r % 2 * 8);
        }
      }
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        // Bytes of two keys side by side.
        const std::uint32_t low[2] = {__byte_perm(v[0][word], v[1][word], 0x5140),
                                      __byte_perm(v[0][word], v[1][word], 0x7362)};
        const std::uint32_t high[2] = {__byte_perm(v[2][word], v[3][word], 0x5140),
                                       __byte_perm(v[2][word], v[3][word], 0x7362)};
#pragma unroll
        for (int byte = 0; byte < 4; ++byte) {
          const int shift = 16 * (byte & 1);
          MatrixMultiplyAdd<Matrix>(o[4 * word + byte], p, HalfPairOfE4m3(low[byte / 2] >> shift & 0xFFFF),
                                    HalfPairOfE4m3(high[byte / 2] >> shift & 0xFFFF));
        }
      }
    }
  }
};

// Where the results of a piece go, and the merge of parts.
template <typename Traits, int D>
class PieceEnd {
 public:
  __device__ PieceEnd(const DecodeParams& p, typename Traits::Shared& shared) : p_(p), shared_(shared) {}

  __device__ void Finish(WarpState<Traits, D>& state, const PieceWalk& walk, const PieceStart& start,
                         const PieceStart& end) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, j = lane % 4;
    Locate(walk, start, end);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      state.sum[half] += __shfl_xor_sync(~0u, state.sum[half], 1);
      state.sum[half] += __shfl_xor_sync(~0u, state.sum[half], 2);
    }
    const float value_scale =
        Traits::kFp8 && p_.v_scale != nullptr ? __ldg(p_.v_scale + kv_head_ * p_.scale_stride) : 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (8 * half >= rows_) break;
      const int row = lane / 4 + 8 * half;
      __syncthreads();  // what was there before has been read
#pragma unroll
      for (int i = 0; i < Traits::kColumns; ++i) {
        shared_.merge[warp][i][lane] = make_float2(state.o[i][2 * half], state.o[i][2 * half + 1]);
      }
      if (j == 0) {
        shared_.max[warp][row] = state.max[half];
        shared_.sum[warp][row] = state.sum[half];
      }
      __syncthreads();
      if (row < rows_) MergeWarps(row, warp, lane, value_scale);
    }
    if (parts_ > 1) Arrive();
  }

 private:
  __device__ void Locate(const PieceWalk& walk, const PieceStart& start, const PieceStart& end) {
    kv_head_ = walk.head / p_.row_tiles;
    const int first = walk.head % p_.row_tiles * kRowTile;
    rows_ = min(kRowTile, p_.group - first);
    first_head_ = kv_head_ * p_.group + first;
    token_ = p_.q_start != nullptr ? p_.q_start[walk.request] : walk.request;
    if (p_.fixed_split) {
      parts_ = walk.units;
      part_ = walk.unit;
      first_slot_ = UnitCount::Units(p_.workspace.units[walk.request]) + walk.head * walk.units;
      step_ = 0;
    } else {
      // Slot c: the part with which block c begins; slot grid + c: the first part of an item, with which c
      // ends.
      const int block = blockIdx.x;
      int first_block = block, last_block = block;
      if (walk.unit > 0) {
        first_block = start.first_block;
        last_block = start.last_block;
      } else if (walk.unit_end < walk.units) {
        last_block = end.last_block;
      }
      parts_ = last_block - first_block + 1;
      part_ = block - first_block;
      first_slot_ = p_.grid + first_block;
      step_ = -p_.grid;
    }
  }
  __device__ std::int64_t Slot(int part) const { return first_slot_ + part + (part > 0 ? step_ : 0); }

  __device__ void MergeWarps(int row, int warp, int lane, float value_scale) {
    float greatest = -INFINITY, sum = 0, weight[kDecodeWarps];
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) greatest = fmaxf(greatest, shared_.max[w][row]);
    const float shift = greatest == -INFINITY ? 0 : greatest;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      weight[w] = Exp2(shared_.max[w][row] - shift);
      sum += weight[w] * shared_.sum[w][row];
    }
    const float inverse = sum > 0 ? value_scale / sum : 0;
    const float lse = sum > 0 ? greatest + Log2(sum) : -INFINITY;
    const int j = lane % 4;
    float factor = inverse;
    if (parts_ == 1) {
      factor *= FinishRow(row, lse, warp == 0 && j == 0);
    } else if (warp == 0 && j == 0) {
      p_.workspace.lse[Slot(part_) * kRowTile + row] = lse;
    }
#pragma unroll
    for (int i = 0; i < Traits::kColumns / kDecodeWarps; ++i) {
      const int tile = warp * (Traits::kColumns / kDecodeWarps) + i;
      float2 value = make_float2(0, 0);
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w) {
        const float2 part = shared_.merge[w][tile][lane];
        value.x += weight[w] * part.x;
        value.y += weight[w] * part.y;
      }
      const int d0 = Traits::Dimension(tile, j, 0), d1 = Traits::Dimension(tile, j, 1);
      if (parts_ == 1) {
        Store(row, d0, value.x * factor);
        Store(row, d1, value.y * factor);
      } else {
        float* partial = p_.workspace.partials + (Slot(part_) * kRowTile + row) * D;
        partial[d0] = value.x * factor;
        partial[d1] = value.y * factor;
      }
    }
  }

  // Adds the sink, writes the row's LSE if asked to, and returns what the row's values are to be multiplied
  // by.
  __device__ float FinishRow(int row, float lse, bool write) const {
    const float factor = AddSink(p_, first_head_ + row, lse);
    if (write && p_.lse != nullptr) {
      p_.lse[token_ * p_.lse_strides.token + (first_head_ + row) * p_.lse_strides.head] = lse * kLn2;
    }
    return factor;
  }

  __device__ void Store(int row, int dimension, float value) const {
    StoreOutput(p_, token_ * p_.o_strides.token + (first_head_ + row) * p_.o_strides.head + dimension, value);
  }

  // Counts this part; the last of its group merges the group, and the last group's merger merges the groups.
  __device__ void Arrive() {
    const int group = MergeGroup(parts_), groups = CeilDivide(parts_, group);
    const int mine = part_ / group, first = mine * group;
    if (!Last(p_.workspace.counters + Slot(first), min(group, parts_ - first))) return;
    MergeParts(first, 1, min(group, parts_ - first), groups == 1);
    if (groups == 1) return;
    if (Last(p_.workspace.counters + p_.workspace.slots + Slot(0), groups))
      MergeParts(0, group, groups, true);
  }

  __device__ bool Last(unsigned* counter, int expected) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      const bool last = atomicAdd(counter, 1) == expected - 1;
      if (last) *counter = 0;  // ready for the next launch
      shared_.arrived_last = last;
    }
    __syncthreads();
    const bool last = shared_.arrived_last;
    __threadfence();
    return last;
  }

  // Parts first, first + step, ... of the item, to the output or to the first of them.
  __device__ void MergeParts(int first, int step, int count, bool to_output) {
    constexpr int kQuads = D / 4;
    for (int i = threadIdx.x; i < rows_ * kQuads; i += kDecodeThreads) {
      const int row = i / kQuads, quad = i % kQuads;
      float greatest = -INFINITY, sum = 0;
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 8
      for (int n = 0; n < count; ++n) {
        const std::int64_t at = Slot(first + n * step) * kRowTile + row;
        const float lse = LoadUncached(p_.workspace.lse + at);
        const float4 value =
            LoadUncached(reinterpret_cast<const float4*>(p_.workspace.partials + at * D) + quad);
        const float updated = fmaxf(greatest, lse);
        const float shift = updated == -INFINITY ? 0 : updated;
        const float old = Exp2(greatest - shift), weight = Exp2(lse - shift);
        sum = sum * old + weight;
        total.x = total.x * old + weight * value.x;
        total.y = total.y * old + weight * value.y;
        total.z = total.z * old + weight * value.z;
        total.w = total.w * old + weight * value.w;
        greatest = updated;
      }
      float factor = sum > 0 ? 1 / sum : 0;
      const float lse = sum > 0 ? greatest + Log2(sum) : -INFINITY;
      if (to_output) {
        factor *= FinishRow(row, lse, quad == 0);
        Store(row, 4 * quad, total.x * factor);
        Store(row, 4 * quad + 1, total.y * factor);
        Store(row, 4 * quad + 2, total.z * factor);
        Store(row, 4 * quad + 3, total.w * factor);
      } else {
        const std::int64_t at = Slot(first) * kRowTile + row;
        total.x *= factor, total.y *= factor, total.z *= factor, total.w *= factor;
        reinterpret_cast<float4*>(p_.workspace.partials + at * D)[quad] = total;
        if (quad == 0) shared_.sum[0][row] = lse;
      }
    }
    if (!to_output) {
      __syncthreads();  // all have read the old one
      if (threadIdx.x < rows_)
        p_.workspace.lse[Slot(first) * kRowTile + threadIdx.x] = shared_.sum[0][threadIdx.x];
    }
  }

  const DecodeParams& p_;
  typename Traits::Shared& shared_;
  int kv_head_, rows_, first_head_, parts_, part_;
  std::int64_t token_, first_slot_, step_;
};

template <typename Cache, int D, int kStages>
__global__ void __launch_bounds__(kDecodeThreads, 2) DecodeKernel(const __grid_constant__ DecodeParams p) {
  using Traits = DecodeTraits<Cache, D, kStages>;
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<typename Traits::Shared*>(memory);
  const int warp = threadIdx.x / 32;

  // Asked for together, for latency; the header is needed only at the end.
  const PieceStart start = p.workspace.starts[blockIdx.x], end = p.workspace.starts[blockIdx.x + 1];
  const int empty = p.workspace.header->empty_rows, tokens = p.workspace.header->tokens;
  if (start.request < p.batch) {
    TileLoader<Traits> loader(p, shared, start, end);
#pragma unroll 1
    for (int stage = 0; stage < kStages - 1; ++stage) {
      loader.Issue(stage);
      CopyAsyncCommit();
    }
    int fill = kStages - 1, use = 0;
    const std::uint32_t ring = SharedAddress(shared.ring[warp][0]);
    WarpState<Traits, D> state;
    PieceEnd<Traits, D> piece_end(p, shared);
    PieceWalk walk;
    walk.Begin(p, start, end);
    do {
      const int kv_head = walk.head / p.row_tiles, first = walk.head % p.row_tiles * kRowTile;
      const int rows = min(kRowTile, p.group - first);
      const float head_scale =
          p.scale_log2 *
          (Traits::kFp8 && p.k_scale != nullptr ? __ldg(p.k_scale + kv_head * p.scale_stride) : 1);
      state.Begin();
      state.LoadQuery(p, p.q_start != nullptr ? p.q_start[walk.request] : walk.request,
                      kv_head * p.group + first, rows, head_scale);
      const int tiles = walk.TilesOfWarp(p, warp);
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        loader.Issue(fill);
        CopyAsyncCommit();
        CopyAsyncWait<kStages - 1>();
        __syncwarp();
        state.Add(ring + use * Traits::kStageBytes, shared.live[warp][use], rows > 8);
        __syncwarp();  // the stage may be filled again
        fill = use;
        use = use + 1 == kStages ? 0 : use + 1;
      }
      piece_end.Finish(state, walk, start, end);
    } while (walk.Next(p, end));
    CopyAsyncWait<0>();
  }
  ZeroRows(p, empty, tokens);
}

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_CUH_
