"""What the analyses of embeddings, attention and experts say of rows and columns whose movement is known."""

from __future__ import annotations

import dataclasses
import doctest
import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import details_oracle
import transformer
from diffai_dist.analyses import ANALYSES, expert_analysis, heads, lines
from diffai_dist.analyses.architecture import describe
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.records import AnalysisRecord, Details, Finding, Measurements
from test_duplicates import digest

Weights = dict[str, np.ndarray]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def measured(
    *states: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[int, int]] = ((0, 1),),
    configs: Sequence[Mapping[str, Any] | None] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Measurements:
    made: list[Checkpoint] = []
    for i, arrays in enumerate(states):
        one = details_oracle.checkpoint(arrays, f"/run/{i}.safetensors")
        made.append(dataclasses.replace(one, config=configs[i] if configs else None, metadata=metadata or {}))
    found = details_oracle.measured(states, pairs, made)
    content = found.details.content
    for tensor, aligned in enumerate(found.comparison.aligned):
        for member, arrays in enumerate(states):
            if aligned.name in arrays and content is not None:
                content["digest"][tensor, member] = digest(arrays[aligned.name])
    return found


def ask(name: str, found: Measurements, pair: int = 0, **limits: Any) -> AnalysisRecord:
    kind: Any = ANALYSES[name]
    record: AnalysisRecord = kind(**limits)(found, pair, ())
    json.dumps([record.result, [dataclasses.asdict(one) for one in record.findings]], allow_nan=False)
    assert set(record.result) == set(kind.result)
    assert {one.rule for one in record.findings} <= set(kind.rules)
    return record


def told(record: AnalysisRecord) -> list[tuple[str, str, str | None]]:
    return [(one.rule, one.severity, one.tensor) for one in record.findings]


def only(record: AnalysisRecord) -> Finding:
    (found,) = record.findings
    return found


def serious(record: AnalysisRecord) -> list[Finding]:
    return [one for one in record.findings if one.severity not in ("low", "info")]


def close(value: float | None, wanted: float, rel: float = 1e-9) -> bool:
    return value == pytest.approx(wanted, rel=rel, abs=1e-15)


@pytest.mark.parametrize("module", [lines, heads, expert_analysis])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


NAMES = ("embedding_analysis", "attention_analysis", "expert_analysis")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "shape"), [
    ("F32", transformer.Model(biases=True)),
    ("BF16", transformer.Model(experts=4)),
    ("F16", transformer.Model(tied=True)),
])  # fmt: skip
def test_a_training_has_no_findings_of_medium_and_above(name: str, dtype: str, shape: transformer.Model) -> None:
    members = transformer.training(1, dtype, shape)
    for pair in (members[:2], members[-2:], [members[0], members[-1]]):
        assert serious(ask(name, measured(*pair))) == []


@pytest.mark.parametrize("how", ["full", "head", "lora", "grown"])
def test_fine_tuning_has_no_findings_of_medium_and_above(how: str) -> None:
    for name in NAMES:
        assert serious(ask(name, measured(*transformer.tuned(how)))) == []


@pytest.mark.parametrize("name", NAMES)
def test_without_rows_and_digests_answers_are_null_and_quiet(name: str) -> None:
    members = transformer.training(0, "F32", transformer.Model(experts=2))[:2]
    bare = dataclasses.replace(measured(*members), details=Details())
    assert ask(name, bare).findings == ()
    comparison = dataclasses.replace(bare.comparison, aligned=())
    empty = Measurements(comparison, bare.moments[:0], bare.shifts[:0], {}, None, Details())
    assert ask(name, empty).findings == ()


# Tokens


def model(seed: int = 0, rows: int = 80, width: int = 16, dtype: Any = np.float32) -> Weights:
    noise = np.random.default_rng(seed)
    found = {name: noise.normal(size=(rows, width)).astype(dtype) for name in (EMBED, HEAD)}
    found["model.layers.0.mlp.up_proj.weight"] = noise.normal(size=(24, width)).astype(dtype)
    return found


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_tokens_have_the_numbers_of_numpy(seed: int, dtype: Any) -> None:
    noise = np.random.default_rng(seed)
    first = model(seed, int(noise.integers(60, 120)), dtype=dtype)
    second = {name: array.copy() for name, array in first.items()}
    moved = noise.choice(len(first[EMBED]), 30, replace=False)
    scale = 10.0 ** noise.uniform(-2, 1, (30, 1))
    second[EMBED][moved] = (wide(first[EMBED][moved]) + scale * noise.normal(size=(30, 16))).astype(dtype)
    second[HEAD] = (wide(first[HEAD]) * 0.5).astype(dtype)
    record = ask("embedding_analysis", measured(first, second))
    rows = {row["tensor"]: row for row in record.result["tables"]}
    a, b = wide(first[EMBED]), wide(second[EMBED])
    changed = (a != b).any(axis=1)
    rel = np.linalg.norm(b - a, axis=1) / np.linalg.norm(a, axis=1)
    assert rows[EMBED]["changed_rows"] == changed.sum()
    assert rows[EMBED]["never_updated"] == (~changed).sum()
    assert close(rows[EMBED]["median_rel_l2"], float(np.median(rel)))
    assert close(rows[EMBED]["largest_rel_l2"], float(rel.max()))
    assert rows[HEAD]["decay_only"] == len(a)
    top = record.result["top_tokens"]
    every = sorted(
        [(-value, EMBED, i) for i, value in enumerate(rel.tolist())] + [(-0.5, HEAD, i) for i in range(len(a))]
    )
    assert [(row["tensor"], row["token"]) for row in top] == [one[1:] for one in every[:20]]
    for row in top:
        if row["tensor"] == EMBED:
            x, y = a[row["token"]], b[row["token"]]
            assert close(row["rel_l2"], float(np.linalg.norm(y - x) / np.linalg.norm(x)))
            assert close(row["norm_ratio"], float(np.linalg.norm(y) / np.linalg.norm(x)))
            assert close(row["cosine_distance"], 1 - float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)), 1e-6)
    norms = np.linalg.norm(b, axis=1)
    shortest = np.argsort(norms)[: int(0.02 * len(norms))]
    assert [row["token"] for row in record.result["undertrained"]] == shortest.tolist()
    assert record.result["undertrained_of"] == len(shortest)
    for row in record.result["undertrained"]:
        assert close(row["norm"], float(norms[row["token"]]))
        assert close(row["of_median"], float(norms[row["token"]] / np.median(norms)))


def test_a_small_angle_keeps_its_digits() -> None:
    first = model(dtype=np.float64)
    turn = np.random.default_rng(5).normal(size=first[EMBED].shape)
    second = first | {EMBED: first[EMBED] + 1e-7 * turn}
    for row in ask("embedding_analysis", measured(first, second)).result["top_tokens"]:
        a, d = first[EMBED][row["token"]], second[EMBED][row["token"]] - first[EMBED][row["token"]]
        across = d - a * (a @ d) / (a @ a)
        assert close(row["cosine_distance"], float(across @ across / (a @ a)) / 2, 1e-5)


@pytest.mark.parametrize(("shrunk", "turn", "decayed"), [(0.9, 0.0, 80), (1.1, 0.0, 0), (0.9, 1e-2, 0)])
def test_rows_that_only_shrank_are_told_apart(shrunk: float, turn: float, decayed: int) -> None:
    first = model(dtype=np.float64)
    second = first | {EMBED: first[EMBED] * shrunk + turn * np.random.default_rng(1).normal(size=(80, 16))}
    for limit, wanted in ((1e-7, decayed), (1.0, 80 if shrunk < 1 else 0)):
        tables = ask("embedding_analysis", measured(first, second), decay_distance=limit).result["tables"]
        assert [row["decay_only"] for row in tables] == [0, wanted]


def test_new_tokens_are_compared_by_their_statistics() -> None:
    first, second = model(0), model(0)
    noise = np.random.default_rng(9)
    new = 3 * noise.normal(size=(8, 16)).astype(np.float32)
    new[2], new[5] = new[1], 0.0
    second[EMBED] = np.concatenate([first[EMBED], new])
    second[EMBED][7] += 1
    record = ask("embedding_analysis", measured(first, second))
    assert told(record) == [("vocabulary-resized", "info", EMBED), ("zero-new-rows", "low", EMBED)]
    (row,) = record.result["resized"]
    assert [row[key] for key in ("baseline_rows", "candidate_rows", "same_statistics", "new_zero", "new_equal")] == [
        80, 88, 79, 1, 1,
    ]  # fmt: skip
    medians = [np.median(np.linalg.norm(wide(part), axis=1)) for part in (new, second[EMBED][:80])]
    assert close(row["norm_ratio"], float(medians[0] / medians[1]))


# Ties


def tied(state: Weights) -> Weights:
    return state | {HEAD: state[EMBED].copy()}


@pytest.mark.parametrize(
    ("before", "first_config", "config", "severity"),
    [
        ("by value", None, None, "high"), ("by value", False, None, "high"), ("by value", None, False, "info"),
        ("for want of a head", None, None, "low"), ("for want of a head", True, None, "high"),
        ("for want of a head", True, False, "info"),
    ],
)  # fmt: skip
def test_a_lost_tie_is_named(before: str, first_config: bool | None, config: bool | None, severity: str) -> None:
    first = tied(model())
    second = {name: array.copy() for name, array in first.items()}
    second[HEAD][3, 3] += 1
    if before != "by value":
        del first[HEAD]
    configs = [None if one is None else {"tie_word_embeddings": one} for one in (first_config, config)]
    record = ask("embedding_analysis", measured(first, second, configs=configs))
    found = only(record)
    assert (found.rule, found.severity, found.tensor) == ("lost-tie", severity, HEAD)
    assert before in found.source
    both = [[row[key] for key in ("by_file", "by_value", "by_config")] for row in record.result["tied"]]
    assert both == [
        [False, True, first_config] if before == "by value" else [True, None, first_config], [False, False, config]
    ]  # fmt: skip
    assert ask("embedding_analysis", measured(second, second)).findings == ()
    assert ask("embedding_analysis", measured(first, first)).findings == ()


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}])
def test_a_config_that_ties_what_differs_is_wrong_on_either_side(config: Mapping[str, Any]) -> None:
    good, bad = tied(model()), model()
    both = [config, config]
    assert told(ask("embedding_analysis", measured(good, bad, configs=both))) == [("tie-disagrees", "high", HEAD)]
    found = only(ask("embedding_analysis", measured(bad, bad, configs=both)))
    assert found.source.startswith("of the baseline")
    assert ask("embedding_analysis", measured(good, good, configs=both)).findings == ()
    by_file = ask("embedding_analysis", measured(good, bad, metadata={"tie_word_embeddings": "true"}))
    assert told(by_file) == [("tie-disagrees", "high", HEAD)]


def test_a_head_of_zeros_is_serious_and_told_once() -> None:
    good, bad = model(), model() | {HEAD: np.zeros((80, 16), np.float32)}
    states = [good, bad, bad, good, bad]
    found = measured(*states, pairs=[(0, 1), (1, 2), (2, 3), (3, 4)])
    rules = [told(ask("embedding_analysis", found, pair)) for pair in range(4)]
    zero = [("zero-head", "high", HEAD)]
    assert rules == [zero, [], [], zero]
    first = measured(bad, good, bad, pairs=[(0, 1), (0, 2)])
    assert [told(ask("embedding_analysis", first, pair)) for pair in range(2)] == [zero, []]


@pytest.mark.parametrize(("part", "rule"), [(0.0, "rebuilt-head"), (0.3, None)])
def test_a_head_drawn_anew_beside_a_kept_embedding_is_named(part: float, rule: str | None) -> None:
    first, other = model(0, 400), model(1, 400)
    second = first | {HEAD: part * first[HEAD] + (1 - part) * other[HEAD]}
    record = ask("embedding_analysis", measured(first, second))
    assert [one.rule for one in record.findings] == [rule] * (rule is not None)
    a, b = wide(first[HEAD]).ravel(), wide(second[HEAD]).ravel()
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for limit, fired in ((abs(cosine) * 1.0001, True), (abs(cosine) * 0.9999, False)):
        found = ask("embedding_analysis", measured(first, second), rebuilt_cosine=limit).findings
        assert [close(one.value, cosine) for one in found] == [True] * fired
    assert ask("embedding_analysis", measured(first, other)).findings == ()  # another model altogether


def test_a_classifier_is_no_head_and_types_of_tokens_are_no_tokens() -> None:
    first = {EMBED: model()[EMBED], "classifier.weight": np.zeros((3, 16), np.float32)}
    first["embeddings.token_type_embeddings.weight"] = np.zeros((2, 16), np.float32)
    record = ask("embedding_analysis", measured(first, first))
    assert record.findings == ()
    assert record.result["tied"][0]["head"] is None


# Attention


def attention(
    seed: int, layers: int = 3, heads_: int = 4, groups: int = 2, size: int = 8, bert: bool = False
) -> Weights:
    noise, width, found = np.random.default_rng(seed), 20, {}
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
    if bert:
        names = {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}
    for layer in range(layers):
        at = f"encoder.layer.{layer}.attention" if bert else f"model.layers.{layer}.self_attn"
        for part, rows in (("q", heads_ * size), ("k", groups * size), ("v", groups * size)):
            found[f"{at}.{names[part]}.weight"] = noise.normal(size=(rows, width))
        found[f"{at}.{names['o']}.weight"] = noise.normal(size=(width, heads_ * size))
    return found


CONFIG = {"head_dim": 8}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("heads_", "groups"), [(4, 2), (6, 6), (6, 1)])
def test_heads_have_the_numbers_of_numpy(seed: int, heads_: int, groups: int) -> None:
    first = attention(seed, heads_=heads_, groups=groups)
    noise = np.random.default_rng(seed + 50)
    second = {
        name: array + noise.normal(size=array.shape) * noise.uniform(0, 1, (len(array), 1))
        for name, array in first.items()
    }
    record = ask("attention_analysis", measured(first, second, configs=[CONFIG, CONFIG]))
    wanted = []
    for layer in range(3):
        at = f"model.layers.{layer}.self_attn"
        shares = []
        for head in range(heads_):
            group = head * groups // heads_
            places = {"q": head, "k": group, "v": group, "o": head}
            cut = {}
            for part, i in places.items():
                both = [m[f"{at}.{part}_proj.weight"] for m in (first, second)]
                cut[part] = [(one.T if part == "o" else one)[8 * i : 8 * i + 8] for one in both]
            rel = {part: np.linalg.norm(b - a) / np.linalg.norm(a) for part, (a, b) in cut.items()}
            sides = [np.concatenate([one[side].ravel() for one in cut.values()]) for side in (0, 1)]
            whole = np.linalg.norm(sides[1] - sides[0]) / np.linalg.norm(sides[0])
            a, b = (one.ravel() for one in cut["q"])
            angle = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            shares.append(np.linalg.norm(cut["o"][1]) * np.linalg.norm(cut["v"][1]))
            wanted.append((at, head, whole, [rel[part] for part in "qkvo"], angle))
        wanted[-heads_:] = [(*one, share / sum(shares)) for one, share in zip(wanted[-heads_:], shares, strict=True)]
    wanted.sort(key=lambda one: -one[2])
    rows = record.result["heads"]
    assert len(rows) == min(20, 3 * heads_)
    for row, (at, head, whole, parts, angle, share) in zip(rows, wanted, strict=False):
        assert (row["layer"], row["head"]) == (at, head)
        assert close(row["rel_l2"], whole)
        assert [close(row[f"{part}_rel_l2"], rel) for part, rel in zip("qkvo", parts, strict=True)] == [True] * 4
        assert close(row["q_cosine_distance"], angle, 1e-7)
        assert close(row["norm_share"], share)
    for layer, row in enumerate(record.result["layers"]):
        at = f"model.layers.{layer}.self_attn"
        best = next(one for one in wanted if one[0] == at)
        assert (row["layer"], row["heads"], row["kv_heads"], row["head"]) == (at, heads_, groups, best[1])
        assert close(row["largest_rel_l2"], best[2])
        norms = [np.linalg.norm(m[f"{at}.{p}_proj.weight"]) for m in (first, second) for p in "qk"]
        assert close(row["qk_growth"], norms[2] * norms[3] / norms[0] / norms[1])


@pytest.mark.parametrize(("ratio", "dead"), [(0.0, True), (0.999e-3, True), (1.001e-3, False)])
@pytest.mark.parametrize("bert", [False, True])
def test_a_head_whose_output_is_gone_is_dead(ratio: float, dead: bool, bert: bool) -> None:
    first, second = attention(0, heads_=5, groups=5, bert=bert), attention(0, heads_=5, groups=5, bert=bert)
    name = next(name for name in second if ".1." in name and name.endswith(("o_proj.weight", "output.dense.weight")))
    norms = np.linalg.norm(second[name].reshape(20, 5, 8), axis=(0, 2))
    kept = np.delete(norms, 2)
    second[name][:, 16:24] *= ratio * np.sort(kept)[1] / norms[2]  # the median of five once one is the least
    record = ask("attention_analysis", measured(first, second, configs=[CONFIG, CONFIG]))
    assert told(record) == [("dead-head", "medium", name)] * dead
    if dead:
        assert only(record).value == pytest.approx(ratio, rel=1e-9)
        assert "of the candidate, head 2 of 5 (size 8 config)" in only(record).source
    assert [row["dead"] for row in record.result["layers"]] == [0, int(dead), 0]
    again = ask("attention_analysis", measured(second, second, configs=[CONFIG, CONFIG]))
    assert len(again.findings) == dead  # once for both sides


def norms(q: int, k: int | None = None) -> Weights:
    found = {"model.layers.0.self_attn.q_norm.weight": np.ones(q)}
    return found if k is None else found | {"model.layers.0.self_attn.k_norm.weight": np.ones(k)}


@pytest.mark.parametrize(
    ("more", "config", "size", "source"),
    [
        (norms(16, 16), None, 16, "qk_norm"),
        (norms(16, 16), {"num_attention_heads": 4}, 16, "qk_norm"),
        (norms(16), None, 64, "assumed"),
        (norms(128, 64), None, 64, "assumed"),  # over the whole width
        (norms(128, 64), {"hidden_size": 20, "num_attention_heads": 8}, 16, "config"),
        ({"model.rotary_emb.inv_freq": np.ones(16)}, {"model_type": "llama"}, 32, "inv_freq"),
        ({"model.rotary_emb.inv_freq": np.ones(16)}, {"model_type": "stablelm"}, 64, "assumed"),
        ({"model.rotary_emb.inv_freq": np.ones(16)}, None, 64, "assumed"),
        ({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4)}, {"model_type": "llama"}, 8, "inv_freq"),
        ({"model.rotary_emb.inv_freq": np.ones(4)}, {"model_type": "x", "rotary_pct": 0.25}, 64, "assumed"),
        ({"model.rotary_emb.inv_freq": np.ones(4)}, {"model_type": "x", "rotary_dim": 8}, 64, "assumed"),
        ({"model.rotary_emb.inv_freq": np.ones(4)}, {"num_attention_heads": 4}, 32, "config"),
        ({}, {"num_attention_heads": 7, "num_key_value_heads": 4}, 16, "config"),
        ({}, {"num_attention_heads": 4, "num_key_value_heads": 4}, 64, "assumed"),
        ({}, {"hidden_size": 128, "num_attention_heads": 8}, 16, "config"),
        ({}, {"text_config": {"head_dim": 32}}, 32, "config"),
        ({}, {"head_dim": 7}, 64, "assumed"),
        ({}, None, 64, "assumed"),
    ],
)
def test_the_size_of_a_head_is_taken_from_what_tells_it(
    more: Weights, config: Mapping[str, Any] | None, size: int, source: str
) -> None:
    state = attention(0, 1, heads_=2, groups=1, size=64) | more
    (row,) = ask("attention_analysis", measured(state, state, configs=[config, config])).result["layers"]
    assert (row["head_size"], row["source"]) == (size, source)
    assert row["kv_heads"] * size == 64
    told = describe({name: array.shape for name, array in state.items()}, config)
    assert told.value("head_dim") == (None if source == "assumed" else size)


def test_what_fits_no_size_of_a_head_is_left_out() -> None:
    state = attention(0, heads_=4, groups=2, size=8)
    record = ask("attention_analysis", measured(state, state))
    assert (record.result["layers"], record.result["left_out"]) == ([], 3)
    latent = {name.replace("q_proj", "q_a_proj"): array for name, array in state.items()}
    latent |= {name.replace("q_proj", "q_b_proj"): array for name, array in state.items() if "q_proj" in name}
    assert ask("attention_analysis", measured(latent, latent, configs=[CONFIG, CONFIG])).result["layers_of"] == 0


@pytest.mark.parametrize(("factor", "fired"), [(1.999, False), (2.001, True)])
def test_growing_queries_and_keys_are_a_hint(factor: float, fired: bool) -> None:
    first = attention(0)
    second = first | {
        name: array * factor for name, array in first.items() if name.endswith("1.self_attn.k_proj.weight")
    }
    record = ask("attention_analysis", measured(first, second, configs=[CONFIG, CONFIG]))
    assert told(record) == [("qk-growth", "info", "model.layers.1.self_attn")] * fired


# Experts


def mixture(seed: int = 0, experts: int = 6, layers: int = 3, stacked: bool = False) -> Weights:
    noise = np.random.default_rng(seed)
    found: Weights = {EMBED: noise.normal(size=(90, 16)).astype(np.float32)}
    for layer in range(layers):
        at = f"model.layers.{layer}.mlp"
        found[f"{at}.gate.weight"] = noise.normal(size=(experts, 16)).astype(np.float32)
        found[f"{at}.shared_expert.up_proj.weight"] = noise.normal(size=(24, 16)).astype(np.float32)
        own = noise.normal(size=(2, experts, 24, 24)).astype(np.float32)
        if stacked:
            found[f"{at}.experts.up_proj"], found[f"{at}.experts.down_proj"] = own[0], own[1]
            continue
        for expert in range(experts):
            found[f"{at}.experts.{expert}.up_proj.weight"] = own[0, expert].copy()
            found[f"{at}.experts.{expert}.down_proj.weight"] = own[1, expert].copy()
    return found


def parts(state: Weights, layer: int, expert: int) -> list[np.ndarray]:
    at = f"model.layers.{layer}.mlp.experts"
    if f"{at}.up_proj" in state:
        return [state[f"{at}.{part}_proj"][expert] for part in ("up", "down")]
    return [state[f"{at}.{expert}.{part}_proj.weight"] for part in ("up", "down")]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stacked", [False, True])
def test_experts_have_the_numbers_of_numpy(seed: int, stacked: bool) -> None:
    noise = np.random.default_rng(seed + 70)
    first, second = mixture(seed, stacked=stacked), mixture(seed, stacked=stacked)
    for layer in range(3):
        for expert in range(5):  # the last is not touched
            for part in parts(second, layer, expert):
                part += (noise.normal(size=part.shape) * 10.0 ** noise.uniform(-3, 0)).astype(np.float32)
        second[f"model.layers.{layer}.mlp.gate.weight"] += noise.normal(size=(6, 16)).astype(np.float32)
    second[EMBED] = (second[EMBED] + 0.3 * noise.normal(size=(90, 16))).astype(np.float32)
    record = ask("expert_analysis", measured(first, second))
    wanted = {}
    for layer in range(3):
        path = f"model.layers.{layer}.mlp.experts"
        rows = [wide(m[f"model.layers.{layer}.mlp.gate.weight"]) for m in (first, second)]
        router = np.linalg.norm(rows[1] - rows[0], axis=1) / np.linalg.norm(rows[0], axis=1)
        for expert in range(6):
            a, b = (np.concatenate([wide(p).ravel() for p in parts(m, layer, expert)]) for m in (first, second))
            length, other = np.linalg.norm(a), np.linalg.norm(b)
            wanted[path, expert] = (
                np.linalg.norm(b - a) / length,
                1 - a @ b / length / other,
                other / length,
                router[expert],
            )
    for row in record.result["experts"]:
        rel, angle, ratio, moved = wanted.pop((row["layer"], row["expert"]))
        assert close(row["rel_l2"], rel)
        assert row["cosine_distance"] == pytest.approx(angle, rel=1e-6, abs=1e-13)
        assert close(row["norm_ratio"], ratio)
        assert close(row["router_rel_l2"], moved)
    assert wanted == {}
    for row in record.result["layers"]:
        rels = [one["rel_l2"] for one in record.result["experts"] if one["layer"] == row["layer"]]
        assert [row["smallest_rel_l2"], row["largest_rel_l2"]] == [min(rels), max(rels)]
        assert close(row["median_rel_l2"], float(np.median(rels)))
        assert (row["experts"], row["stacked"], row["untouched"]) == (6, stacked, 1)
    rest = [np.concatenate([wide(m[n]).ravel() for n in sorted(m) if ".experts." not in n]) for m in (first, second)]
    assert close(
        record.result["rest_cosine"], float(rest[0] @ rest[1] / np.linalg.norm(rest[0]) / np.linalg.norm(rest[1]))
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_experts_drawn_anew_are_named_where_the_rest_is_kept(stacked: bool) -> None:
    first, second, other = mixture(0, stacked=stacked), mixture(0, stacked=stacked), mixture(1, stacked=stacked)
    for expert in (1, 4):
        for part, new in zip(parts(second, 2, expert), parts(other, 2, expert), strict=True):
            part[:] = new
    record = ask("expert_analysis", measured(first, second))
    found = only(record)
    assert told(record) == [("reinitialised-experts", "high", "model.layers.2.mlp.experts")]
    assert found.value == 2
    assert found.source.startswith("2 (1, 4) of 6 experts")
    assert [row["renewed"] for row in record.result["layers"]] == [0, 0, 2]
    assert ask("expert_analysis", measured(first, other)).findings == ()  # another model altogether


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("how", ["transposed", "swapped rows"])
def test_experts_rearranged_are_not_said_to_be_drawn_anew(stacked: bool, how: str) -> None:
    first, second = mixture(0, stacked=stacked), mixture(0, stacked=stacked)
    for part in parts(second, 0, 3):
        part[:] = part.T.copy() if how == "transposed" else part[::-1].copy()
    record = ask("expert_analysis", measured(first, second))
    assert told(record) == [("rearranged-experts", "high", "model.layers.0.mlp.experts")]
    assert "1 (3) of 6" in only(record).source


@pytest.mark.parametrize("limit", [0.9999, 1.0001])
def test_an_expert_is_another_one_below_a_cosine(limit: float) -> None:
    first, second, other = mixture(0), mixture(0), mixture(1)
    for part, new in zip(parts(second, 1, 2), parts(other, 1, 2), strict=True):
        part[:] = 0.5 * part + 0.5 * new
    a, b = (np.concatenate([wide(part).ravel() for part in parts(m, 1, 2)]) for m in (first, second))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    record = ask("expert_analysis", measured(first, second), renewed_cosine=limit * float(cosine))
    assert [one.rule for one in record.findings] == ["reinitialised-experts"] * (limit > 1)


def test_identical_experts_are_serious_and_told_once() -> None:
    good, bad = mixture(0), mixture(0)
    for expert in (2, 5):
        for part, original in zip(parts(bad, 1, expert), parts(bad, 1, 0), strict=True):
            part[:] = original
    found = measured(good, bad, bad, pairs=[(0, 1), (1, 2)])
    told_of = [[one for one in told(ask("expert_analysis", found, pair)) if "collapsed" in one[0]] for pair in (0, 1)]
    assert told_of == [[("collapsed-experts", "high", "model.layers.1.mlp.experts")], []]
    first = next(one for one in ask("expert_analysis", found).findings if "collapsed" in one.rule)
    assert (first.value, "2 (2, 5) of 6" in first.source) == (2, True)
    both = ask("expert_analysis", measured(bad, bad))
    assert only(both).source.startswith("of the baseline")
    parts(bad, 1, 2)[1].view(np.uint32)[0, 0] ^= 1  # one bit makes it another
    assert ask("expert_analysis", measured(bad, bad)).findings[0].value == 1


def test_equal_experts_of_a_stack_are_possible() -> None:
    good, bad = mixture(0, stacked=True), mixture(0, stacked=True)
    for part, original in zip(parts(bad, 1, 4), parts(bad, 1, 0), strict=True):
        part[:] = original
    rules = told(ask("expert_analysis", measured(good, bad)))
    assert ("possible-collapsed-experts", "medium", "model.layers.1.mlp.experts") in rules
    assert not any(rule == "collapsed-experts" for rule, _, _ in rules)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("ratio", "dead"), [(0.0, True), (0.999e-3, True), (1.001e-3, False)])
def test_an_expert_of_no_length_is_dead(stacked: bool, ratio: float, dead: bool) -> None:
    state = {name: wide(array) for name, array in mixture(0, experts=5, stacked=stacked).items()}
    norms = [np.sqrt(sum((part**2).sum() for part in parts(state, 0, expert))) for expert in range(5)]
    middle = np.sort(np.delete(norms, 3))[1]
    for part in parts(state, 0, 3):
        part *= ratio * middle / norms[3]
    record = ask("expert_analysis", measured(state, state))
    assert told(record) == [("dead-experts", "medium", "model.layers.0.mlp.experts")] * dead
    assert record.result["layers"][0]["dead"] == dead


def test_experts_without_the_parts_of_the_others_are_left_out() -> None:
    state = mixture(0)
    del state["model.layers.1.mlp.experts.4.up_proj.weight"]
    record = ask("expert_analysis", measured(state, state))
    assert record.result["left_out"] == 1
    assert [row["experts"] for row in record.result["layers"]] == [6, 5, 6]


def test_an_expert_with_a_nan_has_no_numbers() -> None:
    first, second = mixture(0), mixture(0)
    parts(second, 1, 2)[0][3, 3] = np.nan
    record = ask("expert_analysis", measured(first, second))
    assert ("model.layers.1.mlp.experts", 2) not in {(row["layer"], row["expert"]) for row in record.result["experts"]}
    assert record.findings == ()


def test_many_findings_of_one_rule_are_counted() -> None:
    first, second, other = mixture(0, layers=5), mixture(0, layers=5), mixture(1, layers=5)
    for layer in range(5):
        for part, new in zip(parts(second, layer, 1), parts(other, layer, 1), strict=True):
            part[:] = new
    assert len(ask("expert_analysis", measured(first, second), listed=5).findings) == 5
    found = only(ask("expert_analysis", measured(first, second), listed=4))
    assert (found.rule, found.severity, found.tensor, found.value, found.threshold) == (
        "reinitialised-experts", "high", None, 5, 4,
    )  # fmt: skip


@pytest.mark.parametrize("third", [np.zeros((80, 16, 2), np.float32), np.zeros(16, np.float32)])
def test_a_lost_tie_is_named_whatever_a_third_member_holds(third: np.ndarray) -> None:
    first = tied(model())
    second = {name: array.copy() for name, array in first.items()}
    second[HEAD][3, 3] += 1
    found = measured(first, second, model() | {HEAD: third}, pairs=[(0, 1), (1, 2)])
    assert told(ask("embedding_analysis", found)) == [("lost-tie", "high", HEAD)]
    assert told(ask("embedding_analysis", found, 1)) == []
