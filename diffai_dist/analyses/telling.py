"""Saying the same of several members, or tensors, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from diffai_dist.comparison import Pair

if TYPE_CHECKING:
    from diffai_dist.analyses.series import Series

T = TypeVar("T")

NAMES = 20  # of tensors in a row of a table
_TOLD = 3  # of tensors in the source of a finding


def runs(series: Series, of: Callable[[int], Any]) -> list[tuple[int, int, Any]]:
    """What is found of the members: the first one, how many after each other have the same, and what that is."""
    found: list[tuple[int, int, Any]] = []
    for member in range(len(series.members)):
        own = of(member)
        if found and found[-1][2] == own:
            found[-1] = (found[-1][0], found[-1][1] + 1, own)
        else:
            found.append((member, 1, own))
    return found


def single(names: Sequence[str]) -> str | None:
    """The tensor of a finding about one alone."""
    return names[0] if len(names) == 1 else None


def counted(names: Sequence[str]) -> str:
    """How many tensors, and the first of them.

    >>> counted(["a"]), counted(list("abcde"))
    ('1 tensor: a', '5 tensors: a, b, c and 2 more')
    """
    rest = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}: {', '.join(names[:_TOLD])}{rest}"


def told_here(
    pairs: Sequence[Pair], pair_index: int, problems: Callable[[int], Mapping[str, T]]
) -> Iterator[tuple[str, str, T]]:
    """Side, rule and what is wrong with one member by itself, each in one pair of the comparison alone.

    A candidate as bad as its baseline says nothing new; a baseline is told of in its first pair, unless it is the
    candidate of another, which tells it.
    """
    pair, earlier = pairs[pair_index], pairs[:pair_index]
    before = problems(pair.baseline)
    first = all(one.baseline != pair.baseline for one in earlier)
    if first and all(one.candidate != pair.baseline for one in pairs):
        yield from (("baseline", rule, found) for rule, found in before.items())
    others = [one.baseline for one in earlier if one.candidate == pair.candidate]
    for rule, found in problems(pair.candidate).items():
        if rule not in before and all(rule in problems(one) for one in others):
            yield "candidate", rule, found
