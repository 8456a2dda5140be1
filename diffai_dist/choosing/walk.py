"""The names that match a pattern. Each folder that matched so far is listed once for the next level."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NoReturn

from diffai_dist import storage
from diffai_dist.choosing.pattern import Level, Pattern, agreeing, literal, moment
from diffai_dist.choosing.window import Chosen
from diffai_dist.comparison import natural
from diffai_dist.errors import Unreadable, UsageError
from diffai_dist.formats.folder import is_weights
from diffai_dist.formats.names import listed, quoted
from diffai_dist.storage import Profile
from diffai_dist.storage.hints import similar
from diffai_dist.storage.urls import basename, parent, protocol

LISTINGS_AT_ONCE = 16  # each is a round trip, or one for each thousand names


@dataclass(frozen=True, slots=True)
class Match:
    """A folder or file that matches so far, and the fields that its URL told."""

    url: str
    fields: dict[str, int] = field(default_factory=dict)


def expand(pattern: Pattern, profile: Profile) -> list[Chosen]:
    """The checkpoints that match, in no order to rely on; UsageError says what there is where none does."""
    matches = [Match(pattern.url)]
    for level in pattern.levels:
        found = _below(matches, level, level is pattern.levels[-1] and not pattern.folders_only, profile)
        if not found:
            _refuse(pattern, matches[0].url, level, profile)
        matches = found
    chosen = list(_dated(matches))
    if not chosen:
        _refuse(pattern, parent(matches[0].url), pattern.levels[-1], profile)
    return chosen


def _below(matches: Sequence[Match], level: Level, files_too: bool, profile: Profile) -> list[Match]:
    """What matches on the next level."""

    def inside(match: Match) -> list[Match]:
        return list(_matching(match, level, _names(match.url, level, files_too, profile)))

    pool = ThreadPoolExecutor(min(LISTINGS_AT_ONCE, len(matches)))
    try:
        return [one for found in pool.map(inside, matches) for one in found]
    finally:  # a signal does not wait for a server that does not answer
        pool.shutdown(wait=False, cancel_futures=True)


def _matching(match: Match, level: Level, names: Sequence[tuple[str, bool]]) -> Iterator[Match]:
    for name, is_folder in names:
        fields = level.match(name) if name not in ("", ".", "..") else None  # keys of S3 may hold such parts
        together = agreeing(match.fields, iter(fields.items())) if fields is not None else None
        if together is not None:
            # A web server knows a folder by its slash.
            slash = "/" if is_folder and protocol(match.url) in ("http", "https") else ""
            yield Match(storage.join(match.url, name) + slash, together)


def _names(url: str, level: Level, files_too: bool, profile: Profile) -> list[tuple[str, bool]]:
    """Names in a folder that may match, and whether each is a folder itself; none where there is no such folder."""
    try:
        found = [(name, True) for name in storage.folders(url, profile)]
        files = storage.entries(url, profile) if files_too else ()
    except Unreadable as error:
        if not _is_missing(error):
            raise
        return []
    return found + [(name, False) for name in files if level.literal or is_weights(name)]


def _is_missing(error: Unreadable) -> bool:
    """Whether a folder is not there; a bucket that is not, or may not be listed, is another matter."""
    return error.failure.found.startswith("no such") and error.failure.found != "no such bucket"


def _dated(matches: Sequence[Match]) -> Iterator[Chosen]:
    for match in matches:
        with contextlib.suppress(ValueError, OverflowError):  # digits that are no day, such as 2026-13-01
            yield Chosen(match.url, match.fields.get("step"), moment(match.fields))


def _refuse(pattern: Pattern, folder: str, level: Level, profile: Profile) -> NoReturn:
    """Say that nothing matches, and what there is instead in the nearest folder that exists."""
    missing = ""
    while (names := _all_names(folder, profile)) is None:
        missing, folder = basename(folder), parent(folder)
    names.sort(key=natural)
    there = f"{quoted(storage.redact(folder))} holds {listed(names) or 'nothing'}"
    there += f", but no {quoted(missing)}" if missing else ""
    hint = similar(missing, names) if missing else _hint(names, level, level is pattern.levels[-1])
    raise UsageError(f"{quoted(pattern.text)} matches nothing: {there}{hint and '. '}{hint}")


def _all_names(folder: str, profile: Profile) -> list[str] | None:
    """All names in a folder, None if there is no such folder."""
    try:
        return [*storage.entries(folder, profile), *storage.folders(folder, profile)]
    except Unreadable as error:
        if not _is_missing(error) or parent(folder) == folder:
            raise
        return None


def _hint(names: Sequence[str], level: Level, last: bool) -> str:
    if matching := [name for name in names if level.match(name) is not None]:
        file = "a folder or a file of weights (*.safetensors, *.pt, *.gguf, ..., *.index.json)"
        wanted = f"{file}, with one step and a date that exists" if last else "a folder"
        return f"The pattern fits {listed(matching)}, but wanted is {wanted}"
    if level.sample in names:
        return f"To name {quoted(level.sample)} itself, write {quoted(literal(level.sample))}"
    return similar(level.sample, names)
