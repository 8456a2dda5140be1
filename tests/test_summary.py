"""The summary's regime and findings, the profile of depth, and the orders by change."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from details_oracle import measured
from diffai_dist.analyses import layer_impact
from diffai_dist.analyses.change_summary import ChangeSummary
from diffai_dist.analyses.layer_impact import LayerImpact
from diffai_dist.analyses.sort_by_change import KEYS, sort_by_change
from diffai_dist.cli import commands
from diffai_dist.judging import tensor_records
from diffai_dist.records import AnalysisRecord, Measurements, TensorRecord
from diffai_dist.report.lines import analysis_lines
from diffai_dist.report.view import View
from models import write
from results import change, tensor
from transformer import training, tuned

Arrays = Mapping[str, np.ndarray]


def judged(kind: type, measurements: Measurements, **options: Any) -> AnalysisRecord:
    """The answer in strict JSON, with the keys and rules that the analysis declares."""
    answer = kind(**options)(measurements, 0, tensor_records(measurements, 0))
    json.dumps(answer.result, allow_nan=False)
    assert set(answer.result) == set(kind.result)
    assert {one.rule for one in answer.findings} <= kind.rules.keys()
    return answer


def ask(kind: type, before: Arrays, after: Arrays, **options: Any) -> AnalysisRecord:
    return judged(kind, measured([before, after]), **options)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(layer_impact).failed == 0


# Change summary


@pytest.mark.parametrize(("how", "expected"), [("head", "head-only"), ("lora", "lora-like"), ("full", "dense")])
def test_the_summary_says_what_kind_of_training_it_looks_like(how: str, expected: str) -> None:
    result = ask(ChangeSummary, *tuned(how)).result
    assert result["regime"] == expected
    assert {row["evidence"] for row in result["evidence"]}


def test_the_summary_counts_its_findings() -> None:
    a = {"w": np.ones(8, np.float32), "gone": np.ones(8, np.float32), "bent": np.ones((2, 4), np.float32)}
    b = {"w": np.array([math.nan, *[1] * 7], np.float32), "new": np.ones(8, np.float32), "bent": np.ones(8, np.float32)}
    answer = ask(ChangeSummary, a, b)
    assert answer.result["findings"] == {"critical": 1, "high": 0, "medium": 1, "low": 0, "info": 2}
    assert sum(answer.result["findings"].values()) == len(answer.findings)


def test_a_vocabulary_that_grew_is_no_finding_of_medium_and_one_that_shrank_is() -> None:
    before, after = tuned("grown")
    found = {one.rule: one.severity for one in ask(ChangeSummary, before, after).findings}
    assert found == {"tensors-incomparable": "info"}
    assert {one.severity for one in ask(ChangeSummary, after, before).findings} == {"medium"}
    bent = after | {"model.norm.weight": np.ones(33, np.float32)}
    assert {one.severity for one in ask(ChangeSummary, before, bent).findings} == {"medium"}


def test_tensors_under_another_name_are_counted() -> None:
    measurements = measured([training()[0], training()[1]])
    records = list(tensor_records(measurements, 0))
    records[3] = dataclasses.replace(records[3], candidate_name="module.other")
    assert ChangeSummary()(measurements, 0, records).result["renamed"] == 1
    assert ChangeSummary()(measurements, 0, tensor_records(measurements, 0)).result["renamed"] == 0


def test_the_summary_stays_one_screen() -> None:
    steps = training()
    lines = "".join(analysis_lines(ask(ChangeSummary, steps[0], steps[1]), View())).splitlines()
    assert len(lines) <= 36


def test_the_summary_lists_as_many_movers_as_are_asked_for() -> None:
    steps = training()
    assert len(ask(ChangeSummary, steps[0], steps[1], top=3).result["top"]) == 3


# Layer impact


def stacked(parts: list[float], name: str = "model.layers") -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Blocks whose squared change is so much each, and a tensor outside of them."""
    before = {f"{name}.{i}.mlp.up_proj.weight": np.ones(4, np.float64) for i in range(len(parts))}
    after = {key: a + np.sqrt(part) / 2 for (key, a), part in zip(before.items(), parts, strict=True)}
    return before | {"lm_head.weight": np.ones(4)}, after | {"lm_head.weight": np.full(4, 9.0)}


@given(st.lists(st.floats(0.001, 10), min_size=2, max_size=14))
def test_the_profile_of_depth_is_that_of_its_definition(parts: list[float]) -> None:
    before, after = stacked(parts)
    (row,) = ask(LayerImpact, before, after).result["depth"]
    real = np.array([float(np.sum((after[name] - before[name]) ** 2)) for name in list(before)[:-1]])
    places = np.arange(len(parts)) / (len(parts) - 1)
    differences = sum(abs(x - y) for x, y in itertools.product(real, real))
    assert (row["stack"], row["blocks"]) == ("model.layers", len(parts))
    assert row["centre"] == pytest.approx(float(places @ real / real.sum()))
    assert row["gini"] == pytest.approx(float(differences / (2 * len(parts) * real.sum())), abs=1e-9)


def test_a_stack_that_did_not_move_or_has_one_block_has_no_profile() -> None:
    unknown = {"centre": None, "gini": None}
    assert ask(LayerImpact, *stacked([0.0, 0.0])).result["depth"] == [{"stack": "model.layers", "blocks": 2, **unknown}]
    assert ask(LayerImpact, *stacked([1.0])).result["depth"] == [{"stack": "model.layers", "blocks": 1, **unknown}]
    plain = {"fc1.weight": np.ones(4), "fc2.weight": np.ones(4)}
    assert ask(LayerImpact, plain, {name: a * 2 for name, a in plain.items()}).result["depth"] == []


def test_each_stack_has_its_own_profile() -> None:
    before, after = stacked([1.0, 1.0], "vision.blocks")
    more = stacked([0.0, 3.0, 0.0])
    rows = ask(LayerImpact, before | more[0], after | more[1]).result["depth"]
    assert [(row["stack"], row["centre"]) for row in rows] == [("model.layers", 0.5), ("vision.blocks", 0.5)]
    assert rows[0]["gini"] == pytest.approx(2 / 3)


def test_a_dominant_block_is_told_beyond_its_threshold_and_not_at_it() -> None:
    before, after = stacked([4.0, 4.0])
    del before["lm_head.weight"], after["lm_head.weight"]
    assert not ask(LayerImpact, before, after).findings
    found = ask(LayerImpact, before, after, dominant_share=math.nextafter(0.5, 0)).findings
    assert [(one.tensor, one.value) for one in found] == [("model.layers.0", 0.5), ("model.layers.1", 0.5)]


# Orders


@given(st.sampled_from(KEYS), st.lists(st.one_of(st.none(), st.floats(0, 1e9)), max_size=8))
def test_each_key_orders_by_its_own_number(key: str, sizes: list[float | None]) -> None:
    records = [tensor(f"t{i}", change=change(**{key: size, "l2": size})) for i, size in enumerate(sizes)]
    found = sort_by_change(records, key)
    known = [number(record, key) for record in found if number(record, key) is not None]
    assert known == sorted(known, reverse=True)
    last = found[: len(found) - len(known)] if key == "rel_l2" else found[len(known) :]
    if key != "rel_l2":
        assert all(number(record, key) is None for record in last)
    assert sort_by_change(records[::-1], key) == found


def number(record: TensorRecord, key: str) -> float | None:
    value: float | None = getattr(record.change, key)
    return value


def test_every_key_moves_the_order() -> None:
    """Nine tensors whose ranks differ from key to key."""
    ranks = {key: np.roll(np.arange(9), shift).tolist() for shift, key in enumerate(KEYS)}
    records = [
        tensor(f"t{i}", change=change(**{key: 1.0 + order[i] for key, order in ranks.items()})) for i in range(9)
    ]
    orders = {key: [record.name for record in sort_by_change(records, key)] for key in KEYS}
    for key, order in orders.items():
        assert order == [f"t{i}" for i in sorted(range(9), key=lambda i: -ranks[key][i])]
    assert len({tuple(order) for order in orders.values()}) == len(KEYS)
    assert sort_by_change(records) == sort_by_change(records, "rel_l2")


@pytest.fixture
def moved(tmp_path: Path) -> tuple[str, str]:
    """Three tensors: the largest relative change is of the first, the largest element's of the second."""
    before = {"a": np.full(4, 0.01), "b": np.full(4, 100.0), "c": np.full(4, 1.0)}
    after = {"a": np.full(4, 0.02), "b": np.array([103.0, 100, 100, 100]), "c": np.array([1.0, 1.2, 1.2, 1.2])}
    paths = [
        write(tmp_path / name, {key: a.astype(np.float32) for key, a in one.items()})
        for name, one in (("a.safetensors", before), ("b.safetensors", after))
    ]
    return str(paths[0]), str(paths[1])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "abc"),
        (["--sort-by-change-magnitude"], "acb"),
        (["--sort-by", "rel_l2"], "acb"),
        (["--sort-by", "max_abs"], "bca"),
        (["--sort-by", "changed_fraction"], "acb"),
        (["--sort-by-change-magnitude", "--sort-by", "l2"], "bca"),
    ],
)
def test_the_command_line_sorts_by_any_key(moved: tuple[str, str], options: list[str], expected: str) -> None:
    done = CliRunner().invoke(commands, ["compare", *moved, "-o", "json", *options], standalone_mode=False)
    assert done.return_value == 0
    rows = [row for row in json.loads(done.stdout) if row["kind"] == "tensor"]
    assert "".join(row["name"] for row in rows) == expected


def test_a_key_that_nothing_sorts_by_is_refused(moved: tuple[str, str]) -> None:
    done = CliRunner().invoke(commands, ["compare", *moved, "--sort-by", "median"], standalone_mode=False)
    assert isinstance(done.exception, click.UsageError)
    assert "rel_l2" in str(done.exception)
