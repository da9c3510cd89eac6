#!/usr/bin/env bash
# Runs every benchmark of the `release` build that needs no GPU (gpu_check.sh has the others); writes
# bench/results/NAME.jsonl and the machine's description beside them.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p bench/results
{
  echo "cpu: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
  echo "cores: $(nproc)"
  echo "memory_gib: $(awk '/MemTotal/ {printf "%.0f", $2 / 1048576}' /proc/meminfo)"
  echo "system: $(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release), $(uname -sr)"
  echo "compiler: $(c++ --version | head -n 1)"
  echo "revision: $(git describe --always --dirty 2>/dev/null || echo unknown)"
} >bench/results/machine.txt
cat bench/results/machine.txt
find build/release/bench -type f -name 'bench_*' ! -name bench_attention -perm -u+x | sort | while read -r bench; do
  name=$(basename "$bench")
  echo "== $name"
  arguments=(--json)
  [ "$name" = bench_index ] && arguments+=(--profile all)
  "$bench" "${arguments[@]}" | tee "bench/results/$name.jsonl"
done
