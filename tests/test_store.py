"""What a run leaves behind is readable without our code, and complete or not trusted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import models
from diffai_dist.errors import StoreError
from diffai_dist.pipeline import Report, compare, save
from diffai_dist.storage import Profile
from diffai_dist.store import ReportStore


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("members")
    arrays = models.model()
    a = models.write(folder / "a.safetensors", arrays)
    b = models.write(folder / "b.safetensors", models.perturbed(arrays))
    return compare(str(a), str(b), analyses=["layer_impact", "change_summary"])


def table(store: Path, name: str) -> Any:
    return pd.concat([pd.read_parquet(path) for path in sorted(store.glob(f"tables/{name}/date=*/*.parquet"))])


def test_a_run_lands_in_the_layout_of_the_store(tmp_path: Path, report: Report) -> None:
    run = save(report, str(tmp_path))
    marker = json.loads((tmp_path / f"runs/{run}/_SUCCESS.json").read_text())
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {part["path"] for part in marker["parts"]} | {f"runs/{run}/_SUCCESS.json"}
    for part in marker["parts"]:
        data = (tmp_path / part["path"]).read_bytes()
        assert (len(data), hashlib.blake2b(data, digest_size=32).hexdigest()) == (part["size"], part["blake2b"])
    folders = {path.split("/")[0] for path in files} | {
        "/".join(path.split("/")[:2]) for path in files if path.startswith("tables")
    }
    assert folders == {
        "runs",
        "measurements",
        "tables",
        *(f"tables/{name}" for name in ("runs", "members", "pairs", "tensors", "findings")),
    }


def test_the_tables_are_read_by_pandas_pyarrow_and_duckdb(tmp_path: Path, report: Report) -> None:
    run = save(report, str(tmp_path))
    tensors = table(tmp_path, "tensors")
    assert list(tensors["name"]) == [record.name for record in report.result.tensors]
    assert set(tensors["run"]) == {run}
    arrow = pq.read_table(next(tmp_path.glob("tables/tensors/date=*/*.parquet")), partitioning=None)
    assert arrow.equals(report.tensors)
    largest = duckdb.sql(
        f"select name, rel_l2 from read_parquet('{tmp_path}/tables/tensors/*/*.parquet') "
        "where status = 'changed' order by rel_l2 desc limit 1"
    ).fetchall()[0]
    changes = {r.name: r.change.rel_l2 for r in report.result.tensors if r.change and r.change.rel_l2 is not None}
    assert largest == max(changes.items(), key=lambda item: item[1])
    (pair,) = table(tmp_path, "pairs").to_dict("records")
    assert pair["tensors"] == len(report.result.tensors)
    assert pair["tensors_changed"] == sum(record.status == "changed" for record in report.result.tensors)


def test_measurements_hold_the_partials_as_they_merge(tmp_path: Path, report: Report) -> None:
    save(report, str(tmp_path))
    found = [pq.read_table(path) for path in sorted(tmp_path.glob("measurements/*.parquet"))]
    assert sorted("mean" in one.column_names for one in found) == [False, True, True]
    embed = models.model()["embed.weight"].astype(np.float64)
    means = [
        one.to_pandas().set_index("name").loc["embed.weight", "mean"] for one in found if "mean" in one.column_names
    ]
    assert min(abs(mean - embed[np.isfinite(embed)].mean()) for mean in means) < 1e-15


def test_saving_the_same_run_again_changes_nothing(tmp_path: Path, report: Report) -> None:
    assert save(report, str(tmp_path)) == save(report, str(tmp_path))
    assert len(list(tmp_path.glob("runs/*"))) == 1


def test_an_incomplete_run_does_not_stand_in_the_way_of_a_complete_one(tmp_path: Path) -> None:
    arrays = models.model()
    a = models.write_sharded(tmp_path / "a", arrays, 2)
    b = models.write_sharded(tmp_path / "b", arrays, 2)
    shard = b / "model-00002-of-00002.safetensors"
    kept = shard.read_bytes()
    shard.unlink()
    first = save(compare(str(a), str(b)), str(tmp_path / "store"))
    again = save(compare(str(a), str(b)), str(tmp_path / "store"))
    shard.write_bytes(kept)
    complete = save(compare(str(a), str(b)), str(tmp_path / "store"))
    assert len({first, again, complete}) == 3
    document = json.loads((tmp_path / f"store/runs/{complete}/run.json").read_text())
    assert (document["exit_code"], document["failures"]) == (0, [])
    broken = json.loads((tmp_path / f"store/runs/{first}/run.json").read_text())
    assert broken["exit_code"] == 3
    assert broken["failures"][0]["code"] == "E1203"


def test_a_damaged_marker_and_a_newer_schema_are_refused(tmp_path: Path, report: Report) -> None:
    run = save(report, str(tmp_path))
    marker = tmp_path / f"runs/{run}/_SUCCESS.json"
    store = ReportStore(str(tmp_path), Profile())
    marker.write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        store.marker(run)
    marker.write_text('{"schema_version": "2.0"}')
    with pytest.raises(StoreError, match=r"schema 2\.0"):
        store.marker(run)
    assert store.marker("none") is None


def test_the_same_inputs_give_the_same_documents(tmp_path: Path, report: Report) -> None:
    first, second = report.to_dict(), report.to_dict()
    first.pop("environment")
    second.pop("environment")
    assert first == second
    assert "NaN" not in json.dumps(first, allow_nan=False)


def test_names_that_are_no_utf8_are_kept_as_escapes(tmp_path: Path) -> None:
    arrays = {"a\nb": np.zeros(2, np.float32), "☃": np.ones(2, np.float32)}
    path = models.write(tmp_path / "a.safetensors", arrays)
    report = compare(str(path), str(path))
    save(report, str(tmp_path / "store"))
    assert set(table(tmp_path / "store", "tensors")["name"]) == set(arrays)


def test_the_report_is_an_object_of_tables_and_records(report: Report) -> None:
    frame = report.to_pandas()
    assert frame.nlargest(1, "rel_l2")["name"].item()
    assert report.tensors.equals(report.to_arrow())
    assert {finding.severity for finding in report.findings} <= {"critical", "high", "medium", "low", "info"}
    assert {record["kind"] for record in report.records} == {"tensor", "analysis"}
    assert report.coverage.tensors == len(frame)


@pytest.mark.s3
def test_a_store_in_a_bucket_holds_the_same_files(s3: Any, bucket: str, tmp_path: Path, report: Report) -> None:
    run = save(report, f"s3://{bucket}/reports")
    assert run == save(report, str(tmp_path))
    marker = json.loads(s3.get(f"{bucket}/reports/runs/{run}/_SUCCESS.json"))
    for part in marker["parts"]:
        data = s3.get(f"{bucket}/reports/{part['path']}")
        assert hashlib.blake2b(data, digest_size=32).hexdigest() == part["blake2b"]
