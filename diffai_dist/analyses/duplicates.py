"""Which tensors, blocks and rows of one member hold the same: by digest and statistics, rows by statistics alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffai_dist.analyses.expected import in_every_block, is_mask, is_table
from diffai_dist.analyses.roles import block, role
from diffai_dist.analyses.series import Series
from diffai_dist.dtypes import Family

SHORTEST = 8  # elements of a row whose statistics are not the same by chance
_PLACES = 20  # of equal rows that are named
_EXPERT = re.compile(r"(?<=experts[._/])[0-9]+(?=[._/])|(?<=expert[._/])[0-9]+(?=[._/])")


@dataclass(frozen=True)
class Group:
    """Tensors of one member with the same bits, by index; `kind` says what they are to each other."""

    kind: str
    tensors: tuple[int, ...]
    nbytes: int  # of one of them

    @property
    def wasted(self) -> int:
        """Bytes of all but one."""
        return (len(self.tensors) - 1) * self.nbytes


@dataclass(frozen=True)
class Layer:
    """A block whose tensors are those of an earlier one; constant ones and buffers tell nothing and do not count."""

    path: str
    equal_to: str
    tensors: tuple[int, ...]


@dataclass(frozen=True)
class EqualRows:
    """How many rows of a tensor have the statistics of an earlier one, and the places of the largest set of equals."""

    tensor: int
    more: int
    places: tuple[int, ...]


class Duplicates:
    """What to compare in the members of a series."""

    def __init__(self, series: Series) -> None:
        self.series = series
        self.stacks = [in_every_block(name) for name in series.tensors]
        self.roles = [role(name) for name in series.tensors]
        self.buffers = [is_mask(name) or is_table(name) for name in series.tensors]

    @cached_property
    def known(self) -> np.ndarray:
        """Which tensors of real numbers have a digest."""
        content = self.series.measured.details.content
        if content is None:
            return np.zeros(self.series.read.shape, bool)
        aligned = self.series.measured.comparison.aligned
        real = [[one is not None and one.decoder.family != Family.COMPLEX for one in a.tensors] for a in aligned]
        kinds = np.array(real, bool).reshape(self.series.read.shape)
        found: np.ndarray = (
            kinds & self.series.decoded & (content["count"] == self.series.sizes) & (content["count"] > 0)
        )
        return found

    @cached_property
    def constant(self) -> np.ndarray:
        """Those of one value throughout, or none that is finite."""
        moments = self.series.measured.moments
        found: np.ndarray = self.known & ((moments["low"] >= moments["high"]) | (moments["finite"] == 0))
        return found

    def groups(self, member: int) -> tuple[Group, ...]:
        """Two tensors and more with the same bits."""
        content, found = self.series.measured.details.content, dict[Hashable, list[int]]()
        chosen = np.flatnonzero(self.known[:, member] & ~self.constant[:, member])
        digests = [] if content is None else content["digest"][chosen, member].tolist()
        for tensor, digest in zip(chosen.tolist(), digests, strict=True):
            one = self.series.measured.comparison.aligned[tensor].tensors[member]
            if one is not None:
                statistics = self.series.measured.moments[tensor, member].tobytes()
                found.setdefault((one.dtype, one.shape, digest, statistics), []).append(tensor)
        several = [tensors for tensors in found.values() if len(tensors) > 1]
        return tuple(
            Group(self._kind(tensors), tuple(tensors), int(self.series.nbytes[tensors[0], member]))
            for tensors in several
        )

    def layers(self, member: int, groups: Sequence[Group]) -> tuple[Layer, ...]:
        """Blocks that are an earlier one again."""
        of = {tensor: group for group in groups for tensor in group.tensors}
        blocks: dict[str, list[int]] = {}
        for tensor in np.flatnonzero(self.known[:, member] & ~self.constant[:, member]).tolist():
            if self.stacks[tensor] != self.series.tensors[tensor] and not self.buffers[tensor]:
                blocks.setdefault(block(self.series.tensors[tensor]), []).append(tensor)
        found, first = [], dict[Hashable, str]()
        for path, tensors in blocks.items():
            if all(tensor in of for tensor in tensors):
                parts = frozenset((self.stacks[tensor], of[tensor].tensors[0]) for tensor in tensors)
                if (earlier := first.setdefault(parts, path)) != path:
                    found.append(Layer(path, earlier, tuple(tensors)))
        return tuple(found)

    def rows(self, member: int) -> Iterator[EqualRows]:
        """Rows of embeddings and heads that are equal by their statistics; not those of zeros."""
        for tensor, kind in enumerate(self.roles):
            if kind not in ("embed", "head"):
                continue
            table = self.series.measured.details.rows.get((tensor, member))
            if table is None or self.series.sizes[tensor, member] < SHORTEST * len(table):
                continue
            telling = np.flatnonzero(table["absmax"] > 0.0)
            keys = np.ascontiguousarray(table[telling]).view(f"V{table.dtype.itemsize}")
            _, of, counts = np.unique(keys, return_inverse=True, return_counts=True)
            if counts.size and counts.max() > 1:
                largest = telling[of == np.argmax(counts)][:_PLACES]
                yield EqualRows(tensor, int((counts - 1).sum()), tuple(largest.tolist()))

    def _kind(self, tensors: Sequence[int]) -> str:
        names = [self.series.tensors[tensor] for tensor in tensors]
        if all(self.buffers[tensor] for tensor in tensors):
            return "buffers"
        if max(Counter(_EXPERT.sub("*", name) for name in names).values()) > 1:
            return "experts"
        if {"embed", "head"} <= {self.roles[tensor] for tensor in tensors}:
            return "tied"
        return "layers" if len({self.stacks[tensor] for tensor in tensors}) == 1 else "other"
