#!/usr/bin/env bash
# Usage: run_fuzzers.sh SECONDS
# Runs each fuzz target of the `fuzz` build for that long. New inputs are kept in build/fuzz/corpus/TARGET. Seeds come from
# build/fuzz/seeds/TARGET, made by the build, and tests/fuzz/corpus/TARGET, once-failing inputs. A failing input is left as
# build/fuzz/TARGET-crash-*, and stops the run.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: run_fuzzers.sh SECONDS}
shopt -s nullglob
targets=(build/fuzz/fuzzers/*)
if [ "${#targets[@]}" -eq 0 ]; then
  echo "error: the fuzz build has no targets" >&2
  exit 1
fi
for target in "${targets[@]}"; do
  name=$(basename "$target")
  mkdir -p "build/fuzz/corpus/$name"
  corpora=("build/fuzz/corpus/$name")
  for seeds in "build/fuzz/seeds/$name" "tests/fuzz/corpus/$name"; do
    [ -d "$seeds" ] && corpora+=("$seeds")
  done
  echo "== $name, $seconds s"
  log="build/fuzz/$name.log"
  if ! "$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 \
      -artifact_prefix=build/fuzz/"$name"- "${corpora[@]}" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "error: $name failed; its input is build/fuzz/$name-*, the log $log" >&2
    exit 1
  fi
  grep -E 'stat::number_of_executed_units|DONE' "$log"
done
echo "${#targets[@]} fuzz targets, $seconds s each, no failure"
