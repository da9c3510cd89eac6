#!/usr/bin/env python3
"""Compiles FlashInfer's kernels that peers.py calls, ahead of time and on a machine without a GPU.

FlashInfer compiles on first use, which takes minutes. This leaves NAME/NAME.so for every module below --out, where
`peers.py --prebuilt` looks first:

  FLASHINFER_CUDA_ARCH_LIST=9.0a MAX_JOBS=2 python3 build_peers.py --out build/peers
"""

import argparse
import os
import pathlib
import shutil
import sys
import time

os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")

import torch  # noqa: E402
from flashinfer.jit.attention import modules  # noqa: E402
from flashinfer.jit.xqa import gen_xqa_module  # noqa: E402

BF16 = torch.bfloat16
FP8 = torch.float8_e4m3fn
IDX = torch.int32


def decode(kv, dim, window=False):
    return modules.gen_batch_decode_module(BF16, kv, BF16, IDX, dim, dim, 0, window, False)


def fa2(kv, dim, window=False):
    make = getattr(modules, "_gen_batch_prefill_primary_module", modules.gen_batch_prefill_module)
    return make("fa2", BF16, kv, BF16, IDX, dim, dim, 0, window, False, False)


def persistent(dim):
    make = getattr(modules, "_gen_batch_attention_primary_module", modules.gen_batch_attention_module)
    return make(BF16, BF16, BF16, IDX, dim, dim, 0, False, False)


def xqa(kv, page, dim, group, window=False):
    return gen_xqa_module(BF16, kv, page, dim, group, window, BF16)


# In order of use: an interrupted build leaves the most useful part.
SPECS = [
    lambda: decode(BF16, 128),
    lambda: fa2(BF16, 128),
    lambda: xqa(BF16, 16, 128, 4),
    lambda: xqa(BF16, 16, 128, 8),
    lambda: decode(BF16, 64),
    lambda: fa2(BF16, 64),
    lambda: xqa(BF16, 16, 64, 8),
    lambda: decode(FP8, 128),
    lambda: fa2(FP8, 128),
    lambda: xqa(FP8, 16, 128, 4),
    lambda: xqa(FP8, 16, 128, 8),
    lambda: xqa(BF16, 64, 128, 4),
    lambda: xqa(BF16, 64, 128, 8),
    lambda: xqa(FP8, 64, 128, 4),
    lambda: decode(BF16, 64, True),
    lambda: fa2(BF16, 64, True),
    lambda: xqa(BF16, 16, 64, 8, True),
    lambda: persistent(128),
    lambda: xqa(BF16, 16, 64, 4),
    lambda: xqa(BF16, 16, 128, 1),
    lambda: xqa(BF16, 16, 128, 16),
    lambda: xqa(BF16, 16, 128, 3),
    lambda: xqa(BF16, 16, 128, 5),
    lambda: xqa(BF16, 32, 128, 4),
    lambda: xqa(BF16, 128, 128, 4),
    lambda: xqa(BF16, 16, 128, 2),
    lambda: xqa(BF16, 16, 128, 6),
    lambda: xqa(BF16, 16, 128, 7),
    lambda: xqa(BF16, 16, 128, 12),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the libraries")
    parser.add_argument("--list", action="store_true", help="print the modules' names and stop")
    args = parser.parse_args()
    failed = 0
    for make in SPECS:
        spec = make()
        target = args.out / spec.name / f"{spec.name}.so"
        if args.list:
            print(spec.name)
            continue
        if target.exists():
            continue
        start = time.time()
        try:
            spec.build()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(spec.jit_library_path, target)
            state = f"{target.stat().st_size / 1e6:.1f} MB"
        except Exception as error:  # one module that does not compile must not cost the others
            failed += 1
            state = f"FAILED: {str(error)[-300:]}"
        print(f"{spec.name}: {time.time() - start:.0f} s, {state}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
