"""The way of a series' members through the space of its weights: lengths, angles, laws, its two main directions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.roles import block

if TYPE_CHECKING:
    import numpy as np

    from diffai_dist.analyses.lengths import Length
    from diffai_dist.analyses.series import Series
    from diffai_dist.analyses.trend import Trend

_BATCH = 4096  # groups of tensors that are looked at together


class Trajectory:
    """The way of some members through the space of some tensors, all of which all these members have."""

    def __init__(self, series: Series, members: Sequence[int], tensors: Sequence[int]) -> None:
        import numpy as np

        self.series, self.members, self.tensors = series, members, tensors
        self.names = [series.names[member] for member in members]
        self.axis = series.axis[list(members)]
        self.gaps = np.diff(self.axis)
        self.moves = [series.distances(*ends).of(tensors) for ends in itertools.pairwise(members)]
        self.away = [series.distances(members[0], member).of(tensors) for member in members[1:]]
        self.lengths, self.distances = (np.array([one.value for one in row]) for row in (self.moves, self.away))
        self.length = float(self.lengths.sum())
        norms = np.array([_total(series, tensors, member) for member in members[:-1]])
        with np.errstate(all="ignore"):
            self.updates = np.where(norms > 0.0, self.lengths / norms, np.nan)
            self.errors = np.where(norms > 0.0, np.array([one.value_error for one in self.moves]) / norms, np.nan)

    @property
    def lost(self) -> int:
        """How many updates may be nothing but rounding."""
        return sum(not one.known for one in self.moves)

    @property
    def moved(self) -> int:
        """How many updates are not 0."""
        return int((self.lengths > 0.0).sum())

    @property
    def blur(self) -> float:
        """The largest relative error of a distance."""
        return max((one.value_error / one.value for one in (*self.moves, *self.away) if one.value > 0.0), default=0.0)

    @property
    def span(self) -> float:
        """Between the first and the last update, on the axis."""
        return float(self.axis[-2] - self.axis[0])

    def trend(self) -> Trend | None:
        """Of log u per step, over updates that moved; None for fewer than two."""
        import numpy as np

        from diffai_dist.analyses.trend import mann_kendall

        moved = self.updates > 0.0
        if moved.sum() < 2:
            return None
        return mann_kendall(np.log(self.updates[moved] / self.gaps[moved]), self.axis[:-1][moved])

    @cached_property
    def angles(self) -> list[tuple[float, float] | None]:
        """Cosines between successive updates with the bounds of their errors, however large these are."""
        from diffai_dist.analyses.lengths import cosine

        skipping = zip(self.members, self.members[2:], strict=False)
        across = [self.series.distances(*ends).of(self.tensors) for ends in skipping]
        return [cosine(*three) for three in zip(self.moves, self.moves[1:], across, strict=False)]

    @property
    def lost_angles(self) -> int:
        """How many angles between two updates that moved may be nothing but rounding."""
        return sum(one is not None for one in self.angles) - sum(cosine is not None for cosine, _ in self.cosines)

    @property
    def cosines(self) -> list[tuple[float | None, float | None]]:
        """Of each update with the one before, and the bound of its error; none for the first, nor for a lost one."""
        from diffai_dist.analyses.lengths import BLURRED

        return [(None, None), *((None, None) if one is None or one[1] > BLURRED else one for one in self.angles)]

    def straightness(self) -> float | None:
        """Displacement per path; 1 for a straight line."""
        found = _ratio(self.distances[-1], self.length)
        return None if found is None else min(found, 1.0)

    def median_cosine(self) -> float | None:
        """Of successive updates; None where one is lost."""
        import numpy as np

        if self.lost_angles:
            return None
        known = [cosine for cosine, _ in self.cosines if cosine is not None]
        return float(np.median(known)) if known else None

    def plane_share(self) -> float | None:
        """Of the scatter around the mean, in its two main directions."""
        import numpy as np

        return _plane_shares(self.series, self.members, np.array(self.tensors)[:, None])[0]

    @cached_property
    def fits(self) -> list[dict[str, Any]]:
        """Laws of the distance from the first member and of the updates per step; the better one of each is chosen."""
        from diffai_dist.analyses.fits import best, distance_fits, update_fits

        if self.lost:
            return []
        away, moved = self.distances > 0.0, self.updates > 0.0
        times, starts = self.axis[1:] - self.axis[0], self.axis[:-1] - self.axis[0]
        families = (
            distance_fits(self.distances[away], times[away], self.blur),
            update_fits((self.updates / self.gaps)[moved], starts[moved], self.blur),
        )
        return [
            {"law": fit.law, "chosen": fit.law == best(family), "aicc": fit.aicc, "parameters": dict(fit.parameters)}
            for family in families
            for fit in family
        ]

    def rows(self) -> list[dict[str, Any]]:
        """One per update."""
        turns = zip(*self.cosines, strict=True)
        columns = (self.names, self.names[1:], self.gaps, self.updates, self.errors, *turns, self.distances)
        return [
            {
                "baseline": before,
                "candidate": after,
                "steps": float(gap),
                "u": number(u),
                "u_error": number(error),
                "u_per_step": _ratio(u, gap),
                "cosine_to_last": cosine,
                "cosine_error": blur,
                "distance_from_first": number(distance),
            }
            for before, after, gap, u, error, cosine, blur, distance in zip(*columns, strict=False)
        ]


@dataclass(frozen=True)
class Step:
    """A way of one update, which has no trend and no angle."""

    move: Length
    plane: float | None
    lost_angles: ClassVar[int] = 0
    span: ClassVar[float] = 0.0
    blur: ClassVar[float] = 0.0

    @property
    def length(self) -> float:
        """NaN where it may be nothing but rounding."""
        return self.move.value

    @property
    def distances(self) -> tuple[float]:
        """From the first member."""
        return (self.length,)

    @property
    def lost(self) -> int:
        """Whether it may be nothing but rounding."""
        return int(not self.move.known)

    @property
    def moved(self) -> int:
        """Whether it is not 0."""
        return int(self.length > 0.0)

    def straightness(self) -> float | None:
        """Of a line."""
        return 1.0 if self.moved else None

    def plane_share(self) -> float | None:
        """As of any way."""
        return self.plane

    def trend(self) -> None:
        """It takes two updates."""

    def median_cosine(self) -> None:
        """It takes two updates."""


def trajectories(series: Series, members: Sequence[int], groups: Sequence[list[int]]) -> Iterator[Trajectory | Step]:
    """The ways through the tensors of each group; those of one update, of which any pair has one, taken together."""
    import numpy as np

    if len(members) > 2:
        yield from (Trajectory(series, members, group) for group in groups)
        return
    planes = dict[int, float | None]()
    for size in {len(group) for group in groups}:
        alike = [place for place, group in enumerate(groups) if len(group) == size]
        for places in (alike[start : start + _BATCH] for start in range(0, len(alike), _BATCH)):
            chosen = np.array([groups[place] for place in places], np.int64).T
            planes |= dict(zip(places, _plane_shares(series, members, chosen), strict=True))
    distances = series.distances(*members)
    yield from (Step(distances.of(group), planes[place]) for place, group in enumerate(groups))


def _plane_shares(series: Series, members: Sequence[int], groups: np.ndarray) -> list[float | None]:
    """Of groups [tensors, groups] the share of the two largest eigenvalues of the centred Gram; None where it is lost.

    That is -1/2 of the centred squared distances; no eigenvalue is further off than their errors (Weyl 1912).
    """
    import numpy as np

    from diffai_dist.analyses.closeness import closenesses
    from diffai_dist.analyses.lengths import BLURRED

    near, (rows, columns) = closenesses(series, groups), np.ix_(members, members)
    squares, errors = near.squares[:, rows, columns], near.square_errors[:, rows, columns]
    known = np.isfinite(squares).all(axis=(1, 2))
    squares = np.where(known[:, None, None], squares, 0.0)
    centred = squares - squares.mean(axis=1, keepdims=True)
    centred -= centred.mean(axis=2, keepdims=True)
    powers = np.maximum(np.linalg.eigvalsh((centred + centred.swapaxes(1, 2)) / -4.0), 0.0)
    scatter, twice = squares.sum(axis=(1, 2)), 2 * len(members)
    with np.errstate(invalid="ignore"):
        blur = np.sqrt((errors**2).sum(axis=(1, 2))) + errors.sum(axis=(1, 2)) / twice
        known &= blur <= BLURRED * (scatter / twice)
    parts = zip(known.tolist(), powers[:, -2:].sum(axis=1).tolist(), powers.sum(axis=1).tolist(), strict=True)
    return [_ratio(part, every) if sure else None for sure, part, every in parts]


def kept(series: Series) -> tuple[list[int], list[int]]:
    """Members that have at least half of the tensors that any has, and the tensors that all of those have.

    Its products count the same elements for all members only if none has non-finite values where others have none.
    """
    import numpy as np

    usable = series.products & ~series.spoiled.any(axis=1, keepdims=True)
    numbers = usable.sum(axis=0)
    members = np.flatnonzero(2 * numbers >= numbers.max(initial=1)).tolist()
    tensors = np.flatnonzero(usable[:, members].all(axis=1)).tolist() if members else []
    return members, tensors


def grouped(series: Series, tensors: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Tensors by the block they belong to."""
    groups: dict[str, list[int]] = {}
    for tensor in tensors:
        groups.setdefault(block(series.tensors[tensor]), []).append(tensor)
    return list(groups.items())


def _total(series: Series, tensors: Sequence[int], member: int) -> float:
    from diffai_dist.analyses.lengths import total

    return math.sqrt(total(series.norms2[list(tensors), member]))


def number(value: float) -> float | None:
    """None for what is not finite."""
    return float(value) if math.isfinite(value) else None


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole and math.isfinite(part) and math.isfinite(whole) else None
