// The program without its main(): options, the run, the report, the exit code.
#ifndef LLMD_EXAMPLES_LLMD_LOAD_CLI_H_
#define LLMD_EXAMPLES_LLMD_LOAD_CLI_H_

#include <ostream>

namespace llmd::load {

// 0: all criteria are met, 1: one is missed, 2: wrong usage, or nothing (or not what was asked for) was
// measured.
int RunCommandLine(int argc, const char* const* argv, std::ostream& out, std::ostream& err);

}  // namespace llmd::load

#endif  // LLMD_EXAMPLES_LLMD_LOAD_CLI_H_
