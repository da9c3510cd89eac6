// Links an installed libllmd and calls something of every component it names.
#include <cstdio>
#include <string>

#include "llmd/base/strings.h"

int main() {
  const std::string hex = llmd::HexExcerpt(llmd::AsBytes("kv"));
  std::printf("%s\n", hex.c_str());
  return hex == "6b76" ? 0 : 1;
}
