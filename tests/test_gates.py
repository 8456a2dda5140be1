"""What makes a run fail: what --fail-on names and a policy says, in every verb; exit codes, names and thresholds."""

from __future__ import annotations

import dataclasses
import doctest
import gc
import itertools
import json
import math
import signal
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import models
from diffai_dist import compare, console
from diffai_dist.analyses import ANALYSES, SERIES
from diffai_dist.analyses.base import thresholds
from diffai_dist.cli import ancestor, commands, gating
from diffai_dist.cli.ancestor import ALIASES
from diffai_dist.config import FailOn, SweepConfig, checked_thresholds, json_schema, load_policy, merged
from diffai_dist.errors import GateBroken, UsageError
from diffai_dist.gates import CONDITIONS, Gate, Verdict, judge
from diffai_dist.gates.conditions import ORDER
from diffai_dist.records import CLOSED, SEVERITIES, AnalysisRecord, Coverage, Finding, Severity, Sweep
from diffai_dist.request import analyses_of, left_out, settings_of
from results import failure, named, result, side, sweep, tensor

TODAY = date(2026, 11, 23)
KINDS: dict[str, Any] = {**ANALYSES, **SERIES}
LIMITS = [(name, field) for name, kind in KINDS.items() for field in thresholds(kind)]


def verdict(found: Sweep, *conditions: FailOn) -> Verdict:
    return judge(found, Gate(conditions), TODAY)


def finding(severity: Severity, tensor_name: str | None = "w", **fields: Any) -> Finding:
    return Finding(**{"rule": f"{severity}-rule", "severity": severity, "tensor": tensor_name, "value": 1,
                      "threshold": 0, "source": "x"} | fields)  # fmt: skip


def of_findings(*findings: Finding) -> Sweep:
    return sweep(result(tensor("w", "identical"), analyses=[AnalysisRecord("a", {}, findings)]), mode=None)


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """A command sets up its process, which here is that of all tests."""
    handler, threshold = signal.getsignal(signal.SIGTERM), gc.get_threshold()
    yield
    signal.signal(signal.SIGTERM, handler)
    gc.set_threshold(*threshold)


def ended(*arguments: object, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with CliRunner().isolation("", environment) as (out, err, _):
        code = console.run(commands, "diffai-dist", [str(one) for one in arguments])
        streams = out.getvalue().decode(), err.getvalue().decode()
    assert "Traceback" not in streams[1], streams[1]
    return code, *streams


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(gating) == (0, 1)
    assert doctest.testmod(ancestor) == (0, 1)


# Conditions


@pytest.mark.parametrize(("asked", "found"), [*itertools.product(SEVERITIES, SEVERITIES)])
def test_a_finding_at_least_so_severe_is_met(asked: Severity, found: Severity) -> None:
    met = verdict(of_findings(finding(found)), asked).met
    assert [one.condition for one in met] == [found] * (SEVERITIES.index(found) <= SEVERITIES.index(asked))


def test_the_mildest_of_several_severities_counts() -> None:
    assert [one.condition for one in verdict(of_findings(finding("medium")), "critical", "medium").met] == ["medium"]


def test_what_is_waived_is_not_met() -> None:
    assert verdict(of_findings(finding("critical", waived="why (until 2027-01-01)")), "info").met == ()


def test_findings_of_pairs_and_of_the_series_are_met() -> None:
    own = AnalysisRecord("a", {}, (finding("high"),))
    series = AnalysisRecord("s", {}, (finding("high", None, candidate="s-1"),))
    found = sweep(named("s-0", "s-1", result(tensor("w"), analyses=[own])), analyses=(series,))
    assert {one.where for one in verdict(found, "high").met} == {("s-1",), ("s-0 -> s-1", "w")}


NO_GATE: tuple[FailOn, ...] = ()
STATES: dict[FailOn, tuple[Any, Any, int]] = {
    "changed": (tensor("w", "identical"), tensor("w"), 1),
    "missing": (tensor("w", "added"), tensor("w", "removed"), 1),
    "nan": (tensor("w", baseline=side(nans=1)), tensor("w", candidate=side(nans=1)), 1),
    "unreadable": (tensor("w", "incomparable"), tensor("h.3.w", "failed"), 1),
}


@pytest.mark.parametrize("condition", STATES)
def test_a_state_of_a_run_is_met_where_it_is(condition: FailOn) -> None:
    quiet, loud, number = STATES[condition]
    failures = [failure()] if condition == "unreadable" else []
    same = tensor("same", "identical")
    assert verdict(sweep(result(same, quiet), mode=None), condition).met == ()
    found = sweep(result(same, loud, failures=failures), mode=None)
    assert [one.condition for one in verdict(found, condition).met] == [condition] * number
    assert verdict(found, *NO_GATE).met == ()
    assert verdict(found, condition, "never").met == ()


@pytest.mark.parametrize("conditions", [("low",), ("critical", "missing"), ("missing",)])
def test_a_pair_of_which_nothing_was_compared_proves_nothing(conditions: tuple[FailOn, ...]) -> None:
    found = named("a", "b", result(tensor("w", "incomparable"), tensor("v", "added"), tensor("u", "removed")))
    told = "nothing was compared: 1 added, 1 incomparable, 1 removed"
    assert [(one.condition, one.what) for one in verdict(sweep(found), *conditions).met] == [("missing", told)]
    assert verdict(sweep(found), *conditions, "never").met == ()
    assert verdict(sweep(found), "nan").met == ()
    unread = dataclasses.replace(found, failures=(failure(),))  # which says more
    assert [one.what for one in verdict(sweep(unread), "missing").met] == ["1 of the baseline"]
    unread = dataclasses.replace(unread, tensors=found.tensors[:-1])
    empty = dataclasses.replace(found, coverage=Coverage(0, 0, 0, 0, 0, 0, 0, {}), tensors=())
    for one in (unread, empty):
        assert verdict(sweep(one), *conditions).met == ()


def test_a_checkpoint_under_other_names_does_not_pass_a_gate(tmp_path: Path) -> None:
    arrays = models.model()
    before = models.write(tmp_path / "a.safetensors", arrays)
    after = models.write(tmp_path / "b.safetensors", {f"model.{name}": array for name, array in arrays.items()})
    arguments = ["compare", str(before), str(after), "--fail-on", "high"]
    code, _, told = ended(*arguments)
    assert (code, "nothing was compared" in told) == (1, True)
    assert ended(*arguments, "--tensor-matching")[0] == 0


def test_infinities_are_no_nan() -> None:
    found = sweep(result(tensor("mask", candidate=side(neginfs=8, posinfs=1))), mode=None)
    assert verdict(found, "nan").met == ()


def test_what_epsilon_forgives_has_not_changed() -> None:
    assert verdict(sweep(result(tensor("w", "identical", within_epsilon=1e-6)), mode=None), "changed").met == ()


def test_the_worst_is_said_first_and_ten_at_most() -> None:
    findings = [finding("low", f"l.{i}") for i in range(8)] + [finding("critical", f"c.{i}") for i in range(8)]
    lines = list(verdict(of_findings(*findings), "low").lines())
    assert lines[0] == "critical: c.0: critical-rule, value=1 > threshold=0, analysis=a"
    assert [line.split(":")[0] for line in lines] == ["critical"] * 8 + ["low"] * 2 + ["and 6 more"]


def test_every_condition_has_its_place() -> None:
    assert set(ORDER) | {"never"} == set(CONDITIONS) == set(gating.CONDITIONS)


def test_hostile_names_are_harmless() -> None:
    (line,) = verdict(of_findings(finding("high", "a\x1b[2J\n::error::x")), "high").lines()
    assert line.isprintable()
    assert "a\\x1b[2J\\x0a::error::x" in line


def test_a_tensor_without_a_name_is_quoted_as_in_reports() -> None:
    lines = [next(verdict(of_findings(finding("high", name)), "high").lines()) for name in ("", None)]
    assert lines == [f"high: {name}high-rule, value=1 > threshold=0, analysis=a" for name in ('"": ', "")]


def test_a_word_that_is_no_condition_is_refused() -> None:
    with pytest.raises(UsageError, match="fail_on wants one of critical, high"):
        Gate(("hihg",))  # type: ignore[arg-type]


# With a policy


RULE = "rules:\n  - {{name: moved, metric: rel_l2, op: '>', threshold: 0.1, severity: {0}}}\n"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text(RULE.format("medium"))
    return path


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_policy_alone_fails_from_medium_on(policy: Path, severity: Severity) -> None:
    policy.write_text(RULE.format(severity))
    gates = {conditions: Gate(conditions, load_policy(str(policy))) for conditions in ((), ("low",), ("critical",))}
    found = of_findings(finding("info", None))
    moved = sweep(result(tensor("w"), analyses=found.results[0].analyses), mode=None)
    place = SEVERITIES.index(severity)
    for conditions, least in (((), "medium"), (("low",), "low"), (("critical",), "critical")):
        met = judge(moved, gates[conditions], TODAY).met
        assert len(met) == (place <= SEVERITIES.index(least))


def expecting(severity: Severity, **fields: Any) -> Sweep:
    """A pair whose candidate could not be opened, and one that breaks an expectation."""
    closed = Coverage(0, 0, 0, 0, 0, 0, 0, {CLOSED: 1})
    record = AnalysisRecord("expectations", {}, (finding(severity, **fields),))
    broken = named("s-0", "s-2", result(tensor("w"), analyses=[record]))
    return sweep(named("s-0", "s-1", dataclasses.replace(result(), coverage=closed)), broken)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_declared_expectation_alone_fails_from_medium_on(severity: Severity) -> None:
    found = [one.condition for one in verdict(expecting(severity)).met]
    assert found == [severity] * (severity in ("critical", "high", "medium"))
    place = SEVERITIES.index(severity)
    for asked in SEVERITIES:
        assert len(verdict(expecting(severity), asked).met) == (place <= SEVERITIES.index(asked))
    assert len(verdict(expecting(severity), "nan").met) == (severity in ("critical", "high", "medium"))
    assert verdict(expecting(severity), "never").met == ()
    assert verdict(expecting(severity, waived="why (until 2027-01-01)")).met == ()


def test_without_a_severity_only_the_policy_counts(policy: Path) -> None:
    gate = Gate((), load_policy(str(policy)))
    assert [one.condition for one in judge(of_findings(finding("critical")), gate, TODAY).met] == []


def test_a_program_asks_for_the_error(pair: tuple[Path, Path], policy: Path) -> None:
    report = compare(*map(str, pair))
    policy.write_text(RULE.format("medium").replace("0.1", "1e9").replace("metric", "select: {tensor: 'h*'}, metric"))
    with pytest.raises(GateBroken, match="medium: policy-unmatched, value=moved, analysis=policy"):
        report.raise_for_policy(str(policy))
    policy.write_text(policy.read_text().replace("severity: medium", "severity: low"))
    assert report.raise_for_policy(str(policy)) is report
    with pytest.raises(GateBroken, match=r"changed: .*changed") as caught:
        report.raise_for_policy(str(policy), fail_on="changed")
    assert caught.value.exit_code == 1
    with pytest.raises(GateBroken, match="low: policy-unmatched, value=moved"):
        report.raise_for_policy(str(policy), fail_on=["low"])
    with pytest.raises(UsageError):
        report.raise_for_policy(str(policy), fail_on="hihg")  # type: ignore[arg-type]


# Exit codes, verb by verb


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps, the last with a NaN; and one whose tensor ends early."""
    folder = tmp_path_factory.mktemp("steps")
    generator = np.random.default_rng(0)
    for step in range(3):
        arrays = {"embed.w": np.ones((4, 8), np.float32), "h.0.w": generator.standard_normal((8, 8), np.float32)}
        if step == 2:
            arrays["h.0.w"][3, 3] = math.nan
        models.write(folder / f"step-{step}" / "model.safetensors", arrays)
    (folder / "broken.safetensors").write_bytes((folder / "step-1" / "model.safetensors").read_bytes()[:-8])
    return folder


def test_a_gate_decides_the_exit_code_of_compare(steps: Path) -> None:
    a, b, bad = steps / "step-0", steps / "step-2", steps / "broken.safetensors"
    assert ended("compare", a, b)[0] == 0
    code, out, err = ended("compare", a, b, "--fail-on", "nan")
    assert (code, out) == (1, ended("compare", a, b)[1])
    assert f"gate: nan: {a} -> {b}: h.0.w: 1 in the candidate\n" in err
    assert ended("compare", a, b, "--fail-on", "critical")[0] == 0
    assert ended("compare", a, b, "--fail-on", "critical", "--change-summary")[0] == 1
    assert ended("compare", a, b, "--fail-on", "nan", "--fail-on", "never")[0] == 0
    code, out, err = ended("compare", a, b, "--fail-on", "nan", "--exit-code", "--exit-zero")
    assert code == 0
    assert "gate: nan" in err
    assert ended("compare", a, bad)[0] == 3
    assert ended("compare", a, bad, "--fail-on", "changed")[0] in (1, 3)
    assert ended("compare", a, bad, "--fail-on", "unreadable")[0] == 1
    assert ended("compare", a, bad, "--fail-on", "unreadable", "--exit-zero")[0] == 3
    code, out, err = ended("compare", a, b, "--quiet", "--fail-on", "nan")
    assert (code, out, err) == (1, "", "")


@pytest.mark.parametrize(
    ("value", "limit", "told"),
    [
        (-3.5, 0.0, "value=-3.5 < threshold=0.0"), (8, 6.02, "value=8 > threshold=6.02"),
        (0.5, 0.5, "value=0.5, threshold=0.5"), (0, False, "value=0, threshold=False"), (3, None, "value=3"),
        ("I8", "BF16", "value=I8, threshold=BF16"), (math.nan, 1, "value=nan, threshold=1"),
    ],
)  # fmt: skip
def test_a_line_says_on_which_side_of_its_threshold_a_value_is(value: Any, limit: Any, told: str) -> None:
    record = AnalysisRecord("a", {}, (Finding("rule", "high", "w", value, limit, "here"),))
    found = sweep(dataclasses.replace(result(), analyses=(record,)), mode=None)
    assert [one.what for one in verdict(found, "high").met] == [f"rule, {told}, analysis=a"]


def test_a_severity_that_nothing_can_have_is_said(steps: Path) -> None:
    a, b = steps / "step-0", steps / "step-1"
    code, _, err = ended("compare", a, b, "--fail-on", "info", "--fail-on", "high")
    assert (code, err.count("--fail-on info: no analysis was asked for, so nothing can be found")) == (0, 1)
    asked = ["--integrity-check"], ["--expect-frozen", "embed.*"], ["--fail-on", "never"], ["--quiet"]
    for options in (*asked, []):
        severity = ["--fail-on", "high"] if options else ["--fail-on", "unreadable"]
        assert "no analysis was asked for" not in ended("compare", a, b, *severity, *options)[2]


def test_expectations_are_gates(steps: Path) -> None:
    a, b = steps / "step-0", steps / "step-1"
    assert ended("compare", a, b, "--expect-frozen", "embed.*", "--expect-changed", "h.*", "--fail-on", "info")[0] == 0
    code, _, err = ended("compare", a, b, "--expect-frozen", "*", "--expect-changed", "embed.w", "--fail-on", "high")
    assert code == 1
    assert [line.split(": ")[-1].split(",")[0] for line in err.splitlines() if line.startswith("gate")] == [
        "expected-frozen", "expected-changed",
    ]  # fmt: skip
    assert ended("compare", a, b, "--expect-cast", "F32", "--fail-on", "high")[0] == 1
    assert ended("compare", a, a, "--expect-cast", "f32", "--fail-on", "info")[0] == 0
    assert "did you mean 'F32'?" in ended("compare", a, b, "--expect-cast", "F33")[2]


def test_a_broken_expectation_needs_no_other_gate(steps: Path, tmp_path: Path, policy: Path) -> None:
    a, b = steps / "step-0", steps / "step-1"
    assert ended("compare", a, b, "--expect-frozen", "embed.*")[0] == 0
    for output in ("text", "json", "junit"):
        code, _, err = ended("compare", a, b, "--expect-frozen", "*", "-o", output)
        assert code == 1
        assert "gate: critical: h.0.w: expected-frozen, value=" in err
    assert ended("compare", a, b, "--expect-frozen", "*", "--fail-on", "nan")[0] == 1
    assert ended("compare", a, b, "--expect-frozen", "*", "--exit-zero")[0] == 0
    assert ended("compare", a, b, "--expect-frozen", "*", "--fail-on", "never")[0] == 0
    ids = models.write(tmp_path / "ids.safetensors", {"ids": np.arange(4)})
    code, _, err = ended("compare", ids, ids, "--expect-cast", "BF16")
    assert code == 1
    assert "gate: high: expectation-unmatched, value=0, threshold=BF16" in err
    config, store = tmp_path / "n.yaml", tmp_path / "store"
    config.write_text(f"checkpoints: {steps}/step-*\nexpect: {{frozen: ['*']}}\n")
    assert ended("sweep", config, "--store", store)[0] == 1
    assert ended("report", "latest", "--store", store)[0] == 1
    config.write_text(f"checkpoints: {steps}/step-*\nexpect: {{frozen: ['embed.*']}}\n")
    assert ended("sweep", config)[0] == 0


@pytest.mark.parametrize("verb", ["sweep", "report"])
def test_a_rule_that_was_broken_last_night_is_nothing_new(steps: Path, tmp_path: Path, policy: Path, verb: str) -> None:
    store, sought = tmp_path / "store", [steps / f"step-{step}" for step in range(3)]
    for night in (sought[:2], sought):
        about = [*night, "--name", "nightly"]
        _, out, _ = ended("sweep", *about, "--store", store, "--policy", policy)
    if verb == "report":
        _, out, _ = ended("report", "latest", "--store", store, "--policy", policy)
    (line,) = (line for line in out.splitlines() if line.startswith("findings: "))
    assert line.endswith(" as last night")
    new = [line for line in out.splitlines() if line.startswith("  new medium moved")]
    assert new == ["  new medium moved: h.0.w, step-1 -> step-2"]


def rules_found(out: str) -> list[tuple[str, str]]:
    """The analysis and rule of each finding in records."""
    return [(one["name"], found["rule"]) for one in json.loads(out) for found in one.get("findings", ())]


def test_a_nan_is_told_once(steps: Path) -> None:
    a, b = steps / "step-1", steps / "step-2"
    rule = "non-finite-appeared"
    asked = {
        ("compare", "--change-summary"): "change_summary",
        ("compare", "--change-summary", "--anomaly-detection"): "anomaly_detection",
        ("compare", "--all"): "anomaly_detection",
        ("sweep", "--change-summary"): "anomaly_detection",
    }
    for (verb, *options), teller in asked.items():
        code, out, err = ended(verb, a, b, *options, "-o", "json", "--github", "--fail-on", "critical")
        assert code == 1
        assert [name for name, found in rules_found(out) if found == rule] == [teller]
        assert sum(line.startswith("gate: critical: ") and rule in line for line in err.splitlines()) == 1
        assert sum(line.startswith(f"::error title={rule}") for line in err.splitlines()) == 1
        (summary,) = (one for one in json.loads(out) if one.get("name") == "change_summary")
        assert summary["result"]["findings"]["critical"] == (teller == "change_summary")
        assert sum(summary["result"]["findings"].values()) == len(summary["findings"])


def test_a_gate_holds_in_sweep_resume_and_report(steps: Path, tmp_path: Path, policy: Path) -> None:
    sought, store = steps / "step-*", tmp_path / "store"
    policy.write_text(
        RULE.format("high") + "waivers:\n  - {rule: moved, tensor: h.0.w, reason: training, expires: 9999-12-31}\n"
    )
    plain = ended("sweep", sought, "--store", store)
    assert plain[0] == 0
    documents = {path: path.read_bytes() for path in (store / "runs").rglob("*.json")}
    for verb, about in (("sweep", [sought]), ("resume", ["latest"]), ("report", ["latest"])):
        assert ended(verb, *about, "--store", store)[0] == 0
        assert ended(verb, *about, "--store", store, "--fail-on", "critical")[0] == 1
        assert ended(verb, *about, "--store", store, "--fail-on", "critical", "--exit-zero")[0] == 0
        code, out, _ = ended(verb, *about, "--store", store, "--policy", policy, "-o", "json")
        assert code == 0
        (record,) = (one for one in json.loads(out) if one.get("name") == "policy")
        assert {one["waived"] for one in record["findings"]} == {"training (until 9999-12-31)"}
        assert record["members"] == ["step-0", "step-1", "step-2"]
    policy.write_text(RULE.format("high"))
    code, _, err = ended("report", "latest", "--store", store, "--policy", policy)
    assert code == 1
    assert "gate: high: step-0 -> step-1: h.0.w: moved, value=" in err
    # Gates are no part of a run: the store holds what was measured and found.
    assert {path: path.read_bytes() for path in (store / "runs").rglob("*.json")} == documents


def test_a_configuration_holds_the_gate(steps: Path, tmp_path: Path, policy: Path) -> None:
    config = tmp_path / "n.yaml"
    config.write_text(f"checkpoints: {steps}/step-*\nfail_on: [nan, high]\npolicy: p.yaml\n")
    code, _, err = ended("sweep", config)
    assert code == 1
    assert "gate: nan: step-1 -> step-2: h.0.w: 1 in the candidate\n" in err
    assert ended("sweep", config, "--fail-on", "never")[0] == 0
    policy.write_text("rules: 4\n")
    assert ended("sweep", config)[0] == 2
    assert "n.yaml:2:11: fail_on wants one of" in _refusal(config, "fail_on: [hihg]")
    assert "(did you mean 'high'?)" in _refusal(config, "fail_on: hihg")


def _refusal(config: Path, line: str) -> str:
    config.write_text(f"checkpoints: a\n{line}\n")
    code, _, err = ended("plan", config)
    assert code == 2
    return err


def test_a_plan_takes_and_checks_what_a_run_takes(steps: Path, tmp_path: Path, policy: Path) -> None:
    a, b = steps / "step-0", steps / "step-1"
    code, out, _ = ended("plan", a, b, "--fail-on", "high", "--policy", policy, "--expect-frozen", "*", "--all")
    assert code == 0
    assert "  gate       fail on high; 1 rule, 0 waivers\n" in out
    found = json.loads(ended("plan", a, b, "--policy", policy, "-o", "json")[1])
    assert found["gate"] == {"fail_on": [], "policy": {"rules": 1, "waivers": 0, "expired": 0}}
    assert "gate" not in json.loads(ended("plan", a, b, "-o", "json")[1])
    policy.write_text("rules:\n  - {name: a, metric: rel_l3, op: '>', threshold: 1}\n")
    code, _, err = ended("plan", a, b, "--policy", policy)
    assert code == 2
    assert "p.yaml:2:23: unknown metric 'rel_l3' (did you mean 'rel_l2'?)" in err
    assert ended("plan", a, b, "--policy", tmp_path / "none.yaml")[0] == 2
    for verb in ("plan", "compare", "sweep"):
        code, _, err = ended(verb, a, b, "--threshold", "layer_impact.dominant_shar=0.1")
        assert code == 2
        assert "layer_impact has no threshold 'dominant_shar' (did you mean 'dominant_share'?)" in err


# Thresholds


def test_every_threshold_is_described_in_the_schema() -> None:
    schema = json_schema()["properties"]["thresholds"]["properties"]
    assert {(name, field) for name, one in schema.items() for field in one["properties"]} == set(LIMITS)
    for name, field in LIMITS:
        described, limit = schema[name]["properties"][field], thresholds(KINDS[name])[field]
        assert described["default"] == limit.default
        assert described["description"] == f"{limit.metadata['help']} ({limit.metadata['source']})"
        assert "type" in described or "anyOf" in described


def another(value: Any) -> Any:
    """Another value of that type."""
    if isinstance(value, bool):
        return not value
    if value is None:
        return 2
    return f"{value}x" if isinstance(value, str) else (*value, "x") if isinstance(value, tuple) else value + 1


@pytest.mark.parametrize(("name", "field"), LIMITS)
def test_every_threshold_can_be_set(name: str, field: str) -> None:
    limit = thresholds(KINDS[name])[field]
    other = another(limit.default)
    asked = merged(SweepConfig(checkpoints="a"), {"thresholds": {name: {field: other}}})
    settings = settings_of(asked)
    assert settings.thresholds == {name: {field: other}}
    assert getattr(settings.analysis(name), field) == other
    again = merged(SweepConfig(checkpoints="a"), {"thresholds": {name: {field: limit.default}}})
    assert settings_of(again).thresholds == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer_impct": {}}, "unknown analysis 'layer_impct' (did you mean 'layer_impact'?)"),
        ({"layer_impact": {"dominant": 0.5}}, "has no threshold 'dominant' (did you mean 'dominant_share'?)"),
        ({"layer_impact": {"dominant_share": "x"}}, "dominant_share wants a number, found the text 'x'"),
        ({"layer_impact": {"dominant_share": True}}, "dominant_share wants a number, found true"),
        ({"layer_impact": {"dominant_share": None}}, "dominant_share wants a number, found nothing"),
        ({"layer_impact": {"dominant_share": math.nan}}, "dominant_share wants a finite number, found the number nan"),
        ({"layer_impact": {"dominant_share": math.inf}}, "dominant_share wants a finite number, found the number inf"),
        ({"staleness_check": {"listed": 2.5}}, "listed wants "),
    ],
)
def test_a_threshold_that_limits_nothing_is_refused(given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        checked_thresholds(given)
    assert message in str(caught.value)
    if message.endswith("found nothing"):
        return  # None stands for what was not given
    with pytest.raises(UsageError) as caught:
        merged(SweepConfig(checkpoints="a"), {"thresholds": given})
    assert message in str(caught.value)


def test_thresholds_of_a_file_are_set_one_by_one_on_the_command_line(steps: Path, tmp_path: Path) -> None:
    config = tmp_path / "n.yaml"
    head = f"checkpoints: {steps}/step-*\nanalyses: [layer_impact]\nthresholds:\n  layer_impact:\n"
    config.write_text(f"{head}    dominant_share: 0.999\n")

    def found(*options: str) -> list[float]:
        records = json.loads(ended("sweep", config, "-o", "json", *options)[1])
        return [one["threshold"] for record in records for one in record.get("findings", ())
                if one["rule"] == "dominant-block"]  # fmt: skip

    assert set(found()) == {0.999}
    assert set(found("--threshold", "layer-impact.dominant-share=.25")) == {0.25}
    assert set(found("--threshold", "staleness_check.listed=3")) == {0.999}
    config.write_text(f"{head}    dominant_shre: 0.9\n")
    code, _, err = ended("plan", config)
    assert code == 2
    assert "n.yaml:5:5: layer_impact has no threshold 'dominant_shre' (did you mean 'dominant_share'?)" in err


def test_a_threshold_of_what_nobody_asks_for_is_refused(steps: Path, tmp_path: Path) -> None:
    a, b = steps / "step-0", steps / "step-1"
    idle = ["--threshold", "staleness-check.listed=3"]
    for verb in ("compare", "plan"):
        code, _, err = ended(verb, a, b, *idle)
        assert code == 2
        assert "--threshold of staleness_check limits nothing: add --staleness-check" in err
        assert ended(verb, a, b, *idle, "--staleness-check")[0] == 0
    assert ended("sweep", a, b, *idle)[0] == 0  # which every sweep asks
    assert ended("plan", a, b, "--pairs", "consecutive", *idle)[0] == 0
    other = ["--threshold", "layer_impact.dominant_share=.6"]
    code, _, err = ended("sweep", a, b, *other)
    assert code == 2
    assert "--threshold of layer_impact limits nothing: add --show-layer-impact" in err
    assert ended("sweep", a, b, *other, "--all")[0] == 0
    config = tmp_path / "n.yaml"
    config.write_text(f"checkpoints: {steps}/step-*\nthresholds: {{layer_impact: {{dominant_share: 0.6}}}}\n")
    assert ended("plan", config)[0] == 0


@pytest.mark.parametrize("text", ["x", "layer_impact=1", "layer_impact.dominant_share", ".x=1", "layer_impact.=1"])
def test_a_threshold_is_written_as_name_field_and_value(text: str) -> None:
    with pytest.raises(UsageError, match=r"write NAME\.FIELD=VALUE"):
        gating.parsed_thresholds([text])


def test_a_threshold_is_part_of_the_question(pair: tuple[Path, Path]) -> None:
    a, b = map(str, pair)
    plain = compare(a, b, analyses=["layer_impact"])
    other = compare(a, b, analyses=["layer_impact"], thresholds={"layer_impact": {"dominant_share": 1}})
    same = compare(a, b, analyses=["layer_impact"], thresholds={"layer_impact": {"dominant_share": 0.5}})
    assert plain.id == same.id != other.id
    assert [one.rule for one in plain.findings] == ["dominant-block"]
    assert other.findings == ()


# All analyses, and names of the ancestor


def test_all_stands_for_what_costs_no_second_reading() -> None:
    every = {name for name, kind in KINDS.items() if kind.in_all}
    assert set(analyses_of(["all"])) == every
    assert set(analyses_of(["all"], elementwise=False)) == every - set(ANALYSES)
    assert set(analyses_of(["all"], series=False)) == every - {"similarity_matrix"}
    assert analyses_of(["all", "layer_impact"], elementwise=False).count("layer_impact") == 1
    assert analyses_of(["change_summary", "layer_impact"]) == ("layer_impact", "change_summary")
    products = merged(SweepConfig(checkpoints="a"), {"analyses": ["all"], "pairs": "all"})
    assert set(settings_of(products).analyses) == every - set(ANALYSES)
    assert set(left_out(products)) == every & set(ANALYSES)
    assert left_out(dataclasses.replace(products, elementwise=True)) == ()


def test_all_reads_two_checkpoints_once(pair: tuple[Path, Path]) -> None:
    a, b = map(str, pair)
    every = compare(a, b, analyses=["all"])
    assert "similarity_matrix" not in [one.name for one in every.result.analyses]
    asked = compare(a, b, analyses=["all", "similarity_matrix"])
    assert [one.name for one in asked.result.analyses].count("similarity_matrix") == 2


def test_what_all_leaves_out_is_said(steps: Path) -> None:
    code, _, err = ended("sweep", steps / "step-*", "--pairs", "all", "--all")
    assert code == 0
    assert "all leaves out layer_impact, change_summary" in err
    assert "all leaves out" not in ended("sweep", steps / "step-*", "--all")[2]
    for option in (["--show-layer-impact"], ["--expect-frozen", "*"], ["--epsilon", "1"]):
        code, _, err = ended("sweep", steps / "step-*", "--pairs", "all", *option)
        assert code == 2
        assert "add --elementwise" in err


CATALOGUE = """
    architecture-comparison tensor-matching memory-analysis inference-speed-estimate integrity-check
    hyperparameter-comparison stats anomaly-detection outlier-analysis norm-analysis param-efficiency-analysis
    precision-audit duplicate-detection quantization-readiness sort-by-change-magnitude show-layer-impact change-summary
    update-sparsity transfer-learning-analysis quantization-analysis distribution-shift embedding-analysis
    attention-analysis expert-analysis corruption-check experiment-reproducibility similarity-matrix lineage
    convergence-analysis update-anomaly staleness-check merge-analysis gradient-analysis spectral-analysis delta-rank
""".split()
RETIRED = """
    risk-assessment deployment-readiness performance-impact-estimate hyperparameter-impact learning-rate-analysis
    attention-pattern-diff learning-curve-analysis
""".split()
MACHINERY = "regression-test generate-report include-charts".split()
OTHER_NAMES = "statistical-significance head-importance learning-progress alert-on-degradation markdown-output".split()
OTHER_NAMES += "review-friendly clustering-change ensemble-analysis".split()


def test_the_catalogue_has_35_names() -> None:
    assert len(set(CATALOGUE)) == 35


@pytest.mark.parametrize("name", [*CATALOGUE, *RETIRED, *MACHINERY, *OTHER_NAMES])
@pytest.mark.parametrize("verb", ["compare", "sweep"])
def test_every_name_of_the_ancestor_is_an_option_or_refused_by_name(steps: Path, verb: str, name: str) -> None:
    flag = f"--{name}"
    built = {
        option for one in commands.commands[verb].params if not getattr(one, "hidden", False) for option in one.opts
    }
    aliased = ALIASES.get(flag, (flag,))[0] in built
    value = ["high"] if name == "alert-on-degradation" else []
    code, _, err = ended(verb, steps / "step-0", steps / "step-1", flag, *value)
    if aliased:
        assert code == 0, err
        assert ended("plan", steps / "step-0", steps / "step-1", *({flag} - {*ALIASES}))[0] == 0
        return
    assert code == 2
    assert flag in err
    assert "No such option" not in err
    assert ("cannot be derived from weights" in err) == (name in RETIRED)


def test_nearest_names_are_built() -> None:
    flags = {kind.flag for kind in KINDS.values()}
    for told in ancestor.NOT_BUILT.values():
        assert told.split(":")[0] in flags


def test_an_alias_does_what_it_stands_for(steps: Path) -> None:
    a, b = steps / "step-0", steps / "step-2"
    assert ended("compare", a, b, "--markdown-output")[1] == ended("compare", a, b, "-o", "markdown")[1]
    assert ended("compare", a, b, "--change-summary", "--alert-on-degradation=critical")[0] == 1
    assert ended("compare", a, b, "--learning-progress")[1] == ended("compare", a, b, "--convergence-analysis")[1]
    shown = ended("compare", "--help")[1]
    assert "--fail-on" in shown
    assert [flag for flag in (*ALIASES, *ancestor.NOT_BUILT) if flag in shown] == []


def test_the_names_of_conditions_are_those_of_the_configuration() -> None:
    assert json_schema()["properties"]["fail_on"]["anyOf"][0]["enum"] == list(CONDITIONS)
