#!/usr/bin/env bash
# Lints the library's sources with clang-tidy (settings in .clang-tidy) and the scripts with shellcheck.
# Needs the configured `dev` build.
set -euo pipefail
cd "$(dirname "$0")/.."
shellcheck .ci/run scripts/*.sh tests/*/*.sh
find src -name '*.cc' -print0 |
  xargs -0 -r -n 1 -P "$(nproc)" clang-tidy-14 -p build/dev --quiet --warnings-as-errors='*' --extra-arg=-Wno-unknown-warning-option 2>&1 |
  sed '/^[0-9]* warnings generated/d'
