"""What was not rewritten: tensors, shards and whole checkpoints that hold what an earlier checkpoint held."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.records import AnalysisRecord, Finding
from diffai_dist.storage import redact

if TYPE_CHECKING:
    import numpy as np

    from diffai_dist.analyses.series import Series

# As optimizers of torch, Megatron, DeepSpeed and optax name what they keep beside each weight.
_STATE = re.compile(
    r"(?:^|[._/])(?:optim(?:izer)?(?:_states?)?|opt_state|exp_avg(?:_sq)?|exp_inf|momentum(?:_buffer)?|max_exp_avg_sq"
    r"|square_avg|acc_delta|state_step|adam[a-z]*)(?:$|[._/])"
)
_TELLING = 16  # elements; fewer may come back to old values by chance. Judgement


@dataclass(frozen=True)
class Repeat:
    """Tensors, by index, that a finding about a member and an earlier one, `source`, rests on; `url` of an object."""

    tensors: tuple[int, ...]
    source: int
    member: int
    url: str | None = None
    nbytes: int = 0


@dataclass(frozen=True)
class StalenessCheck:
    """Checkpoints, shards and tensors that were not rewritten while the rest moved on.

    What explains more is told first, and what it explains is not told again: a checkpoint that equals an earlier one,
    an optimizer that advances without its weights, an object (of several) none of whose tensors is new, single tensors.
    A tensor that never changes is frozen, not stale. A finding about an object has no tensor, and its URL as value.
    The same are equal bits; where the bits of two members were not compared, equal dtype, shape and statistics to the
    last bit, and the source of the finding says so.
    """

    name: ClassVar[str] = "staleness_check"
    flag: ClassVar[str | None] = None
    needs_gram: ClassVar[bool] = False

    listed: int = 20  # findings about single tensors of one member; where there are more, one counts them. Judgement

    def __call__(self, series: Series) -> AnalysisRecord:
        """Rows for each repetition, and a finding for each that is worth one."""
        ahead = list(_ahead(series))
        unexplained = [member for member in series.distinct if member not in {one.member for one in ahead}]
        shards = [one for member in unexplained for one in _stale_objects(series, member)]
        tensors = list(_stale_tensors(series, unexplained, shards))
        result: dict[str, Any] = {
            "intervals": len(series.intervals),
            "frozen": int(series.frozen.sum()),
            "stale": len({tensor for one in tensors for tensor in one.tensors}),
            "unknown": _unknown(series),
            "duplicates": [_duplicate_row(series, *pair) for pair in series.duplicates.items()],
            "optimizer_ahead": [_ahead_row(series, one) for one in ahead],
            "stale_objects": [_object_row(series, one) for one in shards],
            "stale_tensors": [_tensor_row(series, one) for one in tensors],
        }
        findings = (
            *_duplicate_findings(series),
            *(_ahead_finding(series, one) for one in ahead),
            *(_object_finding(series, one) for one in shards),
            *self._tensor_findings(series, tensors),
            *_frozen_finding(series),
        )
        return AnalysisRecord(self.name, result, findings)

    def _tensor_findings(self, series: Series, tensors: Sequence[Repeat]) -> Iterator[Finding]:
        """One finding per tensor, at the first member in which it is stale; its value says in how many it is."""
        times: dict[int, list[Repeat]] = {}
        for one in tensors:
            times.setdefault(one.tensors[0], []).append(one)
        starts: dict[int, list[int]] = {}
        for tensor, repeats in times.items():
            starts.setdefault(repeats[0].member, []).append(tensor)
        for member, stale in sorted(starts.items()):
            if len(stale) > self.listed:
                source = f"stale tensors; more than listed={self.listed}: judgement"
                sides = series.names[times[stale[0]][0].source], series.names[member]
                yield Finding("stale-tensors", "high", None, len(stale), 0, source, *sides)
                continue
            for tensor in stale:
                first, number = times[tensor][0], len(times[tensor])
                source = f"members in which it is stale, by {_evidence(series, first)}"
                sides = series.names[first.source], series.names[member]
                yield Finding("stale-tensor", "high", series.tensors[tensor], number, 0, source, *sides)


def is_state(name: str) -> bool:
    """Whether a tensor belongs to the state of an optimizer, by its name.

    >>> is_state("optimizer.state.3.exp_avg"), is_state("opt_state/0/mu/dense/kernel"), is_state("model.norm.weight")
    (True, True, False)
    """
    return bool(_STATE.search(name.lower()[-1024:]))


def _ahead(series: Series) -> Iterator[Repeat]:
    """Members in which states of the optimizer moved, the tensors, while no weight did, since the last distinct one."""
    import numpy as np

    states = np.array([is_state(name) for name in series.tensors], bool)
    for before, after in itertools.pairwise(series.distinct):
        classes = series.alike[:, [before, after]]
        known = (classes >= 0).all(axis=1) & (series.sizes[:, after] > 0)
        moved = known & (classes[:, 0] != classes[:, 1])
        if (known & ~states).any() and not (moved & ~states).any() and moved.any():
            yield Repeat(tuple(np.flatnonzero(moved).tolist()), before, after)


def _sized(series: Series, member: int) -> list[int]:
    found: list[int] = (series.sizes[:, member] > 0).nonzero()[0].tolist()
    return found


def _stale_objects(series: Series, member: int) -> Iterator[Repeat]:
    """Objects of a sharded checkpoint all of whose tensors stand in one earlier member, not all of them frozen."""
    objects = _objects(series, member)
    for url, tensors in objects.items():
        if len(objects) < 2 or series.frozen[tensors].all():
            continue
        source = _latest_equal(series, tensors, member)
        if source is not None and _told(series, tensors, source, member):
            yield Repeat(tuple(tensors), source, member, redact(url), int(series.nbytes[tensors, member].sum()))


def _objects(series: Series, member: int) -> Mapping[str, list[int]]:
    """The tensors of each object that holds any."""
    found: dict[str, list[int]] = {}
    for tensor in _sized(series, member):
        held = series.measured.comparison.aligned[tensor].tensors[member]
        for url in dict.fromkeys(span.source.url for span in held.spans) if held else ():
            found.setdefault(url, []).append(tensor)
    return found


def _latest_equal(series: Series, tensors: Sequence[int], member: int) -> int | None:
    """The latest earlier member, no duplicate itself, in which all these tensors are the same."""
    own: np.ndarray = series.alike[tensors, member]
    if (own < 0).any():
        return None
    earlier = [one for one in series.distinct if one < member and (series.alike[tensors, one] == own).all()]
    return max(earlier, default=None)


def _told(series: Series, tensors: Sequence[int], source: int, member: int) -> bool:
    """Whether it is no accident: neighbours that are equal, or enough elements to come back by chance."""
    between = [one for one in series.distinct if source < one < member]
    return not between or int(series.sizes[list(tensors), member].sum()) >= _TELLING


def _stale_tensors(series: Series, members: Iterable[int], shards: Sequence[Repeat]) -> Iterator[Repeat]:
    explained = {(tensor, one.member) for one in shards for tensor in one.tensors}
    for member in members:
        for tensor in series.old[:, member].nonzero()[0].tolist():
            source = _latest_equal(series, [tensor], member)
            if (tensor, member) in explained or source is None or not _told(series, [tensor], source, member):
                continue
            yield Repeat((tensor,), source, member, None, int(series.nbytes[tensor, member]))


def _unknown(series: Series) -> int:
    """Tensors, interval by interval, of which nobody knows whether they changed."""
    from diffai_dist.analyses.sameness import UNKNOWN

    number = 0
    for t in series.intervals:
        there = (series.sizes[:, t : t + 2] >= 0).all(axis=1)
        apart = series.alike[:, t] != series.alike[:, t + 1]
        number += int((there & apart & (series.sameness.between(t, t + 1) == UNKNOWN)).sum())
    return number


def _evidence(series: Series, one: Repeat) -> str:
    if series.proven(one.tensors, one.source, one.member):
        return "their bits"
    return "all statistics to the last bit; the bits of the two were not compared"


def _freed(series: Series, member: int, original: int) -> int:
    """Bytes of the objects that only the duplicate has."""
    kept = {source.url for source in series.members[original].objects}
    return sum(source.size for source in series.members[member].objects if source.url not in kept)


def _duplicate_row(series: Series, member: int, original: int) -> dict[str, Any]:
    return {
        "checkpoint": series.names[member],
        "equal_to": series.names[original],
        "freed_bytes": _freed(series, member, original),
        "proven": series.proven(range(len(series.tensors)), original, member),
    }


def _duplicate_findings(series: Series) -> Iterator[Finding]:
    for member, original in series.duplicates.items():
        row = _duplicate_row(series, member, original)
        how = "the bits" if row["proven"] else "all statistics to the last bit, not the bits,"
        source = f"bytes that deleting {row['checkpoint']} frees; {how} of all tensors are equal"
        sides = series.names[original], series.names[member]
        yield Finding("duplicate-checkpoint", "critical", None, row["freed_bytes"], None, source, *sides)


def _ahead_row(series: Series, one: Repeat) -> dict[str, Any]:
    sides = {"baseline": series.names[one.source], "candidate": series.names[one.member]}
    return {**sides, "states_moved": len(one.tensors)}


def _ahead_finding(series: Series, one: Repeat) -> Finding:
    source = "optimizer states that moved, told by their names, while no weight did"
    sides = series.names[one.source], series.names[one.member]
    return Finding("optimizer-ahead", "critical", None, len(one.tensors), 0, source, *sides)


def _object_row(series: Series, one: Repeat) -> dict[str, Any]:
    return {
        "object": one.url,
        "checkpoint": series.names[one.member],
        "equal_to": series.names[one.source],
        "tensors": len(one.tensors),
        "bytes": one.nbytes,
        "proven": series.proven(one.tensors, one.source, one.member),
    }


def _object_finding(series: Series, one: Repeat) -> Finding:
    source = f"all its tensors, {one.nbytes:,} bytes in {len(one.tensors)}, are equal by {_evidence(series, one)}"
    sides = series.names[one.source], series.names[one.member]
    return Finding("stale-object", "critical", None, one.url, None, source, *sides)


def _tensor_row(series: Series, one: Repeat) -> dict[str, Any]:
    return {
        "tensor": series.tensors[one.tensors[0]],
        "checkpoint": series.names[one.member],
        "equal_to": series.names[one.source],
        "bytes": one.nbytes,
    }


def _frozen_finding(series: Series) -> Iterator[Finding]:
    if number := int(series.frozen.sum()):
        source = "tensors that are the same in all members that have them"
        yield Finding("frozen-tensors", "info", None, number, None, source)
