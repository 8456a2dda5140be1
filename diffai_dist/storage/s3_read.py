"""Pinned range reads of S3: every answer is of the version that was asked for, and of the length and range."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from diffai_dist.errors import CheckpointError, ShortRead, SourceChanged, Unreadable
from diffai_dist.storage.loop import all_of
from diffai_dist.storage.pieces import Filler, Piece
from diffai_dist.storage.retry import seconds_for
from diffai_dist.storage.s3_connection import AT_ONCE, LONG_BYTES, Connection
from diffai_dist.storage.s3_errors import EXISTS, GONE, code_of
from diffai_dist.storage.s3_retry import place, retrying
from diffai_dist.storage.source import Source
from diffai_dist.storage.traffic import count
from diffai_dist.storage.urls import redact

BLOCK_BYTES = 1 << 20


def describe(url: str, head: Mapping[str, Any]) -> Source:
    """The pinned identity that an answer's metadata amount to."""
    version = head.get("VersionId")
    etag = str(head.get("ETag", "")).strip('"')
    if version and version != "null":
        return Source(url, head["ContentLength"], f"version:{version}")
    return Source(url, head["ContentLength"], f"etag:{etag}" if etag else "none")


async def fill_pieces(link: Connection, pieces: Sequence[Piece]) -> None:
    """Read all pieces; after the first failure nothing goes on in the background."""
    gate = asyncio.Semaphore(AT_ONCE)
    await all_of([_read(link, piece, gate) for piece in pieces])


async def _read(link: Connection, piece: Piece, gate: asyncio.Semaphore) -> None:
    """Long reads pass the gate of the process, short ones that of their call."""
    size = piece.stop - piece.start
    seconds = seconds_for(size)
    async with link.gate if size >= LONG_BYTES else gate:
        try:
            async with asyncio.timeout(seconds):
                await retrying(link, place(piece.source.url), lambda link: _read_once(link, piece))
        except TimeoutError as error:
            raise Unreadable(
                redact(piece.source.url),
                f"bytes {piece.start:,} to {piece.stop:,} did not arrive within {seconds:.0f} s",
                hint="Check the network; what was finished is kept",
            ) from error


async def _read_once(link: Connection, piece: Piece) -> None:
    source = piece.source
    try:
        answer = await link.call(
            "get_object",
            **place(source.url).name,
            **_condition(source),
            Range=f"bytes={piece.start}-{piece.stop - 1}",
        )
    except Exception as error:
        if code_of(error) in EXISTS | GONE | {"416", "InvalidRange"}:
            raise await _changed(link, source) from error
        raise
    async with answer["Body"] as body:
        _check(piece, answer)
        filler = Filler(piece.buffers)
        while block := await body.read(BLOCK_BYTES):
            if not filler.add(block):
                break
    count(size=filler.received)
    if filler.received != piece.stop - piece.start:
        raise _wrong(piece, f"{filler.received:,} bytes came back")


def _condition(source: Source) -> dict[str, str]:
    how, _, version = source.version.partition(":")
    match how:
        case "version":
            return {"VersionId": version}
        case "etag":
            return {"IfMatch": f'"{version}"'}
    return {}


def _check(piece: Piece, answer: Mapping[str, Any]) -> None:
    """Judge the answer by its head; the length comes first, since spoiled answers may lack the rest."""
    source, wanted = piece.source, piece.stop - piece.start
    if answer["ContentLength"] != wanted:
        raise _wrong(piece, f"{answer['ContentLength']:,} bytes are offered")
    given = describe(source.url, {**answer, "ContentLength": source.size}).version
    if source.version != "none" and given not in ("none", source.version) and given[:5] == source.version[:5]:
        raise SourceChanged(redact(source.url), f"another version came back: {given}", expected=source.version)
    whole = answer["ResponseMetadata"]["HTTPStatusCode"] == 200 and wanted == source.size
    expected = f"bytes {piece.start}-{piece.stop - 1}/"
    if not whole and not str(answer.get("ContentRange", "")).startswith(expected):
        raise _wrong(piece, f"the range {str(answer.get('ContentRange'))[:64]!r} came back")


def _wrong(piece: Piece, found: str) -> ShortRead:
    return ShortRead(
        redact(piece.source.url),
        found,
        expected=f"bytes {piece.start:,} to {piece.stop:,}",
        hint="The server or a proxy before it spoils answers: run again",
    )


async def _changed(link: Connection, source: Source) -> SourceChanged:
    """The error that says what became of the object."""
    at = place(source.url)
    found = "changed during the comparison"
    try:
        head = await retrying(link, at, lambda link: link.call("head_object", **at.name), unless=GONE)
    except CheckpointError:
        pass  # what it is now is a courtesy
    else:
        now = describe(source.url, head) if head else None
        found = f"{found}: now {now.size:,} bytes, {now.version}" if now else "deleted during the comparison"
    return SourceChanged(
        redact(source.url),
        found,
        expected=f"{source.size:,} bytes, {source.version}",
        hint="Run again when nothing writes to it",
    )
