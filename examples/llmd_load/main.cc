// llmd_load: see README.md.
#include <iostream>

#include "examples/llmd_load/cli.h"

int main(int argc, char** argv) { return llmd::load::RunCommandLine(argc, argv, std::cout, std::cerr); }
