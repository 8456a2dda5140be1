"""Short names of members: the part of their URLs in which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from diffai_dist.errors import UsageError
from diffai_dist.formats.names import quoted
from diffai_dist.storage import redact
from diffai_dist.storage.urls import is_remote, protocol


def member_names(urls: Sequence[str]) -> tuple[str, ...]:
    """The components of canonical URLs without those that all have in front and behind, as unique as the URLs are.

    A bucket, and then a protocol, is part of the name only where it differs. One member is named by its last
    component. UsageError if a URL is there twice.

    >>> member_names(["s3://b/run7/step-3/model.safetensors", "s3://b/run7/step-4/model.safetensors"])
    ('step-3', 'step-4')
    """
    # A web address may hold a secret in its query; what looks like one elsewhere is part of a key.
    shown = [redact(url).rstrip("/") if protocol(url) in ("http", "https") else url for url in urls]
    if twice := [url for url, times in Counter(shown).items() if times > 1]:
        raise UsageError(f"{quoted(twice[0])} is there twice: a checkpoint is not compared with itself, name it once")
    paths = [_components(url) for url in shown]
    if len(paths) == 1:
        return (next(part for part in reversed(paths[0]) if part),)
    shortest = min(map(len, paths), default=1)
    front = _common(paths, shortest - 1)
    back = _common([path[::-1] for path in paths], shortest - 1 - max(front, 1))  # a protocol alone is no name
    # A key may have empty components (a//b): they are no name by themselves.
    while front and not all(any(path[front : len(path) - back]) for path in paths):
        front -= 1
    return tuple(_joined(path[front : len(path) - back]) for path in paths)


def _components(url: str) -> list[str]:
    scheme, _, rest = url.partition("://") if is_remote(url) else ("", "", url[1:])
    return [f"{scheme}://" if scheme else "/", *rest.split("/")]


def _common(paths: Sequence[Sequence[str]], most: int) -> int:
    """How many components all paths begin with, `most` at most."""
    count = 0
    for column in zip(*paths, strict=False):
        if count == most or len(set(column)) > 1:
            break
        count += 1
    return count


def _joined(parts: Sequence[str]) -> str:
    head = parts[0] if parts[0].endswith("/") else f"{parts[0]}/"
    return head + "/".join(parts[1:]) if len(parts) > 1 else parts[0]
