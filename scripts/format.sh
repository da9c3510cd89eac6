#!/usr/bin/env bash
# Usage: format.sh [--check]
# Formats every C++ file that git knows; with --check only names those that are not formatted, and fails.
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -d '' files < <(git ls-files -z --cached --others --exclude-standard '*.h' '*.cc' '*.cu' '*.cuh')
if [ "${1:-}" = --check ]; then
  clang-format-14 --dry-run --Werror "${files[@]}" 2>&1 | sed -n 's/:[0-9]*:[0-9]*: error:.*/: not formatted (make format)/p' | uniq
else
  clang-format-14 -i "${files[@]}"
fi
