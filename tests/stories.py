"""Commands asked in this process, and what they told; small checkpoints to plant something in."""

from __future__ import annotations

import gc
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

import models
from diffai_dist import console
from diffai_dist.cli import commands
from transformer import STEPS_APART, Weights

WORST_FIRST = ("critical", "high", "medium", "low", "info")


@dataclass(frozen=True)
class Told:
    """How a command ended, and its records."""

    code: int
    records: list[dict[str, Any]]
    err: str

    def analysis(self, name: str) -> dict[str, Any]:
        """The result of an analysis, the first of that name."""
        return next(one["result"] for one in self.records if one["kind"] == "analysis" and one["name"] == name)

    def findings(self, rule: str | None = None, at_least: str = "info") -> list[dict[str, Any]]:
        """Findings of all analyses: of that rule, and at least that severe; each with the name of its analysis."""
        severe = WORST_FIRST[: WORST_FIRST.index(at_least) + 1]
        return [
            {"analysis": record["name"], **one}
            for record in self.records
            if record["kind"] == "analysis"
            for one in record["findings"]
            if one["severity"] in severe and rule in (None, one["rule"])
        ]

    def tensors(self, rule: str, severity: str) -> list[str]:
        """What the findings of a rule are about, all of which must be of that severity."""
        found = self.findings(rule)
        assert {one["severity"] for one in found} <= {severity}, found
        return [one["tensor"] for one in found]

    def only(self, rule: str, severity: str) -> dict[str, Any]:
        """The one finding of a rule."""
        (found,) = self.findings(rule)
        assert found["severity"] == severity, found
        return found

    @property
    def summary(self) -> list[tuple[str, str, str, Any, Any]]:
        """What is medium and worse, short."""
        keys = ("analysis", "rule", "severity", "tensor", "value")
        return [tuple(one[key] for key in keys) for one in self.findings(at_least="medium")]


def ask(*arguments: object) -> Told:
    """One command with `-o json`; the process is left as it was."""
    handler, limits = signal.getsignal(signal.SIGTERM), gc.get_threshold()
    try:
        with CliRunner().isolation("", {"FORCE_COLOR": None}) as (out, err, _):
            code = console.run(commands, "diffai-dist", [*map(str, arguments), "-o", "json"])
            text, told = out.getvalue().decode(), err.getvalue().decode()
    finally:
        signal.signal(signal.SIGTERM, handler)
        gc.set_threshold(*limits)
    assert "Traceback" not in told, told[-600:]
    assert code in (0, 1, 3), told[-600:]
    return Told(code, json.loads(text) if text else [], told)


def write_run(folder: Path, members: list[Weights]) -> str:
    """A run of checkpoints, step-000015 and so on; the pattern that finds them."""
    for number, weights in enumerate(members, 1):
        models.write(folder / f"step-{number * STEPS_APART:06}" / "model.safetensors", weights)
    return str(folder / "step-*")


def write_pair(folder: Path, baseline: Weights, candidate: Weights) -> tuple[Path, Path]:
    """Two checkpoints of one file each."""
    found = (("baseline", baseline), ("candidate", candidate))
    first, second = (models.write(folder / name / "model.safetensors", weights) for name, weights in found)
    return first, second


def write_shards(
    folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]], weight_map: Mapping[str, str] | None = None
) -> Path:
    """Files and an index that maps each tensor to the file that holds it, or as told."""
    for file, arrays in shards.items():
        models.write(folder / file, arrays)
    found = {name: file for file, arrays in shards.items() for name in arrays} if weight_map is None else weight_map
    size = sum(array.nbytes for arrays in shards.values() for array in arrays.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(found)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
