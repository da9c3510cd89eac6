#!/usr/bin/env bash
# Packs what peers.py needs besides PyTorch and Triton into one archive for a machine without a network.
#
#   pack_peers.sh OUT.tar.xz FLASHINFER_WHEEL TVM_FFI_WHEEL PREBUILT [VLLM_WHEEL_OR_FOLDER...]
#
# PREBUILT is the folder that build_peers.py filled; FlashInfer's own sources are left out, so that what PREBUILT lacks is
# refused and not compiled. Of vLLM's wheels only the Triton kernel and the library with FlashAttention-3 are taken, each
# from the first that has it. The archive holds site/ (for PYTHONPATH), prebuilt/ and vllm/.
set -euo pipefail
if [ $# -lt 4 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 2
fi
out=$(realpath -m "$1") flashinfer=$2 tvm_ffi=$3 prebuilt=$4
shift 4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/site" "$work/vllm"
unzip -qo "$flashinfer" -d "$work/site"
unzip -qo "$tvm_ffi" -d "$work/site"
cp -r "$prebuilt" "$work/prebuilt"
for vllm in "$@"; do
  folder=$vllm
  if [ -f "$vllm" ]; then
    folder=$work/unpacked
    rm -rf "$folder"
    unzip -qo "$vllm" 'vllm/v1/attention/ops/triton_*' 'vllm/vllm_flash_attn/_vllm_fa3_C*' -d "$folder"
  fi
  if [ ! -e "$work/vllm/triton_unified_attention.py" ]; then  # both files from the same wheel
    find "$folder" \( -name triton_unified_attention.py -o -name triton_attention_helpers.py \) -exec cp {} "$work/vllm" \;
  fi
  find "$folder" -name '_vllm_fa3_C*.so' -exec cp -n {} "$work/vllm" \;
done
data=$work/site/flashinfer/data
find "$data/csrc" -mindepth 1 -maxdepth 1 -type d ! -name xqa -exec rm -rf {} +
find "$data/csrc" -maxdepth 1 -name 'cake_*' -delete
find "$data" -mindepth 1 -maxdepth 1 -type d ! -name csrc -exec rm -rf {} +
find "$work/site" \( -name '*.cubin' -o -name '*.pyc' \) -delete
find "$work/site/flashinfer" -name '*.json' -size +1M -delete
find "$work/site/flashinfer/experimental" -type f \( -size +200k -o ! -name '*.py' \) -delete
tar -C "$work" -cf - site prebuilt vllm | xz -4 >"$out"
ls -l "$out"
