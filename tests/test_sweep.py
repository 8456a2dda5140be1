"""A sweep: each checkpoint read once, the bits of `compare`, and whatever went before is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from diffai_dist import api, compare, storage, sweep
from diffai_dist.chunks import Chunk
from diffai_dist.errors import CheckpointError, UsageError
from diffai_dist.report import RENDERERS, View, as_records
from diffai_dist.storage import Profile

Arrays = dict[str, np.ndarray]


def series(count: int) -> list[Arrays]:
    """A model and what became of it, step by step."""
    arrays = [models.model()]
    for step in range(1, count):
        moved = models.perturbed(models.model(), step)
        arrays.append(moved)
    return arrays


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("steps")
    return [
        models.write(folder / f"step-{i * 100:04}" / "model.safetensors", arrays) for i, arrays in enumerate(series(4))
    ]


def pattern(steps: list[Path]) -> str:
    return str(steps[0].parent.parent / "step-*")


def without_pair(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "pair"}


def of_pair(records: list[dict[str, Any]], *pair: str) -> list[dict[str, Any]]:
    return [record for record in records if record.get("pair") == list(pair)]


def sharded(folder: Path, step: int) -> Path:
    arrays = {name: np.full((8, 8), step + index, np.float32) for index, name in enumerate("abcd")}
    return models.write_sharded(folder / f"s-{step}", arrays, 2)


@pytest.mark.parametrize("mode", ["consecutive", "vs-first", "vs-last"])
def test_a_pair_has_the_records_of_compare(steps: list[Path], mode: str) -> None:
    report = sweep(checkpoints=pattern(steps), pairs=mode)
    index = {path.parent.name: path for path in steps}
    for result in report.sweep.results:
        alone = compare(str(index[result.baseline].parent), str(index[result.candidate].parent))
        mine = of_pair(report.records, result.baseline, result.candidate)
        assert [without_pair(one) for one in mine if one["kind"] == "tensor"] == alone.records


def test_each_checkpoint_is_read_once_whatever_the_pairs(steps: list[Path]) -> None:
    sizes = sum(path.stat().st_size for path in steps)
    for settings in ({"pairs": "consecutive"}, {"pairs": "all"}, {"pairs": "all", "elementwise": True}):
        before = storage.traffic().bytes
        report = sweep(checkpoints=pattern(steps), **settings)
        headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in steps)
        unread = 0  # models.model() pads nothing
        assert report.reading.nbytes == sizes - headers - unread
        assert storage.traffic().bytes - before <= sizes + 4 * 2**17


def test_the_buffer_and_the_units_change_no_bit(steps: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"checkpoints": pattern(steps), "pairs": "all", "analyses": ("similarity_matrix",)}
    reference = json.dumps(sweep(**settings).records)
    monkeypatch.setattr("diffai_dist.plan.LOCAL_ARENA", 400_000)
    cluster = {"cluster.unit_size": "1MB", "cluster.threads": 3}
    assert json.dumps(sweep(**settings, **cluster).records) == reference


def test_the_gram_gives_what_the_elements_give(steps: list[Path]) -> None:
    products = sweep(checkpoints=pattern(steps), pairs="all")
    elements = sweep(checkpoints=pattern(steps), pairs="all", elementwise=True)
    compared = 0
    for mine, exact in zip(products.sweep.results, elements.sweep.results, strict=True):
        for one, other in zip(mine.tensors, exact.tensors, strict=True):
            assert (one.name, one.status, one.baseline) == (other.name, other.status, other.baseline)
            if one.error_bound is None or one.change is None or other.change is None:
                assert one == other
                continue
            compared += 1
            assert one.change.l2 == pytest.approx(other.change.l2, rel=1e-9, abs=one.error_bound.l2)
            assert one.change.max_abs is None
            if one.change.cosine_distance is not None and other.change.cosine_distance is not None:
                bound = one.error_bound.cosine_distance
                assert one.change.cosine_distance == pytest.approx(other.change.cosine_distance, rel=1e-9, abs=bound)
        assert mine.whole is not None
        assert exact.whole is not None
        assert mine.whole.l2 == pytest.approx(exact.whole.l2, rel=1e-9)
        assert mine.whole.cosine_distance == pytest.approx(exact.whole.cosine_distance, rel=1e-6)
    assert compared >= 30


def test_one_bad_checkpoint_spoils_its_own_pairs_only(steps: list[Path], tmp_path: Path) -> None:
    for path in steps:
        (tmp_path / path.parent.name).mkdir()
        (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "step-0100" / "model.safetensors"
    bad.write_bytes(bad.read_bytes()[:1000])
    report = sweep(checkpoints=str(tmp_path / "step-*"))
    assert report.exit_code() == 3
    assert [len(result.failures) for result in report.sweep.results] == [1, 1, 0]
    assert [bool(result.tensors) for result in report.sweep.results] == [False, False, True]
    assert len(report.failures) == 1


def test_a_second_night_reads_what_is_new(steps: list[Path], tmp_path: Path) -> None:
    store, folder = str(tmp_path / "store"), tmp_path / "run"
    folder.mkdir()
    for path in steps[:3]:
        (folder / path.parent.name).symlink_to(path.parent)
    first = sweep(checkpoints=str(folder / "step-*"), store=store)
    assert first.reading.stored_bytes == 0
    (folder / steps[3].parent.name).symlink_to(steps[3].parent)
    second = sweep(checkpoints=str(folder / "step-*"), store=store)
    assert second.plan is not None
    assert [member.url.split("/")[-1] for member in second.plan.comparison.members] == ["step-0200", "step-0300"]
    assert second.reading.stored_bytes > 0
    fresh = sweep(checkpoints=str(folder / "step-*"))
    assert second.records == fresh.records


def test_the_same_sweep_twice_reads_nothing_the_second_time(steps: list[Path], tmp_path: Path) -> None:
    first = sweep(checkpoints=pattern(steps), store=str(tmp_path))
    again = sweep(checkpoints=pattern(steps), store=str(tmp_path))
    assert again.reading.nbytes == 0
    assert again.records == first.records
    assert again.id == first.id


def test_equal_objects_are_read_once(steps: list[Path], tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"step-{number}").mkdir()
        (tmp_path / f"step-{number}" / "model.safetensors").hardlink_to(steps[0])
    report = sweep(checkpoints=str(tmp_path / "step-*"))
    assert report.reading.shared_bytes == 2 * report.reading.nbytes > 0
    assert not report.sweep.differs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": "all", "analyses": ("layer_impact",)}, "--elementwise"),
        ({"pairs": "all", "epsilon": 0.1}, "--elementwise"),
        ({"pairs": "vs-baseline"}, "baseline"),
        ({"analyses": ("astrology",)}, "unknown analysis"),
        ({"latest": 1}, "two"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_meant_is_refused(steps: list[Path], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sweep(checkpoints=pattern(steps), **settings)


def test_a_newcomer_that_lacks_a_shard_takes_nothing_from_what_is_known(tmp_path: Path) -> None:
    for step in range(2):
        sharded(tmp_path, step)
    spoiled = {name: np.full((8, 8), 1 + index, np.float32) for index, name in enumerate("abcd")}
    spoiled["d"][0, 0] = np.nan
    models.write_sharded(tmp_path / "s-1", spoiled, 2)
    night = {"checkpoints": str(tmp_path / "s-*"), "store": str(tmp_path / "store")}
    sweep(**night)
    (sharded(tmp_path, 2) / "model-00002-of-00002.safetensors").unlink()
    kept, fresh = sweep(**night), sweep(checkpoints=night["checkpoints"])
    assert "1 of 2 pairs" in kept.reading.notes[0]
    assert kept.records == fresh.records
    assert [one.rule for one in kept.findings if one.candidate == "s-1"] == ["non-finite-appeared"]


def test_a_newcomer_that_cannot_be_read_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(3):
        sharded(tmp_path, step)
    night = {"checkpoints": str(tmp_path / "s-*"), "store": str(tmp_path / "store")}
    sweep(**night | {"checkpoints": str(tmp_path / "s-[01]")})
    fill = Chunk.fill

    def failing(chunk: Chunk) -> None:
        for source, _, _ in (read for region in chunk.regions for read in region.reads):
            if "s-2" in source.url:
                raise CheckpointError(source.url, "disk error")
        fill(chunk)

    monkeypatch.setattr(Chunk, "fill", failing)
    kept, fresh = sweep(**night), sweep(checkpoints=night["checkpoints"])
    assert {one.status for one in kept.sweep.results[0].tensors} == {"changed"}
    assert {one.status for one in kept.sweep.results[1].tensors} == {"failed"}
    assert kept.records == fresh.records


def test_an_index_that_breaks_after_a_finished_run_is_told(tmp_path: Path) -> None:
    folders = [sharded(tmp_path, step) for step in range(2)]
    night = {"checkpoints": str(tmp_path / "s-*"), "store": str(tmp_path / "store")}
    assert sweep(**night).exit_code() == 0
    path = folders[1] / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["b"]
    path.write_text(json.dumps(index))
    assert sweep(**night).sweep.warnings == sweep(checkpoints=night["checkpoints"]).sweep.warnings != ()
    index["weight_map"]["nowhere"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    assert {one.code for one in sweep(**night).failures} == {"E1203"}


@pytest.mark.parametrize(
    "victim", ["runs/*/plan.json", "runs/*/run-*.json", "runs/*/_SUCCESS.json", "tables/tensors/*/*"]
)
def test_what_is_damaged_in_a_store_is_made_again(tmp_path: Path, victim: str) -> None:
    sharded(tmp_path, 0), sharded(tmp_path, 1)
    night = {"checkpoints": str(tmp_path / "s-*"), "store": str(tmp_path / "store")}
    right = sweep(**night)
    (path,) = (tmp_path / "store").glob(victim)
    path.write_bytes(path.read_bytes()[:20])
    assert sweep(**night).records == right.records
    store = api.open_store(night["store"], Profile())
    assert list(as_records(store.load(right.id))) == right.records
    assert store.plan(right.id)["run"] == right.id


def test_the_anchor_is_the_baseline_if_one_is_named(steps: list[Path]) -> None:
    report = sweep(checkpoints=pattern(steps), pairs="all", baseline=str(steps[2].parent))
    assert report.measurements is not None
    assert report.measurements.comparison.anchor == 2
    assert len(report.sweep.pairs) == 6


def test_a_series_takes_no_stranger_for_its_first_step(steps: list[Path], tmp_path: Path) -> None:
    base = str(models.write(tmp_path / "base" / "model.safetensors", models.model()))
    for settings in ({"pairs": "all"}, {"pairs": "vs-baseline", "analyses": ["convergence_analysis"]}):
        with pytest.raises(UsageError, match=r"is none of the checkpoints, and .*: choose one of them"):
            sweep(checkpoints=pattern(steps), baseline=base, **settings)
    assert len(sweep(checkpoints=pattern(steps), baseline=base, pairs="vs-baseline").sweep.pairs) == len(steps)


def test_coverage_is_that_of_all_pairs(tmp_path: Path) -> None:
    for number in range(3):
        models.write(tmp_path / f"step-{number}" / "model.safetensors", models.perturbed(models.model(), number))
    (tmp_path / "step-0" / "model.safetensors").write_bytes(b"broken")
    report = sweep(checkpoints=str(tmp_path / "step-*"))
    assert not report.coverage.complete
    assert report.coverage.tensors == report.sweep.pairs[1].coverage.tensors
    shown = "".join(RENDERERS["text"](report.sweep, View()))
    assert "in 1 of 2 pairs\n" in shown
    assert "newest: step-1 -> step-2" in shown


def test_a_config_that_an_analysis_reads_is_part_of_the_run(tmp_path: Path) -> None:
    for step in ("a", "b"):
        models.write_sharded(tmp_path / step, models.model(), 2)
    asked = {"checkpoints": [str(tmp_path / "a"), str(tmp_path / "b")], "select": {"include": ["model.norm.weight"]}}
    ids = []
    for hidden in (256, 256, 128):
        (tmp_path / "b/config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": hidden}))
        ids.append([sweep(**asked, analyses=names).id for names in ([], ["architecture_comparison"])])
    (plain, first), (_, again), (same, other) = ids
    assert (plain, first) == (same, again)
    assert other != first
