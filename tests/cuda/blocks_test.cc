// copy_blocks, gather_blocks and scatter_blocks: bytes are the same as the reference's, in the pools and
// outside.
#include <algorithm>
#include <memory>

#include "tests/cuda/support.h"

namespace llmd::testing {
namespace {

struct BlocksCase {
  int num_bases = 4;
  int64_t pages = 12;
  int64_t block_bytes = 1024;
  int64_t gap = 0;  // bytes between pages
  int num_blocks = 5;
};

class BlocksTest : public DeviceTest {
 protected:
  void MakePools(const BlocksCase& c) {
    pools_.clear();
    host_bases_.clear();
    bases_ = std::make_unique<Buffer>(c.num_bases * sizeof(void*));
    for (int i = 0; i < c.num_bases; ++i) {
      pools_.push_back(std::make_unique<Buffer>(c.pages * (c.block_bytes + c.gap)));
      Buffer& pool = *pools_.back();
      for (size_t j = 0; j < pool.size(); ++j)
        pool.host<unsigned char>()[j] = static_cast<unsigned char>(random_());
      pool.Upload();
      host_bases_.push_back(pool.at(Side::kHost));
      bases_->host<void*>()[i] = pool.at(Side::kDevice);
    }
    bases_->Upload();
  }

  void* const* Bases(Side side) {
    return side == Side::kHost ? host_bases_.data() : bases_->as<void*>(Side::kDevice);
  }

  llmd_gather_blocks_args Args(const BlocksCase& c, Side side, Buffer& blocks, void* staging) {
    llmd_gather_blocks_args args = {};
    args.bases = Bases(side);
    args.num_bases = c.num_bases;
    args.page_stride_bytes = c.block_bytes + c.gap;
    args.block_bytes = c.block_bytes;
    args.blocks = blocks.as<int64_t>(side);
    args.num_blocks = c.num_blocks;
    args.staging = staging;
    return args;
  }

  void FillBlocks(const BlocksCase& c, Buffer& blocks) {
    const std::vector<int64_t> order = Permutation(c.pages, random_);
    std::copy_n(order.begin(), c.num_blocks, blocks.host<int64_t>());
    blocks.Upload();
  }

  void GatherAndScatter(const BlocksCase& c) {
    SCOPED_TRACE("block_bytes " + std::to_string(c.block_bytes) + " bases " + std::to_string(c.num_bases) +
                 " blocks " + std::to_string(c.num_blocks));
    MakePools(c);
    Buffer blocks(c.num_blocks * sizeof(int64_t)), staging(c.num_blocks * c.num_bases * c.block_bytes);
    FillBlocks(c, blocks);
    RunBoth(&llmd_attention_backend::gather_blocks,
            [&](Side side) { return Args(c, side, blocks, staging.at(side)); });
    ExpectSame(staging, "staging");
    FillBlocks(c, blocks);
    RunBoth(&llmd_attention_backend::scatter_blocks,
            [&](Side side) { return Args(c, side, blocks, staging.at(side)); });
    for (auto& pool : pools_) ExpectSame(*pool, "a pool after scatter");
  }

  void Copy(const BlocksCase& c) {
    MakePools(c);
    Buffer pairs(2 * c.num_blocks * sizeof(int64_t));
    const std::vector<int64_t> order = Permutation(c.pages, random_);
    std::copy_n(order.begin(), 2 * c.num_blocks, pairs.host<int64_t>());
    pairs.Upload();
    RunBoth(&llmd_attention_backend::copy_blocks, [&](Side side) {
      llmd_copy_blocks_args args = {};
      args.bases = Bases(side);
      args.num_bases = c.num_bases;
      args.page_stride_bytes = c.block_bytes + c.gap;
      args.block_bytes = c.block_bytes;
      args.pairs = pairs.as<int64_t>(side);
      args.num_pairs = c.num_blocks;
      return args;
    });
    for (auto& pool : pools_) ExpectSame(*pool, "a pool after copy");
  }

  std::vector<std::unique_ptr<Buffer>> pools_;
  std::vector<void*> host_bases_;
  std::unique_ptr<Buffer> bases_;
};

TEST_F(BlocksTest, SmallGatherAndScatter) { GatherAndScatter({}); }

TEST_F(BlocksTest, SmallCopy) { Copy({}); }

TEST_F(BlocksTest, Sizes) {
  for (int64_t block_bytes : {16, 48, 256, 4096, 16384, 16400, 131072}) {
    for (int num_bases : {1, 2, 7}) {
      for (int num_blocks : {1, 3, 6}) {
        const BlocksCase c = {
            .num_bases = num_bases, .block_bytes = block_bytes, .gap = 32, .num_blocks = num_blocks};
        GatherAndScatter(c);
        Copy(c);
      }
    }
  }
}

TEST_F(BlocksTest, ManyScatteredPieces) {
  GatherAndScatter({.num_bases = 2, .pages = 2100, .block_bytes = 16384, .num_blocks = 2048});
}

TEST_F(BlocksTest, MappedHostStaging) {
  const BlocksCase c = {.num_bases = 4, .pages = 64, .block_bytes = 4096, .num_blocks = 40};
  MakePools(c);
  const size_t bytes = c.num_blocks * c.num_bases * c.block_bytes;
  void* mapped = nullptr;
  LLMD_MUST(cudaHostAlloc(&mapped, bytes, cudaHostAllocMapped));
  void* device_view = nullptr;
  LLMD_MUST(cudaHostGetDevicePointer(&device_view, mapped, 0));
  std::vector<char> expected(bytes);
  Buffer blocks(c.num_blocks * sizeof(int64_t));
  FillBlocks(c, blocks);
  const auto make = [&](Side side) {
    return Args(c, side, blocks, side == Side::kHost ? expected.data() : device_view);
  };
  RunBoth(&llmd_attention_backend::gather_blocks, make);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), static_cast<char*>(mapped)));
  FillBlocks(c, blocks);
  RunBoth(&llmd_attention_backend::scatter_blocks, make);
  for (auto& pool : pools_) ExpectSame(*pool, "a pool after scatter");
  LLMD_MUST(cudaFreeHost(mapped));
}

TEST_F(BlocksTest, GraphFollowsNewBlocks) {
  const BlocksCase c = {};
  MakePools(c);
  Buffer blocks(c.num_blocks * sizeof(int64_t)), staging(c.num_blocks * c.num_bases * c.block_bytes);
  FillBlocks(c, blocks);
  Capture([&] {
    const llmd_gather_blocks_args args = Args(c, Side::kDevice, blocks, staging.at(Side::kDevice));
    ASSERT_EQ(cuda_->gather_blocks(&args, stream_), LLMD_OK) << cuda_->last_error();
  });
  for (int step = 0; step < 5; ++step) {
    FillBlocks(c, blocks);
    Replay();
    const llmd_gather_blocks_args args = Args(c, Side::kHost, blocks, staging.at(Side::kHost));
    ASSERT_EQ(reference_->gather_blocks(&args, nullptr), LLMD_OK);
    ExpectSame(staging, "step " + std::to_string(step));
  }
}

}  // namespace
}  // namespace llmd::testing
