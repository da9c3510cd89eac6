#!/usr/bin/env python3
"""Running the picker: health, graceful restart, certificates. operations_test.py --venv V --gateway G"""
import hashlib
import ssl
import subprocess
import time

import gateway_rig

if __name__ == "__main__":
    OPTIONS = gateway_rig.options(__doc__)

import grpc  # noqa: E402
import http_load  # noqa: E402
import picker_client as pc  # noqa: E402
from gateway_rig import free_ports, wait_for  # noqa: E402
from http_load import chat, post  # noqa: E402

CHAT = "/v1/chat/completions"
SERVICES = ("", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")
REQUEST = [(":method", "POST"), (":path", CHAT), ("content-type", "application/json")]


class Suite:
    def __init__(self, rig):
        self.rig = rig
        self.ports = rig.echo(3)
        self.endpoints = rig.endpoints(self.ports)

    def channel(self, port):
        # Channels of one address share their connection; here each must find out for itself.
        return grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])

    def statuses(self, port, services=(*SERVICES, "inference-extension", "no.such.Service")):
        channel = self.channel(port)
        result = {service: pc.health(channel, service) for service in services}
        channel.close()
        return result

    def health(self):
        """The table of spec gateway.md 2.9, leader election off."""
        gateway = self.rig.gateway(None, self.endpoints, flags=["--drain-timeout=3s", "--health-checking"])
        for port in (gateway.health, gateway.ext_proc):
            statuses = self.statuses(port)
            assert all(statuses[service] == "SERVING" for service in SERVICES), statuses
            # Without a leader, llm-d treats other names like readiness.
            assert statuses["no.such.Service"] == "SERVING", statuses
        channel = self.channel(gateway.health)
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch", request_serializer=pc.HealthRequest.SerializeToString,
                                     response_deserializer=pc.HealthResponse.FromString)(pc.HealthRequest(), timeout=5)
        try:
            list(watch)
            code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            code = error.code()
        assert code == grpc.StatusCode.UNIMPLEMENTED, code

        # A request that is under way when SIGTERM comes is finished, and so is one that comes while draining.
        data = self.channel(gateway.ext_proc)
        body = chat("under way")
        early = pc.Stream(data)
        early.send(pc.headers(REQUEST), pc.body(body[:10], end=False))
        time.sleep(0.1)
        gateway.process.terminate()
        wait_for("NOT_SERVING", lambda: self.statuses(gateway.health)["readiness"] == "NOT_SERVING", 2)
        for port in (gateway.health, gateway.ext_proc):
            statuses = self.statuses(port)
            assert statuses["liveness"] == "SERVING", statuses
            assert all(statuses[service] == "NOT_SERVING" for service in SERVICES if service != "liveness"), statuses
        late = pc.route(data, REQUEST, chat("while draining"))
        assert late.destination, late.status
        early.send(pc.body(body[10:]))
        first, second = early.next(), early.next()
        assert pc.Routed([first, second]).body == body
        early.close()
        assert gateway.stop() == 0, f"exit status {gateway.process.returncode}"

    def not_ready_without_endpoints(self):
        """No endpoint is a fact, not ignorance: the picker is ready, and refuses."""
        empty = self.rig.endpoints([], "none.json")
        gateway = self.rig.gateway(None, empty)
        assert self.statuses(gateway.health)["readiness"] == "SERVING"
        routed = pc.route(self.channel(gateway.ext_proc), REQUEST, chat("x"))
        assert routed.status == 503, routed.status
        gateway.stop()

    def graceful_restart(self):
        """Two pickers behind Envoy, restarted in turn under load: nobody notices."""
        flags = ["--health-checking", "--drain-timeout=2s"]
        ports = free_ports(2)
        pickers = [self.rig.gateway(None, self.endpoints, flags=flags, port=port) for port in ports]
        envoy = self.rig.envoy("e1.yaml", *pickers, health_checks=True)
        wait_for("healthy pickers", lambda: envoy.stat("cluster.picker.membership_healthy") == 2)

        def make(i):
            if i % 5 == 0:
                return CHAT, chat(f"stream {i}", stream=True), [("x-echo-stream", "10:0.08")]
            return CHAT, chat(f"plain {i} " * 100), [("x-echo-sleep", "0.02")]

        with http_load.Load(envoy.port, 60, make) as load:
            time.sleep(0.5)
            for at, port in enumerate(ports):
                assert pickers[at].stop() == 0
                pickers[at] = self.rig.gateway(None, self.endpoints, flags=flags, port=port)
                wait_for("both healthy again", lambda: envoy.stat("cluster.picker.membership_healthy") == 2)
                time.sleep(0.3)
        counts = http_load.summary(load.answers)
        assert set(counts) == {200}, counts
        assert all(answer.headers.get("x-went-into-resp-headers") for answer in load.answers), "not all were decided"
        envoy.stop()
        for picker in pickers:
            picker.stop()
        return f"{counts[200]} requests over two restarts, none failed"

    @staticmethod
    def certificate(folder, name):
        folder.mkdir(exist_ok=True)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
                        "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout",
                        folder / "tls.key.new", "-out", folder / "tls.crt.new"], check=True, capture_output=True)
        for file in ("tls.key", "tls.crt"):
            (folder / f"{file}.new").replace(folder / file)

    @staticmethod
    def served(port):
        return ssl.get_server_certificate(("127.0.0.1", port))

    def tls_reload(self):
        """TLS with a certificate of ours; another one is served after it was written, and no request is lost."""
        folder = self.rig.folder / "certificates"
        self.certificate(folder, "first")
        gateway = self.rig.gateway(None, self.endpoints, flags=[
            "--secure-serving=true", f"--cert-path={folder}", "--enable-cert-reload"])
        envoy = self.rig.envoy("e1.yaml", gateway, tls=True)
        first = self.served(gateway.ext_proc)
        assert first.strip() == (folder / "tls.crt").read_text().strip()
        with http_load.Load(envoy.port, 40, lambda i: (CHAT, chat(f"{i}"), [])) as load:
            time.sleep(0.3)
            self.certificate(folder, "second")
            start = time.monotonic()
            wait_for("the second certificate", lambda: self.served(gateway.ext_proc) != first, 30, 0.1)
            took = time.monotonic() - start
            assert self.served(gateway.ext_proc).strip() == (folder / "tls.crt").read_text().strip()
            credentials = grpc.ssl_channel_credentials((folder / "tls.crt").read_bytes())
            channel = grpc.secure_channel(f"127.0.0.1:{gateway.ext_proc}", credentials)
            assert pc.route(channel, REQUEST, chat("verified")).destination
            time.sleep(0.3)
        assert all(answer.ok for answer in load.answers), http_load.summary(load.answers)
        (folder / "tls.crt").write_text("no certificate")
        time.sleep(1.5)
        assert post(envoy.port, CHAT, chat("x")).ok, "a bad certificate file took the service down"
        envoy.stop()
        gateway.stop()
        return f"served after {took:.1f} s"

    def tls_self_signed(self):
        """As llm-d by default: TLS with a certificate made at start."""
        gateway = self.rig.gateway(None, self.endpoints, flags=["--secure-serving=true"])
        envoy = self.rig.envoy("e1.yaml", gateway, tls=True)
        assert post(envoy.port, CHAT, chat("x")).ok
        envoy.stop()
        gateway.stop()

    def standalone(self):
        """Without Envoy: the same decisions, bodies and streams through the picker's own proxy."""
        gateway = self.rig.gateway(None, self.endpoints, flags=["--proxy-port=0"])
        gateway.wait_endpoints(3)
        for size in (1_000, 100_000, 5_000_000):
            body = chat("x" * size)
            answer = post(gateway.proxy, CHAT, body)
            assert answer.ok, (answer.status, answer.body[:200])
            assert answer.json()["sha256"] == hashlib.sha256(body).hexdigest()
        stream = post(gateway.proxy, CHAT, chat("s", stream=True), [("x-echo-stream", "10:0.05")])
        assert stream.ok and stream.body.count(b"data: ") == 12 and stream.first < stream.seconds / 2, stream
        assert post(gateway.proxy, CHAT, b"{").status == 400
        assert post(gateway.proxy, "/v1/models", b"").ok
        with http_load.Load(gateway.proxy, 60, lambda i: (CHAT, chat(f"{i}"), [])) as load:
            time.sleep(0.5)
            self.rig.endpoints(self.ports[:1], self.endpoints.name)
            gateway.wait_endpoints(1)
            time.sleep(0.3)
        self.rig.endpoints(self.ports, self.endpoints.name)
        assert all(answer.ok for answer in load.answers), http_load.summary(load.answers)
        wait_for("nothing running", lambda: gateway.metrics().sum("llm_d_epp_request_running") == 0)
        gateway.stop()

    def seeds_arguments(self):
        """The arguments of the seed's manifest, as they are written there, but for the pool."""
        health, metrics = free_ports(2)
        port = free_ports(1)[0]
        config = self.rig.folder / "default-config.yaml"
        config.write_text("""apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: decode-filter
- type: prefix-cache-scorer
  parameters: {hashBlockSize: 5, maxPrefixBlocksToMatch: 256, lruCapacityPerServer: 31250}
- type: max-score-picker
- type: single-profile-handler
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: decode-filter
  - pluginRef: max-score-picker
  - pluginRef: prefix-cache-scorer
    weight: 50
""")
        process = gateway_rig.Process(self.rig, "seed", [
            self.rig.options.gateway, "-v", "4", "--zap-encoder", "json", "--grpcPort", port, "--grpcHealthPort", health,
            "-metricsPort", metrics, "--secureServing", "false", "-configFile", config, "--statusPort=0",
            "--endpointsFile", self.endpoints], ready=r"ready ext_proc=(\d+) health=(\d+) metrics=(\d+)")
        assert [int(p) for p in process.ready.groups()] == [port, health, metrics]
        assert self.statuses(health)["readiness"] == "SERVING"
        assert pc.route(self.channel(port), REQUEST, chat("seed")).destination
        wait_for("a log line for the decision", lambda: "127.0.0.1:" in process.log() and "echo" in process.log())
        process.kill()  # the drain of 30 s is the default

    def refused_arguments(self):
        """What is wrong with the command line or a file is said at once, with name and value."""
        bad = self.rig.folder / "bad.yaml"
        bad.write_text("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: no-such-plugin\n")
        for flags, word in (([f"--config-file={bad}"], "no-such-plugin"), (["--grpc-port=70000"], "70000"),
                            (["--no-such-flag"], "no-such-flag"), (["--config-file=/nowhere.yaml"], "/nowhere.yaml"),
                            (["--refresh-metrics-interval=1ms"], "refresh")):
            result = subprocess.run([self.rig.options.gateway, "--secure-serving=false", "--grpc-port=0",
                                     "--grpc-health-port=0", "--metrics-port=0", "--status-port=0", "--bind-address=127.0.0.1",
                                     f"--endpoints-file={self.endpoints}", *flags], capture_output=True, text=True, timeout=20)
            assert result.returncode != 0 and word in result.stderr, (flags, result)


def main(options):
    cases = gateway_rig.Cases(options)
    with gateway_rig.Rig(options, "operations") as rig:
        suite = Suite(rig)
        for name in ("health", "not_ready_without_endpoints", "graceful_restart", "tls_reload", "tls_self_signed",
                     "standalone", "seeds_arguments", "refused_arguments"):
            cases.run(name, getattr(suite, name))
        cases.check()


if __name__ == "__main__":
    main(OPTIONS)
