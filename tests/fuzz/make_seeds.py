#!/usr/bin/env python3
"""Writes seed corpora for the fuzzers: make_seeds.py GOLDEN_DIR CORPUS_DIR."""
import json
import pathlib
import sys


def write(folder, name, data):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name.replace("/", "_")).write_bytes(data)


def event_decoder(vectors, folder):
    for case in vectors["cases"]:
        write(folder, case["id"], bytes.fromhex(case["payload_hex"]))


def publisher_stream(folder):
    # One byte of options, then steps of 4 bytes: operation, sequence, payload, milliseconds / 64.
    connect, live, batch, end, fail, tick = range(6)
    scripts = {
        "rebuild": [(connect, 0), (batch, 0), (live, 2), (batch, 1), (batch, 2), (end, 0), (live, 3)],
        "gap": [(connect, 0), (end, 0), (live, 0), (live, 4), (batch, 1), (batch, 2), (batch, 3), (end, 0)],
        "restart": [(connect, 0), (end, 0), (live, 0), (live, 1), (live, 0), (batch, 0), (end, 0)],
        "reconnect": [(connect, 0), (end, 0), (live, 0), (live, 1), (connect, 0), (batch, 1), (end, 0)],
        "give_up": [(connect, 0), (end, 0), (live, 0), (live, 4), (fail, 0), (tick, 0), (fail, 0), (tick, 0),
                    (fail, 0), (live, 5), (tick, 0), (live, 6)],
    }
    for mode in range(4):
        for name, steps in scripts.items():
            data = bytes([mode]) + b"".join(bytes([op, seq, 0, 200 if op == tick else 2]) for op, seq in steps)
            write(folder, f"{name}_{mode}", data)


def ingest(vectors, folder):
    # Steps: operation, 16-bit length, payload. Each vector alone, then twice around a clear, then all in one.
    def apply(case, publisher):
        payload = bytes.fromhex(case["payload_hex"])
        return bytes([publisher]) + len(payload).to_bytes(2, "little") + payload

    cases = [case for case in vectors["cases"] if len(case["payload_hex"]) < 2 * 65536]
    for case in cases:
        write(folder, case["id"], apply(case, 0) + apply(case, 1) + bytes([8]) + apply(case, 0))
    write(folder, "all", b"".join(apply(case, i % 4) for i, case in enumerate(cases)))


def kv_publisher(vectors, folder):
    # Steps: operation, detail, and for messages a 16-bit length and the payload.
    def message(operation, detail, case):
        payload = bytes.fromhex(case["payload_hex"])
        return bytes([operation, detail]) + len(payload).to_bytes(2, "little") + payload

    up, down, live, answer, tick, retire = 0, 2, 4, 8, 0xFC, 14
    end = bytes([answer, 0xE0, 0, 0])
    for case in vectors["cases"]:
        if len(case["payload_hex"]) >= 2 * 65536:
            continue
        steps = bytes([up, 0]) + message(answer, 0x80, case) + end
        steps += message(live, 1 << 2, case) + message(live, 4 << 2, case) + message(answer, 0x82, case) + end
        steps += bytes([down, 0, tick, 0, up, 0]) + message(live, (1 << 2) | 1, case) + bytes([retire, 0])
        write(folder, case["id"], steps)


def config_file(tests, folder):
    for path in [*tests.glob("configs/*.yaml"), *tests.glob("config_corpus/*.yaml")]:
        write(folder, path.name, path.read_bytes())


def session_cookie(folder):
    cookies = ["a=1; session-id=abc; b=2", "session-id=;session-id==x;=session-id=ab=cd", " \t session_id=\"a;b\""]
    for i, cookie in enumerate(cookies):
        write(folder, f"cookie_{i}", cookie.encode())
    write(folder, "headers", b"\x00x\n\x01s\n\x02session-id=c; session_id=d\n\x00y\n\x04o\r")


def prometheus_text(folder):
    label = 'engine="%d",model_name="m\\n\\"\\\\"'
    vllm = "# HELP a b\n# TYPE vllm:num_requests_waiting gauge\n"
    for name, value in (("num_requests_waiting", "3.0"), ("num_requests_running", "NaN"), ("kv_cache_usage_perc", "5e-1")):
        vllm += "".join(f"vllm:{name}{{{label % rank}}} {value} {rank}\n" for rank in range(2))
    vllm += ('vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0\n'
             'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a, b",waiting_lora_adapters=""} 1.8e9\n'
             '# TYPE h histogram\nh_bucket{le="+Inf"} 5 # {trace_id="x"} 0.5 1.5\n# EOF\n')
    sglang = 'sglang:num_queue_reqs{dp_rank="1",tp_rank="0"} 1\nsglang:page_size 1.0\nsglang:token_usage +Inf\n'
    triton = 'nv_trt_llm_request_metrics{request_type="waiting"} 3\n# TYPE nv_inference_exec_count counter\nb_total 2\r\n'
    for name, page in (("vllm", vllm), ("sglang", sglang), ("triton", triton)):
        write(folder, name, page.encode())


def openai_request(folder):
    # One byte that chooses the interface, then the body.
    chat = '{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"h\\u00e9"},{"type":"image_url",' \
           '"image_url":{"url":"u"}}]}],"tools":[{}],"stream":true,"stream_options":{"include_usage":true},"max_tokens":5}'
    bodies = {
        "chat": (1, chat),
        "text": (2, '{"model":"m","prompt":["a","b\\n"],"max_tokens":1}'),
        "tokens": (2, '{"prompt":[1,2.0,3e1],"model":"m"}'),
        "responses": (3, '{"model":"m","input":[{"role":"user","content":"x"}],"instructions":"i","conversation":{"id":"c"}}'),
        "conversations": (4, '{"items":[{"content":"x"}],"metadata":{"a":"b"}}'),
        "embeddings": (5, '{"model":"m","input":[[1],[2]]}'),
        "images": (6, '{"model":"m","prompt":"x"}'),
        "messages": (7, '{"model":"m","system":[{"type":"text","text":"s"}],"messages":[{"content":"x"}],"max_tokens":5}'),
        "generate": (8, '{"token_ids":[1,2],"features":{"mm_hashes":{"image":["h"]},"mm_placeholders":{"image":[{"offset":1,'
                        '"length":2}]}},"sampling_params":{"max_tokens":3}}'),
        "sglang": (9, '{"input_ids":[1],"sampling_params":{"max_new_tokens":2}}'),
        "usage": (0, 'data: {"model":"m","usage":{"prompt_tokens":1,"completion_tokens":2}}\n\ndata: [DONE]\n'),
    }
    for name, (api, body) in bodies.items():
        write(folder, name, bytes([api]) + body.encode())
    write(folder, "grpc", bytes([10, 0, 0, 0, 0, 6, 0x12, 4, 0x12, 2, 1, 2]))


def ext_proc_stream(folder):
    # ProcessingRequests are written by hand: field number and wire type 2, length, payload.
    def field(number, payload):
        return bytes([number << 3 | 2, *([len(payload)] if len(payload) < 128 else [len(payload) & 127 | 128, len(payload) >> 7])]) + payload

    def header(key, value):
        return field(1, field(1, key) + field(3, value))

    def step(operation, payload=b""):
        return len(payload).to_bytes(2, "little") + bytes([operation]) + payload

    def body(number, data, end):
        return step(0, field(number, field(1, data) + (b"\x10\x01" if end else b"")))

    decide, refuse, evict, drain = 4, 6, 7, 11
    chat = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    for mode in range(5):
        config = field(11, bytes([8, mode, 16, mode]))
        headers = step(0, field(2, field(1, header(b":method", b"POST") + header(b":path", b"/v1/chat/completions"))) + config)
        response = step(0, field(3, field(1, header(b":status", b"200") + header(b"content-type", b"text/event-stream"))))
        event = b'data: {"model":"m","usage":{"prompt_tokens":1}}\n\n'
        served = headers + body(4, chat[:20], False) + body(4, chat[20:], True) + step(decide) + step(drain) + response
        write(folder, f"served_{mode}", bytes([0]) + served + body(5, event, False) + body(5, b"", True))
        write(folder, f"rewritten_{mode}", bytes([16]) + headers + body(4, chat, True) + step(5, b"other") + step(decide) + response)
        write(folder, f"refused_{mode}", bytes([2]) + headers + body(4, chat, True) + step(refuse, b"no"))
        write(folder, f"trailers_{mode}", bytes([96]) + headers + body(4, chat, False) + step(0, field(6, b"")) + step(decide)
              + response + step(0, field(7, b"")))
        write(folder, f"evicted_{mode}", bytes([1]) + served + step(evict))


def main():
    golden, corpus = map(pathlib.Path, sys.argv[1:3])
    vectors = json.loads((golden / "kv_events.json").read_text())
    config_file(golden.parent / "sched", corpus / "fuzz_config_file")
    event_decoder(vectors, corpus / "fuzz_event_decoder")
    ingest(vectors, corpus / "fuzz_ingest")
    kv_publisher(vectors, corpus / "fuzz_kv_publisher")
    publisher_stream(corpus / "fuzz_publisher_stream")
    session_cookie(corpus / "fuzz_session_cookie")
    prometheus_text(corpus / "fuzz_prometheus_text")
    openai_request(corpus / "fuzz_openai_request")
    ext_proc_stream(corpus / "fuzz_ext_proc_stream")


if __name__ == "__main__":
    main()
