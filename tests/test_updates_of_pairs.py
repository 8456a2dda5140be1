"""What an update touched, what kind of training it looks like, and whether a run was reproduced: against NumPy."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import transformer
from details_oracle import checkpoint, measured, places
from diffai_dist.analyses import bounding, experiment_reproducibility, moves, noise, noise_tables
from diffai_dist.analyses.experiment_reproducibility import NOT_READ, ExperimentReproducibility
from diffai_dist.analyses.transfer_learning_analysis import TransferLearningAnalysis
from diffai_dist.analyses.update_sparsity import NO_BITS, UpdateSparsity
from diffai_dist.judging import tensor_records
from diffai_dist.records import AnalysisRecord, Details, Measurements
from results import failure
from transformer import training, tuned

Arrays = Mapping[str, np.ndarray]
BF16, F8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


@pytest.mark.parametrize("module", [bounding, experiment_reproducibility, moves, noise, noise_tables])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def judged(kind: type, measurements: Measurements, epsilon: float | None = None, **options: Any) -> AnalysisRecord:
    """The answer in strict JSON, with the keys and rules that the analysis declares."""
    answer = kind(**options)(measurements, 0, tensor_records(measurements, 0, epsilon))
    json.dumps(answer.result, allow_nan=False)
    assert list(answer.result) == list(kind.result)
    assert {one.rule for one in answer.findings} <= kind.rules.keys()
    return answer


def ask(kind: type, before: Arrays, after: Arrays, **options: Any) -> AnalysisRecord:
    return judged(kind, measured([before, after]), **options)


def without_details(before: Arrays, after: Arrays) -> Measurements:
    return dataclasses.replace(measured([before, after]), details=Details())


def told(answer: AnalysisRecord) -> list[tuple[str, str, str | None]]:
    return [(one.rule, one.severity, one.tensor) for one in answer.findings]


# Update sparsity


def touched(seed: int, dtype: Any = np.float32) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Some weights of some rows moved by very little and very much, some turned round."""
    generator = np.random.default_rng(seed)
    before, after = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for i, name in enumerate(("h.0.attn.q_proj.weight", "h.0.mlp.up_proj.weight", "h.0.ln_1.weight")):
        shape = (40, 24) if i < 2 else (40,)
        a = generator.normal(size=shape).astype(dtype)
        factors = 1 + 10.0 ** generator.uniform(-7, 0, shape) * (generator.random(shape) < 0.4)
        factors[::3] = 1
        signs = np.where((generator.random(shape) < 0.05) & (factors != 1), -1, 1)
        before[name], after[name] = a, (a * factors * signs).astype(dtype)
    return before, after


def bits(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a).view(f"u{a.dtype.itemsize}")


def counted(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The fractions from the arrays themselves."""
    wide = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
    size = sum(a.size for a, _ in pairs)
    matrices = [(a, b) for a, b in pairs if a.ndim > 1]
    exponents = [np.frexp(a)[1] != np.frexp(b)[1] for a, b in wide]
    found = {
        "bits_changed_fraction": sum(np.sum(bits(a) != bits(b)) for a, b in pairs) / size,
        "visible_fraction": sum(np.sum(abs(b - a) > 2**-10 * np.maximum(abs(a), abs(b))) for a, b in wide) / size,
        "sign_flip_fraction": sum(np.sum(a * b < 0) for a, b in wide) / size,
        "exponent_changed_fraction": sum(map(np.sum, exponents)) / size,
    }
    if matrices:
        rows = [(a != b).any(axis=1) for a, b in matrices]
        found["rows_touched_fraction"] = sum(map(np.sum, rows)) / sum(map(len, rows))
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_shares_of_an_update_are_numpys(dtype: Any, seed: int) -> None:
    before, after = touched(seed, dtype)
    result = ask(UpdateSparsity, before, after).result
    pairs = {name: (before[name], after[name]) for name in before}
    for key, expected in counted(list(pairs.values())).items():
        assert result[key] == pytest.approx(expected), key
    assert (result["tensors"], result["unchanged"], result["elements"], result["reason"]) == (3, 0, 1960, None)
    by_role = {row["role"]: row for row in result["roles"]}
    for role, name in (("q", "h.0.attn.q_proj.weight"), ("up", "h.0.mlp.up_proj.weight"), ("norm", "h.0.ln_1.weight")):
        for key, expected in counted([pairs[name]]).items():
            assert by_role[role][key] == pytest.approx(expected)
    shares = [row["bits_changed_fraction"] for row in result["sparsest"]]
    assert shares == sorted(shares)
    assert {row["tensor"] for row in result["sparsest"]} == set(before)


def test_what_bits_would_tell_is_null_where_they_were_not_measured() -> None:
    before, after = touched(0)
    result = judged(UpdateSparsity, without_details(before, after)).result
    assert (result["visible_fraction"], result["exponent_changed_fraction"], result["reason"]) == (None, None, NO_BITS)
    assert (
        result["bits_changed_fraction"]
        == counted([(before[name], after[name]) for name in before])["bits_changed_fraction"]
    )


def test_of_other_dtypes_values_count_and_not_bits() -> None:
    a = np.arange(64, dtype=np.float32).reshape(8, 8)
    result = ask(UpdateSparsity, {"w": a}, {"w": a.astype(BF16)}).result
    assert (result["bits_changed_fraction"], result["exponent_changed_fraction"]) == (0.0, None)


def test_nothing_changed_is_critical_only_where_training_was_claimed() -> None:
    before, _ = touched(0)
    assert told(ask(UpdateSparsity, before, before)) == [("nothing-changed", "info", None)]
    assert told(ask(UpdateSparsity, before, before, trained=True)) == [("nothing-changed", "critical", None)]
    assert told(ask(UpdateSparsity, {}, {}, trained=True)) == []


@pytest.mark.parametrize(("changed", "expected"), [(9, ["few-changed"]), (10, []), (11, [])])
def test_few_changed_follows_its_threshold(changed: int, expected: list[str]) -> None:
    before = np.ones((10, 100), np.float32)
    after = before.copy()
    after.reshape(-1)[:changed] = 2
    assert [rule for rule, _, _ in told(ask(UpdateSparsity, {"w": before}, {"w": after}, trained=True))] == expected
    assert told(ask(UpdateSparsity, {"w": before}, {"w": after})) == []


# Regimes


def base(layers: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """A model of few layers, with the names of Llama."""
    generator = np.random.default_rng(seed)
    found = {"model.embed_tokens.weight": generator.normal(0, 0.02, (96, 32)).astype(np.float32)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
            found[f"{at}.{part}.weight"] = generator.normal(0, 0.1, (32, 32)).astype(np.float32)
        found[f"{at}.mlp.up_proj.bias"] = generator.normal(0, 0.1, 32).astype(np.float32)
        found[f"{at}.input_layernorm.weight"] = generator.normal(1, 0.1, 32).astype(np.float32)
    found["lm_head.weight"] = generator.normal(0, 0.1, (96, 32)).astype(np.float32)
    return found


def moved(before: Arrays, *parts: str, share: float = 1.0, by: float = 0.05) -> dict[str, np.ndarray]:
    """Some elements of the tensors whose names contain one of the parts, moved at random."""
    generator = np.random.default_rng(7)
    found = dict(before)
    for name, a in before.items():
        if any(part in name for part in parts):
            noise = generator.normal(0, by * a.std(), a.shape) * (generator.random(a.shape) < share)
            found[name] = (a + noise).astype(a.dtype)
    return found


def regime_of(before: Arrays, after: Arrays) -> tuple[str | None, dict[str, Any]]:
    result = ask(TransferLearningAnalysis, before, after).result
    assert result["evidence"]
    return result["regime"], {row["evidence"]: row["value"] for row in result["evidence"]}


def test_each_regime_is_told_from_what_moved() -> None:
    a = base()
    decayed = {name: a[name] if "norm" in name or "bias" in name else a[name] * np.float32(0.99) for name in a}
    drawn = dict(a)
    for i, name in enumerate(("model.layers.2.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight")):
        drawn[name] = np.random.default_rng(50 + i).normal(0, 0.1, (32, 32)).astype(np.float32)
    grown = dict(a)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        grown[name] = np.concatenate([a[name], a[name][:8]])
    found = {
        "identical": a,
        "decay-only": decayed,
        "norms-and-biases-only": moved(a, "norm", "bias"),
        "head-only": moved(a, "lm_head"),
        "embeddings-only": moved(a, "embed"),
        "re-initialised": drawn,
        "lora-like": moved(a, "q_proj", "v_proj"),
        "partly-frozen": moved(a, "layers.3.", "lm_head"),
        "sparse": moved(a, "", share=0.2),
        "dense": moved(a, ""),
        "vocabulary-grown": grown,
    }
    assert {label: regime_of(a, after)[0] for label, after in found.items()} == {label: label for label in found}


def test_a_regime_comes_with_its_evidence() -> None:
    a = base()
    label, evidence = regime_of(a, moved(a, "q_proj", "v_proj"))
    assert label == "lora-like"
    assert evidence == {
        "roles that moved": "q, v",
        "blocks in which they moved": 4,
        "tensors with equal values": len(a) - 8,
        "rank of the change": "not measured",
    }
    _, evidence = regime_of(a, {name: array * np.float32(0.99) for name, array in a.items()})
    assert evidence["factor of all tensors that moved"] == pytest.approx(0.99, abs=1e-6)
    _, evidence = regime_of(a, {**moved(a, "lm_head"), "new": a["lm_head.weight"]})
    assert evidence["tensors in the candidate alone"] == 1


def test_a_small_step_of_training_is_not_decay() -> None:
    a = base(1)
    assert regime_of(a, moved(a, "embed", by=1e-4))[0] == "embeddings-only"
    assert regime_of(a, moved(a, "", by=1e-4))[0] == "dense"
    grown = {name: array * np.float32(1.01) for name, array in a.items()}
    assert regime_of(a, grown)[0] == "dense"


def test_lora_needs_nearly_all_blocks() -> None:
    a = base(20)
    some = [f"layers.{layer}.self_attn.q_proj" for layer in range(20)]
    assert regime_of(a, moved(a, *some[:18]))[0] == "lora-like"
    assert regime_of(a, moved(a, *some[:17]))[0] == "partly-frozen"


def test_nothing_in_common_has_no_regime() -> None:
    answer = ask(TransferLearningAnalysis, {"a": np.ones(4, np.float32)}, {"b": np.ones(4, np.float32)})
    assert answer.result["regime"] is None


def test_the_map_tells_frozen_from_moved() -> None:
    a = base()
    b = moved(a, "layers.2.self_attn", "layers.3.self_attn", "lm_head")
    result = ask(TransferLearningAnalysis, a, b).result
    sizes = {name: array.size for name, array in a.items()}
    frozen = [name for name in a if np.array_equal(a[name], b[name])]
    assert (result["frozen"], result["moved"]) == (len(frozen), len(a) - len(frozen))
    assert result["frozen_elements_fraction"] == sum(sizes[name] for name in frozen) / sum(sizes.values())
    changed = sum(int(np.sum(a[name] != b[name])) for name in a)
    assert result["changed_fraction"] == changed / sum(sizes.values())
    assert {row["role"]: (row["moved"], row["frozen"]) for row in result["roles"]} == {
        "embed": (0, 1), "head": (1, 0), "norm": (0, 4), "q": (2, 2), "v": (2, 2), "up": (0, 8), "down": (0, 4)
    }  # fmt: skip
    spans = [(row["from"], row["to"], row["blocks"], row["moved"]) for row in result["blocks"]]
    assert ("model.layers.0", "model.layers.1", 2, None) in spans
    assert ("model.layers.2", "model.layers.3", 2, "q, v") in spans


def test_a_cast_without_loss_is_frozen_and_one_with_loss_says_so() -> None:
    exact = {name: array.astype(BF16).astype(np.float32) for name, array in base().items()}
    assert regime_of(exact, {name: array.astype(BF16) for name, array in exact.items()})[0] == "identical"
    a = base()
    label, evidence = regime_of(a, {name: array.astype(BF16) for name, array in a.items()})
    assert label == "dense"
    assert evidence["tensors of another dtype, whose rounding counts as a move"] == len(a)


@pytest.mark.parametrize(
    ("a", "b"), [("lora_A", "lora_B"), ("lora_A.default", "lora_B.default"), ("lora_down", "lora_up")]
)
def test_an_adapter_that_trained_nothing_is_named(a: str, b: str) -> None:
    names = [f"base_model.model.model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
    start = {f"{name}.{a}.weight": np.random.default_rng(1).normal(size=(4, 32)).astype(np.float32) for name in names}
    start |= {f"{name}.{b}.weight": np.zeros((32, 4), np.float32) for name in names}
    trained = moved(start, a) | {f"{names[0]}.{b}.weight": np.full((32, 4), 1e-3, np.float32)}
    answer = ask(TransferLearningAnalysis, start, start)
    assert told(answer) == [("untrained-adapter", "high", f"{names[0]}.{b}.weight")]
    assert (answer.result["regime"], answer.result["adapters"], answer.result["untrained_adapters"]) == (
        "adapter",
        3,
        3,
    )
    answer = ask(TransferLearningAnalysis, start, trained)
    assert (told(answer), answer.result["regime"], answer.result["untrained_adapters"]) == ([], "adapter", 2)


def test_a_matrix_drawn_anew_is_odd_where_the_others_stayed_and_it_is_no_head() -> None:
    a, generator = base(), np.random.default_rng(9)
    odd = "model.layers.1.mlp.up_proj.weight"
    b = moved(a, "") | {odd: generator.normal(0, 0.1, (32, 32)).astype(np.float32)}
    answer = ask(TransferLearningAnalysis, a, b)
    assert told(answer) == [("re-initialised", "high", odd)]
    cosine = float(np.sum(a[odd] * b[odd]) / np.sqrt(np.sum(a[odd] ** 2) * np.sum(b[odd] ** 2)))
    assert answer.findings[0].value == pytest.approx(cosine, abs=1e-6)
    row = answer.result["reinitialised"][0]
    assert row["length_ratio"] == pytest.approx(np.linalg.norm(b[odd]) / np.linalg.norm(a[odd]))
    assert row["cosine_distance"] == pytest.approx(1 - cosine, abs=1e-6)
    head = moved(a, "") | {"lm_head.weight": generator.normal(0, 0.1, (96, 32)).astype(np.float32)}
    assert told(ask(TransferLearningAnalysis, a, head)) == [("re-initialised", "info", "lm_head.weight")]
    assert {severity for _, severity, _ in told(ask(TransferLearningAnalysis, a, base(seed=5)))} == {"info"}
    assert told(ask(TransferLearningAnalysis, a, a | {odd: a[odd][::-1].copy()})) == []  # the same rows elsewhere


def test_thresholds_of_what_was_drawn_anew_hold_at_their_boundary() -> None:
    a, odd = base(), "model.layers.1.mlp.up_proj.weight"
    b = moved(a, "") | {odd: np.random.default_rng(9).normal(0, 0.1, (32, 32)).astype(np.float32)}
    cosine = abs(ask(TransferLearningAnalysis, a, b).findings[0].value)
    assert not ask(TransferLearningAnalysis, a, b, unrelated=cosine).findings
    assert len(ask(TransferLearningAnalysis, a, b, unrelated=math.nextafter(cosine, 1)).findings) == 1
    assert ask(TransferLearningAnalysis, a, b, stayed=1e-9).findings[0].severity == "info"


@pytest.mark.parametrize("seed", transformer.TUNING)
def test_real_trainings_have_their_regimes(seed: int) -> None:
    steps = training(seed)
    assert regime_of(steps[3], steps[4])[0] == "dense"
    assert regime_of(*tuned("head", seed))[0] == "head-only"
    assert regime_of(*tuned("lora", seed))[0] == "lora-like"
    state = [one.with_optimizer() for one in transformer.states(seed)[5:7]]
    answer = ask(TransferLearningAnalysis, *state)
    assert (answer.result["regime"], answer.result["state"], told(answer)) == ("dense", 3 * len(steps[0]), [])


# Reproducibility


def nudged(seed: int, dtype: Any = np.float32, steps: int = 40) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Some elements a few representable numbers further."""
    generator = np.random.default_rng(seed)
    before, after = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for i in range(3):
        a = generator.normal(size=(8, 32)).astype(dtype)
        word = bits(a).copy()
        word += (generator.integers(0, steps, a.shape) * (generator.random(a.shape) < 0.3)).astype(word.dtype)
        before[f"h.{i}.w"], after[f"h.{i}.w"] = a, word.view(dtype)
    after["h.0.w"] = before["h.0.w"].copy()
    return before, after


BINS = {"0": (0, 1), "1": (1, 2), "2-3": (2, 4), "4-7": (4, 8), "8-15": (8, 16), "16-255": (16, 256)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("seed", [0, 1])
def test_distances_and_shares_are_numpys(dtype: Any, seed: int) -> None:
    before, after = nudged(seed, dtype)
    result = ask(ExperimentReproducibility, before, after).result
    apart = np.concatenate([abs(np.array(places(before[n])) - np.array(places(after[n]))) for n in before])
    wide = [(before[n].astype(np.float64), after[n].astype(np.float64)) for n in before]
    for row in result["ulps"]:
        low, high = BINS.get(row["distance"], (256, 1))
        assert row["elements"] == np.sum((apart >= low) & (apart < high)), row
    assert sum(row["elements"] for row in result["ulps"]) == apart.size
    assert result["max_ulps"] == apart.max()
    assert result["bit_identical_fraction"] == pytest.approx(np.mean(apart == 0))
    close = [abs(b - a) <= 2**-10 * np.maximum(abs(a), abs(b)) for a, b in wide]
    assert result["close_fraction"] == pytest.approx(np.mean(close))
    assert result["largest_rel_l2"] == pytest.approx(max(np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in wide))
    assert result["tensors_differing"] == 2
    first = int(np.flatnonzero(bits(before["h.1.w"]).ravel() != bits(after["h.1.w"]).ravel())[0])
    size = np.dtype(dtype).itemsize
    assert result["first_difference"] == {
        "tensor": "h.1.w", "element": first, "object": "/run/1.safetensors",
        "byte_offset": 4096 + 256 * size + first * size,
    }  # fmt: skip


def verdict(before: Arrays, after: Arrays, **options: Any) -> str | None:
    found: str | None = ask(ExperimentReproducibility, before, after, **options).result["verdict"]
    return found


def test_the_verdict_follows_its_thresholds() -> None:
    before, after = nudged(0)
    answer = ask(ExperimentReproducibility, before, after)
    far, moved_by = answer.result["max_ulps"], answer.result["largest_rel_l2"]
    assert verdict(before, before) == "exact"
    assert verdict(before, after, ulps=far) == f"within {far} ulps"
    assert verdict(before, after, ulps=far - 1) == "within tolerance"
    assert verdict(before, after, ulps=far - 1, tolerance=moved_by) == "within tolerance"
    assert verdict(before, after, ulps=far - 1, tolerance=math.nextafter(moved_by, 0)) == "different"


def test_what_should_have_been_reproduced_is_a_finding_where_that_was_said() -> None:
    before, after = nudged(0)
    other = {name: array + 1 for name, array in after.items()}
    assert told(ask(ExperimentReproducibility, before, other)) == []
    assert told(ask(ExperimentReproducibility, before, before, expected=True)) == []
    for candidate, severity, value in ((after, "info", "within tolerance"), (other, "high", "different")):
        (found,) = ask(ExperimentReproducibility, before, candidate, expected=True).findings
        assert (found.rule, found.severity, found.value) == ("not-reproduced", severity, value)
        assert found.source == "setting of expected"
    broken = dataclasses.replace(measured([before, after]), failures={(0, 1): failure("h.0.w")})
    (found,) = judged(ExperimentReproducibility, broken, expected=True).findings
    assert (found.severity, found.value) == ("high", f"not known: {NOT_READ}")


def stepped(dtype: Any, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Ones, and one of them so many representable numbers further."""
    before, after = np.ones(64, dtype), np.ones(64, dtype)
    after.view(f"u{after.itemsize}")[5] += steps
    return {"w": before}, {"w": after}


@pytest.mark.parametrize(
    ("dtype", "most"), [(np.float64, 16), (np.float32, 16), (np.float16, 16), (BF16, 8), (F8, 0), (np.int32, 0)]
)
def test_distances_are_limited_by_what_a_dtype_can_tell(dtype: Any, most: int) -> None:
    if most:
        assert verdict(*stepped(dtype, most), tolerance=0.0) == f"within {most} ulps"
    assert verdict(*stepped(dtype, most + 1), tolerance=0.0) == "different"
    longer = {np.float16: 64, BF16: 8}.get(dtype)
    if longer:
        assert verdict(*stepped(dtype, longer), tolerance=0.0, ulps=1000) == f"within {longer} ulps"
        assert verdict(*stepped(dtype, longer + 1), tolerance=0.0, ulps=1000) == "different"


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, bool])
def test_any_difference_of_integers_is_one(dtype: Any) -> None:
    before = {"w": np.ones(10_000, dtype), "x": np.ones(9, np.float32)}
    after = before | {"w": before["w"].copy()}
    after["w"][7] = 0
    assert verdict(before, after, tolerance=1.0) == "different"
    assert verdict(before, before) == "exact"


def test_exact_says_what_it_does_not_say() -> None:
    before, after = nudged(0)
    assert "outputs" in ask(ExperimentReproducibility, before, before).result["limits"]
    assert ask(ExperimentReproducibility, before, after).result["limits"] is None


def test_zeros_of_other_signs_are_no_steps_apart_but_other_bits() -> None:
    before, after = {"w": np.zeros(4, np.float32)}, {"w": -np.zeros(4, np.float32)}
    result = ask(ExperimentReproducibility, before, after).result
    assert (result["verdict"], result["bit_identical_fraction"]) == ("within 0 ulps", 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_finite_on_one_side_alone_is_different(value: float) -> None:
    before, after = {"w": np.ones(64, np.float32)}, {"w": np.ones(64, np.float32)}
    after["w"][5] = value
    result = ask(ExperimentReproducibility, before, after).result
    assert result["verdict"] == "different"
    assert {row["distance"]: row["elements"] for row in result["ulps"]}["not_finite"] == 1


def test_a_tensor_that_one_side_lacks_or_retypes_makes_it_different() -> None:
    a = np.ones((4, 4), np.float32)
    assert verdict({"w": a}, {"w": a, "x": a}) == "different"
    assert verdict({"w": a, "x": a}, {"w": a}) == "different"
    assert verdict({"w": a}, {"w": np.ones((4, 5), np.float32)}) == "different"
    assert verdict({"w": a}, {"w": a.astype(BF16)}) == "different"


def test_epsilon_excuses_no_difference() -> None:
    before, after = nudged(0)
    answer = judged(ExperimentReproducibility, measured([before, after]), epsilon=1.0)
    assert (answer.result["verdict"], answer.result["tensors_differing"]) == ("within tolerance", 2)


def test_what_was_not_read_leaves_no_verdict_but_different() -> None:
    before, after = nudged(0)
    whole = measured([before, after])
    broken = dataclasses.replace(whole, failures={(0, 1): failure("h.0.w")})
    answer = judged(ExperimentReproducibility, broken)
    assert (answer.result["verdict"], answer.result["reason"], answer.findings) == (None, NOT_READ, ())
    assert judged(ExperimentReproducibility, broken, ulps=0, tolerance=0.0).result["verdict"] == "different"


def test_without_bits_only_the_tolerance_tells() -> None:
    before, after = nudged(0)
    answer = judged(ExperimentReproducibility, without_details(before, after), ulps=10**6)
    assert (answer.result["verdict"], answer.result["max_ulps"], answer.result["ulps"]) == (
        "within tolerance",
        None,
        [],
    )
    assert answer.result["first_difference"] == {
        "tensor": "h.1.w", "element": None, "object": None, "byte_offset": None
    }  # fmt: skip


def test_state_and_metadata_that_alone_differ_are_named() -> None:
    a = {"h.0.w": np.ones(64, np.float32), "optimizer.state.0.exp_avg": np.ones(64, np.float32)}
    b = a | {"optimizer.state.0.exp_avg": np.full(64, 1.5, np.float32)}
    assert ask(ExperimentReproducibility, a, b).result["only_in"] == "optimizer state"
    assert ask(ExperimentReproducibility, a, b | {"h.0.w": b["h.0.w"] * 2}).result["only_in"] is None
    sides = [
        dataclasses.replace(checkpoint(a), metadata=one) for one in ({"step": "1", "x": "y"}, {"step": "2", "x": "y"})
    ]
    result = judged(ExperimentReproducibility, measured([a, a], checkpoints=sides)).result
    assert (result["verdict"], result["only_in"], result["metadata"]) == ("exact", "metadata", ["step"])
