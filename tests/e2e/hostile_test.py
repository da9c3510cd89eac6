#!/usr/bin/env python3
"""Bad input over the real channel: refused or bounded, and the next request is served. hostile_test.py --venv V --gateway G"""
import random
import socket
import time

import gateway_rig

if __name__ == "__main__":
    OPTIONS = gateway_rig.options(__doc__)

import grpc  # noqa: E402
import picker_client as pc  # noqa: E402
from gateway_rig import wait_for  # noqa: E402
from http_load import chat, post  # noqa: E402

CHAT = "/v1/chat/completions"
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: session-affinity-scorer
  parameters: {strategy: session_id, sessionIdConfig: {sources: [{header: x-session-id}]}}
- type: queue-scorer
- type: prefix-cache-scorer
"""
MIB = 1 << 20


def request_headers(*more, path=CHAT):
    return [(":method", "POST"), (":path", path), ("content-type", "application/json"), *more]


class Suite:
    def __init__(self, rig):
        self.rig = rig
        self.ports = rig.echo(3)
        self.hosts = [f"127.0.0.1:{port}" for port in self.ports]
        self.gateway = rig.gateway(CONFIG, rig.endpoints(self.ports), flags=["--max-body-bytes=8388608"])
        self.gateway.wait_endpoints(3)
        self.envoy = rig.envoy("e1.yaml", self.gateway)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.gateway.ext_proc}", options=[
            ("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 32 * MIB)])

    def serves(self):
        """The picker is alive, serves the next request, and holds nothing of the last ones."""
        assert self.gateway.alive(), self.gateway.log()[-2000:]
        assert pc.route(self.channel, request_headers(), chat("fine")).destination in self.hosts
        assert post(self.envoy.port, CHAT, chat("fine")).ok
        wait_for("no stream in flight", lambda: self.gateway.metrics().sum("llm_d_epp_extproc_streams_inflight") == 0)

    def ends(self, *messages, raw=False):
        """Sends and returns (answers, status) when the server ended the stream; our half stays open."""
        stream = pc.Stream(self.channel, timeout=15, raw=raw).send(*messages)
        answers = []
        try:
            while True:
                answers.append(stream.next())
                if answers[-1].WhichOneof("response") == "immediate_response":
                    stream.close()
        except StopIteration:
            pass
        except grpc.RpcError:
            stream.close()
        return answers, stream.code()

    def garbage_messages(self):
        """Bytes that are no message end the stream with a status, which is for the failure mode to judge."""
        source = random.Random(2)
        for data in (b"\xff" * 50, b"\x12\xff\xff\xff\xff\x0f", b"\x00", source.randbytes(5000), b"\x12\x05abc"):
            answers, code = self.ends(data, raw=True)
            assert not answers and code not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED), (data[:8], code)
        for _ in range(200):
            data = bytearray(pc.headers(request_headers(("cookie", "session-id=x"))).SerializeToString())
            for _ in range(source.randrange(1, 6)):
                data[source.randrange(len(data))] = source.randrange(256)
            pc.Stream(self.channel, timeout=5, raw=True).send(bytes(data), pc.body(chat("x")).SerializeToString()).cancel()
        self.serves()

    def garbage_frames(self):
        """Bytes that are no HTTP/2, or break off, on the port itself."""
        source = random.Random(3)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        settings = b"\0\0\0\4\0\0\0\0\0"
        for data in (b"GET / HTTP/1.1\r\n\r\n", source.randbytes(4000), preface, preface + source.randbytes(2000),
                     preface + settings + b"\xff\xff\xff\1\5\0\0\0\1", b"\x16\x03\x01\x02\x00\x01"):
            for port in (self.gateway.ext_proc, self.gateway.health, self.gateway.metrics_port, self.gateway.status):
                with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                    connection.sendall(data)
        self.serves()

    def messages_out_of_order(self):
        body, response = pc.body(b"{}"), pc.headers([(":status", "200")], kind="response")
        for messages in ([body], [pc.headers(request_headers()), pc.headers(request_headers())], [pc.Request()],
                         [pc.trailers()]):
            answers, code = self.ends(*messages)
            kinds = [answer.WhichOneof("response") for answer in answers]
            assert code not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED) or "immediate_response" in kinds, \
                (messages, kinds, code)
        # A data plane may skip the request, or answer it by itself: there is nothing to decide, and the response passes.
        for before in ([], [pc.headers(request_headers())]):
            stream = pc.Stream(self.channel).send(*before, response, pc.body(b"x", kind="response"))
            assert [answer.WhichOneof("response") for answer in stream.rest()] == ["response_headers", "response_body"]
        self.serves()

    def unknown_enum_values(self):
        message = pc.headers(request_headers()).SerializeToString()
        for mode in (5, 77, -1):  # GRPC, which is not supported, and two that do not exist
            odd = pc.headers(request_headers(), modes=(mode, mode)).SerializeToString()
            answers, code = self.ends(odd, raw=True)
            assert not answers and code not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED), (mode, code)
        unknown = message + b"\x9a\x06\x03abc"  # field 99
        stream = pc.Stream(self.channel, raw=True).send(unknown, pc.body(chat("x")).SerializeToString())
        assert pc.Routed([stream.next(), stream.next()]).destination
        stream.close()
        self.serves()

    def oversized_headers(self):
        for pairs in ([(f"h{i}", "v") for i in range(5000)], [("big", "x" * MIB)], [("x" * 300_000, "v")]):
            routed = pc.route(self.channel, request_headers(*pairs), chat("x"))
            assert routed.status == 431, routed.status
        routed = pc.route(self.channel, request_headers(("big", "x" * 100_000)), chat("x"))
        assert routed.destination, routed.status
        self.serves()

    def oversized_body(self):
        """The limit is 8 MiB here; what is beyond is refused before it is held."""
        before = self.gateway.rss()
        piece = b'{"model":"m","prompt":"' + b"x" * (60_000 - 23)
        stream = pc.Stream(self.channel, timeout=30)
        stream.send(pc.headers(request_headers(path="/v1/completions")))
        for i in range(400):
            stream.send(pc.body(piece if i == 0 else b"x" * 60_000, end=False))
        answer = stream.next()
        assert answer.immediate_response.status.code == 413, answer
        stream.close()
        grown = self.gateway.rss() - before
        assert grown < 64 * MIB or self.rig.options.sanitized, f"{grown} bytes more"
        answer = post(self.envoy.port, CHAT, chat("x" * 9 * MIB))
        assert answer.status == 413, answer.status
        self.serves()

    def huge_message(self):
        """One message above gRPC's limit."""
        answers, code = self.ends(pc.headers(request_headers()), pc.body(b"x" * (9 * MIB)))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED or answers and answers[-1].immediate_response.status.code == 413
        self.serves()

    def bad_bodies(self):
        deep = b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        for body in (b"", b"\xff\xfe", b"null", b"[]", b'"x"', b"{", deep, b'{"model":1,"messages":[]}',
                     b'{"model":"m","messages":[{"role":"user","content":"\xff\xff"}]}',
                     b'{"model":"m","messages":"x"}', b'{"model":"m","messages":[]} trailing',
                     b'{"model":"m","messages":[{"role":"user","content":{"a":1}}]}', b"\0" * 1000):
            routed = pc.route(self.channel, request_headers(), body)
            assert routed.status == 400, (body[:60], routed.status)
            assert routed.immediate.body.startswith(b"inference error: BadRequest - "), routed.immediate.body
            routed.immediate.body.decode()
            assert len(routed.immediate.body) < 2000
        self.serves()

    def invalid_utf8_headers(self):
        for value in (b"\xff\xfe", b"\xc3", b"a\0b", bytes(range(1, 32)), b"\xed\xa0\x80"):
            pairs = [(name, value) for name in ("x-session-id", "cookie", "x-request-id", "x-llm-d-inference-fairness-id",
                                                "x-llm-d-model-name-rewrite", "user-agent", "x-session-token")]
            for pair in pairs:
                routed = pc.route(self.channel, request_headers(pair), chat("x"))
                assert routed.destination or routed.status in (400, 431), (pair, routed.status)
        self.serves()
        self.gateway.metrics().text.encode().decode("utf-8")

    def cookie_injection(self):
        """A session from a cookie ends up in no header, log line or metric that it could break out of."""
        for evil in (b"x\r\nx-injected: 1", b"x\nx-injected: 1", b"x\0y", b'"}\n{"evil": 1', b"x" * 5000,
                     b"\x1b[31mred", b"a,b;x-injected=1"):
            pairs = [("cookie", b"session-id=" + evil), ("x-session-id", evil), ("session-id", evil)]
            for pair in pairs:
                routed = pc.route(self.channel, request_headers(pair), chat("x"))
                assert routed.destination in self.hosts or routed.status == 400, routed.status
                for name, value in routed.headers.items():
                    assert not any(ord(c) < 32 for c in name + value), (name, value)
                assert "x-injected" not in routed.headers
        log = self.gateway.log() + self.gateway.stdout()
        assert "\nx-injected" not in log and "\x1b[31mred" not in log and '\n{"evil"' not in log
        # Through Envoy, where a line break cannot come in; the rest can.
        for evil in ('"}{"evil"', "x" * 5000, "a, b; x-injected=1"):
            answer = post(self.envoy.port, CHAT, chat("x"), [("cookie", f"session-id={evil}")])
            assert answer.ok and "x-injected" not in dict(answer.json()["headers"]), answer
        self.serves()

    def label_explosion(self):
        """Names that clients make up do not fill the metrics' page for ever."""
        for i in range(1300):
            body = chat("x", model=f"model-{i}")
            if i % 2:
                stream = pc.Stream(self.channel).send(pc.headers(request_headers(
                    ("x-llm-d-inference-fairness-id", f"flow-{i}"))), pc.body(body))
                stream.next()
                stream.cancel()
            else:
                pc.route(self.channel, request_headers(), body)
        metrics = self.gateway.metrics()
        models = {labels.get("model_name") for labels, _ in metrics.all("llm_d_epp_request_total")}
        assert 500 < len(models) <= 1002, len(models)
        assert "other" in models
        self.serves()
        return f"{len(models)} names, a page of {len(metrics.text) // 1024} KiB"

    def subset_of_100_000(self):
        hosts = [f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:8000" for i in range(100_000)]
        hint = {"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": hosts}}
        message = pc.headers(request_headers(), metadata=hint)
        stream = pc.Stream(self.channel).send(message, pc.body(chat("x")))
        assert stream.next().immediate_response.status.code == 503
        stream.close()
        self.serves()

    def huge_metrics_page(self):
        """A worker with a metrics page of 1 GB: cut off, memory bounded, the others go on."""
        victim = self.ports[0]
        before = self.gateway.rss()
        errors = self.gateway.metrics().sum("llm_d_epp_datalayer_poll_errors_total")
        self.rig.control(victim, metrics="huge")
        wait_for("errors", lambda: self.gateway.metrics().sum("llm_d_epp_datalayer_poll_errors_total") >= errors + 3, 30)
        peak = 0
        for _ in range(40):
            peak = max(peak, self.gateway.rss())
            time.sleep(0.05)
            assert pc.route(self.channel, request_headers(), chat("x")).destination in self.hosts
        sent = self.rig.control(victim, metrics="ok")["page_bytes"]
        assert sent < 256 * MIB, f"{sent} bytes of the page were read"
        assert peak - before < 160 * MIB or self.rig.options.sanitized, f"{(peak - before) // MIB} MiB more"
        self.serves()
        return f"at most {sent // MIB} MiB of a page read, {(peak - before) // MIB} MiB of memory more"

    def slow_loris(self):
        """Many streams and connections that never go on cost little and hold up nobody."""
        streams = [pc.Stream(self.channel, timeout=60).send(pc.headers(request_headers())) for _ in range(90)]
        sockets = [socket.create_connection(("127.0.0.1", self.gateway.ext_proc)) for _ in range(200)]
        start = time.monotonic()
        other = grpc.insecure_channel(f"127.0.0.1:{self.gateway.ext_proc}", options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(20):
            assert pc.route(other, request_headers(), chat("x")).destination
        assert time.monotonic() - start < 10
        for stream in streams:
            stream.cancel()
        for connection in sockets:
            connection.close()
        self.serves()

    def response_abuse(self):
        """Odd statuses, usages and floods in the response phase."""
        for pieces in ([b'{"usage":{"prompt_tokens":-5,"completion_tokens":1e300}}'], [b"\xff" * 1000],
                       [b'data: {"usage":{"prompt_tokens":"99999999999999999999"}}\n\n'] * 3, [b"x" * 60_000] * 200):
            routed, stream = pc.route(self.channel, request_headers(), chat("x"), keep=True)
            assert routed.destination
            stream.send(pc.headers([(":status", "99999999999"), ("content-type", "text/event-stream")], kind="response"))
            for i, piece in enumerate(pieces):
                stream.send(pc.body(piece, i == len(pieces) - 1, kind="response"))
            back = b"".join(a.response_body.response.body_mutation.streamed_response.body for a in stream.rest()
                            if a.WhichOneof("response") == "response_body")
            assert back == b"".join(pieces)
        self.serves()
        for _, value in self.gateway.metrics().all("llm_d_epp_request_input_tokens_sum"):
            assert value >= 0

    def memory(self):
        """All of this again and again does not pile up."""
        def round_of_abuse():
            self.bad_bodies()
            self.messages_out_of_order()
            self.oversized_headers()
            self.garbage_messages()
        round_of_abuse()
        before = self.gateway.rss()
        for _ in range(3):
            round_of_abuse()
        grown = self.gateway.rss() - before
        assert grown < 24 * MIB or self.rig.options.sanitized, f"{grown // 1024} KiB more after three more rounds"
        return f"{grown // 1024} KiB more after three more rounds"


def main(options):
    cases = gateway_rig.Cases(options)
    with gateway_rig.Rig(options, "hostile") as rig:
        suite = Suite(rig)
        for name in ("garbage_messages", "garbage_frames", "messages_out_of_order", "unknown_enum_values",
                     "oversized_headers", "oversized_body", "huge_message", "bad_bodies", "invalid_utf8_headers",
                     "cookie_injection", "subset_of_100_000", "response_abuse", "huge_metrics_page", "slow_loris",
                     "label_explosion", "memory"):
            cases.run(name, getattr(suite, name))
        cases.check()


if __name__ == "__main__":
    main(OPTIONS)
