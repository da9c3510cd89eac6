"""An OpenAI-compatible router over vLLM-like workers that sends each prompt to where its beginning is cached.

    python_router.py --port 8000 --worker 127.0.0.1:8001,5557,5558 --worker 127.0.0.1:8002,5559,5560 --model m

A worker is host:port, then the ports of its KV events and of their replay. The router learns from the events what
each worker holds, asks a worker for the tokens of a text, decides, and passes the answer on as it comes.
"""

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from llmd import Error, gateway, index, sched
from llmd.vllm.events import AsyncKvEventSubscriber, apply_to

PRODUCER = "precise-prefix-cache-producer"  # of blocks of 16 tokens, as the workers have
CONFIG = sched.make_config(
    [
        PRODUCER,
        {"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": PRODUCER}},
        "queue-scorer",
        "active-request-scorer",
    ],
    {"default": {"prefix-cache-scorer": 3, "queue-scorer": 2, "active-request-scorer": 2}},
)
MAX_HEAD, MAX_BODY = 64 << 10, 64 << 20
OURS = {"host", "connection", "keep-alive", "content-length", "te", "upgrade", "expect"}
Pairs = list[tuple[str, str]]
Answer = tuple[str, Pairs, asyncio.StreamReader]


@dataclass
class Worker:
    address: str  # host:port
    events: str
    replay: str
    endpoint: sched.EndpointHandle
    publisher: int


async def read_head(reader: asyncio.StreamReader) -> tuple[str, Pairs]:
    """The first line and the headers of a message, names in lower case."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    pairs = (line.partition(":") for line in lines)
    return first, [(name.strip().lower(), value.strip()) for name, _, value in pairs]


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "transfer-encoding" in headers:
        raise ValueError("transfer-encoding is given, wanted content-length")
    length = int(headers.get("content-length", 0))
    if not 0 <= length <= MAX_BODY:
        raise ValueError(f"content-length is {length}, wanted at most {MAX_BODY}")
    return await reader.readexactly(length)


@contextlib.asynccontextmanager
async def call(address: str, method: str, path: str, body: bytes, headers: Pairs) -> AsyncIterator[Answer]:
    """Sends a request to a worker: status line and headers of the answer, and where to read its body."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), limit=MAX_HEAD)
    lines = [f"{method} {path} HTTP/1.1", f"host: {address}", "connection: close", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers if name not in OURS]
    try:
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        yield (*await read_head(reader), reader)
    finally:
        writer.close()


async def fetch(address: str, method: str, path: str, body: bytes = b"") -> bytes:
    """A worker's whole answer."""
    async with call(address, method, path, body, [("content-type", "application/json")]) as (status, headers, reader):
        if status.split()[1] != "200":
            raise ValueError(f"{path}: {status}")
        return await read_body(reader, dict(headers))


class Router:
    def __init__(self, workers: list[tuple[str, int, int, int]], model: str, removal: Any) -> None:
        self.model, self.pool, self.index = model, sched.EndpointPool(), index.PrefixIndex()
        self.scheduler = sched.Scheduler(CONFIG, exact=self.index)
        self.ingestor = index.KvEventIngestor(self.index)
        self.metrics, self.turn = gateway.EngineMetricsReader(), 0
        self.workers = [self.add(*worker, removal) for worker in workers]

    def add(self, host: str, port: int, events: int, replay: int, removal: Any) -> Worker:
        address = f"{host}:{port}"
        endpoint = self.pool.add(address, host, port)
        publisher = self.ingestor.add_publisher(address, model=self.model, gpu_removal=removal)
        return Worker(address, f"tcp://{host}:{events}", f"tcp://{host}:{replay}", endpoint, publisher)

    async def follow(self, worker: Worker) -> None:
        async with AsyncKvEventSubscriber(worker.events, replay=worker.replay) as events:
            async for item in events:
                apply_to(self.ingestor, worker.publisher, item)
                self.pool.bind_index(self.index)  # its holders appear with their first blocks

    async def scrape(self, worker: Worker) -> None:
        while True:
            with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                page = await asyncio.wait_for(fetch(worker.address, "GET", "/metrics"), 5)
                self.metrics.update(page, self.pool, worker.endpoint)
            await asyncio.sleep(0.2)  # without an answer its metrics age

    async def tokens_of(self, request: gateway.OpenAIRequest) -> Any:
        """Token ids of the first prompt."""
        if request.prompts and len(request.prompts[0].tokens):
            return request.prompts[0].tokens
        messages = request.raw_messages
        prompt = {"messages": json.loads(messages)} if messages else {"prompt": request.prompt_text}
        ask = json.dumps({"model": request.model} | prompt).encode()
        self.turn += 1
        for i in range(len(self.workers)):
            worker = self.workers[(self.turn + i) % len(self.workers)]
            try:
                return json.loads(await fetch(worker.address, "POST", "/tokenize", ask))["tokens"]
            except (OSError, asyncio.IncompleteReadError):
                continue
            except ValueError:
                break  # whoever gets the request says what is wrong with it
        return []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first, headers = await read_head(reader)
            method, path, _ = first.split(" ", 2)
            body = await read_body(reader, dict(headers))
            await self.route(method, path, headers, body, writer)
        except (Error, ValueError) as error:
            decision = getattr(error, "decision", None)
            status = HTTPStatus(400 if decision is None else decision.http_status)
            text = json.dumps({"error": {"message": str(error), "code": status}})
            head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            writer.write(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client went away, or sent no HTTP
        finally:
            writer.close()

    async def route(self, method: str, path: str, headers: Pairs, body: bytes, writer: asyncio.StreamWriter) -> None:
        tokens: Any = []
        if method == "POST" and gateway.api_of_path(path) in ("chat completions", "completions"):
            tokens = await self.tokens_of(gateway.parse_request(path, body))
        request = self.scheduler.request(tokens, model=self.model, headers=headers, size_bytes=len(body))
        chain, candidates = request.prompts[0].chains[sched.EXACT], self.pool.endpoints()
        while True:
            decision = self.scheduler.schedule(request, self.pool, candidates=candidates)
            worker = next(w for w in self.workers if w.endpoint == decision.target.handle)
            cached = self.index.by_endpoint(self.index.match(chain.namespace, chain.keys)).get(worker.address, 0)
            begun = False
            try:
                with decision.dispatch():  # counts as load until the answer has ended
                    async with call(worker.address, method, path, body, headers) as (status, answer, upstream):
                        begun = True
                        answer += [("x-llmd-worker", worker.address), ("x-llmd-cached-blocks", str(cached))]
                        lines = [status, *(f"{name}: {value}" for name, value in answer)]
                        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
                        while piece := await upstream.read(1 << 16):
                            writer.write(piece)
                            await writer.drain()
                return
            except (OSError, asyncio.IncompleteReadError):
                if begun:
                    raise
                candidates = [e for e in candidates if e.handle != worker.endpoint]  # it is dead: ask another one


def address(text: str) -> tuple[str, int, int, int]:
    host, _, ports = text.rpartition(":")
    port, events, replay = map(int, ports.split(","))
    return host, port, events, replay


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="to listen on, on 127.0.0.1; 0: any (8000)")
    parser.add_argument("--model", required=True, help="as the workers name it")
    parser.add_argument("--worker", action="append", required=True, metavar="HOST:PORT,EVENTS,REPLAY",
                        type=address, help="HTTP address, ports of KV events and replay; once for each")  # fmt: skip
    parser.add_argument("--gpu-removal", choices=("set", "refcount"), default="set", help="refcount for vLLM (set)")
    options = parser.parse_args()
    router = Router(options.worker, options.model, options.gpu_removal)
    server = await asyncio.start_server(router.serve, "127.0.0.1", options.port, limit=MAX_HEAD)
    print(f"ready http={server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        tasks = [f(w) for f in (router.follow, router.scrape) for w in router.workers]
        await asyncio.gather(server.serve_forever(), *tasks)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
