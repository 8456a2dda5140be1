"""What went wrong with checkpoints of others, planted in small ones: each fault must be named, and the gate must close.

S numbers are those of published reports of failures that the project collects; plants are faults with a known answer.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import decoding
import models
import transformer
from stories import Told, ask, write_pair, write_run, write_shards
from transformer import Model, Weights

HIGH = ("--fail-on", "high")
FIRST, SECOND = "model.layers.0", "model.layers.1"
PLAIN, EXPERTS = Model(), Model(experts=4, ffn=32)


def healthy(seed: int = 0, model: Model = PLAIN) -> tuple[Weights, Weights]:
    """The last two checkpoints of a training, fifteen steps apart."""
    before, after = transformer.training(seed, model=model)[-2:]
    return before, after


def large(layers: int, seed: int = 0, dtype: str = "F32") -> Weights:
    """A model as it is before training: many small tensors."""
    model = Model(layers=layers, hidden=16, heads=2, kv_heads=1, ffn=24, vocab=40)
    generator = np.random.default_rng(seed)
    found = {
        name: np.ones(shape) if "norm" in name else generator.normal(0, 0.25, shape)
        for name, shape in model.shapes().items()
    }
    return transformer.stored(found, dtype)


def moved(weights: Mapping[str, np.ndarray], seed: int = 1, relative: float = 0.01) -> Weights:
    """The same a little later."""
    generator = np.random.default_rng(seed)
    return {
        name: (array + relative * 0.25 * generator.normal(size=array.shape)).astype(array.dtype)
        for name, array in weights.items()
    }


def compared(folder: Path, baseline: Weights, candidate: Weights, *options: object) -> Told:
    """A comparison of two files."""
    return ask("compare", *write_pair(folder, baseline, candidate), *options)


def place(path: Path, tensor: str) -> int:
    """The byte of a safetensors file at which a tensor begins."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        begin: int = json.loads(file.read(length))[tensor]["data_offsets"][0]
    return 8 + length + begin


def statuses(told: Told) -> dict[str, list[str]]:
    """Names of tensors by what became of them."""
    found: dict[str, list[str]] = {}
    for record in told.records:
        if record["kind"] == "tensor":
            found.setdefault(record["status"], []).append(record["name"])
    return found


def refused(told: Told) -> list[str]:
    """Tensors that have no values."""
    return sorted(record["tensor"] for record in told.records if record["kind"] == "failure" and record["tensor"])


def dealt(weights: Weights, shards: int) -> dict[str, Weights]:
    """Tensors dealt out to numbered files in turn."""
    names = sorted(weights)
    return {
        f"model-{shard + 1:05}-of-{shards:05}.safetensors": {name: weights[name] for name in names[shard::shards]}
        for shard in range(shards)
    }


def texts(found: Iterable[Mapping[str, object]]) -> str:
    """All that findings say, in one text."""
    return json.dumps(list(found))


# Values that loaded, and were wrong


def test_s2_tensors_of_zeros_are_each_named(tmp_path: Path) -> None:
    # Given 27 tensors of a save all zero, with sizes as they should be
    weights = large(26)
    zeroed = [name for name in weights if name.endswith(("down_proj.weight", "v_proj.weight"))][::2]
    zeroed = [*zeroed[:26], "lm_head.weight"]
    broken = weights | {name: np.zeros_like(weights[name]) for name in zeroed}
    # When it is compared with the original
    told = compared(tmp_path, weights, broken, "--anomaly-detection", "--integrity-check", *HIGH)
    # Then each is named, and the headers alone show nothing
    assert sorted(told.tensors("all-zero", "high")) == sorted(zeroed)
    assert [one for one in told.findings(at_least="medium") if one["analysis"] == "integrity_check"] == []
    assert told.code == 1


def test_s3_zero_runs_and_wild_values_of_a_mapped_file_have_offsets(tmp_path: Path) -> None:
    # Given 4 KiB of zeros, and a value of 1e37, in a save over a mapped file
    before, after = healthy()
    after["model.embed_tokens.weight"].reshape(-1)[1024:2048] = 0.0
    after[f"{SECOND}.mlp.up_proj.weight"][7, 5] = 1e37
    # When
    told = compared(tmp_path, before, after, "--anomaly-detection", "--corruption-check", *HIGH)
    # Then both are named with the byte of the file at which they lie
    file = tmp_path / "candidate" / "model.safetensors"
    rows = {row["tensor"]: row for row in told.analysis("corruption_check")["signatures"]}
    run, giant = rows["model.embed_tokens.weight"], rows[f"{SECOND}.mlp.up_proj.weight"]
    assert (run["element"], run["length"]) == (1024, 4096)
    assert run["byte_offset"] == place(file, "model.embed_tokens.weight") + 4096
    assert giant["byte_offset"] == place(file, f"{SECOND}.mlp.up_proj.weight") + 4 * (7 * 32 + 5)
    assert file.read_bytes()[run["byte_offset"] : run["byte_offset"] + 4096] == bytes(4096)
    assert "model.embed_tokens.weight" in told.tensors("zero-run", "high")
    assert f"{SECOND}.mlp.up_proj.weight" in told.tensors("isolated-giant", "critical")
    assert told.code == 1


def test_s6_a_file_of_nan_is_not_sanitised(tmp_path: Path) -> None:
    # Given a file that loads as NaN throughout
    weights = {name: array for name, array in large(1).items() if "layernorm" not in name}
    broken = {name: np.full_like(array, np.nan) for name, array in weights.items()}
    # When
    told = compared(tmp_path, weights, broken, "--anomaly-detection", *HIGH)
    # Then every tensor is named, every NaN counted, and no statistic is a zero
    assert sorted(told.tensors("non-finite-appeared", "critical")) == sorted(weights)
    for record in told.records:
        if record["kind"] == "tensor":
            assert record["candidate"]["nans"] == record["candidate"]["count"]
            assert record["candidate"]["mean"] is None
    assert told.code == 1


def test_one_nan_costs_no_other_statistic(tmp_path: Path) -> None:
    # Given the same step twice, once with one NaN
    before, after = healthy()
    spoiled = {name: array.copy() for name, array in after.items()}
    name = f"{FIRST}.mlp.down_proj.weight"
    spoiled[name][3, 4] = np.nan
    # When
    clean = compared(tmp_path / "clean", before, after)
    told = compared(tmp_path / "spoiled", before, spoiled, "--anomaly-detection", *HIGH)
    # Then it is counted, and all other tensors say what they said
    found = told.only("non-finite-appeared", "critical")
    assert (found["tensor"], found["value"]) == (name, 1)
    first, second = ({one["name"]: one for one in asked.records if one["kind"] == "tensor"} for asked in (clean, told))
    assert second[name]["candidate"]["nans"] == 1
    kept = np.delete(after[name].astype(np.float64).ravel(), 3 * after[name].shape[1] + 4)
    assert second[name]["candidate"]["mean"] == pytest.approx(kept.mean(), rel=1e-12)
    assert second[name]["candidate"]["std"] == pytest.approx(kept.std(), rel=1e-12)
    assert {key: one for key, one in second.items() if key != name} == {
        key: one for key, one in first.items() if key != name
    }
    assert told.code == 1


def test_s7_the_first_bad_step_of_a_run_is_named(tmp_path: Path) -> None:
    # Given a run whose fifth checkpoint has a NaN that stays
    members = transformer.training(2)[:9]
    for weights in members[4:]:
        weights[f"{SECOND}.self_attn.q_proj.weight"][2, 2] = np.nan
    # When the run is swept
    told = ask("sweep", write_run(tmp_path, members), *HIGH)
    # Then the step before which a rotation must not delete is named
    found = told.only("non-finite-appeared", "critical")
    assert (found["tensor"], found["baseline"], found["candidate"]) == (
        f"{SECOND}.self_attn.q_proj.weight", "step-000060", "step-000075",
    )  # fmt: skip
    assert told.code == 1


def test_s8_the_layer_of_a_faulty_node_is_named_with_its_interval(tmp_path: Path) -> None:
    # Given a training in which one layer is off from the eighth checkpoint on, while the loss looks as before
    members = transformer.training(3)
    generator = np.random.default_rng(0)
    for name in [key for key in members[0] if key.startswith(SECOND) and members[0][key].ndim == 2]:
        drift = 0.5 * members[7][name].std() * generator.normal(size=members[7][name].shape)
        for weights in members[7:]:
            weights[name] += drift.astype(np.float32)
    # When
    told = ask("sweep", write_run(tmp_path, members), "--update-anomaly", *HIGH)
    # Then
    found = told.only("update-jump", "high")
    assert (found["tensor"], found["baseline"], found["candidate"]) == (SECOND, "step-000105", "step-000120")
    assert told.code == 1


def test_a_layer_that_spikes_and_returns_is_said_to_have_recovered(tmp_path: Path) -> None:
    # Given one layer that leaps in one checkpoint, and is back in the next
    members = transformer.training(4)
    for name in [key for key in members[0] if key.startswith(FIRST)]:
        members[6][name] += 30 * (members[6][name] - members[5][name])
    # When
    told = ask("sweep", write_run(tmp_path, members), "--update-anomaly", "--convergence-analysis", *HIGH)
    # Then
    found = told.only("update-jump", "high")
    assert (found["tensor"], found["candidate"]) == (FIRST, "step-000105")
    (spike,) = told.analysis("update_anomaly")["spikes"]
    assert spike["recovered"] is True
    assert told.code == 1


def test_one_flipped_exponent_bit_is_found_with_its_offset(tmp_path: Path) -> None:
    # Given a copy in which the highest exponent bit of one element flipped
    _, weights = healthy()
    broken = {name: array.copy() for name, array in weights.items()}
    name, element = f"{FIRST}.mlp.gate_proj.weight", 777
    broken[name].reshape(-1).view(np.uint32)[element] ^= 1 << 30
    # When
    told = compared(tmp_path, weights, broken, "--corruption-check", *HIGH)
    # Then the tensor, the element and the byte of the file are named
    assert told.tensors("bit-flip", "critical") == [name]
    (row,) = [one for one in told.analysis("corruption_check")["signatures"] if one["kind"] == "bit-flip"]
    file = tmp_path / "candidate" / "model.safetensors"
    assert (row["tensor"], row["element"], row["byte_offset"]) == (name, element, place(file, name) + 4 * element)
    assert told.code == 1


def test_a_tail_that_was_not_written_is_found(tmp_path: Path) -> None:
    # Given a tensor whose last 5 KiB are zeros
    before, after = healthy()
    name = "lm_head.weight"
    after[name].reshape(-1)[-1280:] = 0.0
    # When
    told = compared(tmp_path, before, after, "--corruption-check", *HIGH)
    # Then
    assert name in told.tensors("tail-not-written", "high")
    (row,) = [one for one in told.analysis("corruption_check")["signatures"] if one["kind"] == "tail-not-written"]
    assert (row["element"], row["length"]) == (after[name].size - 1280, 5120)
    assert told.code == 1


def test_a_corrupt_shard_that_loads_is_found(tmp_path: Path) -> None:
    # Given two regions of one tensor that changed places in one shard, whose header and size are right
    before, after = healthy()
    name = "model.embed_tokens.weight"
    rows = after[name].copy()
    after[name][20:40], after[name][50:70] = rows[50:70], rows[20:40]
    a = write_shards(tmp_path / "baseline", dealt(before, 3))
    b = write_shards(tmp_path / "candidate", dealt(after, 3))
    # When
    told = ask("compare", a, b, "--corruption-check", "--integrity-check", *HIGH)
    # Then the regions are named, and the structure is found to be sound
    assert set(told.tensors("shifted-region", "critical")) == {name}
    starts = {one["element"] for one in told.analysis("corruption_check")["signatures"]}
    assert {20 * 32, 50 * 32} <= starts
    assert [one for one in told.findings(at_least="medium") if one["analysis"] == "integrity_check"] == []
    assert told.code == 1


# Files that are missing, left over, or not what the index says


def test_s4_shards_with_zeroed_headers_are_three_violations(tmp_path: Path) -> None:
    # Given four shards, the headers of three of them zeros
    weights = large(4)
    whole = write_shards(tmp_path / "baseline", dealt(weights, 4))
    broken = write_shards(tmp_path / "candidate", dealt(weights, 4))
    for file in sorted(broken.glob("*.safetensors"))[:3]:
        data = file.read_bytes()
        file.write_bytes(bytes(4096) + data[4096:])
    # When
    told = ask("compare", whole, broken, "--integrity-check", *HIGH)
    # Then
    found = told.findings("bad-header")
    assert [one["severity"] for one in found] == ["critical"] * 3
    for number in (1, 2, 3):
        assert f"model-0000{number}-of-00004.safetensors" in texts(found)
    assert told.code == 1


def test_s5_each_shard_that_the_index_names_and_nobody_has_is_listed(tmp_path: Path) -> None:
    # Given an index of 30 shards of which 15 exist
    weights = large(6)
    whole = write_shards(tmp_path / "baseline", dealt(weights, 30))
    half = write_shards(tmp_path / "candidate", dealt(weights, 30))
    lost = sorted(file.name for file in half.glob("*.safetensors"))[15:]
    for name in lost:
        (half / name).unlink()
    # When
    told = ask("compare", whole, half, "--integrity-check", *HIGH)
    # Then
    assert len(told.tensors("missing-shard", "critical")) == 15
    assert [name for name in lost if name not in texts(told.findings("missing-shard"))] == []
    assert told.code == 1
    # And without a gate that is an incomplete comparison
    assert ask("compare", whole, half, "--integrity-check").code == 3


def test_s9_what_a_missing_shard_held_is_not_called_compared(tmp_path: Path) -> None:
    # Given a shard that a loader would drop in silence
    weights = large(4)
    whole = write_shards(tmp_path / "baseline", dealt(weights, 4))
    partial = write_shards(tmp_path / "candidate", dealt(moved(weights), 4))
    lost = dealt(weights, 4)["model-00002-of-00004.safetensors"]
    (partial / "model-00002-of-00004.safetensors").unlink()
    # When
    told = ask("compare", whole, partial, "--integrity-check", "--change-summary", *HIGH)
    # Then its absence is critical, and the coverage counts what it held
    assert "model-00002-of-00004" in texts([told.only("missing-shard", "critical")])
    covered = told.analysis("change_summary")["coverage"]
    assert covered["tensors"] - covered["tensors_compared"] == len(lost)
    assert covered["elements"] - covered["elements_compared"] == sum(array.size for array in lost.values())
    assert told.code == 1


def test_s10_a_second_set_of_shards_is_listed_beside_the_one_that_is_used(tmp_path: Path) -> None:
    # Given the shards of an older save beside those of the index
    weights = large(4)
    whole = write_shards(tmp_path / "baseline", dealt(weights, 3))
    both = write_shards(tmp_path / "candidate", dealt(weights, 3))
    for file, arrays in dealt(weights, 5).items():
        models.write(both / file, arrays)
    # When
    told = ask("compare", whole, both, "--integrity-check", *HIGH)
    # Then
    told.only("leftover-shard", "high")
    (row,) = told.analysis("integrity_check")["violations"]
    assert row["names"] == sorted(dealt(weights, 5))
    assert "'model-00001-of-00003.safetensors' and 2 more were read" in row["found"]
    assert told.code == 1


def test_s11_an_index_that_maps_what_no_shard_holds_is_named(tmp_path: Path) -> None:
    # Given an index that is older than its shards
    weights = large(2)
    parts = dealt(weights, 2)
    mapped = {name: file for file, arrays in parts.items() for name in arrays}
    stale = mapped | {"model.layers.9.gone.weight": "model-00001-of-00002.safetensors"}
    whole = write_shards(tmp_path / "baseline", parts)
    broken = write_shards(tmp_path / "candidate", parts, stale)
    # When
    told = ask("compare", whole, broken, "--integrity-check", *HIGH)
    # Then
    assert told.tensors("lost-tensor", "critical") == ["model.layers.9.gone.weight"]
    assert told.code == 1


def test_s11_a_tensor_in_two_shards_is_ambiguous(tmp_path: Path) -> None:
    # Given a tensor in both shards, mapped to one of them
    weights = large(2)
    parts = dealt(weights, 2)
    first, second = parts
    mapped = {name: file for file, arrays in parts.items() for name in arrays}
    name = next(iter(parts[first]))
    whole = write_shards(tmp_path / "baseline", parts)
    twice = write_shards(tmp_path / "candidate", {**parts, second: parts[second] | {name: weights[name] * 2}}, mapped)
    # When
    told = ask("compare", whole, twice, "--integrity-check", *HIGH)
    # Then nobody chooses in silence
    assert told.tensors("double-tensor", "critical") == [name]
    assert told.code == 1


def test_s12_the_tail_of_another_precision_is_named(tmp_path: Path) -> None:
    # Given the last file of an 8-bit save under a save of fewer, packed, files; one layer kept the old precision
    generator = np.random.default_rng(0)
    packed = {f"h.{layer}.mlp.up_proj.weight": generator.integers(0, 255, (16, 8), np.uint8) for layer in range(8)}
    kept = {"h.7.mlp.up_proj.weight": generator.normal(size=(16, 16)).astype(ml_dtypes.bfloat16)}
    whole = write_shards(tmp_path / "baseline", dealt(packed, 2))
    mixed = write_shards(tmp_path / "candidate", dealt(packed | kept, 2))
    models.write(
        mixed / "model-00003-of-00003.safetensors",
        {"h.7.mlp.up_proj.weight": generator.integers(-127, 127, (16, 16), np.int8)},
    )
    # When
    told = ask("compare", whole, mixed, "--integrity-check", "--precision-audit", *HIGH)
    # Then the file and the mixture are named
    (row,) = told.analysis("integrity_check")["violations"]
    assert (row["rule"], row["names"]) == ("leftover-shard", ["model-00003-of-00003.safetensors"])
    assert "I8" in row["found"]
    assert told.tensors("mixed-dtypes", "low")
    assert "h.7.mlp.up_proj.weight" in json.dumps(told.analysis("precision_audit")["mixed"])
    assert told.code == 1


def test_s13_what_zero3_left_empty_is_counted(tmp_path: Path) -> None:
    # Given 309 of 851 tensors without elements
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "input_layernorm")
    parts += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm")
    names = [f"model.layers.{i // 9}.{parts[i % 9]}.weight" for i in range(851)]
    whole = {name: np.full((2, 2), 0.5 + i, np.float32) for i, name in enumerate(names)}
    empty = whole | {name: np.zeros((0,), np.float32) for name in names[100:409]}
    # When
    told = compared(tmp_path, whole, empty, "--integrity-check", *HIGH)
    # Then
    found = told.only("empty-tensors", "critical")
    assert found["value"] == 309
    assert told.code == 1


def test_s14_tensors_of_lost_shards_are_listed(tmp_path: Path) -> None:
    # Given a model that lost its auxiliary file when it was loaded and saved
    weights = large(2)
    extra = {f"visual.blocks.{i}.weight": np.full((4, 4), i + 1.5, np.float32) for i in range(6)}
    a = write_shards(tmp_path / "baseline", {**dealt(weights, 2), "visual.safetensors": extra})
    b = write_shards(tmp_path / "candidate", dealt(weights, 2))
    # When
    told = ask("compare", a, b, "--integrity-check", *HIGH)
    # Then the file and its tensors are named
    assert str(told.only("lost-object", "high")["value"]).endswith("visual.safetensors")
    assert sorted(statuses(told)["removed"]) == sorted(extra)
    assert told.code == 1
    assert ask("compare", a, b, "--fail-on", "missing").code == 1


# Conversions


def test_s15_experts_of_a_conversion_are_random(tmp_path: Path) -> None:
    # Given a converted model whose experts have right names and shapes, and weights that nobody trained
    _, weights = healthy(1, EXPERTS)
    generator = np.random.default_rng(0)
    broken = {
        name: generator.normal(0, array.std(), array.shape).astype(np.float32) if ".experts." in name else array
        for name, array in weights.items()
    }
    # When
    told = compared(tmp_path, weights, broken, "--expert-analysis", *HIGH)
    # Then they are called re-initialised, and all else is equal
    assert told.tensors("reinitialised-experts", "high")
    assert sorted(statuses(told)["changed"]) == sorted(name for name in weights if ".experts." in name)
    for record in told.records:
        if record["kind"] == "tensor":
            assert record["change"]["cosine_distance"] == pytest.approx(1.0, abs=0.2)
    assert told.code == 1


def test_s16_a_transposed_square_matrix_is_told_by_its_values(tmp_path: Path) -> None:
    # Given square matrices that a conversion transposed, which no shape shows
    before, _ = healthy()
    names = [f"{layer}.self_attn.{part}_proj.weight" for layer in (FIRST, SECOND) for part in ("q", "o")]
    after = before | {name: before[name].T.copy() for name in names}
    # When
    told = compared(tmp_path, before, after, "--tensor-matching", *HIGH)
    # Then
    assert sorted(told.tensors("transposed", "high")) == sorted(names)
    assert told.code == 1


def test_experts_transposed_at_equal_dims_are_told_by_their_values(tmp_path: Path) -> None:
    # Given experts as wide as the model
    before, _ = healthy(1, EXPERTS)
    names = [name for name in before if ".experts." in name]
    after = before | {name: before[name].T.copy() for name in names}
    # When
    told = compared(tmp_path, before, after, "--tensor-matching", *HIGH)
    # Then
    found = told.findings("transposed")
    assert {one["severity"] for one in found} == {"high"}
    listed = [one["tensor"] for one in found if one["tensor"]]
    assert set(listed) <= set(names)
    assert len(listed) + sum(one["value"] for one in found if not one["tensor"]) == len(names)
    assert told.code == 1


def test_s17_rows_in_the_other_order_of_rotary_positions_are_named(tmp_path: Path) -> None:
    # Given queries and keys whose rows went from halves to interleaved pairs, head by head
    before, _ = healthy()
    names = [f"{layer}.self_attn.{part}_proj.weight" for layer in (FIRST, SECOND) for part in ("q", "k")]
    after = dict(before)
    for name in names:
        heads = before[name].reshape(-1, 2, 4, before[name].shape[1])
        after[name] = heads.swapaxes(1, 2).reshape(before[name].shape).copy()
    # When
    told = compared(tmp_path, before, after, "--tensor-matching", "--fail-on", "medium")
    # Then
    assert sorted(told.tensors("permuted-rows", "medium")) == sorted(names)
    assert told.code == 1


def test_permuted_rows_leave_the_moments_and_are_listed_first(tmp_path: Path) -> None:
    # Given a tensor whose rows were shuffled, beside one ordinary step
    before, after = healthy()
    name = f"{FIRST}.mlp.up_proj.weight"
    after[name] = before[name][np.random.default_rng(0).permutation(len(before[name]))]
    # When
    told = compared(tmp_path, before, after, "--sort-by-change-magnitude", "--tensor-matching", "--fail-on", "medium")
    # Then
    first = next(one for one in told.records if one["kind"] == "tensor")
    assert first["name"] == name
    assert first["change"]["cosine_distance"] > 0.5
    for key in ("mean", "std", "min", "max"):
        assert first["candidate"][key] == pytest.approx(first["baseline"][key], rel=1e-12)
    assert told.tensors("permuted-rows", "medium") == [name]
    assert told.code == 1


def test_two_experts_that_changed_names_are_told_by_their_bits(tmp_path: Path) -> None:
    # Given two experts of one layer under each other's names
    before, _ = healthy(1, EXPERTS)
    after = dict(before)
    for part in ("gate", "up", "down"):
        one, other = (f"{FIRST}.mlp.experts.{expert}.{part}_proj.weight" for expert in (1, 3))
        after[one], after[other] = before[other], before[one]
    # When
    told = compared(tmp_path, before, after, "--tensor-matching", *HIGH)
    # Then
    found = told.findings("swapped")
    assert {one["severity"] for one in found} == {"high"}
    for part in ("gate", "up", "down"):
        assert f"{FIRST}.mlp.experts.1.{part}_proj.weight" in texts(found)
    assert told.code == 1


def test_a_renamed_and_fused_model_is_what_it_was(tmp_path: Path) -> None:
    # Given the same weights under a wrapper's names, with q, k and v in one tensor, and gate and up in another
    _, before = healthy()
    fused = {f"{layer}.self_attn": ("qkv_proj", ("q", "k", "v")) for layer in (FIRST, SECOND)}
    fused |= {f"{layer}.mlp": ("gate_up_proj", ("gate", "up")) for layer in (FIRST, SECOND)}
    parts = {f"{at}.{part}_proj.weight" for at, (_, every) in fused.items() for part in every}
    after = {f"module.{name}": array for name, array in before.items() if name not in parts}
    for at, (whole, every) in fused.items():
        after[f"module.{at}.{whole}.weight"] = np.concatenate([before[f"{at}.{part}_proj.weight"] for part in every])
    # When
    told = compared(tmp_path, before, after, "--tensor-matching", "--show-identical", "--fail-on", "low")
    # Then nothing is called added or removed, and every part is found to be equal
    assert sorted(statuses(told)) == ["identical"]
    assert sorted(statuses(told)["identical"]) == sorted(before)
    result = told.analysis("tensor_matching")
    assert (result["wrapper"], result["role"], result["unmatched"]) == (len(before) - len(parts), len(parts), [])
    assert told.code == 0


def test_experts_that_never_parted_are_named(tmp_path: Path) -> None:
    # Given a model that was made of a dense one by copying, of which two experts of a layer stayed copies
    before, after = healthy(1, EXPERTS)
    for weights in (before, after):
        for part in ("gate", "up", "down"):
            at = f"{SECOND}.mlp.experts"
            weights[f"{at}.3.{part}_proj.weight"] = weights[f"{at}.0.{part}_proj.weight"].copy()
    # When
    told = compared(tmp_path, before, after, "--duplicate-detection", "--expert-analysis", *HIGH)
    # Then
    assert {one["severity"] for one in told.findings("identical-experts")} == {"high"}
    assert f"{SECOND}.mlp.experts" in texts(told.findings("identical-experts"))
    assert {one["severity"] for one in told.findings("collapsed-experts")} == {"high"}
    assert told.code == 1


def test_s18_equal_weights_are_exact_and_no_more_is_claimed(tmp_path: Path) -> None:
    # Given the same weights for another runtime
    _, weights = healthy()
    # When
    told = compared(tmp_path, weights, weights, "--experiment-reproducibility", *HIGH)
    # Then
    result = told.analysis("experiment_reproducibility")
    assert result["verdict"] == "exact"
    assert "outputs" in json.dumps(result)
    assert statuses(told) == {}
    assert told.code == 0


def test_a_run_that_was_reproduced_to_the_last_bit_but_one_says_where(tmp_path: Path) -> None:
    # Given the same run twice, with one element a single representable number off
    _, weights = healthy()
    other = {name: array.copy() for name, array in weights.items()}
    name, element = f"{SECOND}.self_attn.v_proj.weight", 123
    other[name].reshape(-1)[element] = np.nextafter(other[name].reshape(-1)[element], np.float32(9))
    # When
    told = compared(tmp_path, weights, other, "--experiment-reproducibility", *HIGH)
    # Then
    result = told.analysis("experiment_reproducibility")
    assert (result["verdict"], result["max_ulps"], result["tensors_differing"]) == ("within 1 ulps", 1, 1)
    first = result["first_difference"]
    file = tmp_path / "candidate" / "model.safetensors"
    assert (first["tensor"], first["element"], first["byte_offset"]) == (name, element, place(file, name) + 4 * element)
    assert told.code == 0


# Ties, heads, adapters


def tied(folder: Path, weights: Weights, flag: bool = True) -> Path:
    """A checkpoint whose configuration says whether the head is tied."""
    models.write(folder / "model.safetensors", weights)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": flag}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_s19_a_head_that_differs_though_the_flag_says_tied_is_named(tmp_path: Path) -> None:
    # Given a configuration with tied embeddings, and a head of its own beside them
    before, after = healthy()
    # When
    told = ask("compare", tied(tmp_path / "a", before), tied(tmp_path / "b", after), "--embedding-analysis", *HIGH)
    # Then
    found = told.findings("tie-disagrees")
    assert {one["severity"] for one in found} == {"high"}
    assert {one["tensor"] for one in found} == {"lm_head.weight"}
    assert told.code == 1


def test_a_lost_weight_tie_is_named(tmp_path: Path) -> None:
    # Given a baseline that stores its tied matrix twice, and a candidate in which the two went apart
    before, after = healthy(3)
    before["lm_head.weight"] = before["model.embed_tokens.weight"].copy()
    # When
    told = compared(tmp_path, before, after, "--embedding-analysis", *HIGH)
    # Then
    assert told.tensors("lost-tie", "high") == ["lm_head.weight"]
    assert told.code == 1


def test_s19_a_head_of_zeros_is_named(tmp_path: Path) -> None:
    # Given a head that was rebuilt and never filled
    before, after = healthy()
    after["lm_head.weight"][:] = 0.0
    # When
    told = compared(tmp_path, before, after, "--embedding-analysis", *HIGH)
    # Then
    assert told.tensors("zero-head", "high") == ["lm_head.weight"]
    assert told.code == 1


def test_a_lora_that_trained_nothing_is_named(tmp_path: Path) -> None:
    # Given an adapter whose every B is still zero
    generator = np.random.default_rng(0)
    adapter = {}
    for layer in range(3):
        for part in ("q", "v"):
            at = f"base_model.model.model.layers.{layer}.self_attn.{part}_proj"
            adapter[f"{at}.lora_A.weight"] = generator.normal(size=(4, 32)).astype(np.float32)
            adapter[f"{at}.lora_B.weight"] = np.zeros((32, 4), np.float32)
    # When it is compared with the adapter that training began with
    told = compared(tmp_path, adapter, adapter, "--transfer-learning-analysis", *HIGH)
    # Then
    assert told.only("untrained-adapter", "high")
    assert told.code == 1


def test_s24_a_fine_tuned_model_that_is_its_base_is_named(tmp_path: Path) -> None:
    # Given a "fine-tuned" model with the bits of its base
    _, weights = healthy()
    # When it is expected to have changed
    told = compared(tmp_path, weights, weights, "--update-sparsity", "--expect-changed", "*_proj.weight", *HIGH)
    # Then each tensor that did not is named
    projections = [name for name in weights if name.endswith("_proj.weight")]
    assert sorted(told.tensors("expected-changed", "critical")) == sorted(projections)
    assert told.analysis("update_sparsity")["bits_changed_fraction"] == 0.0
    assert told.code == 1


def test_frozen_layers_that_moved_are_named(tmp_path: Path) -> None:
    # Given embeddings that were to stay frozen, and did not
    before, after = healthy()
    # When
    told = compared(tmp_path, before, after, "--expect-frozen", "model.embed_tokens.*", *HIGH)
    # Then
    assert told.tensors("expected-frozen", "critical") == ["model.embed_tokens.weight"]
    assert told.code == 1


def test_a_head_that_no_longer_writes_is_named(tmp_path: Path) -> None:
    # Given a model in which the output of one attention head is gone
    before, after = healthy()
    after[f"{SECOND}.self_attn.o_proj.weight"][:, 8:16] = 0.0
    for folder, weights in (("a", before), ("b", after)):
        models.write(tmp_path / folder / "model.safetensors", weights)
        config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    # When
    told = ask("compare", tmp_path / "a", tmp_path / "b", "--attention-analysis", "--fail-on", "medium")
    # Then
    found = told.only("dead-head", "medium")
    assert SECOND in str(found["tensor"])
    assert told.code == 1


# Precision


def test_s20_417_tensors_that_were_silently_downcast_are_counted(tmp_path: Path) -> None:
    # Given a mixed checkpoint of which 417 F32 tensors come back as BF16, while others keep F32
    generator = np.random.default_rng(0)
    names = [f"model.layers.{i // 9}.part{i % 9}.weight" for i in range(450)]
    before = {name: generator.normal(size=(3, 5)).astype(np.float32) for name in names}
    after = {
        name: array.astype(ml_dtypes.bfloat16) if i < 417 else array for i, (name, array) in enumerate(before.items())
    }
    # When
    told = compared(tmp_path, before, after, "--precision-audit", *HIGH)
    # Then they are counted, with the values that are not what they were
    found = told.only("unexpected-downcast", "high")
    assert found["value"] == 417
    lost = sum(int((array.astype(np.float32) != before[name]).sum()) for name, array in after.items())
    assert str(lost) in texts([found]).replace(",", "")
    assert told.code == 1


def test_bf16_values_stored_as_f32_could_be_half_as_large(tmp_path: Path) -> None:
    # Given F32 tensors that hold nothing which BF16 could not hold
    weights = {name: array.astype(np.float32) for name, array in transformer.training(0, "BF16")[-1].items()}
    # When
    told = compared(tmp_path, weights, weights, "--precision-audit", "--fail-on", "low")
    # Then
    result = told.analysis("precision_audit")
    size = sum(array.nbytes for array in weights.values())
    (row,) = result["stored_wider"]
    assert (row["stored"], row["holds"], row["proven"], row["saving_bytes"]) == ("F32", "BF16", True, size // 2)
    assert {one["severity"] for one in told.findings()} <= {"low", "info"}
    assert told.code == 1


def test_the_same_values_in_two_dtypes_are_equal_values_and_other_bits(tmp_path: Path) -> None:
    # Given BF16 values, stored as BF16 and as F32
    narrow = transformer.training(0, "BF16")[-1]
    wide = {name: array.astype(np.float32) for name, array in narrow.items()}
    # When
    told = compared(tmp_path, wide, narrow, "--precision-audit", "--expect-cast", "BF16", *HIGH)
    # Then no value changed, and nothing is lost
    for record in told.records:
        if record["kind"] == "tensor":
            assert record["change"]["changed_fraction"] == 0.0
    assert told.findings(at_least="medium") == []
    assert told.code == 0


def test_values_that_left_the_range_of_f16_are_named(tmp_path: Path) -> None:
    # Given a conversion to F16 of a model with one value beyond its range
    _, weights = healthy()
    name = f"{FIRST}.mlp.down_proj.weight"
    weights[name][1, 2] = 1e5
    with np.errstate(over="ignore"):
        narrow = transformer.stored(weights, "F16")
    # When
    told = compared(tmp_path, weights, narrow, "--precision-audit", "--anomaly-detection", *HIGH)
    # Then
    assert told.only("cast-overflow", "high")["value"] == 1
    assert told.tensors("non-finite-appeared", "critical") == [name]
    assert told.code == 1


def quantised(weights: Weights, dtype: str) -> Weights:
    """Matrices of the layers as 8-bit codes with one scale per tensor, beside what stays as it was."""
    found: Weights = {}
    for name, array in weights.items():
        if not name.endswith("_proj.weight"):
            found[name] = array
            continue
        top = 127.0 if dtype == "I8" else 448.0
        scale = np.float32(np.abs(array).max() / top)
        codes = array / scale
        found[name] = np.rint(codes).astype(np.int8) if dtype == "I8" else codes.astype(ml_dtypes.float8_e4m3fn)
        found[f"{name}_scale"] = np.array([scale], np.float32)
    return found


@pytest.mark.parametrize("dtype", ["I8", "F8"])
def test_a_sound_quantisation_is_what_theory_says(tmp_path: Path, dtype: str) -> None:
    # Given codes rounded to nearest, with a scale per tensor
    _, weights = healthy()
    codes = quantised(weights, dtype)
    # When
    told = compared(tmp_path, weights, codes, "--quantization-analysis", *HIGH)
    # Then the signal to noise ratio is that of the arithmetic, and no scale is doubted
    noise = signal = 0.0
    for name in [key for key in weights if key.endswith("_proj.weight")]:
        back = codes[name].astype(np.float64) * float(codes[f"{name}_scale"][0])
        signal += float((weights[name].astype(np.float64) ** 2).sum())
        noise += float(((weights[name] - back) ** 2).sum())
    result = told.analysis("quantization_analysis")
    assert result["sqnr_db"] == pytest.approx(10 * math.log10(signal / noise), abs=0.05)
    assert result["sqnr_db"] == pytest.approx(result["theory_db"], abs=0.5 if dtype == "I8" else 1.0)
    assert told.findings(at_least="high") == []
    assert told.code == 0


@pytest.mark.parametrize("dtype", ["I8", "F8"])
@pytest.mark.parametrize("fault", ["unapplied", "dropped", "halved", "inverted"])
def test_s22_a_scale_that_is_missing_or_wrong_is_named(tmp_path: Path, dtype: str, fault: str) -> None:
    # Given one tensor whose scale was not applied, was lost, halved, or inverted
    _, weights = healthy()
    codes = quantised(weights, dtype)
    name = f"{SECOND}.mlp.down_proj.weight"
    scale = codes[f"{name}_scale"]
    wrong = {"unapplied": np.ones_like(scale), "halved": scale / 2, "inverted": 1 / scale}
    broken = codes | {f"{name}_scale": wrong.get(fault, scale)}
    if fault == "dropped":
        del broken[f"{name}_scale"]
    # When
    told = compared(tmp_path, weights, broken, "--quantization-analysis", *HIGH)
    # Then
    found = told.only("missing-or-inverted-scale", "critical" if (dtype, fault) == ("I8", "dropped") else "high")
    ratio = {"halved": 0.5, "inverted": float(scale[0]) ** -2}.get(fault, 1 / float(scale[0]))
    assert found["tensor"] == name
    assert found["value"] == pytest.approx(ratio, rel=0.01)
    assert told.summary == [tuple(found[key] for key in ("analysis", "rule", "severity", "tensor", "value"))]
    assert told.code == 1


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
NARROW_SCALE = ml_dtypes.float8_e4m3fn


def layers(number: int, rows: int = 192, columns: int = 320) -> Weights:
    """One matrix in each block, drawn from a normal distribution."""
    generator = np.random.default_rng(0)
    return {
        f"model.layers.{i}.mlp.up_proj.weight": generator.normal(0, 0.02, (rows, columns)).astype(np.float32)
        for i in range(number)
    }


def tiled(weights: Weights) -> Weights:
    """FP8 as DeepSeek stores it: a scale for each tile of 128 x 128, ragged at the edges, that multiplies."""
    found: Weights = {}
    for name, array in weights.items():
        peaks = np.maximum.reduceat(np.abs(array), range(0, array.shape[0], 128), axis=0)
        scale = np.maximum.reduceat(peaks, range(0, array.shape[1], 128), axis=1) / np.float32(448)
        each = scale.repeat(128, axis=0)[: array.shape[0]].repeat(128, axis=1)[:, : array.shape[1]]
        found |= {name: (array / each).astype(ml_dtypes.float8_e4m3fn), f"{name}_scale_inv": scale}
    return found


def nvfp4(weights: Weights) -> Weights:
    """NVFP4 as compressed-tensors packs it: scales E4M3 of 16 columns, and a global scale that divides them."""
    found: Weights = {}
    for name, array in weights.items():
        common = np.float32(6 * 448) / np.abs(array).max()
        groups = array.reshape(len(array), -1, 16)
        scale = (np.abs(groups).max(axis=2) / 6 * common).astype(NARROW_SCALE)
        over = groups / (scale.astype(np.float32)[..., None] / common)
        codes = np.abs(np.abs(over)[..., None] - E2M1).argmin(axis=-1).astype(np.uint8) | (over < 0) * np.uint8(8)
        codes = codes.reshape(array.shape)
        found |= {
            f"{name}_packed": codes[:, ::2] | codes[:, 1::2] << np.uint8(4),
            f"{name}_scale": scale,
            f"{name}_global_scale": np.array([common], np.float32),
        }
    return found


@pytest.mark.parametrize(("quantise", "behind", "bits"), [(tiled, 1.0, 8.01), (nvfp4, 1.5, 4.51)])
def test_a_sound_model_of_real_schemes_has_no_finding(
    tmp_path: Path, quantise: Callable[[Weights], Weights], behind: float, bits: float
) -> None:
    # Given BF16 weights and their codes
    weights = {name: array.astype(ml_dtypes.bfloat16) for name, array in layers(3).items()}
    codes = quantise({name: array.astype(np.float32) for name, array in weights.items()})
    # When
    told = compared(tmp_path, weights, codes, "--quantization-analysis", "--fail-on", "low")
    # Then every tensor is compared, as theory says, and each stored bit is counted
    result = told.analysis("quantization_analysis")
    assert (result["tensors"], result["measured"], result["unsupported"]) == (3, 3, [])
    assert result["sqnr_db"] == pytest.approx(result["theory_db"], abs=behind)
    assert result["bits_per_weight"] == pytest.approx(bits, abs=0.01)
    assert (told.findings(), told.code) == ([], 0)


@pytest.mark.parametrize("quantise", [tiled, nvfp4])
def test_s21_wrong_scales_of_every_sixth_layer_show_in_their_order(
    tmp_path: Path, quantise: Callable[[Weights], Weights]
) -> None:
    # Given a model whose exporter spoils the scale of every sixth layer
    weights = layers(12, 64, 128)
    codes = quantise(weights)
    wrong = [name for i, name in enumerate(weights) if i % 6 == 5]
    for name in wrong:
        scale = f"{name}_scale_inv" if quantise is tiled else f"{name}_global_scale"
        codes[scale] = codes[scale] * np.float32(1.7)
    # When
    told = compared(tmp_path, weights, codes, "--quantization-analysis", *HIGH)
    # Then they are named, with the factor, and the period shows
    assert told.tensors("missing-or-inverted-scale", "high") == wrong
    factor = 1.7 if quantise is tiled else 1 / 1.7
    assert [one["value"] for one in told.findings()] == pytest.approx([factor] * 2, rel=0.02)
    by_block = told.analysis("quantization_analysis")["by_block_db"]
    assert [i for i, one in enumerate(by_block) if one < 10] == [5, 11]
    assert told.code == 1


@pytest.mark.parametrize(
    ("fault", "like"),
    [("unapplied", "missing"), ("halved", "halved"), ("inverted", "inverted"), ("times 448", "448 of E4M3")],
)
def test_s22_scales_of_tiles_that_are_wrong_are_named(tmp_path: Path, fault: str, like: str) -> None:
    # Given one weight of FP8 tiles whose scales are wrong, each in the same way
    weights = layers(3)
    codes, name = tiled(weights), "model.layers.1.mlp.up_proj.weight"
    scale = codes[f"{name}_scale_inv"]
    wrong = {"unapplied": np.ones_like(scale), "halved": scale / 2, "inverted": 1 / scale, "times 448": scale * 448}
    # When
    told = compared(tmp_path, weights, codes | {f"{name}_scale_inv": wrong[fault]}, "--quantization-analysis", *HIGH)
    # Then
    assert told.only("missing-or-inverted-scale", "high")["tensor"] == name
    (row,) = told.analysis("quantization_analysis")["faults"]
    assert row["like"] == like
    assert told.code == 1


@pytest.mark.parametrize(
    ("fault", "like"),
    [("dropped", "global scale missing"), ("halved", "doubled"), ("inverted", "global scale inverted")],
)
def test_s22_a_global_scale_that_is_wrong_is_named(tmp_path: Path, fault: str, like: str) -> None:
    # Given one weight of NVFP4 whose global scale is 1, half of what it should be, or its inverse
    weights = layers(3)
    codes, name = nvfp4(weights), "model.layers.1.mlp.up_proj.weight"
    common = codes[f"{name}_global_scale"]
    wrong = {"dropped": np.ones_like(common), "halved": common / 2, "inverted": 1 / common}[fault]
    # When
    told = compared(tmp_path, weights, codes | {f"{name}_global_scale": wrong}, "--quantization-analysis", *HIGH)
    # Then
    found = told.only("missing-or-inverted-scale", "high")
    ratio = {"dropped": float(common[0]), "halved": 2.0, "inverted": float(common[0]) ** 2}[fault]
    assert (found["tensor"], found["value"]) == (name, pytest.approx(ratio, rel=0.02))
    (row,) = told.analysis("quantization_analysis")["faults"]
    assert row["like"] == like
    assert told.code == 1


def test_a_scale_of_nan_is_critical(tmp_path: Path) -> None:
    # Given a tile whose scale was never written
    weights = layers(1)
    codes, name = tiled(weights), next(iter(weights))
    codes[f"{name}_scale_inv"][1, 2] = np.nan
    # When
    told = compared(tmp_path, weights, codes, "--quantization-analysis", *HIGH)
    # Then its 64 rows and 64 columns are counted
    assert told.only("invalid-scale", "critical")["value"] == 64 * 64
    assert told.code == 1


def test_half_the_scales_are_refused_and_not_spread(tmp_path: Path) -> None:
    # Given a weight with the scales of its first half alone
    weights = layers(2)
    codes, name = tiled(weights), next(iter(weights))
    codes[f"{name}_scale_inv"] = codes[f"{name}_scale_inv"][:1]
    # When
    told = compared(tmp_path, weights, codes, "--quantization-analysis", *HIGH)
    # Then it has no numbers, and the other one has
    assert refused(told) == [name]
    result = told.analysis("quantization_analysis")
    assert ([row["tensor"] for row in result["unsupported"]], result["measured"]) == ([name], 1)
    assert told.code == 3


def test_a_shard_with_the_scales_missing_leaves_no_numbers_of_its_weights(tmp_path: Path) -> None:
    # Given weights in one shard, their scales in another that was not copied
    weights = layers(2)
    codes = tiled(weights)
    parts = {
        "model-00001-of-00002.safetensors": {name: array for name, array in codes.items() if name in weights},
        "model-00002-of-00002.safetensors": {name: array for name, array in codes.items() if name not in weights},
    }
    before = write_shards(tmp_path / "baseline", dealt(weights, 2))
    after = write_shards(tmp_path / "candidate", parts)
    (after / "model-00002-of-00002.safetensors").unlink()
    # When
    told = ask("compare", before, after, "--quantization-analysis", *HIGH)
    # Then nothing is taken for a cast to FP8
    assert refused(told) == list(weights)
    assert told.analysis("quantization_analysis")["measured"] == 0
    assert told.code == 3


def test_groups_of_another_size_are_named(tmp_path: Path) -> None:
    # Given scales of 64 columns that were written for 128, each twice: weights of rows of many lengths, one scale each
    weights = layers(1, 128, 256)
    name = next(iter(weights))
    weights[name] *= np.exp(np.linspace(-1, 1, 256, dtype=np.float32))
    groups = weights[name].reshape(128, 4, 64)
    scale = np.abs(groups).max(axis=2) / np.float32(127)
    codes = np.rint(groups / scale[..., None]).astype(np.int8).reshape(128, 256)
    sound, wrong = scale, scale[:, [0, 0, 1, 1]]
    # When
    told = [
        compared(tmp_path / str(i), weights, {name: codes, f"{name}_scale": one}, "--quantization-analysis", *HIGH)
        for i, one in enumerate((sound, wrong))
    ]
    # Then
    assert (told[0].findings(), told[0].code) == ([], 0)
    assert told[1].only("misplaced-scales", "high")["tensor"] == name
    assert told[1].code == 1


def in_words(codes: np.ndarray, order: Iterable[int] = range(8)) -> np.ndarray:
    """Eight codes of 4 bits along the last axis as one I32, the first named lowest."""
    nibbles = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, 8)[..., list(order)]
    words: np.ndarray = (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(axis=-1, dtype=np.uint32).view(np.int32)
    return words


def halves(array: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric codes of 4 bits, around 8, [outputs, inputs], and scales F16, [outputs, groups]."""
    groups = array.reshape(len(array), -1, group)
    scale = (np.abs(groups).max(axis=2) / np.float32(7.5)).astype(np.float16)
    codes = np.clip(np.rint(groups / scale.astype(np.float32)[..., None]) + 8, 0, 15)
    return codes.astype(np.uint8).reshape(array.shape), scale


def gptq(weights: Weights, zeros: int = 7) -> Weights:
    """GPTQ in groups of 64 inputs: codes along the inputs, and zero points that are stored one too small."""
    found: Weights = {}
    for name, array in weights.items():
        codes, scale = halves(array, 64)
        path = name.removesuffix(".weight")
        found |= {
            f"{path}.qweight": np.ascontiguousarray(in_words(codes).T),
            f"{path}.qzeros": in_words(np.full(scale.T.shape, zeros, np.uint8)),
            f"{path}.scales": np.ascontiguousarray(scale.T),
            f"{path}.g_idx": np.arange(array.shape[1], dtype=np.int32) // 64,
        }
    return found


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}


@pytest.mark.parametrize(("zeros", "shift"), [(7, None), (8, -1.0)])
def test_zero_points_of_another_version_are_a_shift_of_one_step(
    tmp_path: Path, zeros: int, shift: float | None
) -> None:
    # Given GPTQ of the first version, whose words of zero points are 0x77777777, or 0x88888888 as in the second
    weights = layers(2, 192, 256)
    baseline = decoding.write(tmp_path / "a", weights)
    candidate = decoding.write(tmp_path / "b", gptq(weights, zeros), {**GPTQ, "checkpoint_format": "gptq"})
    # When
    told = ask("compare", baseline, candidate, "--quantization-analysis", *HIGH)
    # Then
    result = told.analysis("quantization_analysis")
    assert "says nothing of quality" in result["note"]
    if shift is None:
        assert (told.findings(), told.code) == ([], 0)
        assert result["sqnr_db"] == pytest.approx(result["theory_db"], abs=0.5)
        return
    assert told.tensors("shifted-zero-point", "high") == list(weights)
    shifts = [one["value"] for one in told.findings() if one["rule"] == "shifted-zero-point"]
    assert shifts == pytest.approx([shift] * 2, rel=0.15)
    assert "words of 0x88888888" in told.only("declared-otherwise", "high")["source"]
    assert told.code == 1


def awq(weights: Weights) -> Weights:
    """AWQ in groups of 64 inputs: codes along the outputs, in the order in which its kernel takes them apart."""
    found: Weights = {}
    for name, array in weights.items():
        codes, scale = halves(array, 64)
        path = name.removesuffix(".weight")
        found |= {
            f"{path}.qweight": in_words(np.ascontiguousarray(codes.T), (0, 2, 4, 6, 1, 3, 5, 7)),
            f"{path}.qzeros": in_words(np.full(scale.T.shape, 8, np.uint8)),
            f"{path}.scales": np.ascontiguousarray(scale.T),
        }
    return found


def test_scales_that_awq_moved_into_a_norm_are_told_with_both_errors(tmp_path: Path) -> None:
    # Given weights whose columns were scaled for AWQ, and the norm before them, which undoes that
    generator = np.random.default_rng(1)
    weights, norm = layers(1, 192, 256), np.ones(256, np.float32)
    scales = np.exp(generator.normal(0, 0.4, 256)).astype(np.float32)
    name = "model.layers.0.post_attention_layernorm.weight"
    codes = awq({weight: array * scales for weight, array in weights.items()})
    baseline = decoding.write(tmp_path / "a", weights | {name: norm})
    candidate = decoding.write(
        tmp_path / "b",
        codes | {name: (norm / scales).astype(np.float16)},
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True},
    )
    # When
    told = ask("compare", baseline, candidate, "--quantization-analysis", "--fail-on", "low")
    # Then the error of the weights is large, that of the weights times their factors is that of rounding
    result = told.analysis("quantization_analysis")
    (row,) = result["folded"]
    assert (row["tensor"], row["axis"], row["beside"]) == (next(iter(weights)), "columns", name)
    assert result["sqnr_db"] < 10 < 17 < result["aligned_sqnr_db"]
    assert (told.findings(), told.code) == ([], 0)


def test_the_line_of_the_seed_is_printed(tmp_path: Path) -> None:
    # Given F32 weights and their 8-bit codes
    generator = np.random.default_rng(0)
    weights = {"fc1.weight": generator.normal(size=(256, 512)).astype(np.float32)}
    scale = np.float32(np.abs(weights["fc1.weight"]).max() / 127)
    codes = {"fc1.weight": np.rint(weights["fc1.weight"] / scale).astype(np.int8)}
    codes["fc1.weight_scale"] = np.array([scale], np.float32)
    # When
    result = compared(tmp_path, weights, codes, "--quantization-analysis").analysis("quantization_analysis")
    # Then
    assert list(result)[:2] == ["compression", "precision_loss"]
    assert result["compression"] == pytest.approx(0.25, abs=1e-4)
    assert result["precision_loss"] == "minimal"


# Not rewritten


def test_s23_what_was_not_synced_is_named(tmp_path: Path) -> None:
    # Given a copy of the latest step in which one layer is still that of the step before
    members = transformer.training(5)[:6]
    stale = [name for name in members[0] if name.startswith(SECOND)]
    members[4] |= {name: members[3][name].copy() for name in stale}
    # When
    told = ask("sweep", write_run(tmp_path, members), "--staleness-check", *HIGH)
    # Then
    assert sorted(told.tensors("stale-tensor", "high")) == sorted(stale)
    assert {(one["baseline"], one["candidate"]) for one in told.findings("stale-tensor")} == {
        ("step-000060", "step-000075")
    }
    assert told.code == 1


def test_the_copy_of_an_old_shard_is_named(tmp_path: Path) -> None:
    # Given a run of sharded checkpoints, one of which has a shard of the step before
    members = transformer.training(6)[:6]
    for number, weights in enumerate(members, 1):
        write_shards(tmp_path / f"step-{15 * number:06}", dealt(weights, 3))
    file = "model-00002-of-00003.safetensors"
    (tmp_path / "step-000075" / file).write_bytes((tmp_path / "step-000060" / file).read_bytes())
    # When
    told = ask("sweep", tmp_path / "step-*", "--staleness-check", *HIGH)
    # Then
    found = told.only("stale-object", "critical")
    assert str(found["value"]).endswith(f"step-000075/{file}")
    assert found["baseline"] == "step-000060"
    assert told.code == 1


def test_a_checkpoint_that_was_written_twice_is_named(tmp_path: Path) -> None:
    # Given two steps of a run with the same bits
    members = transformer.training(7)[:6]
    members[5] = members[4]
    # When
    told = ask("sweep", write_run(tmp_path, members), *HIGH)
    # Then
    found = told.only("duplicate-checkpoint", "critical")
    assert (found["baseline"], found["candidate"]) == ("step-000075", "step-000090")
    assert told.code == 1


def test_two_identical_checkpoints_differ_in_nothing(tmp_path: Path) -> None:
    # Given the same checkpoint twice
    _, weights = healthy()
    # When
    told = compared(tmp_path, weights, weights, "--change-summary", "--update-sparsity", "--show-identical", *HIGH)
    # Then every measure of change is 0
    changes = [one["change"] for one in told.records if one["kind"] == "tensor"]
    assert len(changes) == len(weights)
    for key in ("l2", "rel_l2", "rel_l1", "max_abs", "cosine_distance", "changed_fraction", "bits_changed_fraction"):
        assert {change[key] for change in changes} == {0.0}
    assert told.analysis("update_sparsity")["bits_changed_fraction"] == 0.0
    assert told.code == 0


# Movement


def walked(kind: str) -> list[Weights]:
    """Twenty checkpoints of 20,000 weights that walk at random, or go straight on."""
    generator = np.random.default_rng(0)
    start, heading = generator.normal(size=20_000), generator.normal(size=20_000)
    steps = generator.normal(size=(20, 20_000)).cumsum(axis=0) if kind == "random" else np.outer(range(20), heading)
    return [{"h.0.weight": (start + 0.01 * step).reshape(100, 200).astype(np.float32)} for step in steps]


@pytest.mark.parametrize(("kind", "exponent", "straightness"), [("random", 0.5, 0.25), ("straight", 1.0, 1.0)])
def test_the_law_of_a_path_is_told(tmp_path: Path, kind: str, exponent: float, straightness: float) -> None:
    # Given a path whose law is known
    # When
    told = ask("sweep", write_run(tmp_path, walked(kind)), "--convergence-analysis", *HIGH)
    # Then
    result = told.analysis("convergence_analysis")
    assert result["fits"][0]["parameters"]["p"] == pytest.approx(exponent, abs=0.05)
    assert result["straightness"] == pytest.approx(straightness, abs=0.03)
    assert told.code == 0


def test_the_noise_of_gradients_is_told_from_the_optimizers_state(tmp_path: Path) -> None:
    # Given Adam's state after 60 batches whose noise has 100 times the power of their signal
    generator = np.random.default_rng(0)
    mean = generator.normal(size=400_000)
    first, second = np.zeros_like(mean), np.zeros_like(mean)
    for _ in range(60):
        gradient = mean + 10 * generator.normal(size=mean.size)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    state = {"h.w": mean, "optimizer.state.h.w.exp_avg": first, "optimizer.state.h.w.exp_avg_sq": second}
    weights = {name: array.reshape(400, 1000).astype(np.float32) for name, array in state.items()}
    weights["optimizer.state.h.w.step"] = np.array(60, np.float32)
    # When
    told = compared(tmp_path, weights, weights, "--gradient-analysis")
    # Then
    result = told.analysis("gradient_analysis")
    assert (result["mode"], result["step"]) == ("optimizer", 60)
    assert result["noise_to_signal"] == pytest.approx(100, rel=0.1)
