"""What the analyses of a series say about trainings whose faults and shapes are known."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from diffai_dist import sweep
from diffai_dist.analyses import SERIES, anomaly_detection, closeness, lengths, series, staleness_check, updates
from diffai_dist.analyses.anomaly_detection import AnomalyDetection
from diffai_dist.analyses.convergence_analysis import CONFOUND, ConvergenceAnalysis
from diffai_dist.analyses.series import Series
from diffai_dist.analyses.similarity_matrix import SimilarityMatrix
from diffai_dist.analyses.staleness_check import StalenessCheck
from diffai_dist.analyses.trajectory import Trajectory, grouped
from diffai_dist.analyses.update_anomaly import UpdateAnomaly
from diffai_dist.errors import Failure
from diffai_dist.gram import gram_changes
from diffai_dist.records import AnalysisRecord, Finding, Member
from trajectories import Weights, series_of, trained

FAILURE = Failure("E1103", "s3://b/run/step-000300/model-0.safetensors", None, "8 bytes", "7 bytes", "Read it again")


@pytest.mark.parametrize("module", [anomaly_detection, lengths, series, staleness_check, updates])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def all_findings(found: Series) -> list[Finding]:
    return [finding for name in OF_TRAINING for finding in SERIES[name]()(found).findings]


def told(findings: list[Finding] | tuple[Finding, ...]) -> list[tuple[str, str, str | None, str | None, str | None]]:
    return [(one.rule, one.severity, one.tensor, one.baseline, one.candidate) for one in findings]


# Silence, and each plant alone


@pytest.mark.parametrize("schedule", ["constant", "cosine", "drop"])
@pytest.mark.parametrize("seed", range(4))
def test_an_ordinary_training_has_no_findings(schedule: str, seed: int) -> None:
    assert all_findings(series_of(trained(seed, schedule), anchor=0, shards=3)) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("anchor", [None, 0])
def test_the_plants_of_a_night_are_named_and_nothing_else(seed: int, anchor: int | None) -> None:
    states = trained(seed)
    states[3]["layers.2.weight"][1, 2] = np.nan
    for name in ("layers.1.weight", "layers.1.bias", "layers.4.weight", "layers.4.bias"):
        states[6][name] = states[5][name].copy()
    states[9] = {name: values.copy() for name, values in states[8].items()}
    found = series_of(states, anchor=anchor, shards=3)
    assert told(all_findings(found)) == [
        ("duplicate-checkpoint", "critical", None, "step-000900", "step-001000"),
        ("stale-object", "critical", None, "step-000600", "step-000700"),
        ("non-finite-appeared", "critical", "layers.2.weight", "step-000300", "step-000400"),
    ]
    duplicate, stale = StalenessCheck()(found).findings
    assert duplicate.value == sum(one.nbytes for one in states[9].values())
    assert stale.value == "s3://b/run/step-000700/model-1.safetensors"
    assert "bits" in stale.source


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [8.0, 30.0])
def test_a_layer_that_spikes_and_returns_is_named_with_its_interval(seed: int, factor: float) -> None:
    states = trained(seed)
    for name in ("layers.3.weight", "layers.3.bias"):
        states[7][name] += (factor * (states[7][name] - states[6][name])).astype(np.float32)
    found = series_of(states, anchor=0)
    record = UpdateAnomaly()(found)
    assert [one[2:] for one in told(record.findings)] == [("layers.3", "step-000700", "step-000800")]
    (spike,) = record.result["spikes"]
    assert (spike["block"], spike["recovered"]) == ("layers.3", True)
    assert abs(spike["z"]) > 3.5
    assert spike["share"] > 0.5 > spike["share_before"]
    assert spike["ratio"] == pytest.approx(factor, rel=0.6)
    (again,) = UpdateAnomaly()(series_of(states)).result["spikes"]
    assert again["recovered"] is None  # without the Gram nobody knows the direction
    assert [again[key] for key in ("block", "baseline")] == [spike[key] for key in ("block", "baseline")]
    assert again["z"] == pytest.approx(spike["z"])


def test_a_layer_that_jumps_and_stays_was_not_undone() -> None:
    states = trained(1)
    jump = np.random.default_rng(0).normal(size=states[7]["layers.2.weight"].shape).astype(np.float32)
    for state in states[7:]:
        state["layers.2.weight"] += jump
    (spike,) = UpdateAnomaly()(series_of(states, anchor=0)).result["spikes"]
    assert (spike["block"], spike["candidate"], spike["recovered"]) == ("layers.2", "step-000800", False)


def test_a_jump_of_the_whole_model_is_one_finding() -> None:
    states = trained(2)
    for state in states[7:]:
        for name, values in state.items():
            values += 30 * (states[6][name] - states[5][name])
    assert told(UpdateAnomaly()(series_of(states)).findings) == [
        ("update-jump", "high", None, "step-000700", "step-000800")
    ]


def test_a_jump_behind_a_duplicate_is_seen() -> None:
    states = trained(0)
    states[9] = {name: values.copy() for name, values in states[8].items()}
    states[11]["layers.3.weight"] += np.float32(0.3)
    assert told(all_findings(series_of(states))) == [
        ("duplicate-checkpoint", "critical", None, "step-000900", "step-001000"),
        ("update-jump", "high", "layers.3", "step-001100", "step-001200"),
    ]


def test_a_layer_whose_update_undoes_the_last_one_is_named() -> None:
    states = line(8, blocks=4)
    update = states[5]["h.2.w"] - states[4]["h.2.w"]
    for t in range(5, 8):
        states[t]["h.2.w"] -= 2 * (t - 4) * update
    assert told(UpdateAnomaly()(series_of(states, anchor=0)).findings) == [
        ("update-reversed", "medium", "h.2", "step-000500", "step-000600")
    ]
    assert told(UpdateAnomaly()(series_of(states)).findings) == []


def test_longer_steps_between_members_are_no_anomaly() -> None:
    states = trained(0, members=24)
    chosen = [0, 1, 2, 3, 4, 5, 15, 16, 17, 18]
    found = series_of([states[i] for i in chosen], steps=[40 * i for i in chosen])
    assert UpdateAnomaly()(found).findings == ()


@pytest.mark.parametrize("members", range(1, 7))
def test_few_members_are_said_to_be_few(members: int) -> None:
    result = UpdateAnomaly()(series_of(trained()[:members])).result
    assert ("reason" in result) == (members < 5)
    assert result["updates"] == members - 1


def test_what_was_not_measured_from_step_to_step_is_counted() -> None:
    result = UpdateAnomaly()(series_of(trained(), pairs="first")).result
    assert result["left_out"]["not_measured"] == 12 * 10
    assert result["blocks"] == 6  # the first interval is one of the pairs


# Staleness


def test_frozen_tensors_are_one_finding_and_no_fault() -> None:
    states = trained()
    for state in states:
        state["layers.0.weight"] = states[0]["layers.0.weight"].copy()
    record = StalenessCheck()(series_of(states, shards=2))
    assert told(record.findings) == [("frozen-tensors", "info", None, None, None)]
    assert (record.findings[0].value, record.result["frozen"], record.result["stale_tensors"]) == (1, 1, [])


def test_one_stale_tensor_is_named_once_with_its_number_of_members() -> None:
    states = trained()
    for member in (4, 5, 9):
        states[member]["layers.2.bias"] = states[member - 1]["layers.2.bias"].copy()
    record = StalenessCheck()(series_of(states))
    (finding,) = record.findings
    assert told([finding]) == [("stale-tensor", "high", "layers.2.bias", "step-000400", "step-000500")]
    assert finding.value == 3
    assert [row["checkpoint"] for row in record.result["stale_tensors"]] == [
        "step-000500",
        "step-000600",
        "step-001000",
    ]
    assert record.result["stale"] == 1


def test_many_stale_tensors_of_one_member_are_one_finding() -> None:
    states = trained()
    for name in list(states[4])[:-1]:
        states[4][name] = states[3][name].copy()
    found = series_of(states)
    assert told(StalenessCheck(listed=5)(found).findings) == [
        ("stale-tensors", "high", None, "step-000400", "step-000500")
    ]
    assert len(StalenessCheck(listed=11)(found).findings) == 11


POSSIBLE = ("possible-stale-object", "medium", "bits were not compared: diffai-dist compare s3://")


@pytest.mark.parametrize(
    ("pairs", "rule", "severity", "words"),
    [("consecutive", *POSSIBLE), ("all", "stale-object", "critical", "the bits are equal")],
)
def test_an_old_shard_is_found_in_any_earlier_member(pairs: str, rule: str, severity: str, words: str) -> None:
    states = trained()
    for name in ("layers.1.weight", "layers.1.bias", "layers.4.weight", "layers.4.bias"):
        states[8][name] = states[3][name].copy()
    found = series_of(states, shards=3, pairs=pairs)
    (finding,) = all_findings(found)
    assert told([finding]) == [(rule, severity, None, "step-000400", "step-000900")]
    assert words in finding.source
    (row,) = StalenessCheck()(found).result["stale_objects"]
    assert row["bytes"] == sum(states[8][name].nbytes for name in states[8] if name.split(".")[1] in "14")


@pytest.mark.parametrize(
    ("pairs", "anchor", "proven"), [("consecutive", None, False), ("consecutive", 0, True), ("all", None, True)]
)
def test_a_duplicate_of_any_earlier_member_is_found(pairs: str, anchor: int | None, proven: bool) -> None:
    states = trained()
    states[10] = {name: values.copy() for name, values in states[4].items()}
    found = series_of(states, pairs=pairs, anchor=anchor)
    rule, severity = ("duplicate-checkpoint", "critical") if proven else ("possible-duplicate", "medium")
    assert [one for one in told(all_findings(found)) if one[0] != "outlier"] == [
        (rule, severity, None, "step-000500", "step-001100")
    ]
    (row,) = StalenessCheck()(found).result["duplicates"]
    assert row["proven"] is proven
    size = sum(values.nbytes for values in states[10].values()) if proven else None
    assert row["freed_bytes"] == all_findings(found)[0].value == size


def swapped(values: np.ndarray) -> np.ndarray:
    """Another tensor with the same statistics to the last bit."""
    turned = values.copy()
    turned[[100, 116]] = values[[116, 100]]
    return turned


def whole_numbers(seed: int) -> np.ndarray:
    """Sums of such do not depend on their order; the largest is at one place only."""
    values = np.random.default_rng(seed).integers(-3, 4, 1000).astype(np.float32)
    values[0], values[100], values[116] = 9, 1, 2
    return values


@pytest.mark.parametrize("pairs", ["consecutive", None])
def test_blocks_of_one_update_are_taken_together(pairs: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    noise, asked = np.random.default_rng(9), []
    sizes = [1, 2, 3] * 20  # tensors of a block
    names = [f"h.{block}.{part}.weight" for block, size in enumerate(sizes) for part in range(size)]
    states = [{name: noise.normal(size=(4, 6)) * 1e-3 for name in names}]
    states.append({name: weight + (name < "h.5") * noise.normal(size=(4, 6)) for name, weight in states[0].items()})
    found = series_of(states, anchor=0, **({"pairs": pairs} if pairs else {}))
    apart = [
        ConvergenceAnalysis()._summary(Trajectory(found, [0, 1], group))
        for _, group in grouped(found, range(len(names)))
    ]
    monkeypatch.setattr(closeness, "gram_changes", lambda *given: asked.append(1) or gram_changes(*given))
    result = ConvergenceAnalysis()(found).result
    assert [{key: value for key, value in row.items() if key != "block"} for row in result["blocks"]] == apart
    assert {row["plane_share"] for row in result["blocks"]} == {1.0, None}
    assert len(asked) == 3 * (1 + len(set(sizes)))  # of the whole and of each size, whatever the number of blocks


def test_equal_statistics_alone_prove_no_duplicate() -> None:
    first, other = whole_numbers(0), whole_numbers(1)
    states = [{"a.w": values} for values in (first, other, swapped(first))]
    (finding,) = StalenessCheck()(series_of(states)).findings
    assert told([finding]) == [("possible-duplicate", "medium", None, "step-000100", "step-000300")]
    assert finding.value is None
    urls = [f"s3://b/run/step-000{step}/model-0.safetensors" for step in (100, 300)]
    assert finding.source.endswith(f"bits were not compared: diffai-dist compare {' '.join(urls)}")
    for measured in ({"pairs": "all"}, {"anchor": 0}):
        assert StalenessCheck()(series_of(states, **measured)).findings == ()


def test_equal_statistics_alone_prove_no_stale_tensor() -> None:
    first, other = whole_numbers(0), whole_numbers(1)
    states = [
        {"a.w": values, "b.w": whole_numbers(9) + t}
        for t, values in enumerate((first, other, swapped(first), 2 * other))
    ]
    (finding,) = StalenessCheck()(series_of(states)).findings
    assert told([finding]) == [("possible-stale-tensor", "medium", "a.w", "step-000100", "step-000300")]
    assert "diffai-dist compare" in finding.source
    assert StalenessCheck()(series_of(states, pairs="all")).findings == ()
    both = StalenessCheck(listed=0)(series_of([*states, {"a.w": 2 * other, "b.w": whole_numbers(3)}])).findings
    assert [(one.rule, one.severity) for one in both] == [
        ("possible-stale-tensors", "medium"),
        ("stale-tensors", "high"),
    ]


def test_what_equals_the_same_is_equal() -> None:
    """Bits of the third and the fifth were compared with the first alone."""
    states = [{"a.w": whole_numbers(seed)} for seed in (0, 1, 0, 2, 0)]
    found = series_of(states, pairs="first")
    assert found.equal.tolist() == [[0, 1, 0, 3, 0]]
    assert {one.rule for one in StalenessCheck()(found).findings} == {"duplicate-checkpoint"}


def test_a_proven_original_comes_before_a_possible_one() -> None:
    first, other = whole_numbers(0), whole_numbers(1)
    states = [{"a.w": values} for values in (first, other, swapped(first), swapped(first))]
    assert told(StalenessCheck()(series_of(states)).findings) == [
        ("possible-duplicate", "medium", None, "step-000100", "step-000300"),
        ("duplicate-checkpoint", "critical", None, "step-000300", "step-000400"),
    ]


def test_a_proven_difference_is_no_likeness() -> None:
    """The last equals the second by bits, and that differs from the first."""
    first = whole_numbers(0)
    states = [{"a.w": values} for values in (first, swapped(first), swapped(first))]
    assert told(StalenessCheck()(series_of(states)).findings) == [
        ("duplicate-checkpoint", "critical", None, "step-000200", "step-000300")
    ]


def test_an_optimizer_ahead_of_weights_that_were_not_compared_is_possible() -> None:
    states = [{"a.w": whole_numbers(seed), "optimizer.0.m": whole_numbers(10 + t)} for t, seed in enumerate((0, 1, 1))]
    rules = {
        pairs: told(StalenessCheck()(series_of(states, pairs=pairs)).findings)[0][:2] for pairs in ("first", "all")
    }
    assert rules == {"first": ("possible-optimizer-ahead", "medium"), "all": ("optimizer-ahead", "critical")}


@pytest.mark.parametrize("pairs", ["consecutive", "first", "all"])
def test_exports_of_one_model_hold_nothing_stale(pairs: str) -> None:
    """F32, then F64 with codes of its own, then F32 of other weights beside the same norm, with F64 codes again."""
    norm, first, other = whole_numbers(0), whole_numbers(1), whole_numbers(2)
    wide = [values.astype(np.float64) for values in (norm, first, other)]
    exports = [
        {"a.norm": norm, "b.w": first, "b.v": other},
        {"a.norm": wide[0], "b.w": wide[1] + 0.25, "b.v": wide[2]},
        {"a.norm": norm, "b.w": wide[1] + 0.5, "b.v": other},
        {"a.norm": wide[0], "b.w": wide[1] + 0.5, "b.v": wide[2]},
    ]
    answer = StalenessCheck()(series_of(exports, pairs=pairs))
    assert (answer.findings, answer.result["stale"]) == ((), 0)
    trained = [
        *exports,
        {"a.norm": norm + 1, "b.w": wide[1], "b.v": other + 1},
        {"a.norm": norm, "b.w": wide[1] - 1, "b.v": other - 1},
    ]
    stale = StalenessCheck()(series_of(trained, pairs="all")).result["stale_tensors"]
    assert [(one["tensor"], one["checkpoint"], one["equal_to"]) for one in stale] == [
        ("a.norm", "step-000600", "step-000300"),
    ]


@pytest.mark.parametrize(("pairs", "proven"), [("all", True), ("first", False)])
def test_one_model_in_two_formats_is_no_alarm(pairs: str, proven: bool) -> None:
    found = series_of([{"b.w": whole_numbers(seed)} for seed in (0, 1, 1)], pairs=pairs)
    rule, level = ("duplicate-checkpoint", "critical") if proven else ("possible-duplicate", "medium")
    assert told(StalenessCheck()(found).findings) == [(rule, level, None, "step-000200", "step-000300")]
    comparison = found.measured.comparison
    members = (*comparison.members[:2], dataclasses.replace(comparison.members[2], format="torch"))
    measured = dataclasses.replace(found.measured, comparison=dataclasses.replace(comparison, members=members))
    answer = StalenessCheck()(dataclasses.replace(found, measured=measured))
    assert told(answer.findings) == [(rule, "info", None, "step-000200", "step-000300")]
    assert answer.findings[0].source.startswith("one model as safetensors and as torch: ")
    assert answer.findings[0].value == (whole_numbers(0).nbytes if proven else None)


@pytest.mark.parametrize("link", ["hard", "symbolic", "folder"])
def test_an_object_that_another_checkpoint_has_is_not_freed(link: str, tmp_path: Path) -> None:
    """The third is a copy of the first, and the fourth a link to that: with the fourth, nothing frees the copy."""
    files = [tmp_path / f"step-{step}" / "model.safetensors" for step in range(4)]
    for path, seed in zip(files, (0, 1, 0), strict=False):
        path.parent.mkdir()
        models.write(path, {"w": whole_numbers(seed)})

    def freed() -> dict[str | None, Any]:
        found = sweep(checkpoints=str(tmp_path / "step-*"), pairs="all").findings
        return {one.candidate: one.value for one in found if one.rule == "duplicate-checkpoint"}

    assert freed() == {"step-2": files[2].stat().st_size}
    if link == "folder":
        files[3].parent.symlink_to(files[2].parent)
    else:
        files[3].parent.mkdir()
        (files[3].hardlink_to if link == "hard" else files[3].symlink_to)(files[2])
    assert freed() == {"step-2": 0, "step-3": 0}


def without(found: Series, member: int, *names: str) -> Series:
    """The same series, where the shard with these tensors is missing in a member."""
    comparison = found.measured.comparison

    def lost(one: Any) -> Any:
        failures = tuple(FAILURE if i == member else failure for i, failure in enumerate(one.unreadable))
        return dataclasses.replace(one, unreadable=failures) if one.name in names else one

    aligned = tuple(map(lost, comparison.aligned))
    assert all(one.tensors[member] is None for one in aligned if one.name in names)
    comparison = dataclasses.replace(comparison, aligned=aligned)
    return Series(dataclasses.replace(found.measured, comparison=comparison), found.members)


def test_a_missing_shard_is_counted_as_not_read() -> None:
    states = trained(members=6)
    names = "layers.0.weight", "layers.0.bias"
    for name in names:
        del states[2][name]
    found = series_of(states)
    for one, number in ((found, 0), (without(found, 2, *names), 2)):
        assert AnomalyDetection()(one).result["unread"] == number
        assert StalenessCheck()(one).result["unknown"] == 2 * number
        assert UpdateAnomaly()(one).result["left_out"]["not_measured"] == 2 * number


def test_checkpoints_that_lack_the_same_shard_are_no_duplicates() -> None:
    states = trained(members=3)
    states[2] = {name: values.copy() for name, values in states[1].items()}
    for state in states[1:]:
        del state["layers.0.weight"]
    found = series_of(states)
    assert found.duplicates == {2: 1}
    assert without(without(found, 1, "layers.0.weight"), 2, "layers.0.weight").duplicates == {}


def test_what_was_not_read_is_not_said_to_be_frozen() -> None:
    states = trained(members=4)
    for state in states:
        state["layers.0.weight"] = states[0]["layers.0.weight"].copy()
    for failures, words in (
        ({}, "that have them"),
        ({("layers.0.weight", 3): FAILURE}, ", 1 as far as they were read"),
    ):
        (finding,) = StalenessCheck()(series_of(states, failures=failures)).findings
        assert finding.source.endswith(words)
    two = {("layers.0.weight", 1): FAILURE}
    (finding,) = StalenessCheck()(series_of(states[:3], failures=two)).findings
    assert finding.source.endswith(", 1 as far as they were read, 1 by statistics, not bits")


def test_one_differing_bit_makes_it_no_duplicate() -> None:
    states = trained()
    states[5] = {name: values.copy() for name, values in states[4].items()}
    states[5]["layers.5.bias"][0] = np.nextafter(states[5]["layers.5.bias"][0], np.float32(9))
    assert StalenessCheck()(series_of(states)).result["duplicates"] == []


def test_a_tensor_more_is_no_duplicate_and_what_was_not_read_is_none() -> None:
    states = trained()[:3]
    states[1] = {name: values.copy() for name, values in states[0].items()}
    more = [*states[:1], {**states[1], "layers.9.w": np.ones(3, np.float32)}, *states[2:]]
    assert StalenessCheck()(series_of(more)).result["duplicates"] == []
    unread = series_of(states, failures={("layers.0.bias", 1): FAILURE})
    assert StalenessCheck()(unread).result["duplicates"] == []
    assert StalenessCheck()(unread).result["unknown"] == 2
    assert len(StalenessCheck()(series_of(states)).result["duplicates"]) == 1


def test_an_optimizer_that_advances_alone_is_named_and_its_weights_are_not() -> None:
    states = trained()
    for number, state in enumerate(states):
        state["optimizer.0.exp_avg"] = np.random.default_rng(number).normal(size=8).astype(np.float32)
    for name in [one for one in states[5] if one.startswith("layers")]:
        states[5][name] = states[4][name].copy()
    for anchor in (None, 0):
        assert told(all_findings(series_of(states, anchor=anchor))) == [
            ("optimizer-ahead", "critical", None, "step-000500", "step-000600")
        ]


def test_a_permuted_tensor_is_not_the_same() -> None:
    """Equal statistics where the bits were compared and differ."""
    one = {"a.w": np.arange(4, dtype=np.float32), "b.w": np.ones(4, np.float32)}
    other = {"a.w": np.array([0, 2, 1, 3], np.float32), "b.w": np.ones(4, np.float32)}
    found = series_of([one, other, one])
    assert [found.same_bits(0, i, j) for i, j in ((0, 1), (1, 2), (0, 2))] == [False, False, None]
    for pairs in ("consecutive", "all"):
        found = series_of([one, other, one], pairs=pairs)
        assert found.alike.tolist() == [[0, 1, 0], [0, 0, 0]]
        assert found.equal.tolist() == [[0, 1, 0 if pairs == "all" else 2], [0, 0, 0]]


# Non-finite values


def test_episodes_have_a_beginning_and_an_end() -> None:
    states = trained()
    for member in (3, 4, 5):
        states[member]["layers.1.bias"][member] = np.inf
    states[4]["layers.1.bias"][:2] = np.nan
    for member in range(8, 12):
        states[member]["layers.0.weight"][0, 0] = np.nan
    record = AnomalyDetection()(series_of(states))
    assert record.result["episodes"] == [
        {"tensor": "layers.1.bias", "from": "step-000400", "finite_again": "step-000700", "members": 3,
         "first_count": 1, "largest_count": 3},
        {"tensor": "layers.0.weight", "from": "step-000900", "finite_again": None, "members": 4,
         "first_count": 1, "largest_count": 1},
    ]  # fmt: skip
    assert told(record.findings) == [
        ("non-finite-appeared", "critical", "layers.1.bias", "step-000300", "step-000400"),
        ("non-finite-appeared", "critical", "layers.0.weight", "step-000800", "step-000900"),
    ]
    assert record.findings[0].source.endswith("finite again in step-000700")


def test_what_was_never_finite_is_told_at_the_first_member_and_masks_are_no_fault() -> None:
    states = trained(members=3)
    for state in states:
        state["h.0.attn.causal_mask"] = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
        state["layers.1.bias"][0] = np.nan
    record = AnomalyDetection()(series_of(states))
    assert told(record.findings) == [
        ("non-finite", "info", "h.0.attn.causal_mask", None, "step-000100"),
        ("non-finite", "critical", "layers.1.bias", None, "step-000100"),
    ]


def test_many_tensors_at_once_are_one_finding_and_a_row_each() -> None:
    states = trained(members=4)
    for values in states[2].values():
        values.flat[0] = np.nan
    record = AnomalyDetection(listed=3)(series_of(states))
    assert told(record.findings) == [("non-finite-tensors", "critical", None, "step-000200", "step-000300")]
    assert (record.findings[0].value, len(record.result["episodes"])) == (12, 12)


def test_a_member_that_was_not_read_neither_begins_nor_ends_an_episode() -> None:
    states = trained(members=4)
    for member in (1, 2, 3):
        states[member]["layers.1.bias"][0] = np.nan
    record = AnomalyDetection()(series_of(states, failures={("layers.1.bias", 2): FAILURE}))
    (row,) = record.result["episodes"]
    assert (row["from"], row["members"], record.result["unread"]) == ("step-000200", 2, 1)


# Similarity


def family(seed: int = 0, members: int = 6, strange: int | None = None) -> list[Weights]:
    """Fine-tunes of one base, and the base as the first; one of them may have another base."""
    noise = np.random.default_rng(seed)

    def weights(scale: float) -> Weights:
        return {f"h.{i}.mlp.up_proj.weight": noise.normal(0, scale, 400).astype(np.float32) for i in range(3)}

    base = weights(1.0)
    found = [base, *({name: base[name] + delta for name, delta in weights(0.01).items()} for _ in range(members - 1))]
    if strange is not None:
        found[strange] = weights(1.0)
    return found


def test_the_matrices_are_those_of_numpy() -> None:
    states = family()
    result = SimilarityMatrix()(series_of(states, anchor=0)).result
    vectors = np.array([np.concatenate([one.astype(np.float64) for one in state.values()]) for state in states])
    lengths = np.linalg.norm(vectors, axis=1)
    angles = 1 - vectors @ vectors.T / np.outer(lengths, lengths)
    gaps = np.linalg.norm(vectors[None] - vectors[:, None], axis=2) / lengths[:, None]
    tasks = vectors[1:] - vectors[0]
    names = [f"step-{step:06}" for step in range(100, 700, 100)]

    def matrix(rows: list[dict[str, Any]]) -> np.ndarray:
        assert [row["checkpoint"] for row in rows] == names
        return np.array([[row[name] for name in names] for row in rows], np.float64)

    np.testing.assert_allclose(matrix(result["cosine_distance"]), angles, atol=1e-12)
    np.testing.assert_allclose(matrix(result["relative_distance"]), gaps, rtol=1e-9)
    cosines = tasks @ tasks.T / np.outer(*[np.linalg.norm(tasks, axis=1)] * 2)
    np.testing.assert_allclose(matrix(result["task_cosine"])[1:, 1:], cosines, atol=1e-12)
    assert np.isnan(matrix(result["task_cosine"])[0]).all()
    assert result["anchor"] == names[0]
    assert {row["role"] for row in result["role_cosine_distance"]} == {"up"}
    assert 0 < result["largest_cosine_distance_error"] < 1e-13
    np.testing.assert_allclose(matrix(result["role_cosine_distance"]), angles, atol=1e-12)


def test_members_named_like_the_labels_of_a_row_do_not_take_their_place() -> None:
    names = ["checkpoint", "role", "layer", "a", "b", "c"]
    named = dataclasses.replace(series_of(family(), anchor=0), members=tuple(map(Member, names, names)))
    result = SimilarityMatrix()(named).result
    assert [row["checkpoint"] for row in result["cosine_distance"]] == names
    columns = ["role", "checkpoint", "checkpoint/", "role/", "layer/", "a", "b", "c"]
    assert list(result["role_cosine_distance"][0]) == columns


@pytest.mark.parametrize("strange", [0, 3])
def test_a_stranger_in_the_family_is_named_and_stands_apart(strange: int) -> None:
    record = SimilarityMatrix()(series_of(family(strange=strange), anchor=1))
    name = f"step-000{strange + 1}00"
    assert told(record.findings) == [("outlier", "low", None, None, name)]
    assert record.findings[0].threshold == 3.5
    assert name in (record.result["order"][0], record.result["order"][-1])
    assert record.result["clusters"][-1]["distance"] > 10 * record.result["clusters"][-2]["distance"]
    assert SimilarityMatrix(outlier=1e6)(series_of(family(strange=strange), anchor=1)).findings == ()


def test_a_family_without_a_stranger_has_no_outlier() -> None:
    assert not any(SimilarityMatrix()(series_of(family(seed, 9), anchor=0)).findings for seed in range(10))


def test_the_order_of_members_changes_rows_and_nothing_else() -> None:
    states = family(strange=4)
    turned = [states[i] for i in (3, 0, 5, 1, 4, 2)]
    straight, other = (SimilarityMatrix()(series_of(one, anchor=a)).result for one, a in ((states, 0), (turned, 1)))
    for key in ("cosine_distance", "relative_distance"):
        cells = [[float(value) for name, value in row.items() if name != "checkpoint"] for row in straight[key]]
        again = [[float(value) for name, value in row.items() if name != "checkpoint"] for row in other[key]]
        np.testing.assert_allclose(again, np.array(cells)[np.ix_((3, 0, 5, 1, 4, 2), (3, 0, 5, 1, 4, 2))], atol=1e-13)


def test_a_failed_member_leaves_the_others_whole() -> None:
    states = family()
    lost = {(name, 2): FAILURE for name in states[0]}
    result = SimilarityMatrix()(series_of(states, anchor=0, failures=lost)).result
    assert "step-000300" not in result["order"]
    assert len(result["order"]) == 5
    assert {row["step-000300"] for row in result["cosine_distance"]} == {None}
    assert result["tensors_not_in_all"] == 3
    assert SimilarityMatrix()(series_of(states, anchor=2, failures=lost)).result.keys() == {"reason"}


def far(states: list[Weights], factor: float = 1e9) -> list[Weights]:
    """The same behind a first member that is far away from all of them."""
    noise = np.random.default_rng(99)
    first = {name: factor * noise.normal(size=values.shape) for name, values in states[0].items()}
    return [{name: values.astype(states[0][name].dtype) for name, values in first.items()}, *states]


def test_a_cell_that_may_be_rounding_is_null_unless_the_pair_was_measured() -> None:
    states = far(line(5))
    lost = SimilarityMatrix()(series_of(states, pairs="first", anchor=0)).result
    assert lost["pairs_lost_to_rounding"] == 10
    near = [f"step-000{step}00" for step in range(2, 7)]
    for table in ("relative_distance", "cosine_distance"):
        assert {row[name] for row in lost[table][1:] for name in near if name != row["checkpoint"]} == {None}
        assert {row[row["checkpoint"]] for row in lost[table]} == {0.0}
    assert [row["relative_distance"] for row in lost["nearest"][1:]] == [None] * 5
    assert [row["distance"] for row in lost["clusters"][:-1]] == [None] * 4
    assert lost["order"][0] == "step-000100"
    found = series_of(states, pairs="consecutive", anchor=0)
    known = SimilarityMatrix()(found).result
    assert known["pairs_lost_to_rounding"] == 6
    for t, (before, after) in enumerate(itertools.pairwise(near), 1):
        vectors = [np.concatenate(list(states[i].values())) for i in (t, t + 1)]
        sizes = [np.linalg.norm(one) for one in vectors]
        gap, angle = np.linalg.norm(vectors[1] - vectors[0]), vectors[0] @ vectors[1] / sizes[0] / sizes[1]
        assert known["relative_distance"][t][after] == pytest.approx(gap / sizes[0], rel=1e-12)
        assert known["relative_distance"][t + 1][before] == pytest.approx(gap / sizes[1], rel=1e-12)
        assert known["cosine_distance"][t][after] == pytest.approx(1 - angle, rel=1e-9)


def test_what_the_anchor_has_not_is_in_no_task_vector() -> None:
    states = family()
    plain = SimilarityMatrix()(series_of([{name: s[name] for name in list(s)[1:]} for s in states], anchor=0)).result
    states[0][next(iter(states[0]))][7] = np.nan
    assert SimilarityMatrix()(series_of(states, anchor=0)).result["task_cosine"] == plain["task_cosine"]


def test_without_products_there_is_no_matrix() -> None:
    assert SimilarityMatrix()(series_of(family())).result.keys() == {"reason"}


# Convergence


def line(members: int, blocks: int = 2, seed: int = 0) -> list[Weights]:
    """A straight line at constant speed."""
    noise = np.random.default_rng(seed)
    start = {f"h.{i}.w": noise.normal(size=500) for i in range(blocks)}
    step = {name: 0.01 * noise.normal(size=500) for name in start}
    return [{name: start[name] + t * step[name] for name in start} for t in range(members)]


def walk(members: int, size: int = 20000, seed: int = 0, rate: float = 1.0) -> list[Weights]:
    """A random walk whose steps change by a factor each time."""
    noise = np.random.default_rng(seed)
    steps = noise.normal(size=(members, size)) * 0.01 * rate ** np.arange(members)[:, None]
    return [{"h.0.w": one} for one in 10.0 + np.cumsum(steps, axis=0)]


def law(result: dict[str, Any], name: str) -> dict[str, Any]:
    (fit,) = [one for one in result["fits"] if one["law"] == name]
    return dict(fit)


def converge(states: list[Weights], **options: Any) -> AnalysisRecord:
    return ConvergenceAnalysis()(series_of(states, **{"anchor": 0, **options}))


@pytest.mark.parametrize("seed", range(3))
def test_a_random_walk_goes_with_the_root_of_time(seed: int) -> None:
    result = converge(walk(21, seed=seed)).result
    assert law(result, "D = c t^p")["parameters"]["p"] == pytest.approx(0.5, abs=0.05)
    assert law(result, "D = c t^p")["chosen"]
    assert result["straightness"] == pytest.approx(1 / math.sqrt(20), rel=0.1)
    assert abs(result["median_cosine"]) < 0.05
    assert result["label"] == "stationary"


def test_a_straight_line_is_straight() -> None:
    result = converge(line(12)).result
    assert law(result, "D = c t^p")["parameters"]["p"] == pytest.approx(1.0)
    assert result["straightness"] == pytest.approx(1.0)
    assert result["median_cosine"] == pytest.approx(1.0)
    assert result["plane_share"] == pytest.approx(1.0)
    assert [row["block"] for row in result["blocks"]] == ["h.0", "h.1"]


@pytest.mark.parametrize(("rate", "label"), [(0.8, "shrinking"), (1.25, "growing")])
@pytest.mark.parametrize("members", [7, 8, 13])
def test_a_trend_is_named_and_growth_is_a_finding(rate: float, label: str, members: int) -> None:
    record = converge(walk(members + 1, 2000, rate=rate))
    assert record.result["label"] == label
    assert record.result["log_slope_per_step"] == pytest.approx(math.log(rate) / 100, rel=0.2)
    expected = [("updates-growing", "medium", None, "step-000100", f"step-{100 * members + 100:06}")]
    assert told(record.findings) == (expected if label == "growing" else [])


def test_updates_that_go_back_and_forth_oscillate() -> None:
    states = walk(9, 500)
    for t, state in enumerate(states):
        state["h.0.w"] += (-1) ** t * 0.1
    result = converge(states).result
    assert result["label"] == "oscillating"
    assert result["median_cosine"] < -0.9


def test_a_noisy_series_without_a_trend_is_not_called_stationary() -> None:
    noise = np.random.default_rng(3)
    states = walk(9, 500)
    for t in range(1, 9):
        states[t]["h.0.w"] = states[t - 1]["h.0.w"] + math.exp(noise.normal()) * noise.normal(size=500)
    result = converge(states).result
    assert result["trend_p"] > 0.05
    assert result["label"] == "insufficient"


@pytest.mark.parametrize("members", [1, 2, 3, 6])
def test_few_members_have_the_numbers_there_are_and_what_cannot_be_said(members: int) -> None:
    result = converge(trained()[:members]).result
    assert result["label"] == "insufficient"
    assert result["confound"] == CONFOUND
    assert result["cannot"]
    if members > 1:
        assert len(result["updates"]) == members - 1
        assert result["displacement"] > 0
    assert ("angle" in result["cannot"]) == (members == 2)
    assert converge(trained()).result["cannot"] is None


def test_updates_count_per_step_where_steps_are_uneven() -> None:
    states = line(9)
    chosen = [0, 1, 2, 4, 5, 7, 8]
    result = converge([states[i] for i in chosen], steps=[10 * i for i in chosen]).result
    speeds = [row["u_per_step"] * math.sqrt(sum((states[i][name] ** 2).sum() for name in states[i]))
              for row, i in zip(result["updates"], chosen, strict=False)]  # fmt: skip
    np.testing.assert_allclose(speeds, speeds[0])
    assert [row["steps"] for row in result["updates"]] == [10, 10, 20, 10, 20, 10]
    assert result["axis"] == "step"
    assert law(result, "D = c t^p")["parameters"]["p"] == pytest.approx(1.0)


def test_members_and_tensors_that_are_missing_are_left_out_and_counted() -> None:
    states = walk(9, 500)
    for t, state in enumerate(states):
        state["h.1.w"] = state["h.0.w"] * 2 + t
        state["h.2.n"] = np.arange(3) + t
    lost = {("h.0.w", 4): FAILURE, ("h.1.w", 4): FAILURE}
    result = converge(states, failures=lost).result
    assert (result["checkpoints"], result["checkpoints_left_out"]) == (8, ["step-000500"])
    assert (result["tensors"], result["tensors_left_out"]) == (2, 1)
    states[5]["h.1.w"][3] = np.nan
    assert converge(states).result["tensors"] == 1
    assert "cannot" in converge(states, failures={(name, 0): FAILURE for name in ("h.0.w", "h.1.w")}).result


def test_updates_are_those_of_the_pairs() -> None:
    """As measured element by element, though the anchor is too far for the Gram to tell; angles are not told then."""
    states = [{name: values.astype(np.float32) for name, values in one.items()} for one in far(line(8), 1e7)]
    found = series_of(states, anchor=0)
    result = ConvergenceAnalysis()(found).result
    for t, row in enumerate(result["updates"]):
        ends = [np.concatenate([state[name] for name in state]).astype(np.float64) for state in states[t : t + 2]]
        u = float(np.linalg.norm(ends[1] - ends[0]) / np.linalg.norm(ends[0]))
        assert row["u"] == pytest.approx(u, rel=1e-12)
        assert row["u_error"] < 1e-12 * u
    assert {row["cosine_to_last"] for row in result["updates"][2:]} == {None}
    assert (result["updates_lost_to_rounding"], result["cosines_lost_to_rounding"]) == (0, 6)
    assert (result["label"], result["median_cosine"]) == ("insufficient", None)
    assert "0 updates and 6 angles" in result["cannot"]


def test_what_may_be_rounding_is_unknown_and_not_0() -> None:
    found = series_of(far(line(8)), pairs="first", anchor=0)
    result = ConvergenceAnalysis()(found).result
    assert [row["u"] for row in result["updates"][1:]] == [None] * 7
    assert (result["updates_that_moved"], result["updates_lost_to_rounding"]) == (1, 7)
    assert (result["label"], result["path"], result["straightness"], result["fits"]) == ("insufficient", None, None, [])
    assert "7 updates and 0 angles" in result["cannot"]
    assert result["displacement"] > 0
    left_out = UpdateAnomaly()(found).result["left_out"]
    assert left_out == {"stale_or_non_finite": 0, "not_measured": 14}
    twice = far(line(8))
    twice[4] = {name: values.copy() for name, values in twice[3].items()}
    again = ConvergenceAnalysis()(series_of(twice, pairs="first", anchor=0)).result
    assert [row["u"] for row in again["updates"][3:4]] == [0.0]  # equal bits are 0 apart, wherever the anchor is
    assert again["updates_lost_to_rounding"] == 6


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 9.0), st.sampled_from(["first", "consecutive"]))
def test_numbers_stay_in_their_range_and_their_bounds(seed: int, power: float, pairs: str) -> None:
    moves = walk(5, 50, seed) if seed % 2 else line(5, seed=seed)
    states = far(moves, 10.0**power) if seed % 3 else moves
    result = ConvergenceAnalysis()(series_of(states, pairs=pairs, anchor=0)).result
    vectors = [np.concatenate([values.astype(np.longdouble) for values in one.values()]) for one in states]
    steps = [after - before for before, after in itertools.pairwise(vectors)]
    lengths = [np.sqrt((one * one).sum()) for one in steps]
    assert result["straightness"] is None or result["straightness"] <= 1.0
    for t, row in enumerate(result["updates"]):
        if row["u"] is not None:
            norm = np.sqrt((vectors[t] ** 2).sum())
            assert abs(lengths[t] / norm - row["u"]) <= row["u_error"] + 1e-12 * row["u"]
        if row["cosine_to_last"] is not None:
            exact = (steps[t - 1] * steps[t]).sum() / lengths[t - 1] / lengths[t]
            assert abs(exact - row["cosine_to_last"]) <= row["cosine_error"] <= 0.01
            assert abs(row["cosine_to_last"]) <= 1.0


def test_updates_that_grow_by_rounding_alone_do_not_grow() -> None:
    base, step = np.random.default_rng(0).normal(size=(2, 500))
    step -= base * (base @ step) / (base @ base)  # so that all members have one length
    states = [{"h.0.w": base + (-1) ** t * step * (1 + t * 2.0**-50)} for t in range(9)]
    assert ConvergenceAnalysis(oscillating=-2.0)(series_of(states, anchor=0)).result["label"] not in (
        "growing",
        "shrinking",
    )


# All of them


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from numbers(inner, f"{path}/{place}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def eventful(seed: int, members: int) -> list[Weights]:
    """Random walks in which everything happens, at places that chance decides."""
    noise = np.random.default_rng(seed)

    def some(low: int, high: int) -> range:
        return range(int(noise.integers(low, high)))

    size = int(noise.integers(30, 60))
    names = [f"h.{i}.{kind}.weight" for i in some(4, 8) for kind in ("q_proj", "up_proj")]
    frozen = {f"norm.{i}": noise.normal(size=size) for i in some(0, 4)}
    counters, opaque = ([f"{kind}.{i}" for i in some(0, 4)] for kind in ("counter", "opaque"))
    state = {name: noise.normal(size=size) for name in names}
    states: list[Weights] = []
    for member in range(members):
        state = {name: values + noise.normal(size=size) * noise.uniform(0.05, 0.1) for name, values in state.items()}
        unknown = {name: np.full(size, 7 * member, np.int64) for name in counters}
        unknown |= {name: np.full(size, member, np.int8) for name in opaque}
        states.append({name: values.copy() for name, values in (state | frozen | unknown).items()})
    for member in noise.choice(range(1, members), min(3, members - 1), replace=False).tolist():
        happens = noise.integers(0, 4)
        if happens == 0:
            states[member] = {name: values.copy() for name, values in states[int(noise.integers(0, member))].items()}
        for name in names[: int(noise.integers(1, 4))]:
            if happens == 1:
                states[member][name] = states[member - 1][name].copy()
            if happens == 2:
                states[member][name] += 3 * noise.normal(size=size)
            if happens == 3:
                for later in states[member : member + int(noise.integers(1, 4))]:
                    later[name][: int(noise.integers(1, 9))] = np.nan
    return states


def measured(seed: int, members: int, anchor: int | None = 0) -> Series:
    """Such a series, at random steps, some of whose tensors could not be read."""
    noise = np.random.default_rng(seed + 1000)
    states, pairs = eventful(seed, members), "consecutive"
    if seed % 4 > 1:  # the first so far away that angles, or distances, are lost in the Gram
        pairs = ("consecutive", "first")[seed % 2]
        for values in states[0].values():
            if values.dtype == np.float64:
                values *= (1e5, 1e9)[seed % 2] * (1 + seed / 100)
    steps = np.cumsum(noise.integers(1, 100, members)).tolist()
    names = [name for name in states[0] if noise.random() < 0.1]
    failures = {(name, members // 2): FAILURE for name in names}
    return series_of(states, steps=steps, anchor=anchor, failures=failures, pairs=pairs)


OF_TRAINING = [
    "staleness_check",
    "anomaly_detection",
    "update_anomaly",
    "similarity_matrix",
    "convergence_analysis",
]  # those that such a series tells something; tests/test_registry.py asks all


@pytest.mark.parametrize("name", OF_TRAINING)
@pytest.mark.parametrize("members", [1, 2, 3, 12])
@pytest.mark.parametrize("anchor", [None, 0])
def test_every_analysis_answers_in_strict_json(name: str, members: int, anchor: int | None) -> None:
    for states in (trained(members=12)[:members], [{} for _ in range(members)], eventful(members, 12)[:members]):
        record = SERIES[name]()(series_of(states, anchor=anchor)) if states[0] else SERIES[name]()(nothing(members))
        assert record.name == name
        json.dumps([record.result, [dataclasses.asdict(one) for one in record.findings]], allow_nan=False)


def nothing(members: int) -> Series:
    """Checkpoints without any tensor in common with the selection."""
    full = series_of(trained(members=12)[:members])
    comparison = dataclasses.replace(full.measured.comparison, aligned=())
    parts = full.measured.moments[:0], full.measured.shifts[:0]
    return Series(
        dataclasses.replace(full.measured, comparison=comparison, moments=parts[0], shifts=parts[1]), full.members
    )


def field_of(path: str) -> str:
    """Places in lists and names of members left out."""
    return re.sub(r"/(?:step-)?[0-9]+(?=/|$)", "/*", path)


@pytest.mark.parametrize("name", OF_TRAINING)
def test_every_number_moves_with_its_input(name: str) -> None:
    """No literal survives random inputs: counts vary, and no other number is stated of two series."""
    counts: dict[str, list[float]] = {}
    stated: dict[tuple[str, float], set[int]] = {}
    for seed in range(24):
        for path, value in numbers(SERIES[name]()(measured(seed, 7 + seed % 5)).result):
            counts.setdefault(field_of(path), []).append(value)
            if abs(value - round(value)) > 1e-9:
                stated.setdefault((field_of(path), value), set()).add(seed)
    assert {field for field, values in counts.items() if len(values) > 1 == len(set(values))} == set()
    again = {key for key, seeds in stated.items() if len(seeds) > 1}
    assert {(field, value) for field, value in again if not field.endswith(DISCRETE)} == set()


DISCRETE = ("/trend_p",)  # so few points have few orders


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 8))
def test_the_anchor_decides_digits_only(seed: int, anchor: int) -> None:
    states = eventful(seed % 50, 9)
    one, other = (ConvergenceAnalysis()(series_of(states, anchor=a)).result for a in (0, anchor))
    for key in ("path", "displacement", "straightness", "plane_share", "median_cosine"):
        assert one[key] == pytest.approx(other[key], rel=1e-9, abs=1e-12)


def test_equal_bits_are_known_from_any_measure_that_tells() -> None:
    states = trained(members=4)
    states[3] = {name: values.copy() for name, values in states[0].items()}
    for pairs, anchor, known in (("consecutive", None, None), ("consecutive", 1, True), ("all", None, True)):
        found = series_of(states, pairs=pairs, anchor=anchor)
        assert found.same_bits(0, 0, 3) is found.same_bits(0, 3, 0) is known
        assert found.same_bits(0, 0, 2) is False
    lost = series_of(states, pairs="all", failures={("layers.0.bias", 3): FAILURE})
    assert lost.same_bits(0, 0, 3) is None
    absent = [states[0], {"layers.0.bias": states[1]["layers.0.bias"]}]
    assert [series_of(absent).same_bits(i, 0, 1) for i in range(2)] == [False, None]


def test_distances_are_taken_element_by_element_where_they_can_be() -> None:
    states = trained(members=4)
    both, gram, none = (
        series_of(states, pairs=p, anchor=a) for p, a in (("consecutive", 0), ("first", 0), ("first", None))
    )
    for t, tensor in itertools.product(range(3), range(12)):
        name = both.tensors[tensor]
        exact = float(((states[t + 1][name].astype(np.float64) - states[t][name]) ** 2).sum())
        assert both.distances(t, t + 1).squares[tensor] == pytest.approx(exact, rel=1e-12)
        assert gram.distances(t, t + 1).squares[tensor] == pytest.approx(exact, rel=1e-9)
        assert abs(gram.distances(t + 1, t).squares[tensor] - exact) <= gram.distances(t, t + 1).errors[tensor]
        assert math.isnan(none.distances(t, t + 1).squares[tensor]) == (t > 0)


def test_steps_are_an_axis_only_where_all_are_known_and_grow() -> None:
    states = trained(members=3)
    found = series_of(states, steps=[10, 30, 40])
    assert (found.steps, found.axis.tolist()) == ([10, 30, 40], [10.0, 30.0, 40.0])
    unknown = dataclasses.replace(found, members=tuple(dataclasses.replace(one, step=None) for one in found.members))
    assert (unknown.steps, unknown.axis.tolist()) == (None, [0.0, 1.0, 2.0])
    assert series_of(states, steps=[10, 40, 30]).steps is None


@pytest.mark.parametrize(("moving", "severity"), [(19, "low"), (20, "high"), (21, "high")])
def test_a_tensor_of_which_little_moves_may_stand_still_by_rounding(moving: int, severity: str) -> None:
    """Of a gain in BF16 most updates round away: none at all, once, is not worth an alarm."""
    states = trained(members=4)
    for number, weights in enumerate(states):
        gain = np.ones(32, np.float32)
        gain[:moving] += number if number != 2 else 1
        weights["norm.weight"] = gain
    found = StalenessCheck()(series_of(states))
    assert [(one.rule, one.severity, one.tensor) for one in found.findings if one.tensor == "norm.weight"] == [
        ("stale-tensor", severity, "norm.weight")
    ]
