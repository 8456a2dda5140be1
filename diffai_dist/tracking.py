"""A finished run in an experiment tracker: a few numbers and one folder, whatever the number of pairs and tensors."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffai_dist.errors import StoreError, UsageError
from diffai_dist.records import SCHEMA_VERSION, SEVERITIES, Sweep
from diffai_dist.report import RENDERERS, View, total_coverage
from diffai_dist.report.overview import Overview, overview
from diffai_dist.storage import redact
from diffai_dist.terminal import escape

FOLDER = "diffai-dist"  # of the artifacts of a run

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # what is compared here is nobody's business
    # MLflow's own 7 and 120 s make minutes of silence where nothing answers.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


def log_to_mlflow(run: str, sweep: Sweep, document: Mapping[str, Any], view: View) -> str:
    """Log a run to the MLflow that the environment names, as MLFLOW_RUN_ID or a run of its own; returns its id.

    Raises UsageError without MLflow, StoreError where it cannot be reached.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise UsageError("--mlflow needs MLflow: pip install 'diffai-dist[mlflow]'") from error
    seen = overview(sweep)
    try:
        with mlflow.start_run(run_name=sweep.name or run) as active, tempfile.TemporaryDirectory() as folder:
            mlflow.set_tags({"diffai_dist.run": run, "diffai_dist.schema": SCHEMA_VERSION})
            mlflow.log_metrics(metrics(seen))
            _write(Path(folder), sweep, document, view)
            mlflow.log_artifacts(folder, FOLDER)
            return str(active.info.run_id)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        uri = mlflow.get_tracking_uri()
        told = escape(str(error).replace(uri, redact(uri)), 400)
        raise StoreError(f"MLflow at {redact(uri)} did not take the run: {told}") from error


def metrics(seen: Overview) -> dict[str, float]:
    """Counts of checkpoints, pairs, tensors and findings, coverage, and how far the newest and the farthest pair moved.

    What is not defined is left out. A finding that is waived counts as such alone.
    """
    sweep, covered = seen.sweep, total_coverage(seen.sweep)
    statuses = ("changed", "identical", "added", "removed", "incomparable", "failed")
    severities = [one.finding.severity for one in seen.findings if one.finding.waived is None]
    moves = [pair.whole.rel_l2 for pair in sweep.pairs if pair.whole and pair.whole.rel_l2 is not None]
    newest = seen.newest.whole if seen.newest else None
    numbers = {
        "checkpoints": len(sweep.members),
        "pairs": len(sweep.pairs),
        **{f"tensors_{status}": sum(pair.statuses.get(status, 0) for pair in sweep.pairs) for status in statuses},
        **{f"findings_{severity}": severities.count(severity) for severity in SEVERITIES},
        "findings_waived": len(seen.findings) - len(severities),
        "failures": len(sweep.failures),
        "compared_fraction": covered.elements_compared / covered.elements if covered.elements else None,
        "rel_l2_newest": newest.rel_l2 if newest else None,
        "rel_l2_largest": max(moves, default=None),
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def _write(folder: Path, sweep: Sweep, document: Mapping[str, Any], view: View) -> None:
    """The run document, the records and the page for people."""
    (folder / "run.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    for name, output in (("records.json", "json"), ("report.md", "markdown")):
        with (folder / name).open("w", encoding="utf-8") as file:
            file.writelines(RENDERERS[output](sweep, view))
