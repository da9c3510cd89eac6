#!/usr/bin/env bash
# Usage: python_docs.sh FOLDER [PYTHON]
# Builds the API reference of the Python package into FOLDER/site, in a virtual environment below FOLDER. A warning is an error. Reads
# the sources alone: nothing of the package is compiled or imported. Exit status 77, which CTest counts as skipped, without a package index.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:?usage: python_docs.sh FOLDER [PYTHON]}
python=${2:-python3}
wanted=$root/docs/api/requirements.txt
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if ! cmp -s "$wanted" "$folder/installed.txt"; then
  if ! { "$python" -m venv "$folder/venv" && "$folder/venv/bin/pip" install --disable-pip-version-check -r "$wanted"; } \
    >"$folder/install.log" 2>&1; then
    echo "SKIPPED: mkdocs cannot be installed ($folder/install.log):" >&2
    tail -n 3 "$folder/install.log" >&2
    exit 77
  fi
  cp "$wanted" "$folder/installed.txt"
fi
cd "$root/docs/api"
PATH=$folder/venv/bin:$PATH NO_MKDOCS_2_WARNING=1 "$folder/venv/bin/python" -B -m mkdocs build --strict --site-dir "$folder/site"
for page in "$root"/docs/api/pages/*.md; do
  test -s "$folder/site/$(basename "$page" .md).html"
done
echo "open $folder/site/index.html"
