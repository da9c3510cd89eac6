# Two entry points: `make demo` and `make test`. Each installs what is missing, builds and runs.
# TRACE=FILE      the trace of requests, in the Mooncake schema, that the demo replays
# KEEP=1          leaves the demo's gateway and status page running until Ctrl-C
# FUZZ_SECONDS=N  time for each fuzz target
# PYTHON=PATH     the one interpreter that `make wheel` makes a wheel for
TRACE ?= examples/trace_replay/traces/mooncake_conversation_trace.jsonl
FUZZ_SECONDS ?= 60
REPLAY = build/release/examples/trace_replay/trace_replay

# The wheel's test compiles in a folder of its own what the dev build has compiled: so the compiler cache finds it.
export CCACHE_BASEDIR ?= $(CURDIR)
export CCACHE_NOHASHDIR ?= 1

.PHONY: help demo test test-vllm wheel wheel-cuda docs fuzz bench format packages checks-packages python-tools
.NOTPARALLEL:

help:
	@echo "make demo    routing policies on a production trace (or on TRACE=FILE), then gateway, workers and Envoy at work;"
	@echo "             KEEP=1 leaves them running, with a status page"
	@echo "make test    build and run the tests"
	@echo "make test-vllm  test the Python package against real releases of vLLM (4 GB to download, once)"
	@echo "make wheel   wheels of the Python package into dist/, for each CPython 3.10 to 3.13 that is found"
	@echo "make wheel-cuda  the wheel of the CUDA library into dist/, for all Pythons; needs nvcc"
	@echo "make docs    build the reference of the Python package into build/python-docs/site"
	@echo "make bench   run the benchmarks into bench/results/"
	@echo "make fuzz    run each fuzz target for FUZZ_SECONDS ($(FUZZ_SECONDS))"
	@echo "make format  format the sources"

demo: packages
	cmake --preset release
	cmake --build --preset release --target trace_replay
	$(REPLAY) --trace $(TRACE) --endpoints 8
	scripts/demo.sh $(if $(KEEP),--keep)

test: packages python-tools
	cmake --preset dev
	cmake --build --preset dev
	ctest --preset dev -j "$$(nproc)"

test-vllm: packages
	cmake --preset dev -D LLMD_PYTHON=ON
	cmake --build --preset dev --target llmd_python_files
	LLMD_TEST_VLLM=1 scripts/test_vllm.sh python3 build/vllm-venv build/dev/python

wheel: packages
	scripts/wheel.sh --setting cmake.define.LLMD_WERROR=ON $(if $(PYTHON),--python $(PYTHON))

wheel-cuda: packages
	scripts/wheel_cuda.sh

docs:
	scripts/python_docs.sh build/python-docs

bench: packages
	cmake --preset release
	cmake --build --preset release
	scripts/run_benchmarks.sh

fuzz: packages checks-packages
	cmake --preset fuzz
	cmake --build --preset fuzz
	scripts/run_fuzzers.sh $(FUZZ_SECONDS)

format: checks-packages
	scripts/format.sh

# Without a package index the tests go on without the Python package.
python-tools:
	@scripts/python_tools.sh python3 >/dev/null || [ $$? -eq 77 ]
packages:
	@scripts/install_packages.sh build
checks-packages:
	@scripts/install_packages.sh checks
