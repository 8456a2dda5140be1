"""Quantisation: noise and theory against NumPy, scales that are missing or wrong, and what has no numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import transformer
from details_oracle import checkpoint, measured
from diffai_dist import compare
from diffai_dist.analyses.change_summary import ChangeSummary
from diffai_dist.analyses.layer_impact import LayerImpact
from diffai_dist.analyses.noise_tables import NO_CODES
from diffai_dist.analyses.quantization_analysis import NOT_NARROWER, NOTHING_LOST, QuantizationAnalysis
from diffai_dist.analyses.scales import LEFT_OUT, NOT_READ, TOO_MANY, ZERO_POINTS
from diffai_dist.analyses.tensor_matching import TensorMatching
from diffai_dist.analyses.transfer_learning_analysis import TransferLearningAnalysis
from diffai_dist.errors import Failure
from diffai_dist.judging import tensor_records
from diffai_dist.records import AnalysisRecord, Details, Result
from diffai_dist.report.lines import analysis_lines
from diffai_dist.report.view import View
from diffai_dist.whole import whole_change
from models import write

Arrays = Mapping[str, np.ndarray]

E4M3, E5M2, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16


def ask(before: Arrays, after: Arrays, details: bool = True, **options: Any) -> AnalysisRecord:
    """The answer about two checkpoints given as arrays; strict JSON, with the keys that it declares."""
    measurements = measured([before, after])
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


def largest(a: np.ndarray, by_row: bool) -> np.ndarray:
    found: np.ndarray = abs(a).max(axis=tuple(range(1, a.ndim)), keepdims=True) if by_row else abs(a).max()
    return found


def int8(a: np.ndarray, by_row: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scale of rounding to nearest."""
    scale = np.asarray(largest(a, by_row) / 127, np.float32)
    return np.round(a / scale).astype(np.int8), scale


def fp8(a: np.ndarray, by_row: bool = True) -> tuple[np.ndarray, np.ndarray]:
    scale = np.asarray(largest(a, by_row) / 448, np.float32)
    return (a / scale).astype(E4M3), scale


def db(a: np.ndarray, b: np.ndarray) -> float:
    """SQNR in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(10 * np.log10(np.sum(a**2) / np.sum((b - a) ** 2)))


def crest_db(a: np.ndarray) -> float:
    a = a.astype(np.float64)
    return float(20 * np.log10(abs(a).max() / np.sqrt(np.mean(a**2))))


Quantiser = Callable[[np.ndarray], tuple[dict[str, np.ndarray], np.ndarray]]


def cast(dtype: Any) -> Quantiser:
    return lambda a: ({"m.weight": a.astype(dtype)}, a.astype(dtype).astype(np.float64))


def scaled(
    quantise: Callable[..., Any], by_row: bool, name: str, shape: Callable[[np.ndarray], np.ndarray]
) -> Quantiser:
    def apply(a: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        codes, scale = quantise(a, by_row)
        return {"m.weight": codes, name: shape(scale)}, codes.astype(np.float64) * scale.astype(np.float64)

    return apply


def bitsandbytes(a: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The largest magnitude of a row in place of a scale."""
    kept = largest(a, by_row=True)
    codes = np.round(a * (127 / kept)).astype(np.int8)
    return {"m.weight": codes, "m.SCB": kept.ravel()}, codes * (kept.astype(np.float64) / 127)


QUANTISERS: dict[str, tuple[Quantiser, float]] = {
    "F16": (cast(np.float16), 11),
    "BF16": (cast(BF16), 8),
    "E4M3": (scaled(fp8, False, "m.weight_scale", np.ravel), 4),
    "E4M3 by row": (scaled(fp8, True, "m.weight_scale_inv", np.asarray), 4),
    "E5M2": (cast(E5M2), 3),
    "int8": (scaled(int8, False, "m.weight_scale", np.squeeze), 0),
    "int8 by row": (scaled(int8, True, "m.scale", np.ravel), 0),
    "int8 by row, all axes": (scaled(int8, True, "m.weight_scale", np.asarray), 0),
    "bitsandbytes": (bitsandbytes, 0),
}


def theory(a: np.ndarray, digits: float, by_row: bool) -> float:
    """In dB, from the formulas of the definition."""
    if digits:
        return 6.0206 * digits + 8.124
    if not by_row:
        return 6.0206 * 8 + 4.7712 - crest_db(a)
    a = a.astype(np.float64).reshape(len(a), -1)
    noise = sum(np.sum(row**2) / 10 ** ((6.0206 * 8 + 4.7712 - crest_db(row)) / 10) for row in a)
    return float(10 * np.log10(np.sum(a**2) / noise))


@pytest.mark.parametrize("kind", QUANTISERS)
@pytest.mark.parametrize("shape", [(48, 96), (12, 3, 5, 7)])
def test_every_number_of_one_tensor_is_numpys(kind: str, shape: tuple[int, ...]) -> None:
    quantise, digits = QUANTISERS[kind]
    for seed in (0, 1):
        a = weights(seed, shape)
        after, values = quantise(a)
        result = ask({"m.weight": a}, after).result
        row = result["ranking"][0]
        by_row = "row" in kind or kind == "bitsandbytes"
        expected = db(a, values)
        enob = (expected - 4.7712 + crest_db(a)) / 6.0206
        nbytes = sum(array.nbytes for array in after.values())
        assert result["sqnr_db"] == row["sqnr_db"] == pytest.approx(expected, abs=1e-6)
        assert result["theory_db"] == row["theory_db"] == pytest.approx(theory(a, digits, by_row), abs=2e-3)
        assert result["enob"] == row["enob"] == pytest.approx(enob, abs=1e-3)
        assert result["bits_per_weight"] == row["bits_per_weight"] == 8 * nbytes / a.size
        assert result["efficiency"] == pytest.approx(enob / (8 * nbytes / a.size), rel=1e-3)
        assert result["compression"] == 1 / result["compression_factor"] == nbytes / a.nbytes
        rows = np.sort([db(x, y) for x, y in zip(a, values, strict=True)])
        quantiles = [rows[0], rows[int(0.05 * (len(rows) - 1))], rows[int(0.5 * (len(rows) - 1))]]
        assert [row[key] for key in ("worst_row_db", "row_p5_db", "median_row_db")] == pytest.approx(
            quantiles, abs=1e-6
        )
        worst = result["worst_channel"]
        assert worst["sqnr_db"] == row["worst_row_db"]
        assert db(a[worst["row"]], values[worst["row"]]) == pytest.approx(rows[0], abs=1e-6)
        assert result["reason"] is None


def test_int8_of_a_whole_tensor_is_within_half_a_decibel_of_theory() -> None:
    for seed in range(4):
        quantise, _ = QUANTISERS["int8"]
        a = np.random.default_rng(seed).normal(0, 0.02, (256, 256)).astype(np.float32)
        result = ask({"m.weight": a}, quantise(a)[0]).result
        assert result["sqnr_db"] == pytest.approx(result["theory_db"], abs=0.5)


def test_several_tensors_are_one_signal_and_are_ranked_by_what_they_lost() -> None:
    before = {f"h.{i}.weight": weights(i, spread=0.02 * 3.0**i) for i in range(4)}
    after, values = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for i, (name, a) in enumerate(before.items()):
        codes, scale = int8(a, by_row=i % 2 == 0)
        after |= {name: codes, f"{name}_scale": scale}
        values[name] = codes * scale.astype(np.float64)
    result = ask(before, after).result
    whole = [np.concatenate([one.ravel() for one in side.values()]) for side in (before, values)]
    assert result["sqnr_db"] == pytest.approx(db(*whole), abs=1e-6)
    each = {name: db(before[name], values[name]) for name in before}
    assert [row["tensor"] for row in result["ranking"]] == sorted(each, key=lambda name: each[name])
    noise = {name: float(np.sum((before[name].astype(np.float64) - values[name]) ** 2)) for name in before}
    for row in result["ranking"]:
        assert row["noise_share"] == pytest.approx(noise[row["tensor"]] / sum(noise.values()), rel=1e-6)
    assert result["by_block_db"] == pytest.approx(list(each.values()), abs=1e-6)
    assert result["conversions"] == [
        {"from": "F32", "to": "I8", "scale": "row", "tensors": 2},
        {"from": "F32", "to": "I8", "scale": "tensor", "tensors": 2},
    ]


def test_codes_are_counted_where_their_histogram_is_known() -> None:
    a = weights()
    codes, scale = int8(a)
    result = ask({"m.weight": a}, {"m.weight": codes, "m.weight_scale": scale}).result
    counts = np.unique(codes, return_counts=True)[1] / codes.size
    row = result["ranking"][0]
    assert row["used_codes"] == len(counts)
    assert row["entropy_bits"] == pytest.approx(-np.sum(counts * np.log2(counts)))
    assert result["clipped_fraction"] == row["clipped_fraction"] == np.mean(abs(codes.astype(int)) >= 127)
    without = ask({"m.weight": a}, {"m.weight": codes, "m.weight_scale": np.float32(1) * scale.max()}, details=False)
    assert (without.result["clipped_fraction"], without.result["clip_reason"]) == (None, NO_CODES)
    e4m3 = (a / abs(a).max() * 900).clip(-448, 448).astype(E4M3)
    clipped = ask({"m.weight": a}, {"m.weight": e4m3}).result["clipped_fraction"]
    assert clipped == np.mean(abs(e4m3.astype(np.float32)) >= 448) > 0.001


def test_the_line_of_the_seed_begins_with_compression_and_precision_loss() -> None:
    a = weights(shape=(256, 256))
    codes, scale = int8(a, by_row=False)
    answer = ask({"fc1.weight": a}, {"fc1.weight": codes, "fc1.weight_scale": scale})
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
    a = generator.normal(0, 0.02, (256, 256)).astype(np.float32)
    expected = np.sum(a.astype(np.float64) ** 2) / 10 ** (theory(a, 11, False) / 10)
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
    codes, scale = int8(a, by_row=False)
    arrays = {"m.weight": a}, {"m.weight": codes, "m.weight_scale": scale}
    answer = ask(*arrays, coarse_db=30.0)
    assert told(answer) == [("coarse-grid", "low", "m.weight")]
    exactly = answer.findings[0].value
    assert exactly == answer.result["sqnr_db"]
    assert not ask(*arrays, coarse_db=exactly).findings
    assert len(ask(*arrays, coarse_db=math.nextafter(exactly, 99)).findings) == 1


def test_a_row_with_more_noise_than_signal_is_lost() -> None:
    a = weights()
    codes, scale = int8(a)
    codes[7] = -codes[7]
    answer = ask({"m.weight": a}, {"m.weight": codes, "m.weight_scale": scale})
    assert ("lost-channel", "high", "m.weight") in told(answer)
    assert answer.result["worst_channel"]["row"] == 7
    lost = answer.result["worst_channel"]["sqnr_db"]
    kept = {"low_db": 99.0, "medium_db": 99.0, "high_db": 99.0, "coarse_db": 0.0}
    codes_and_scale = {"m.weight": codes, "m.weight_scale": scale}
    assert not ask({"m.weight": a}, codes_and_scale, channel_db=lost, **kept).findings
    assert len(ask({"m.weight": a}, codes_and_scale, channel_db=math.nextafter(lost, 0), **kept).findings) == 1


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("quantise", [int8, fp8])
@pytest.mark.parametrize(
    ("fault", "like"), [("inverted", "inverted"), ("halved", "wrong"), ("doubled", "wrong"), ("dropped", "missing")]
)
def test_a_scale_that_is_missing_or_wrong_is_named(quantise: Any, by_row: bool, fault: str, like: str) -> None:
    before = {f"h.{i}.mlp.up_proj.weight": weights(i) for i in range(3)}
    after = dict[str, np.ndarray]()
    for name, a in before.items():
        after[name], after[f"{name}_scale"] = quantise(a, by_row)
    broken = "h.1.mlp.up_proj.weight"
    scale = after.pop(f"{broken}_scale")
    if fault != "dropped":
        after[f"{broken}_scale"] = {"inverted": 1 / scale, "halved": scale / 2, "doubled": scale * 2}[fault]
    answer = ask(before, after)
    bare = quantise is int8 and fault == "dropped"
    assert told(answer) == [("missing-or-inverted-scale", "critical" if bare else "high", broken)]
    assert answer.result["precision_loss"] == ("critical" if bare else "high")
    found = answer.result["scale_faults"]
    assert [(row["tensor"], row["like"]) for row in found] == [(broken, like)]
    assert found[0]["scale"] == (None if fault == "dropped" else f"{broken}_scale")
    if fault in ("halved", "doubled"):
        assert found[0]["factor"] == pytest.approx({"halved": 0.5, "doubled": 2.0}[fault], rel=0.01)


def test_a_factor_within_its_threshold_is_not_called_a_wrong_scale() -> None:
    a = weights()
    codes, scale = int8(a)
    arrays = {"m.weight": a}, {"m.weight": codes, "m.weight_scale": scale * 1.5}
    assert told(ask(*arrays, scale_factor=1.45))[0][0] == "missing-or-inverted-scale"
    assert "missing-or-inverted-scale" not in {one.rule for one in ask(*arrays, scale_factor=1.55).findings}


def test_another_direction_is_no_wrong_scale() -> None:
    answer = ask({"m.weight": weights(0)}, {"m.weight": (3 * weights(1)).astype(BF16)})
    assert {one.rule for one in answer.findings} == {"lost-channel", "precision-loss"}


@pytest.mark.parametrize("dtype", [np.float16, E4M3])
def test_what_the_narrower_dtype_cannot_hold_is_critical_and_not_hidden(dtype: Any) -> None:
    a = weights()
    a[5, :3] = 1e5
    with np.errstate(over="ignore"):
        answer = ask({"m.weight": a}, {"m.weight": a.astype(dtype)})
    assert ("overflow", "critical", "m.weight") in told(answer)
    assert (answer.result["overflowed"], answer.result["precision_loss"]) == (3, "critical")
    assert ask({"m.weight": weights()}, {"m.weight": weights().astype(dtype)}).result["overflowed"] == 0


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("by_row", [False, True])
def test_a_scale_that_is_no_number_is_critical(bad: float, by_row: bool) -> None:
    a = weights()
    codes, scale = int8(a, by_row)
    scale.reshape(-1)[-1] = bad
    answer = ask({"m.weight": a}, {"m.weight": codes, "m.weight_scale": scale})
    assert ("invalid-scale", "critical", "m.weight_scale") in told(answer)
    assert answer.result["precision_loss"] == "critical"


def test_a_row_of_zeros_may_have_a_scale_of_zero() -> None:
    a = weights()
    a[3] = 0
    scale = (abs(a).max(axis=1, keepdims=True) / 127).astype(np.float32)
    codes = np.round(a / np.where(scale, scale, 1)).astype(np.int8)
    answer = ask({"m.weight": a}, {"m.weight": codes, "m.weight_scale": scale})
    assert (answer.findings, answer.result["precision_loss"]) == ((), "minimal")


def test_scales_of_experts_belong_to_their_rows() -> None:
    a = np.stack([weights(seed, (8, 16)) * 4.0**seed for seed in range(3)]).astype(np.float32)
    scale = (abs(a).max(axis=(1, 2), keepdims=True) / 127).astype(np.float32)
    codes = np.round(a / scale).astype(np.int8)
    result = ask({"m.weight": a}, {"m.weight": codes, "m.weight_scale": scale}).result
    assert result["sqnr_db"] == pytest.approx(db(a, codes * scale.astype(np.float64)), abs=1e-6)


def test_what_is_not_decoded_yet_is_named_and_has_no_numbers() -> None:
    a = weights(shape=(256, 128))
    blocks = np.full((2, 1), 0.001, np.float32)
    before = {f"{name}.weight": a for name in ("blocks", "zeros", "gptq", "nf4", "fine")}
    codes, scale = int8(a)
    after = {
        "blocks.weight": codes, "blocks.weight_scale": blocks,
        "zeros.weight": codes, "zeros.weight_scale": scale, "zeros.weight_zero_point": np.full((256, 1), 3, np.int8),
        "gptq.qweight": np.zeros((16, 128), np.int32), "gptq.scales": np.zeros((2, 128), np.float16),
        "nf4.weight": np.zeros((256 * 64, 1), np.uint8),
        "fine.weight": codes, "fine.weight_scale": scale, "fine.weight_zero_point": np.zeros((256, 1), np.int8),
    }  # fmt: skip
    answer = ask(before, after)
    assert {row["tensor"]: row["reason"] for row in answer.result["unsupported"]} == {
        "blocks.weight": "scales of blocks: [2, 1]",
        "zeros.weight": ZERO_POINTS,
        "gptq.qweight": "packed codes (GPTQ or AWQ)",
        "nf4.weight": "packed codes: U8 of another shape",
    }
    assert (answer.result["tensors"], answer.result["measured"]) == (3, 1)
    assert answer.findings == ()


def test_more_scales_than_rows_are_kept_of_are_named() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(size=(2**16 + 1, 8)).astype(np.float32)
    codes, scale = int8(a)
    result = ask({"m.weight": a}, {"m.weight": codes, "m.weight_scale": scale.ravel()}).result
    assert result["unsupported"] == [{"tensor": "m.weight", "reason": TOO_MANY}]
    assert (result["sqnr_db"], result["precision_loss"]) == (None, None)


def compared(root: Path, before: Arrays, after: Arrays, **options: Any) -> tuple[Result, AnalysisRecord]:
    """The pair from its files, names matched, and what its codes lost; no tensor is on one side alone."""
    files = [str(write(root / f"{side}.safetensors", one)) for side, one in (("a", before), ("b", after))]
    result = compare(*files, analyses=["quantization_analysis", "tensor_matching"], **options).result
    answers = {one.name: one for one in result.analyses}
    assert answers["tensor_matching"].result["unmatched_of"] == 0
    return result, answers["quantization_analysis"]


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("quantise", [fp8, int8])
def test_the_scale_of_a_fused_tensor_is_that_of_its_parts(tmp_path: Path, quantise: Any, by_row: bool) -> None:
    parts = {name: weights(seed, (32, 48), 0.01 * 1.1**seed) for seed, name in enumerate("qkv")}
    a = np.concatenate(list(parts.values()))
    start = "layers.0.self_attn."
    codes, scale = quantise(a, by_row)
    before = {f"{start}{name}_proj.weight": part for name, part in parts.items()}
    after = {f"{start}qkv_proj.weight": codes, f"{start}qkv_proj.weight_scale": scale}
    _, answer = compared(tmp_path, before, after)
    values = codes.astype(np.float64) * scale.astype(np.float64)
    each = {
        f"{start}{name}_proj.weight": db(part, values[32 * i : 32 * i + 32])
        for i, (name, part) in enumerate(parts.items())
    }
    assert answer.result["sqnr_db"] == pytest.approx(db(a, values), abs=1e-6)
    assert {row["tensor"]: row["sqnr_db"] for row in answer.result["ranking"]} == pytest.approx(each, abs=1e-6)
    assert answer.result["bits_per_weight"] == pytest.approx(8 * (codes.nbytes + scale.nbytes) / a.size, rel=1e-12)
    assert answer.findings == ()


def test_the_scales_of_stacked_experts_are_those_of_each(tmp_path: Path) -> None:
    names = [f"layers.0.mlp.experts.{e}.{name}_proj.weight" for e in range(3) for name in ("gate", "up")]
    before = {name: weights(i, (16, 24), 0.01 * 2.0**i) for i, name in enumerate(names)}
    a = np.concatenate(list(before.values())).reshape(3, 32, 24)
    scale = (abs(a).max(axis=2, keepdims=True) / 127).astype(np.float32)
    codes = np.round(a / scale).astype(np.int8)
    fused = "layers.0.mlp.experts.gate_up_proj"
    _, answer = compared(tmp_path, before, {fused: codes, f"{fused}_scale": scale})
    values = (codes * scale.astype(np.float64)).reshape(6, 16, 24)
    each = {name: db(before[name], values[i]) for i, name in enumerate(names)}
    assert {row["tensor"]: row["sqnr_db"] for row in answer.result["ranking"]} == pytest.approx(each, abs=1e-6)
    assert answer.findings == ()


@pytest.mark.parametrize("quantise", [fp8, int8])
@pytest.mark.parametrize("chosen", [{"include": "*.weight"}, {"exclude": "*_scale"}])
def test_a_scale_that_was_left_out_is_no_missing_one(tmp_path: Path, quantise: Any, chosen: dict[str, str]) -> None:
    a = weights()
    codes, scale = quantise(a)
    after = {"m.weight": codes, "m.weight_scale": scale}
    _, answer = compared(tmp_path, {"m.weight": a}, after, **chosen)
    assert answer.result["unsupported"] == [{"tensor": "m.weight", "reason": LEFT_OUT}]
    assert (answer.findings, answer.result["sqnr_db"], answer.result["measured"]) == ((), None, 0)


def test_a_scale_that_cannot_be_read_is_no_missing_one() -> None:
    a = weights()
    codes, _ = int8(a)
    arrays = {"m.weight": a}, {"m.weight": codes}
    before, after = map(checkpoint, arrays)
    lost = {
        "m.weight_scale": Failure("E1201", "/run/2.safetensors", "m.weight_scale", "a shard", "nothing", "Copy it.")
    }
    made = measured(arrays, checkpoints=[before, replace(after, unreadable=lost)])
    answer = QuantizationAnalysis()(made, 0, tensor_records(made, 0))
    assert answer.result["unsupported"] == [{"tensor": "m.weight", "reason": NOT_READ}]
    assert (answer.findings, answer.result["sqnr_db"]) == ((), None)


def test_zero_points_that_were_left_out_are_not_taken_for_zeros(tmp_path: Path) -> None:
    a = weights()
    codes, scale = int8(a)
    after = {"m.weight": codes, "m.weight_scale": scale, "m.weight_zero_point": np.full((48, 1), 3, np.int8)}
    _, answer = compared(tmp_path, {"m.weight": a}, after, exclude="*_zero_point")
    assert answer.result["unsupported"] == [{"tensor": "m.weight", "reason": ZERO_POINTS}]


def quantised(model: Arrays) -> dict[str, np.ndarray]:
    """Matrices as int8 with the scales of their rows."""
    after = dict(model)
    for name, a in model.items():
        if a.ndim == 2:
            after[name], after[f"{name}_scale"] = int8(a)
    return after


@pytest.mark.parametrize("turned", [False, True])
def test_codes_are_in_no_sum_of_values(turned: bool) -> None:
    """The rest of the model moves, so that what is left has numbers of its own."""
    before = {f"h.{i}.mlp.{name}.weight": weights(i) for i in range(2) for name in ("up_proj", "down_proj")}
    norms = {f"h.{i}.norm.weight": weights(i, (96,)) for i in range(2)}
    after = quantised(before) | {name: a * np.float32(1.25) for name, a in norms.items()}
    sides = (after, before | norms) if turned else (before | norms, after)
    made = measured(sides)
    records = tensor_records(made, 0)
    a, b = (np.concatenate([side[name] for name in norms]).astype(np.float64) for side in sides)
    moved = float(np.linalg.norm(b - a) / np.linalg.norm(a))
    impact, summary, regime = (
        kind()(made, 0, records).result for kind in (LayerImpact, ChangeSummary, TransferLearningAnalysis)
    )
    assert [one["scaled"] for one in (impact, summary, regime)] == [4, 4, 4]
    assert impact["rel_l2"] == summary["rel_l2"] == pytest.approx(moved)
    assert [row["tensors"] for row in impact["blocks"]] == [1, 1]
    assert {row["tensor"] for row in summary["top"]} == norms.keys()
    assert (summary["regime"], regime["regime"], regime["moved"]) == (None, None, 2)
    told = {row["evidence"]: row["value"] for row in regime["evidence"]}
    assert told["tensors of codes with scales, whose values were not compared"] == 4
    whole, _ = whole_change(made, 0, records)
    assert whole is not None
    assert whole.rel_l2 == pytest.approx(moved)
    assert whole.max_abs == pytest.approx(abs(b - a).max())


def test_integers_without_a_scale_are_values() -> None:
    before = {"steps": np.arange(64, dtype=np.float32), "m.weight": weights()}
    made = measured([before, before | {"steps": np.arange(64, dtype=np.int16) + np.int16(1)}])
    result = ChangeSummary()(made, 0, tensor_records(made, 0)).result
    assert (result["scaled"], result["elements_changed"]) == (0, 64)
    both = measured([quantised(before), quantised(before | {"m.weight": weights(1)})])
    result = ChangeSummary()(both, 0, tensor_records(both, 0)).result
    assert (result["scaled"], result["regime"]) == (0, "dense")


def test_a_model_of_codes_alone_has_no_whole(tmp_path: Path) -> None:
    before = {"m.weight": weights()}
    result, _ = compared(tmp_path, before, quantised(before))
    assert result.whole is None


@pytest.mark.parametrize("turned", [False, True])
def test_scales_of_matched_weights_are_not_unmatched(turned: bool) -> None:
    before = {f"h.{i}.weight": weights(i) for i in range(3)}
    after = quantised(before) | {
        "h.0.weight_zero_point": np.zeros((48, 1), np.int8),
        "h.1.input_scale": np.ones(1, np.float32),
    }

    def matching(*sides: Arrays) -> AnalysisRecord:
        made = measured(sides[::-1] if turned else sides)
        return TensorMatching()(made, 0, tensor_records(made, 0))

    record = matching(before, after)
    assert (record.findings, record.result["scales"], record.result["unmatched_of"]) == ((), 5, 0)
    record = matching(before, after | {"h.9.weight_scale": np.ones(1, np.float32)})
    assert [row["tensor"] for row in record.result["unmatched"]] == ["h.9.weight_scale"]
    assert told(record) == [("unmatched", "medium", None)]
    wide = {name: a if name.endswith("_scale") else a.astype(np.float32) for name, a in after.items()}
    assert matching(before, wide).result["unmatched_of"] == 5  # beside numbers they are tensors like others


def test_one_scale_for_a_tensor_needs_no_rows() -> None:
    a = weights()
    codes, scale = int8(a, by_row=False)
    arrays = {"m.weight": a}, {"m.weight": codes, "m.weight_scale": scale}
    result = ask(*arrays, details=False).result
    assert result["sqnr_db"] == pytest.approx(db(a, codes * scale.astype(np.float64)), abs=1e-6)
    assert result["worst_channel"] is None
    wrong = ask(arrays[0], {"m.weight": codes, "m.weight_scale": 1 / scale}, details=False)
    assert told(wrong) == [("missing-or-inverted-scale", "high", "m.weight")]


def test_checkpoints_of_one_dtype_are_not_a_quantisation() -> None:
    answer = ask({"m.weight": weights(0)}, {"m.weight": weights(1)})
    assert (answer.findings, answer.result["reason"]) == ((), NOT_NARROWER)
    assert answer.result["precision_loss"] is None
    wider = ask({"m.weight": weights(0).astype(BF16)}, {"m.weight": weights(0)})
    assert (wider.findings, wider.result["reason"], wider.result["compression"]) == ((), NOT_NARROWER, 2.0)


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
    assert ask(before, after).findings == ()
    del before["norm.scale"]
    assert ask(before, after).findings == ()


@pytest.mark.parametrize("dtype", [np.float16, BF16, E4M3])
def test_few_elements_and_constants_are_held_to_the_worst_case_alone(dtype: Any) -> None:
    generator = np.random.default_rng(3)
    before = {f"scalar.{i}": generator.uniform(1, 2, 1).astype(np.float32) for i in range(300)}
    before |= {f"constant.{i}": np.full(4096, generator.uniform(1, 2), np.float32) for i in range(100)}
    after = {name: a.astype(dtype) for name, a in before.items()}
    assert ask(before, after).findings == ()


def test_of_many_broken_tensors_the_first_are_named_and_the_others_counted() -> None:
    before = {f"h.{i:02}.weight": weights(i, (8, 16)) for i in range(30)}
    after = {name: int8(a)[0] for name, a in before.items()}
    findings = ask(before, after).findings
    assert [one.tensor for one in findings] == [*list(before)[:20], None]
    assert (findings[-1].severity, findings[-1].value) == ("critical", 10)


@pytest.mark.parametrize("seed", transformer.TUNING)
@pytest.mark.parametrize("kind", ["F16", "BF16", "int8", "fp8"])
def test_a_trained_model_quantises_without_a_finding_of_medium(seed: int, kind: str) -> None:
    before = transformer.training(seed)[-1]
    after = dict[str, np.ndarray]()
    for name, a in before.items():
        if kind in ("F16", "BF16"):
            after[name] = a.astype(np.float16 if kind == "F16" else BF16)
        elif a.ndim == 2:
            after[name], after[f"{name}_scale"] = (int8 if kind == "int8" else fp8)(a)
        else:
            after[name] = a
    assert {one.severity for one in ask(before, after).findings} <= {"low", "info"}
