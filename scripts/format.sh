#!/usr/bin/env bash
# Usage: format.sh [--check]
# Formats every C++ file that git knows; with --check only says which are not formatted, and fails.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=(-i)
[ "${1:-}" = --check ] && mode=(--dry-run --Werror)
git ls-files -z --cached --others --exclude-standard '*.h' '*.cc' '*.cu' '*.cuh' | xargs -0 -r -n 32 -P 2 clang-format-14 "${mode[@]}"
