"""Model servers without a model: each answers with the hash and the headers of what it got, byte for byte.

    python3 echo_upstream.py PORT...

    GET  /metrics             vLLM's metrics, with the values that /control set
    GET  /health, /v1/models  as a model server
    PUT  /control             a JSON object changes the server's state, and the answer is the state
    any other                 {"sha256", "bytes", "port", "method", "path", "headers": [[name, value], ...], "usage"};
                              with x-echo-stream: COUNT:SECONDS as that many server-sent events, that far apart; with
                              x-echo-sleep: SECONDS after a while

State: waiting, running, kv (0 to 1), lora (adapters, "a,b"), metrics ("ok", "refuse", "hang", "huge": a page of 1 GB), answer ("echo", a status such
as 503, "hang", "close"), and, counted here: requests, scrapes, page_bytes (the most that was sent of a huge page).
"""
import asyncio
import ctypes
import hashlib
import json
import signal
import sys
import time

HUGE = 1 << 30
PAGE = """# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{model_name="echo"}} {waiting}
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{model_name="echo"}} {running}
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{model_name="echo"}} {kv}
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="16",num_gpu_blocks="4096"}} 1
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{{max_lora="2",running_lora_adapters="{lora}",waiting_lora_adapters=""}} {now}
"""


class Server:
    def __init__(self, port):
        self.state = {"port": port, "waiting": 0, "running": 0, "kv": 0.0, "lora": "", "metrics": "ok", "answer": "echo",
                      "requests": 0, "scrapes": 0, "page_bytes": 0}

    async def serve(self, reader, writer):
        try:
            while await self.one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            writer.close()

    async def one(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        start, *lines = head[:-4].decode("latin-1").split("\r\n")
        method, path, _ = start.split(" ", 2)
        headers = [[name.lower(), value.strip()] for name, value in (line.split(":", 1) for line in lines)]
        by_name = dict(headers)
        digest, size, control = hashlib.sha256(), 0, b""
        async for piece in body_of(reader, by_name):
            digest.update(piece)
            size += len(piece)
            if path == "/control":
                control += piece
        if path == "/control":
            self.state.update(json.loads(control or b"{}"))
            return await answer(writer, 200, json.dumps(self.state).encode())
        if path == "/metrics":
            return await self.metrics(writer)
        if path in ("/health", "/v1/models"):
            return await answer(writer, 200, b'{"object":"list","data":[{"id":"echo","object":"model"}]}')
        self.state["requests"] += 1
        mode = self.state["answer"]
        if mode == "close":
            return False
        if mode == "hang":
            await asyncio.sleep(3600)
        if isinstance(mode, int):
            return await answer(writer, mode, b'{"object":"error","message":"as told","code":%d}' % mode)
        if "x-echo-sleep" in by_name:
            await asyncio.sleep(float(by_name["x-echo-sleep"]))
        echo = {"sha256": digest.hexdigest(), "bytes": size, "port": self.state["port"], "method": method, "path": path,
                "headers": headers, "object": "chat.completion", "model": "echo", "choices": [],
                "usage": {"prompt_tokens": 7, "completion_tokens": 10, "total_tokens": 17}}
        if "x-echo-stream" in by_name:
            count, pause = by_name["x-echo-stream"].split(":")
            return await stream(writer, echo, int(count), float(pause))
        return await answer(writer, 200, json.dumps(echo).encode())

    async def metrics(self, writer):
        self.state["scrapes"] += 1
        mode = self.state["metrics"]
        if mode == "hang":
            await asyncio.sleep(3600)
        if mode == "refuse":
            return await answer(writer, 503, b"no metrics today")
        if mode != "huge":
            return await answer(writer, 200, PAGE.format(**self.state, now=time.time()).encode(), "text/plain; version=0.0.4")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")
        lines = b'vllm:num_requests_waiting{model_name="%s"} 1\n' % (b"x" * 4000) * 16
        sent = 0
        while sent < HUGE:
            writer.write(b"%x\r\n%s\r\n" % (len(lines), lines))
            sent += len(lines)
            self.state["page_bytes"] = max(self.state["page_bytes"], sent)
            await writer.drain()
        return False


async def body_of(reader, headers):
    if "chunked" in headers.get("transfer-encoding", ""):
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            left = size
            while left:
                piece = await reader.read(min(left, 1 << 18))
                if not piece:
                    raise OSError("the body ends early")
                left -= len(piece)
                yield piece
            await reader.readuntil(b"\r\n")
            if size == 0:
                return
    left = int(headers.get("content-length", 0))
    while left:
        piece = await reader.read(min(left, 1 << 18))
        if not piece:
            raise OSError("the body ends early")
        left -= len(piece)
        yield piece


async def answer(writer, status, body, kind="application/json"):
    writer.write(b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (status, kind.encode(), len(body)))
    writer.write(body)
    await writer.drain()
    return True


async def stream(writer, echo, count, pause):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    usage = dict(echo["usage"], completion_tokens=count)
    for i in range(count + 2):
        if i < count:
            event = {"object": "chat.completion.chunk", "model": "echo", "choices": [{"delta": {"content": f" t{i}"}}]}
            if i == 0:
                event["echo"] = echo
        elif i == count:
            event = {"object": "chat.completion.chunk", "model": "echo", "choices": [], "usage": usage}
        text = b"data: [DONE]\n\n" if i > count else b"data: " + json.dumps(event).encode() + b"\n\n"
        writer.write(b"%x\r\n%s\r\n" % (len(text), text))
        await writer.drain()
        if i < count - 1:
            await asyncio.sleep(pause)
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


async def main(ports):
    servers = []
    for port in ports:
        servers.append(await asyncio.start_server(Server(port).serve, "127.0.0.1", port, limit=1 << 20, backlog=512))
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # dies with its parent
    asyncio.run(main([int(port) for port in sys.argv[1:]]))
