"""What in the candidate looks like damage to its bytes rather than training: where, and how long."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import MOST, bounded
from diffai_dist.analyses.expected import is_mask
from diffai_dist.analyses.staleness_check import is_state
from diffai_dist.records import AnalysisRecord, Finding, Measurements, Severity, TensorRecord
from diffai_dist.storage import redact

if TYPE_CHECKING:
    from diffai_dist.analyses.signatures import Sides, Signature

NO_CONTENT, NO_BITS, NO_ROWS = "content was not measured", "bits were not measured", "rows were not measured"
_OPTIONS = {
    "isolated-giant": "giant",
    "bit-flip": "growth",
    "zero-run": "page",
    "tail-not-written": "page",
    "shifted-region": "far",
    "region-replaced": "far",
}


@dataclass(frozen=True)
class CorruptionCheck:
    """Damage to bytes of the candidate: lone giants, flipped bits, zeroed runs, unwritten tails, rows out of place.

    Float tensors of 64 elements and more are looked at, masks left out, and matrices of I8 and U8 for zeros alone. What
    the baseline has too is none; a tensor that is equal on both sides is only counted. A giant is held against the
    median RMS of the rows that are not zero; where the dtype ends before the limit, 1/64 of its range will do, in one
    row alone. A flip is a change of one bit, of the exponent, that outgrows the baseline's range while no row without a
    flip does, or beside which nothing in the tensor changed. Zeros are bytes of 0, in a tensor that has few others, and
    not where the baseline had hardly more; where both sides have 8 bits and less, whose zeros are ordinary, a run that
    is too long for chance. Rows out of place have the length, sum and largest value of other rows of the baseline, at
    one distance; rows that merely turned away may have been trained anew, and those of an optimizer's state turn over
    within steps: there none is looked for. Whether damage matters to what the model does cannot be read from weights.
    """

    name: ClassVar[str] = "corruption_check"
    flag: ClassVar[str] = "--corruption-check"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ("content", "bitwise", "rows")
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "signatures": f"what was found, at most {MOST}: kind (a rule); tensor; element, the first flat index; object "
        "and byte_offset, where that lies, null where bytes are not laid out by elements; length in bytes; "
        "value: of a giant |x| / median row RMS, of a flip the larger magnitude on either side, null for what is not "
        "finite, of a run 0, of rows their mean cosine; baseline: of a giant and of a flip its largest magnitude, of a "
        "run its longest run of zeros in bytes, of rows out of place the element of the baseline they come from",
        "found": "how many there are of each kind",
        "tensors": "tensors of the candidate that were looked at",
        "elements": "their elements",
        "not_float": "tensors of the candidate that were not, being neither floats nor matrices of I8 or U8",
        "equal": "those of them that are equal in the baseline, bit for bit",
        "without_rows": "those whose rows were not measured: no regions, no flips by size",
        "reason": "why signatures are missing; null where none are",
        "largest_ratio": "the largest |x| / median row RMS of a tensor that changed; null without rows and a baseline",
        "largest_tensor": "that tensor",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "isolated-giant": "one value is more than `giant` times the median row RMS, or, where dtypes are equal and no "
        "other row has one, than 1/64 of the dtype's largest, and more than `growth` times the largest of the "
        "baseline: critical",
        "bit-flip": "one bit of an exponent changed, and the value is `growth` times the baseline's largest or more, "
        "or not finite; or all that changed are such bits, in at most one element of a thousand: critical",
        "zero-run": "a whole page of `page` bytes, aligned in the tensor or the object, is zero, and at most the share "
        "`dense` of the rest, or, where both sides have 8 bits and less, length * -log2(share of zeros in the rest) is "
        "more than 64 + log2(elements): high; low for a tensor without a baseline",
        "tail-not-written": "the last `page` bytes or more are zero, and at most the share `dense` of the rest, or "
        "that of 8 bits: high; low for a tensor without a baseline",
        "shifted-region": "`region_rows` rows after each other have a cosine below `far` to what they were, most "
        "others one of `near` or more, and they are like other rows of the baseline: critical",
        "region-replaced": "the same, and they are like none: low",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "training changes low bits of the mantissa, hardly ever one bit of an exponent alone: derived",
        "runs of zeros and values up to 1e37 from a save over a mapped file: SimpleTuner issue 2714",
        "pages of 4 KiB: format of memory and of most file systems",
        "2^32 times the usual, 1/64 of a dtype's range, 16 times the baseline's, cosines of 0.5 and 0.9, 1 % of zeros, "
        "64 bits of surprise, four rows: judgement",
    )

    giant: float = threshold(2.0**32, "times the median row RMS that no value of weights has")
    growth: float = threshold(16.0, "times the baseline's largest magnitude that no value reaches by training")
    page: int = threshold(4096, "bytes of zeros that are worth a finding; a page of memory")
    dense: float = threshold(0.01, "share of zeros beside a run up to which a tensor counts as dense")
    near: float = threshold(0.9, "cosine of rows that stayed where they were")
    far: float = threshold(0.5, "cosine below which rows are other ones")
    region_rows: int = threshold(4, "rows after each other that make a region")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """A row and a finding for each signature, in the order of the tensors."""
        from diffai_dist.analyses.signatures import ratio_of, sides_of  # brings NumPy, which --help does not need

        compared = {record.name for record in records if record.change is not None}
        found: list[tuple[Sides, Signature]] = []
        tensors = elements = not_float = equal = without_rows = 0
        top: tuple[float, str | None] = (0.0, None)
        for index, aligned in enumerate(measured.comparison.aligned):
            sides = None if is_mask(aligned.name) else sides_of(measured, pair_index, index, aligned.name in compared)
            if sides is None:
                not_float += _passed_over(measured, pair_index, index)
                continue
            same = sides.same_dtype and not sides.shift["bits"]
            tensors, elements = tensors + 1, elements + sides.tensor.elements
            equal, without_rows = equal + same, without_rows + (not sides.width)
            if not same:
                ratio = ratio_of(sides)
                top = (ratio, aligned.name) if ratio > top[0] else top
                found += [(sides, one) for one in self._signatures(sides, ratio)]
        result: dict[str, Any] = {
            "signatures": [_row(*one) for one in found[:MOST]],
            "found": dict(sorted(Counter(one.kind for _, one in found).items())),
            "tensors": tensors,
            "elements": elements,
            "not_float": not_float,
            "equal": int(equal),
            "without_rows": without_rows,
            "reason": _missing(measured),
            "largest_ratio": top[0] if top[1] is not None and math.isfinite(top[0]) else None,
            "largest_tensor": top[1],
        }
        return AnalysisRecord(self.name, result, tuple(bounded(self._finding(*one) for one in found)))

    def _signatures(self, sides: Sides, ratio: float) -> Iterator[Signature]:
        from diffai_dist.analyses.signatures import flip, giant, regions, zero_runs

        for one in (giant(sides, ratio, self.giant, self.growth), flip(sides, self.growth)):
            if one is not None and sides.is_float:
                yield one
        yield from zero_runs(sides, self.page, self.dense)
        if sides.is_float and not is_state(sides.tensor.name):
            yield from regions(sides, self.near, self.far, self.region_rows)

    def _finding(self, sides: Sides, one: Signature) -> Finding:
        from diffai_dist.analyses.signatures import giant_limit

        severity: Severity = "critical"
        if one.kind in ("zero-run", "tail-not-written"):
            severity = "high" if sides.moments[0] is not None else "low"
        elif one.kind == "region-replaced":
            severity = "low"
        value: float | str | None = one.value if one.value is not None else "not finite"
        if one.kind in ("zero-run", "tail-not-written"):
            value = _length(sides, one)
        found = finding(self, one.kind, severity, sides.name, value, _OPTIONS[one.kind])
        if one.kind == "isolated-giant" and one.value is not None and one.value <= self.giant:
            reach = giant_limit(sides, one.value, self.giant)
            return replace(found, threshold=reach, source=f"judgement: 1/64 of what {sides.tensor.dtype} can hold")
        return found


def _passed_over(measured: Measurements, pair_index: int, index: int) -> bool:
    """Whether the candidate has numbers there that are of no dtype that is looked at."""
    from diffai_dist.analyses.signatures import looked_at

    one = measured.comparison.aligned[index].tensors[measured.comparison.pairs[pair_index].candidate]
    return one is not None and not looked_at(one)


def _row(sides: Sides, one: Signature) -> dict[str, Any]:
    found = sides.tensor.place(one.element)
    return {
        "kind": one.kind,
        "tensor": sides.name,
        "element": one.element,
        "object": None if found is None else redact(found[0]),
        "byte_offset": None if found is None else found[1],
        "length": _length(sides, one),
        "value": one.value,
        "baseline": one.baseline,
    }


def _length(sides: Sides, one: Signature) -> int:
    return -(-one.elements * sides.bits // 8)


def _missing(measured: Measurements) -> str | None:
    details = measured.details
    lost = {NO_CONTENT: details.content is None, NO_BITS: details.bitwise is None, NO_ROWS: not details.rows}
    return "; ".join(reason for reason, missing in lost.items() if missing) or None
