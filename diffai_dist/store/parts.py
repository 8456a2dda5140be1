"""The objects of a store: published under names that digest them, verified when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffai_dist import storage
from diffai_dist.errors import DamagedStore, StoreError
from diffai_dist.opening import side_by_side
from diffai_dist.records import SCHEMA_VERSION
from diffai_dist.storage import Profile

AT_ONCE = 16  # small objects under way: each costs a round trip and next to no work
FETCHED_TOGETHER = 64  # bounds what waits in memory

Listing = dict[str, tuple[int, float | None]]  # size, and time of the last change in seconds since 1970


@dataclass(frozen=True, slots=True)
class Part:
    """One object of a finished run, as its marker names it."""

    path: str
    size: int
    blake2b: str


@dataclass(frozen=True, slots=True)
class Folder:
    """The objects below a URL; their paths are relative, with slashes."""

    url: str
    profile: Profile

    def fetch(self, path: str) -> bytes | None:
        """The bytes there, None if there are none."""
        return storage.fetch(storage.join(self.url, path), self.profile)

    def fetch_each(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """The bytes of many paths, in their order, several requests at a time."""
        for first in range(0, len(paths), FETCHED_TOGETHER):
            some = paths[first : first + FETCHED_TOGETHER]
            yield from zip(some, side_by_side(self.fetch, some, AT_ONCE), strict=True)

    def put(self, path: str, data: bytes) -> Part:
        """Publish bytes. The paths of all parts digest what they hold: what is there already is the same."""
        storage.publish(storage.join(self.url, path), data, self.profile)
        return Part(path, len(data), digest(data))

    def put_first(self, path: str, data: bytes) -> None:
        """Publish bytes unless something is there already."""
        storage.publish(storage.join(self.url, path), data, self.profile, exclusive=True)

    def remove(self, path: str) -> None:
        """Delete what is there, if anything."""
        storage.remove(storage.join(self.url, path), self.profile)

    def read(self, part: Part) -> bytes:
        """The bytes of a part, which must be those that the marker names."""
        return self.verified(part, self.fetch(part.path))

    def read_each(self, parts: Sequence[Part]) -> Iterator[tuple[Part, bytes]]:
        """Many parts with their bytes, verified."""
        fetched = self.fetch_each([part.path for part in parts])
        for part, (_, data) in zip(parts, fetched, strict=True):
            yield part, self.verified(part, data)

    def verified(self, part: Part, data: bytes | None) -> bytes:
        """The bytes, or an error that names the part they are not."""
        if data is None:
            raise DamagedStore(f"{self.name(part.path)} is missing, though a finished run names it. {AGAIN}")
        if len(data) != part.size or digest(data) != part.blake2b:
            found = f"{len(data):,} bytes with another digest" if len(data) == part.size else f"{len(data):,} bytes"
            raise DamagedStore(f"{self.name(part.path)} is damaged: {found}, expected {part.size:,} bytes. {AGAIN}")
        return data

    def listing(self, path: str = "") -> Listing:
        """Everything below a path, at any depth, by its path in the store."""
        found = storage.listing(storage.join(self.url, path) if path else self.url, self.profile)
        return {f"{path}/{name}" if path else name: about for name, about in found.items()}

    def name(self, path: str) -> str:
        """How messages name a path."""
        return f"{storage.redact(self.url)}/{path}"


AGAIN = "Restore it from a copy, or remove the run's folder and run again"


def digest(data: bytes) -> str:
    """The digest that markers hold: BLAKE2b of 256 bits."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def short(data: bytes) -> str:
    """The part of the digest that goes into names."""
    return digest(data)[:16]


def dump(document: Mapping[str, Any]) -> bytes:
    """Strict JSON in the order of the document; the same document has the same bytes."""
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def parse(data: bytes, name: str) -> dict[str, Any]:
    """A JSON document of a schema that this version reads; `name` is how messages call it."""
    try:
        document: dict[str, Any] = json.loads(data)
        found = document["schema_version"]
        major = found.split(".")[0]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(name) from error
    if major != SCHEMA_VERSION.split(".")[0]:
        needed = f"version {document['version']} or later" if "version" in document else "a later version"
        raise StoreError(f"{name} has schema {found}, this version reads {SCHEMA_VERSION}: it needs {needed}")
    return document


def parse_marker(data: bytes, name: str) -> dict[str, Any]:
    """A marker with all that readers ask of it; those of version 0.1.0 say less."""
    marker = parse(data, name)
    try:
        marker["parts"] = [dict(one) for one in marker["parts"]]
        failed = 0 if marker["complete"] else 1
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(name) from error
    unknown: dict[str, Any] = {"name": None, "mode": None, "started": None, "members": [], "pairs": 1, "units": None}
    return unknown | {"failures": failed, "exit_code": 3 * failed} | marker


def parts_of(marker: Mapping[str, Any]) -> list[Part]:
    """What a marker names."""
    return [Part(one["path"], one["size"], one["blake2b"]) for one in marker["parts"]]


def _damaged(name: str) -> DamagedStore:
    return DamagedStore(f"{name} is damaged: it is no document of this store. {AGAIN}")
