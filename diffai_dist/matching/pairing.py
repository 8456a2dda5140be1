"""Which name of one member is which of another: by wrappers, by role and block, at last by likeness."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from diffai_dist.analyses.roles import pattern
from diffai_dist.comparison import Confidence
from diffai_dist.matching.names import bare, canonical, has_norms_behind, unwrapped
from diffai_dist.matching.view import Shape, Shapes

LIKE = 0.85  # of 1: how alike two parts of names must be; input_layernorm and post_layernorm are 0.83
CLEARLY = 0.1  # by how much the next best must be less alike
MOST_PATTERNS = 16  # of one shape: beyond that nothing is unambiguous, and comparing all of them takes long


@dataclass(slots=True)
class Pairing:
    """Names of the reference, and of another member that lacks them, until nothing more can be told apart."""

    reference: dict[str, Shape | None]
    other: dict[str, Shape | None]
    found: dict[str, tuple[str, Confidence]] = field(default_factory=dict)  # by name there: that of the reference
    ambiguous: list[tuple[str, ...]] = field(default_factory=list)  # names of either that would become one

    def take(self, own: str, name: str, confidence: Confidence) -> None:
        """Settle a pair."""
        self.found[own] = name, confidence
        del self.other[own], self.reference[name]

    def by(self, key: Callable[[str], Hashable | None], confidence: Confidence, same_shape: bool) -> list[list[str]]:
        """Pair the names that alone have a key; the others of each key that several have."""
        before, after = (_grouped(names, key) for names in (self.reference, self.other))
        several = []
        for one, names in after.items():
            others = before.get(one, [])
            if len(names) == len(others) == 1:
                if not same_shape or _fit(self.other[names[0]], self.reference[others[0]]):
                    self.take(names[0], others[0], confidence)
            elif others:
                several.append([*names, *others])
        return several


def paired(reference: Shapes, other: Shapes) -> Pairing:
    """Pair what is not called the same. Names that would become one are left as they are, and told."""
    left = Pairing(
        {name: shape for name, shape in reference.items() if name not in other},
        {name: shape for name, shape in other.items() if name not in reference},
    )
    norms = not (has_norms_behind(reference) or has_norms_behind(other))
    for key in (unwrapped, bare):
        for names in left.by(key, "wrapper", False):
            left.ambiguous.append(tuple(names))
            for name in names:
                left.reference.pop(name, None)
                left.other.pop(name, None)
    left.by(lambda name: canonical(name, norms), "role", True)
    for own, name in list(_alike(left)):
        left.take(own, name, "assigned")
    return left


def _grouped(names: Iterable[str], key: Callable[[str], Hashable | None]) -> dict[Hashable, list[str]]:
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        if (found := key(name)) is not None:
            groups.setdefault(found, []).append(name)
    return groups


def _fit(a: Shape | None, b: Shape | None) -> bool:
    """Whether shapes are equal, or those of a matrix and its transpose: a role alone proves too little for others."""
    return a is not None and b is not None and (a == b or (len(a) == 2 and a == b[::-1]))


Class = tuple[Shape, frozenset[tuple[int, ...]]]


def _alike(left: Pairing) -> Iterator[tuple[str, str]]:
    """Names that differ in parts that are alike, in equal blocks, of equal shapes, if no others are nearly as alike."""
    before, after = _classes(left.reference), _classes(left.other)
    for kind, patterns in after.items():
        others = before.get(kind, {})
        if len(patterns) > MOST_PATTERNS or len(others) > MOST_PATTERNS:
            continue
        scores = {(own, name): _likeness(own, name) for own in patterns for name in others}
        for (own, name), score in scores.items():
            rivals = [rival for (a, b), rival in scores.items() if (a == own) != (b == name)]
            if score >= LIKE and score - max(rivals, default=0.0) >= CLEARLY:
                yield from ((patterns[own][numbers], others[name][numbers]) for numbers in patterns[own])


def _classes(names: Mapping[str, Shape | None]) -> dict[Class, dict[str, dict[tuple[int, ...], str]]]:
    """By shape and the blocks in which they are: patterns of names, and each's names by their numbers."""
    families: dict[tuple[str, Shape], dict[tuple[int, ...], str]] = {}
    for name, shape in names.items():
        if shape is not None:
            text, numbers = pattern(name)
            families.setdefault((text, shape), {})[numbers] = name
    classes: dict[Class, dict[str, dict[tuple[int, ...], str]]] = {}
    for (text, shape), members in families.items():
        classes.setdefault((shape, frozenset(members)), {})[text] = members
    return classes


def _likeness(a: str, b: str) -> float:
    """How alike two patterns are: of the parts that differ, the least alike; 0 where one has more parts."""
    parts, others = bare(a).split("."), bare(b).split(".")
    if len(parts) != len(others) or parts[-1] != others[-1]:
        return 0.0
    differing = [(x, y) for x, y in zip(parts, others, strict=True) if x != y]
    return min((difflib.SequenceMatcher(None, x, y, False).ratio() for x, y in differing), default=0.0)
