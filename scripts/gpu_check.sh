#!/usr/bin/env bash
# Builds, tests, sanitizes and measures the CUDA kernels on a machine with a GPU, in less than nine minutes in all, and
# writes bench/results/attention-<gpu>.json.
#
#   scripts/gpu_check.sh [options]
#     --prebuilt DIR   take libllmd_cuda.so*, bench_attention and cuda_kernels_test from DIR instead of building; a file
#                      DIR/revision names what they were built from
#     --build DIR      build folder (default build/gpu)
#     --peers FILE     archive of bench/attention/pack_peers.sh; without it, peers are what python3 can import
#     --grid quick|full  of the benchmarks (default quick)
#     --only LIST      of build,tests,bench,peers,sanitize (default all), in this order; build alone needs no GPU, and its
#                      folder bin is what --prebuilt takes elsewhere
#     --parts LIST     of the peers: decode,sweep,mixes,prefill (default all)
#     --seconds N      for everything (default 530)
#     --peer-seconds N for the peers (default 270), less if the sanitizers after them would not fit
#     --out DIR        logs and raw results (default build/gpu_check)
#     --work DIR       unpacked packages and caches of compilers (default a new one below /tmp)
#     --results DIR    where attention-<gpu>.json goes (default bench/results)
#     --keep           go on with the peers' results already in the output folder
#
# Every stage has a time limit of its own and its log in the output folder; a table at the end says how each went. What
# matters most comes first, and the results are written after each stage that adds to them. The exit status is 1 if a
# stage failed. A stage that cannot run here (no compute-sanitizer, no PyTorch) is skipped, and
# the table says so.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
prebuilt="" build=$root/build/gpu peers="" grid=quick
only=build,tests,bench,peers,sanitize parts=decode,sweep,mixes,prefill
seconds=530 peer_seconds=270 out=$root/build/gpu_check results=$root/bench/results work="" keep=0
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage; exit 0 ;;
    --keep) keep=1; shift; continue ;;
    --prebuilt | --build | --peers | --grid | --only | --parts | --seconds | --peer-seconds | --out | --work | --results)
      [ $# -ge 2 ] || { usage >&2; exit 2; }
      name=${1#--}
      printf -v "${name//-/_}" %s "$2"
      shift 2 ;;
    *) echo "unknown: $1" >&2; usage >&2; exit 2 ;;
  esac
done
for path in prebuilt peers build out work results; do
  [ -z "${!path}" ] || printf -v $path %s "$(realpath -m "${!path}")"
done
cd "$root" || exit
mkdir -p "$out"
work=${work:-$(mktemp -d /tmp/gpu_check.XXXXXX)}
build_limit=240
[ "$only" != build ] || build_limit=3000 seconds=3060
stages=() states=() took=() remarks=() failed=0
left() { echo $((seconds - SECONDS)); }
wanted() { [[ ",$only," == *",$1,"* ]]; }
note() {  # NAME STATE SECONDS REMARK
  stages+=("$1") states+=("$2") took+=("$3") remarks+=("$4")
  [ "$2" != FAILED ] || failed=1
  echo "== $1: $2 in $3 s${4:+: $4}"
}
# Runs a command under a limit; its output goes to a log, and the log's end is shown if it failed.
stage() {  # NAME LIMIT COMMAND...
  local name=$1 limit=$2 start=$SECONDS code
  shift 2
  [ "$limit" -le "$(left)" ] || limit=$(left)
  if [ "$limit" -lt 5 ]; then note "$name" skipped 0 "no time left"; return 1; fi
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  if [ $code -eq 0 ]; then
    note "$name" ok $((SECONDS - start)) "$(tail -n 1 "$out/$name.log" | cut -c1-110)"
  else
    [ $code -ne 124 ] && [ $code -ne 137 ] || echo "stopped after $limit s" >>"$out/$name.log"
    tail -n 25 "$out/$name.log"
    note "$name" FAILED $((SECONDS - start)) "status $code; see $name.log"
  fi
  return $code
}

if [ "$only" != build ] && ! nvidia-smi -L >/dev/null 2>&1; then
  echo "gpu_check: no NVIDIA GPU here" >&2
  exit 3
fi
{
  query() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
  echo "gpu: $(query name)"
  echo "driver: $(query driver_version)"
  echo "clocks_idle: SM $(query clocks.sm), memory $(query clocks.mem)"
  echo "clocks_max: SM $(query clocks.max.sm), memory $(query clocks.max.mem)"
  echo "nvcc: $(nvcc --version 2>/dev/null | sed -n 's/.*release \([^,]*\),.*/\1/p')"
  echo "revision: $(cat "$prebuilt/revision" 2>/dev/null || git describe --always --dirty 2>/dev/null || echo unknown)"
} >"$out/environment.txt"
revision=$(sed -n 's/^revision: //p' "$out/environment.txt")
cat "$out/environment.txt"

# The peers' packages are unpacked while other things run.
site=$work/peers
if wanted peers && [ -n "$peers" ] && [ ! -d "$site/site" ]; then
  mkdir -p "$site"
  {
    tar -C "$site" -xf "$peers" ||
      python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$peers" "$site"
  } >"$out/unpack.log" 2>&1 &
  unpacking=$!
fi

folder=$prebuilt
if [ -z "$prebuilt" ]; then
  folder=$build/bin
  if wanted build; then
    configure=(cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLMD_CUDA=ON -DLLMD_GATEWAY=OFF
      -DLLMD_BUILD_EXAMPLES=OFF -DLLMD_BUILD_FUZZERS=OFF)
    stage configure 60 "${configure[@]}" &&
      stage build "$build_limit" cmake --build "$build" --target bench_attention cuda_kernels_test
    mkdir -p "$folder"
    find "$build" -path "$build/bin" -prune -o ! -type d \
      \( -name 'libllmd_cuda.so*' -o -name bench_attention -o -name cuda_kernels_test \) -exec cp -P {} "$folder" \;
    echo "$revision" >"$folder/revision"
  fi
fi
folder=$(realpath -m "$folder")
export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
tests=$folder/cuda_kernels_test bench=$folder/bench_attention
chmod +x "$tests" "$bench" 2>/dev/null
library=$(find "$folder" -maxdepth 1 -name 'libllmd_cuda.so*' 2>/dev/null | sort | head -n 1)

if wanted tests; then
  if [ -e "$tests" ]; then
    stage tests 110 "$tests" --gtest_brief=1
  else
    note tests FAILED 0 "no $tests"
  fi
fi

if wanted bench; then
  if [ -e "$bench" ]; then
    limit=120
    [ "$grid" != full ] || limit=200
    stage bench $((limit + 30)) "$bench" --grid "$grid" --seconds $limit --json "$out/ours.jsonl"
  else
    note bench FAILED 0 "no $bench"
  fi
fi

# Writes what there is by now.
summarize() {
  timeout 20 python3 bench/attention/summarize.py --ours "$out/ours.jsonl" --peers "$out/peers.jsonl" \
    --environment "$out/environment.txt" --out "$results" --markdown "$out/table.md" >"$out/summary.txt" 2>&1 ||
    note summary FAILED 0 "$(tail -n 1 "$out/summary.txt")"
}
[ $keep -eq 1 ] || rm -f "$out/peers.jsonl"
! wanted bench || summarize

sanitize_limit=110
if wanted peers; then
  [ -z "${unpacking:-}" ] || wait "$unpacking"
  [ ! -d "$site/site" ] || export PYTHONPATH=$site/site${PYTHONPATH:+:$PYTHONPATH}
  export FLASHINFER_WORKSPACE_BASE=$work/jit FLASHINFER_CUDA_ARCH_LIST=${FLASHINFER_CUDA_ARCH_LIST:-9.0a}
  export TRITON_CACHE_DIR=$work/jit/triton PYTHONUNBUFFERED=1
  budget=$(($(left) - 25))
  ! wanted sanitize || ! command -v compute-sanitizer >/dev/null || budget=$((budget - sanitize_limit))
  [ "$budget" -le "$peer_seconds" ] || budget=$peer_seconds
  if ! python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    note peers skipped 0 "no PyTorch"
  elif [ "$budget" -lt 30 ]; then
    note peers skipped 0 "no time left"
  elif ! timeout 20 "$bench" --list --grid "$grid" >"$out/cases.jsonl"; then
    note peers FAILED 0 "bench_attention --list"
  else
    arguments=(--library "$library" --cases "$out/cases.jsonl" --json "$out/peers.jsonl" --part "$parts")
    [ ! -d "$site/prebuilt" ] || arguments+=(--prebuilt "$site/prebuilt")
    [ ! -d "$site/vllm" ] || arguments+=(--vllm "$site/vllm")
    mkdir -p "$out/peers"
    arguments+=(--logs "$out/peers" --seconds "$budget")
    stage peers $((budget + 15)) python3 bench/attention/peers.py "${arguments[@]}"
    grep -a ' in .* of .*: ' "$out/peers.log" | cut -c1-150 | sort | uniq | head -n 20
    summarize
  fi
fi

# All four tools at once, on the cases that are small enough for them.
if wanted sanitize; then
  if ! command -v compute-sanitizer >/dev/null; then
    note sanitize skipped 0 "no compute-sanitizer"
  elif [ ! -e "$tests" ]; then
    note sanitize FAILED 0 "no $tests"
  else
    start=$SECONDS limit=$sanitize_limit
    [ $limit -le "$(left)" ] || limit=$(left)
    declare -A tool_pid
    for tool in memcheck racecheck initcheck synccheck; do
      timeout -k 5 "$limit" compute-sanitizer --tool $tool --error-exitcode 9 "$tests" \
        --gtest_filter='*Small*' --gtest_brief=1 >"$out/$tool.log" 2>&1 &
      tool_pid[$tool]=$!
    done
    for tool in memcheck racecheck initcheck synccheck; do
      if wait "${tool_pid[$tool]}"; then
        note $tool ok $((SECONDS - start)) "$(grep -a 'ERROR SUMMARY\|RACECHECK SUMMARY' "$out/$tool.log" | tail -n 1)"
      else
        code=$?
        grep -a '=========' "$out/$tool.log" | head -n 30
        note $tool FAILED $((SECONDS - start)) "status $code; see $tool.log"
      fi
    done
  fi
fi

[ ! -f "$out/summary.txt" ] || cat "$out/summary.txt"

printf '\n%-14s %-8s %6s  %s\n' stage state s remark
for i in "${!stages[@]}"; do
  printf '%-14s %-8s %6s  %s\n' "${stages[$i]}" "${states[$i]}" "${took[$i]}" "${remarks[$i]}"
done
echo "in all: $SECONDS s"
exit $failed
