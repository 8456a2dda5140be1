"""Whether what was expected of a pair is so: tensors that stay, tensors that change, a cast and nothing else."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from diffai_dist.dtypes import Family
from diffai_dist.errors import UsageError
from diffai_dist.records import AnalysisRecord, Finding, Measurements, TensorRecord

# What the kernels round to, bit for bit. F4 is a float, too: whatever becomes of it, they cannot prove it.
CASTS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
NO_CAST = "codes with scales are no cast: --quantization-analysis tells what they cost"
_FLOATS = (*CASTS, "F4")
_ROUNDED = "elements that are not the baseline's value, rounded to nearest, ties to even; the first at index {}"


def float_dtype(name: str) -> str:
    """The dtype that a cast can be proven to; UsageError for any other.

    >>> float_dtype("bf16")
    'BF16'
    """
    if name.upper() in CASTS:
        return name.upper()
    near = difflib.get_close_matches(name.upper(), CASTS, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(CASTS)}; {NO_CAST}"
    raise UsageError(f"cast wants a float dtype, found {name[:60]!r} ({hint})")


class _Proof(NamedTuple):
    """What is known of one tensor of a cast: nothing is wrong with it, or a finding says what is."""

    elements: int
    finding: Finding | None


@dataclass(frozen=True)
class Expectations:
    """What was declared of every pair, and each tensor that breaks it.

    `frozen` tensors have the bits and the dtype of the baseline, and --epsilon changes nothing about that; `changed`
    ones do not. A tensor that either side lacks, that could not be read or that has another shape breaks both. A `cast`
    is proven tensor by tensor: a float tensor is the baseline's value rounded to nearest, ties to even, in every
    element, with a NaN of any payload for a NaN; where it had the dtype already, and where it is no float, its bits are
    the baseline's. F64 may have been rounded to F32 first; what is too large for a dtype without infinities is its
    largest number or NaN.
    """

    name: ClassVar[str] = "expectations"
    result: ClassVar[Mapping[str, str]] = {
        "frozen": "globs that were to stay, tensors that they match, and how many of these did not stay",
        "changed": "globs that were to change, likewise",
        "cast": "the dtype; tensors and elements of the pair, those proven, and elements other than the value rounded",
        "left_out": "tensors that the selection left out, of which nothing is proven",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "expected-frozen": "a tensor that was to stay has other bits or dtype, or is not on both sides: critical",
        "expected-changed": "a tensor that was to change did not, or is not on both sides: critical",
        "expected-cast": "another dtype, an element that is not the rounded value, or other bits of no float: critical",
        "cast-unproven": "a tensor that was not read, is compared as bytes, or whose dtype is not rounded here: high",
        "expectation-unmatched": "a glob that matches no tensor of the pair, or a cast of no float tensor: high",
    }
    sources: ClassVar[tuple[str, ...]] = ("derived: bits of both sides; IEEE 754 rounding to nearest, ties to even",)

    frozen: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    cast: str | None = None

    def __bool__(self) -> bool:
        """Whether anything is expected."""
        return bool(self.frozen or self.changed or self.cast)

    @property
    def partials(self) -> tuple[str, ...]:
        """What it needs beside moments and shifts."""
        return ("bitwise",) if self.cast else ()

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """A finding for every tensor that breaks what was expected, all of them by name."""
        result: dict[str, Any] = {"left_out": measured.comparison.left_out}
        findings: list[Finding] = []
        for kind, globs, holds in (("frozen", self.frozen, _stayed), ("changed", self.changed, _moved)):
            if globs:
                matched = _matched(globs, records)
                broken = [_broken(kind, glob, record) for glob, record in matched.values() if not holds(record)]
                result[kind] = {"globs": list(globs), "tensors": len(matched), "broken": len(broken)}
                findings += [*broken, *_unmatched(kind, globs, records)]
        if self.cast:
            proofs = list(_proofs(self.cast, measured, pair_index, records))
            result["cast"] = _proven(self.cast, proofs, measured, pair_index)
            findings += [proof.finding for proof in proofs if proof.finding]
            if not any(map(_is_float, records)):
                findings.append(Finding("expectation-unmatched", "high", None, 0, self.cast, "setting of expect.cast"))
        return AnalysisRecord(self.name, result, tuple(findings))


def _stayed(record: TensorRecord) -> bool:
    return record.status == "identical" and record.within_epsilon is None


def _moved(record: TensorRecord) -> bool:
    return record.status == "changed"


def _is_float(record: TensorRecord) -> bool:
    return any(side.dtype in _FLOATS for side in (record.baseline, record.candidate) if side)


def _matched(globs: Iterable[str], records: Sequence[TensorRecord]) -> dict[str, tuple[str, TensorRecord]]:
    """The tensors that a glob matches as a whole, each with the first such glob."""
    found: dict[str, tuple[str, TensorRecord]] = {}
    for glob in globs:
        matches = re.compile(fnmatch.translate(glob)).match
        for record in records:
            if matches(record.name):
                found.setdefault(record.name, (glob, record))
    return found


def _unmatched(kind: str, globs: Iterable[str], records: Sequence[TensorRecord]) -> Iterator[Finding]:
    for glob in dict.fromkeys(globs):
        if not _matched([glob], records):
            yield Finding("expectation-unmatched", "high", None, 0, glob, f"setting of expect.{kind}")


def _broken(kind: str, glob: str, record: TensorRecord) -> Finding:
    return Finding(f"expected-{kind}", "critical", record.name, _found(record), glob, f"setting of expect.{kind}")


def _found(record: TensorRecord) -> float | str:
    """What became of a tensor: the share of elements with other bits where that is all."""
    baseline, candidate, change = record.baseline, record.candidate, record.change
    if record.status != "changed" and record.within_epsilon is None:
        return record.status
    if baseline and candidate and baseline.dtype != candidate.dtype:
        return f"{baseline.dtype} -> {candidate.dtype}"
    share = change.bits_changed_fraction if change else None
    return "changed" if share is None else share


def _proofs(asked: str, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> Iterator[_Proof]:
    """What is known of each tensor of the pair, in the order of the records."""
    from diffai_dist.partials import BITWISE, empty  # brings NumPy, which --help does not need

    aligned, pair, bitwise = (
        measured.comparison.aligned,
        measured.comparison.pairs[pair_index],
        measured.details.bitwise,
    )
    rows = empty(BITWISE, (len(aligned),)) if bitwise is None else bitwise[:, pair_index]
    counts = zip(*(rows[key].tolist() for key in ("cast", "miscast", "miscast_index")), strict=True)
    sides = [(one.tensors[pair.candidate] or one.tensors[pair.baseline]) for one in aligned]
    elements = [side.elements if side else 0 for side in sides]
    as_bytes = [side is not None and side.decoder.family == Family.BYTES for side in sides]
    known = dict(zip((one.name for one in aligned), zip(elements, as_bytes, counts, strict=True), strict=True))
    for record in records:
        yield _Proof(known[record.name][0], _disproved(asked, record, *known[record.name]))


def _disproved(
    asked: str, record: TensorRecord, elements: int, as_bytes: bool, counts: Sequence[int]
) -> Finding | None:
    """What is wrong with a tensor of a cast, or why nothing is proven of it."""
    baseline, candidate, status = record.baseline, record.candidate, record.status
    if status == "failed":
        return _unproven(record.name, "failed", asked)
    if baseline is None or candidate is None or status == "incomparable":
        return _wrong(record.name, status, asked)
    if as_bytes:
        return _unproven(record.name, f"{baseline.dtype} -> {candidate.dtype}, compared as bytes", asked)
    if baseline.dtype in _FLOATS and candidate.dtype != asked:
        return _wrong(record.name, f"dtype {candidate.dtype}", asked)
    if baseline.dtype == asked or baseline.dtype not in _FLOATS:
        return None if _stayed(record) else _wrong(record.name, _found(record), "identical")
    compared, miscast, first = counts
    if miscast:
        return _wrong(record.name, miscast, 0, _ROUNDED.format(first))
    return None if compared == elements else _unproven(record.name, f"{compared} of {elements} elements", asked)


def _wrong(tensor: str, value: float | str, threshold: int | str, source: str = "setting of expect.cast") -> Finding:
    return Finding("expected-cast", "critical", tensor, value, threshold, source)


def _unproven(tensor: str, value: str, asked: str) -> Finding:
    return Finding("cast-unproven", "high", tensor, value, asked, "setting of expect.cast")


def _proven(asked: str, proofs: Sequence[_Proof], measured: Measurements, pair_index: int) -> dict[str, Any]:
    held = [proof.elements for proof in proofs if proof.finding is None]
    bitwise = measured.details.bitwise
    return {
        "dtype": asked,
        "tensors": len(proofs),
        "tensors_proven": len(held),
        "elements": sum(proof.elements for proof in proofs),
        "elements_proven": sum(held),
        "miscast": 0 if bitwise is None else int(bitwise["miscast"][:, pair_index].sum()),
    }
