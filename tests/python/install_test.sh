#!/usr/bin/env bash
# Usage: install_test.sh PYTHON WHEEL FOLDER
# Installs a wheel for the interpreter PYTHON as a user without a compiler would, into an empty virtual environment below
# FOLDER, and uses it: alone, among traps for whatever it might look up outside itself, and beside grpcio, pyzmq and torch.
# LLMD_TORCH names a folder with torch in it (pip install --target); without, torch is left out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
readme=$here/../../README.md
python=${1:?usage: install_test.sh PYTHON WHEEL FOLDER}
wheel=$(realpath "${2:?usage: install_test.sh PYTHON WHEEL FOLDER}")
folder=$(realpath "${3:?usage: install_test.sh PYTHON WHEEL FOLDER}")
unset PYTHONPATH

rm -rf "$folder/venv"
"$python" -m venv "$folder/venv"
cd "$folder" # not beside the sources
# Nothing but the environment's own programs is on the path: no compiler, no CMake.
in_venv() {
  PATH=$folder/venv/bin "$@"
}
in_venv pip install --quiet --disable-pip-version-check --only-binary :all: "$wheel"
in_venv python "$here/wheel/smoke.py" "$readme"

"$python" "$here/wheel/traps.py" "$wheel" "${CXX:-c++}" traps.so
in_venv python "$here/wheel/smoke.py" "$readme" ./traps.so

in_venv pip install --quiet --disable-pip-version-check --only-binary :all: grpcio pyzmq
neighbours=(grpc zmq)
if PYTHONPATH=${LLMD_TORCH:-} in_venv python -c 'import torch' 2>torch.log; then
  neighbours+=(torch)
else
  echo "LEFT OUT: torch ($(tail -n 1 torch.log)); LLMD_TORCH=FOLDER names a folder that has it"
fi
PYTHONPATH=${LLMD_TORCH:-} in_venv python "$here/wheel/neighbours.py" "${neighbours[@]}"
