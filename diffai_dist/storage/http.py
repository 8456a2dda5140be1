"""Plain web servers. Each answer is checked for its range and for being of the pinned ETag or date; a server that sends
neither is held to the size alone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote

from diffai_dist.errors import CheckpointError, ShortRead, SourceChanged, Unreadable
from diffai_dist.storage import generic
from diffai_dist.storage.loop import all_of, run
from diffai_dist.storage.pieces import Filler, Piece, pieces
from diffai_dist.storage.retry import patiently, seconds_for
from diffai_dist.storage.source import Profile, Read, Source
from diffai_dist.storage.traffic import count
from diffai_dist.storage.urls import redact

CHUNK_BYTES = 8 << 20
BLOCK_BYTES = 1 << 20
AT_ONCE = 4  # web servers are not object stores: be gentle
SILENT_SECONDS = 15.0

fetch, publish, remove, listing = generic.fetch, generic.publish, generic.remove, generic.listing


def kind(url: str, profile: Profile) -> Literal["file", "directory"]:
    """A trailing slash makes a directory; anything else must answer as a file."""
    if url.endswith("/"):
        return "directory"
    pin(url, profile)
    return "file"


def entries(url: str, profile: Profile) -> dict[str, int | None]:
    """What the server's index page links to directly below itself, sizes unknown."""
    return {unquote(name): size for name, size in generic.entries(url, profile).items() if name}


def folders(url: str, profile: Profile) -> list[str]:
    """What the index page links to as a directory."""
    return [unquote(name) for name in generic.folders(url, profile)]


def pin(url: str, profile: Profile) -> Source:
    """By HEAD, or by asking for one byte where HEAD is refused."""
    return run(_pin(url))


def fill(reads: Sequence[Read], profile: Profile) -> None:
    """Read everything, a few requests at a time."""
    run(_fill(pieces(reads, CHUNK_BYTES)))


async def _fill(wanted: Sequence[Piece]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(piece: Piece) -> None:
        async with gate:
            await _fill_one(piece)

    await all_of([one(piece) for piece in wanted])


async def _fill_one(piece: Piece) -> None:
    seconds = seconds_for(piece.stop - piece.start)
    with _mapped(piece.source.url):
        async with asyncio.timeout(seconds):
            await patiently(lambda: _read(piece), _price)


@contextlib.contextmanager
def _mapped(url: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        hint = "Check the address and the network"
        raise Unreadable(redact(url), f"the connection failed ({type(error).__name__})", hint=hint) from error


class _Busy(Unreadable):
    """The server asks to come back later."""


def _price(error: Exception) -> int:
    import aiohttp

    if isinstance(error, CheckpointError):
        return int(isinstance(error, (ShortRead, _Busy)))
    # aiohttp repeats a request by itself when the connection breaks before an answer.
    return 2 if isinstance(error, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)) else 1


async def _read(piece: Piece) -> None:
    async with await _request(piece.source.url, "GET", Range=f"bytes={piece.start}-{piece.stop - 1}") as answer:
        _check(piece, answer.status, answer.headers)
        filler = Filler(piece.buffers)
        while block := await answer.content.read(BLOCK_BYTES):
            if not filler.add(block):
                break
    count(size=filler.received)
    if filler.received != piece.stop - piece.start:
        raise _wrong(piece, f"{filler.received:,} bytes came back")


def _check(piece: Piece, status: int, headers: Mapping[str, str]) -> None:
    """Judge an answer by its head."""
    source = piece.source
    if status in (404, 410, 416):
        raise SourceChanged(redact(source.url), "gone or shorter than it was", expected=f"{source.size:,} bytes")
    _refuse_errors(source.url, status)
    version = generic.version_of(headers)
    if version != source.version:
        raise SourceChanged(redact(source.url), f"another version came back: {version}", expected=source.version)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise Unreadable(
            redact(source.url), "the server compresses its answers", hint="Download the file and name the copy"
        )
    if status == 206:
        if headers.get("Content-Range", "").strip() != f"bytes {piece.start}-{piece.stop - 1}/{source.size}":
            raise _wrong(piece, f"the range {headers.get('Content-Range', '')[:64]!r} came back")
    elif piece.stop - piece.start != source.size:
        raise Unreadable(
            redact(source.url), "the server does not serve ranges", hint="Download the file and name the copy"
        )


def _wrong(piece: Piece, found: str) -> ShortRead:
    expected = f"bytes {piece.start:,} to {piece.stop:,}"
    return ShortRead(redact(piece.source.url), found, expected=expected, hint="The server spoils answers: run again")


async def _pin(url: str) -> Source:
    with _mapped(url):
        return await patiently(lambda: _pin_once(url), _price)


async def _pin_once(url: str) -> Source:
    async with await _request(url, "HEAD") as answer:
        status, headers = answer.status, answer.headers
    if status in (403, 405, 501):
        async with await _request(url, "GET", Range="bytes=0-0") as answer:
            status, headers = answer.status, answer.headers
    if status in (404, 410):
        raise Unreadable(redact(url), f"no such object ({status})")
    _refuse_errors(url, status)
    size = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    if not size.isdecimal() or headers.get("Content-Encoding", "identity") != "identity":
        raise Unreadable(redact(url), "the server does not tell its size", hint="Download the file and name the copy")
    return Source(url, int(size), generic.version_of(headers))


def _refuse_errors(url: str, status: int) -> None:
    if status in (200, 206):
        return
    if status in (401, 403):
        raise Unreadable(redact(url), f"access denied ({status})", hint="Only public web objects can be read")
    error = _Busy if status == 429 or status >= 500 else Unreadable
    raise error(redact(url), f"the server answered {status}", hint="Check the address, or try again later")


async def _request(url: str, method: str, **headers: str) -> Any:
    import aiohttp

    session = await _filesystem().set_session()
    count(requests=1)
    return session.request(
        method,
        _filesystem().encode_url(url),
        headers={"Accept-Encoding": "identity", **headers},
        allow_redirects=True,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS),
    )


@functools.cache
def _filesystem() -> Any:
    import fsspec

    return fsspec.filesystem("http", skip_instance_cache=True)
