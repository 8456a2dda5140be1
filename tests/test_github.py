"""What a GitHub workflow is told: commands that no name can forge, and a summary that GitHub takes."""

from __future__ import annotations

import dataclasses
import doctest
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from diffai_dist.records import AnalysisRecord, Finding, Sweep
from diffai_dist.report import View, github
from diffai_dist.report.github import step_summary, workflow_commands
from diffai_dist.report.markdown import LIMIT
from results import HOSTILE, failure, named, result, sweep, tensor
from test_cli_sweep import diffai, done

# As the runner reads a line (ActionCommand.TryParseV2): a command begins it, blanks before it or not.
COMMAND = re.compile(r"^\s*::(?P<kind>[a-z-]+)(?: (?P<properties>.*?))?::(?P<message>.*)$")


def parsed(text: str) -> list[tuple[str, str, str]]:
    """Kind, title and message of every command, as a runner decodes them; other lines are no commands."""
    found = []
    for line in re.split(r"[\r\n]", text):
        if line.lstrip().startswith("::"):
            command = COMMAND.match(line)
            assert command, line
            properties = dict(one.split("=", 1) for one in command["properties"].split(","))
            assert list(properties) == ["title"]
            found.append((command["kind"], _decoded(properties["title"]), _decoded(command["message"])))
        assert "##[" not in line
    return found


def _decoded(text: str) -> str:
    for code, character in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        text = text.replace(code, character)
    return text


def finding(severity: Any, tensor: str | None = "w", rule: str = "odd", **fields: Any) -> Finding:
    return Finding(rule, severity, tensor, 2, 1, "judgement", **fields)


def found(*findings: Finding, **fields: Any) -> Sweep:
    return sweep(named("s-0", "s-1", result(tensor("w"))), analyses=(AnalysisRecord("x", {}, findings),), **fields)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(github).failed == 0


def test_the_worst_comes_first_and_a_notice_counts_all() -> None:
    findings = [finding(severity) for severity in ("info", "low", "medium", "high", "critical")]
    commands = parsed("".join(workflow_commands(found(*findings, failures=(failure(None),)))))
    assert [(kind, message.split()[0]) for kind, _, message in commands] == [
        ("error", "critical"),
        ("error", "s3://b/step-2/model.safetensors:"),
        ("error", "high"),
        ("warning", "medium"),
        ("warning", "low"),
        ("notice", "5"),
    ]
    assert commands[0][1:] == ("odd", "critical odd, w: 2 against 1 (judgement)")
    assert commands[1][1] == "E1103"
    assert commands[-1][1:] == (
        "diffai-dist",
        "5 findings: 1 critical, 1 high, 1 medium, 1 low, 1 info; 1 failure",
    )


@pytest.mark.parametrize("number", [0, 9, 10, 11, 400])
def test_there_are_ten_at_most(number: int) -> None:
    commands = parsed("".join(workflow_commands(found(*[finding("high", f"w{i}") for i in range(number)]))))
    assert len(commands) == min(number, 10) + 1
    assert [kind for kind, _, _ in commands] == ["error"] * min(number, 10) + ["notice"]
    more = f"; {number - 10} more than are annotated" if number > 10 else ""
    assert commands[-1][2] == (f"{number} findings: {number} high{more}" if number else "no findings")


def test_what_is_waived_is_counted_alone() -> None:
    commands = parsed("".join(workflow_commands(found(finding("critical", waived="known until 2027-01-01")))))
    assert commands == [("notice", "diffai-dist", "1 finding: 1 waived")]


def test_members_are_named() -> None:
    (first, _) = workflow_commands(found(finding("high", None, baseline="s-0", candidate="s-1")))
    assert first == "::error title=odd::high odd, s-0 -> s-1: 2 against 1 (judgement)\n"


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_forges_a_command(name: str) -> None:
    everywhere = dataclasses.replace(finding("high", name, name), source=name, value=name, baseline=name)
    text = "".join(workflow_commands(found(everywhere, failures=(failure(name, object=name),))))
    assert len(parsed(text)) == len(text.splitlines()) == 3
    assert re.fullmatch(r"[\n -\U0010ffff]*", text)


@given(st.text(st.characters(), max_size=40))
def test_no_text_at_all_does(name: str) -> None:
    everywhere = dataclasses.replace(finding("high", name, name), source=name, candidate=name)
    text = "".join(workflow_commands(found(everywhere)))
    assert [kind for kind, _, _ in parsed(text)] == ["error", "notice"]
    assert text.count("\n") == 2


def test_a_summary_is_cut_by_whole_sections() -> None:
    whole = step_summary(found(finding("high"), warnings=("odd",)), View())
    assert whole.count("\n### ") == 4
    ends = [match.start() for match in re.finditer("\n### ", whole)]
    for used in (0, LIMIT - len(whole.encode()) - 30):
        assert step_summary(found(finding("high"), warnings=("odd",)), View(), used) == whole
    for i, end in enumerate(ends):
        cut = step_summary(found(finding("high"), warnings=("odd",)), View(), LIMIT - len(whole[:end].encode()) - 30)
        left = len(ends) - i
        assert cut == f"{whole[:end]}\n{left} more section{'' if left == 1 else 's'}\n"
    assert step_summary(found(), View(), LIMIT) == ""


def test_a_summary_is_as_large_as_github_takes() -> None:
    names = [f"{'x' * 200}{i}" for i in range(20_000)]
    text = step_summary(sweep(result(*map(tensor, names)), mode=None), View())
    assert 500_000 < len(text.encode()) <= LIMIT


@pytest.fixture
def spoiled(tmp_path: Path) -> tuple[Path, Path]:
    arrays = {name: np.linspace(1.0, 2.0, 40, dtype=np.float32) for name in ("embed.weight", "head.weight")}
    spoiled = {**arrays, "head.weight": np.append(arrays["head.weight"][:-1], np.float32(np.nan))}
    return models.write(tmp_path / "a.safetensors", arrays), models.write(tmp_path / "b.safetensors", spoiled)


@pytest.mark.parametrize("verb", ["compare", "sweep", "report"])
def test_the_command_annotates_and_adds_to_the_summary(spoiled: tuple[Path, Path], tmp_path: Path, verb: str) -> None:
    summary, store = tmp_path / "summary", tmp_path / "store"
    summary.write_text("before\n")
    asked = ["--anomaly-detection", "--store", store]
    plain = done("compare", *spoiled, *asked, "-o", "json")
    about = ["latest", "--store", store] if verb == "report" else [*spoiled, *asked]
    ended = done(verb, *about, "-o", "json", "--github", GITHUB_STEP_SUMMARY=str(summary))
    assert [(kind, title) for kind, title, _ in parsed(ended.err)] == [
        ("error", "non-finite-appeared"),
        ("notice", "diffai-dist"),
    ]
    assert "::" not in ended.out
    if verb != "sweep":
        assert ended.out == plain.out
    text = summary.read_text()
    assert text.startswith("before\n## ")
    assert "non-finite-appeared" in text


def test_without_a_place_for_it_the_summary_is_left_out(spoiled: tuple[Path, Path], tmp_path: Path) -> None:
    quiet = done("compare", *spoiled, "--github", GITHUB_STEP_SUMMARY=None)
    assert [kind for kind, _, _ in parsed(quiet.err)] == ["notice"]
    ended = done("compare", *spoiled, "--github", GITHUB_STEP_SUMMARY=str(tmp_path))
    assert ended.out == quiet.out


def test_quiet_leaves_what_was_asked_for(spoiled: tuple[Path, Path], tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    ended = diffai("compare", *spoiled, "-q", "--github", GITHUB_STEP_SUMMARY=str(summary))
    assert (ended.code, ended.out) == (1, "")
    assert summary.read_text().startswith("## Comparison")
