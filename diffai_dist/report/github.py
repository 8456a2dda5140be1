"""What a GitHub workflow shows beside its log: annotations, and a step summary within its limit."""

from __future__ import annotations

from collections.abc import Iterator

from diffai_dist.errors import Failure
from diffai_dist.records import Finding, Severity, Sweep
from diffai_dist.report.columns import joined
from diffai_dist.report.markdown import LIMIT, render
from diffai_dist.report.overview import overview
from diffai_dist.report.tables import plain
from diffai_dist.report.view import View
from diffai_dist.report.wording import failure_entry, findings_part
from diffai_dist.terminal import count, escape

MOST = 10  # annotations of one type that GitHub shows of a step; it drops the others without a word
MESSAGE = 500  # columns; a reader of annotations sees a few lines of each

# Notices are left to the count, so that ten errors or warnings never push it out.
_COMMANDS: dict[Severity, str] = {"critical": "error", "high": "error", "medium": "warning", "low": "warning"}


def workflow_commands(sweep: Sweep) -> Iterator[str]:
    """Workflow commands, a line each: at most ten, worst first, then a notice that counts all that was found.

    What could not be read comes after what is critical; what is waived, or only informs, is counted alone.
    """
    seen = overview(sweep)
    told = [one.finding for one in seen.findings if one.finding.waived is None and one.finding.severity != "info"]
    critical = [finding for finding in told if finding.severity == "critical"]
    lines = [
        *map(_of_finding, critical),
        *map(_of_failure, sweep.failures),
        *map(_of_finding, told[len(critical) :]),
    ]
    yield from lines[:MOST]
    found = findings_part([one.finding for one in seen.findings]) or ["no findings"]
    failed = [count(len(sweep.failures), "failure")] * bool(sweep.failures)
    rest = [f"{len(lines) - MOST:,} more than are annotated"] * (len(lines) > MOST)
    yield _command("notice", "diffai-dist", "; ".join((*found, *failed, *rest)))


def step_summary(sweep: Sweep, view: View, used: int = 0) -> str:
    """The Markdown, in as many whole sections as fit where `used` bytes of a summary are there; "" where none does."""
    sections = "".join(render(sweep, view)).split("\n### ")
    sizes = [len(section.encode()) + len("\n### ") for section in sections]
    note, kept = "\n1,000,000 more sections\n", 0
    while kept < len(sections) and sum(sizes[: kept + 1]) <= LIMIT - used - len(note):
        kept += 1
    text = "\n### ".join(sections[:kept])
    left = len(sections) - kept
    return f"{text}\n{count(left, 'more section')}\n" if kept and left else text


def _of_finding(finding: Finding) -> str:
    names = [name for name in (finding.baseline, finding.candidate) if name is not None]
    subject = [] if finding.tensor is None else [escape(finding.tensor)]
    limit = "" if finding.threshold is None else f" against {plain(finding.threshold)}"
    value = "" if finding.value is None else f": {plain(finding.value)}{limit}"
    where = ", ".join([*subject, *([joined(names, 100)] if names else [])])
    message = f"{finding.severity} {escape(finding.rule)}, {where}{value} ({escape(finding.source, MESSAGE)})"
    return _command(_COMMANDS[finding.severity], escape(finding.rule), message)


def _of_failure(failure: Failure) -> str:
    return _command("error", failure.code, failure_entry(failure))


def _command(kind: str, title: str, message: str) -> str:
    r"""A workflow command; its texts are escaped already, so that no line in them begins another.

    >>> _command("error", "a:b,c", "100%\n::error::x")
    '::error title=a%3Ab%2Cc::100%25%0A::error::x\n'
    """
    return f"::{kind} title={_data(title).replace(':', '%3A').replace(',', '%2C')}::{_data(message)}\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
