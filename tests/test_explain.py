"""What `analyses` and `explain` print: all that a class says of itself, and an answer to every name there ever was."""

from __future__ import annotations

import contextlib
import doctest
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffai_dist import explaining
from diffai_dist.analyses import ANALYSES, SERIES, ancestor
from diffai_dist.analyses.ancestor import ELSEWHERE, REFUSED
from diffai_dist.analyses.base import thresholds
from diffai_dist.errors import UsageError
from diffai_dist.explaining import KINDS, explained, explanation
from diffai_dist.partials import DETAILS
from results import HOSTILE
from test_cli_sweep import diffai, done

ROOT = Path(__file__).parent.parent
EVERY = {**ANALYSES, **SERIES}

# What the ancestor had and nobody can compute from weights.
RETIRED = (
    "risk-assessment", "deployment-readiness", "performance-impact-estimate", "hyperparameter-impact",
    "learning-rate-analysis", "attention-pattern-diff", "learning-curve-analysis",
)  # fmt: skip


def flat(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(ancestor).failed == 0


def test_every_analysis_is_listed_in_a_line() -> None:
    head, *lines = done("analyses").out.splitlines()
    assert head.split() == ["name", "class", "cost", "--all", "answers"]
    rows = {line.split()[0]: re.split(r"  +", line) for line in lines[: len(EVERY)]}
    assert list(rows) == list(EVERY)
    for name, (_, kind, cost, in_all, answers) in rows.items():
        found = EVERY[name]
        assert kind == found.kind
        read = set(found.partials) - {"config"}
        assert cost == ("own partials" if read else "reads nothing" if kind == "H" else "same pass")
        assert in_all == ("yes" if found.in_all else "no")
        assert answers == (found.__doc__ or "").splitlines()[0]
    for kind, meaning in KINDS.items():
        assert f"{kind}: {meaning}" in lines


def test_the_list_is_json_when_asked_for() -> None:
    rows = json.loads(done("analyses", "-o", "json").out)
    assert [row["name"] for row in rows] == list(EVERY)
    assert [row["flag"] for row in rows] == [kind.flag for kind in EVERY.values()]
    assert {row["class"] for row in rows} <= set(KINDS)


@pytest.mark.parametrize("name", EVERY)
def test_everything_a_class_says_is_printed(name: str) -> None:
    kind, text = EVERY[name], flat(done("explain", name).out)
    assert flat(kind.__doc__ or "") in text
    for key, meaning in (*kind.result.items(), *kind.rules.items()):
        assert f"{key} {flat(meaning)}" in text
    for limit, field in thresholds(kind).items():
        assert f"{limit} = {field.default} {flat(field.metadata['help'])} ({flat(field.metadata['source'])})" in text
    for source in kind.sources:
        assert flat(source) in text
    for partial in kind.partials:
        assert partial in text
    assert KINDS[kind.kind] in text


@pytest.mark.parametrize("name", EVERY)
def test_json_holds_the_same(name: str) -> None:
    kind, document = EVERY[name], json.loads(done("explain", name, "-o", "json").out)
    assert (document["kind"], document["name"], document["flag"]) == ("analysis", name, kind.flag)
    assert document["result"] == dict(kind.result)
    assert document["rules"] == dict(kind.rules)
    assert document["sources"] == list(kind.sources)
    assert list(document["partials"]) == list(kind.partials)
    assert {limit: one["default"] for limit, one in document["thresholds"].items()} == {
        limit: field.default for limit, field in thresholds(kind).items()
    }


def test_a_name_may_be_written_in_any_way() -> None:
    spelled = ("layer_impact", "layer-impact", "--show-layer-impact", "show_layer_impact", " LAYER-impact")
    assert len({done("explain", one).out for one in spelled}) == 1


@pytest.mark.parametrize("name", EVERY)
def test_a_rule_leads_to_its_analysis(name: str) -> None:
    for rule, test in EVERY[name].rules.items():
        text = done("explain", rule).out
        assert f"{rule}, a rule of {name}: {flat(test)}" in flat(text)
        assert json.loads(done("explain", rule, "-o", "json").out)["analyses"][name] == test


@pytest.mark.parametrize(("rule", "where"), [("expected-cast", "expectations"), ("waiver-expired", "policy")])
def test_rules_of_gates_are_explained_too(rule: str, where: str) -> None:
    assert flat(done("explain", rule).out).startswith(f"{rule}, a rule of {where}: ")


@pytest.mark.parametrize("name", RETIRED)
def test_what_cannot_be_computed_is_refused_with_the_reason_and_the_nearest(name: str) -> None:
    assert {one.replace("_", "-") for one in REFUSED} == set(RETIRED)
    text = flat(done("explain", name).out)
    reason, nearest = REFUSED[name.replace("-", "_")]
    assert text.startswith(f"--{name}: cannot be derived from weights: {reason}. Nearest: ")
    for one in nearest:
        assert f"--{one.replace('_', '-')}" in text
    assert json.loads(done("explain", f"--{name}", "-o", "json").out)["nearest"] == list(nearest)
    for verb in ("compare", "sweep", "plan"):
        ended = diffai(verb, "a.safetensors", "b.safetensors", f"--{name}")
        assert (ended.code, ended.out) == (2, "")
        assert text in flat(ended.err)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_something_else_does_now_is_said(name: str) -> None:
    assert flat(done("explain", name).out) == f"--{name.replace('_', '-')}: {flat(ELSEWHERE[name])}"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("layer-impct", "layer_impact"), ("stale-objct", "stale-object"), ("risk-asessment", "risk_assessment")],
)
def test_a_slip_is_answered_with_what_was_meant(typed: str, meant: str) -> None:
    ended = diffai("explain", typed)
    assert (ended.code, ended.out) == (2, "")
    assert f"did you mean {meant}?" in ended.err
    assert "diffai-dist analyses lists all" in ended.err


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_harmless(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        explained(name)
    assert str(raised.value).isprintable()


@given(st.text(st.characters(), max_size=60))
def test_any_name_has_an_answer(name: str) -> None:
    with contextlib.suppress(UsageError):
        assert "".join(explanation(explained(name), "text"))


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", EVERY)
def test_lines_keep_to_the_screen(name: str, width: int) -> None:
    for line in "".join(explanation(explained(name), "text", width)).splitlines():
        assert len(line) <= max(width, 60) or len(re.split(r"  +", line.strip())[-1].split()) == 1, line


def test_an_error_is_explained_by_its_code() -> None:
    readme = (ROOT / "README.md").read_text()
    codes = set(re.findall(r"E[0-9]{4}", readme.partition("| error | means |")[2].partition("\n\n")[0]))
    assert len(codes) == 12
    for code in codes:
        assert done("explain", code.lower()).out.startswith(f"{code}: ")
    assert "Exit code 3." in flat(done("explain", "E1205").out)


def test_factors_are_those_of_partials_that_there_are() -> None:
    assert set(explaining.FACTORS) <= {"gram", *DETAILS}
    assert all(factor >= 1 for factor in explaining.FACTORS.values())
