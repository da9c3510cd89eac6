"""The example router over real worker processes: exact prefixes, streams, and workers that die.

Needs the example sim_worker, from the build tree or named by LLMD_SIM_WORKER.
"""

import http.client
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("zmq")

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 30.0


def find_worker():
    named = os.environ.get("LLMD_SIM_WORKER")
    found = [pathlib.Path(named)] if named else sorted(ROOT.glob("build/*/examples/sim_worker/sim_worker"))
    if not found or not found[0].exists():
        pytest.skip("no sim_worker: build the examples, or set LLMD_SIM_WORKER")
    return str(found[0])


def start(command):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith("ready"), line
    return process, dict(pair.split("=") for pair in line.split()[1:])


@pytest.fixture(scope="module")
def cluster():
    processes, arguments, names = [], [], []
    try:
        for _ in range(3):
            command = [find_worker(), "--port=0", "--model=m", "--kv-events-port=0", "--kv-replay-port=0"]
            process, ports = start([*command, "--host=127.0.0.1", "--time-scale=0.1", "--num-gpu-blocks=2000"])
            processes.append(process)
            names.append(f"127.0.0.1:{ports['http']}")
            arguments += ["--worker", f"{names[-1]},{ports['kv_events']},{ports['kv_replay']}"]
        router, ports = start(
            [sys.executable, str(ROOT / "examples" / "python_router.py"), "--port=0", "--model=m", *arguments]
        )
        processes.append(router)
        time.sleep(1)  # for the subscriptions
        yield int(ports["http"]), names, processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(LIMIT)


def ask(port, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    connection.request("POST" if body is not None else "GET", path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    text = response.read().decode()
    headers = {name.lower(): value for name, value in response.getheaders()}
    connection.close()
    return response.status, headers, text


def complete(port, prompt, **more):
    status, headers, text = ask(port, "/v1/completions", {"model": "m", "prompt": prompt, "max_tokens": 4} | more)
    assert status == 200, text
    return headers, json.loads(text)


def test_prompts_follow_their_prefix_exactly(cluster):
    port, names, _ = cluster
    prompts = [[1000 * n + i for i in range(200)] for n in range(1, 7)]
    served = {}
    for n, prompt in enumerate(prompts):
        headers, _ = complete(port, prompt)
        served[n] = headers["x-llmd-worker"]
    time.sleep(0.5)  # for the events
    assert set(served.values()) <= set(names)
    for n, prompt in enumerate(prompts):
        headers, answer = complete(port, prompt + [7, 8, 9])
        assert headers["x-llmd-worker"] == served[n]
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == 16 * int(headers["x-llmd-cached-blocks"]) >= 192


def test_texts_and_chats_are_tokenized_as_the_worker_does(cluster):
    port, _, _ = cluster
    messages = [{"role": "user", "content": "tell me a long story about a router " * 20}]
    for path, body in (
        ("/v1/completions", {"prompt": "once upon a time there was a scheduler " * 20}),
        ("/v1/chat/completions", {"messages": messages}),
    ):
        body |= {"model": "m", "max_tokens": 4}
        _, first, _ = ask(port, path, body)
        time.sleep(0.5)
        status, second, text = ask(port, path, body)
        assert status == 200 and second["x-llmd-worker"] == first["x-llmd-worker"]
        cached = json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == 16 * int(second["x-llmd-cached-blocks"]) > 0


def test_streams_come_piece_by_piece(cluster):
    port, _, _ = cluster
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    body = {"model": "m", "prompt": [5] * 40, "max_tokens": 50, "min_tokens": 50, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body))
    response = connection.getresponse()
    assert response.status == 200 and "event-stream" in response.getheader("content-type")
    reads, text = 0, b""
    while piece := response.read1(1 << 16):
        reads, text = reads + 1, text + piece
    assert text.rstrip().endswith(b"data: [DONE]") and text.count(b"data: ") >= 50 and reads > 5
    connection.close()


def test_other_paths_and_bad_requests(cluster):
    port, _, _ = cluster
    status, headers, text = ask(port, "/v1/models")
    assert status == 200 and "x-llmd-worker" in headers and json.loads(text)["data"][0]["id"] == "m"
    status, _, text = ask(port, "/v1/completions", "no object")
    assert status == 400 and "error" in json.loads(text)
    status, headers, text = ask(port, "/v1/completions", {"model": "unknown", "prompt": "x"})
    assert status == 404 and "x-llmd-worker" in headers and "unknown" in text  # as the worker says it


def test_bad_arguments():
    command = [sys.executable, str(ROOT / "examples" / "python_router.py"), "--model=m", "--worker=127.0.0.1:8000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 2 and "HOST:PORT,EVENTS,REPLAY" in done.stderr and "Traceback" not in done.stderr


def test_many_at_once_are_spread(cluster):
    port, names, _ = cluster
    seen = []

    def run(n):
        seen.append(complete(port, [50000 + n] * 100, max_tokens=20)[0]["x-llmd-worker"])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(seen) == 24 and set(seen) == set(names)


def test_a_dead_worker_is_passed_over(cluster):
    port, names, processes = cluster
    processes[0].kill()
    processes[0].wait(LIMIT)
    for n in range(10):
        headers, _ = complete(port, [70000 + n] * 100)
        assert headers["x-llmd-worker"] != names[0]
