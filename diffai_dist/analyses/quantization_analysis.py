"""What a narrower dtype cost: size, and noise against what correct rounding to so many bits must make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import bounded
from diffai_dist.analyses.noise import Narrowed, Noise, decibels, narrowed, noise_of
from diffai_dist.analyses.noise_tables import (
    LISTED,
    bits_per_weight,
    by_block,
    clipped,
    code_counts,
    conversions,
    defined,
    effective_bits,
    packed,
    ranking,
    worst_channel,
    worst_row,
)
from diffai_dist.records import SEVERITIES, AnalysisRecord, Finding, Measurements, Severity, TensorRecord

if TYPE_CHECKING:
    import numpy as np

_MOST_ROWS = 0.9  # share that must agree. Judgement
NOT_NARROWER = "no tensor of the candidate has a narrower dtype than in the baseline"
NO_NUMBERS = "none of these tensors could be measured"
NOTHING_LOST = "nothing was lost: all values are the baseline's"


@dataclass(frozen=True)
class QuantizationAnalysis:
    """How much precision a quantised checkpoint lost, against theory for its bits, and what it saves.

    It looks at tensors that the candidate holds in fewer digits, as F16, BF16 or FP8, or as codes of 8 or 16 bits with
    one scale, or one for each row, in a tensor beside them. Noise is the squared distance between the values that the
    codes stand for and the baseline's. Theory is correct rounding: 6.02 p + 8.12 dB for floats of p significant bits,
    6.02 b + 4.77 - 20 log10(crest) dB for b bits, evenly spaced up to the largest magnitude; for tensors of fewer than
    1,024 elements, or of values too much alike, its worst case, 8.12 and 4.77 dB below. What falls short of it is a
    finding, and `precision_loss` the severity of the worst one, or `minimal`. All of this is error of weights: what a
    model makes of it needs data. Whatever else moved the weights is noise, too: a step of training, smoothing and
    rotation, which move scales between layers.
    """

    name: ClassVar[str] = "quantization_analysis"
    flag: ClassVar[str] = "--quantization-analysis"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ("rows", "codes")
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "compression": "bytes of the candidate's tensors / bytes of the baseline's",
        "precision_loss": "severity of the worst finding, `minimal` for none; null where nothing was measured",
        "efficiency": "effective bits kept for each stored bit: enob / bits_per_weight",
        "compression_factor": "1 / compression",
        "sqnr_db": "10 log10(sum a^2 / sum (b - a)^2) over all measured elements, b the values that codes stand for",
        "theory_db": "the same with the noise of correct rounding",
        "enob": "effective bits, log2(sum n absmax^2 / (3 sum (b - a)^2)) / 2: those of an even grid with that noise",
        "bits_per_weight": "8 * bytes of the narrowed tensors and their scales / elements",
        "tensors": "tensors that the candidate holds narrower",
        "measured": "those with numbers",
        "below_theory": "those whose shortfall makes a finding",
        "overflowed": "elements that are finite in the baseline alone, and in no other number",
        "reason": "why numbers are missing; null where none are",
        "worst_channel": "tensor, row, and SQNR in dB of the row that lost most, of tensors of two axes and more",
        "clipped_fraction": "share of 8-bit codes at the ends of their grid; null, with clip_reason",
        "clip_reason": "why codes were not counted; null where they were",
        "by_block_db": "SQNR of each block, in the order of names, so that a fault that comes back shows; at most 128",
        "conversions": "tensors by dtype before and after, and by what their scale belongs to",
        "ranking": f"tensors by ascending SQNR, at most {LISTED}: sqnr_db, theory_db, dB below what is expected; SQNR "
        "of the worst row, of the 5th percentile, of the median; enob, bits_per_weight, share of all noise, codes",
        "scale_faults": f"tensors that are the baseline's times a factor, at most {LISTED}, and what that is like",
        "unsupported": f"tensors without numbers, at most {LISTED}: packed codes, scales of blocks, zero points",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "missing-or-inverted-scale": "integer codes without a scale that are not the baseline's values: critical; a "
        "matrix in the baseline's direction, but 9 of 10 rows longer or shorter by more than scale_factor: high",
        "invalid-scale": "a scale that is 0, NaN or infinite, of a row that is not 0: critical",
        "overflow": "elements that the narrower dtype made infinite or NaN: critical",
        "lost-channel": "a row with more noise than signal, SQNR below channel_db: high",
        "precision-loss": "SQNR below theory by more than low_db (low), medium_db (medium), high_db (high)",
        "coarse-grid": "SQNR below coarse_db where rounding is as in theory: a grid that does not fit: low",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "SQNR of rounding and of even grids: derived, as in the definition",
        "6.02 dB are one effective bit: derived; that it is medium, 3 dB low and 12 dB high: judgement",
        "efficiency as effective bits for each stored bit: judgement",
    )

    low_db: float = threshold(3.0, "dB below theory from which a tensor's loss is low")
    medium_db: float = threshold(6.02, "dB below theory, one effective bit, from which it is medium")
    high_db: float = threshold(12.0, "dB below theory from which it is high")
    channel_db: float = threshold(0.0, "SQNR in dB below which a row counts as lost")
    coarse_db: float = threshold(15.0, "SQNR in dB below which even correct rounding is worth a finding")
    scale_factor: float = threshold(1.25, "factor, either way, from which a scale is called wrong")
    same_direction: float = threshold(0.05, "largest 1 - cos, in the middle row, of values that differ by their scale")

    def __call__(self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord]) -> AnalysisRecord:
        """Sizes from headers, noise from moments, shifts and rows."""
        chosen = narrowed(measured, pair_index, records)
        answers = [(one, noise_of(measured, pair_index, one)) for one in chosen]
        known = [found for _, found in answers if isinstance(found, Noise)]
        refused = [(one.name, found) for one, found in answers if isinstance(found, str)]
        faults = [row for one in known if (row := self._fault(one))]
        findings = tuple(self._findings(measured, pair_index, chosen, known, faults))
        codes = {one.one.index: count for one in known if (count := code_counts(measured, pair_index, one.one))}
        unsupported = [*refused, *packed(measured, pair_index)]
        result = {
            **_sizes(measured, pair_index),
            **_whole(known, findings),
            "tensors": len(chosen),
            "measured": len(known),
            "below_theory": sum(one.shortfall > self.low_db for one in known),
            "overflowed": sum(_overflowed(measured, pair_index, one) for one in chosen),
            "reason": _reason(chosen, known, unsupported),
            "worst_channel": worst_channel(known),
            **clipped(codes),
            "by_block_db": by_block(known),
            "conversions": conversions(chosen),
            "ranking": ranking(known, codes),
            "scale_faults": faults[:LISTED],
            "unsupported": [{"tensor": name, "reason": why} for name, why in unsupported[:LISTED]],
        }
        return AnalysisRecord(self.name, {key: result[key] for key in self.result}, tuple(bounded(findings)))

    def _findings(
        self, measured: Measurements, pair_index: int, chosen: Sequence[Narrowed], known: Sequence[Noise], faults: Any
    ) -> Iterator[Finding]:
        """What explains more comes first, and what it explains is not told again."""
        for one in chosen:
            if one.scale and (number := _invalid(measured, pair_index, one)):
                source = "a scale is a finite number that is not 0"
                yield Finding("invalid-scale", "critical", one.scale.name, number, 0, source)
            if number := _overflowed(measured, pair_index, one):
                yield Finding("overflow", "critical", one.name, number, 0, "counts of finite values on both sides")
        wrong = tuple(self._wrong(chosen, {row["tensor"]: row["factor"] for row in faults}))
        yield from wrong
        explained = {one.tensor for one in wrong}
        for noise in sorted(known, key=lambda one: -one.shortfall):
            if noise.one.name not in explained:
                yield from self._loss(noise)

    def _wrong(self, chosen: Sequence[Narrowed], factors: Mapping[str, float]) -> Iterator[Finding]:
        """Codes without a scale, and matrices that are a factor too long or too short."""
        rule = "missing-or-inverted-scale"
        for one in chosen:
            if one.coded and one.scale is None:
                source = "codes without a scale beside them have no values"
                yield Finding(rule, "critical", one.name, factors.get(one.name), None, source)
            elif one.name in factors:
                yield finding(self, rule, "high", one.name, factors[one.name], "scale_factor")

    def _loss(self, noise: Noise) -> Iterator[Finding]:
        if (worst := worst_row(noise)) is not None and worst[1] < self.channel_db:
            yield finding(self, "lost-channel", "high", noise.one.name, worst[1], "channel_db")
        limits: tuple[tuple[Severity, str], ...] = (("high", "high_db"), ("medium", "medium_db"), ("low", "low_db"))
        for severity, option in limits:
            if noise.shortfall > getattr(self, option):
                yield finding(self, "precision-loss", severity, noise.one.name, noise.shortfall, option)
                return
        if noise.db < self.coarse_db:
            yield finding(self, "coarse-grid", "low", noise.one.name, noise.db, "coarse_db")

    def _fault(self, noise: Noise) -> dict[str, Any] | None:
        """The factor by which a matrix is too long or too short, if it is that alone in 9 of 10 rows."""
        import numpy as np

        known = np.isfinite(noise.factors) & np.isfinite(noise.turned)
        factors = noise.factors[known]
        if len(noise.one.after.shape) < 2 or not known.any() or np.median(noise.turned[known]) > self.same_direction:
            return None
        far = (factors > 0) & ((factors > self.scale_factor) | (factors < 1 / self.scale_factor))
        if np.mean(far) < _MOST_ROWS:
            return None
        scale, name = noise.one.scale, noise.one.name
        row = {"tensor": name, "scale": scale.name if scale else None, "factor": float(np.median(factors))}
        return {**row, "like": _like(noise)}


def _like(noise: Noise) -> str:
    """What would make such rows of the scale."""
    import numpy as np

    scale = noise.one.scale.values if noise.one.scale else None
    if scale is None:
        return "missing"
    with np.errstate(all="ignore"):
        return "inverted" if _is_one(noise.factors / scale**2) else "wrong"


def _is_one(values: np.ndarray) -> bool:
    """Whether most are within a tenth of 1: codes of few bits take some percent from the length of a row."""
    import numpy as np

    known = values[np.isfinite(values)]
    return bool(known.size) and float(np.mean(np.abs(known - 1) <= 0.1)) >= _MOST_ROWS


def _invalid(measured: Measurements, pair_index: int, one: Narrowed) -> int:
    """How many scales are no use; those of rows of zeros may be 0."""
    import numpy as np

    values = one.scale.values if one.scale else None
    if values is None:
        return 0
    rows = measured.details.rows.get((one.index, measured.comparison.pairs[pair_index].baseline))
    empty = rows["squares"] == 0 if rows is not None and values.size == rows.size else np.zeros(values.shape, bool)
    return int(np.sum(~np.isfinite(values) | ((values == 0) & ~empty)))


def _overflowed(measured: Measurements, pair_index: int, one: Narrowed) -> int:
    baseline = measured.comparison.pairs[pair_index].baseline
    finite, both = measured.moments["finite"][one.index, baseline], measured.shifts["both"][one.index, pair_index]
    return int(finite - both)


def _sizes(measured: Measurements, pair_index: int) -> dict[str, Any]:
    pair, aligned = measured.comparison.pairs[pair_index], measured.comparison.aligned
    before, after = (
        sum(tensor.nbytes for one in aligned if (tensor := one.tensors[member]))
        for member in (pair.baseline, pair.candidate)
    )
    return {
        "compression": after / before if before else None,
        "compression_factor": before / after if after else None,
    }


def _whole(known: Sequence[Noise], findings: Sequence[Finding]) -> dict[str, Any]:
    """The sums of all tensors as one; findings tell the loss."""
    signal, noise, theory, peak = (
        math.fsum(getattr(one, key) for one in known) for key in ("signal", "noise", "theory", "peak")
    )
    bits = bits_per_weight([one.one for one in known])
    enob = effective_bits(peak, noise)
    worst = min((SEVERITIES.index(one.severity) for one in findings), default=None)
    label = None if worst is None else SEVERITIES[worst]
    return {
        "precision_loss": label or ("minimal" if known else None),
        "efficiency": enob / bits if enob is not None and bits else None,
        "sqnr_db": defined(decibels(signal, noise)),
        "theory_db": defined(decibels(signal, theory)),
        "enob": enob,
        "bits_per_weight": bits,
    }


def _reason(chosen: Sequence[Narrowed], known: Sequence[Noise], unsupported: Sequence[Any]) -> str | None:
    if not chosen and not unsupported:
        return NOT_NARROWER
    if not known:
        return NO_NUMBERS
    return None if any(one.noise for one in known) else NOTHING_LOST
