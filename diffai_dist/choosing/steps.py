"""The steps that names tell by themselves: `step-000300`, `checkpoint-1234`, `epoch3-step200`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from diffai_dist.comparison import natural
from diffai_dist.formats.folder import USUAL
from diffai_dist.storage.urls import is_remote, protocol

_RUNS = re.compile(r"([^0-9]*)([0-9]+)")
_DIGITS = 18  # in 64 bits; a longer run is a digest or a time in nanoseconds


def tell_steps(urls: Sequence[str]) -> list[int | None]:
    """The step of each URL: the last number that differs, in the last component in which numbers differ.

    It counts as a step if more than half of the numbered names there have it, and if it never goes back while the
    numbers before it go on: in `2026-10-31`, `2026-11-01` it does. One URL alone: the last number of its name.

    >>> tell_steps(["/r/epoch3-step200", "/r/epoch3-step400", "/r/epoch4-step600", "/r/final"])
    [200, 400, 600, None]
    """
    paths = [_components(url) for url in urls]
    if len(paths) == 1:
        return [next(reversed(_numbers(paths[0][-1]).values()), None)]
    for depth in range(1, max(map(len, paths), default=0) + 1):
        names = [path[-depth] if depth <= len(path) else "" for path in paths]
        steps = _differing(names)
        if steps is not None:
            return [steps.get(name) for name in names]
    return [None] * len(paths)


def _components(url: str) -> list[str]:
    """The names below the bucket or host; a file with the usual name stands for its folder."""
    text = unquote(url) if protocol(url) in ("http", "https") else url  # the 20 of %20 is no number
    parts = text.rstrip("/").split("/")[3 if is_remote(url) else 1 :]
    return parts[:-1] if len(parts) > 1 and parts[-1] in USUAL else parts or [""]


def _differing(names: Sequence[str]) -> Mapping[str, int] | None:
    """The step of each name that has one; empty if the number cannot be a step, None if no number differs."""
    numbers = {name: found for name in names if (found := _numbers(name))}
    places: dict[tuple[str, ...], dict[str, int]] = {}
    for name in sorted(numbers, key=natural):
        for place, number in numbers[name].items():
            places.setdefault(place, {})[name] = number
    # More than half: a name of another kind, as "best-v2", does not hide the steps of the others.
    common = [(len(place), steps) for place, steps in places.items() if 2 * len(steps) > len(numbers)]
    differing = [found for found in common if len(set(found[1].values())) > 1]
    if not differing:
        return None
    steps = max(differing, key=lambda found: found[0])[1]
    return steps if list(steps.values()) == sorted(steps.values()) else {}


def _numbers(name: str) -> dict[tuple[str, ...], int]:
    """The numbers of a name by the texts in front of them, and in front of those before.

    >>> _numbers("epoch3-step200")
    {('epoch',): 3, ('epoch', '-step'): 200}
    """
    found: dict[tuple[str, ...], int] = {}
    place: tuple[str, ...] = ()
    for text, digits in _RUNS.findall(name):
        place = (*place, text)
        if len(digits) <= _DIGITS:
            found[place] = int(digits)
    return found
