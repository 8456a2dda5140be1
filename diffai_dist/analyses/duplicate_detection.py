"""What a checkpoint holds more than once: tied weights, layers, experts, rows of a vocabulary."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.telling import NAMES, counted, runs
from diffai_dist.records import AnalysisRecord, Finding

if TYPE_CHECKING:
    from diffai_dist.analyses.duplicates import EqualRows, Group, Layer
    from diffai_dist.analyses.series import Series

_ROWS = 100  # of a table

_Runs = Sequence[tuple[int, int, Any]]


@dataclass(frozen=True)
class DuplicateDetection:
    """Tensors of one checkpoint that hold the same bits, and the bytes that storing them once would save.

    The same are equal dtype, shape, keyed 64-bit digest of all words, and statistics to the last bit. Tensors of one
    value throughout, as fresh biases and gains are, are counted and no more. Kinds: `experts` of one layer, `tied` an
    embedding and a head, `layers` the same tensor of several blocks, `buffers` masks and tables, `other`. Experts that
    are still the same after training learned nothing apart, or were never loaded. Rows of embeddings and heads are
    possibly the same where sum, sum of squares, largest magnitude and counts are equal to the last bit.
    """

    name: ClassVar[str] = "duplicate_detection"
    flag: ClassVar[str] = "--duplicate-detection"
    kind: ClassVar[Kind] = "1"
    partials: ClassVar[tuple[str, ...]] = ("content", "rows")
    in_all: ClassVar[bool] = True
    always: ClassVar[bool] = False
    result: ClassVar[Mapping[str, str]] = {
        "checked": "tensors with a digest in some member; null where none was measured",
        "constant": "tensors of one value throughout in some member, which are in no group; null likewise",
        "waste": "per checkpoint, and how many after it with the same (members): groups, bytes_wasted = Σ (copies - 1)"
        " bytes, and wasted_share of all its bytes; the first 100",
        "waste_of": "how many rows there are",
        "groups": "tensors with the same bits: checkpoint, members that have them so one after the other, kind, copies,"
        " bytes of one, bytes_wasted, names of the first 20; the first 100",
        "groups_of": "how many rows there are",
        "layers": "blocks that are an earlier one again, tensors of one value and buffers left aside: checkpoint,"
        " members, block, equal_to, tensors; the first 100",
        "layers_of": "how many rows there are",
        "rows": "rows of an embedding or a head that are possibly the same: checkpoint, members, tensor, how many have"
        " an earlier equal, the first 20 places of the largest set; rows of zeros left out; the first 100",
        "rows_of": "how many rows there are",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "identical-experts": "experts of one layer with the same bits, which training would have parted: high",
        "identical-layer": "a block that is an earlier one again: low",
        "identical-tensors": "other tensors with the same bits, a tied weight stored twice among them: low",
        "possible-duplicate-rows": "rows of an embedding or head that are equal by their statistics: info",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "equal bits by digest and statistics: derived; digests of two different tensors agree once in 2^64",
        "upcycled experts start identical and stay similar: 2604.13508 (published); severities: judgement",
    )

    listed: int = threshold(20, "findings of one rule about one member, beyond which one counts them")

    def __call__(self, series: Series) -> AnalysisRecord:
        """What is the same in members one after the other is told once."""
        from diffai_dist.analyses.duplicates import Duplicates  # brings NumPy, which --help does not need

        found = Duplicates(series)
        own = [found.groups(member) for member in range(len(series.members))]
        groups = runs(series, own.__getitem__)
        layers = runs(series, lambda member: found.layers(member, own[member]))
        rows = runs(series, lambda member: tuple(found.rows(member)))
        result: dict[str, Any] = {
            "checked": int(found.known.any(axis=1).sum()) or None,
            "constant": int(found.constant.any(axis=1).sum()) if found.known.any() else None,
        }
        for key, table in {
            "waste": [_waste_row(series, *run) for run in groups if run[2]],
            "groups": [_group_row(series, *run[:2], one) for run in groups for one in run[2]],
            "layers": [_layer_row(series, *run[:2], one) for run in layers for one in run[2]],
            "rows": [_equal_row(series, *run[:2], one) for run in rows for one in run[2]],
        }.items():
            result |= {key: table[:_ROWS], f"{key}_of": len(table)}
        made = list(_first_times(_told(series, groups, layers, rows)))
        return AnalysisRecord(self.name, result, tuple(self._bounded(made)))

    def _bounded(self, findings: Sequence[Finding]) -> Iterator[Finding]:
        groups: dict[tuple[str, str | None], list[Finding]] = {}
        for one in findings:
            groups.setdefault((one.rule, one.candidate), []).append(one)
        for (rule, candidate), found in groups.items():
            if len(found) <= self.listed:
                yield from found
                continue
            told = finding(self, rule, found[0].severity, None, len(found), "listed", None, candidate)
            first = ", ".join(one.tensor or "" for one in found[:3])
            yield replace(told, source=f"of them, the first about {first}; {told.source}")


def _told(series: Series, groups: _Runs, layers: _Runs, rows: _Runs) -> Iterator[tuple[Hashable, Finding]]:
    """What each finding is about, and the finding: blocks first, which explain the tensors in them."""
    explained: set[int] = set()
    for member, _, repeated in layers:
        for layer in repeated:
            explained.update(layer.tensors)
            source = f"tensors, which are those of {layer.equal_to}; others of it are of one value, or buffers"
            sides = None, series.names[member]
            yield layer, Finding("identical-layer", "low", layer.path, len(layer.tensors), None, source, *sides)
    for member, _, found in groups:
        for group in found:
            if group.kind == "experts" or (group.kind != "buffers" and not explained.issuperset(group.tensors[1:])):
                yield group, _of_group(series, member, group)
    for member, _, equal in rows:
        for one in equal:
            source = "rows with the statistics of an earlier one to the last bit; bits were not compared"
            sides = None, series.names[member]
            tensor = series.tensors[one.tensor]
            yield one.tensor, Finding("possible-duplicate-rows", "info", tensor, one.more, None, source, *sides)


def _of_group(series: Series, member: int, group: Group) -> Finding:
    names, sides = [series.tensors[tensor] for tensor in group.tensors], (None, series.names[member])
    source = f"bytes wasted by {counted(names)} with the same bits, of kind {group.kind}"
    if group.kind == "experts":
        return Finding("identical-experts", "high", names[0], group.wasted, 0, source, *sides)
    return Finding("identical-tensors", "low", names[0], group.wasted, 0, source, *sides)


def _first_times(told: Iterator[tuple[Hashable, Finding]]) -> Iterator[Finding]:
    """What a later member has, too, says nothing new."""
    seen: set[Hashable] = set()
    for key, one in told:
        if key not in seen:
            seen.add(key)
            yield one


def _waste_row(series: Series, member: int, members: int, groups: Sequence[Group]) -> dict[str, Any]:
    wasted = sum(one.wasted for one in groups)
    return {
        "checkpoint": series.names[member],
        "members": members,
        "groups": len(groups),
        "bytes_wasted": wasted,
        "wasted_share": wasted / int(series.nbytes[:, member].sum()),
    }


def _group_row(series: Series, member: int, members: int, one: Group) -> dict[str, Any]:
    return {
        "checkpoint": series.names[member],
        "members": members,
        "kind": one.kind,
        "copies": len(one.tensors),
        "bytes": one.nbytes,
        "bytes_wasted": one.wasted,
        "names": [series.tensors[tensor] for tensor in one.tensors[:NAMES]],
    }


def _layer_row(series: Series, member: int, members: int, one: Layer) -> dict[str, Any]:
    numbers = {"block": one.path, "equal_to": one.equal_to, "tensors": len(one.tensors)}
    return {"checkpoint": series.names[member], "members": members, **numbers}


def _equal_row(series: Series, member: int, members: int, one: EqualRows) -> dict[str, Any]:
    numbers = {"tensor": series.tensors[one.tensor], "rows": one.more, "places": list(one.places)}
    return {"checkpoint": series.names[member], "members": members, **numbers}
