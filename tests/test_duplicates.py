"""What --duplicate-detection finds of tensors, blocks, experts and rows that were copied on purpose."""

from __future__ import annotations

import dataclasses
import doctest
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import details_oracle
import transformer
from diffai_dist.analyses import duplicates, telling
from diffai_dist.analyses.duplicate_detection import DuplicateDetection
from diffai_dist.analyses.roles import block as block_of
from diffai_dist.analyses.series import Series
from diffai_dist.records import AnalysisRecord, Details, Finding, Member

Weights = dict[str, np.ndarray]


def digest(array: np.ndarray) -> int:
    """As the kernels' one: of the words, whatever the shape and dtype."""
    return int.from_bytes(hashlib.blake2b(details_oracle.words(array).tobytes(), digest_size=8).digest(), "little")


def series_of(states: Sequence[Mapping[str, np.ndarray]]) -> Series:
    measured = details_oracle.measured(states, list(itertools.pairwise(range(len(states)))))
    content = measured.details.content
    for tensor, aligned in enumerate(measured.comparison.aligned):
        for member, arrays in enumerate(states):
            if aligned.name in arrays and content is not None:
                content["digest"][tensor, member] = digest(arrays[aligned.name])
    return Series(measured, tuple(Member(name, f"/run/{name}") for name in "abcdefghijkl"[: len(states)]))


def find(*states: Mapping[str, np.ndarray], **limits: Any) -> AnalysisRecord:
    record = DuplicateDetection(**limits)(series_of(states))
    json.dumps([record.result, [dataclasses.asdict(one) for one in record.findings]], allow_nan=False)
    assert set(record.result) == set(DuplicateDetection.result)
    assert {one.rule for one in record.findings} <= set(DuplicateDetection.rules)
    return record


def told(record: AnalysisRecord) -> list[tuple[Any, ...]]:
    return [(one.rule, one.severity, one.tensor, one.value, one.candidate) for one in record.findings]


def only(record: AnalysisRecord) -> Finding:
    (found,) = record.findings
    return found


def model(seed: int = 0, blocks: int = 5, experts: int = 0) -> Weights:
    noise = np.random.default_rng(seed)
    found = {"model.embed_tokens.weight": noise.normal(size=(60, 16)).astype(np.float32)}
    for number in range(blocks):
        at = f"model.layers.{number}"
        found[f"{at}.self_attn.q_proj.weight"] = noise.normal(size=(16, 16)).astype(np.float32)
        found[f"{at}.self_attn.q_proj.bias"] = np.zeros(16, np.float32)
        found[f"{at}.input_layernorm.weight"] = np.ones(16, np.float32)
        found[f"{at}.self_attn.rotary_emb.inv_freq"] = np.linspace(1, 0.1, 8, dtype=np.float32)
        for expert in range(experts):
            found[f"{at}.mlp.experts.{expert}.up_proj.weight"] = noise.normal(size=(24, 16)).astype(np.float32)
    return found


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(telling).failed == 0


# Silence


@pytest.mark.parametrize("seed", range(4))
def test_a_fresh_model_has_no_findings(seed: int) -> None:
    record = find(model(seed, experts=3), model(seed + 9, experts=3))
    assert record.findings == ()
    assert (record.result["constant"], record.result["groups_of"]) == (10, 1)
    (row,) = record.result["groups"]
    assert (row["kind"], row["copies"], row["members"], row["bytes_wasted"]) == ("buffers", 5, 2, 4 * 32)


@pytest.mark.parametrize("tied", [True, False])
def test_a_training_has_no_findings(tied: bool) -> None:
    members = transformer.training(0, "BF16", transformer.Model(tied=tied, experts=4))[::5]
    assert find(*members).findings == ()


def test_the_state_of_an_optimizer_is_no_duplicate() -> None:
    state = transformer.states(0, transformer.Model(tied=True, experts=4))[0].with_optimizer()
    assert find(state).findings == ()


@pytest.mark.parametrize("change", ["bit", "shape", "dtype", "sign of zero"])
def test_what_differs_in_anything_is_no_duplicate(change: str) -> None:
    arrays = model()
    arrays["model.embed_tokens.weight"][0, 0] = 0.0
    other = arrays["model.embed_tokens.weight"].copy()
    if change == "bit":
        other.view(np.uint32)[5, 5] ^= 1
    if change == "sign of zero":
        other[0, 0] = -0.0
    head = {"shape": other.reshape(30, 32), "dtype": other.astype(np.float64)}.get(change, other)
    assert find(arrays | {"lm_head.weight": head}).findings == ()


# Plants


def test_a_tied_weight_stored_twice_is_named_with_its_bytes() -> None:
    arrays = model()
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    record = find(arrays)
    assert told(record) == [("identical-tensors", "low", "lm_head.weight", 60 * 16 * 4, "a")]
    assert "kind tied" in only(record).source
    nbytes = sum(array.nbytes for array in arrays.values())
    (waste,) = record.result["waste"]
    assert (waste["bytes_wasted"], waste["wasted_share"]) == (3840 + 128, (3840 + 128) / nbytes)


def test_identical_experts_of_a_layer_are_serious() -> None:
    arrays = model(experts=6)
    for expert in (2, 3, 5):
        name = f"model.layers.1.mlp.experts.{expert}.up_proj.weight"
        arrays[name] = arrays["model.layers.1.mlp.experts.0.up_proj.weight"].copy()
    found = only(find(arrays))
    assert (found.rule, found.severity, found.value) == ("identical-experts", "high", 3 * 24 * 16 * 4)
    assert found.tensor == "model.layers.1.mlp.experts.0.up_proj.weight"
    assert "4 tensors" in found.source


def test_a_layer_that_is_an_earlier_one_is_one_finding() -> None:
    arrays = model(blocks=6, experts=2)
    for name in [name for name in arrays if name.startswith("model.layers.4.")]:
        arrays[name] = arrays[name.replace("layers.4.", "layers.2.")].copy()
    record = find(arrays)
    assert told(record) == [("identical-layer", "low", "model.layers.4", 3, "a")]
    assert record.result["layers"] == [
        {"checkpoint": "a", "members": 1, "block": "model.layers.4", "equal_to": "model.layers.2", "tensors": 3}
    ]
    assert {row["kind"] for row in record.result["groups"]} == {"layers", "buffers"}
    arrays["model.layers.4.self_attn.q_proj.weight"][0] += 1
    assert [one.rule for one in find(arrays).findings] == ["identical-tensors"] * 2


def test_many_equal_layers_are_those_of_the_first_and_names_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(duplicates, "block", lambda name: asked.append(name) or block_of(name))
    weight = np.random.default_rng(3).normal(size=(4, 4)).astype(np.float32)
    record = find({f"model.layers.{i}.weight": weight for i in range(200)})
    assert record.result["layers_of"] == 199
    assert {row["equal_to"] for row in record.result["layers"]} == {"model.layers.0"}
    assert len(asked) == 200


def test_single_tensors_of_several_blocks_are_told() -> None:
    arrays = model(experts=1)
    arrays["model.layers.3.self_attn.q_proj.weight"] = arrays["model.embed_tokens.weight"][:16].copy()
    arrays["model.layers.1.self_attn.q_proj.weight"] = arrays["model.embed_tokens.weight"][:16].copy()
    arrays["other.weight"] = arrays["model.embed_tokens.weight"][:16].copy()
    record = find(arrays)
    assert (only(record).rule, only(record).value) == ("identical-tensors", 2 * 16 * 16 * 4)
    assert next(row["kind"] for row in record.result["groups"] if row["copies"] == 3) == "other"


def test_what_all_members_hold_twice_is_told_once() -> None:
    states = [model(seed) for seed in range(5)]
    for member, state in enumerate(states[1:]):
        state["lm_head.weight"] = state["model.embed_tokens.weight"].copy() + (member == 2)
    record = find(*states)
    assert told(record) == [("identical-tensors", "low", "lm_head.weight", 3840, "b")]
    runs = [(row["checkpoint"], row["members"]) for row in record.result["groups"] if row["kind"] == "tied"]
    assert runs == [("b", 2), ("e", 1)]


def test_many_of_one_rule_are_counted() -> None:
    arrays = model(experts=2)
    for number in range(5):
        at = f"model.layers.{number}.mlp.experts"
        arrays[f"{at}.1.up_proj.weight"] = arrays[f"{at}.0.up_proj.weight"].copy()
    assert len(find(arrays).findings) == len(find(arrays, listed=5).findings) == 5
    found = only(find(arrays, listed=4))
    assert (found.rule, found.severity, found.value, found.threshold) == ("identical-experts", "high", 5, 4)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_equal_rows_of_a_vocabulary_are_possible_duplicates(dtype: Any) -> None:
    values = np.random.default_rng(0).normal(size=(50, 12)).astype(dtype)
    values[40:] = values[7]
    values[3] = values[4]
    values[20:30] = 0.0
    record = find({"wte.weight": values, "h.0.up.weight": values[::-1]})
    assert told(record) == [("possible-duplicate-rows", "info", "wte.weight", 11, "a")]
    assert record.result["rows"][0]["places"] == [7, *range(40, 50)]


def test_without_digests_nothing_is_known() -> None:
    series = series_of([model(), model()])
    measured = dataclasses.replace(series.measured, details=Details())
    record = DuplicateDetection()(Series(measured, series.members))
    assert record.findings == ()
    assert (record.result["checked"], record.result["constant"], record.result["groups"]) == (None, None, [])


@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_those_of_a_direct_comparison(seed: int) -> None:
    noise = np.random.default_rng(seed)
    pool = [noise.normal(size=tuple(noise.integers(2, 9, 2))).astype(np.float32) for _ in range(6)]
    arrays = {f"part{chr(97 + i)}.weight": pool[int(noise.integers(0, 6))].copy() for i in range(14)}
    record = find(arrays)
    groups: dict[bytes, list[str]] = {}
    for name, array in sorted(arrays.items()):
        groups.setdefault(repr(array.shape).encode() + array.tobytes(), []).append(name)
    wanted = sorted(names for names in groups.values() if len(names) > 1)
    assert sorted(row["names"] for row in record.result["groups"]) == wanted
    wasted = sum((len(names) - 1) * arrays[names[0]].nbytes for names in wanted)
    (row,) = record.result["waste"]
    assert (row["groups"], row["bytes_wasted"]) == (len(wanted), wasted)
    assert row["wasted_share"] == pytest.approx(wasted / sum(array.nbytes for array in arrays.values()), rel=1e-12)
    assert sum(one.value for one in record.findings) == wasted
