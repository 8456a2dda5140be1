"""What storage speaks about: how to reach it, a pinned object, one read of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from diffai_dist.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Profile:
    """How to reach storage. Tasks carry it, so it never holds a secret: credentials come from each machine's own
    environment, profile or role."""

    endpoint_url: str | None = None
    anon: bool = False
    name: str | None = None  # of a profile in the AWS configuration files of each machine

    def __post_init__(self) -> None:
        if self.endpoint_url is None:
            return
        parts = urlsplit(self.endpoint_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError("endpoint_url is not an http:// or https:// URL: write it as https://host:port")
        if "@" in self.endpoint_url or parts.query or parts.fragment:
            raise UsageError(
                "endpoint_url holds credentials or a query: write it as https://host:port and set AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )


@dataclass(frozen=True, slots=True)
class Source:
    """A pinned object: a canonical URL (absolute path for local files), its size, and which version of it is meant.

    `version` is "etag:...", "version:..." (an S3 VersionId), "generation:...", "mtime:..." (nanoseconds for files), or
    "none" where the protocol offers nothing.
    """

    url: str
    size: int
    version: str


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """One range of an object, from `start` on, into a contiguous uint8 buffer whose length is what is wanted."""

    source: Source
    start: int
    into: memoryview | npt.NDArray[np.uint8]

    @property
    def wanted(self) -> int:
        """How many bytes the buffer holds."""
        return len(self.buffer)

    @property
    def buffer(self) -> memoryview:
        """The buffer as plain bytes, whatever holds them."""
        return memoryview(cast("Any", self.into))
