"""Requests, sessions, hashing, metrics, endpoints files and the endpoint-picker protocol on bytes."""

import json
import struct

import llmd
import numpy as np
import pytest
from llmd import gateway, sched

# --- Requests ---


def test_chat_request():
    body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "h\u00e9"}],
            "max_tokens": 7,
            "stream": True,
            "stream_options": {"include_usage": True},
            "user": "u",
        }
    ).encode()
    request = gateway.parse_request("/v1/chat/completions", body)
    assert request.model == "m" and request.stream and request.include_usage and request.max_output_tokens == 7
    assert [(m.role, m.text) for m in request.messages] == [("system", ("be brief",)), ("user", ("h\u00e9",))]
    assert request.prompt_text == "be briefh\u00e9" and request.user == "u"
    assert json.loads(request.raw_messages)[1]["content"] == "h\u00e9"
    replaced = gateway.replace_model(body, request, 'a"b')
    assert json.loads(replaced) == json.loads(body) | {"model": 'a"b'}


def test_completions_of_tokens():
    request = gateway.parse_request("/v1/completions", b'{"model": "m", "prompt": [[1, 2], [3]]}')
    assert [p.tokens.tolist() for p in request.prompts] == [[1, 2], [3]] and request.max_output_tokens is None
    assert request.prompts[0].tokens.dtype == np.uint32


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": 1}', b'{"model": "m", "prompt": [-1]}', b"\xff\xfe"])
def test_bad_bodies(body):
    with pytest.raises(ValueError):
        gateway.parse_request("/v1/completions", body)


def test_limits_of_bodies():
    with pytest.raises(llmd.ResourceExhaustedError):
        gateway.parse_request("/v1/completions", b'{"model": "m", "prompt": "xxxxxxxxxxx"}', max_body_bytes=10)
    with pytest.raises(TypeError, match="body"):
        gateway.parse_request("/v1/completions", None)
    request = gateway.parse_request("/v1/completions", b'{"model": "m", "prompt": "x"}')
    with pytest.raises(ValueError, match="model_values"):
        gateway.replace_model(b"{}", request, "n")


def test_usage_of_streams():
    reader = gateway.UsageReader(event_stream=True)
    assert reader.usage is None
    text = (
        b'data: {"choices": []}\n\ndata: {"usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}\n\n'
    )
    for i in range(0, len(text), 7):
        reader.append(text[i : i + 7])
    reader.finish()
    assert reader.usage == gateway.Usage(5, 2, 7, 0)


# --- Affinity ---


def test_session_ids():
    reader = gateway.SessionIdReader()
    assert reader.read([("X-Session-Id", "a"), ("Cookie", "session-id=b")]) == gateway.SessionId("found", 0, "a")
    assert not reader.read({}) and reader.read({"x-session-id": "x" * 2000}).result == "too_long"
    assert reader.read({"x-session-id": "a\x01"}).result == "control"
    own = gateway.SessionIdReader([gateway.SessionSource("cookie", "sid")])
    assert own.read({"cookie": "a=1; sid=2"}).value == "2" == gateway.find_cookie("a=1; sid=2", "sid")
    with pytest.raises(ValueError, match="wanted header or cookie"):
        gateway.SessionIdReader([gateway.SessionSource("query", "a")])


def test_rings_and_tables():
    hosts = [f"10.0.0.{i}:8000" for i in range(5)]
    hashes = np.random.default_rng(1).integers(0, 2**64, 4000, dtype=np.uint64)
    for table in (gateway.RingHash(hosts), gateway.RingHash(hosts, function="murmurhash2"), gateway.Maglev(hosts)):
        picks = table.pick_many(hashes)
        assert [table.pick(int(h)) for h in hashes[:50]] == picks[:50].tolist()
        assert np.bincount(picks, minlength=5).min() > 400
    before, after = gateway.RingHash(hosts, min_ring_size=1000), gateway.RingHash(hosts[:4], min_ring_size=800)
    moved = before.pick_many(hashes) != after.pick_many(hashes)
    assert (before.pick_many(hashes)[moved] == 4).all(), "only the requests of the host that left move"
    assert gateway.RingHash([]).pick(1) is None and len(gateway.Maglev([])) == 0
    for bad in ({"max_ring_size": 0}, {"function": "md5"}):
        with pytest.raises(ValueError):
            gateway.RingHash(hosts, **bad)
    with pytest.raises(ValueError, match="prime"):
        gateway.Maglev(hosts, table_size=100)
    with pytest.raises(ValueError):
        gateway.RingHash(["a", "a"])


def test_bounded_load_passes_on():
    ring = gateway.RingHash(["a", "b", "c"])
    bounded = ring.bounded(125)
    host = ring.pick(42)
    assert bounded.pick(host, 42, [0, 0, 0]) == host
    busy = [0, 0, 0]
    busy[host] = 100
    assert bounded.pick(host, 42, busy) != host
    assert ring.bounded(0).pick(host, 42, busy) == host
    with pytest.raises(ValueError):
        ring.bounded(50)


def test_request_hashes():
    assert gateway.xxhash64("") == 0xEF46DB3751D8E999 and gateway.xxhash64(b"a") == gateway.hash_header("a")
    assert gateway.hash_header("a", "b") == gateway.hash_header("b", "a") != gateway.hash_header("a")
    assert gateway.combine_hashes([]) is None and gateway.combine_hashes([5]) == 5
    assert gateway.combine_hashes([1 << 63, 1]) == 0
    with pytest.raises(ValueError):
        gateway.hash_header()


# --- Metrics and endpoints ---

PAGE = """# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="m"} 3
vllm:num_requests_running{model_name="m"} 5
vllm:kv_cache_usage_perc{model_name="m"} 0.25
vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1
"""


def test_metrics_pages():
    reader = gateway.EngineMetricsReader()
    page = reader.read(PAGE, now=5)
    assert (page.waiting, page.running, page.kv_usage) == (3, 5, 0.25)
    assert (page.cache_block_size, page.cache_num_blocks) == (16, 100)
    assert page.problems == "" and page.adapters is None
    pool = sched.EndpointPool()
    handle = pool.add("a", "h", 1)
    reader.update(PAGE, pool, handle, now=5)
    problems = reader.update("vllm:num_requests_waiting 9\n", pool, handle, now=6)
    assert "running" in problems
    endpoint = pool.find(handle)
    assert (endpoint.waiting, endpoint.running, endpoint.updated) == (9, 5, 6.0)
    pool.remove(handle)
    with pytest.raises(llmd.NotFoundError):
        reader.update(PAGE, pool, handle)
    assert gateway.EngineMetricsReader("sglang").engine == "sglang"
    with pytest.raises(ValueError, match="engine is 'sgLang'"):
        gateway.EngineMetricsReader("sgLang")
    assert gateway.EngineMetricsReader(labels={"llm-d.ai/engine-type": "sgLang"}).engine == "vllm"
    with pytest.raises(ValueError, match="engineConfigs is an integer"):
        gateway.EngineMetricsReader(parameters={"engineConfigs": 5})


def test_endpoints_files():
    pool = sched.EndpointPool()
    first = gateway.EndpointsFile(
        "endpoints:\n"
        "- {name: a, address: 127.0.0.1, port: 8001, labels: {x: y}}\n"
        "- {name: b, address: 127.0.0.1, port: 0}\n"
    )
    assert first.endpoints == [
        {"name": "a", "namespace": "default", "address": "127.0.0.1", "port": 8001, "labels": {"x": "y"}}
    ]
    assert first.skipped_count == 1 and "port" in first.skipped[0]
    assert first.apply(pool).added == ("default/a",)
    change = gateway.EndpointsFile('{"endpoints": [{"name": "a", "address": "127.0.0.1", "port": 8002}]}').apply(pool)
    assert [(id, moved) for _, id, moved in change.changed] == [("default/a", True)]
    assert pool.find("default/a").port == 8002
    assert len(gateway.EndpointsFile("endpoints: []").apply(pool).removed) == 1 and len(pool) == 0
    with pytest.raises(ValueError, match="line 1"):
        gateway.EndpointsFile("hosts: []")
    with pytest.raises(ValueError):
        gateway.EndpointsFile("endpoints: [{name: a, address: h, port: 0}]", refuse_bad_entries=True)


# --- The protocol, written and read by hand ---


def varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out) + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(data):
    """[(number, value)] of a serialized message."""
    out, i = [], 0
    while i < len(data):
        key = shift = 0
        while True:
            key |= (data[i] & 127) << shift
            shift, i = shift + 7, i + 1
            if data[i - 1] < 128:
                break
        value = shift = 0
        if key & 7 == 1:
            value, i = struct.unpack("<d", data[i : i + 8])[0], i + 8
        else:
            while True:
                value |= (data[i] & 127) << shift
                shift, i = shift + 7, i + 1
                if data[i - 1] < 128:
                    break
            if key & 7 == 2:
                value, i = data[i : i + value], i + value
        out.append((key >> 3, value))
    return out


def headers_message(headers, end=False, number=2):
    entries = b"".join(field(1, field(1, k.encode()) + field(3, v.encode())) for k, v in headers.items())
    return field(number, field(1, entries) + (field(3, 1) if end else b""))


def body_message(body, end=True, number=4):
    return field(number, field(1, body) + (field(2, 1) if end else b""))


REQUEST_HEADERS = {
    ":method": "POST",
    ":path": "/v1/completions",
    "content-type": "application/json",
    "x-request-id": "r1",
}


def drain(stream):
    out = []
    while (answer := stream.next()) is not None:
        out.append(answer)
    return out


def routed():
    stream = gateway.ExtProcStream()
    assert stream.receive(headers_message(REQUEST_HEADERS), now=1) == "none"
    assert stream.receive(body_message(b'{"model": "m", "prompt": [1, 2, 3]}'), now=2) == "needs_decision"
    return stream


def test_protocol_decides():
    stream = routed()
    facts = stream.facts
    assert (facts.request_id, facts.api, facts.target_model) == ("r1", "completions", "m")
    assert facts.openai.prompts[0].tokens.tolist() == [1, 2, 3] and facts.complete == 2.0
    scheduler, pool = sched.Scheduler(sched.make_config(["queue-scorer"])), sched.EndpointPool()
    pool.add("a", "10.0.0.1", 8000)
    decision = scheduler.schedule(scheduler.request(facts.openai.prompts[0].tokens, model=facts.target_model), pool)
    flight = decision.dispatch()
    stream.decide_with(decision, {**flight.headers, "x-extra": "1", "x-gone": None}, now=3)
    answers = drain(stream)
    assert (
        b"x-gateway-destination-endpoint" in answers[0] and b"10.0.0.1:8000" in answers[0] and b"x-gone" in answers[0]
    )
    assert {number for answer in answers for number, _ in fields(answer)} & {1, 3}
    assert stream.facts is None and not stream.finished
    with pytest.raises(llmd.FailedPreconditionError):
        stream.decide(["10.0.0.1:8000"])
    assert stream.receive(headers_message({":status": "200"}, number=3), now=4) == "response_headers"
    stream.edit_response_headers({"x-seen": "yes"})
    assert any(b"x-seen" in answer for answer in drain(stream))
    body = b'{"usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}'
    assert stream.receive(body_message(body, number=5), now=5) == "response_end"
    assert stream.response.usage.prompt_tokens == 3 and stream.response.status == 200
    drain(stream)
    stream.close(now=6)
    assert stream.take_completion() == gateway.Completion("natural", True, 0, "")
    assert stream.take_completion() is None
    flight.close()


def test_protocol_refuses():
    stream = routed()
    with pytest.raises(ValueError, match="reason"):
        stream.refuse(429, reason="because")
    scheduler = sched.Scheduler(sched.make_config(["queue-scorer"]))
    stream.decide_with(scheduler.schedule(sched.Request(), sched.EndpointPool(), check=False))
    (answer,) = drain(stream)
    assert b"rejected-no-endpoints" in answer
    assert stream.take_completion().refused_with == 503
    malformed = gateway.ExtProcStream()
    malformed.receive(headers_message(REQUEST_HEADERS))
    assert malformed.receive(body_message(b"{")) == "request_refused"


def test_protocol_bad_messages_and_options():
    stream = gateway.ExtProcStream(gateway.ExtProcOptions(max_headers=1))
    assert stream.receive(headers_message(REQUEST_HEADERS)) == "request_refused"
    garbage = gateway.ExtProcStream()
    assert garbage.receive(b"\xff\xff\xff") == "failed"
    assert garbage.finished and garbage.status[0] != 0
    with pytest.raises(ValueError, match="assumed_request_body_mode"):
        gateway.ExtProcStream(gateway.ExtProcOptions(assumed_request_body_mode="grpc"))
    with pytest.raises(TypeError, match="message"):
        gateway.ExtProcStream().receive("text")
    with pytest.raises(ValueError):
        routed().decide(["bad\r\nheader"])
