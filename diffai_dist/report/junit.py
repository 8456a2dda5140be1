"""The result as JUnit XML: a suite per pair and one for the series, in each a case per rule that was looked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from diffai_dist.analyses import EVERY
from diffai_dist.analyses.expectations import Expectations
from diffai_dist.errors import Failure
from diffai_dist.records import SEVERITIES, AnalysisRecord, Finding, Sweep
from diffai_dist.report.columns import joined
from diffai_dist.report.lines import finding_entries
from diffai_dist.report.tables import worst_first
from diffai_dist.report.view import View
from diffai_dist.report.wording import failure_entries
from diffai_dist.terminal import count, escape

LISTED = 20  # findings of one case that are told one by one

_UNREAD = "everything was read"


def render(sweep: Sweep, view: View) -> Iterator[str]:
    """A document of ASCII alone, suite by suite; a case fails where a finding is as severe as `view.failing`.

    A case whose findings are all waived is skipped, with the reasons; one in which something could not be read is an
    error. No name can break it: XML has no place for control characters, so they are escaped as everywhere.
    """
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="diffai-dist">\n'
    for result in sweep.results:
        pair = joined((result.baseline, result.candidate))
        yield _suite(pair, result.failures, result.analyses, view)
    if sweep.mode is not None:
        yield _suite("series", sweep.failures, sweep.analyses, view)
    yield "</testsuites>\n"


def _suite(name: str, failures: Sequence[Failure], analyses: Sequence[AnalysisRecord], view: View) -> str:
    suite = ElementTree.Element("testsuite", name=name)
    read = ElementTree.SubElement(suite, "testcase", classname=name, name=_UNREAD)
    if failures:
        lines = failure_entries(failures)
        _child(read, "error", lines, message=count(len(failures), "failure"), type="failure")
    for analysis in analyses:
        for rule in _rules(analysis):
            findings = [one for one in analysis.findings if one.rule == rule]
            case = ElementTree.SubElement(suite, "testcase", classname=name, name=f"{analysis.name}: {escape(rule)}")
            _judge(case, worst_first(findings), view)
    for key, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(sum(1 for _ in suite.iter(tag))))
    ElementTree.indent(suite)
    text: bytes = ElementTree.tostring(suite, encoding="us-ascii", xml_declaration=False)
    return text.decode("ascii") + "\n"


def _rules(analysis: AnalysisRecord) -> list[str]:
    """Those that the analysis looks for, then what else was found: rules of a policy have names of their own."""
    kind = Expectations if analysis.name == Expectations.name else EVERY.get(analysis.name)
    return list(dict.fromkeys([*(kind.rules if kind else ()), *(one.rule for one in analysis.findings)]))


def _judge(case: ElementTree.Element, findings: Sequence[Finding], view: View) -> None:
    grave = SEVERITIES[: SEVERITIES.index(view.failing) + 1]
    told = [one for one in findings if one.severity in grave]
    broken = [one for one in told if one.waived is None]
    if broken:
        lines, severity = list(map(_line, broken)), broken[0].severity
        _child(case, "failure", lines, message=count(len(broken), "finding"), type=severity)
    elif told:
        _child(case, "skipped", list(map(_line, told)), message=f"waived: {escape(told[0].waived or '')}")


def _line(finding: Finding) -> str:
    return ", ".join((f"severity={finding.severity}", *finding_entries(finding)))


def _child(case: ElementTree.Element, tag: str, lines: Sequence[str], **attributes: str) -> None:
    child = ElementTree.SubElement(case, tag, attributes)
    rest = [f"{len(lines) - LISTED:,} more"] if len(lines) > LISTED else []
    child.text = "\n".join((*lines[:LISTED], *rest))
