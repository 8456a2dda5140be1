"""The outputs, one per file. A renderer turns what a comparison says into pieces of text and touches no file."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial

from diffai_dist.records import Sweep
from diffai_dist.report.array import as_records
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
    "sweep_coverage_lines",
    "total_coverage",
]


def _render(name: str, sweep: Sweep, view: View) -> Iterator[str]:
    """By the module of that name, which is loaded when it is asked for."""
    pieces: Iterator[str] = importlib.import_module(f"{__name__}.{name}").render(sweep, view)
    return pieces


RENDERERS: dict[str, Callable[[Sweep, View], Iterator[str]]] = {
    name: partial(_render, name) for name in ("text", "json", "yaml", "markdown", "junit")
}
