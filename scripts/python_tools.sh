#!/usr/bin/env bash
# Usage: python_tools.sh PYTHON
# Makes build/python-tools-X.Y, the virtual environment of the interpreter PYTHON with what builds the Python package, and
# prints its path. Exit status 77, which CTest counts as skipped, when it cannot be installed: the package is not built then.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${1:?usage: python_tools.sh PYTHON}
requirements=$root/scripts/python_tools.txt
folder=$root/build/python-tools-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9
if ! cmp -s "$requirements" "$folder/installed.txt"; then
  if ! { "$python" -m venv "$folder" &&
    "$folder/bin/pip" install --disable-pip-version-check -r "$requirements"; } >"$folder/install.log" 2>&1; then
    echo "SKIPPED: what the Python package is built with cannot be installed ($folder/install.log):" >&2
    tail -n 3 "$folder/install.log" >&2
    exit 77
  fi
  cp "$requirements" "$folder/installed.txt"
fi
echo "$folder"
