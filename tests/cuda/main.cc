// Without a GPU nothing can be shown: says so loudly, and exits with the code that CTest counts as skipped.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "tests/cuda/support.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::string why;
  if (!GTEST_FLAG_GET(list_tests) && !llmd::testing::HasGpu(&why)) {
    std::fprintf(stderr, "SKIPPED, NOTHING WAS TESTED: the kernels' tests need a GPU: %s\n", why.c_str());
    return 77;
  }
  return RUN_ALL_TESTS();
}
