# Two entry points: `make demo` and `make test`. Each installs what is missing, builds and runs.
# TRACE=FILE      the trace of requests, in the Mooncake schema, that the demo replays
# KEEP=1          leaves the demo's gateway and status page running until Ctrl-C
# FUZZ_SECONDS=N  time for each fuzz target
TRACE ?= examples/trace_replay/traces/mooncake_conversation_trace.jsonl
FUZZ_SECONDS ?= 60
REPLAY = build/release/examples/trace_replay/trace_replay

.PHONY: help demo test test-vllm fuzz bench format packages checks-packages
.NOTPARALLEL:

help:
	@echo "make demo    routing policies on a production trace (or on TRACE=FILE), then gateway, workers and Envoy at work;"
	@echo "             KEEP=1 leaves them running, with a status page"
	@echo "make test    build and run the tests"
	@echo "make test-vllm  test the Python package against real releases of vLLM (4 GB to download, once)"
	@echo "make bench   run the benchmarks into bench/results/"
	@echo "make fuzz    run each fuzz target for FUZZ_SECONDS ($(FUZZ_SECONDS))"
	@echo "make format  format the sources"

demo: packages
	cmake --preset release
	cmake --build --preset release --target trace_replay
	$(REPLAY) --trace $(TRACE) --endpoints 8
	scripts/demo.sh $(if $(KEEP),--keep)

test: packages
	cmake --preset dev
	cmake --build --preset dev
	ctest --preset dev -j "$$(nproc)"

test-vllm: packages
	cmake --preset dev -D LLMD_PYTHON=ON
	cmake --build --preset dev --target llmd_python_files
	LLMD_TEST_VLLM=1 scripts/test_vllm.sh python3 build/vllm-venv build/dev/python

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

packages:
	@scripts/install_packages.sh build
checks-packages:
	@scripts/install_packages.sh checks
