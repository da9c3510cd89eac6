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
# The Python package, where it is part of the build and NumPy is there.
python=$(sed -n 's/^LLMD_PYTHON_EXECUTABLE:INTERNAL=//p' build/release/CMakeCache.txt)
if [ -n "$python" ] && [ -d build/release/python ] && "$python" -c 'import numpy' 2>/dev/null; then
  echo "== bench_python"
  PYTHONPATH=build/release/python "$python" bench/python/bench_python.py --bench-match build/release/bench/python/bench_match |
    tee bench/results/bench_python.jsonl
fi
