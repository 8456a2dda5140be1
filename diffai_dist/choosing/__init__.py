"""Which checkpoints a user means, in which order, what they are called, and which are paired.

    lists      `@file` and `-`: patterns that stand in a file
    pattern    what a pattern says: wildcards, `{step}` and `{date}` fields
    walk       the names that match it, level by level
    steps      the step that names tell where no field does
    window     since, until, every, latest
    naming     short names of the members
    pairs      who is compared with whom

Only lists and walk touch storage.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from datetime import date

from diffai_dist.choosing.lists import read_lists
from diffai_dist.choosing.naming import member_names
from diffai_dist.choosing.pairs import PAIRS, make_pairs
from diffai_dist.choosing.pattern import literal, parse
from diffai_dist.choosing.steps import tell_steps
from diffai_dist.choosing.walk import expand
from diffai_dist.choosing.window import Chosen, Window, first_moment, narrow
from diffai_dist.comparison import natural
from diffai_dist.errors import UsageError
from diffai_dist.storage import Profile

__all__ = ["PAIRS", "Chosen", "Window", "choose", "literal", "make_pairs", "member_names"]


def choose(patterns: Sequence[str], window: Window, profile: Profile, today: date) -> tuple[Chosen, ...]:
    """The checkpoints that the patterns name, each once, inside of the window. Lists storage, opens nothing.

    Matches of wildcards and fields stand together, where the first such pattern stands, by date, step and natural
    order of URLs; paths and URLs without any are taken as they are, whether or not something is there, in the order
    given, or by step where no pattern is and all tell one, as what a shell or `ls` makes of `step-*` does.
    `today` is in UTC; a datetime tells `12h` the hour, a date stands for its midnight.
    Raises UsageError where a pattern matches nothing or the window leaves nothing.
    """
    parsed = [parse(text) for text in read_lists(patterns, profile)]
    if not parsed:
        raise UsageError("no checkpoint is named: give paths, URLs, patterns, @FILE or -")
    before: list[Chosen] = []
    matched: list[Chosen] = []
    after: list[Chosen] = []
    for pattern in parsed:
        if pattern.levels:
            matched += expand(pattern, profile)
        else:
            (after if matched else before).append(Chosen(pattern.url))
    known = _with_steps([*before, *matched, *after])
    by_step = functools.partial(sorted, key=lambda one: _place(known[one.url]))
    if not matched and all(known[one.url].told for one in before):
        before = by_step(before)
    ordered = [*before, *by_step(matched), *after]
    return narrow(window, [known[url] for url in dict.fromkeys(one.url for one in ordered)], today)


def _with_steps(found: Iterable[Chosen]) -> dict[str, Chosen]:
    """What is known of each URL: by the fields of a pattern that matched it, else by its name beside the others."""
    known: dict[str, Chosen] = {}
    for one in found:
        if one.url not in known or one.told:
            known[one.url] = one
    silent = [one.url for one in known.values() if not one.told]
    return known | {url: Chosen(url, step) for url, step in zip(silent, tell_steps(silent), strict=True)}


def _place(one: Chosen) -> tuple[object, ...]:
    """Sort key; what has no date or step comes first, as the models that training starts from do."""
    return first_moment(one.date), -1 if one.step is None else one.step, natural(one.url)
