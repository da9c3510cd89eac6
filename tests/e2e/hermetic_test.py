#!/usr/bin/env python3
"""The reference's hermetic suite as a table of our own, over a real gRPC channel: hermetic_test.py --venv V --gateway G

One case for each row (spec: gateway.md 8.1), and some that its unit tables have. Model servers are doubles whose load is
told to them; the picker reads it as it would a real server's.
"""
import base64
import json
import struct
import time

import gateway_rig

if __name__ == "__main__":
    OPTIONS = gateway_rig.options(__doc__)

import grpc  # noqa: E402
import picker_client as pc  # noqa: E402
from gateway_rig import wait_for  # noqa: E402

CHAT = "/v1/chat/completions"
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: lora-affinity-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: lora-affinity-scorer, weight: 6}
  - pluginRef: max-score-picker
"""
SESSIONS = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: session-affinity-%(kind)s
  parameters: {strategy: %(strategy)s%(more)s}
- type: %(load)s
schedulingProfiles:
- name: %(profile)s
  plugins:
  - pluginRef: session-affinity-%(kind)s
%(weight)s  - {pluginRef: %(load)s, weight: 1}
"""
PD_SESSIONS = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: disagg-profile-handler
  parameters: {deciders: {prefill: always-disagg-pd-decider}}
- type: always-disagg-pd-decider
- type: decode-filter
- type: prefill-filter
- type: queue-scorer
- type: session-affinity-scorer
  parameters: {strategy: encoded_endpoint_header, profileName: prefill}
schedulingProfiles:
- name: decode
  plugins: [{pluginRef: decode-filter}, {pluginRef: queue-scorer}]
- name: prefill
  plugins: [{pluginRef: prefill-filter}, {pluginRef: session-affinity-scorer, weight: 10}, {pluginRef: queue-scorer}]
"""
GRPC = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: vllmgrpc-parser
- type: openai-parser
- type: passthrough-parser
requestHandler:
  parsers: [{pluginRef: vllmgrpc-parser}, {pluginRef: openai-parser}, {pluginRef: passthrough-parser}]
"""


def sessions(kind, strategy):
    return SESSIONS % {
        "kind": kind, "strategy": strategy, "profile": "default", "load": "queue-scorer",
        "more": "" if strategy == "encoded_endpoint_header" else ", sessionIdConfig: {sources: [{header: x-session-id}]}",
        "weight": "" if kind == "filter" else "    weight: 10\n"}


def request_headers(path=CHAT, *more, method="POST"):
    return [(":method", method), (":path", path), (":authority", "test"), (":scheme", "http"), ("hi", "mom"),
            ("x-request-id", "test-request-id"), ("content-type", "application/json"), *more]


def chat(text="hello", model="my-model", **more):
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **more}).encode()


class Suite:
    def __init__(self, rig):
        self.rig = rig
        self.ports = rig.echo(3)
        self.hosts = [f"127.0.0.1:{port}" for port in self.ports]
        self.main = self.start(CONFIG)
        self.channel = self.open(self.main)

    def start(self, config, workers=None, **more):
        gateway = self.rig.gateway(config, self.rig.endpoints(self.ports if workers is None else workers,
                                                              f"endpoints-{self.rig.starts}.json"), **more)
        gateway.wait_endpoints(len(self.ports if workers is None else workers))
        return gateway

    @staticmethod
    def open(gateway):
        return grpc.insecure_channel(f"127.0.0.1:{gateway.ext_proc}")

    def load(self, *states, gateway=None):
        """Sets the servers' load, (waiting, kv, adapters), and waits until the picker knows it."""
        gateway = gateway or self.main
        scrapes = [self.rig.control(port, waiting=waiting, kv=kv, lora=lora)["scrapes"]
                   for port, (waiting, kv, lora) in zip(self.ports, states)]
        wait_for("the picker's second look at the load", lambda: all(
            self.rig.control(port)["scrapes"] >= before + 3 for port, before in zip(self.ports, scrapes)))
        time.sleep(0.05)

    def pick(self, *more, channel=None, body=None, path=CHAT, **options):
        return pc.route(channel or self.channel, request_headers(path, *more), body or chat(), **options)

    # --- rows of the suite

    def select_lower_queue_and_kv_cache(self):
        self.load((3, 0.2, ""), (0, 0.1, ""), (10, 0.2, ""))
        body = chat()
        routed = self.pick(body=body)
        assert routed.kinds == ["request_headers", "request_body"], routed.kinds
        assert routed.destination == self.hosts[1], routed.destination
        assert routed.metadata_destination == self.hosts[1], routed.metadata
        assert routed.headers["content-length"] == str(len(body)), routed.headers
        assert routed.clears_route_cache
        assert routed.body == body and routed.ends == [True]
        assert "x-gateway-destination-endpoint" not in routed.removed

    def select_active_lora(self):
        self.load((0, 0.2, "foo,bar"), (10, 0.1, "foo,sql-lora"), (8, 0.2, ""))
        assert self.pick(body=chat(model="sql-lora")).destination == self.hosts[1]

    def select_lora_with_room(self):
        self.load((10, 0.2, "foo,bar"), (10, 0.8, "foo"), (10, 0.9, "foo,bar"))
        assert self.pick(body=chat(model="sql-lora")).destination == self.hosts[1]

    def do_not_shed(self):
        self.load((10, 0.9, "foo,bar"), (10, 0.95, "foo"), (10, 0.95, "foo,bar"))
        for _ in range(5):
            routed = self.pick(("x-gateway-inference-objective", "critical"), body=chat(model="sql-lora"))
            assert routed.destination, routed.status

    def invalid_json_body(self):
        routed = self.pick(body=b"no healthy upstream")
        assert routed.status == 400, routed.status
        text = routed.immediate.body.decode()
        assert text.startswith("inference error: BadRequest - error unmarshaling request bodyMap: "), text

    def split_body(self):
        self.load((3, 0.2, ""), (0, 0.1, ""), (10, 0.2, ""))
        body = chat("x" * 300)
        pieces = [body[:1], body[1:50], b"", body[50:299], body[299:]]
        routed = pc.route(self.channel, request_headers(), *pieces)
        assert (routed.body, routed.destination) == (body, self.hosts[1])

    def body_end_in_an_empty_message(self):
        body = chat("tail")
        routed = pc.route(self.channel, request_headers(), body, b"")
        assert routed.body == body and sum(routed.ends) == 1

    def body_end_in_trailers(self):
        stream = pc.Stream(self.channel)
        body = chat("trailers")
        stream.send(pc.headers(request_headers()), pc.body(body, end=False), pc.trailers())
        answers = [stream.next() for _ in range(3)]
        routed = pc.Routed(answers)
        stream.close()
        assert routed.kinds == ["request_headers", "request_body", "request_trailers"], routed.kinds
        assert routed.body == body and routed.ends == [False]

    def no_backend_pods(self):
        gateway = self.start(CONFIG, workers=[])
        channel = self.open(gateway)
        routed = pc.route(channel, request_headers("/v1/models", method="GET"), end=True)
        assert routed.status == 500, routed.status
        assert routed.immediate.body == b"inference error: Internal - no pods available in datastore"
        routed = self.pick(channel=channel)
        assert routed.status == 503, routed.status
        text = routed.immediate.body.decode()
        assert text == ("inference error: ServiceUnavailable - failed to find endpoint candidates for serving the "
                        "request"), text
        assert pc.set_headers(routed.immediate.headers)["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
        channel.close()
        gateway.stop()

    def missing_model(self):
        for body in (b'{"messages":[{"role":"user","content":"hi"}]}', b'{"model":"","messages":[{"role":"user"}]}'):
            routed = self.pick(body=body)
            assert routed.status == 400, routed.status
            assert b"model not found in request body" in routed.immediate.body, routed.immediate.body

    def missing_prompt(self):
        routed = self.pick(body=b'{"model":"m"}', path="/v1/completions")
        assert routed.status == 400 and b"must have prompt field" in routed.immediate.body, routed.immediate

    def subset(self, hosts, kind=list, where="metadata", body=True):
        value = list(hosts) if kind is list else ", ".join(hosts)
        hint = {"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": value}}
        return self.pick(**{where: hint})

    def subset_best(self):
        self.load((3, 0.2, ""), (0, 0.1, ""), (10, 0.2, ""))
        for kind in (list, str):
            for where in ("metadata", "body_metadata"):
                assert self.subset(self.hosts, kind, where).destination == self.hosts[1]
                assert self.subset(self.hosts[1:2], kind, where).destination == self.hosts[1]

    def subset_partial(self):
        assert self.subset([self.hosts[2], "10.9.9.9:8000"]).destination == self.hosts[2]
        assert self.subset([self.hosts[2], "10.9.9.9:8000"], str).destination == self.hosts[2]

    def subset_none(self):
        for hosts in (["10.9.9.9:8000"], []):
            routed = self.subset(hosts)
            assert routed.status == 503, routed.status
            assert pc.set_headers(routed.immediate.headers)["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"

    def model_rewrite_by_header(self):
        body = b'{"model" : "pub\\u006cic",  "messages":[{"role":"user","content":"1e3 \\u00e9"}], "temperature": 1.0}'
        for name in ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"):
            routed, stream = self.pick((name, "a-much-longer-internal-name"), body=body, keep=True)
            sent = routed.body
            assert sent == body.replace(b'"pub\\u006cic"', b'"a-much-longer-internal-name"'), sent
            assert routed.headers["content-length"] == str(len(sent))
            stream.send(pc.headers([(":status", "200"), ("content-type", "application/json")], kind="response"),
                        pc.body(b'{"model":"a-much-longer-internal-name","choices":[]}', kind="response"))
            back = b"".join(answer.response_body.response.body_mutation.streamed_response.body
                            for answer in stream.rest())
            assert back == b'{"model":"public","choices":[]}', back

    def header_only_get(self):
        seen = set()
        for _ in range(40):
            routed = pc.route(self.channel, request_headers("/v1/models", method="GET"), end=True)
            assert routed.kinds == ["request_headers"] and "content-length" not in routed.headers
            seen.add(routed.destination)
        assert seen == set(self.hosts), seen

    def response(self, *pieces, kind="application/json", status="200"):
        routed, stream = self.pick(keep=True)
        stream.send(pc.headers([(":status", status), ("content-type", kind)], kind="response"))
        for i, piece in enumerate(pieces):
            stream.send(pc.body(piece, i == len(pieces) - 1, kind="response"))
        answers = stream.rest()
        assert stream.code() == grpc.StatusCode.OK, stream.details()
        assert answers[0].WhichOneof("response") == "response_headers", answers[0]
        marks = pc.set_headers(answers[0].response_headers.response.header_mutation)
        assert marks.get("x-went-into-resp-headers") == "true", marks
        return [answer.response_body.response.body_mutation.streamed_response for answer in answers[1:]]

    def response_buffering(self):
        text = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":10,"total_tokens":17}}'
        before = self.usage()
        for pieces in ((text,), (text[:20], text[20:]), (text[:20], text[20:], b"")):
            parts = self.response(*pieces)
            assert [(part.body, part.end_of_stream) for part in parts] == [(text, True)], parts
        assert [b - a for a, b in zip(before, self.usage())] == [21, 30]

    def response_invalid_json(self):
        parts = self.response(b'{"choices":[', b"not json")
        assert [(part.body, part.end_of_stream) for part in parts] == [(b'{"choices":[not json', True)], parts

    def usage(self):
        metrics = self.main.metrics()
        return [metrics.sum(f"llm_d_epp_request_{kind}_tokens_sum") for kind in ("input", "output")]

    def response_streaming(self):
        events = [b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n', b'data: {"choices":[],"usa',
                  b'ge":{"prompt_tokens":7,"completion_tokens":10,"total_tokens":17}}\n\n', b"data: [DONE]\n\n", b""]
        before = self.usage()
        parts = self.response(*events, kind="text/event-stream; charset=utf-8")
        assert [part.body for part in parts] == events, parts
        assert [part.end_of_stream for part in parts] == [False] * 4 + [True]
        after = self.usage()
        assert [b - a for a, b in zip(before, after)] == [7, 10], (before, after)

    def response_error_is_counted(self):
        before = self.main.metrics().sum("llm_d_epp_request_error_total", error_code="ModelServerError")
        self.response(b'{"error":"no"}', status="500")
        assert self.main.metrics().sum("llm_d_epp_request_error_total", error_code="ModelServerError") == before + 1

    def session_affinity(self, kind, strategy):
        gateway = self.start(sessions(kind, strategy))
        channel = self.open(gateway)
        self.load((5, 0.2, ""), (0, 0.1, ""), (5, 0.2, ""), gateway=gateway)
        if strategy == "encoded_endpoint_header":
            routed, stream = self.pick(channel=channel, keep=True)
            stream.send(pc.headers([(":status", "200")], kind="response"), pc.body(b"{}", kind="response"))
            answers = stream.rest()
            token = pc.set_headers(answers[0].response_headers.response.header_mutation)["x-session-token"]
            name = base64.b64decode(token).decode()
            assert name == f"default/worker-{self.ports[1]}", name
            bound = ("x-session-token", token)
        else:
            bound = ("x-session-id", "session-1")
            routed = self.pick(bound, channel=channel)
        assert routed.destination == self.hosts[1]
        self.load((0, 0.2, ""), (20, 0.9, ""), (5, 0.2, ""), gateway=gateway)
        assert self.pick(channel=channel).destination == self.hosts[0]
        for _ in range(5):
            assert self.pick(bound, channel=channel).destination == self.hosts[1]
        for token in ("not base64 !", base64.b64encode(b"default/nobody").decode(), ""):
            odd = ("x-session-token" if strategy == "encoded_endpoint_header" else "x-session-id", token)
            assert self.pick(odd, channel=channel).destination == self.hosts[0], token
        channel.close()
        gateway.stop()

    def session_affinity_pd(self):
        decode, *prefill = self.ports
        workers = [(decode, {"llm-d.ai/role": "decode"})] + [(port, {"llm-d.ai/role": "prefill"}) for port in prefill]
        gateway = self.start(PD_SESSIONS, workers)
        channel = self.open(gateway)
        self.load((0, 0.0, ""), (5, 0.0, ""), (0, 0.0, ""), gateway=gateway)
        routed, stream = self.pick(channel=channel, keep=True)
        assert routed.destination == self.hosts[0]
        assert routed.headers["x-prefiller-host-port"] == self.hosts[2], routed.headers
        stream.send(pc.headers([(":status", "200")], kind="response"), pc.body(b"{}", kind="response"))
        token = pc.set_headers(stream.rest()[0].response_headers.response.header_mutation)["x-session-token"]
        assert base64.b64decode(token).decode() == f"default/worker-{prefill[1]}"
        self.load((0, 0.0, ""), (0, 0.0, ""), (9, 0.0, ""), gateway=gateway)
        assert self.pick(channel=channel).headers["x-prefiller-host-port"] == self.hosts[1]
        bound = self.pick(("x-session-token", token), ("x-prefiller-host-port", "6.6.6.6:6"), channel=channel)
        assert bound.headers["x-prefiller-host-port"] == self.hosts[2]
        channel.close()
        gateway.stop()

    def grpc_generate_and_embed(self):
        gateway = self.start(GRPC)
        channel = self.open(gateway)
        self.load((5, 0.2, ""), (0, 0.1, ""), (5, 0.2, ""), gateway=gateway)
        tokenized = pc.Generate(request_id=b"r", stream=True)
        tokenized.tokenized.original_text = b"hi"
        tokenized.tokenized.input_ids.extend(range(100))
        tokenized.sampling_params.max_tokens = 5
        text = pc.Generate(request_id=b"r", text=b"hello")
        for path, message in (("Generate", tokenized), ("Generate", text), ("Embed", tokenized)):
            data = message.SerializeToString()
            frame = struct.pack(">BI", 0, len(data)) + data
            path = f"/vllm.grpc.engine.VllmEngine/{path}"
            routed = pc.route(channel, request_headers(path), frame[:7], frame[7:])
            assert routed.status == 200, (path, routed.immediate)
            assert (routed.destination, routed.body) == (self.hosts[1], frame), path
        for bad in (frame[:-1], b"\1" + frame[1:], struct.pack(">BI", 0, 3) + b"\xff\xff\xff", b"{}"):
            routed = pc.route(channel, request_headers("/vllm.grpc.engine.VllmEngine/Generate"), bad)
            assert routed.status == 400, (bad[:10], routed.status)
        channel.close()
        gateway.stop()

    # --- from the reference's unit tables

    def chunks_of_62000_bytes(self):
        for size, chunks in ((61_000, 1), (124_000, 2), (200_000, 4)):
            body = chat("")
            body = chat("x" * (size - len(body)))
            assert len(body) == size
            pieces = [body[at:at + 65_536] for at in range(0, size, 65_536)]
            routed = pc.route(self.channel, request_headers(), *pieces)
            assert routed.body == body and len(routed.chunks) == chunks, routed.chunks
            assert max(routed.chunks) <= 62_000 and routed.ends == [False] * (chunks - 1) + [True]

    def second_end_of_stream(self):
        body = chat("twice")
        stream = pc.Stream(self.channel)
        stream.send(pc.headers(request_headers()), pc.body(body), pc.body(b"", end=True))
        routed = pc.Routed([stream.next(), stream.next()])
        assert routed.body == body
        stream.send(pc.headers([(":status", "200")], kind="response"), pc.body(b"{}", kind="response"))
        kinds = [answer.WhichOneof("response") for answer in stream.rest()]
        assert kinds == ["response_headers", "response_body"], kinds

    def control_headers_are_removed(self):
        names = ["x-gateway-inference-objective", "x-llm-d-inference-fairness-id", "x-prefiller-host-port",
                 "x-gateway-destination-endpoint-served"]
        routed = self.pick(*[(name, "evil") for name in names])
        assert "evil" not in routed.headers.values(), routed.headers
        missing = set(names) - set(routed.removed)
        assert not missing, f"{missing} would reach the model server"

    def request_id_is_made(self):
        pairs = [pair for pair in request_headers() if pair[0] != "x-request-id"]
        ids = {pc.route(self.channel, pairs, chat()).headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3 and all(len(i) == 36 for i in ids), ids
        routed = self.pick()
        assert routed.headers.get("x-request-id", "test-request-id") == "test-request-id"

    def values_as_text(self):
        self.load((3, 0.2, ""), (0, 0.1, ""), (10, 0.2, ""))
        assert self.pick(raw=False).destination == self.hosts[1]

    def modes_not_told(self):
        body = chat("old Envoy")
        routed = pc.route(self.channel, request_headers(), body, modes=None)
        assert routed.body == body

    def headers_only(self):
        start = time.monotonic()
        routed = pc.route(self.channel, request_headers(), modes=(pc.NONE, pc.NONE))
        assert routed.kinds == ["request_headers"] and routed.destination in self.hosts
        assert time.monotonic() - start < 10

    def buffered(self):
        self.load((3, 0.2, ""), (0, 0.1, ""), (10, 0.2, ""))
        stream = pc.Stream(self.channel)
        stream.send(pc.headers(request_headers(), modes=(pc.BUFFERED, pc.NONE)))
        assert stream.next().WhichOneof("response") == "request_headers"
        stream.send(pc.body(chat()))
        answer = stream.next()
        headers = pc.set_headers(answer.request_body.response.header_mutation)
        assert headers["x-gateway-destination-endpoint"] == self.hosts[1], headers
        stream.close()

    def streamed(self):
        stream = pc.Stream(self.channel)
        stream.send(pc.headers(request_headers(), modes=(pc.STREAMED, pc.STREAMED)))
        assert pc.Routed([stream.next()]).destination in self.hosts
        for end in (False, False, True):
            stream.send(pc.body(b"part", end))
            assert stream.next().WhichOneof("response") == "request_body"
        stream.close()

    def refusal_ends_the_stream_well(self):
        stream = pc.Stream(self.channel)
        stream.send(pc.headers(request_headers()), pc.body(b"{"))
        answers = stream.rest()
        assert [a.WhichOneof("response") for a in answers] == ["immediate_response"]
        assert stream.code() == grpc.StatusCode.OK

    def observability_mode(self):
        message = pc.headers(request_headers())
        message.observability_mode = True
        body = pc.body(chat())
        body.observability_mode = True
        stream = pc.Stream(self.channel).send(message, body)
        assert stream.rest() == []

    def client_leaves(self):
        streams = [pc.Stream(self.channel).send(pc.headers(request_headers())) for _ in range(10)]
        wait_for("ten streams", lambda: self.main.metrics().sum("llm_d_epp_extproc_streams_inflight") >= 10)
        for stream in streams:
            stream.cancel()
        wait_for("no stream", lambda: self.main.metrics().sum("llm_d_epp_extproc_streams_inflight") == 0)
        wait_for("nothing running", lambda: self.main.metrics().sum("llm_d_epp_request_running") == 0)


def main(options):
    cases = gateway_rig.Cases(options)
    with gateway_rig.Rig(options, "hermetic") as rig:
        suite = Suite(rig)
        for name in ("select_lower_queue_and_kv_cache", "select_active_lora", "select_lora_with_room", "do_not_shed",
                     "invalid_json_body", "split_body", "body_end_in_an_empty_message", "body_end_in_trailers",
                     "no_backend_pods", "missing_model", "missing_prompt", "subset_best", "subset_partial", "subset_none",
                     "model_rewrite_by_header", "header_only_get", "response_buffering", "response_invalid_json",
                     "response_streaming", "response_error_is_counted", "chunks_of_62000_bytes", "second_end_of_stream",
                     "control_headers_are_removed", "request_id_is_made", "values_as_text", "modes_not_told",
                     "headers_only", "buffered", "streamed", "refusal_ends_the_stream_well", "observability_mode",
                     "client_leaves"):
            cases.run(name, getattr(suite, name))
        for kind in ("scorer", "filter"):
            for strategy in ("encoded_endpoint_header", "session_id"):
                cases.run(f"session_affinity_{kind}_{strategy}", suite.session_affinity, kind, strategy)
        cases.run("session_affinity_pd", suite.session_affinity_pd)
        cases.run("grpc_generate_and_embed", suite.grpc_generate_and_embed)
        cases.check()


if __name__ == "__main__":
    main(OPTIONS)
