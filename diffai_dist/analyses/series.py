"""What the analyses of a series see: what was read, what is the same in which members, how far apart they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from diffai_dist.analyses.lengths import Distances, from_elements, from_gram
from diffai_dist.analyses.sameness import ABSENT, DIFFERENT, SAME, UNKNOWN, Sameness
from diffai_dist.checkpoint import Tensor
from diffai_dist.dtypes import Family
from diffai_dist.errors import Failure
from diffai_dist.gram import whole
from diffai_dist.partials import GRAM
from diffai_dist.records import Measurements, Member


@dataclass(frozen=True)
class Series:
    """The members of a comparison in their order, which is that of training; arrays are [tensors, members] or the like.

    Numbers of a tensor are NaN where it is missing in a member, was not read, has no decoder, or where nobody measured
    the pair: sums leave it out, and analyses say how many tensors that were.
    """

    measured: Measurements
    members: tuple[Member, ...]
    closed: Mapping[str, tuple[Failure, ...]] = field(default_factory=dict)  # what could not be opened, by name

    @cached_property
    def names(self) -> list[str]:
        """Names of the members."""
        return [member.name for member in self.members]

    @cached_property
    def tensors(self) -> list[str]:
        """Names of the tensors."""
        return [aligned.name for aligned in self.measured.comparison.aligned]

    @property
    def intervals(self) -> range:
        """The steps between neighbours: interval t leads from member t to t + 1."""
        return range(max(len(self.members) - 1, 0))

    @cached_property
    def steps(self) -> list[int] | None:
        """Training steps of the members; None unless all are known and grow."""
        steps = [member.step for member in self.members]
        known = [step for step in steps if step is not None]
        growing = all(a < b for a, b in itertools.pairwise(known))
        return known if len(known) == len(steps) and growing else None

    @cached_property
    def axis(self) -> np.ndarray:
        """Where the members lie on the axis of time: their steps, or else their places."""
        return np.array(self.steps if self.steps is not None else range(len(self.members)), np.float64)

    @cached_property
    def sizes(self) -> np.ndarray:
        """What the kernels should have counted: elements, or bytes without a decoder; -1 where there is no tensor."""
        return self._table(lambda one: one.counted, -1)

    @cached_property
    def nbytes(self) -> np.ndarray:
        """Bytes of each tensor in each member, 0 where it is missing."""
        return self._table(lambda one: one.nbytes, 0)

    @cached_property
    def read(self) -> np.ndarray:
        """Which tensors were measured to their end."""
        found: np.ndarray = self.measured.moments["count"] == self.sizes
        for tensor, member in self.measured.failures:
            found[tensor, member] = False
        return found

    @cached_property
    def unread(self) -> np.ndarray:
        """Which tensors are, or may be, in a member and were not measured: their shard is missing, too."""
        lost = [[failure is not None for failure in one.unreadable] for one in self.measured.comparison.aligned]
        missing = np.array(lost, bool).reshape(self.read.shape)
        found: np.ndarray = ~self.read & ((self.sizes >= 0) | missing)
        return found

    @cached_property
    def decoded(self) -> np.ndarray:
        """Which tensors were measured as numbers."""
        found: np.ndarray = self.read & self._table(lambda one: one.decoder.family != Family.BYTES, False)
        return found

    @cached_property
    def non_finite(self) -> np.ndarray:
        """How many elements are NaN or infinite; -1 where that is not known."""
        moments = self.measured.moments
        return np.where(self.decoded, moments["nans"] + moments["posinfs"] + moments["neginfs"], -1)

    @cached_property
    def norms2(self) -> np.ndarray:
        """Σ x² of each tensor in each member, over finite values."""
        moments = self.measured.moments
        parts = self._table(lambda one: 2.0 if one.decoder.family == Family.COMPLEX else 1.0, 1.0)
        with np.errstate(all="ignore"):
            squares = parts * (moments["m2"] + moments["finite"] * moments["mean"] ** 2)
        return _finite(squares, self.decoded)

    def distances(self, i: int, j: int) -> Distances:
        """How far each tensor is apart in two members: as measured element by element, else out of the Gram."""
        if (i, j) not in self._distances:
            nobody = np.full(len(self.tensors), np.nan)
            found = Distances(nobody, nobody)
            if self.measured.grams is not None:
                found = found.where(self.products[:, i] & self.products[:, j], from_gram(self.measured.grams, i, j))
            for pair in self.sameness.pairs_of(i, j):
                found = found.where(self.by_elements[:, pair], from_elements(self.measured.shifts[:, pair]))
            self._distances[i, j] = self._distances[j, i] = found
        return self._distances[i, j]

    @cached_property
    def by_elements(self) -> np.ndarray:
        """Which tensors were measured as numbers, and to their end, in which pairs."""
        pairs = self.measured.comparison.pairs
        before, after = ([getattr(pair, side) for pair in pairs] for side in ("baseline", "candidate"))
        counted = self.measured.shifts["count"] == self.sizes[:, before]
        found: np.ndarray = counted & self.decoded[:, before] & self.decoded[:, after]
        return found

    @cached_property
    def products(self) -> np.ndarray:
        """Which tensors have products with other members in the Gram."""
        grams, comparison = self.measured.grams, self.measured.comparison
        if grams is None or comparison.anchor is None:
            return np.zeros(self.read.shape, bool)
        spoiled = [tensor for tensor, member in self.measured.failures if member == comparison.anchor]
        found: np.ndarray = self.decoded & (np.einsum("tii->ti", grams[:, GRAM.index("count")]) > 0)
        found[spoiled] = False  # differences from something that was not read to its end
        return found

    def grams(self, tensors: Sequence[int] | np.ndarray, usable: np.ndarray | None = None) -> np.ndarray:
        """GRAM of all these tensors together, [1, planes, members, members]; `usable` narrows `products` further.

        Of tensors [tensors, groups] those of each group together, [1, groups, planes, members, members].
        """
        if self.measured.grams is None:
            raise ValueError("no Gram was measured")
        chosen = np.asarray(tensors, np.int64)
        one = (self.products if usable is None else self.products & usable)[chosen]
        both = one[..., None, :, None] & one[..., None, None, :]
        return whole(np.where(both, self.measured.grams[chosen], 0.0))

    def same_bits(self, tensor: int, i: int, j: int) -> bool | None:
        """Whether a tensor has the same bits and dtype in two members; None where that is not known."""
        return {SAME: True, DIFFERENT: False, UNKNOWN: None}[int(self.sameness.between(i, j)[tensor])]

    @cached_property
    def sameness(self) -> Sameness:
        """Which tensors hold the same bits in which members."""
        return Sameness(self.measured, self.sizes, self.read, self.decoded, self.unread)

    @property
    def alike(self) -> np.ndarray:
        """For each tensor and member the first member in which it is the same, negative where it cannot be compared.

        The same are equal bits, or, where bits were not compared, dtype, shape and all statistics to the last bit.
        """
        return self.sameness.alike

    @property
    def equal(self) -> np.ndarray:
        """The same where only equal bits count."""
        return self.sameness.equal

    @cached_property
    def frozen(self) -> np.ndarray:
        """Which tensors never change: alike in all members that have them, and those are two at least."""
        return self._one_class(self.alike)

    @property
    def proven_frozen(self) -> np.ndarray:
        """Those of them whose bits are known to be equal."""
        return self._one_class(self.equal)

    @cached_property
    def still(self) -> np.ndarray:
        """Which tensors of which members are the same in all others that hold them with that dtype and shape.

        As in exports of one model: a norm that some hold in BF16 and others in F32 did not change for that.
        """
        classes, kinds, members = self.alike, self.sameness.kinds, len(self.members)
        cells = np.arange(len(classes))[:, None], kinds
        first, moved = np.full(classes.shape, members), np.zeros(classes.shape, bool)
        np.minimum.at(first, cells, np.where(classes >= 0, classes, members))
        np.logical_or.at(moved, cells, (classes >= 0) & (classes != first[cells]))
        found: np.ndarray = ~moved[cells]
        return found

    def moved_on(self, i: int, j: int) -> bool:
        """Whether any tensor that two members hold with one dtype and shape is another one in the later."""
        classes, kinds = self.alike[:, [i, j]], self.sameness.kinds
        other = (classes >= 0).all(axis=1) & (classes[:, 0] != classes[:, 1])
        return bool((other & (kinds[:, i] == kinds[:, j])).any())

    def _one_class(self, every: np.ndarray) -> np.ndarray:
        classes = every[:, self.distinct]
        there, last = classes >= 0, classes.max(axis=1, initial=ABSENT, keepdims=True)
        still = ((classes == last) | ~there).all(axis=1) & (there.sum(axis=1) > 1)
        found: np.ndarray = still & (self.sizes.max(axis=1, initial=0) > 0)
        return found

    @cached_property
    def duplicates(self) -> dict[int, int]:
        """Members all of whose tensors are alike in an earlier one, and the first such one, by bits if in any."""
        found: dict[int, int] = {}
        for member in range(1, len(self.members)):
            own = self.alike[:, member]
            if (own < ABSENT).any() or not (self.sizes[:, member] > 0).any():
                continue
            same = [one for one in range(member) if (self.alike[:, one] == own).all()]
            proven = [one for one in same if self.proven(range(len(self.tensors)), one, member)]
            if same:
                found[member] = (proven or same)[0]
        return found

    @cached_property
    def distinct(self) -> list[int]:
        """The members that are no duplicates."""
        return [member for member in range(len(self.members)) if member not in self.duplicates]

    @cached_property
    def old(self) -> np.ndarray:
        """Which tensors of which members are those of an earlier member again, though they change elsewhere."""
        again = (self.alike >= 0) & (self.alike < np.arange(len(self.members)))
        old: np.ndarray = again & ~self.frozen[:, None] & (self.sizes > 0)
        return old

    @cached_property
    def spoiled(self) -> np.ndarray:
        """Which tensors hold more non-finite values than elsewhere; not those of a mask that always has them."""
        known = self.non_finite >= 0
        fewest = np.where(known, self.non_finite, np.iinfo(np.int64).max).min(axis=1, keepdims=True, initial=2**62)
        spoiled: np.ndarray = known & (self.non_finite > fewest)
        return spoiled

    def proven(self, tensors: Iterable[int], i: int, j: int) -> bool:
        """Whether bits were compared, not only statistics, for all these tensors."""
        chosen = list(tensors)
        return bool((self.equal[chosen, i] == self.equal[chosen, j]).all())

    def _table(self, of: Callable[[Tensor], float], missing: float) -> np.ndarray:
        rows = [[missing if one is None else of(one) for one in a.tensors] for a in self.measured.comparison.aligned]
        return np.array(rows, type(missing)).reshape(len(rows), len(self.members))

    @cached_property
    def _distances(self) -> dict[tuple[int, int], Distances]:
        return {}


def _finite(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.where(known & np.isfinite(values), values, np.nan)
    return found
