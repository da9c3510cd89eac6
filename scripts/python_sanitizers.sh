#!/usr/bin/env bash
# Usage: python_sanitizers.sh address|thread [pytest arguments...]
# The Python package with its extension built with sanitizers, in the interpreter as it is: the runtime is preloaded.
# `address` (with undefined behaviour) runs the tests; `thread` the tests of threads, then 30 s of tests/python/stress.py.
# Leaks are not looked for, since the interpreter keeps what it has made; stress.py does, without sanitizers.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?usage: python_sanitizers.sh address|thread [pytest arguments...]}
shift
case $kind in
  address) preset=asan runtime=libasan.so ;;
  thread) preset=tsan runtime=libtsan.so ;;
  *)
    echo "unknown sanitizer $kind, wanted address or thread" >&2
    exit 2
    ;;
esac
cmake --preset "$preset" -D LLMD_PYTHON=ON -D LLMD_HOSTS=OFF
cmake --build --preset "$preset" --target llmd_python_files
python=$(sed -n 's/^LLMD_PYTHON_EXECUTABLE:INTERNAL=//p' "build/$preset/CMakeCache.txt")
venv=build/$preset/python-venv

# The C++ library as well: the runtime wants to find its exceptions when it starts.
LLMD_PRELOAD=$(g++ -print-file-name="$runtime"):$(g++ -print-file-name=libstdc++.so)
export LLMD_PRELOAD PYTHONMALLOC=malloc PYTHONFAULTHANDLER=1 PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS="suppressions=$PWD/tests/python/tsan.supp"
run=(tests/python/run_tests.sh "$python" "$venv" "build/$preset/python" --deselect tests/python/test_package.py::test_types)
if [ "$kind" = address ]; then
  exec "${run[@]}" "$@"
fi
"${run[@]}" -k 'threads or stress' "$@"
LD_PRELOAD=$LLMD_PRELOAD PYTHONPATH=build/$preset/python \
  "$venv/bin/python" tests/python/stress.py --seconds 30 --threads 16 --no-tracemalloc
