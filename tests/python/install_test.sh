#!/usr/bin/env bash
# Usage: install_test.sh PYTHON FOLDER
# `pip install .` into an empty virtual environment below FOLDER, and a first use of every module. Builds everything once;
# FOLDER keeps what was compiled. Exit status 77, which CTest counts as skipped, without a package index.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:?usage: install_test.sh PYTHON FOLDER}
folder=${2:?usage: install_test.sh PYTHON FOLDER}
rm -rf "$folder/venv"
mkdir -p "$folder"
"$python" -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --disable-pip-version-check)
if ! "${pip[@]}" download --no-deps --dest "$folder/download" 'scikit-build-core>=0.10' >"$folder/index.log" 2>&1; then
  echo "SKIPPED: no package index ($folder/index.log):" >&2
  tail -n 3 "$folder/index.log" >&2
  exit 77
fi
CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-1} \
  "${pip[@]}" install --config-settings=build-dir="$folder/build" "$root"
cd "$folder" # not beside the sources
"$folder/venv/bin/python" - <<'PYTHON'
import doctest
import llmd.events, llmd.hash, llmd.index, llmd.worker

for module in (llmd, llmd.events, llmd.hash, llmd.index, llmd.worker):
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0 and result.attempted > 0, module
print("llmd", llmd.__version__, llmd.__file__)
PYTHON
