"""S3 and everything that speaks its protocol: look, pin, list, publish. Reading is in s3_read."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from diffai_dist.errors import ShortRead, Unreadable
from diffai_dist.storage.hints import similar
from diffai_dist.storage.loop import run
from diffai_dist.storage.pieces import pieces
from diffai_dist.storage.s3_connection import Connection, connection
from diffai_dist.storage.s3_errors import EXISTS, GONE, UNSUPPORTED, code_of
from diffai_dist.storage.s3_read import describe, fill_pieces
from diffai_dist.storage.s3_retry import Place, place, retrying
from diffai_dist.storage.source import Profile, Read, Source
from diffai_dist.storage.urls import redact

CHUNK_BYTES = 8 << 20  # AWS's usual part size; larger ones only cost memory


def kind(url: str, profile: Profile) -> Literal["file", "directory"]:
    """A key is a file, a prefix of keys a directory; a marker object ("name/", or an empty "name" above others) is not
    a file."""
    return run(_kind(connection(profile), place(url)))


def entries(url: str, profile: Profile) -> dict[str, int | None]:
    """Objects directly under the prefix, all pages of them, fresh."""
    link, at = connection(profile), place(url)
    files, prefixes = run(_list(link, at))
    if not files and not prefixes and at.key:
        raise run(_missing(link, at))
    return {name: size for name, size in files.items() if name}


def folders(url: str, profile: Profile) -> list[str]:
    """Prefixes directly under the prefix."""
    return run(_list(connection(profile), place(url)))[1]


def listing(url: str, profile: Profile) -> dict[str, tuple[int, float | None]]:
    """All objects below the prefix, a thousand a request; their times are the server's."""
    return run(_listing(connection(profile), place(url)))


def pin(url: str, profile: Profile) -> Source:
    """By a fresh HEAD: the VersionId in a versioned bucket, which outlives an overwrite, else the ETag."""
    return run(_pin(connection(profile), place(url)))


def fill(reads: Sequence[Read], profile: Profile) -> None:
    """Read everything, a few requests at a time."""
    link = connection(profile)
    run(fill_pieces(link, pieces(reads, CHUNK_BYTES)))


def fetch(url: str, profile: Profile) -> bytes | None:
    """The whole object, None if there is none."""
    return run(_fetch(connection(profile), place(url)))


def publish(url: str, data: bytes, profile: Profile, *, exclusive: bool = False) -> bool:
    """One PUT, which is atomic. A server without conditional writes (501) gets a look and a plain PUT instead:
    content-addressed names make a lost race harmless."""
    return run(_publish(connection(profile), place(url), data, exclusive))


def remove(url: str, profile: Profile) -> None:
    """Delete the object; one that is not there is fine."""
    at = place(url)
    run(retrying(connection(profile), at, lambda link: link.call("delete_object", **at.name)))


async def _kind(link: Connection, at: Place) -> Literal["file", "directory"]:
    head = await _head(link, at) if at.key else None
    if head is not None and head["ContentLength"]:
        return "file"
    answer = await _page(link, at, MaxKeys=1)
    if answer.get("Contents") or answer.get("CommonPrefixes") or not at.key:
        return "directory"
    if head is not None:
        return "file"
    raise await _missing(link, at)


async def _pin(link: Connection, at: Place) -> Source:
    head = await _head(link, at)
    if head is None:
        raise await _missing(link, at)
    restored = 'ongoing-request="false"' in head.get("Restore", "")
    if head.get("StorageClass") in ("GLACIER", "DEEP_ARCHIVE") and not restored:
        raise Unreadable(redact(at.url), "archived", hint="Restore it from the archive first")
    return describe(at.url, head)


async def _head(link: Connection, at: Place) -> dict[str, Any] | None:
    return await retrying(link, at, lambda link: link.call("head_object", **at.name), unless=GONE)


async def _page(link: Connection, at: Place, *, deep: bool = False, **more: Any) -> dict[str, Any]:
    asked = {"Bucket": at.bucket, "Prefix": at.prefix} | ({} if deep else {"Delimiter": "/"}) | more
    return await retrying(link, at, lambda link: link.call("list_objects_v2", **asked)) or {}


async def _pages(link: Connection, at: Place, *, deep: bool = False) -> AsyncIterator[dict[str, Any]]:
    more: dict[str, str] = {}
    while True:
        answer = await _page(link, at, deep=deep, **more)
        yield answer
        if not answer.get("IsTruncated") or not answer.get("NextContinuationToken"):
            return
        more = {"ContinuationToken": answer["NextContinuationToken"]}


async def _list(link: Connection, at: Place) -> tuple[dict[str, int | None], list[str]]:
    files: dict[str, int | None] = {}
    prefixes: list[str] = []
    cut = len(at.prefix)
    async for answer in _pages(link, at):
        files.update((entry["Key"][cut:], entry["Size"]) for entry in answer.get("Contents", ()))
        prefixes.extend(entry["Prefix"][cut:].rstrip("/") for entry in answer.get("CommonPrefixes", ()))
    return files, prefixes


async def _listing(link: Connection, at: Place) -> dict[str, tuple[int, float | None]]:
    found: dict[str, tuple[int, float | None]] = {}
    async for answer in _pages(link, at, deep=True):
        for entry in answer.get("Contents", ()):
            found[entry["Key"][len(at.prefix) :]] = entry["Size"], entry["LastModified"].timestamp()
    return {name: about for name, about in found.items() if name and not name.endswith("/")}


async def _missing(link: Connection, at: Place) -> Unreadable:
    """The error that says what is there instead."""
    folder = at.parent
    answer = await _page(link, folder)
    cut = len(folder.prefix)
    names = [entry["Key"][cut:] for entry in answer.get("Contents", ())]
    names += [entry["Prefix"][cut:].rstrip("/") for entry in answer.get("CommonPrefixes", ())]
    hint = similar(at.key[cut:], filter(None, names))
    if not names:
        hint = f"Nothing is under {redact(folder.url)} either"
    return Unreadable(redact(at.url), "no such object or prefix", hint=hint)


async def _fetch(link: Connection, at: Place) -> bytes | None:
    async def whole(link: Connection) -> bytes:
        answer = await link.call("get_object", **at.name)
        async with answer["Body"] as body:
            data: bytes = await body.read()
        if len(data) != answer["ContentLength"]:
            raise ShortRead(
                redact(at.url), f"{len(data):,} bytes came back", expected=f"{answer['ContentLength']:,} bytes"
            )
        return data

    return await retrying(link, at, whole, unless=GONE)


async def _publish(link: Connection, at: Place, data: bytes, exclusive: bool) -> bool:
    mark = secrets.token_hex(8)

    async def put(link: Connection, **condition: str) -> bool:
        await link.call("put_object", **at.name, Body=data, Metadata={"writer": mark}, **condition)
        return True

    if not exclusive:
        return bool(await retrying(link, at, put))
    try:
        if await retrying(link, at, lambda link: put(link, IfNoneMatch="*"), unless=EXISTS):
            return True
        # A put may be repeated because its answer was lost, and then meets itself.
        there = await _head(link, at) or {}
        return bool(there.get("Metadata", {}).get("writer") == mark)
    except Unreadable as error:
        if error.__cause__ is None or code_of(error.__cause__) not in UNSUPPORTED:
            raise
    if await _head(link, at) is not None:
        return False
    return bool(await retrying(link, at, put))
