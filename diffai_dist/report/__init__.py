"""The outputs, one per file. A renderer turns what a comparison says into pieces of text and touches no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from diffai_dist.records import Sweep
from diffai_dist.report import json, junit, markdown, text, yaml
from diffai_dist.report.array import as_records
from diffai_dist.report.github import step_summary, workflow_commands
from diffai_dist.report.pairs import sweep_coverage_lines, total_coverage
from diffai_dist.report.schema import records_schema
from diffai_dist.report.view import View
from diffai_dist.report.wording import coverage_lines, failure_entries

__all__ = [
    "RENDERERS",
    "View",
    "as_records",
    "coverage_lines",
    "failure_entries",
    "records_schema",
    "step_summary",
    "sweep_coverage_lines",
    "total_coverage",
    "workflow_commands",
]

RENDERERS: dict[str, Callable[[Sweep, View], Iterator[str]]] = {
    "text": text.render,
    "json": json.render,
    "yaml": yaml.render,
    "markdown": markdown.render,
    "junit": junit.render,
}
