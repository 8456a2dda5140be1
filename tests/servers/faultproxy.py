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
    lost       carried out by the server, connection reset before any answer
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

ERRORS = {
    "slowdown": ("503 Slow Down", "SlowDown"),
    "e500": ("500 Internal Server Error", "InternalError"),
    "e503": ("503 Service Unavailable", "ServiceUnavailable"),
    "e403": ("403 Forbidden", "ExpiredToken"),
}
MODES = (*ERRORS, *"ok html503 rst stall trunc stallbody trickle short badrange flip lost".split())
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
    """One proxy, a thread per connection. `log()` holds the ranged GETs since the last `set()`, `requests()` all."""

    def __init__(self, upstream: str, stall_seconds: float = 20.0) -> None:
        parts = urlsplit(upstream)
        self.upstream = (str(parts.hostname), parts.port or 80)
        self.stall_seconds = stall_seconds
        self.storage_environment: dict[str, str] = {}  # for whoever starts it in front of an S3 server
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._modes, self._left, self._skip, self._every, self._only = ["ok"], 0, 0, False, ""
        self._share, self._draw = 1.0, random.Random(0)
        self._seen: list[Request] = []
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fault proxy")
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def set(self, mode: str = "ok", n: int = -1, skip: int = 0, *, every: bool = False, only: str = "") -> None:
        """Let `skip` ranged GETs pass, then spoil `n` (-1: all); `every`: requests of any kind. Empties the log.

        `only` spoils, and lets pass, requests whose "METHOD target" holds that text.
        """
        self._set([mode], n, skip, every, only, 1.0, 0)

    def scatter(self, modes: Sequence[str], share: float, seed: int, *, every: bool = False, only: str = "") -> None:
        """Spoil that share of the requests, drawn by the seed, each in one of the ways. Empties the log."""
        self._set(modes, -1, 0, every, only, share, seed)

    def _set(self, modes: Sequence[str], n: int, skip: int, every: bool, only: str, share: float, seed: int) -> None:
        if unknown := set(modes) - set(MODES):
            raise ValueError(f"no such mode: {', '.join(sorted(unknown))}")
        with self._lock:
            self._modes, self._left, self._skip, self._every, self._only = list(modes), n, skip, every, only
            self._share, self._draw = share, random.Random(seed)
            self._seen = []

    def log(self) -> list[Request]:
        """The ranged GETs in order of arrival."""
        return [request for request in self.requests() if request.method == "GET" and request.range]

    def requests(self) -> list[Request]:
        """All requests in order of arrival."""
        with self._lock:
            return list(self._seen)

    def judge(self, head: bytes) -> str:
        """Write a request down and say what to do with its answer."""
        method, target = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2]
        request = Request(method, target, _header(head, "range"), "ok")
        with self._lock:
            if (self._every or (method == "GET" and request.range)) and self._only in f"{method} {target}":
                if self._skip:
                    self._skip -= 1
                elif self._left and self._draw.random() < self._share:
                    self._left -= self._left > 0
                    request = replace(request, mode=self._draw.choice(self._modes))
            self._seen.append(request)
        return request.mode

    def stop(self) -> None:
        """End all connections and threads."""
        self.stopping.set()
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    """Keeps track of its connections, so that none outlives a test."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self._open.discard(request)

    def end_connections(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Connection(socketserver.BaseRequestHandler):
    """One connection, one request, one answer."""

    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # either side went away
            head, rest = _read_head(self.request)
            if head:
                self._answer(self.server.proxy.judge(head), head, rest)

    def _answer(self, mode: str, head: bytes, rest: bytes) -> None:
        if mode in ERRORS:
            status, code = ERRORS[mode]
            body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>spoiled</Message></Error>'
            self.request.sendall(_whole(status, body))
        elif mode == "html503":
            self.request.sendall(_whole("503 Service Unavailable", "<html>", "text/html"))
        elif mode == "rst":
            self._reset()
        elif mode == "stall":
            self._wait(self.server.proxy.stall_seconds)
        else:
            with socket.create_connection(self.server.proxy.upstream) as upstream:
                self._forward(mode, head, rest, upstream)

    def _wait(self, seconds: float) -> None:
        self.server.proxy.stopping.wait(seconds)

    def _reset(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()

    def _forward(self, mode: str, head: bytes, rest: bytes, upstream: socket.socket) -> None:
        upstream.sendall(_edited(head, connection="close") + rest)
        missing = int(_header(head, "content-length") or 0) - len(rest)
        if missing > 0 and (_header(head, "expect") or "").lower() == "100-continue":
            reply, body = _read_head(upstream)
            if reply.split(b" ", 2)[1] != b"100":
                self._pass_on(mode, reply, body, upstream)
                return
            self.request.sendall(reply)
        while missing > 0 and (data := self.request.recv(BLOCK)):
            upstream.sendall(data)
            missing -= len(data)
        reply, body = _read_head(upstream)
        while reply.startswith(b"HTTP/1.1 100"):  # came too late to be of use
            reply, body = _read_head(upstream, body)
        self._pass_on(mode, reply, body, upstream)

    def _pass_on(self, mode: str, reply: bytes, first: bytes, upstream: socket.socket) -> None:
        reply = _edited(reply, connection="close")
        half = int(_header(reply, "content-length") or 0) // 2
        if mode == "lost":
            self._reset()
            return
        if mode == "short":
            body = (first + b"".join(iter(lambda: upstream.recv(BLOCK), b"")))[:half]
            self.request.sendall(_edited(reply, drop=("content-range", "etag"), content_length=str(len(body))) + body)
            return
        self.request.sendall(_moved(reply) if mode == "badrange" else reply)
        if mode == "flip" and not first:
            first = upstream.recv(BLOCK)
        if mode == "flip":
            first = bytes([first[0] ^ 1]) + first[1:]
        sent = 0
        data = first or upstream.recv(BLOCK)
        while data:
            if mode in ("trunc", "stallbody") and sent + len(data) > half:
                self.request.sendall(data[: half - sent])
                # The half must leave before the reset, which discards what is still queued.
                self._wait(self.server.proxy.stall_seconds if mode == "stallbody" else 0.05)
                self._reset()
                return
            self.request.sendall(data)
            sent += len(data)
            if mode == "trickle":
                self._wait(0.1)
            data = upstream.recv(1000 if mode == "trickle" else BLOCK)


def _read_head(connection: socket.socket, data: bytes = b"") -> tuple[bytes, bytes]:
    """The head of a message, and what of its body came along; nothing if the other side closed."""
    while b"\r\n\r\n" not in data:
        more = connection.recv(BLOCK)
        if not more:
            return b"", b""
        data += more
    head, gap, rest = data.partition(b"\r\n\r\n")
    return head + gap, rest


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
