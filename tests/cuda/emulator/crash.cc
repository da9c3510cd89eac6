#include "tests/cuda/emulator/crash.h"

#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/cuda/emulator/report.h"
#include "tests/cuda/emulator/sanitizer.h"
#include "tests/cuda/emulator/schedule.h"

#if LLMD_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

namespace llmd::emulator {
namespace {

void SayWhere(const char* what) {
  const Thread* thread = Current();
  if (thread != nullptr) std::fprintf(stderr, "%s in %s\n", what, WhereIs(*thread).c_str());
}

#if !LLMD_ADDRESS_SANITIZER
// The process is lost: what a handler may not call does no more harm.
void OnSignal(int number) {
  SayWhere("a crash");
  signal(number, SIG_DFL);
  raise(number);
}
#endif

}  // namespace

void ReportCrashes() {
#if LLMD_ADDRESS_SANITIZER
  __sanitizer_set_death_callback([] { SayWhere("it was"); });
#else
  // On a stack of its own, for a fiber's may be full.
  static char stack[64 * 1024];
  stack_t alternate = {};
  alternate.ss_sp = stack;
  alternate.ss_size = sizeof(stack);
  sigaltstack(&alternate, nullptr);
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_ONSTACK;
  for (int number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) sigaction(number, &action, nullptr);
#endif
}

void ReportHang() {
  SayWhere("no thread has moved for long: an endless loop");
  std::abort();
}

}  // namespace llmd::emulator
