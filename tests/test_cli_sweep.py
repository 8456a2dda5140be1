"""The verbs of a sweep as they are typed: what they choose, print, refuse and keep; every option does something.

Commands run in this process, where they cost a tenth of what a process costs; `ended` is what its end would be.
"""

from __future__ import annotations

import csv
import gc
import io
import itertools
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import jsonschema
import ml_dtypes
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import models
from decoding import write
from diffai_dist import api, console
from diffai_dist.analyses import ANALYSES, SERIES
from diffai_dist.cli import commands
from diffai_dist.cluster import Place
from diffai_dist.report import records_schema
from diffai_dist.store import ReportStore
from diffai_dist.store.units import Publisher
from diffai_dist.terminal import Progress

ROOT = Path(__file__).parents[1]
STEPS = ("step-0000", "step-0100", "step-0200", "step-0300")
OUTPUTS = ("text", "json", "yaml", "markdown")
OTHERS = ("names.yaml", "policy.yaml", "slurm-jobs.yaml")  # what a configuration names
SECRET = "wJalrXUtnFEMI-canary"  # what is planted where nobody may see it


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The array of `-o json`, which fits its schema."""
        found: list[dict[str, Any]] = json.loads(self.out)
        jsonschema.validate(found, records_schema())
        return found

    @property
    def members(self) -> list[str]:
        """Names of the members of `plan -o json`."""
        return [one["name"] for one in json.loads(self.out)["members"]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of the records, each once."""
        return list(dict.fromkeys(tuple(one["pair"]) for one in self.records if one["kind"] == "tensor"))


def diffai(*arguments: object, stdin: str = "", **environment: str | None) -> Ended:
    """One command."""
    with CliRunner().isolation(stdin, {"FORCE_COLOR": None, **environment}) as (out, err, _):
        code = console.run(commands, "diffai-dist", [str(one) for one in arguments])
        ended = Ended(code, out.getvalue().decode(), err.getvalue().decode())
    assert "Traceback" not in ended.err, ended.err
    return ended


def done(*arguments: object, **more: Any) -> Ended:
    """One command that ends well."""
    ended = diffai(*arguments, **more)
    assert ended.code == 0, ended
    return ended


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """A command sets up its process, which here is that of all tests."""
    handler, threshold = signal.getsignal(signal.SIGTERM), gc.get_threshold()
    yield
    signal.signal(signal.SIGTERM, handler)
    gc.set_threshold(*threshold)


def weights(step: int) -> dict[str, np.ndarray]:
    """Three layers and what is around them; everything moves from step to step but the mask."""
    generator = np.random.default_rng(step)
    arrays = {"embed.weight": (40, 8), "norm.weight": (8,)}
    arrays |= {f"h.{layer}.attn.q_proj.weight": (8, 8) for layer in range(3)}
    arrays |= {f"h.{layer}.mlp.up_proj.weight": (16 + layer // 2, 8) for layer in range(3)}
    start = np.random.default_rng(1)
    moved = {
        name: (start.standard_normal(shape) + 0.01 * generator.standard_normal(shape)).astype(np.float32)
        for name, shape in arrays.items()
    }
    return moved | {"mask": np.tri(8, dtype=np.float32)}


@pytest.fixture(scope="module")
def run7(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four checkpoints."""
    folder = tmp_path_factory.mktemp("run7")
    for step in STEPS:
        models.write(folder / step / "model.safetensors", weights(int(step[5:])))
    return folder


@pytest.fixture(scope="module")
def kept(run7: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two finished runs, to look at: one of a pair, then a sweep with every analysis of a series."""
    store = tmp_path_factory.mktemp("kept") / "store"
    done("compare", run7 / STEPS[0], run7 / STEPS[1], "--store", store)
    done("sweep", run7 / "step-*", *SERIES_ANALYSES, "--store", store, "--name", "nightly")
    return store


SERIES_ANALYSES = ("--similarity-matrix", "--convergence-analysis")


def run_of(store: Path, name: str | None = "nightly") -> str:
    """The id of the run of that name."""
    (found,) = (
        one["run"] for one in json.loads(done("status", "--store", store, "-o", "json").out) if one["name"] == name
    )
    return str(found)


# Which checkpoints, and which pairs


@pytest.mark.parametrize(
    ("arguments", "members"),
    [
        (["{}/step-*"], STEPS),
        (["{}/step-{{step:04d}}"], STEPS),
        (["{}/*[02]00"], STEPS[::2]),
        (["@{}/list"], [STEPS[0], STEPS[2]]),
        (["-"], [STEPS[1], STEPS[3]]),
        (["{}/step-0300", "{}/step-0[01]00", "{}/step-*"], [STEPS[3], *STEPS[:3]]),
        (["{}/step-*", "--since", "100"], STEPS[1:]),
        (["{}/step-*", "--until", "200"], STEPS[:3]),
        (["{}/step-*", "--since", "100", "--until", "200"], STEPS[1:3]),
        (["{}/step-*", "--every", "200"], STEPS[::2]),
        (["{}/step-*", "--latest", "2"], STEPS[2:]),
        (["{}/step-*", "--every", "100", "--until", "200", "--latest", "2"], STEPS[1:3]),
        (["{}/days/{{date:%Y-%m-%d}}"], ["2026-11-02", "2026-11-03", "2026-11-10"]),
        (["{}/days/{{date:%Y-%m-%d}}", "--since", "2026-11-03"], ["2026-11-03", "2026-11-10"]),
        (["{}/days/{{date:%Y-%m-%d}}", "--until", "2026-11-09"], ["2026-11-02", "2026-11-03"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_checkpoints_are_chosen_as_asked(
    run7: Path, tmp_path: Path, arguments: list[str], members: Sequence[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for step in STEPS:
        (folder / step).symlink_to(run7 / step)
    for day in ("2026-11-10", "2026-11-02", "2026-11-03"):
        models.write(folder / "days" / day / "model.safetensors", weights(int(day[-2:])))
    (folder / "list").write_text(f"# two of them\n{folder}/step-0200\n\n{folder}/step-0000\n")
    stdin = f"{folder}/step-0300\n{folder}/step-0100\n"
    asked = [one.format(folder) for one in arguments]
    assert done("plan", *asked, "--pairs", "consecutive", "-o", "json", stdin=stdin).members == list(members)
    assert done("sweep", *asked, "-o", "json", stdin=stdin).pairs == list(itertools.pairwise(members))


@pytest.mark.parametrize(
    ("arguments", "pairs"),
    [
        ([], [(0, 1), (1, 2), (2, 3)]),
        (["--pairs", "consecutive"], [(0, 1), (1, 2), (2, 3)]),
        (["--pairs", "vs-first"], [(0, 1), (0, 2), (0, 3)]),
        (["--pairs", "vs-last"], [(3, 0), (3, 1), (3, 2)]),
        (["--pairs", "vs-baseline", "--baseline", "{}/step-0200"], [(2, 0), (2, 1), (2, 3)]),
        (["--pairs", "all"], [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        (["--pairs", "all", "--elementwise"], [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        (["--pairs", "step-0200:step-0000, step-0100:step-0300"], [(2, 0), (1, 3)]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) else "",
)
def test_pairs_are_those_asked_for_and_measured_as_asked(
    run7: Path, arguments: list[str], pairs: list[tuple[int, int]]
) -> None:
    ended = done("sweep", run7 / "step-*", "-o", "json", *(one.format(run7) for one in arguments))
    assert sorted(ended.pairs) == sorted((STEPS[a], STEPS[b]) for a, b in pairs)
    tensors = [one for one in ended.records if one["kind"] == "tensor"]
    assert len(tensors) == len(pairs) * 8
    assert {one.get("method") for one in tensors} == {"gram" if arguments == ["--pairs", "all"] else None}


def test_a_baseline_may_lie_elsewhere(run7: Path, tmp_path: Path) -> None:
    base = models.write(tmp_path / "base.safetensors", weights(7))
    ended = done("sweep", run7 / "step-*", "--pairs", "vs-baseline", "--baseline", base, "-o", "json")
    assert len(ended.pairs) == len(STEPS)
    assert {Path(baseline).name for baseline, _ in ended.pairs} == {"base.safetensors"}


# What is wrong


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{}/step-*", "--pairs", "step-0000:step-0900"], ["'step-0900'", "none of the checkpoints", "'step-0100'"]),
        (["{}/step-*", "--pairs", "step-0000:step-0100:step-0200"], ["step-0000:step-0100:step-0200", "write A:B"]),
        (["{}/step-*", "--pairs", "step-0000:step-0100,"], ["write A:B"]),
        (["{}/step-*", "--pairs", "step-0000:"], ["write A:B"]),
        (["{}/step-*", "--pairs", "step-0000:step-0000"], ["is one checkpoint"]),
        (["{}/step-*", "--pairs", "consectuive"], ["did you mean 'consecutive'?"]),
        (["{}/step-*", "--pairs", "vs-baseline"], ["vs-baseline", "baseline"]),
        (["{}/step-*", "--baseline", "{}/step-0000"], ["vs-baseline"]),
        (["{}/step-*", "--elementwise"], ["all"]),
        (["{}/step-*", "--pairs", "all", "--show-layer-impact"], ["--elementwise"]),
        (["{}/step-*", "--pairs", "all", "--epsilon", "1"], ["--elementwise"]),
        (["{}/step-0000"], ["1 checkpoint", "step-0000", "two or more"]),
        (["{}/step-*", "--latest", "1"], ["1 checkpoint", "step-0300"]),
        (["{}/step-*", "--since", "1000"], ["since 1000", "leaves none of 4 checkpoints"]),
        (["{}/step-*", "--since", "yesterday"], ["{{date:%Y-%m-%d}}"]),
        (["{}/step-*", "--since", "soon"], ["'soon'", "2026-11-01"]),
        (["{}/step-*", "--every", "0"], ["--every", "x>=1"]),
        (["{}/step_{{step:04d}}"], ["matches nothing", "'step-0000'"]),
        (["{}/runs/7/step-*"], ["matches nothing", "'{}' holds", "but no 'runs'"]),
        (["@{}/none"], ["list", "none", "no such file"]),
        (["-"], ["stdin", "empty"]),
        (["{}/none.yaml"], ["none.yaml", "cannot be read"]),
        (["{}/none.yaml", "{}/step-*"], ["none.yaml", "give it alone"]),
        (["{}/step-*", "--include", "no.such.*"], ["leaves none of 9 tensors"]),
        (["{}/step-*", "--ignore-keys-regex", "("], ["regular expression"]),
        (["{}/step-*", "--epsilon", "nan"], ["--epsilon", "finite"]),
        (["{}/step-*", "--epsilon", "inf"], ["--epsilon", "finite"]),
        (["{}/step-*", "--scheduler", ""], ["--scheduler", "empty"]),
        (["{}/step-*", "--include", ""], ["--include", "empty"]),
        (["{}/step-*", "--pairs", ""], ["--pairs", "empty"]),
        (["{}/step-*", "--jobs", "3"], ["--cluster slurm"]),
        (["{}/step-*", "--workers", "2", "--scheduler", "env"], ["give one of them"]),
        (["{}/step-*", "--store", "s3://user:" + SECRET + "@bucket/x"], ["credential"]),
        (["s3://user:" + SECRET + "@bucket/step-*"], ["credential"]),
        ([], ["CHECKPOINTS"]),
    ],
    ids=lambda value: " ".join(value).replace("{}/", "")[:60],
)
@pytest.mark.parametrize("verb", ["sweep", "plan"])
def test_what_is_wrong_is_refused_by_name(run7: Path, verb: str, arguments: list[str], says: list[str]) -> None:
    ended = diffai(verb, *(one.format(run7) for one in arguments))
    assert (ended.code, ended.out) == (2, ""), ended
    for words in says:
        assert words.format(run7) in ended.err, ended.err
    assert SECRET not in ended.err
    usage = ended.err.startswith("Usage: ")
    assert usage or len(ended.err.splitlines()) == 1, ended.err


# Configurations

CONFIG = """\
checkpoints: step-*
pairs: vs-first
name: nightly
store: ../reports
output: {format: json}
"""


@pytest.fixture
def config(run7: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    folder.mkdir()
    for step in STEPS:
        (folder / step).symlink_to(run7 / step)
    (folder / "night.yaml").write_text(CONFIG)
    return folder / "night.yaml"


def test_a_configuration_says_it_all(config: Path) -> None:
    ended = done("sweep", config)
    assert ended.pairs == [(STEPS[0], other) for other in STEPS[1:]]
    (run,) = json.loads(done("status", "--store", config.parents[1] / "reports", "-o", "json").out)
    assert (run["name"], run["state"]) == ("nightly", "finished")


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(config: Path, tmp_path: Path) -> None:
    def pairs(*options: str, **environment: str) -> int:
        return len(done("sweep", config, *options, **environment).pairs)

    assert pairs("--latest", "3") == 2
    assert pairs(DIFFAI_DIST_LATEST="2") == 1
    assert pairs("--latest", "3", DIFFAI_DIST_LATEST="2") == 2
    assert done("sweep", config, "-o", "text").out.startswith("sweep nightly: 4 checkpoints")
    assert done("sweep", config, "--name", "other", "-o", "text").out.startswith("sweep other: ")
    assert done("sweep", config, DIFFAI_DIST_NAME="third", DIFFAI_DIST_OUTPUT="text").out.startswith("sweep third: ")
    done("sweep", config, DIFFAI_DIST_STORE=str(tmp_path / "elsewhere"))
    assert (
        len(json.loads(done("status", DIFFAI_DIST_STORE=str(tmp_path / "elsewhere"), DIFFAI_DIST_OUTPUT="json").out))
        == 1
    )
    assert pairs(DIFFAI_DIST_LATEST="") == 3  # as if it were not set


@pytest.mark.parametrize(
    ("line", "place", "says"),
    [
        ("stor: reports", "6:1", "did you mean 'store'?"),
        ("cluster: {worker: 2}", "6:11", "did you mean 'workers'?"),
        ("epsilon: small", "6:10", "epsilon wants a number"),
        ("analyses: [similarity_matrx]", "6:12", "did you mean 'similarity_matrix'?"),
        (f"aws_secret_access_key: {SECRET}", "6:1", "AWS_SECRET_ACCESS_KEY"),
        (f"password: {SECRET}", "6:1", "environment"),
    ],
)
@pytest.mark.parametrize("verb", ["sweep", "plan"])
def test_a_mistake_in_a_configuration_has_its_place(config: Path, verb: str, line: str, place: str, says: str) -> None:
    config.write_text(f"{CONFIG}{line}\n")
    ended = diffai(verb, config)
    assert (ended.code, ended.out) == (2, "")
    assert f"{config}:{place}: " in ended.err
    assert says in ended.err
    assert SECRET not in ended.err


def test_jobs_of_the_command_line_go_before_those_of_the_file(config: Path, seen: Seen) -> None:
    config.write_text(f"{CONFIG}cluster: {{slurm: {{jobs: 2, config: jobs.yaml}}}}\n")
    for options, jobs in (([], 2), (["--jobs", "5"], 5), (["--cluster", "slurm"], 2)):
        done("plan", config, *options)
        assert seen.place.slurm is not None
        assert seen.place.slurm.jobs == jobs
        assert Path(str(seen.place.slurm.config)) == config.with_name("jobs.yaml")
    done("plan", config, "--workers", "2")
    assert (seen.place.workers, seen.place.slurm) == (2, None)


def test_the_printed_schema_takes_every_example(config: Path) -> None:
    schema = json.loads(done("config", "schema").out)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    examples = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if path.name not in OTHERS]
    assert len(examples) >= 3
    for path in (*examples, config):
        validator.validate({key: value for key, value in yaml.safe_load(path.read_text()).items() if value is not None})
    assert not validator.is_valid({"checkpoints": "step-*", "stor": "reports"})


# What is printed, and how it ends


@pytest.mark.parametrize("mode", ["consecutive", "all"])
def test_all_outputs_say_the_same(run7: Path, mode: str) -> None:
    command = ("sweep", run7 / "step-*", "--pairs", mode, *SERIES_ANALYSES)
    records = done(*command, "-o", "json").records
    assert yaml.safe_load(done(*command, "-o", "yaml").out) == records
    analyses = {one["name"]: one for one in records if one["kind"] == "analysis"}
    assert {*analyses} >= {"similarity_matrix", "convergence_analysis", "staleness_check", "anomaly_detection"}
    assert all(one["members"] == list(STEPS) for one in analyses.values())
    for output, heading in (("text", ""), ("markdown", "### ")):
        shown = done(*command, "-o", output, "--show-tensors").out
        lines = shown.splitlines()
        for words in (
            "Similarity matrix: cosine distance",
            "Similarity matrix: clusters",
            "Convergence analysis: updates",
        ):
            assert f"{heading}{words}" in lines
        assert [one["name"] for one in records if one["kind"] == "tensor" and one["name"] not in shown] == []
        assert f"{STEPS[0]}" in shown
        assert "insufficient" in shown
    cosines = analyses["similarity_matrix"]["result"]["cosine_distance"]
    assert [row["checkpoint"] for row in cosines] == list(STEPS)
    assert analyses["convergence_analysis"]["result"]["cannot"]


@pytest.mark.parametrize("output", OUTPUTS)
def test_exit_codes_do_not_depend_on_the_output(run7: Path, tmp_path: Path, output: str) -> None:
    same = [shutil.copytree(run7 / STEPS[0], tmp_path / f"same-{number}") for number in range(2)]
    (tmp_path / "step-0400").mkdir()

    def code(*arguments: object) -> int:
        return diffai("sweep", *arguments, "-o", output).code

    assert code(run7 / "step-*") == 0
    assert code(run7 / "step-*", "--exit-code") == 1
    assert code(run7 / "step-*", "--quiet") == 1
    assert code(*same, "--exit-code") == 0
    assert code(*same, "--quiet") == 0
    assert code(*same, tmp_path / "step-0400") == 3
    assert code(run7 / "step-*", tmp_path / "step-0400", "--exit-code") == 1


def test_quiet_prints_nothing_and_writes_what_was_asked_for(run7: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "out.json", tmp_path / "store"
    ended = diffai("sweep", run7 / "step-*", "-q", "-o", "json", "--output-file", out, "--store", store)
    assert ended == Ended(1, "", "")
    assert {one["kind"] for one in json.loads(out.read_text())} == {"tensor", "analysis"}
    assert diffai("report", "latest", "--store", store, "-q") == Ended(1, "", "")


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_cannot_be_read_is_told_once_and_coverage_always(run7: Path, tmp_path: Path, output: str) -> None:
    bad = tmp_path / "step-0400.safetensors"
    bad.write_bytes(b"\x10")
    ended = diffai("sweep", run7 / "step-*", bad, "-o", output)
    assert ended.code == 3
    stream = ended.err if output in ("json", "yaml") else ended.out
    assert "all 27 tensors" in stream, stream
    assert "1 could not be opened" in stream
    assert stream.count(f"{bad}: ") >= 1
    if output == "json":
        assert [one["object"] for one in ended.records if one["kind"] == "failure"] == [str(bad)]


# Layers of one model


def _alike(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return 1 - x @ y / np.sqrt(x @ x) / np.sqrt(y @ y), float(np.linalg.norm(y - x) / np.linalg.norm(x))


def test_a_pair_tells_which_layers_are_alike(run7: Path) -> None:
    ended = done("compare", run7 / STEPS[0], run7 / STEPS[1], "--similarity-matrix", "-o", "json")
    found = [one for one in ended.records if one["kind"] == "analysis"]
    assert [one["result"]["checkpoint"] for one in found] == [str(run7 / step) for step in STEPS[:2]]
    for step, one in zip((0, 100), found, strict=True):
        arrays, result = weights(step), one["result"]
        layers = [
            {name.removeprefix(f"h.{i}."): array for name, array in arrays.items() if name.startswith(f"h.{i}.")}
            for i in range(3)
        ]
        assert [row["layer"] for row in result["cosine_distance"]] == ["h.0", "h.1", "h.2"]
        for i, j in itertools.product(range(3), range(3)):
            both = [name for name in layers[i] if layers[i][name].shape == layers[j][name].shape]
            assert len(both) == (1 if {i, j} in ({0, 2}, {1, 2}) else 2)  # the last layer is wider
            cosine, distance = _alike(
                *(np.concatenate([layer[name].ravel() for name in both]) for layer in (layers[i], layers[j]))
            )
            assert result["cosine_distance"][i][f"h.{j}"] == pytest.approx(cosine, rel=1e-9, abs=1e-12)
            assert result["relative_distance"][i][f"h.{j}"] == pytest.approx(distance, rel=1e-9, abs=1e-12)
        for row in result["role_cosine_distance"]:
            name = {"q": "attn.q_proj.weight", "up": "mlp.up_proj.weight"}[row["role"]]
            x, y = layers[int(row["layer"][2:])][name], layers[1][name]
            expected = (
                pytest.approx(_alike(x.ravel(), y.ravel())[0], rel=1e-9, abs=1e-12) if x.shape == y.shape else None
            )
            assert row["h.1"] == expected
        assert not {"anchor", "task_cosine"} & {*result}


def test_layers_that_were_copied_are_found_next_to_each_other(tmp_path: Path) -> None:
    arrays = weights(0)
    arrays["h.2.attn.q_proj.weight"] = arrays["h.0.attn.q_proj.weight"] + np.float32(1e-3)
    arrays["h.2.mlp.up_proj.weight"] = arrays["h.0.mlp.up_proj.weight"]
    path = models.write(tmp_path / "a.safetensors", arrays)
    (record, _) = (one for one in done("compare", path, path, "--similarity-matrix", "-o", "json").records)
    first = record["result"]["clusters"][0]
    assert (first["from"], first["to"], first["layers"]) == ("h.0", "h.2", 2)
    assert record["result"]["order"] == ["h.0", "h.2", "h.1"]
    text = done("compare", path, path, "--similarity-matrix").out
    assert "similarity_matrix: layer=h.0, nearest=h.2" in text


def test_a_layer_unlike_all_others_is_a_finding_about_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    common = generator.standard_normal(400)
    arrays = {f"h.{i}.w": (common + 0.1 * generator.standard_normal(400)).astype(np.float32) for i in range(7)}
    arrays["h.4.w"] = generator.standard_normal(400).astype(np.float32)
    path = models.write(tmp_path / "a.safetensors", arrays)
    record, _ = done("compare", path, path, "--similarity-matrix", "-o", "json").records
    assert [(one["rule"], one["tensor"]) for one in record["findings"]] == [("outlier", "h.4")]
    assert "finding=outlier, severity=low, tensor=h.4" in done("compare", path, path, "--similarity-matrix").out


def test_a_model_without_layers_says_so(tmp_path: Path) -> None:
    for number, arrays in enumerate(({"w": np.ones(3, np.float32)}, {"h.0.w": np.ones(3, np.float32)})):
        path = models.write(tmp_path / f"{number}.safetensors", arrays)
        for record in done("compare", path, path, "--similarity-matrix", "-o", "json").records:
            assert record["result"] == {"checkpoint": str(path), "reason": record["result"]["reason"]}
            assert "it takes 2 to 256 numbered blocks" in record["result"]["reason"]


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_pair_says_what_two_checkpoints_cannot_tell(run7: Path, output: str) -> None:
    ended = done("compare", run7 / STEPS[0], run7 / STEPS[1], "--convergence-analysis", "-o", output)
    assert "two checkpoints give one update: no angle between updates" in " ".join(ended.out.split())
    assert "insufficient" in ended.out
    assert "movement only" in ended.out


# Plans


def plan_of(*arguments: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(done("plan", *arguments, "-o", "json").out)
    return document


def test_a_plan_says_what_would_be_read(run7: Path) -> None:
    sizes = sum(array.nbytes for array in weights(0).values())
    for pairs, number in (("consecutive", 3), ("all", 6), ("vs-last", 3)):
        document = plan_of(run7 / "step-*", "--pairs", pairs)
        assert (document["mode"], document["pairs"], document["problems"]) == (pairs, number, [])
        assert document["read_bytes"] == len(STEPS) * sizes
        assert document["tensors"] == {"in all": 9}
    text = done("plan", run7 / "step-*").out
    assert "checkpoints 4: step-0000 to step-0300" in text
    assert "pairs      3 (consecutive)" in text
    pair = plan_of(run7 / STEPS[0], run7 / STEPS[1])
    assert (pair["mode"], pair["pairs"], pair["tensors"]) == (None, 1, {"compared": 9})
    assert plan_of(run7 / STEPS[0], run7 / STEPS[1], "--pairs", "all")["mode"] == "all"
    assert plan_of(f"{run7}/step-0[0]00", run7 / STEPS[1])["mode"] == "consecutive"


def test_a_plan_of_a_configuration_knows_its_store(config: Path) -> None:
    before = plan_of(config)
    assert before["stored"] == {"pairs": 0, "bytes": 0, "units": 0}
    assert not (config.parents[1] / "reports").exists()  # nothing is kept
    done("sweep", config)
    after = plan_of(config)
    assert (after["stored"]["pairs"], after["stored"]["bytes"], after["read_bytes"]) == (3, before["read_bytes"], 0)
    more = plan_of(config, "--pairs", "vs-last")
    assert (more["stored"]["pairs"], more["read_bytes"]) == (0, before["read_bytes"])
    assert "stored     3 pairs of earlier runs" in done("plan", config).out


def test_a_plan_of_a_pair_that_is_stored_reads_nothing(run7: Path, tmp_path: Path) -> None:
    pair = (run7 / STEPS[0], run7 / STEPS[1], "--store", tmp_path)
    before = plan_of(*pair)
    done("compare", *pair)
    after = plan_of(*pair)
    assert (after["read_bytes"], after["tensors"]) == (0, before["tensors"])


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_plan_lists_its_problems(run7: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\x10")
    for others in ([], [run7 / STEPS[1]]):
        bad = (tmp_path / "bad.safetensors", tmp_path / "none") if others else (tmp_path / "none",)
        ended = diffai("plan", run7 / STEPS[0], *others, *bad, "-o", output)
        assert ended.code == 3
        for path in bad:
            assert str(path) in ended.out


def test_a_plan_lists_tensors_that_cannot_be_read(tmp_path: Path) -> None:
    codes = {f"m{i}.qweight": np.zeros((8, 16), np.int32) for i in range(12)}
    for name in ("a", "b"):
        write(tmp_path / name, codes | {"norm.weight": np.ones(4, np.float32)}, {"quant_method": "gptq"})
    ended = diffai("plan", tmp_path / "a", tmp_path / "b")
    assert (ended.code, ended.out.count("its qzeros is missing"), "and 14 more" in ended.out) == (3, 10, True)
    assert len(json.loads(diffai("plan", tmp_path / "a", tmp_path / "b", "-o", "json").out)["problems"]) == 24


def test_a_selection_of_parts_is_answered_with_how_to_reach_them(tmp_path: Path) -> None:
    codes = np.ones((4, 8), ml_dtypes.float8_e4m3fn)
    for name in ("a", "b"):
        write(tmp_path / name, {"m.weight": codes, "m.weight_scale": np.ones(1, np.float32)})
    ended = diffai("compare", tmp_path / "a", tmp_path / "b", "--include", "*_scale")
    assert (ended.code, "but with --raw" in ended.err) == (2, True)
    assert diffai("compare", tmp_path / "a", tmp_path / "b", "--include", "*_scale", "--raw").code == 0
    assert "but with --raw" not in diffai("compare", tmp_path / "a", tmp_path / "b", "--include", "x", "--raw").err


# Runs that are taken up again


@pytest.fixture
def command(run7: Path, tmp_path: Path) -> tuple[object, ...]:
    """A sweep of 9 units: each tensor, of all members, is one."""
    return "sweep", run7 / "step-*", "--store", tmp_path / "store", "--unit-size", "1"


def interrupt_after(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    """Ctrl-C when so many units are there."""
    left, add = itertools.count(units, -1), Publisher.add

    def counted(self: Publisher, key: str, rows: Any) -> None:
        if next(left) == 0:
            raise KeyboardInterrupt
        add(self, key, rows)

    monkeypatch.setattr(Publisher, "add", counted)


def read_bytes(store: Path, run: str) -> int:
    marker = json.loads((store / "runs" / run / "_SUCCESS.json").read_text())
    return int(marker["reading"]["nbytes"])


def test_an_interrupted_run_is_resumed_where_it_was(
    command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    with monkeypatch.context() as patched:
        interrupt_after(patched, 5)
        assert diffai(*command).code == 130
    (run,) = json.loads(done("status", "--store", store, "-o", "json").out)
    assert (run["state"], run["units"], run["units_total"], run["exit_code"]) == ("running", 5, 9, None)
    assert "5/9" in done("status", "--store", store).out
    assert "state       running" in done("status", "latest", "--store", store).out
    unfinished = diffai("report", "latest", "--store", store)
    assert unfinished.code == 4
    assert f"resume {run['run']} --store {store}" in unfinished.err
    planned = plan_of(*command[1:])
    assert planned["stored"]["units"] == 5
    resumed = done("resume", run["run"][:6], "--store", store)
    fresh = done(*command[:2], "--store", tmp_path / "fresh")
    assert resumed.out == fresh.out
    assert read_bytes(store, run["run"]) == planned["read_bytes"] < read_bytes(tmp_path / "fresh", run["run"])


def test_a_run_that_lost_its_marker_reads_nothing_again(command: tuple[object, ...], tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = done(*command)
    run = run_of(store, None)
    (store / "runs" / run / "_SUCCESS.json").unlink()
    assert done("resume", "latest", "--store", store).out == first.out
    assert read_bytes(store, run) == 0


def test_a_comparison_of_two_is_resumed_like_a_sweep(run7: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = done("compare", run7 / STEPS[0], run7 / STEPS[1], *SERIES_ANALYSES, "--store", store)
    (store / "runs" / run_of(store, None) / "_SUCCESS.json").unlink()
    assert done("resume", "latest", "--store", store).out == first.out


def test_a_finished_run_is_shown_and_not_done_again(command: tuple[object, ...], tmp_path: Path) -> None:
    first = done(*command, "-o", "json")
    before = sorted((tmp_path / "store").rglob("*"))
    assert done("resume", "latest", "--store", tmp_path / "store", "-o", "json").out == first.out
    assert "is finished: nothing was read" in done("resume", "latest", "--store", tmp_path / "store").out
    assert sorted((tmp_path / "store").rglob("*")) == before


def test_a_run_whose_checkpoint_changed_cannot_be_finished(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config.parent / STEPS[2]).unlink()
    changing = models.write(config.parent / STEPS[2] / "model.safetensors", weights(200))
    with monkeypatch.context() as patched:
        interrupt_after(patched, 0)
        assert diffai("sweep", config, "--unit-size", "1").code == 130
    store = config.parents[1] / "reports"
    models.write(changing, weights(201))
    for _ in range(2):  # rewritten, then gone
        ended = diffai("resume", "latest", "--store", store)
        assert ended.code == 3
        assert f"{config.parent / STEPS[2]}: other objects than the plan pinned" in ended.err
        assert "sweep again" in ended.err
        changing.unlink(missing_ok=True)


@pytest.mark.parametrize("verb", ["resume", "status", "report"])
def test_runs_are_named_by_id_beginning_or_latest(kept: Path, verb: str) -> None:
    run = run_of(kept)
    named = {done(verb, name, "--store", kept).out for name in (run, run[:8])}
    assert len(named) == 1
    assert done(verb, "latest", "--store", kept).code == 0
    ended = diffai(verb, "ffff", "--store", kept)
    assert (ended.code, ended.out) == (2, "")
    assert "no run 'ffff'" in ended.err
    assert f"diffai-dist status --store {kept}" in ended.err


@pytest.mark.parametrize("verb", ["resume", "status", "report"])
def test_a_beginning_of_several_runs_is_refused(kept: Path, tmp_path: Path, verb: str) -> None:
    shutil.copytree(kept / "runs" / run_of(kept), tmp_path / "runs" / "abc1")
    shutil.copytree(kept / "runs" / run_of(kept), tmp_path / "runs" / "abc2")
    ended = diffai(verb, "abc", "--store", tmp_path)
    assert ended.code == 2
    assert "2 runs begin with 'abc'" in ended.err


@pytest.mark.parametrize(
    "command",
    [["status"], ["status", "latest"], ["report", "latest"], ["resume", "latest"], ["gc"], ["query", "select 1"]],
    ids=" ".join,
)
def test_a_store_that_is_not_there_is_no_empty_store(tmp_path: Path, command: list[str]) -> None:
    def asked(store: Path) -> Ended:
        if command[0] == "query":
            return diffai("query", store, command[1])
        return diffai(*command, "--store", store)

    ended = asked(tmp_path / "reprots")
    assert (ended.code, ended.out) == (2, "")
    assert f"{tmp_path / 'reprots'}: there is no such folder" in ended.err
    (tmp_path / "file").touch()
    ended = asked(tmp_path / "file")
    assert (ended.code, ended.out) == (2, "")
    assert "is a file" in ended.err


# The store, looked at


def test_status_tells_each_run_and_one_in_detail(kept: Path, run7: Path) -> None:
    lines = done("status", "--store", kept).out.splitlines()
    assert lines[0].split() == ["run", "name", "started", "state", "units", "pairs", "failures"]
    assert [line.split()[1] for line in lines[1:]] in (["-", "nightly"], ["nightly", "-"])  # within one second
    assert all(" finished " in line for line in lines[1:])
    detail = done("status", run_of(kept), "--store", kept).out
    for words in ("pairs       3 (consecutive)", "checkpoints 4", *(f"{step}  {run7 / step}" for step in STEPS)):
        assert words in detail
    document = json.loads(done("status", run_of(kept), "--store", kept, "-o", "json").out)
    assert [one["name"] for one in document["comparison"]["members"]] == list(STEPS)


def test_status_names_what_failed_first(run7: Path, tmp_path: Path) -> None:
    (tmp_path / "step-0400.safetensors").write_bytes(b"\x10")
    assert diffai("sweep", run7 / "step-*", tmp_path / "step-0400.safetensors", "--store", tmp_path / "s").code == 3
    assert " incomplete " in done("status", "--store", tmp_path / "s").out
    ended = done("status", "latest", "--store", tmp_path / "s")
    assert ended.out.startswith(f"failed: {tmp_path / 'step-0400.safetensors'}: ")
    assert diffai("report", "latest", "--store", tmp_path / "s").code == 3
    assert diffai("report", "latest", "--store", tmp_path / "s", "--exit-code").code == 1


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_report_is_what_the_sweep_printed(run7: Path, tmp_path: Path, output: str) -> None:
    command = ("sweep", run7 / "step-*", "--show-layer-impact", *SERIES_ANALYSES, "--store", tmp_path, "-o", output)
    swept = done(*command, "--show-tensors")
    assert done("report", "latest", "--store", tmp_path, "-o", output, "--show-tensors").out == swept.out


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_report_of_two_is_what_compare_printed(run7: Path, tmp_path: Path, output: str) -> None:
    pair = run7 / STEPS[0], run7 / STEPS[1]
    compared = done("compare", *pair, "--change-summary", *SERIES_ANALYSES, "--store", tmp_path, "-o", output)
    assert done("report", "latest", "--store", tmp_path, "-o", output).out == compared.out


@pytest.mark.parametrize("verb", ["report", "resume"])
def test_a_damaged_night_before_costs_only_its_comparison(
    run7: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    for last in STEPS[2:]:
        done("sweep", run7 / "step-*", "--until", str(int(last[5:])), "--name", "nightly", "--store", tmp_path)
    assert "since last night: 1 new checkpoint" in done(verb, "latest", "--store", tmp_path).out
    runs = json.loads(done("status", "--store", tmp_path, "-o", "json").out)
    (earlier,) = (one["run"] for one in runs if one["pairs"] == 2)
    for document in (tmp_path / "runs" / earlier).glob("run-*.json"):
        document.write_bytes(document.read_bytes()[:-2])
    shown = done(verb, "latest", "--store", tmp_path).out
    assert "since last night" not in shown
    assert "\nfindings: 1 info\n" in shown
    assert "What is new since the night before is not known" in caplog.text


def test_gc_removes_what_is_old_and_not_needed(kept: Path, tmp_path: Path) -> None:
    store = shutil.copytree(kept, tmp_path / "store")
    for path in store.rglob("*"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600 * 24))
    units = sorted(str(path.relative_to(store)) for path in store.glob("runs/*/units/*"))
    assert len(units) == 2
    report = done("report", run_of(store), "--store", store).out
    assert done("gc", "--store", store).out == "0 objects removed, 0 B\n"
    assert done("gc", "--store", store, "--older-than", "36h").out == "0 objects removed, 0 B\n"
    dry = done("gc", "--store", store, "--older-than", "12h", "--dry-run").out.splitlines()
    assert sorted(dry[:-1]) == units
    assert dry[-1].startswith("2 objects would be removed, ")
    assert len(list(store.glob("runs/*/units/*"))) == 2
    wet = done("gc", "--store", store, "--older-than", "12h").out.splitlines()
    assert (wet[:-1], wet[-1]) == (dry[:-1], dry[-1].replace("would be removed", "removed"))
    assert not list(store.glob("runs/*/units/*"))
    assert done("report", run_of(store), "--store", store).out == report
    assert diffai("gc", "--store", store, "--older-than", "soon").code == 2


def test_query_answers_in_every_format(kept: Path) -> None:
    sql = f"select baseline, candidate, tensors_changed, rel_l2 from pairs where run = '{run_of(kept)}' order by 1"
    rows = [json.loads(line) for line in done("query", kept, sql, "-o", "json").out.splitlines()]
    assert [(row["baseline"], row["candidate"], row["tensors_changed"]) for row in rows] == [
        (a, b, 8) for a, b in itertools.pairwise(STEPS)
    ]
    table = list(csv.DictReader(io.StringIO(done("query", kept, sql, "-o", "csv").out)))
    assert [float(row["rel_l2"]) for row in table] == [row["rel_l2"] for row in rows]
    text = done("query", kept, sql).out.splitlines()
    assert text[0].split() == ["baseline", "candidate", "tensors_changed", "rel_l2"]
    assert text[1].split()[:3] == ["step-0000", "step-0100", "8"]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("selct 1", "syntax error"),
        ("select * from runz", "runz"),
        ("select nothing from runs", "nothing"),
        ("select * from read_parquet('/etc/*')", "disabled"),
        ("copy runs to '/tmp/x.csv'", "disabled"),
        ("set threads = 1", ""),
        (";", "SELECT"),
        ("", "empty"),
    ],
)
def test_sql_that_cannot_be_run_is_a_usage_error(kept: Path, sql: str, says: str) -> None:
    ended = diffai("query", kept, sql)
    assert (ended.code, ended.out) == (2, ""), ended
    assert says in ended.err


# Hostile names

MEMBERS = ("a\n:error ##[x]|`\x1b[31m", "b\u202e\"'<b>", "c $(x)\u200b", "d[bold]=1\\")
TENSORS = (
    "x\ny",
    "\x1b[31mred",
    "p|q`r",
    "q\"'<b>",
    "\u202egnp",
    "::error::x",
    "##[x]",
    "  ",
    "=1+1",
    "h.0.w",
    "h.1.w",
)
HARMLESS = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]*")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for number, (name, plain) in enumerate(zip(MEMBERS, "abcd", strict=True)):
        generator = np.random.default_rng(number)
        arrays = [generator.standard_normal(4).astype(np.float32) for _ in TENSORS]
        models.write(folder / "hostile" / name / "model.safetensors", dict(zip(TENSORS, arrays, strict=True)))
        tame = (f"t{number:02}" for number in range(len(TENSORS)))
        models.write(folder / "tame" / plain / "model.safetensors", dict(zip(tame, arrays, strict=True)))
    return folder


NAME = "night\n\x1b[31m\u202e"


@pytest.mark.parametrize("output", ["text", "markdown"])
def test_hostile_names_are_inert_wherever_people_read(hostile: Path, tmp_path: Path, output: str) -> None:
    options = ("--show-tensors", "--show-layer-impact", "--change-summary", *SERIES_ANALYSES, "-o", output)
    ended = done("sweep", hostile / "hostile" / "*", *options, "--store", tmp_path, "--name", NAME)
    again = done("report", "latest", "--store", tmp_path, "-o", output)
    shown = [ended.out, ended.err, again.out, done("status", "--store", tmp_path).out]
    shown += [done("status", "latest", "--store", tmp_path).out, done("plan", hostile / "hostile" / "*").out]
    shown += [
        done("query", tmp_path, "select * from tensors").out,
        done("query", tmp_path, "select * from members").out,
    ]
    for text in shown:
        assert HARMLESS.fullmatch(text), text
        assert "##[" not in text
        assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]
    assert "a\\x0a:error" in ended.out
    for options in (["--show-tensors"], SERIES_ANALYSES):
        rude, tame = (done("sweep", hostile / kind / "*", *options, "-o", output).out for kind in ("hostile", "tame"))
        assert len(rude.splitlines()) == len(tame.splitlines())


def test_hostile_names_come_back_exactly_to_programs(hostile: Path, tmp_path: Path) -> None:
    command = ("sweep", hostile / "hostile" / "*", "--pairs", "vs-first", "--store", tmp_path, "--name", NAME)
    ended = done(*command, "-o", "json")
    assert ended.pairs == [(MEMBERS[0], other) for other in MEMBERS[1:]]
    assert {one["name"] for one in ended.records if one["kind"] == "tensor"} == {*TENSORS}
    assert ended.out.isascii()
    assert yaml.safe_load(done(*command, "-o", "yaml").out) == ended.records
    (run,) = json.loads(done("status", "--store", tmp_path, "-o", "json").out)
    assert run["name"] == NAME
    assert plan_of(*command[1:])["members"][1]["name"] == MEMBERS[1]
    sql = "select distinct name from tensors"
    rows = [json.loads(line)["name"] for line in done("query", tmp_path, sql, "-o", "json").out.splitlines()]
    assert {*rows} == {*TENSORS}
    cells = {row[0] for row in csv.reader(io.StringIO(done("query", tmp_path, sql, "-o", "csv").out))}
    assert cells == {"name", *TENSORS} - {"=1+1"} | {"'=1+1"}  # no formula to a spreadsheet


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "{}/hostile/zz\x1b[31m-*"],
        ["sweep", "{}/hostile/*", "--pairs", "a\x1b[31m:b\u202e"],
        ["sweep", "{}/hostile/*", "--include", "\x1b[31m"],
        ["sweep", "{}/hostile/*", "--output-file", "{}/none\x1b[31m/x"],
        ["status", "x\x1b[31m", "--store", "{}"],
        ["report", "x\x1b[31m", "--store", "{}"],
        ["status", "--store", "{}/\x1b[31m\u202e"],
        ["gc", "--store", "{}", "--older-than", "\x1b[31m"],
        ["query", "{}", 'select "\x1b[31m"'],
    ],
    ids=lambda value: value[0],
)
def test_messages_are_harmless(hostile: Path, arguments: list[str]) -> None:
    ended = diffai(*(one.format(hostile) for one in arguments))
    assert (ended.code, ended.out) == (2, "")
    assert HARMLESS.fullmatch(ended.err), ended.err


# Every option does something


@dataclass
class Seen:
    """What a command handed to the library last."""

    settings: Any = None
    group: Any = None
    profiles: list[Any] = field(default_factory=list)  # with which the store was opened

    @property
    def place(self) -> Place:
        """Where it would run."""
        found: Place = self.settings.place
        return found


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The same calls, but everything runs in this process."""
    found, run, planned, open_store = Seen(), api.run, api.planned, api.open_store

    def seen_run(group: Any, settings: Any, *more: Any) -> Any:
        found.group, found.settings = group, settings
        return run(group, replace(settings, place=Place()), *more)

    def seen_planned(group: Any, settings: Any, *more: Any) -> Any:
        found.group, found.settings = group, settings
        return planned(group, settings, *more)

    def seen_store(url: str, profile: Any) -> ReportStore:
        found.profiles.append(profile)
        return open_store(url, profile)

    monkeypatch.setattr(api, "run", seen_run)
    monkeypatch.setattr(api, "planned", seen_planned)
    monkeypatch.setattr(api, "open_store", seen_store)
    return found


PLACES = {
    "--workers": ([], ["2"]),
    "--scheduler": ([], ["tcp://127.0.0.1:1"]),
    "--threads": ([], ["3"]),
    "--memory-limit": ([], ["3GB"]),
    "--cluster": ([], ["slurm"]),
    "--cluster-config": (["--cluster", "slurm"], ["jobs.yaml"]),
    "--jobs": (["--cluster", "slurm"], ["3"]),
    "--tls-ca-file": (["--scheduler", "tls://h:1"], ["ca.pem", "--tls-cert-file", "cert.pem"]),
    "--tls-cert-file": (["--scheduler", "tls://h:1"], ["cert.pem", "--tls-ca-file", "ca.pem"]),
    "--tls-key-file": (["--scheduler", "tls://h:1", "--tls-ca-file", "a", "--tls-cert-file", "b"], ["key.pem"]),
}
STORAGES = {
    "--endpoint-url": ([], ["https://127.0.0.1:1"]),
    "--anon": ([], []),
    "--profile": ([], ["training"]),
}
SHOWN = {
    "--output": ([], ["json"]),
    "--output-file": ([], ["{out}/new"]),
    "--force": (["--output-file", "{out}/old"], []),
    "--github": ([], []),
    "--show-identical": (["-o", "json"], []),
    "--sort-by-change-magnitude": (["-o", "json"], []),
    "--sort-by": (["-o", "json"], ["max_abs"]),
    "--show-tensors": ([], []),
    "--exit-code": ([], []),
    "--quiet": ([], []),
    "--verbose": ([], []),
    "--no-color": ([], []),
}
CHOSEN = {
    "--pairs": ([], ["vs-last"]),
    "--baseline": (["--pairs", "vs-baseline"], ["{run7}/step-0100"]),
    "--elementwise": (["--pairs", "all"], []),
    "--since": ([], ["100"]),
    "--until": ([], ["200"]),
    "--every": ([], ["200"]),
    "--latest": ([], ["2"]),
    "--name": ([], ["nightly"]),
    **{kind.flag: ([], []) for kind in (*ANALYSES.values(), *SERIES.values())},
    "--include": ([], ["h.*"]),
    "--map": ([], ["{out}/map.yaml"]),
    "--raw": ([], []),
    "--exclude": ([], ["h.*"]),
    "--ignore-keys-regex": ([], ["proj"]),
    "--epsilon": ([], ["0.02"]),
    "--store": ([], ["{out}/store"]),
    "--unit-size": ([], ["64"]),
    "--all": ([], []),
    "--threshold": (["--show-layer-impact"], ["layer_impact.dominant_share=0.1"]),
    "--expect-frozen": ([], ["h.*"]),
    "--expect-changed": ([], ["h.*"]),
    "--expect-cast": ([], ["BF16"]),
}
HELD = {
    "--fail-on": ([], ["changed"]),
    "--policy": ([], [str(ROOT / "configs" / "policy.yaml")]),
}
GATES = HELD | {"--exit-zero": (["--fail-on", "changed"], [])}
EFFECTS: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "sweep": CHOSEN | SHOWN | GATES | PLACES | STORAGES | {"--no-progress": ([], [])},
    "plan": CHOSEN | HELD | PLACES | STORAGES | {"--output": ([], ["json"]), "--store": ([], ["{kept}"])},
    "resume": SHOWN | GATES | PLACES | STORAGES | {"--no-progress": ([], []), "--store": ([], ["{out}/none"])},
    "report": SHOWN | GATES | STORAGES | {"--store": ([], ["{out}/none"]), "--mlflow": ([], [])},
    "status": STORAGES | {"--output": ([], ["json"]), "--store": ([], ["{out}/none"])},
    "query": STORAGES | {"--output": ([], ["csv"])},
    "gc": STORAGES
    | {"--store": ([], ["{out}/none"]), "--older-than": ([], ["0s"]), "--dry-run": (["--older-than", "0s"], [])},
}


@pytest.mark.parametrize("verb", EFFECTS)
def test_every_option_is_tried(verb: str) -> None:
    options = [one for one in commands.commands[verb].params if isinstance(one, click.Option) and not one.hidden]
    assert {option.opts[-1] for option in options} == {*EFFECTS[verb]}


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb, found in EFFECTS.items() for option in found])
def test_every_option_does_something(
    run7: Path, kept: Path, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch, verb: str, option: str
) -> None:
    if option == "--no-progress":
        monkeypatch.setattr(Progress, "INTERVAL", 1e-4)
    if option == "--mlflow":
        monkeypatch.setitem(sys.modules, "mlflow", None)  # test_mlflow.py has the real one

    def effect(number: int, arguments: Sequence[str]) -> object:
        out, store = tmp_path / str(number), tmp_path / str(number) / "reports"
        out.mkdir()
        (out / "old").touch()
        (out / "map.yaml").write_text("rename: [{old: '(h.*)', new: '\\1', regex: true}]")
        others = [] if option == "--store" and number else ["--store", str(store)]
        about: dict[str, list[object]] = {"sweep": [run7 / "step-*"], "query": [store, "select count(*) from runs"]}
        if verb not in ("sweep", "plan"):
            shutil.copytree(kept, store)
        if verb == "resume":
            shutil.rmtree(store / "measurements")
            for path in ("_SUCCESS.json", "units"):
                (store / "runs" / run_of(store) / path).rename(store / path)
        if verb in ("resume", "report", "status"):
            about[verb] = [run_of(store), *others]
        about |= {"plan": about["sweep"], "gc": others}
        seen.settings, seen.group, seen.profiles = None, None, []
        words = [one.format(out=out, run7=run7, kept=kept) for one in arguments]
        ended = diffai(verb, *about[verb], *words, FORCE_COLOR="1" if option == "--no-color" else None)
        told = [ended.code, *(text.replace(str(out), "") for text in (ended.out, ended.err))]
        files = sorted(
            str(path.relative_to(out)) for path in out.rglob("*") if "new" in path.name or verb in ("sweep", "gc")
        )
        return *told, files, seen.settings, seen.group, seen.profiles

    context, value = EFFECTS[verb][option]
    assert effect(0, context) != effect(1, [*context, option, *value])
