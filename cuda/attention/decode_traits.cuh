// Sizes of the decode kernel, and the way of a block through its share of the plan.
#ifndef LLMD_CUDA_ATTENTION_DECODE_TRAITS_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_TRAITS_CUH_

#include <type_traits>

#include "cuda/attention/decode_params.h"
#include "cuda/attention/ptx.cuh"

namespace llmd::cuda {

inline constexpr int kDecodeThreads = 32 * kDecodeWarps;

// A warp's ring: three stages, two before sm_90, where a block has 163 KB of shared memory.
constexpr int RingBytes(int architecture) { return (architecture >= 90 ? 24 : 16) * 1024; }
#ifdef __CUDA_ARCH__
inline constexpr int kRingBytes = RingBytes(__CUDA_ARCH__ / 10);
#else
inline constexpr int kRingBytes = RingBytes(90);
#endif

// A part of a cut item in the workspace.
struct PartSlot {
  std::uint32_t* lse;  // [kRowTile]
  std::uint32_t* o;    // [kRowTile][D]
};

// Where the result of a team's piece goes.
struct PieceTarget {
  int rows, first_head;  // of the output
  std::int64_t o, lse;   // of its first row, in elements
  float value_scale;
  int part, count;       // of the item's parts; 0 of 1 where it is not cut
  PartSlot own;          // this part's
  PartSlot first, rest;  // the first part's, and the second's: further ones follow it
  PartSlot groups;       // of parts, the first one's
};

// Compile-time shape of a kernel. Cache is __nv_bfloat16, __half or __nv_fp8_e4m3. A block's warps are
// kTeams teams that walk the same keys of neighbouring heads.
template <typename Cache, int D, int kTeams_>
struct DecodeTraits {
  static constexpr int kTeams = kTeams_;
  static constexpr int kTeam = kDecodeWarps / kTeams;                    // warps
  using Matrix = std::conditional_t<sizeof(Cache) == 1, __half, Cache>;  // what is multiplied
  static constexpr bool kFp8 = sizeof(Cache) == 1;
  static constexpr int kRowBytes = D * sizeof(Cache);
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kGroups = kRowBytes <= 128 ? 2 : 1;  // of 16 keys in a tile: more for short rows
  static constexpr int kTile = kGroups * kGroupKeys;        // keys
  static constexpr int kStep = kTile * kTeam;               // from a warp's tile to its next
  static constexpr int kTileBytes = kTile * kRowBytes;      // of K; V follows
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kStages = kRingBytes / kStageBytes;
  static constexpr int kColumns = D / 8;  // 8-wide column tiles of the output
  static constexpr std::uint32_t kAllLive = kTile == 32 ? ~0u : (1u << kTile) - 1;

  struct Shared {
    alignas(128) char ring[kDecodeWarps][kStages][kStageBytes];
    alignas(16) float merge[kDecodeWarps][8 * D];  // eight rows at a time, see Merged()
    float2 max_and_sum[kDecodeWarps][8];
    std::uint32_t live[kDecodeWarps][kStages];  // a bit a key: visible
    PieceTarget target[kTeams];
  };

  __device__ static int TeamIndex() { return threadIdx.x / (32 * kTeam); }
  __device__ static int Warp() { return threadIdx.x / 32 % kTeam; }      // in the team
  __device__ static int Thread() { return threadIdx.x % (32 * kTeam); }  // in the team
  __device__ static void TeamSync() {
    if constexpr (kTeam == 1)
      __syncwarp();
    else
      SyncThreads(1 + TeamIndex(), 32 * kTeam);
  }

  // Rows are stored so that the lanes of a matrix load meet in no bank.
  __device__ static int Swizzle(int row, int chunk) {
    return kChunks >= 8 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3);
  }
  // Where `merge` has two neighbouring elements of a row of eight, so that neither lanes that store their
  // columns nor lanes that read four elements each meet in a bank.
  __device__ static int Merged(int row, int pair) { return row * D + 2 * (pair ^ (row % 4 * 4)); }
  // Element e of column tile `tile` in lane 4r + j has place 8 * tile + 2 * j + e in a row; this is its
  // dimension. For fp8 the columns are permuted, so that a lane reads 8 or 16 neighbouring bytes of V.
  __device__ static int Dimension(int place) { return kFp8 ? place % 8 * kColumns + place / 8 : place; }
};

// A block's way through its share. What is integer arithmetic here is time: at the beginning and the end of a
// block nothing else is under way.
struct PieceWalk {
  int request, head, unit, unit_end, units, length;

  __device__ void Begin(const DecodeParams& p, const PieceStart& start, const PieceStart& end) {
    request = start.request;
    head = start.head;
    unit = start.unit;
    length = start.length;
    units = UnitsIn(p);
    SetEnd(p, end);
  }
  __device__ bool Next(const DecodeParams& p, const PieceStart& end) {
    if (unit_end < units) {
      if (AtItemOf(end) && unit_end == end.unit) return false;
      unit = unit_end;
    } else {
      unit = 0;
      if (++head == p.item_heads) {
        head = 0;
        do {
          if (++request >= p.batch || request > end.request) return false;
        } while (p.workspace.units[request + 1] == p.workspace.units[request]);
        length = p.workspace.lengths[request];
        units = UnitsIn(p);
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
  // UnitsOf(), by a multiplication.
  __device__ int UnitsIn(const DecodeParams& p) const {
    return p.unit_keys.Divide(length - FirstKey(length, p.window) + p.unit_keys.divisor() - 1);
  }
  __device__ int FirstVisible(const DecodeParams& p) const {
    return p.window > 0 ? max(0, length - p.window) : 0;
  }
  __device__ int BeginKey(const DecodeParams& p) const {
    return FirstKey(length, p.window) + unit * p.unit_keys.divisor();
  }
  __device__ int EndKey(const DecodeParams& p) const {
    return min(length, FirstKey(length, p.window) + unit_end * p.unit_keys.divisor());
  }
  // Tiles of the piece for the calling warp.
  template <typename Traits>
  __device__ int Tiles(const DecodeParams& p) const {
    const int tiles = CeilDivide(EndKey(p) - BeginKey(p), Traits::kTile);
    return (tiles - Traits::Warp() + Traits::kTeam - 1) / Traits::kTeam;
  }
  // The calling team's KV head and, of a group of more than 16 query heads, the first row.
  template <typename Traits>
  __device__ int KvHead(const DecodeParams& p, int* first_row) const {
    const int number = head * Traits::kTeams + Traits::TeamIndex();
    *first_row = 0;
    if (p.row_tiles == 1) return number;
    *first_row = number % p.row_tiles * kRowTile;
    return number / p.row_tiles;
  }
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_TRAITS_CUH_
