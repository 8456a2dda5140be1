"""Objects wherever they lie: look, pin, read ranges of, list, publish. The only home of fsspec and s3fs.

Every read names a pinned object and is checked: fewer bytes, other bytes than the pinned ones, or a change under way
is an error that names the object, never a mixture. Errors are those of `diffai_dist.errors`, whatever library raised
them, and hold no credentials.

Each protocol is one module with the same functions, listed in BACKENDS:

    local     files, by preadv into the caller's buffer
    s3        S3 and its relatives, pinned by ETag or VersionId
    http      web servers, checked by range and ETag or date
    generic   the rest of fsspec: weaker, see there
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
from collections.abc import Sequence
from typing import Literal, Protocol, cast

from diffai_dist.errors import CheckpointError, ShortRead, StoreError, UsageError
from diffai_dist.storage.source import Profile, Read, Source
from diffai_dist.storage.traffic import Traffic, traffic
from diffai_dist.storage.urls import check_url, is_remote, join, protocol, redact

__all__ = [
    "Profile",
    "Read",
    "Source",
    "Traffic",
    "check_url",
    "chunk_bytes",
    "content",
    "entries",
    "fetch",
    "fill",
    "folders",
    "is_remote",
    "join",
    "kind",
    "listing",
    "pin",
    "publish",
    "read",
    "redact",
    "remove",
    "traffic",
]


class Backend(Protocol):
    """What the module of a protocol provides."""

    CHUNK_BYTES: int

    def kind(self, url: str, profile: Profile) -> Literal["file", "directory"]: ...
    def entries(self, url: str, profile: Profile) -> dict[str, int | None]: ...
    def folders(self, url: str, profile: Profile) -> list[str]: ...
    def pin(self, url: str, profile: Profile) -> Source: ...
    def fill(self, reads: Sequence[Read], profile: Profile) -> None: ...
    def fetch(self, url: str, profile: Profile) -> bytes | None: ...
    def publish(self, url: str, data: bytes, profile: Profile, *, exclusive: bool = False) -> bool: ...
    def remove(self, url: str, profile: Profile) -> None: ...
    def listing(self, url: str, profile: Profile) -> dict[str, tuple[int, float | None]]: ...


BACKENDS = {
    "file": "local",
    "s3": "s3",
    "gs": "generic",
    "abfs": "generic",
    "abfss": "generic",
    "az": "generic",
    "hf": "generic",
    "http": "http",
    "https": "http",
    "memory": "generic",
}


def kind(url: str, profile: Profile) -> Literal["file", "directory"]:
    """What the URL names. Unreadable if it is missing, forbidden or not a regular file."""
    return _backend(url).kind(url, profile)


def entries(url: str, profile: Profile) -> dict[str, int | None]:
    """Names of the plain files directly in a directory, with their sizes."""
    return _backend(url).entries(url, profile)


def folders(url: str, profile: Profile) -> list[str]:
    """Names of the directories directly in a directory."""
    return _backend(url).folders(url, profile)


def pin(url: str, profile: Profile) -> Source:
    """The object as it is now; all reads of it refer to that."""
    return _backend(url).pin(url, profile)


def read(source: Source, start: int, stop: int, profile: Profile) -> bytes:
    """Bytes [start, stop) of a pinned object, for small things such as headers."""
    into = bytearray(max(stop - start, 0))
    fill([Read(source, start, memoryview(into))], profile)
    return bytes(into)


def fill(reads: Sequence[Read], profile: Profile) -> None:
    """Fill all buffers, or raise the error of the first read that failed; then nothing goes on in the background."""
    for request in reads:
        if request.start < 0 or request.start + request.wanted > request.source.size:
            raise _outside(request)
    for name, group in itertools.groupby(reads, key=lambda request: protocol(request.source.url)):
        _load(BACKENDS[name]).fill(list(group), profile)


def content(source: Source) -> tuple[object, ...]:
    """Equal for objects of equal bytes where that is known without reading: the inode of a file, the ETag of S3.

    An ETag of S3 digests the object's parts; unequal ones prove nothing. Elsewhere an object equals only itself.
    """
    if protocol(source.url) == "s3" and source.version.startswith("etag:"):
        return "etag", source.size, source.version
    if not is_remote(source.url):
        with contextlib.suppress(OSError):
            found = os.stat(source.url)
            return "inode", found.st_dev, found.st_ino, source.size, source.version
    return "object", source.url, source.size, source.version


def chunk_bytes(source: Source) -> int:
    """How much to ask for in one read: what the storage delivers at full speed, and no more."""
    return _backend(source.url).CHUNK_BYTES


def fetch(url: str, profile: Profile) -> bytes | None:
    """A whole small object of the report store, None if there is none."""
    try:
        return _backend(url).fetch(url, profile)
    except CheckpointError as error:
        raise StoreError(error.failure.sentence()) from error


def publish(url: str, data: bytes, profile: Profile, *, exclusive: bool = False) -> bool:
    """Make `data` appear under the URL, all at once; False if `exclusive` and something is there already."""
    try:
        return _backend(url).publish(url, data, profile, exclusive=exclusive)
    except CheckpointError as error:
        raise StoreError(error.failure.sentence()) from error


def remove(url: str, profile: Profile) -> None:
    """Delete an object of the report store; one that is not there is fine."""
    try:
        _backend(url).remove(url, profile)
    except CheckpointError as error:
        raise StoreError(error.failure.sentence()) from error


def listing(url: str, profile: Profile) -> dict[str, tuple[int, float | None]]:
    """Everything below a directory of the report store, at any depth: relative paths with size and time of the last
    change, in seconds since 1970; None where the protocol does not tell. Empty for a directory that is not there."""
    try:
        return _backend(url).listing(url, profile)
    except CheckpointError as error:
        raise StoreError(error.failure.sentence()) from error


def _backend(url: str) -> Backend:
    name = BACKENDS.get(protocol(url))
    if name is None:
        raise UsageError(f"{redact(url)!r}: the protocol is not supported, use one of {', '.join(BACKENDS)}")
    return _load(name)


@functools.cache
def _load(name: str) -> Backend:
    """Imported on first use, so that looking at local files costs neither asyncio nor s3fs."""
    return cast(Backend, importlib.import_module(f"{__name__}.{name}"))


def _outside(request: Read) -> ShortRead:
    stop = request.start + request.wanted
    return ShortRead(
        redact(request.source.url),
        f"the object has {request.source.size:,} bytes",
        expected=f"bytes {request.start:,} to {stop:,}",
        hint="Was the upload cut short?",
    )
