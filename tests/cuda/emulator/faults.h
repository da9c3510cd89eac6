// Small kernels, each right or with one fault, to show that the emulator sees the fault. Every function
// enqueues one launch (or a few) on the default stream.
#ifndef LLMD_TESTS_CUDA_EMULATOR_FAULTS_H_
#define LLMD_TESTS_CUDA_EMULATOR_FAULTS_H_

#include "llmd/attention/types.h"

namespace llmd::emulator {

enum class Code { kRight, kWrong };

inline constexpr int kBlockThreads = 128;

// out[i] = in[127 - i], through shared memory; wrong: without the barrier.
llmd_code ReverseInBlock(Code code, const int* in, int* out);
// The same for 32 elements, with __syncwarp.
llmd_code ReverseInWarp(Code code, const int* in, int* out);
// out[i] = sum of 4 tiles of 32 elements of 16 bytes, copied asynchronously. kRefill: a stage is filled again
// before the whole warp has read it.
enum class CopyFault { kNone, kWait, kRefill };
llmd_code SumOfTiles(CopyFault fault, const int* in, int* out);
// Half of the lanes shuffle in another place.
llmd_code Shuffle(Code code, int* out);
// A lane returns before the others vote.
llmd_code Vote(Code code, int* out);
// A barrier of 64 threads; wrong: 32 come.
llmd_code PartBarrier(Code code, int* out);
// A barrier of 64 threads; wrong: some come for one of 32.
llmd_code BarrierSizes(Code code, int* out);
// Matrices in `bytes` of shared memory, of which a warp reads 512 from `offset` on.
llmd_code ReadMatrices(int bytes, int offset, int* out);
// Every block counts itself and waits till `blocks` have come.
llmd_code MeetOfBlocks(int blocks, unsigned* counter, int* out);
// *out = sum of a number a thread of 8 blocks; the last block adds. Wrong: a thread counts its block before
// all of the block have written.
llmd_code SumByLastBlock(Code code, int* parts, unsigned* counter, int* out);
// out[b] = b of 40 blocks, kept in a __shared__ variable while other blocks run. first[b]: what was in it
// before.
llmd_code BlocksOwnShared(unsigned* counter, int* first, int* out);
// One grid fills `middle`, the next, started early, adds one to it; wrong: without waiting.
llmd_code EarlyStart(Code code, int* middle, int* out);
// out[0 .. 31] = the order in which lanes took a ticket.
llmd_code TakeTickets(unsigned* counter, int* out);
// Waits for *flag without a call that lets others run.
llmd_code EndlessLoop(const int* flag);
// Writes out[0 .. count - 1].
llmd_code Fill(int count, int* out);

}  // namespace llmd::emulator

#endif  // LLMD_TESTS_CUDA_EMULATOR_FAULTS_H_
