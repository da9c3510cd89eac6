// The end of a test that cannot go on. Private to the component.
#ifndef SRC_TESTING_FATAL_H_
#define SRC_TESTING_FATAL_H_

#include <cstdio>
#include <cstdlib>
#include <string>

namespace llmd::testing {

[[noreturn]] inline void Fatal(const std::string& message) {
  std::fprintf(stderr, "llmd::testing: %s\n", message.c_str());
  std::abort();
}

}  // namespace llmd::testing

#endif  // SRC_TESTING_FATAL_H_
