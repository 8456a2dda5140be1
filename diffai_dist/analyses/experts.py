"""The experts of each layer of a pair, numbered in names or stacked in tensors: how far each moved, which are one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffai_dist.analyses.lines import Lines, number, row_lines
from diffai_dist.analyses.roles import role
from diffai_dist.dtypes import Family
from diffai_dist.records import Measurements

_NUMBERED = re.compile(r"^(.*[._/]?experts?)[._/]([0-9]{1,9})[._/](.+)$")
_STACKED = re.compile(r"^(.*[._/]?experts)[._/]([^./]+(?:[./]weight)?)$")


@dataclass(frozen=True)
class Layer:
    """The experts of one layer: indices of aligned tensors [experts, parts], or [1, parts] of stacks of all of them."""

    path: str
    numbers: tuple[int, ...]  # of the experts, as names have them
    tensors: np.ndarray
    router: int | None

    @property
    def stacked(self) -> bool:
        """Whether each tensor holds all experts."""
        return len(self.tensors) < len(self.numbers)


class Experts:
    """The layers of a pair that have experts in the same shapes on both sides."""

    def __init__(self, measured: Measurements, pair_index: int) -> None:
        self.measured, self.pair_index = measured, pair_index
        pair = measured.comparison.pairs[pair_index]
        self.members = (pair.baseline, pair.candidate)
        self._identical: dict[tuple[str, int], list[int]] = {}
        self.left_out = 0  # tensors of experts that have not the parts of the others

    @cached_property
    def layers(self) -> list[Layer]:
        """In the order of the comparison; two experts at least."""
        numbered: dict[str, dict[int, dict[str, int]]] = {}
        stacks: dict[str, list[int]] = {}
        for tensor, aligned in enumerate(self.measured.comparison.aligned):
            if self._shape(tensor) is None:
                continue
            if found := _NUMBERED.match(aligned.name[-4096:]):
                numbered.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = tensor
            elif (found := _STACKED.match(aligned.name[-4096:])) and len(self._shape(tensor) or ()) == 3:
                stacks.setdefault(found[1], []).append(tensor)
        layers = [self._of_numbers(path, experts) for path, experts in numbered.items()]
        layers += [self._of_stacks(path, tensors) for path, tensors in stacks.items() if path not in numbered]
        return sorted((one for one in layers if len(one.numbers) > 1), key=lambda one: int(one.tensors.min()))

    def lines(self, layer: Layer) -> Lines:
        """A row for each expert, all its tensors together; NaN where one was not measured."""
        if not layer.stacked:
            return self._sums(layer.tensors)
        found = [row_lines(self.measured, tensor, self.pair_index) for tensor in layer.tensors[0].tolist()]
        known = [one.grouped(len(one.aa) // len(layer.numbers)) for one in found if one is not None]
        if len(known) < len(found):
            return Lines(*(np.full(len(layer.numbers), np.nan) for _ in range(4)))
        whole, *others = known
        for one in others:
            whole = whole + one
        return whole

    def router(self, layer: Layer) -> np.ndarray | None:
        """How far the router's row for each expert moved, ‖d‖ / ‖a‖; None where there is none, or none was measured."""
        rows = None if layer.router is None else row_lines(self.measured, layer.router, self.pair_index)
        return None if rows is None else rows.rel_l2[list(layer.numbers)]

    def squares(self, layer: Layer, member: int) -> np.ndarray:
        """Σ x² of each expert of a member; NaN where it was not measured, or is not finite throughout."""
        if layer.stacked:
            tables = [self.measured.details.rows.get((tensor, member)) for tensor in layer.tensors[0].tolist()]
            if any(table is None for table in tables) or not self._finite(layer.tensors, member).all():
                return np.full(len(layer.numbers), np.nan)
            return sum(
                (table["squares"].reshape(len(layer.numbers), -1).sum(axis=1) for table in tables if table is not None),
                np.zeros(len(layer.numbers)),
            )
        rows = self.measured.moments[layer.tensors, member]
        squares = (rows["m2"] + rows["finite"] * rows["mean"] ** 2).sum(axis=1)
        return np.where(self._finite(layer.tensors, member).all(axis=1), squares, np.nan)

    def identical(self, layer: Layer, member: int) -> list[int]:
        """Experts that are an earlier one again: by bits, or those of stacks by the statistics of all rows."""
        if (layer.path, member) not in self._identical:
            self._identical[layer.path, member] = self._again(layer, member)
        return self._identical[layer.path, member]

    def _again(self, layer: Layer, member: int) -> list[int]:
        seen: set[Hashable] = set()
        again = []
        for place, name in enumerate(layer.numbers):
            key = self._stacked_key(layer, place, member) if layer.stacked else self._key(layer, place, member)
            if key is not None and key in seen:
                again.append(name)
            seen.add(key)
        return again

    def rearranged(self, layer: Layer) -> np.ndarray:
        """Which experts have the largest magnitude and norm of the baseline's in every tensor, in whatever order."""
        if layer.stacked:
            tops = [self._tops(layer, member) for member in self.members]
            same = np.zeros(len(layer.numbers), bool) if tops[0] is None or tops[1] is None else tops[0] == tops[1]
        else:
            sides = [self.measured.moments["absmax"][layer.tensors, member] for member in self.members]
            same = (sides[0] == sides[1]).all(axis=1)
        with np.errstate(invalid="ignore"):
            found: np.ndarray = same & (np.abs(self.lines(layer).norm_ratio - 1.0) < 1e-9)
        return found

    @cached_property
    def rest_cosine(self) -> float | None:
        """Cosine over all matrices that are no experts; None where none was measured."""
        experts = {tensor for layer in self.layers for tensor in layer.tensors.ravel().tolist()}
        shapes = map(self._shape, range(len(self.measured.comparison.aligned)))
        rest = [tensor for tensor, one in enumerate(shapes) if one and len(one) > 1 and tensor not in experts]
        matrices = np.array(rest, np.int64)
        for member in self.members:
            matrices = matrices[self._finite(matrices, member)]
        return number(self._sums(matrices[None]).cosine[0])

    def _of_numbers(self, path: str, experts: dict[int, dict[str, int]]) -> Layer:
        """Experts with the most common set of parts; tensors of others are left out."""
        parts = Counter(tuple(sorted(one)) for one in experts.values()).most_common(1)[0][0]
        chosen = {number: one for number, one in sorted(experts.items()) if tuple(sorted(one)) == parts}
        self.left_out += sum(len(one) for number, one in experts.items() if number not in chosen)
        tensors = [[one[part] for part in parts] for one in chosen.values()]
        return Layer(path, tuple(chosen), np.array(tensors, np.int64), self._router(path, max(chosen) + 1))

    def _of_stacks(self, path: str, tensors: list[int]) -> Layer:
        """Tensors whose first axis counts the experts."""
        count = Counter((self._shape(tensor) or (0,))[0] for tensor in tensors).most_common(1)[0][0]
        chosen = [tensor for tensor in tensors if (self._shape(tensor) or (0,))[0] == count]
        self.left_out += len(tensors) - len(chosen)
        return Layer(path, tuple(range(count)), np.array([chosen], np.int64), self._router(path, count))

    def _router(self, path: str, count: int) -> int | None:
        """The matrix beside the experts with a row for each."""
        beside = path[: max(path.rfind("."), path.rfind("/")) + 1]
        return next(
            (tensor for tensor in self._routers.get(beside, ()) if (self._shape(tensor) or (0,))[0] >= count), None
        )

    @cached_property
    def _routers(self) -> dict[str, list[int]]:
        """Matrices of routers by the path that they share with experts."""
        found: dict[str, list[int]] = {}
        for tensor, aligned in enumerate(self.measured.comparison.aligned):
            if role(aligned.name) == "router" and len(self._shape(tensor) or ()) == 2:
                parts = re.split(r"(?<=[./])", aligned.name)
                for end in (-1, -2):
                    found.setdefault("".join(parts[:end]), []).append(tensor)
        return found

    def _sums(self, tensors: np.ndarray) -> Lines:
        """Of the tensors in each row; NaN where one of them is not finite throughout."""
        rows = self.measured.shifts[tensors, self.pair_index]
        good = self._finite(tensors, self.members[0]) & self._finite(tensors, self.members[1])
        parts = (rows["aa"], rows["bb"], rows["d2"], rows["slope"] * rows["aa"])
        return Lines(*(np.where(good, one, np.nan).sum(axis=1) for one in parts))

    def _finite(self, tensors: np.ndarray, member: int) -> np.ndarray:
        """Which tensors were measured to their end, and hold finite values alone."""
        rows = self.measured.moments[tensors, member]
        found: np.ndarray = (rows["count"] == self._sizes[tensors]) & (rows["finite"] == rows["count"])
        return found

    @cached_property
    def _sizes(self) -> np.ndarray:
        held = [one.tensors[self.members[1]] for one in self.measured.comparison.aligned]
        return np.array([-1 if one is None else one.elements for one in held], np.int64)

    def _key(self, layer: Layer, place: int, member: int) -> Hashable | None:
        """Bits of an expert's tensors; None where they are not known, or all of one value."""
        content, moments = self.measured.details.content, self.measured.moments
        rows = layer.tensors[place]
        if content is None or not (content["count"][rows, member] == self._sizes[rows]).all():
            return None
        if (moments["low"][rows, member] >= moments["high"][rows, member]).all():
            return None
        held = (self.measured.comparison.aligned[tensor].tensors[member] for tensor in rows.tolist())
        kinds = tuple((one.dtype, one.shape) for one in held if one is not None)
        return kinds, content["digest"][rows, member].tobytes(), moments[rows, member].tobytes()

    def _stacked_key(self, layer: Layer, place: int, member: int) -> Hashable | None:
        """Statistics of an expert's rows; None where they are not known, or all 0."""
        parts = []
        for tensor in layer.tensors[0].tolist():
            table = self.measured.details.rows.get((tensor, member))
            if table is None:
                return None
            parts.append(table.reshape(len(layer.numbers), -1)[place])
        return tuple(part.tobytes() for part in parts) if any(part["absmax"].any() for part in parts) else None

    def _tops(self, layer: Layer, member: int) -> np.ndarray | None:
        tables = [self.measured.details.rows.get((tensor, member)) for tensor in layer.tensors[0].tolist()]
        tops = [one["absmax"].reshape(len(layer.numbers), -1).max(axis=1) for one in tables if one is not None]
        return np.max(tops, axis=0) if len(tops) == len(tables) else None

    def _shape(self, tensor: int) -> tuple[int, ...] | None:
        """Of real numbers of equal shape on both sides; None for anything else."""
        held = self.measured.comparison.aligned[tensor].tensors
        a, b = (held[member] for member in self.members)
        if a is None or b is None or a.shape != b.shape or max(a.decoder.family, b.decoder.family) > Family.INTEGER:
            return None
        return a.shape
