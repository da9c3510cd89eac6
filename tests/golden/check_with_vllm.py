#!/usr/bin/env python3
"""Check the block-hash vectors against vLLM's own code, and write vectors made by it.

    check_with_vllm.py [--source DIR]... [--write FILE]

Each DIR holds an unpacked vLLM wheel (or a site-packages folder); without one, the installed `vllm` is used. Nothing of
vLLM is imported, so neither torch nor a GPU is needed: the hashing functions are taken out of the source by name and
run with stand-ins for loggers and configuration. To unpack only what is read:

    pip download --no-deps --only-binary :all: vllm==VERSION
    unzip vllm-*.whl 'vllm/v1/core/kv_cache_utils.py' 'vllm/utils/*' '*/METADATA' -d DIR

Needs the packages cbor2 and xxhash; says so and exits with status 2 when one is missing. --write stores, per release, the
hashes of requests with LoRA, images, salt and embeddings, and digests of long serializations, for the C++ tests
(vllm_extra_keys.json). Results of past runs are in RESULTS.md.
"""
import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import pickle
import random
import sys
import types
from typing import Any, Callable, NamedTuple, NewType, Optional, Union

HERE = pathlib.Path(__file__).resolve().parent
ALGORITHMS = ("sha256", "sha256_cbor", "xxhash", "xxhash_cbor")


def die(message):
    print(f"check_with_vllm.py: {message}", file=sys.stderr)
    sys.exit(2)


def need(name):
    try:
        return __import__(name)
    except ImportError:
        die(f"the Python package {name!r} is missing: pip install {name}")


cbor2 = need("cbor2")
xxhash = need("xxhash")


# ---------------------------------------------------------------- vLLM's functions, without vLLM
class Stub:
    """Stands in for any module or logger: every attribute is callable and returns None."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def pick(path, wanted, namespace):
    """Run the top-level definitions of `path` whose names satisfy `wanted` in `namespace`."""
    tree = ast.parse(path.read_text())
    body = []
    for node in tree.body:
        names = []
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [t.id for t in node.targets if isinstance(t, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            names = [node.target.id]
        if any(wanted(n) for n in names):
            body.append(node)
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module(body=future + body, type_ignores=[]), str(path), "exec"), namespace)
    return namespace


KV_NAMES = {
    "BlockHash", "BlockHashWithGroupId", "make_block_hash_with_group_id", "get_block_hash", "get_group_id",
    "maybe_convert_block_hash", "DEFAULT_NONE_HASH_SEED", "_NON_CRYPTO_HASH_FUNCTIONS", "_CBOR_HASH_FUNCTIONS",
    "_NONE_HASH_SEED", "resolve_none_hash_seed", "init_none_hash", "hash_block_tokens", "get_request_block_hasher",
    "generate_block_hash_extra_keys", "to_event_extra_keys",
}


class Release:
    def __init__(self, root):
        self.root = pathlib.Path(root)
        kv = self.root / "vllm/v1/core/kv_cache_utils.py"
        if not kv.is_file():
            die(f"{kv} does not exist: not an unpacked vLLM wheel")
        metadata = sorted(self.root.glob("vllm-*.dist-info"))
        self.version = metadata[-1].name[len("vllm-"):-len(".dist-info")] if metadata else "unknown"
        base = {
            "__name__": "vllm_extract", "os": os, "pickle": pickle, "hashlib": hashlib, "cbor2": cbor2, "_xxhash": xxhash,
            "Any": Any, "Callable": Callable, "NewType": NewType, "NamedTuple": NamedTuple,
            "Optional": Optional, "Union": Union, "logger": Stub(),
            "envs": types.SimpleNamespace(VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=True),
        }
        hashing = self.root / "vllm/utils/hashing.py"
        self.integer = not hashing.is_file()  # 0.10.1 and earlier: hashes are Python ints
        source = self.root / "vllm/utils/__init__.py" if self.integer else hashing
        hash_names = {"sha256", "sha256_cbor", "sha256_cbor_64bit", "_xxhash_digest", "xxhash", "xxhash_cbor"}
        self.ns = pick(source, hash_names.__contains__, dict(base))
        if self.integer:
            # BlockHash is a NamedTuple whose first field is the value.
            class BlockHash(tuple):
                def __new__(cls, value, tokens, extra):
                    return tuple.__new__(cls, (value, tokens, extra))
                hash_value = property(lambda self: self[0])
            self.ns["BlockHash"] = BlockHash
        pick(kv, lambda n: (n in KV_NAMES or n.startswith("_gen_")) and not (self.integer and n == "BlockHash"), self.ns)

    def has(self, name):
        return name in self.ns

    def style(self):
        if self.integer:
            return "int-lora"
        text = (self.root / "vllm/v1/core/kv_cache_utils.py").read_text()
        if '"cache_salt", request.cache_salt' in text:
            return "tagged"
        return "offset" if "offset - start_token_idx))" in text else "bare"

    def init(self, algo, seed):
        if seed is None:
            os.environ.pop("PYTHONHASHSEED", None)
        else:
            os.environ["PYTHONHASHSEED"] = seed
        self.ns["init_none_hash"](self.ns[algo])
        os.environ.pop("PYTHONHASHSEED", None)
        return self.ns["NONE_HASH"]

    def hash_block(self, algo, parent, tokens, extra):
        result = self.ns["hash_block_tokens"](self.ns[algo], parent, tokens, extra)
        return result.hash_value if self.integer else result

    def hash_request(self, algo, block_size, request):
        if self.integer:
            hasher = self.ns["get_request_block_hasher"](block_size, self.ns[algo])
            return [f"{h.hash_value:0{16 if '64' in algo else 64}x}" for h in hasher(request)]
        return [h.hex() for h in self.ns["get_request_block_hasher"](block_size, self.ns[algo])(request)]


# ---------------------------------------------------------------- the vectors
def fresh(text):
    return "".join(list(text)) if len(text) > 1 else text


def from_json(value):
    if isinstance(value, dict):
        return bytes.fromhex(value["bytes_hex"]) if "bytes_hex" in value else tuple(map(from_json, value["tuple"]))
    return fresh(value) if isinstance(value, str) else value


def check_vectors(release, doc):
    """Returns (checked, failures) for one release."""
    checked, failures = 0, []
    if release.integer:
        for entry in doc["vllm_0_10_0"]:
            if entry["algo"] == "builtin" or not release.has(entry["algo"]):
                continue
            parent = release.init(entry["algo"], entry["seed_string"])
            ok = parent == int(entry["none_hash_int"])
            for i, expected in enumerate(entry["block_hashes_int"]):
                size = entry["block_size"]
                parent = release.hash_block(entry["algo"], parent, entry["token_ids"][i * size:(i + 1) * size], None)
                ok &= parent == int(expected)
            checked += 1
            failures += [] if ok else [entry["id"]]
        return checked, failures
    for entry in doc["vllm"]:
        algo = entry["algo"]
        if not release.has(algo):
            continue
        if "/default_vllm_none_hash/" in entry["id"]:
            if not release.has("DEFAULT_NONE_HASH_SEED"):
                continue
            none_hash = release.init(algo, None)
        elif entry["seed_string"] is None:
            none_hash = release.ns["NONE_HASH"] = bytes.fromhex(entry["none_hash"])
        else:
            none_hash = release.init(algo, entry["seed_string"])
        ok = none_hash.hex() == entry["none_hash"]
        parent, size = None, entry["block_size"]
        for i, expected in enumerate(entry["block_hashes"]):
            extra = entry["extra_keys"][i]
            parent = release.hash_block(algo, parent, entry["token_ids"][i * size:(i + 1) * size],
                                        None if extra is None else from_json(extra))
            ok &= parent.hex() == expected
            ok &= str(release.ns["maybe_convert_block_hash"](parent)) == entry["external_u64"][i]
        checked += 1
        failures += [] if ok else [entry["id"]]
    return checked, failures


def check_primitives(doc):
    """The serialization and xxHash vectors against the packages themselves."""
    values = {
        "str_0": "0", "str_empty": "", "int_0": 0, "int_255": 255, "int_256": 256, "int_65535": 65535, "int_65536": 65536,
        "int_max31": 2**31 - 1, "int_2_31": 2**31, "int_2_32": 2**32, "int_2_63": 2**63, "int_neg1": -1, "int_neg5": -5,
        "int_neg_2_31": -2**31, "int_neg_2_31_1": -2**31 - 1, "bytes32": bytes(range(32)), "tuple0": (), "tuple1": (1,),
        "tuple2": (1, 2), "tuple3": (1, 2, 3), "tuple4": (1, 2, 3, 4),
        "nested": (bytes(range(32)), (1, 2, 3, 4), ("lora", ("mm", -3), "salt")),
    }
    checked, failures = 0, []
    for entry in doc["primitives"]["serialization"]:
        if entry["name"] == "frame_over_64k":
            data = pickle.dumps((bytes(32), tuple(range(100000, 120000)), None), protocol=5)
            ok = hashlib.sha256(data).hexdigest() == entry["pickle5_sha256"]
        else:
            value = values[entry["name"]]
            ok = pickle.dumps(value, protocol=5).hex() == entry["pickle5_hex"]
            ok &= cbor2.dumps(value, canonical=True).hex() == entry["cbor_hex"]
        checked += 1
        failures += [] if ok else [f"serialization/{entry['name']}"]
    for entry in doc["primitives"]["xxhash"]:
        data = bytes((7 * i + 3) % 256 for i in range(entry["len"]))
        ok = (xxhash.xxh64(data).hexdigest() == entry["xxh64"]
              and xxhash.xxh64(data, 1337).hexdigest() == entry["xxh64_seed1337"]
              and xxhash.xxh3_64(data).hexdigest() == entry["xxh3_64"]
              and xxhash.xxh3_64(data, 1337).hexdigest() == entry["xxh3_64_seed1337"]
              and xxhash.xxh3_128_digest(data).hex() == entry["xxh3_128"])
        checked += 1
        failures += [] if ok else [f"xxhash/{entry['len']}"]
    return checked, failures


# ---------------------------------------------------------------- vectors made by vLLM's code
def random_request(rng, block_size):
    count = rng.randrange(1, 6) * block_size + rng.randrange(block_size)
    tokens = [rng.choice([rng.randrange(256), rng.randrange(65536), rng.randrange(152000)]) for _ in range(count)]
    items, offset = [], 0
    for _ in range(rng.randrange(4)):
        offset += rng.randrange(1, 12)
        length = rng.randrange(1, 3 * block_size // 2)
        items.append({"identifier": hashlib.sha256(rng.randbytes(8)).hexdigest(), "offset": offset, "length": length})
        offset += length
    return {
        "block_size": block_size, "token_ids": tokens,
        "lora_name": rng.choice(["", "sql-adapter", "lora"]), "lora_int_id": rng.choice([0, 7, 300]),
        "lora_path": "/models/adapters/sql", "cache_salt": rng.choice(["", "tenant-a", "caf\u00e9", "mm"]),
        "multimodal": items,
        "embeds_digests": [hashlib.sha256(rng.randbytes(4)).hexdigest() for _ in range(count // block_size)]
        if rng.random() < 0.3 else [],
    }


def as_request(spec, release):
    """A stand-in for vllm.v1.request.Request: what the hashing functions read of it."""
    size = spec["block_size"]
    use_lora = spec["lora_int_id"] if release.integer else spec["lora_name"]
    lora = types.SimpleNamespace(lora_name=fresh(spec["lora_name"]), lora_int_id=spec["lora_int_id"],
                                 lora_path=fresh(spec["lora_path"])) if use_lora else None
    positions = [types.SimpleNamespace(offset=m["offset"], length=m["length"]) for m in spec["multimodal"]]
    hashes = [fresh(m["identifier"]) for m in spec["multimodal"]]
    digests = [] if release.integer else spec["embeds_digests"]
    return types.SimpleNamespace(
        all_token_ids=spec["token_ids"], num_tokens=len(spec["token_ids"]), block_hashes=[], lora_request=lora,
        cache_salt=fresh(spec["cache_salt"]) or None, mm_positions=positions, mm_hashes=hashes,
        mm_features=[types.SimpleNamespace(identifier=h, mm_position=p) for h, p in zip(hashes, positions)],
        prompt_embeds=True if digests else None,
        _prompt_embeds_per_block_hashes={(i * size, (i + 1) * size): bytes.fromhex(d) for i, d in enumerate(digests)})


def make_requests(releases):
    out = []
    for release in releases:
        rng = random.Random(7)
        algos = ("sha256", "sha256_cbor_64bit") if release.integer else ALGORITHMS
        for i in range(24):
            spec = random_request(rng, (4, 16, 3)[i % 3])
            algo = algos[i % len(algos)]
            if not release.has(algo):
                continue
            release.init(algo, "42")
            # A scan that starts at block 0 does not meet the boundary case of older releases (RESULTS.md).
            hashes = release.hash_request(algo, spec["block_size"], as_request(spec, release))
            out.append({"vllm": release.version, "style": release.style(), "algo": algo, "seed": "42", **spec,
                        "block_hashes": hashes})
    return out


def make_serializations():
    """Blocks around CPython's 64 KiB frames, as digests of the real packages' output."""
    rng, out = random.Random(11), []
    cases = [(n, 1000, 0, 0) for n in range(21820, 21850)]  # the frame fills up at the end of the token tuple
    cases += [(4, 1, 0, n) for n in (255, 256, 65400, 65469, 65470, 65471, 65530, 65535, 65536, 65537, 200000)]
    cases += [(rng.randrange(1, 60000), rng.randrange(1 << 33), rng.randrange(3), rng.randrange(70000)) for _ in range(12)]
    for count, first, step, text in cases:
        obj = (bytes(range(32)), tuple(first + step * i for i in range(count)),
               ("x" * text, ("y", -text), b"z" * text) if text else None)
        out.append({"count": count, "first": first, "step": step, "text": text,
                    "pickle_sha256": hashlib.sha256(pickle.dumps(obj, protocol=5)).hexdigest(),
                    "cbor_sha256": hashlib.sha256(cbor2.dumps(obj, canonical=True)).hexdigest()})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", default=[], help="folder with an unpacked vLLM wheel")
    parser.add_argument("--write", help="write vectors made by vLLM's code to this file")
    args = parser.parse_args()
    sources = args.source
    if not sources:
        spec = importlib.util.find_spec("vllm")
        if spec is None or not spec.submodule_search_locations:
            die("the Python package 'vllm' is missing: install it, or unpack a wheel and pass --source")
        sources = [pathlib.Path(list(spec.submodule_search_locations)[0]).parent]
    releases = [Release(s) for s in sources]
    doc = json.loads((HERE / "block_hashes.json").read_text())

    print(f"python {sys.version.split()[0]}, cbor2 {importlib.metadata.version('cbor2')}, "
          f"xxhash {importlib.metadata.version('xxhash')}")
    checked, failures = check_primitives(doc)
    print(f"primitives: {checked} checked, {len(failures)} differ")
    for release in releases:
        done, bad = check_vectors(release, doc)
        default = "deterministic" if release.has("DEFAULT_NONE_HASH_SEED") else "random"
        print(f"vllm {release.version}: {done} vectors checked, {len(bad)} differ; extra keys {release.style()}, "
              f"NONE_HASH without PYTHONHASHSEED {default}")
        failures += [f"vllm {release.version}: {b}" for b in bad]
        if done == 0:
            failures.append(f"vllm {release.version}: nothing could be checked")
    if args.write:
        out = {"requests": make_requests(releases), "serializations": make_serializations()}
        pathlib.Path(args.write).write_text(json.dumps(out, separators=(",", ":")).replace("},{", "},\n{") + "\n")
        print(f"wrote {len(out['requests'])} requests and {len(out['serializations'])} serializations")
    for failure in failures:
        print("DIFFERS:", failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
