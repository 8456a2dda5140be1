"""A proxy that spoils answers on demand and writes down what was asked.

It forwards to an S3 or any other HTTP server with the Host header unchanged, so that request signatures still verify.
By default only ranged GETs, the reads of weights and headers, are spoiled and counted.

    ok         forwarded unchanged
    slowdown   503 with the S3 error SlowDown
    e500       500 InternalError
    e503       503 ServiceUnavailable
    e403       403 ExpiredToken
    html503    503 whose body is not XML
    rst        connection reset before any answer
    stall      no answer for `stall_seconds`, then the connection closes
    trunc      true header, half of the body, connection reset
    stallbody  true header, half of the body, silence, close
    trickle    the body in pieces of 1 kB, one per 0.1 s
    short      206 with half of the bytes and a length that agrees with them, without Content-Range and ETag
    badrange   Content-Range moved by one byte, body unchanged
    flip       one bit of the first body byte flipped
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

ERRORS = {
    "slowdown": ("503 Slow Down", "SlowDown"),
    "e500": ("500 Internal Server Error", "InternalError"),
    "e503": ("503 Service Unavailable", "ServiceUnavailable"),
    "e403": ("403 Forbidden", "ExpiredToken"),
}
MODES = (*ERRORS, *"ok html503 rst stall trunc stallbody trickle short badrange flip".split())
MAX_HEAD = 1 << 20
BLOCK = 1 << 16


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it: `range` is the header's value, `mode` what was done to the answer."""

    method: str
    target: str
    range: str | None
    mode: str

    @property
    def bytes(self) -> tuple[int, int] | None:
        """The range as [start, stop)."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.range or "")
        return (int(found[1]), int(found[2]) + 1) if found else None


class FaultProxy:
    """One proxy in a thread of its own. `log()` holds the ranged GETs since the last `set()`, `requests()` all."""

    def __init__(self, upstream: str, stall_seconds: float = 20.0) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self._stall = stall_seconds
        self._lock = threading.Lock()
        self._mode, self._left, self._skip, self._every = "ok", 0, 0, False
        self._seen: list[Request] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._thread.start()
        self._server = self._wait(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=MAX_HEAD))
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def set(self, mode: str = "ok", n: int = -1, skip: int = 0, *, every: bool = False) -> None:
        """Let `skip` ranged GETs pass, then spoil `n` (-1: all); `every`: requests of any kind. Empties the log."""
        if mode not in MODES:
            raise ValueError(f"no such mode: {mode}")
        with self._lock:
            self._mode, self._left, self._skip, self._every = mode, n, skip, every
            self._seen = []

    def log(self) -> list[Request]:
        """The ranged GETs in order of arrival."""
        return [request for request in self.requests() if request.method == "GET" and request.range]

    def requests(self) -> list[Request]:
        """All requests in order of arrival."""
        with self._lock:
            return list(self._seen)

    def stop(self) -> None:
        """Close everything and end the thread."""
        self._wait(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _shut_down(self) -> None:
        self._server.close()
        await asyncio.sleep(0.01)  # a connection accepted just now becomes a task in the next round of the loop
        while serving := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
            await asyncio.sleep(0.01)

    def _judge(self, head: bytes) -> str:
        """Write the request down and say what to do with its answer."""
        method, target = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2]
        request = Request(method, target, _header(head, "range"), "ok")
        with self._lock:
            if self._every or (method == "GET" and request.range):
                if self._skip:
                    self._skip -= 1
                elif self._left:
                    self._left -= self._left > 0
                    request = replace(request, mode=self._mode)
            self._seen.append(request)
        return request.mode

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request, one answer."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await self._answer(self._judge(head), head, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # either side went away, or the proxy is being stopped
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(self, mode: str, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if mode in ERRORS:
            status, code = ERRORS[mode]
            body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>spoiled</Message></Error>'
            writer.write(_whole(status, body))
        elif mode == "html503":
            writer.write(_whole("503 Service Unavailable", "<html>", "text/html"))
        elif mode == "rst":
            writer.transport.abort()
        elif mode == "stall":
            await asyncio.sleep(self._stall)
        else:
            await self._forward(mode, head, reader, writer)
        if not writer.transport.is_closing():
            await writer.drain()

    async def _forward(
        self, mode: str, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._upstream, limit=MAX_HEAD)
        up_writer.write(_edited(head, connection="close"))
        sending = asyncio.ensure_future(_copy(reader, up_writer))
        try:
            reply = await up_reader.readuntil(b"\r\n\r\n")
            while reply.split(b" ", 2)[1].startswith(b"1"):  # 100 Continue
                writer.write(reply)
                reply = await up_reader.readuntil(b"\r\n\r\n")
            await self._pass_on(mode, _edited(reply, connection="close"), up_reader, writer)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            up_writer.close()
            with contextlib.suppress(OSError):
                await up_writer.wait_closed()

    async def _pass_on(
        self, mode: str, reply: bytes, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        half = int(_header(reply, "content-length") or 0) // 2
        if mode == "short":
            body = (await up_reader.read(-1))[:half]
            writer.write(_edited(reply, drop=("content-range", "etag"), content_length=str(len(body))) + body)
            return
        if mode == "badrange":
            reply = _moved(reply)
        writer.write(reply)
        sent = 0
        while data := await up_reader.read(1000 if mode == "trickle" else BLOCK):
            if mode == "flip" and not sent:
                data = bytes([data[0] ^ 1]) + data[1:]
            if mode in ("trunc", "stallbody") and sent + len(data) > half:
                writer.write(data[: half - sent])
                await writer.drain()
                # The half must leave before the reset, which discards what is still queued.
                await asyncio.sleep(self._stall if mode == "stallbody" else 0.05)
                writer.transport.abort()
                return
            writer.write(data)
            sent += len(data)
            await writer.drain()
            if mode == "trickle":
                await asyncio.sleep(0.1)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A request body, until the client stops sending."""
    with contextlib.suppress(OSError):
        while data := await reader.read(BLOCK):
            writer.write(data)
            await writer.drain()


def _whole(status: str, body: str, kind: str = "application/xml") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()


def _header(head: bytes, name: str) -> str | None:
    found = re.search(rb"(?im)^" + re.escape(name.encode()) + rb":[ \t]*([^\r\n]*)", head)
    return found[1].decode("latin-1").strip() if found else None


def _edited(head: bytes, drop: tuple[str, ...] = (), **add: str) -> bytes:
    """The head without the headers in `drop`, and with those in `add` in place of their namesakes."""
    new = {name.replace("_", "-"): value for name, value in add.items()}
    first, *lines = head.split(b"\r\n")[:-2]
    gone = {name.encode() for name in (*drop, *new)}
    kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in gone]
    return b"\r\n".join([first, *kept, *(f"{name}: {value}".encode() for name, value in new.items()), b"", b""])


def _moved(head: bytes) -> bytes:
    """Content-Range one byte further on."""
    found = _header(head, "content-range")
    if not found:
        return head
    moved = re.sub(r"(\d+)-(\d+)/", lambda part: f"{int(part[1]) + 1}-{int(part[2]) + 1}/", found, count=1)
    return _edited(head, content_range=moved)
