"""The C interface of include/llmd/attention through ctypes: structures, the table of functions, and a check of both.

  python3 capi.py --check      compiles a small C program against the headers and compares sizes and offsets
"""

import argparse
import ctypes
import pathlib
import subprocess
import sys
import tempfile
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

F32, F16, BF16, E4M3 = range(4)
DECODE, PREFILL, MIXED = range(3)
VALIDATE, ZERO_PADDING, EARLY_START = 1, 2, 4
ABI = 1
UNSUPPORTED = 2
CODES = ["OK", "INVALID_ARGUMENT", "UNSUPPORTED", "DEVICE_ERROR", "BAD_DATA"]


class TokenStrides(ctypes.Structure):
    c_name = "llmd_token_strides"
    _fields_ = [("token", c_int64), ("head", c_int64)]


class KvStrides(ctypes.Structure):
    c_name = "llmd_kv_strides"
    _fields_ = [("page", c_int64), ("token", c_int64), ("head", c_int64)]


class KvCache(ctypes.Structure):
    c_name = "llmd_kv_cache"
    _fields_ = [("k", c_void_p), ("v", c_void_p), ("k_strides", KvStrides), ("v_strides", KvStrides),
                ("num_pages", c_int64), ("page_size", c_int32), ("num_kv_heads", c_int32), ("head_dim", c_int32),
                ("dtype", c_int32), ("k_scale", c_void_p), ("v_scale", c_void_p), ("scale_stride", c_int32)]


class PageList(ctypes.Structure):
    c_name = "llmd_page_list"
    _fields_ = [("pages", c_void_p), ("row_stride", c_int64), ("max_pages", c_int32), ("seq_lens", c_void_p),
                ("indptr", c_void_p), ("last_page_len", c_void_p)]


class Shape(ctypes.Structure):
    c_name = "llmd_attention_shape"
    _fields_ = [("mode", c_int32), ("max_batch", c_int32), ("max_tokens", c_int32), ("num_q_heads", c_int32),
                ("num_kv_heads", c_int32), ("head_dim", c_int32), ("kv_dtype", c_int32), ("page_size", c_int32),
                ("window", c_int32), ("fixed_split", c_int32), ("max_kv_tokens", c_int64)]


class PlanArgs(ctypes.Structure):
    c_name = "llmd_plan_args"
    _fields_ = [("shape", Shape), ("batch", c_int32), ("pages", PageList), ("q_start", c_void_p),
                ("workspace", c_void_p), ("workspace_bytes", c_size_t)]


class AttentionArgs(ctypes.Structure):
    c_name = "llmd_attention_args"
    _fields_ = [("shape", Shape), ("batch", c_int32), ("num_tokens", c_int32), ("q", c_void_p),
                ("q_strides", TokenStrides), ("q_dtype", c_int32), ("o", c_void_p), ("o_strides", TokenStrides),
                ("o_dtype", c_int32), ("lse", c_void_p), ("lse_strides", TokenStrides), ("q_start", c_void_p),
                ("cache", KvCache), ("pages", PageList), ("scale", c_float), ("sinks", c_void_p),
                ("flags", c_uint32), ("workspace", c_void_p), ("workspace_bytes", c_size_t)]


class DataError(ctypes.Structure):
    c_name = "llmd_data_error"
    _fields_ = [("kind", c_int32), ("request", c_int32), ("index", c_int32), ("value", c_int64)]


class AppendKvArgs(ctypes.Structure):
    c_name = "llmd_append_kv_args"
    _fields_ = [("cache", KvCache), ("k", c_void_p), ("v", c_void_p), ("k_strides", TokenStrides),
                ("v_strides", TokenStrides), ("dtype", c_int32), ("num_tokens", c_int32), ("slots", c_void_p),
                ("batch_index", c_void_p), ("positions", c_void_p), ("pages", PageList), ("error", c_void_p)]


class SampleArgs(ctypes.Structure):
    c_name = "llmd_sample_args"
    _fields_ = [("logits", c_void_p), ("dtype", c_int32), ("row_stride", c_int64), ("batch", c_int32),
                ("vocab", c_int32), ("temperature", c_void_p), ("min_p", c_void_p), ("top_k", c_void_p),
                ("top_p", c_void_p), ("seed", c_uint64), ("request_ids", c_void_p), ("steps", c_void_p),
                ("tokens", c_void_p), ("logprobs", c_void_p)]


STRUCTURES = [TokenStrides, KvStrides, KvCache, PageList, Shape, PlanArgs, AttentionArgs, DataError, AppendKvArgs,
              SampleArgs]

_CALL = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p)


class Table(ctypes.Structure):
    c_name = "llmd_attention_backend"
    _fields_ = [("abi", c_int32), ("name", c_char_p), ("last_error", ctypes.CFUNCTYPE(c_char_p)),
                ("append_kv", _CALL), ("copy_blocks", _CALL), ("gather_blocks", _CALL), ("scatter_blocks", _CALL),
                ("workspace_bytes", ctypes.CFUNCTYPE(c_size_t, c_void_p)),
                ("init_workspace", ctypes.CFUNCTYPE(c_int32, c_void_p, c_size_t, c_void_p)),
                ("plan", _CALL), ("attention", _CALL),
                ("check_workspace", ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_void_p)),
                ("merge_states", _CALL), ("rope", _CALL), ("rope_append", _CALL), ("rms_norm", _CALL),
                ("silu_and_mul", _CALL), ("sample", _CALL)]


class BackendError(RuntimeError):
    """A call returned something other than LLMD_OK; `code` says what."""

    def __init__(self, call, code, message):
        super().__init__(f"{call}: {CODES[code] if 0 <= code < len(CODES) else code}: {message}")
        self.code = code


class Backend:
    """One table of functions of a shared library; `backend.plan(args, stream)` raises BackendError."""

    def __init__(self, library, function="llmd_attention_cuda"):
        get = getattr(ctypes.CDLL(str(library)), function)
        get.restype = POINTER(Table)
        get.argtypes = []
        self._table = get().contents
        if self._table.abi != ABI:
            raise RuntimeError(f"{library} speaks version {self._table.abi} of the interface, this file {ABI}")
        self.name = self._table.name.decode()

    def last_error(self):
        return self._table.last_error().decode()

    def workspace_bytes(self, shape):
        size = self._table.workspace_bytes(ctypes.addressof(shape))
        if size == 0:
            raise BackendError("workspace_bytes", UNSUPPORTED, self.last_error())
        return size

    def init_workspace(self, pointer, size, stream=None):
        self._require("init_workspace", self._table.init_workspace(pointer, size, stream))

    def __getattr__(self, name):
        function = getattr(self._table, name)

        def call(args, stream=None):
            self._require(name, function(ctypes.addressof(args), stream))

        return call

    def _require(self, name, code):
        if code != 0:
            raise BackendError(name, code, self.last_error())


def check(include=None, compiler="cc"):
    """Compares every structure's size and offsets with what a C compiler makes of the headers."""
    include = include or pathlib.Path(__file__).resolve().parents[2] / "include"
    lines = ["#include <stdio.h>", '#include "llmd/attention/backend.h"', "int main(void) {"]
    expected = []
    for structure in [*STRUCTURES, Table]:
        name = structure.c_name
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        expected.append((name, ctypes.sizeof(structure)))
        for field, _ in structure._fields_:
            lines.append(f'printf("%zu\\n", offsetof({name}, {field}));')
            expected.append((f"{name}.{field}", getattr(structure, field).offset))
    lines.append("return 0; }")
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder, "check.c"), pathlib.Path(folder, "check")
        source.write_text("\n".join(lines))
        subprocess.run([compiler, "-I", str(include), str(source), "-o", str(program)], check=True)
        actual = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split()
    wrong = [f"{name}: {mine} here, {theirs} in C" for (name, mine), theirs in zip(expected, actual, strict=True)
             if mine != int(theirs)]
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", required=True)
    parser.add_argument("--compiler", default="cc")
    options = parser.parse_args()
    mistakes = check(compiler=options.compiler)
    print("\n".join(mistakes) or "every size and offset agrees")
    sys.exit(1 if mistakes else 0)
