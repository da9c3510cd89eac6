#!/usr/bin/env bash
# Usage: run_tests.sh PYTHON VENV PACKAGES [pytest arguments...]
# Runs the tests of the Python package below PACKAGES, in the virtual environment VENV of the interpreter PYTHON, which is
# made when it is not up to date. Exit status 77, which CTest counts as skipped, when it cannot be installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${1:?usage: run_tests.sh PYTHON VENV PACKAGES}
venv=${2:?usage: run_tests.sh PYTHON VENV PACKAGES}
packages=${3:?usage: run_tests.sh PYTHON VENV PACKAGES}
shift 3
mkdir -p "$venv"
exec 9>"$venv/.lock"
flock 9 # tests may run side by side
if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
  if ! { "$python" -m venv "$venv" && "$venv/bin/pip" install --disable-pip-version-check -r "$here/requirements.txt"; } \
    >"$venv/install.log" 2>&1; then
    echo "SKIPPED: the packages that the Python tests need cannot be installed ($venv/install.log):" >&2
    tail -n 3 "$venv/install.log" >&2
    exit 77
  fi
  cp "$here/requirements.txt" "$venv/installed.txt"
fi
flock -u 9
# LLMD_PRELOAD: libraries to start the interpreter with; see scripts/python_sanitizers.sh.
PYTHONPATH=$packages LD_PRELOAD=${LLMD_PRELOAD:-} exec "$venv/bin/python" -m pytest -q -rs -p no:cacheprovider "$here" "$@"
