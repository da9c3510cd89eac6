// A stack of its own for each CUDA thread, and the switch from one to another.
#ifndef LLMD_TESTS_CUDA_EMULATOR_FIBER_H_
#define LLMD_TESTS_CUDA_EMULATOR_FIBER_H_

#include <cstddef>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace llmd::emulator {

class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The fiber of the calling OS thread, which has a stack already.
  void Adopt();
  // The next switch here begins `entry`, which must never return.
  void Start(void (*entry)());
  // Forgets what runs on the stack. Its frames are not unwound.
  void Abandon();

  // From the running fiber to another; returns when one switches back. `last`: none will.
  static void Switch(Fiber& from, Fiber& to, bool last = false);
  // The first thing that `entry` calls.
  static void Entered();

 private:
  char* stack_ = nullptr;
  std::size_t bytes_ = 0;
#if defined(__x86_64__)
  void* top_ = nullptr;  // stack pointer while others run
#else
  ucontext_t context_;
#endif
  void* sanitizer_ = nullptr;  // the address sanitizer's view of the stack
};

}  // namespace llmd::emulator

#endif  // LLMD_TESTS_CUDA_EMULATOR_FIBER_H_
