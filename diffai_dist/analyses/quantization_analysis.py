"""What a narrower dtype cost: size, and noise against what correct rounding to so many bits must make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from diffai_dist.analyses import faults, folding
from diffai_dist.analyses.base import Kind, finding, threshold
from diffai_dist.analyses.bounding import bounded
from diffai_dist.analyses.faults import Fault
from diffai_dist.analyses.folding import Folded
from diffai_dist.analyses.noise import Narrowed, Noise, narrowed, noise_of, uncompared
from diffai_dist.analyses.noise_tables import (
    LISTED,
    by_block,
    clipped,
    code_counts,
    conversions,
    ranking,
    sizes,
    whole,
    worst_channel,
    worst_row,
)
from diffai_dist.records import AnalysisRecord, Finding, Measurements, Severity, TensorRecord

NOT_IN_BOTH = "no tensor is in both: --tensor-matching matches names, --map declares others"
NOT_NARROWER = "no tensor of the candidate has a narrower dtype than in the baseline"
NO_NUMBERS = "none of these tensors could be measured"
SOME_NUMBERS = "{} of {} tensors could not be measured: unsupported says why"
NOTHING_LOST = "nothing was lost: all values are the baseline's"
GPTQ = (
    "GPTQ rounds for the outputs of a layer, not for its weights: their error is larger than that of rounding to "
    "nearest, and says nothing of quality"
)
UNDOES = "undoes factors of weights, which are no noise"
_COARSE: tuple[Severity, str] = "high", "medium_db"  # more than a bit lost of those few that a coarse grid has
_DEAD = 1e-3  # of the middle row's length: so short rows are as good as 0. Judgement
_OPTIONS = {
    "shifted-zero-point": "zero_steps",
    "misplaced-scales": "gain_db",
    "missing-or-inverted-scale": "scale_factor",
}


@dataclass(frozen=True)
class QuantizationAnalysis:
    """How much precision a quantised checkpoint lost, against theory for its bits, and what it saves.

    It looks at tensors that the candidate holds in fewer digits, as F16, BF16 or FP8, or as codes, whose values are
    compared. Noise is their squared distance from the baseline's. Theory is correct rounding: 6.02 p + 8.12 dB for
    floats of p significant bits, 20 log10(2^b - 1) + 4.77 - 20 log10(crest) for b bits, evenly spaced up to the largest
    magnitude of a block; of a block that is part of a row that is an estimate, exact for normal values, rather too
    little for others. For tensors of fewer than 1,024 elements, or of values too much alike, theory is the worst case,
    8.12 and 4.77 dB below. What falls short of it is a finding, and `precision_loss` the severity of the worst one, or
    `minimal`, or, where a part is not known, `unknown`. All of this is error of weights: what a model makes of it needs
    data; GPTQ even rounds so that weights are further off, for outputs that are nearer. AWQ and SmoothQuant scale
    columns of weights and undo it in the norm, or the weight, before them: where factors of both agree, noise is that
    of the weight times its factors (`aligned`). Of a weight with factors of rows and columns, or in a rotated basis,
    nothing is judged. Whatever else moved the weights is noise, too, such as a step of training.
    """

    name: ClassVar[str] = "quantization_analysis"
    flag: ClassVar[str] = "--quantization-analysis"
    kind: ClassVar[Kind] = "2"
    partials: ClassVar[tuple[str, ...]] = ("config", "rows", "columns", "codes")
    in_all: ClassVar[bool] = True
    result: ClassVar[Mapping[str, str]] = {
        "compression": "bytes of the candidate's tensors / bytes of the baseline's, of those that both have",
        "precision_loss": "severity of the worst finding; for none `minimal`, or `unknown` if some are unmeasured; "
        "null where nothing is narrower",
        "efficiency": "effective bits kept for each stored bit: enob / bits_per_weight",
        "compression_factor": "1 / compression",
        "sqnr_db": "10 log10(sum a^2 / sum (b - a)^2) over all measured elements, b the values that codes stand for",
        "aligned_sqnr_db": "the same with the noise of weights times the factors that are in `folded`; null for none",
        "theory_db": "the same with the noise of correct rounding",
        "enob": "effective bits, log2(sum n absmax^2 / (3 sum (b - a)^2)) / 2: those of an even grid with that noise",
        "bits_per_weight": "8 * bytes of the narrowed tensors, scales among them / elements",
        "tensors": "tensors that the candidate holds narrower",
        "measured": "those with numbers",
        "unmeasured": "those that changed and have none, and others that may be narrower and could not be compared",
        "below_theory": "those whose shortfall makes a finding",
        "overflowed": "elements that are finite in the baseline alone, and in no other number",
        "reason": "why numbers are missing; null where none are",
        "note": "what is to be known of the numbers: weights that GPTQ rounded; null where nothing is",
        "worst_channel": "tensor, row, and SQNR in dB of the row that lost most, of tensors of two axes and more",
        "clipped_fraction": "share of plain 8-bit codes at the ends of their grid; null, with clip_reason",
        "clip_reason": "why codes were not counted; null where they were",
        "by_block_db": "SQNR of each block, in the order of names, so that a fault that comes back shows; at most 128",
        "conversions": "tensors by dtype before and after, bits of a code, and how many values share a scale (0: all)",
        "ranking": f"tensors by ascending SQNR, at most {LISTED}: sqnr_db, aligned_db, theory_db, dB below what is "
        "expected; SQNR of the worst row, of the 5th percentile, of the median; enob, bits_per_weight, share of all "
        "noise, codes",
        "folded": f"weights whose columns or rows carry factors that what is beside them undoes, at most {LISTED}: "
        "axis, beside what, how far apart both are, factors of the 5th and 95th percentile, aligned_db",
        "faults": f"tensors whose scales or zero points are wrong, or clip, at most {LISTED}: rule, value, and what it "
        "is like",
        "unsupported": f"tensors without numbers, at most {LISTED}, and why",
    }
    rules: ClassVar[Mapping[str, str]] = {
        "declared-otherwise": "the candidate's config declares a quantisation that its tensors do not bear out, which "
        "are read as stored: high; told once where integrity_check is asked, too",
        "missing-or-inverted-scale": "integer codes without a scale that are not the baseline's values: critical; a "
        "matrix in the baseline's direction, but 9 of 10 rows longer or shorter by more than scale_factor: high",
        "clipped": "rows that lose their largest values alone, to a grid that ends before them, value = the least "
        "share of values that are cut: low, medium or high as precision-loss",
        "shifted-zero-point": "means that are off by more than zero_steps steps, the same way in 9 of 10 rows: high",
        "misplaced-scales": "SQNR more than medium_db below theory, of which factors of rows, or of columns, win "
        "more than gain_db back: high",
        "invalid-scale": "codes whose values are not finite where the baseline's are, or rows of 0 where it has none, "
        "that share no scale with others: critical",
        "overflow": "elements that the narrower dtype made infinite or NaN: critical",
        "rotated": "a matrix whose rows are as long as the baseline's, within same_length, and point elsewhere: info",
        "lost-channel": "a row with more noise than signal, SQNR below channel_db: high",
        "precision-loss": "SQNR below theory by more than low_db (low), medium_db (medium; high where it is below "
        "coarse_db itself), high_db (high)",
        "coarse-grid": "SQNR below coarse_db where rounding is as in theory: a grid that does not fit: low",
    }
    sources: ClassVar[tuple[str, ...]] = (
        "SQNR of rounding and of even grids: derived, as in the definition",
        "6.02 dB are one effective bit: derived; that it is medium, 3 dB low and 12 dB high: judgement",
        "efficiency as effective bits for each stored bit: judgement",
        "factors of columns that a norm undoes: AWQ, 2306.00978, and SmoothQuant, 2211.10438, published",
    )

    low_db: float = threshold(3.0, "dB below theory from which a tensor's loss is low")
    medium_db: float = threshold(6.02, "dB below theory, one effective bit, from which it is medium")
    high_db: float = threshold(12.0, "dB below theory from which it is high")
    channel_db: float = threshold(0.0, "SQNR in dB below which a row counts as lost")
    coarse_db: float = threshold(15.0, "SQNR in dB below which even correct rounding is worth a finding")
    scale_factor: float = threshold(1.25, "factor, either way, from which a scale is called wrong")
    same_direction: float = threshold(0.05, "largest 1 - cos, in the middle row, of values that differ by their scale")
    zero_steps: float = threshold(0.5, "steps of the grid by which means may be off before a zero point is wrong")
    gain_db: float = threshold(3.0, "dB that factors of rows or columns must win back to tell anything")
    same_factor: float = threshold(0.05, "relative difference up to which factors are those of what undoes them")
    same_length: float = threshold(0.05, "relative difference of rows, in the middle, up to which they are as long")

    def __call__(
        self, measured: Measurements, pair_index: int, records: Sequence[TensorRecord], declared: bool = True
    ) -> AnalysisRecord:
        """Sizes from headers, noise from moments, shifts, rows and columns; `declared` asks for its rule, too."""
        chosen = narrowed(measured, pair_index, records)
        answers = [(one, noise_of(measured, pair_index, one)) for one in chosen]
        known = [found for _, found in answers if isinstance(found, Noise)]
        folds = folding.folded(measured, pair_index, known, self.same_factor, self.gain_db)
        undo = _undoing(known, folds)
        known = [one for one in known if one.name not in undo]
        changed = measured.shifts["changed"][:, pair_index] > 0
        unmeasured = [(one.name, found) for one, found in answers if isinstance(found, str) and changed[one.index]]
        unmeasured += uncompared(measured, pair_index, records)
        without = [*unmeasured, *((name, UNDOES) for name in undo)]
        gone = list(_gone(measured, pair_index, chosen, known))
        without_values = {one.tensor for one in gone}
        sound = [one for one in known if one.name not in without_values]
        wrong = [fault for one in sound if (fault := self._fault(one, folds.get(one.name)))]
        findings = (*gone, *self._findings(sound, wrong, folds))
        codes = {one.one.index: count for one in known if (count := code_counts(measured, pair_index, one.one))}
        result = {
            **sizes(measured, pair_index),
            **whole(known, findings, folds, len(unmeasured)),
            "tensors": len(chosen),
            "measured": len(known),
            "unmeasured": len(unmeasured),
            "below_theory": sum(_shortfall(one, folds.get(one.name)) > self.low_db for one in known),
            "overflowed": sum(_overflowed(measured, pair_index, one) for one in chosen),
            "reason": _reason(measured, pair_index, known, len(unmeasured), without or chosen),
            "note": GPTQ if any(one.after.dtype.startswith("gptq") for one in chosen) else None,
            "worst_channel": worst_channel(known),
            **clipped(codes),
            "by_block_db": by_block(known),
            "conversions": conversions(chosen),
            "ranking": ranking(known, codes, folds),
            "folded": [one.row for one in folds.values()][:LISTED],
            "faults": [one.row for one in wrong][:LISTED],
            "unsupported": [{"tensor": name, "reason": why} for name, why in without[:LISTED]],
        }
        findings = (*(_otherwise(measured, pair_index) if declared else ()), *findings)
        return AnalysisRecord(self.name, {key: result[key] for key in self.result}, tuple(bounded(findings)))

    def _fault(self, one: Noise, fold: Folded | None) -> Fault | None:
        """What is wrong with scales or zero points; the simplest that explains it."""
        if one.sound:
            return None
        elsewhere = faults.misplaced(one, self.gain_db) if one.shortfall > self.medium_db else None
        if not (fold or elsewhere) and one.shortfall > self.low_db and (found := faults.clipped(one)):
            return found
        if found := faults.factor(one, self.scale_factor, self.same_direction):
            return found
        if fold:
            return None
        if found := faults.zero_point(one, self.zero_steps):
            return found
        return elsewhere

    def _findings(
        self, known: Sequence[Noise], wrong: Sequence[Fault], folds: Mapping[str, Folded]
    ) -> Iterator[Finding]:
        """What explains more comes first, and what it explains is not told again."""
        explained = {one.tensor for one in wrong}
        bare, noises = {one.name for one in known if one.one.bare}, {one.name: one for one in known}
        for fault in wrong:
            if fault.rule == "clipped":
                yield from self._clipped(noises[fault.tensor], fault)
            elif fault.tensor not in bare:
                told = finding(self, fault.rule, "high", fault.tensor, fault.value, _OPTIONS[fault.rule])
                limit = _limit(fault, getattr(self, _OPTIONS[fault.rule]))
                yield replace(told, threshold=limit, source=f"like {fault.like}; {told.source}")
        factors = {fault.tensor: fault.value for fault in wrong}
        for name in (one.name for one in known if one.name in bare):
            source = "codes without a scale beside them have no values"
            yield Finding("missing-or-inverted-scale", "critical", name, factors.get(name), None, source)
        for noise in sorted(known, key=lambda one: -one.shortfall):
            if noise.name not in explained | bare:
                yield from self._loss(noise, folds.get(noise.name))

    def _loss(self, noise: Noise, fold: Folded | None) -> Iterator[Finding]:
        if fold and fold.axis == "both":
            return
        off = folding.rotated(noise, self.same_length)
        if off is not None:
            yield finding(self, "rotated", "info", noise.name, off, "same_length")
            return
        if not fold and (worst := worst_row(noise)) is not None and worst[1] < self.channel_db:
            yield finding(self, "lost-channel", "high", noise.name, worst[1], "channel_db")
        behind, db = _shortfall(noise, fold), fold.db if fold else noise.db
        if level := self._level(behind, db):
            told = finding(self, "precision-loss", level[0], noise.name, behind, level[1])
            coarse = f"SQNR of {db:.1f} dB, below coarse_db={self.coarse_db}; " if level == _COARSE else ""
            yield replace(told, source=f"{coarse}{told.source}")
        elif db < self.coarse_db:
            yield finding(self, "coarse-grid", "low", noise.name, db, "coarse_db")

    def _level(self, behind: float, db: float) -> tuple[Severity, str] | None:
        """How severe a loss is, and the threshold that it exceeds; None where it is that of rounding."""
        limits: tuple[tuple[Severity, str], ...] = (("high", "high_db"), ("medium", "medium_db"), ("low", "low_db"))
        level = next(((severity, option) for severity, option in limits if behind > getattr(self, option)), None)
        return _COARSE if level == ("medium", "medium_db") and db < self.coarse_db else level

    def _clipped(self, noise: Noise, fault: Fault) -> Iterator[Finding]:
        """Its value is a share, and its severity that of the loss."""
        if level := self._level(noise.shortfall, noise.db):
            loss = f"{noise.shortfall:.1f} dB below theory, more than {level[1]}={getattr(self, level[1])}"
            source = f"the least share of values beyond {fault.like}: derived; {loss}"
            yield Finding(fault.rule, level[0], noise.name, fault.value, None, source)


def _otherwise(measured: Measurements, pair_index: int) -> Iterator[Finding]:
    """What the candidate's config says of it and its tensors do not."""
    candidate = measured.comparison.members[measured.comparison.pairs[pair_index].candidate]
    for one in candidate.violations:
        if one.rule == "declared-otherwise":
            yield Finding(one.rule, "high", None, len(one.names) or None, None, one.found)


def _limit(fault: Fault, either_way: float) -> float:
    """The threshold on the side that the value is on, where that is one for both."""
    if fault.rule == "missing-or-inverted-scale":
        return either_way if fault.value > 1 else 1 / either_way
    return math.copysign(either_way, fault.value)


def _undoing(known: Sequence[Noise], folds: Mapping[str, Folded]) -> list[str]:
    """The norms that undo factors of weights, and their biases."""
    norms = {folding.parent(fold.beside) for fold in folds.values()}
    return [one.name for one in known if len(one.one.after.shape) == 1 and folding.parent(one.name) in norms]


def _gone(
    measured: Measurements, pair_index: int, chosen: Sequence[Narrowed], known: Sequence[Noise]
) -> Iterator[Finding]:
    """Values that are no numbers, or 0, where the baseline's are others."""
    noises = {one.name: one for one in known}
    for one in chosen:
        if number := _overflowed(measured, pair_index, one):
            rule = "invalid-scale" if one.after.quantised else "overflow"
            yield Finding(rule, "critical", one.name, number, 0, "counts of finite values on both sides")
        elif one.name in noises and (empty := _empty_rows(noises[one.name])):
            yield Finding("invalid-scale", "critical", one.name, empty, 0, "rows whose values are all 0")


def _shortfall(noise: Noise, fold: Folded | None) -> float:
    """dB below theory, of a weight times its factors where it has some."""
    if fold is None:
        return noise.shortfall
    return 0.0 if fold.axis == "both" else fold.shortfall


def _empty_rows(noise: Noise) -> int:
    """Rows of 0 that were none, and hardly shorter than others: their scale is no other row's, and too small for F16
    in rows of next to nothing alone."""
    import numpy as np

    block, rows = noise.one.grid.block, noise.rows
    if not noise.one.after.quantised or not noise.by_rows or not 0 < block <= noise.one.after.elements // len(rows.aa):
        return 0
    return int(np.sum((rows.aa > _DEAD**2 * np.nanmedian(rows.aa)) & (rows.bb == 0)))


def _overflowed(measured: Measurements, pair_index: int, one: Narrowed) -> int:
    baseline = measured.comparison.pairs[pair_index].baseline
    finite, both = measured.moments["finite"][one.index, baseline], measured.shifts["both"][one.index, pair_index]
    return int(finite - both)


def _in_both(measured: Measurements, pair_index: int) -> bool:
    pair = measured.comparison.pairs[pair_index]
    sides = (pair.baseline, pair.candidate)
    return any(all(one.tensors[side] or one.unreadable[side] for side in sides) for one in measured.comparison.aligned)


def _reason(
    measured: Measurements, pair_index: int, known: Sequence[Noise], unmeasured: int, narrower: Sequence[Any]
) -> str | None:
    if not _in_both(measured, pair_index):
        return NOT_IN_BOTH
    if not narrower:
        return NOT_NARROWER
    if not known:
        return NO_NUMBERS
    if unmeasured:
        return SOME_NUMBERS.format(unmeasured, unmeasured + len(known))
    return None if any(one.noise for one in known) else NOTHING_LOST
