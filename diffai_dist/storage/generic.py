"""Every other protocol, through fsspec. The guarantee is weaker than S3's: a read is checked for its length, and the
object's identity is looked at again afterwards, so a change is noticed unless it comes and goes within one call."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal

from diffai_dist.errors import CheckpointError, ShortRead, SourceChanged, Unreadable, UsageError
from diffai_dist.storage.pieces import Filler, Piece, pieces
from diffai_dist.storage.source import Profile, Read, Source
from diffai_dist.storage.traffic import count
from diffai_dist.storage.urls import basename, parent, protocol, redact

CHUNK_BYTES = 8 << 20
# What says "the same object" best comes first. Of a repository of models that is the digest of the blob.
_IDENTITIES = {
    "generation": ("generation",),
    "etag": ("etag", "ETag", "e_tag", "blob_id"),
    "digest": ("md5Hash", "content_md5", "Content-MD5", "sha256"),
    "mtime": ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created"),
}
_EXTRAS = {"gs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure", "hf": "hf"}


def kind(url: str, profile: Profile) -> Literal["file", "directory"]:
    """By the file system's own word."""
    with _mapped(url):
        return "directory" if _info(url, profile)["type"] == "directory" else "file"


def entries(url: str, profile: Profile) -> dict[str, int | None]:
    """Files directly in the directory, fresh."""
    return {basename(entry["name"]): entry.get("size") for entry in _list(url, profile) if entry["type"] == "file"}


def folders(url: str, profile: Profile) -> list[str]:
    """Directories directly in the directory."""
    return sorted(basename(entry["name"]) for entry in _list(url, profile) if entry["type"] == "directory")


def listing(url: str, profile: Profile) -> dict[str, tuple[int, float | None]]:
    """All files below the directory, with the time that the protocol tells of each."""
    with _mapped(url):
        filesystem = _filesystem(url, profile)
        filesystem.invalidate_cache()
        count(requests=1)
        start = len(filesystem._strip_protocol(url)) + 1
        try:
            found = filesystem.find(url, detail=True)
        except FileNotFoundError:
            return {}
        return {path[start:]: (int(about.get("size") or 0), _changed_at(about)) for path, about in found.items()}


def pin(url: str, profile: Profile) -> Source:
    """By generation, ETag, digest or time, whatever the protocol has."""
    with _mapped(url):
        info = _info(url, profile)
        if info["type"] != "file":
            raise Unreadable(redact(url), "not a regular file but a directory")
        if info.get("size") is None:
            raise Unreadable(redact(url), "the server does not tell its size", hint="Download it and name the copy")
        return Source(url, int(info["size"]), version_of(info))


def fill(reads: Sequence[Read], profile: Profile) -> None:
    """Read everything, then check that each object is still the pinned one."""
    for source, group in itertools.groupby(reads, key=attrgetter("source")):
        with _mapped(source.url):
            for piece in pieces(group, CHUNK_BYTES):
                _fill_one(piece, profile)
            _check_unchanged(source, profile)


def _fill_one(piece: Piece, profile: Profile) -> None:
    url = piece.source.url
    try:
        data = _filesystem(url, profile).cat_file(url, start=piece.start, end=piece.stop)
    except FileNotFoundError as error:
        raise SourceChanged(redact(url), "deleted during the comparison") from error
    count(requests=1, size=len(data))
    if len(data) != piece.stop - piece.start:
        _check_unchanged(piece.source, profile)
        raise ShortRead(
            redact(url),
            f"{len(data):,} bytes came back",
            expected=f"bytes {piece.start:,} to {piece.stop:,}",
            hint="Run again; if it stays so, download the object and name the copy",
        )
    Filler(piece.buffers).add(data)


def fetch(url: str, profile: Profile) -> bytes | None:
    """The whole object, None if there is none."""
    with _mapped(url):
        try:
            data: bytes = _filesystem(url, profile).cat_file(url)
        except FileNotFoundError:
            return None
        count(requests=1, size=len(data))
        return data


def publish(url: str, data: bytes, profile: Profile, *, exclusive: bool = False) -> bool:
    """One upload, atomic in all object stores. `exclusive` looks first, which a rival may slip past:
    content-addressed names make that harmless."""
    filesystem = _filesystem(url, profile)
    with _mapped(url):
        if exclusive and filesystem.exists(url):
            return False
        if protocol(url) == "memory":
            filesystem.makedirs(parent(url), exist_ok=True)
        filesystem.pipe_file(url, data)
        count(requests=1)
        return True


def remove(url: str, profile: Profile) -> None:
    """Delete the object; one that is not there is fine."""
    with _mapped(url), contextlib.suppress(FileNotFoundError):
        _filesystem(url, profile).rm_file(url)


def _filesystem(url: str, profile: Profile) -> Any:
    scheme, _, rest = url.partition("://")
    return _connect(scheme, rest.partition("/")[0], profile)


@functools.lru_cache(maxsize=32)
def _connect(scheme: str, place: str, profile: Profile) -> Any:
    """The file system of a bucket, container or account: an Azure URL names its account, so the place counts."""
    import fsspec.core

    if "::" in place:
        raise UsageError(f"{redact(f'{scheme}://{place}')!r} is a chained URL ('::'): name the object itself")
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "gs" and profile.anon:
        options["token"] = "anon"  # noqa: S105 - the word for "no token"
    if scheme in ("abfs", "abfss", "az") and profile.anon:
        options["anon"] = True
    try:
        return fsspec.core.url_to_fs(f"{scheme}://{place}", **options)[0]
    except ImportError as error:
        raise UsageError(
            f"{scheme}:// needs a package that is not installed: "
            f"pip install 'diffai-dist[{_EXTRAS.get(scheme, scheme)}]'"
        ) from error


def _info(url: str, profile: Profile) -> dict[str, Any]:
    filesystem = _filesystem(url, profile)
    filesystem.invalidate_cache()
    count(requests=1)
    info: dict[str, Any] = filesystem.info(url)
    return info


def _list(url: str, profile: Profile) -> list[dict[str, Any]]:
    with _mapped(url):
        filesystem = _filesystem(url, profile)
        filesystem.invalidate_cache()
        count(requests=1)
        found: list[dict[str, Any]] = filesystem.ls(url, detail=True)
        return sorted(found, key=lambda entry: str(entry["name"]))


def version_of(info: Mapping[str, Any]) -> str:
    """The best statement of identity among the facts of an object, "none" if there is none."""
    for how, names in _IDENTITIES.items():
        for name in names:
            if value := info.get(name):
                return f"{how}:{str(value).strip(chr(34))}"
    return "none"


def _changed_at(info: Mapping[str, Any]) -> float | None:
    """Seconds since 1970; None where the protocol does not tell."""
    for name in _IDENTITIES["mtime"]:
        value = info.get(name)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


def _check_unchanged(source: Source, profile: Profile) -> None:
    try:
        now = pin(source.url, profile)
    except Unreadable as error:
        raise SourceChanged(redact(source.url), f"gone during the comparison ({error.failure.found})") from error
    if now != source:
        raise SourceChanged(
            redact(source.url),
            f"changed during the comparison: now {now.size:,} bytes, {now.version}",
            expected=f"{source.size:,} bytes, {source.version}",
            hint="Run again when nothing writes to it",
        )


@contextlib.contextmanager
def _mapped(url: str) -> Iterator[None]:
    """Whatever a library raises, as ours; its text stays out, since it may hold a signed URL."""
    try:
        yield
    except (CheckpointError, UsageError):
        raise
    except FileNotFoundError as error:
        raise Unreadable(redact(url), "no such object or directory") from error
    except PermissionError as error:
        raise Unreadable(redact(url), "access denied", hint="Check the credentials of this machine") from error
    except Exception as error:
        status = getattr(error, "status", None) or getattr(error, "code", None)
        what = f"{type(error).__name__} {status}" if isinstance(status, int) else type(error).__name__
        raise Unreadable(
            redact(url), f"the request failed ({what})", hint="Check the address and the network"
        ) from error
