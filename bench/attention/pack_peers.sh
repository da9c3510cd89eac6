#!/usr/bin/env bash
# Packs what peers.py needs besides PyTorch and Triton into one archive for a machine without a network.
#
#   pack_peers.sh OUT.tar.xz FLASHINFER_WHEEL TVM_FFI_WHEEL PREBUILT [FA3_WHEEL|-] [VLLM_WHEEL_OR_FOLDER|-]
#
# PREBUILT is the folder that build_peers.py filled. Of FlashInfer's wheel the sources of kernels that are not measured
# are left out; what is left still compiles a missing attention kernel on the spot. Of vLLM's only the Triton kernel is
# taken. The archive holds site/ (for PYTHONPATH), prebuilt/ and vllm/.
set -euo pipefail
if [ $# -lt 4 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  exit 2
fi
out=$(realpath -m "$1") flashinfer=$2 tvm_ffi=$3 prebuilt=$4 fa3=${5:--} vllm=${6:--}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/site" "$work/vllm"
unzip -qo "$flashinfer" -d "$work/site"
unzip -qo "$tvm_ffi" -d "$work/site"
[ "$fa3" = - ] || unzip -qo "$fa3" -d "$work/site"
cp -r "$prebuilt" "$work/prebuilt"
if [ -d "$vllm" ]; then
  find "$vllm" \( -name triton_unified_attention.py -o -name triton_attention_helpers.py \) \
    -exec cp {} "$work/vllm" \;
elif [ "$vllm" != - ]; then
  unzip -qoj "$vllm" 'vllm/v1/attention/ops/triton_unified_attention.py' \
    'vllm/v1/attention/ops/triton_attention_helpers.py' -d "$work/vllm"
fi
data=$work/site/flashinfer/data
find "$data/csrc" -mindepth 1 -maxdepth 1 -type d ! -name xqa -exec rm -rf {} +
find "$data/csrc" -maxdepth 1 -name 'cake_*' -delete
find "$data" -mindepth 1 -maxdepth 1 -type d ! -name csrc ! -name include ! -name cutlass ! -name cccl \
  ! -name spdlog -exec rm -rf {} +
find "$data/cutlass" -mindepth 1 -maxdepth 1 -type d ! -name include ! -name tools -exec rm -rf {} +
find "$work/site" \( -name '*.cubin' -o -name '*.pyc' \) -delete
find "$work/site/flashinfer" -name '*.json' -size +1M -delete
find "$work/site/flashinfer/experimental" -type f \( -size +200k -o ! -name '*.py' \) -delete
tar -C "$work" -cf - site prebuilt vllm | xz -2 >"$out"
ls -l "$out"
