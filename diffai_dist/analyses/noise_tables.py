"""Noise of many tensors as rows of a result: which lost most, block by block, and which codes they use."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from diffai_dist.analyses.folding import Folded
from diffai_dist.analyses.noise import Narrowed, Noise, decibels
from diffai_dist.analyses.roles import block
from diffai_dist.records import SEVERITIES, Finding, Measurements

LISTED = 20  # rows of a table
BLOCKS = 128
NO_CODES = "no tensor of plain codes of 8 bits was counted; of codes under scales, faults tell what clipping they show"

# The largest magnitude of a grid, beyond which values are clipped.
_ENDS = {"I8": 127, "U8": 255, "F8_E4M3": 448, "F8_E5M2": 57344, "F8_E4M3FNUZ": 240, "F8_E5M2FNUZ": 57344}


def bits_per_weight(tensors: Sequence[Narrowed]) -> float | None:
    """Stored bits, those of scales among them, for each element; None without elements."""
    elements = sum(one.after.elements for one in tensors)
    return 8 * sum(one.after.nbytes for one in tensors) / elements if elements else None


def effective_bits(peak: float, noise: float) -> float | None:
    """Bits of an even grid with that noise, 0 where it would have none; None without noise.

    >>> effective_bits(3.0 * 4.0**8, 1.0), effective_bits(1.0, 0.0)
    (8.0, None)
    """
    return max((math.log2(peak) - math.log2(3 * noise)) / 2, 0.0) if peak and noise else None


def defined(value: float) -> float | None:
    """The number as JSON can hold it."""
    return float(value) if math.isfinite(value) else None


def sizes(measured: Measurements, pair_index: int) -> dict[str, Any]:
    """What both sides take of bytes, of the tensors that both have, against each other."""
    pair, aligned = measured.comparison.pairs[pair_index], measured.comparison.aligned
    both = [(a, b) for one in aligned if (a := one.tensors[pair.baseline]) and (b := one.tensors[pair.candidate])]
    before, after = (sum(tensor.nbytes for tensor in side) for side in zip(*both, strict=True)) if both else (0, 0)
    return {
        "compression": after / before if before else None,
        "compression_factor": before / after if after else None,
    }


def whole(
    known: Sequence[Noise], findings: Sequence[Finding], folds: Mapping[str, Folded], unmeasured: int
) -> dict[str, Any]:
    """The sums of all tensors as one; findings tell the loss."""
    signal, noise, peak = (math.fsum(getattr(one, key) for one in known) for key in ("signal", "noise", "peak"))
    theory = math.fsum(one.theory.noise for one in known)
    bits = bits_per_weight([one.one for one in known])
    enob = effective_bits(peak, noise)
    worst = min((SEVERITIES.index(one.severity) for one in findings if one.severity != "info"), default=None)
    label = None if worst is None else SEVERITIES[worst]
    return {
        "precision_loss": label or ("unknown" if unmeasured else "minimal" if known else None),
        "efficiency": enob / bits if enob is not None and bits else None,
        "sqnr_db": defined(decibels(signal, noise)),
        "aligned_sqnr_db": defined(decibels(signal, _aligned(known, folds))) if folds else None,
        "theory_db": defined(decibels(signal, theory)),
        "enob": enob,
        "bits_per_weight": bits,
    }


def _aligned(known: Sequence[Noise], folds: Mapping[str, Folded]) -> float:
    """Noise that each tensor would have, had it the baseline's length; that of factors of both axes is what it is."""
    noises = []
    for one in known:
        fold = folds.get(one.name)
        scaled = fold is not None and fold.axis != "both" and fold.signal > 0
        noises.append(one.signal * fold.noise / fold.signal if fold and scaled else one.noise)
    return math.fsum(noises)


def worst_row(noise: Noise) -> tuple[int, float] | None:
    """The row of a tensor of several axes that lost most, and its SQNR."""
    import numpy as np

    found = noise.rows_db
    if found is None or not np.isfinite(found).any():
        return None
    row = int(np.nanargmin(found))
    return row, float(found[row])


def worst_channel(known: Sequence[Noise]) -> dict[str, Any] | None:
    """The row of any tensor that lost most."""
    found = [(worst[1], one.name, worst[0]) for one in known if (worst := worst_row(one))]
    if not found:
        return None
    db, name, row = min(found)
    return {"tensor": name, "row": row, "sqnr_db": db}


def by_block(known: Sequence[Noise]) -> list[float | None]:
    """SQNR of each block in the order of names; None where nothing was lost."""
    blocks: dict[str, list[Noise]] = {}
    for one in known:
        blocks.setdefault(block(one.name), []).append(one)
    sums = [
        (math.fsum(one.signal for one in group), math.fsum(one.noise for one in group)) for group in blocks.values()
    ]
    return [defined(decibels(signal, noise)) for signal, noise in sums[:BLOCKS]]


def conversions(chosen: Sequence[Narrowed]) -> list[dict[str, Any]]:
    """Tensors by dtypes, bits of a code, and how many values share a scale."""
    counts = Counter((one.before.dtype, one.after.dtype, one.grid.bits, one.grid.block) for one in chosen)
    keys = ("from", "to", "bits", "block", "tensors")
    return [dict(zip(keys, (*kind, number), strict=True)) for kind, number in sorted(counts.items())[:LISTED]]


def ranking(
    known: Sequence[Noise], codes: Mapping[int, dict[str, Any]], found: Mapping[str, Folded]
) -> list[dict[str, Any]]:
    """Those that lost most first; ties by name."""
    total = math.fsum(one.noise for one in known)
    lossy = sorted((one for one in known if one.noise), key=lambda one: (one.db, one.name))
    return [_row(one, total, codes.get(one.one.index), found.get(one.name)) for one in lossy[:LISTED]]


def _row(one: Noise, total: float, codes: dict[str, Any] | None, fold: Folded | None) -> dict[str, Any]:
    counted = codes or {}
    return {
        "tensor": one.name,
        "sqnr_db": one.db,
        "aligned_db": fold.db if fold and fold.axis != "both" else None,
        "theory_db": decibels(one.signal, one.theory.noise),
        "shortfall_db": one.shortfall,
        **_channels(one),
        "enob": effective_bits(one.peak, one.noise),
        "bits_per_weight": bits_per_weight([one.one]),
        "noise_share": one.noise / total,
        "clipped_fraction": counted["clipped"] / counted["codes"] if counted else None,
        "used_codes": counted.get("used"),
        "entropy_bits": counted.get("entropy_bits"),
    }


def _channels(one: Noise) -> dict[str, Any]:
    """Quantiles over rows that are not 0; rows that lost nothing are infinitely good, and null."""
    import numpy as np

    names = {"worst_row_db": 0.0, "row_p5_db": 0.05, "median_row_db": 0.5}
    found = one.rows_db
    if found is None:
        return dict.fromkeys(names)
    known = np.sort(found[~np.isnan(found)])
    return {name: defined(known[int(part * (known.size - 1))]) if known.size else None for name, part in names.items()}


def code_counts(measured: Measurements, pair_index: int, one: Narrowed) -> dict[str, Any] | None:
    """Counts of the codes of a plain 8-bit tensor, from a histogram whose bins are exact for them."""
    import numpy as np

    candidate = measured.comparison.pairs[pair_index].candidate
    histogram = measured.details.histograms.get((one.index, candidate))
    if histogram is None or one.after.dtype not in _ENDS or not histogram.size:
        return None
    values = (histogram["bin"].astype(np.uint32) << np.uint32(16)).view(np.float32)
    counts = histogram["count"].astype(np.float64)
    shares = counts / counts.sum()
    return {
        "codes": int(counts.sum()),
        "clipped": int(counts[np.abs(values) >= _ENDS[one.after.dtype]].sum()),
        "used": int(histogram.size),
        "entropy_bits": float(-(shares * np.log2(shares)).sum()),
    }


def clipped(codes: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """The share of all counted codes that are at the ends of their grids."""
    total, ends = (sum(one[key] for one in codes.values()) for key in ("codes", "clipped"))
    return {"clipped_fraction": ends / total if total else None, "clip_reason": None if total else NO_CODES}
