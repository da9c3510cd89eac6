"""Runs an engine on a random load; compares each request's cached tokens with what events foretold.

Usage: engine_run.py FOLDER ALGORITHM REQUESTS. Prints one line of JSON. LLMD_VLLM_HASHING=0 leaves
vLLM's own hashes.
"""

import itertools
import json
import os
import pathlib
import sys
import time

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
    "0"  # the engine's core in this process, to look at it
)
BLOCK = 32  # the smallest that vLLM's attention on the CPU takes
BLOCKS = 40


def main(folder, algorithm, requests):
    import tiny_model
    import watcher
    from llmd.hash import VllmHasher
    from vllm import LLM, SamplingParams
    from vllm.config import KVEventsConfig

    live, replay = (f"ipc://{folder}/{name}" for name in ("live", "replay"))
    engine = LLM(
        model=tiny_model.make(folder / "model"),
        enable_prefix_caching=True,
        prefix_caching_hash_algo=algorithm,
        block_size=BLOCK,
        num_gpu_blocks_override=BLOCKS,
        max_model_len=512,
        max_num_seqs=4,
        enforce_eager=True,
        dtype="bfloat16",
        disable_log_stats=False,
        kv_events_config=KVEventsConfig(
            enable_kv_cache_events=True,
            publisher="zmq",
            endpoint=live,
            replay_endpoint=replay,
            topic="kv@engine@m",
        ),
    )
    core = engine.llm_engine.engine_core.engine_core
    publisher = core.scheduler.kv_event_publisher
    hasher = core.request_block_hasher
    watchers = {
        removal: watcher.Watcher(live, replay, block_size=BLOCK, removal=removal)
        for removal in ("refcount", "set")
    }
    cached, queries, with_hits, keys = 0, 0, 0, set()

    prompts = itertools.count(3)

    def make_events(_=None):
        nonlocal queries
        queries += 40
        prompt = {"prompt_token_ids": [next(prompts)] * 40}
        engine.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)

    for one in watchers.values():
        one.joined(make_events)
    load = watcher.Load(1, BLOCK, tiny_model.VOCABULARY)
    ours = VllmHasher(algorithm, block_size=BLOCK, seed=os.environ.get("PYTHONHASHSEED"))
    wrong, first_wrong = dict.fromkeys(watchers, 0), []
    for number in range(requests):
        if number in (requests // 3, 2 * requests // 3):
            assert engine.reset_prefix_cache()
            make_events()  # vLLM announces a reset with its next step
        tokens, salt, generate = load.next()
        end = time.monotonic() + watcher.LIMIT
        while publisher._event_queue.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.0005)
        for one in watchers.values():
            one.wait_for(publisher._buffer[-1][0] if publisher._buffer else -1)
        predicted = {removal: one.predict(tokens, salt) for removal, one in watchers.items()}
        prompt = {"prompt_token_ids": tokens}
        if salt:
            prompt["cache_salt"] = salt
        parameters = SamplingParams(
            max_tokens=generate, temperature=1.0, seed=number, ignore_eos=True
        )
        output = engine.generate([prompt], parameters, use_tqdm=False)[0]
        for removal, value in predicted.items():
            if value != output.num_cached_tokens:
                wrong[removal] += 1
                first_wrong.append((removal, number, value, output.num_cached_tokens))
        cached += output.num_cached_tokens
        queries += len(tokens)
        with_hits += output.num_cached_tokens > 0
        if not salt:
            keys.update(int(key) for key in ours.block_keys(tokens))
        load.answered(tokens, salt, list(output.outputs[0].token_ids))
    metrics = {m.name: m.value for m in engine.get_metrics() if hasattr(m, "value")}
    for one in watchers.values():
        one.close()
    counted = watchers["refcount"]
    index = counted.index.stats()
    print(
        json.dumps(
            {
                "hasher": hasher.__globals__["__name__"],
                "requests": requests,
                "with_hits": with_hits,
                "prompt_tokens": queries,
                "cached_tokens": cached,
                "vllm_hits": metrics["vllm:prefix_cache_hits"],
                "vllm_queries": metrics["vllm:prefix_cache_queries"],
                "wrong": wrong,
                "first_wrong": first_wrong[:5],
                "unknown_parents": {r: w.unknown_parents for r, w in watchers.items()},
                "batches": counted.applied + 1,
                "resets": counted.clears,
                "stored": index.stored_blocks,
                "duplicates": index.duplicate_blocks,
                "removed": index.removed_blocks,
                "skipped": counted.ingestor.counters.skipped_groups
                + counted.ingestor.counters.skipped_sparse,
                "foreign_keys": len(keys - counted.stored),
                "keys": len(keys),
            }
        )
    )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
