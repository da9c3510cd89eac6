"""An engine that runs, with llmd's index beside it: its cache hits must be as foretold."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import tiny_model
import watcher

HERE = pathlib.Path(__file__).parent
BLOCK = 32
# One thread: several wait for one another by spinning, which takes minutes on a busy machine.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
REQUESTS = int(os.environ.get("LLMD_VLLM_REQUESTS", "200"))


@pytest.mark.parametrize(
    "hashing, algorithm, seed",
    [("0", "sha256", None), ("1", "sha256", None), ("1", "xxhash_cbor", "42")],
)
def test_the_index_foretells_every_hit(tmp_path, hashing, algorithm, seed):
    environment = {**ENVIRONMENT, "LLMD_VLLM_HASHING": hashing}
    if seed is not None:
        environment["PYTHONHASHSEED"] = seed
    run = subprocess.run(
        [sys.executable, str(HERE / "engine_run.py"), str(tmp_path), algorithm, str(REQUESTS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    result = json.loads(run.stdout.splitlines()[-1])
    print(result)
    assert result["hasher"] == (
        "llmd.vllm.hashing" if hashing == "1" else "vllm.v1.core.kv_cache_utils"
    )
    # Every request, with hits, copies, evictions and resets among them.
    assert result["wrong"]["refcount"] == 0, result["first_wrong"]
    assert result["unknown_parents"]["refcount"] == 0
    assert result["cached_tokens"] == result["vllm_hits"] > result["prompt_tokens"] // 10
    assert result["prompt_tokens"] == result["vllm_queries"]
    assert result["with_hits"] > REQUESTS // 4 and result["resets"] == 2 and result["skipped"] == 0
    assert result["removed"] > 100 and result["duplicates"] > 0
    # The engine's own hashes are those that llmd computes from tokens alone.
    assert result["keys"] > 50 and result["foreign_keys"] == 0


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
    "loggers": {
        name: {"handlers": ["out"], "level": "INFO", "propagate": False}
        for name in ("vllm", "llmd")
    },
}


@contextlib.contextmanager
def server(folder):
    """vLLM's HTTP server on the loopback interface, its engine in a process of its own."""
    port = free_port()
    (folder / "logging.json").write_text(json.dumps(LOGGING))
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"ipc://{folder}/live",
        "replay_endpoint": f"ipc://{folder}/replay",
        "topic": "kv@engine@m",
    }
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", tiny_model.make(folder / "model")),
        *(
            "--served-model-name",
            "m",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--enforce-eager",
        ),
        *(
            "--enable-prefix-caching",
            "--kv-events-config",
            json.dumps(events),
            "--block-size",
            str(BLOCK),
        ),
        *("--num-gpu-blocks-override", "40", "--max-model-len", "512", "--max-num-seqs", "4"),
        *("--dtype", "bfloat16", "--enable-prompt-tokens-details"),
    ]
    environment = {
        **ENVIRONMENT,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_LOGGING_CONFIG_PATH": str(folder / "logging.json"),
    }
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url + "/health", timeout=5).close()
                break
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.5)
        yield url, log
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(
            ProcessLookupError
        ):  # its engine and workers, if they are still there
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def post(url, body=None):
    request = urllib.request.Request(
        url, data=json.dumps(body or {}).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def test_the_index_foretells_the_hits_of_a_server(tmp_path):
    load = watcher.Load(2, BLOCK, tiny_model.VOCABULARY)
    cached = 0
    with server(tmp_path) as (url, log):
        beside = watcher.Watcher(
            f"ipc://{tmp_path}/live",
            f"ipc://{tmp_path}/replay",
            block_size=BLOCK,
            removal="refcount",
        )
        try:

            def make_events(number):
                body = {"model": "m", "prompt": [3 + number] * 40, "max_tokens": 1}
                post(url + "/v1/completions", body)

            beside.joined(make_events)
            for number in range(80):
                if number == 50:
                    post(url + "/reset_prefix_cache")
                    make_events(100)  # vLLM announces a reset with its next step
                tokens, salt, generate = load.next()
                beside.catch_up()
                predicted = beside.predict(tokens, salt)
                body = {
                    "model": "m",
                    "prompt": tokens,
                    "max_tokens": generate,
                    "ignore_eos": True,
                    "seed": number,
                }
                answer = post(
                    url + "/v1/completions", {**body, **({"cache_salt": salt} if salt else {})}
                )
                details = answer["usage"]["prompt_tokens_details"] or {}
                assert details.get("cached_tokens", 0) == predicted, (number, tokens, salt)
                cached += predicted
            metrics = urllib.request.urlopen(url + "/metrics", timeout=30).read().decode()
            (hits,) = re.findall(r"^vllm:prefix_cache_hits_total\{.*\} (.*)$", metrics, re.M)
            assert float(hits) == cached > 1000
            assert (
                beside.clears == 1
                and not beside.unknown_parents
                and beside.index.stats().removed_blocks > 50
            )
        finally:
            beside.close()
        assert "llmd: sha256 block hashes of requests are made in C++" in log.read_text()
