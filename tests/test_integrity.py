"""Whether checkpoints are whole: stories of broken ones, told from files, and nothing of those that are not."""

from __future__ import annotations

import dataclasses
import doctest
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import models
from checkpoints import Shapes, head, write_head, write_sharded, write_sparse
from decoding import FIXTURES
from diffai_dist.analyses.integrity_check import IntegrityCheck
from diffai_dist.analyses.series import Series
from diffai_dist.checkpoint import Checkpoint
from diffai_dist.comparison import Pair, compare_members
from diffai_dist.errors import CheckpointError, MissingShard
from diffai_dist.formats import leftovers, open_checkpoint
from diffai_dist.partials import MOMENTS, SHIFT, empty
from diffai_dist.records import AnalysisRecord, Finding, Measurements, Member
from diffai_dist.storage import Profile

INDEX = "model.safetensors.index.json"
SEVERITIES = ("critical", "high", "medium", "low", "info")


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(leftovers).failed == 0


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(str(path), Profile())


def check(*members: Checkpoint, **closed: CheckpointError) -> AnalysisRecord:
    """The record of these members; every finding is of a rule that is told, as severe as it says."""
    comparison = compare_members(members, [Pair(i, i + 1) for i in range(len(members) - 1)])
    size = len(comparison.aligned)
    measured = Measurements(
        comparison, empty(MOMENTS, (size, len(members))), empty(SHIFT, (size, max(len(members) - 1, 0))), {}
    )
    names = tuple(Member(f"m{i}", f"/m{i}") for i in range(len(members)))
    failures = {name: (error.failure,) for name, error in closed.items()}
    record = IntegrityCheck()(Series(measured, names, closed=failures))
    assert json.loads(json.dumps(record.result)) == record.result
    assert set(record.result) == set(IntegrityCheck.result)
    for one in record.findings:
        assert one.severity in IntegrityCheck.rules[one.rule]
    return record


def told(record: AnalysisRecord) -> list[tuple[str, str, str | None, Any]]:
    return [(one.rule, one.severity, one.tensor, one.value) for one in record.findings]


def serious(record: AnalysisRecord, least: str = "medium") -> list[Finding]:
    return [one for one in record.findings if SEVERITIES.index(one.severity) <= SEVERITIES.index(least)]


def name_of(shard: int, of: int) -> str:
    return f"model-{shard:05}-of-{of:05}.safetensors"


def shards_of(number: int, each: int = 3, dtype: str = "BF16") -> dict[str, Shapes]:
    """A model dealt out to shards, a block in each."""
    parts = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight", *(f"p{i}" for i in range(each)))
    return {
        name_of(shard + 1, number): {f"model.layers.{shard}.{part}": (dtype, (4, 2)) for part in parts[:each]}
        for shard in range(number)
    }


# Silence


def test_whole_checkpoints_of_any_layout_are_not_complained_of(tmp_path: Path) -> None:
    sharded = write_sharded(tmp_path / "sharded", shards_of(3))
    (tmp_path / "single").mkdir()
    single = write_sparse(tmp_path / "single" / "model.safetensors", {"w": ("F32", (2,)), "b": ("F32", ())})
    arrays = models.model()
    real = models.write(tmp_path / "real" / "model.safetensors", arrays)
    for path in (sharded, sharded / INDEX, single, single.parent, real.parent):
        record = check(opened(path), opened(path))
        assert serious(record, "low") == []
        assert record.result["members"] == {"opened": 2, "closed": 0}
    assert [(one.rule, one.severity, one.value) for one in check(opened(real)).findings] == [
        ("empty-tensor", "info", 1)
    ]
    (sharded / "optimizer.safetensors").write_bytes((single.parent / "model.safetensors").read_bytes())
    assert [(one.rule, one.severity) for one in check(opened(sharded)).findings] == [("other-weights", "info")]


def test_a_series_of_trainings_with_resharding_is_quiet(tmp_path: Path) -> None:
    arrays = models.model()
    members = [opened(models.write_sharded(tmp_path / str(shards), arrays, shards)) for shards in (1, 2, 5, 3)]
    assert serious(check(*members), "low") == []


# Stories


def test_s4_shards_of_zeroed_headers_are_named_without_a_crash(tmp_path: Path) -> None:
    write_sharded(tmp_path, shards_of(4))
    for shard in (1, 2, 3):
        path = tmp_path / name_of(shard, 4)
        path.write_bytes(bytes(path.stat().st_size))
    record = check(opened(tmp_path))
    assert told(record) == [("bad-header", "critical", None, str(tmp_path / name_of(i, 4))) for i in (1, 2, 3)]
    assert [(row["rule"], row["count"]) for row in record.result["violations"]] == [("bad-header", 3)] * 3
    assert "its length is 0" in record.result["violations"][0]["found"]


def test_s5_fifteen_of_thirty_shards_are_missing_and_each_is_listed(tmp_path: Path) -> None:
    write_sharded(tmp_path, shards_of(30))
    for shard in range(16, 31):
        (tmp_path / name_of(shard, 30)).unlink()
    record = check(opened(tmp_path))
    assert told(record) == [
        ("missing-shard", "critical", None, str(tmp_path / name_of(shard, 30))) for shard in range(16, 31)
    ]
    assert {one.candidate for one in record.findings} == {"m0"}
    assert record.result["violations_of"] == 15


def test_s9_a_missing_shard_is_critical_even_where_nobody_knows_its_tensors(tmp_path: Path) -> None:
    write_sharded(tmp_path, shards_of(3))
    (tmp_path / name_of(2, 3)).unlink()
    shard = str(tmp_path / name_of(2, 3))
    for index in (True, False):
        if not index:
            (tmp_path / INDEX).unlink()
        record = check(opened(tmp_path))
        assert told(record) == [("missing-shard", "critical", None, shard)]
        assert record.result["violations"][0]["count"] == (3 if index else None)


def test_s10_a_second_set_of_shards_is_listed_with_its_duplicates_and_the_set_that_is_read(tmp_path: Path) -> None:
    write_sharded(tmp_path, shards_of(4))
    for name, tensors in shards_of(3).items():
        write_sparse(tmp_path / name, tensors)
    record = check(opened(tmp_path))
    assert [(one.rule, one.severity) for one in record.findings] == [("leftover-shard", "high")]
    (row,) = record.result["violations"]
    assert row["count"] == 3
    assert row["names"] == [name_of(shard, 3) for shard in (1, 2, 3)]
    assert f"'{name_of(1, 4)}' and 3 more were read" in row["found"]
    assert "9 of their 9 tensors are in the checkpoint, too" in row["found"]
    assert "dtypes" not in row["found"]


def test_s11_an_index_that_does_not_fit_names_each_tensor(tmp_path: Path) -> None:
    shards = shards_of(3)
    mapped = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    moved, ghost, unknown = "model.layers.0.mlp.up_proj.weight", "model.layers.9.w", "model.layers.2.mlp.up_proj.weight"
    weight_map = mapped | {moved: name_of(2, 3), ghost: name_of(3, 3)}
    del weight_map[unknown]
    write_sharded(tmp_path, shards, weight_map=weight_map)
    assert told(check(opened(tmp_path))) == [
        ("lost-tensor", "critical", ghost, str(tmp_path)),
        ("misplaced-tensor", "critical", moved, str(tmp_path)),
        ("unmapped-tensor", "high", unknown, str(tmp_path)),
    ]


def test_s11_a_tensor_in_two_shards_is_ambiguous_and_not_taken_from_the_later(tmp_path: Path) -> None:
    shards = shards_of(2)
    twice = "model.layers.0.mlp.up_proj.weight"
    shards[name_of(2, 2)] = {**shards[name_of(2, 2)], twice: ("BF16", (4, 2))}
    write_sharded(tmp_path, shards)
    checkpoint = opened(tmp_path)
    assert twice not in checkpoint.tensors
    record = check(checkpoint)
    assert told(record) == [("double-tensor", "critical", twice, str(tmp_path))]
    assert name_of(1, 2) in checkpoint.unreadable[twice].found


def test_s12_the_tail_of_a_wider_save_is_named_with_its_dtypes(tmp_path: Path) -> None:
    narrow = {f"{i}.safetensors": {f"layers.{i}.w": ("U8", (4,))} for i in range(2)}
    write_sharded(tmp_path, narrow)
    for i in (2, 3):
        write_sparse(tmp_path / f"{i}.safetensors", {f"layers.{i - 2}.w": ("I8", (8,))})
    record = check(opened(tmp_path))
    assert [(one.rule, one.severity) for one in record.findings] == [("leftover-shard", "high")]
    row = record.result["violations"][0]
    found = row["found"]
    assert row["names"] == ["2.safetensors", "3.safetensors"]
    assert "dtypes there 'I8', here 'U8'" in found


def layers_with_empties(empties: int, total: int, name: str = "mlp.up_proj.weight") -> Mapping[str, Any]:
    return {f"model.layers.{i}.{name}": ("BF16", (0,) if i < empties else (2, 2)) for i in range(total)}


def test_s13_what_zero_3_leaves_is_critical_and_counted(tmp_path: Path) -> None:
    whole = opened(write_sparse(tmp_path / "whole.safetensors", layers_with_empties(0, 851)))
    broken = opened(write_sparse(tmp_path / "broken.safetensors", layers_with_empties(309, 851)))
    for members in ((broken,), (whole, broken)):
        record = check(*members)
        assert told(record) == [("empty-tensors", "critical", None, 309)]
        row = record.result["empty"][0]
        assert (row["tensors"], row["of"], row["expected_elements"], len(row["names"])) == (309, 851, 309, 20)
    nothing = opened(write_sparse(tmp_path / "nothing.safetensors", layers_with_empties(20, 20)))
    assert told(check(nothing)) == [("empty-tensors", "critical", None, 20)]


@pytest.mark.parametrize("empties", [9, 10, 11])
def test_so_many_empty_tensors_are_critical_and_fewer_are_each_named(tmp_path: Path, empties: int) -> None:
    assert IntegrityCheck().many_empty == 10
    found = told(check(opened(write_sparse(tmp_path / "m.safetensors", layers_with_empties(empties, 30)))))
    if empties >= 10:
        assert found == [("empty-tensors", "critical", None, empties)]
    else:
        assert found == [("empty-tensor", "high", f"model.layers.{i}.mlp.up_proj.weight", 0) for i in range(empties)]


@pytest.mark.parametrize(
    ("tensors", "severity"),
    [
        ({"buffer": ("F32", (0,))}, "info"),
        ({"h.0.g_idx": ("I32", (0,)), "h.1.g_idx": ("I32", (0,))}, "info"),
        ({"h.0.g_idx": ("I32", (0,)), "h.1.g_idx": ("I32", (4,))}, "high"),
        ({"linear.weight": ("F32", (4, 0))}, "info"),
        ({"linear.weight": ("F32", (0,))}, "high"),
        ({"linear.extra": ("F32", (0,))}, "info"),
    ],
)
def test_an_empty_tensor_is_suspect_only_with_a_sign(tmp_path: Path, tensors: Shapes, severity: str) -> None:
    record = check(opened(write_sparse(tmp_path / "m.safetensors", tensors)))
    assert {one.severity for one in record.findings} == {severity}


def test_a_tensor_that_is_empty_in_one_member_and_not_in_another_is_suspect(tmp_path: Path) -> None:
    before = opened(write_sparse(tmp_path / "a.safetensors", {"buffer": ("F32", (3,)), "w": ("F32", (1,))}))
    after = opened(write_sparse(tmp_path / "b.safetensors", {"buffer": ("F32", (0,)), "w": ("F32", (1,))}))
    (found,) = check(before, after).findings
    assert (found.severity, found.tensor, found.candidate) == ("high", "buffer", "m1")


def test_s14_an_object_whose_tensors_are_all_gone_is_named_with_its_shard(tmp_path: Path) -> None:
    first = shards_of(3) | {"extra.safetensors": {f"vision.{i}.w": ("BF16", (2,)) for i in range(5)}}
    before = opened(write_sharded(tmp_path / "before", first))
    after = opened(write_sharded(tmp_path / "after", shards_of(2) | {name_of(3, 3): shards_of(3)[name_of(3, 3)]}))
    record = check(before, after)
    url = str(tmp_path / "before" / "extra.safetensors")
    assert told(record) == [("lost-object", "high", None, url)]
    assert (record.findings[0].baseline, record.findings[0].candidate) == ("m0", "m1")
    assert record.result["lost_objects"] == [{"baseline": "m0", "candidate": "m1", "object": url, "tensors": 5}]
    assert check(after, before).findings == ()


def test_an_object_is_not_lost_where_everything_else_is_another_model_or_could_not_be_read(tmp_path: Path) -> None:
    before = opened(write_sharded(tmp_path / "before", shards_of(3)))
    other = opened(write_sparse(tmp_path / "other.safetensors", {"fc.weight": ("F32", (1,))}))
    assert check(before, other).findings == ()
    write_sharded(tmp_path / "after", shards_of(3))
    (tmp_path / "after" / name_of(2, 3)).unlink()
    assert [one.rule for one in check(before, opened(tmp_path / "after")).findings] == ["missing-shard"]
    (tmp_path / "after" / INDEX).unlink()
    assert [one.rule for one in check(before, opened(tmp_path / "after")).findings] == ["missing-shard"]
    state = {"optimizer.safetensors": {"optimizer.state.0.exp_avg": ("F32", (2,))}}
    with_state = opened(write_sharded(tmp_path / "state", shards_of(2) | state))
    assert check(with_state, opened(write_sharded(tmp_path / "without", shards_of(2)))).findings == ()


@pytest.mark.parametrize(("kept", "lost"), [(1, 0), (2, 1), (3, 1)])
def test_an_object_is_lost_where_half_of_the_rest_is_there(tmp_path: Path, kept: int, lost: int) -> None:
    rest = {f"h.{i}.w": ("F32", (1,)) for i in range(4)}
    before = opened(write_sharded(tmp_path / "a", {"rest.safetensors": rest, "x.safetensors": {"x.w": ("F32", (1,))}}))
    after = opened(write_sparse(tmp_path / "b.safetensors", dict(list(rest.items())[:kept])))
    assert [one.rule for one in check(before, after).findings] == ["lost-object"] * lost


# The rest of the rules


def test_one_file_beside_shards_of_its_name_is_a_second_layout(tmp_path: Path) -> None:
    write_sharded(tmp_path, shards_of(2))
    write_sparse(tmp_path / "model.safetensors", {"w": ("F32", (1,))})
    record = check(opened(tmp_path), opened(tmp_path / INDEX))
    assert [(one.rule, one.severity, one.candidate) for one in record.findings] == [
        ("second-layout", "high", "m0"),
        ("second-layout", "high", "m1"),
    ]
    one, other = record.result["violations"]
    assert "'model.safetensors' were read" in one["found"]
    assert other["names"] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "model.pt", "last.ckpt", "pytorch_model-2.bin"])
def test_weights_of_another_format_are_told(tmp_path: Path, name: str) -> None:
    write_sharded(tmp_path, shards_of(2))
    for other in (name, "optimizer.pt", "rng_state_0.pth", "training_args.bin", "loss.npy", f".{name}"):
        (tmp_path / other).write_bytes(b"")
    for url in (tmp_path, tmp_path / INDEX):
        record = check(opened(url))
        assert [(one.rule, one.severity) for one in record.findings] == [("other-weights", "info")]
        (violation,) = record.result["violations"]
        assert violation["names"] == [name]
        assert violation["found"].startswith("1 weight files of other names or formats; 'model-00001-of")


def test_shards_of_torch_that_are_left_over_are_told(tmp_path: Path) -> None:
    shards = [f"pytorch_model-{number:05}-of-00002.bin" for number in (1, 2)]
    files = zip([*shards, "pytorch_model-00003-of-00003.bin"], ("alone", "dtypes", "alone"), strict=True)
    for name, fixture in files:
        (tmp_path / name).write_bytes((FIXTURES / "torch" / f"{fixture}.pt").read_bytes())
    names = {"x": shards[0], "y": shards[1]}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    found = [one for one in opened(tmp_path).violations if one.rule in ("leftover-shard", "other-weights")]
    assert [(one.rule, one.names) for one in found] == [("leftover-shard", ("pytorch_model-00003-of-00003.bin",))]
    assert "1 of their 1 tensors are in the checkpoint, too" in found[0].found


@pytest.mark.parametrize(("total", "wrong"), [(95, 1), (96, 0), (97, 1)])
def test_a_total_size_is_right_or_of_medium_severity(tmp_path: Path, total: int, wrong: int) -> None:
    write_sharded(tmp_path, shards_of(2), metadata={"total_size": total})
    assert [(one.rule, one.severity) for one in check(opened(tmp_path)).findings] == [
        ("wrong-total-size", "medium")
    ] * wrong


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_shard_of_another_size_than_its_header_says_is_critical(tmp_path: Path, extra: int) -> None:
    write_sharded(tmp_path, shards_of(2))
    path = tmp_path / name_of(2, 2)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + extra)
    record = check(opened(tmp_path))
    assert [(one.rule, one.severity) for one in record.findings] == [("bad-header", "critical")] * bool(extra)


def test_a_shard_that_is_no_weight_file_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, shards_of(2))
    write_head(tmp_path / name_of(1, 2), b"<!DOCTYPE html><html>")
    assert [one.rule for one in check(opened(tmp_path)).findings] == ["unreadable-shard"]


def test_a_member_that_could_not_be_opened_is_named_first(tmp_path: Path) -> None:
    whole = opened(write_sharded(tmp_path, shards_of(2)))
    record = check(whole, **{"step-7": MissingShard("s3://b/step-7", "none of its 2 shards can be read")})
    assert [(one.rule, one.severity, one.candidate) for one in record.findings] == [("unopened", "critical", "step-7")]
    assert record.findings[0].value == "s3://b/step-7"
    assert record.result["members"] == {"opened": 1, "closed": 1}
    assert record.result["violations"][0]["member"] == "step-7"


def test_many_tensors_of_one_rule_are_counted_beyond_the_limit(tmp_path: Path) -> None:
    shards = shards_of(1, each=25)
    write_sharded(tmp_path, shards, weight_map={"model.layers.0.p0": name_of(1, 1)})
    limit = IntegrityCheck().listed
    found = check(opened(tmp_path)).findings
    named = [one.tensor for one in found if one.tensor is not None]
    assert len(named) == limit
    assert [(one.severity, one.value) for one in found if one.tensor is None] == [("high", 24 - limit)]


def test_a_leftover_that_cannot_be_read_is_named_all_the_same(tmp_path: Path) -> None:
    write_sharded(tmp_path, shards_of(2))
    write_head(tmp_path / name_of(3, 3), head(b"{"))
    record = check(opened(tmp_path))
    assert [one.rule for one in record.findings] == ["leftover-shard"]
    assert record.result["violations"][0]["found"].endswith("1 more were read")


def test_every_violation_that_opening_tells_has_a_severity() -> None:
    checkpoint = Checkpoint("/m", "safetensors", (), {})
    from diffai_dist.analyses.integrity_check import _SEVERITIES
    from diffai_dist.checkpoint import Violation

    for rule in _SEVERITIES:
        one = dataclasses.replace(checkpoint, violations=(Violation(rule, "/m", "found", ("a",)),))
        assert [found.rule for found in check(one).findings] == [rule]


def test_a_member_without_tensors_beside_one_with_some_is_named(tmp_path: Path) -> None:
    full, bare = (write_sparse(tmp_path / f"{name}.safetensors", {"w": ("F32", (2,))} if name == "full" else {})
                  for name in ("full", "bare"))  # fmt: skip
    members = opened(full), opened(bare)
    for order, name in ((members, "m1"), (members[::-1], "m0")):
        (found,) = check(*order).findings
        assert (found.rule, found.severity, found.candidate) == ("no-tensors", "critical", name)
    assert check(members[1], members[1]).findings == check(members[0], members[0]).findings == ()
    unread = dataclasses.replace(members[1], unreadable={"w": MissingShard("/m", "lost", tensor="w").failure})
    assert check(members[0], unread).findings == ()  # what it should hold is known, and why it cannot be read
