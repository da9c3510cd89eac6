"""HTTP clients for tests: one request at a time with exact bytes, and load at a rate, on asyncio and plain sockets."""
import asyncio
import dataclasses
import json
import time


@dataclasses.dataclass
class Answer:
    status: int = 0              # 0: no answer
    headers: dict = dataclasses.field(default_factory=dict)
    body: bytes = b""
    error: str = ""              # why there is none
    seconds: float = 0.0         # until its end
    first: float = 0.0           # until the first byte of the body
    gaps: list = dataclasses.field(default_factory=list)  # between pieces of the body
    cut: bool = False            # ended early

    def json(self):
        return json.loads(self.body)

    @property
    def upstream(self):
        return self.headers.get("x-upstream-host", "")

    @property
    def ok(self):
        return self.status == 200 and not self.cut


class Connection:
    """Kept open between requests; opened again when it is closed."""

    def __init__(self, port, host="127.0.0.1"):
        self.host, self.port, self.reader, self.writer = host, port, None, None

    async def request(self, path, body=b"", headers=(), method=None, timeout=60.0, on_first=None, chunk=None):
        """Never raises for what the network does: see Answer.error. `chunk`: send the body in chunks of this size."""
        start = time.monotonic()
        answer = Answer()
        try:
            async with asyncio.timeout(timeout):
                reused = self.writer is not None
                try:
                    await self._exchange(answer, path, body, headers, method, start, on_first, chunk)
                except ConnectionError:
                    if not reused or answer.status:
                        raise
                    self.close()  # the kept connection was closed meanwhile
                    await self._exchange(answer, path, body, headers, method, start, on_first, chunk)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
            answer.cut = True
            self.close()
        answer.seconds = time.monotonic() - start
        return answer

    async def _exchange(self, answer, path, body, headers, method, start, on_first, chunk):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=1 << 20)
        length = ["transfer-encoding: chunked"] if chunk else [f"content-length: {len(body)}"] if body else []
        lines = [f"{method or ('POST' if body else 'GET')} {path} HTTP/1.1", *length]
        if not any(name.lower() == "host" for name, _ in headers):
            lines.append("host: test")
        if body and not any(name.lower() == "content-type" for name, _ in headers):
            lines.append("content-type: application/json")
        head = "\r\n".join(lines).encode()
        for name, value in headers:
            head += b"\r\n" + name.encode() + b": " + (value if isinstance(value, bytes) else str(value).encode())
        self.writer.write(head + b"\r\n\r\n")
        if chunk:
            for at in range(0, len(body), chunk):
                piece = body[at:at + chunk]
                self.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.writer.write(b"0\r\n\r\n")
        else:
            self.writer.write(body)
        await self.writer.drain()
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("closed without an answer") from error
        start_line, *lines = head[:-4].decode("latin-1").split("\r\n")
        answer.headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        answer.status = int(start_line.split()[1])
        last = None
        pieces = []
        async for piece in self._body(answer.headers):
            now = time.monotonic()
            if last is None:
                answer.first = now - start
                if on_first:
                    on_first()
            else:
                answer.gaps.append(now - last)
            last = now
            pieces.append(piece)
        answer.body = b"".join(pieces)
        if answer.headers.get("connection", "") == "close":
            self.close()

    async def _body(self, headers):
        if "chunked" in headers.get("transfer-encoding", ""):
            while True:
                size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
                if size:
                    yield await self.reader.readexactly(size)
                await self.reader.readexactly(2)
                if size == 0:
                    return
        left = int(headers.get("content-length", 0))
        while left:
            piece = await self.reader.read(min(left, 1 << 18))
            if not piece:
                raise ConnectionError("the answer ends early")
            left -= len(piece)
            yield piece

    def close(self):
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None


def chat(prompt, model="echo", **more):
    return json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}], **more}).encode()


def post(port, path, body, headers=(), **more):
    """One request, from synchronous code."""
    async def run():
        connection = Connection(port)
        answer = await connection.request(path, body, headers, **more)
        connection.close()
        return answer
    return asyncio.run(run())


def post_all(port, requests, parallel=8):
    """Answers to (path, body, headers), in order, over that many kept connections."""
    answers = [None] * len(requests)

    async def work(queue):
        connection = Connection(port)
        while queue:
            at = queue.pop(0)
            path, body, headers = requests[at]
            answers[at] = await connection.request(path, body, headers)
        connection.close()

    async def run():
        queue = list(range(len(requests)))
        await asyncio.gather(*(work(queue) for _ in range(parallel)))
    asyncio.run(run())
    return answers


class Load:
    """Open-loop load on a thread of its own: requests begin at a rate, whatever became of the earlier ones.

        with Load(port, rate=100, make=lambda i: (path, body, headers)) as load:
            ...
        load.answers
    """

    def __init__(self, port, rate, make, timeout=60.0):
        self.port, self.rate, self.make, self.timeout = port, rate, make, timeout
        self.answers = []
        self._stop = False
        self._idle = []

    def __enter__(self):
        import threading
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop = True
        self._thread.join(self.timeout + 10)

    async def _run(self):
        tasks, start, count = set(), time.monotonic(), 0
        while not self._stop:
            task = asyncio.create_task(self._one(count))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            count += 1
            pause = start + count / self.rate - time.monotonic()
            await asyncio.sleep(max(0.0, pause))
        await asyncio.gather(*tasks)

    async def _one(self, i):
        connection = self._idle.pop() if self._idle else Connection(self.port)
        path, body, headers = self.make(i)
        answer = await connection.request(path, body, headers, timeout=self.timeout)
        answer.index = i
        answer.at = time.monotonic()
        self.answers.append(answer)
        self._idle.append(connection)


def summary(answers):
    """{status or error: count}."""
    counts = {}
    for answer in answers:
        key = answer.error or answer.status
        counts[key] = counts.get(key, 0) + 1
    return counts
