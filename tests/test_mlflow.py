"""Runs in a real MLflow, on a SQLite database in a folder: a few numbers and one folder of artifacts."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from diffai_dist.records import AnalysisRecord, Finding
from diffai_dist.report.overview import overview
from diffai_dist.tracking import metrics
from results import change, failure, named, result, sweep, tensor
from test_cli_sweep import diffai, done

README = Path(__file__).parents[1] / "README.md"

LOOK = """
import json, sys
import mlflow
client = mlflow.MlflowClient()
runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
print(json.dumps([{
    "name": run.info.run_name, "status": run.info.status, "metrics": run.data.metrics, "tags": dict(run.data.tags),
    "files": {one.path: [two.path for two in client.list_artifacts(run.info.run_id, one.path)]
              for one in client.list_artifacts(run.info.run_id)},
    "texts": {one.path: mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{one.path}")
              for folder in (None, "diffai-dist")
              for one in client.list_artifacts(run.info.run_id, folder) if not one.is_dir},
} for run in runs]))
"""


class Tracker:
    """A database and a folder of artifacts; every use of MLflow is a process of its own, as it is for its users."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        }

    def run(self, *command: object, **environment: str) -> str:
        """The stdout of a process that ends well."""
        ended = subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, **self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def runs(self) -> list[dict[str, Any]]:
        """What was logged, the latest first."""
        found: list[dict[str, Any]] = json.loads(self.run("-c", LOOK).splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds a sweep of three checkpoints, the last with a NaN."""
    folder = tmp_path_factory.mktemp("kept")
    for step in range(3):
        arrays = {name: np.full(40, 1.0 + step / 8, np.float32) for name in ("embed.weight", "head.weight")}
        arrays["head.weight"][0] = np.nan if step == 2 else 0.5
        models.write(folder / f"step-{step}" / "model.safetensors", arrays)
    done("sweep", folder / "step-*", "--name", "nightly", "--store", folder / "store")
    return folder / "store"


def test_a_run_is_a_few_numbers_and_one_folder(tracker: Tracker, store: Path) -> None:
    shown = tracker.run("-m", "diffai_dist", "report", "latest", "--store", store, "--mlflow", "-o", "json")
    assert shown == done("report", "latest", "--store", store, "-o", "json").out
    (logged,) = (one for one in tracker.runs() if one["name"] == "nightly")
    assert logged["status"] == "FINISHED"
    assert 5 <= len(logged["metrics"]) <= 20
    assert logged["metrics"]["pairs"] == 2
    assert logged["metrics"]["tensors_changed"] == 4
    assert logged["metrics"]["findings_critical"] == 1
    assert logged["metrics"]["compared_fraction"] == 1
    folder = "diffai-dist"
    assert logged["files"] == {folder: [f"{folder}/records.json", f"{folder}/report.md", f"{folder}/run.json"]}
    assert json.loads(logged["texts"][f"{folder}/records.json"]) == json.loads(shown)
    assert logged["texts"][f"{folder}/report.md"] == done("report", "latest", "--store", store, "-o", "markdown").out
    run = json.loads(logged["texts"][f"{folder}/run.json"])
    assert run["run"] == logged["tags"]["diffai_dist.run"]
    (kept,) = (store / "runs" / run["run"]).glob("run-*.json")
    assert run == json.loads(kept.read_text())


def test_the_snippet_of_the_readme_logs_a_comparison(tracker: Tracker, store: Path, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(
        f"{snippet()}\n\nimport sys\n\nlog_model_diff(*sys.argv[1:])\n", encoding="utf-8"
    )
    pair = [store.parent / f"step-{step}" / "model.safetensors" for step in (0, 2)]
    script = Path(sys.executable).parent
    tracker.run(tmp_path / "snippet.py", *pair, PATH=f"{script}{os.pathsep}{os.environ['PATH']}")
    (logged,) = (one for one in tracker.runs() if "total_changes" in one["metrics"])
    assert logged["metrics"] == {"total_changes": 2}
    records = json.loads(logged["texts"]["model_comparison.json"])
    assert records == json.loads(done("compare", *pair, "-o", "json").out)


def snippet() -> str:
    """The Python block of the README that logs to MLflow."""
    blocks = README.read_text(encoding="utf-8").split("```python\n")[1:]
    (found,) = (block.partition("```")[0] for block in blocks if "import mlflow" in block)
    return found


def test_without_mlflow_the_message_says_what_to_install(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    ended = diffai("report", "latest", "--store", store, "--mlflow")
    assert ended.code == 2
    assert "pip install 'diffai-dist[mlflow]'" in ended.err
    assert ended.out == done("report", "latest", "--store", store).out


def test_a_tracker_that_cannot_be_reached_ends_the_command_with_4(tracker: Tracker, store: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "diffai_dist", "report", "latest", "--store", str(store), "--mlflow"],
        env={
            **os.environ,
            **tracker.environment,
            "MLFLOW_TRACKING_URI": "http://someone:hunter2@127.0.0.1:1",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        },
        cwd=tracker.folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 4
    assert "MLflow at " in ended.stderr
    assert "hunter2" not in ended.stderr
    assert ended.stdout == done("report", "latest", "--store", store).out


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[str]]]:
    """A server that answers nothing but 503, and the requests that it got."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_tracker_that_is_down_is_asked_three_times(
    tracker: Tracker, store: Path, refusing: tuple[str, list[str]]
) -> None:
    url, asked = refusing
    unset = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    ended = subprocess.run(
        [sys.executable, "-m", "diffai_dist", "report", "latest", "--store", str(store), "--mlflow", "--quiet"],
        env={name: value for name, value in os.environ.items() if name not in unset}
        | {**tracker.environment, "MLFLOW_TRACKING_URI": url, "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0"},
        cwd=tracker.folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 4, ended.stderr
    assert [asked.count(path) for path in dict.fromkeys(asked)] == [3]


def test_the_numbers_are_those_of_the_run() -> None:
    findings = [Finding("r", severity, None, 1, 0, "s") for severity in ("critical", "high", "high", "info")]
    findings.append(Finding("r", "critical", None, 1, 0, "s", waived="known"))
    moved = [0.25, 0.5, 0.125]
    shown = sweep(
        *(
            named(
                f"s-{i}", f"s-{i + 1}", result(tensor("w", change=change(rel_l2=by)), tensor("a", "added"), rel_l2=by)
            )
            for i, by in enumerate(moved)
        ),
        analyses=(AnalysisRecord("x", {}, tuple(findings)),),
        failures=(failure(),),
    )
    assert metrics(overview(shown)) == {
        "checkpoints": 4, "pairs": 3, "tensors_changed": 3, "tensors_identical": 0, "tensors_added": 3,
        "tensors_removed": 0, "tensors_incomparable": 0, "tensors_failed": 0, "findings_critical": 1,
        "findings_high": 2, "findings_medium": 0, "findings_low": 0, "findings_info": 1, "findings_waived": 1,
        "failures": 1, "compared_fraction": 0.5, "rel_l2_newest": 0.125, "rel_l2_largest": 0.5,
    }  # fmt: skip


def test_what_is_not_defined_is_left_out() -> None:
    found = metrics(overview(sweep(result(), mode=None)))
    assert not {"compared_fraction", "rel_l2_newest", "rel_l2_largest"} & set(found)
