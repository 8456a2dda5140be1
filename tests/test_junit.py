"""JUnit XML: which cases there are and which fail; and that no name, however hostile, breaks the document."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from diffai_dist.analyses import SERIES
from diffai_dist.records import SEVERITIES, AnalysisRecord, Finding, Severity, Sweep
from diffai_dist.report import RENDERERS, View
from diffai_dist.report.junit import LISTED
from results import HOSTILE, failure, named, result, sweep, tensor
from test_cli_sweep import diffai, done

ATTRIBUTES = {
    "testsuites": {"name"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped"},
    "testcase": {"classname", "name"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "skipped": {"message"},
}


def finding(severity: Severity = "high", rule: str = "stale-tensor", **fields: Any) -> Finding:
    return dataclasses.replace(Finding(rule, severity, "fc1.bias", 3, 0, "bits"), **fields)


def found(*findings: Finding, name: str = "staleness_check", **fields: Any) -> Sweep:
    """Two pairs, the first with an analysis of its own, and the analysis of the series."""
    pairs = [
        named("s-0", "s-1", result(tensor("w"), analyses=[AnalysisRecord("own", {}, (finding(rule="odd"),))])),
        named("s-1", "s-2", result(tensor("w"))),
    ]
    return sweep(*pairs, **{"analyses": (AnalysisRecord(name, {}, findings),), **fields})


def parsed(shown: Sweep, **view: Any) -> ElementTree.Element:
    """The document, read back, and its structure: what readers of JUnit rely on."""
    text = "".join(RENDERERS["junit"](shown, View(**view)))
    assert re.fullmatch(r"[\n -~]*", text)
    root = ElementTree.fromstring(text)
    assert root.tag == "testsuites"
    for element in root.iter():
        assert element.attrib.keys() == ATTRIBUTES[element.tag]
    for suite in root:
        assert suite.tag == "testsuite"
        for key, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.attrib[key]) == len(list(suite.iter(tag)))
        names = [case.attrib["name"] for case in suite]
        assert len(names) == len(set(names))
        for case in suite:
            assert case.tag == "testcase"
            assert case.attrib["classname"] == suite.attrib["name"]
            assert len(case) <= 1
    return root


def outcomes(shown: Sweep, **view: Any) -> dict[tuple[str, str], str]:
    """What became of the cases that did not just pass, by suite and name."""
    root = parsed(shown, **view)
    return {(case.attrib["classname"], case.attrib["name"]): case[0].tag for case in root.iter("testcase") if len(case)}


def test_there_is_a_case_per_pair_and_rule_and_one_per_rule_of_the_series() -> None:
    root = parsed(found(finding()))
    cases = {suite.attrib["name"]: [case.attrib["name"] for case in suite] for suite in root}
    read = "everything was read"
    assert cases == {
        "s-0 -> s-1": [read, "own: odd"],
        "s-1 -> s-2": [read],
        "series": [read, *(f"staleness_check: {rule}" for rule in SERIES["staleness_check"].rules)],
    }
    assert outcomes(found(finding())) == {
        ("s-0 -> s-1", "own: odd"): "failure",
        ("series", "staleness_check: stale-tensor"): "failure",
    }


@pytest.mark.parametrize("failing", SEVERITIES)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_case_fails_from_the_severity_of_the_gate_on(severity: Severity, failing: Severity) -> None:
    told = outcomes(found(finding(severity)), failing=failing)
    fails = SEVERITIES.index(severity) <= SEVERITIES.index(failing)
    assert (("series", "staleness_check: stale-tensor") in told) == fails


def test_without_a_gate_medium_fails_and_low_does_not() -> None:
    assert ("series", "staleness_check: stale-tensor") in outcomes(found(finding("medium")))
    assert ("series", "staleness_check: stale-tensor") not in outcomes(found(finding("low")))


def test_findings_of_one_rule_are_one_case_worst_first() -> None:
    findings = [finding("medium"), *(finding("high", tensor=f"w{i}") for i in range(LISTED + 4))]
    (failed,) = (one for one in parsed(found(*findings)).iter("failure") if "25" in one.attrib["message"])
    assert failed.attrib == {"message": "25 findings", "type": "high"}
    lines = (failed.text or "").strip().splitlines()
    assert lines[0] == "severity=high, tensor=w0, value=3, threshold=0, source=bits"
    assert len(lines) == LISTED + 1
    assert lines[-1].strip() == "5 more"


def test_what_is_waived_is_skipped_and_says_why() -> None:
    waived = finding(waived="known until 2027-01-01")
    case = ("series", "staleness_check: stale-tensor")
    assert outcomes(found(waived))[case] == "skipped"
    (skipped,) = parsed(found(waived)).iter("skipped")
    assert skipped.attrib["message"] == "waived: known until 2027-01-01"
    assert outcomes(found(waived, finding()))[case] == "failure"


def test_what_could_not_be_read_is_an_error() -> None:
    broken = named("s-0", "s-1", result(tensor("w"), failures=[failure()]))
    told = outcomes(sweep(broken))
    assert told == {(suite, "everything was read"): "error" for suite in ("s-0 -> s-1", "series")}
    (first, _) = parsed(sweep(broken)).iter("error")
    assert first.attrib == {"message": "1 failure", "type": "failure"}
    assert "E1103" in (first.text or "")
    (suite,) = parsed(sweep(result(failures=[failure(None)]), mode=None))
    assert suite.attrib["errors"] == "1"


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_the_document(name: str) -> None:
    hostile = finding(rule=name, tensor=name, value=name, source=name, baseline=name, candidate=name)
    waived = finding(waived=name)
    parsed(sweep(named(name, "b", result(tensor(name), failures=[failure(name, object=name)]))))
    parsed(found(hostile, waived))
    assert ("series", "staleness_check: stale-tensor") in outcomes(found(hostile, waived))


@given(st.text(st.characters(), max_size=40))
def test_no_text_at_all_does(name: str) -> None:
    assert outcomes(found(finding(tensor=name, source=name), name="other"))


def test_the_command_writes_it_with_the_severity_of_its_gate(tmp_path: Path) -> None:
    arrays = {name: np.linspace(1.0, 2.0, 40, dtype=np.float32) for name in ("embed.weight", "head.weight")}
    moved = {**arrays, "head.weight": arrays["head.weight"][::-1].copy()}
    pair = [models.write(tmp_path / f"{i}.safetensors", one) for i, one in enumerate((arrays, moved))]
    asked = ("compare", *pair, "--show-layer-impact", "-o", "junit")
    root = ElementTree.fromstring(done(*asked).out)
    assert [suite.attrib["failures"] for suite in root] == ["0"]
    strict = diffai(*asked, "--fail-on", "low")
    assert strict.code == 1
    assert [suite.attrib["failures"] for suite in ElementTree.fromstring(strict.out)] == ["1"]
    assert "compared all 2 tensors" in strict.err
