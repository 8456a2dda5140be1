"""In how many digits values are stored, how many they have, and where casts between checkpoints lost some."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.telling import NAMES, counted, runs, single
from diffai_dist.records import AnalysisRecord, Finding, Severity

if TYPE_CHECKING:
    from diffai_dist.analyses.casts import Cast, Held, Mixed
    from diffai_dist.analyses.series import Series

_ROWS = 100  # of a table


@dataclass(frozen=True)
class PrecisionAudit:
    """Which dtypes hold which values: digits that are stored and empty, casts that lost values, mixes inside a role.

    A dtype is enough for values whose low bits are 0 in every word (CONTENT.ored): proven for BF16 in F32 or F16, whose
    exponents it has; for others only digits and the largest number are known, not whether small numbers fit. Tensors of
    one value, or none but 0, tell nothing. A cast is value-preserving where no value changed. Lost values are those
    that changed; `miscast` are not even the baseline's value rounded to the candidate's dtype, as where training went
    on. A cast of every float tensor is taken for meant, one of some is not; that of a quantised tensor is another
    question, and no cast.
    """

    name: ClassVar[str] = "precision_audit"
    flag: ClassVar[str] = "--precision-audit"
    kind: ClassVar[Kind] = "1"
    partials: ClassVar[tuple[str, ...]] = ("content", "bitwise")
    in_all: ClassVar[bool] = True
    always: ClassVar[bool] = False
    result: ClassVar[Mapping[str, str]] = {
        "dtypes": "the dtypes of a checkpoint, and of how many after it that have the same (members): dtype, tensors,"
        " elements, bytes; the first 100",
        "dtypes_of": "how many rows there are",
        "audited": "tensors whose words were looked at in some member; null where none were",
        "stored_wider": "tensors that another dtype could hold: checkpoint, members with the same, stored dtype, dtype"
        " it holds, whether that is proven, tensors, bytes, saving_bytes, names of the first 20; the first 100",
        "stored_wider_of": "how many rows there are",
        "conversions": "per pair and dtypes: baseline, candidate, stored, cast_to, tensors, kept (float tensors of the"
        " pair whose dtype stayed), elements, changed values, miscast, overflowed and underflowed ones (null where not"
        " measured), value_preserving, names of the first 20; the first 100",
        "conversions_of": "how many rows there are",
        "mixed": "roles whose blocks have several dtypes: checkpoint, members with the same, role, most common dtype,"
        " others with their number of tensors, names of the first 20 others; the first 100",
        "mixed_of": "how many rows there are",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "stored-wider": "values that a dtype of fewer bits holds: low where it is proven and saves `least_saving` of"
        " the checkpoint's bytes, else info",
        "unexpected-downcast": "more than `allowed` tensors lost values in a cast to fewer digits or a smaller range,"
        " while others kept their dtype: high",
        "whole-checkpoint-cast": "every float tensor was cast, and values were lost: info where each is the nearest"
        " value of the new dtype, else low",
        "cast-overflow": "finite values became infinite or NaN in a cast: high",
        "value-preserving-cast": "a cast that changed no value: info",
        "mixed-dtypes": "blocks that have another dtype than the others in one role: low",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "digits and exponents of dtypes: format (IEEE 754, bfloat16, OCP 8-bit formats, FNUZ)",
        "BF16 in F32 as words whose low 16 bits are 0: derived, exact",
        "limits: judgement, overridable",
    )

    least_saving: float = threshold(0.01, "of a checkpoint's bytes, from which a narrower dtype is worth a hint")
    allowed: int = threshold(0, "tensors that may lose values in a cast while others keep their dtype")

    def __call__(self, series: Series) -> AnalysisRecord:
        """What is the same in members one after the other, and in pairs, is told once."""
        from diffai_dist.analyses import casts  # brings NumPy, which --help does not need

        dtypes = runs(series, lambda member: tuple(sorted(casts.dtypes_of(series, member).items())))
        held = runs(series, lambda member: tuple(casts.held(series, member)))
        mixed = runs(series, lambda member: tuple(casts.mixed(series, member)))
        pairs = list(casts.casts(series))
        tables = {
            "dtypes": [_dtype_row(series, first, times, *one) for first, times, found in dtypes for one in found],
            "stored_wider": [_held_row(series, first, times, one) for first, times, found in held for one in found],
            "conversions": [_cast_row(series, pair, kept, one) for pair, kept, one in pairs],
            "mixed": [_mixed_row(series, first, times, one) for first, times, found in mixed for one in found],
        }
        result: dict[str, Any] = {"audited": int(casts.audited(series).any(axis=1).sum()) or None}
        for key, rows in tables.items():
            result |= {key: rows[:_ROWS], f"{key}_of": len(rows)}
        findings = *self._wider(series, held), *self._lost(series, pairs), *self._mixes(series, mixed)
        return AnalysisRecord(self.name, {key: result[key] for key in self.result}, findings)

    def _wider(self, series: Series, runs: Sequence[tuple[int, int, tuple[Held, ...]]]) -> Iterator[Finding]:
        told = set()
        for member, _, found in runs:
            whole = int(series.nbytes[:, member].sum())
            for one in found:
                if one in told or not one.saved:
                    continue
                told.add(one)
                share = one.saved / whole
                worth = one.proven and share >= self.least_saving
                told_as = finding(
                    self, "stored-wider", "low" if worth else "info", single(_names(series, one.tensors)), share,
                    "least_saving", None, series.names[member],
                )  # fmt: skip
                doubt = "" if one.proven else ", if small numbers fit, too"
                words = f"{one.stored} that holds {one.holds}{doubt}: {counted(_names(series, one.tensors))}"
                yield replace(told_as, source=f"of the checkpoint's bytes, saved by {words}; {told_as.source}")

    def _lost(self, series: Series, casts: Sequence[tuple[int, int, Cast]]) -> Iterator[Finding]:
        """A pair further on that shows the same tensors cast again says nothing new."""
        told: set[Hashable] = set()
        for pair, kept, one in casts:
            key = (one.stored, one.cast_to, one.tensors)
            if key in told:
                continue
            told.add(key)
            yield from self._of_cast(series, pair, kept, one)

    def _of_cast(self, series: Series, pair: int, kept: int, one: Cast) -> Iterator[Finding]:
        sides = _sides(series, pair)
        words = f"{one.stored} -> {one.cast_to}, {counted(_names(series, one.tensors))}"
        tensor, number = single(_names(series, one.tensors)), len(one.tensors)
        if not one.changed:
            source = f"tensors cast without a value changed: {words}"
            yield Finding("value-preserving-cast", "info", tensor, number, None, source, *sides)
            return
        lost = f"{one.changed:,} of {one.elements:,} values lost"
        if one.miscast is not None:
            lost += f", {one.miscast:,} not correctly rounded, {one.underflowed:,} now 0"
        if one.overflowed:
            source = f"values no longer finite: {words}; {lost}"
            yield Finding("cast-overflow", "high", tensor, one.overflowed, 0, source, *sides)
        if not one.narrower:  # the values moved, which no such cast does
            return
        if not kept:
            severity: Severity = "info" if one.miscast == 0 else "low"
            source = f"tensors, every float of them: {words}; {lost}"
            yield Finding("whole-checkpoint-cast", severity, tensor, number, None, source, *sides)
        elif number > self.allowed:
            told = finding(self, "unexpected-downcast", "high", tensor, number, "allowed", *sides)
            yield replace(told, source=f"tensors, while {kept} kept their dtype: {words}; {lost}; {told.source}")

    def _mixes(self, series: Series, runs: Sequence[tuple[int, int, tuple[Mixed, ...]]]) -> Iterator[Finding]:
        told = set()
        for member, _, found in runs:
            for one in found:
                if one not in told:
                    told.add(one)
                    tensor, number, sides = (
                        single(_names(series, one.tensors)),
                        len(one.tensors),
                        (None, series.names[member]),
                    )
                    others = ", ".join(f"{number} {dtype}" for dtype, number in one.others)
                    words = f"{others}; {counted(_names(series, one.tensors))}"
                    source = f"tensors of role {one.role} that are no {one.common}: {words}"
                    yield Finding("mixed-dtypes", "low", tensor, number, None, source, *sides)


def _dtype_row(series: Series, member: int, members: int, dtype: str, sizes: tuple[int, int, int]) -> dict[str, Any]:
    numbers = dict(zip(("tensors", "elements", "bytes"), sizes, strict=True))
    return {"checkpoint": series.names[member], "members": members, "dtype": dtype, **numbers}


def _held_row(series: Series, member: int, members: int, one: Held) -> dict[str, Any]:
    return {
        "checkpoint": series.names[member],
        "members": members,
        "stored": one.stored,
        "holds": one.holds,
        "proven": one.proven,
        "tensors": len(one.tensors),
        "bytes": one.nbytes,
        "saving_bytes": one.saved,
        "names": _names(series, one.tensors[:NAMES]),
    }


def _cast_row(series: Series, pair: int, kept: int, one: Cast) -> dict[str, Any]:
    baseline, candidate = _sides(series, pair)
    return {
        "baseline": baseline,
        "candidate": candidate,
        "stored": one.stored,
        "cast_to": one.cast_to,
        "tensors": len(one.tensors),
        "kept": kept,
        "elements": one.elements,
        "changed": one.changed,
        "miscast": one.miscast,
        "overflowed": one.overflowed,
        "underflowed": one.underflowed,
        "value_preserving": not one.changed,
        "names": _names(series, one.tensors[:NAMES]),
    }


def _mixed_row(series: Series, member: int, members: int, one: Mixed) -> dict[str, Any]:
    return {
        "checkpoint": series.names[member],
        "members": members,
        "role": one.role,
        "common": one.common,
        "others": dict(one.others),
        "names": _names(series, one.tensors[:NAMES]),
    }


def _sides(series: Series, pair: int) -> tuple[str, str]:
    one = series.measured.comparison.pairs[pair]
    return series.names[one.baseline], series.names[one.candidate]


def _names(series: Series, tensors: Sequence[int]) -> list[str]:
    return [series.tensors[tensor] for tensor in tensors]
