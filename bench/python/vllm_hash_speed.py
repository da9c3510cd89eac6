"""Block hashes of one prompt, by llmd and by the vLLM installed; prints medians and ratios.

Usage: vllm_hash_speed.py [ROUNDS]. `make test-vllm` runs it in its environment.

What is measured, for 100 000 tokens in blocks of 16:

vllm request  vLLM's own hasher of requests, as its engine calls it when a request comes in
vllm blocks   vLLM's `hash_block_tokens` in a bare loop over blocks cut out beforehand
array         `llmd.hash.VllmHasher.hash_blocks` of a NumPy array
plugin        the hasher of requests that `llmd.vllm` puts in its place: tokens are a Python list

Each round measures all of them, one after the other; a ratio is the median of the rounds' ratios.
"""

import gc
import os
import statistics
import sys
import time

import numpy as np

TOKENS = 100_000
BLOCK = 16


class Request:
    """What vLLM's hasher reads of a request of text."""

    def __init__(self, tokens):
        self.request_id = "r"
        self.all_token_ids, self.num_tokens = tokens, len(tokens)
        self.block_hashes, self.mm_features = [], []
        self.lora_request = self.cache_salt = self.prompt_embeds = None


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main(rounds):
    os.environ["PYTHONHASHSEED"] = "0"
    import vllm.v1.core.kv_cache_utils as utils
    from llmd.hash import VllmHasher
    from llmd.vllm import hashing
    from vllm import __version__

    tokens = np.random.default_rng(0).integers(0, 128_000, TOKENS, dtype=np.int32)
    ids = tokens.tolist()
    blocks = [ids[i : i + BLOCK] for i in range(0, TOKENS - BLOCK + 1, BLOCK)]
    request = Request(ids)
    print(
        f"vLLM {__version__}, Python {sys.version.split()[0]}, "
        f"{TOKENS} tokens in blocks of {BLOCK}, {rounds} rounds"
    )
    for name, function in hashing.find_functions().items():
        utils.init_none_hash(function)
        hasher = VllmHasher(name, block_size=BLOCK, seed="0")
        theirs, hash_block = (
            utils.get_request_block_hasher(BLOCK, function),
            utils.hash_block_tokens,
        )

        def chain(function=function, hash_block=hash_block):
            parent = None
            for block in blocks:
                parent = hash_block(function, parent, block)

        hashing.install()
        plugin = utils.get_request_block_hasher(BLOCK, function)
        hashing.uninstall()
        assert theirs(request) == hasher.hash_blocks(tokens) == plugin(request)
        ways = {
            "vllm request": lambda theirs=theirs: theirs(request),
            "vllm blocks": chain,
            "array": lambda hasher=hasher: hasher.hash_blocks(tokens),
            "plugin": lambda plugin=plugin: plugin(request),
        }
        took = {way: [] for way in ways}
        gc.disable()
        for _ in range(rounds):
            for way, call in ways.items():
                took[way].append(seconds(call))
        gc.enable()

        def ratio(slow, fast, took=took):
            return statistics.median(a / b for a, b in zip(took[slow], took[fast], strict=True))

        print(
            f"{name:12}"
            + ", ".join(
                f"{way} {1e3 * statistics.median(times):.2f} ms" for way, times in took.items()
            )
            + f"; array is {ratio('vllm request', 'array'):.1f} x vllm request, "
            f"{ratio('vllm blocks', 'array'):.1f} x vllm blocks; "
            f"plugin is {ratio('vllm request', 'plugin'):.1f} x vllm request"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 21)
