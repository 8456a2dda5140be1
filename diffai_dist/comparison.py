"""What is compared with what: members, pairs, and the same tensor found in each member."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from diffai_dist.checkpoint import Checkpoint, Tensor
from diffai_dist.dtypes import Family, comparable
from diffai_dist.errors import Failure, UsageError

# How sure it is that a tensor is the one under whose name it is compared, surest first: that is its own name; a map
# says so; but for wrappers, role and block, or but for a few letters of one part, it would be.
Confidence = Literal["exact", "declared", "wrapper", "role", "assigned"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two members of a comparison, by index."""

    baseline: int
    candidate: int


@dataclass(frozen=True, slots=True)
class Aligned:
    """One logical tensor: what each member has under its name, and why a member that should have it cannot give it."""

    name: str
    tensors: tuple[Tensor | None, ...]
    unreadable: tuple[Failure | None, ...]

    def incomparable(self, pair: Pair) -> str | None:
        """Why the elements of the two sides cannot be paired; None where they can, or where a side is missing."""
        a, b = self.tensors[pair.baseline], self.tensors[pair.candidate]
        if a is None or b is None:
            return None
        if a.shape != b.shape:
            return f"shapes differ: {list(a.shape)} and {list(b.shape)}"
        unknown = a.decoder.family == b.decoder.family == Family.BYTES
        if not comparable(a.decoder, b.decoder) or (unknown and a.dtype != b.dtype):
            return f"no common values: {a.dtype} and {b.dtype}"
        if unknown and a.nbytes != b.nbytes:
            return f"dtype {a.dtype} of unknown size: {a.nbytes:,} and {b.nbytes:,} bytes"
        return None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tensors take part: those an `include` glob matches, and no `exclude` glob or `ignore` pattern."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ignore: str | None = None

    def predicate(self) -> Callable[[str], bool]:
        """The test that a tensor's name must pass."""
        include = _any_of(self.include) if self.include else None
        exclude = _any_of(self.exclude) if self.exclude else None
        try:
            ignore = re.compile(self.ignore) if self.ignore else None
        except re.error as error:
            raise UsageError(f"--ignore-keys-regex {self.ignore!r} is not a regular expression: {error}") from error

        def takes_part(name: str) -> bool:
            if include and not include.match(name):
                return False
            return not (exclude and exclude.match(name)) and not (ignore and ignore.search(name))

        return takes_part


def _any_of(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Checkpoints and the pairs among them; `left_out` counts the tensors that the selection took away.

    With an `anchor`, the index of a member, the Gram of the group around it is measured, too; `elementwise` says
    whether the pairs are still measured element by element, or come from the Gram wherever it can give them.
    `details` names partials beside these, out of partials.DETAILS. Members keep their tensors as they are: only
    `aligned` knows what another name, or a part of another tensor, was matched with.
    """

    members: tuple[Checkpoint, ...]
    pairs: tuple[Pair, ...]
    aligned: tuple[Aligned, ...]  # natural order of names: layer.2 before layer.10
    left_out: int = 0
    anchor: int | None = None
    elementwise: bool = True
    details: tuple[str, ...] = ()
    matches: Mapping[str, tuple[Confidence, ...]] = field(default_factory=dict)  # by aligned name, if any is not exact
    ambiguous: tuple[tuple[int, tuple[str, ...]], ...] = ()  # member, and names of it that would have become one


def _unreadable(member: Checkpoint, name: str) -> Failure | None:
    """Why the member cannot give a tensor that it has, or may have in a part that is missing."""
    if member.unknown and name not in member.tensors and name not in member.unreadable:
        return replace(member.unknown, tensor=name, hint=f"Its shard may be the one. {member.unknown.hint}")
    return member.unreadable.get(name)


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Sort key in which numbers count as numbers.

    >>> sorted(["h.10.w", "h.9.w", "h.9"], key=natural)
    ['h.9', 'h.9.w', 'h.10.w']
    """
    parts = re.split(r"([0-9]{1,18})", name)
    return tuple((bool(i % 2), int(part) if i % 2 else 0, part) for i, part in enumerate(parts))


def compare_members(
    members: Iterable[Checkpoint], pairs: Iterable[Pair], selection: Selection | None = None
) -> Comparison:
    """Align the members' tensors by name, those missing or unreadable in some members included."""
    members = tuple(members)
    takes_part = (selection or Selection()).predicate()
    names = dict.fromkeys(name for member in members for name in (*member.tensors, *member.unreadable))
    chosen = sorted(filter(takes_part, names), key=natural)
    aligned = tuple(
        Aligned(
            name,
            tuple(member.tensors.get(name) for member in members),
            tuple(_unreadable(member, name) for member in members),
        )
        for name in chosen
    )
    return Comparison(members, tuple(pairs), aligned, len(names) - len(chosen))
