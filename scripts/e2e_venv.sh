#!/usr/bin/env bash
# Usage: e2e_venv.sh FOLDER
# Makes the Python virtual environment of the end-to-end tests: what tests/e2e/requirements.txt pins, Envoy's binary among
# it. Does nothing when FOLDER is up to date. Exit status 77, which CTest counts as skipped, when it cannot be installed.
set -euo pipefail
requirements=$(dirname "$0")/../tests/e2e/requirements.txt
folder=${1:?usage: e2e_venv.sh FOLDER}
mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9 # tests may run side by side
if cmp -s "$requirements" "$folder/installed.txt"; then
  exit 0
fi
log=$folder/install.log
if ! { python3 -m venv "$folder" && "$folder/bin/pip" install --disable-pip-version-check -r "$requirements"; } >"$log" 2>&1; then
  echo "SKIPPED: the end-to-end tests' packages cannot be installed ($log):" >&2
  grep -E 'ERROR|Error|error' "$log" | tail -n 3 >&2 || tail -n 3 "$log" >&2
  exit 77
fi
cp "$requirements" "$folder/installed.txt"
