"""Every analysis of the registry: it runs alone and with all others, moves with its input, and is what it says.

`python tests/test_registry.py` writes schema/analyses-1.json anew, which the classes decide.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import ml_dtypes
import numpy as np
import pytest

import models
from diffai_dist import analyses as registry
from diffai_dist import compare, sweep
from diffai_dist.analyses import ANALYSES, Listed
from diffai_dist.analyses.ancestor import REFUSED
from diffai_dist.analyses.base import thresholds
from diffai_dist.explaining import explained
from diffai_dist.partials import DETAILS
from diffai_dist.records import SEVERITIES
from diffai_dist.report import records_schema
from diffai_dist.report.schema import analyses_schema
from transformer import Model, Weights

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "diffai_dist" / "schema" / "analyses-1.json"
KINDS: dict[str, Any] = dict(registry.EVERY)
EVERY = pytest.mark.parametrize("name", KINDS)
OPTIONAL = "only there"  # in what a class says of a key: some results have none
# Floats of a dtype: 6.02 dB for each significant bit, and 8.12; quantiles, which are values that bins begin with.
OF_A_DTYPE = {"theory_db", "baseline", "candidate"}
OF_ONE_ELEMENT = {0.5 * math.log(2)}  # its PSI, if it moved: those of steps did

# Powers of two, and odd numbers: no share of so many elements is one of so many others, but 0 and 1.
MODELS = (
    Model(layers=2, hidden=32, heads=4, kv_heads=2, ffn=64, vocab=64, experts=2),
    Model(layers=3, hidden=45, heads=3, kv_heads=1, ffn=75, vocab=63, experts=3),
)
STEPS = ((100, 200, 300, 400, 500, 600), (130, 270, 390, 530, 690, 810, 970))

STATES = ("model.layers.0.self_attn.o_proj.weight", "lm_head.weight")

VALIDATOR = jsonschema.Draft202012Validator(records_schema())

Records = dict[tuple[str, ...], dict[str, Any]]


def random_walk(seed: int) -> list[Weights]:
    """Checkpoints of a model of that seed's widths, the optimizer's state of a few with them; the last is BF16."""
    generator, model = np.random.default_rng([seed, 40]), MODELS[seed]
    scales = {name: generator.uniform(0.01, 0.05) for name in model.shapes()}
    now = {name: generator.normal(0, scales[name], shape) for name, shape in model.shapes().items()}
    found = []
    for step in STEPS[seed]:
        now = {name: array + generator.normal(0, 0.05 * scales[name], array.shape) for name, array in now.items()}
        found.append({name: array.astype(np.float32) for name, array in now.items()})
        for name in STATES:
            array = now[name]
            found[-1] |= {
                f"optimizer.state.{name}.exp_avg": generator.normal(0, 1e-4, array.shape).astype(np.float32),
                f"optimizer.state.{name}.exp_avg_sq": (generator.normal(0, 1e-3, array.shape) ** 2).astype(np.float32),
                f"optimizer.state.{name}.step": np.array(step, np.float32),
            }
    rounded = {name: found[-1][name].astype(ml_dtypes.bfloat16) for name in model.shapes()}
    return [*found[:-1], found[-1] | rounded]


def spoiled(seed: int) -> list[Weights]:
    """The same with one fault of each of many kinds."""
    found = random_walk(seed)
    head = "lm_head.weight"
    found[1][head].flat[5] = np.nan
    found[2]["model.norm.weight"][:] = 0
    found[3] = {name: array.copy() for name, array in found[2].items()}
    found[4]["model.embed_tokens.weight"] = found[0]["model.embed_tokens.weight"].copy()
    found[4]["model.layers.0.self_attn.q_proj.weight"] *= 1e30
    found[4].pop("model.layers.1.self_attn.v_proj.weight")
    found[5][head] = found[5][head][:-7]
    found[5]["model.layers.1.self_attn.k_proj.weight"] = np.ones((3, 2), np.float32)
    return found


@cache
def folder_of(kind: str, seed: int, root: Path) -> Path:
    """The checkpoints on disk."""
    made = {"walk": random_walk, "spoiled": spoiled}[kind](seed)
    folder = root / f"{kind}-{seed}"
    for step, arrays in zip(STEPS[seed], made, strict=True):
        models.write(folder / f"step-{step}" / "model.safetensors", arrays)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@cache
def records(root: Path, kind: str, seed: int, *names: str) -> Records:
    """The records of these analyses by name and by what they are about; all of them fit the published schema."""
    report = sweep(checkpoints=f"{folder_of(kind, seed, root)}/step-*", analyses=names, pairs="consecutive")
    assert not report.failures
    found = [record for record in report.records if record["kind"] == "analysis"]
    VALIDATOR.validate(found)
    return {(record["name"], *record.get("pair", record.get("members"))): record for record in found}


def own(found: Records, name: str) -> Records:
    return {key: record for key, record in found.items() if record["name"] == name}


def numbers(value: Any) -> Iterator[float]:
    """Every float that is no whole number."""
    if isinstance(value, Mapping):
        value = [one for key, one in value.items() if key not in OF_A_DTYPE]
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, float) and not value.is_integer():
        yield value


@EVERY
def test_each_is_declared_in_full(name: str) -> None:
    kind = KINDS[name]
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert kind.name == name
    assert registry.EVERY.listed[name] == Listed(kind.flag, kind.__name__, (kind.__doc__ or "").splitlines()[0])
    assert re.fullmatch(r"--[a-z-]+", kind.flag)
    assert kind.flag.removeprefix("--show-").removeprefix("--").replace("-", "_") == name
    assert kind.kind == "2" if name in ANALYSES else kind.kind in "H1N"
    assert set(kind.partials) <= {"gram", "config", *DETAILS}
    assert 20 < len((kind.__doc__ or "").splitlines()[0]) <= 120
    assert {field.name for field in dataclasses.fields(kind)} == set(thresholds(kind))
    assert kind.result
    assert kind.sources
    for text in (*kind.result.values(), *kind.rules.values(), *kind.sources):
        assert text == text.strip() != ""
    for rule, test in kind.rules.items():
        assert re.fullmatch(r"[a-z0-9-]+", rule)
        assert any(severity in test for severity in SEVERITIES), f"{rule} has no severity"


@EVERY
def test_each_runs_alone_as_it_does_with_all_others(root: Path, name: str) -> None:
    alone, together = own(records(root, "walk", 0, name), name), own(records(root, "walk", 0, *KINDS), name)
    assert len(alone) == (len(STEPS[0]) - 1 if name in ANALYSES else 1)
    assert alone == together


@EVERY
def test_each_moves_with_its_input_and_holds_no_literal(root: Path, name: str) -> None:
    inputs = (("walk", 0), ("walk", 1), ("spoiled", 0))
    first, second, third = (
        [one["result"] for one in own(records(root, *given, *KINDS), name).values()] for given in inputs
    )
    assert first != second or first != third
    limits = {field.default for field in thresholds(KINDS[name]).values()}
    assert set(numbers(first)) & set(numbers(second)) <= limits | OF_ONE_ELEMENT


@EVERY
def test_each_result_has_the_keys_that_its_class_declares(root: Path, name: str) -> None:
    declared = KINDS[name].result
    always = {key for key, meaning in declared.items() if OPTIONAL not in meaning}
    for seed in (0, 1):
        for record in own(records(root, "walk", seed, *KINDS), name).values():
            assert always <= set(record["result"]) <= set(declared)
        for record in own(records(root, "spoiled", seed, *KINDS), name).values():
            assert set(record["result"]) <= set(declared)


def test_a_comparison_of_two_answers_every_question(root: Path) -> None:
    ends = [folder_of("walk", 0, root) / f"step-{step}" / "model.safetensors" for step in STEPS[0][-2:]]
    found = [one for one in compare(*map(str, ends), analyses=list(KINDS)).records if one["kind"] == "analysis"]
    VALIDATOR.validate(found)
    assert {record["name"] for record in found} == set(KINDS)
    for record in found:
        assert set(record["result"]) <= set(KINDS[record["name"]].result), record["name"]


@pytest.mark.parametrize("seed", [0, 1])
def test_findings_have_rules_that_their_classes_declare_with_their_severities(root: Path, seed: int) -> None:
    told = set()
    for record in records(root, "spoiled", seed, *KINDS).values():
        for finding in record["findings"]:
            rules = KINDS[record["name"]].rules
            assert finding["rule"] in rules, f"{record['name']}: {finding['rule']}"
            assert finding["severity"] in rules[finding["rule"]], finding
            told.add(finding["rule"])
    assert len(told) >= 8


@EVERY
def test_explain_and_the_readme_know_each(name: str) -> None:
    kind = KINDS[name]
    assert explained(kind.flag) == explained(name) == explained(name.replace("_", "-"))
    assert explained(name)["result"] == dict(kind.result)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"{kind.flag}(?![a-z-])", readme), f"the README does not name {kind.flag}"


def test_what_is_refused_is_no_analysis_and_what_is_nearest_is_one() -> None:
    assert not set(REFUSED) & set(KINDS)
    for _, nearest in REFUSED.values():
        assert {f"--{one.replace('_', '-')}" for one in nearest} <= {kind.flag for kind in KINDS.values()}


def test_the_published_schema_is_what_the_classes_say() -> None:
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == analyses_schema(), "python tests/test_registry.py"
    jsonschema.Draft202012Validator.check_schema(analyses_schema())


def test_the_schema_of_analyses_is_part_of_that_of_records() -> None:
    """One that were not looked at would refuse nothing."""
    schema = records_schema()
    schema["$defs"]["analyses"]["$defs"]["layer_impact"]["properties"]["result"]["maxProperties"] = 0
    record = {"kind": "analysis", "name": "layer_impact", "result": {"tensors": 1}, "findings": []}
    assert jsonschema.Draft202012Validator(records_schema()).is_valid([record])
    assert not jsonschema.Draft202012Validator(schema).is_valid([record])
    assert jsonschema.Draft202012Validator(schema).is_valid([record | {"name": "another"}])


if __name__ == "__main__":
    PUBLISHED.write_text(json.dumps(analyses_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
