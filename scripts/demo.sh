#!/usr/bin/env bash
# Usage: demo.sh [--keep] [--standalone] [--quick]
# Builds the gateway, the simulated worker and the load generator, and runs them with Envoy on this machine: see demo.py.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake --preset release
cmake --build --preset release --target gateway_scheduler sim_worker llmd_load
exec python3 scripts/demo.py "$@"
