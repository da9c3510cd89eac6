// Keys and values of a decode piece, from pages to shared memory.
#ifndef LLMD_CUDA_ATTENTION_DECODE_LOAD_CUH_
#define LLMD_CUDA_ATTENTION_DECODE_LOAD_CUH_

#include "cuda/attention/decode_traits.cuh"

namespace llmd::cuda {

// Asks for a small page list while the plan is still being read.
__device__ inline void PrefetchPages(const DecodeParams& p) {
  constexpr int kMostIds = 1 << 16, kIdsPerLine = 32;
  const llmd_page_list& list = p.pages;
  const std::int64_t ids =
      list.indptr != nullptr ? list.max_pages : (p.batch - 1) * list.row_stride + list.max_pages;
  const int first = (blockIdx.x * kDecodeThreads + threadIdx.x) * kIdsPerLine;
  if (ids <= kMostIds && first < ids) PrefetchL2(list.pages + first);
}

// Fills a warp's ring, ahead of the computation. A tile is one or two groups of 16 keys, each within a page;
// where pages are no multiple of 16, every key is looked up.
template <typename Traits>
class TileLoader {
 public:
  __device__ TileLoader(const DecodeParams& p, typename Traits::Shared& shared, const PieceStart& start,
                        const PieceStart& end)
      : p_(p), end_(end), lane_(threadIdx.x % 32), policy_(EvictFirstPolicy()) {
    const int row = lane_ / Traits::kChunks, chunk = lane_ % Traits::kChunks;
    target_ = SharedAddress(shared.ring[threadIdx.x / 32][0]) + row * Traits::kRowBytes;
    swizzled_ = Traits::Swizzle(row, chunk);
    live_ = shared.live[threadIdx.x / 32];
    walk_.Begin(p, start, end);
    more_ = true;
    BeginPiece();
  }

  // True if the next tile is of this piece and without the newest key, which the kernel before may still be
  // writing.
  __device__ bool NextIsOld() const { return next_ < count_ && Key(next_) + Traits::kTile < walk_.length; }

  // Starts the copy of the next tile, if there is one, into `stage`.
  __device__ void Issue(int stage) {
    while (more_ && next_ == count_) {
      more_ = walk_.Next(p_, end_);
      if (more_) BeginPiece();
    }
    if (!more_) return;
    const int slot = next_ % kTilesHeld;
    if (slot == 0 && next_ > 0) {
      Place(ids_ahead_);
      ids_ahead_ = LoadIds(next_ + kTilesHeld);
    }
    const int key = Key(next_);
    std::uint32_t live = Traits::kAllLive;
    if (key < first_visible_ || key + Traits::kTile > walk_.length) {
      live &= ~((1u << max(first_visible_ - key, 0)) - 1);
      live &= (2u << (min(walk_.length - key, Traits::kTile) - 1)) - 1;
    }
    if (p_.groups_in_pages) {
#pragma unroll
      for (int group = 0; group < Traits::kGroups; ++group) {
        if (bad_ >> (slot * Traits::kGroups + group) & 1) live &= ~(0xFFFFu << (16 * group));
      }
#pragma unroll
      for (int group = 0; group < Traits::kGroups; ++group) {
        CopyGroup(stage, group, live, __shfl_sync(~0u, k_offset_, slot * Traits::kGroups + group),
                  __shfl_sync(~0u, v_offset_, slot * Traits::kGroups + group));
      }
    } else {
      CopyKeys(stage, live, key);
    }
    if (lane_ == 0) live_[stage] = live;
    ++next_;
  }

 private:
  static constexpr int kRowsPerCopy = 32 / Traits::kChunks;
  static constexpr int kCopies = kGroupKeys / kRowsPerCopy;  // of K or V of a group
  static constexpr int kTilesHeld = 32 / Traits::kGroups;    // whose places the lanes hold

  __device__ int Key(int tile) const { return first_key_ + tile * Traits::kStep; }

  __device__ void BeginPiece() {
    count_ = walk_.template Tiles<Traits>(p_);
    next_ = 0;
    first_key_ = walk_.BeginKey(p_) + Traits::Warp() * Traits::kTile;
    first_visible_ = walk_.FirstVisible(p_);
    pages_ = PagesOf(p_.pages, walk_.request);
    int first_row;
    const int kv_head = walk_.template KvHead<Traits>(p_, &first_row), row = lane_ / Traits::kChunks,
              chunk = lane_ % Traits::kChunks;
    k_ = p_.k + kv_head * p_.k_strides.head + chunk * 16;
    v_ = p_.v + kv_head * p_.v_strides.head + chunk * 16;
    if (p_.groups_in_pages) {
      k_ += row * p_.k_strides.token;
      v_ += row * p_.v_strides.token;
      const int ids = LoadIds(0);
      ids_ahead_ = LoadIds(kTilesHeld);
      Place(ids);
    }
  }

  // A lane's group, counted from tile `first`: its first key, or -1 past the piece.
  __device__ int GroupKey(int first) const {
    const int tile = first + lane_ / Traits::kGroups;
    const int key = Key(tile) + lane_ % Traits::kGroups * kGroupKeys;
    return tile < count_ && key < walk_.length ? key : -1;
  }
  __device__ int LoadIds(int first) {
    const int key = GroupKey(first);
    return key < 0 ? 0 : PageId(p_.page_size.Divide(key));
  }
  __device__ int PageId(int index) const {
    const int id = __ldg(pages_ + index);
    if (p_.validate && (id < 0 || id >= p_.num_pages)) {
      ReportDataError(p_.workspace.header, LLMD_BAD_PAGE, walk_.request, index, id);
      return -1;
    }
    return id;
  }
  // From page ids of the tiles from next_ on to their places in the cache.
  __device__ void Place(int id) {
    const int key = max(GroupKey(next_), 0);
    const int offset = key - p_.page_size.Divide(key) * p_.page_size.divisor();
    bad_ = __ballot_sync(~0u, id < 0);
    k_offset_ = id * p_.k_strides.page + offset * p_.k_strides.token;
    v_offset_ = id * p_.v_strides.page + offset * p_.v_strides.token;
  }

  __device__ std::uint32_t Target(int stage,
                                  int row) const {  // of row `row` + the lane's; `row` is a multiple
    return target_ + stage * Traits::kStageBytes + row * Traits::kRowBytes +
           (Traits::Swizzle(row, swizzled_) << 4);
  }

  __device__ void CopyGroup(int stage, int group, std::uint32_t live, std::int64_t k_offset,
                            std::int64_t v_offset) const {
    const char* k = k_ + k_offset;
    const char* v = v_ + v_offset;
    const std::int64_t k_step = kRowsPerCopy * p_.k_strides.token, v_step = kRowsPerCopy * p_.v_strides.token;
    if (live == Traits::kAllLive) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        CopyAsync16(Target(stage, group * kGroupKeys + i * kRowsPerCopy), k, policy_);
        k += k_step;
      }
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        CopyAsync16(Target(stage, group * kGroupKeys + i * kRowsPerCopy) + Traits::kTileBytes, v, policy_);
        v += v_step;
      }
    } else {  // keys that are not live become zeros: 0 * garbage could be NaN
#pragma unroll 1
      for (int i = 0; i < kCopies; ++i) {
        const int row = group * kGroupKeys + i * kRowsPerCopy;
        const bool use = live >> (row + lane_ / Traits::kChunks) & 1;
        CopyAsync16(Target(stage, row), use ? k + i * k_step : p_.k, use, policy_);
        CopyAsync16(Target(stage, row) + Traits::kTileBytes, use ? v + i * v_step : p_.v, use, policy_);
      }
    }
  }

  __device__ void CopyKeys(int stage, std::uint32_t& live, int key) const {
    const int mine = lane_ % Traits::kTile;
    int id = -1, offset = 0;
    if (live >> mine & 1) {
      const int index = p_.page_size.Divide(key + mine);
      offset = key + mine - index * p_.page_size.divisor();
      id = PageId(index);
    }
    live = __ballot_sync(~0u, id >= 0) & Traits::kAllLive;
    const std::int64_t k_mine = id * p_.k_strides.page + offset * p_.k_strides.token;
    const std::int64_t v_mine = id * p_.v_strides.page + offset * p_.v_strides.token;
#pragma unroll 1
    for (int first = 0; first < Traits::kTile; first += kRowsPerCopy) {
      const int row = first + lane_ / Traits::kChunks;
      const std::int64_t k_offset = __shfl_sync(~0u, k_mine, row), v_offset = __shfl_sync(~0u, v_mine, row);
      const bool use = live >> row & 1;
      CopyAsync16(Target(stage, first), use ? k_ + k_offset : p_.k, use, policy_);
      CopyAsync16(Target(stage, first) + Traits::kTileBytes, use ? v_ + v_offset : p_.v, use, policy_);
    }
  }

  const DecodeParams& p_;
  const PieceStart& end_;
  const int lane_;
  const std::uint64_t policy_;
  std::uint32_t target_;  // the lane's row of the ring
  int swizzled_;          // the lane's chunk in it
  std::uint32_t* live_;
  PieceWalk walk_;
  bool more_;
  int count_, next_, first_key_, first_visible_;
  int ids_ahead_;
  std::uint32_t bad_;  // groups that the lanes hold whose page id is bad
  std::int64_t k_offset_, v_offset_;
  const std::int32_t* pages_;
  const char* k_;
  const char* v_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_DECODE_LOAD_CUH_
