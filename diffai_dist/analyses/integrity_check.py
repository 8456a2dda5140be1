"""Whether each checkpoint is whole: its objects, its index and its headers, without a look at the weights."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import bounded
from diffai_dist.analyses.roles import pattern
from diffai_dist.analyses.staleness_check import is_state
from diffai_dist.records import AnalysisRecord, Finding, Severity
from diffai_dist.storage import redact

if TYPE_CHECKING:
    from diffai_dist.analyses.series import Series
    from diffai_dist.checkpoint import Checkpoint

_ROWS = 100  # of a table
_NAMES = 20
_WEIGHTS = {"weight", "bias", "kernel", "embedding"}

_SEVERITIES: dict[str, Severity] = {
    "missing-shard": "critical",
    "bad-header": "critical",
    "unreadable-shard": "critical",
    "double-tensor": "critical",
    "lost-tensor": "critical",
    "declared-otherwise": "high",
    "misplaced-tensor": "critical",
    "unmapped-tensor": "high",
    "leftover-shard": "high",
    "second-layout": "high",
    "wrong-total-size": "medium",
    "other-weights": "info",
}
_BY_TENSOR = ("double-tensor", "lost-tensor", "misplaced-tensor", "unmapped-tensor")


@dataclass(frozen=True)
class Empty:
    """Tensors without elements of one member: those that should have some, and all."""

    member: int
    names: list[str]
    expected: list[str]


@dataclass(frozen=True)
class LostObject:
    """An object of a member none of whose tensors the next one has, though it has most of the others."""

    member: int
    object: str
    tensors: int


@dataclass(frozen=True)
class IntegrityCheck:
    """Broken and missing shards, an index that does not fit its shards, parts of other saves, tensors without elements.

    What opening has found wrong is told by rule, member and object; a finding about an object has no tensor, and its
    URL as value. A tensor without elements is expected to have some where one whose name differs only in numbers has
    some, or itself in another member, or where it is a weight of shape [0]: what is left of a partitioned one. Bytes of
    the weights are not looked at: a file that keeps the format and holds wrong numbers passes.
    """

    name: ClassVar[str] = "integrity_check"
    flag: ClassVar[str] = "--integrity-check"
    kind: ClassVar[Kind] = "H"
    partials: ClassVar[tuple[str, ...]] = ("config",)
    always: ClassVar[bool] = False
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "members": "checkpoints that were opened, and those that could not be",
        "violations": "what breaks a rule: member, rule, object, count of tensors or files, the first of their names, "
        f"what was found; {_ROWS} at most",
        "violations_of": "how many there are",
        "empty": "members with tensors without elements: how many of how many, how many of these are expected to have "
        f"elements, and the first {_NAMES} names",
        "lost_objects": "objects of a member none of whose tensors the next has, and how many those are",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "unopened": "a checkpoint of the series that could not be opened: critical",
        "no-tensors": "a member without any tensor, where another has some: critical",
        "missing-shard": "a shard that the index or the other shards' numbers name, and that is not there: critical",
        "bad-header": "a shard whose header breaks the format, or whose size is not the one it needs: critical",
        "unreadable-shard": "a shard that is no safetensors file, or changed while it was read: critical",
        "double-tensor": "a tensor in more than one shard: critical",
        "lost-tensor": "a tensor of the index that its shard does not have, nor any other: critical",
        "misplaced-tensor": "a tensor in another shard than the index says: critical",
        "unmapped-tensor": "a tensor of a shard that the index does not name: high",
        "leftover-shard": "numbered files named as the checkpoint's shards and not part of it: high",
        "second-layout": "the same name as one file and as shards: high",
        "declared-otherwise": "a quantisation that the config declares and tensors do not bear out, which are read as "
        "they are stored: another method, other bits, groups or zero points, or no codes at all: high",
        "wrong-total-size": "total_size of the index is not the bytes of the tensors: medium",
        "other-weights": "weight files of other names or formats in the folder: info",
        "empty-tensor": "a tensor without elements that is expected to have some: high; others: info",
        "empty-tensors": "at least many_empty of them: critical",
        "lost-object": "no tensor of an object is in the next member, which has at least half of the rest: high",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "format: safetensors headers and offsets; the index's weight_map and total_size",
        "judgement: severities; what makes an empty tensor suspect",
    )

    many_empty: int = threshold(10, "tensors without elements that should have some; so many in a member are critical")
    listed: int = threshold(20, "findings of one rule about one member; where there are more, one counts the others")

    def __call__(self, series: Series) -> AnalysisRecord:
        """Members in their order, those that could not be opened first."""
        members = series.measured.comparison.members
        empty, lost = list(_empty(members)), list(_lost(members))
        rows = [row for index, one in enumerate(members) for row in _rows(series, index, one)]
        result: dict[str, Any] = {
            "members": {"opened": len(members), "closed": len(series.closed)},
            "violations": [*_closed_rows(series), *rows][:_ROWS],
            "violations_of": len(series.closed) + len(rows),
            "empty": [_empty_row(series, one) for one in empty][:_ROWS],
            "lost_objects": [_lost_row(series, one) for one in lost][:_ROWS],
        }
        findings = [*_closed(series)]
        for index, one in enumerate(members):
            about = [*_broken(series, index, one), *_bare(series, index), *self._of_empty(series, index, empty)]
            about += [_lost_finding(series, gone) for gone in lost if gone.member == index]
            findings += bounded(about, self.listed)
        return AnalysisRecord(self.name, result, tuple(findings))

    def _of_empty(self, series: Series, member: int, empty: Sequence[Empty]) -> Iterator[Finding]:
        for one in (one for one in empty if one.member == member):
            name, option = series.names[member], "many_empty"
            if len(one.expected) >= self.many_empty:
                yield finding(self, "empty-tensors", "critical", None, len(one.expected), option, candidate=name)
            else:
                for tensor in one.expected:
                    yield Finding("empty-tensor", "high", tensor, 0, 1, "elements expected", candidate=name)
            if harmless := len(one.names) - len(one.expected):
                source = "tensors without elements, and no sign that they should have some"
                yield Finding("empty-tensor", "info", None, harmless, 0, source, candidate=name)


def _closed(series: Series) -> Iterator[Finding]:
    for name, failures in series.closed.items():
        for one in failures[:1]:
            yield Finding("unopened", "critical", None, one.object, None, one.sentence(), candidate=name)


def _closed_rows(series: Series) -> Iterator[dict[str, Any]]:
    for name, failures in series.closed.items():
        for one in failures[:1]:
            yield {
                "member": name,
                "rule": "unopened",
                "object": one.object,
                "count": None,
                "names": [],
                "found": one.found,
            }


def _rows(series: Series, member: int, checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """`count` is of the tensors or files that break a rule; of a shard, of the tensors that are lost with it."""
    lost = Counter(failure.object for failure in checkpoint.unreadable.values())
    for one in checkpoint.violations:
        count = len(one.names) or lost.get(one.object)
        row = {"member": series.names[member], "rule": one.rule, "object": one.object}
        yield {**row, "count": count, "names": list(one.names[:_NAMES]), "found": one.found}


def _broken(series: Series, member: int, checkpoint: Checkpoint) -> Iterator[Finding]:
    for one in checkpoint.violations:
        severity, name = _SEVERITIES[one.rule], series.names[member]
        for tensor in one.names if one.rule in _BY_TENSOR else (None,):
            yield Finding(one.rule, severity, tensor, one.object, None, f"format: {one.found}", candidate=name)


def _bare(series: Series, member: int) -> Iterator[Finding]:
    """A file that opens and holds nothing, though the others show that there is something to hold."""
    members = series.measured.comparison.members
    most = max(len(one.tensors) for one in members)
    if most and not members[member].tensors and not members[member].unreadable:
        source = f"tensors; another member has {most:,}"
        yield Finding("no-tensors", "critical", None, 0, 1, source, candidate=series.names[member])


def _empty(members: Sequence[Checkpoint]) -> Iterator[Empty]:
    found = [[name for name, one in member.tensors.items() if not math.prod(one.shape)] for member in members]
    suspects = set(itertools.chain.from_iterable(found))
    filled = {name for member in members for name in suspects if _has_elements(member, name)}
    for index, (member, names) in enumerate(zip(members, found, strict=True)):
        if names:
            alike = {pattern(name)[0] for name in member.tensors if _has_elements(member, name)}
            expected = [
                name for name in names if name in filled or pattern(name)[0] in alike or _is_remains(member, name)
            ]
            yield Empty(index, names, expected)


def _has_elements(member: Checkpoint, name: str) -> bool:
    tensor = member.tensors.get(name)
    return tensor is not None and bool(math.prod(tensor.shape))


def _is_remains(member: Checkpoint, name: str) -> bool:
    """What ZeRO-3 leaves in place of a weight whose parts lie on other processes."""
    return member.tensors[name].shape == (0,) and name.rpartition(".")[2] in _WEIGHTS


def _empty_row(series: Series, one: Empty) -> dict[str, Any]:
    of = len(series.measured.comparison.members[one.member].tensors)
    counts = {"tensors": len(one.names), "of": of, "expected_elements": len(one.expected)}
    return {"member": series.names[one.member], **counts, "names": (one.expected or one.names)[:_NAMES]}


def _lost(members: Sequence[Checkpoint]) -> Iterator[LostObject]:
    """Objects of the model: an optimizer's may well be left out of a copy."""
    for index, (before, after) in enumerate(itertools.pairwise(members), start=1):
        if after.unknown:
            continue
        sizes, gone = Counter[str](), Counter[str]()
        for name, tensor in before.tensors.items():
            if tensor.spans and not is_state(name):
                url = tensor.spans[0].source.url
                sizes[url] += 1
                gone[url] += name not in after.tensors and name not in after.unreadable
        whole = [url for url in sizes if gone[url] == sizes[url]]
        rest = sum(sizes.values()) - sum(sizes[url] for url in whole)
        if rest and 2 * (rest - sum(gone[url] for url in sizes if url not in whole)) >= rest:
            for url in whole:
                yield LostObject(index, url, sizes[url])


def _lost_row(series: Series, one: LostObject) -> dict[str, Any]:
    sides = {"baseline": series.names[one.member - 1], "candidate": series.names[one.member]}
    return {**sides, "object": _shown(one), "tensors": one.tensors}


def _lost_finding(series: Series, one: LostObject) -> Finding:
    source = f"{one.tensors:,} tensors of the object, none of them in the candidate"
    sides = series.names[one.member - 1], series.names[one.member]
    return Finding("lost-object", "high", None, _shown(one), None, source, *sides)


def _shown(one: LostObject) -> str:
    return redact(one.object)
