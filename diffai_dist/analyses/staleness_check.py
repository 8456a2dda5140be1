"""What was not rewritten: tensors, shards and whole checkpoints that hold what an earlier checkpoint held."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, threshold
from diffai_dist.records import AnalysisRecord, Finding, Severity
from diffai_dist.storage import is_remote, redact

if TYPE_CHECKING:
    import numpy as np

    from diffai_dist.analyses.series import Series
    from diffai_dist.checkpoint import Checkpoint
    from diffai_dist.storage import Source

# As optimizers of torch, Megatron, DeepSpeed and optax name what they keep beside each weight.
_STATE = re.compile(
    r"(?:^|[._/])(?:optim(?:izer)?(?:_states?)?|opt_state|exp_avg(?:_sq)?|exp_inf|momentum(?:_buffer)?|max_exp_avg_sq"
    r"|square_avg|acc_delta|state_step|adam[a-z]*)(?:$|[._/])"
)
_TELLING = 16  # elements; fewer may come back to old values by chance. Judgement


@dataclass(frozen=True)
class Repeat:
    """Tensors, by index, that a finding about a member and an earlier one, `source`, rests on; `url` of an object.

    It is `proven` by equal bits, or else only statistics are the same.
    """

    tensors: tuple[int, ...]
    source: int
    member: int
    proven: bool
    url: str | None = None
    nbytes: int = 0


@dataclass(frozen=True)
class StalenessCheck:
    """Checkpoints, shards and tensors that were not rewritten while the rest moved on.

    What explains more is told first, and what it explains is not told again: a checkpoint that equals an earlier one,
    an optimizer that advances without its weights, an object (of several) none of whose tensors is new, single tensors.
    A tensor that never changes is frozen, not stale; one that changes with its dtype alone is neither, and where no
    other tensor of one dtype changed nothing is stale: so do exports of one model differ. A finding about an object has
    no tensor, and its URL as value. The same are equal bits: those of one object, as compared in a pair or in the Gram,
    or as follows from these. Where the bits of two members were not compared, but dtype, shape and all statistics are
    equal to the last bit, the rule says `possible`, and its source how to know.
    """

    name: ClassVar[str] = "staleness_check"
    flag: ClassVar[str] = "--staleness-check"
    kind: ClassVar[Kind] = "N"
    partials: ClassVar[tuple[str, ...]] = ()
    in_all: ClassVar[bool] = True
    always: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "intervals": "steps from one member to the next",
        "frozen": "tensors that are the same in all members that have them",
        "stale": "tensors that are old in some interval and not frozen, in an object or alone",
        "unknown": "tensors, interval by interval, of which nothing tells whether they changed",
        "duplicates": "checkpoint, the earlier one it is equal_to, bytes of objects that no other has (freed_bytes,"
        " null unless proven), proven by equal bits or not",
        "optimizer_ahead": "baseline and candidate between which optimizer states moved, as many as states_moved, and"
        " no weight did",
        "stale_objects": "object, its checkpoint, the earlier one it is equal_to, its tensors and bytes, proven",
        "stale_tensors": "tensor, its checkpoint, the earlier one it is equal_to, its bytes, proven",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "duplicate-checkpoint": "a checkpoint holds the bits of an earlier one: critical; info where deleting it"
        " frees nothing, or it is one model in two formats",
        "possible-duplicate": "all statistics of a checkpoint are those of an earlier one, bits not compared: medium;"
        " info of one model in two formats",
        "optimizer-ahead": "states of the optimizer moved and no weight did: critical",
        "possible-optimizer-ahead": "the same, told by statistics: medium",
        "stale-object": "one of several objects holds no tensor that is new, not all of them frozen: critical",
        "possible-stale-object": "the same, told by statistics: medium",
        "stale-tensor": "a tensor holds what it held before while others moved, value = in how many members: high; low"
        " where fewer than `fewest` of its elements change in another interval",
        "possible-stale-tensor": "the same, told by statistics: medium",
        "stale-tensors": "more than `listed` stale tensors begin in one member, value = how many: high; low if all are",
        "possible-stale-tensors": "the same, told by statistics: medium",
        "frozen-tensors": "tensors that never change, value = how many: info",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "what counts as frozen, stale and duplicate: derived from equal bits",
        f"names of optimizer states, severities, {_TELLING} elements that do not come back by chance: judgement",
    )

    listed: int = threshold(20, "findings about single tensors of one member; where there are more, one counts them")

    fewest: int = threshold(20, "elements that change where any do; of a tensor with fewer, none may be rounding: low")

    def __call__(self, series: Series) -> AnalysisRecord:
        """Rows for each repetition, and a finding for each that is worth one."""
        duplicates, ahead = list(_duplicates(series)), list(_ahead(series))
        unexplained = [member for member in series.distinct if member not in {one.member for one in ahead}]
        shards = [one for member in unexplained for one in _stale_objects(series, member)]
        tensors = list(_stale_tensors(series, unexplained, shards))
        result: dict[str, Any] = {
            "intervals": len(series.intervals),
            "frozen": int(series.frozen.sum()),
            "stale": len({tensor for one in tensors for tensor in one.tensors}),
            "unknown": _unknown(series),
            "duplicates": [_duplicate_row(series, one) for one in duplicates],
            "optimizer_ahead": [_ahead_row(series, one) for one in ahead],
            "stale_objects": [_object_row(series, one) for one in shards],
            "stale_tensors": [_tensor_row(series, one) for one in tensors],
        }
        findings = (
            *(_duplicate_finding(series, one) for one in duplicates),
            *(_ahead_finding(series, one) for one in ahead),
            *(_object_finding(series, one) for one in shards),
            *self._tensor_findings(series, tensors),
            *_frozen_finding(series),
        )
        return AnalysisRecord(self.name, result, findings)

    def _tensor_findings(self, series: Series, tensors: Sequence[Repeat]) -> Iterator[Finding]:
        """One finding per tensor, at the first member in which it is stale; its value says in how many it is."""
        times: dict[tuple[int, bool], list[Repeat]] = {}
        for one in tensors:
            times.setdefault((one.tensors[0], one.proven), []).append(one)
        starts: dict[tuple[int, bool], list[list[Repeat]]] = {}
        for (_, proven), repeats in times.items():
            starts.setdefault((repeats[0].member, proven), []).append(repeats)
        for _, stale in sorted(starts.items()):
            if len(stale) > self.listed:
                source = f"stale tensors; more than listed={self.listed}; {_evidence(series, stale[0][0])}"
                severe = any(self._moves(series, one.tensors[0]) for one, *_ in stale)
                yield _finding(series, stale[0][0], "stale-tensors", _level(severe), None, len(stale), 0, source)
                continue
            for first, *others in stale:
                source = f"members in which it is stale; {_evidence(series, first)}"
                name, level = series.tensors[first.tensors[0]], _level(self._moves(series, first.tensors[0]))
                yield _finding(series, first, "stale-tensor", level, name, 1 + len(others), 0, source)

    def _moves(self, series: Series, tensor: int) -> bool:
        """Whether so many of its elements change, where any do, that none at all is no rounding; or nobody counted."""
        changed = series.measured.shifts["changed"][tensor]
        known = changed[series.by_elements[tensor] & (changed > 0)]
        return not len(known) or int(known.min()) >= self.fewest


def _level(severe: bool) -> Severity:
    return "high" if severe else "low"


def is_state(name: str) -> bool:
    """Whether a tensor belongs to the state of an optimizer, by its name.

    >>> is_state("optimizer.state.3.exp_avg"), is_state("opt_state/0/mu/dense/kernel"), is_state("model.norm.weight")
    (True, True, False)
    """
    return bool(_STATE.search(name.lower()[-1024:]))


def _duplicates(series: Series) -> Iterator[Repeat]:
    """Checkpoints that are an earlier one again, with the bytes of the objects that no other has."""
    every = tuple(range(len(series.tensors)))
    held = [_deleted_with(one) for one in series.measured.comparison.members] if series.duplicates else []
    holders = Counter(source for sources in held for source in sources)
    for member, original in series.duplicates.items():
        freed = sum(source.size for source in held[member] if holders[source] == 1)
        yield Repeat(every, original, member, series.proven(every, original, member), nbytes=freed)


def _deleted_with(checkpoint: Checkpoint) -> set[Source]:
    """Its objects. Files that are links to one file lie in one place, an object elsewhere in its own, equal or not."""
    places = {span.source for tensor in checkpoint.tensors.values() for span in tensor.spans}
    files = {source for source in places if not is_remote(source.url)}
    return files | {source for source in checkpoint.sources if is_remote(source.url)}


def _ahead(series: Series) -> Iterator[Repeat]:
    """Members in which states of the optimizer moved, the tensors, while no weight did, since the last distinct one."""
    import numpy as np

    states = np.array([is_state(name) for name in series.tensors], bool)
    for before, after in itertools.pairwise(series.distinct):
        classes = series.alike[:, [before, after]]
        known = (classes >= 0).all(axis=1) & (series.sizes[:, after] > 0)
        moved, weights = known & (classes[:, 0] != classes[:, 1]), known & ~states
        if weights.any() and not (moved & weights).any() and moved.any():
            proven = series.proven(np.flatnonzero(weights), before, after)
            yield Repeat(tuple(np.flatnonzero(moved).tolist()), before, after, proven)


def _sized(series: Series, member: int) -> list[int]:
    found: list[int] = (series.sizes[:, member] > 0).nonzero()[0].tolist()
    return found


def _stale_objects(series: Series, member: int) -> Iterator[Repeat]:
    """Objects of a sharded checkpoint all of whose tensors stand in one earlier member, not all of them frozen."""
    objects = _objects(series, member)
    for url, tensors in objects.items():
        if len(objects) < 2 or series.still[tensors, member].all():
            continue
        source = _latest_equal(series, tensors, member)
        if source is not None and _told(series, tensors, source, member):
            proven, nbytes = series.proven(tensors, source, member), int(series.nbytes[tensors, member].sum())
            yield Repeat(tuple(tensors), source, member, proven, redact(url), nbytes)


def _objects(series: Series, member: int) -> Mapping[str, list[int]]:
    """The tensors of each object that holds any."""
    found: dict[str, list[int]] = {}
    for tensor in _sized(series, member):
        held = series.measured.comparison.aligned[tensor].tensors[member]
        for url in dict.fromkeys(span.source.url for span in held.spans) if held else ():
            found.setdefault(url, []).append(tensor)
    return found


def _latest_equal(series: Series, tensors: Sequence[int], member: int) -> int | None:
    """The latest earlier member, no duplicate itself, in which all these tensors are the same, by bits if in any."""
    own: np.ndarray = series.alike[tensors, member]
    if (own < 0).any():
        return None
    earlier = [one for one in series.distinct if one < member and (series.alike[tensors, one] == own).all()]
    return max([one for one in earlier if series.proven(tensors, one, member)] or earlier, default=None)


def _told(series: Series, tensors: Sequence[int], source: int, member: int) -> bool:
    """Whether others moved on, and it is no accident: neighbours that are equal, or elements enough not to come back
    by chance."""
    if not series.moved_on(source, member):
        return False
    between = [one for one in series.distinct if source < one < member]
    return not between or int(series.sizes[list(tensors), member].sum()) >= _TELLING


def _stale_tensors(series: Series, members: Iterable[int], shards: Sequence[Repeat]) -> Iterator[Repeat]:
    explained = {(tensor, one.member) for one in shards for tensor in one.tensors}
    for member in members:
        for tensor in (series.old[:, member] & ~series.still[:, member]).nonzero()[0].tolist():
            source = _latest_equal(series, [tensor], member)
            if (tensor, member) in explained or source is None or not _told(series, [tensor], source, member):
                continue
            proven, nbytes = series.proven([tensor], source, member), int(series.nbytes[tensor, member])
            yield Repeat((tensor,), source, member, proven, None, nbytes)


def _unknown(series: Series) -> int:
    """Tensors, interval by interval, of which nobody knows whether they changed."""
    from diffai_dist.analyses.sameness import UNKNOWN

    number = 0
    for t in series.intervals:
        there = ((series.sizes >= 0) | series.unread)[:, t : t + 2].all(axis=1)
        apart = series.alike[:, t] != series.alike[:, t + 1]
        number += int((there & apart & (series.sameness.between(t, t + 1) == UNKNOWN)).sum())
    return number


def _evidence(series: Series, one: Repeat) -> str:
    if one.proven:
        return "the bits are equal"
    command = ["diffai-dist", "compare", *(series.members[member].url for member in (one.source, one.member))]
    return f"statistics are equal to the last bit, bits were not compared: {shlex.join(command)}"


def _finding(
    series: Series,
    one: Repeat,
    rule: str,
    severity: Severity,
    tensor: str | None,
    value: int | str | None,
    threshold: int | None,
    source: str,
) -> Finding:
    """What is not proven is another rule, and no alarm."""
    sides = series.names[one.source], series.names[one.member]
    if one.proven:
        return Finding(rule, severity, tensor, value, threshold, source, *sides)
    level: Severity = "low" if severity == "low" else "medium"
    return Finding(f"possible-{rule}", level, tensor, value, threshold, source, *sides)


def _duplicate_row(series: Series, one: Repeat) -> dict[str, Any]:
    return {
        "checkpoint": series.names[one.member],
        "equal_to": series.names[one.source],
        "freed_bytes": one.nbytes if one.proven else None,
        "proven": one.proven,
    }


def _duplicate_finding(series: Series, one: Repeat) -> Finding:
    evidence, sides = _evidence(series, one), (series.names[one.source], series.names[one.member])
    formats = _formats(series, one)
    if not one.proven:
        level: Severity = "info" if formats else "medium"
        return Finding("possible-duplicate", level, None, None, None, f"{formats}of all tensors {evidence}", *sides)
    source = f"{formats}bytes that deleting {sides[1]} frees, of objects it alone has; of all tensors {evidence}"
    if formats or not one.nbytes:  # without bytes a link to the other, as `latest` is
        return Finding("duplicate-checkpoint", "info", None, one.nbytes, None, source, *sides)
    return Finding("duplicate-checkpoint", "critical", None, one.nbytes, None, source, *sides)


def _formats(series: Series, one: Repeat) -> str:
    """What to say of one model in two formats, which somebody made on purpose; nothing where there is one."""
    members = [series.measured.comparison.members[member] for member in (one.source, one.member)]
    formats = [member.format for member in members]
    if formats[0] != formats[1]:
        return f"one model as {formats[0]} and as {formats[1]}: "
    aligned = series.measured.comparison.aligned
    pairs = ((each.tensors[one.source], each.tensors[one.member]) for each in aligned)
    coded = any(a and b and a.scheme != b.scheme for a, b in pairs)
    return "one model in two encodings: " if coded else ""


def _ahead_row(series: Series, one: Repeat) -> dict[str, Any]:
    sides = {"baseline": series.names[one.source], "candidate": series.names[one.member]}
    return {**sides, "states_moved": len(one.tensors)}


def _ahead_finding(series: Series, one: Repeat) -> Finding:
    source = f"optimizer states that moved, told by their names, while no weight did; {_evidence(series, one)}"
    return _finding(series, one, "optimizer-ahead", "critical", None, len(one.tensors), 0, source)


def _object_row(series: Series, one: Repeat) -> dict[str, Any]:
    return {
        "object": one.url,
        "checkpoint": series.names[one.member],
        "equal_to": series.names[one.source],
        "tensors": len(one.tensors),
        "bytes": one.nbytes,
        "proven": one.proven,
    }


def _object_finding(series: Series, one: Repeat) -> Finding:
    source = f"of all its tensors, {one.nbytes:,} bytes in {len(one.tensors)}, {_evidence(series, one)}"
    return _finding(series, one, "stale-object", "critical", None, one.url, None, source)


def _tensor_row(series: Series, one: Repeat) -> dict[str, Any]:
    return {
        "tensor": series.tensors[one.tensors[0]],
        "checkpoint": series.names[one.member],
        "equal_to": series.names[one.source],
        "bytes": one.nbytes,
        "proven": one.proven,
    }


def _frozen_finding(series: Series) -> Iterator[Finding]:
    if number := int(series.frozen.sum()):
        lost = int((series.frozen & series.unread.any(axis=1)).sum())
        unproven = int((series.frozen & ~series.proven_frozen).sum())
        source = "tensors that are the same in all members that have them"
        if lost:
            source += f", {lost} as far as they were read"
        if unproven:
            source += f", {unproven} by statistics, not bits"
        yield Finding("frozen-tensors", "info", None, number, None, source)
