#include "tests/cuda/emulator/fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "tests/cuda/emulator/sanitizer.h"

#if LLMD_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Registers that a called function must keep go on the stack, and the stack pointer is exchanged. The kernel
// is not asked, which swapcontext does for the signal mask.
asm(R"(
  .text
  .type llmd_emulator_switch, @function
llmd_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size llmd_emulator_switch, . - llmd_emulator_switch
)");
extern "C" void llmd_emulator_switch(void** from, void* to);
#endif

namespace llmd::emulator {
namespace {

#if LLMD_ADDRESS_SANITIZER
constexpr std::size_t kStackBytes = 256 * 1024;
#else
constexpr std::size_t kStackBytes = 64 * 1024;
#endif

// Below it a page that faults: a kernel with too large a frame ends here and not in its neighbour's stack.
char* NewStack() {
  const std::size_t guard = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, kStackBytes + guard, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) {
    std::perror("the emulator's stacks");
    std::abort();
  }
  return static_cast<char*>(memory) + guard;
}

}  // namespace

Fiber::~Fiber() {
  if (stack_ == nullptr || bytes_ != kStackBytes) return;
  const std::size_t guard = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  munmap(stack_ - guard, kStackBytes + guard);
}

void Fiber::Adopt() {
  if (stack_ != nullptr) return;
  pthread_attr_t attributes;
  void* stack = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &bytes_);
  pthread_attr_destroy(&attributes);
  stack_ = static_cast<char*>(stack);
}

void Fiber::Start(void (*entry)()) {
  if (stack_ == nullptr) {
    stack_ = NewStack();
    bytes_ = kStackBytes;
  }
  sanitizer_ = nullptr;
#if defined(__x86_64__)
  // As if `entry` had been called: six registers, its address, and a return address that nobody uses.
  auto* words = reinterpret_cast<std::uintptr_t*>(stack_ + bytes_) - 8;
  for (int i = 0; i < 8; ++i) words[i] = 0;
  words[6] = reinterpret_cast<std::uintptr_t>(entry);
  top_ = words;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::Abandon() {
#if LLMD_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(stack_, bytes_);
#endif
}

void Fiber::Switch(Fiber& from, Fiber& to, [[maybe_unused]] bool last) {
#if LLMD_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(last ? nullptr : &from.sanitizer_, to.stack_, to.bytes_);
#endif
#if defined(__x86_64__)
  llmd_emulator_switch(&from.top_, to.top_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
#if LLMD_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(from.sanitizer_, nullptr, nullptr);
#endif
}

void Fiber::Entered() {
#if LLMD_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace llmd::emulator
