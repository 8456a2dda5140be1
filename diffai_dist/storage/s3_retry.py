"""Where an S3 URL points, and calls to it that survive passing faults."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from diffai_dist.errors import CheckpointError, ShortRead, Unreadable
from diffai_dist.storage.retry import patiently
from diffai_dist.storage.s3_connection import Connection
from diffai_dist.storage.s3_errors import code_of, explain, is_broken_connection, is_transient
from diffai_dist.storage.urls import redact

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """A URL as S3 sees it; keys may hold any character, a question mark too."""

    url: str
    bucket: str
    key: str

    @property
    def name(self) -> dict[str, str]:
        """The parameters that name the object."""
        return {"Bucket": self.bucket, "Key": self.key}

    @property
    def prefix(self) -> str:
        """What the keys in this directory begin with."""
        return f"{self.key}/" if self.key else ""

    @property
    def parent(self) -> Place:
        """The directory above."""
        head = self.key.rpartition("/")[0]
        return Place(f"s3://{self.bucket}/{head}".rstrip("/"), self.bucket, head)


def place(url: str) -> Place:
    """Bucket and key of a canonical URL."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return Place(url, bucket, key)


async def retrying(
    link: Connection, at: Place, action: Callable[[Connection], Awaitable[T]], *, unless: Collection[str] = ()
) -> T | None:
    """The action's result, None for an error code in `unless`, else an error of ours that names the object."""
    try:
        return await patiently(lambda: action(link), _price)
    except CheckpointError:
        raise
    except Exception as error:
        if code_of(error) in unless:
            return None
        finding = explain(error, await _origin(link))
        raise Unreadable(redact(at.url), finding.found, hint=finding.hint) from error


def _price(error: Exception) -> int:
    if isinstance(error, CheckpointError):
        return int(isinstance(error, ShortRead))
    if not is_transient(error):
        return 0
    # aiohttp repeats a request by itself when the connection breaks before an answer.
    return 2 if is_broken_connection(error) else 1


async def _origin(link: Connection) -> str:
    try:
        return await link.credentials()
    except Exception:  # a broken profile or role: the first error is the one to report
        return "credentials that could not be loaded"
