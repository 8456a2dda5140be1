"""Which tensor is which where names differ, and which hold what others held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import MOST, bounded
from diffai_dist.analyses.roles import pattern
from diffai_dist.checkpoint import Tensor
from diffai_dist.comparison import Confidence, Pair
from diffai_dist.records import AnalysisRecord, Details, Finding, Measurements, Severity, TensorRecord

CONFIDENCES: tuple[str, ...] = get_args(Confidence)
_CONTENT = "content"  # equal bits under another name: surer than any name, but found after everything was measured
Keys = tuple[tuple[int, int], tuple[int, int]]  # of baseline and candidate in the details
_BITS = "derived: digests of all bits"


@dataclass(frozen=True, slots=True)
class _Case:
    """A tensor that holds the values of a tensor, rearranged."""

    tensor: str
    transform: str
    detail: str | None
    finding: Finding


@dataclass(slots=True)
class _Evidence:
    """What values tell of one pair."""

    cases: list[_Case] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)  # removed tensor: the added one that has its bits
    by_rows: int = 0
    without_rows: int = 0


@dataclass(frozen=True)
class TensorMatching:
    """Which tensor is which under other names, fused, split, transposed, permuted or exchanged.

    Names are matched with those of the baseline (in a sweep with those of its first baseline, or of the anchor), surest
    first: equal names; what a map declares; names without wrappers such as `module.` and `model.`; equal role, block
    and rest of the path, of equal shapes; at last names of equal shapes in equal blocks that are nearly alike, if no
    others are. Tensors that are fused on one side are compared as the parts of the other. Two names that would become
    one are left alone and told. All other analyses see what was matched. Then values are asked, of tensors of 16
    elements at least: rows' squares that are the columns' squares of the other side show a transpose; equal rows in
    another order a permutation; equal bits, crosswise, an exchange, and under a name of the other side alone another
    name. Behind rounding only two are looked for, from 16 rows on: transposes, within what it may do to Σx², and rows
    in the order of the other layout of rotary embeddings, by the correlation of their sums. That neurons were permuted
    together with what reads them is not looked for.
    """

    name: ClassVar[str] = "tensor_matching"
    flag: ClassVar[str] = "--tensor-matching"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ("content", "rows", "columns")
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "tensors": "tensors of both sides, parts of fused ones counted one by one",
        "exact": "those whose names are equal",
        "declared": "those that a map matched",
        "wrapper": "those whose names are equal but for wrappers",
        "role": "those of equal role, block, rest of the path and shape, parts of fused tensors among them",
        "assigned": "those whose names are nearly alike, of equal shapes, in equal blocks",
        "content": "those whose bits alone say so; they count as removed and added all the same",
        "pairs": "those whose names differ, one for all that differ in numbers alone, the first 20: tensor, its name in"
        " baseline and candidate, confidence as above, transform (null: none), alike (how many of them)",
        "pairs_of": "how many such rows there are",
        "unmatched": "all others that are on one side alone, the first 20: tensor, side",
        "unmatched_of": "how many there are",
        "ambiguous": "names that would become one and were left as they are, the first 20: names",
        "ambiguous_of": "how many such groups there are",
        "rearranged": "what values show, the first 20: tensor, transform, detail (the permutation, or the tensor whose"
        " values it holds)",
        "rearranged_of": "how many there are",
        "by_rows": "tensors that changed, or whose shapes are transposed, and whose rows were looked at",
        "without_rows": "those of which no rows are kept: scalars, very many or very long rows, no decoder",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "unmatched": "more than `unmatched_most` tensors are on one side alone: medium",
        "ambiguous": "names would become one without their wrappers: low",
        "transposed": "Σx² of every row is that of the column of the other side, and the other way round, within"
        " `tolerance` (of floats of p bits against others 2^(1-p) more), and of its rows it is not (by four times"
        " that): high; of matrices that are not square, whose shapes say so: low",
        "permuted-rows": "the same rows by Σx², Σx and max|x|, within `tolerance`, in another order, or rounded ones by"
        " Σx in that of the other layout of rotary embeddings: medium",
        "swapped": "two or more tensors of one shape hold each other's bits: high",
        "moved": "a tensor that changed holds the bits that another one held, which changed, too: low",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "sums over rows and columns under transposition and permutation: derived",
        "the two layouts of rotary embeddings: format (LLaMA's own weights and those of transformers)",
        "exchanged contents: derived, from digests of all bits",
        "limits: judgement, overridable",
    )

    unmatched_most: int = threshold(0, "tensors on one side alone that are nothing to worry about")
    tolerance: float = threshold(1e-9, "relative difference up to which sums of the same numbers are equal")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """What names, shapes and values tell, in the order of the comparison."""
        comparison = measured.comparison
        pair = comparison.pairs[pair_index]
        found = self._evidence(measured, pair, records)
        pairs = list(_pairs(measured, pair, records, found))
        counts = Counter[str](row["confidence"] for row in pairs)
        both = sum(record.status in ("changed", "identical", "incomparable") for record in records)
        matched = {*found.renamed, *found.renamed.values()}
        alone = [one for one in records if one.status in ("added", "removed") and one.name not in matched]
        ambiguous = [names for member, names in comparison.ambiguous if member in (pair.baseline, pair.candidate)]
        result: dict[str, Any] = {
            "tensors": both,
            "exact": both - sum(counts[one] for one in CONFIDENCES[1:]),
            **{one: counts[one] for one in (*CONFIDENCES[1:], _CONTENT)},
            **_table("pairs", _kinds(pairs)),
            **_table("unmatched", [{"tensor": one.name, "side": _SIDES[one.status]} for one in alone]),
            **_table("ambiguous", [{"names": ", ".join(names)} for names in ambiguous]),
            **_table("rearranged", [_row(case) for case in found.cases]),
            "by_rows": found.by_rows,
            "without_rows": found.without_rows,
        }
        findings = [*self._names(len(alone), len(ambiguous)), *bounded(case.finding for case in found.cases)]
        return AnalysisRecord(self.name, result, tuple(findings))

    def _names(self, alone: int, ambiguous: int) -> Iterator[Finding]:
        if alone > self.unmatched_most:
            yield finding(self, "unmatched", "medium", None, alone, "unmatched_most")
        if ambiguous:
            yield Finding("ambiguous", "low", None, ambiguous, 0, "names without wrappers")

    def _evidence(self, measured: Measurements, pair: Pair, records: Sequence[TensorRecord]) -> _Evidence:
        from diffai_dist.analyses.rearranged import contents, held  # brings NumPy, which --help does not need

        names = [aligned.name for aligned in measured.comparison.aligned]
        place = {name: i for i, name in enumerate(names)}
        groups: dict[str, list[int]] = {}
        for record in records:
            groups.setdefault(record.status, []).append(place[record.name])
        changed, removed, added = (groups.get(status, []) for status in ("changed", "removed", "added"))
        found = _Evidence()
        found.cases += _exchanged(measured, pair, changed, names)
        settled = {name for case in found.cases if case.transform == "swapped" for name in (case.tensor, case.detail)}
        for i in (*changed, *groups.get("incomparable", [])):
            if names[i] not in settled:
                found.cases += self._rearranged(measured, pair, i, found)
        found.cases.sort(key=lambda case: place[case.tensor])
        before, after = contents(measured, pair.baseline, removed), contents(measured, pair.candidate, added)
        found.renamed = {names[old]: names[new] for new, old in held(before, after).items()}
        return found

    def _rearranged(self, measured: Measurements, pair: Pair, i: int, found: _Evidence) -> Iterator[_Case]:
        """What rows and columns of one tensor show."""
        from diffai_dist.analyses.rearranged import (
            ALIKE,
            FEWEST,
            differ,
            half_swap,
            is_transpose,
            permuted,
            rounded_half_swap,
        )

        aligned, details = measured.comparison.aligned[i], measured.details
        keys = (i, pair.baseline), (i, pair.candidate)
        sides = [side for member in (pair.baseline, pair.candidate) if (side := aligned.tensors[member])]
        shapes = [side.shape for side in sides]
        equal, across = shapes[0] == shapes[1], is_transpose(*shapes)
        a, b = (details.rows.get(key) for key in keys)
        found.by_rows += (equal or across) and a is not None and b is not None
        found.without_rows += (equal or across) and (a is None or b is None)
        if a is None or b is None or not (equal or across) or sides[0].counted < FEWEST:
            return
        if across and (told := self._transposed(details, keys, aligned.name, sides)) is not None:
            yield _Case(aligned.name, "transposed", None, told)
            return
        # Of a vector a few rounded values may come to be each other's: a step of training of a BF16 gain was one.
        many = len(shapes[0]) > 1 or 2 * int((a["sum"] != b["sum"]).sum()) >= len(a)
        if equal and many and (apart := permuted(a, b)) <= self.tolerance and differ(a, b) > self.tolerance:
            told = finding(self, "permuted-rows", "medium", aligned.name, apart, "tolerance")
            yield _Case(aligned.name, "permuted rows", half_swap(a, b, self.tolerance), told)
        elif equal and len(shapes[0]) > 1 and (swapped := rounded_half_swap(a, b)):
            told = Finding("permuted-rows", "medium", aligned.name, swapped[0], ALIKE, _SUMS)
            yield _Case(aligned.name, "permuted rows", swapped[1], told)

    def _transposed(self, details: Details, keys: Keys, name: str, sides: Sequence[Tensor]) -> Finding | None:
        from diffai_dist.analyses.rearranged import FEWEST_ROUNDED, furthest, rounding, transposed

        (a, b), shapes = (details.rows[key]["squares"] for key in keys), [side.shape for side in sides]
        slack = rounding(sides[0].dtype, sides[1].dtype)
        equal, limit = shapes[0] == shapes[1], self.tolerance + slack
        if (slack and min(shapes[0][-2:]) < FEWEST_ROUNDED) or (equal and furthest(a, b) <= self.tolerance + 4 * slack):
            return None
        apart = transposed(details, *keys, shapes)
        if apart is None or not apart <= limit < 1:
            return None
        severity: Severity = "high" if equal else "low"
        if slack:
            return Finding("transposed", severity, name, apart, limit, "derived: what rounding may do to Σx²")
        return finding(self, "transposed", severity, name, apart, "tolerance")


def _exchanged(measured: Measurements, pair: Pair, changed: Sequence[int], names: Sequence[str]) -> Iterator[_Case]:
    """Tensors that hold the bits of others: a case for a pair of them, one for each of a longer round."""
    from diffai_dist.analyses.rearranged import contents, cycles, held

    moved = held(*(contents(measured, member, changed) for member in (pair.baseline, pair.candidate)))
    rounds = list(cycles(moved))
    for cycle in rounds:
        for i in cycle[:1] if len(cycle) == 2 else cycle:
            yield _bits("swapped", "high", names[i], names[moved[i]])
    closed = {i for cycle in rounds for i in cycle}
    yield from (_bits("moved", "low", names[i], names[j]) for i, j in moved.items() if i not in closed)


_SUMS = "derived: correlation of sums of rows, in the order of the other layout of rotary embeddings"
_SIDES = {"added": "candidate", "removed": "baseline"}


def _bits(rule: str, severity: Severity, tensor: str, other: str) -> _Case:
    return _Case(tensor, rule, other, Finding(rule, severity, tensor, other, None, _BITS))


def _row(case: _Case) -> dict[str, Any]:
    return {"tensor": case.tensor, "transform": case.transform, "detail": case.detail}


def _table(key: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: list(rows[:MOST]), f"{key}_of": len(rows)}


def _pairs(
    measured: Measurements, pair: Pair, records: Sequence[TensorRecord], found: _Evidence
) -> Iterator[dict[str, Any]]:
    """Tensors that are not called the same on both sides, or by what a map calls them."""
    comparison = measured.comparison
    sides = {one.name: one.tensors for one in comparison.aligned}
    transforms = {case.tensor: case.transform for case in found.cases}
    for record in records:
        a, b = sides[record.name][pair.baseline], sides[record.name][pair.candidate]
        if a is not None and b is not None and a.name != b.name and record.name in comparison.matches:
            sure = comparison.matches[record.name]
            confidence = max(sure[pair.baseline], sure[pair.candidate], key=CONFIDENCES.index)
            own = comparison.members[pair.baseline].tensors, comparison.members[pair.candidate].tensors
            part = None if a.name in own[0] and b.name in own[1] else "part"
            yield _pair(record.name, a.name, b.name, confidence, transforms.get(record.name, part))
        elif record.name in found.renamed:
            yield _pair(record.name, record.name, found.renamed[record.name], _CONTENT, None)


def _pair(tensor: str, baseline: str, candidate: str, confidence: str, transform: str | None) -> dict[str, Any]:
    names = {"tensor": tensor, "baseline": baseline, "candidate": candidate}
    return {**names, "confidence": confidence, "transform": transform}


def _kinds(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for all whose names differ from its own in numbers alone."""
    rows: dict[tuple[str | None, ...], dict[str, Any]] = {}
    for row in pairs:
        sides = (pattern(row[side].partition("[")[0])[0] for side in ("baseline", "candidate"))
        kind = (*sides, row["confidence"], row["transform"])
        rows.setdefault(kind, {**row, "alike": 0})["alike"] += 1
    return list(rows.values())
