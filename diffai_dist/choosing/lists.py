"""Patterns that stand in a file or on stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from diffai_dist import storage
from diffai_dist.errors import Unreadable, UsageError
from diffai_dist.formats.names import quoted
from diffai_dist.storage import Profile

MAX_BYTES = 16 << 20  # some 100,000 URLs


def read_lists(arguments: Sequence[str], profile: Profile) -> list[str]:
    """The arguments, with the lines of the file in place of `@FILE`, a path or URL, and those of stdin in place of `-`.

    A file whose name begins with `@`, or is `-`, is named with its folder: `./@x`.
    """
    found: list[str] = []
    for argument in arguments:
        if argument != "-" and not argument.startswith("@"):
            found.append(argument)
            continue
        lines = patterns_in(_from_stdin() if argument == "-" else _from_file(argument[1:], profile))
        where = "stdin" if argument == "-" else quoted(storage.redact(argument[1:]))
        if not lines:
            raise UsageError(f"the list of checkpoints on {where} is empty: write one pattern per line")
        if lists := [line for line in lines if line == "-" or line.startswith("@")]:
            raise UsageError(f"the list of checkpoints on {where} names another list, {quoted(lists[0])}: give both")
        found += lines
    return found


def patterns_in(data: bytes) -> list[str]:
    r"""One pattern per line; empty lines and those that begin with `#` say nothing.

    >>> patterns_in(b"# nightly\r\n/runs/step-*\r\n\n s3://b/base \n")
    ['/runs/step-*', 's3://b/base']
    """
    # Not splitlines: a name may hold U+2028 and its like. fsdecode keeps the bytes of any file name.
    lines = (line.strip(" \t\r") for line in os.fsdecode(data.removeprefix(b"\xef\xbb\xbf")).split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def _from_stdin() -> bytes:
    return sys.stdin.buffer.read(MAX_BYTES) if sys.stdin else b""


def _from_file(name: str, profile: Profile) -> bytes:
    try:
        source = storage.pin(storage.check_url(name), profile)
        if source.size > MAX_BYTES:
            raise UsageError(f"{quoted(storage.redact(name))} is no list of checkpoints: it has {source.size:,} bytes")
        return storage.read(source, 0, source.size, profile)
    except Unreadable as error:
        raise UsageError(f"the list of checkpoints cannot be read: {error}") from error
