// The emulator sees what it is there to see: every fault of faults.h, in its words or as wrong numbers under
// some order of threads; and nothing in the same kernels without the fault.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

#include "tests/cuda/emulator/faults.h"
#include "tests/cuda/emulator/sanitizer.h"
#include "tests/cuda/emulator/schedule.h"
#include "tests/cuda/emulator/streams.h"

namespace llmd::emulator {
namespace {

constexpr int kSeeds = 20;

// Ints on the device, which the host reads and writes as it likes.
class Ints {
 public:
  explicit Ints(int count, int value = 0) : count_(count) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, count * sizeof(int)), cudaSuccess);
    data_ = static_cast<int*>(memory);
    std::fill_n(data_, count, value);
  }
  ~Ints() { cudaFree(data_); }
  Ints(const Ints&) = delete;
  Ints& operator=(const Ints&) = delete;

  int* get() { return data_; }
  unsigned* counter() { return reinterpret_cast<unsigned*>(data_); }
  std::vector<int> values() const { return {data_, data_ + count_}; }

 private:
  int count_;
  int* data_;
};

std::vector<int> Numbers(int count, int first = 0) {
  std::vector<int> numbers(count);
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}

class EmulatorTest : public ::testing::Test {
 protected:
  void SetUp() override { seed_ = Seed(); }
  void TearDown() override {
    cudaDeviceReset();
    SetSeed(seed_);
  }

  // Under how many orders of threads `is_right` does not hold after `launch`.
  template <typename LaunchFunction, typename Check>
  int Wrong(LaunchFunction&& launch, Check&& is_right) {
    int wrong = 0;
    for (int seed = 1; seed <= kSeeds; ++seed) {
      SetSeed(seed);
      EXPECT_EQ(launch(), LLMD_OK);
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << LastReport();
      wrong += !is_right();
    }
    return wrong;
  }

  // The launch must fail, with all of `words` in the report.
  void ExpectReport(llmd_code launched, cudaError_t error, const std::vector<std::string>& words) {
    EXPECT_EQ(launched, LLMD_OK);
    EXPECT_EQ(cudaDeviceSynchronize(), error);
    for (const std::string& word : words) {
      EXPECT_NE(LastReport().find(word), std::string::npos) << "no \"" << word << "\" in:\n" << LastReport();
    }
    EXPECT_EQ(cudaDeviceSynchronize(), error) << "an error stays";
    cudaDeviceReset();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  void ExpectFine(llmd_code launched) {
    EXPECT_EQ(launched, LLMD_OK);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << LastReport();
  }

 private:
  std::uint64_t seed_ = 0;
};

TEST_F(EmulatorTest, MissingBarrierGivesWrongNumbers) {
  const auto wrong = [&](int count, auto&& reverse, Code code) {
    Ints in(count), out(count);
    std::iota(in.get(), in.get() + count, 0);
    std::vector<int> expected = in.values();
    std::reverse(expected.begin(), expected.end());
    return Wrong([&] { return reverse(code, in.get(), out.get()); },
                 [&] { return out.values() == expected; });
  };
  EXPECT_EQ(wrong(kBlockThreads, ReverseInBlock, Code::kRight), 0);
  EXPECT_EQ(wrong(kBlockThreads, ReverseInBlock, Code::kWrong), kSeeds);
  EXPECT_EQ(wrong(32, ReverseInWarp, Code::kRight), 0);
  EXPECT_EQ(wrong(32, ReverseInWarp, Code::kWrong), kSeeds);
}

TEST_F(EmulatorTest, AsynchronousCopiesWantToBeWaitedFor) {
  const auto wrong = [&](CopyFault fault) {
    Ints in(4 * 32 * 4, 1), out(32);
    return Wrong([&] { return SumOfTiles(fault, in.get(), out.get()); },
                 [&] { return out.values() == std::vector<int>(32, 16); });
  };
  EXPECT_EQ(wrong(CopyFault::kNone), 0);
  EXPECT_EQ(wrong(CopyFault::kWait), kSeeds);
  EXPECT_EQ(wrong(CopyFault::kRefill), kSeeds);
}

TEST_F(EmulatorTest, LanesThatDisagreeAreReported) {
  Ints out(32);
  ExpectFine(Shuffle(Code::kRight, out.get()));
  EXPECT_EQ(out.values()[6], 7);
  ExpectReport(Shuffle(Code::kWrong, out.get()), cudaErrorLaunchFailure,
               {"kernel shuffle", "block (0, 0, 0)", "thread (",
                "faults.cu:", "__shfl_xor_sync, while lanes of the same mask are in __shfl_xor_sync at "});
}

TEST_F(EmulatorTest, LaneThatReturnsBeforeACollectiveIsReported) {
  Ints out(32);
  ExpectFine(Vote(Code::kRight, out.get()));
  EXPECT_EQ(out.values(), std::vector<int>(32, 1));
  // Lanes that come after the return do not miss it, as on a device: only some orders show the fault.
  int reported = 0;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    SetSeed(seed);
    EXPECT_EQ(Vote(Code::kWrong, out.get()), LLMD_OK);
    if (cudaDeviceSynchronize() == cudaSuccess) continue;
    ++reported;
    EXPECT_NE(LastReport().find("thread (7, 0, 0)"), std::string::npos) << LastReport();
    cudaDeviceReset();
  }
  EXPECT_GT(reported, kSeeds / 2);
}

TEST_F(EmulatorTest, DeadlockIsReported) {
  Ints out(kBlockThreads);
  ExpectFine(PartBarrier(Code::kRight, out.get()));
  ExpectReport(PartBarrier(Code::kWrong, out.get()), cudaErrorLaunchTimeout,
               {"deadlock", "kernel part, block (0, 0, 0)", "threads 0-31 wait for bar.sync, barrier 1, at ",
                "faults.cu:", "threads 32-127 returned", "LLMD_EMULATOR_SEED="});
}

TEST_F(EmulatorTest, BarriersOfDifferentSizesAreReported) {
  Ints out(64);
  ExpectFine(BarrierSizes(Code::kRight, out.get()));
  ExpectReport(BarrierSizes(Code::kWrong, out.get()), cudaErrorLaunchFailure,
               {"kernel sizes", "bar.sync of "});
}

TEST_F(EmulatorTest, SharedMemoryHasItsLaunchsSize) {
  Ints out(32);
  ExpectFine(ReadMatrices(1024, 512, out.get()));
  EXPECT_EQ(out.values(), std::vector<int>(32, -1)) << "shared memory begins as NaN";
  ExpectReport(ReadMatrices(1024, 528, out.get()), cudaErrorLaunchFailure,
               {"kernel matrices", "past the block's shared memory"});
  ExpectReport(ReadMatrices(1024, 8, out.get()), cudaErrorLaunchFailure, {"not aligned"});
  EXPECT_EQ(ReadMatrices(64 * 1024, 0, out.get()), LLMD_DEVICE_ERROR) << "more than was allowed";
}

TEST_F(EmulatorTest, BlocksRunTogetherAsFarAsTheDeviceHasRoom) {
  const int room = kMultiprocessors * static_cast<int>(Multiprocessor::kThreads) / 512;
  Ints counter(1), out(room + 1);
  ExpectFine(MeetOfBlocks(room, counter.counter(), out.get()));
  EXPECT_EQ(out.values()[room - 1], 1);
  *counter.get() = 0;
  ExpectReport(MeetOfBlocks(room + 1, counter.counter(), out.get()), cudaErrorLaunchTimeout,
               {"deadlock", "kernel meet", "polls"});
}

TEST_F(EmulatorTest, LastBlockMustSeeTheOthersParts) {
  const auto wrong = [&](Code code) {
    const int count = 8 * kBlockThreads;
    Ints parts(count), counter(1), out(1);
    return Wrong(
        [&] {
          std::fill_n(parts.get(), count, 0);
          *counter.get() = 0;
          return SumByLastBlock(code, parts.get(), counter.counter(), out.get());
        },
        [&] { return *out.get() == count * (count - 1) / 2; });
  };
  EXPECT_EQ(wrong(Code::kRight), 0);
  EXPECT_GT(wrong(Code::kWrong), 0);
}

TEST_F(EmulatorTest, BlocksHaveTheirOwnStaticSharedMemory) {
  Ints counter(1), first(40), out(40);
  EXPECT_EQ(Wrong([&] { return BlocksOwnShared(counter.counter(), first.get(), out.get()); },
                  [&] { return out.values() == Numbers(40) && first.values() == std::vector<int>(40, -1); }),
            0);
}

TEST_F(EmulatorTest, EarlyStartWantsToBeWaitedFor) {
  const auto wrong = [&](Code code) {
    Ints middle(256), out(256);
    return Wrong(
        [&] {
          std::fill_n(middle.get(), 256, -1);
          return EarlyStart(code, middle.get(), out.get());
        },
        [&] {
          const std::vector<int> values = out.values();
          return std::equal(values.begin(), values.begin() + 64, Numbers(64, 1).begin()) && values[255] == 64;
        });
  };
  EXPECT_EQ(wrong(Code::kRight), 0);
  EXPECT_GT(wrong(Code::kWrong), 0);
}

TEST_F(EmulatorTest, NothingRunsBeforeTheHostWaits) {
  Ints out(4);
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  ASSERT_EQ(cudaMemsetAsync(out.get(), 1, sizeof(int), stream), cudaSuccess);
  EXPECT_EQ(out.values()[0], 0);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(out.values()[0], 0x01010101);
  cudaStreamDestroy(stream);
}

TEST_F(EmulatorTest, EventsOrderStreams) {
  Ints out(1);
  cudaStream_t first = nullptr, second = nullptr;
  cudaEvent_t event = nullptr;
  cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  cudaEventCreate(&event);
  cudaMemsetAsync(out.get(), 1, sizeof(int), first);
  cudaEventRecord(event, first);
  cudaStreamWaitEvent(second, event, 0);
  cudaMemsetAsync(out.get(), 2, 1, second);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  EXPECT_EQ(out.values()[0], 0x01010102);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  cudaEventDestroy(event);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
}

TEST_F(EmulatorTest, OrderComesFromTheSeed) {
  const auto tickets = [&](int seed) {
    Ints counter(1), out(32);
    SetSeed(seed);
    ExpectFine(TakeTickets(counter.counter(), out.get()));
    return out.values();
  };
  EXPECT_EQ(tickets(5), tickets(5));
  EXPECT_NE(tickets(5), tickets(6));
  EXPECT_NE(tickets(5), Numbers(32));
}

// Of what ends the process, the kernel and the thread are named. A new process runs the statement.
class EmulatorDeathTest : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(EmulatorDeathTest, EndlessLoop) {
  EXPECT_DEATH(
      {
        setenv("LLMD_EMULATOR_PATIENCE", "1", 1);
        Ints flag(1);
        if (EndlessLoop(flag.get()) == LLMD_OK) cudaDeviceSynchronize();
      },
      "endless loop in kernel loop, block \\(0, 0, 0\\), thread");
}

TEST_F(EmulatorDeathTest, Crash) {
  EXPECT_DEATH(
      {
        if (Fill(1, nullptr) == LLMD_OK) cudaDeviceSynchronize();
      },
      "in kernel fill, block \\(0, 0, 0\\), thread \\(0, 0, 0\\)");
}

#if LLMD_ADDRESS_SANITIZER
TEST_F(EmulatorDeathTest, AccessPastABuffer) {
  EXPECT_DEATH(
      {
        Ints out(64);
        if (Fill(65, out.get()) == LLMD_OK) cudaDeviceSynchronize();
      },
      "heap-buffer-overflow(.|\n)*in kernel fill, block \\(0, 0, 0\\), thread \\(0, 0, 0\\)");
}
#endif

}  // namespace
}  // namespace llmd::emulator
