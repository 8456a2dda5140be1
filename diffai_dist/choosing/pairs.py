"""Who is compared with whom."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from diffai_dist.comparison import Pair
from diffai_dist.errors import UsageError
from diffai_dist.formats.names import listed, quoted
from diffai_dist.storage import check_url, redact
from diffai_dist.storage.hints import similar

PAIRS = ("consecutive", "vs-first", "vs-last", "vs-baseline", "all")


def make_pairs(
    pairs: str | Sequence[Sequence[str]], names: Sequence[str], urls: Sequence[str], baseline: int | None = None
) -> tuple[Pair, ...]:
    """The pairs of a mode, or those of a list of (baseline, candidate), each a member's name or URL.

    `names` and canonical `urls` are of the members in order, `baseline` is the index of the one for `vs-baseline`.
    What all others are compared with is the baseline of each pair, for `vs-last` too: relative changes then have one
    scale. UsageError for a member that is not there, twice the same pair, and a member with itself.
    """
    if len(names) < 2:
        alone = f" ({quoted(redact(urls[0]))})" if urls else ""
        raise UsageError(f"{len(names)} checkpoint{alone} makes no pair: name two or more, or widen the window")
    if isinstance(pairs, str):
        return tuple(_by_mode(pairs, len(names), baseline))
    return _by_list(pairs, names, urls)


def _by_mode(mode: str, count: int, baseline: int | None) -> Iterator[Pair]:
    if mode not in PAIRS:
        raise UsageError(f"pairs {quoted(mode)}: write {', '.join(PAIRS)}, or a list. {similar(mode, PAIRS)}".rstrip())
    if mode == "vs-baseline" and baseline is None:
        raise UsageError("pairs vs-baseline: name the baseline, too")
    if mode == "consecutive":
        return itertools.starmap(Pair, itertools.pairwise(range(count)))
    if mode == "all":
        return itertools.starmap(Pair, itertools.combinations(range(count), 2))
    first = {"vs-first": 0, "vs-last": count - 1}.get(mode, baseline or 0)
    return (Pair(first, other) for other in range(count) if other != first)


def _by_list(pairs: Sequence[Sequence[str]], names: Sequence[str], urls: Sequence[str]) -> tuple[Pair, ...]:
    places = {text: place for texts in (urls, names) for place, text in enumerate(texts)}
    found: dict[Pair, None] = {}
    for entry in pairs:
        if len(entry) != 2:
            raise UsageError(f"a pair is a baseline and a candidate, and not {listed(entry) or 'nothing'}")
        pair = Pair(*(_place(text, places, names) for text in entry))
        shown = " and ".join(map(quoted, entry))
        if pair.baseline == pair.candidate:
            raise UsageError(f"the pair {shown} is one checkpoint: a checkpoint is not compared with itself")
        if pair in found:
            raise UsageError(f"the pair {shown} is there twice")
        found[pair] = None
    if not found:
        raise UsageError(f"the list of pairs is empty: name two members each, or a mode: {', '.join(PAIRS)}")
    return tuple(found)


def _place(text: str, places: dict[str, int], names: Sequence[str]) -> int:
    place = places[text] if text in places else places.get(check_url(text))
    if place is None:
        there = f"{listed(names)}. {similar(text, names)}".rstrip()
        raise UsageError(f"{quoted(redact(text))} of the pairs is none of the checkpoints {there}")
    return place
